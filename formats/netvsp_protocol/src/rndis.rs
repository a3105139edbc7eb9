//! RNDIS control messages (SPEC-VMBUS §6): what a guest asks of its adapter, and what it is told.
//!
//! Frames are RNDIS messages too, but have a module of their own, [`packet`](crate::packet).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian::U32};

use crate::{
    NdisStatus, ParseError,
    error::{front, length32, part},
    oid::Oid,
};

/// Bytes of the header: type and length.
pub const HEADER_SIZE: usize = 8;
/// Type of PACKET.
pub const TYPE_PACKET: u32 = 1;
/// The bit by which a completion's type differs from its request's.
pub const TYPE_COMPLETION: u32 = 0x8000_0000;
/// The RNDIS version that everybody speaks: major.
pub const MAJOR_VERSION: u32 = 1;
/// The RNDIS version that everybody speaks: minor.
pub const MINOR_VERSION: u32 = 0;
/// What servers answer as packets in one message.
pub const MAX_PACKETS_PER_MESSAGE: u32 = 8;
/// What servers answer as longest transfer, bytes.
pub const MAX_TRANSFER_SIZE: u32 = 0xEFFF_FFFF;
/// What servers answer as packet alignment, the exponent of two.
pub const PACKET_ALIGNMENT: u32 = 3;
/// The link came up.
pub const STATUS_MEDIA_CONNECT: NdisStatus = NdisStatus(0x4001_000B);
/// The link went down.
pub const STATUS_MEDIA_DISCONNECT: NdisStatus = NdisStatus(0x4001_000C);
/// The link's speed changed.
pub const STATUS_LINK_SPEED_CHANGE: NdisStatus = NdisStatus(0x4001_0013);
/// The offloads in use changed; carries [`OffloadCapabilities`](crate::offload::OffloadCapabilities).
pub const STATUS_CURRENT_OFFLOAD: NdisStatus = NdisStatus(0x4002_0006);
/// The request's RNDIS version is not spoken here.
pub const STATUS_BAD_VERSION: NdisStatus = NdisStatus(0xC001_0004);

const INITIALIZE: u32 = 2;
const HALT: u32 = 3;
const QUERY: u32 = 4;
const SET: u32 = 5;
const RESET: u32 = 6;
const INDICATE: u32 = 7;
const KEEPALIVE: u32 = 8;

/// The message types by number, for logs.
#[must_use]
pub const fn type_name(kind: u32) -> &'static str {
    match kind & !TYPE_COMPLETION {
        TYPE_PACKET => "PACKET",
        INITIALIZE => "INITIALIZE",
        HALT => "HALT",
        QUERY => "QUERY",
        SET => "SET",
        RESET => "RESET",
        INDICATE => "INDICATE_STATUS",
        KEEPALIVE => "KEEPALIVE",
        9 => "SET_EX",
        _ => "unknown",
    }
}

macro_rules! bodies {
    ($($name:ident, $size:literal { $($field:ident),* })*) => {
        $(
            #[derive(
                Copy, Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
            )]
            #[repr(C)]
            struct $name { $($field: U32,)* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

bodies! {
    Header, 8 { kind, length }
    InitializeBody, 16 { request_id, major, minor, max_transfer }
    InitializeCompleteBody, 44 {
        request_id, status, major, minor, device_flags, medium, max_packets, max_transfer, alignment,
        af_offset, af_size
    }
    RequestBody, 20 { request_id, oid, info_length, info_offset, vc_handle }
    QueryCompleteBody, 16 { request_id, status, info_length, info_offset }
    StatusBody, 8 { request_id, status }
    ResetCompleteBody, 8 { status, addressing_reset }
    IndicateBody, 12 { status, length, offset }
}

/// What a guest asks.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Request<'a> {
    /// Brings the adapter up.
    Initialize {
        /// Name of the request, repeated in the reply.
        request_id: u32,
        /// RNDIS version, major.
        major: u32,
        /// RNDIS version, minor.
        minor: u32,
        /// The longest message that the guest takes, bytes.
        max_transfer: u32,
    },
    /// Takes the adapter down; there is no reply.
    Halt {
        /// Name of the request.
        request_id: u32,
    },
    /// Asks for an OID's value.
    Query {
        /// Name of the request, repeated in the reply.
        request_id: u32,
        /// Which OID.
        oid: Oid,
        /// What comes with the question.
        info: &'a [u8],
    },
    /// Sets an OID's value.
    Set {
        /// Name of the request, repeated in the reply.
        request_id: u32,
        /// Which OID.
        oid: Oid,
        /// The value.
        info: &'a [u8],
    },
    /// Resets the adapter.
    Reset,
    /// Asks whether the adapter is alive.
    KeepAlive {
        /// Name of the request, repeated in the reply.
        request_id: u32,
    },
}

/// What a guest is told.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Reply<'a> {
    /// Answers INITIALIZE.
    InitializeComplete {
        /// Name of the request.
        request_id: u32,
        /// Whether the adapter is up.
        status: NdisStatus,
        /// Packets that the adapter takes in one message.
        max_packets: u32,
        /// The longest message that it takes, bytes.
        max_transfer: u32,
        /// Alignment of packets in a message, the exponent of two.
        alignment: u32,
    },
    /// Answers QUERY.
    QueryComplete {
        /// Name of the request.
        request_id: u32,
        /// Whether there is a value.
        status: NdisStatus,
        /// The value.
        info: &'a [u8],
    },
    /// Answers SET.
    SetComplete {
        /// Name of the request.
        request_id: u32,
        /// Whether the value was taken.
        status: NdisStatus,
    },
    /// Answers RESET.
    ResetComplete {
        /// Whether the adapter was reset.
        status: NdisStatus,
        /// Whether packet filter and multicast list are to be set again.
        addressing_reset: bool,
    },
    /// Something happened.
    IndicateStatus {
        /// What.
        status: NdisStatus,
        /// Details.
        buffer: &'a [u8],
    },
    /// Answers KEEPALIVE.
    KeepAliveComplete {
        /// Name of the request.
        request_id: u32,
        /// Success.
        status: NdisStatus,
    },
}

