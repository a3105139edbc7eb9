//! The MSI-X capability, its table and its pending bit array (PCIe 6.0 §7.7.2).

use std::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use crate::{BarIndex, CapabilityHeader, PcieError};

/// The most vectors an MSI-X table can have.
pub const MSI_X_MAX_VECTORS: u16 = 2048;

/// Bytes of one table entry.
pub const MSI_X_ENTRY_SIZE: u32 = 16;

/// Bytes of the pending bit array for `vectors` vectors: whole 64-bit words.
pub const fn msi_x_pba_length(vectors: u16) -> u32 {
    (vectors as u32).div_ceil(64) * 8
}

/// Message Control for MSI-X (PCIe 6.0 §7.7.2.2).
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct MsiXControl {
    /// Bits 10:0: vectors in the table, less one.
    #[bits(11)]
    pub table_size_minus_one: u16,
    #[bits(3)]
    reserved: u8,
    /// Bit 14: all vectors are masked.
    pub function_mask: bool,
    /// Bit 15: interrupts are sent by MSI-X.
    pub enable: bool,
}

/// Where the table or the pending bit array is (PCIe 6.0 §7.7.2.3, §7.7.2.4).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct MsiXLocation {
    /// The BAR (the "BIR").
    pub bar: BarIndex,
    /// Bytes from the start of the BAR: a multiple of 8.
    pub offset: u32,
}

impl MsiXLocation {
    /// The register: offset with the BAR's number in the low three bits.
    pub const fn register(self) -> u32 {
        self.offset & !7 | self.bar.get() as u32
    }

    /// From the register.
    ///
    /// # Errors
    /// [`PcieError::NoSuchBar`] for the reserved numbers 6 and 7.
    pub fn from_register(register: u32) -> Result<Self, PcieError> {
        let [low, ..] = register.to_le_bytes();
        Ok(Self { bar: BarIndex::new(low & 7)?, offset: register & !7 })
    }
}

/// Vector Control of a table entry (PCIe 6.0 §7.7.2.9).
#[bitfield(u32)]
#[derive(Eq, PartialEq)]
pub struct MsiXVectorControl {
    /// Bit 0: the vector is masked; set after a reset.
    pub mask: bool,
    #[bits(15)]
    reserved: u16,
    /// Bits 31:16: steering tag, with TPH.
    pub steering_tag: u16,
}

/// One entry of the MSI-X table.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct MsiXTableEntry {
    /// Message address, low half; bits 1:0 are zero.
    pub address_low: U32,
    /// Message address, high half.
    pub address_high: U32,
    /// Message data.
    pub data: U32,
    /// [`MsiXVectorControl`].
    pub vector_control: U32,
}

/// The capability's bytes.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MsiXCapability {
    /// Id 0x11.
    pub header: CapabilityHeader,
    /// [`MsiXControl`].
    pub control: U16,
    /// Where the table is: [`MsiXLocation::register`].
    pub table: U32,
    /// Where the pending bit array is: [`MsiXLocation::register`].
    pub pba: U32,
}

const _: () = {
    assert!(size_of::<MsiXTableEntry>() == MSI_X_ENTRY_SIZE as usize);
    assert!(offset_of!(MsiXTableEntry, data) == 8);
    assert!(offset_of!(MsiXTableEntry, vector_control) == 12);
    assert!(size_of::<MsiXCapability>() == 12);
    assert!(offset_of!(MsiXCapability, control) == 2);
    assert!(offset_of!(MsiXCapability, table) == 4);
    assert!(offset_of!(MsiXCapability, pba) == 8);
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_lie_where_the_specification_puts_them() {
        let control = MsiXControl::new()
            .with_table_size_minus_one(16)
            .with_function_mask(true)
            .with_enable(true);
        assert_eq!(u16::from(control), 0xC010);
        assert_eq!(u32::from(MsiXVectorControl::new().with_mask(true)), 1);
        let location = MsiXLocation { bar: BarIndex::BAR3, offset: 0x2000 };
        assert_eq!(location.register(), 0x2003);
    }

    #[test]
    fn pending_bits_come_in_whole_quadwords() {
        assert_eq!(msi_x_pba_length(1), 8);
        assert_eq!(msi_x_pba_length(64), 8);
        assert_eq!(msi_x_pba_length(65), 16);
        assert_eq!(msi_x_pba_length(2048), 256);
    }

    proptest! {
        #[test]
        fn location_survives_its_register(register: u32) {
            match MsiXLocation::from_register(register) {
                Ok(location) => prop_assert_eq!(location.register(), register),
                Err(_) => prop_assert!(register & 7 > 5),
            }
        }
    }
}
