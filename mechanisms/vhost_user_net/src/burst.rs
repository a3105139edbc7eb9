//! Packets that are moved together.
//!
//! What another CPU has written last takes as long to come here as a hundred packets' instructions. All memory of a burst
//! is asked for before the first byte of it is looked at, so that the waits are one.

use arrayvec::ArrayVec;
use linux_network::{ChecksumState, PacketOffload};
use shared_memory::{DmaAddress, DmaWindow, FrameCopy, SharedSlice, TranslationCache, copy_frames};

use crate::{
    Features,
    memory::{DirtyLog, GuestMemory},
    packet::{HEAD, Sent, Unread, emit_header},
    ring::{Buffer, Direction, MAX_PIECES, Piece, Ring, RingError, Singles, Token},
};

/// Packets of a burst, at most.
pub const MAX_BURST: usize = 32;
/// Packets of a driver's that are asked for before the first of them is looked at, at most.
const ARRIVALS: usize = 2 * MAX_BURST;
/// Pieces of a burst's packets, at most: nearly all packets have one or two.
const PIECES: usize = 4 * MAX_PIECES;
/// Cache lines of a packet that are asked for before it is its turn, beside its last.
const AHEAD: usize = 4;

/// A buffer of the driver's, as it was taken.
#[derive(Copy, Clone, Debug)]
struct Arrival {
    token: Token,
    /// Where its pieces end; they begin where the one's before end.
    end: u16,
    /// It has more pieces.
    cut: bool,
}

/// Packets that a driver sends.
pub(crate) struct Arriving<'m> {
    header: usize,
    /// It may say something.
    is_said: bool,
    arrivals: ArrayVec<Arrival, ARRIVALS>,
    pieces: ArrayVec<SharedSlice<'m>, PIECES>,
}

impl<'m> Arriving<'m> {
    /// None yet, of a driver that has taken these features.
    #[inline]
    pub(crate) fn new(features: Features) -> Self {
        Self {
            header: features.header_length(),
            is_said: features.has_offloads(),
            arrivals: ArrayVec::new(),
            pieces: ArrayVec::new(),
        }
    }

    /// Whether there is room for one more, whatever it is.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        // Each piece may lie across regions.
        !self.arrivals.is_full() && self.pieces.remaining_capacity() >= 2 * MAX_PIECES
    }

    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.arrivals.len()
    }

    /// Takes a buffer that goes nowhere.
    pub(crate) fn discard(&mut self, token: Token) {
        self.arrivals.push(Arrival { token, end: place(self.pieces.len()), cut: true });
    }

    /// Takes packets, each in a buffer of one descriptor and in one piece of memory, up to `most` of them.
    #[inline]
    pub(crate) fn add_singles(
        &mut self,
        memory: &'m GuestMemory,
        cache: TranslationCache,
        ring: &mut Ring,
        most: usize,
    ) {
        let window = memory.window(cache);
        match ring {
            Ring::Split(ring) => self.add_singles_of(ring, window, most),
            Ring::Packed(ring) => self.add_singles_of(ring, window, most),
        }
    }

    /// As [`Self::add_singles`]. One for each kind of ring, so that what is done with a buffer is in the ring's loop.
    #[inline]
    fn add_singles_of(&mut self, ring: &mut impl Singles, window: DmaWindow<'m>, most: usize) {
        let Self { header, is_said, arrivals, pieces } = self;
        let (header, is_said) = (*header, *is_said);
        let mut left = most.min(arrivals.remaining_capacity()).min(pieces.remaining_capacity());
        ring.take_singles(Direction::FromDriver, |token, Piece { guest, length }| {
            let length = length as usize;
            let slice = window.write_slice(DmaAddress(guest), length);
            let Some(slice) = slice.filter(|_| left > 0 && length >= header) else { return false };
            left -= 1;
            ask_for(slice, header, is_said);
            pieces.push(slice);
            arrivals.push(Arrival { token, end: place(pieces.len()), cut: false });
            true
        });
    }

    /// Takes the packet in a buffer.
    #[inline]
    pub(crate) fn add(
        &mut self,
        memory: &'m GuestMemory,
        cache: &mut TranslationCache,
        buffer: &Buffer,
    ) -> Result<(), RingError> {
        let Self { header, is_said, arrivals, pieces } = self;
        let begin = pieces.len();
        let mut length = 0;
        let mut cut = buffer.cut;
        for piece in &buffer.pieces {
            let fitted = memory.pieces(cache, piece.guest, piece.length, |slice| {
                ask_for(slice, *header, *is_said);
                length += slice.len();
                let fits = pieces.len() - begin < MAX_PIECES;
                fits.then(|| pieces.try_push(slice).ok()).flatten()
            })?;
            cut |= fitted.is_none();
        }
        if length < *header {
            pieces.truncate(begin);
            return Err(RingError::NoRoom);
        }
        arrivals.push(Arrival { token: buffer.token, end: place(pieces.len()), cut });
        Ok(())
    }

    /// Hands all packets to `each`, some at a time.
    #[inline]
    pub(crate) fn hand_over(&mut self, each: &mut impl FnMut(SentBurst<'_, 'm>)) {
        let Self { header, is_said, arrivals, pieces } = self;
        let (header, is_said) = (*header, *is_said);
        let (mut rest, mut begin) = (pieces.as_mut_slice(), 0);
        for arrivals in arrivals.chunks(MAX_BURST) {
            let end = arrivals.last().map_or(begin, |last| last.end);
            let split = std::mem::take(&mut rest).split_at_mut_checked(usize::from(end - begin));
            let Some((pieces, behind)) = split else { return };
            each(SentBurst { header, is_said, arrivals: arrivals.iter(), begin, pieces });
            (rest, begin) = (behind, end);
        }
    }

    /// By which all are given back, in their order.
    #[inline]
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.arrivals.iter().map(|arrival| arrival.token)
    }
}

