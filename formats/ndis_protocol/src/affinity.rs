//! GROUP_AFFINITY: the processors that may serve a queue or VPort (SPEC-NDIS-SRIOV §15).

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// GROUP_AFFINITY as bytes.
#[derive(
    Copy, Clone, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NdisGroupAffinity {
    /// One bit for each processor of the group.
    pub mask: U64,
    /// The processor group.
    pub group: U16,
    /// Reserved.
    pub reserved: [U16; 3],
}

const _: () = assert!(size_of::<NdisGroupAffinity>() == 16);

/// A set of processors within one processor group.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub struct GroupAffinity {
    /// One bit for each processor of the group; 0 is no processor.
    pub mask: u64,
    /// The processor group.
    pub group: u16,
}

impl GroupAffinity {
    /// No processor.
    pub const NONE: Self = Self { mask: 0, group: 0 };

    /// The number of processors.
    #[must_use]
    pub const fn processors(self) -> u32 {
        self.mask.count_ones()
    }

    /// Reads the wire form; the reserved members are ignored.
    #[must_use]
    pub const fn from_wire(wire: &NdisGroupAffinity) -> Self {
        Self { mask: wire.mask.get(), group: wire.group.get() }
    }

    /// The wire form.
    #[must_use]
    pub const fn to_wire(self) -> NdisGroupAffinity {
        NdisGroupAffinity {
            mask: U64::new(self.mask),
            group: U16::new(self.group),
            reserved: [U16::ZERO; 3],
        }
    }
}
