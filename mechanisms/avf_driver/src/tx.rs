//! Transmit queue: descriptors, reports and buffers of one TX ring (SPEC-AVF §5.1–5.3).

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, atomic::Ordering},
};

use arrayvec::ArrayVec;
use avf_protocol::transmit::{MAX_TSO_LENGTH, MIN_FRAME, TxContext, TxData, TxDescriptor};
use shared_memory::DescriptorRing;

use crate::{
    Buffer, DriverMemory, FrameOffload, ReportConfig, Result, TxSegment,
    buffers::{BufferCache, Depot},
    doorbell::Doorbell,
    gate::Gate,
    memory::BufferMap,
};

/// In a slot that holds no buffer; no memory's indexes reach it.
const NO_BUFFER: u32 = u32::MAX;
/// Data descriptors of a frame that is not segmented, at most (SPEC-AVF §5.3).
const MAX_FRAME_DESCRIPTORS: u16 = 8;
/// The least segment payload that all devices take (SPEC-AVF §5.3).
const MIN_MSS: u16 = 64;

/// What a transmit queue has done. Counts go on over resets.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct TxCounters {
    /// Frames handed to the device.
    pub frames: u64,
    /// Bytes of those frames, before any segmentation or tag insertion.
    pub bytes: u64,
    /// Frames that no device could send, taken from the burst and not sent: shorter than 17 bytes,
    /// too many segments, a segment outside its buffer, a buffer of another driver, or impossible
    /// segmentation.
    pub rejected: u64,
    /// Bursts that the ring could not take whole.
    pub ring_full: u64,
}

/// The transmit half of a queue pair. One thread at a time owns it; nothing in it locks or
/// allocates per frame.
pub struct TxQueue {
    index: u16,
    ring: DescriptorRing<2>,
    /// Next slot to fill.
    next: u16,
    /// Oldest slot not yet taken back.
    oldest: u16,
    /// Slots that may be filled; one always stays empty.
    free: u16,
    /// Descriptors since the last one with a report.
    unreported: u16,
    /// Slots whose descriptor has a report asked, oldest first; never more than the ring has.
    reports: VecDeque<u16>,
    /// The buffer in each slot.
    slots: Box<[u32]>,
    /// With fewer free slots than this, a burst first takes back what was sent: soon, so that few
    /// buffers go round and stay in the caches of both cores.
    reclaim_below: u16,
    report: ReportConfig,
    tail: Doorbell,
    cache: BufferCache,
    buffers: BufferMap,
    memory: Arc<DriverMemory>,
    gate: Gate,
    counters: TxCounters,
}

impl fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxQueue")
            .field("index", &self.index)
            .field("free", &self.free)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// What one frame at the head of a burst needs.
struct Shape {
    segments: usize,
    descriptors: u16,
    bytes: u32,
    valid: bool,
}

impl TxQueue {
    pub(crate) fn new(
        index: u16,
        memory: Arc<DriverMemory>,
        depot: Arc<Depot>,
        ring: DescriptorRing<2>,
        report: ReportConfig,
        tail: Doorbell,
        gate: Gate,
    ) -> Self {
        let length = ring.len();
        Self {
            index,
            next: 0,
            oldest: 0,
            free: length - 1,
            unreported: 0,
            reports: VecDeque::with_capacity(usize::from(length)),
            slots: vec![NO_BUFFER; usize::from(length)].into(),
            reclaim_below: length - (2 * report.every).min(length / 2),
            report,
            tail,
            cache: BufferCache::new(depot),
            buffers: memory.buffers(),
            memory,
            gate,
            counters: TxCounters::default(),
            ring,
        }
    }

