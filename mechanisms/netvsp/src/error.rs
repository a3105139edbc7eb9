//! What ends a channel.

use netvsp_protocol::ParseError;
use vmbus::{ChannelDead, SendError};

/// The other end broke the protocol. The channel is served no more until it was closed and opened again.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProtocolError {
    /// The rules of the ring.
    #[error(transparent)]
    Ring(#[from] ChannelDead),
    /// A message that cannot be read.
    #[error("an NVSP message cannot be read")]
    Nvsp(#[source] ParseError),
    /// A message that has no place in this state: before INIT, twice, or after the buffers are gone.
    #[error("{message} came {when}")]
    OutOfOrder {
        /// The message's name.
        message: &'static str,
        /// The state that it does not fit.
        when: &'static str,
    },
    /// A message of a newer version than was agreed on.
    #[error("{message} is not part of {version}")]
    NotInVersion {
        /// The message's name.
        message: &'static str,
        /// The version agreed on.
        version: netvsp_protocol::nvsp::NvspVersion,
    },
    /// Anything but frames on a subchannel.
    #[error("{message} came on a subchannel, which takes frames only")]
    OnSubchannel {
        /// What it was.
        message: &'static str,
    },
    /// A kind of ring packet that this end never gets.
    #[error("a ring packet of a kind that this end of a network channel does not take")]
    PacketKind,
    /// A control message longer than any that is known.
    #[error("an RNDIS control message of {length} bytes; {limit} are the most")]
    ControlTooLong {
        /// Its length, bytes.
        length: u32,
        /// The most there may be, bytes.
        limit: u32,
    },
    /// An answer of the server that cannot be used by this client.
    #[error("the server's answer to {message} cannot be used: {reason}")]
    Answer {
        /// The message that it answers.
        message: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// None of the versions known here.
    #[error("the server speaks none of the versions known here")]
    NoVersion,
    /// The ring is too small for a message.
    #[error("a message of {length} bytes does not fit the channel's ring")]
    RingTooSmall {
        /// Bytes of the message.
        length: usize,
    },
}

impl ProtocolError {
    /// What a failed write means, once "full" is ruled out.
    pub(crate) fn from_send(error: SendError) -> Self {
        match error {
            SendError::Dead(dead) => Self::Ring(dead),
            SendError::TooLong { length, .. } => Self::RingTooSmall { length },
            SendError::Full { .. } | SendError::BadRange => Self::RingTooSmall { length: 0 },
        }
    }
}
