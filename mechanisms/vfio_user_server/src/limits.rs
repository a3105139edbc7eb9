//! What clients may make this process hold.
//!
//! Each DMA range is a mapping of its own, and both mappings (`vm.max_map_count`) and addresses are a process's.
//! Every function has a share that nobody can take from it: enough for a guest's memory as it is. A guest with
//! an IOMMU of its own maps single pages, thousands of them; those beyond the share come from a pool, of which no
//! function can have more than half.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Functions of one process whose own shares are certain.
const FUNCTIONS: usize = 256;
/// Linux allows a process 65,530 mappings unless told otherwise; the rest of the program needs some.
const PROCESS_MAPPINGS: usize = 49_152;
/// Three quarters of the 128 TiB of addresses that a process has.
const PROCESS_BYTES: u64 = 96 << 40;

/// Mappings that are a function's own.
pub(crate) const OWN_MAPPINGS: usize = 64;
/// Bytes of mappings that are a function's own.
const OWN_BYTES: u64 = 128 << 30;

const POOL_MAPPINGS: usize = PROCESS_MAPPINGS - FUNCTIONS * OWN_MAPPINGS;
const POOL_BYTES: u64 = PROCESS_BYTES - FUNCTIONS as u64 * OWN_BYTES;

const _: () = assert!(PROCESS_MAPPINGS < 65_530 && PROCESS_BYTES < 128 << 40);

/// What one client may have at most.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Limits {
    /// DMA ranges at a time, those without a descriptor included. Told to the client as `max_dma_maps`.
    pub dma_ranges: usize,
    /// Bytes in all DMA ranges with a descriptor.
    pub dma_bytes: u64,
}

impl Default for Limits {
    /// A function's own share and half of the pool: 16,448 ranges and 32 TiB.
    fn default() -> Self {
        Self { dma_ranges: OWN_MAPPINGS + POOL_MAPPINGS / 2, dma_bytes: OWN_BYTES + POOL_BYTES / 2 }
    }
}

/// What functions share beyond what is their own.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Contended by the functions' threads, when a guest maps more than its function's own share.
    left: Mutex<Amount>,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
struct Amount {
    mappings: usize,
    bytes: u64,
}

impl Amount {
    /// How much of it is over a function's own share.
    fn over(self) -> Self {
        Self {
            mappings: self.mappings.saturating_sub(OWN_MAPPINGS),
            bytes: self.bytes.saturating_sub(OWN_BYTES),
        }
    }
}

impl Pool {
    /// The process's.
    pub(crate) fn process() -> Arc<Self> {
        static POOL: OnceLock<Arc<Pool>> = OnceLock::new();
        Arc::clone(POOL.get_or_init(|| Pool::new(POOL_MAPPINGS, POOL_BYTES)))
    }

    pub(crate) fn new(mappings: usize, bytes: u64) -> Arc<Self> {
        Arc::new(Self { left: Mutex::new(Amount { mappings, bytes }) })
    }

    /// Exchanges what a function holds of the pool; nothing changes when there is not enough.
    fn exchange(&self, held: Amount, wanted: Amount) -> Option<()> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mappings = (left.mappings + held.mappings).checked_sub(wanted.mappings)?;
        let bytes = left.bytes.saturating_add(held.bytes).checked_sub(wanted.bytes)?;
        *left = Amount { mappings, bytes };
        Some(())
    }
}

/// What one function holds; given back when this drops.
#[derive(Debug)]
pub(crate) struct Share {
    pool: Arc<Pool>,
    held: Amount,
}

impl Share {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self { pool, held: Amount::default() }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.held.bytes
    }

    /// Takes one more mapping of `bytes`; `None` when the pool has no more.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<()> {
        let mappings = self.held.mappings.checked_add(1)?;
        let bytes = self.held.bytes.checked_add(bytes)?;
        self.change(Amount { mappings, bytes })
    }

    /// Gives one mapping of `bytes` back.
    pub(crate) fn give(&mut self, bytes: u64) {
        let mappings = self.held.mappings.saturating_sub(1);
        let bytes = self.held.bytes.saturating_sub(bytes);
        let _ = self.change(Amount { mappings, bytes });
    }

    /// Gives everything back.
    pub(crate) fn give_all(&mut self) {
        let _ = self.change(Amount::default());
    }

    fn change(&mut self, wanted: Amount) -> Option<()> {
        let (held_over, wanted_over) = (self.held.over(), wanted.over());
        if held_over != wanted_over {
            self.pool.exchange(held_over, wanted_over)?;
        }
        self.held = wanted;
        Some(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_takes_nothing_from_a_functions_own_share() {
        let pool = Pool::new(10, 1 << 40);
        let mut greedy = Share::new(Arc::clone(&pool));
        for _ in 0..OWN_MAPPINGS + 10 {
            greedy.take(4096).unwrap();
        }
        assert_eq!(greedy.take(4096), None);
        let mut modest = Share::new(Arc::clone(&pool));
        for _ in 0..OWN_MAPPINGS {
            modest.take(4096).unwrap();
        }
        assert_eq!(modest.take(4096), None);
        greedy.give(4096);
        modest.take(4096).unwrap();
        assert_eq!(greedy.take(4096), None);
        drop(greedy);
        for _ in 0..9 {
            modest.take(4096).unwrap();
        }
        assert_eq!(modest.take(4096), None);
        modest.give_all();
        assert_eq!(pool.left.lock().unwrap().mappings, 10);
    }

    #[test]
    fn the_default_is_as_it_says() {
        let limits = Limits { dma_ranges: 16_448, dma_bytes: (32 << 40) + (128 << 30) };
        assert_eq!(Limits::default(), limits);
    }

    #[test]
    fn bytes_are_counted_as_mappings_are() {
        let pool = Pool::new(10, 1000);
        let mut share = Share::new(Arc::clone(&pool));
        share.take(OWN_BYTES).unwrap();
        share.take(1000).unwrap();
        assert_eq!(share.take(1), None);
        assert_eq!(share.take(u64::MAX), None);
        assert_eq!(share.bytes(), OWN_BYTES + 1000);
        share.give(OWN_BYTES);
        assert_eq!(pool.left.lock().unwrap().bytes, 1000);
    }
}
