//! VF configuration mediation: what a guest sees of a VF, and what becomes of its writes (SPEC-NDIS-SRIOV §7).
//!
//! The configuration space of a VF is not fit to be seen by a guest: its ids read 0xFFFF, it has no memory
//! enable and no BARs. And much of it is not the guest's business: it is reset by its PF (RESET_VF), put to
//! sleep by its PF (SET_VF_POWER_STATE), and its interrupts are the interrupt layer's. So no access of a guest
//! reaches the VF: reads are answered from the VF's raw registers, from what the PF driver provides, and from
//! shadows kept here; writes become [`Decision`]s.
//!
//! | what | shown | written |
//! |---|---|---|
//! | vendor, device id | from the PF driver | absorbed |
//! | Command | bus master from the VF, memory enable and INTx disable from shadows | bus master forwarded, shadows kept, rest absorbed |
//! | Status | from the VF, capability list set | ones forwarded to the bits that ones clear |
//! | revision, class, subsystem | from the VF, or from the PF driver | absorbed |
//! | cache line, latency, header type, BIST, CardBus, ROM, interrupt line and pin | 0 | absorbed |
//! | BARs | virtual, sized by the probed values | shadowed |
//! | PCI Express | from the VF | function level reset becomes RESET_VF, ones to Device Status forwarded, rest absorbed |
//! | power management | from the VF, power state from a shadow | becomes SET_VF_POWER_STATE |
//! | MSI-X, MSI | from the VF, what software sets from shadows | for the interrupt layer |
//! | other capabilities | not there; extended ones as the policy says, without effect | absorbed |

mod decision;
mod layout;
mod msi;
#[cfg(test)]
mod tests;
mod write;

use pcie_protocol::{
    BarIndex, Bars, ClassCode, Command, DeviceControl, ExpressCapability, ExtendedCapabilityHeader,
    ExtendedCapabilityId, MsiXControl, PowerManagementCapability, PowerManagementControl,
    PowerState, Status, decode_probed_bars, header_offset,
};
use serde::{Deserialize, Serialize};

pub use decision::{Decision, ForwardedWrite, Shadow};
use layout::{Layout, Visible, VisibleKind};
pub use msi::MsiSetting;
use msi::MsiShadow;

use crate::{
    PciFunction, PciFunctionError,
    access::{check_config_access, dword, read_bytes},
    bar_registers::BarRegisters,
    header::bar_at,
};

/// The raw configuration space of a VF, as its PF driver reads it.
pub trait RawVfConfig {
    /// The aligned dword at `register`, 0 to 0xFFC; all ones if the VF does not answer.
    fn read_dword(&self, register: u16) -> u32;
}

impl RawVfConfig for PciFunction {
    fn read_dword(&self, register: u16) -> u32 {
        Self::read_dword(self, register)
    }
}

impl RawVfConfig for [u8] {
    fn read_dword(&self, register: u16) -> u32 {
        let bytes = self.get(usize::from(register & !3)..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes))
    }
}

/// Who the VF is, from its PF driver (SRIOV_GET_VENDOR_AND_DEVICE_IDS); what is `None` is read from the VF.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct VfPnpIds {
    /// Vendor id.
    pub vendor_id: u16,
    /// Device id.
    pub device_id: u16,
    /// Revision id.
    pub revision_id: Option<u8>,
    /// Class code.
    pub class: Option<ClassCode>,
    /// Subsystem vendor id.
    pub subsystem_vendor_id: Option<u16>,
    /// Subsystem id.
    pub subsystem_id: Option<u16>,
}

impl VfPnpIds {
    /// Vendor and device id; the rest is read from the VF.
    pub fn new(vendor_id: u16, device_id: u16) -> Self {
        Self {
            vendor_id,
            device_id,
            revision_id: None,
            class: None,
            subsystem_vendor_id: None,
            subsystem_id: None,
        }
    }
}

/// Which capabilities of a VF its guest sees.
///
/// SR-IOV, ACS, ARI and ATS are never shown, whatever `extended` says: they describe the host's fabric.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MediationPolicy {
    /// PCI Express.
    pub express: bool,
    /// Power management.
    pub power_management: bool,
    /// MSI-X.
    pub msi_x: bool,
    /// MSI.
    pub msi: bool,
    /// Extended capabilities that are harmless to read; writes to them have no effect.
    pub extended: Vec<ExtendedCapabilityId>,
    /// What memory enable is before the guest writes it. Linux's vfio shows it as set, Hyper-V as clear.
    pub memory_enable_at_reset: bool,
}

impl Default for MediationPolicy {
    /// PCI Express, power management, MSI-X and MSI; of the extended ones, the device serial number; memory
    /// enable shown as set.
    fn default() -> Self {
        Self {
            express: true,
            power_management: true,
            msi_x: true,
            msi: true,
            extended: vec![ExtendedCapabilityId::DEVICE_SERIAL_NUMBER],
            memory_enable_at_reset: true,
        }
    }
}

/// The guest's view of one VF.
#[derive(Clone, Debug)]
pub struct VfMediation {
    ids: VfPnpIds,
    memory_enable_at_reset: bool,
    layout: Layout,
    bars: BarRegisters,
    shadows: Shadows,
}

