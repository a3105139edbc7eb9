//! A buffer of guest pages that a GPADL describes, in this process.

use std::sync::Arc;

use shared_memory::{
    DmaAddress, DmaFault, DmaMap, MemoryError, PAGE_SIZE, SharedMapping, SharedSlice,
};

use crate::RingMemory;

/// Runs of adjacent pages that a ring may consist of: each takes two mappings of the process' limited number.
pub const MAX_RING_RUNS: usize = 512;

/// Why a GPADL's range cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestBufferError {
    /// A page lies outside of guest memory, or may not be written.
    #[error("page {index} of the buffer is not the guest's memory")]
    NotGuestMemory {
        /// Which page of the buffer.
        index: usize,
        /// What was refused.
        #[source]
        source: DmaFault,
    },
    /// Length and number of pages do not match.
    #[error("{pages} pages do not hold {byte_count} bytes from offset {byte_offset}")]
    Length {
        /// Pages given.
        pages: usize,
        /// Where the buffer begins in its first page.
        byte_offset: u32,
        /// Bytes of the buffer.
        byte_count: u32,
    },
    /// A ring that is not a whole number of pages of the buffer, or of fewer than two.
    #[error("pages {first}..{end} of {pages} cannot be a ring")]
    NoRing {
        /// First page of the ring.
        first: usize,
        /// Behind its last page.
        end: usize,
        /// Pages of the buffer.
        pages: usize,
    },
    /// A ring in more pieces than this process wants to map.
    #[error("the ring lies in more than {limit} separate runs of guest pages")]
    TooScattered {
        /// Runs that are mapped at most.
        limit: usize,
    },
    /// The kernel refused the mapping.
    #[error("mapping guest pages of a ring")]
    Map(#[source] MemoryError),
}

/// One page of a buffer.
#[derive(Copy, Clone, Debug)]
struct Page {
    /// Which of the buffer's mappings.
    mapping: u32,
    /// Pages from here on (this one included) that lie one after the other in the mapping.
    run: u32,
    /// Byte offset in the mapping.
    offset: usize,
}

/// Guest pages as one buffer. Clones share the same immutable table.
///
/// The pages are those of one snapshot of guest memory; the mappings live as long as the buffer.
#[derive(Clone, Debug)]
pub struct GuestBuffer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mappings: Vec<SharedMapping>,
    pages: Vec<Page>,
    /// Where the buffer begins in its first page.
    start: usize,
    length: usize,
}

impl GuestBuffer {
    /// The buffer of `byte_count` bytes that begins at `byte_offset` of the first of `frames`, which are page frame
    /// numbers. All pages must be guest memory that may be written.
    pub fn new(
        memory: &DmaMap,
        frames: &[u64],
        byte_offset: u32,
        byte_count: u32,
    ) -> Result<Self, GuestBufferError> {
        let start = byte_offset as usize;
        let length = byte_count as usize;
        if start >= PAGE_SIZE || length == 0 || (start + length).div_ceil(PAGE_SIZE) != frames.len()
        {
            return Err(GuestBufferError::Length { pages: frames.len(), byte_offset, byte_count });
        }
        let regions = memory.regions();
        let mut pages = Vec::with_capacity(frames.len());
        for (index, frame) in frames.iter().enumerate() {
            let address = DmaAddress(frame.saturating_mul(PAGE_SIZE as u64));
            let fault = DmaFault { address, length: PAGE_SIZE, write: true };
            let refused = GuestBufferError::NotGuestMemory { index, source: fault };
            let at = regions.partition_point(|region| region.iova <= address).checked_sub(1);
            let Some((at, region)) = at.and_then(|at| Some((at, regions.get(at)?))) else {
                return Err(refused);
            };
            let offset = usize::try_from(address.0 - region.iova.0).unwrap_or(usize::MAX);
            let fits = offset.checked_add(PAGE_SIZE).is_some_and(|end| end <= region.mapping.len());
            if !fits || region.access != shared_memory::Access::ReadWrite {
                return Err(refused);
            }
            let mapping = u32::try_from(at).unwrap_or(u32::MAX);
            pages.push(Page { mapping, run: 1, offset });
        }
        let mut next: Option<Page> = None;
        for page in pages.iter_mut().rev() {
            if let Some(next) = next
                && next.mapping == page.mapping
                && next.offset == page.offset + PAGE_SIZE
            {
                page.run = next.run + 1;
            }
            next = Some(*page);
        }
        let mappings = regions.iter().map(|region| region.mapping.clone()).collect();
        Ok(Self(Arc::new(Inner { mappings, pages, start, length })))
    }

