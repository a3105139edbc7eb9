//! Control messages: their header, numbers and bytes (SPEC-VMBUS §1.2, §1.5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{FeatureFlags, MAX_MESSAGE_SIZE, Negotiated, Version};

/// Bytes before a message's body.
pub const MESSAGE_HEADER_SIZE: usize = 8;

/// Which end sends a message.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub enum Sender {
    /// The guest.
    Client,
    /// The host.
    Server,
}

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $sender:ident, $wire:literal;)*) => {
        /// The number of a control message.
        #[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
        #[repr(u32)]
        pub enum MessageType {
            $($(#[$doc])* $name = $value,)*
        }

        impl MessageType {
            /// All of them, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The message with this number.
            pub fn from_wire(value: u32) -> Option<Self> {
                match value {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Which end may send it.
            pub fn sender(self) -> Sender {
                match self {
                    $(Self::$name => Sender::$sender,)*
                }
            }

            /// The published name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $wire,)*
                }
            }
        }
    };
}

message_types! {
    /// A channel.
    OfferChannel = 1, Server, "OFFER_CHANNEL";
    /// A channel is taken back.
    RescindChannelOffer = 2, Server, "RESCIND_CHANNEL_OFFER";
    /// Asks for all channels.
    RequestOffers = 3, Client, "REQUEST_OFFERS";
    /// These were all.
    AllOffersDelivered = 4, Server, "ALL_OFFERS_DELIVERED";
    /// Opens a channel.
    OpenChannel = 5, Client, "OPEN_CHANNEL";
    /// Whether it was opened.
    OpenChannelResult = 6, Server, "OPEN_CHANNEL_RESULT";
    /// Closes a channel; no answer.
    CloseChannel = 7, Client, "CLOSE_CHANNEL";
    /// Begins a GPADL.
    GpadlHeader = 8, Client, "GPADL_HEADER";
    /// More of it.
    GpadlBody = 9, Client, "GPADL_BODY";
    /// Whether it was accepted.
    GpadlCreated = 10, Server, "GPADL_CREATED";
    /// Takes a GPADL back.
    GpadlTeardown = 11, Client, "GPADL_TEARDOWN";
    /// The memory is not used any more.
    GpadlTorndown = 12, Server, "GPADL_TORNDOWN";
    /// The client forgets a channel.
    RelIdReleased = 13, Client, "REL_ID_RELEASED";
    /// Connects.
    InitiateContact = 14, Client, "INITIATE_CONTACT";
    /// Whether it is connected.
    VersionResponse = 15, Server, "VERSION_RESPONSE";
    /// Disconnects.
    Unload = 16, Client, "UNLOAD";
    /// It is disconnected.
    UnloadComplete = 17, Server, "UNLOAD_COMPLETE";
    /// Opens a channel that outlives the connection.
    OpenReservedChannel = 18, Client, "OPEN_RESERVED_CHANNEL";
    /// Closes it.
    CloseReservedChannel = 19, Client, "CLOSE_RESERVED_CHANNEL";
    /// It is closed.
    CloseReservedResponse = 20, Server, "CLOSE_RESERVED_RESPONSE";
    /// Asks for an hvsocket.
    TlConnectRequest = 21, Client, "TL_CONNECT_REQUEST";
    /// Moves a channel's interrupt.
    ModifyChannel = 22, Client, "MODIFY_CHANNEL";
    /// Why there is no hvsocket.
    TlConnectResult = 23, Server, "TL_CONNECT_RESULT";
    /// Whether it was moved.
    ModifyChannelResponse = 24, Server, "MODIFY_CHANNEL_RESPONSE";
    /// Moves the monitor pages.
    ModifyConnection = 25, Client, "MODIFY_CONNECTION";
    /// Whether they were moved.
    ModifyConnectionResponse = 26, Server, "MODIFY_CONNECTION_RESPONSE";
    /// Asks for silence.
    Pause = 27, Client, "PAUSE";
    /// No messages from now on.
    PauseResponse = 28, Server, "PAUSE_RESPONSE";
    /// Ends the silence.
    Resume = 29, Client, "RESUME";
}

impl MessageType {
    /// Whether the message is known to a connection, `None` while there is none.
    pub fn is_allowed(self, connection: Option<Negotiated>) -> bool {
        match self {
            Self::InitiateContact | Self::CloseReservedChannel | Self::VersionResponse => {
                return true;
            }
            _ => {}
        }
        let Some(Negotiated { version, features }) = connection else { return false };
        match self {
            Self::OpenReservedChannel | Self::CloseReservedResponse | Self::TlConnectRequest => {
                version >= Version::Win10
            }
            Self::ModifyChannel | Self::TlConnectResult => version >= Version::Rs3_0,
            Self::ModifyChannelResponse => version >= Version::Iron,
            Self::ModifyConnection | Self::ModifyConnectionResponse => {
                features.contains(FeatureFlags::MODIFY_CONNECTION)
            }
            Self::Pause | Self::PauseResponse | Self::Resume => {
                features.contains(FeatureFlags::PAUSE_RESUME)
            }
            _ => true,
        }
    }
}

/// Why bytes are not a control message that may be received.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum MessageError {
    /// Less than a header.
    #[error("a control message of {0} bytes has no header")]
    NoHeader(usize),
    /// More than a message can have.
    #[error("a control message of {0} bytes is too long")]
    TooLong(usize),
    /// No message has this number.
    #[error("control message {0} is unknown")]
    Unknown(u32),
    /// The other end is who may send this.
    #[error("{} may not be sent by this end", .0.name())]
    WrongSender(MessageType),
    /// The connection's version or features do not have it, or there is no connection.
    #[error("{} is not part of the connection's version", .0.name())]
    NotNegotiated(MessageType),
    /// The body is too short.
    #[error("{} has {length} bytes behind its header, less than {needed}", .message.name())]
    TooShort {
        /// Which message.
        message: MessageType,
        /// Bytes there are.
        length: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A field has a value it may not have.
    #[error("{} has a bad {field}", .message.name())]
    BadField {
        /// Which message.
        message: MessageType,
        /// Which field.
        field: &'static str,
    },
}

/// A control message's bytes.
#[derive(Copy, Clone, Eq, PartialEq)]
pub struct MessageBytes {
    bytes: [u8; MAX_MESSAGE_SIZE],
    length: usize,
}

impl MessageBytes {
    pub(crate) fn new(message_type: MessageType) -> Self {
        let mut this = Self { bytes: [0; MAX_MESSAGE_SIZE], length: 0 };
        this.push(&Header { message_type: message_type as u32, padding: 0 });
        this
    }

    /// Appends a structure. All messages fit.
    pub(crate) fn push<T: IntoBytes + Immutable + ?Sized>(&mut self, part: &T) {
        let part = part.as_bytes();
        if let Some(space) = self.bytes.get_mut(self.length..self.length + part.len()) {
            space.copy_from_slice(part);
            self.length += part.len();
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl AsRef<[u8]> for MessageBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl core::fmt::Debug for MessageBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    message_type: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Header>() == MESSAGE_HEADER_SIZE);

/// A message's type and body, checked to be what `sender` may send over `connection`.
pub(crate) fn open(
    bytes: &[u8],
    sender: Sender,
    connection: Option<Negotiated>,
) -> Result<(MessageType, Body<'_>), MessageError> {
    if bytes.len() > MAX_MESSAGE_SIZE {
        return Err(MessageError::TooLong(bytes.len()));
    }
    let (header, body) =
        Header::read_from_prefix(bytes).map_err(|_| MessageError::NoHeader(bytes.len()))?;
    let message = MessageType::from_wire(header.message_type)
        .ok_or(MessageError::Unknown(header.message_type))?;
    if message.sender() != sender {
        return Err(MessageError::WrongSender(message));
    }
    if !message.is_allowed(connection) {
        return Err(MessageError::NotNegotiated(message));
    }
    Ok((message, Body { message, bytes: body }))
}

/// What stands behind a message's header.
pub(crate) struct Body<'a> {
    message: MessageType,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Body<'a> {
    /// The body's first bytes as a structure, and what is behind them.
    pub(crate) fn split<T: FromBytes>(&self) -> Result<(T, &'a [u8]), MessageError> {
        T::read_from_prefix(self.bytes).map_err(|_| MessageError::TooShort {
            message: self.message,
            length: self.bytes.len(),
            needed: size_of::<T>(),
        })
    }

    /// The body's first bytes as a structure.
    pub(crate) fn read<T: FromBytes>(&self) -> Result<T, MessageError> {
        Ok(self.split()?.0)
    }

    /// An error about one of its fields.
    pub(crate) fn bad(&self, field: &'static str) -> MessageError {
        MessageError::BadField { message: self.message, field }
    }
}
