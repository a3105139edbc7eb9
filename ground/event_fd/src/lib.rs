//! Eventfds that another process holds too, signalled without ever waiting for it.
//!
//! Interrupts are eventfds that a client made. A write to an eventfd waits while its counter is full, unless the
//! *open file* is non-blocking; the client shares the open file, can clear that flag and can keep the counter full.
//! Asking first whether there is room (`poll`) leaves a moment in between, eventfds cannot be opened a second time,
//! and the kernel takes no RWF_NOWAIT for writes to them. So a signal is not written here: it is the completion of
//! an asynchronous operation that is complete at once (`completion`), for which the kernel adds to the counter
//! and never waits, whatever the flag and the counter are. Whoever plays such tricks misses interrupts; nobody
//! else notices.
//!
//! Such a signal costs about three writes. Who makes an eventfd himself, and hands out an end that can be read and
//! nothing else, needs none of it: a plain write will do, as `vmbus::EventFd` has it for the rings of VMBus.
//!
//! It refuses to know what a signal means, and to touch flags of files that others opened.
//!
//! Layer: ground (ARCHITECTURE.md).

mod completion;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// An eventfd.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

/// A file descriptor that is not an eventfd. A write to anything else could wait for another process.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("the file descriptor is not an eventfd")]
pub struct NotAnEventFd;

impl EventFd {
    /// A fresh eventfd with counter 0, for reading by this process.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> Result<Self, Errno> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Takes a descriptor that came from another process.
    ///
    /// # Errors
    /// [`NotAnEventFd`] for anything else, which is closed.
    pub fn from_peer(fd: OwnedFd) -> Result<Self, NotAnEventFd> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let target = rustix::fs::readlink(link, Vec::new()).map_err(|_| NotAnEventFd)?;
        if target.as_bytes() == b"anon_inode:[eventfd]" { Ok(Self(fd)) } else { Err(NotAnEventFd) }
    }

    /// Adds 1 to the counter. A counter that is full is pending anyway, so that is no error. Never waits; takes one
    /// system call.
    #[inline]
    pub fn signal(&self) {
        if !completion::signal(self.0.as_fd()) {
            self.signal_if_there_is_room();
        }
    }

    /// The second best, where the kernel offers no asynchronous operations: waits if somebody fills the counter between
    /// the look at it and the write, and has made the open file blocking.
    #[cold]
    fn signal_if_there_is_room(&self) {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&at_once));
        let [fd] = &fds;
        if ready == Ok(1) && fd.revents().contains(PollFlags::OUT) {
            let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        }
    }

    /// Takes the count of signals since the last time; 0 when there was none. Waits for none if the eventfd is
    /// [`Self::new`]'s; another may be blocking.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(eventfd: EventFd) -> Self {
        eventfd.0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::{Duration, Instant},
    };

    use rustix::fs::OFlags;

    use super::*;

    /// What a client hands over, and keeps.
    fn blocking() -> (EventFd, OwnedFd) {
        let theirs = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        (EventFd::from_peer(theirs.try_clone().unwrap()).unwrap(), theirs)
    }

    fn fill(fd: &OwnedFd) {
        rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    }

    #[test]
    fn signals_are_counted_and_their_owners_flags_left_alone() {
        let (ours, theirs) = blocking();
        // More than the kernel remembers completions of.
        for _ in 0..10_000 {
            ours.signal();
        }
        assert_eq!(ours.take(), 10_000);
        assert!(!rustix::fs::fcntl_getfl(&theirs).unwrap().contains(OFlags::NONBLOCK));
        let own = EventFd::new().unwrap();
        own.signal();
        assert_eq!((own.take(), own.take()), (1, 0));
    }

    /// In a thread, so that the test fails where a write would wait for ever.
    fn returns_soon(action: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(action);
        let start = Instant::now();
        while !thread.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(10), "it waits");
            std::thread::yield_now();
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_full_counter_of_a_blocking_file_makes_nobody_wait() {
        let (ours, theirs) = blocking();
        fill(&theirs);
        returns_soon(move || (0..1000).for_each(|_| ours.signal()));
        let mut count = [0; 8];
        rustix::io::read(&theirs, &mut count).unwrap();
        assert!(u64::from_ne_bytes(count) >= u64::MAX - 1);
    }

    #[test]
    fn nor_does_it_without_asynchronous_operations() {
        let (ours, theirs) = blocking();
        ours.signal_if_there_is_room();
        assert_eq!(ours.take(), 1);
        fill(&theirs);
        returns_soon(move || ours.signal_if_there_is_room());
    }

    /// A client that fills and empties the counter all the time hits every moment of a signal.
    #[test]
    fn a_client_that_races_with_signals_makes_nobody_wait() {
        let (ours, theirs) = blocking();
        let (done, filler_is_gone) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    fill(&theirs);
                }
                filler_is_gone.store(true, Ordering::Release);
            });
            // The filler itself waits whenever a signal came in between: this thread lets it go on.
            scope.spawn(|| {
                while !filler_is_gone.load(Ordering::Acquire) {
                    let mut fds = [PollFd::new(&theirs, PollFlags::IN)];
                    let a_while = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                    if poll(&mut fds, Some(&a_while)) == Ok(1) {
                        let mut count = [0; 8];
                        let _ = rustix::io::read(&theirs, &mut count);
                    }
                }
            });
            for _ in 0..20_000 {
                ours.signal();
            }
            done.store(true, Ordering::Release);
        });
    }

    #[test]
    fn anything_but_an_eventfd_is_refused() {
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert_eq!(EventFd::from_peer(pipe).unwrap_err(), NotAnEventFd);
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(EventFd::from_peer(memfd).unwrap_err(), NotAnEventFd);
    }

    #[test]
    fn this_kernel_offers_asynchronous_operations() {
        let own = EventFd::new().unwrap();
        if !completion::signal(own.as_fd()) {
            println!("skipped: the kernel, or who confines this process, allows no io_setup(2)");
            return;
        }
        assert_eq!(own.take(), 1);
    }
}
