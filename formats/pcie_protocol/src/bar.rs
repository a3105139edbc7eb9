//! Base address registers: what they say of the memory behind them (PCIe 6.0 §7.5.1.2.1).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PcieError;

/// Base address registers of a type 0 header, and VF BARs of an SR-IOV capability.
pub const BAR_COUNT: usize = 6;

/// Something for each of the six registers.
pub type Bars<T> = [T; BAR_COUNT];

const IO_SPACE: u32 = 1 << 0;
const TYPE_MASK: u32 = 0b11 << 1;
const TYPE_32_BIT: u32 = 0b00 << 1;
const TYPE_64_BIT: u32 = 0b10 << 1;
const PREFETCHABLE: u32 = 1 << 3;

/// Which base address register, 0 to 5.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct BarIndex(u8);

impl BarIndex {
    /// BAR 0.
    pub const BAR0: Self = Self(0);
    /// BAR 1.
    pub const BAR1: Self = Self(1);
    /// BAR 2.
    pub const BAR2: Self = Self(2);
    /// BAR 3.
    pub const BAR3: Self = Self(3);
    /// BAR 4.
    pub const BAR4: Self = Self(4);
    /// BAR 5.
    pub const BAR5: Self = Self(5);
    /// All six, in order.
    pub const ALL: Bars<Self> =
        [Self::BAR0, Self::BAR1, Self::BAR2, Self::BAR3, Self::BAR4, Self::BAR5];

    /// BAR `index`.
    ///
    /// # Errors
    /// [`PcieError::NoSuchBar`] if it is not 0 to 5.
    pub fn new(index: u8) -> Result<Self, PcieError> {
        if usize::from(index) < BAR_COUNT {
            Ok(Self(index))
        } else {
            Err(PcieError::NoSuchBar(u64::from(index)))
        }
    }

    /// The number, 0 to 5.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The register after this one, where the upper half of a 64-bit BAR is.
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1).ok()
    }

    /// The element of `bars` for this register.
    pub fn of<T>(self, bars: &Bars<T>) -> &T {
        let [b0, b1, b2, b3, b4, b5] = bars;
        match self.0 {
            0 => b0,
            1 => b1,
            2 => b2,
            3 => b3,
            4 => b4,
            _ => b5,
        }
    }

    /// The element of `bars` for this register, to change it.
    pub fn of_mut<T>(self, bars: &mut Bars<T>) -> &mut T {
        let [b0, b1, b2, b3, b4, b5] = bars;
        match self.0 {
            0 => b0,
            1 => b1,
            2 => b2,
            3 => b3,
            4 => b4,
            _ => b5,
        }
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BAR {}", self.0)
    }
}

impl TryFrom<u8> for BarIndex {
    type Error = PcieError;
    fn try_from(index: u8) -> Result<Self, PcieError> {
        Self::new(index)
    }
}

impl From<BarIndex> for u8 {
    fn from(bar: BarIndex) -> u8 {
        bar.0
    }
}

/// What a base address register decodes.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Serialize, Deserialize)]
pub enum BarKind {
    /// I/O space, 32-bit.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
    /// Memory anywhere; the register after this one holds the upper half of the address.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The read-only low bits of the register.
    pub const fn type_bits(self) -> u32 {
        match self {
            Self::Io => IO_SPACE,
            Self::Memory32 { prefetchable: false } => TYPE_32_BIT,
            Self::Memory32 { prefetchable: true } => TYPE_32_BIT | PREFETCHABLE,
            Self::Memory64 { prefetchable: false } => TYPE_64_BIT,
            Self::Memory64 { prefetchable: true } => TYPE_64_BIT | PREFETCHABLE,
        }
    }

    /// From the low bits of a register; `None` for the reserved types.
    pub const fn from_type_bits(register: u32) -> Option<Self> {
        let prefetchable = register & PREFETCHABLE != 0;
        if register & IO_SPACE != 0 {
            return Some(Self::Io);
        }
        match register & TYPE_MASK {
            TYPE_32_BIT => Some(Self::Memory32 { prefetchable }),
            TYPE_64_BIT => Some(Self::Memory64 { prefetchable }),
            _ => None,
        }
    }

    /// Whether the register after this one belongs to it.
    pub const fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64 { .. })
    }

    /// The bits of the first register that are not part of the address.
    pub const fn type_mask(self) -> u32 {
        match self {
            Self::Io => 0b11,
            Self::Memory32 { .. } | Self::Memory64 { .. } => 0b1111,
        }
    }
}

/// A base address register's meaning: kind and size of what is behind it.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Serialize, Deserialize)]
pub struct Bar {
    kind: BarKind,
    size: u64,
}

