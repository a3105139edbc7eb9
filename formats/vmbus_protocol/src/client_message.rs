//! What a client sends (SPEC-VMBUS §1.5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    ChannelId, FeatureFlags, GPADL_BODY_WORDS, GPADL_HEADER_WORDS, GpadlId, GpadlWords, Guid,
    MessageBytes, MessageError, MessageType, Negotiated, USER_DEFINED_SIZE, Version, VpIndex,
    gpadl::words_of,
    message::{Sender, open},
};

/// A control message from the guest.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum ClientMessage {
    /// Asks for all channels.
    RequestOffers,
    /// Opens a channel.
    OpenChannel(OpenChannel),
    /// Closes a channel; no answer.
    CloseChannel(ChannelId),
    /// Begins a GPADL.
    GpadlHeader(GpadlHeader),
    /// More of it.
    GpadlBody(GpadlBody),
    /// Takes a GPADL back.
    GpadlTeardown {
        /// Its channel.
        channel: ChannelId,
        /// Which.
        gpadl: GpadlId,
    },
    /// The client forgets a channel.
    RelIdReleased(ChannelId),
    /// Connects.
    InitiateContact(InitiateContact),
    /// Disconnects.
    Unload,
    /// Opens a channel that outlives the connection.
    OpenReservedChannel(OpenReservedChannel),
    /// Closes it.
    CloseReservedChannel {
        /// Which.
        channel: ChannelId,
        /// The answer's processor.
        target_vp: VpIndex,
        /// The answer's interrupt source.
        target_sint: u32,
    },
    /// Asks for an hvsocket.
    TlConnectRequest(TlConnectRequest),
    /// Moves a channel's interrupt.
    ModifyChannel {
        /// Which.
        channel: ChannelId,
        /// Where to; `None` is not allowed.
        target_vp: Option<VpIndex>,
    },
    /// Moves the monitor pages.
    ModifyConnection(Option<MonitorPages>),
    /// Asks for silence.
    Pause,
    /// Ends the silence.
    Resume,
}

/// Guest physical addresses of the monitor pages.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub struct MonitorPages {
    /// Written by the host; not 0.
    pub parent_to_child: u64,
    /// Written by the guest; not 0.
    pub child_to_parent: u64,
}

impl MonitorPages {
    /// Both addresses or neither.
    pub(crate) fn parse(parent_to_child: u64, child_to_parent: u64) -> Result<Option<Self>, ()> {
        match (parent_to_child, child_to_parent) {
            (0, 0) => Ok(None),
            (0, _) | (_, 0) => Err(()),
            _ => Ok(Some(Self { parent_to_child, child_to_parent })),
        }
    }

    pub(crate) fn emit(pages: Option<Self>) -> (u64, u64) {
        pages.map_or((0, 0), |pages| (pages.parent_to_child, pages.child_to_parent))
    }
}

/// Where a client from 5.0 on wants its messages, and what it supports.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Hash)]
pub struct TargetInfo {
    /// The interrupt source.
    pub sint: u8,
    /// The trust level; 0 before 5.1.
    pub vtl: u8,
    /// What the client supports; none before 6.0.
    pub features: FeatureFlags,
}

/// INITIATE_CONTACT.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct InitiateContact {
    /// The version asked for, as a number: it need not be a known one.
    pub version: u32,
    /// The processor that messages go to; honoured from 3.0 on.
    pub target_message_vp: VpIndex,
    /// From 5.0 on: where messages go to. Before: nothing.
    pub target: TargetInfo,
    /// Before 5.0: the legacy interrupt page.
    pub interrupt_page: u64,
    /// The client's monitor pages.
    pub monitor_pages: Option<MonitorPages>,
    /// From 6.0 on: who the client is.
    pub client_id: Option<Guid>,
}

/// OPEN_CHANNEL.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct OpenChannel {
    /// Which channel.
    pub channel: ChannelId,
    /// A number that the answer repeats.
    pub open_id: u32,
    /// The rings' memory.
    pub ring_gpadl: GpadlId,
    /// The processor to interrupt; `None`: interrupts are off.
    pub target_vp: Option<VpIndex>,
    /// At which of the GPADL's pages the ring from host to guest begins.
    pub downstream_page_offset: u32,
    /// The device client's own bytes.
    pub user_data: [u8; USER_DEFINED_SIZE],
    /// The long form's fields.
    pub signal: Option<SignalParameters>,
}

/// How a channel is signalled, in the long form of OPEN_CHANNEL.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub struct SignalParameters {
    /// The connection id by which the guest signals.
    pub connection_id: u32,
    /// The event flag by which the host interrupts.
    pub event_flag: u16,
    /// The interrupt is to be redirected.
    pub redirect_interrupt: bool,
}

