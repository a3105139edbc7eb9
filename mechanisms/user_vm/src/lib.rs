//! User-mode VM: an unprivileged process with its own network namespace whose interfaces are carried by a VF, or by
//! VMBus with a VF beside it.
//!
//! A partition without a hypervisor. Its kernel is this crate: it gives ordinary programs an `eth0` in namespaces of their
//! own, and moves frames between that and its paths. It refuses to know where the paths come from, and to need any
//! privilege: where the host forbids unprivileged namespaces it says who forbids them.
//!
//! There are two kinds ([`GuestNetwork`]):
//!
//! * *on a VF*: it takes one VF from the adapter's vfio-user socket with the AVF driver, over memory of its own making;
//! * *on VMBus*: it is the guest of a user-mode partition. NetVSP offers become adapters (`eth0`, `eth1` …) with a
//!   synthetic path; VPCI offers become VFs, which join the adapter with their serial number. The data path of an adapter
//!   moves to its VF and back as Linux's `hv_netvsc` moves it, by request and without losing a frame, and to the synthetic
//!   path at once when the VF vanishes ([`AdapterStatistics`] tells of it).
//!
//! Processes: the caller → a launcher, which enters the namespaces → the VM process, which is process 1 of
//! the VM and owns its paths and interfaces → the programs. Each dies with the one before it, so that nothing is
//! left behind however a VM ends. The launcher and the VM process are this program again: `main` calls
//! `user_vm::enter_if_requested` before anything else.
//!
//! Follows SPEC-VMBUS §5 to §7 on VMBus. Layer: mechanisms (ARCHITECTURE.md). Used by `clearway vm` and `clearway demo`.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod channel;
mod config;
mod error;
mod guest;
mod host;
mod statistics;
mod sys;
mod vm;

pub use config::{
    AddressError, DEFAULT_MEMORY, GuestInterfaceKind, GuestNetwork, InterfaceAddress, MAX_ADAPTERS,
    OnVfLoss, UnknownValue, UserVmConfig,
};
pub use error::{ProgramExit, StartFailure, StartFailureKind, UserVmError};
pub use host::{Program, ProgramOutput, RunningProgram, UserVm, VmClient, run, run_on};
pub use listening_socket::ListenError;
pub use statistics::{
    AdapterStatistics, CarrierDirection, DataPath, DataPathStatistics, Drops, InterfaceCounters,
    PathStatistics, SyntheticState, Traffic, VfState, VmStatistics,
};
pub use vm::enter_if_requested;