/// Packets that a driver has sent one behind the other, [`MAX_BURST`] at most: what is in memory is read as they are taken
/// from here.
#[derive(Debug)]
pub struct SentBurst<'b, 'm> {
    header: usize,
    is_said: bool,
    arrivals: std::slice::Iter<'b, Arrival>,
    /// Where the next one's pieces begin, counted as their ends are.
    begin: u16,
    pieces: &'b mut [SharedSlice<'m>],
}

impl<'b, 'm: 'b> Iterator for SentBurst<'b, 'm> {
    type Item = Sent<'b, 'm>;

    #[inline(always)]
    fn next(&mut self) -> Option<Sent<'b, 'm>> {
        let Self { header, is_said, .. } = *self;
        let Arrival { end, cut, .. } = *self.arrivals.next()?;
        let count = usize::from(end - self.begin);
        let (pieces, behind) = std::mem::take(&mut self.pieces).split_at_mut_checked(count)?;
        (self.pieces, self.begin) = (behind, end);
        Some(Sent::of(Unread { pieces, header, is_said, cut }))
    }
}

/// A number of pieces.
#[inline(always)]
fn place(pieces: usize) -> u16 {
    const { assert!(PIECES <= u16::MAX as usize) };
    u16::try_from(pieces).unwrap_or(u16::MAX)
}

/// Asks for what is looked at first of a piece of a packet.
#[inline(always)]
fn ask_for(piece: SharedSlice<'_>, header: usize, is_said: bool) {
    let (said, behind) = piece.split(header);
    if is_said {
        said.prefetch_read();
    }
    behind.prefetch_read_ends(AHEAD);
}

/// A packet for a driver that lies in one piece of memory, of at least 16 bytes.
#[derive(Copy, Clone, Debug)]
pub struct WholePacket<'f> {
    /// Somebody vouches for its checksum. Nothing else is to be said of it.
    pub verified: bool,
    /// Its first 16 bytes, in memory order: what is delivered.
    pub head: [u64; 2],
    /// All of it.
    pub bytes: SharedSlice<'f>,
}

/// The driver to whom a burst goes.
#[derive(Copy, Clone)]
pub(crate) struct Receiver<'d> {
    pub(crate) memory: &'d GuestMemory,
    pub(crate) cache: TranslationCache,
    pub(crate) log: Option<&'d DirtyLog>,
    /// Bytes of its headers.
    pub(crate) header: usize,
}

