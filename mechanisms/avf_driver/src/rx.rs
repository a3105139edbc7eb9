//! Receive queue: descriptors and buffers of one RX ring (SPEC-AVF §5.1, §5.4, §5.5).

use std::{
    fmt,
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arrayvec::ArrayVec;
use avf_protocol::receive::{DD, EOP, RxLegacy, legacy};
use shared_memory::DescriptorRing;

use crate::{
    Buffer, DriverError, DriverMemory, MAX_CHAIN, Result, RxSegment,
    buffers::{BufferCache, CHUNK, Depot},
    doorbell::Doorbell,
    gate::Gate,
    memory::BufferMap,
    vector::Vector,
};

/// Buffers handed to the device at a time; a quarter of the ring where that is less.
const REFILL_GROUP: u16 = 32;

/// How many descriptors ahead the ring's cache lines are fetched, to be written: far enough to hide
/// the way from the device's core, near enough not to take lines that the device is about to write.
/// At the end of the ring the hint goes astray, which costs nothing.
const AHEAD: u16 = 8;

/// What a receive queue has seen. Counts go on over resets.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct RxCounters {
    /// Frames received.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames the device marked as damaged (RXE), dropped.
    pub damaged: u64,
    /// Descriptors that make no sense, whose frames were dropped: more bytes than the buffer has,
    /// none at all, or a frame of more than [`MAX_CHAIN`] buffers. A device that counts here is
    /// broken or hostile.
    pub malformed: u64,
    /// Times that a frame was left waiting because no free buffer could take its place in the ring:
    /// the user holds too many.
    pub no_buffer: u64,
}

/// How a wait for frames ended.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Wait {
    /// There are frames, or there were, or the queue was stopped: look.
    Ready,
    /// Nothing came in time.
    TimedOut,
}

/// The receive half of a queue pair. One thread at a time owns it; nothing in it locks or allocates
/// per frame.
///
/// All slots of the ring always hold a buffer: a received buffer is replaced in its slot at once,
/// while the cache line is at hand, and the device is told in groups.
pub struct RxQueue {
    index: u16,
    ring: DescriptorRing<4>,
    /// Next slot to look at.
    next: u16,
    /// Slots refilled that the device was not told of.
    untold: u16,
    refill_group: u16,
    /// In the middle of a frame that is being dropped.
    dropping: bool,
    /// The buffer in each slot.
    slots: Box<[u32]>,
    tail: Doorbell,
    cache: BufferCache,
    buffers: BufferMap,
    memory: Arc<DriverMemory>,
    gate: Gate,
    vector: Option<Vector>,
    counters: RxCounters,
}

