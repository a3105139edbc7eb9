//! Guest memory: what of the guest physical address space is memory.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use shared_memory::{Access, DmaAddress, DmaMap, DmaRegion, MemoryError, SharedMapping};

/// A range of guest memory and the memory file it lies in, for other processes to map.
#[derive(Clone, Debug)]
pub struct GuestRegion {
    /// First guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub length: usize,
    /// Byte offset in the file.
    pub offset: u64,
    fd: Arc<OwnedFd>,
}

impl AsFd for GuestRegion {
    /// The memory file.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An immutable snapshot of guest memory. Clones are cheap and the same snapshot.
#[derive(Clone, Default, Debug)]
pub struct GuestMemory {
    regions: Arc<Vec<GuestRegion>>,
    map: DmaMap,
}

impl GuestMemory {
    /// No memory.
    pub fn empty() -> Self {
        Self::default()
    }

    /// A snapshot with one more range: `length` bytes of the memory file from `offset`, at address `gpa`.
    pub fn with(
        &self,
        gpa: u64,
        fd: OwnedFd,
        offset: u64,
        length: usize,
    ) -> Result<Self, MemoryError> {
        let mapping = SharedMapping::map(fd.as_fd(), offset, length, Access::ReadWrite)?;
        let region = DmaRegion { iova: DmaAddress(gpa), mapping, access: Access::ReadWrite };
        let map = self.map.with(region)?;
        let mut regions = Vec::clone(&self.regions);
        let at = regions.partition_point(|region| region.gpa < gpa);
        regions.insert(at, GuestRegion { gpa, length, offset, fd: Arc::new(fd) });
        Ok(Self { regions: Arc::new(regions), map })
    }

    /// Guest physical addresses to this process' mappings.
    pub fn map(&self) -> &DmaMap {
        &self.map
    }

    /// The ranges in address order, for other processes.
    pub fn regions(&self) -> &[GuestRegion] {
        &self.regions
    }
}
