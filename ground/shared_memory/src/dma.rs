//! DMA maps: what a PCI function can reach in guest memory, and where that is in this process.
//!
//! A map is the function's IOMMU domain. It is immutable once shared: control code builds a changed copy
//! and hands it to whoever translates. An access outside of it is a [`DmaFault`], an ordinary value that
//! the caller counts against the function that caused it.

use std::{fmt, sync::Arc};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{MemoryError, PAGE_SIZE, SharedMapping, SharedSlice};

/// An address as the device sees it (IOVA), bytes.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default)]
pub struct DmaAddress(pub u64);

impl DmaAddress {
    /// The address `bytes` further on; `None` when it wraps.
    #[inline]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl fmt::Debug for DmaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaAddress({:#x})", self.0)
    }
}

impl fmt::Display for DmaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a device may do with a range.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

/// A device access outside of its DMA map, or a write to a read-only range.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("DMA {} of {length} bytes at {address} is not allowed by the function's DMA map", if *.write { "write" } else { "read" })]
pub struct DmaFault {
    /// First byte of the access.
    pub address: DmaAddress,
    /// Bytes.
    pub length: usize,
    /// Whether it was a write.
    pub write: bool,
}

/// One mapped range of a function's DMA address space.
#[derive(Clone, Debug)]
pub struct DmaRegion {
    /// First DMA address.
    pub iova: DmaAddress,
    /// Where it is in this process; its length is the region's.
    pub mapping: SharedMapping,
    /// What the device may do.
    pub access: Access,
}

impl DmaRegion {
    fn end(&self) -> u64 {
        self.iova.0 + self.mapping.len() as u64
    }
}

/// Where the last translation succeeded; makes the next one to the same region a compare.
#[derive(Copy, Clone, Default, Debug)]
pub struct TranslationCache(usize);

/// One region of a map, held ready for many translations: a compare and an addition each.
#[derive(Copy, Clone)]
pub struct DmaWindow<'m> {
    start: u64,
    bytes: SharedSlice<'m>,
    writable: bool,
}

impl<'m> DmaWindow<'m> {
    /// `length` bytes at `address` for reading, if the window holds them all.
    #[inline(always)]
    pub fn read_slice(&self, address: DmaAddress, length: usize) -> Option<SharedSlice<'m>> {
        let offset = usize::try_from(address.0.wrapping_sub(self.start)).ok()?;
        self.bytes.get(offset, length)
    }

    /// `length` bytes at `address` for writing, if the window holds them all and may be written.
    #[inline(always)]
    pub fn write_slice(&self, address: DmaAddress, length: usize) -> Option<SharedSlice<'m>> {
        if self.writable { self.read_slice(address, length) } else { None }
    }
}

/// The DMA map of one function. Cloning is cheap and gives the same immutable map.
#[derive(Clone, Default, Debug)]
pub struct DmaMap {
    /// Sorted by `iova`, not overlapping.
    regions: Arc<Vec<DmaRegion>>,
}

impl DmaMap {
    /// A map in which every access faults: bus mastering off, or nothing mapped yet.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The mapped regions in address order.
    pub fn regions(&self) -> &[DmaRegion] {
        &self.regions
    }

    /// A copy of the map with one more region.
    pub fn with(&self, region: DmaRegion) -> Result<Self, MemoryError> {
        let length = region.mapping.len() as u64;
        let overlap = MemoryError::Overlap { iova: region.iova.0, length };
        let Some(end) = region.iova.0.checked_add(length) else { return Err(overlap) };
        if self.regions.iter().any(|r| r.iova.0 < end && region.iova.0 < r.end()) {
            return Err(overlap);
        }
        let mut regions = Vec::clone(&self.regions);
        let at = regions.partition_point(|r| r.iova < region.iova);
        regions.insert(at, region);
        Ok(Self { regions: Arc::new(regions) })
    }

    /// A copy of the map without the region that starts at `iova` and has `length` bytes.
    pub fn without(&self, iova: DmaAddress, length: u64) -> Result<Self, MemoryError> {
        let mut regions = Vec::clone(&self.regions);
        let before = regions.len();
        regions.retain(|r| !(r.iova == iova && r.mapping.len() as u64 == length));
        if regions.len() == before {
            return Err(MemoryError::NotMapped { iova: iova.0, length });
        }
        Ok(Self { regions: Arc::new(regions) })
    }

