//! The message header, and what it can mean.

use crate::{HEADER_LENGTH, MAX_FDS, MAX_INPUT_LENGTH, MAX_OUTPUT_LENGTH};
use core::fmt;
use core::mem::offset_of;
use pcivirt_protocol::{IoctlCode, NtStatus};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What every message starts with. Members that a kind of message does not use are zero.
#[derive(
    Copy, Clone, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MessageHeader {
    /// Bytes of the message: header and payload.
    pub length: u32,
    /// A [`MessageKind`].
    pub kind: u16,
    /// File descriptors beside the message (request, completion).
    pub fd_count: u16,
    /// Chosen by the client, unique among its outstanding requests (request, completion, cancel).
    pub request_id: u64,
    /// A [`RequestClass`] (request).
    pub class: u16,
    /// An [`OidRequestKind`] (request of class OID).
    pub request_kind: u16,
    /// IOCTL code, callback code, OID or private code (request).
    pub code: u32,
    /// NTSTATUS or NDIS_STATUS (welcome, completion).
    pub status: u32,
    /// Bytes of input: the payload (hello, request).
    pub in_length: u32,
    /// Room for output, in bytes (request); bytes of output: the payload (welcome, completion).
    pub out_length: u32,
    /// Bytes of output the request would have needed, 0 if the room sufficed (completion).
    pub needed_length: u32,
}

const _: () = {
    assert!(size_of::<MessageHeader>() == 40);
    assert!(offset_of!(MessageHeader, length) == 0);
    assert!(offset_of!(MessageHeader, kind) == 4);
    assert!(offset_of!(MessageHeader, fd_count) == 6);
    assert!(offset_of!(MessageHeader, request_id) == 8);
    assert!(offset_of!(MessageHeader, class) == 16);
    assert!(offset_of!(MessageHeader, request_kind) == 18);
    assert!(offset_of!(MessageHeader, code) == 20);
    assert!(offset_of!(MessageHeader, status) == 24);
    assert!(offset_of!(MessageHeader, in_length) == 28);
    assert!(offset_of!(MessageHeader, out_length) == 32);
    assert!(offset_of!(MessageHeader, needed_length) == 36);
};

/// Kinds of messages.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum MessageKind {
    /// Client to server: first message of a connection.
    Hello = 1,
    /// Server to client: answer to it.
    Welcome = 2,
    /// Client to server: do something.
    Request = 3,
    /// Server to client: it is done, or refused, or cancelled.
    Completion = 4,
    /// Client to server: give up a request.
    Cancel = 5,
}

/// Name of a request on its connection, chosen by the client.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// What a request is addressed to.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u16)]
pub enum RequestClass {
    /// An I/O control of the PF driver (SPEC-PCIVIRT §3).
    Ioctl = 1,
    /// A callback of one of the PF driver's interfaces (SPEC-PCIVIRT §5).
    Callback = 2,
    /// An OID of the NDIS layer (SPEC-NDIS-SRIOV).
    Oid = 3,
    /// A control that only this kind of device knows.
    Private = 4,
}

/// Kinds of OID requests (NDIS_REQUEST_TYPE; SPEC-NDIS-SRIOV §0.3).
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u16)]
pub enum OidRequestKind {
    /// Query information.
    Query = 0,
    /// Set information.
    Set = 1,
    /// Query statistics.
    QueryStatistics = 2,
    /// Method: input and output.
    Method = 12,
}

impl OidRequestKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Query, Self::Set, Self::QueryStatistics, Self::Method];
}

/// What a request asks for: its class, and the code that the class gives a meaning to.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// An I/O control.
    Ioctl(IoctlCode),
    /// An interface callback, by its [`CallbackCode`](crate::CallbackCode).
    Callback(u32),
    /// An OID.
    Oid {
        /// Which one.
        oid: u32,
        /// What to do with it.
        kind: OidRequestKind,
    },
    /// A private control.
    Private(u32),
}

