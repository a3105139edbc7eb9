//! NVSP messages as values, one enumeration for each direction (SPEC-VMBUS §5.3).

use zerocopy::{Immutable, IntoBytes};

use super::{
    MAX_MDL_CHAIN, NvspCapabilities, NvspStatus, NvspVersion, SEND_TABLE_ENTRIES, SendRndisPacket,
    wire::{self, MessageType},
};
use crate::{
    NdisObjectHeader, NdisStatus, ParseError,
    error::{front, part},
};

/// Bytes of the longest message, SEND_INDIRECTION_TABLE.
pub const MAX_MESSAGE_SIZE: usize = 12 + 4 * SEND_TABLE_ENTRIES;

/// Which path carries the guest's frames.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[repr(u32)]
pub enum DataPath {
    /// NetVSP, over VMBus.
    Synthetic = 0,
    /// The VF.
    Vf = 1,
}

/// The one section of the receive buffer that a server makes of it.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct ReceiveBufferSection {
    /// Where it begins in the buffer, bytes; 0.
    pub offset: u32,
    /// Bytes of one suballocation.
    pub sub_allocation_size: u32,
    /// Suballocations.
    pub sub_allocations: u32,
    /// Where the section ends, bytes.
    pub end_offset: u32,
}

/// What a client sends, as packet or as payload of a completion.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum ClientMessage {
    /// Asks for a version; anything else before it is an error.
    Init {
        /// The version's number, which may be one that is not known here.
        version: u32,
    },
    /// The guest's NDIS version.
    SendNdisVersion {
        /// Major.
        major: u32,
        /// Minor.
        minor: u32,
    },
    /// Hands over the receive buffer.
    SendReceiveBuffer {
        /// GPADL of the buffer.
        gpadl: u32,
        /// The buffer's id, the transfer page set of receive packets.
        id: u16,
    },
    /// Takes the receive buffer back; the data path stops.
    RevokeReceiveBuffer {
        /// The buffer's id.
        id: u16,
    },
    /// Hands over the send buffer.
    SendSendBuffer {
        /// GPADL of the buffer.
        gpadl: u32,
        /// The buffer's id.
        id: u16,
    },
    /// Takes the send buffer back.
    RevokeSendBuffer {
        /// The buffer's id.
        id: u16,
    },
    /// An RNDIS message.
    SendRndisPacket(SendRndisPacket),
    /// Gives back the suballocations of a receive packet (payload of a completion).
    SendRndisPacketComplete {
        /// What became of it.
        status: NvspStatus,
    },
    /// MTU and capabilities (V2).
    SendNdisConfig {
        /// Frame size with the Ethernet header, bytes.
        mtu: u32,
        /// What the guest can do.
        capabilities: NvspCapabilities,
    },
    /// Asks to move the data path (V4).
    SwitchDataPath {
        /// To which path.
        path: DataPath,
    },
    /// Asks for an NDIS structure (V5).
    OidQueryEx {
        /// Type and revision wanted.
        header: NdisObjectHeader,
        /// Which OID.
        oid: u32,
    },
    /// Asks for subchannels (V5).
    Subchannel {
        /// 1 is "allocate"; nothing else is known.
        operation: u32,
        /// How many.
        count: u32,
    },
    /// A packet-direct message (V6.1), which servers may refuse.
    PacketDirect(
        /// The message's type.
        u32,
    ),
    /// A message of a feature that no longer exists (V2 to V4).
    Obsolete(
        /// The message's type.
        u32,
    ),
}

