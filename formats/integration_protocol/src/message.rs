//! What each packet carries: the pipe's header, the message's header, a body.

use core::mem::offset_of;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use crate::{IntegrationProtocolError, Version, error::prefix};

/// Bytes of the longest message of any integration service, without its pipe header.
pub const MAX_MESSAGE_SIZE: usize = 13_312;

/// Pipe header: the packet carries data.
const PIPE_DATA: u32 = 1;

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PipeHeader {
    packet_type: U32,
    length: U32,
}

const _: () = assert!(size_of::<PipeHeader>() == 8);

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct VersionWire {
    major: U16,
    minor: U16,
}

const _: () = assert!(size_of::<VersionWire>() == 4);

impl From<Version> for VersionWire {
    fn from(version: Version) -> Self {
        Self { major: version.major.into(), minor: version.minor.into() }
    }
}

impl From<VersionWire> for Version {
    fn from(wire: VersionWire) -> Self {
        Self { major: wire.major.get(), minor: wire.minor.get() }
    }
}

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    framework: VersionWire,
    message_type: U16,
    version: VersionWire,
    length: U16,
    status: U32,
    transaction: u8,
    flags: u8,
    reserved: [u8; 2],
}

const _: () = {
    assert!(size_of::<Header>() == 20);
    assert!(offset_of!(Header, message_type) == 4);
    assert!(offset_of!(Header, version) == 6);
    assert!(offset_of!(Header, length) == 10);
    assert!(offset_of!(Header, status) == 12);
    assert!(offset_of!(Header, transaction) == 16);
    assert!(offset_of!(Header, flags) == 17);
};

/// What a message is about.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
#[repr(u16)]
pub enum MessageType {
    /// Which versions to speak.
    Negotiate = 0,
    /// Heartbeat.
    Heartbeat = 1,
    /// Key-value pairs.
    KeyValueExchange = 2,
    /// Shutdown.
    Shutdown = 3,
    /// Time.
    TimeSync = 4,
    /// Volume snapshots.
    VolumeSnapshot = 5,
    /// Remote desktop.
    RemoteDesktop = 6,
    /// Files for the guest.
    GuestInterface = 7,
    /// Sessions.
    VmSession = 8,
}

impl MessageType {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Negotiate,
        Self::Heartbeat,
        Self::KeyValueExchange,
        Self::Shutdown,
        Self::TimeSync,
        Self::VolumeSnapshot,
        Self::RemoteDesktop,
        Self::GuestInterface,
        Self::VmSession,
    ];

    /// The type with this number.
    pub fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }
}

/// How an answer says that it went: an HRESULT.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct Status(pub u32);

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// It failed, for no reason with a number of its own.
    pub const FAIL: Self = Self(0x8000_4005);
    /// The guest cannot do that.
    pub const NOT_SUPPORTED: Self = Self(0x8007_0032);
    /// There is nothing more.
    pub const NO_MORE_ITEMS: Self = Self(0x8007_0103);
    /// There is no such thing.
    pub const NOT_FOUND: Self = Self(0x8004_1002);
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "0x{:08X}", self.0)
    }
}

bitflags::bitflags! {
    /// What a message is. Unknown bits are kept.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Hash)]
    pub struct HeaderFlags: u8 {
        /// It is part of a transaction: a request with an answer.
        const TRANSACTION = 1;
        /// The request.
        const REQUEST = 2;
        /// The answer.
        const RESPONSE = 4;
        const _ = !0;
    }
}

/// One message, as one packet of the ring carries it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Message<'b> {
    /// The framework's version that was agreed upon; 0.0 before.
    pub framework: Version,
    /// What it is about.
    pub message_type: MessageType,
    /// The version of the service's messages that was agreed upon; 0.0 before.
    pub version: Version,
    /// In an answer, how it went.
    pub status: Status,
    /// Names the transaction; the answer has the same.
    pub transaction: u8,
    /// Whether it is request or answer.
    pub flags: HeaderFlags,
    /// What it says.
    pub body: &'b [u8],
}

impl<'b> Message<'b> {
    /// A request of a host.
    pub fn request(message_type: MessageType, transaction: u8, body: &'b [u8]) -> Self {
        Self {
            framework: Version::new(0, 0),
            message_type,
            version: Version::new(0, 0),
            status: Status::SUCCESS,
            transaction,
            flags: HeaderFlags::TRANSACTION | HeaderFlags::REQUEST,
            body,
        }
    }

    /// Whether it is the answer of a transaction.
    pub fn is_answer(&self) -> bool {
        self.flags.contains(HeaderFlags::TRANSACTION | HeaderFlags::RESPONSE)
            && !self.flags.contains(HeaderFlags::REQUEST)
    }

    /// The message in the payload of an in-band packet, which may be longer.
    ///
    /// # Errors
    /// [`IntegrationProtocolError`].
    pub fn parse(payload: &'b [u8]) -> Result<Self, IntegrationProtocolError> {
        let (pipe, rest) = prefix::<PipeHeader>("a pipe header", payload)?;
        if pipe.packet_type.get() != PIPE_DATA {
            return Err(IntegrationProtocolError::NotData(pipe.packet_type.get()));
        }
        let needed = usize::try_from(pipe.length.get()).unwrap_or(usize::MAX);
        if needed > MAX_MESSAGE_SIZE {
            return Err(IntegrationProtocolError::TooLong { length: needed });
        }
        let length = rest.len();
        let message = rest.get(..needed).ok_or(IntegrationProtocolError::Truncated {
            what: "a pipe's data",
            needed,
            length,
        })?;
        let (header, rest) = prefix::<Header>("a message header", message)?;
        let (needed, length) = (header.length.get().into(), rest.len());
        let body = rest.get(..needed).ok_or(IntegrationProtocolError::Truncated {
            what: "a message's body",
            needed,
            length,
        })?;
        let number = header.message_type.get();
        let message_type = MessageType::from_wire(number).ok_or_else(|| {
            IntegrationProtocolError::field("a message header", "the message type", number)
        })?;
        Ok(Self {
            framework: header.framework.into(),
            message_type,
            version: header.version.into(),
            status: Status(header.status.get()),
            transaction: header.transaction,
            flags: HeaderFlags::from_bits_retain(header.flags),
            body,
        })
    }

    /// The payload of an in-band packet.
    ///
    /// # Errors
    /// [`IntegrationProtocolError::TooLong`].
    pub fn emit(&self) -> Result<Vec<u8>, IntegrationProtocolError> {
        let length = size_of::<Header>() + self.body.len();
        let too_long = IntegrationProtocolError::TooLong { length };
        if length > MAX_MESSAGE_SIZE {
            return Err(too_long);
        }
        let pipe = PipeHeader {
            packet_type: PIPE_DATA.into(),
            length: u32::try_from(length).map_err(|_| too_long)?.into(),
        };
        let header = Header {
            framework: self.framework.into(),
            message_type: (self.message_type as u16).into(),
            version: self.version.into(),
            length: u16::try_from(self.body.len()).map_err(|_| too_long)?.into(),
            status: self.status.0.into(),
            transaction: self.transaction,
            flags: self.flags.bits(),
            reserved: [0; 2],
        };
        Ok([pipe.as_bytes(), header.as_bytes(), self.body].concat())
    }
}
