//! The memory that driver and device share: one memory file, mapped once, announced to the device
//! by one DMA_MAP.
//!
//! ```text
//! offset                                                    IOVA = base + offset
//! ┌─────────────┬──────────────────────────┬──────────────────────────────────┐
//! │ mailbox     │ rings: TX, RX per pair   │ buffers, 64 × `lines` bytes apart │
//! └─────────────┴──────────────────────────┴──────────────────────────────────┘
//! ```
//!
//! `lines` is an odd number of cache lines, so that the first lines of all buffers spread over
//! all cache sets instead of the few that a power of two would hit.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
};

use shared_memory::{
    Access, DmaAddress, MemoryError, PAGE_SIZE, PageSize, SharedMapping, SharedSlice, create_memfd,
};

use crate::{Buffer, DriverConfig, DriverError, Result};

/// Bytes of a cache line; buffers start on one.
const LINE: u32 = 64;

/// Where device addresses start when the driver owns its memory.
const OWN_IOVA: DmaAddress = DmaAddress(0x4000_0000);

/// Mailbox descriptors in each direction (SPEC-AVF Appendix A).
pub(crate) const MAILBOX_ENTRIES: u16 = 32;
/// Bytes of one mailbox buffer.
pub(crate) const MAILBOX_BUFFER: usize = 4096;
/// Bytes of a mailbox or receive descriptor.
pub(crate) const LONG_DESCRIPTOR: usize = 32;
/// Bytes of a transmit descriptor.
pub(crate) const TX_DESCRIPTOR: usize = 16;

/// Buffers are numbered by the cache line they begin with. The numbers of one memory lie in a
/// window of this size, so that a buffer of another driver's memory is recognized by its number.
const WINDOW: u32 = 1 << 27;
/// Windows there are; the last one would contain the number that means "none".
const WINDOWS: u32 = u32::MAX / WINDOW;

/// Where the driver's rings and buffers live.
#[derive(Debug)]
pub enum MemorySource {
    /// A memory file of the driver's own.
    Own {
        /// Ask for 2 MiB pages; base pages are used where the host has none to spare.
        huge_pages: bool,
    },
    /// Part of memory that the caller shares with the device: a VM's. All of the mapping is
    /// announced to the device; the driver's rings and buffers use `length` bytes of it from
    /// `offset`.
    Given {
        /// The memory as mapped in this process.
        mapping: SharedMapping,
        /// The memory file behind it.
        fd: OwnedFd,
        /// Byte offset in the file at which `mapping` begins.
        file_offset: u64,
        /// Device address of the mapping's first byte.
        iova: DmaAddress,
        /// First byte of the mapping that the driver may use; a multiple of 4,096.
        offset: usize,
        /// Bytes the driver may use: at least [`DriverConfig::memory_needed`].
        length: usize,
    },
}

impl Default for MemorySource {
    fn default() -> Self {
        Self::Own { huge_pages: false }
    }
}

/// Offsets, in bytes from the driver's first byte, of everything in the memory.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Layout {
    queue_pairs: u16,
    tx_ring: usize,
    rx_ring: usize,
    rings: usize,
    buffers: usize,
    /// Cache lines of a buffer.
    lines: u32,
    buffer_size: usize,
    count: u32,
    total: usize,
}

fn pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE_SIZE)
}

impl Layout {
    pub(crate) fn of(config: &DriverConfig) -> Result<Self> {
        let too_big = || DriverError::Configuration("more memory than can be addressed".into());
        let entries = usize::from(MAILBOX_ENTRIES);
        let mailbox = 2 * (pages(entries * LONG_DESCRIPTOR) + entries * MAILBOX_BUFFER);
        let tx_ring = pages(usize::from(config.tx_ring) * TX_DESCRIPTOR);
        let rx_ring = pages(usize::from(config.rx_ring) * LONG_DESCRIPTOR);
        let pairs = usize::from(config.queue_pairs);
        let buffers = mailbox + pairs * (tx_ring + rx_ring);
        // An odd number of cache lines.
        let lines = u32::from(config.buffer_size).div_ceil(LINE) | 1;
        let caches = 2 * u32::try_from(crate::buffers::CACHE).map_err(|_| too_big())?;
        let count = (u32::from(config.tx_ring) + u32::from(config.rx_ring) + caches)
            .checked_add(config.spare_buffers)
            .and_then(|each| each.checked_mul(u32::from(config.queue_pairs)))
            .ok_or_else(too_big)?;
        let all_lines = count.checked_mul(lines).filter(|all| *all <= WINDOW);
        let bytes = u64::from(all_lines.ok_or_else(too_big)?) * u64::from(LINE);
        let total = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| bytes.checked_add(buffers))
            .ok_or_else(too_big)?;
        Ok(Self {
            queue_pairs: config.queue_pairs,
            tx_ring,
            rx_ring,
            rings: mailbox,
            buffers,
            lines,
            buffer_size: usize::from(config.buffer_size),
            count,
            total: pages(total),
        })
    }

    /// Bytes needed in all, a multiple of the page size.
    pub(crate) fn total(&self) -> usize {
        self.total
    }
}

