//! An eventfd: how one end of a channel wakes the other, whatever process that is in.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, poll},
    fs::OFlags,
    io::{Errno, ReadWriteFlags},
};

/// An eventfd, non-blocking, or the receiving end of one. Clones are the same one.
///
/// An eventfd's open file is shared by all who have it, and so is its non-blocking flag: a peer that clears the flag
/// and keeps the counter full could make [`EventFd::signal`] wait. So a peer that is not trusted is never given an
/// eventfd that is signalled here, but its [`EventFd::receiving_end`]. Reading an eventfd that the peer signals does
/// not wait where the kernel lets one say so (Linux 6.0 and later). The crate `event_fd` signals eventfds that only the
/// peer could have made, vfio-user's interrupts, at about three times the price.
#[derive(Clone, Debug)]
pub struct EventFd {
    fd: Arc<OwnedFd>,
    kind: Kind,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Kind {
    /// An eventfd.
    Event,
    /// An epoll instance that watches an eventfd for signals.
    ReceivingEnd,
}

impl EventFd {
    /// A fresh eventfd with counter 0.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd), kind: Kind::Event })
    }

    /// A descriptor that becomes readable by each signal from now on, and with which nothing else can be done to
    /// the eventfd: an epoll instance that watches it, edge-triggered.
    pub fn receiving_end(&self) -> io::Result<Self> {
        let fd = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&fd, &*self.fd, epoll::EventData::new_u64(0), flags)?;
        Ok(Self { fd: Arc::new(fd), kind: Kind::ReceivingEnd })
    }

    /// Takes a descriptor that came from another process. Anything but an eventfd or a receiving end is refused: a
    /// write to a pipe or a file could wait for that process.
    pub fn from_peer(fd: OwnedFd) -> io::Result<Self> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let target = rustix::fs::readlink(link, Vec::new())?;
        let kind = match target.as_bytes() {
            b"anon_inode:[eventfd]" => Kind::Event,
            b"anon_inode:[eventpoll]" => Kind::ReceivingEnd,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd")),
        };
        if kind == Kind::Event {
            let flags = rustix::fs::fcntl_getfl(&fd)?;
            rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(Self { fd: Arc::new(fd), kind })
    }

    /// Signals it. A counter that is full is pending anyway, so that is no error. Without
    /// effect on a receiving end.
    #[inline]
    pub fn signal(&self) {
        if self.kind == Kind::Event {
            let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Takes the count of signals since the last time; 0 when there was none. A receiving end counts no further
    /// than 1.
    pub fn take(&self) -> u64 {
        if self.kind == Kind::ReceivingEnd {
            let mut events = [MaybeUninit::uninit()];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let woken = epoll::wait(&*self.fd, &mut events[..], Some(&now));
            return woken.map_or(0, |(events, _)| events.len() as u64);
        }
        let mut count = [0; 8];
        let taken = match self.read_at_once(&mut count) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                rustix::io::read(&*self.fd, &mut count)
            }
            answered => answered,
        };
        if taken == Ok(8) { u64::from_ne_bytes(count) } else { 0 }
    }

    /// Reads without waiting, whatever the peer has made of the file's flags.
    fn read_at_once(&self, count: &mut [u8; 8]) -> Result<usize, Errno> {
        // The offset -1 stands for a file without positions.
        let mut parts = [IoSliceMut::new(count)];
        rustix::io::preadv2(&*self.fd, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT)
    }

    /// Waits until it is signalled, at most `limit`; tells whether it was. Leaves the count as it is.
    pub fn wait(&self, limit: std::time::Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&*self.fd, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_counted_and_a_full_counter_does_not_block() {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let eventfd = EventFd::from_peer(fd).unwrap();
        eventfd.signal();
        eventfd.clone().signal();
        assert_eq!(eventfd.take(), 2);
        assert_eq!(eventfd.take(), 0);
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        eventfd.signal();
        assert_eq!(eventfd.take(), u64::MAX - 1);
    }

    #[test]
    fn a_receiving_end_hears_each_signal_and_leaves_the_sender_alone() {
        let eventfd = EventFd::new().unwrap();
        let copy = eventfd.receiving_end().unwrap().as_fd().try_clone_to_owned().unwrap();
        let end = EventFd::from_peer(copy).unwrap();
        for _ in 0..3 {
            assert_eq!(end.take(), 0);
            assert!(!end.wait(std::time::Duration::ZERO).unwrap());
            eventfd.signal();
            eventfd.signal();
            assert!(end.wait(std::time::Duration::from_secs(60)).unwrap());
            assert_eq!(end.take(), 1);
            end.signal();
        }
        assert_eq!(eventfd.take(), 6);
    }

    #[test]
    fn a_peer_that_makes_reads_wait_does_not_succeed() {
        let eventfd = EventFd::new().unwrap();
        eventfd.signal();
        let supported = eventfd.read_at_once(&mut [0; 8]);
        if supported != Ok(8) {
            println!("skipped: this kernel cannot read an eventfd without waiting: {supported:?}");
            return;
        }
        let flags = rustix::fs::fcntl_getfl(&eventfd).unwrap();
        rustix::fs::fcntl_setfl(&eventfd, flags - OFlags::NONBLOCK).unwrap();
        assert_eq!(eventfd.take(), 0);
    }

    #[test]
    fn anything_but_an_eventfd_is_refused() {
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert!(EventFd::from_peer(pipe).is_err());
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(EventFd::from_peer(memfd).is_err());
    }
}
