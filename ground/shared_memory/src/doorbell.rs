//! A page of 32-bit doorbells that a guest writes and the device polls.
//!
//! `unsafe` here: 32-bit atomic access to mapped memory at checked indices.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{MemoryError, PAGE_SIZE, SharedMapping};

/// One 4 KiB page of 1,024 doorbells.
#[derive(Clone, Debug)]
pub struct DoorbellPage {
    mapping: SharedMapping,
    offset: usize,
}

impl DoorbellPage {
    /// The page at byte `offset` (a multiple of 4,096) of `mapping`.
    pub fn new(mapping: &SharedMapping, offset: usize) -> Result<Self, MemoryError> {
        mapping.slice(offset, PAGE_SIZE)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::Misaligned {
                offset: offset as u64,
                length: PAGE_SIZE,
                alignment: PAGE_SIZE,
            });
        }
        Ok(Self { mapping: mapping.clone(), offset })
    }

    #[inline(always)]
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < PAGE_SIZE / 4, "doorbell index out of the page");
        // SAFETY: the page lies inside the mapping (checked in `new`) and is page aligned.
        unsafe { self.mapping.base().add(self.offset + index * 4).cast::<AtomicU32>().as_ref() }
    }

    /// Reads doorbell `index` (its byte offset in the page divided by four). Orders what follows after it,
    /// so that descriptors published before the doorbell are seen.
    #[inline(always)]
    pub fn load(&self, index: usize) -> u32 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Writes doorbell `index`; what was written before is seen by whoever reads the new value.
    #[inline(always)]
    pub fn store(&self, index: usize, value: u32) {
        self.word(index).store(value, Ordering::Release);
    }
}
