//! Delivery: puts a frame where the switch said, one copy for each destination.

use arrayvec::ArrayVec;
use avf_protocol::receive::legacy;
use ndis_protocol::VPortId;
use nic_switch::{DropReason, Egress, EgressList, FrameKey, Ingress, MacKey, NicSwitch, Verdict};
use shared_memory::{DmaMap, SharedSlice};

use super::{
    HEAD_BYTES, MAX_RX_BUFFERS,
    due::DueInterrupts,
    inspect::Inspection,
    receive::{NoRoom, ReceiveMeta, Receiver},
    stats::ReceiveStats,
    uplink_port::UplinkPort,
};

/// Where the bytes behind the head of a frame lie.
#[derive(Copy, Clone)]
pub(crate) enum Body<'f> {
    /// In a sender's memory: `length` bytes from `offset` of the pieces taken together.
    Guest { pieces: &'f [SharedSlice<'f>], offset: usize, length: usize },
    /// In our memory.
    Local(&'f [u8]),
}

impl<'f> Body<'f> {
    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Guest { length, .. } => *length,
            Self::Local(bytes) => bytes.len(),
        }
    }

    /// The part of a guest body that is one piece after the other.
    fn guest_parts(&self) -> impl Iterator<Item = SharedSlice<'f>> {
        let (pieces, mut skip, mut left) = match *self {
            Self::Guest { pieces, offset, length } => (pieces, offset, length),
            Self::Local(_) => (&[] as &[SharedSlice<'f>], 0, 0),
        };
        pieces.iter().filter_map(move |piece| {
            let (_, rest) = piece.split(skip);
            skip -= skip.min(piece.len());
            let (part, _) = rest.split(left);
            left -= part.len();
            (!part.is_empty()).then_some(part)
        })
    }

    /// Shows the bytes in order, in local copies.
    pub(crate) fn for_each_chunk(&self, mut each: impl FnMut(&[u8])) {
        match self {
            Self::Guest { .. } => {
                self.guest_parts().for_each(|part| part.for_each_chunk(&mut each))
            }
            Self::Local(bytes) => each(bytes),
        }
    }
}

/// A frame ready to leave the switch. What was checked is what is delivered: the head is a local copy.
pub(crate) struct Frame<'f> {
    /// The first bytes, final but for the VLAN tag.
    pub(crate) head: &'f [u8],
    /// The bytes behind them.
    pub(crate) body: Body<'f>,
    /// Addresses and tag.
    pub(crate) key: FrameKey,
    /// Whether the tag of `key` stands in the head (or was to be inserted by the NIC).
    pub(crate) tag_in_head: bool,
    /// Packet type and checksum verdict.
    pub(crate) inspection: Inspection,
}

impl Frame<'_> {
    /// Bytes as they came, tag included if it stands in the head.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// The head with the tag that the frame has at its egress.
    fn head_with_tag(&self, tci: Option<u16>) -> ArrayVec<u8, { HEAD_BYTES + 4 }> {
        const ADDRESSES: usize = 12;
        let mut head = ArrayVec::new();
        let (addresses, rest) = self.head.split_at_checked(ADDRESSES).unwrap_or((self.head, &[]));
        let rest = if self.tag_in_head { rest.get(4..).unwrap_or(&[]) } else { rest };
        // The capacity is that of the largest head and a tag.
        let _ = head.try_extend_from_slice(addresses);
        if let Some(tci) = tci {
            let _ = head.try_extend_from_slice(&offload::VlanTag::dot1q(tci).to_bytes());
        }
        let _ = head.try_extend_from_slice(rest);
        head
    }
}

/// Everything a burst delivers into, borrowed from the data path for the length of the burst.
pub(crate) struct Fabric<'m> {
    pub(crate) switch: &'m NicSwitch,
    pub(crate) receivers: &'m mut [Option<Receiver>],
    /// DMA maps of the functions, by slot.
    pub(crate) maps: &'m [DmaMap],
    /// Function slot of each VPort.
    pub(crate) slots: &'m [Option<usize>],
    pub(crate) uplink: &'m mut UplinkPort,
    pub(crate) list: &'m mut EgressList,
    /// Slots of receivers with write-backs to publish.
    pub(crate) dirty: &'m mut Vec<usize>,
    /// Interrupts that are held back.
    pub(crate) due: &'m mut DueInterrupts,
    pub(crate) now_ns: u64,
}

impl<'m> Fabric<'m> {
    /// Asks the switch and delivers the frame; returns why not, if it went nowhere.
    pub(crate) fn forward(
        &mut self,
        ingress: Ingress,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        let mut list = std::mem::take(self.list);
        let verdict = self.switch.forward(ingress, &frame.key, &mut list);
        match verdict {
            Verdict::Unicast(egress) => self.deliver(frame, egress),
            Verdict::Flood => {
                list.as_slice().iter().for_each(|egress| self.deliver(frame, *egress))
            }
            Verdict::Drop(_) => {}
        }
        *self.list = list;
        match verdict {
            Verdict::Drop(reason) => Err(reason),
            _ => Ok(()),
        }
    }