    /// Begins anew on a reset device: buffers still in the ring are free again.
    ///
    /// The device must not be able to reach the ring.
    pub(crate) fn restart(&mut self, tail: Doorbell, gate: Gate) -> Result<()> {
        if self.free != self.ring.len() - 1 {
            let last = self.before(self.next);
            self.take_back(last);
        }
        for index in 0..self.ring.len() {
            self.ring.store(index, 0, 0, Ordering::Relaxed);
            self.ring.store(index, 1, 0, Ordering::Relaxed);
        }
        self.next = 0;
        self.oldest = 0;
        self.free = self.ring.len() - 1;
        self.unreported = 0;
        self.reports.clear();
        self.tail = tail;
        self.gate = gate;
        self.tail.ring_checked(0)
    }

    /// The queue's index.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The memory that the queue's buffers are in.
    #[inline]
    pub fn memory(&self) -> &Arc<DriverMemory> {
        &self.memory
    }

    /// A free buffer to fill and transmit; `None` while all are in use.
    #[inline]
    pub fn reserve(&mut self) -> Option<Buffer> {
        match self.cache.at_hand().pop() {
            Some(number) => Some(Buffer(number)),
            None => self.reserve_elsewhere(),
        }
    }

    #[cold]
    #[inline(never)]
    fn reserve_elsewhere(&mut self) -> Option<Buffer> {
        self.reclaim();
        self.cache.pop().map(Buffer)
    }

    /// Gives back a buffer that was not transmitted; one of another driver's memory is ignored.
    #[inline]
    pub fn free(&mut self, buffer: Buffer) {
        if self.buffers.contains(buffer.0) {
            self.cache.push(buffer.0);
        }
    }

    /// Descriptors in the ring.
    pub fn ring_length(&self) -> u16 {
        self.ring.len()
    }

    /// Descriptors that can be filled at once, after taking back what was sent. Each segment takes
    /// one, and one more goes to a frame with segmentation.
    pub fn room(&mut self) -> usize {
        self.reclaim();
        usize::from(self.free)
    }

    /// What the queue has done.
    pub fn counters(&self) -> TxCounters {
        self.counters
    }

    /// Whether the device was reset, or is gone: nothing is sent any more. Hand the queue pair to
    /// [`crate::AvfControl::rebuild`].
    #[inline]
    pub fn is_stopped(&self) -> bool {
        !self.gate.is_open()
    }

    /// Sends whole frames from the front of `burst`, as many as the ring takes, and tells the
    /// device once.
    ///
    /// Returns how many frames left the burst; what the ring had no room for stays in it, in order.
    /// Frames that no device could send leave it too, counted in [`TxCounters::rejected`]. On a
    /// stopped queue nothing happens.
    #[inline]
    pub fn transmit<const N: usize>(&mut self, burst: &mut ArrayVec<TxSegment, N>) -> usize {
        if !self.gate.is_open() || burst.is_empty() {
            return 0;
        }
        // As much as a burst takes, so that buffers do not pile up.
        while self.free < self.reclaim_below && self.reclaim_report() {}
        let start = self.next;
        let (mut taken, mut frames) = (0, 0);
        loop {
            let count = self.post_plain(burst.get(taken..).unwrap_or_default());
            taken += count;
            frames += count;
            let rest = burst.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let Some(count) = self.post_other(rest) else { break };
            taken += count;
            frames += 1;
        }
        if self.next != start {
            self.finish_burst();
        }
        // Nothing is dropped twice: a `Buffer` is a plain index.
        burst.drain(..taken);
        frames
    }

    /// Takes back the buffers of frames that the device reports sent. [`transmit`](Self::transmit)
    /// and [`reserve`](Self::reserve) do so when they run short; a user that goes idle may do so to
    /// have all back.
    pub fn reclaim(&mut self) {
        while self.reclaim_report() {}
    }

    /// Takes back what the oldest report covers; `false` if the device has not given it.
    #[inline]
    fn reclaim_report(&mut self) -> bool {
        let Some(&report) = self.reports.front() else { return false };
        let word = self.ring.load(report, 1, Ordering::Acquire);
        if !TxDescriptor([0, word]).is_done() {
            return false;
        }
        self.reports.pop_front();
        self.take_back(report);
        true
    }

