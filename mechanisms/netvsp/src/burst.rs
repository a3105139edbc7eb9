//! Frames out of a ring, some at a time.

use netvsp_protocol::nvsp::NvspStatus;
use shared_memory::SharedSlice;

use crate::{ReceiveMetadata, TransmitMetadata};

/// Frames in a burst, at most.
pub const BURST_FRAMES: usize = 64;
/// Pieces of one ring packet, at most: pages of a large send, and the section before them.
pub const MAX_PIECES: usize = 64;
/// Room for one packet of any kind, and for as many of one piece as there may be frames.
const BURST_PIECES: usize = 2 * BURST_FRAMES + MAX_PIECES;
/// Pieces of a frame that a guest receives, at most.
pub(crate) const MAX_FRAME_PIECES: usize = 8;
/// Frames of one ring packet that are always given room, so that it is never left half read.
pub(crate) const MAX_FRAMES_PER_MESSAGE: usize = 8;

/// Frames from a guest.
pub type TransmitBurst<'m> = Burst<'m, TransmitMetadata>;
/// Frames to a guest, as the guest sees them.
pub type ReceiveBurst<'m> = Burst<'m, ReceiveMetadata>;

/// One frame of a burst.
#[derive(Copy, Clone, Debug)]
pub struct Frame<'b, 'm, M> {
    /// The first 16 bytes in memory order, read once; zeros beyond the frame's end. Decide by these, and put these
    /// at the destination ([`shared_memory::FrameCopy`]): the memory behind `pieces` may have changed since.
    pub head: [u64; 2],
    /// All bytes of the frame, in order. None is empty.
    pub pieces: &'b [SharedSlice<'m>],
    /// Sum of the pieces, bytes; at least 14.
    pub length: u32,
    /// Checksums, segmentation, tag, hash.
    pub metadata: &'b M,
}

impl<M> Frame<'_, '_, M> {
    /// The destination address.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.head[0].to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// The source address.
    #[inline]
    #[must_use]
    pub fn source(&self) -> [u8; 6] {
        let [_, _, _, _, _, _, a, b] = self.head[0].to_le_bytes();
        let [c, d, e, f, ..] = self.head[1].to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// Copies the frame out; what `out` has no room for is left out. Returns the bytes copied.
    pub fn read_into(&self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces {
            let Some(rest) = out.get_mut(done..) else { break };
            done += piece.read_into(rest);
        }
        done
    }
}

#[derive(Debug)]
struct Entry<M> {
    head: [u64; 2],
    first: u16,
    pieces: u16,
    length: u32,
    metadata: M,
}

/// Frames that were read from a ring, and the transactions that are to be completed once they have been copied.
///
/// Its memory is allocated once: who polls keeps it between two bursts as what [`Self::recycle`] makes of it.
#[derive(Debug)]
pub struct Burst<'m, M> {
    frames: Vec<Entry<M>>,
    pieces: Vec<SharedSlice<'m>>,
    done: Vec<(u64, NvspStatus)>,
}

