//! A descriptor ring in shared memory, as both the device and the driver see it.
//!
//! `unsafe` here: 64-bit atomic access to mapped memory at checked indices. A descriptor is read once, whole,
//! into a local value; a write-back ends with the quadword that carries the done bit, stored with release.
#![allow(unsafe_code)]

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{DmaAddress, DmaFault, DmaMap, MemoryError, SharedMapping};

/// A ring of descriptors of `QWORDS` 64-bit words each.
#[derive(Debug)]
pub struct DescriptorRing<const QWORDS: usize> {
    base: NonNull<AtomicU64>,
    length: u16,
    /// Keeps the memory mapped.
    _mapping: SharedMapping,
}

// SAFETY: the ring is atomics in a mapping that it keeps alive.
unsafe impl<const QWORDS: usize> Send for DescriptorRing<QWORDS> {}
// SAFETY: as above.
unsafe impl<const QWORDS: usize> Sync for DescriptorRing<QWORDS> {}

/// One descriptor of a ring, whose index was checked once for all accesses to its words.
#[derive(Copy, Clone)]
pub struct DescriptorSlot<'a, const QWORDS: usize>(&'a [AtomicU64; QWORDS]);

impl<const QWORDS: usize> DescriptorSlot<'_, QWORDS> {
    /// Reads one word with the given ordering.
    #[inline(always)]
    pub fn load(&self, word: usize, order: Ordering) -> u64 {
        self.word(word).load(order)
    }

    /// Writes one word with the given ordering.
    #[inline(always)]
    pub fn store(&self, word: usize, value: u64, order: Ordering) {
        self.word(word).store(value, order);
    }

    #[inline(always)]
    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < QWORDS, "word out of the descriptor");
        // Folds away: `word` is a constant wherever speed matters.
        #[expect(clippy::indexing_slicing, reason = "checked above")]
        &self.0[word]
    }
}

impl<const QWORDS: usize> DescriptorRing<QWORDS> {
    /// Bytes of one descriptor.
    pub const DESCRIPTOR_SIZE: usize = QWORDS * 8;

    /// A ring of `length` descriptors at byte `offset` of `mapping`.
    pub fn new(mapping: &SharedMapping, offset: usize, length: u16) -> Result<Self, MemoryError> {
        let bytes = usize::from(length) * Self::DESCRIPTOR_SIZE;
        mapping.slice(offset, bytes)?;
        if length == 0 || !offset.is_multiple_of(8) {
            return Err(MemoryError::Misaligned {
                offset: offset as u64,
                length: bytes,
                alignment: 8,
            });
        }
        // SAFETY: `offset` lies inside the mapping, as checked above.
        let base = unsafe { mapping.base().add(offset) }.cast::<AtomicU64>();
        Ok(Self { base, length, _mapping: mapping.clone() })
    }

    /// A ring of `length` descriptors at a DMA address, in one writable region or in adjacent ones.
    pub fn at(map: &DmaMap, address: DmaAddress, length: u16) -> Result<Self, DmaFault> {
        let bytes = usize::from(length) * Self::DESCRIPTOR_SIZE;
        let fault = DmaFault { address, length: bytes, write: true };
        let (mapping, offset) = map.locate(address, bytes, true)?;
        Self::new(&mapping, offset, length).map_err(|_| fault)
    }

    /// Descriptors in the ring.
    #[inline]
    pub fn len(&self) -> u16 {
        self.length
    }

    /// Never true: a ring has at least one descriptor.
    pub fn is_empty(&self) -> bool {
        false
    }

    #[inline(always)]
    fn word(&self, index: u16, word: usize) -> &AtomicU64 {
        assert!(index < self.length && word < QWORDS, "descriptor index out of the ring");
        // SAFETY: index and word are inside the ring, which is mapped and 8-byte aligned.
        unsafe { self.base.add(usize::from(index) * QWORDS + word).as_ref() }
    }

