//! The receive side of one function: its RX queues, and how a frame gets into their buffers.
//!
//! A frame *reserves* descriptors first, in arrival order; its bytes are copied; at the end of the burst the
//! descriptors are written back in ring order, the done bit last, and the vector is raised once.

use std::sync::{Arc, atomic::Ordering};

use avf_device::{InterruptVectors, QueueInterrupt, RxQueueConfig, VfSettings};
use avf_protocol::{
    packet_type::PacketType,
    receive::{RxLegacy, legacy},
};
use shared_memory::{
    DescriptorRing, DmaAddress, DmaFault, DmaMap, DmaWindow, DoorbellPage, SharedSlice,
    TranslationCache,
};

use super::{MAX_RX_BUFFERS, earlier, rss::RssSteering, stats::ReceiveStats};

/// Write-backs that a queue collects before they are published.
const PENDING: usize = 512;

/// One descriptor to write back: its index and its first two quadwords.
#[derive(Copy, Clone)]
struct Writeback {
    index: u16,
    qw0: u64,
    qw1: u64,
}

impl Writeback {
    fn new(index: u16, RxLegacy([qw0, qw1, ..]): RxLegacy) -> Self {
        Self { index, qw0, qw1 }
    }

    /// A descriptor that carries no frame: the driver gets its buffer back, marked as an error.
    fn error(index: u16) -> Self {
        let none = RxLegacy::new(0).with_end_of_packet(PacketType::UNKNOWN);
        Self::new(index, none.with_status(legacy::RXE))
    }
}

/// An RX queue that its driver has enabled.
pub(crate) struct RxQueue {
    ring: DescriptorRing<4>,
    config: RxQueueConfig,
    /// Number of the queue, which is the number of its doorbell.
    number: u16,
    /// Next descriptor to take.
    head: u16,
    /// The tail as last read; the driver may have moved it on since.
    tail: u16,
    cache: TranslationCache,
    pending: Vec<Writeback>,
}

/// Why a frame does not fit into a queue.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum NoRoom {
    /// Longer than the queue's largest frame, or than five buffers.
    TooLong,
    /// The driver has posted too few buffers.
    NoBuffers,
    /// A posted buffer lies outside the function's DMA map.
    Fault(DmaFault),
}

/// What the write-back says about a frame, beyond its length.
#[derive(Copy, Clone, Default)]
pub(crate) struct ReceiveMeta {
    /// What the frame is.
    pub(crate) packet_type: PacketType,
    /// Status and error bits of [`legacy`].
    pub(crate) status: u64,
    /// Stripped VLAN tag.
    pub(crate) tci: Option<u16>,
    /// RSS hash.
    pub(crate) hash: Option<u32>,
}

impl ReceiveMeta {
    /// The write-back of the frame's last buffer, which holds `length` bytes.
    #[inline(always)]
    fn last(&self, length: usize) -> RxLegacy {
        let mut back = RxLegacy::new(buffer_length(length))
            .with_end_of_packet(self.packet_type)
            .with_status(self.status);
        if let Some(tci) = self.tci {
            back = back.with_l2tag1(tci);
        }
        if let Some(hash) = self.hash {
            back = back.with_rss_hash(hash);
        }
        back
    }
}

