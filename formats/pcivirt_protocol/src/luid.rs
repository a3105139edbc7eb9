//! Locally unique identifiers (SPEC-PCIVIRT §7).

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A locally unique identifier: unique on one machine until it is restarted.
#[derive(
    Copy,
    Clone,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct Luid {
    /// Low 32 bits.
    pub low_part: u32,
    /// High 32 bits, signed as published.
    pub high_part: i32,
}

const _: () = assert!(size_of::<Luid>() == 8);

impl Luid {
    /// The identifier whose 64 bits are `value`.
    pub const fn from_u64(value: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        Self {
            low_part: u32::from_le_bytes([a, b, c, d]),
            high_part: i32::from_le_bytes([e, f, g, h]),
        }
    }

    /// The identifier's 64 bits.
    pub const fn to_u64(self) -> u64 {
        let [a, b, c, d] = self.low_part.to_le_bytes();
        let [e, f, g, h] = self.high_part.to_le_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for Luid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}-{:08X}", self.high_part, self.low_part)
    }
}

impl fmt::Debug for Luid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_64_bits_survive(value: u64) {
            prop_assert_eq!(Luid::from_u64(value).to_u64(), value);
        }
    }

    #[test]
    fn the_low_part_comes_first() {
        let luid = Luid::from_u64(0x8000_0002_0000_0001);
        assert_eq!((luid.low_part, luid.high_part), (1, -0x7FFF_FFFE));
        assert_eq!(luid.to_string(), "80000002-00000001");
    }
}
