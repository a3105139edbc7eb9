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
    /// With fewer free slots than this, a burst first takes back what was sent.
    reclaim_below: u16,
    report: ReportConfig,
    tail: Doorbell,
    cache: BufferCache,
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
            reclaim_below: length / 2,
            report,
            tail,
            cache: BufferCache::new(depot),
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
        for slot in &mut self.slots {
            let index = std::mem::replace(slot, NO_BUFFER);
            if index != NO_BUFFER {
                self.cache.push(index);
            }
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
        match self.cache.pop() {
            Some(index) => Some(Buffer(index)),
            None => {
                self.reclaim();
                self.cache.pop().map(Buffer)
            }
        }
    }

    /// Gives back a buffer that was not transmitted; one of another driver's memory is ignored.
    #[inline]
    pub fn free(&mut self, buffer: Buffer) {
        if self.memory.buffer_iova(buffer.0).is_some() {
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
        if self.free < self.reclaim_below {
            self.reclaim();
        }
        let start = self.next;
        let mut taken = 0;
        let mut frames = 0;
        while let Some(segment) = burst.get(taken) {
            // A frame of one segment without segmentation is the usual one.
            if segment.end && !segment.offload.segments() {
                if self.free == 0 && !self.make_room(1) {
                    break;
                }
                if !self.post_single(segment) {
                    self.reject(burst, taken, 1);
                }
                taken += 1;
            } else {
                let shape = self.shape(burst.get(taken..).unwrap_or_default());
                if shape.valid {
                    if self.free < shape.descriptors && !self.make_room(shape.descriptors) {
                        break;
                    }
                    self.post_chain(burst.get(taken..taken + shape.segments), &shape);
                } else {
                    self.reject(burst, taken, shape.segments);
                }
                taken += shape.segments;
            }
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
        while let Some(&report) = self.reports.front() {
            let word = self.ring.load(report, 1, Ordering::Acquire);
            if !TxDescriptor([0, word]).is_done() {
                return;
            }
            self.reports.pop_front();
            if let Some(&next) = self.reports.front() {
                self.ring.prefetch_read(next);
            }
            self.take_back(report);
        }
    }

    /// Frees the slots up to and including `last`.
    #[inline]
    fn take_back(&mut self, last: u16) {
        let length = self.ring.len();
        let mut slot = self.oldest;
        loop {
            if let Some(index) = self.slots.get_mut(usize::from(slot)) {
                let index = std::mem::replace(index, NO_BUFFER);
                if index != NO_BUFFER {
                    self.cache.push(index);
                }
            }
            self.free += 1;
            let done = slot == last;
            slot = if slot + 1 == length { 0 } else { slot + 1 };
            if done {
                break;
            }
        }
        self.oldest = slot;
    }

    #[cold]
    fn make_room(&mut self, descriptors: u16) -> bool {
        self.reclaim();
        if self.free < descriptors {
            self.counters.ring_full += 1;
            return false;
        }
        true
    }

    #[inline(always)]
    fn post_single(&mut self, segment: &TxSegment) -> bool {
        let Some(address) = self.address(segment) else { return false };
        if segment.length < MIN_FRAME {
            return false;
        }
        let mut data = TxData::new(address, segment.length).with_end_of_packet();
        data.0[1] |= segment.offload.data;
        self.post(data.0, segment.buffer.0);
        self.frame_posted(1, u64::from(segment.length));
        true
    }

    /// Device address of a segment, if it lies in a buffer of ours and is not empty.
    #[inline(always)]
    fn address(&self, segment: &TxSegment) -> Option<u64> {
        let end = usize::from(segment.offset) + usize::from(segment.length);
        if segment.length == 0 || end > self.memory.buffer_size() {
            return None;
        }
        Some(self.memory.buffer_iova(segment.buffer.0)? + u64::from(segment.offset))
    }

    /// Measures the frame at the head of `segments`.
    #[cold]
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

    #[cold]
    fn post_chain(&mut self, segments: Option<&[TxSegment]>, shape: &Shape) {
        let segments = segments.unwrap_or_default();
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
        self.frame_posted(shape.descriptors, u64::from(shape.bytes));
    }

    #[cold]
    fn reject<const N: usize>(
        &mut self,
        burst: &ArrayVec<TxSegment, N>,
        from: usize,
        segments: usize,
    ) {
        self.counters.rejected += 1;
        for segment in burst.get(from..from + segments).unwrap_or_default() {
            if self.memory.buffer_iova(segment.buffer.0).is_some() {
                self.cache.push(segment.buffer.0);
            }
        }
    }

    /// Fills the next slot; there must be a free one.
    #[inline(always)]
    fn post(&mut self, words: [u64; 2], buffer: u32) {
        let [low, high] = words;
        self.ring.store(self.next, 0, low, Ordering::Relaxed);
        self.ring.store(self.next, 1, high, Ordering::Relaxed);
        if let Some(slot) = self.slots.get_mut(usize::from(self.next)) {
            *slot = buffer;
        }
        self.next = if self.next + 1 == self.ring.len() { 0 } else { self.next + 1 };
        self.free -= 1;
    }

    /// Counts a frame whose descriptors were just filled, and asks for a report if it is time.
    #[inline(always)]
    fn frame_posted(&mut self, descriptors: u16, bytes: u64) {
        self.counters.frames += 1;
        self.counters.bytes += bytes;
        self.unreported += descriptors;
        if self.unreported >= self.report.every {
            self.ask_report();
        }
    }

    /// Sets RS on the descriptor filled last, the end of a frame that the device was not told of
    /// yet.
    fn ask_report(&mut self) {
        let last = if self.next == 0 { self.ring.len() - 1 } else { self.next - 1 };
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
}
