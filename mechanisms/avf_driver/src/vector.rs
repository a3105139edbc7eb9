//! The interrupt of a queue: an event descriptor that the device signals, and the register that
//! arms it.
//!
//! Interrupts are one-shot: the device signals once and disarms; what happens before the queue arms
//! again is signalled then (SPEC-AVF §6.3).

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use avf_protocol::registers::{DynCtl, dyn_ctl};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    io::Errno,
};

use crate::{DriverError, Result, bar::Bar, transport::Interrupt};

/// An event descriptor, non-blocking.
pub(crate) fn event_descriptor() -> Result<OwnedFd> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
        DriverError::Io { operation: "creating an event descriptor", source: errno.into() }
    })
}

/// Clears an event descriptor and tells whether it was signalled.
pub(crate) fn take(event: BorrowedFd<'_>) -> bool {
    rustix::io::read(event, &mut [0u8; 8]).is_ok()
}

/// Signals an event descriptor.
pub(crate) fn signal(event: BorrowedFd<'_>) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Waits until one of `descriptors` is readable or hung up; `false` when `limit` passed before.
pub(crate) fn wait_readable(
    descriptors: &[BorrowedFd<'_>],
    limit: Option<Duration>,
) -> Result<bool> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let mut set: Vec<PollFd<'_>> =
            descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match rustix::event::poll(&mut set, left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(DriverError::Io {
                    operation: "waiting for the device",
                    source: errno.into(),
                });
            }
        }
    }
}

/// One MSI-X vector as a receive queue uses it.
#[derive(Clone, Debug)]
pub(crate) struct Vector {
    event: Arc<dyn Interrupt>,
    bar: Arc<Bar>,
    number: u16,
}

impl Vector {
    pub(crate) fn new(event: Arc<dyn Interrupt>, bar: Arc<Bar>, number: u16) -> Self {
        Self { event, bar, number }
    }

    /// Lets the device signal once.
    pub(crate) fn arm(&self) -> Result<()> {
        self.bar.post(dyn_ctl(self.number), DynCtl::ENABLE.0)
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.event_fd()
    }

    pub(crate) fn acknowledge(&self) {
        self.event.take();
    }

    /// Waits for the signal and takes it.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> Result<bool> {
        let woken = wait_readable(&[self.event.event_fd()], limit)?;
        if woken {
            self.acknowledge();
        }
        Ok(woken)
    }
}
