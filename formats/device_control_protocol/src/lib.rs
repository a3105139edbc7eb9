//! Device control: the framing that carries a PF driver's requests (I/O controls, interface callbacks, OIDs and
//! private controls) over a Unix stream socket, as types.
//!
//! It opens no socket and starts no thread: it turns 40 header bytes into a [`Message`] and back, and the arguments of
//! each interface callback into an input buffer and back. The sockets are in the `device_control` crate, the meaning
//! of the requests in `pf_driver` and `ndis`.
//!
//! The request model is that of the system the contracts come from (DESIGN.md, "Device control"): a request has a
//! code, an input buffer with the exact published layout and room for output; it is completed exactly once, with a
//! status, output bytes and, where the room was too small, the bytes needed; it may stay pending in between, and may
//! be cancelled. Buffers inside messages are those of SPEC-PCIVIRT and SPEC-NDIS-SRIOV, byte for byte; the framing and
//! the callbacks' argument buffers are not published anywhere and are defined here.
//!
//! # A connection
//!
//! | # | direction | message | carries |
//! | --- | --- | --- | --- |
//! | 1 | client to server | [`Message::Hello`] | [`Hello`]: protocol version, name of the overlying driver |
//! | 2 | server to client | [`Message::Welcome`] | status, and on success [`Welcome`]: version, limits, name of the device |
//! | 3 | client to server | [`Message::Request`], [`Message::Cancel`] | any number, in any order |
//! | 4 | server to client | [`Message::Completion`] | exactly one per request, in any order |
//!
//! A message is a [`MessageHeader`] of 40 bytes, then its payload. File descriptors travel as ancillary data of the
//! bytes of the header. Whoever receives a message that breaks these rules ([`MessageError`]) closes the connection:
//! after a wrong length nothing that follows can be trusted.
//!
//! Layer: formats (ARCHITECTURE.md).

mod callback;
mod hello;
mod message;

pub use callback::*;
pub use hello::{
    ATTACH_REMOVAL_EVENTS, AttachOptions, ClientId, DriverName, Hello, NameError, Welcome,
};
pub use message::{
    Completion, Message, MessageError, MessageHeader, MessageKind, OidRequestKind, RequestClass,
    RequestId, Target,
};

/// Version of this protocol. Both sides must speak the same one.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes of a message's header.
pub const HEADER_LENGTH: usize = size_of::<MessageHeader>();

/// Most bytes of a request's input. The longest published inputs are a few kilobytes (a VPort with its names is 748
/// bytes); the rest is room for private controls: the pages of a guest's buffer of 31 MiB, scattered, are some 140 KiB.
pub const MAX_INPUT_LENGTH: u32 = 256 * 1024;

/// Most bytes of a completion's output. The longest published output that a device of ours can produce is the
/// enumeration of 65,536 receive filters: 28 + 65,536 × 16 bytes, just above 1 MiB.
pub const MAX_OUTPUT_LENGTH: u32 = 2 * 1024 * 1024;

/// Most requests of one client that are not completed. Long polls take 2 + 2 × NumVFs at most when every VF of a
/// 64-VF device is waited for on its own; everything else is short-lived.
pub const MAX_OUTSTANDING_REQUESTS: u32 = 256;

/// Most bytes of input and of room for output that the outstanding requests of one client add up to. It bounds the
/// memory that one client can make the server hold, whatever the client does.
pub const MAX_OUTSTANDING_BYTES: u32 = 4 * 1024 * 1024;

/// Most file descriptors beside one message.
pub const MAX_FDS: u16 = 8;
