//! Packets in buffers, with their headers.

use arrayvec::ArrayVec;
use linux_network::{PacketOffload, VNET_HEADER_LENGTH, VnetHeader};
use shared_memory::{SharedSlice, TranslationCache};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    device::MAX_BUFFERS,
    memory::GuestMemory,
    ring::{Buffer, Piece, RingError},
};

/// Bytes of a packet of the driver's, at most: those of the largest IP packet and the longest headers before it.
pub(crate) const MAX_PACKET: usize = (1 << 16) + 256;
/// Pieces of one packet for the driver, at most.
pub(crate) const MAX_TARGETS: usize = 2 * MAX_BUFFERS;
/// Bytes of a packet that are read once, for decisions.
pub(crate) const HEAD: usize = 16;

// The header is in the machine's byte order where it is shared with TAP devices, and little endian on the wire.
const _: () = assert!(cfg!(target_endian = "little"));

/// The header before each packet (virtio 1.2 §5.1.6).
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NetHeader {
    packet: VnetHeader,
    /// Buffers in which the packet lies. A legacy driver without mergeable buffers has no such field.
    buffers: u16,
}

/// Bytes of it.
pub(crate) const NET_HEADER: usize = 12;
const _: () = assert!(size_of::<NetHeader>() == NET_HEADER);
const _: () = assert!(std::mem::offset_of!(NetHeader, buffers) == VNET_HEADER_LENGTH);

/// A packet that the driver sends.
#[derive(Copy, Clone, Debug)]
pub struct Packet<'m> {
    /// Its first 16 bytes, in memory order, read once; zeros behind its end.
    pub head: [u64; 2],
    /// All of its bytes.
    pub pieces: &'m [SharedSlice<'m>],
    /// Sum of the pieces, bytes.
    pub length: usize,
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
    pub(crate) pieces: &'b mut [SharedSlice<'m>],
    /// Bytes of its header.
    pub(crate) header: usize,
    /// The header may say something.
    pub(crate) is_said: bool,
    /// There were more pieces.
    pub(crate) cut: bool,
}

impl<'b, 'm: 'b> Sent<'b, 'm> {
    /// Takes the header away from a packet in one piece that asks for nothing.
    #[inline(always)]
    pub(crate) fn of(unread: Unread<'b, 'm>) -> Self {
        let Unread { pieces, header, is_said, cut } = unread;
        if let ([piece], false) = (&mut *pieces, cut) {
            let (_, rest) = piece.split(header);
            // The first two bytes are flags and the kind of segmentation.
            let plain = !is_said || piece.load_bytes8(0).is_some_and(|word| word & 0xFFFF == 0);
            let length = rest.len();
            if let (Some(head), true) = (rest.load_words(), plain && length <= MAX_PACKET) {
                *piece = rest;
                return Self::Plain(Packet { head, pieces, length });
            }
        }
        Self::Other(Unread { pieces, header, is_said, cut })
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

/// The header of a packet that lies in so many buffers.
pub(crate) fn emit_header(offload: &PacketOffload, buffers: u16) -> [u8; NET_HEADER] {
    zerocopy::transmute!(NetHeader { packet: VnetHeader::emit(offload), buffers })
}

/// Copies a packet, behind its header, into pieces of memory: `head` is its first 16 bytes, or all of them, and `pieces`
/// is all of it.
#[inline]
pub(crate) fn write_packet<'f>(
    targets: &[(Piece, SharedSlice<'_>)],
    header: &[u8],
    head: &[&[u8]],
    pieces: impl Iterator<Item = SharedSlice<'f>>,
) {
    let mut writer = Writer { targets, at: 0 };
    writer.write(header);
    let mut skip = 0;
    for part in head {
        writer.write(part);
    }
    for part in pieces {
        // What is in the head is not read again.
        let known = HEAD.saturating_sub(skip);
        let (before, rest) = part.split(known);
        skip += before.len();
        writer.copy(rest);
    }
}

/// Adds the pieces of a buffer to be written; returns how many bytes they are, or `None` if there are too many.
#[inline]
pub(crate) fn scatter<'m>(
    memory: &'m GuestMemory,
    cache: &mut TranslationCache,
    buffer: &Buffer,
    targets: &mut ArrayVec<(Piece, SharedSlice<'m>), MAX_TARGETS>,
) -> Result<Option<usize>, RingError> {
    let mut bytes = 0;
    for piece in &buffer.pieces {
        let mut guest = piece.guest;
        let fitted = memory.pieces(cache, piece.guest, piece.length, |slice| {
            let length = u32::try_from(slice.len()).ok()?;
            targets.try_push((Piece { guest, length }, slice)).ok()?;
            guest += u64::from(length);
            bytes += slice.len();
            Some(())
        })?;
        if fitted.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(bytes))
}

/// Writes one after the other into pieces of memory.
struct Writer<'w, 'm> {
    targets: &'w [(Piece, SharedSlice<'m>)],
    /// Bytes of the first of them that are written.
    at: usize,
}

impl<'m> Writer<'_, 'm> {
    /// What is to be written next; what was written of it is passed over by `self.at`.
    #[inline]
    fn room(&mut self) -> Option<SharedSlice<'m>> {
        while let Some(((_, slice), rest)) = self.targets.split_first() {
            let (_, room) = slice.split(self.at);
            if !room.is_empty() {
                return Some(room);
            }
            (self.targets, self.at) = (rest, 0);
        }
        None
    }

    #[inline]
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(room) = self.room()
        {
            let count = room.write_from(bytes);
            self.at += count;
            bytes = bytes.get(count..).unwrap_or_default();
        }
    }

    #[inline]
    fn copy(&mut self, mut from: SharedSlice<'_>) {
        while !from.is_empty()
            && let Some(room) = self.room()
        {
            let count = from.copy_to(room);
            self.at += count;
            (_, from) = from.split(count);
        }
    }
}
