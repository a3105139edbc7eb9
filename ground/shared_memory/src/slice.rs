//! A borrowed range of shared memory.
//!
//! `unsafe` here: raw reads and writes of memory that another process may change at any time. No Rust
//! reference to it is ever made; values are copied out once and then used.
#![allow(unsafe_code)]

use std::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::copy_bytes;

/// Bytes of a cache line.
const LINE: usize = 64;

/// `len` bytes of memory shared with another process, borrowed from a mapping.
#[derive(Copy, Clone)]
pub struct SharedSlice<'a> {
    base: NonNull<u8>,
    length: usize,
    owner: PhantomData<&'a u8>,
}

// SAFETY: a slice is a checked pointer into a mapping that outlives it; concurrent access is by volatile,
// atomic or byte-copy operations only.
unsafe impl Send for SharedSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedSlice<'_> {}

impl<'a> SharedSlice<'a> {
    /// # Safety
    /// `base..base+length` must stay mapped (readable, and writable if it is written) for `'a`.
    pub(crate) unsafe fn new(base: NonNull<u8>, length: usize) -> Self {
        Self { base, length, owner: PhantomData }
    }

    /// A slice of no bytes.
    pub const fn empty() -> Self {
        Self { base: NonNull::dangling(), length: 0, owner: PhantomData }
    }

    /// The address of byte 0, for the sibling modules.
    #[inline(always)]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes in the slice.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the slice has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Loads eight bytes from any offset, in memory order, least byte first; `None` if out of range.
    #[inline(always)]
    pub fn load_bytes8(&self, offset: usize) -> Option<u64> {
        let at = self.get(offset, 8)?.base.cast::<u64>();
        // SAFETY: eight bytes are in range; the load is volatile, since others may write them.
        Some(u64::from_le(unsafe { read_unaligned_volatile(at) }))
    }

    /// Loads the first `8 * N` bytes, each word in memory order, least byte first; `None` if there are fewer.
    #[inline(always)]
    pub fn load_words<const N: usize>(&self) -> Option<[u64; N]> {
        let base = self.get(0, 8 * N)?.base.cast::<u64>();
        Some(std::array::from_fn(|word| {
            // SAFETY: all words are in range; the loads are volatile, since others may write them.
            u64::from_le(unsafe { read_unaligned_volatile(base.add(word)) })
        }))
    }

    /// Stores eight bytes at any offset, in memory order, least byte first; `None` if out of range.
    #[inline(always)]
    pub fn store_bytes8(&self, offset: usize, bytes: u64) -> Option<()> {
        let at = self.get(offset, 8)?.base.cast::<u64>();
        // SAFETY: eight bytes are in range; the store is volatile, since others may look at them.
        unsafe { write_unaligned_volatile(at, bytes.to_le()) };
        Some(())
    }