/// What a server sends, as packet or as payload of a completion.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum ServerMessage {
    /// Answers INIT.
    InitComplete {
        /// 2 for V1, else 0xFFFFFFFF.
        negotiated_version: u32,
        /// The most pages of one packet that the server takes.
        max_mdl_chain: u32,
        /// [`NvspStatus::SUCCESS`], or [`NvspStatus::NONE`]: try another version.
        status: NvspStatus,
    },
    /// Answers SEND_RECEIVE_BUFFER.
    SendReceiveBufferComplete {
        /// Whether it was taken.
        status: NvspStatus,
        /// How it is divided, when it was taken.
        section: Option<ReceiveBufferSection>,
    },
    /// Answers SEND_SEND_BUFFER.
    SendSendBufferComplete {
        /// Whether it was taken.
        status: NvspStatus,
        /// Bytes of one section.
        section_size: u32,
    },
    /// An RNDIS message; the transfer pages say where.
    SendRndisPacket(SendRndisPacket),
    /// The client's RNDIS message was taken; its section and pages are free (payload of a completion).
    SendRndisPacketComplete {
        /// What became of it.
        status: NvspStatus,
    },
    /// The guest got a VF, or lost it (V4).
    SendVfAssociation {
        /// Whether there is one.
        allocated: bool,
        /// Its serial number, that of the VPCI device.
        serial_number: u32,
    },
    /// The server moved the data path by itself (V4).
    SwitchDataPath {
        /// To which path.
        path: DataPath,
    },
    /// Answers OID_QUERY_EX.
    OidQueryExComplete {
        /// The status.
        status: NdisStatus,
        /// Bytes of the structure.
        bytes: u32,
    },
    /// Answers SUBCHANNEL.
    SubchannelComplete {
        /// Whether it was granted.
        status: NvspStatus,
        /// Subchannels that will be offered.
        count: u32,
    },
    /// The channel for each hash value that the guest sends (V5).
    SendIndirectionTable {
        /// Channel indexes, 0 the primary.
        table: [u32; SEND_TABLE_ENTRIES],
    },
}

/// A message's bytes.
#[derive(Copy, Clone, Eq, PartialEq)]
pub struct MessageBytes {
    bytes: [u8; MAX_MESSAGE_SIZE],
    length: usize,
}

impl core::ops::Deref for MessageBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl core::fmt::Debug for MessageBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl MessageBytes {
    fn new<T: IntoBytes + Immutable>(kind: MessageType, body: &T, size: usize) -> Self {
        let mut bytes = [0; MAX_MESSAGE_SIZE];
        let (head, rest) = bytes.split_at_mut(4);
        head.copy_from_slice(&kind.0.to_le_bytes());
        let body = body.as_bytes();
        if let Some(target) = rest.get_mut(..body.len()) {
            target.copy_from_slice(body);
        }
        Self { bytes, length: size.max(4 + body.len()).min(MAX_MESSAGE_SIZE) }
    }
}

fn split(bytes: &[u8]) -> Result<(u32, &[u8]), ParseError> {
    let (kind, body) = bytes.split_first_chunk().ok_or(ParseError::TooShort {
        message: "NVSP message",
        needed: 4,
        got: bytes.len(),
    })?;
    Ok((u32::from_le_bytes(*kind), body))
}

fn word(message: &'static str, body: &[u8]) -> Result<u32, ParseError> {
    front::<zerocopy::little_endian::U32>(message, body).map(zerocopy::little_endian::U32::get)
}

fn data_path(body: &[u8]) -> Result<DataPath, ParseError> {
    match word("SWITCH_DATA_PATH", body)? {
        0 => Ok(DataPath::Synthetic),
        1 => Ok(DataPath::Vf),
        other => Err(ParseError::Field {
            message: "SWITCH_DATA_PATH",
            field: "active_path",
            value: u64::from(other),
        }),
    }
}

/// A section index of 0xFFFFFFFF means "none" and leaves no size to be sent.
fn rndis_packet_body(packet: &SendRndisPacket) -> wire::RndisPacket {
    let (index, size) = packet.section.unwrap_or((super::NO_SEND_BUFFER_SECTION, 0));
    wire::RndisPacket {
        channel_type: (packet.channel_type as u32).into(),
        section_index: index.into(),
        section_size: size.into(),
    }
}

