//! Writing frames and control messages into suballocations of the receive buffer.

use netvsp_protocol::{oid::PacketFilter, packet::RECEIVE_DATA_OFFSET};
use shared_memory::SharedSlice;

use crate::QueueMemory;

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
