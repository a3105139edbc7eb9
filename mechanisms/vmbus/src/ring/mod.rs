//! Ring buffers: one direction of a channel each (SPEC-VMBUS §3).
//!
//! A [`RingSender`] writes packets and a [`RingReceiver`] reads them; host and guest have one of each. Both work in
//! batches: packets written are seen by the peer after [`RingSender::publish`], room read is free after
//! [`RingReceiver::release`], and each of these says whether the peer is to be signalled. Nobody else is to use
//! the same half of the same ring.
//!
//! The data area is mapped twice, back to back, so that no packet wraps. Everything the peer can write is read
//! once, checked, and used from the local copy; a violation ends the channel ([`ChannelDead`]).

mod error;
mod memory;
mod packet;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use error::{ChannelDead, SendError};
pub use memory::RingMemory;
pub use packet::{
    GpaRange, GpaRanges, OutgoingGpaRange, OutgoingPacket, Packet, PacketKind, TransferPageRanges,
};
pub use receiver::RingReceiver;
pub use sender::{RingSender, RoomRequest};

/// Whether the peer is to be signalled now.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
#[must_use = "a peer that is not signalled sleeps on"]
pub enum Signal {
    /// It looks by itself.
    #[default]
    NotDue,
    /// It sleeps, or waits for room.
    Due,
}

impl Signal {
    /// Whether the peer is to be signalled.
    #[inline]
    pub fn is_due(self) -> bool {
        self == Self::Due
    }

    /// One signal for two reasons.
    #[inline]
    pub fn or(self, other: Self) -> Self {
        if self.is_due() { self } else { other }
    }
}

impl From<bool> for Signal {
    #[inline]
    fn from(due: bool) -> Self {
        if due { Self::Due } else { Self::NotDue }
    }
}
