//! The memory of one ring: its control page, and its data area twice.

use shared_memory::{MemoryError, PAGE_SIZE, SharedMapping, SharedSlice};
use std::sync::atomic::Ordering;

use super::ChannelDead;

/// Bytes of the longest data area: what one GPADL can describe is less.
const MAX_DATA: usize = 64 << 20;

/// A ring's memory, mapped into this process.
#[derive(Clone, Debug)]
pub struct RingMemory {
    /// The control page, the data area, and the data area again.
    mapping: SharedMapping,
    /// Bytes of the data area.
    size: u32,
}

impl RingMemory {
    /// The ring that lies in these parts, one after the other: for each its mapping, byte offset and length,
    /// multiples of the page size. The first page is the control page; at least one more is needed.
    pub fn new(parts: &[(&SharedMapping, usize, usize)]) -> Result<Self, MemoryError> {
        let total = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.2));
        let size = total.and_then(|total| total.checked_sub(PAGE_SIZE));
        let misaligned = || MemoryError::Misaligned {
            offset: 0,
            length: total.unwrap_or(usize::MAX),
            alignment: PAGE_SIZE,
        };
        let size = size.filter(|size| (1..=MAX_DATA).contains(size)).ok_or_else(misaligned)?;
        // Data again: the parts without the first page.
        let data = parts.iter().scan(PAGE_SIZE, |skip, (mapping, offset, length)| {
            let now = (*skip).min(*length);
            *skip -= now;
            Some((*mapping, offset.saturating_add(now), length - now))
        });
        let again = data.filter(|part| part.2 > 0);
        let all = parts.iter().copied().chain(again).collect::<Vec<_>>();
        let mapping = SharedMapping::concatenate(&all)?;
        let size = u32::try_from(size).map_err(|_| misaligned())?;
        Ok(Self { mapping, size })
    }

    /// The ring that lies in `length` bytes from `offset` of one mapping.
    pub fn contiguous(
        mapping: &SharedMapping,
        offset: usize,
        length: usize,
    ) -> Result<Self, MemoryError> {
        Self::new(&[(mapping, offset, length)])
    }

    /// Bytes of the data area.
    #[inline(always)]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Makes the ring empty, as its creator (the guest) does before anyone knows of it.
    pub fn clear(&self) {
        self.mapping.as_slice().split(PAGE_SIZE).0.fill(0);
    }

    /// Bytes of the longest packet that the ring takes, with its footer (SPEC-VMBUS §3.2).
    #[inline(always)]
    pub(super) fn longest(&self) -> u32 {
        self.size - 16
    }

    /// Loads a word of the control page.
    #[inline(always)]
    pub(super) fn load(&self, offset: usize, order: Ordering) -> Result<u32, ChannelDead> {
        self.mapping.as_slice().load_u32(offset, order).ok_or(ChannelDead::NoMemory)
    }

    /// Stores a word of the control page.
    #[inline(always)]
    pub(super) fn store(
        &self,
        offset: usize,
        value: u32,
        order: Ordering,
    ) -> Result<(), ChannelDead> {
        self.mapping.as_slice().store_u32(offset, value, order).ok_or(ChannelDead::NoMemory)
    }

    /// Loads an index of the control page and checks it.
    #[inline(always)]
    pub(super) fn load_index(
        &self,
        name: &'static str,
        offset: usize,
        order: Ordering,
    ) -> Result<u32, ChannelDead> {
        let value = self.load(offset, order)?;
        if value < self.size && value.is_multiple_of(8) {
            Ok(value)
        } else {
            Err(ChannelDead::BadIndex { name, value, size: self.size })
        }
    }

    /// `length` bytes of the data area from `offset`, across its end where needed.
    #[inline(always)]
    pub(super) fn data(&self, offset: u32, length: u32) -> Result<SharedSlice<'_>, ChannelDead> {
        self.mapping
            .as_slice()
            .get(PAGE_SIZE + offset as usize, length as usize)
            .ok_or(ChannelDead::NoMemory)
    }

    /// The index `bytes` (at most the size) after `index`.
    #[inline(always)]
    pub(super) fn advance(&self, index: u32, bytes: u32) -> u32 {
        let next = index + bytes;
        if next >= self.size { next - self.size } else { next }
    }

    /// Bytes written and not read.
    #[inline(always)]
    pub(super) fn used(&self, incoming: u32, outgoing: u32) -> u32 {
        if incoming >= outgoing { incoming - outgoing } else { self.size - (outgoing - incoming) }
    }

    /// Bytes that may be written; a ring is never filled completely (SPEC-VMBUS §3.1).
    #[inline(always)]
    pub(super) fn free(&self, incoming: u32, outgoing: u32) -> u32 {
        self.size - self.used(incoming, outgoing) - 8
    }
}