/// Type and body of the message at the front of `bytes`; the body is as long as the header says.
fn split(bytes: &[u8]) -> Result<(u32, &[u8]), ParseError> {
    const NAME: &str = "RNDIS message";
    let header: Header = front(NAME, bytes)?;
    let length = header.length.get();
    let body = usize::try_from(length).ok().and_then(|length| bytes.get(HEADER_SIZE..length));
    match body {
        Some(body) => Ok((header.kind.get(), body)),
        None => Err(ParseError::Field { message: NAME, field: "length", value: u64::from(length) }),
    }
}

fn information<'a>(
    message: &'static str,
    body: &'a [u8],
    offset: U32,
    length: U32,
) -> Result<&'a [u8], ParseError> {
    if length.get() == 0 {
        // The offset means nothing then, and guests write what they like.
        return Ok(&[]);
    }
    part(message, "information", body, offset.get(), length.get())
}

impl<'a> Request<'a> {
    /// What a guest's bytes say. `bytes` may be longer than the message.
    ///
    /// # Errors
    /// The message is cut short, is none that a guest sends on the control channel, or points outside of itself.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (kind, body) = split(bytes)?;
        let word = |message| front::<U32>(message, body).map(U32::get);
        Ok(match kind {
            INITIALIZE => {
                let wire: InitializeBody = front("INITIALIZE", body)?;
                Self::Initialize {
                    request_id: wire.request_id.get(),
                    major: wire.major.get(),
                    minor: wire.minor.get(),
                    max_transfer: wire.max_transfer.get(),
                }
            }
            HALT => Self::Halt { request_id: word("HALT")? },
            QUERY => {
                let wire: RequestBody = front("QUERY", body)?;
                let info = information("QUERY", body, wire.info_offset, wire.info_length)?;
                Self::Query { request_id: wire.request_id.get(), oid: Oid(wire.oid.get()), info }
            }
            SET => {
                let wire: RequestBody = front("SET", body)?;
                let info = information("SET", body, wire.info_offset, wire.info_length)?;
                Self::Set { request_id: wire.request_id.get(), oid: Oid(wire.oid.get()), info }
            }
            RESET => Self::Reset,
            KEEPALIVE => Self::KeepAlive { request_id: word("KEEPALIVE")? },
            other => return Err(ParseError::MessageType(other)),
        })
    }

    /// The message's bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        match *self {
            Self::Initialize { request_id, major, minor, max_transfer } => {
                let body = InitializeBody {
                    request_id: request_id.into(),
                    major: major.into(),
                    minor: minor.into(),
                    max_transfer: max_transfer.into(),
                };
                message(INITIALIZE, &body, &[])
            }
            Self::Halt { request_id } => message(HALT, &U32::new(request_id), &[]),
            Self::Query { request_id, oid, info } => {
                message(QUERY, &request_body(request_id, oid, info), info)
            }
            Self::Set { request_id, oid, info } => {
                message(SET, &request_body(request_id, oid, info), info)
            }
            Self::Reset => message(RESET, &U32::new(0), &[]),
            Self::KeepAlive { request_id } => message(KEEPALIVE, &U32::new(request_id), &[]),
        }
    }
}

fn request_body(request_id: u32, oid: Oid, info: &[u8]) -> RequestBody {
    RequestBody {
        request_id: request_id.into(),
        oid: oid.0.into(),
        info_length: length32(info.len()).into(),
        info_offset: length32(size_of::<RequestBody>()).into(),
        vc_handle: 0.into(),
    }
}