impl Target {
    /// The class the request belongs to.
    pub const fn class(self) -> RequestClass {
        match self {
            Self::Ioctl(_) => RequestClass::Ioctl,
            Self::Callback(_) => RequestClass::Callback,
            Self::Oid { .. } => RequestClass::Oid,
            Self::Private(_) => RequestClass::Private,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ioctl(code) => fmt::Display::fmt(code, f),
            Self::Callback(code) => match crate::CallbackCode::from_u32(*code) {
                Some(callback) => f.write_str(callback.name()),
                None => write!(f, "callback 0x{code:08X}"),
            },
            Self::Oid { oid, kind } => {
                let kind = match kind {
                    OidRequestKind::Query => "query",
                    OidRequestKind::Set => "set",
                    OidRequestKind::QueryStatistics => "query statistics",
                    OidRequestKind::Method => "method",
                };
                write!(f, "OID 0x{oid:08X} ({kind})")
            }
            Self::Private(code) => write!(f, "private control 0x{code:08X}"),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The published status: an NTSTATUS, or for an OID an NDIS_STATUS.
    pub status: NtStatus,
    /// Output bytes; never more than the request had room for. Of a private control that failed: the cause in words,
    /// if the server tells one.
    pub output: Vec<u8>,
    /// Bytes of output the request would have needed; 0 if the room sufficed or the request has no output.
    pub needed: u32,
}

impl Completion {
    /// A completion without output.
    pub const fn status(status: NtStatus) -> Self {
        Self { status, output: Vec::new(), needed: 0 }
    }

    /// Success without output.
    pub const fn success() -> Self {
        Self::status(NtStatus::SUCCESS)
    }

    /// Success with output, or STATUS_BUFFER_TOO_SMALL with the bytes needed if `capacity` cannot hold it.
    pub fn output(output: impl Into<Vec<u8>>, capacity: usize) -> Self {
        let output = output.into();
        if output.len() > capacity {
            return Self::too_small(output.len());
        }
        Self { status: NtStatus::SUCCESS, output, needed: 0 }
    }

    /// A private control's failure with its cause in words, of which as much is told as `capacity` holds.
    pub fn refused(status: NtStatus, cause: &str, capacity: usize) -> Self {
        let end = (0..=capacity.min(cause.len())).rev().find(|end| cause.is_char_boundary(*end));
        let output = cause.get(..end.unwrap_or(0)).unwrap_or_default().as_bytes().to_vec();
        Self { status, output, needed: 0 }
    }

    /// STATUS_BUFFER_TOO_SMALL, with the bytes that would have been needed.
    pub fn too_small(needed: usize) -> Self {
        Self {
            status: NtStatus::BUFFER_TOO_SMALL,
            output: Vec::new(),
            needed: u32::try_from(needed).unwrap_or(u32::MAX),
        }
    }
}

impl From<NtStatus> for Completion {
    fn from(status: NtStatus) -> Self {
        Self::status(status)
    }
}

/// One message without its payload: a header that has been checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// First message of a client. The payload is a [`Hello`](crate::Hello).
    Hello {
        /// Bytes of payload.
        in_length: u32,
    },
    /// First message of a server. The payload, on success, is a [`Welcome`](crate::Welcome).
    Welcome {
        /// Whether the client may go on.
        status: NtStatus,
        /// Bytes of payload.
        out_length: u32,
    },
    /// A request. The payload is its input.
    Request {
        /// The request's name.
        id: RequestId,
        /// What it asks for.
        target: Target,
        /// Bytes of input.
        in_length: u32,
        /// Room for output, in bytes.
        out_capacity: u32,
        /// File descriptors beside the message.
        fd_count: u16,
    },
    /// A completion. The payload is the output.
    Completion {
        /// The request that ended.
        id: RequestId,
        /// How.
        status: NtStatus,
        /// Bytes of output.
        out_length: u32,
        /// Bytes of output the request would have needed, or 0.
        needed: u32,
        /// File descriptors beside the message.
        fd_count: u16,
    },
    /// The client gives up a request; it is completed all the same, as cancelled unless it ended before.
    Cancel {
        /// The request.
        id: RequestId,
    },
}

/// Why bytes are not a message.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// The kind is none of [`MessageKind`].
    #[error("message kind {0} is not one of this protocol")]
    UnknownKind(u16),
    /// The class is none of [`RequestClass`].
    #[error("request class {0} is not one of this protocol")]
    UnknownClass(u16),
    /// The kind of an OID request is none of [`OidRequestKind`].
    #[error("OID request kind {0} is not one of NDIS_REQUEST_TYPE")]
    UnknownOidKind(u16),
    /// The lengths of a header contradict each other.
    #[error("a message of {length} bytes says its payload has {payload}")]
    Length {
        /// What the header says about the message.
        length: u32,
        /// What it says about the payload.
        payload: u32,
    },
    /// The input is longer than any may be.
    #[error("input of {0} bytes is longer than {MAX_INPUT_LENGTH}")]
    InputTooLong(u32),
    /// The output, or the room for it, is longer than any may be.
    #[error("output of {0} bytes is longer than {MAX_OUTPUT_LENGTH}")]
    OutputTooLong(u32),
    /// More file descriptors than any message may carry.
    #[error("{0} file descriptors are more than {MAX_FDS}")]
    TooManyFds(u16),
    /// A member that this kind of message does not use is not zero.
    #[error("a {0:?} message uses a member that it does not have")]
    UnusedMember(MessageKind),
}