    /// Bytes of the buffer.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.length
    }

    /// Never true: an empty buffer cannot be made.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Pages of the buffer.
    pub fn page_count(&self) -> usize {
        self.0.pages.len()
    }

    /// As many of the `length` bytes from `offset` as lie together in this process: at least those up to the end
    /// of a page. `None` if the range leaves the buffer or is empty.
    #[inline]
    pub fn first_slice(&self, offset: usize, length: usize) -> Option<SharedSlice<'_>> {
        if length == 0 || offset.checked_add(length)? > self.0.length {
            return None;
        }
        let at = self.0.start + offset;
        let page = self.0.pages.get(at / PAGE_SIZE)?;
        let within = at % PAGE_SIZE;
        let together = (page.run as usize * PAGE_SIZE - within).min(length);
        let mapping = self.0.mappings.get(page.mapping as usize)?;
        mapping.as_slice().get(page.offset + within, together)
    }

    /// All of the `length` bytes from `offset`, in as few slices as they lie in. `None` if the range leaves the
    /// buffer.
    pub fn slices(
        &self,
        offset: usize,
        length: usize,
    ) -> Option<impl Iterator<Item = SharedSlice<'_>>> {
        if offset.checked_add(length)? > self.0.length {
            return None;
        }
        let (mut at, mut left) = (offset, length);
        Some(std::iter::from_fn(move || {
            let slice = self.first_slice(at, left)?;
            at += slice.len();
            left -= slice.len();
            Some(slice)
        }))
    }

    /// Writes bytes at `offset`; `None`, with nothing written, if they leave the buffer.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Option<()> {
        let mut rest = bytes;
        for slice in self.slices(offset, bytes.len())? {
            rest = rest.get(slice.write_from(rest)..)?;
        }
        Some(())
    }

    /// Reads bytes at `offset`; `None`, with nothing read, if they leave the buffer.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Option<()> {
        let mut rest = &mut *out;
        for slice in self.slices(offset, rest.len())? {
            let count = slice.read_into(rest);
            rest = rest.get_mut(count..)?;
        }
        Some(())
    }

    /// The ring that lies in `count` pages from page `first`; the buffer must begin at a page and be of whole ones.
    pub fn ring(&self, first: usize, count: usize) -> Result<RingMemory, GuestBufferError> {
        let inner = &*self.0;
        let end = first.saturating_add(count);
        let no_ring = GuestBufferError::NoRing { first, end, pages: inner.pages.len() };
        let whole = inner.start == 0 && inner.length.is_multiple_of(PAGE_SIZE);
        if !whole || count < 2 || end > inner.pages.len() {
            return Err(no_ring);
        }
        let mut parts = Vec::new();
        let mut at = first;
        while at < end {
            let page = inner.pages.get(at);
            let mapping = page.and_then(|page| inner.mappings.get(page.mapping as usize));
            let (Some(page), Some(mapping)) = (page, mapping) else { return Err(no_ring) };
            let run = (page.run as usize).min(end - at);
            parts.push((mapping, page.offset, run * PAGE_SIZE));
            if parts.len() > MAX_RING_RUNS {
                return Err(GuestBufferError::TooScattered { limit: MAX_RING_RUNS });
            }
            at += run;
        }
        RingMemory::new(&parts).map_err(GuestBufferError::Map)
    }

    /// Both rings of a channel, split at page `downstream`: guest to host, and host to guest (SPEC-VMBUS §2).
    pub fn rings(&self, downstream: usize) -> Result<(RingMemory, RingMemory), GuestBufferError> {
        let rest = self.page_count().saturating_sub(downstream);
        Ok((self.ring(0, downstream)?, self.ring(downstream, rest)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared_memory::{Access, DmaRegion, PageSize};

    use super::*;

    /// Two regions of 8 pages: one at frame 16, one behind it, and one page at frame 100 that is read-only.
    fn memory() -> DmaMap {
        let mut map = DmaMap::empty();
        for (frame, pages, access) in
            [(16, 8, Access::ReadWrite), (24, 8, Access::ReadWrite), (100, 1, Access::Read)]
        {
            let (mapping, _) =
                SharedMapping::create("guest", pages * PAGE_SIZE, PageSize::Base).unwrap();
            map = map.with(DmaRegion { iova: DmaAddress(frame * 4096), mapping, access }).unwrap();
        }
        map
    }

    #[test]
    fn pages_outside_of_guest_memory_are_refused() {
        let memory = memory();
        for frames in [vec![15], vec![32], vec![100], vec![16, 40], vec![u64::MAX], vec![1 << 52]] {
            let bytes = u32::try_from(frames.len() * 4096).unwrap();
            let refused = GuestBuffer::new(&memory, &frames, 0, bytes);
            assert!(matches!(refused, Err(GuestBufferError::NotGuestMemory { .. })), "{frames:?}");
        }
        for (frames, offset, count) in
            [(vec![16], 0, 0), (vec![16], 1, 4096), (vec![16], 4096, 1), (vec![], 0, 0)]
        {
            let refused = GuestBuffer::new(&memory, &frames, offset, count);
            assert!(matches!(refused, Err(GuestBufferError::Length { .. })));
        }
    }

    #[test]
    fn rings_are_whole_pages_of_whole_buffers() {
        let memory = memory();
        let buffer = GuestBuffer::new(&memory, &[20, 18, 25, 16], 0, 4 * 4096).unwrap();
        let (upstream, downstream) = buffer.rings(2).unwrap();
        assert_eq!((upstream.size(), downstream.size()), (4096, 4096));
        for split in [0, 1, 3, 4, 5] {
            assert!(matches!(buffer.rings(split), Err(GuestBufferError::NoRing { .. })), "{split}");
        }
        let odd = GuestBuffer::new(&memory, &[16, 17, 18], 8, 3 * 4096 - 16).unwrap();
        assert!(odd.ring(0, 3).is_err());
    }

    proptest! {
        /// What is written through one view of the pages is read through another, wherever the pages lie.
        #[test]
        fn scattered_pages_read_as_one_buffer(
            frames in proptest::sample::subsequence((16u64..32).collect::<Vec<_>>(), 1..16)
                .prop_shuffle(),
            start in 0u32..4096, offset in 0usize..70_000, data in proptest::collection::vec(any::<u8>(), 0..9000)
        ) {
            let memory = memory();
            let length = u32::try_from(frames.len() * 4096).unwrap() - start;
            let buffer = GuestBuffer::new(&memory, &frames, start, length).unwrap();
            let fits = offset + data.len() <= length as usize;
            prop_assert_eq!(buffer.write(offset, &data).is_some(), fits);
            let mut seen = vec![0; data.len()];
            prop_assert_eq!(buffer.read(offset, &mut seen).is_some(), fits);
            if !fits {
                return Ok(());
            }
            prop_assert_eq!(&seen, &data);
            // Byte by byte, as the guest sees its pages.
            for (index, byte) in data.iter().enumerate() {
                let at = start as usize + offset + index;
                let gpa = frames[at / 4096] * 4096 + at as u64 % 4096;
                let mut one = [0];
                memory.read_bytes(DmaAddress(gpa), &mut one).unwrap();
                prop_assert_eq!(one[0], *byte);
            }
        }
    }
}
