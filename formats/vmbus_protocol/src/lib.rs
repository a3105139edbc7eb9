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

mod client_message;
mod gpadl;
mod identifiers;
mod message;
mod offer;
mod ring;
mod server_message;
mod synic;
#[cfg(test)]
mod tests;
mod version;

pub use client_message::{
    ClientMessage, GpadlBody, GpadlHeader, InitiateContact, MonitorPages, OpenChannel,
    OpenReservedChannel, SignalParameters, TargetInfo, TlConnectRequest,
};
pub use gpadl::{
    GPADL_BODY_WORDS, GPADL_HEADER_WORDS, Gpadl, GpadlAssembly, GpadlError, GpadlRange, GpadlWords,
    MAX_GPADL_WORDS,
};
pub use identifiers::{
    ChannelId, GpadlId, INTERFACE_HEARTBEAT, INTERFACE_KVP, INTERFACE_NETWORK, INTERFACE_SCSI,
    INTERFACE_SHUTDOWN, INTERFACE_TIMESYNC, INTERFACE_VPCI, VpIndex,
};
pub use message::{MESSAGE_HEADER_SIZE, MessageBytes, MessageError, MessageType, Sender};
pub use offer::{
    HvsockUserDefined, Offer, OfferFlags, PipeType, PipeUserDefined, USER_DEFINED_SIZE, UserDefined,
};
pub use server_message::{
    ConnectionState, STATUS_CONNECTION_REFUSED, STATUS_SUCCESS, STATUS_UNSUCCESSFUL, ServerMessage,
    SupportedFeatures, VersionResponse,
};
pub use synic::{
    MAX_MESSAGE_SIZE, MESSAGE_FLAG_PENDING, MessageSlot, MonitorPage, MonitorParameter,
    MonitorTriggerGroup, VMBUS_MESSAGE_TYPE,
};
pub use version::{
    CONNECTION_ID, FeatureFlags, MAX_CHANNELS, MULTI_CLIENT_CONNECTION_ID, Negotiated, VMBUS_SINT,
    Version, channel_connection_id,
};

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
