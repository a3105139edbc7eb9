//! Bodies of NVSP messages as they lie in memory (SPEC-VMBUS §5.3).

use core::mem::offset_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

use super::{NO_SEND_BUFFER_SECTION, NvspStatus};
use crate::{NdisObjectHeader, ParseError, error::front};

/// Types of messages.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct MessageType(pub u32);

#[expect(missing_docs, reason = "the names are those of the table in SPEC-VMBUS §5.3")]
impl MessageType {
    pub const INIT: Self = Self(1);
    pub const INIT_COMPLETE: Self = Self(2);
    pub const SEND_NDIS_VERSION: Self = Self(100);
    pub const SEND_RECEIVE_BUFFER: Self = Self(101);
    pub const SEND_RECEIVE_BUFFER_COMPLETE: Self = Self(102);
    pub const REVOKE_RECEIVE_BUFFER: Self = Self(103);
    pub const SEND_SEND_BUFFER: Self = Self(104);
    pub const SEND_SEND_BUFFER_COMPLETE: Self = Self(105);
    pub const REVOKE_SEND_BUFFER: Self = Self(106);
    pub const SEND_RNDIS_PACKET: Self = Self(107);
    pub const SEND_RNDIS_PACKET_COMPLETE: Self = Self(108);
    pub const SEND_NDIS_CONFIG: Self = Self(125);
    pub const SEND_VF_ASSOCIATION: Self = Self(128);
    pub const SWITCH_DATA_PATH: Self = Self(129);
    pub const OID_QUERY_EX: Self = Self(131);
    pub const OID_QUERY_EX_COMPLETE: Self = Self(132);
    pub const SUBCHANNEL: Self = Self(133);
    pub const SEND_INDIRECTION_TABLE: Self = Self(134);
    pub const PD_API: Self = Self(135);
    pub const PD_POST_BATCH: Self = Self(136);

    /// Whether the message belongs to the features of V2 to V4 that no longer exist: TCP chimney, VM queues,
    /// allocated buffers, uplink state.
    #[must_use]
    pub const fn is_obsolete(self) -> bool {
        matches!(self.0, 109..=124 | 126 | 127 | 130)
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($at:literal $field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
            )]
            #[repr(C)]
            pub(crate) struct $name { $(pub(crate) $field: $type,)* }
            const _: () = {
                assert!(size_of::<$name>() == $size);
                $(assert!(offset_of!($name, $field) == $at);)*
            };
        )*
    };
}

bodies! {
    Init, 8 { 0 version: U32, 4 version_again: U32 }
    InitComplete, 12 { 0 version: U32, 4 max_mdl_chain: U32, 8 status: U32 }
    SendNdisVersion, 8 { 0 major: U32, 4 minor: U32 }
    /// SEND_RECEIVE_BUFFER and SEND_SEND_BUFFER.
    SendBuffer, 8 { 0 gpadl: U32, 4 id: U16, 6 reserved: U16 }
    SendReceiveBufferComplete, 24 {
        0 status: U32, 4 sections: U32, 8 offset: U32, 12 sub_allocation_size: U32,
        16 sub_allocations: U32, 20 end_offset: U32,
    }
    /// REVOKE_RECEIVE_BUFFER and REVOKE_SEND_BUFFER.
    RevokeBuffer, 2 { 0 id: U16 }
    SendSendBufferComplete, 8 { 0 status: U32, 4 section_size: U32 }
    RndisPacket, 12 { 0 channel_type: U32, 4 section_index: U32, 8 section_size: U32 }
    SendNdisConfig, 16 { 0 mtu: U32, 4 reserved: U32, 8 capabilities: U64 }
    SendVfAssociation, 8 { 0 allocated: U32, 4 serial_number: U32 }
    OidQueryEx, 8 { 0 header: NdisObjectHeader, 4 oid: U32 }
    /// OID_QUERY_EX_COMPLETE, and both forms of SUBCHANNEL: {operation, count} and {status, count}.
    TwoWords, 8 { 0 first: U32, 4 second: U32 }
    SendIndirectionTable, 8 { 0 entries: U32, 4 table_offset: U32 }
}

