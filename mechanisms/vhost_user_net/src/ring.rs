//! What rings have in common: buffers, and what can be wrong with them.

use arrayvec::ArrayVec;
use shared_memory::DmaFault;

/// Descriptors of one buffer that are looked at; what a driver has beyond them is walked, and not used.
pub(crate) const MAX_PIECES: usize = 66;
/// Descriptors of one buffer, at most. No driver has more: its packets have 64 KiB.
pub(crate) const MAX_DESCRIPTORS: u32 = 1024;
/// Entries of a ring, at most (virtio 1.2 §2.7, §2.8).
pub(crate) const MAX_SIZE: u32 = 1 << 15;

/// What is wrong with a ring. It is served no more until its driver has set it up again.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum RingError {
    /// A part of it lies outside of the guest's memory, or not where it may begin.
    #[error("the {part} of a ring is not in the guest's memory, or not aligned")]
    Outside {
        /// Which part.
        part: &'static str,
    },
    /// A size that rings cannot have.
    #[error("a ring cannot have {size} entries")]
    Size {
        /// Entries.
        size: u32,
    },
    /// More is available than there are entries.
    #[error("a ring of {size} entries has {available} of them available")]
    Index {
        /// Entries.
        size: u16,
        /// How many it says are available.
        available: u16,
    },
    /// A descriptor's number beyond the table's end.
    #[error("a descriptor has number {index}, and there are {size}")]
    Descriptor {
        /// Its number.
        index: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// A chain of descriptors without end.
    #[error("a buffer has too many descriptors, or they go round in a circle")]
    Endless,
    /// An indirect table where none may be, or of a size that none has.
    #[error("a descriptor points at a table of {length} bytes that cannot be")]
    Indirect {
        /// Bytes.
        length: u32,
    },
    /// A buffer that is to be read where it is to be written, or the reverse.
    #[error("a descriptor's direction is not its queue's")]
    Direction,
    /// A buffer without room for as much as a header.
    #[error("a buffer has no room for a header")]
    NoRoom,
    /// A buffer outside of the guest's memory.
    #[error("a buffer is not in the guest's memory")]
    Fault(#[from] DmaFault),
}

/// Which way a queue's buffers go.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Direction {
    /// The driver wrote them: packets that it sends.
    FromDriver,
    /// The device writes them: packets that the driver receives.
    ToDriver,
}

/// One descriptor's memory.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) guest: u64,
    pub(crate) length: u32,
}

/// One buffer that a driver has made available.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer {
    /// By which it is given back.
    pub(crate) id: u16,
    pub(crate) pieces: ArrayVec<Piece, MAX_PIECES>,
    /// It has more pieces than that.
    pub(crate) cut: bool,
    /// Descriptors that were read for it.
    pub(crate) descriptors: u32,
}

impl Buffer {
    pub(crate) fn begin(&mut self) {
        (self.id, self.cut, self.descriptors) = (0, false, 0);
        self.pieces.clear();
    }

    /// One more descriptor was read.
    #[inline]
    pub(crate) fn count(&mut self) -> Result<(), RingError> {
        self.descriptors += 1;
        if self.descriptors > MAX_DESCRIPTORS { Err(RingError::Endless) } else { Ok(()) }
    }

    /// Adds a descriptor's memory.
    #[inline]
    pub(crate) fn push(
        &mut self,
        piece: Piece,
        writable: bool,
        direction: Direction,
    ) -> Result<(), RingError> {
        if writable != (direction == Direction::ToDriver) {
            return Err(RingError::Direction);
        }
        if piece.length > 0 && self.pieces.try_push(piece).is_err() {
            self.cut = true;
        }
        Ok(())
    }
}
