//! The PCI Express capability of an endpoint (PCIe 6.0 §7.5.3): device and link registers, and the function
//! level reset (§6.6.2).

use pcie_protocol::{
    CapabilityId, DeviceCapabilities, DeviceCapabilities2, DeviceControl, DeviceControl2,
    DeviceStatus, ExpressCapabilities, ExpressCapability, LinkCapabilities, LinkCapabilities2,
    LinkControl, LinkControl2, LinkStatus, PortType,
};
use serde::{Deserialize, Serialize};

use super::{Id, Registers, Trigger};
use crate::{
    PciFunctionError, ResetKind,
    access::{DwordWrite, dword},
};

/// What an endpoint says of itself and its link.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct ExpressConfig {
    /// Largest payload, 128 << n bytes, n at most 5.
    pub max_payload_size_supported: u8,
    /// Speed of the link: 1 is 2.5 GT/s, 2 is 5, 3 is 8, 4 is 16, 5 is 32, 6 is 64.
    pub link_speed: u8,
    /// Lanes of the link.
    pub link_width: u8,
}

impl Default for ExpressConfig {
    /// 512-byte payloads, sixteen lanes of 16 GT/s.
    fn default() -> Self {
        Self { max_payload_size_supported: 2, link_speed: 4, link_width: 16 }
    }
}

/// The PCI Express capability of an endpoint with function level reset.
#[derive(Clone, Debug)]
pub struct Express {
    config: ExpressConfig,
    /// In a VF as its PF sees it, everything that belongs to the link, and most of Device Control, is
    /// reserved (PCIe 6.0 §9.3.5).
    virtual_function: bool,
    device_control: DeviceControl,
    device_status: DeviceStatus,
    link_control: LinkControl,
    device_control_2: DeviceControl2,
    link_control_2: LinkControl2,
}

/// The saved state of the PCI Express capability.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ExpressState {
    /// Device Control.
    pub device_control: u16,
    /// Device Status.
    pub device_status: u16,
    /// Link Control.
    pub link_control: u16,
    /// Device Control 2.
    pub device_control_2: u16,
    /// Link Control 2.
    pub link_control_2: u16,
}

impl Express {
    /// An endpoint: a function of its own, a PF, or a VF as a guest is to see it.
    pub fn endpoint(config: ExpressConfig) -> Self {
        Self::new(config, false)
    }

    /// A VF as its PF sees it: of the control registers, only the function level reset is implemented.
    pub fn virtual_function(config: ExpressConfig) -> Self {
        Self::new(config, true)
    }

    fn new(config: ExpressConfig, virtual_function: bool) -> Self {
        let mut express = Self {
            config: ExpressConfig {
                max_payload_size_supported: config.max_payload_size_supported.min(5),
                link_speed: config.link_speed.clamp(1, 6),
                link_width: config.link_width.clamp(1, 32),
            },
            virtual_function,
            device_control: DeviceControl::new(),
            device_status: DeviceStatus::new(),
            link_control: LinkControl::new(),
            device_control_2: DeviceControl2::new(),
            link_control_2: LinkControl2::new(),
        };
        express.reset(ResetKind::Conventional);
        express
    }

    /// Says whether the function still waits for answers to its requests. Software polls this before and
    /// after a reset.
    pub(crate) fn set_transactions_pending(&mut self, pending: bool) {
        self.device_status.set_transactions_pending(pending);
    }

    /// Sets Device Status bits that software clears by writing ones; others are ignored.
    pub(crate) fn record_status(&mut self, status: DeviceStatus) {
        let bits = u16::from(status) & u16::from(DeviceStatus::WRITE_ONE_TO_CLEAR);
        self.device_status = DeviceStatus::from(u16::from(self.device_status) | bits);
    }

    fn writable_device_control(&self) -> DeviceControl {
        if self.virtual_function {
            return DeviceControl::new();
        }
        DeviceControl::new()
            .with_correctable_error_reporting_enable(true)
            .with_non_fatal_error_reporting_enable(true)
            .with_fatal_error_reporting_enable(true)
            .with_unsupported_request_reporting_enable(true)
            .with_enable_relaxed_ordering(true)
            .with_max_payload_size(7)
            .with_extended_tag_field_enable(true)
            .with_enable_no_snoop(true)
            .with_max_read_request_size(7)
    }

    fn writable_link_control(&self) -> LinkControl {
        if self.virtual_function {
            return LinkControl::new();
        }
        LinkControl::new()
            .with_aspm_control(3)
            .with_read_completion_boundary(true)
            .with_common_clock_configuration(true)
            .with_extended_synch(true)
    }

