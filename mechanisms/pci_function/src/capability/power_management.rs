//! The power management capability: D0, D1, D2 and D3hot (PCIe 6.0 §5.3, §7.5.2). PME is not supported.

use pcie_protocol::{
    CapabilityId, PowerManagementCapabilities, PowerManagementCapability, PowerManagementControl,
    PowerState,
};
use serde::{Deserialize, Serialize};

use super::{Id, Registers, Trigger};
use crate::{
    PciFunctionError, ResetKind,
    access::{DwordWrite, dword},
};

/// What a function's power management can do.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct PowerManagementConfig {
    /// D1 exists.
    pub d1: bool,
    /// D2 exists.
    pub d2: bool,
    /// The way from D3hot to D0 keeps the function's state.
    pub no_soft_reset: bool,
}

/// The power management capability of a function.
#[derive(Clone, Debug)]
pub struct PowerManagement {
    config: PowerManagementConfig,
    state: PowerState,
}

/// The saved state of power management.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PowerManagementState {
    /// The power state.
    pub power_state: PowerState,
}

impl PowerManagement {
    /// A function in D0.
    pub fn new(config: PowerManagementConfig) -> Self {
        Self { config, state: PowerState::D0 }
    }

    /// The power state that software set.
    pub fn power_state(&self) -> PowerState {
        self.state
    }

    /// Whether the way from D3hot to D0 keeps the function's state.
    pub fn no_soft_reset(&self) -> bool {
        self.config.no_soft_reset
    }

    fn supports(&self, state: PowerState) -> bool {
        match state {
            PowerState::D0 | PowerState::D3hot => true,
            PowerState::D1 => self.config.d1,
            PowerState::D2 => self.config.d2,
        }
    }

    fn control(&self) -> PowerManagementControl {
        PowerManagementControl::new()
            .with_power_state(self.state)
            .with_no_soft_reset(self.config.no_soft_reset)
    }
}

impl Registers for PowerManagement {
    type State = PowerManagementState;

    fn id(&self) -> Id {
        Id::Conventional(CapabilityId::POWER_MANAGEMENT)
    }

    fn length(&self) -> u16 {
        8
    }

    fn read(&self, register: u16) -> u32 {
        match register {
            0 => {
                let capabilities = PowerManagementCapabilities::new()
                    .with_version(3)
                    .with_d1_support(self.config.d1)
                    .with_d2_support(self.config.d2);
                dword(0, capabilities.into())
            }
            PowerManagementCapability::CONTROL_OFFSET => u32::from(u16::from(self.control())),
            _ => 0,
        }
    }

    fn write(&mut self, register: u16, write: DwordWrite) -> Option<Trigger> {
        if register != PowerManagementCapability::CONTROL_OFFSET {
            return None;
        }
        let written = write.low().merge(self.control().into(), 0b11);
        let (from, to) = (self.state, PowerManagementControl::from(written).power_state());
        // A state that does not exist is not entered, and the write is otherwise as usual; from a low
        // state only D0 or a lower one can be reached (PCIe 6.0 §7.5.2.2, §5.3.1).
        if self.supports(to) && (to == PowerState::D0 || to >= from) {
            self.state = to;
        }
        let woke = from == PowerState::D3hot && self.state == PowerState::D0;
        (woke && !self.config.no_soft_reset).then_some(Trigger::SoftReset)
    }

    fn reset(&mut self, _: ResetKind) {
        self.state = PowerState::D0;
    }

    fn save(&self) -> PowerManagementState {
        PowerManagementState { power_state: self.state }
    }

    fn restore(&mut self, state: &PowerManagementState) -> Result<(), PciFunctionError> {
        if !self.supports(state.power_state) {
            return Err(PciFunctionError::SavedState("its power state does not exist here"));
        }
        self.state = state.power_state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(capability: &mut PowerManagement, state: PowerState) -> Option<Trigger> {
        let value = u32::from(state.into_bits());
        capability.write(4, DwordWrite { value, mask: 0xFFFF })
    }

    #[test]
    fn a_state_that_does_not_exist_is_not_entered() {
        let mut capability = PowerManagement::new(PowerManagementConfig::default());
        set(&mut capability, PowerState::D1);
        assert_eq!(capability.power_state(), PowerState::D0);
        set(&mut capability, PowerState::D3hot);
        set(&mut capability, PowerState::D2);
        assert_eq!(capability.power_state(), PowerState::D3hot);
    }

    #[test]
    fn sleep_goes_deeper_or_back_to_d0() {
        let config = PowerManagementConfig { d1: true, d2: true, no_soft_reset: true };
        let mut capability = PowerManagement::new(config);
        for (to, reached) in [
            (PowerState::D2, PowerState::D2),
            (PowerState::D1, PowerState::D2),
            (PowerState::D3hot, PowerState::D3hot),
            (PowerState::D1, PowerState::D3hot),
            (PowerState::D0, PowerState::D0),
        ] {
            assert_eq!(set(&mut capability, to), None);
            assert_eq!(capability.power_state(), reached);
        }
        assert_eq!(capability.read(4), 0x0008);
        assert_eq!(capability.read(0), 0x0603_0000);
    }

    #[test]
    fn only_the_way_out_of_d3hot_loses_state() {
        let config = PowerManagementConfig { d1: true, d2: false, no_soft_reset: false };
        let mut capability = PowerManagement::new(config);
        assert_eq!(set(&mut capability, PowerState::D1), None);
        assert_eq!(set(&mut capability, PowerState::D0), None);
        assert_eq!(set(&mut capability, PowerState::D3hot), None);
        assert_eq!(set(&mut capability, PowerState::D3hot), None);
        assert_eq!(set(&mut capability, PowerState::D0), Some(Trigger::SoftReset));
    }
}
