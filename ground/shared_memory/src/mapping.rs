//! Mappings of memory files (memfd) that are shared with another process.
//!
//! `unsafe` here: mmap and munmap. A mapping stays valid for the life of its [`SharedMapping`], because the
//! file can no longer shrink (F_SEAL_SHRINK) and nothing else unmaps the range.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::Arc,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{MapFlags, MremapFlags, ProtFlags},
};

use crate::{Access, MemoryError, SharedSlice};

/// Bytes of a base page, the granule of DMA maps and of mappable BAR areas.
pub const PAGE_SIZE: usize = 4096;

/// Which pages back a memory file.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum PageSize {
    /// 4 KiB pages; transparent huge pages are asked for where the kernel has them for shared memory.
    Base,
    /// 2 MiB pages from the host's pool (`vm.nr_hugepages`).
    Huge2M,
}

/// A range of shared memory mapped into this process, unmapped when its last clone is dropped.
#[derive(Clone)]
pub struct SharedMapping(Arc<Inner>);

struct Inner {
    base: NonNull<u8>,
    length: usize,
    access: Access,
}

// SAFETY: the mapping is plain memory, valid until `Inner` drops; all access goes through raw volatile or
// atomic operations of this crate, which make no assumption about who else writes.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `base` and `length` come from the mmap in `SharedMapping::map`; no slice outlives us,
        // since every slice borrows the mapping.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.length) };
    }
}

impl std::fmt::Debug for SharedMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedMapping({:#x} bytes, {:?})", self.0.length, self.0.access)
    }
}

/// Creates a memory file of `length` bytes that can neither shrink nor grow, to be shared by descriptor.
///
/// `name` shows up in `/proc/PID/maps`. With [`PageSize::Huge2M`], `length` must be a multiple of 2 MiB.
pub fn create_memfd(name: &str, length: usize, pages: PageSize) -> Result<OwnedFd, MemoryError> {
    let huge = pages == PageSize::Huge2M;
    let failed = |source| MemoryError::Create { length, huge, source };
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let fd = rustix::fs::memfd_create(name, flags).map_err(failed)?;
    rustix::fs::ftruncate(&fd, length as u64).map_err(failed)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(failed)?;
    Ok(fd)
}

impl SharedMapping {
    /// Creates a memory file and maps all of it for reading and writing.
    pub fn create(
        name: &str,
        length: usize,
        pages: PageSize,
    ) -> Result<(Self, OwnedFd), MemoryError> {
        let fd = create_memfd(name, length, pages)?;
        let mapping = Self::map(fd.as_fd(), 0, length, Access::ReadWrite)?;
        if pages == PageSize::Base {
            mapping.advise_huge();
        }
        Ok((mapping, fd))
    }