    /// Translates `length` bytes at `address`, all in one region, for reading.
    #[inline]
    pub fn read_slice(
        &self,
        cache: &mut TranslationCache,
        address: DmaAddress,
        length: usize,
    ) -> Result<SharedSlice<'_>, DmaFault> {
        self.translate(cache, address, length, false)
    }

    /// Translates `length` bytes at `address`, all in one region, for writing.
    #[inline]
    pub fn write_slice(
        &self,
        cache: &mut TranslationCache,
        address: DmaAddress,
        length: usize,
    ) -> Result<SharedSlice<'_>, DmaFault> {
        self.translate(cache, address, length, true)
    }

    /// The region in which the last translation through `cache` succeeded; an empty one if there is none.
    #[inline]
    pub fn window(&self, cache: TranslationCache) -> DmaWindow<'_> {
        match self.regions.get(cache.0) {
            Some(region) => DmaWindow {
                start: region.iova.0,
                bytes: region.mapping.as_slice(),
                writable: region.access == Access::ReadWrite,
            },
            None => DmaWindow { start: 0, bytes: SharedSlice::empty(), writable: false },
        }
    }

    #[inline]
    fn translate(
        &self,
        cache: &mut TranslationCache,
        address: DmaAddress,
        length: usize,
        write: bool,
    ) -> Result<SharedSlice<'_>, DmaFault> {
        if let Some(region) = self.regions.get(cache.0)
            && let Some(slice) = within(region, address, length, write)
        {
            return Ok(slice);
        }
        let index = self.regions.partition_point(|r| r.end() <= address.0);
        let region = self.regions.get(index);
        match region.and_then(|region| within(region, address, length, write)) {
            Some(slice) => {
                cache.0 = index;
                Ok(slice)
            }
            None => Err(DmaFault { address, length, write }),
        }
    }

    /// The mapping behind `length` bytes at `address` and the byte offset in it, for long-lived views
    /// such as descriptor rings.
    pub fn locate(
        &self,
        address: DmaAddress,
        length: usize,
        write: bool,
    ) -> Result<(SharedMapping, usize), DmaFault> {
        let fault = DmaFault { address, length, write };
        let index = self.regions.partition_point(|r| r.end() <= address.0);
        let region = self.regions.get(index).ok_or(fault)?;
        let offset = usize::try_from(address.0.checked_sub(region.iova.0).ok_or(fault)?)
            .map_err(|_| fault)?;
        if within(region, address, length, write).is_some() {
            return Ok((region.mapping.clone(), offset));
        }
        self.gather(address, length, write).ok_or(fault)
    }

    /// As [`Self::locate`], for bytes that lie across adjacent regions: a guest with an IOMMU maps each page of
    /// a ring by itself. The pages are mapped once more, one after the other.
    fn gather(
        &self,
        address: DmaAddress,
        length: usize,
        write: bool,
    ) -> Option<(SharedMapping, usize)> {
        let page = PAGE_SIZE as u64;
        let start = address.0 - address.0 % page;
        let end = address.0.checked_add(length as u64)?.checked_next_multiple_of(page)?;
        let mut parts = Vec::new();
        let mut at = start;
        while at < end {
            let index = self.regions.partition_point(|r| r.end() <= at);
            let region = self.regions.get(index)?;
            let offset = usize::try_from(at.checked_sub(region.iova.0)?).ok()?;
            let until = region.end().min(end);
            let part = usize::try_from(until - at).ok()?;
            within(region, DmaAddress(at), part, write)?;
            parts.push((&region.mapping, offset, part));
            at = until;
        }
        let mapping = SharedMapping::concatenate(&parts).ok()?;
        Some((mapping, usize::try_from(address.0 - start).ok()?))
    }

    /// Reads bytes that may lie across several adjacent regions.
    pub fn read_bytes(&self, address: DmaAddress, out: &mut [u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let length = rest.len();
            done += self.longest(address, done, length, false)?.read_into(rest);
        }
        Ok(())
    }

    /// Writes bytes that may lie across several adjacent regions.
    pub fn write_bytes(&self, address: DmaAddress, data: &[u8]) -> Result<(), DmaFault> {
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            done += self.longest(address, done, rest.len(), true)?.write_from(rest);
        }
        Ok(())
    }

    /// Reads one plain value.
    pub fn read_object<T: FromBytes + IntoBytes>(
        &self,
        address: DmaAddress,
    ) -> Result<T, DmaFault> {
        let mut value = T::new_zeroed();
        self.read_bytes(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes one plain value.
    pub fn write_object<T: IntoBytes + Immutable>(
        &self,
        address: DmaAddress,
        value: &T,
    ) -> Result<(), DmaFault> {
        self.write_bytes(address, value.as_bytes())
    }

    /// The longest piece, up to `length` bytes, that one region holds `done` bytes after `address`.
    fn longest(
        &self,
        address: DmaAddress,
        done: usize,
        length: usize,
        write: bool,
    ) -> Result<SharedSlice<'_>, DmaFault> {
        let fault = DmaFault { address, length: done + length, write };
        let at = address.checked_add(done as u64).ok_or(fault)?;
        let index = self.regions.partition_point(|r| r.end() <= at.0);
        let region = self.regions.get(index).ok_or(fault)?;
        let left = usize::try_from(region.end() - at.0).map_err(|_| fault)?;
        within(region, at, length.min(left), write).ok_or(fault)
    }
}

