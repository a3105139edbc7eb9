//! Why bytes are not the message they should be.

use ndis_protocol::NdisStatus;
use thiserror::Error;

/// Bytes that make no sense. The sender is at fault; what follows from it is the receiver's to decide.
#[derive(Copy, Clone, Debug, Error, Eq, PartialEq)]
pub enum ParseError {
    /// The bytes end before the fields that are needed do.
    #[error("{message} takes {needed} bytes, {got} were sent")]
    TooShort {
        /// The message's name.
        message: &'static str,
        /// Bytes that are needed.
        needed: usize,
        /// Bytes there are.
        got: usize,
    },
    /// A message type that this end never sends, or that does not exist.
    #[error("message type {0} is not one that this end may send")]
    MessageType(u32),
    /// A field has a value that it may not have.
    #[error("{message}.{field} may not be {value:#x}")]
    Field {
        /// The message's name.
        message: &'static str,
        /// The field's name.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// An offset and a length point outside of the message.
    #[error("{message}.{field}: {length} bytes at {offset} do not lie in a message of {available}")]
    Range {
        /// The message's name.
        message: &'static str,
        /// What was to be there.
        field: &'static str,
        /// Offset found, bytes.
        offset: u32,
        /// Length found, bytes.
        length: u32,
        /// Bytes there are.
        available: usize,
    },
}

impl ParseError {
    /// The status that answers such an OID request.
    #[must_use]
    pub const fn status(&self) -> NdisStatus {
        match self {
            Self::TooShort { .. } => NdisStatus::INVALID_LENGTH,
            _ => NdisStatus::INVALID_DATA,
        }
    }
}

/// The structure at the front of `bytes`.
pub(crate) fn front<T: zerocopy::FromBytes>(
    message: &'static str,
    bytes: &[u8],
) -> Result<T, ParseError> {
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| ParseError::TooShort {
        message,
        needed: size_of::<T>(),
        got: bytes.len(),
    })
}

/// `length` bytes at `offset` of `bytes`.
pub(crate) fn part<'a>(
    message: &'static str,
    field: &'static str,
    bytes: &'a [u8],
    offset: u32,
    length: u32,
) -> Result<&'a [u8], ParseError> {
    let range = || {
        let start = usize::try_from(offset).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    };
    range().ok_or(ParseError::Range { message, field, offset, length, available: bytes.len() })
}

/// A length as it goes into a 32-bit field. Lengths here are those of messages, far below 4 GiB.
pub(crate) fn length32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
