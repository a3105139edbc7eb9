//! Process plumbing that std offers only as `unsafe`.
//!
//! `unsafe` here: `pre_exec` hooks, which make a few system calls and nothing else; adopting the descriptor
//! that the parent process left open for us; blocking a signal around one call.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use rustix::io::FdFlags;

/// Leaves `fd` open in the command's process, under the same number.
///
/// The caller keeps it open until the command is spawned.
pub(crate) fn keep_open(command: &mut Command, fd: BorrowedFd<'_>) {
    let number = fd.as_raw_fd();
    // SAFETY: the hook makes one system call, on a descriptor that is open in the forked process because it
    // is in the parent.
    unsafe {
        command.pre_exec(move || {
            let fd = BorrowedFd::borrow_raw(number);
            Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
        });
    }
}

/// Takes over the descriptor that the parent left open under this number; only once for each number.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: borrowed for one call, which fails if the descriptor is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, the parent meant it for this process, and nothing else here knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives the command a session of its own, with its standard input as controlling terminal.
pub(crate) fn new_session(command: &mut Command) {
    // SAFETY: the hook makes two system calls.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
}

/// Makes this process' group the foreground group of the terminal at standard input.
///
/// May be called from the background, where it would stop the process without SIGTTOU being blocked.
pub(crate) fn take_terminal() -> io::Result<()> {
    let group = rustix::process::getpgrp();
    // SAFETY: both sets are plain data that the calls initialize or read; the mask is put back as it was.
    unsafe {
        let (mut block, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut block);
        libc::sigaddset(&mut block, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &block, &mut before);
        let result = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), group);
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        Ok(result?)
    }
}