    /// Delivers one copy of the frame to one egress.
    pub(crate) fn deliver(&mut self, frame: &Frame<'_>, egress: Egress) {
        match egress.vport {
            Some(vport) => self.deliver_to_vport(frame, vport, egress.tci),
            None if egress.tci == frame.key.tci && frame.tag_in_head == egress.tci.is_some() => {
                self.uplink.send(frame.head, frame.body);
            }
            None => self.uplink.send(&frame.head_with_tag(egress.tci), frame.body),
        }
    }

    fn deliver_to_vport(&mut self, frame: &Frame<'_>, vport: VPortId, tci: Option<u16>) {
        let Some(slot) = self.slots.get(vport.index()).copied().flatten() else { return };
        let Some((receiver, map)) = receiver(self.receivers, self.maps, slot) else { return };
        // The tag either stays in the frame or moves to the descriptor.
        let (in_frame, in_descriptor) = if receiver.strip_vlan { (None, tci) } else { (tci, None) };
        let as_it_came = if frame.tag_in_head { frame.key.tci } else { None };
        let retagged;
        let head = if in_frame == as_it_came {
            frame.head
        } else {
            retagged = frame.head_with_tag(in_frame);
            retagged.as_slice()
        };
        let length = head.len() + frame.body.len();
        let (number, hash) = receiver.steering.steer(&frame.inspection, frame.head);
        let meta = ReceiveMeta {
            packet_type: frame.inspection.packet_type,
            status: frame.inspection.status | cast_bits(frame.key.destination),
            tci: in_descriptor,
            hash,
        };
        let Receiver { queues, doorbells, stats, dirty, interrupts, .. } = receiver;
        let Some(Some(queue)) = queues.get_mut(usize::from(number)) else {
            stats.no_buffer += 1;
            return;
        };
        if queue.is_full() {
            self.due.note(slot, queue.flush(interrupts, self.now_ns));
        }
        let mut buffers = ArrayVec::<SharedSlice<'m>, MAX_RX_BUFFERS>::new();
        match queue.reserve(length, &meta, map, doorbells, &mut buffers) {
            Ok(()) => {
                scatter(&buffers, head, frame.body);
                stats.delivered(frame.key.destination, length);
            }
            Err(reason) => refused(stats, reason),
        }
        mark_dirty(dirty, number, self.dirty, slot);
    }

    /// Publishes everything the burst delivered.
    pub(crate) fn finish(&mut self) {
        for slot in self.dirty.drain(..) {
            if let Some(Some(receiver)) = self.receivers.get_mut(slot) {
                self.due.note(slot, receiver.flush(self.now_ns));
            }
        }
    }
}

/// The receive side of the function in `slot` and its DMA map.
#[inline(always)]
pub(crate) fn receiver<'r, 'm>(
    receivers: &'r mut [Option<Receiver>],
    maps: &'m [DmaMap],
    slot: usize,
) -> Option<(&'r mut Receiver, &'m DmaMap)> {
    Some((receivers.get_mut(slot)?.as_mut()?, maps.get(slot)?))
}

/// Notes that a queue has write-backs to publish.
#[inline(always)]
pub(crate) fn mark_dirty(queues: &mut u32, number: u16, slots: &mut Vec<usize>, slot: usize) {
    if *queues == 0 {
        slots.push(slot);
    }
    *queues |= 1 << (number & 31);
}

/// Counts a frame that did not fit.
#[cold]
pub(crate) fn refused(stats: &mut ReceiveStats, reason: NoRoom) {
    match reason {
        NoRoom::TooLong => stats.too_long += 1,
        NoRoom::NoBuffers => stats.no_buffer += 1,
        NoRoom::Fault(_) => stats.dma_faults += 1,
    }
}

/// UMBCAST bits of a destination.
#[inline(always)]
pub(crate) fn cast_bits(destination: MacKey) -> u64 {
    if !destination.is_group() {
        0
    } else if destination.is_broadcast() {
        legacy::BROADCAST
    } else {
        legacy::MULTICAST
    }
}

/// Copies a frame into its buffers, which are as long as it is.
fn scatter(buffers: &[SharedSlice<'_>], head: &[u8], body: Body<'_>) {
    let mut targets = buffers.iter().copied();
    let mut target = targets.next();
    let mut head = head;
    while let (Some(place), false) = (target, head.is_empty()) {
        let copied = place.write_from(head);
        head = head.get(copied..).unwrap_or(&[]);
        target = after(place, copied).or_else(|| targets.next());
    }
    match body {
        Body::Local(mut bytes) => {
            while let (Some(place), false) = (target, bytes.is_empty()) {
                let copied = place.write_from(bytes);
                bytes = bytes.get(copied..).unwrap_or(&[]);
                target = after(place, copied).or_else(|| targets.next());
            }
        }
        Body::Guest { .. } => {
            for mut part in body.guest_parts() {
                while let (Some(place), false) = (target, part.is_empty()) {
                    let copied = part.copy_to(place);
                    (_, part) = part.split(copied);
                    target = after(place, copied).or_else(|| targets.next());
                }
            }
        }
    }
}

/// What is left of a buffer behind the first `used` bytes.
fn after(place: SharedSlice<'_>, used: usize) -> Option<SharedSlice<'_>> {
    let (_, rest) = place.split(used);
    (!rest.is_empty()).then_some(rest)
}
