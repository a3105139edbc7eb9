//! The transmit side of one function: its TX queues, and how descriptors become packets.
//!
//! A descriptor is read once into a local value, checked, then used. A chain without its end is incomplete,
//! not wrong: it waits for the next tail. A malformed chain is consumed through its end, dropped, counted
//! and still given back; nothing a driver writes stops its ring (SPEC-AVF §5.3).

use std::sync::{Arc, atomic::Ordering};

use arrayvec::ArrayVec;
use avf_device::{InterruptVectors, QueueInterrupt, TxQueueConfig, VfSettings};
use avf_protocol::transmit::{DescriptorType, TxData, TxDescriptor, TxOffload, done};
use ndis_protocol::VPortId;
use shared_memory::{
    DescriptorRing, DmaAddress, DmaFault, DmaMap, DoorbellPage, SharedSlice, TranslationCache,
};

use super::{MAX_PIECES, stats::TransmitStats};

/// A TX queue that its driver has enabled.
pub(crate) struct TxQueue {
    ring: DescriptorRing<2>,
    config: TxQueueConfig,
    /// Number of the queue, which is the number of its doorbell.
    number: u16,
    /// Next descriptor to read.
    head: u16,
    pub(super) cache: TranslationCache,
    /// Descriptors to give back at the end of the burst: index and quadword 1.
    done: Vec<(u16, u64)>,
}

/// One packet as its descriptors describe it.
pub(crate) struct Packet<'m> {
    /// Its bytes in guest memory, in order.
    pub(crate) pieces: ArrayVec<SharedSlice<'m>, MAX_PIECES>,
    /// Sum of the pieces, bytes.
    pub(crate) length: usize,
    /// Checksum offloads that the first data descriptor asks for.
    pub(crate) offload: TxOffload,
    /// Tag to insert.
    pub(crate) tci: Option<u16>,
    /// Payload bytes and MSS, if the packet is to be segmented.
    pub(crate) segmentation: Option<(u32, u16)>,
}

/// What the head of a ring holds.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack; a box would allocate per packet"
)]
pub(crate) enum Next<'m> {
    /// Nothing, or a packet whose end is not there yet.
    Nothing,
    /// A packet.
    Packet(Packet<'m>),
    /// Descriptors that made no packet; they are consumed.
    Malformed,
    /// An address outside of the function's DMA map; the packet is consumed.
    Fault,
}

impl TxQueue {
    pub(crate) fn new(number: u16, config: TxQueueConfig, dma: &DmaMap) -> Result<Self, DmaFault> {
        let length = config.length;
        Ok(Self {
            ring: DescriptorRing::at(dma, config.ring, config.length)?,
            config,
            number,
            head: 0,
            cache: TranslationCache::default(),
            done: Vec::with_capacity(usize::from(length)),
        })
    }

    pub(crate) fn set_interrupt(&mut self, interrupt: QueueInterrupt) {
        self.config.vector = interrupt.vector;
        self.config.itr = interrupt.itr;
    }

    /// Places the ring anew after the DMA map changed.
    pub(crate) fn remap(&mut self, dma: &DmaMap) -> Result<(), DmaFault> {
        self.ring = DescriptorRing::at(dma, self.config.ring, self.config.length)?;
        self.cache = TranslationCache::default();
        Ok(())
    }

    /// Descriptors that the driver has handed over. A tail outside of the ring counts as none.
    #[inline(always)]
    pub(crate) fn waiting(&self, doorbells: &DoorbellPage) -> u16 {
        match u16::try_from(doorbells.load(usize::from(self.number))) {
            Ok(tail) if tail < self.ring.len() => {
                if tail >= self.head {
                    tail - self.head
                } else {
                    tail + self.ring.len() - self.head
                }
            }
            _ => 0,
        }
    }

    /// The descriptor `ahead` places behind the head.
    #[inline(always)]
    pub(crate) fn peek(&self, ahead: u16) -> TxDescriptor {
        TxDescriptor(self.ring.read(self.index(ahead)))
    }

