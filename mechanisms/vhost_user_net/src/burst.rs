//! Packets that are moved together.
//!
//! What another CPU has written last takes as long to come here as a hundred packets' instructions. All memory of a burst
//! is asked for before the first byte of it is looked at, so that the waits are one.

use arrayvec::ArrayVec;
use linux_network::{PacketOffload, VnetHeader};
use shared_memory::{FrameCopy, SharedSlice, TranslationCache, copy_frames};
use zerocopy::FromBytes;

use crate::{
    Features,
    memory::{DirtyLog, GuestMemory},
    packet::{MAX_PACKET, NET_HEADER, Packet, Sent, emit_header},
    ring::{Buffer, Direction, MAX_PIECES, Ring, RingError, Token},
};

/// Packets of a burst, at most.
pub(crate) const BURST: usize = 32;
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
    end: usize,
    /// It has more pieces.
    cut: bool,
}

/// What is to be said of a packet.
#[derive(Copy, Clone)]
struct Parsed {
    /// `None` if its header makes no sense.
    offload: Option<PacketOffload>,
    head: [u64; 2],
    length: usize,
    /// Pieces in which there was only its header.
    used: usize,
}

/// Packets that a driver sends.
pub(crate) struct Arriving<'m> {
    header: usize,
    /// It may say something.
    is_said: bool,
    arrivals: ArrayVec<Arrival, BURST>,
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
        self.arrivals.push(Arrival { token, end: self.pieces.len(), cut: true });
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
                let (said, behind) = slice.split(*header);
                if *is_said {
                    said.prefetch_read();
                }
                behind.prefetch_read_ends(AHEAD);
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
        arrivals.push(Arrival { token: buffer.token, end: pieces.len(), cut });
        Ok(())
    }

    /// Reads headers and heads, and hands all packets to `each`.
    #[inline]
    pub(crate) fn hand_over(&mut self, each: &mut impl FnMut(&[Sent<'_>])) {
        let mut parsed = ArrayVec::<Parsed, BURST>::new();
        let mut begin = 0;
        for arrival in &self.arrivals {
            if let Some(pieces) = self.pieces.get_mut(begin..arrival.end) {
                parsed.push(parse(pieces, self.header, self.is_said, arrival.cut));
            }
            begin = arrival.end;
        }
        let mut sent = ArrayVec::<Sent<'_>, BURST>::new();
        let mut begin = 0;
        for (arrival, of) in self.arrivals.iter().zip(&parsed) {
            let Parsed { offload, head, length, used } = *of;
            let pieces = self.pieces.get(begin + used..arrival.end).unwrap_or_default();
            begin = arrival.end;
            sent.push(match offload {
                Some(offload) => Sent::Packet(Packet { offload, head, pieces, length }),
                None => Sent::Malformed,
            });
        }
        each(&sent);
    }

    /// By which all are given back, in their order.
    #[inline]
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.arrivals.iter().map(|arrival| arrival.token)
    }
}

/// Takes a packet's header away from its pieces, which begin with it, and reads it if it may say something.
#[inline]
fn parse(pieces: &mut [SharedSlice<'_>], header: usize, is_said: bool, cut: bool) -> Parsed {
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
    let offload = said.filter(|_| !cut && length <= MAX_PACKET);
    let head = match pieces.get(used).and_then(|first| first.load_words()) {
        Some(head) => head,
        None => gather_head(pieces),
    };
    Parsed { offload, head, length, used }
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
    /// What its header says.
    pub offload: PacketOffload,
    /// Its first 16 bytes, in memory order: what is delivered.
    pub head: [u64; 2],
    /// All of it.
    pub bytes: SharedSlice<'f>,
}

/// A driver's receive queue, as a burst is put into it.
pub(crate) struct Receiving<'d> {
    pub(crate) ring: &'d mut Ring,
    pub(crate) memory: &'d GuestMemory,
    pub(crate) cache: &'d mut TranslationCache,
    pub(crate) buffer: &'d mut Buffer,
    pub(crate) log: Option<&'d DirtyLog>,
    /// Bytes of its headers.
    pub(crate) header: usize,
}

/// Where a packet goes.
struct Target<'m> {
    token: Token,
    guest: u64,
    bytes: SharedSlice<'m>,
    offload: PacketOffload,
}

impl Receiving<'_> {
    /// Copies packets, each into one buffer that is one piece of memory; returns how many. It ends before the first for
    /// which the next buffer is not of that kind, or broken, or not there.
    #[inline]
    pub(crate) fn put<'f>(self, packets: impl Iterator<Item = WholePacket<'f>>) -> usize {
        let Self { ring, memory, cache, buffer, log, header } = self;
        let mut targets = ArrayVec::<Target<'_>, BURST>::new();
        let mut copies = ArrayVec::<FrameCopy<'_>, BURST>::new();
        for packet in packets.take(BURST) {
            let position = ring.position();
            let need = header + packet.bytes.len();
            let taken = ring.take(memory, cache, Direction::ToDriver, buffer);
            let place = match (taken, buffer.pieces.as_slice()) {
                (Ok(true), [piece]) if piece.length as usize >= need => {
                    memory.slice(cache, piece.guest, need).ok().map(|bytes| (piece.guest, bytes))
                }
                _ => None,
            };
            let Some((guest, bytes)) = place.filter(|_| packet.bytes.len() >= HEAD) else {
                ring.rewind(position);
                break;
            };
            let (said, to) = bytes.split(header);
            said.prefetch_read();
            to.prefetch_write_ends(AHEAD);
            targets.push(Target { token: buffer.token, guest, bytes, offload: packet.offload });
            copies.push(FrameCopy { head: packet.head, from: packet.bytes, to });
        }
        for target in &targets {
            let (said, _) = target.bytes.split(header);
            write_header(said, &emit_header(&target.offload, 1));
        }
        copy_frames(&copies);
        for Target { token, guest, bytes, .. } in &targets {
            ring.put(*token, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            if let Some(log) = log {
                log.note(*guest, bytes.len() as u64);
            }
        }
        targets.len()
    }
}

/// Writes a header, unless it is there already: nearly all are the same, and what is not written stays where it is, in
/// the caches of both sides.
#[inline]
fn write_header(to: SharedSlice<'_>, header: &[u8; NET_HEADER]) {
    // Two overlapping words are all of it, of 10 bytes or 12.
    let behind = to.len().saturating_sub(8);
    let word = |at: usize| header.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
    for at in [0, behind] {
        let Some(word) = word(at) else { continue };
        if to.load_bytes8(at) != Some(word) {
            to.store_bytes8(at, word);
        }
    }
}
