//! One burst of a TX queue: from descriptors to delivered frames.
//!
//! Plain packets (one buffer, no offload) take the fast path in stages over the whole burst, so that cache
//! misses of one frame overlap those of the others: read descriptors and prefetch the frames; copy each
//! frame's first bytes, decide, take the receiver's buffer and prefetch it; copy; publish. Everything else
//! (chains, checksum, segmentation, tags to insert) is handled one packet at a time. Order is kept: a
//! packet that is not plain ends the stage before it.

use arrayvec::ArrayVec;
use avf_protocol::{packet_type::PacketType, transmit::DescriptorType};
use nic_switch::{FrameKey, Ingress, MacKey, Verdict};
use shared_memory::{DmaAddress, DmaMap, SharedSlice};

use super::{
    HEAD_BYTES,
    deliver::{Body, Fabric, Frame, cast_bits, fits_one_buffer, mark_dirty, receiver, refused},
    inspect,
    receive::{ReceiveMeta, Receiver},
    segment,
    transmit::{Next, Packet, Sender, TxQueue},
};

/// Frames in one stage.
const STAGE: usize = 32;
/// Bytes of a plain frame that are read once, checked, and delivered from the local copy.
const STAGED_HEAD: usize = 128;
/// Descriptors handled before other queues get their turn.
const BUDGET: u16 = 64;

/// A plain frame between two stages.
struct Staged<'m> {
    source: SharedSlice<'m>,
    /// The buffer it goes to, once that is known; a frame that went elsewhere, or nowhere, has none.
    target: Option<SharedSlice<'m>>,
    head: [u8; STAGED_HEAD],
}

/// Handles what is waiting in one TX queue, up to the budget. Returns whether there was anything.
pub(crate) fn poll_queue<'m>(
    sender: &mut Sender,
    slot: usize,
    number: usize,
    dma: &'m DmaMap,
    fabric: &mut Fabric<'m>,
) -> bool {
    let Sender { queues, doorbells, interrupts, vport, max_frame, stats } = sender;
    let Some(Some(queue)) = queues.get_mut(number) else { return false };
    let mut waiting = queue.waiting(doorbells);
    if waiting == 0 {
        return false;
    }
    let mut source = Source { vport: *vport, max_frame: *max_frame, stats };
    let mut budget = BUDGET;
    let mut progress = false;
    while budget > 0 && waiting > 0 {
        let plain = stage(queue, dma, waiting.min(budget), fabric, &mut source);
        let taken = if plain > 0 {
            plain
        } else {
            // One packet by the general path; it may be longer than what is left of the budget.
            let (next, taken) = queue.next_packet(dma, waiting);
            match next {
                Next::Nothing => break,
                Next::Packet(packet) => source.general(&packet, fabric),
                Next::Malformed => source.stats.malformed += 1,
                Next::Fault => source.stats.dma_faults += 1,
            }
            taken
        };
        progress = true;
        waiting -= taken;
        budget = budget.saturating_sub(taken);
    }
    fabric.finish();
    fabric.due.note(slot, queue.flush(interrupts, fabric.now_ns));
    progress
}

/// Where a burst comes from, and its counters.
struct Source<'s> {
    vport: Option<ndis_protocol::VPortId>,
    max_frame: usize,
    stats: &'s mut super::stats::TransmitStats,
}

