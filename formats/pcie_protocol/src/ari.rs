//! The alternative routing-id interpretation capability (PCIe 6.0 §6.13, §7.8.8).

use std::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// ARI Capability register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct AriCapabilities {
    /// Bit 0: function groups for arbitration; function 0 only.
    pub mfvc_function_groups: bool,
    /// Bit 1: function groups for ACS; function 0 only.
    pub acs_function_groups: bool,
    #[bits(6)]
    reserved: u8,
    /// Bits 15:8: the next function of the device, 0 for none. VFs are not in this list.
    pub next_function_number: u8,
}

/// ARI Control register.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct AriControl {
    /// Bit 0: arbitration by function groups.
    pub mfvc_function_groups_enable: bool,
    /// Bit 1: ACS by function groups.
    pub acs_function_groups_enable: bool,
    #[bits(2)]
    reserved: u8,
    /// Bits 6:4: group of this function.
    #[bits(3)]
    pub function_group: u8,
    #[bits(9)]
    reserved_7: u16,
}

/// The capability's bytes.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AriCapability {
    /// Extended id 0x000E, version 1.
    pub header: U32,
    /// [`AriCapabilities`].
    pub capabilities: U16,
    /// [`AriControl`].
    pub control: U16,
}

const _: () = {
    assert!(size_of::<AriCapability>() == 8);
    assert!(offset_of!(AriCapability, capabilities) == 4);
    assert!(offset_of!(AriCapability, control) == 6);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_puts_them() {
        assert_eq!(u16::from(AriCapabilities::new().with_next_function_number(2)), 0x0200);
        assert_eq!(u16::from(AriControl::new().with_function_group(7)), 0x70);
    }
}
