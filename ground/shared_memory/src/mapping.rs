//! Mappings of memory files that are shared with another process.
//!
//! `unsafe` here: mmap and munmap. A mapping stays valid for the life of its [`SharedMapping`]: nothing else unmaps the
//! range, and its file can no longer shrink (F_SEAL_SHRINK), or else it is guarded ([`crate::MemoryWatch`]).
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

use crate::{Access, MemoryError, MemoryWatch, SharedSlice, guard::Guard};

/// Bytes of a base page, the granule of DMA maps and of mappable BAR areas.
pub const PAGE_SIZE: usize = 4096;

/// File systems of memory (`linux/magic.h`). A page of any other file may make its users wait for a disk, or for ever.
const TMPFS_MAGIC: u32 = 0x0102_1994;
const HUGETLBFS_MAGIC: u32 = 0x9584_58F6;

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
    /// All that is mapped: whole pages of the file.
    pages: Pages,
    guard: Option<Guard>,
}

/// What mmap has given.
#[derive(Copy, Clone)]
struct Pages {
    start: NonNull<u8>,
    length: usize,
    /// Bytes of a page of the file.
    size: usize,
}

// SAFETY: the mapping is plain memory, valid until `Inner` drops; all access goes through raw volatile or
// atomic operations of this crate, which make no assumption about who else writes.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // Before the range can be somebody else's.
        self.guard = None;
        let Pages { start, length, .. } = self.pages;
        // SAFETY: `pages` is what an mmap of this module gave; no slice outlives us, since every slice borrows the
        // mapping.
        let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast::<c_void>(), length) };
    }
}

