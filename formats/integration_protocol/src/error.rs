//! Why bytes are not a message, or a message has no bytes.

/// A message that cannot be understood, or cannot be said.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IntegrationProtocolError {
    /// Fewer bytes than there have to be.
    #[error("{what} needs {needed} bytes and has {length}")]
    Truncated {
        /// What the bytes are to be.
        what: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that came.
        length: usize,
    },
    /// The pipe carries something else than a message.
    #[error("a pipe packet of type {0} carries no message")]
    NotData(u32),
    /// A member has a value that it may not have.
    #[error("{what}: {field} may not be {value:#x}")]
    Field {
        /// The structure.
        what: &'static str,
        /// The member.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// More than one packet carries.
    #[error("a message of {length} bytes is longer than any that is sent")]
    TooLong {
        /// Its bytes.
        length: usize,
    },
}

impl IntegrationProtocolError {
    pub(crate) fn field(what: &'static str, field: &'static str, value: impl Into<u64>) -> Self {
        Self::Field { what, field, value: value.into() }
    }
}

/// The first bytes of `bytes` as a `T`, and what follows.
pub(crate) fn prefix<'b, T: zerocopy::FromBytes>(
    what: &'static str,
    bytes: &'b [u8],
) -> Result<(T, &'b [u8]), IntegrationProtocolError> {
    T::read_from_prefix(bytes).map_err(|_| IntegrationProtocolError::Truncated {
        what,
        needed: size_of::<T>(),
        length: bytes.len(),
    })
}
