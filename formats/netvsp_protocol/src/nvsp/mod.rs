//! NVSP: the protocol between a network VSC (client, in the guest) and VSP (server), versions 1 to 6.1
//! (SPEC-VMBUS §5).
//!
//! A message is the payload of a ring packet: a u32 type and a body, zero-padded to [`NvspVersion::message_size`].
//! Receivers take shorter and longer ones as long as the fields needed are there.

mod message;
mod version;
mod wire;

pub use message::{
    ClientMessage, DataPath, MAX_MESSAGE_SIZE, MessageBytes, ReceiveBufferSection, ServerMessage,
};
pub use version::{NvspCapabilities, NvspStatus, NvspVersion};
pub use wire::{ChannelType, MessageType, SendRndisPacket};

/// Bytes of a section of the send buffer (SPEC-VMBUS §5.3).
pub const SEND_BUFFER_SECTION_SIZE: u32 = 6144;
/// SEND_RNDIS_PACKET's section index that stands for "no section".
pub const NO_SEND_BUFFER_SECTION: u32 = 0xFFFF_FFFF;
/// Entries of the send indirection table.
pub const SEND_TABLE_ENTRIES: usize = 16;
/// Entries of the longest receive indirection table.
pub const MAX_RECEIVE_TABLE_ENTRIES: usize = 128;
/// Channels of a NIC, the primary included.
pub const MAX_CHANNELS: u32 = 64;
/// Ranges of a transfer-page packet, and with RSC over VMBus (SPEC-VMBUS §5.3, Limits).
pub const MAX_TRANSFER_RANGES: usize = 375;
/// The same where RSC over VMBus was negotiated.
pub const MAX_TRANSFER_RANGES_RSC: usize = 562;
/// The least frame size that SEND_NDIS_CONFIG may state, bytes with the Ethernet header; also the default.
pub const MIN_MTU: u32 = 1514;
/// The most, bytes with the Ethernet header.
pub const MAX_MTU: u32 = 9216;
/// INIT_COMPLETE's maximum MDL chain.
pub const MAX_MDL_CHAIN: u32 = 34;
/// Serial numbers and such need no name; the transaction id of a server's SEND_VF_ASSOCIATION (SPEC-VMBUS §7).
pub const VF_ASSOCIATION_TRANSACTION_ID: u64 = 0x8000_0000_0000_0000;
/// The transaction id of a server's SWITCH_DATA_PATH (SPEC-VMBUS §7).
pub const SWITCH_DATA_PATH_TRANSACTION_ID: u64 = 0x8000_0000_0000_0001;
