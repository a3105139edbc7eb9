//! NVSP and RNDIS: the messages of the synthetic network adapter, and the OIDs that a guest asks of it, as types.
//!
//! Types only: no I/O, no threads, no memory shared with anyone, no policy. It says what bytes mean and which bytes
//! say it; whether a message is allowed in a state is the `netvsp` crate's to judge. A message that only the other
//! end may send is not in the enumeration of what this end parses, so it cannot be mistaken for one.
//!
//! Follows SPEC-VMBUS §5 (NVSP) and §6 (RNDIS and OIDs).
//!
//! | module | what |
//! | --- | --- |
//! | [`nvsp`] | NVSP versions 1 to 6.1: [`nvsp::ClientMessage`], [`nvsp::ServerMessage`] |
//! | [`rndis`] | RNDIS control messages: [`rndis::Request`], [`rndis::Reply`] |
//! | [`packet`] | RNDIS PACKET and its per-packet information |
//! | [`oid`] | codes of OIDs, packet filter, link state, RNDIS configuration parameters |
//! | [`rss`] | RSS capabilities and parameters |
//! | [`offload`] | offload capabilities and parameters |
//!
//! Layer: formats (ARCHITECTURE.md). Used by `netvsp` and by the programs that show what it does.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod error;
pub mod nvsp;
pub mod offload;
pub mod oid;
pub mod packet;
pub mod rndis;
pub mod rss;

pub use error::ParseError;
pub use ndis_protocol::{MacAddress, NdisObjectHeader, NdisStatus};

/// GUID of a network offer's interface, in wire order (SPEC-VMBUS §1.5): f8615163-df3e-46c5-913f-f2d2f965ed0e.
pub const NETWORK_INTERFACE_ID: [u8; 16] = [
    0x63, 0x51, 0x61, 0xf8, 0x3e, 0xdf, 0xc5, 0x46, 0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e,
];