/// Where buffers are, as queues keep it at hand.
#[derive(Copy, Clone, Debug)]
pub(crate) struct BufferMap {
    /// Number of the first buffer: the start of this memory's window.
    first: u32,
    /// Cache lines of all buffers.
    lines: u32,
    /// Device address of buffer `first`.
    first_iova: u64,
    /// Bytes of a buffer.
    pub(crate) size: u32,
}

impl BufferMap {
    /// Device address of the buffer with this number; `None` if it is another driver's.
    #[inline(always)]
    pub(crate) fn iova(&self, number: u32) -> Option<u64> {
        let line = number.wrapping_sub(self.first);
        (line < self.lines).then(|| self.first_iova + u64::from(line) * u64::from(LINE))
    }

    /// Whether the buffer is of this memory.
    #[inline(always)]
    pub(crate) fn contains(&self, number: u32) -> bool {
        number.wrapping_sub(self.first) < self.lines
    }
}

/// The buffers of a [`DriverMemory`], borrowed: what a loop over frames keeps in registers.
#[derive(Copy, Clone, Debug)]
pub struct BufferView<'a> {
    memory: SharedSlice<'a>,
    /// Byte of `memory` at which the first buffer begins.
    first_offset: usize,
    buffers: BufferMap,
}

impl<'a> BufferView<'a> {
    /// `length` bytes of a buffer from byte `offset`; `None` if they are not all in the buffer, or
    /// it belongs to another driver's memory.
    #[inline(always)]
    pub fn part(&self, buffer: &Buffer, offset: usize, length: usize) -> Option<SharedSlice<'a>> {
        let size = self.buffers.size as usize;
        if !self.buffers.contains(buffer.0) || length > size || offset > size - length {
            return None;
        }
        self.memory.get(self.at(buffer) + offset, length)
    }

    /// Hints that the first cache line of a buffer will be read soon.
    #[inline(always)]
    pub fn prefetch_read(&self, buffer: &Buffer) {
        if let Some(line) = self.memory.get(self.at(buffer), 1) {
            line.prefetch_read();
        }
    }

    /// Hints that the first cache line of a buffer will be written soon.
    #[inline(always)]
    pub fn prefetch_write(&self, buffer: &Buffer) {
        if let Some(line) = self.memory.get(self.at(buffer), 1) {
            line.prefetch_write();
        }
    }

    /// Byte of the memory at which a buffer begins; nonsense for a buffer of another memory.
    #[inline(always)]
    fn at(&self, buffer: &Buffer) -> usize {
        let line = buffer.0.wrapping_sub(self.buffers.first);
        self.first_offset + line as usize * LINE as usize
    }
}

/// The memory shared with the device, and the buffers in it.
///
/// One per driver; queue pairs share it. Reaching a buffer's bytes is a bounds check and an
/// addition.
#[derive(Debug)]
pub struct DriverMemory {
    mapping: SharedMapping,
    fd: OwnedFd,
    file_offset: u64,
    iova: DmaAddress,
    /// Byte of `mapping` at which the driver's part begins.
    offset: usize,
    layout: Layout,
    buffers: BufferMap,
    /// Byte of `mapping` at which the first buffer begins.
    first_offset: usize,
    huge: bool,
}