impl Bar {
    /// A BAR of `size` bytes.
    ///
    /// # Errors
    /// [`PcieError::BarSize`] unless the size is a power of two: of 4 to 256 bytes for I/O, of 16 bytes to
    /// 2 GiB for 32-bit memory, of 16 bytes to 2^63 bytes for 64-bit memory. (A PCI Express function asks
    /// for at least 128 bytes of memory; conventional devices have smaller BARs.)
    pub fn new(kind: BarKind, size: u64) -> Result<Self, PcieError> {
        let (range, requirement) = match kind {
            BarKind::Io => (4..=256, "an I/O BAR has a power of two from 4 to 256 bytes"),
            BarKind::Memory32 { .. } => {
                (16..=1 << 31, "a 32-bit memory BAR has a power of two from 16 bytes to 2 GiB")
            }
            BarKind::Memory64 { .. } => {
                (16..=1 << 63, "a 64-bit memory BAR has a power of two from 16 to 2^63 bytes")
            }
        };
        if size.is_power_of_two() && range.contains(&size) {
            Ok(Self { kind, size })
        } else {
            Err(PcieError::BarSize { size, requirement })
        }
    }

    /// 64-bit memory of `size` bytes; errors as [`Bar::new`].
    ///
    /// # Errors
    /// [`PcieError::BarSize`].
    pub fn memory64(size: u64, prefetchable: bool) -> Result<Self, PcieError> {
        Self::new(BarKind::Memory64 { prefetchable }, size)
    }

    /// 32-bit memory of `size` bytes; errors as [`Bar::new`].
    ///
    /// # Errors
    /// [`PcieError::BarSize`].
    pub fn memory32(size: u64, prefetchable: bool) -> Result<Self, PcieError> {
        Self::new(BarKind::Memory32 { prefetchable }, size)
    }

    /// What it decodes.
    pub const fn kind(self) -> BarKind {
        self.kind
    }

    /// Bytes behind it: a power of two.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The bits of the address that can be written: those at and above the size.
    pub const fn address_mask(self) -> u64 {
        let mask = !(self.size - 1);
        match self.kind {
            BarKind::Memory64 { .. } => mask,
            BarKind::Io | BarKind::Memory32 { .. } => mask & 0xFFFF_FFFF,
        }
    }

    /// The registers of a BAR at `address`: this one, and the upper half of a 64-bit one.
    pub const fn registers(self, address: u64) -> (u32, Option<u32>) {
        let address = address & self.address_mask();
        let [l0, l1, l2, l3, h0, h1, h2, h3] = address.to_le_bytes();
        let low = u32::from_le_bytes([l0, l1, l2, l3]) | self.kind.type_bits();
        let high = u32::from_le_bytes([h0, h1, h2, h3]);
        (low, if self.kind.is_64_bit() { Some(high) } else { None })
    }

    /// What the registers read as after all ones were written: how software learns the size.
    pub const fn probed(self) -> (u32, Option<u32>) {
        self.registers(u64::MAX)
    }
}

/// The six probed values of a function's BARs, in the form that GetVirtualFunctionProbedBars and
/// OID_SRIOV_PROBED_BARS carry (SPEC-NDIS-SRIOV §9): 0 where a register is not implemented.
///
/// # Errors
/// [`PcieError::NoUpperHalf`] if a 64-bit BAR is last or the register after it is in use.
pub fn encode_probed_bars(bars: &Bars<Option<Bar>>) -> Result<Bars<u32>, PcieError> {
    let mut probed = [0; BAR_COUNT];
    for index in BarIndex::ALL {
        let Some(bar) = index.of(bars) else { continue };
        let (low, high) = bar.probed();
        *index.of_mut(&mut probed) = low;
        if let Some(high) = high {
            let upper = index.next().filter(|upper| upper.of(bars).is_none());
            *upper.ok_or(PcieError::NoUpperHalf(index))?.of_mut(&mut probed) = high;
        }
    }
    Ok(probed)
}