#[inline(always)]
fn within(
    region: &DmaRegion,
    address: DmaAddress,
    length: usize,
    write: bool,
) -> Option<SharedSlice<'_>> {
    let offset = usize::try_from(address.0.checked_sub(region.iova.0)?).ok()?;
    if write && region.access == Access::Read {
        return None;
    }
    region.mapping.as_slice().get(offset, length)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::PageSize;

    fn region(iova: u64, pages: usize, access: Access) -> DmaRegion {
        let (mapping, _) = SharedMapping::create("dma", pages * 4096, PageSize::Base).unwrap();
        DmaRegion { iova: DmaAddress(iova), mapping, access }
    }

    #[test]
    fn bytes_cross_adjacent_regions_and_stop_at_holes() {
        let map = DmaMap::empty()
            .with(region(0x1_0000, 1, Access::ReadWrite))
            .unwrap()
            .with(region(0x1_1000, 1, Access::ReadWrite))
            .unwrap();
        let address = DmaAddress(0x1_0FFC);
        map.write_bytes(address, b"12345678").unwrap();
        let mut out = [0; 8];
        map.read_bytes(address, &mut out).unwrap();
        assert_eq!(&out, b"12345678");
        assert!(map.read_bytes(DmaAddress(0x1_1FFC), &mut out).is_err());
        assert!(map.read_slice(&mut TranslationCache::default(), address, 8).is_err());
        assert!(map.read_bytes(DmaAddress(u64::MAX - 3), &mut out).is_err());
    }

    #[test]
    fn a_window_translates_what_its_region_holds_and_nothing_else() {
        let map = DmaMap::empty()
            .with(region(0x4000, 1, Access::ReadWrite))
            .unwrap()
            .with(region(0x8000, 1, Access::Read))
            .unwrap();
        let mut cache = TranslationCache::default();
        map.read_slice(&mut cache, DmaAddress(0x8010), 8).unwrap();
        let window = map.window(cache);
        assert!(window.read_slice(DmaAddress(0x8FF8), 8).is_some());
        assert!(window.write_slice(DmaAddress(0x8010), 8).is_none(), "read only");
        for outside in [0x7FFF, 0x8FF9, 0x4000, 0, u64::MAX] {
            assert!(window.read_slice(DmaAddress(outside), 8).is_none());
        }
        let nothing = DmaMap::empty();
        assert!(nothing.window(cache).read_slice(DmaAddress(0), 1).is_none());
    }

    #[test]
    fn a_long_lived_view_spans_pages_mapped_one_by_one() {
        let (memory, fd) = SharedMapping::create("guest", 4 * 4096, PageSize::Base).unwrap();
        let mut map = DmaMap::empty();
        // Adjacent to the device, scattered in memory.
        for (iova, page) in [(0x1_0000, 2u64), (0x1_1000, 0), (0x1_2000, 3)] {
            let mapping =
                SharedMapping::map(fd.as_fd(), page * 4096, 4096, Access::ReadWrite).unwrap();
            let iova = DmaAddress(iova);
            map = map.with(DmaRegion { iova, mapping, access: Access::ReadWrite }).unwrap();
        }
        let (view, offset) = map.locate(DmaAddress(0x1_0800), 0x2000, true).unwrap();
        view.slice(offset, 0x2000).unwrap().fill(7);
        let byte = |at| memory.as_slice().read_object::<u8>(at).unwrap();
        assert_eq!([byte(0x27FF), byte(0x2800), byte(0x0), byte(0xFFF)], [0, 7, 7, 7]);
        assert_eq!([byte(0x3000), byte(0x37FF), byte(0x3800), byte(0x1000)], [7, 7, 0, 0]);
        assert!(map.locate(DmaAddress(0x1_2800), 0x1000, true).is_err(), "beyond the last page");
        drop(map);
        view.slice(offset, 8).unwrap().fill(9);
        assert_eq!(byte(0x2800), 9, "the view keeps the memory mapped");
    }

    #[test]
    fn a_read_only_region_takes_no_writes() {
        let map = DmaMap::empty().with(region(0, 1, Access::Read)).unwrap();
        assert!(map.read_object::<u32>(DmaAddress(0)).is_ok());
        assert_eq!(
            map.write_object(DmaAddress(0), &1u32),
            Err(DmaFault { address: DmaAddress(0), length: 4, write: true })
        );
    }

    #[test]
    fn overlaps_and_unknown_unmaps_are_refused_and_change_nothing() {
        let map = DmaMap::empty().with(region(0x4000, 2, Access::ReadWrite)).unwrap();
        assert!(map.with(region(0x5000, 1, Access::ReadWrite)).is_err());
        assert!(map.with(region(u64::MAX - 0xFFF, 1, Access::ReadWrite)).is_err());
        assert!(map.without(DmaAddress(0x4000), 0x1000).is_err());
        assert_eq!(map.without(DmaAddress(0x4000), 0x2000).unwrap().regions().len(), 0);
        assert_eq!(map.regions().len(), 1);
    }
}