/// A length inside one buffer, which is below 16 KiB by the rules for `buffer_size`.
#[inline(always)]
fn buffer_length(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

impl RxQueue {
    pub(crate) fn new(number: u16, config: RxQueueConfig, dma: &DmaMap) -> Result<Self, DmaFault> {
        Ok(Self {
            ring: DescriptorRing::at(dma, config.ring, config.length)?,
            config,
            number,
            head: 0,
            tail: 0,
            cache: TranslationCache::default(),
            pending: Vec::with_capacity(PENDING),
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

    /// Posted descriptors that are not taken yet, as far as known without reading the doorbell.
    #[inline(always)]
    fn known(&self) -> u16 {
        let length = self.ring.len();
        if self.tail >= self.head { self.tail - self.head } else { self.tail + length - self.head }
    }

    #[inline(always)]
    fn available(&mut self, wanted: u16, doorbells: &DoorbellPage) -> bool {
        if self.known() >= wanted {
            return true;
        }
        // A tail outside of the ring is ignored until it becomes valid (SPEC-AVF §5.1).
        if let Ok(tail) = u16::try_from(doorbells.load(usize::from(self.number)))
            && tail < self.ring.len()
        {
            self.tail = tail;
        }
        self.known() >= wanted
    }

    /// Whether the driver has posted any buffer.
    fn has_buffers(&mut self, doorbells: &DoorbellPage) -> bool {
        self.available(1, doorbells)
    }

    #[inline(always)]
    fn advance(&mut self) -> u16 {
        let index = self.head;
        self.head = if index + 1 == self.ring.len() { 0 } else { index + 1 };
        index
    }

    /// Prepares to take descriptors for up to `count` frames of one buffer each.
    #[inline(always)]
    pub(crate) fn reserve_run<'q, 'm>(
        &'q mut self,
        count: usize,
        dma: &'m DmaMap,
        doorbells: &DoorbellPage,
    ) -> Run<'q, 'm> {
        let wanted = u16::try_from(count).unwrap_or(u16::MAX);
        self.available(wanted, doorbells);
        Run {
            left: self.known(),
            head: self.head,
            window: dma.window(self.cache),
            dma,
            queue: self,
        }
    }

    /// Takes the descriptors for a frame that may need several buffers.
    pub(crate) fn reserve<'m>(
        &mut self,
        length: usize,
        meta: &ReceiveMeta,
        dma: &'m DmaMap,
        doorbells: &DoorbellPage,
        buffers: &mut arrayvec::ArrayVec<SharedSlice<'m>, MAX_RX_BUFFERS>,
    ) -> Result<(), NoRoom> {
        buffers.clear();
        let size = usize::from(self.config.buffer_size).max(1);
        let count = length.div_ceil(size).max(1);
        if length > usize::from(self.config.max_frame_size) || count > MAX_RX_BUFFERS {
            return Err(NoRoom::TooLong);
        }
        let wanted = u16::try_from(count).map_err(|_| NoRoom::TooLong)?;
        if !self.available(wanted, doorbells) {
            return Err(NoRoom::NoBuffers);
        }
        let first_pending = self.pending.len();
        let mut left = length;
        for part in 1..=count {
            let index = self.advance();
            let here = left.min(size);
            left -= here;
            let address = self.ring.load(index, 0, Ordering::Relaxed);
            match dma.write_slice(&mut self.cache, DmaAddress(address), here) {
                Ok(buffer) => {
                    buffers.push(buffer);
                    let back = if part == count {
                        meta.last(here)
                    } else {
                        RxLegacy::new(buffer_length(here))
                    };
                    self.pending.push(Writeback::new(index, back));
                }
                Err(fault) => {
                    // What was taken for this frame goes back to the driver, marked as an error.
                    for back in self.pending.iter_mut().skip(first_pending) {
                        *back = Writeback::error(back.index);
                    }
                    buffers.clear();
                    return Err(self.refuse(index, fault));
                }
            }
        }
        Ok(())
    }

    /// Hands a descriptor with an unusable address back to its driver.
    #[cold]
    fn refuse(&mut self, index: u16, fault: DmaFault) -> NoRoom {
        self.pending.push(Writeback::error(index));
        NoRoom::Fault(fault)
    }

    /// Publishes the write-backs in ring order and raises the vector. The bytes must be in place. Returns
    /// when (ns) a message that its interval holds back is due.
    #[inline]
    pub(crate) fn flush(&mut self, interrupts: &InterruptVectors, now_ns: u64) -> Option<u64> {
        use Ordering::{Relaxed, Release};
        if self.pending.is_empty() {
            return None;
        }
        for back in &self.pending {
            let slot = self.ring.slot(back.index);
            slot.store(0, back.qw0, Relaxed);
            slot.store(2, 0, Relaxed);
            slot.store(3, 0, Relaxed);
            slot.store(1, back.qw1, Release);
        }
        self.pending.clear();
        interrupts.raise(self.config.vector?, self.config.itr, now_ns)
    }

    /// Whether the write-backs must be published before more frames are taken.
    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() + MAX_RX_BUFFERS > PENDING
    }
}

/// Descriptors taken one after the other for a run of frames.
pub(crate) struct Run<'q, 'm> {
    queue: &'q mut RxQueue,
    dma: &'m DmaMap,
    window: DmaWindow<'m>,
    /// Posted descriptors that are left.
    left: u16,
    /// Next descriptor to take; the queue is told at the end.
    head: u16,
}

impl<'m> Run<'_, 'm> {
    /// The longest frame that is one for [`take`](Self::take), bytes.
    #[inline(always)]
    pub(crate) fn longest(&self) -> usize {
        self.queue.config.buffer_size.min(self.queue.config.max_frame_size).into()
    }

    /// Takes one descriptor for a unicast frame that fits into one buffer.
    #[inline(always)]
    pub(crate) fn take(
        &mut self,
        length: usize,
        packet_type: PacketType,
        status: u64,
    ) -> Result<SharedSlice<'m>, NoRoom> {
        if self.left == 0 {
            return Err(NoRoom::NoBuffers);
        }
        self.left -= 1;
        let index = self.head;
        self.head = if index + 1 == self.queue.ring.len() { 0 } else { index + 1 };
        // Two descriptors to a cache line; they are written back soon.
        if index.is_multiple_of(2) {
            self.queue.ring.prefetch_write(index.wrapping_add(16));
        }
        let address = DmaAddress(self.queue.ring.load(index, 0, Ordering::Relaxed));
        let buffer = match self.window.write_slice(address, length) {
            Some(buffer) => buffer,
            None => match self.dma.write_slice(&mut self.queue.cache, address, length) {
                Ok(buffer) => {
                    self.window = self.dma.window(self.queue.cache);
                    buffer
                }
                Err(fault) => return Err(self.queue.refuse(index, fault)),
            },
        };
        let back = RxLegacy::new(buffer_length(length))
            .with_end_of_packet(packet_type)
            .with_status(status);
        self.queue.pending.push(Writeback::new(index, back));
        Ok(buffer)
    }
}

