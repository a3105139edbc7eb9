//! The PCI power management capability (PCIe 6.0 §7.5.2) and the states it switches (§5.3.1).

use std::{
    fmt,
    mem::{offset_of, size_of},
};

use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U16};

use crate::CapabilityHeader;

/// The power state of a function, as software can set it.
#[derive(
    Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug, Default, Serialize, Deserialize,
)]
pub enum PowerState {
    /// On.
    #[default]
    D0,
    /// Light sleep (optional).
    D1,
    /// Deeper sleep (optional).
    D2,
    /// Off, with main power still there: configuration accesses are answered.
    D3hot,
}

impl PowerState {
    /// The two bits of the register.
    pub const fn into_bits(self) -> u8 {
        match self {
            Self::D0 => 0,
            Self::D1 => 1,
            Self::D2 => 2,
            Self::D3hot => 3,
        }
    }

    /// From the two bits of the register; higher bits are ignored.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::D0,
            1 => Self::D1,
            2 => Self::D2,
            _ => Self::D3hot,
        }
    }
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Power Management Capabilities register (PCIe 6.0 §7.5.2.1).
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct PowerManagementCapabilities {
    /// Bits 2:0: 3 for PCI Express.
    #[bits(3)]
    pub version: u8,
    /// Bit 3: 0 in PCI Express.
    pub pme_clock: bool,
    /// Bit 4: ready at once when it returns to D0.
    pub immediate_readiness_on_return_to_d0: bool,
    /// Bit 5: needs device-specific initialization.
    pub device_specific_initialization: bool,
    /// Bits 8:6: auxiliary current.
    #[bits(3)]
    pub aux_current: u8,
    /// Bit 9: has D1.
    pub d1_support: bool,
    /// Bit 10: has D2.
    pub d2_support: bool,
    /// Bits 15:11: states from which it can send PME (D0, D1, D2, D3hot, D3cold).
    #[bits(5)]
    pub pme_support: u8,
}

/// Power Management Control/Status register (PCIe 6.0 §7.5.2.2).
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct PowerManagementControl {
    /// Bits 1:0: current state; written to change it.
    #[bits(2, default = PowerState::D0)]
    pub power_state: PowerState,
    #[bits(1)]
    reserved_2: u8,
    /// Bit 3: the way from D3hot to D0 does not reset the function.
    pub no_soft_reset: bool,
    #[bits(4)]
    reserved_4: u8,
    /// Bit 8: PME may be sent.
    pub pme_enable: bool,
    /// Bits 12:9: what the data register shows.
    #[bits(4)]
    pub data_select: u8,
    /// Bits 14:13: scale of the data register.
    #[bits(2)]
    pub data_scale: u8,
    /// Bit 15: PME is asserted; cleared by writing one.
    pub pme_status: bool,
}

/// The capability's bytes.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PowerManagementCapability {
    /// Id 0x01.
    pub header: CapabilityHeader,
    /// [`PowerManagementCapabilities`].
    pub capabilities: U16,
    /// [`PowerManagementControl`].
    pub control: U16,
    /// Bridges only.
    pub bridge_extensions: u8,
    /// Data register.
    pub data: u8,
}

const _: () = {
    assert!(size_of::<PowerManagementCapability>() == 8);
    assert!(offset_of!(PowerManagementCapability, capabilities) == 2);
    assert!(offset_of!(PowerManagementCapability, control) == 4);
};

impl PowerManagementCapability {
    /// Offset of [`PowerManagementControl`] in the capability.
    pub const CONTROL_OFFSET: u16 = 4;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_puts_them() {
        let capabilities = PowerManagementCapabilities::new().with_version(3).with_d1_support(true);
        assert_eq!(u16::from(capabilities), 0x0203);
        assert_eq!(u16::from(PowerManagementCapabilities::new().with_pme_support(0x1F)), 0xF800);
        let control = PowerManagementControl::new()
            .with_power_state(PowerState::D3hot)
            .with_no_soft_reset(true)
            .with_pme_enable(true)
            .with_pme_status(true);
        assert_eq!(u16::from(control), 0x810B);
    }

    #[test]
    fn power_states_survive_their_bits() {
        for state in [PowerState::D0, PowerState::D1, PowerState::D2, PowerState::D3hot] {
            assert_eq!(PowerState::from_bits(state.into_bits()), state);
        }
    }
}
