//! What passes between a queue, which has the ring, and the control core, which has not.

use arrayvec::ArrayVec;
use netvsp_protocol::{
    ParseError,
    nvsp::{MAX_MESSAGE_SIZE, MessageBytes},
};
use shared_memory::SharedSlice;

/// Bytes of the longest RNDIS control message that is read.
pub(crate) const MAX_CONTROL_MESSAGE: u32 = 8192;

/// A ring packet that is no frame, in a local copy.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// An NVSP message.
    Message {
        /// The name to answer to, if an answer is wanted.
        transaction: Option<u64>,
        /// The message, cut to the length of the longest there is.
        bytes: ArrayVec<u8, MAX_MESSAGE_SIZE>,
    },
    /// An RNDIS control message.
    Rndis {
        /// The name to answer to, if an answer is wanted.
        transaction: Option<u64>,
        /// The message, or the reason why it cannot be read.
        bytes: Result<Vec<u8>, ParseError>,
    },
    /// The completion of a packet that was not a frame, or of none at all.
    Completion {
        /// The name that it answers to.
        transaction: u64,
        /// Its payload, cut to the length of the longest message there is.
        bytes: ArrayVec<u8, MAX_MESSAGE_SIZE>,
    },
}

/// Why a queue's `receive` came back.
#[derive(Debug)]
pub enum Stop {
    /// The ring is empty.
    Empty,
    /// The burst is full; there may be more.
    Full,
    /// Earlier completions did not fit the ring to the other end, which must read it first.
    Blocked,
    /// Here is a packet that is no frame; there may be more behind it.
    Control(Incoming),
}

/// A ring packet to be written to the primary channel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outgoing {
    /// The answer to a packet; without a message it is empty.
    Completion {
        /// The packet's name.
        transaction: u64,
        /// The message.
        message: Option<MessageBytes>,
    },
    /// An NVSP message.
    Message {
        /// Its name.
        transaction: u64,
        /// Whether an answer is asked for.
        completion_requested: bool,
        /// The message.
        message: MessageBytes,
    },
    /// An RNDIS control message, which goes by way of a buffer.
    Rndis {
        /// The message.
        bytes: Vec<u8>,
    },
}

/// A local copy of a packet's payload, as far as a message can be long.
pub(crate) fn copy_message(payload: SharedSlice<'_>) -> ArrayVec<u8, MAX_MESSAGE_SIZE> {
    let mut bytes = ArrayVec::from([0; MAX_MESSAGE_SIZE]);
    let length = payload.read_into(&mut bytes);
    bytes.truncate(length);
    bytes
}