    /// Frees the slots up to and including `last`.
    fn take_back(&mut self, last: u16) {
        let end = last + 1;
        let (from, to) = (usize::from(self.oldest), usize::from(end));
        let (first, second) =
            if from < to { (from..to, 0..0) } else { (from..self.slots.len(), 0..to) };
        for range in [first, second] {
            for number in self.slots.get(range).unwrap_or_default() {
                if *number != NO_BUFFER {
                    self.cache.push(*number);
                }
            }
        }
        self.free +=
            if from < to { end - self.oldest } else { self.ring.len() - self.oldest + end };
        self.oldest = self.after(last);
    }

    #[cold]
    #[inline(never)]
    fn make_room(&mut self, descriptors: u16) -> bool {
        self.reclaim();
        if self.free < descriptors {
            self.counters.ring_full += 1;
            return false;
        }
        true
    }

    /// Posts frames from the front of `segments` as long as they are plain (one segment, not
    /// segmented by the device), sound, and there is room. Returns how many.
    #[inline(always)]
    fn post_plain(&mut self, segments: &[TxSegment]) -> usize {
        let mut posted = 0;
        // In two runs where the ring goes round.
        for _ in 0..2 {
            let run = self.free.min(self.ring.len() - self.next);
            let count = self.post_plain_run(run, segments.get(posted..).unwrap_or_default());
            posted += usize::from(count);
            self.next += count;
            self.free -= count;
            if self.next < self.ring.len() {
                break;
            }
            self.next = 0;
        }
        self.counters.frames += posted as u64;
        posted
    }

    #[inline(always)]
    fn post_plain_run(&mut self, run: u16, segments: &[TxSegment]) -> u16 {
        let buffers = self.buffers;
        let slots = self.slots.get_mut(usize::from(self.next)..).unwrap_or_default();
        let mut unreported = self.unreported;
        let (mut posted, mut bytes) = (0u16, 0u64);
        let descriptors = self.ring.run(self.next, run);
        for ((descriptor, slot), segment) in descriptors.zip(slots).zip(segments) {
            let end = u32::from(segment.offset) + u32::from(segment.length);
            let Some(address) = buffers.iova(segment.buffer.0) else { break };
            if !segment.end
                || segment.offload.segments()
                || segment.length < MIN_FRAME
                || end > buffers.size
            {
                break;
            }
            let address = address + u64::from(segment.offset);
            let mut data = TxData::new(address, segment.length).with_end_of_packet();
            data.0[1] |= segment.offload.data;
            unreported += 1;
            if unreported >= self.report.every {
                data = data.with_report_status();
                self.reports.push_back(self.next + posted);
                unreported = 0;
            }
            let [low, high] = data.0;
            descriptor.store(0, low, Ordering::Relaxed);
            descriptor.store(1, high, Ordering::Relaxed);
            *slot = segment.buffer.0;
            posted += 1;
            bytes += u64::from(segment.length);
        }
        self.unreported = unreported;
        self.counters.bytes += bytes;
        posted
    }

    /// Posts or rejects one frame that is not plain, or that there was no room for. Returns how
    /// many segments it had; `None` if there is still no room.
    #[cold]
    #[inline(never)]
    fn post_other(&mut self, segments: &[TxSegment]) -> Option<usize> {
        let shape = self.shape(segments);
        let segments = segments.get(..shape.segments)?;
        if !shape.valid {
            self.reject(segments);
        } else if self.free >= shape.descriptors || self.make_room(shape.descriptors) {
            self.post_chain(segments, &shape);
        } else {
            return None;
        }
        Some(shape.segments)
    }

    /// Device address of a segment, if it lies in a buffer of ours and is not empty.
    fn address(&self, segment: &TxSegment) -> Option<u64> {
        let end = u32::from(segment.offset) + u32::from(segment.length);
        if segment.length == 0 || end > self.buffers.size {
            return None;
        }
        Some(self.buffers.iova(segment.buffer.0)? + u64::from(segment.offset))
    }

