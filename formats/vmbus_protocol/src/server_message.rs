//! What a server sends (SPEC-VMBUS §1.5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    ChannelId, FeatureFlags, GpadlId, Guid, MessageBytes, MessageError, MessageType, MonitorPages,
    Negotiated, Offer,
    message::{Sender, open},
    offer::OfferWire,
};

/// Status: it worked.
pub const STATUS_SUCCESS: i32 = 0;
/// Status: it did not.
pub const STATUS_UNSUCCESSFUL: i32 = 0x8000_FFFFu32.cast_signed();
/// Status: nobody accepts the hvsocket.
pub const STATUS_CONNECTION_REFUSED: i32 = 0xC000_0236u32.cast_signed();

/// A control message from the host.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum ServerMessage {
    /// A channel.
    OfferChannel(Offer),
    /// A channel is taken back.
    RescindChannelOffer(ChannelId),
    /// These were all.
    AllOffersDelivered,
    /// Whether a channel was opened.
    OpenChannelResult {
        /// Which channel.
        channel: ChannelId,
        /// The request's number.
        open_id: u32,
        /// 0, or why not.
        status: u32,
    },
    /// Whether a GPADL was accepted: a status not below 0.
    GpadlCreated {
        /// Its channel.
        channel: ChannelId,
        /// Which.
        gpadl: GpadlId,
        /// Not below 0, or why not.
        status: i32,
    },
    /// The memory of a GPADL is not used any more.
    GpadlTorndown(GpadlId),
    /// The answer to INITIATE_CONTACT.
    VersionResponse(VersionResponse),
    /// It is disconnected.
    UnloadComplete,
    /// A reserved channel is closed.
    CloseReservedResponse(ChannelId),
    /// Why there is no hvsocket.
    TlConnectResult {
        /// The client's endpoint.
        endpoint_id: Guid,
        /// The service it wanted.
        service_id: Guid,
        /// Why not.
        status: i32,
    },
    /// Whether an interrupt was moved.
    ModifyChannelResponse {
        /// Which channel's.
        channel: ChannelId,
        /// 0, or why not.
        status: i32,
    },
    /// Whether the monitor pages were moved.
    ModifyConnectionResponse(ConnectionState),
    /// No messages from now on.
    PauseResponse,
}

/// Whether a connection came about.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
#[repr(u8)]
pub enum ConnectionState {
    /// It did.
    Successful = 0,
    /// The server lacks something.
    FailedLowResources = 1,
    /// It did not, for another reason.
    FailedUnknown = 2,
}

impl ConnectionState {
    fn from_wire(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Successful),
            1 => Some(Self::FailedLowResources),
            2 => Some(Self::FailedUnknown),
            _ => None,
        }
    }
}

/// VERSION_RESPONSE.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum VersionResponse {
    /// Try a lower version.
    Unsupported,
    /// The version is spoken.
    Supported {
        /// Whether the connection came about.
        state: ConnectionState,
        /// Before 5.0 the version, from then on the connection id for the messages that follow.
        value: u32,
        /// From 6.0 on: the features.
        features: Option<SupportedFeatures>,
    },
}

/// What a server from 6.0 on answers besides.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct SupportedFeatures {
    /// What of the requested features it supports.
    pub features: FeatureFlags,
    /// Monitor pages that the server supplies.
    pub monitor_pages: Option<MonitorPages>,
}