/// What the guest has set and the VF does not know.
#[derive(Clone, Debug)]
struct Shadows {
    memory_enable: bool,
    interrupt_disable: bool,
    power_state: PowerState,
    wake: bool,
    msi_x_enable: bool,
    msi_x_mask: bool,
    msi: Option<MsiShadow>,
}

/// The saved state of a mediation.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MediationState {
    /// Memory enable, as the guest set it.
    pub memory_enable: bool,
    /// INTx disable, as the guest set it.
    pub interrupt_disable: bool,
    /// The power state the guest asked for.
    pub power_state: PowerState,
    /// Whether the guest armed PME.
    pub wake: bool,
    /// MSI-X Enable, as the guest set it.
    pub msi_x_enable: bool,
    /// MSI-X Function Mask, as the guest set it.
    pub msi_x_mask: bool,
    /// MSI, as the guest set it.
    pub msi: Option<MsiSetting>,
    /// The address bits of the virtual BARs.
    pub bars: [u32; 6],
}

impl VfMediation {
    /// Mediates the VF whose raw configuration space is `raw`. `probed_bars` are what its BARs read as
    /// after all ones are written (SRIOV_QUERY_PROBED_BARS_2).
    ///
    /// # Errors
    /// [`PciFunctionError::Impossible`] if those are not probed BARs.
    pub fn new(
        raw: &(impl RawVfConfig + ?Sized),
        ids: VfPnpIds,
        probed_bars: &Bars<u32>,
        policy: &MediationPolicy,
    ) -> Result<Self, PciFunctionError> {
        let layout = Layout::of(raw, policy);
        let shadows = Shadows::reset(&layout, policy.memory_enable_at_reset);
        Ok(Self {
            ids,
            memory_enable_at_reset: policy.memory_enable_at_reset,
            bars: BarRegisters::new(decode_probed_bars(probed_bars)?)?,
            layout,
            shadows,
        })
    }

    /// Puts the shadows back to where a reset of the VF leaves them. [`Decision::ResetVf`] has done so
    /// already; to be called when the VF is reset by anyone else.
    pub fn reset(&mut self) {
        self.shadows = Shadows::reset(&self.layout, self.memory_enable_at_reset);
        self.bars.reset();
    }

    /// Memory enable, as the guest set it.
    pub fn memory_enabled(&self) -> bool {
        self.shadows.memory_enable
    }

    /// The power state the guest asked for.
    pub fn power_state(&self) -> PowerState {
        self.shadows.power_state
    }

    /// Whether the guest has MSI-X on, and all vectors masked.
    pub fn msi_x_control(&self) -> (bool, bool) {
        (self.shadows.msi_x_enable, self.shadows.msi_x_mask)
    }

    /// The address that the guest gave to each BAR; 0 until it does.
    pub fn bar_addresses(&self) -> Bars<Option<u64>> {
        self.bars.addresses()
    }

    /// Which BAR the guest expects to answer at `address`, and at what offset of it: none while memory
    /// enable is clear or the VF sleeps. A BAR at 0 has no address yet.
    pub fn decode(&self, address: u64) -> Option<(BarIndex, u64)> {
        if !self.shadows.memory_enable || self.shadows.power_state != PowerState::D0 {
            return None;
        }
        BarIndex::ALL.into_iter().find_map(|index| {
            let start = self.bars.address(index).filter(|start| *start != 0)?;
            let offset = address.checked_sub(start)?;
            (offset < (*index.of(self.bars.bars()))?.size()).then_some((index, offset))
        })
    }

    /// Reads what the guest sees; `raw` is the VF's configuration space now.
    ///
    /// # Errors
    /// [`PciFunctionError::OutsideConfigSpace`] if not all of it lies in the 4096 bytes.
    pub fn read(
        &self,
        raw: &(impl RawVfConfig + ?Sized),
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), PciFunctionError> {
        check_config_access(offset, data.len())?;
        read_bytes(offset, data, |register| {
            u16::try_from(register).map_or(0, |register| self.read_dword(raw, register))
        });
        Ok(())
    }

    fn read_dword(&self, raw: &(impl RawVfConfig + ?Sized), register: u16) -> u32 {
        if register < header_offset::END {
            return self.read_header(raw, register);
        }
        if let Some(visible) = self.layout.at(register) {
            return self.read_capability(raw, register, visible);
        }
        match self.layout.extended_at(register) {
            Some(extended) if extended.offset == register => ExtendedCapabilityHeader::new()
                .with_id(extended.id)
                .with_version(extended.version)
                .with_next(extended.next)
                .into(),
            // What stands for a hidden capability at 0x100 has nothing but its header.
            Some(extended) if extended.id != ExtendedCapabilityId::NULL => raw.read_dword(register),
            _ => 0,
        }
    }

