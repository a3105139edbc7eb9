//! One burst of a TX queue: from descriptors to delivered frames.
//!
//! Plain packets (one buffer, no offload) take the fast path in stages over the whole burst, so that cache
//! misses of one frame overlap those of the others: read descriptors and prefetch the frames; read each
//! frame's first 16 bytes, decide, take the receiver's buffer and prefetch it; copy; publish. The 16 bytes
//! that were decided on are the ones delivered. Frames between the same two addresses are decided once and
//! delivered as a run. Everything else (chains, checksum, segmentation, tags) is handled one packet at a
//! time. Order is kept: descriptors of a receiver are taken in the order of its frames.

use arrayvec::ArrayVec;
use avf_protocol::packet_type::PacketType;
use nic_switch::{FrameKey, Ingress, MacKey, Verdict};
use shared_memory::{DmaMap, FrameCopy, SharedSlice, copy_frames};

use super::{
    HEAD_BYTES,
    deliver::{Body, Fabric, Frame, mark_dirty, receiver, refused},
    inspect,
    receive::Receiver,
    segment,
    transmit::{Next, Packet, Sender, TxQueue},
};

/// Frames in one stage.
const STAGE: usize = 32;
/// Bytes of a plain frame that are looked at where 16 do not suffice: all headers.
const INSPECTED: usize = 128;
/// Descriptors handled before other queues get their turn.
const BUDGET: u16 = 64;

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
        let (taken, cost) = if plain > 0 {
            (plain, plain)
        } else {
            // One packet by the general path; it may be longer than what is left of the budget.
            let (next, taken) = queue.next_packet(dma, waiting);
            let mut frames = 1;
            match next {
                Next::Nothing => break,
                Next::Packet(packet) => frames = source.general(&packet, fabric),
                Next::Malformed => source.stats.malformed += 1,
                Next::Fault => source.stats.dma_faults += 1,
            }
            (taken, taken.max(frames))
        };
        progress = true;
        waiting -= taken;
        // So the frames of a burst are bounded, too: what they leave to write back does not fill a queue's
        // list while frames of a stage still wait to be copied.
        budget = budget.saturating_sub(cost);
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
    let mut frames = ArrayVec::<SharedSlice<'m>, STAGE>::new();
    let taken = queue.take_plain(dma, limit, &mut frames);
    let mut copies = ArrayVec::<FrameCopy<'m>, STAGE>::new();
    let mut rest = frames.as_slice();
    while let Some((first, others)) = rest.split_first() {
        rest = match decide(*first, fabric, source) {
            Some(target) => run(target, rest, &mut copies, fabric, source),
            None => {
                // What goes elsewhere is delivered at once, and that may publish descriptors: the bytes of
                // those that were taken before must be in place.
                copy_frames(&copies);
                copies.clear();
                send_alone(*first, fabric, source);
                others
            }
        };
    }
    copy_frames(&copies);
    taken
}

/// Where a run of plain frames goes: one queue of one function, as they are.
#[derive(Copy, Clone)]
struct Target {
    /// The first 14 bytes of the frames, but for the ethertype: addresses.
    addresses: (u64, u64),
    slot: usize,
    queue: u16,
}

/// The addresses of a frame, out of its first 16 bytes.
#[inline(always)]
const fn addresses(head: [u64; 2]) -> (u64, u64) {
    let [first, second] = head;
    (first, second & 0xFFFF_FFFF)
}

/// Whether the frame has no 802.1Q tag.
#[inline(always)]
const fn is_untagged(head: [u64; 2]) -> bool {
    let [_, second] = head;
    (second >> 32) & 0xFFFF != (offload::TPID_8021Q.swap_bytes() as u64)
}

#[inline(always)]
fn head_of(frame: SharedSlice<'_>) -> Option<[u64; 2]> {
    frame.load_words()
}

/// Decides where a plain frame goes; `None` if that is anything but one queue of one function, untouched.
#[inline]
fn decide(frame: SharedSlice<'_>, fabric: &mut Fabric<'_>, source: &Source<'_>) -> Option<Target> {
    let vport = source.vport.filter(|_| frame.len() <= source.max_frame)?;
    let head = head_of(frame)?;
    if !is_untagged(head) {
        return None;
    }
    let (first, second) = addresses(head);
    let key = FrameKey {
        destination: MacKey::from_low_bits(first),
        source: MacKey::from_low_bits(first >> 48 | second << 16),
        tci: None,
    };
    if key.destination.is_group() {
        return None;
    }
    match fabric.switch.forward(Ingress::VPort(vport), &key, fabric.list) {
        Verdict::Unicast(egress) if egress.tci.is_none() => {
            let slot = fabric.slots.get(egress.vport?.index()).copied().flatten()?;
            let queue = fabric.receivers.get(slot)?.as_ref()?.steering.unhashed()?;
            Some(Target { addresses: (first, second), slot, queue })
        }
        _ => None,
    }
}

