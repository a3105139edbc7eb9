//! The DMA ranges of one client: bookkeeping, limits, and the function's DMA map.

use std::{collections::BTreeMap, os::fd::AsFd, sync::Arc};

use shared_memory::{
    Access, DmaAddress, DmaMap, DmaRegion, MemoryError, MemoryWatch, PAGE_SIZE, SharedMapping,
};
use vfio_user_protocol::{DmaAccess, DmaUnmapTarget, Errno};

use crate::{
    Limits,
    limits::{Pool, Share},
};

/// Why a DMA range was refused; the text is for the log, the errno for the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DmaError {
    #[error("DMA range {address:#x}+{size:#x} is empty, wraps, or is not aligned to 4 KiB")]
    Range { address: u64, size: u64 },
    #[error("DMA range {address:#x}+{size:#x} overlaps one that is mapped")]
    Exists { address: u64, size: u64 },
    #[error("DMA range {address:#x}+{size:#x} is not mapped")]
    NotMapped { address: u64, size: u64 },
    #[error("DMA range {address:#x}+{size:#x} is write-only, which is not supported")]
    WriteOnly { address: u64, size: u64 },
    #[error("a client may map {limit} DMA ranges at a time; {address:#x}+{size:#x} is one more")]
    TooMany { address: u64, size: u64, limit: usize },
    #[error("DMA range {address:#x}+{size:#x} exceeds the {limit} bytes that a client may map")]
    TooLarge { address: u64, size: u64, limit: u64 },
    #[error(
        "no room for DMA range {address:#x}+{size:#x}: all functions together have used up what is shared"
    )]
    PoolEmpty { address: u64, size: u64 },
    #[error(
        "the memory of DMA range {address:#x}+{size:#x} cannot be mapped: {source}{}",
        cure(.source)
    )]
    Memory {
        address: u64,
        size: u64,
        #[source]
        source: MemoryError,
    },
}

fn cure(error: &MemoryError) -> &'static str {
    match error {
        MemoryError::NotMemory => " (QEMU: use -object memory-backend-memfd with share=on)",
        _ => "",
    }
}

impl DmaError {
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } => Errno::INVAL,
            Self::Exists { .. } => Errno::EXIST,
            Self::NotMapped { .. } => Errno::NOENT,
            Self::WriteOnly { .. } => Errno::OPNOTSUPP,
            Self::TooMany { .. } | Self::TooLarge { .. } | Self::PoolEmpty { .. } => Errno::NOSPC,
            Self::Memory { source, .. } => match source {
                MemoryError::NotMemory => Errno::PERM,
                MemoryError::OutOfRange { .. } | MemoryError::Misaligned { .. } => Errno::INVAL,
                MemoryError::Overlap { .. } => Errno::EXIST,
                _ => Errno::NOMEM,
            },
        }
    }
}

/// Whether the function's DMA map changed with a request.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum MapChange {
    Changed,
    Unchanged,
}

#[derive(Debug)]
struct Range {
    size: u64,
    /// Whether memory came with it and it is in the map.
    mapped: bool,
}

/// The ranges a client has announced.
///
/// QEMU announces everything in the guest's address space: RAM with a memfd, but also ROM and other devices'
/// BARs, without a descriptor. The latter are remembered, so that they can be unmapped and nothing overlaps them,
/// but the function cannot reach them.
#[derive(Debug)]
pub(crate) struct DmaTable {
    limits: Limits,
    /// By first address; they do not overlap.
    ranges: BTreeMap<u64, Range>,
    map: DmaMap,
    /// What the map's mappings take of the process.
    share: Share,
    /// Over all of them.
    watch: Arc<MemoryWatch>,
}

impl DmaTable {
    pub(crate) fn new(limits: Limits, pool: Arc<Pool>, watch: Arc<MemoryWatch>) -> Self {
        let share = Share::new(pool);
        Self { limits, ranges: BTreeMap::new(), map: DmaMap::empty(), share, watch }
    }

    pub(crate) fn map(&self) -> &DmaMap {
        &self.map
    }