    /// Maps `length` bytes of `fd` from byte `offset` (a multiple of the page size).
    ///
    /// The file must be a memfd that cannot shrink; if it merely allows sealing, the seal is added. A file
    /// that could shrink is refused, since its owner could kill this process with it.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
    ) -> Result<Self, MemoryError> {
        if !length.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::Misaligned { offset, length, alignment: PAGE_SIZE });
        }
        Self::map_bytes(fd, offset, length, access)
    }

    /// As [`Self::map`], of a file whose length need not be a multiple of the page size.
    pub fn map_bytes(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
    ) -> Result<Self, MemoryError> {
        if length == 0 || !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(MemoryError::Misaligned { offset, length, alignment: PAGE_SIZE });
        }
        let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| MemoryError::CanShrink)?;
        if !seals.contains(SealFlags::SHRINK) {
            rustix::fs::fcntl_add_seals(fd, SealFlags::SHRINK)
                .map_err(|_| MemoryError::CanShrink)?;
        }
        let failed = |source| MemoryError::Map { offset, length, source };
        let available = u64::try_from(rustix::fs::fstat(fd).map_err(failed)?.st_size).unwrap_or(0);
        if offset.checked_add(length as u64).is_none_or(|end| end > available) {
            return Err(MemoryError::OutOfRange { offset, length, available });
        }
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; it aliases nothing of ours.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                offset,
            )
        }
        .map_err(failed)?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(MemoryError::Map {
            offset,
            length,
            source: rustix::io::Errno::NOMEM,
        })?;
        Ok(Self(Arc::new(Inner { base, length, access })))
    }

    /// A mapping in which parts of others lie one after the other: for each its byte offset and length, multiples
    /// of the page size. It may be written only if all of them may.
    pub fn concatenate(parts: &[(&Self, usize, usize)]) -> Result<Self, MemoryError> {
        let mut length = 0usize;
        let mut access = Access::ReadWrite;
        for (mapping, offset, part) in parts {
            let misaligned = || MemoryError::Misaligned {
                offset: *offset as u64,
                length: *part,
                alignment: PAGE_SIZE,
            };
            if !offset.is_multiple_of(PAGE_SIZE) || !part.is_multiple_of(PAGE_SIZE) || *part == 0 {
                return Err(misaligned());
            }
            mapping.slice(*offset, *part)?;
            length = length.checked_add(*part).ok_or_else(misaligned)?;
            if mapping.access() == Access::Read {
                access = Access::Read;
            }
        }
        let failed = |source| MemoryError::Map { offset: 0, length, source };
        // SAFETY: a fresh reservation at an address of the kernel's choice; no length is an error of its own.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(failed)?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(failed(rustix::io::Errno::NOMEM))?;
        // From here on the whole reservation goes with the value, however much of it has been filled.
        let whole = Self(Arc::new(Inner { base, length, access }));
        let mut at = 0;
        for (mapping, offset, part) in parts {
            // SAFETY: the part lies in `mapping`, whose pages are shared, so that an old size of 0 maps them once
            // more; the target lies in the reservation, which nothing else uses.
            unsafe {
                rustix::mm::mremap_fixed(
                    mapping.base().add(*offset).as_ptr().cast::<c_void>(),
                    0,
                    *part,
                    MremapFlags::MAYMOVE,
                    base.add(at).as_ptr().cast::<c_void>(),
                )
            }
            .map_err(failed)?;
            at += part;
        }
        Ok(whole)
    }

    /// Asks for transparent huge pages; without effect where the kernel has none for shared memory.
    fn advise_huge(&self) {
        // SAFETY: the range is ours and the advice changes no contents.
        let _ = unsafe {
            rustix::mm::madvise(
                self.0.base.as_ptr().cast::<c_void>(),
                self.0.length,
                rustix::mm::Advice::LinuxHugepage,
            )
        };
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.0.length
    }

    /// Never true: an empty range cannot be mapped.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether the mapping may be written.
    pub fn access(&self) -> Access {
        self.0.access
    }

    /// The address of byte 0, for the sibling modules.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.0.base
    }

    /// The whole mapping as a slice.
    pub fn as_slice(&self) -> SharedSlice<'_> {
        // SAFETY: base..base+length is mapped for as long as `self` is borrowed.
        unsafe { SharedSlice::new(self.0.base, self.0.length) }
    }

    /// `length` bytes from `offset`.
    pub fn slice(&self, offset: usize, length: usize) -> Result<SharedSlice<'_>, MemoryError> {
        self.as_slice().get(offset, length).ok_or(MemoryError::OutOfRange {
            offset: offset as u64,
            length,
            available: self.0.length as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_of_one_file_see_each_other() {
        let (first, fd) = SharedMapping::create("test", 8192, PageSize::Base).unwrap();
        let second = SharedMapping::map(fd.as_fd(), 4096, 4096, Access::ReadWrite).unwrap();
        second.as_slice().write_from(b"clearway");
        let mut seen = [0u8; 8];
        first.slice(4096, 8).unwrap().read_into(&mut seen);
        assert_eq!(&seen, b"clearway");
    }

    #[test]
    fn a_file_that_can_shrink_is_refused() {
        let file = tempfile_like();
        assert!(matches!(
            SharedMapping::map(file.as_fd(), 0, 4096, Access::Read),
            Err(MemoryError::CanShrink)
        ));
    }

    #[test]
    fn a_range_beyond_the_end_is_refused() {
        let fd = create_memfd("test", 4096, PageSize::Base).unwrap();
        assert!(matches!(
            SharedMapping::map(fd.as_fd(), 4096, 4096, Access::Read),
            Err(MemoryError::OutOfRange { available: 4096, .. })
        ));
        assert!(matches!(
            SharedMapping::map(fd.as_fd(), 1, 4096, Access::Read),
            Err(MemoryError::Misaligned { .. })
        ));
    }

    #[test]
    fn a_file_that_ends_within_a_page_is_mapped_to_its_end() {
        let fd = create_memfd("log", 5000, PageSize::Base).unwrap();
        let map = |length| SharedMapping::map_bytes(fd.as_fd(), 0, length, Access::ReadWrite);
        assert!(matches!(map(5001), Err(MemoryError::OutOfRange { available: 5000, .. })));
        let mapping = map(5000).unwrap();
        assert!(mapping.slice(4996, 5).is_err());
        let last = mapping.slice(4996, 4).unwrap();
        last.set_bits_u32(0, 5, std::sync::atomic::Ordering::Relaxed).unwrap();
        assert_eq!(last.read_object::<u8>(0), Some(5));
    }

    /// A memfd without F_SEAL support stands for any ordinary file.
    fn tempfile_like() -> OwnedFd {
        let fd = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        fd
    }
}