/// Whether a SEND_RNDIS_PACKET carries frames or an RNDIS control message.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[repr(u32)]
pub enum ChannelType {
    /// Frames.
    Data = 0,
    /// A control message.
    Control = 1,
}

/// SEND_RNDIS_PACKET: where the RNDIS message is that a ring packet brings. The one message of the frame path.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct SendRndisPacket {
    /// What the RNDIS message is.
    pub channel_type: ChannelType,
    /// Index of the send-buffer section and bytes used in it, if the message (or its beginning) lies there.
    pub section: Option<(u32, u32)>,
}

impl SendRndisPacket {
    /// Bytes of the message without padding.
    pub const SIZE: usize = 16;

    /// From the message's first 16 bytes, type included.
    ///
    /// # Errors
    /// It is another message, or its channel type is neither data nor control.
    #[inline]
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Result<Self, ParseError> {
        let word = |at: usize| {
            bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |b| u32::from_le_bytes(*b))
        };
        if word(0) != MessageType::SEND_RNDIS_PACKET.0 {
            return Err(ParseError::MessageType(word(0)));
        }
        Self::from_words(word(4), word(8), word(12))
    }

    /// From the message's first 16 bytes as two words in memory order, least byte first; as [`Self::parse`].
    ///
    /// # Errors
    /// As [`Self::parse`].
    #[inline(always)]
    pub fn from_qwords([first, second]: [u64; 2]) -> Result<Self, ParseError> {
        let halves = |word: u64| {
            let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
            [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
        };
        let [kind, channel_type] = halves(first);
        let [index, size] = halves(second);
        if kind != MessageType::SEND_RNDIS_PACKET.0 {
            return Err(ParseError::MessageType(kind));
        }
        Self::from_words(channel_type, index, size)
    }

    #[inline(always)]
    fn from_words(channel_type: u32, index: u32, size: u32) -> Result<Self, ParseError> {
        let channel_type = match channel_type {
            0 => ChannelType::Data,
            1 => ChannelType::Control,
            other => {
                return Err(ParseError::Field {
                    message: "SEND_RNDIS_PACKET",
                    field: "channel_type",
                    value: u64::from(other),
                });
            }
        };
        let section = (index != NO_SEND_BUFFER_SECTION).then_some((index, size));
        Ok(Self { channel_type, section })
    }

    pub(crate) fn parse_body(body: &[u8]) -> Result<Self, ParseError> {
        let wire: RndisPacket = front("SEND_RNDIS_PACKET", body)?;
        Self::from_words(wire.channel_type.get(), wire.section_index.get(), wire.section_size.get())
    }

    /// The message's bytes, type included, without padding.
    #[inline]
    #[must_use]
    pub fn emit(&self) -> [u8; Self::SIZE] {
        let (index, size) = self.section.unwrap_or((NO_SEND_BUFFER_SECTION, 0));
        let mut out = [0; Self::SIZE];
        let words = [MessageType::SEND_RNDIS_PACKET.0, self.channel_type as u32, index, size];
        for (chunk, word) in out.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// The status of a SEND_RNDIS_PACKET_COMPLETE in the payload of a completion, which may be as short as 8 bytes.
impl NvspStatus {
    /// The 8 bytes of SEND_RNDIS_PACKET_COMPLETE with this status.
    #[inline]
    #[must_use]
    pub const fn packet_complete(self) -> [u8; 8] {
        let [a, b, c, d] = MessageType::SEND_RNDIS_PACKET_COMPLETE.0.to_le_bytes();
        let [e, f, g, h] = self.0.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// The status, if the bytes are a SEND_RNDIS_PACKET_COMPLETE.
    #[inline]
    #[must_use]
    pub const fn from_packet_complete(bytes: &[u8; 8]) -> Option<Self> {
        let &[a, b, c, d, e, f, g, h] = bytes;
        if u32::from_le_bytes([a, b, c, d]) != MessageType::SEND_RNDIS_PACKET_COMPLETE.0 {
            return None;
        }
        Some(Self(u32::from_le_bytes([e, f, g, h])))
    }
}