impl Drop for Run<'_, '_> {
    fn drop(&mut self) {
        self.queue.head = self.head;
    }
}

/// The receive side of one function.
pub(crate) struct Receiver {
    pub(crate) doorbells: DoorbellPage,
    pub(crate) interrupts: Arc<InterruptVectors>,
    /// Indexed by queue number.
    pub(crate) queues: Vec<Option<RxQueue>>,
    pub(crate) steering: RssSteering,
    /// Stripped VLAN tags go into the descriptor.
    pub(crate) strip_vlan: bool,
    pub(crate) stats: ReceiveStats,
    /// Queues with write-backs to publish, a bit each.
    pub(crate) dirty: u32,
    /// Queues that are enabled and whose driver has not posted a buffer yet, a bit each.
    pub(crate) starting: u32,
}

impl Receiver {
    /// Whether any queue can take frames.
    pub(crate) fn receiving(&self) -> bool {
        self.ready_queues() != 0
    }

    /// Enabled queues whose driver has posted buffers, a bit each.
    fn ready_queues(&self) -> u32 {
        let queues = self.queues.iter().enumerate().filter(|(_, queue)| queue.is_some());
        queues.fold(0, |bits, (number, _)| bits | 1 << number) & !self.starting
    }

    /// Looks which of the starting queues have got their first buffers; true if any has.
    pub(crate) fn look_for_buffers(&mut self) -> bool {
        let before = self.starting;
        for (number, queue) in self.queues.iter_mut().enumerate() {
            if self.starting & 1 << number != 0
                && queue.as_mut().is_none_or(|queue| queue.has_buffers(&self.doorbells))
            {
                self.starting &= !(1 << number);
            }
        }
        self.starting != before
    }

    /// Takes over what the driver asked for.
    pub(crate) fn apply(&mut self, settings: &VfSettings) {
        self.strip_vlan = settings.vlan_strip;
        self.steering.configure(&settings.rss);
        for (queue, interrupt) in self.queues.iter_mut().zip(settings.rx_interrupts) {
            if let Some(queue) = queue {
                queue.set_interrupt(interrupt);
            }
        }
    }

    /// Tells the steering which queues take frames.
    pub(crate) fn update_steering(&mut self) {
        self.steering.set_queues(self.ready_queues());
    }

    /// Publishes what the burst delivered. Returns when (ns) a message that is held back is due.
    #[inline]
    pub(crate) fn flush(&mut self, now_ns: u64) -> Option<u64> {
        let mut due = None;
        let mut dirty = std::mem::take(&mut self.dirty);
        while dirty != 0 {
            let number = dirty.trailing_zeros() as usize;
            dirty &= dirty - 1;
            if let Some(Some(queue)) = self.queues.get_mut(number) {
                due = earlier(due, queue.flush(&self.interrupts, now_ns));
            }
        }
        due
    }
}
