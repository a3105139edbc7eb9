//! The listener of a VM's control socket.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{io::Errno, net::SocketFlags};

/// How long it is left alone after nobody could be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener. When descriptors or memory run out, whoever wants to connect waits in its backlog, for which `poll` would
/// call again and again: so it is left alone until a connection ends, and for [`ACCEPT_PAUSE`] at most.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    again: Option<Instant>,
}

impl Listener {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, again: None }
    }

    /// What to wait for, or until when.
    pub(super) fn wait_for(&self, now: Instant) -> Result<&OwnedFd, Duration> {
        match self.again.map(|again| again.saturating_duration_since(now)) {
            Some(left) if !left.is_zero() => Err(left),
            _ => Ok(&self.socket),
        }
    }

    /// Accepts whoever waits, unless it is left alone.
    pub(super) fn accept(&mut self, now: Instant) -> Option<OwnedFd> {
        self.wait_for(now).ok()?;
        let first = self.again.take().is_none();
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(fd) => return Some(fd),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return None,
                Err(error) => {
                    if first {
                        tracing::warn!(%error, "nobody can be accepted on the control socket now");
                    }
                    self.again = Some(now + ACCEPT_PAUSE);
                    return None;
                }
            }
        }
    }

    /// A connection has ended, and with it its descriptor.
    pub(super) fn room(&mut self, now: Instant) {
        self.again = self.again.map(|again| again.min(now));
    }
}
