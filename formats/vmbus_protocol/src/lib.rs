//! VMBus on the wire: control messages, GPADLs, ring buffers and their packets, as types.
//!
//! It opens no channel and keeps no state: bytes become meaning and back. What the messages *do* is the `vmbus`
//! crate; what travels in the packets of a channel is the device's protocol (`netvsp_protocol`, `vpci_protocol`).
//!
//! Follows SPEC-VMBUS §1–3 and §8 for protocol versions 2.4 to 6.0. All integers are little-endian. Pages are
//! of 4,096 bytes.
//!
//! Layer: formats (ARCHITECTURE.md). Used by `vmbus` and by the devices on it.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod ring;

pub use pcivirt_protocol::Guid;
pub use ring::{
    CONTROL_PAGE_FEATURE_BITS, CONTROL_PAGE_IN, CONTROL_PAGE_INTERRUPT_MASK, CONTROL_PAGE_OUT,
    CONTROL_PAGE_PENDING_SEND_SIZE, FEATURE_PENDING_SEND_SIZE, GpaRangeHeader, MAX_PACKET_LENGTH,
    PACKET_FLAG_COMPLETION_REQUESTED, PACKET_FOOTER_SIZE, PacketDescriptor, PacketFooter,
    PacketType, RangeListHeader, TransferPageRange,
};

/// Bytes of a page, the unit of GPADLs and rings.
pub const PAGE_SIZE: usize = 4096;

// The structures are read as the machine's own integers.
const _: () = assert!(cfg!(target_endian = "little"), "the wire structures are little endian");