impl DriverMemory {
    /// Creates or adopts the memory that `config` describes.
    ///
    /// # Errors
    /// The memory file cannot be created or mapped, or the given part is too small or not page
    /// aligned.
    pub(crate) fn new(config: &DriverConfig, source: MemorySource) -> Result<Self> {
        let layout = Layout::of(config)?;
        let (mapping, fd, file_offset, iova, offset, huge) = match source {
            MemorySource::Own { huge_pages } => {
                let (mapping, fd, huge) = own_memory(layout.total, huge_pages)?;
                (mapping, fd, 0, OWN_IOVA, 0, huge)
            }
            MemorySource::Given { mapping, fd, file_offset, iova, offset, length } => {
                if length < layout.total {
                    return Err(DriverError::Configuration(format!(
                        "the driver needs {} bytes of the given memory, and may use {length}",
                        layout.total
                    )));
                }
                if !offset.is_multiple_of(PAGE_SIZE)
                    || !iova.0.is_multiple_of(PAGE_SIZE as u64)
                    || !file_offset.is_multiple_of(PAGE_SIZE as u64)
                {
                    return Err(MemoryError::Misaligned {
                        offset: offset as u64,
                        length,
                        alignment: PAGE_SIZE,
                    }
                    .into());
                }
                mapping.slice(offset, length)?;
                if iova.0.checked_add(mapping.len() as u64).is_none() {
                    return Err(DriverError::Configuration(
                        "the given memory wraps around the device's address space".into(),
                    ));
                }
                (mapping, fd, file_offset, iova, offset, false)
            }
        };
        if mapping.access() != Access::ReadWrite {
            return Err(DriverError::Configuration("the given memory is read-only".into()));
        }
        static NEXT_WINDOW: AtomicU32 = AtomicU32::new(0);
        let first = NEXT_WINDOW.fetch_add(1, Ordering::Relaxed) % WINDOWS * WINDOW;
        let first_offset = offset + layout.buffers;
        let first_iova = iova.0 + first_offset as u64;
        Ok(Self {
            mapping,
            fd,
            file_offset,
            iova,
            offset,
            layout,
            buffers: BufferMap {
                first,
                lines: layout.count * layout.lines,
                first_iova,
                size: u32::from(config.buffer_size),
            },
            first_offset,
            huge,
        })
    }

    /// Bytes of a buffer.
    pub fn buffer_size(&self) -> usize {
        self.layout.buffer_size
    }

    /// Buffers in all.
    pub fn buffer_count(&self) -> u32 {
        self.layout.count
    }

    /// Whether 2 MiB pages back the memory.
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// The whole mapping.
    pub fn mapping(&self) -> &SharedMapping {
        &self.mapping
    }

    /// The memory file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Byte offset in the memory file at which the mapping begins.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// Device address of the mapping's first byte.
    pub fn iova(&self) -> DmaAddress {
        self.iova
    }

    /// All bytes of a buffer; `None` for a buffer of another driver's memory.
    #[inline]
    pub fn bytes(&self, buffer: &Buffer) -> Option<SharedSlice<'_>> {
        self.part(buffer, 0, self.layout.buffer_size)
    }

    /// `length` bytes of a buffer from byte `offset`; `None` if they are not all in the buffer, or
    /// it belongs to another driver's memory. In a loop, [`view`](Self::view) costs less.
    #[inline]
    pub fn part(&self, buffer: &Buffer, offset: usize, length: usize) -> Option<SharedSlice<'_>> {
        self.view().part(buffer, offset, length)
    }

    /// The buffers, for loops that reach many.
    #[inline(always)]
    pub fn view(&self) -> BufferView<'_> {
        BufferView {
            memory: self.mapping.as_slice(),
            first_offset: self.first_offset,
            buffers: self.buffers,
        }
    }

    /// Where buffers are.
    pub(crate) fn buffers(&self) -> BufferMap {
        self.buffers
    }

    /// Numbers of all buffers.
    pub(crate) fn buffer_numbers(&self) -> impl DoubleEndedIterator<Item = u32> {
        let (first, lines) = (self.buffers.first, self.layout.lines);
        (0..self.layout.count).map(move |buffer| first + buffer * lines)
    }

    /// Mapping offsets of the mailbox's parts: ring and buffers of one direction.
    pub(crate) fn mailbox(&self, receive: bool) -> (usize, usize) {
        let ring = pages(usize::from(MAILBOX_ENTRIES) * LONG_DESCRIPTOR);
        let side = ring + usize::from(MAILBOX_ENTRIES) * MAILBOX_BUFFER;
        let start = self.offset + if receive { side } else { 0 };
        (start, start + ring)
    }

    /// Mapping offsets of a pair's transmit and receive ring; `None` if there is no such pair.
    pub(crate) fn rings(&self, pair: u16) -> Option<(usize, usize)> {
        if pair >= self.layout.queue_pairs {
            return None;
        }
        let each = self.layout.tx_ring + self.layout.rx_ring;
        let tx = self.offset + self.layout.rings + usize::from(pair) * each;
        Some((tx, tx + self.layout.tx_ring))
    }

    /// Device address of byte `offset` of the mapping.
    pub(crate) fn iova_of(&self, offset: usize) -> u64 {
        self.iova.0 + offset as u64
    }
}

