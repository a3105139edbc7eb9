//! Writing frames and control messages into suballocations of the receive buffer.

use netvsp_protocol::{oid::PacketFilter, packet::RECEIVE_DATA_OFFSET};
use shared_memory::{FrameCopy, SharedSlice, copy_frames};

use crate::{QueueMemory, ReceiveBuffer};

/// Whether a packet filter takes a frame with this beginning. Multicast lists are left to the guest, as hosts do.
#[inline(always)]
pub(super) fn wanted(filter: PacketFilter, head: [u64; 2]) -> bool {
    const BROADCAST: u64 = 0xFFFF_FFFF_FFFF;
    let [first, _] = head;
    let any = if first & 1 == 0 {
        PacketFilter::DIRECTED
    } else if first & BROADCAST == BROADCAST {
        PacketFilter::BROADCAST
    } else {
        PacketFilter::MULTICAST.union(PacketFilter::ALL_MULTICAST)
    };
    filter.intersects(any.union(PacketFilter::PROMISCUOUS))
}

/// As much of a suballocation, from its beginning, as lies together, `length` bytes at most.
#[inline(always)]
fn beginning(receive: &ReceiveBuffer, slot: u32, length: usize) -> Option<SharedSlice<'_>> {
    let at = receive.section.sub_allocation_size.checked_mul(slot)?;
    receive.buffer.first_slice(at as usize, length)
}

/// Hints that a frame will be written to a suballocation soon.
#[inline(always)]
pub(super) fn prefetch(receive: &ReceiveBuffer, slot: u32) {
    if let Some(slice) = beginning(receive, slot, RECEIVE_DATA_OFFSET as usize + 1) {
        slice.prefetch_write();
        slice.split(RECEIVE_DATA_OFFSET as usize).1.prefetch_write();
    }
}

/// Writes a message's header, and its frame, which begins with `head`. False, and perhaps part of it written, if not
/// both lie in one piece, or the frame is shorter than its head.
#[inline(always)]
pub(super) fn write_whole(
    receive: &ReceiveBuffer,
    slot: u32,
    header: &[u8],
    head: [u64; 2],
    frame: SharedSlice<'_>,
) -> bool {
    let offset = RECEIVE_DATA_OFFSET as usize;
    let length = offset + frame.len();
    let Some(target) = beginning(receive, slot, length) else { return false };
    if target.len() < length || frame.len() < size_of_val(&head) {
        return false;
    }
    let (start, to) = target.split(offset);
    start.write_from(header);
    copy_frames(&[FrameCopy { head, from: frame, to }]);
    true
}

/// Bytes to be written: ours, or shared ones.
pub(super) enum Source<'a> {
    Bytes(&'a [u8]),
    Shared(SharedSlice<'a>),
}

/// Writes the sources one after the other at `offset` of a suballocation; false if they do not fit in the buffer.
#[inline(always)]
pub(super) fn write_at(
    memory: &QueueMemory,
    slot: u32,
    offset: u32,
    sources: &[Source<'_>],
) -> bool {
    let lengths = sources.iter().map(|source| match source {
        Source::Bytes(bytes) => bytes.len(),
        Source::Shared(slice) => slice.len(),
    });
    let Ok(length) = u32::try_from(lengths.sum::<usize>()) else { return false };
    let Some(mut targets) = memory.suballocation(slot, offset, length) else { return false };
    let mut target = targets.next().unwrap_or(SharedSlice::empty());
    for source in sources {
        match *source {
            Source::Bytes(mut bytes) => {
                while !bytes.is_empty() {
                    let done = target.write_from(bytes);
                    bytes = bytes.get(done..).unwrap_or_default();
                    target = target.split(done).1;
                    if target.is_empty() && !bytes.is_empty() {
                        let Some(next) = targets.next() else { return false };
                        target = next;
                    }
                }
            }
            Source::Shared(mut slice) => {
                while !slice.is_empty() {
                    if target.is_empty() {
                        let Some(next) = targets.next() else { return false };
                        target = next;
                    }
                    let done = slice.copy_to(target);
                    slice = slice.split(done).1;
                    target = target.split(done).1;
                }
            }
        }
    }
    true
}

#[cold]
pub(super) fn write_pieces(
    memory: &QueueMemory,
    slot: u32,
    head: [u64; 2],
    pieces: &[SharedSlice<'_>],
) -> bool {
    let mut first = [0; 16];
    let (low, high) = first.split_at_mut(8);
    low.copy_from_slice(&head[0].to_le_bytes());
    high.copy_from_slice(&head[1].to_le_bytes());
    let total: usize = pieces.iter().map(SharedSlice::len).sum();
    let mut at = total.min(16);
    let first = first.get(..at).unwrap_or_default();
    if !write_at(memory, slot, RECEIVE_DATA_OFFSET, &[Source::Bytes(first)]) {
        return false;
    }
    let mut skip = at;
    for piece in pieces {
        let (_, rest) = piece.split(skip);
        skip -= skip.min(piece.len());
        let Ok(offset) = u32::try_from(at) else { return false };
        if !rest.is_empty()
            && !write_at(memory, slot, RECEIVE_DATA_OFFSET + offset, &[Source::Shared(rest)])
        {
            return false;
        }
        at += rest.len();
    }
    true
}