/// GPADL_HEADER.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct GpadlHeader {
    /// Whose GPADL.
    pub channel: ChannelId,
    /// Its name.
    pub gpadl: GpadlId,
    /// Bytes of all its range data.
    pub byte_count: u16,
    /// Ranges.
    pub range_count: u16,
    /// The first words of range data.
    pub words: GpadlWords,
}

/// GPADL_BODY.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct GpadlBody {
    /// The message's number, or 0.
    pub number: u32,
    /// Which GPADL.
    pub gpadl: GpadlId,
    /// More words of range data.
    pub words: GpadlWords,
}

/// OPEN_RESERVED_CHANNEL.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct OpenReservedChannel {
    /// Which channel.
    pub channel: ChannelId,
    /// The answer's processor.
    pub target_vp: VpIndex,
    /// The answer's interrupt source.
    pub target_sint: u32,
    /// The rings' memory.
    pub ring_gpadl: GpadlId,
    /// At which of the GPADL's pages the ring from host to guest begins.
    pub downstream_page_offset: u32,
}

/// TL_CONNECT_REQUEST.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct TlConnectRequest {
    /// The client's endpoint.
    pub endpoint_id: Guid,
    /// The service it wants.
    pub service_id: Guid,
    /// From 5.2 on, in the long form: the silo.
    pub silo_id: Option<Guid>,
}

