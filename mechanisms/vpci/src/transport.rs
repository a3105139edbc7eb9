//! Packets as values.

/// A packet to be written to the ring.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Outgoing {
    /// A message.
    Message {
        /// The transaction id, if a completion is asked for.
        transaction: Option<u64>,
        /// The payload.
        payload: Vec<u8>,
    },
    /// The completion of the other side's message.
    Completion {
        /// The transaction id of the message.
        transaction: u64,
        /// The payload.
        payload: Vec<u8>,
    },
}

/// A packet read from the ring.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Incoming<'a> {
    /// A message.
    Message {
        /// The transaction id, if a completion is asked for.
        transaction: Option<u64>,
        /// The payload, with padding.
        payload: &'a [u8],
    },
    /// The completion of a message that was sent.
    Completion {
        /// The transaction id of the message.
        transaction: u64,
        /// The payload, with padding.
        payload: &'a [u8],
    },
}

impl Outgoing {
    /// The packet as the other side gets it.
    pub fn as_incoming(&self) -> Incoming<'_> {
        match self {
            Self::Message { transaction, payload } => {
                Incoming::Message { transaction: *transaction, payload }
            }
            Self::Completion { transaction, payload } => {
                Incoming::Completion { transaction: *transaction, payload }
            }
        }
    }
}
