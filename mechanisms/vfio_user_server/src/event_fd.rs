//! An eventfd that a client gave for signalling an interrupt.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::{event::EventfdFlags, fs::OFlags, io::Errno as OsError};
use vfio_user_protocol::Errno;

/// An eventfd, checked to be one and made non-blocking, since the data path writes to it.
///
/// The open file is shared with whoever created it, and so is its non-blocking flag: a client that clears the
/// flag and keeps the counter full can still make [`EventFd::signal`] wait. That is the one thing an eventfd does
/// not let its signaller rule out.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A fresh eventfd with counter 0.
    pub fn new() -> Result<Self, OsError> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Takes a descriptor that came from a client. Anything but an eventfd is refused: a write to a pipe or a
    /// file could wait for the client.
    pub fn from_client(fd: OwnedFd) -> Result<Self, Errno> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let target = rustix::fs::readlink(link, Vec::new()).map_err(|_| Errno::INVAL)?;
        if target.as_bytes() != b"anon_inode:[eventfd]" {
            return Err(Errno::INVAL);
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|_| Errno::INVAL)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|_| Errno::INVAL)?;
        Ok(Self(fd))
    }

    /// Signals it. A counter that is full is pending anyway, so that is no error.
    #[inline]
    pub fn signal(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the count of signals since the last time; 0 when there was none.
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
    use super::*;

    #[test]
    fn signals_are_counted_and_a_full_counter_does_not_block() {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let eventfd = EventFd::from_client(fd).unwrap();
        eventfd.signal();
        eventfd.signal();
        assert_eq!(eventfd.take(), 2);
        assert_eq!(eventfd.take(), 0);
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        eventfd.signal();
        assert_eq!(eventfd.take(), u64::MAX - 1);
    }

    #[test]
    fn anything_but_an_eventfd_is_refused() {
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert_eq!(EventFd::from_client(pipe).unwrap_err(), Errno::INVAL);
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(EventFd::from_client(memfd).unwrap_err(), Errno::INVAL);
    }
}