impl Inner {
    fn guard_by(&mut self, watch: &Arc<MemoryWatch>) -> Result<(), rustix::io::Errno> {
        let Pages { start, length, .. } = self.pages;
        let writable = self.access == Access::ReadWrite;
        self.guard = Some(Guard::new(start.as_ptr(), length, writable, watch)?);
        Ok(())
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

/// Seals a file against shrinking if it allows that; whether it is sealed.
fn seal(fd: BorrowedFd<'_>) -> bool {
    let Ok(seals) = rustix::fs::fcntl_get_seals(fd) else { return false };
    // What does not need to be is not asked for: growing harms nobody, and its owner may want to.
    seals.contains(SealFlags::SHRINK) || rustix::fs::fcntl_add_seals(fd, SealFlags::SHRINK).is_ok()
}

/// Bytes of the pages of a file of memory; `None` if it is none.
fn page_size(fd: BorrowedFd<'_>) -> Result<Option<usize>, rustix::io::Errno> {
    let system = rustix::fs::fstatfs(fd)?;
    // Types of file systems have 32 bits, whatever the field's sign.
    let kind = u32::try_from(system.f_type & 0xFFFF_FFFF).unwrap_or(0);
    let size = usize::try_from(system.f_bsize).ok().filter(|size| size.is_power_of_two());
    Ok(match kind {
        TMPFS_MAGIC => Some(PAGE_SIZE),
        HUGETLBFS_MAGIC => size.filter(|size| *size >= PAGE_SIZE),
        _ => None,
    })
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

    /// Maps `length` bytes of `fd` from byte `offset`, both multiples of the page size.
    ///
    /// The file must be a memfd that cannot shrink; if it merely allows sealing, the seal is added.
    ///
    /// # Errors
    /// The file can shrink, ends before the range does, or cannot be mapped.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
    ) -> Result<Self, MemoryError> {
        if !seal(fd) {
            return Err(MemoryError::CanShrink);
        }
        Self::map_pages(fd, offset, length, access, None)
    }

    /// As [`Self::map`], of any file of memory: a memfd, or one on tmpfs or hugetlbfs. It gets the seal if it allows
    /// that. If its owner takes pages away all the same, or the host has none left for it, `watch` says so, and the
    /// mapping reads as zeros.
    ///
    /// # Errors
    /// The file is not of memory, ends before the range does, or cannot be mapped.
    pub fn map_guarded(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
        watch: &Arc<MemoryWatch>,
    ) -> Result<Self, MemoryError> {
        seal(fd);
        Self::map_pages(fd, offset, length, access, Some(watch))
    }

    /// As [`Self::map_guarded`], of a length that need not be a multiple of the page size.
    ///
    /// # Errors
    /// As there.
    pub fn map_bytes_guarded(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
        watch: &Arc<MemoryWatch>,
    ) -> Result<Self, MemoryError> {
        seal(fd);
        Self::map_range(fd, offset, length, access, Some(watch))
    }

    fn map_pages(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
        watch: Option<&Arc<MemoryWatch>>,
    ) -> Result<Self, MemoryError> {
        if !length.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::Misaligned { offset, length, alignment: PAGE_SIZE });
        }
        Self::map_range(fd, offset, length, access, watch)
    }

    fn map_range(
        fd: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        access: Access,
        watch: Option<&Arc<MemoryWatch>>,
    ) -> Result<Self, MemoryError> {
        let misaligned = MemoryError::Misaligned { offset, length, alignment: PAGE_SIZE };
        if length == 0 || !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(misaligned);
        }
        let failed = |source| MemoryError::Map { offset, length, source };
        let size = page_size(fd).map_err(failed)?.ok_or(MemoryError::NotMemory)?;
        let available = u64::try_from(rustix::fs::fstat(fd).map_err(failed)?.st_size).unwrap_or(0);
        if offset.checked_add(length as u64).is_none_or(|end| end > available) {
            return Err(MemoryError::OutOfRange { offset, length, available });
        }
        // Huge pages are mapped whole.
        let before = usize::try_from(offset % size as u64).map_err(|_| misaligned)?;
        let bytes = before.checked_add(length).and_then(|end| end.checked_next_multiple_of(size));
        let bytes = bytes.ok_or(MemoryError::OutOfRange { offset, length, available })?;
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: a fresh shared mapping at an address of the kernel's choice; it aliases nothing of ours.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                offset - before as u64,
            )
        }
        .map_err(failed)?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(failed(rustix::io::Errno::NOMEM))?;
        // SAFETY: less than a page of the file further on; the mapping has `length` bytes behind it.
        let base = unsafe { start.add(before) };
        let pages = Pages { start, length: bytes, size };
        // From here on what was mapped goes with the value.
        let mut inner = Inner { base, length, access, pages, guard: None };
        if let Some(watch) = watch {
            inner.guard_by(watch).map_err(failed)?;
        }
        Ok(Self(Arc::new(inner)))
    }

    /// A mapping in which parts of others lie one after the other: for each its byte offset and length, multiples
    /// of the page size. It may be written only if all of them may.
    pub fn concatenate(parts: &[(&Self, usize, usize)]) -> Result<Self, MemoryError> {
        let mut length = 0usize;
        let mut access = Access::ReadWrite;
        let mut watch = None;
        for (mapping, offset, part) in parts {
            // Where the kernel moves huge pages, it moves whole ones: more than there is room for.
            let alignment = mapping.0.pages.size;
            let misaligned =
                || MemoryError::Misaligned { offset: *offset as u64, length: *part, alignment };
            if !offset.is_multiple_of(alignment) || !part.is_multiple_of(alignment) || *part == 0 {
                return Err(misaligned());
            }
            watch = watch.or(mapping.watch());
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
        let pages = Pages { start: base, length, size: PAGE_SIZE };
        let mut whole = Inner { base, length, access, pages, guard: None };
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
        if let Some(watch) = watch {
            whole.guard_by(watch).map_err(failed)?;
        }
        Ok(Self(Arc::new(whole)))
    }

    /// Who is told if the memory is taken away; `None` if that cannot be.
    pub fn watch(&self) -> Option<&Arc<MemoryWatch>> {
        self.0.guard.as_ref().map(Guard::watch)
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
        let watch = MemoryWatch::new().unwrap();
        let map = |length| {
            SharedMapping::map_bytes_guarded(fd.as_fd(), 0, length, Access::ReadWrite, &watch)
        };
        assert!(matches!(map(5001), Err(MemoryError::OutOfRange { available: 5000, .. })));
        let mapping = map(5000).unwrap();
        assert!(mapping.slice(4996, 5).is_err());
        let last = mapping.slice(4996, 4).unwrap();
        last.set_bits_u32(0, 5, std::sync::atomic::Ordering::Relaxed).unwrap();
        assert_eq!(last.read_object::<u8>(0), Some(5));
    }

    #[test]
    fn a_file_that_is_not_memory_is_refused() {
        let watch = MemoryWatch::new().unwrap();
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let status = std::fs::File::open("/proc/self/status").unwrap();
        for fd in [pipe.as_fd(), status.as_fd()] {
            let mapped = SharedMapping::map_guarded(fd, 0, 4096, Access::Read, &watch);
            assert!(matches!(mapped, Err(MemoryError::NotMemory)));
        }
    }

    /// A memfd without F_SEAL support stands for any ordinary file.
    fn tempfile_like() -> OwnedFd {
        let fd = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        fd
    }
}
