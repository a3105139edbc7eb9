//! Who is at the other end of a Unix socket.
//!
//! `unsafe`, because no crate offers this system call safely: rustix reads the process id as a number that is never
//! zero, and the kernel answers zero for a process of another pid namespace.
#![allow(unsafe_code)]

use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Ids of the process that connected, as of then.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Credentials {
    /// 0 for a process of another pid namespace.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

/// SO_PEERCRED.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> Result<Credentials, Errno> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the descriptor is open as long as it is borrowed; `peer` is a writable `ucred`, for which every bit pattern
    // is valid, and `length` says its size, so the kernel writes within it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut peer).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(Credentials { pid: peer.pid, uid: peer.uid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = peer_credentials(one.as_fd()).unwrap();
        assert_eq!(u32::try_from(peer.pid).unwrap(), std::process::id());
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
    }

    #[test]
    fn what_is_not_a_socket_has_no_other_end() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(peer_credentials(file.as_fd()), Err(Errno::NOTSOCK));
    }
}