/// Takes plain packets from the head of the queue through all stages; returns how many descriptors.
fn stage<'m>(
    queue: &mut TxQueue,
    dma: &'m DmaMap,
    limit: u16,
    fabric: &mut Fabric<'m>,
    source: &mut Source<'_>,
) -> u16 {
    let mut staged = ArrayVec::<Staged<'m>, STAGE>::new();
    // Four descriptors to a cache line.
    (0..limit.min(32)).step_by(4).for_each(|ahead| queue.prefetch(ahead));
    let mut taken = 0;
    while taken < limit && !staged.is_full() {
        let descriptor = queue.peek(taken);
        let data = descriptor.data();
        let plain = descriptor.kind() == DescriptorType::Data
            && data.end_of_packet()
            && !data.wants_offload()
            && !data.is_dummy()
            && data.length() > 0;
        if !plain {
            break;
        }
        if data.report_status() {
            queue.give_back(taken, descriptor);
        }
        taken += 1;
        let length = usize::from(data.length());
        match dma.read_slice(&mut queue.cache, DmaAddress(data.address()), length) {
            Ok(slice) => {
                slice.prefetch_read();
                staged.push(Staged { source: slice, target: None, head: [0; STAGED_HEAD] });
            }
            Err(_) => source.stats.dma_faults += 1,
        }
    }
    if taken == 0 {
        return 0;
    }
    queue.consume(taken);
    for frame in &mut staged {
        frame.source.read_into(&mut frame.head);
        frame.target = decide(frame.source, &frame.head, fabric, source);
    }
    for frame in &staged {
        if let Some(target) = frame.target {
            let (target_head, target_rest) = target.split(STAGED_HEAD);
            target_head.write_from(&frame.head);
            if !target_rest.is_empty() {
                let (_, rest) = frame.source.split(STAGED_HEAD);
                rest.copy_to(target_rest);
            }
        }
    }
    taken
}

/// Decides one plain frame. Returns the buffer to copy it to, if it is one VPort's; what goes elsewhere has
/// been delivered on return.
#[inline(always)]
fn decide<'m>(
    bytes: SharedSlice<'m>,
    head: &[u8; STAGED_HEAD],
    fabric: &mut Fabric<'m>,
    source: &mut Source<'_>,
) -> Option<SharedSlice<'m>> {
    let length = bytes.len();
    let head = head.get(..length.min(STAGED_HEAD))?;
    let Some((key, tag_in_head)) = frame_key(head, None) else {
        source.stats.malformed += 1;
        return None;
    };
    let Some(vport) = source.vport.filter(|_| length <= source.max_frame) else {
        source.refuse_whole();
        return None;
    };
    let verdict = fabric.switch.forward(Ingress::VPort(vport), &key, fabric.list);
    let rest = bytes.split(STAGED_HEAD).1;
    if let Verdict::Unicast(egress) = verdict
        && let Some(target) = egress.vport
        && egress.tci == key.tci
    {
        let slot = fabric.slots.get(target.index()).copied().flatten()?;
        let (to, map) = receiver(fabric.receivers, fabric.maps, slot)?;
        if !(to.strip_vlan && key.tci.is_some()) {
            let common = inspect::inspect_common(head, length);
            let (number, hash, packet_type, status) = match (to.steering.unhashed(), common) {
                (Some(number), Some((packet_type, status))) => (number, None, packet_type, status),
                _ => inspect_and_steer(to, head, rest, length),
            };
            let Some(Some(queue)) = to.queues.get_mut(usize::from(number)) else {
                to.stats.no_buffer += 1;
                source.stats.sent(key.destination, length);
                return None;
            };
            if fits_one_buffer(queue, length) {
                source.stats.sent(key.destination, length);
                let meta = ReceiveMeta {
                    packet_type,
                    status: status | cast_bits(key.destination),
                    tci: None,
                    hash,
                };
                mark_dirty(&mut to.dirty, number, fabric.dirty, slot);
                return match queue.reserve_one(length, &meta, map, &to.doorbells) {
                    Ok(buffer) => {
                        buffer.prefetch_write();
                        to.stats.delivered(key.destination, length);
                        Some(buffer)
                    }
                    Err(reason) => {
                        refused(&mut to.stats, reason);
                        None
                    }
                };
            }
        }
    }
    // Everything but one plain copy to one VPort.
    let pieces = [rest];
    let body = Body::Guest { pieces: &pieces, offset: 0, length: rest.len() };
    let inspection = inspect::inspect(head, body, length);
    let frame = Frame { head, body, key, tag_in_head, inspection };
    source.send(vport, &frame, fabric);
    None
}