/// A memory file of our own: on 2 MiB pages if asked for and to be had, else on base pages.
fn own_memory(
    length: usize,
    huge_pages: bool,
) -> Result<(SharedMapping, OwnedFd, bool), MemoryError> {
    const HUGE: usize = 2 << 20;
    if huge_pages && let Ok((mapping, fd)) = huge_memory(length.next_multiple_of(HUGE)) {
        return Ok((mapping, fd, true));
    }
    let (mapping, fd) = SharedMapping::create("avf_driver", length, PageSize::Base)?;
    Ok((mapping, fd, false))
}

fn huge_memory(length: usize) -> Result<(SharedMapping, OwnedFd), MemoryError> {
    let fd = create_memfd("avf_driver", length, PageSize::Huge2M)?;
    // Takes the pages out of the host's pool now: a page that is missing later would be a SIGBUS.
    rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, length as u64)
        .map_err(|source| MemoryError::Create { length, huge: true, source })?;
    let mapping = SharedMapping::map(fd.as_fd(), 0, length, Access::ReadWrite)?;
    Ok((mapping, fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DriverConfig {
        DriverConfig { queue_pairs: 2, ..DriverConfig::new("unused") }
    }

    #[test]
    fn the_parts_of_the_memory_do_not_overlap_and_are_aligned() {
        let memory = DriverMemory::new(&config(), MemorySource::default()).unwrap();
        let (atq, atq_buffers) = memory.mailbox(false);
        let (arq, arq_buffers) = memory.mailbox(true);
        let mailbox_bytes = usize::from(MAILBOX_ENTRIES) * MAILBOX_BUFFER;
        let ring_bytes = usize::from(MAILBOX_ENTRIES) * LONG_DESCRIPTOR;
        let (tx0, rx0) = memory.rings(0).unwrap();
        let (tx1, rx1) = memory.rings(1).unwrap();
        let mut parts = vec![
            (atq, ring_bytes),
            (atq_buffers, mailbox_bytes),
            (arq, ring_bytes),
            (arq_buffers, mailbox_bytes),
            (tx0, 512 * TX_DESCRIPTOR),
            (rx0, 512 * LONG_DESCRIPTOR),
            (tx1, 512 * TX_DESCRIPTOR),
            (rx1, 512 * LONG_DESCRIPTOR),
            (memory.first_offset, memory.buffers.lines as usize * LINE as usize),
        ];
        parts.sort_unstable();
        for pair in parts.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
            assert_eq!(pair[0].0 % 128, 0);
        }
        assert!(parts.last().unwrap().0 + parts.last().unwrap().1 <= memory.mapping().len());
        assert!(memory.rings(2).is_none());
    }

    #[test]
    fn first_lines_of_buffers_spread_over_the_cache_sets() {
        let layout = Layout::of(&config()).unwrap();
        assert_eq!((layout.lines, layout.lines % 2), (33, 1));
    }

    #[test]
    fn a_buffer_of_another_memory_is_recognized() {
        let ours = DriverMemory::new(&config(), MemorySource::default()).unwrap();
        let theirs = DriverMemory::new(&config(), MemorySource::default()).unwrap();
        let buffer = Buffer(theirs.buffer_numbers().next().unwrap());
        assert!(theirs.bytes(&buffer).is_some());
        assert!(ours.bytes(&buffer).is_none());
        assert!(ours.buffers().iova(buffer.0).is_none());
        assert!(theirs.part(&buffer, 2000, 49).is_none());
        assert!(theirs.part(&buffer, usize::MAX, 2).is_none());
    }

    #[test]
    fn given_memory_must_be_large_enough_and_aligned() {
        let needed = config().memory_needed().unwrap();
        let given = |offset, length| {
            let (mapping, fd) =
                SharedMapping::create("vm", needed + 2 * PAGE_SIZE, PageSize::Base).unwrap();
            let iova = DmaAddress(0x10_0000);
            let source = MemorySource::Given { mapping, fd, file_offset: 0, iova, offset, length };
            DriverMemory::new(&config(), source)
        };
        let memory = given(PAGE_SIZE, needed).unwrap();
        assert_eq!(memory.iova_of(memory.mailbox(false).0), 0x10_0000 + 4096);
        assert!(matches!(given(0, needed - 1), Err(DriverError::Configuration(_))));
        assert!(matches!(given(64, needed), Err(DriverError::Memory(_))));
        assert!(matches!(given(4 * PAGE_SIZE, needed), Err(DriverError::Memory(_))));
    }
}