/// A buffer into which a packet is copied.
struct Target<'m> {
    token: Token,
    verified: bool,
    /// Where it is in the guest's memory.
    guest: u64,
    /// Bytes of the header and the packet.
    length: u32,
    /// Where its header goes.
    header: SharedSlice<'m>,
}

impl Receiver<'_> {
    /// Copies packets, each into a buffer of one descriptor that is one piece of memory; returns how many. It ends before
    /// the first for which the next buffer is not of that kind, or broken, or not there.
    #[inline]
    pub(crate) fn put<'f>(
        self,
        ring: &mut Ring,
        packets: impl Iterator<Item = WholePacket<'f>>,
    ) -> usize {
        let Self { memory, cache, log, header } = self;
        let window = memory.window(cache);
        let mut targets = Targets::default();
        match ring {
            Ring::Split(ring) => targets.take(ring, window, header, packets),
            Ring::Packed(ring) => targets.take(ring, window, header, packets),
        }
        let Targets { targets, copies } = targets;
        copy_frames(&copies);
        let complete = HeaderWords::new(ChecksumState::Complete, header);
        let verified = HeaderWords::new(ChecksumState::Verified, header);
        for target in &targets {
            if target.verified { &verified } else { &complete }.write(target.header);
        }
        ring.put_all(targets.iter().map(|target| (target.token, target.length)));
        if let Some(log) = log {
            targets.iter().for_each(|target| log.note(target.guest, target.length.into()));
        }
        targets.len()
    }
}

/// The buffers that a burst goes into, and what goes where.
#[derive(Default)]
struct Targets<'t> {
    targets: ArrayVec<Target<'t>, MAX_BURST>,
    copies: ArrayVec<FrameCopy<'t>, MAX_BURST>,
}

impl<'t> Targets<'t> {
    /// Takes a buffer for each packet, and asks for it. One for each kind of ring, so that what is done with a buffer is in
    /// the ring's loop.
    #[inline]
    fn take<'f: 't>(
        &mut self,
        ring: &mut impl Singles,
        window: DmaWindow<'t>,
        header: usize,
        packets: impl Iterator<Item = WholePacket<'f>>,
    ) {
        let mut packets = packets.take(MAX_BURST);
        ring.take_singles(Direction::ToDriver, |token, Piece { guest, length }| {
            let Some(packet) = packets.next() else { return false };
            let need = header + packet.bytes.len();
            let fits = length as usize >= need && packet.bytes.len() >= HEAD;
            let bytes = window.write_slice(DmaAddress(guest), need).filter(|_| fits);
            let (Some(bytes), Ok(length)) = (bytes, u32::try_from(need)) else { return false };
            let (header, to) = bytes.split(header);
            to.prefetch_write_ends(AHEAD);
            self.targets.push(Target { token, verified: packet.verified, guest, length, header });
            self.copies.push(FrameCopy { head: packet.head, from: packet.bytes, to });
            true
        });
    }
}

/// A header of a packet in one buffer, as two words that overlap.
struct HeaderWords {
    first: u64,
    last: u64,
    /// Where the last one is.
    behind: usize,
}

impl HeaderWords {
    #[inline]
    fn new(checksum: ChecksumState, header: usize) -> Self {
        let bytes = emit_header(&PacketOffload { checksum, segmentation: None }, 1);
        let word = |at: usize| bytes.get(at..).and_then(|bytes| bytes.first_chunk()).copied();
        let word = |at: usize| u64::from_le_bytes(word(at).unwrap_or_default());
        let behind = header.saturating_sub(8);
        Self { first: word(0), last: word(behind), behind }
    }

    /// Writes it, unless it is there already: nearly all are the same, and what is not written stays where it is, in the
    /// caches of both sides.
    #[inline(always)]
    fn write(&self, to: SharedSlice<'_>) {
        for (at, word) in [(0, self.first), (self.behind, self.last)] {
            if to.load_bytes8(at) != Some(word) {
                to.store_bytes8(at, word);
            }
        }
    }
}
