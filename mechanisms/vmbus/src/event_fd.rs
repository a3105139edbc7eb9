//! An eventfd: how one end of a channel wakes the other, whatever process that is in.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::{Errno, ReadWriteFlags},
};

/// An eventfd, non-blocking. Clones are the same one.
///
/// The open file is shared with the other end, and so is its non-blocking flag: a peer that clears the flag and
/// keeps the counter full can make [`EventFd::signal`] wait. That is the one thing an eventfd does not let its
/// signaller rule out; reading never waits where the kernel lets one say so (Linux 6.0 and later).
#[derive(Clone, Debug)]
pub struct EventFd(Arc<OwnedFd>);

impl EventFd {
    /// A fresh eventfd with counter 0.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Takes a descriptor that came from another process. Anything but an eventfd is refused: a write to a pipe or
    /// a file could wait for that process.
    pub fn from_peer(fd: OwnedFd) -> io::Result<Self> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let target = rustix::fs::readlink(link, Vec::new())?;
        if target.as_bytes() != b"anon_inode:[eventfd]" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd"));
        }
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Signals it. A counter that is full is pending anyway, so that is no error.
    #[inline]
    pub fn signal(&self) {
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Takes the count of signals since the last time; 0 when there was none.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        let taken = match self.read_at_once(&mut count) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                rustix::io::read(&*self.0, &mut count)
            }
            answered => answered,
        };
        if taken == Ok(8) { u64::from_ne_bytes(count) } else { 0 }
    }

    /// Reads without waiting, whatever the peer has made of the file's flags.
    fn read_at_once(&self, count: &mut [u8; 8]) -> Result<usize, Errno> {
        // The offset -1 stands for a file without positions.
        let mut parts = [IoSliceMut::new(count)];
        rustix::io::preadv2(&*self.0, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT)
    }

    /// Waits until it is signalled, at most `limit`; tells whether it was. Leaves the count as it is.
    pub fn wait(&self, limit: std::time::Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&*self.0, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