impl<M> Default for Burst<'_, M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'m, M> Burst<'m, M> {
    /// No frames, and room for as many as there may be.
    #[must_use]
    pub fn new() -> Self {
        Self {
            frames: Vec::with_capacity(BURST_FRAMES),
            pieces: Vec::with_capacity(BURST_PIECES),
            done: Vec::with_capacity(BURST_FRAMES),
        }
    }

    /// The same memory, empty, for frames that lie elsewhere.
    #[inline]
    #[must_use]
    pub fn recycle<'n>(mut self) -> Burst<'n, M> {
        self.clear();
        let Self { frames, pieces, done } = self;
        // There is none to be mapped; collecting a vector's own items keeps its memory.
        let pieces = pieces.into_iter().map(|_| SharedSlice::empty()).collect();
        Burst { frames, pieces, done }
    }

    /// The frames, in the order in which they were sent.
    #[inline]
    pub fn frames(&self) -> impl ExactSizeIterator<Item = Frame<'_, 'm, M>> {
        self.frames.iter().map(|entry| {
            let first = usize::from(entry.first);
            Frame {
                head: entry.head,
                pieces: self
                    .pieces
                    .get(first..first + usize::from(entry.pieces))
                    .unwrap_or_default(),
                length: entry.length,
                metadata: &entry.metadata,
            }
        })
    }

    /// How many frames.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is none; there may be transactions to complete all the same.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether so many ring packets fit, the last of any kind and the others of one piece.
    #[inline]
    pub(crate) fn has_room(&self, packets: usize) -> bool {
        let frames = packets * MAX_FRAMES_PER_MESSAGE;
        self.frames.len() + frames <= BURST_FRAMES
            && self.pieces.len() + frames + MAX_PIECES <= BURST_PIECES
            && self.done.len() + packets <= BURST_FRAMES
    }

    /// Whether one frame of up to [`MAX_FRAME_PIECES`] pieces fits, and a transaction.
    #[inline]
    pub(crate) fn has_room_for_frame(&self) -> bool {
        self.frames.len() < BURST_FRAMES
            && self.pieces.len() + MAX_FRAME_PIECES <= BURST_PIECES
            && self.done.len() < BURST_FRAMES
    }

    /// Adds a frame in one piece.
    #[inline(always)]
    pub(crate) fn push(&mut self, head: [u64; 2], piece: SharedSlice<'m>, metadata: M) -> bool {
        let first = self.pieces.len();
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        self.piece(piece) && self.entry(head, first, length, metadata)
    }

    /// Adds a frame of several pieces.
    pub(crate) fn push_pieces(
        &mut self,
        head: [u64; 2],
        pieces: impl Iterator<Item = SharedSlice<'m>>,
        metadata: M,
    ) -> bool {
        let first = self.pieces.len();
        let mut length = 0u32;
        for piece in pieces {
            length = length.saturating_add(u32::try_from(piece.len()).unwrap_or(u32::MAX));
            if !self.piece(piece) {
                self.pieces.truncate(first);
                return false;
            }
        }
        self.entry(head, first, length, metadata)
    }

    #[inline(always)]
    fn piece(&mut self, piece: SharedSlice<'m>) -> bool {
        let room = self.pieces.len() < BURST_PIECES;
        if room {
            self.pieces.push(piece);
        }
        room
    }

    #[inline(always)]
    fn entry(&mut self, head: [u64; 2], first: usize, length: u32, metadata: M) -> bool {
        // Both are far below 65,536.
        let pieces = u16::try_from(self.pieces.len() - first).unwrap_or(u16::MAX);
        let first = u16::try_from(first).unwrap_or(u16::MAX);
        let room = self.frames.len() < BURST_FRAMES;
        if room {
            self.frames.push(Entry { head, first, pieces, length, metadata });
        }
        room
    }

    /// Adds a transaction that is to be completed.
    #[inline]
    pub(crate) fn complete_with(&mut self, transaction: u64, status: NvspStatus) {
        // There is room for as many as packets are taken (`has_room`).
        if self.done.len() < BURST_FRAMES {
            self.done.push((transaction, status));
        }
    }

    /// Transactions that are to be completed.
    #[inline]
    pub(crate) fn done(&self) -> &[(u64, NvspStatus)] {
        &self.done
    }

    /// Empties it.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.pieces.clear();
        self.done.clear();
    }

    /// Number of frames, to come back to with [`Self::truncate`].
    #[inline]
    pub(crate) fn mark(&self) -> usize {
        self.frames.len()
    }

    /// Forgets the frames of a message that turned out to be malformed. Their pieces' room is lost to the burst.
    #[cold]
    pub(crate) fn truncate(&mut self, mark: usize) {
        self.frames.truncate(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_burst_has_the_same_memory_and_nothing_in_it() {
        let mut burst = ReceiveBurst::new();
        let memory = (burst.frames.as_ptr(), burst.pieces.as_ptr().cast::<u8>());
        for _ in 0..BURST_FRAMES {
            assert!(burst.push([0; 2], SharedSlice::empty(), ReceiveMetadata::default()));
            burst.complete_with(1, NvspStatus::SUCCESS);
        }
        assert!(!burst.push([0; 2], SharedSlice::empty(), ReceiveMetadata::default()));
        let again = burst.recycle();
        assert!(again.is_empty() && again.done().is_empty() && again.has_room(8));
        assert_eq!((again.frames.as_ptr(), again.pieces.as_ptr().cast::<u8>()), memory);
    }
}
