//! VPCI: the provider (VSP) that exposes a PCI function to a guest over VMBus, and the guest's consumer (VSC).
//!
//! The cores [`Vsp`] and [`Vsc`] do no I/O and have no clock: a packet, a trapped access or an answer comes in, with
//! the time; [`Effect`]s and [`VscEffect`]s come out, to be carried out in their order. [`VpciChannel`] joins a core
//! with the rings of a channel, and holds back what the ring has no room for. Neither core maps memory, injects
//! interrupts or calls a PF driver: who owns the partition does, as the effects say.
//!
//! Whatever a guest sends is answered or ends its channel; it cannot panic, loop or make anything here grow beyond
//! the limits of [`FunctionConfig`]. The memory of the function stays where the guest has it until the guest has
//! confirmed an ejection, or let go of its channel.
//!
//! Follows SPEC-VMBUS §4 and §8.2, SPEC-PCIVIRT §8 and §10, and SPEC-NDIS-SRIOV §7 for what a guest sees of a VF.
//! One channel is one bus with one function, as all known hosts have it.
//!
//! Layer: mechanisms (ARCHITECTURE.md), above `vpci_protocol`, `vmbus` and `pci_function`. Used by the host side and
//! the guest side of a partition.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod channel;
#[cfg(test)]
mod tests;
mod transport;
pub mod vsc;
pub mod vsp;

pub use channel::{ChannelError, VpciChannel};
pub use transport::{Incoming, Outgoing};
pub use vsc::{Vsc, VscEffect};
pub use vsp::{Effect, FunctionConfig, Vsp};
