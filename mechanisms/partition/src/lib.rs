//! Partition: one guest's memory, messages, signals, interrupts and MMIO, and the VMBus that runs over them.
//!
//! [`Partition`] is what the host's end of VMBus, VPCI and NetVSP need of a guest, whatever the guest is. It knows
//! no channels and no devices. Its first implementation is the user-mode partition ([`user`]): the guest is an
//! unprivileged process at the other end of a Unix socket, over memory that the host made. [`host`] and [`guest`]
//! join the cores of the `vmbus` crate with a partition into a running server and a running client.
//!
//! The guest is hostile: whatever it sends is validated and bounded, and ends at worst in
//! [`PartitionEvent::Gone`].
//!
//! Follows SPEC-VMBUS §1.1 for messages and signals.
//!
//! Layer: mechanisms (ARCHITECTURE.md). Used by `vpci`, `netvsp` and the virtualization stack.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod contract;
mod error;
pub mod guest;
pub mod host;
mod memory;
mod pages;
pub mod user;

pub use contract::{
    MmioHandler, MmioPages, MsiBlock, Partition, PartitionEvent, PostError, ReferenceTime,
    Retarget, RetargetHandler, VmbusMessage,
};
pub use error::PartitionError;
pub use memory::{GuestMemory, GuestRegion};
pub use pages::PageAllocator;