macro_rules! wire {
    ($(struct $name:ident : $size:literal { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            struct $name { $($field: $type),* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

wire! {
    struct OpenResultWire: 12 { channel: u32, open_id: u32, status: u32 }
    struct GpadlCreatedWire: 12 { channel: u32, gpadl: u32, status: i32 }
    struct VersionResponseWire: 8 { supported: u8, state: u8, pad: u16, value: u32 }
    struct ServerPagesWire: 20 { pad: u32, pages: [u32; 4] }
    struct TlResultWire: 36 { endpoint_id: Guid, service_id: Guid, status: i32 }
    struct ModifyResponseWire: 8 { channel: u32, status: i32 }
}

impl ServerMessage {
    /// The message that the bytes are, over this connection (`None`: there is none yet). Bytes behind it are
    /// ignored.
    pub fn parse(bytes: &[u8], connection: Option<Negotiated>) -> Result<Self, MessageError> {
        let (message, body) = open(bytes, Sender::Server, connection)?;
        Ok(match message {
            MessageType::OfferChannel => Self::OfferChannel(body.read::<OfferWire>()?.into()),
            MessageType::RescindChannelOffer => Self::RescindChannelOffer(ChannelId(body.read()?)),
            MessageType::AllOffersDelivered => Self::AllOffersDelivered,
            MessageType::OpenChannelResult => {
                let wire: OpenResultWire = body.read()?;
                Self::OpenChannelResult {
                    channel: ChannelId(wire.channel),
                    open_id: wire.open_id,
                    status: wire.status,
                }
            }
            MessageType::GpadlCreated => {
                let wire: GpadlCreatedWire = body.read()?;
                Self::GpadlCreated {
                    channel: ChannelId(wire.channel),
                    gpadl: GpadlId(wire.gpadl),
                    status: wire.status,
                }
            }
            MessageType::GpadlTorndown => Self::GpadlTorndown(GpadlId(body.read()?)),
            MessageType::VersionResponse => {
                let (wire, rest) = body.split::<VersionResponseWire>()?;
                if wire.supported == 0 {
                    return Ok(Self::VersionResponse(VersionResponse::Unsupported));
                }
                let state = ConnectionState::from_wire(wire.state);
                let features = match u32::read_from_prefix(rest) {
                    Err(_) => None,
                    Ok((features, rest)) => {
                        let [to_child, to_parent]: [u64; 2] =
                            match ServerPagesWire::read_from_prefix(rest) {
                                Ok((wire, _)) => zerocopy::transmute!(wire.pages),
                                Err(_) => [0; 2],
                            };
                        let pages = MonitorPages::parse(to_child, to_parent);
                        Some(SupportedFeatures {
                            features: FeatureFlags::from_bits_retain(features),
                            monitor_pages: pages.map_err(|()| body.bad("monitor page address"))?,
                        })
                    }
                };
                Self::VersionResponse(VersionResponse::Supported {
                    state: state.ok_or_else(|| body.bad("connection state"))?,
                    value: wire.value,
                    features,
                })
            }
            MessageType::UnloadComplete => Self::UnloadComplete,
            MessageType::CloseReservedResponse => {
                Self::CloseReservedResponse(ChannelId(body.read()?))
            }
            MessageType::TlConnectResult => {
                let wire: TlResultWire = body.read()?;
                Self::TlConnectResult {
                    endpoint_id: wire.endpoint_id,
                    service_id: wire.service_id,
                    status: wire.status,
                }
            }
            MessageType::ModifyChannelResponse => {
                let wire: ModifyResponseWire = body.read()?;
                let channel = ChannelId(wire.channel);
                Self::ModifyChannelResponse { channel, status: wire.status }
            }
            MessageType::ModifyConnectionResponse => {
                let state = ConnectionState::from_wire(body.read()?);
                Self::ModifyConnectionResponse(state.ok_or_else(|| body.bad("connection state"))?)
            }
            MessageType::PauseResponse => Self::PauseResponse,
            other => return Err(MessageError::WrongSender(other)),
        })
    }

    /// The message's number.
    pub fn message_type(&self) -> MessageType {
        match self {
            Self::OfferChannel(_) => MessageType::OfferChannel,
            Self::RescindChannelOffer(_) => MessageType::RescindChannelOffer,
            Self::AllOffersDelivered => MessageType::AllOffersDelivered,
            Self::OpenChannelResult { .. } => MessageType::OpenChannelResult,
            Self::GpadlCreated { .. } => MessageType::GpadlCreated,
            Self::GpadlTorndown(_) => MessageType::GpadlTorndown,
            Self::VersionResponse(_) => MessageType::VersionResponse,
            Self::UnloadComplete => MessageType::UnloadComplete,
            Self::CloseReservedResponse(_) => MessageType::CloseReservedResponse,
            Self::TlConnectResult { .. } => MessageType::TlConnectResult,
            Self::ModifyChannelResponse { .. } => MessageType::ModifyChannelResponse,
            Self::ModifyConnectionResponse(_) => MessageType::ModifyConnectionResponse,
            Self::PauseResponse => MessageType::PauseResponse,
        }
    }

    /// The bytes of the message.
    pub fn emit(&self) -> MessageBytes {
        let mut bytes = MessageBytes::new(self.message_type());
        match self {
            Self::AllOffersDelivered | Self::UnloadComplete | Self::PauseResponse => {}
            Self::OfferChannel(offer) => bytes.push(&OfferWire::from(offer)),
            Self::RescindChannelOffer(channel) | Self::CloseReservedResponse(channel) => {
                bytes.push(&channel.0);
            }
            Self::OpenChannelResult { channel, open_id, status } => bytes.push(&OpenResultWire {
                channel: channel.0,
                open_id: *open_id,
                status: *status,
            }),
            Self::GpadlCreated { channel, gpadl, status } => bytes.push(&GpadlCreatedWire {
                channel: channel.0,
                gpadl: gpadl.0,
                status: *status,
            }),
            Self::GpadlTorndown(gpadl) => bytes.push(&gpadl.0),
            Self::VersionResponse(VersionResponse::Unsupported) => {
                bytes.push(&VersionResponseWire { supported: 0, state: 0, pad: 0, value: 0 });
            }
            Self::VersionResponse(VersionResponse::Supported { state, value, features }) => {
                let (state, value) = (*state as u8, *value);
                bytes.push(&VersionResponseWire { supported: 1, state, pad: 0, value });
                if let Some(features) = features {
                    bytes.push(&features.features.bits());
                    if let Some(pages) = features.monitor_pages {
                        let pages = [pages.parent_to_child, pages.child_to_parent];
                        bytes.push(&ServerPagesWire { pad: 0, pages: zerocopy::transmute!(pages) });
                    }
                }
            }
            Self::TlConnectResult { endpoint_id, service_id, status } => {
                bytes.push(&TlResultWire {
                    endpoint_id: *endpoint_id,
                    service_id: *service_id,
                    status: *status,
                });
            }
            Self::ModifyChannelResponse { channel, status } => {
                bytes.push(&ModifyResponseWire { channel: channel.0, status: *status });
            }
            Self::ModifyConnectionResponse(state) => bytes.push(&(*state as u8)),
        }
        bytes
    }
}