macro_rules! wire {
    ($(struct $name:ident : $size:literal { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            pub(crate) struct $name { $(pub(crate) $field: $type),* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

wire! {
    struct OpenChannelWire: 140 {
        channel: u32, open_id: u32, ring_gpadl: u32, target_vp: u32, downstream_page_offset: u32,
        user_data: [u8; USER_DEFINED_SIZE],
    }
    struct SignalParametersWire: 8 { connection_id: u32, event_flag: u16, flags: u16 }
    struct GpadlHeaderWire: 12 { channel: u32, gpadl: u32, byte_count: u16, range_count: u16 }
    struct TwoWords: 8 { first: u32, second: u32 }
    struct InitiateContactWire: 32 {
        version: u32, target_message_vp: u32, target: u64, parent_to_child: u64,
        child_to_parent: u64,
    }
    struct OpenReservedWire: 20 {
        channel: u32, target_vp: u32, target_sint: u32, ring_gpadl: u32,
        downstream_page_offset: u32,
    }
    struct CloseReservedWire: 12 { channel: u32, target_vp: u32, target_sint: u32 }
    struct TlConnectWire: 32 { endpoint_id: Guid, service_id: Guid }
    struct ModifyConnectionWire: 16 { parent_to_child: u64, child_to_parent: u64 }
}

/// Bit of the long OPEN_CHANNEL's flags.
const OPEN_FLAG_REDIRECT_INTERRUPT: u16 = 1;

impl ClientMessage {
    /// The message that the bytes are, over this connection (`None`: there is none yet).
    ///
    /// Bytes behind the message are ignored, since some clients always send as many as there can be.
    pub fn parse(bytes: &[u8], connection: Option<Negotiated>) -> Result<Self, MessageError> {
        let (message, body) = open(bytes, Sender::Client, connection)?;
        let version = connection.map(|connection| connection.version);
        Ok(match message {
            MessageType::RequestOffers => Self::RequestOffers,
            MessageType::OpenChannel => {
                let (wire, rest) = body.split::<OpenChannelWire>()?;
                let signal = if connection.is_some_and(|connection| connection.long_open()) {
                    let wire = SignalParametersWire::read_from_prefix(rest);
                    let (wire, _) = wire.map_err(|_| MessageError::TooShort {
                        message,
                        length: body.bytes.len(),
                        needed: 148,
                    })?;
                    Some(SignalParameters {
                        connection_id: wire.connection_id,
                        event_flag: wire.event_flag,
                        redirect_interrupt: wire.flags & OPEN_FLAG_REDIRECT_INTERRUPT != 0,
                    })
                } else {
                    None
                };
                Self::OpenChannel(OpenChannel {
                    channel: ChannelId(wire.channel),
                    open_id: wire.open_id,
                    ring_gpadl: GpadlId(wire.ring_gpadl),
                    target_vp: VpIndex::parse(wire.target_vp),
                    downstream_page_offset: wire.downstream_page_offset,
                    user_data: wire.user_data,
                    signal,
                })
            }
            MessageType::CloseChannel => Self::CloseChannel(ChannelId(body.read()?)),
            MessageType::GpadlHeader => {
                let (wire, rest) = body.split::<GpadlHeaderWire>()?;
                Self::GpadlHeader(GpadlHeader {
                    channel: ChannelId(wire.channel),
                    gpadl: GpadlId(wire.gpadl),
                    byte_count: wire.byte_count,
                    range_count: wire.range_count,
                    words: words_of(rest, GPADL_HEADER_WORDS),
                })
            }
            MessageType::GpadlBody => {
                let (wire, rest) = body.split::<TwoWords>()?;
                Self::GpadlBody(GpadlBody {
                    number: wire.first,
                    gpadl: GpadlId(wire.second),
                    words: words_of(rest, GPADL_BODY_WORDS),
                })
            }
            MessageType::GpadlTeardown => {
                let wire: TwoWords = body.read()?;
                let (channel, gpadl) = (ChannelId(wire.first), GpadlId(wire.second));
                Self::GpadlTeardown { channel, gpadl }
            }
            MessageType::RelIdReleased => Self::RelIdReleased(ChannelId(body.read()?)),
            MessageType::InitiateContact => {
                let (wire, rest) = body.split::<InitiateContactWire>()?;
                let multi_client = wire.version >= Version::Rs3_1 as u32;
                let pages = MonitorPages::parse(wire.parent_to_child, wire.child_to_parent);
                let has_features = wire.version >= Version::Copper as u32;
                let client_id = Guid::read_from_prefix(rest).ok().map(|(id, _)| id);
                Self::InitiateContact(InitiateContact {
                    version: wire.version,
                    target_message_vp: VpIndex(wire.target_message_vp),
                    target: if multi_client {
                        parse_target(wire.target, wire.version)
                    } else {
                        TargetInfo::default()
                    },
                    interrupt_page: if multi_client { 0 } else { wire.target },
                    monitor_pages: pages.map_err(|()| body.bad("monitor page address"))?,
                    client_id: client_id.filter(|_| has_features),
                })
            }
            MessageType::Unload => Self::Unload,
            MessageType::OpenReservedChannel => {
                let wire: OpenReservedWire = body.read()?;
                Self::OpenReservedChannel(OpenReservedChannel {
                    channel: ChannelId(wire.channel),
                    target_vp: VpIndex(wire.target_vp),
                    target_sint: wire.target_sint,
                    ring_gpadl: GpadlId(wire.ring_gpadl),
                    downstream_page_offset: wire.downstream_page_offset,
                })
            }
            MessageType::CloseReservedChannel => {
                let wire: CloseReservedWire = body.read()?;
                Self::CloseReservedChannel {
                    channel: ChannelId(wire.channel),
                    target_vp: VpIndex(wire.target_vp),
                    target_sint: wire.target_sint,
                }
            }
            MessageType::TlConnectRequest => {
                let (wire, rest) = body.split::<TlConnectWire>()?;
                let silo_id = Guid::read_from_prefix(rest).ok().map(|(id, _)| id);
                Self::TlConnectRequest(TlConnectRequest {
                    endpoint_id: wire.endpoint_id,
                    service_id: wire.service_id,
                    silo_id: silo_id.filter(|_| version >= Some(Version::Rs5)),
                })
            }
            MessageType::ModifyChannel => {
                let wire: TwoWords = body.read()?;
                let target_vp = VpIndex::parse(wire.second);
                Self::ModifyChannel { channel: ChannelId(wire.first), target_vp }
            }
            MessageType::ModifyConnection => {
                let wire: ModifyConnectionWire = body.read()?;
                let pages = MonitorPages::parse(wire.parent_to_child, wire.child_to_parent);
                Self::ModifyConnection(pages.map_err(|()| body.bad("monitor page address"))?)
            }
            MessageType::Pause => Self::Pause,
            MessageType::Resume => Self::Resume,
            other => return Err(MessageError::WrongSender(other)),
        })
    }

    /// The message's number.
    pub fn message_type(&self) -> MessageType {
        match self {
            Self::RequestOffers => MessageType::RequestOffers,
            Self::OpenChannel(_) => MessageType::OpenChannel,
            Self::CloseChannel(_) => MessageType::CloseChannel,
            Self::GpadlHeader(_) => MessageType::GpadlHeader,
            Self::GpadlBody(_) => MessageType::GpadlBody,
            Self::GpadlTeardown { .. } => MessageType::GpadlTeardown,
            Self::RelIdReleased(_) => MessageType::RelIdReleased,
            Self::InitiateContact(_) => MessageType::InitiateContact,
            Self::Unload => MessageType::Unload,
            Self::OpenReservedChannel(_) => MessageType::OpenReservedChannel,
            Self::CloseReservedChannel { .. } => MessageType::CloseReservedChannel,
            Self::TlConnectRequest(_) => MessageType::TlConnectRequest,
            Self::ModifyChannel { .. } => MessageType::ModifyChannel,
            Self::ModifyConnection(_) => MessageType::ModifyConnection,
            Self::Pause => MessageType::Pause,
            Self::Resume => MessageType::Resume,
        }
    }

    /// The bytes of the message.
    pub fn emit(&self) -> MessageBytes {
        let mut bytes = MessageBytes::new(self.message_type());
        match self {
            Self::RequestOffers | Self::Unload | Self::Pause | Self::Resume => {}
            Self::OpenChannel(open) => {
                bytes.push(&OpenChannelWire {
                    channel: open.channel.0,
                    open_id: open.open_id,
                    ring_gpadl: open.ring_gpadl.0,
                    target_vp: VpIndex::emit(open.target_vp),
                    downstream_page_offset: open.downstream_page_offset,
                    user_data: open.user_data,
                });
                if let Some(signal) = open.signal {
                    bytes.push(&SignalParametersWire {
                        connection_id: signal.connection_id,
                        event_flag: signal.event_flag,
                        flags: u16::from(signal.redirect_interrupt) * OPEN_FLAG_REDIRECT_INTERRUPT,
                    });
                }
            }
            Self::CloseChannel(channel) | Self::RelIdReleased(channel) => bytes.push(&channel.0),
            Self::GpadlHeader(header) => {
                bytes.push(&GpadlHeaderWire {
                    channel: header.channel.0,
                    gpadl: header.gpadl.0,
                    byte_count: header.byte_count,
                    range_count: header.range_count,
                });
                let count = header.words.len().min(GPADL_HEADER_WORDS);
                bytes.push(header.words.get(..count).unwrap_or_default());
            }
            Self::GpadlBody(body) => {
                bytes.push(&TwoWords { first: body.number, second: body.gpadl.0 });
                bytes.push(body.words.as_slice());
            }
            Self::GpadlTeardown { channel, gpadl } => {
                bytes.push(&TwoWords { first: channel.0, second: gpadl.0 });
            }
            Self::InitiateContact(contact) => {
                let (parent_to_child, child_to_parent) = MonitorPages::emit(contact.monitor_pages);
                let multi_client = contact.version >= Version::Rs3_1 as u32;
                bytes.push(&InitiateContactWire {
                    version: contact.version,
                    target_message_vp: contact.target_message_vp.0,
                    target: if multi_client {
                        emit_target(contact.target)
                    } else {
                        contact.interrupt_page
                    },
                    parent_to_child,
                    child_to_parent,
                });
                if let Some(client_id) = &contact.client_id {
                    bytes.push(client_id);
                }
            }
            Self::OpenReservedChannel(open) => bytes.push(&OpenReservedWire {
                channel: open.channel.0,
                target_vp: open.target_vp.0,
                target_sint: open.target_sint,
                ring_gpadl: open.ring_gpadl.0,
                downstream_page_offset: open.downstream_page_offset,
            }),
            Self::CloseReservedChannel { channel, target_vp, target_sint } => {
                bytes.push(&CloseReservedWire {
                    channel: channel.0,
                    target_vp: target_vp.0,
                    target_sint: *target_sint,
                });
            }
            Self::TlConnectRequest(request) => {
                bytes.push(&TlConnectWire {
                    endpoint_id: request.endpoint_id,
                    service_id: request.service_id,
                });
                if let Some(silo_id) = &request.silo_id {
                    bytes.push(silo_id);
                }
            }
            Self::ModifyChannel { channel, target_vp } => {
                bytes.push(&TwoWords { first: channel.0, second: VpIndex::emit(*target_vp) });
            }
            Self::ModifyConnection(pages) => {
                let (parent_to_child, child_to_parent) = MonitorPages::emit(*pages);
                bytes.push(&ModifyConnectionWire { parent_to_child, child_to_parent });
            }
        }
        bytes
    }
}

/// INITIATE_CONTACT's target info: SINT in bits 0 to 7, VTL in 8 to 15, features in 32 to 63.
fn parse_target(value: u64, version: u32) -> TargetInfo {
    let [sint, vtl, _, _, features @ ..] = value.to_le_bytes();
    let features = if version >= Version::Copper as u32 { u32::from_le_bytes(features) } else { 0 };
    TargetInfo {
        sint,
        vtl: if version >= Version::Rs4 as u32 { vtl } else { 0 },
        features: FeatureFlags::from_bits_retain(features),
    }
}

fn emit_target(target: TargetInfo) -> u64 {
    let features = u64::from(target.features.bits());
    u64::from(target.sint) | u64::from(target.vtl) << 8 | features << 32
}
