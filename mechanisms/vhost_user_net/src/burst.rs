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
    packet::{MAX_PACKET, NET_HEADER, Packet, Sent, emit_header},
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
#[derive(Copy, Clone)]
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

    /// Reads headers and heads, and hands all packets to `each`.
    #[inline]
    pub(crate) fn hand_over(&mut self, each: &mut impl FnMut(&[Sent<'_>])) {
        let Self { header, is_said, arrivals, pieces } = self;
        let mut sent = ArrayVec::<Sent<'_>, BURST>::new();
        let (mut rest, mut begin) = (pieces.as_mut_slice(), 0);
        for arrival in arrivals.iter() {
            let count = usize::from(arrival.end - begin);
            let Some((pieces, behind)) = std::mem::take(&mut rest).split_at_mut_checked(count)
            else {
                return;
            };
            (rest, begin) = (behind, arrival.end);
            if sent.is_full() {
                each(&sent);
                sent.clear();
            }
            sent.push(parse(pieces, *header, *is_said, arrival.cut));
        }
        each(&sent);
    }

    /// By which all are given back, in their order.
    #[inline]
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.arrivals.iter().map(|arrival| arrival.token)
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

/// Takes a packet's header away from its pieces, which begin with it, and reads it if it may say something.
#[inline]
fn parse<'b, 'm: 'b>(
    pieces: &'b mut [SharedSlice<'m>],
    header: usize,
    is_said: bool,
    cut: bool,
) -> Sent<'b> {
    if let ([piece], false, false) = (&mut *pieces, is_said, cut) {
        let (_, rest) = piece.split(header);
        if let (Some(head), length @ ..=MAX_PACKET) = (rest.load_words(), rest.len()) {
            *piece = rest;
            return Sent::Packet(Packet {
                offload: PacketOffload::default(),
                head,
                pieces,
                length,
            });
        }
    }
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
    let said = match VnetHeader::read_from_prefix(&first) {
        Ok((header, _)) if is_said => header.parse(length).ok(),
        _ => Some(PacketOffload::default()),
    };
    let pieces = pieces.get(used..).unwrap_or_default();
    let Some(offload) = said.filter(|_| !cut && length <= MAX_PACKET) else {
        return Sent::Malformed;
    };
    let head = match pieces.first().and_then(|first| first.load_words()) {
        Some(head) => head,
        None => gather_head(pieces),
    };
    Sent::Packet(Packet { offload, head, pieces, length })
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

/// Where a packet goes.
struct Target<'m> {
    token: Token,
    guest: u64,
    bytes: SharedSlice<'m>,
    verified: bool,
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
    let window = memory.window(cache);
    let mut packets = packets.take(BURST);
    ring.take_singles(Direction::ToDriver, |token, Piece { guest, length }| {
        let Some(packet) = packets.next() else { return false };
        let need = header + packet.bytes.len();
        let fits = length as usize >= need && packet.bytes.len() >= HEAD;
        let bytes = window.write_slice(DmaAddress(guest), need).filter(|_| fits);
        let Some(bytes) = bytes else { return false };
        let (said, to) = bytes.split(header);
        said.prefetch_read();
        to.prefetch_write_ends(AHEAD);
        targets.push(Target { token, guest, bytes, verified: packet.verified });
        copies.push(FrameCopy { head: packet.head, from: packet.bytes, to });
        true
    });
    copy_frames(&copies);
    let headers = [ChecksumState::Complete, ChecksumState::Verified]
        .map(|checksum| HeaderWords::new(&PacketOffload { checksum, segmentation: None }, header));
    let [complete, verified] = &headers;
    for target in &targets {
        if target.verified { verified } else { complete }.write(target.bytes);
    }
    let length = |bytes: SharedSlice<'_>| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    ring.put_all(targets.iter().map(|target| (target.token, length(target.bytes))));
    if let Some(log) = log {
        targets.iter().for_each(|target| log.note(target.guest, target.bytes.len() as u64));
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
    fn new(offload: &PacketOffload, header: usize) -> Self {
        let bytes = emit_header(offload, 1);
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