    /// Adds a range; any error changes nothing.
    pub(crate) fn add(
        &mut self,
        address: u64,
        size: u64,
        access: DmaAccess,
        memory: Option<(impl AsFd, u64)>,
    ) -> Result<MapChange, DmaError> {
        let wrong = || DmaError::Range { address, size };
        let page = PAGE_SIZE as u64;
        if size == 0 || !size.is_multiple_of(page) || !address.is_multiple_of(page) {
            return Err(wrong());
        }
        // The last page of the address space cannot be mapped, since its end does not fit in 64 bits.
        let end = address.checked_add(size).ok_or_else(wrong)?;
        if let Some((start, before)) = self.ranges.range(..end).next_back()
            && start.saturating_add(before.size) > address
        {
            return Err(DmaError::Exists { address, size });
        }
        if self.ranges.len() >= self.limits.dma_ranges {
            return Err(DmaError::TooMany { address, size, limit: self.limits.dma_ranges });
        }
        let Some((fd, offset)) = memory else {
            self.ranges.insert(address, Range { size, mapped: false });
            return Ok(MapChange::Unchanged);
        };
        let access = match access {
            DmaAccess::Read => Access::Read,
            DmaAccess::ReadWrite => Access::ReadWrite,
            // A mapping that the device cannot read does not exist on x86, and pretending would give the
            // device more than the client granted.
            DmaAccess::Write => return Err(DmaError::WriteOnly { address, size }),
        };
        let limit = self.limits.dma_bytes;
        if limit.saturating_sub(self.share.bytes()) < size {
            return Err(DmaError::TooLarge { address, size, limit });
        }
        let length =
            usize::try_from(size).map_err(|_| DmaError::TooLarge { address, size, limit })?;
        let memory_error = |source| DmaError::Memory { address, size, source };
        self.share.take(size).ok_or(DmaError::PoolEmpty { address, size })?;
        let map = SharedMapping::map_guarded(fd.as_fd(), offset, length, access, &self.watch)
            .and_then(|mapping| {
                self.map.with(DmaRegion { iova: DmaAddress(address), mapping, access })
            });
        match map {
            Ok(map) => self.map = map,
            Err(error) => {
                self.share.give(size);
                return Err(memory_error(error));
            }
        }
        self.ranges.insert(address, Range { size, mapped: true });
        Ok(MapChange::Changed)
    }

    /// Removes ranges; any error changes nothing.
    pub(crate) fn remove(&mut self, target: DmaUnmapTarget) -> Result<MapChange, DmaError> {
        let (address, size) = match target {
            DmaUnmapTarget::All => return Ok(self.clear()),
            DmaUnmapTarget::Range { address, size } => (address, size),
        };
        match self.ranges.get(&address) {
            Some(range) if range.size == size => {
                if range.mapped {
                    self.map = self
                        .map
                        .without(DmaAddress(address), size)
                        .map_err(|source| DmaError::Memory { address, size, source })?;
                    self.share.give(size);
                }
            }
            _ => return Err(DmaError::NotMapped { address, size }),
        }
        match self.ranges.remove(&address) {
            Some(Range { mapped: true, .. }) => Ok(MapChange::Changed),
            _ => Ok(MapChange::Unchanged),
        }
    }

