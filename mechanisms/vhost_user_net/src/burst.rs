//! Packets that are moved together.
//!
//! What another CPU has written last takes as long to come here as a hundred packets' instructions. All memory of a burst
//! is asked for before the first byte of it is looked at, so that the waits are one.

use arrayvec::ArrayVec;
use linux_network::{ChecksumState, PacketOffload, VnetHeader};
use shared_memory::{DmaAddress, DmaWindow, FrameCopy, SharedSlice, TranslationCache, copy_frames};
use zerocopy::FromBytes;

use crate::{
    Features,
    memory::{DirtyLog, GuestMemory},
    packet::{MAX_PACKET, NET_HEADER, Packet, emit_header},
    ring::{Buffer, Bursts, Direction, MAX_PIECES, Piece, Ring, RingError, Token},
};

/// Packets of a burst, at most.
const BURST: usize = 32;
/// Packets of a driver's that are asked for before the first of them is looked at, at most.
const ARRIVALS: usize = 2 * BURST;
/// Pieces of a burst's packets, at most: nearly all packets have one or two.
const PIECES: usize = 4 * MAX_PIECES;
/// Cache lines of a packet that are asked for before it is its turn, beside its last.
const AHEAD: usize = 4;
/// Bytes of a packet that are read once, for decisions.
const HEAD: usize = 16;

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

    #[inline]
    fn add_singles_of(&mut self, ring: &mut impl Bursts, window: DmaWindow<'m>, most: usize) {
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
        for arrivals in arrivals.chunks(BURST) {
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

/// Packets that a driver has sent one behind the other, 32 at most: what is in memory is read as they are taken from here.
#[derive(Debug)]
pub struct SentBurst<'b, 'm> {
    header: usize,
    is_said: bool,
    arrivals: std::slice::Iter<'b, Arrival>,
    /// Where the next one's pieces begin, counted as their ends are.
    begin: u16,
    pieces: &'b mut [SharedSlice<'m>],
}

/// What a driver has sent.
#[derive(Debug)]
pub enum Sent<'b, 'm> {
    /// A packet that goes as it is.
    Plain(Packet<'b>),
    /// What has to be looked into.
    Other(Unread<'b, 'm>),
}

/// A packet in any number of pieces, with its header before it.
#[derive(Debug)]
pub struct Unread<'b, 'm> {
    pieces: &'b mut [SharedSlice<'m>],
    header: usize,
    is_said: bool,
    cut: bool,
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
        if let ([piece], false) = (&mut *pieces, cut) {
            let (_, rest) = piece.split(header);
            // The first two bytes are flags and the kind of segmentation.
            let plain = !is_said || piece.load_bytes8(0).is_some_and(|word| word & 0xFFFF == 0);
            let length = rest.len();
            if let (Some(head), true) = (rest.load_words(), plain && length <= MAX_PACKET) {
                *piece = rest;
                return Some(Sent::Plain(Packet { head, pieces, length }));
            }
        }
        Some(Sent::Other(Unread { pieces, header, is_said, cut }))
    }
}

impl<'b, 'm: 'b> Unread<'b, 'm> {
    /// Reads the header, if it may say something: the packet, and what is asked for it. `None` if that makes no sense.
    #[must_use]
    pub fn read(self) -> Option<(Packet<'b>, PacketOffload)> {
        let Self { pieces, header, is_said, cut } = self;
        let mut first = [0u8; NET_HEADER];
        let (mut left, mut length, mut used) = (header, 0, 0);
        for piece in pieces.iter_mut() {
            if left > 0 {
                let (part, rest) = piece.split(left);
                if is_said {
                    part.read_into(first.get_mut(header - left..).unwrap_or_default());
                }
                left -= part.len();
                used += usize::from(rest.is_empty());
                *piece = rest;
            }
            length += piece.len();
        }
        let (said, _) = VnetHeader::read_from_prefix(&first).ok()?;
        let offload = if is_said { said.parse(length).ok()? } else { PacketOffload::default() };
        let pieces = pieces.get(used..).unwrap_or_default();
        if cut || length > MAX_PACKET {
            return None;
        }
        let head = match pieces.first().and_then(|first| first.load_words()) {
            Some(head) => head,
            None => gather_head(pieces),
        };
        Some((Packet { head, pieces, length }, offload))
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

/// The first 16 bytes of a packet whose first piece is shorter.
#[cold]
fn gather_head(pieces: &[SharedSlice<'_>]) -> [u64; 2] {
    let mut head = [[0u8; 8]; 2];
    let mut rest = head.as_flattened_mut();
    for piece in pieces {
        let count = piece.read_into(rest);
        rest = rest.get_mut(count..).unwrap_or_default();
    }
    head.map(u64::from_le_bytes)
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
        match ring {
            Ring::Split(ring) => put_singles(ring, self, packets),
            Ring::Packed(ring) => put_singles(ring, self, packets),
        }
    }
}

#[inline]
fn put_singles<'f>(
    ring: &mut impl Bursts,
    receiver: Receiver<'_>,
    packets: impl Iterator<Item = WholePacket<'f>>,
) -> usize {
    let Receiver { memory, cache, log, header } = receiver;
    let mut targets = ArrayVec::<Target<'_>, BURST>::new();
    let mut copies = ArrayVec::<FrameCopy<'_>, BURST>::new();
    let mut logged = ArrayVec::<(u64, u64), BURST>::new();
    let window = memory.window(cache);
    let mut packets = packets.take(BURST);
    ring.take_singles(Direction::ToDriver, |token, Piece { guest, length }| {
        let Some(packet) = packets.next() else { return false };
        let need = header + packet.bytes.len();
        let fits = length as usize >= need && packet.bytes.len() >= HEAD;
        let bytes = window.write_slice(DmaAddress(guest), need).filter(|_| fits);
        let Some(bytes) = bytes else { return false };
        let (said, to) = bytes.split(header);
        to.prefetch_write_ends(AHEAD);
        targets.push(Target { token, verified: packet.verified, header: said });
        copies.push(FrameCopy { head: packet.head, from: packet.bytes, to });
        if log.is_some() {
            logged.push((guest, need as u64));
        }
        true
    });
    copy_frames(&copies);
    let complete = HeaderWords::new(ChecksumState::Complete, header);
    let verified = HeaderWords::new(ChecksumState::Verified, header);
    for target in &targets {
        if target.verified { &verified } else { &complete }.write(target.header);
    }
    ring.put_all(targets.iter().zip(&copies).map(|(target, copy)| {
        (target.token, u32::try_from(header + copy.to.len()).unwrap_or(u32::MAX))
    }));
    if let Some(log) = log {
        logged.iter().for_each(|(guest, length)| log.note(*guest, *length));
    }
    targets.len()
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
