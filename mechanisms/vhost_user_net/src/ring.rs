//! What split and packed rings have in common: where they are, their buffers, and what can be wrong with them.

use arrayvec::ArrayVec;
use shared_memory::{DmaFault, TranslationCache};

use crate::{
    Features,
    memory::{DirtyLog, GuestMemory, View},
    packed::PackedRing,
    split::SplitRing,
};

/// Bytes of a descriptor, of either kind of ring and of tables.
pub(crate) const DESCRIPTOR: usize = 16;
/// Descriptor flags of both kinds (virtio 1.2 §2.7.5, §2.8.5 to §2.8.7).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
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
    /// A place to begin at that the ring does not have.
    #[error("a ring of {size} entries cannot begin at {base:#x}")]
    Base {
        /// Entries.
        size: u16,
        /// Where it is to begin.
        base: u32,
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
    /// The guest's memory is not there any more.
    #[error("the guest's memory was taken away")]
    MemoryTaken,
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

/// Where a ring's parts are, in the front-end's addresses.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Addresses {
    pub(crate) descriptors: u64,
    /// Available ring; of a packed one the driver's event suppression.
    pub(crate) driver: u64,
    /// Used ring; of a packed one the device's event suppression.
    pub(crate) device: u64,
}

/// Finds a part of a ring.
pub(crate) fn part(
    memory: &GuestMemory,
    (user, length, alignment): (u64, usize, usize),
    part: &'static str,
) -> Result<View, RingError> {
    let view = memory.view(user, length).filter(|view| view.is_aligned(alignment));
    view.ok_or(RingError::Outside { part })
}

/// By which a buffer is given back.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub(crate) struct Token {
    /// What its driver calls it.
    pub(crate) id: u16,
    /// Descriptors that it has in a packed ring.
    pub(crate) slots: u16,
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
    pub(crate) token: Token,
    pub(crate) pieces: ArrayVec<Piece, MAX_PIECES>,
    /// It has more pieces than that.
    pub(crate) cut: bool,
    /// Descriptors that were read for it.
    pub(crate) descriptors: u32,
}

impl Buffer {
    pub(crate) fn begin(&mut self) {
        (self.token, self.cut, self.descriptors) = (Token::default(), false, 0);
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

/// The quick way to many buffers, on a ring whose kind is known.
pub(crate) trait Singles {
    /// Takes buffers of one descriptor each for as long as `each` wants them; ends before any other, and where nothing or
    /// nothing good is available.
    fn take_singles(&mut self, direction: Direction, each: impl FnMut(Token, Piece) -> bool);
}

/// A virtqueue of either kind.
///
/// Buffers are given back in the order in which they were taken.
#[derive(Debug)]
pub(crate) enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

/// Does the same on either.
macro_rules! on_either {
    ($ring:expr, $each:ident => $what:expr) => {
        match $ring {
            Ring::Split($each) => $what,
            Ring::Packed($each) => $what,
        }
    };
}

impl Ring {
    /// A ring that begins at `base`, which says what it does in the words of VHOST_USER_SET_VRING_BASE.
    pub(crate) fn new(
        memory: &GuestMemory,
        at: Addresses,
        size: u16,
        base: u32,
        features: Features,
    ) -> Result<Self, RingError> {
        if features.contains(Features::RING_PACKED) {
            PackedRing::new(memory, at, size, base, features).map(Self::Packed)
        } else {
            SplitRing::new(memory, at, size, base, features).map(Self::Split)
        }
    }

    /// Goes on where the parts are now.
    pub(crate) fn relocate(
        &mut self,
        memory: &GuestMemory,
        at: Addresses,
    ) -> Result<(), RingError> {
        on_either!(self, ring => ring.relocate(memory, at))
    }

    /// Where whoever serves it afterwards begins.
    pub(crate) fn base(&self) -> u32 {
        on_either!(self, ring => ring.base())
    }

    /// What is taken next.
    #[inline]
    pub(crate) fn position(&self) -> u16 {
        on_either!(self, ring => ring.position())
    }

    /// Makes as if what was taken since had not been.
    pub(crate) fn rewind(&mut self, position: u16) {
        on_either!(self, ring => ring.rewind(position))
    }

    /// Takes the next buffer; false if there is none.
    #[inline]
    pub(crate) fn take(
        &mut self,
        memory: &GuestMemory,
        cache: &mut TranslationCache,
        direction: Direction,
        buffer: &mut Buffer,
    ) -> Result<bool, RingError> {
        buffer.begin();
        on_either!(self, ring => ring.take(memory, cache, direction, buffer))
    }

    /// Gives buffers back that were read; the driver sees them by [`Self::publish`].
    #[inline]
    pub(crate) fn give_back_all(&mut self, tokens: impl Iterator<Item = Token>) {
        on_either!(self, ring => tokens.for_each(|token| ring.give_back(token)));
    }

    /// Gives a buffer back into which so many bytes were written; the driver sees it by [`Self::publish`].
    #[inline]
    pub(crate) fn put(&mut self, token: Token, written: u32) {
        on_either!(self, ring => ring.put(token, written));
    }

    /// As [`Self::put`], of several.
    #[inline]
    pub(crate) fn put_all(&mut self, buffers: impl Iterator<Item = (Token, u32)>) {
        on_either!(self, ring => buffers.for_each(|(token, written)| ring.put(token, written)));
    }

    /// Shows the driver what was given back. True if it wants to be interrupted for that.
    #[inline]
    pub(crate) fn publish(&mut self, log: Option<&DirtyLog>) -> bool {
        on_either!(self, ring => ring.publish(log))
    }

    /// Asks to be notified of new buffers; true if there are some already.
    pub(crate) fn listen(&mut self, log: Option<&DirtyLog>) -> bool {
        on_either!(self, ring => ring.listen(log))
    }

    /// Wants no notifications until [`Self::listen`].
    pub(crate) fn ignore(&mut self, log: Option<&DirtyLog>) {
        on_either!(self, ring => ring.ignore(log))
    }
}