    /// The descriptor at `index`, for several accesses to it.
    #[inline(always)]
    pub fn slot(&self, index: u16) -> DescriptorSlot<'_, QWORDS> {
        assert!(index < self.length, "descriptor index out of the ring");
        // SAFETY: the index is inside the ring, which is mapped for as long as `self` is borrowed and 8-byte
        // aligned; atomics may be shared with anyone.
        DescriptorSlot(unsafe { self.base.add(usize::from(index) * QWORDS).cast().as_ref() })
    }

    /// `count` descriptors from `first` on, without going round the end: for loops over a burst, whose indexes
    /// are checked once here.
    #[inline(always)]
    pub fn run(
        &self,
        first: u16,
        count: u16,
    ) -> impl ExactSizeIterator<Item = DescriptorSlot<'_, QWORDS>> {
        assert!(
            u32::from(first) + u32::from(count) <= u32::from(self.length),
            "descriptors out of the ring"
        );
        // SAFETY: first..first+count is inside the ring, which is mapped for as long as `self` is borrowed and
        // 8-byte aligned; atomics may be shared with anyone.
        let slots = unsafe {
            std::slice::from_raw_parts(
                self.base.add(usize::from(first) * QWORDS).cast::<[AtomicU64; QWORDS]>().as_ptr(),
                usize::from(count),
            )
        };
        slots.iter().map(DescriptorSlot)
    }

    /// Reads a whole descriptor, once.
    #[inline(always)]
    pub fn read(&self, index: u16) -> [u64; QWORDS] {
        std::array::from_fn(|word| self.word(index, word).load(Ordering::Relaxed))
    }

    /// Reads one word with the given ordering.
    #[inline(always)]
    pub fn load(&self, index: u16, word: usize, order: Ordering) -> u64 {
        self.word(index, word).load(order)
    }

    /// Writes one word with the given ordering.
    #[inline(always)]
    pub fn store(&self, index: u16, word: usize, value: u64, order: Ordering) {
        self.word(index, word).store(value, order);
    }

    /// Hints that a descriptor will be read soon; any index is allowed.
    #[inline(always)]
    pub fn prefetch_read(&self, index: u16) {
        crate::copy::prefetch_read(
            self.base.as_ptr().wrapping_add(usize::from(index) * QWORDS).cast(),
        );
    }

    /// Hints that a descriptor will be written soon; any index is allowed.
    #[inline(always)]
    pub fn prefetch_write(&self, index: u16) {
        crate::copy::prefetch_write(
            self.base.as_ptr().wrapping_add(usize::from(index) * QWORDS).cast(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageSize;

    #[test]
    fn descriptors_lie_where_the_bytes_say() {
        let (mapping, _fd) = SharedMapping::create("ring", 4096, PageSize::Base).unwrap();
        let ring = DescriptorRing::<2>::new(&mapping, 64, 32).unwrap();
        ring.store(3, 0, 7, Ordering::Relaxed);
        ring.store(3, 1, 9, Ordering::Release);
        assert_eq!(ring.read(3), [7, 9]);
        ring.slot(3).store(1, 11, Ordering::Release);
        assert_eq!((ring.slot(3).load(0, Ordering::Relaxed), ring.read(3)[1]), (7, 11));
        ring.slot(3).store(1, 9, Ordering::Release);
        assert_eq!(mapping.as_slice().read_object::<u64>(64 + 3 * 16 + 8), Some(9));
        let run: Vec<u64> = ring.run(2, 3).map(|slot| slot.load(1, Ordering::Relaxed)).collect();
        assert_eq!(run, [0, 9, 0]);
        assert_eq!((ring.run(32, 0).len(), ring.run(0, 32).len()), (0, 32));
        assert!(std::panic::catch_unwind(|| ring.run(31, 2).len()).is_err());
    }

    #[test]
    fn a_ring_beyond_its_memory_is_refused() {
        let (mapping, _fd) = SharedMapping::create("ring", 4096, PageSize::Base).unwrap();
        assert!(DescriptorRing::<4>::new(&mapping, 0, 129).is_err());
        assert!(DescriptorRing::<4>::new(&mapping, 4, 8).is_err());
        assert!(DescriptorRing::<4>::new(&mapping, 0, 0).is_err());
    }
}