/// Reserves buffers for the frames at the front of `frames` that go to the same place; returns the rest.
#[inline]
fn run<'m, 'f>(
    target: Target,
    frames: &'f [SharedSlice<'m>],
    copies: &mut ArrayVec<FrameCopy<'m>, STAGE>,
    fabric: &mut Fabric<'m>,
    source: &mut Source<'_>,
) -> &'f [SharedSlice<'m>] {
    let mut left = frames;
    let number = usize::from(target.queue);
    let Some((receiver, map)) = receiver(fabric.receivers, fabric.maps, target.slot) else {
        return &[];
    };
    let Receiver { queues, doorbells, stats, dirty, .. } = receiver;
    let Some(Some(queue)) = queues.get_mut(number) else {
        // Its queues have stopped since it was last told to receive.
        stats.no_buffer += 1;
        source.stats.unicast += 1;
        return left.get(1..).unwrap_or(&[]);
    };
    mark_dirty(dirty, target.queue, fabric.dirty, target.slot);
    let mut reserve = queue.reserve_run(left.len(), map, doorbells);
    // What is longer goes by the general path.
    let longest = reserve.longest().min(source.max_frame);
    let (mut sent, mut sent_bytes) = (0u64, 0u64);
    let (mut delivered, mut delivered_bytes) = (0u64, 0u64);
    while let Some((frame, others)) = left.split_first() {
        let length = frame.len();
        if length > longest {
            break;
        }
        let words = frame.load_words::<6>();
        let head = match words {
            Some([first, second, ..]) => [first, second],
            None => match head_of(*frame) {
                Some(head) => head,
                None => break,
            },
        };
        if addresses(head) != target.addresses || !is_untagged(head) {
            break;
        }
        left = others;
        sent += 1;
        sent_bytes += length as u64;
        let common = words.and_then(|words| inspect::inspect_common(&words, length));
        let (packet_type, status) = common.unwrap_or_else(|| inspect_alone(*frame));
        match reserve.take(length, packet_type, status) {
            Ok(to) => {
                to.prefetch_write();
                delivered += 1;
                delivered_bytes += length as u64;
                // The list holds a whole stage.
                let _ = copies.try_push(FrameCopy { head, from: *frame, to });
            }
            Err(reason) => refused(stats, reason),
        }
    }
    drop(reserve);
    source.stats.unicast += sent;
    source.stats.bytes += sent_bytes;
    stats.unicast += delivered;
    stats.bytes += delivered_bytes;
    if sent == 0 {
        // Too long for one buffer: by the general path.
        if let Some((frame, others)) = left.split_first() {
            copy_frames(copies);
            copies.clear();
            send_alone(*frame, fabric, source);
            left = others;
        }
    }
    left
}

/// Classifies a plain frame that is not one of the common ones.
#[inline(never)]
fn inspect_alone(frame: SharedSlice<'_>) -> (PacketType, u64) {
    let mut head = [0u8; INSPECTED];
    let length = frame.read_into(&mut head);
    let head = head.get(..length).unwrap_or(&[]);
    let pieces = [frame.split(length).1];
    let body = Body::Guest { pieces: &pieces, offset: 0, length: frame.len() - length };
    let inspection = inspect::inspect(head, body, frame.len());
    (inspection.packet_type, inspection.status)
}

/// Sends one plain frame by the general path.
#[inline(never)]
fn send_alone(frame: SharedSlice<'_>, fabric: &mut Fabric<'_>, source: &mut Source<'_>) {
    let mut head = [0u8; INSPECTED];
    let length = frame.read_into(&mut head);
    let head = head.get(..length).unwrap_or(&[]);
    let Some((key, tag_in_head)) = frame_key(head, None) else {
        source.stats.malformed += 1;
        return;
    };
    let Some(vport) = source.vport.filter(|_| frame.len() <= source.max_frame) else {
        source.refuse_whole();
        return;
    };
    let pieces = [frame.split(length).1];
    let body = Body::Guest { pieces: &pieces, offset: 0, length: frame.len() - length };
    let inspection = inspect::inspect(head, body, frame.len());
    source.send(vport, &Frame { head, body, key, tag_in_head, inspection }, fabric);
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

    /// Handles a packet that is not plain; returns how many frames it became.
    fn general(&mut self, packet: &Packet<'_>, fabric: &mut Fabric<'_>) -> u16 {
        let Some(vport) = self.vport else {
            self.stats.no_receiver += 1;
            return 0;
        };
        let mut head = [0u8; HEAD_BYTES];
        let length = gather(&packet.pieces, &mut head);
        let Some(head) = head.get_mut(..length) else { return 0 };
        let Some((key, tag_in_head)) = frame_key(head, packet.tci) else {
            self.stats.malformed += 1;
            return 0;
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
            if segmented.is_none() {
                self.stats.malformed += 1;
            }
            return segmented.unwrap_or(0);
        }
        let finished = segment::finish_checksums(packet, head, body);
        let (Ok(inspection), true) = (finished, packet.length <= self.max_frame) else {
            self.stats.malformed += 1;
            return 0;
        };
        let frame = Frame { head, body, key, tag_in_head, inspection };
        self.send(vport, &frame, fabric);
        1
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

/// Addresses and tag of a frame; `None` if it is shorter than its Ethernet header. The tag to insert, if
/// there is one, counts; else the 802.1Q tag in the frame, and the second result is then true.
#[inline(always)]
pub(crate) fn frame_key(head: &[u8], insert: Option<u16>) -> Option<(FrameKey, bool)> {
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = head.first_chunk::<14>()?;
    let destination = MacKey::from_octets([d0, d1, d2, d3, d4, d5]);
    let source = MacKey::from_octets([s0, s1, s2, s3, s4, s5]);
    let in_head = match (insert, u16::from_be_bytes([t0, t1])) {
        (None, offload::TPID_8021Q) => {
            let &[_, _, c0, c1, _, _] = head.get(12..)?.first_chunk::<6>()?;
            Some(u16::from_be_bytes([c0, c1]))
        }
        _ => None,
    };
    Some((FrameKey { destination, source, tci: insert.or(in_head) }, in_head.is_some()))
}