    fn writable_device_control_2(&self) -> DeviceControl2 {
        DeviceControl2::new().with_completion_timeout_disable(!self.virtual_function)
    }

    fn writable_link_control_2(&self) -> LinkControl2 {
        match self.virtual_function {
            true => LinkControl2::new(),
            false => LinkControl2::new().with_target_link_speed(15),
        }
    }
}

impl Registers for Express {
    type State = ExpressState;

    fn id(&self) -> Id {
        Id::Conventional(CapabilityId::PCI_EXPRESS)
    }

    fn length(&self) -> u16 {
        0x3C
    }

    fn read(&self, register: u16) -> u32 {
        let ExpressConfig { max_payload_size_supported, link_speed, link_width } = self.config;
        match register {
            0x00 => {
                let capabilities =
                    ExpressCapabilities::new().with_version(2).with_port_type(PortType::ENDPOINT);
                dword(0, capabilities.into())
            }
            ExpressCapability::DEVICE_CAPABILITIES_OFFSET => DeviceCapabilities::new()
                .with_max_payload_size_supported(max_payload_size_supported)
                .with_extended_tag_field_supported(true)
                .with_role_based_error_reporting(true)
                .with_function_level_reset_capable(true)
                .into(),
            ExpressCapability::DEVICE_CONTROL_OFFSET => {
                dword(self.device_control.into(), self.device_status.into())
            }
            0x0C => LinkCapabilities::new()
                .with_max_link_speed(link_speed)
                .with_maximum_link_width(link_width)
                .with_aspm_optionality_compliance(true)
                .into(),
            // Link Status of a VF is reserved.
            ExpressCapability::LINK_CONTROL_OFFSET if self.virtual_function => 0,
            ExpressCapability::LINK_CONTROL_OFFSET => {
                let status = LinkStatus::new()
                    .with_current_link_speed(link_speed)
                    .with_negotiated_link_width(link_width)
                    .with_slot_clock_configuration(true);
                dword(self.link_control.into(), status.into())
            }
            0x24 => {
                DeviceCapabilities2::new().with_completion_timeout_disable_supported(true).into()
            }
            ExpressCapability::DEVICE_CONTROL_2_OFFSET => dword(self.device_control_2.into(), 0),
            0x2C => {
                let speeds = (1u8 << link_speed) - 1;
                LinkCapabilities2::new().with_supported_link_speeds(speeds).into()
            }
            ExpressCapability::LINK_CONTROL_2_OFFSET => dword(self.link_control_2.into(), 0),
            _ => 0,
        }
    }

    fn write(&mut self, register: u16, write: DwordWrite) -> Option<Trigger> {
        match register {
            ExpressCapability::DEVICE_CONTROL_OFFSET => {
                let writable = u16::from(self.writable_device_control());
                let control = write.low().merge(self.device_control.into(), writable);
                self.device_control = DeviceControl::from(control);
                let cleared = write.high().ones() & u16::from(DeviceStatus::WRITE_ONE_TO_CLEAR);
                self.device_status = DeviceStatus::from(u16::from(self.device_status) & !cleared);
                let written = DeviceControl::from(write.low().ones());
                written.initiate_function_level_reset().then_some(Trigger::FunctionLevelReset)
            }
            ExpressCapability::LINK_CONTROL_OFFSET => {
                let writable = u16::from(self.writable_link_control());
                let control = write.low().merge(self.link_control.into(), writable);
                self.link_control = LinkControl::from(control);
                None
            }
            ExpressCapability::DEVICE_CONTROL_2_OFFSET => {
                let writable = u16::from(self.writable_device_control_2());
                let control = write.low().merge(self.device_control_2.into(), writable);
                self.device_control_2 = DeviceControl2::from(control);
                None
            }
            ExpressCapability::LINK_CONTROL_2_OFFSET => {
                let writable = u16::from(self.writable_link_control_2());
                let control = write.low().merge(self.link_control_2.into(), writable);
                self.link_control_2 = LinkControl2::from(control);
                None
            }
            _ => None,
        }
    }

    fn reset(&mut self, kind: ResetKind) {
        let max_payload_size = self.device_control.max_payload_size();
        self.device_control = match self.virtual_function {
            true => DeviceControl::new(),
            false => DeviceControl::new()
                .with_enable_relaxed_ordering(true)
                .with_enable_no_snoop(true)
                .with_max_read_request_size(2)
                .with_extended_tag_field_enable(true),
        };
        self.device_status = DeviceStatus::new();
        self.device_control_2 = DeviceControl2::new();
        match kind {
            // PCIe 6.0 §6.6.2: the payload size and what controls the link survive.
            ResetKind::FunctionLevel => self.device_control.set_max_payload_size(max_payload_size),
            ResetKind::Conventional | ResetKind::Soft => {
                self.link_control = LinkControl::new();
                if !self.virtual_function {
                    self.link_control_2.set_target_link_speed(self.config.link_speed);
                }
            }
        }
    }