    /// Hints that the descriptors from `ahead` places behind the head will be read soon.
    #[inline(always)]
    pub(crate) fn prefetch(&self, ahead: u16) {
        self.ring.prefetch_read(self.index(ahead));
    }

    #[inline(always)]
    fn index(&self, ahead: u16) -> u16 {
        let index = u32::from(self.head) + u32::from(ahead);
        let length = u32::from(self.ring.len());
        let index = if index >= length { index - length } else { index };
        u16::try_from(index).unwrap_or(0)
    }

    /// Takes plain packets from the head, at most `limit` and as many as `frames` holds; returns how many
    /// descriptors. One whose buffer is not all in one region of the DMA map is left to
    /// [`next_packet`](Self::next_packet).
    #[inline]
    pub(crate) fn take_plain<'m, const N: usize>(
        &mut self,
        dma: &'m DmaMap,
        limit: u16,
        frames: &mut ArrayVec<SharedSlice<'m>, N>,
    ) -> u16 {
        // Four descriptors to a cache line.
        (0..limit.min(32)).step_by(4).for_each(|ahead| self.prefetch(ahead));
        let mut window = dma.window(self.cache);
        let mut taken = 0;
        let mut index = self.head;
        while taken < limit && !frames.is_full() {
            let descriptor = TxDescriptor(self.ring.read(index));
            let data = descriptor.data();
            let length = usize::from(data.length());
            if !data.is_plain() || length == 0 {
                break;
            }
            let address = DmaAddress(data.address());
            let slice = match window.read_slice(address, length) {
                Some(slice) => slice,
                None => {
                    let found = dma.read_slice(&mut self.cache, address, length);
                    let Ok(slice) = found else { break };
                    window = dma.window(self.cache);
                    slice
                }
            };
            slice.prefetch_read();
            frames.push(slice);
            if data.report_status() {
                self.done.push((index, descriptor.0[1]));
            }
            taken += 1;
            index = if index + 1 == self.ring.len() { 0 } else { index + 1 };
        }
        self.head = index;
        taken
    }

    /// Consumes `count` descriptors that were looked at with [`peek`](Self::peek).
    #[inline(always)]
    pub(crate) fn consume(&mut self, count: u16) {
        self.head = self.index(count);
    }

    /// Notes that the descriptor `ahead` places behind the head asks to be given back.
    #[inline(always)]
    pub(crate) fn give_back(&mut self, ahead: u16, descriptor: TxDescriptor) {
        let TxDescriptor([_, qw1]) = descriptor;
        self.done.push((self.index(ahead), qw1));
    }

    /// Collects the packet at the head out of at most `waiting` descriptors and consumes it. The second
    /// result is how many descriptors that took.
    pub(crate) fn next_packet<'m>(&mut self, dma: &'m DmaMap, waiting: u16) -> (Next<'m>, u16) {
        let mut packet = Packet {
            pieces: ArrayVec::new(),
            length: 0,
            offload: TxOffload::default(),
            tci: None,
            segmentation: None,
        };
        let mut malformed = false;
        let mut fault = false;
        let mut context = None;
        let mut first = true;
        let returned = self.done.len();
        for ahead in 0..waiting {
            let descriptor = self.peek(ahead);
            let ends = match descriptor.kind() {
                DescriptorType::Context => {
                    malformed |= context.is_some() || !first;
                    context = Some(descriptor.context());
                    false
                }
                DescriptorType::Data => {
                    let data: TxData = descriptor.data();
                    if first {
                        packet.offload = data.offload();
                        packet.tci = data.l2tag1();
                        malformed |= data.is_dummy() || data.is_fcoe();
                        // Without its tag it would be a frame of another VLAN.
                        malformed |= packet.tci.is_some() && !self.config.insert_tags;
                        first = false;
                    }
                    let length = usize::from(data.length());
                    malformed |= length == 0;
                    if !malformed && !fault {
                        packet.length += length;
                        match self.pieces(dma, DmaAddress(data.address()), length, &mut packet) {
                            Ok(fits) => malformed |= !fits,
                            Err(_) => fault = true,
                        }
                    }
                    data.end_of_packet()
                }
                // Flow director programs are not served here; the rest has no meaning.
                _ => {
                    malformed = true;
                    descriptor.data().end_of_packet()
                }
            };
            // A context descriptor has other fields where a data descriptor has RS.
            if descriptor.kind() != DescriptorType::Context && descriptor.data().report_status() {
                self.give_back(ahead, descriptor);
            }
            let full = ahead + 1 == self.ring.len() - 1;
            if ends || full {
                self.consume(ahead + 1);
                malformed |= !ends;
                packet.segmentation = context.and_then(|context| context.segmentation());
                let next = match (fault, malformed) {
                    (true, _) => Next::Fault,
                    (false, true) => Next::Malformed,
                    (false, false) => Next::Packet(packet),
                };
                return (next, ahead + 1);
            }
        }
        self.done.truncate(returned);
        (Next::Nothing, 0)
    }

    /// Adds a buffer to a packet, a piece for each region of the DMA map that it lies in. False if the packet
    /// has too many pieces.
    #[inline]
    fn pieces<'m>(
        &mut self,
        dma: &'m DmaMap,
        address: DmaAddress,
        length: usize,
        packet: &mut Packet<'m>,
    ) -> Result<bool, DmaFault> {
        match dma.read_slice(&mut self.cache, address, length) {
            Ok(piece) => Ok(packet.pieces.try_push(piece).is_ok()),
            Err(fault) => split_at_regions(dma, fault, &mut packet.pieces),
        }
    }

    /// Gives back what the burst finished, and raises the vector if there was anything. Returns when (ns) a
    /// message that its interval holds back is due.
    #[inline]
    pub(crate) fn flush(&mut self, interrupts: &InterruptVectors, now_ns: u64) -> Option<u64> {
        if self.done.is_empty() {
            return None;
        }
        for (index, qw1) in self.done.drain(..) {
            self.ring.store(index, 1, done(qw1), Ordering::Release);
        }
        interrupts.raise(self.config.vector?, self.config.itr, now_ns)
    }
}

