//! A guest's memory, as a front-end describes it, and the log of what is written to it.

use std::{
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering},
};

use shared_memory::{
    Access, DescriptorRing, DmaAddress, DmaFault, DmaMap, DmaRegion, DmaWindow, MemoryError,
    MemoryWatch, SharedMapping, SharedSlice, TranslationCache,
};

/// Bytes for which the log has one bit (vhost-user "Migration").
const LOG_PAGE: u64 = 4096;

/// Where a region is for the front-end itself: rings are named by such addresses.
#[derive(Copy, Clone, Debug)]
struct Window {
    user: u64,
    length: u64,
    guest: u64,
}

/// A guest's memory. Cloning is cheap and gives the same immutable map.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestMemory {
    map: DmaMap,
    windows: Arc<Vec<Window>>,
}

/// One region of a guest's memory.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct RegionAddress {
    /// Its first guest physical address.
    pub(crate) guest: u64,
    /// Its first address in the front-end.
    pub(crate) user: u64,
    /// Bytes.
    pub(crate) length: u64,
}

impl GuestMemory {
    /// With one more region, whose file is mapped from byte `offset` on. `watch` is told if it is taken away.
    ///
    /// # Errors
    /// It overlaps another, it cannot be mapped, or its file is not memory.
    pub(crate) fn with(
        &self,
        at: RegionAddress,
        file: BorrowedFd<'_>,
        offset: u64,
        watch: &Arc<MemoryWatch>,
    ) -> Result<Self, MemoryError> {
        let RegionAddress { guest, user, length } = at;
        let overlap = MemoryError::Overlap { iova: user, length };
        let end = user.checked_add(length);
        let apart = |window: &Window| {
            end.is_some_and(|end| end <= window.user) || user >= window.user + window.length
        };
        if end.is_none() || !self.windows.iter().all(apart) {
            return Err(overlap);
        }
        let bytes = usize::try_from(length).map_err(|_| overlap)?;
        let mapping = SharedMapping::map_guarded(file, offset, bytes, Access::ReadWrite, watch)?;
        let iova = DmaAddress(guest);
        let map = self.map.with(DmaRegion { iova, mapping, access: Access::ReadWrite })?;
        let mut windows = Vec::clone(&self.windows);
        windows.push(Window { user, length, guest });
        Ok(Self { map, windows: Arc::new(windows) })
    }

    /// Without a region.
    ///
    /// # Errors
    /// There is no such region.
    pub(crate) fn without(&self, at: RegionAddress) -> Result<Self, MemoryError> {
        let map = self.map.without(DmaAddress(at.guest), at.length)?;
        let mut windows = Vec::clone(&self.windows);
        windows.retain(|window| window.guest != at.guest);
        Ok(Self { map, windows: Arc::new(windows) })
    }

    /// Regions in it.
    pub(crate) fn regions(&self) -> usize {
        self.windows.len()
    }

    /// A part of it that the front-end names by its own address, for a long time.
    pub(crate) fn view(&self, user: u64, length: usize) -> Option<View> {
        let inside = |window: &&Window| {
            user.checked_sub(window.user).is_some_and(|offset| offset < window.length)
        };
        let window = self.windows.iter().find(inside)?;
        let guest = window.guest.checked_add(user - window.user)?;
        let (mapping, offset) = self.map.locate(DmaAddress(guest), length, true).ok()?;
        Some(View { mapping, offset, length, guest })
    }

