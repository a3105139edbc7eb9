//! User-mode VM: an unprivileged process with its own memory and network namespace whose eth0 is carried by
//! a VF.
//!
//! A partition without a hypervisor. Its kernel is this crate: it takes a VF from the adapter's vfio-user
//! socket with the AVF driver, gives ordinary programs an `eth0` in namespaces of their own, and moves frames
//! between the two. It refuses to know where the VF comes from (the virtualization stack hands it a socket),
//! and to need any privilege: where the host forbids unprivileged namespaces it says who forbids them.
//!
//! Processes: the caller → a launcher, which enters the namespaces → the VM process, which is process 1 of
//! the VM and owns the VF and `eth0` → the programs. Each dies with the one before it, so that nothing is
//! left behind however a VM ends. The launcher and the VM process are this program again: `main` calls
//! `user_vm::enter_if_requested` before anything else.
//!
//! Layer: mechanisms (ARCHITECTURE.md). Used by `clearway vm` and `clearway demo`.

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
pub use statistics::{
    AdapterStatistics, CarrierDirection, DataPath, DataPathStatistics, Drops, InterfaceCounters,
    PathStatistics, SyntheticState, Traffic, VfState, VmStatistics,
};
pub use vm::enter_if_requested;
