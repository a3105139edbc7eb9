//! Vectored I/O between a file and guest memory, without a copy in between.
//!
//! `unsafe` here: the safe wrappers of preadv(2) and pwritev(2) take Rust slices, which memory that a guest changes at
//! any time must never be.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use vm_memory::VolatileSlice;

/// Slices of one transfer, at most: the kernel's UIO_MAXIOV.
pub(crate) const MOST_SLICES: usize = 1024;

/// Which way bytes go.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Direction {
    /// From the file into guest memory.
    ToGuest,
    /// From guest memory into the file.
    FromGuest,
}

/// Moves as many bytes as the slices, at most [`MOST_SLICES`], have room for, at byte `offset` of the file.
pub(crate) fn transfer(
    file: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_>],
    direction: Direction,
    mut offset: u64,
) -> io::Result<()> {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut parts: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .filter(|part| part.iov_len > 0)
        .collect();
    let mut first = 0;
    while let Some(left) = parts.get(first..).filter(|left| !left.is_empty()) {
        let count = libc::c_int::try_from(left.len()).map_err(io::Error::other)?;
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let fd = file.as_raw_fd();
        // SAFETY: each part is a range of mapped guest memory, which `slices` keeps mapped, writable and known to be
        // shared with a guest: nothing but volatile accesses and system calls touch it. The kernel checks the rest.
        let moved = unsafe {
            match direction {
                Direction::ToGuest => libc::preadv(fd, left.as_ptr(), count, at),
                Direction::FromGuest => libc::pwritev(fd, left.as_ptr(), count, at),
            }
        };
        let Ok(mut moved) = usize::try_from(moved) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if moved == 0 {
            // The file was cut short, or its device is.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset = offset.saturating_add(moved as u64);
        while let Some(part) = parts.get_mut(first) {
            if moved < part.iov_len {
                // Within the range, since it is less than its length.
                part.iov_base = part.iov_base.cast::<u8>().wrapping_add(moved).cast();
                part.iov_len -= moved;
                break;
            }
            moved -= part.iov_len;
            first += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsFd,
    };

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    #[test]
    fn bytes_go_to_slices_in_order_and_back_and_an_early_end_is_an_error() {
        let ranges = [(GuestAddress(0), 0x3000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let text: Vec<u8> = (0..3000u32).map(|n| (n % 251) as u8).collect();
        file.write_all(&text).unwrap();
        let slices = [(0x100, 1000), (0x2000, 0), (0x1001, 1500), (0x2FFF, 1)]
            .map(|(at, length)| memory.get_slice(GuestAddress(at), length).unwrap());
        transfer(file.as_fd(), &slices, Direction::ToGuest, 10).unwrap();
        let mut back = vec![0; 1500];
        memory.read_slice(&mut back, GuestAddress(0x1001)).unwrap();
        assert_eq!(back, text[1010..2510]);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x2FFF)).unwrap(), text[2510]);
        let mut other = tempfile::tempfile().unwrap();
        transfer(other.as_fd(), &slices, Direction::FromGuest, 0).unwrap();
        let mut written = Vec::new();
        std::io::Seek::rewind(&mut other).unwrap();
        other.read_to_end(&mut written).unwrap();
        assert_eq!(written, text[10..2511]);
        let error = transfer(file.as_fd(), &slices, Direction::ToGuest, 1000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let read_only = File::open("/proc/self/exe").unwrap();
        transfer(read_only.as_fd(), &slices, Direction::FromGuest, 0).unwrap_err();
    }
}
