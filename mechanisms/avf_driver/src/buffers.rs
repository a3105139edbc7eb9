//! Buffers and how they circulate.
//!
//! Each queue keeps a small stack of free buffers of its own; what one queue has too much of goes
//! in chunks through a depot that all queues of the driver share. So a frame costs no lock: the
//! depot's is taken once per [`CHUNK`] frames, and only where buffers flow one way (receive here,
//! transmit there).

use std::sync::{Arc, Mutex, PoisonError};

use arrayvec::ArrayVec;

/// Buffers a queue keeps at most for itself.
pub(crate) const CACHE: usize = 256;
/// Buffers moved to or from the depot at a time.
pub(crate) const CHUNK: usize = 64;

/// One buffer of the driver's memory: a handle that owns it.
///
/// It is handed back by [`crate::TxQueue::free`], [`crate::RxQueue::free`], or by transmitting it.
/// A handle that is dropped leaves its buffer unused until the device is opened again; nothing else
/// breaks.
#[must_use = "a dropped handle leaves its buffer unused: transmit it or free it"]
#[derive(Debug, Eq, PartialEq)]
pub struct Buffer(
    /// The cache line it begins with, counted from the start of the memory's window of numbers.
    pub(crate) u32,
);

/// The free buffers that no queue holds.
#[derive(Debug)]
pub(crate) struct Depot {
    /// Contended by the queues of one driver, for a copy of [`CHUNK`] numbers at a time. Never
    /// grows beyond its first capacity.
    free: Mutex<Vec<u32>>,
}

impl Depot {
    pub(crate) fn new(buffers: impl DoubleEndedIterator<Item = u32>) -> Self {
        Self { free: Mutex::new(buffers.rev().collect()) }
    }

    /// Moves up to `count` buffers to a queue's cache.
    fn take(&self, into: &mut ArrayVec<u32, CACHE>, count: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let from = free.len().saturating_sub(count.min(into.remaining_capacity()));
        into.extend(free.drain(from..));
    }

    /// Moves up to `count` buffers out of a queue's cache.
    fn put(&self, from: &mut ArrayVec<u32, CACHE>, count: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let room = free.capacity() - free.len();
        let keep = from.len().saturating_sub(count.min(room));
        free.extend(from.drain(keep..));
    }

    /// Buffers that no queue holds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.free.lock().unwrap().len()
    }
}

/// A queue's own stack of free buffers.
#[derive(Debug)]
pub(crate) struct BufferCache {
    free: ArrayVec<u32, CACHE>,
    depot: Arc<Depot>,
}

impl BufferCache {
    pub(crate) fn new(depot: Arc<Depot>) -> Self {
        Self { free: ArrayVec::new(), depot }
    }

    /// A free buffer; `None` when the queue and the depot have none.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<u32> {
        match self.free.pop() {
            Some(number) => Some(number),
            None => self.refill(),
        }
    }

    #[cold]
    #[inline(never)]
    fn refill(&mut self) -> Option<u32> {
        self.depot.take(&mut self.free, CHUNK);
        self.free.pop()
    }

    /// Whether `count` buffers (no more than [`CHUNK`]) can be popped, after asking the depot if
    /// need be.
    #[inline(always)]
    pub(crate) fn ensure(&mut self, count: usize) -> bool {
        if self.free.len() < count {
            self.depot.take(&mut self.free, CHUNK);
        }
        self.free.len() >= count
    }

    /// Buffers at hand without asking the depot.
    #[inline(always)]
    pub(crate) fn at_hand(&mut self) -> &mut ArrayVec<u32, CACHE> {
        &mut self.free
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, number: u32) {
        if self.free.try_push(number).is_err() {
            self.spill(number);
        }
    }

    #[cold]
    #[inline(never)]
    fn spill(&mut self, number: u32) {
        self.depot.put(&mut self.free, CHUNK);
        // Without room in the depot either, the number is one too many: it was freed twice.
        let _ = self.free.try_push(number);
    }
}

impl Drop for BufferCache {
    fn drop(&mut self) {
        self.depot.put(&mut self.free, CACHE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_flow_one_way_through_the_depot_and_none_is_lost() {
        let depot = Arc::new(Depot::new(100..1100));
        let mut receiver = BufferCache::new(depot.clone());
        let mut sender = BufferCache::new(depot.clone());
        for _ in 0..10_000 {
            let number = receiver.pop().expect("the sender gives back what it has too much of");
            sender.push(number);
        }
        drop((receiver, sender));
        let mut all = depot.free.lock().unwrap().clone();
        all.sort_unstable();
        assert_eq!(all, (100..1100).collect::<Vec<_>>());
    }

    #[test]
    fn an_empty_depot_gives_nothing() {
        let depot = Arc::new(Depot::new(0..2));
        let mut cache = BufferCache::new(depot.clone());
        assert_eq!((cache.pop(), cache.pop(), cache.pop()), (Some(0), Some(1), None));
        cache.push(1);
        assert_eq!(cache.pop(), Some(1));
        assert_eq!(depot.len(), 0);
    }
}