impl Message {
    /// Checks a header. Every header that passes is equal to the one [`Message::header`] makes of the result.
    ///
    /// # Errors
    /// [`MessageError`], whose every case means that the peer does not follow the protocol.
    pub fn parse(header: &MessageHeader) -> Result<Self, MessageError> {
        let id = RequestId(header.request_id);
        let status = NtStatus(header.status);
        let (kind, message) = match header.kind {
            1 => (MessageKind::Hello, Self::Hello { in_length: header.in_length }),
            2 => (MessageKind::Welcome, Self::Welcome { status, out_length: header.out_length }),
            3 => (
                MessageKind::Request,
                Self::Request {
                    id,
                    target: parse_target(header)?,
                    in_length: header.in_length,
                    out_capacity: header.out_length,
                    fd_count: header.fd_count,
                },
            ),
            4 => (
                MessageKind::Completion,
                Self::Completion {
                    id,
                    status,
                    out_length: header.out_length,
                    needed: header.needed_length,
                    fd_count: header.fd_count,
                },
            ),
            5 => (MessageKind::Cancel, Self::Cancel { id }),
            other => return Err(MessageError::UnknownKind(other)),
        };
        if header.in_length > MAX_INPUT_LENGTH {
            return Err(MessageError::InputTooLong(header.in_length));
        }
        if header.out_length > MAX_OUTPUT_LENGTH {
            return Err(MessageError::OutputTooLong(header.out_length));
        }
        if header.fd_count > MAX_FDS {
            return Err(MessageError::TooManyFds(header.fd_count));
        }
        let again = message.header();
        if again.length != header.length {
            return Err(MessageError::Length {
                length: header.length,
                payload: message.payload_length(),
            });
        }
        if again != *header {
            return Err(MessageError::UnusedMember(kind));
        }
        Ok(message)
    }

    /// The header of this message.
    pub fn header(&self) -> MessageHeader {
        let length = self.payload_length().saturating_add(HEADER_BYTES);
        let header = MessageHeader { length, ..MessageHeader::default() };
        match *self {
            Self::Hello { in_length } => {
                MessageHeader { kind: MessageKind::Hello as u16, in_length, ..header }
            }
            Self::Welcome { status, out_length } => MessageHeader {
                kind: MessageKind::Welcome as u16,
                status: status.0,
                out_length,
                ..header
            },
            Self::Request { id, target, in_length, out_capacity, fd_count } => {
                let (code, request_kind) = match target {
                    Target::Ioctl(code) => (code.0, 0),
                    Target::Callback(code) | Target::Private(code) => (code, 0),
                    Target::Oid { oid, kind } => (oid, kind as u16),
                };
                MessageHeader {
                    kind: MessageKind::Request as u16,
                    fd_count,
                    request_id: id.0,
                    class: target.class() as u16,
                    request_kind,
                    code,
                    in_length,
                    out_length: out_capacity,
                    ..header
                }
            }
            Self::Completion { id, status, out_length, needed, fd_count } => MessageHeader {
                kind: MessageKind::Completion as u16,
                fd_count,
                request_id: id.0,
                status: status.0,
                out_length,
                needed_length: needed,
                ..header
            },
            Self::Cancel { id } => {
                MessageHeader { kind: MessageKind::Cancel as u16, request_id: id.0, ..header }
            }
        }
    }

    /// Bytes of payload that follow the header.
    pub const fn payload_length(&self) -> u32 {
        match *self {
            Self::Hello { in_length } | Self::Request { in_length, .. } => in_length,
            Self::Welcome { out_length, .. } | Self::Completion { out_length, .. } => out_length,
            Self::Cancel { .. } => 0,
        }
    }

