//! RSS messages other than the variable ones (SPEC-AVF §4.6).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use super::wire;

/// Hash functions of CONFIG_RSS_HFUNC.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum HashFunction {
    /// 0: Toeplitz, the default.
    ToeplitzAsymmetric,
    /// 1.
    RAsymmetric,
    /// 2: Toeplitz with source and destination sorted.
    ToeplitzSymmetric,
    /// 3.
    XorSymmetric,
    /// Anything else.
    Other(u16),
}

impl HashFunction {
    /// The function of a number.
    pub const fn of(value: u16) -> Self {
        match value {
            0 => Self::ToeplitzAsymmetric,
            1 => Self::RAsymmetric,
            2 => Self::ToeplitzSymmetric,
            3 => Self::XorSymmetric,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub const fn value(self) -> u16 {
        match self {
            Self::ToeplitzAsymmetric => 0,
            Self::RAsymmetric => 1,
            Self::ToeplitzSymmetric => 2,
            Self::XorSymmetric => 3,
            Self::Other(value) => value,
        }
    }
}

/// Request of CONFIG_RSS_HFUNC, 8 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct RssHfunc {
    /// VSI.
    pub vsi_id: U16,
    /// [`HashFunction`].
    pub algorithm: U16,
    /// Unused.
    pub reserved: U32,
}
wire!(RssHfunc, 8; algorithm at 2, reserved at 4);

/// Reply of GET_MAX_RSS_QREGION, 8 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct MaxRssQregion {
    /// VSI (VPort) id.
    pub vport_id: U16,
    /// Base-2 logarithm of the queues one lookup table entry can choose from.
    pub qregion_width: U16,
    /// Unused.
    pub pad: U32,
}
wire!(MaxRssQregion, 8; qregion_width at 2);
