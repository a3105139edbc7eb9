//! Why bytes are not a message, or a message has no bytes.

use crate::MessageType;

/// A message that cannot be understood, or cannot be said.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VpciProtocolError {
    /// Not even the message type is there.
    #[error("a packet of {length} bytes has no message type")]
    NoType {
        /// Bytes that came.
        length: usize,
    },
    /// No message has this type.
    #[error("no VPCI message has type 0x{0:08X}")]
    UnknownType(u32),
    /// The other side is the one that sends this.
    #[error("{0} is not sent in this direction")]
    WrongDirection(MessageType),
    /// Fewer bytes than the message has.
    #[error("{what} needs {needed} bytes and has {length}")]
    Truncated {
        /// The message or the reply.
        what: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that came.
        length: usize,
    },
    /// A member has a value that it may not have.
    #[error("{what}: {field} may not be {value:#x}")]
    Field {
        /// The message or the structure.
        what: &'static str,
        /// The member.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl VpciProtocolError {
    pub(crate) fn field(what: &'static str, field: &'static str, value: impl Into<u64>) -> Self {
        Self::Field { what, field, value: value.into() }
    }
}
