//! The memory that driver and adapter share: two rings of descriptors, a buffer for each, and a setup frame.

use std::{os::fd::OwnedFd, sync::atomic::Ordering};

use shared_memory::{MemoryError, PAGE_SIZE, PageSize, SharedMapping, SharedSlice};

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Bytes of a buffer that the adapter is told of.
pub(crate) const BUFFER: u16 = 1536;
/// Bytes from buffer to buffer: an odd number of cache lines, so that their first lines spread over the caches' sets.
const STRIDE: usize = 25 * 64;
/// Bytes of a setup frame.
pub(crate) const SETUP_FRAME: u16 = 192;
/// Where the memory is for the adapter, which has 32 address bits.
const BASE: u32 = 0x0100_0000;
const HUGE: usize = 2 << 20;

/// The adapter owns the descriptor.
const OWN: u32 = 1 << 31;
/// In the control word: the ring begins again.
const END_OF_RING: u32 = 1 << 25;

/// Which ring.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Ring {
    Receive,
    Transmit,
}

#[derive(Debug)]
pub(crate) struct Rings {
    mapping: SharedMapping,
    fd: OwnedFd,
    /// Descriptors of the receive and of the transmit ring.
    entries: [usize; 2],
}

impl Rings {
    pub(crate) fn new(receive: u16, transmit: u16, huge: bool) -> Result<Self, MemoryError> {
        let entries = [usize::from(receive), usize::from(transmit)];
        let all: usize = entries.iter().sum();
        let bytes = all * (DESCRIPTOR + STRIDE) + STRIDE;
        let create = |pages, unit| {
            SharedMapping::create("emulated adapter", bytes.next_multiple_of(unit), pages)
        };
        let (mapping, fd) = if huge {
            create(PageSize::Huge2M, HUGE).or_else(|_| create(PageSize::Base, PAGE_SIZE))?
        } else {
            create(PageSize::Base, PAGE_SIZE)?
        };
        Ok(Self { mapping, fd, entries })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Where the memory begins for the adapter, and its bytes.
    pub(crate) fn extent(&self) -> (u64, u64) {
        (BASE.into(), self.mapping.len() as u64)
    }

    pub(crate) fn entries(&self, ring: Ring) -> usize {
        let [receive, transmit] = self.entries;
        match ring {
            Ring::Receive => receive,
            Ring::Transmit => transmit,
        }
    }

    /// Which of all descriptors, and of all buffers, it is.
    fn number(&self, ring: Ring, entry: usize) -> usize {
        match ring {
            Ring::Receive => entry,
            Ring::Transmit => self.entries(Ring::Receive) + entry,
        }
    }

    fn buffer_at(&self, number: usize) -> usize {
        let all: usize = self.entries.iter().sum();
        (all * DESCRIPTOR).next_multiple_of(STRIDE) + number * STRIDE
    }

    /// As the adapter sees an offset. The memory is far smaller than what 32 bits reach.
    fn address(offset: usize) -> u32 {
        BASE.wrapping_add(u32::try_from(offset).unwrap_or(0))
    }

    /// The address of a ring.
    pub(crate) fn ring_address(&self, ring: Ring) -> u32 {
        Self::address(self.number(ring, 0) * DESCRIPTOR)
    }

    fn words(&self, ring: Ring, entry: usize) -> SharedSlice<'_> {
        let at = self.number(ring, entry) * DESCRIPTOR;
        // Every entry there is lies inside of the memory.
        self.mapping.slice(at, DESCRIPTOR).unwrap_or_else(|_| SharedSlice::empty())
    }

    /// The first bytes of an entry's buffer.
    #[inline]
    pub(crate) fn buffer(&self, ring: Ring, entry: usize, length: usize) -> SharedSlice<'_> {
        let at = self.buffer_at(self.number(ring, entry));
        let length = length.min(usize::from(BUFFER));
        self.mapping.slice(at, length).unwrap_or_else(|_| SharedSlice::empty())
    }

    /// The status of a descriptor that the adapter has given back.
    #[inline]
    pub(crate) fn given_back(&self, ring: Ring, entry: usize) -> Option<u32> {
        let status = self.words(ring, entry).load_u32(0, Ordering::Acquire)?;
        (status & OWN == 0).then_some(status)
    }

    /// Gives a descriptor with a buffer of so many bytes to the adapter.
    #[inline]
    pub(crate) fn give(&self, ring: Ring, entry: usize, size: u16, control: u32) {
        let words = self.words(ring, entry);
        let end = if entry + 1 == self.entries(ring) { END_OF_RING } else { 0 };
        words.store_u32(4, control | end | u32::from(size), Ordering::Relaxed);
        let address = Self::address(self.buffer_at(self.number(ring, entry)));
        words.store_u32(8, address, Ordering::Relaxed);
        words.store_u32(12, 0, Ordering::Relaxed);
        words.store_u32(0, OWN, Ordering::Release);
    }

    /// Takes a descriptor away from the adapter, which is not running.
    pub(crate) fn take(&self, ring: Ring, entry: usize) {
        self.words(ring, entry).store_u32(0, 0, Ordering::Release);
    }
}
