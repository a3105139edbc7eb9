//! What one client may make this process hold.

/// Mappings that Linux allows a process unless told otherwise (`vm.max_map_count`, 65,530), less what the rest of
/// the program needs.
const PROCESS_MAPPINGS: usize = 49_152;

/// Bytes of address space for DMA ranges: three quarters of the 128 TiB that a process has.
const PROCESS_BYTES: u64 = 96 << 40;

/// What one client may make this process hold.
///
/// Each DMA range is a mapping of its own, and mappings and addresses are per process: with a fixed share for
/// each function, none can take what another needs.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Limits {
    /// DMA ranges mapped at a time, those without a descriptor included. Told to the client as
    /// `max_dma_maps`.
    pub dma_ranges: usize,
    /// Bytes in all DMA ranges with a descriptor.
    pub dma_bytes: u64,
}

impl Limits {
    /// The share of one function in a process that serves `functions` of them. The protocol's default of 65,535
    /// DMA ranges is never exceeded, and 64 (what a guest without an IOMMU needs, several times over) is
    /// always there.
    pub fn fair_share(functions: usize) -> Self {
        let functions = functions.max(1);
        Self {
            dma_ranges: (PROCESS_MAPPINGS / functions).clamp(64, 65_535),
            dma_bytes: PROCESS_BYTES / functions as u64,
        }
    }
}

impl Default for Limits {
    /// The share of one function of 256, the most that an adapter has.
    fn default() -> Self {
        Self::fair_share(256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_fit_into_the_process() {
        for functions in [1, 2, 7, 64, 256] {
            let limits = Limits::fair_share(functions);
            assert!(limits.dma_ranges * functions <= 65_530);
            assert!(limits.dma_bytes.checked_mul(functions as u64).unwrap() <= 128 << 40);
        }
        assert_eq!(Limits::fair_share(0), Limits::fair_share(1));
        assert_eq!(Limits::default().dma_ranges, 192);
    }
}