impl ClientMessage {
    /// What a client's bytes say.
    ///
    /// # Errors
    /// The message is too short, is one that only a server sends, or has a field that makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (kind, body) = split(bytes)?;
        Ok(match MessageType(kind) {
            MessageType::INIT => {
                Self::Init { version: front::<wire::Init>("INIT", body)?.version.get() }
            }
            MessageType::SEND_NDIS_VERSION => {
                let wire: wire::SendNdisVersion = front("SEND_NDIS_VERSION", body)?;
                Self::SendNdisVersion { major: wire.major.get(), minor: wire.minor.get() }
            }
            MessageType::SEND_RECEIVE_BUFFER => {
                let wire: wire::SendBuffer = front("SEND_RECEIVE_BUFFER", body)?;
                Self::SendReceiveBuffer { gpadl: wire.gpadl.get(), id: wire.id.get() }
            }
            MessageType::REVOKE_RECEIVE_BUFFER => {
                let wire: wire::RevokeBuffer = front("REVOKE_RECEIVE_BUFFER", body)?;
                Self::RevokeReceiveBuffer { id: wire.id.get() }
            }
            MessageType::SEND_SEND_BUFFER => {
                let wire: wire::SendBuffer = front("SEND_SEND_BUFFER", body)?;
                Self::SendSendBuffer { gpadl: wire.gpadl.get(), id: wire.id.get() }
            }
            MessageType::REVOKE_SEND_BUFFER => {
                let wire: wire::RevokeBuffer = front("REVOKE_SEND_BUFFER", body)?;
                Self::RevokeSendBuffer { id: wire.id.get() }
            }
            MessageType::SEND_RNDIS_PACKET => {
                Self::SendRndisPacket(SendRndisPacket::parse_body(body)?)
            }
            MessageType::SEND_RNDIS_PACKET_COMPLETE => Self::SendRndisPacketComplete {
                status: NvspStatus(word("SEND_RNDIS_PACKET_COMPLETE", body)?),
            },
            MessageType::SEND_NDIS_CONFIG => {
                let wire: wire::SendNdisConfig = front("SEND_NDIS_CONFIG", body)?;
                let capabilities = NvspCapabilities::from_bits_retain(wire.capabilities.get());
                Self::SendNdisConfig { mtu: wire.mtu.get(), capabilities }
            }
            MessageType::SWITCH_DATA_PATH => Self::SwitchDataPath { path: data_path(body)? },
            MessageType::OID_QUERY_EX => {
                let wire: wire::OidQueryEx = front("OID_QUERY_EX", body)?;
                Self::OidQueryEx { header: wire.header, oid: wire.oid.get() }
            }
            MessageType::SUBCHANNEL => {
                let wire: wire::TwoWords = front("SUBCHANNEL", body)?;
                Self::Subchannel { operation: wire.first.get(), count: wire.second.get() }
            }
            MessageType::PD_API | MessageType::PD_POST_BATCH => Self::PacketDirect(kind),
            other if other.is_obsolete() => Self::Obsolete(kind),
            _ => return Err(ParseError::MessageType(kind)),
        })
    }

    /// The message's name in SPEC-VMBUS §5.3.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Init { .. } => "INIT",
            Self::SendNdisVersion { .. } => "SEND_NDIS_VERSION",
            Self::SendReceiveBuffer { .. } => "SEND_RECEIVE_BUFFER",
            Self::RevokeReceiveBuffer { .. } => "REVOKE_RECEIVE_BUFFER",
            Self::SendSendBuffer { .. } => "SEND_SEND_BUFFER",
            Self::RevokeSendBuffer { .. } => "REVOKE_SEND_BUFFER",
            Self::SendRndisPacket(_) => "SEND_RNDIS_PACKET",
            Self::SendRndisPacketComplete { .. } => "SEND_RNDIS_PACKET_COMPLETE",
            Self::SendNdisConfig { .. } => "SEND_NDIS_CONFIG",
            Self::SwitchDataPath { .. } => "SWITCH_DATA_PATH",
            Self::OidQueryEx { .. } => "OID_QUERY_EX",
            Self::Subchannel { .. } => "SUBCHANNEL",
            Self::PacketDirect(_) => "PD_API",
            Self::Obsolete(_) => "an obsolete message",
        }
    }

    /// The first version that has the message.
    #[must_use]
    pub const fn since(&self) -> NvspVersion {
        match self {
            Self::SendNdisConfig { .. } | Self::Obsolete(_) => NvspVersion::V2,
            Self::SwitchDataPath { .. } => NvspVersion::V4,
            Self::OidQueryEx { .. } | Self::Subchannel { .. } => NvspVersion::V5,
            Self::PacketDirect(_) => NvspVersion::V61,
            _ => NvspVersion::V1,
        }
    }

    /// The message's bytes, padded for `version`. Clients pad to the longest form before they know the version.
    #[must_use]
    pub fn emit(&self, version: NvspVersion) -> MessageBytes {
        let size = version.message_size();
        match *self {
            Self::Init { version } => {
                let body = wire::Init { version: version.into(), version_again: version.into() };
                MessageBytes::new(MessageType::INIT, &body, size)
            }
            Self::SendNdisVersion { major, minor } => {
                let body = wire::SendNdisVersion { major: major.into(), minor: minor.into() };
                MessageBytes::new(MessageType::SEND_NDIS_VERSION, &body, size)
            }
            Self::SendReceiveBuffer { gpadl, id } => {
                let body = buffer_body(gpadl, id);
                MessageBytes::new(MessageType::SEND_RECEIVE_BUFFER, &body, size)
            }
            Self::RevokeReceiveBuffer { id } => {
                let body = wire::RevokeBuffer { id: id.into() };
                MessageBytes::new(MessageType::REVOKE_RECEIVE_BUFFER, &body, size)
            }
            Self::SendSendBuffer { gpadl, id } => {
                let body = buffer_body(gpadl, id);
                MessageBytes::new(MessageType::SEND_SEND_BUFFER, &body, size)
            }
            Self::RevokeSendBuffer { id } => {
                let body = wire::RevokeBuffer { id: id.into() };
                MessageBytes::new(MessageType::REVOKE_SEND_BUFFER, &body, size)
            }
            Self::SendRndisPacket(packet) => {
                let body = rndis_packet_body(&packet);
                MessageBytes::new(MessageType::SEND_RNDIS_PACKET, &body, size)
            }
            Self::SendRndisPacketComplete { status } => {
                let body = zerocopy::little_endian::U32::new(status.0);
                MessageBytes::new(MessageType::SEND_RNDIS_PACKET_COMPLETE, &body, size)
            }
            Self::SendNdisConfig { mtu, capabilities } => {
                let body = wire::SendNdisConfig {
                    mtu: mtu.into(),
                    reserved: 0.into(),
                    capabilities: capabilities.bits().into(),
                };
                MessageBytes::new(MessageType::SEND_NDIS_CONFIG, &body, size)
            }
            Self::SwitchDataPath { path } => {
                let body = zerocopy::little_endian::U32::new(path as u32);
                MessageBytes::new(MessageType::SWITCH_DATA_PATH, &body, size)
            }
            Self::OidQueryEx { header, oid } => {
                let body = wire::OidQueryEx { header, oid: oid.into() };
                MessageBytes::new(MessageType::OID_QUERY_EX, &body, size)
            }
            Self::Subchannel { operation, count } => {
                let body = wire::TwoWords { first: operation.into(), second: count.into() };
                MessageBytes::new(MessageType::SUBCHANNEL, &body, size)
            }
            Self::PacketDirect(kind) | Self::Obsolete(kind) => {
                MessageBytes::new(MessageType(kind), &[0u8; 0], size)
            }
        }
    }
}