    fn save(&self) -> ExpressState {
        ExpressState {
            device_control: self.device_control.into(),
            device_status: self.device_status.into(),
            link_control: self.link_control.into(),
            device_control_2: self.device_control_2.into(),
            link_control_2: self.link_control_2.into(),
        }
    }

    fn restore(&mut self, state: &ExpressState) -> Result<(), PciFunctionError> {
        let restored = |saved: u16, writable: u16| saved & writable;
        self.device_control = DeviceControl::from(restored(
            state.device_control,
            self.writable_device_control().into(),
        ));
        self.device_status = DeviceStatus::from(restored(
            state.device_status,
            DeviceStatus::WRITE_ONE_TO_CLEAR.with_transactions_pending(true).into(),
        ));
        self.link_control =
            LinkControl::from(restored(state.link_control, self.writable_link_control().into()));
        self.device_control_2 = DeviceControl2::from(restored(
            state.device_control_2,
            self.writable_device_control_2().into(),
        ));
        self.link_control_2 = LinkControl2::from(restored(
            state.link_control_2,
            self.writable_link_control_2().into(),
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(express: &mut Express, register: u16, value: u32) -> Option<Trigger> {
        express.write(register, DwordWrite { value, mask: u32::MAX })
    }

    #[test]
    fn an_endpoint_starts_with_the_published_defaults() {
        let express = Express::endpoint(ExpressConfig::default());
        assert_eq!(express.read(0x00), 0x0002_0000);
        assert_eq!(express.read(0x04), 0x1000_8022);
        assert_eq!(express.read(0x08), 0x0000_2910);
        assert_eq!(express.read(0x0C), 0x0040_0104);
        assert_eq!(express.read(0x10), 0x1104_0000);
        assert_eq!(express.read(0x2C), 0x0000_001E);
        assert_eq!(express.read(0x30), 0x0000_0004);
    }

    #[test]
    fn function_level_reset_reads_zero_and_fires_once_per_write() {
        let mut express = Express::endpoint(ExpressConfig::default());
        assert_eq!(write(&mut express, 0x08, 0x8000), Some(Trigger::FunctionLevelReset));
        assert_eq!(express.read(0x08) & 0x8000, 0);
        assert_eq!(write(&mut express, 0x08, 0x2910), None);
        let high_only = DwordWrite { value: 0xFFFF_FFFF, mask: 0xFFFF_0000 };
        assert_eq!(express.write(0x08, high_only), None, "Device Status is not Device Control");
    }

    #[test]
    fn function_level_reset_keeps_payload_size_and_link_control() {
        let mut express = Express::endpoint(ExpressConfig::default());
        write(&mut express, 0x08, 0x0020);
        write(&mut express, 0x10, 0x0048);
        express.record_status(DeviceStatus::new().with_unsupported_request_detected(true));
        express.reset(ResetKind::FunctionLevel);
        assert_eq!(express.read(0x08), 0x2930);
        assert_eq!(express.read(0x10), 0x1104_0048);
        express.reset(ResetKind::Conventional);
        assert_eq!(express.read(0x08), 0x2910);
        assert_eq!(express.read(0x10), 0x1104_0000);
    }

    #[test]
    fn detected_errors_clear_by_ones_and_pending_transactions_do_not() {
        let mut express = Express::endpoint(ExpressConfig::default());
        express.record_status(DeviceStatus::new().with_unsupported_request_detected(true));
        express.set_transactions_pending(true);
        assert_eq!(express.read(0x08) >> 16, 0x28);
        write(&mut express, 0x08, 0xFFFF_0000);
        assert_eq!(express.read(0x08) >> 16, 0x20);
    }

    #[test]
    fn a_raw_vf_takes_nothing_but_the_reset() {
        let mut express = Express::virtual_function(ExpressConfig::default());
        let before: Vec<_> = (0..0x3C).step_by(4).map(|at| express.read(at)).collect();
        for register in (0..0x3C).step_by(4) {
            write(&mut express, register, 0xFFFF_7FFF);
        }
        let after: Vec<_> = (0..0x3C).step_by(4).map(|at| express.read(at)).collect();
        assert_eq!(before, after);
        assert_eq!(write(&mut express, 0x08, 0x8000), Some(Trigger::FunctionLevelReset));
    }
}
