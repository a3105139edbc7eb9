//! VMBus: the channel protocol's server and client, GPADLs and ring buffers, over a partition.
//!
//! The cores ([`server`], [`client`]) do no I/O: a message comes in, effects come out as values. The rings work on
//! shared memory and say when the peer is to be signalled; a [`Channel`] does that through eventfds. Nothing here
//! knows what a device's packets mean, or what kind of partition the guest is.
//!
//! Follows SPEC-VMBUS §1–3 and its robustness rules (§8.2): the other end is hostile. Whatever it writes to a ring
//! ends at worst in [`ChannelDead`]; whatever it sends ends at worst in its own connection being reset.
//!
//! Layer: mechanisms (ARCHITECTURE.md). Used by `partition`, `netvsp` and `vpci`.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod channel;
pub mod client;
mod event_fd;
mod guest_buffer;
#[cfg(test)]
mod interleaving;
pub mod ring;
pub mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use channel::Channel;
pub use event_fd::EventFd;
pub use guest_buffer::{GuestBuffer, GuestBufferError, MAX_RING_RUNS};
pub use ring::{
    ChannelDead, GpaRange, GpaRanges, OutgoingGpaRange, OutgoingPacket, Packet, PacketKind,
    RingMemory, RingReceiver, RingSender, RoomRequest, SendError, Signal, TransferPageRanges,
};