/// What six probed values say of the BARs; `None` for a register that is not implemented or is an upper half.
///
/// # Errors
/// [`PcieError::NotAProbedBar`] for reserved type bits or a mask with holes, [`PcieError::NoUpperHalf`] for
/// a 64-bit BAR in the last register.
pub fn decode_probed_bars(probed: &Bars<u32>) -> Result<Bars<Option<Bar>>, PcieError> {
    let mut bars = [None; BAR_COUNT];
    let mut indices = BarIndex::ALL.into_iter();
    while let Some(index) = indices.next() {
        let value = *index.of(probed);
        if value == 0 {
            continue;
        }
        let error = PcieError::NotAProbedBar { bar: index, value };
        let kind = BarKind::from_type_bits(value).ok_or(error)?;
        let low = value & !kind.type_mask();
        let mask = if kind.is_64_bit() {
            let upper = indices.next().ok_or(PcieError::NoUpperHalf(index))?;
            u64::from(*upper.of(probed)) << 32 | u64::from(low)
        } else {
            // Some I/O BARs leave the upper 16 bits unimplemented; they decode as if those were ones.
            let upper = if kind == BarKind::Io && low >> 16 == 0 { 0xFFFF_0000 } else { 0 };
            0xFFFF_FFFF_0000_0000 | u64::from(low | upper)
        };
        let bar = Bar::new(kind, mask.wrapping_neg()).map_err(|_| error)?;
        *index.of_mut(&mut bars) = Some(bar);
    }
    Ok(bars)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn probed_values_of_an_avf_vf_are_those_of_hardware() {
        let mut bars = [None; 6];
        bars[0] = Some(Bar::memory64(64 << 10, true).unwrap());
        bars[3] = Some(Bar::memory64(16 << 10, false).unwrap());
        let probed = encode_probed_bars(&bars).unwrap();
        assert_eq!(probed, [0xFFFF_000C, 0xFFFF_FFFF, 0, 0xFFFF_C004, 0xFFFF_FFFF, 0]);
        assert_eq!(decode_probed_bars(&probed), Ok(bars));
    }

    #[test]
    fn a_bar_above_4_gib_keeps_its_size_in_the_upper_half() {
        let bar = Bar::memory64(1 << 36, true).unwrap();
        assert_eq!(bar.probed(), (0x0000_000C, Some(0xFFFF_FFF0)));
        assert_eq!(bar.registers(0x0123_4567_89AB_CDEF), (0xC, Some(0x0123_4560)));
    }

    #[test]
    fn sizes_that_no_bar_can_have_are_refused() {
        for (kind, size) in [
            (BarKind::Memory32 { prefetchable: false }, 0),
            (BarKind::Memory32 { prefetchable: false }, 3000),
            (BarKind::Memory32 { prefetchable: false }, 8),
            (BarKind::Memory32 { prefetchable: false }, 1 << 32),
            (BarKind::Io, 512),
        ] {
            assert!(matches!(Bar::new(kind, size), Err(PcieError::BarSize { .. })), "{size:#x}");
        }
    }

    #[test]
    fn a_64_bit_bar_needs_the_next_register() {
        let bar = Some(Bar::memory64(4096, false).unwrap());
        let last = [None, None, None, None, None, bar];
        assert_eq!(encode_probed_bars(&last), Err(PcieError::NoUpperHalf(BarIndex::BAR5)));
        let taken = [bar, Some(Bar::memory32(4096, false).unwrap()), None, None, None, None];
        assert_eq!(encode_probed_bars(&taken), Err(PcieError::NoUpperHalf(BarIndex::BAR0)));
        let probed = [0, 0, 0, 0, 0, 0xFFFF_F004];
        assert_eq!(decode_probed_bars(&probed), Err(PcieError::NoUpperHalf(BarIndex::BAR5)));
    }

    #[test]
    fn masks_with_holes_and_reserved_types_are_refused() {
        for value in [0xFF0F_0000, 0xFFFF_0002, 0x0000_0004, 0x0000_0008, 0xFFFF_FFF6] {
            assert!(decode_probed_bars(&[value, 0, 0, 0, 0, 0]).is_err(), "{value:#x}");
        }
    }

    fn any_bar() -> impl Strategy<Value = Bar> {
        prop_oneof![
            (2u32..=8).prop_map(|shift| Bar::new(BarKind::Io, 1 << shift).unwrap()),
            (4u32..=31, any::<bool>()).prop_map(|(s, p)| Bar::memory32(1 << s, p).unwrap()),
            (4u32..=63, any::<bool>()).prop_map(|(s, p)| Bar::memory64(1 << s, p).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn bars_survive_probing(bars in proptest::array::uniform6(proptest::option::of(any_bar()))) {
            if let Ok(probed) = encode_probed_bars(&bars) {
                prop_assert_eq!(decode_probed_bars(&probed), Ok(bars));
            }
        }

        #[test]
        fn random_probed_values_decode_or_fail(probed: [u32; 6]) {
            if let Ok(bars) = decode_probed_bars(&probed) {
                prop_assert!(encode_probed_bars(&bars).is_ok());
            }
        }

        #[test]
        fn registers_hold_the_address_and_the_type(bar in any_bar(), address: u64) {
            let (low, high) = bar.registers(address);
            prop_assert_eq!(low & bar.kind().type_mask(), bar.kind().type_bits());
            let read = u64::from(low & !bar.kind().type_mask()) | u64::from(high.unwrap_or(0)) << 32;
            prop_assert_eq!(read, address & bar.address_mask());
            prop_assert_eq!(read % bar.size(), 0);
        }
    }
}
