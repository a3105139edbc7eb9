//! What ends a channel, and what keeps a packet from being sent.

/// The peer broke the rules of the ring: the channel is to be closed, and nothing else of it be believed.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash, thiserror::Error)]
pub enum ChannelDead {
    /// An index of the control page lies outside of the data area or is no multiple of 8.
    #[error(
        "the peer set the ring's {name} index to {value:#x}, outside of its {size:#x} bytes or odd"
    )]
    BadIndex {
        /// `in` or `out`.
        name: &'static str,
        /// What it was set to.
        value: u32,
        /// Bytes of the data area.
        size: u32,
    },
    /// A packet's lengths contradict each other, or the number of bytes in the ring.
    #[error(
        "packet at {offset:#x} of {length} bytes with data at {data_offset} does not fit the {available} bytes in the ring"
    )]
    BadLength {
        /// Where the packet is in the data area.
        offset: u32,
        /// Its length by its descriptor, bytes.
        length: u32,
        /// Where its payload begins by its descriptor, bytes.
        data_offset: u32,
        /// Bytes between the indices.
        available: u32,
    },
    /// A packet of a type that no device uses.
    #[error("packet at {offset:#x} has the unknown type {packet_type:#x}")]
    BadType {
        /// Where the packet is in the data area.
        offset: u32,
        /// Its type.
        packet_type: u16,
    },
    /// Flag bits without a meaning.
    #[error("packet at {offset:#x} has the unknown flags {flags:#x}")]
    BadFlags {
        /// Where the packet is in the data area.
        offset: u32,
        /// Its flags.
        flags: u16,
    },
    /// The ranges of a GPA-direct or transfer-page packet are empty, too many for the packet, or cut off.
    #[error("a packet lists ranges that are not valid or not all there")]
    BadRanges,
    /// The ring itself is too small for its indices.
    #[error("the ring's memory is gone")]
    NoMemory,
}

/// Why a packet was not written.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum SendError {
    /// There is no room now; [`RingSender::request_room`](super::RingSender::request_room) and wait.
    #[error("the ring is full: {needed} bytes are needed; wait for room")]
    Full {
        /// Bytes the packet takes up in the ring.
        needed: u32,
    },
    /// The packet does not fit the ring, or the descriptor, even when the ring is empty.
    #[error("a packet of {length} bytes can never be sent through a ring of {size} bytes")]
    TooLong {
        /// Bytes of the packet.
        length: usize,
        /// Bytes of the data area.
        size: u32,
    },
    /// A range to be sent is empty, or its page count does not match.
    #[error("a range to be sent is empty or has the wrong number of pages")]
    BadRange,
    /// The peer broke the rules.
    #[error(transparent)]
    Dead(#[from] ChannelDead),
}