fn buffer_body(gpadl: u32, id: u16) -> wire::SendBuffer {
    wire::SendBuffer { gpadl: gpadl.into(), id: id.into(), reserved: 0.into() }
}

impl ServerMessage {
    /// INIT_COMPLETE that takes the version.
    #[must_use]
    pub const fn accept(version: NvspVersion) -> Self {
        Self::InitComplete {
            negotiated_version: version.in_init_complete(),
            max_mdl_chain: MAX_MDL_CHAIN,
            status: NvspStatus::SUCCESS,
        }
    }

    /// INIT_COMPLETE that refuses the version.
    #[must_use]
    pub const fn refuse() -> Self {
        Self::InitComplete { negotiated_version: 0, max_mdl_chain: 0, status: NvspStatus::NONE }
    }

    /// What a server's bytes say.
    ///
    /// # Errors
    /// The message is too short, is one that only a client sends, or has a field that makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (kind, body) = split(bytes)?;
        Ok(match MessageType(kind) {
            MessageType::INIT_COMPLETE => {
                let wire: wire::InitComplete = front("INIT_COMPLETE", body)?;
                Self::InitComplete {
                    negotiated_version: wire.version.get(),
                    max_mdl_chain: wire.max_mdl_chain.get(),
                    status: NvspStatus(wire.status.get()),
                }
            }
            MessageType::SEND_RECEIVE_BUFFER_COMPLETE => receive_buffer_complete(body)?,
            MessageType::SEND_SEND_BUFFER_COMPLETE => {
                let wire: wire::SendSendBufferComplete = front("SEND_SEND_BUFFER_COMPLETE", body)?;
                Self::SendSendBufferComplete {
                    status: NvspStatus(wire.status.get()),
                    section_size: wire.section_size.get(),
                }
            }
            MessageType::SEND_RNDIS_PACKET => {
                Self::SendRndisPacket(SendRndisPacket::parse_body(body)?)
            }
            MessageType::SEND_RNDIS_PACKET_COMPLETE => Self::SendRndisPacketComplete {
                status: NvspStatus(word("SEND_RNDIS_PACKET_COMPLETE", body)?),
            },
            MessageType::SEND_VF_ASSOCIATION => {
                let wire: wire::SendVfAssociation = front("SEND_VF_ASSOCIATION", body)?;
                let serial_number = wire.serial_number.get();
                Self::SendVfAssociation { allocated: wire.allocated.get() != 0, serial_number }
            }
            MessageType::SWITCH_DATA_PATH => Self::SwitchDataPath { path: data_path(body)? },
            MessageType::OID_QUERY_EX_COMPLETE => {
                let wire: wire::TwoWords = front("OID_QUERY_EX_COMPLETE", body)?;
                let status = NdisStatus(wire.first.get());
                Self::OidQueryExComplete { status, bytes: wire.second.get() }
            }
            MessageType::SUBCHANNEL => {
                let wire: wire::TwoWords = front("SUBCHANNEL", body)?;
                let status = NvspStatus(wire.first.get());
                Self::SubchannelComplete { status, count: wire.second.get() }
            }
            MessageType::SEND_INDIRECTION_TABLE => indirection_table(bytes, body)?,
            _ => return Err(ParseError::MessageType(kind)),
        })
    }

    /// The message's bytes, padded for `version`.
    #[must_use]
    pub fn emit(&self, version: NvspVersion) -> MessageBytes {
        let size = version.message_size();
        match *self {
            Self::InitComplete { negotiated_version, max_mdl_chain, status } => {
                let body = wire::InitComplete {
                    version: negotiated_version.into(),
                    max_mdl_chain: max_mdl_chain.into(),
                    status: status.0.into(),
                };
                MessageBytes::new(MessageType::INIT_COMPLETE, &body, size)
            }
            Self::SendReceiveBufferComplete { status, section } => {
                let body = section.map_or_else(Default::default, |section| {
                    wire::SendReceiveBufferComplete {
                        status: 0.into(),
                        sections: 1.into(),
                        offset: section.offset.into(),
                        sub_allocation_size: section.sub_allocation_size.into(),
                        sub_allocations: section.sub_allocations.into(),
                        end_offset: section.end_offset.into(),
                    }
                });
                let body = wire::SendReceiveBufferComplete { status: status.0.into(), ..body };
                MessageBytes::new(MessageType::SEND_RECEIVE_BUFFER_COMPLETE, &body, size)
            }
            Self::SendSendBufferComplete { status, section_size } => {
                let body = wire::SendSendBufferComplete {
                    status: status.0.into(),
                    section_size: section_size.into(),
                };
                MessageBytes::new(MessageType::SEND_SEND_BUFFER_COMPLETE, &body, size)
            }
            Self::SendRndisPacket(packet) => {
                let body = rndis_packet_body(&packet);
                MessageBytes::new(MessageType::SEND_RNDIS_PACKET, &body, size)
            }
            Self::SendRndisPacketComplete { status } => {
                let body = zerocopy::little_endian::U32::new(status.0);
                MessageBytes::new(MessageType::SEND_RNDIS_PACKET_COMPLETE, &body, size)
            }
            Self::SendVfAssociation { allocated, serial_number } => {
                let body = wire::SendVfAssociation {
                    allocated: u32::from(allocated).into(),
                    serial_number: serial_number.into(),
                };
                MessageBytes::new(MessageType::SEND_VF_ASSOCIATION, &body, size)
            }
            Self::SwitchDataPath { path } => {
                let body = zerocopy::little_endian::U32::new(path as u32);
                MessageBytes::new(MessageType::SWITCH_DATA_PATH, &body, size)
            }
            Self::OidQueryExComplete { status, bytes } => {
                let body = wire::TwoWords { first: status.0.into(), second: bytes.into() };
                MessageBytes::new(MessageType::OID_QUERY_EX_COMPLETE, &body, size)
            }
            Self::SubchannelComplete { status, count } => {
                let body = wire::TwoWords { first: status.0.into(), second: count.into() };
                MessageBytes::new(MessageType::SUBCHANNEL, &body, size)
            }
            Self::SendIndirectionTable { table } => emit_table(&table),
        }
    }
}