/// The pieces of a buffer that is not all in one region; `fault` is what asking for it as a whole gave, and is
/// returned if the regions leave a hole in it. False if there are too many pieces.
#[cold]
fn split_at_regions<'m>(
    dma: &'m DmaMap,
    fault: DmaFault,
    pieces: &mut ArrayVec<SharedSlice<'m>, MAX_PIECES>,
) -> Result<bool, DmaFault> {
    let DmaFault { address: DmaAddress(mut at), length: mut left, .. } = fault;
    let regions = dma.regions();
    let first = regions.partition_point(|region| region.iova.0 <= at).saturating_sub(1);
    for region in regions.iter().skip(first) {
        let offset = at.checked_sub(region.iova.0).and_then(|offset| usize::try_from(offset).ok());
        let (_, rest) = region.mapping.as_slice().split(offset.ok_or(fault)?);
        let (piece, _) = rest.split(left);
        if piece.is_empty() {
            return Err(fault);
        }
        if pieces.try_push(piece).is_err() {
            return Ok(false);
        }
        at += piece.len() as u64;
        left -= piece.len();
        if left == 0 {
            return Ok(true);
        }
    }
    Err(fault)
}

/// The transmit side of one function.
pub(crate) struct Sender {
    /// The VPort that its frames enter the switch by; without one they are dropped.
    pub(crate) vport: Option<VPortId>,
    pub(crate) doorbells: DoorbellPage,
    pub(crate) interrupts: Arc<InterruptVectors>,
    /// Indexed by queue number.
    pub(crate) queues: Vec<Option<TxQueue>>,
    /// Largest frame on the wire without FCS, bytes.
    pub(crate) max_frame: usize,
    pub(crate) stats: TransmitStats,
}

impl Sender {
    /// Takes over what the driver asked for.
    pub(crate) fn apply(&mut self, settings: &VfSettings) {
        self.max_frame = usize::from(settings.max_frame);
        for (queue, interrupt) in self.queues.iter_mut().zip(settings.tx_interrupts) {
            if let Some(queue) = queue {
                queue.config.insert_tags = settings.vlan_insert;
                queue.set_interrupt(interrupt);
            }
        }
    }
}
