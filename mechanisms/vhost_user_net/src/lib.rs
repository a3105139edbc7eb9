//! The device side of a virtio-net that a front-end reaches by vhost-user: QEMU's, Cloud Hypervisor's, DPDK's
//! `net_virtio_user`.
//!
//! It moves packets between rings in a guest's memory and whoever forwards them, and says what their headers say. It
//! decides nowhere where a packet goes, and computes no checksum.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`Device`] | the queues, on the thread that moves packets: no lock, no allocation, no log line per packet |
//! | [`VhostUserServer`] | the socket, and the thread that hears the front-end and asks the device's for each change |
//! | [`Features`] | what the device offers, and what a driver took of it |
//!
//! # Rings
//!
//! The device side of the rings is written here, on the accessors of [`shared_memory`]: the `virtio-queue` crate reads
//! and writes through `vm-memory`'s own mappings, which would be another view of the guest's memory beside the one
//! whose pieces the switch copies from, and which a file that shrinks turns into SIGBUS; and it knows no packed rings. Both
//! kinds are here, and a queue has one or the other as its driver has agreed.
//! The protocol's messages are parsed by rust-vmm's `vhost`.
//!
//! # Hostile guests and front-ends
//!
//! Every descriptor is read once, into a local copy, then checked, then used. What is wrong with one packet costs that
//! packet; what is wrong with a ring ends that queue until it is set up again, and is told by its error eventfd; what is
//! wrong with a message ends the connection, and so does memory that is taken away ([`shared_memory::MemoryWatch`]). Kicks
//! are never read, and calls never wait, for the front-end has both in its hands.
//!
//! Follows virtio 1.2 §2.7, §2.8, §5.1 and QEMU's "Vhost-user Protocol". Layer: mechanisms (ARCHITECTURE.md). Used by the
//! virtual switch.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod burst;
mod device;
mod early;
mod features;
mod memory;
mod packed;
mod packet;
mod ring;
mod server;
mod session;
mod split;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use burst::{MAX_BURST, SentBurst, WholePacket};
pub use device::{Device, MAX_QUEUE_PAIRS, NotPut};
pub use features::Features;
pub use packet::{Packet, Sent, Unread};
pub use ring::RingError;
pub use server::{ServerError, VhostUserServer};