fn receive_buffer_complete(body: &[u8]) -> Result<ServerMessage, ParseError> {
    const NAME: &str = "SEND_RECEIVE_BUFFER_COMPLETE";
    let status = NvspStatus(word(NAME, body)?);
    if status != NvspStatus::SUCCESS {
        return Ok(ServerMessage::SendReceiveBufferComplete { status, section: None });
    }
    let wire: wire::SendReceiveBufferComplete = front(NAME, body)?;
    // Clients insist on one section from the buffer's start (SPEC-VMBUS §5.4).
    if wire.sections.get() != 1 {
        let value = u64::from(wire.sections.get());
        return Err(ParseError::Field { message: NAME, field: "num_sections", value });
    }
    let section = ReceiveBufferSection {
        offset: wire.offset.get(),
        sub_allocation_size: wire.sub_allocation_size.get(),
        sub_allocations: wire.sub_allocations.get(),
        end_offset: wire.end_offset.get(),
    };
    Ok(ServerMessage::SendReceiveBufferComplete { status, section: Some(section) })
}

fn indirection_table(message: &[u8], body: &[u8]) -> Result<ServerMessage, ParseError> {
    const NAME: &str = "SEND_INDIRECTION_TABLE";
    let wire: wire::SendIndirectionTable = front(NAME, body)?;
    let entries = wire.entries.get();
    if usize::try_from(entries) != Ok(SEND_TABLE_ENTRIES) {
        let value = u64::from(entries);
        return Err(ParseError::Field { message: NAME, field: "entry_count", value });
    }
    let offset = wire.table_offset.get();
    let bytes = part(NAME, "table", message, offset, entries * 4)?;
    let mut table = [0; SEND_TABLE_ENTRIES];
    for (entry, bytes) in table.iter_mut().zip(bytes.chunks_exact(4)) {
        *entry = bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    }
    Ok(ServerMessage::SendIndirectionTable { table })
}

/// The table follows the two words at once, with nothing behind it: old Linux guests would read it elsewhere in a
/// longer message (SPEC-VMBUS §5.6).
fn emit_table(table: &[u32; SEND_TABLE_ENTRIES]) -> MessageBytes {
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Body {
        head: wire::SendIndirectionTable,
        table: [zerocopy::little_endian::U32; SEND_TABLE_ENTRIES],
    }
    let head = wire::SendIndirectionTable { entries: 16.into(), table_offset: 12.into() };
    let body = Body { head, table: table.map(Into::into) };
    MessageBytes::new(MessageType::SEND_INDIRECTION_TABLE, &body, MAX_MESSAGE_SIZE)
}

#[cfg(test)]
mod tests;