    /// File descriptors beside the message.
    pub const fn fd_count(&self) -> u16 {
        match *self {
            Self::Request { fd_count, .. } | Self::Completion { fd_count, .. } => fd_count,
            _ => 0,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a header has 40 bytes")]
const HEADER_BYTES: u32 = HEADER_LENGTH as u32;

fn parse_target(header: &MessageHeader) -> Result<Target, MessageError> {
    Ok(match header.class {
        1 => Target::Ioctl(IoctlCode(header.code)),
        2 => Target::Callback(header.code),
        3 => {
            let kind = OidRequestKind::ALL
                .into_iter()
                .find(|kind| *kind as u16 == header.request_kind)
                .ok_or(MessageError::UnknownOidKind(header.request_kind))?;
            Target::Oid { oid: header.code, kind }
        }
        4 => Target::Private(header.code),
        other => return Err(MessageError::UnknownClass(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target() -> impl Strategy<Value = Target> {
        prop_oneof![
            any::<u32>().prop_map(|code| Target::Ioctl(IoctlCode(code))),
            any::<u32>().prop_map(Target::Callback),
            any::<u32>().prop_map(Target::Private),
            (any::<u32>(), prop::sample::select(OidRequestKind::ALL.to_vec()))
                .prop_map(|(oid, kind)| Target::Oid { oid, kind }),
        ]
    }

    fn message() -> impl Strategy<Value = Message> {
        let status = any::<u32>().prop_map(NtStatus);
        let id = any::<u64>().prop_map(RequestId);
        prop_oneof![
            (0..=MAX_INPUT_LENGTH).prop_map(|in_length| Message::Hello { in_length }),
            (status.clone(), 0..=MAX_OUTPUT_LENGTH)
                .prop_map(|(status, out_length)| Message::Welcome { status, out_length }),
            (id.clone(), target(), 0..=MAX_INPUT_LENGTH, 0..=MAX_OUTPUT_LENGTH, 0..=MAX_FDS)
                .prop_map(|(id, target, in_length, out_capacity, fd_count)| Message::Request {
                    id,
                    target,
                    in_length,
                    out_capacity,
                    fd_count
                }),
            (id.clone(), status, 0..=MAX_OUTPUT_LENGTH, any::<u32>(), 0..=MAX_FDS).prop_map(
                |(id, status, out_length, needed, fd_count)| Message::Completion {
                    id,
                    status,
                    out_length,
                    needed,
                    fd_count
                }
            ),
            id.prop_map(|id| Message::Cancel { id }),
        ]
    }

    proptest! {
        #[test]
        fn a_message_survives_its_header(message in message()) {
            let header = message.header();
            let bytes: [u8; HEADER_LENGTH] = header.as_bytes().try_into().unwrap();
            let read = MessageHeader::read_from_bytes(&bytes).unwrap();
            prop_assert_eq!(Message::parse(&read), Ok(message));
        }

        #[test]
        fn random_headers_are_parsed_or_refused(bytes: [u8; HEADER_LENGTH]) {
            let header = MessageHeader::read_from_bytes(&bytes).unwrap();
            if let Ok(message) = Message::parse(&header) {
                prop_assert_eq!(message.header(), header);
            }
        }

        #[test]
        fn a_changed_header_is_refused_or_means_something_else(
            message in message(), at in 0..HEADER_LENGTH, bit in 0u32..8,
        ) {
            let mut bytes: [u8; HEADER_LENGTH] = message.header().as_bytes().try_into().unwrap();
            bytes[at] ^= 1 << bit;
            let header = MessageHeader::read_from_bytes(&bytes).unwrap();
            prop_assert_ne!(Message::parse(&header), Ok(message));
        }
    }

    fn request(in_length: u32) -> MessageHeader {
        Message::Request {
            id: RequestId(7),
            target: Target::Oid { oid: 0x0001_0237, kind: OidRequestKind::Method },
            in_length,
            out_capacity: 100,
            fd_count: 0,
        }
        .header()
    }

    #[test]
    fn a_request_has_these_bytes() {
        assert_eq!(
            request(12).as_bytes(),
            [
                52, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 12, 0, 0x37, 0x02, 1, 0, 0,
                0, 0, 0, 12, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn each_broken_rule_has_its_error() {
        let good = request(12);
        let cases = [
            (MessageHeader { kind: 9, ..good }, MessageError::UnknownKind(9)),
            (MessageHeader { class: 0, ..good }, MessageError::UnknownClass(0)),
            (MessageHeader { request_kind: 3, ..good }, MessageError::UnknownOidKind(3)),
            (
                MessageHeader { length: 51, ..good },
                MessageError::Length { length: 51, payload: 12 },
            ),
            (request(MAX_INPUT_LENGTH + 1), MessageError::InputTooLong(MAX_INPUT_LENGTH + 1)),
            (request(u32::MAX), MessageError::InputTooLong(u32::MAX)),
            (MessageHeader { out_length: u32::MAX, ..good }, MessageError::OutputTooLong(u32::MAX)),
            (
                MessageHeader { fd_count: MAX_FDS + 1, ..good },
                MessageError::TooManyFds(MAX_FDS + 1),
            ),
            (MessageHeader { status: 1, ..good }, MessageError::UnusedMember(MessageKind::Request)),
            (
                MessageHeader { class: RequestClass::Ioctl as u16, ..good },
                MessageError::UnusedMember(MessageKind::Request),
            ),
        ];
        for (header, error) in cases {
            assert_eq!(Message::parse(&header), Err(error));
        }
    }

    #[test]
    fn output_that_does_not_fit_is_reported_with_its_size() {
        assert_eq!(
            Completion::output(vec![1, 2, 3], 2),
            Completion { status: NtStatus::BUFFER_TOO_SMALL, output: vec![], needed: 3 }
        );
        assert_eq!(Completion::output(vec![1, 2], 2).output, [1, 2]);
    }
}
