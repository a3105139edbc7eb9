//! NetVSP and NetVSC: the synthetic network adapter's two ends, over VMBus channels.
//!
//! They move frames between rings and whoever forwards them, negotiate how, and tell each other about the VF beside
//! the synthetic adapter. They decide nowhere where a frame goes, look up no GPADL, offer no channel, move no receive
//! filter: they say that it is to be done ([`server::Upcall`], [`client::Upcall`]) and are told when it is.
//!
//! | type | what it is |
//! | --- | --- |
//! | [`server::NetVsp`] | one NIC's server: the parts below on one thread, with their channels |
//! | [`server::Control`] | its negotiation, OIDs and VF: events in, effects out as values, no I/O, no clock |
//! | [`server::VspQueue`] | the frame path of one of its channels |
//! | [`client::NetVsc`], [`client::Control`], [`client::VscQueue`] | the same of the guest |
//! | [`Burst`] | frames out of a ring, as pieces of memory with [`TransmitMetadata`] or [`ReceiveMetadata`] |
//! | [`Steering`] | which channel a frame to the guest takes: RSS |
//!
//! # The frame path
//!
//! One thread owns a queue. A burst of frames is read from the ring as *pieces of shared memory*, which the caller
//! copies to where they go, once; then the ring packets of the burst are completed together. The first bytes of each
//! message are read once, into a local copy, and everything that is believed of them comes from that copy.
//! There is no allocation, lock, system call or log line per frame.
//!
//! # Hostile guests
//!
//! What is wrong with one frame costs that frame ([`server::QueueStatistics::malformed`]). What is wrong with the
//! protocol ends the channel ([`ProtocolError`]): it is served no more until it was closed and opened again. A guest
//! that does not read its ring makes nothing grow: it is not read either.
//!
//! Follows SPEC-VMBUS §5 to §7 and §8.2. Layer: mechanisms (ARCHITECTURE.md). Used by the virtual switch and by the
//! user-mode guest.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod burst;
mod channels;
pub mod client;
mod error;
mod incoming;
mod memory;
mod metadata;
mod outputs;
mod ring;
pub mod server;
mod slots;
mod start;
mod steering;
#[cfg(test)]
mod tests;

pub use burst::{BURST_FRAMES, Burst, Frame, MAX_PIECES, ReceiveBurst, TransmitBurst};
pub use error::ProtocolError;
pub use incoming::{Incoming, Outgoing, Stop};
pub use memory::{QueueMemory, ReceiveBuffer};
pub use metadata::{ChecksumRequest, ReceiveMetadata, Segmentation, TransmitMetadata};
pub use outputs::Outputs;
pub use steering::Steering;