/// The receiver's queue for a frame, its hash, packet type and status.
#[inline(never)]
fn inspect_and_steer(
    to: &Receiver,
    head: &[u8],
    rest: SharedSlice<'_>,
    length: usize,
) -> (u16, Option<u32>, PacketType, u64) {
    let pieces = [rest];
    let body = Body::Guest { pieces: &pieces, offset: 0, length: rest.len() };
    let inspection = inspect::inspect(head, body, length);
    let (number, hash) = to.steering.steer(&inspection, head);
    (number, hash, inspection.packet_type, inspection.status)
}

impl Source<'_> {
    /// Counts a frame that may not enter the switch: it is too long, or the function has no VPort.
    #[cold]
    fn refuse_whole(&mut self) {
        if self.vport.is_some() {
            self.stats.malformed += 1;
        } else {
            self.stats.no_receiver += 1;
        }
    }

    /// Sends one frame through the switch and counts it.
    fn send(&mut self, vport: ndis_protocol::VPortId, frame: &Frame<'_>, fabric: &mut Fabric<'_>) {
        match fabric.forward(Ingress::VPort(vport), frame) {
            Ok(()) => self.stats.sent(frame.key.destination, frame.len()),
            Err(reason) => self.stats.dropped(reason),
        }
    }

    /// Handles a packet that is not plain.
    fn general(&mut self, packet: &Packet<'_>, fabric: &mut Fabric<'_>) {
        let Some(vport) = self.vport else {
            self.stats.no_receiver += 1;
            return;
        };
        let mut head = [0u8; HEAD_BYTES];
        let length = gather(&packet.pieces, &mut head);
        let Some(head) = head.get_mut(..length) else { return };
        let Some((key, tag_in_head)) = frame_key(head, packet.tci) else {
            self.stats.malformed += 1;
            return;
        };
        let body =
            Body::Guest { pieces: &packet.pieces, offset: length, length: packet.length - length };
        if let Some((_, mss)) = packet.segmentation {
            let segmented = segment::segment(packet, head, mss, |head, body, inspection| {
                if head.len() + body.len() > self.max_frame {
                    self.stats.malformed += 1;
                    return;
                }
                let frame = Frame { head, body, key, tag_in_head, inspection };
                self.send(vport, &frame, fabric);
            });
            if segmented.is_err() {
                self.stats.malformed += 1;
            }
            return;
        }
        let finished = segment::finish_checksums(packet, head, body);
        let (Ok(inspection), true) = (finished, packet.length <= self.max_frame) else {
            self.stats.malformed += 1;
            return;
        };
        let frame = Frame { head, body, key, tag_in_head, inspection };
        self.send(vport, &frame, fabric);
    }
}

/// Copies the first bytes of a packet; returns how many.
fn gather(pieces: &[SharedSlice<'_>], head: &mut [u8]) -> usize {
    let mut length = 0;
    for piece in pieces {
        let Some(room) = head.get_mut(length..).filter(|room| !room.is_empty()) else { break };
        length += piece.read_into(room);
    }
    length
}

/// Addresses and tag of a frame; `None` if it is shorter than an Ethernet header. The tag to insert, if
/// there is one, counts; else the 802.1Q tag in the frame, and the second result is then true.
#[inline(always)]
pub(crate) fn frame_key(head: &[u8], insert: Option<u16>) -> Option<(FrameKey, bool)> {
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = head.first_chunk::<14>()?;
    let destination = MacKey::from_octets([d0, d1, d2, d3, d4, d5]);
    let source = MacKey::from_octets([s0, s1, s2, s3, s4, s5]);
    let in_head = match (insert, u16::from_be_bytes([t0, t1])) {
        (None, offload::TPID_8021Q) => {
            let &[_, _, c0, c1] = head.get(12..)?.first_chunk::<4>()?;
            Some(u16::from_be_bytes([c0, c1]))
        }
        _ => None,
    };
    Some((FrameKey { destination, source, tci: insert.or(in_head) }, in_head.is_some()))
}
