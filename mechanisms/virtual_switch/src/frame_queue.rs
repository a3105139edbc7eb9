//! A bounded queue of frames from one thread to another, without a lock and without an allocation per frame.
//!
//! One thread has the [`FrameSender`], one the [`FrameReceiver`]. Frames lie in slots of memory that is nobody else's;
//! what finds no free slot is not taken. A receiver that sleeps is woken by one signal, whatever comes meanwhile.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
};

use event_fd::EventFd;
use rustix::io::Errno;
use shared_memory::{MemoryError, PageSize, SharedMapping, SharedSlice};

/// Frames in a queue, at most.
const SLOTS: usize = 512;
/// Bytes of a slot: the longest frame that passes here.
const SLOT: usize = 2048;

/// Why a queue could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameQueueError {
    #[error("no memory for a queue of frames")]
    Memory(#[from] MemoryError),
    #[error("no eventfd for a queue of frames")]
    EventFd(#[from] Errno),
}

/// A counter on a pair of cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

#[derive(Debug)]
struct Shared {
    memory: SharedMapping,
    lengths: Box<[AtomicUsize]>,
    /// Frames put in, since the beginning.
    put: Counter,
    /// Frames taken out.
    taken: Counter,
    /// The receiver wants to be told of the next frame.
    asleep: AtomicBool,
    wake: EventFd,
}

impl Shared {
    fn slot(&self, number: usize, length: usize) -> Option<SharedSlice<'_>> {
        self.memory.slice(number % SLOTS * SLOT, length).ok()
    }
}

/// Makes a queue.
pub(crate) fn frame_queue() -> Result<(FrameSender, FrameReceiver), FrameQueueError> {
    let (memory, _) = SharedMapping::create("frame queue", SLOTS * SLOT, PageSize::Base)?;
    let shared = Arc::new(Shared {
        memory,
        lengths: std::iter::repeat_with(AtomicUsize::default).take(SLOTS).collect(),
        put: Counter::default(),
        taken: Counter::default(),
        asleep: AtomicBool::new(false),
        wake: EventFd::new()?,
    });
    Ok((
        FrameSender { shared: Arc::clone(&shared), put: 0, taken: 0 },
        FrameReceiver { shared, taken: 0 },
    ))
}

/// Where frames are put in.
#[derive(Debug)]
pub(crate) struct FrameSender {
    shared: Arc<Shared>,
    put: usize,
    /// As it was when it was last looked at.
    taken: usize,
}

impl FrameSender {
    /// Puts a frame of so many bytes in, written by `fill`; false if there is no room for it.
    #[inline]
    pub(crate) fn put(&mut self, length: usize, fill: impl FnOnce(SharedSlice<'_>)) -> bool {
        if self.put.wrapping_sub(self.taken) >= SLOTS {
            self.taken = self.shared.taken.0.load(Ordering::Acquire);
            if self.put.wrapping_sub(self.taken) >= SLOTS {
                return false;
            }
        }
        if length > SLOT {
            return false;
        }
        let slot = self.shared.slot(self.put, length);
        let (Some(slot), Some(place)) = (slot, self.shared.lengths.get(self.put % SLOTS)) else {
            return false;
        };
        fill(slot);
        place.store(length, Ordering::Relaxed);
        self.put = self.put.wrapping_add(1);
        self.shared.put.0.store(self.put, Ordering::Release);
        true
    }

    /// Wakes the receiver, if it sleeps. After the last of some frames.
    #[inline]
    pub(crate) fn wake(&self) {
        // What was put in is visible before the flag is looked at; see `prepare_to_wait`.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed)
            && self.shared.asleep.swap(false, Ordering::Relaxed)
        {
            self.shared.wake.signal();
        }
    }

    /// Wakes the receiver whether it sleeps or not.
    pub(crate) fn waker(&self) -> FrameWaker {
        FrameWaker(Arc::clone(&self.shared))
    }
}

/// Wakes a receiver for other reasons than frames.
#[derive(Clone, Debug)]
pub(crate) struct FrameWaker(Arc<Shared>);

impl FrameWaker {
    pub(crate) fn wake(&self) {
        self.0.wake.signal();
    }
}

/// Where frames are taken out.
#[derive(Debug)]
pub(crate) struct FrameReceiver {
    shared: Arc<Shared>,
    taken: usize,
}

impl FrameReceiver {
    /// Hands up to `most` frames to `each`; returns how many there were.
    #[inline]
    pub(crate) fn take(&mut self, most: usize, mut each: impl FnMut(SharedSlice<'_>)) -> usize {
        let put = self.shared.put.0.load(Ordering::Acquire);
        let count = put.wrapping_sub(self.taken).min(most);
        for _ in 0..count {
            let length = self.shared.lengths.get(self.taken % SLOTS);
            let length = length.map_or(0, |length| length.load(Ordering::Relaxed));
            if let Some(frame) = self.shared.slot(self.taken, length) {
                each(frame);
            }
            self.taken = self.taken.wrapping_add(1);
            self.shared.taken.0.store(self.taken, Ordering::Release);
        }
        count
    }

    /// Asks to be woken by the next frame; false if there is one already.
    pub(crate) fn prepare_to_wait(&mut self) -> bool {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.shared.put.0.load(Ordering::Acquire) == self.taken
    }

    /// Takes the signal that came, and wants none.
    pub(crate) fn woken(&mut self) {
        self.shared.asleep.store(false, Ordering::Relaxed);
        self.shared.wake.take();
    }

    /// Readable when there is something.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn a_full_queue_takes_nothing_until_something_was_taken_out() {
        let (mut sender, mut receiver) = frame_queue().unwrap();
        let put = |sender: &mut FrameSender, byte| sender.put(60, |slot| slot.fill(byte));
        for number in 0..SLOTS {
            assert!(put(&mut sender, number as u8));
        }
        assert!(!put(&mut sender, 0));
        assert!(!sender.put(SLOT + 1, |_| panic!("no frame is so long")));
        let mut seen = Vec::new();
        let mut look = |slot: SharedSlice<'_>| {
            let mut bytes = [0; 60];
            assert_eq!((slot.len(), slot.read_into(&mut bytes)), (60, 60));
            seen.push(bytes[59]);
        };
        assert_eq!(receiver.take(2, &mut look), 2);
        assert!(put(&mut sender, 1) && put(&mut sender, 2) && !put(&mut sender, 3));
        assert_eq!(receiver.take(usize::MAX, &mut look), SLOTS);
        assert_eq!(receiver.take(1, &mut look), 0);
        let expected: Vec<u8> = (0..SLOTS).map(|number| number as u8).chain([1, 2]).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_receiver_that_sleeps_after_every_frame_misses_none() {
        const FRAMES: u32 = 20_000;
        let (mut sender, mut receiver) = frame_queue().unwrap();
        let sending = std::thread::spawn(move || {
            for number in 0..FRAMES {
                while !sender.put(60, |slot| {
                    slot.store_u32(0, number, Ordering::Relaxed);
                }) {
                    std::thread::yield_now();
                }
                sender.wake();
            }
        });
        let mut next = 0;
        while next < FRAMES {
            receiver.take(3, |slot| {
                assert_eq!(slot.load_u32(0, Ordering::Relaxed), Some(next));
                next += 1;
            });
            if next < FRAMES && receiver.prepare_to_wait() {
                let fd = receiver.as_fd();
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None);
            }
            receiver.woken();
        }
        sending.join().unwrap();
    }
}
