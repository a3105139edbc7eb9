//! Buffers and how they circulate.
//!
//! Each queue keeps a small stack of free buffers of its own; what one queue has too much of goes
//! in chunks through a depot that all queues of the driver share. So a frame costs no lock: the
//! depot's is taken once per [`CHUNK`] frames, and only where buffers flow one way (receive here,
//! transmit there).

use std::sync::{Arc, Mutex, PoisonError};

/// Buffers a queue keeps at most for itself.
pub(crate) const CACHE: u32 = 256;
/// Buffers moved to or from the depot at a time.
pub(crate) const CHUNK: usize = 64;

/// One buffer of the driver's memory: a handle that owns it.
///
/// It is handed back by [`crate::TxQueue::free`], [`crate::RxQueue::free`], or by transmitting it.
/// A handle that is dropped leaves its buffer unused until the device is opened again; nothing else
/// breaks.
#[must_use = "a dropped handle leaves its buffer unused: transmit it or free it"]
#[derive(Debug, Eq, PartialEq)]
pub struct Buffer(pub(crate) u32);

/// The free buffers that no queue holds.
#[derive(Debug)]
pub(crate) struct Depot {
    /// Contended by the queues of one driver, for a copy of [`CHUNK`] indexes at a time. Never
    /// grows beyond its first capacity.
    free: Mutex<Vec<u32>>,
}

impl Depot {
    pub(crate) fn new(buffers: std::ops::Range<u32>) -> Self {
        Self { free: Mutex::new(buffers.rev().collect()) }
    }

    fn take(&self, into: &mut Vec<u32>, count: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let from = free.len().saturating_sub(count);
        into.extend(free.drain(from..));
    }

    fn put(&self, from: &mut Vec<u32>, count: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let room = free.capacity() - free.len();
        let keep = from.len().saturating_sub(count);
        free.extend(from.drain(keep..).take(room));
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
    free: Vec<u32>,
    depot: Arc<Depot>,
}

impl BufferCache {
    pub(crate) fn new(depot: Arc<Depot>) -> Self {
        Self { free: Vec::with_capacity(CACHE as usize), depot }
    }

    /// A free buffer; `None` when the queue and the depot have none.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<u32> {
        match self.free.pop() {
            Some(index) => Some(index),
            None => self.refill(),
        }
    }

    /// Whether `count` buffers can be popped, after asking the depot if need be.
    #[inline(always)]
    pub(crate) fn ensure(&mut self, count: usize) -> bool {
        if self.free.len() < count {
            self.depot.take(&mut self.free, CHUNK);
        }
        self.free.len() >= count
    }

    #[cold]
    fn refill(&mut self) -> Option<u32> {
        self.depot.take(&mut self.free, CHUNK);
        self.free.pop()
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, index: u32) {
        if self.free.len() == CACHE as usize {
            self.spill();
        }
        self.free.push(index);
    }

    #[cold]
    fn spill(&mut self) {
        self.depot.put(&mut self.free, CHUNK);
    }
}

impl Drop for BufferCache {
    fn drop(&mut self) {
        self.depot.put(&mut self.free, CACHE as usize);
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
            let index = receiver.pop().expect("the sender gives back what it has too much of");
            sender.push(index);
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