    /// Removes every range.
    pub(crate) fn clear(&mut self) -> MapChange {
        self.ranges.clear();
        self.share.give_all();
        if self.map.regions().is_empty() {
            return MapChange::Unchanged;
        }
        self.map = DmaMap::empty();
        MapChange::Changed
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use proptest::prelude::*;
    use shared_memory::{PageSize, create_memfd};

    use super::*;

    fn table() -> DmaTable {
        let limits = Limits { dma_ranges: 4, dma_bytes: 1 << 20 };
        DmaTable::new(limits, Pool::process(), MemoryWatch::new().unwrap())
    }

    const NOTHING: Option<(OwnedFd, u64)> = None;

    fn memory(pages: usize) -> Option<(OwnedFd, u64)> {
        Some((create_memfd("dma-table", pages * 4096, PageSize::Base).unwrap(), 0))
    }

    #[test]
    fn ranges_without_memory_are_remembered_but_not_reachable() {
        let mut table = table();
        let unchanged = table.add(0xE000_0000, 0x1000, DmaAccess::ReadWrite, NOTHING).unwrap();
        assert_eq!(unchanged, MapChange::Unchanged);
        assert!(table.map().regions().is_empty());
        let overlap = table.add(0xDFFF_F000, 0x2000, DmaAccess::Read, memory(2)).unwrap_err();
        assert_eq!(overlap.errno(), Errno::EXIST);
        let target = DmaUnmapTarget::Range { address: 0xE000_0000, size: 0x1000 };
        assert_eq!(table.remove(target).unwrap(), MapChange::Unchanged);
        assert_eq!(table.remove(target).unwrap_err().errno(), Errno::NOENT);
    }

    #[test]
    fn limits_hold_and_freed_room_can_be_used_again() {
        let mut table = table();
        for i in 0..4u64 {
            table.add(i * 0x1000, 0x1000, DmaAccess::ReadWrite, memory(1)).unwrap();
        }
        let error = table.add(0x8000, 0x1000, DmaAccess::ReadWrite, memory(1)).unwrap_err();
        assert_eq!(error.errno(), Errno::NOSPC);
        table.remove(DmaUnmapTarget::Range { address: 0x3000, size: 0x1000 }).unwrap();
        let large = table.add(0x10_0000, 1 << 20, DmaAccess::ReadWrite, memory(256)).unwrap_err();
        assert!(matches!(large, DmaError::TooLarge { .. }));
        table.add(0x10_0000, 0xF_D000, DmaAccess::ReadWrite, memory(253)).unwrap();
        assert_eq!(table.remove(DmaUnmapTarget::All).unwrap(), MapChange::Changed);
        assert!(table.map().regions().is_empty());
        table.add(0x10_0000, 1 << 20, DmaAccess::ReadWrite, memory(256)).unwrap();
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused_and_change_nothing() {
        let mut table = table();
        for (address, size) in
            [(0, 0), (0, 100), (1, 0x1000), (u64::MAX - 0xFFF, 0x1000), (0x1000, u64::MAX - 0xFFF)]
        {
            let error = table.add(address, size, DmaAccess::Read, NOTHING).unwrap_err();
            assert_eq!(error.errno(), Errno::INVAL, "{address:#x}+{size:#x}");
        }
        let error = table.add(0, 0x2000, DmaAccess::Read, memory(1)).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        let status = OwnedFd::from(std::fs::File::open("/proc/self/status").unwrap());
        let error = table.add(0, 0x1000, DmaAccess::Read, Some((status, 0))).unwrap_err();
        assert_eq!(error.errno(), Errno::PERM);
        assert!(error.to_string().contains("memory-backend-memfd"), "{error}");
        let error = table.add(0, 0x1000, DmaAccess::Write, memory(1)).unwrap_err();
        assert_eq!(error.errno(), Errno::OPNOTSUPP);
        assert!(table.ranges.is_empty() && table.map().regions().is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u64, u64, bool),
        Remove(u64, u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u64..24, 1u64..6, any::<bool>()).prop_map(|(a, s, m)| Step::Add(a, s, m)),
            4 => (0u64..24, 1u64..6).prop_map(|(a, s)| Step::Remove(a, s)),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_page_by_page_model(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let (_, fd) = SharedMapping::create("model", 8 * 4096, PageSize::Base).unwrap();
            let mut table = DmaTable::new(
                Limits { dma_ranges: 8, dma_bytes: 16 * 4096 },
                Pool::process(),
                MemoryWatch::new().unwrap(),
            );
            let mut model: Vec<(u64, u64, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Add(at, pages, mapped) => {
                        let overlaps = model.iter().any(|(a, s, _)| *a < at + pages && at < a + s);
                        let held: u64 = model.iter().filter(|r| r.2).map(|r| r.1).sum();
                        let fits = model.len() < 8 && (!mapped || held + pages <= 16);
                        let memory = mapped.then(|| (fd.try_clone().unwrap(), 0));
                        let result =
                            table.add(at * 4096, pages * 4096, DmaAccess::ReadWrite, memory);
                        prop_assert_eq!(result.is_ok(), !overlaps && fits);
                        if result.is_ok() {
                            model.push((at, pages, mapped));
                        }
                    }
                    Step::Remove(at, pages) => {
                        let target = DmaUnmapTarget::Range { address: at * 4096, size: pages * 4096 };
                        let before = model.len();
                        model.retain(|(a, s, _)| !(*a == at && *s == pages));
                        prop_assert_eq!(table.remove(target).is_ok(), model.len() != before);
                    }
                    Step::Clear => {
                        table.clear();
                        model.clear();
                    }
                }
                let mut mapped: Vec<_> =
                    model.iter().filter(|r| r.2).map(|r| (r.0 * 4096, r.1 * 4096)).collect();
                mapped.sort_unstable();
                let seen: Vec<_> = table.map().regions().iter()
                    .map(|r| (r.iova.0, r.mapping.len() as u64)).collect();
                prop_assert_eq!(seen, mapped);
            }
        }
    }
}
