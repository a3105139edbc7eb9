//! VM worker: the host side of one partition. It offers the VM's synthetic NICs, whose rings it hands to a virtual
//! switch, its VFs as PCI devices, whose registers, memory and interrupts it joins with the guest, and the integration
//! services that it is to have.
//!
//! It decides nothing: which NIC the VM has, and when it gets or loses a VF, it is told over device control
//! ([`control`]), and it reports what became of it. It assumes nothing about who the guest is, and waits for nobody:
//! neither for the guest, nor for a switch, nor for an adapter. It touches no frame.
//!
//! One thread owns all state. Whatever could wait has a thread of its own and is told to, and tells: each connection to a
//! switch or a NIC, and each VF's vfio-user connection. A guest's access to a register waits for the VF's server, on the
//! guest's time and for a limited one.
//!
//! Follows SPEC-VMBUS §4 and §7, SPEC-PCIVIRT §6, §8 and §10. Layer: mechanisms (ARCHITECTURE.md), above `partition`,
//! `vpci`, `integration_services`, `vfio_user_client` and `device_control`; a client of `virtual_switch` and of a NIC's `adapter`.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod control;
mod event;
mod link;
mod log_budget;
mod reply;
pub mod reports;
mod retarget;
mod server;
mod vf;
mod worker;

pub use integration_services::Service as IntegrationService;
pub use server::{APERTURES, StartError, VmWorker, WorkerConfig};
