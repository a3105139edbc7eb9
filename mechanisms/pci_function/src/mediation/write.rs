//! Turns a guest's writes into decisions.

use pcie_protocol::{
    BarIndex, Command, DeviceControl, DeviceStatus, ExpressCapability, MsiXControl,
    PowerManagementCapability, PowerManagementControl, PowerState, Status, header_offset,
};

use super::{
    Decision, ForwardedWrite, Shadow, VfMediation,
    layout::{Visible, VisibleKind},
};
use crate::{
    PciFunctionError,
    access::{DwordWrite, check_config_access, dword_writes},
    header::bar_at,
};

impl VfMediation {
    /// Decides what becomes of a guest's write of `data` at `offset`: any size, any alignment.
    ///
    /// # Errors
    /// [`PciFunctionError::OutsideConfigSpace`] if not all of it lies in the 4096 bytes; nothing is changed.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<Vec<Decision>, PciFunctionError> {
        check_config_access(offset, data.len())?;
        let mut decisions = Vec::new();
        for (register, write) in dword_writes(offset, data) {
            let Ok(register) = u16::try_from(register) else { continue };
            let before = decisions.len();
            self.write_dword(register, write, &mut decisions);
            if decisions.len() == before {
                decisions.push(Decision::Absorbed { register });
            }
        }
        Ok(decisions)
    }

    fn write_dword(&mut self, register: u16, write: DwordWrite, decisions: &mut Vec<Decision>) {
        if register == header_offset::COMMAND {
            self.write_command(write, decisions);
        } else if let Some(index) = bar_at(register) {
            self.write_bar(index, write, decisions);
        } else if let Some(visible) = self.layout.at(register).copied() {
            self.write_capability(&visible, register - visible.offset, write, decisions);
        }
    }

    fn write_command(&mut self, write: DwordWrite, decisions: &mut Vec<Decision>) {
        let mask = Command::from(write.low().mask);
        let value = Command::from(write.low().value);
        if mask.bus_master_enable() {
            // The only bit that a VF has; the others are written as the zeros that they are.
            let command = Command::new().with_bus_master_enable(value.bus_master_enable());
            let forward = ForwardedWrite::word(header_offset::COMMAND, command.into());
            decisions.push(Decision::Forward(forward));
        }
        let enabled = value.memory_space_enable();
        if mask.memory_space_enable() && enabled != self.shadows.memory_enable {
            self.shadows.memory_enable = enabled;
            decisions.push(Decision::Shadowed(Shadow::MemoryEnable { enabled }));
        }
        let disabled = value.interrupt_disable();
        if mask.interrupt_disable() && disabled != self.shadows.interrupt_disable {
            self.shadows.interrupt_disable = disabled;
            decisions.push(Decision::Shadowed(Shadow::InterruptDisable { disabled }));
        }
        let cleared = write.high().ones() & u16::from(Status::WRITE_ONE_TO_CLEAR);
        if cleared != 0 {
            let forward = ForwardedWrite::word(header_offset::STATUS, cleared);
            decisions.push(Decision::Forward(forward));
        }
    }

    fn write_bar(&mut self, index: BarIndex, write: DwordWrite, decisions: &mut Vec<Decision>) {
        let before = self.bars.addresses();
        self.bars.write(index, write);
        for bar in BarIndex::ALL {
            if let Some(address) = self.bars.address(bar)
                && *bar.of(&before) != Some(address)
            {
                decisions.push(Decision::Shadowed(Shadow::Bar { bar, address }));
            }
        }
    }

    fn write_capability(
        &mut self,
        visible: &Visible,
        register: u16,
        write: DwordWrite,
        decisions: &mut Vec<Decision>,
    ) {
        match (visible.kind, register) {
            (VisibleKind::Express, ExpressCapability::DEVICE_CONTROL_OFFSET) => {
                let cleared = write.high().ones() & u16::from(DeviceStatus::WRITE_ONE_TO_CLEAR);
                if cleared != 0 {
                    let offset = visible.offset + ExpressCapability::DEVICE_STATUS_OFFSET;
                    decisions.push(Decision::Forward(ForwardedWrite::word(offset, cleared)));
                }
                if DeviceControl::from(write.low().ones()).initiate_function_level_reset() {
                    self.reset();
                    decisions.push(Decision::ResetVf);
                }
            }
            (VisibleKind::PowerManagement, PowerManagementCapability::CONTROL_OFFSET) => {
                self.write_power_control(visible, write, decisions);
            }
            (VisibleKind::MsiX, 0) => {
                let shadows = &mut self.shadows;
                let old = MsiXControl::new()
                    .with_enable(shadows.msi_x_enable)
                    .with_function_mask(shadows.msi_x_mask);
                let new = MsiXControl::from(write.high().merge(old.into(), 0xC000));
                if new != old {
                    let (enabled, masked) = (new.enable(), new.function_mask());
                    (shadows.msi_x_enable, shadows.msi_x_mask) = (enabled, masked);
                    decisions.push(Decision::MsiXControl { enabled, masked });
                }
            }
            (VisibleKind::Msi, register) => {
                let changed = self.shadows.msi.as_mut().and_then(|msi| msi.write(register, write));
                decisions.extend(changed.map(Decision::Msi));
            }
            _ => {}
        }
    }

    fn write_power_control(
        &mut self,
        visible: &Visible,
        write: DwordWrite,
        decisions: &mut Vec<Decision>,
    ) {
        let (from, armed) = (self.shadows.power_state, self.shadows.wake);
        let old = PowerManagementControl::new().with_power_state(from).with_pme_enable(armed);
        let writable =
            PowerManagementControl::new().with_power_state(PowerState::D3hot).with_pme_enable(true);
        let new = write.low().merge(old.into(), writable.into());
        let new = PowerManagementControl::from(new);
        if PowerManagementControl::from(write.low().ones()).pme_status() {
            // PME_Status is cleared by a one in the upper byte, where PME_En is too.
            let [_, upper] = PowerManagementControl::new()
                .with_pme_status(true)
                .with_pme_enable(new.pme_enable())
                .into_bits()
                .to_le_bytes();
            let offset = visible.offset + PowerManagementCapability::CONTROL_OFFSET + 1;
            decisions.push(Decision::Forward(ForwardedWrite::byte(offset, upper)));
        }
        // As in hardware: a state that does not exist is not entered, nor a lighter sleep from a deeper.
        let to = new.power_state();
        let reachable = self.layout.supports(to) && (to == PowerState::D0 || to >= from);
        let state = if reachable { to } else { from };
        let wake = new.pme_enable();
        (self.shadows.power_state, self.shadows.wake) = (state, wake);
        if state != from || (wake != armed && state != PowerState::D0) {
            // Wake goes with sleeping states alone (SPEC-PCIVIRT §5.10).
            let wake = wake && state != PowerState::D0;
            decisions.push(Decision::SetPowerState { state, wake });
        } else if wake != armed {
            decisions.push(Decision::Shadowed(Shadow::Wake { armed: wake }));
        }
        let woke = from == PowerState::D3hot && state == PowerState::D0;
        if woke && !self.layout.no_soft_reset {
            self.reset();
        }
    }
}