    /// `length` bytes from `offset`, or `None` if they are not all inside.
    #[inline(always)]
    pub fn get(&self, offset: usize, length: usize) -> Option<SharedSlice<'a>> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: offset + length was checked against the slice, which is valid for 'a.
        Some(unsafe { Self::new(self.base.add(offset), length) })
    }

    /// The first `at` bytes and the rest; `at` is cut to the length.
    #[inline(always)]
    pub fn split(&self, at: usize) -> (SharedSlice<'a>, SharedSlice<'a>) {
        let at = at.min(self.length);
        // SAFETY: both halves lie inside the slice.
        unsafe { (Self::new(self.base, at), Self::new(self.base.add(at), self.length - at)) }
    }

    /// Copies out as many bytes as both sides have; returns how many.
    #[inline]
    pub fn read_into(&self, out: &mut [u8]) -> usize {
        let count = self.length.min(out.len());
        // SAFETY: `count` bytes are inside both ranges, which cannot overlap (`out` is exclusive memory).
        unsafe { copy_bytes(out.as_mut_ptr(), self.base.as_ptr(), count) };
        count
    }

    /// Copies in as many bytes as both sides have; returns how many.
    #[inline]
    pub fn write_from(&self, data: &[u8]) -> usize {
        let count = self.length.min(data.len());
        // SAFETY: as in `read_into`.
        unsafe { copy_bytes(self.base.as_ptr(), data.as_ptr(), count) };
        count
    }

    /// Copies as many bytes as both sides have to another shared slice; returns how many.
    ///
    /// The slices may overlap only if both processes play tricks with their maps; the result is then
    /// unspecified bytes inside `to`, never anything else.
    #[inline]
    pub fn copy_to(&self, to: SharedSlice<'_>) -> usize {
        let count = self.length.min(to.length);
        // SAFETY: `count` bytes are inside both mapped ranges.
        unsafe { copy_bytes(to.base.as_ptr(), self.base.as_ptr(), count) };
        count
    }

    /// Hands the bytes to `each` in order, in local copies of at most 512 bytes: for sums and hashes over
    /// memory that may change while it is read.
    #[inline]
    pub fn for_each_chunk(&self, mut each: impl FnMut(&[u8])) {
        let mut chunk = [0u8; 512];
        let mut rest = *self;
        while !rest.is_empty() {
            let (now, later) = rest.split(chunk.len());
            let count = now.read_into(&mut chunk);
            if let Some(bytes) = chunk.get(..count) {
                each(bytes);
            }
            rest = later;
        }
    }

    /// Fills the slice with one byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the whole slice is mapped.
        unsafe { std::ptr::write_bytes(self.base.as_ptr(), byte, self.length) };
    }

    /// Reads a plain value from `offset`; `None` if it does not fit.
    pub fn read_object<T: FromBytes + IntoBytes>(&self, offset: usize) -> Option<T> {
        let mut value = T::new_zeroed();
        let source = self.get(offset, size_of::<T>())?;
        source.read_into(value.as_mut_bytes());
        Some(value)
    }

    /// Writes a plain value at `offset`; `None` if it does not fit.
    pub fn write_object<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Option<()> {
        self.get(offset, size_of::<T>())?.write_from(value.as_bytes());
        Some(())
    }

    /// Loads a naturally aligned 32-bit word; `None` if out of range or not aligned.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Option<u32> {
        let word = self.get(offset, 4)?.base.cast::<AtomicU32>();
        // SAFETY: in range, and checked for alignment; an atomic may be shared with anyone.
        word.is_aligned().then(|| unsafe { word.as_ref() }.load(order))
    }

    /// Stores a naturally aligned 32-bit word; `None` if out of range or not aligned.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> Option<()> {
        let word = self.get(offset, 4)?.base.cast::<AtomicU32>();
        // SAFETY: as in `load_u32`.
        word.is_aligned().then(|| unsafe { word.as_ref() }.store(value, order))
    }

    /// Sets bits of a naturally aligned 32-bit word; `None` if out of range or not aligned.
    #[inline]
    pub fn set_bits_u32(&self, offset: usize, bits: u32, order: Ordering) -> Option<()> {
        let word = self.get(offset, 4)?.base.cast::<AtomicU32>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: as in `load_u32`.
        unsafe { word.as_ref() }.fetch_or(bits, order);
        Some(())
    }

    /// Loads a naturally aligned 16-bit word; `None` if out of range or not aligned.
    #[inline]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> Option<u16> {
        let word = self.get(offset, 2)?.base.cast::<AtomicU16>();
        // SAFETY: as in `load_u32`.
        word.is_aligned().then(|| unsafe { word.as_ref() }.load(order))
    }

    /// Stores a naturally aligned 16-bit word; `None` if out of range or not aligned.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) -> Option<()> {
        let word = self.get(offset, 2)?.base.cast::<AtomicU16>();
        // SAFETY: as in `load_u32`.
        word.is_aligned().then(|| unsafe { word.as_ref() }.store(value, order))
    }

    /// Loads a naturally aligned 64-bit word; `None` if out of range or not aligned.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> Option<u64> {
        let word = self.get(offset, 8)?.base.cast::<AtomicU64>();
        // SAFETY: as in `load_u32`.
        word.is_aligned().then(|| unsafe { word.as_ref() }.load(order))
    }

    /// Stores a naturally aligned 64-bit word; `None` if out of range or not aligned.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) -> Option<()> {
        let word = self.get(offset, 8)?.base.cast::<AtomicU64>();
        // SAFETY: as in `load_u32`.
        word.is_aligned().then(|| unsafe { word.as_ref() }.store(value, order))
    }

    /// Hints that the first cache line will be read soon.
    #[inline]
    pub fn prefetch_read(&self) {
        crate::copy::prefetch_read(self.base.as_ptr());
    }

    /// Hints that the first cache line will be written soon.
    #[inline]
    pub fn prefetch_write(&self) {
        crate::copy::prefetch_write(self.base.as_ptr());
    }

    /// Hints that these bytes will be read soon: the first `lines` cache lines of them, and the last.
    #[inline(always)]
    pub fn prefetch_read_ends(&self, lines: usize) {
        self.lines(lines, crate::copy::prefetch_read);
    }

    /// Hints that these bytes will be written soon: the first `lines` cache lines of them, and the last.
    #[inline(always)]
    pub fn prefetch_write_ends(&self, lines: usize) {
        self.lines(lines, crate::copy::prefetch_write);
    }

    /// Hands addresses in the first `lines` of the cache lines in which there are bytes, and in the last one, to `each`.
    #[inline(always)]
    fn lines(&self, lines: usize, each: impl Fn(*const u8)) {
        let first = self.base.as_ptr().cast_const();
        each(first);
        let count = (first as usize % LINE + self.length).div_ceil(LINE);
        for line in 1..count.min(lines) {
            each(first.wrapping_add(line * LINE));
        }
        if count > lines {
            each(first.wrapping_add(self.length - 1));
        }
    }
}

/// Eight bytes anywhere.
#[repr(C, packed)]
struct Unaligned(u64);

/// # Safety
/// Eight bytes at `at` must be readable.
#[inline(always)]
unsafe fn read_unaligned_volatile(at: NonNull<u64>) -> u64 {
    // SAFETY: the caller's promise; the packed type needs no alignment.
    unsafe { at.cast::<Unaligned>().as_ptr().read_volatile() }.0
}

/// # Safety
/// Eight bytes at `at` must be writable.
#[inline(always)]
unsafe fn write_unaligned_volatile(at: NonNull<u64>, value: u64) {
    // SAFETY: the caller's promise; the packed type needs no alignment.
    unsafe { at.cast::<Unaligned>().as_ptr().write_volatile(Unaligned(value)) };
}

impl std::fmt::Debug for SharedSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedSlice({} bytes)", self.length)
    }
}