impl fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxQueue")
            .field("index", &self.index)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl RxQueue {
    pub(crate) fn new(
        index: u16,
        memory: Arc<DriverMemory>,
        depot: Arc<Depot>,
        ring: DescriptorRing<4>,
        tail: Doorbell,
        gate: Gate,
    ) -> Self {
        let length = ring.len();
        Self {
            index,
            next: 0,
            untold: 0,
            refill_group: REFILL_GROUP.min(length / 4),
            dropping: false,
            slots: Box::new([]),
            tail,
            cache: BufferCache::new(depot),
            buffers: memory.buffers(),
            memory,
            gate,
            vector: None,
            counters: RxCounters::default(),
            ring,
        }
    }

    /// Fills all slots anew: buffers still in the ring stay there. The device must not be able to
    /// reach the ring; it is told by [`start`](Self::start).
    ///
    /// # Errors
    /// There are not enough free buffers for the ring, because the caller holds (or dropped) too
    /// many.
    pub(crate) fn restart(
        &mut self,
        tail: Doorbell,
        gate: Gate,
        vector: Option<Vector>,
    ) -> Result<()> {
        let length = self.ring.len();
        if self.slots.is_empty() {
            let buffers: Vec<u32> = (0..length).map_while(|_| self.cache.pop()).collect();
            if buffers.len() < usize::from(length) {
                buffers.into_iter().for_each(|index| self.cache.push(index));
                return Err(DriverError::Configuration(
                    "not enough free buffers to fill a receive ring".into(),
                ));
            }
            self.slots = buffers.into();
        }
        for (slot, index) in (0..length).zip(&self.slots) {
            let iova = self.buffers.iova(*index).unwrap_or_default();
            self.ring.store(slot, 0, iova, Ordering::Relaxed);
            for word in 1..4 {
                self.ring.store(slot, word, 0, Ordering::Relaxed);
            }
        }
        self.next = 0;
        self.untold = 0;
        self.dropping = false;
        self.tail = tail;
        self.gate = gate;
        self.vector = vector;
        Ok(())
    }

    /// Hands all slots but one to the device (SPEC-AVF Appendix A.7); the queue must be configured.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.tail.ring_checked(u32::from(self.ring.len() - 1))
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

    /// Gives back a buffer; one of another driver's memory is ignored.
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

    /// What the queue has seen.
    pub fn counters(&self) -> RxCounters {
        self.counters
    }

    /// Whether the device was reset, or is gone: nothing is received any more. Hand the queue pair
    /// to [`crate::AvfControl::rebuild`].
    #[inline]
    pub fn is_stopped(&self) -> bool {
        !self.gate.is_open()
    }

    /// Whether the next descriptor is done: one load of memory.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.ring.load(self.next, 1, Ordering::Relaxed) & DD != 0
    }

    /// Appends received frames to `out`, whole frames only, until `out` is full or no more are
    /// there.
    ///
    /// Returns how many frames were appended. `N` is at least [`MAX_CHAIN`]. On a stopped queue
    /// nothing happens.
    #[inline]
    pub fn receive<const N: usize>(&mut self, out: &mut ArrayVec<RxSegment, N>) -> usize {
        const { assert!(N >= MAX_CHAIN, "a burst must be able to hold one frame") };
        if !self.gate.is_open() {
            return 0;
        }
        let mut frames = 0;
        // What the device owns; a device that claims more is not followed.
        let mut owned = self.ring.len() - 1 - self.untold;
        while owned > 0 && !out.is_full() {
            if !self.dropping {
                let count = self.take_plain(owned, out);
                frames += usize::from(count);
                owned -= count;
            }
            // Nothing more, or a frame that is not plain.
            let Some((count, kept)) = self.take_other(owned, out) else { break };
            frames += usize::from(kept);
            owned -= count;
        }
        if self.untold >= self.refill_group {
            self.tell();
        }
        frames
    }

    /// Takes up to `limit` frames from the front of the ring as long as they are plain: in one
    /// buffer, and sound. Each one's buffer is replaced by a fresh one at once. Returns how many.
    #[inline(always)]
    fn take_plain<const N: usize>(&mut self, limit: u16, out: &mut ArrayVec<RxSegment, N>) -> u16 {
        let mut taken = 0;
        // In two runs where the ring goes round.
        for _ in 0..2 {
            let room = u16::try_from(out.remaining_capacity()).unwrap_or(u16::MAX);
            let run = (limit - taken).min(room).min(self.ring.len() - self.next);
            let count = self.take_plain_run(run, out);
            taken += count;
            self.next += count;
            if self.next < self.ring.len() {
                break;
            }
            self.next = 0;
        }
        self.untold += taken;
        self.counters.frames += u64::from(taken);
        taken
    }

    #[inline(always)]
    fn take_plain_run<const N: usize>(
        &mut self,
        run: u16,
        out: &mut ArrayVec<RxSegment, N>,
    ) -> u16 {
        self.cache.ensure(usize::from(run).min(CHUNK));
        let buffers = self.buffers;
        let memory = self.memory.view();
        let fresh = self.cache.at_hand();
        let stock = fresh.as_slice();
        let mut left = stock.len();
        let slots = self.slots.get_mut(usize::from(self.next)..).unwrap_or_default();
        let mut bytes = 0u64;
        let mut taken = 0;
        for (descriptor, slot) in self.ring.run(self.next, run).zip(slots) {
            self.ring.prefetch_write(self.next + taken + AHEAD);
            let word = descriptor.load(1, Ordering::Acquire);
            let length = RxLegacy([0, word, 0, 0]).length();
            // Neither empty nor larger than the buffer, in one comparison.
            if word & (DD | EOP | legacy::RXE) != DD | EOP
                || u32::from(length).wrapping_sub(1) >= buffers.size
            {
                break;
            }
            let Some(number) = stock.get(left.wrapping_sub(1)).copied() else { break };
            left -= 1;
            let words = [descriptor.load(0, Ordering::Relaxed), word];
            descriptor.store(0, buffers.iova(number).unwrap_or_default(), Ordering::Relaxed);
            descriptor.store(1, 0, Ordering::Relaxed);
            let buffer = Buffer(std::mem::replace(slot, number));
            // Whoever receives a frame looks at its headers next.
            memory.prefetch_read(&buffer);
            let _ = out.try_push(RxSegment { buffer, length, words });
            bytes += u64::from(length);
            taken += 1;
        }
        fresh.truncate(left);
        self.counters.bytes += bytes;
        taken
    }

    /// Takes one frame of any kind, if it is there whole and `out` has room: the slots it took, and
    /// whether it was kept.
    #[inline]
    fn take_other<const N: usize>(
        &mut self,
        owned: u16,
        out: &mut ArrayVec<RxSegment, N>,
    ) -> Option<(u16, bool)> {
        let word = self.ring.load(self.next, 1, Ordering::Acquire);
        if word & DD == 0 {
            return None;
        }
        self.take_chain(word, owned, out)
    }

    #[cold]
    #[inline(never)]
    fn take_chain<const N: usize>(
        &mut self,
        word: u64,
        owned: u16,
        out: &mut ArrayVec<RxSegment, N>,
    ) -> Option<(u16, bool)> {
        let count = self.chain(owned);
        if count == 0 || usize::from(count) > out.remaining_capacity() {
            return None;
        }
        match self.take_frame(word, count, out) {
            Some(kept) => Some((count, kept)),
            None => {
                self.counters.no_buffer += 1;
                None
            }
        }
    }

    /// Slots of the frame at `next`, if all of it is there, else 0. A frame that is too long is
    /// given in pieces, to be dropped.
    fn chain(&mut self, owned: u16) -> u16 {
        let length = self.ring.len();
        let mut slot = self.next;
        for count in 1..=owned {
            let word = self.ring.load(slot, 1, Ordering::Acquire);
            if word & DD == 0 {
                // What is being dropped need not be whole.
                return if self.dropping { count - 1 } else { 0 };
            }
            if word & EOP != 0 {
                return count;
            }
            if usize::from(count) == MAX_CHAIN {
                if !self.dropping {
                    self.counters.malformed += 1;
                    self.dropping = true;
                }
                return count;
            }
            slot = if slot + 1 == length { 0 } else { slot + 1 };
        }
        0
    }

    /// Takes `count` segments, a frame whose first quadword 1 is `word`, out of the ring into
    /// `out`. `None` if buffers to replace them are lacking; else whether the frame was kept.
    fn take_frame<const N: usize>(
        &mut self,
        word: u64,
        count: u16,
        out: &mut ArrayVec<RxSegment, N>,
    ) -> Option<bool> {
        if !self.cache.ensure(usize::from(count)) {
            return None;
        }
        let before = out.len();
        let mut bytes = 0u64;
        let mut sound = !self.dropping;
        let mut word = word;
        for left in (0..count).rev() {
            let segment = self.take_slot(word)?;
            bytes += u64::from(segment.length);
            sound &= u32::from(segment.length) <= self.buffers.size;
            // The end where it was when the frame was measured.
            sound &= (word & EOP != 0) == (left == 0);
            let _ = out.try_push(segment);
            if left > 0 {
                word = self.ring.load(self.next, 1, Ordering::Acquire);
            }
        }
        let kept = sound && bytes > 0 && word & legacy::RXE == 0;
        if kept {
            self.counters.frames += 1;
            self.counters.bytes += bytes;
        } else {
            self.drop_frame(out, before, word);
        }
        Some(kept)
    }

    /// Takes one segment, whose quadword 1 is `word`, out of its slot and puts a fresh buffer
    /// there, which [`tell`](Self::tell) hands over.
    fn take_slot(&mut self, word: u64) -> Option<RxSegment> {
        let next = self.next;
        // `word` is quadword 1, read once by the caller with acquire.
        let words = [self.ring.load(next, 0, Ordering::Relaxed), word];
        let fresh = self.cache.pop()?;
        let iova = self.buffers.iova(fresh).unwrap_or_default();
        self.ring.store(next, 0, iova, Ordering::Relaxed);
        self.ring.store(next, 1, 0, Ordering::Relaxed);
        let index = std::mem::replace(self.slots.get_mut(usize::from(next))?, fresh);
        self.next = if next + 1 == self.ring.len() { 0 } else { next + 1 };
        self.untold += 1;
        let length = RxLegacy([words[0], words[1], 0, 0]).length();
        Some(RxSegment { buffer: Buffer(index), length, words })
    }

    /// Frees the segments that were appended after `before`, and counts why.
    #[cold]
    fn drop_frame<const N: usize>(
        &mut self,
        out: &mut ArrayVec<RxSegment, N>,
        before: usize,
        last: u64,
    ) {
        if self.dropping {
            // Counted when it began.
            self.dropping = last & EOP == 0;
        } else if last & legacy::RXE != 0 {
            self.counters.damaged += 1;
        } else {
            self.counters.malformed += 1;
        }
        for segment in out.drain(before..) {
            self.cache.push(segment.buffer.0);
        }
    }

    /// Hands the refilled slots to the device, all but the one before `next`, which stays empty to
    /// it.
    #[inline(always)]
    fn tell(&mut self) {
        let tail = if self.next == 0 { self.ring.len() - 1 } else { self.next - 1 };
        self.tail.ring(u32::from(tail));
        self.untold = 0;
    }

    /// Arms the queue's interrupt and looks once more: `true` if frames are there already (or the
    /// queue is stopped), so that there is nothing to wait for. Otherwise
    /// [`event_fd`](Self::event_fd) becomes readable with the next frame.
    ///
    /// # Errors
    /// The driver was opened without interrupts, or the device is gone.
    pub fn arm(&mut self) -> Result<bool> {
        let vector = self.vector.as_ref().ok_or(DriverError::NotGranted("interrupts"))?;
        if !self.gate.is_open() || self.is_ready() {
            return Ok(true);
        }
        vector.arm()?;
        Ok(self.is_ready())
    }

    /// The descriptor that becomes readable when an armed queue has frames, for a caller's own poll
    /// loop; `None` without interrupts. After it was readable: [`acknowledge`](Self::acknowledge),
    /// receive until nothing comes, arm again.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.vector.as_ref().map(Vector::event_fd)
    }

    /// Makes [`event_fd`](Self::event_fd) unreadable until the next interrupt.
    pub fn acknowledge(&mut self) {
        if let Some(vector) = &self.vector {
            vector.acknowledge();
        }
    }

    /// Sleeps until there are frames, or `limit` has passed (`None`: for as long as it takes).
    ///
    /// # Errors
    /// The driver was opened without interrupts, or the device is gone.
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<Wait> {
        if self.arm()? {
            return Ok(Wait::Ready);
        }
        let vector = self.vector.as_ref().ok_or(DriverError::NotGranted("interrupts"))?;
        let woken = vector.wait(limit)?;
        Ok(if woken || self.is_ready() { Wait::Ready } else { Wait::TimedOut })
    }
}