    fn read_header(&self, raw: &(impl RawVfConfig + ?Sized), register: u16) -> u32 {
        match register {
            header_offset::VENDOR_ID => dword(self.ids.vendor_id, self.ids.device_id),
            header_offset::COMMAND => {
                let [c0, c1, s0, s1] = raw.read_dword(register).to_le_bytes();
                let raw_command = Command::from(u16::from_le_bytes([c0, c1]));
                let command = Command::new()
                    .with_bus_master_enable(raw_command.bus_master_enable())
                    .with_memory_space_enable(self.shadows.memory_enable)
                    .with_interrupt_disable(self.shadows.interrupt_disable);
                let status = Status::from(u16::from_le_bytes([s0, s1]))
                    .with_interrupt_status(false)
                    .with_capabilities_list(self.layout.first != 0);
                dword(command.into(), status.into())
            }
            header_offset::REVISION_ID => {
                let [revision, class @ ..] = raw.read_dword(register).to_le_bytes();
                let revision = self.ids.revision_id.unwrap_or(revision);
                let [c0, c1, c2] = self.ids.class.map_or(class, ClassCode::to_register);
                u32::from_le_bytes([revision, c0, c1, c2])
            }
            header_offset::SUBSYSTEM_VENDOR_ID => {
                let [v0, v1, s0, s1] = raw.read_dword(register).to_le_bytes();
                let (vendor, subsystem) =
                    (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([s0, s1]));
                dword(
                    self.ids.subsystem_vendor_id.unwrap_or(vendor),
                    self.ids.subsystem_id.unwrap_or(subsystem),
                )
            }
            header_offset::CAPABILITIES_POINTER => u32::from(self.layout.first),
            _ => bar_at(register).map_or(0, |bar| self.bars.read(bar)),
        }
    }

    fn read_capability(
        &self,
        raw: &(impl RawVfConfig + ?Sized),
        register: u16,
        visible: &Visible,
    ) -> u32 {
        let value = raw.read_dword(register);
        let shadows = &self.shadows;
        let [w0, w1, w2, w3] = value.to_le_bytes();
        let (low, high) = (u16::from_le_bytes([w0, w1]), u16::from_le_bytes([w2, w3]));
        let value = match (visible.kind, register - visible.offset) {
            (VisibleKind::MsiX, 0) => {
                let control = MsiXControl::from(high)
                    .with_enable(shadows.msi_x_enable)
                    .with_function_mask(shadows.msi_x_mask);
                dword(low, control.into())
            }
            (VisibleKind::PowerManagement, PowerManagementCapability::CONTROL_OFFSET) => {
                let control = PowerManagementControl::from(low)
                    .with_power_state(shadows.power_state)
                    .with_pme_enable(shadows.wake);
                dword(control.into(), high)
            }
            (VisibleKind::Express, ExpressCapability::DEVICE_CONTROL_OFFSET) => {
                let control = DeviceControl::from(low).with_initiate_function_level_reset(false);
                dword(control.into(), high)
            }
            (VisibleKind::Msi, register) => {
                shadows.msi.as_ref().map_or(value, |msi| msi.read(register, value))
            }
            _ => value,
        };
        if register != visible.offset {
            return value;
        }
        let [.., low, high] = value.to_le_bytes();
        u32::from_le_bytes([visible.kind.id().0, visible.next, low, high])
    }

    /// What the guest has set.
    pub fn save(&self) -> MediationState {
        let Shadows { memory_enable, interrupt_disable, power_state, wake, .. } = self.shadows;
        let Shadows { msi_x_enable, msi_x_mask, .. } = self.shadows;
        MediationState {
            memory_enable,
            interrupt_disable,
            power_state,
            wake,
            msi_x_enable,
            msi_x_mask,
            msi: self.shadows.msi.as_ref().map(MsiShadow::setting),
            bars: self.bars.save(),
        }
    }

    /// Takes what a guest had set of a VF mediated in the same way.
    ///
    /// # Errors
    /// [`PciFunctionError::SavedState`] if this VF does not have what was set; nothing is changed.
    pub fn restore(&mut self, state: &MediationState) -> Result<(), PciFunctionError> {
        if state.msi.is_some() != self.shadows.msi.is_some() {
            return Err(PciFunctionError::SavedState("one has MSI and the other has not"));
        }
        if !self.layout.supports(state.power_state) {
            return Err(PciFunctionError::SavedState("its power state does not exist here"));
        }
        self.shadows.memory_enable = state.memory_enable;
        self.shadows.interrupt_disable = state.interrupt_disable;
        self.shadows.power_state = state.power_state;
        self.shadows.wake = state.wake;
        self.shadows.msi_x_enable = state.msi_x_enable;
        self.shadows.msi_x_mask = state.msi_x_mask;
        if let (Some(msi), Some(saved)) = (&mut self.shadows.msi, &state.msi) {
            msi.restore(saved);
        }
        self.bars.load(&state.bars);
        Ok(())
    }
}

impl Shadows {
    fn reset(layout: &Layout, memory_enable: bool) -> Self {
        Self {
            memory_enable,
            interrupt_disable: false,
            power_state: PowerState::D0,
            wake: false,
            msi_x_enable: false,
            msi_x_mask: false,
            msi: layout.msi.map(MsiShadow::new),
        }
    }
}
