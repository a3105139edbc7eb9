//! The access control services capability (PCIe 6.0 §6.12, §7.7.11).

use std::mem::{offset_of, size_of};

use bitfield_struct::bitfield;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// ACS Capability register: which services the function implements.
///
/// A function that never sends requests to its siblings implements none: software reads a capability with
/// all bits clear as "isolated", and a missing capability as "not known to be isolated".
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct AcsCapabilities {
    /// Bit 0.
    pub source_validation: bool,
    /// Bit 1.
    pub translation_blocking: bool,
    /// Bit 2.
    pub p2p_request_redirect: bool,
    /// Bit 3.
    pub p2p_completion_redirect: bool,
    /// Bit 4.
    pub upstream_forwarding: bool,
    /// Bit 5.
    pub p2p_egress_control: bool,
    /// Bit 6.
    pub direct_translated_p2p: bool,
    /// Bit 7.
    pub enhanced_capability: bool,
    /// Bits 15:8: bits in the egress control vector; 0 means 256.
    pub egress_control_vector_size: u8,
}

/// ACS Control register: which services are on.
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct AcsControl {
    /// Bit 0.
    pub source_validation_enable: bool,
    /// Bit 1.
    pub translation_blocking_enable: bool,
    /// Bit 2.
    pub p2p_request_redirect_enable: bool,
    /// Bit 3.
    pub p2p_completion_redirect_enable: bool,
    /// Bit 4.
    pub upstream_forwarding_enable: bool,
    /// Bit 5.
    pub p2p_egress_control_enable: bool,
    /// Bit 6.
    pub direct_translated_p2p_enable: bool,
    /// Bit 7.
    pub io_request_blocking_enable: bool,
    /// Bits 9:8.
    #[bits(2)]
    pub downstream_port_memory_target_access_control: u8,
    /// Bits 11:10.
    #[bits(2)]
    pub upstream_port_memory_target_access_control: u8,
    /// Bit 12.
    pub unclaimed_request_redirect_control: bool,
    #[bits(3)]
    reserved: u8,
}

/// The capability's bytes, without an egress control vector.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AcsCapability {
    /// Extended id 0x000D, version 1.
    pub header: U32,
    /// [`AcsCapabilities`].
    pub capabilities: U16,
    /// [`AcsControl`].
    pub control: U16,
}

const _: () = {
    assert!(size_of::<AcsCapability>() == 8);
    assert!(offset_of!(AcsCapability, capabilities) == 4);
    assert!(offset_of!(AcsCapability, control) == 6);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_puts_them() {
        let services = AcsCapabilities::new()
            .with_source_validation(true)
            .with_p2p_request_redirect(true)
            .with_p2p_completion_redirect(true)
            .with_upstream_forwarding(true);
        assert_eq!(u16::from(services), 0x1D);
        assert_eq!(u16::from(AcsControl::new().with_direct_translated_p2p_enable(true)), 0x40);
        assert_eq!(
            u16::from(AcsControl::new().with_unclaimed_request_redirect_control(true)),
            0x1000
        );
    }
}
