//! Signals as completions of asynchronous operations (io_submit(2)): the one way for a process to have the kernel add to
//! an eventfd's counter without a chance of waiting.
//!
//! `unsafe`, because neither the standard library nor rustix has these system calls.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use rustix::event::EventfdFlags;

/// `struct iocb` of the kernel's `aio_abi.h`, on little-endian machines.
#[derive(Default)]
#[repr(C)]
struct Operation {
    data: u64,
    /// Written by the kernel.
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    /// For [`POLL`]: the events asked for.
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    /// The eventfd that is signalled on completion.
    eventfd: u32,
}
const _: () = assert!(size_of::<Operation>() == 64);

/// `struct io_event`.
#[derive(Copy, Clone, Default)]
#[repr(C)]
struct Event([u64; 4]);
const _: () = assert!(size_of::<Event>() == 32);

/// IOCB_CMD_POLL.
const POLL: u16 = 5;
/// IOCB_FLAG_RESFD.
const SIGNAL_EVENTFD: u32 = 1;
/// Completions that the kernel remembers until they are taken.
const EVENTS: usize = 128;
/// How often to make room before giving up: other threads may use it up.
const ATTEMPTS: usize = 4;

/// A context for asynchronous operations, for all threads of the process.
struct Completions {
    context: libc::c_ulong,
    /// A file that is always ready: an operation that waits for it is complete when it is submitted.
    ready: OwnedFd,
}

/// For the life of the process; `None` where it cannot be had.
static COMPLETIONS: OnceLock<Option<Completions>> = OnceLock::new();

/// Signals an eventfd; false if nothing was done.
#[inline]
pub(crate) fn signal(eventfd: BorrowedFd<'_>) -> bool {
    COMPLETIONS.get_or_init(Completions::new).as_ref().is_some_and(|it| it.signal(eventfd))
}

fn number(fd: &impl AsRawFd) -> Option<u32> {
    u32::try_from(fd.as_raw_fd()).ok()
}

impl Completions {
    fn new() -> Option<Self> {
        if cfg!(target_endian = "big") {
            return None;
        }
        let ready =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes the context's id through the pointer, which is valid and holds 0 as it demands.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &raw mut context) };
        if done != 0 {
            let error = std::io::Error::last_os_error();
            tracing::warn!(%error, "interrupts are signalled by plain writes: io_setup(2) failed");
            return None;
        }
        Some(Self { context, ready })
    }

    fn signal(&self, eventfd: BorrowedFd<'_>) -> bool {
        let (Some(fd), Some(eventfd)) = (number(&self.ready), number(&eventfd)) else {
            return false;
        };
        let mut operation = Operation {
            opcode: POLL,
            fd,
            buffer: u64::from(libc::POLLOUT.unsigned_abs()),
            flags: SIGNAL_EVENTFD,
            eventfd,
            ..Operation::default()
        };
        for _ in 0..ATTEMPTS {
            let mut operations = [&raw mut operation];
            // SAFETY: one pointer is passed, to an operation that is valid, writable and not shared, in the kernel's
            // layout. The kernel reads it (and writes its key) during the call only. The operation itself touches no
            // memory of this process but the context's, which the kernel owns.
            let submitted = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, 1, operations.as_mut_ptr())
            };
            if submitted == 1 {
                return true;
            }
            if std::io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN) {
                return false;
            }
            self.forget_completions();
        }
        false
    }

    /// Makes room: nobody cares for the completions themselves.
    #[cold]
    fn forget_completions(&self) {
        let mut events = [Event::default(); EVENTS];
        let mut at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most `EVENTS` events to an array of as many, in its layout, and reads the timeout;
        // both outlive the call.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                EVENTS,
                events.as_mut_ptr(),
                &raw mut at_once,
            )
        };
    }
}
