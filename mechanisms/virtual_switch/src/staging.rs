//! Where headers are made that no sender wrote.

use std::cell::Cell;

use shared_memory::{MemoryError, PageSize, SharedMapping, SharedSlice};

/// Bytes of the area: the headers of the most segments that one large send makes.
const LENGTH: usize = 1 << 20;
/// Each header starts on a cache line of its own.
const LINE: usize = 64;

/// A small area of memory from which made-up headers are copied to their receivers. It is emptied for each frame.
#[derive(Debug)]
pub struct Staging {
    memory: SharedMapping,
    used: Cell<usize>,
}

impl Staging {
    /// An empty area.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn new() -> Result<Self, MemoryError> {
        let (memory, _) = SharedMapping::create("staging", LENGTH, PageSize::Base)?;
        Ok(Self { memory, used: Cell::new(0) })
    }

    /// Puts some parts one after the other; `None` if there is no room.
    #[inline]
    pub(crate) fn put(&self, parts: &[&[u8]]) -> Option<SharedSlice<'_>> {
        let length = parts.iter().map(|part| part.len()).sum();
        let start = self.used.get();
        let slice = self.memory.slice(start, length).ok()?;
        let mut at = 0;
        for part in parts {
            at += slice.get(at, part.len())?.write_from(part);
        }
        self.used.set((start + length).next_multiple_of(LINE));
        Some(slice)
    }

    /// Forgets everything. Nobody holds a piece of it: that takes the area as exclusively its own.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.used.set(0);
    }
}