fn message<T: IntoBytes + Immutable>(kind: u32, body: &T, info: &[u8]) -> Vec<u8> {
    let length = HEADER_SIZE + size_of::<T>() + info.len();
    let header = Header { kind: kind.into(), length: length32(length).into() };
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(body.as_bytes());
    out.extend_from_slice(info);
    out
}

impl<'a> Reply<'a> {
    /// What a server's bytes say. `bytes` may be longer than the message.
    ///
    /// # Errors
    /// The message is cut short, is none that a server sends on the control channel, or points outside of itself.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        const fn completes(kind: u32) -> u32 {
            kind | TYPE_COMPLETION
        }
        const INITIALIZE_COMPLETE: u32 = completes(INITIALIZE);
        const QUERY_COMPLETE: u32 = completes(QUERY);
        const SET_COMPLETE: u32 = completes(SET);
        const RESET_COMPLETE: u32 = completes(RESET);
        const KEEPALIVE_COMPLETE: u32 = completes(KEEPALIVE);
        let (kind, body) = split(bytes)?;
        Ok(match kind {
            INITIALIZE_COMPLETE => {
                let wire: InitializeCompleteBody = front("INITIALIZE_CMPLT", body)?;
                Self::InitializeComplete {
                    request_id: wire.request_id.get(),
                    status: NdisStatus(wire.status.get()),
                    max_packets: wire.max_packets.get(),
                    max_transfer: wire.max_transfer.get(),
                    alignment: wire.alignment.get(),
                }
            }
            QUERY_COMPLETE => {
                let wire: QueryCompleteBody = front("QUERY_CMPLT", body)?;
                let info = information("QUERY_CMPLT", body, wire.info_offset, wire.info_length)?;
                let status = NdisStatus(wire.status.get());
                Self::QueryComplete { request_id: wire.request_id.get(), status, info }
            }
            SET_COMPLETE => {
                let wire: StatusBody = front("SET_CMPLT", body)?;
                let status = NdisStatus(wire.status.get());
                Self::SetComplete { request_id: wire.request_id.get(), status }
            }
            RESET_COMPLETE => {
                let wire: ResetCompleteBody = front("RESET_CMPLT", body)?;
                Self::ResetComplete {
                    status: NdisStatus(wire.status.get()),
                    addressing_reset: wire.addressing_reset.get() != 0,
                }
            }
            INDICATE => {
                let wire: IndicateBody = front("INDICATE_STATUS", body)?;
                let buffer = information("INDICATE_STATUS", body, wire.offset, wire.length)?;
                Self::IndicateStatus { status: NdisStatus(wire.status.get()), buffer }
            }
            KEEPALIVE_COMPLETE => {
                let wire: StatusBody = front("KEEPALIVE_CMPLT", body)?;
                let status = NdisStatus(wire.status.get());
                Self::KeepAliveComplete { request_id: wire.request_id.get(), status }
            }
            other => return Err(ParseError::MessageType(other)),
        })
    }

    /// The message's bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        match *self {
            Self::InitializeComplete {
                request_id,
                status,
                max_packets,
                max_transfer,
                alignment,
            } => {
                let body = InitializeCompleteBody {
                    request_id: request_id.into(),
                    status: status.0.into(),
                    major: MAJOR_VERSION.into(),
                    minor: MINOR_VERSION.into(),
                    device_flags: 1.into(), // connectionless
                    medium: 0.into(),       // 802.3
                    max_packets: max_packets.into(),
                    max_transfer: max_transfer.into(),
                    alignment: alignment.into(),
                    af_offset: 0.into(),
                    af_size: 0.into(),
                };
                message(INITIALIZE | TYPE_COMPLETION, &body, &[])
            }
            Self::QueryComplete { request_id, status, info } => {
                let body = QueryCompleteBody {
                    request_id: request_id.into(),
                    status: status.0.into(),
                    info_length: length32(info.len()).into(),
                    info_offset: length32(size_of::<QueryCompleteBody>()).into(),
                };
                message(QUERY | TYPE_COMPLETION, &body, info)
            }
            Self::SetComplete { request_id, status } => {
                let body = StatusBody { request_id: request_id.into(), status: status.0.into() };
                message(SET | TYPE_COMPLETION, &body, &[])
            }
            Self::ResetComplete { status, addressing_reset } => {
                let body = ResetCompleteBody {
                    status: status.0.into(),
                    addressing_reset: u32::from(addressing_reset).into(),
                };
                message(RESET | TYPE_COMPLETION, &body, &[])
            }
            Self::IndicateStatus { status, buffer } => {
                let offset = if buffer.is_empty() { 0 } else { size_of::<IndicateBody>() };
                let body = IndicateBody {
                    status: status.0.into(),
                    length: length32(buffer.len()).into(),
                    offset: length32(offset).into(),
                };
                message(INDICATE, &body, buffer)
            }
            Self::KeepAliveComplete { request_id, status } => {
                let body = StatusBody { request_id: request_id.into(), status: status.0.into() };
                message(KEEPALIVE | TYPE_COMPLETION, &body, &[])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn requests_are_parsed_as_emitted(
            [request_id, oid, major, minor, max_transfer] in any::<[u32; 5]>(),
            info in vec(any::<u8>(), 0..80),
            padding in vec(any::<u8>(), 0..8),
        ) {
            let (oid, info) = (Oid(oid), info.as_slice());
            for request in [
                Request::Initialize { request_id, major, minor, max_transfer },
                Request::Halt { request_id },
                Request::Query { request_id, oid, info },
                Request::Set { request_id, oid, info },
                Request::Reset,
                Request::KeepAlive { request_id },
            ] {
                let mut bytes = request.emit();
                bytes.extend(&padding);
                prop_assert_eq!(Request::parse(&bytes), Ok(request));
                prop_assert!(Reply::parse(&bytes).is_err());
            }
        }

        #[test]
        fn replies_are_parsed_as_emitted(
            [request_id, status, max_packets, max_transfer, alignment] in any::<[u32; 5]>(),
            info in vec(any::<u8>(), 0..80),
            addressing_reset: bool,
        ) {
            let (status, info) = (NdisStatus(status), info.as_slice());
            for reply in [
                Reply::InitializeComplete { request_id, status, max_packets, max_transfer, alignment },
                Reply::QueryComplete { request_id, status, info },
                Reply::SetComplete { request_id, status },
                Reply::ResetComplete { status, addressing_reset },
                Reply::IndicateStatus { status, buffer: info },
                Reply::KeepAliveComplete { request_id, status },
            ] {
                let bytes = reply.emit();
                prop_assert_eq!(Reply::parse(&bytes), Ok(reply));
                prop_assert!(Request::parse(&bytes).is_err());
            }
        }

        #[test]
        fn random_bytes_never_panic(
            kind in 0..10u32, completion: bool, length in prop_oneof![0..100u32, any::<u32>()],
            body in vec(prop_oneof![0..64u32, any::<u32>()], 0..24),
        ) {
            let kind = kind | if completion { TYPE_COMPLETION } else { 0 };
            let words = [kind, length].into_iter().chain(body);
            let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
            for at in 0..bytes.len() {
                let _ = Request::parse(&bytes[..at]);
                let _ = Reply::parse(&bytes[..at]);
            }
        }
    }

    #[test]
    fn a_query_is_the_bytes_of_the_specification() {
        let query = Request::Query { request_id: 3, oid: Oid::GEN_LINK_SPEED, info: &[] };
        assert_eq!(
            query.emit(),
            [4, 0, 0, 0, 28, 0, 0, 0, 3, 0, 0, 0, 7, 1, 1, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0]
        );
        let reply = Reply::QueryComplete {
            request_id: 3,
            status: NdisStatus::SUCCESS,
            info: &[9, 0, 0, 0],
        };
        assert_eq!(
            reply.emit(),
            [
                4, 0, 0, 0x80, 28, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 16, 0, 0, 0, 9, 0,
                0, 0
            ]
        );
        let link = Reply::IndicateStatus { status: STATUS_MEDIA_CONNECT, buffer: &[] };
        assert_eq!(
            link.emit(),
            [7, 0, 0, 0, 20, 0, 0, 0, 0x0b, 0, 1, 0x40, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn information_outside_of_the_message_is_refused() {
        let set =
            Request::Set { request_id: 1, oid: Oid::GEN_CURRENT_PACKET_FILTER, info: &[1; 4] };
        let mut bytes = set.emit();
        bytes.extend([0; 8]);
        for (offset, length) in [(21u32, 4u32), (20, 5), (u32::MAX, 4), (4, u32::MAX)] {
            bytes[16..20].copy_from_slice(&length.to_le_bytes());
            bytes[20..24].copy_from_slice(&offset.to_le_bytes());
            let error = Request::parse(&bytes).unwrap_err();
            assert!(matches!(error, ParseError::Range { field: "information", .. }), "{error}");
        }
        bytes[16..20].fill(0);
        assert!(matches!(Request::parse(&bytes), Ok(Request::Set { info: &[], .. })));
    }

    #[test]
    fn a_message_longer_than_its_bytes_is_refused() {
        let mut bytes = Request::KeepAlive { request_id: 1 }.emit();
        bytes[4] = 13;
        assert!(Request::parse(&bytes).is_err());
        bytes[4] = 7;
        assert!(Request::parse(&bytes).is_err(), "shorter than its own header");
    }
}