    /// `length` bytes at a guest physical address, all in one region.
    #[inline]
    pub(crate) fn slice(
        &self,
        cache: &mut TranslationCache,
        guest: u64,
        length: usize,
    ) -> Result<SharedSlice<'_>, DmaFault> {
        self.map.write_slice(cache, DmaAddress(guest), length)
    }

    /// The region of the last translation.
    #[inline]
    pub(crate) fn window(&self, cache: TranslationCache) -> DmaWindow<'_> {
        self.map.window(cache)
    }

    /// Hands the pieces of `length` bytes at a guest physical address to `each`: one, unless they lie across regions.
    /// `None` if `each` takes no more.
    #[inline]
    pub(crate) fn pieces<'m>(
        &'m self,
        cache: &mut TranslationCache,
        guest: u64,
        length: u32,
        mut each: impl FnMut(SharedSlice<'m>) -> Option<()>,
    ) -> Result<Option<()>, DmaFault> {
        let bytes = length as usize;
        if let Ok(slice) = self.slice(cache, guest, bytes) {
            return Ok(each(slice));
        }
        let fault = DmaFault { address: DmaAddress(guest), length: bytes, write: true };
        let (mut at, mut left) = (guest, u64::from(length));
        while left > 0 {
            let holds = |region: &&DmaRegion| {
                at.checked_sub(region.iova.0).is_some_and(|from| from < region.mapping.len() as u64)
            };
            let region = self.map.regions().iter().find(holds).ok_or(fault)?;
            let from = usize::try_from(at - region.iova.0).map_err(|_| fault)?;
            let (_, rest) = region.mapping.as_slice().split(from);
            let (part, _) = rest.split(usize::try_from(left).map_err(|_| fault)?);
            if each(part).is_none() {
                return Ok(None);
            }
            left -= part.len() as u64;
            at = at.checked_add(part.len() as u64).ok_or(fault)?;
        }
        Ok(Some(()))
    }
}

/// A part of a guest's memory in which a part of a ring lies.
#[derive(Clone, Debug)]
pub(crate) struct View {
    mapping: SharedMapping,
    offset: usize,
    length: usize,
    guest: u64,
}

impl View {
    #[inline(always)]
    pub(crate) fn bytes(&self) -> SharedSlice<'_> {
        // It was checked when the view was made.
        self.mapping.as_slice().get(self.offset, self.length).unwrap_or(SharedSlice::empty())
    }

    /// The descriptors that lie there; `None` if there is none, or too many for a ring.
    pub(crate) fn descriptors(&self) -> Option<DescriptorRing<2>> {
        let count = u16::try_from(self.length / DescriptorRing::<2>::DESCRIPTOR_SIZE).ok()?;
        DescriptorRing::new(&self.mapping, self.offset, count).ok()
    }

    /// Whether it begins at a multiple of `alignment`, a power of two not above the page size.
    pub(crate) fn is_aligned(&self, alignment: usize) -> bool {
        self.offset.is_multiple_of(alignment)
    }

    /// Notes that it was written.
    pub(crate) fn note(&self, log: &DirtyLog) {
        log.note(self.guest, self.length as u64);
    }
}

/// Where it is noted which pages of a guest's memory were written.
#[derive(Debug)]
pub(crate) struct DirtyLog(SharedMapping);

impl DirtyLog {
    /// The log in this file.
    pub(crate) fn map(
        file: BorrowedFd<'_>,
        offset: u64,
        length: u64,
        watch: &Arc<MemoryWatch>,
    ) -> Result<Self, MemoryError> {
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let mapping =
            SharedMapping::map_bytes_guarded(file, offset, bytes, Access::ReadWrite, watch);
        mapping.map(Self)
    }

    /// Notes that `length` bytes at a guest physical address were written. What is beyond the log's end is not noted.
    pub(crate) fn note(&self, guest: u64, length: u64) {
        let Some(last) = length.checked_sub(1).map(|more| guest.saturating_add(more)) else {
            return;
        };
        let bits = self.0.len() as u64 * 8;
        let pages = guest / LOG_PAGE..=(last / LOG_PAGE).min(bits.saturating_sub(1));
        for page in pages {
            let word = usize::try_from(page / 32 * 4).unwrap_or(usize::MAX);
            // Bits count from the least one of each byte.
            let bit = (1u32 << (page % 32)).to_le();
            // After the data: whoever finds the bit finds what was written.
            let noted = self.0.as_slice().set_bits_u32(word, bit, Ordering::Release);
            if noted.is_none() {
                // The last word is not whole.
                self.note_in_byte(page);
            }
        }
    }

    /// Only the front-end clears bits, and it does that by words: a log whose length is no multiple of four bytes is
    /// nobody's.
    #[cold]
    fn note_in_byte(&self, page: u64) {
        let at = usize::try_from(page / 8).unwrap_or(usize::MAX);
        if let Some(byte) = self.0.as_slice().read_object::<u8>(at) {
            let _ = self.0.as_slice().write_object(at, &(byte | 1 << (page % 8)));
        }
    }
}
