//! Device power states (SPEC-PCIVIRT §5.10).

use crate::NtStatus;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// DEVICE_POWER_STATE as it is sent: any value.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct DevicePowerStateRaw(pub u32);

const _: () = assert!(size_of::<DevicePowerStateRaw>() == 4);

impl DevicePowerStateRaw {
    /// `PowerDeviceUnspecified`.
    pub const UNSPECIFIED: Self = Self(0);
    /// `PowerDeviceMaximum`, the end marker.
    pub const MAXIMUM: Self = Self(5);
}

/// A device power state that a VF can be put into.
#[derive(Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum DevicePowerState {
    /// Fully on.
    D0 = 1,
    /// First sleeping state.
    D1 = 2,
    /// Second sleeping state.
    D2 = 3,
    /// Off, as far as software is concerned.
    D3 = 4,
}

impl DevicePowerState {
    /// The four states, from on to off.
    pub const ALL: [Self; 4] = [Self::D0, Self::D1, Self::D2, Self::D3];
}

impl TryFrom<DevicePowerStateRaw> for DevicePowerState {
    type Error = NtStatus;

    /// # Errors
    /// STATUS_INVALID_PARAMETER for anything but D0 to D3 (SPEC-PCIVIRT §5.10).
    fn try_from(raw: DevicePowerStateRaw) -> Result<Self, NtStatus> {
        match raw.0 {
            1 => Ok(Self::D0),
            2 => Ok(Self::D1),
            3 => Ok(Self::D2),
            4 => Ok(Self::D3),
            _ => Err(NtStatus::INVALID_PARAMETER),
        }
    }
}

impl From<DevicePowerState> for DevicePowerStateRaw {
    fn from(state: DevicePowerState) -> Self {
        Self(state as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_d0_to_d3_are_states() {
        for state in DevicePowerState::ALL {
            assert_eq!(DevicePowerState::try_from(DevicePowerStateRaw::from(state)), Ok(state));
        }
        for raw in [
            DevicePowerStateRaw::UNSPECIFIED,
            DevicePowerStateRaw::MAXIMUM,
            DevicePowerStateRaw(!0),
        ] {
            assert_eq!(DevicePowerState::try_from(raw), Err(NtStatus::INVALID_PARAMETER));
        }
    }
}