    /// Measures the frame at the head of `segments`.
    fn shape(&self, segments: &[TxSegment]) -> Shape {
        let mut shape = Shape { segments: 0, descriptors: 0, bytes: 0, valid: true };
        let mut ended = false;
        for segment in segments {
            shape.segments += 1;
            shape.descriptors = shape.descriptors.saturating_add(1);
            shape.bytes += u32::from(segment.length);
            shape.valid &= self.address(segment).is_some();
            if segment.end {
                ended = true;
                break;
            }
        }
        let offload = segments.first().map_or(FrameOffload::NONE, |first| first.offload);
        shape.valid &= ended && shape.bytes >= u32::from(MIN_FRAME);
        if offload.segments() {
            shape.descriptors = shape.descriptors.saturating_add(1);
            let headers = u32::from(offload.headers);
            let payload = shape.bytes.saturating_sub(headers);
            shape.valid &=
                headers > 0 && offload.mss >= MIN_MSS && payload > 0 && payload <= MAX_TSO_LENGTH;
        } else {
            shape.valid &= shape.descriptors <= MAX_FRAME_DESCRIPTORS;
        }
        shape.valid &= shape.descriptors < self.ring.len();
        shape
    }

    fn post_chain(&mut self, segments: &[TxSegment], shape: &Shape) {
        let offload = segments.first().map_or(FrameOffload::NONE, |first| first.offload);
        if offload.segments() {
            let payload = shape.bytes - u32::from(offload.headers);
            let context = TxContext::new().with_segmentation(payload, offload.mss);
            self.post(context.0, NO_BUFFER);
        }
        for segment in segments {
            let Some(address) = self.address(segment) else { continue };
            let mut data = TxData::new(address, segment.length);
            if segment.end {
                data = data.with_end_of_packet();
            }
            data.0[1] |= offload.data;
            self.post(data.0, segment.buffer.0);
        }
        self.counters.frames += 1;
        self.counters.bytes += u64::from(shape.bytes);
        self.unreported += shape.descriptors;
        if self.unreported >= self.report.every {
            self.ask_report();
        }
    }

    fn reject(&mut self, segments: &[TxSegment]) {
        self.counters.rejected += 1;
        for segment in segments {
            if self.buffers.contains(segment.buffer.0) {
                self.cache.push(segment.buffer.0);
            }
        }
    }

    /// Fills the next slot; there must be a free one.
    fn post(&mut self, words: [u64; 2], buffer: u32) {
        let [low, high] = words;
        self.ring.store(self.next, 0, low, Ordering::Relaxed);
        self.ring.store(self.next, 1, high, Ordering::Relaxed);
        if let Some(slot) = self.slots.get_mut(usize::from(self.next)) {
            *slot = buffer;
        }
        self.next = self.after(self.next);
        self.free -= 1;
    }

    /// Sets RS on the descriptor filled last, the end of a frame that the device was not told of
    /// yet.
    fn ask_report(&mut self) {
        let last = self.before(self.next);
        let word = self.ring.load(last, 1, Ordering::Relaxed);
        let data = TxData([0, word]).with_report_status();
        self.ring.store(last, 1, data.0[1], Ordering::Relaxed);
        self.reports.push_back(last);
        self.unreported = 0;
    }

    #[inline(always)]
    fn finish_burst(&mut self) {
        if self.report.at_burst_end && self.unreported > 0 {
            self.ask_report();
        }
        self.tail.ring(u32::from(self.next));
    }

    fn after(&self, slot: u16) -> u16 {
        if slot + 1 == self.ring.len() { 0 } else { slot + 1 }
    }

    fn before(&self, slot: u16) -> u16 {
        if slot == 0 { self.ring.len() - 1 } else { slot - 1 }
    }
}
