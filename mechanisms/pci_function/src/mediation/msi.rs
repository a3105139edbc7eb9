//! The MSI registers of a VF as its guest sets them. They are never written to the VF: the host owns its
//! interrupts.

use pcie_protocol::MsiControl;
use serde::{Deserialize, Serialize};

use crate::access::{DwordWrite, dword};

/// MSI, as a guest has set it.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct MsiSetting {
    /// MSI Enable.
    pub enabled: bool,
    /// log2 of the vectors in use.
    pub multiple_message_enable: u8,
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u16,
    /// Mask bits, one for each vector, if the VF has them.
    pub mask: u32,
}

/// The MSI capability's shadow: what it can, and what the guest has set.
#[derive(Copy, Clone, Debug)]
pub(super) struct MsiShadow {
    capable: MsiControl,
    setting: MsiSetting,
}

/// What a dword of an MSI capability is: where, depends on its address size and masking.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Register {
    Control,
    AddressLow,
    AddressHigh,
    Data,
    Mask,
    Pending,
}

impl MsiShadow {
    pub(super) fn new(capable: MsiControl) -> Self {
        Self { capable, setting: MsiSetting::default() }
    }

    pub(super) fn setting(&self) -> MsiSetting {
        self.setting
    }

    pub(super) fn restore(&mut self, saved: &MsiSetting) {
        let address = match self.capable.address_64_bit() {
            true => saved.address,
            false => saved.address & 0xFFFF_FFFF,
        };
        self.setting = MsiSetting {
            multiple_message_enable: saved.multiple_message_enable & 7,
            address: address & !0b11,
            mask: if self.capable.per_vector_masking() { saved.mask } else { 0 },
            ..*saved
        };
    }

    fn register(&self, register: u16) -> Option<Register> {
        // Without the upper address everything after it is one dword earlier.
        let register = match (self.capable.address_64_bit(), register) {
            (false, 8..) => register + 4,
            _ => register,
        };
        Some(match register {
            0x00 => Register::Control,
            0x04 => Register::AddressLow,
            0x08 => Register::AddressHigh,
            0x0C => Register::Data,
            0x10 if self.capable.per_vector_masking() => Register::Mask,
            0x14 if self.capable.per_vector_masking() => Register::Pending,
            _ => return None,
        })
    }

    fn control(&self) -> MsiControl {
        self.capable
            .with_enable(self.setting.enabled)
            .with_multiple_message_enable(self.setting.multiple_message_enable)
            .with_extended_message_data_capable(false)
            .with_extended_message_data_enable(false)
    }

    /// The dword at `register` of the capability; `raw` is the VF's own.
    pub(super) fn read(&self, register: u16, raw: u32) -> u32 {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = self.setting.address.to_le_bytes();
        match self.register(register) {
            Some(Register::Control) => dword(0, self.control().into()),
            Some(Register::AddressLow) => u32::from_le_bytes([a0, a1, a2, a3]),
            Some(Register::AddressHigh) => u32::from_le_bytes([a4, a5, a6, a7]),
            Some(Register::Data) => dword(self.setting.data, 0),
            Some(Register::Mask) => self.setting.mask,
            Some(Register::Pending) => raw,
            None => 0,
        }
    }

    /// Writes the dword at `register` of the capability; the new setting, if it changed.
    pub(super) fn write(&mut self, register: u16, write: DwordWrite) -> Option<MsiSetting> {
        let before = self.setting;
        let old = self.read(register, 0);
        let register = self.register(register)?;
        let (control, setting) = (self.control(), &mut self.setting);
        match register {
            Register::Control => {
                let writable = MsiControl::new().with_enable(true).with_multiple_message_enable(7);
                let control = write.high().merge(control.into(), writable.into());
                let control = MsiControl::from(control);
                setting.enabled = control.enable();
                setting.multiple_message_enable = control.multiple_message_enable();
            }
            Register::AddressLow => {
                let low = u64::from(write.merge(old, !0b11));
                setting.address = setting.address & !0xFFFF_FFFF | low;
            }
            Register::AddressHigh => {
                let high = u64::from(write.merge(old, u32::MAX));
                setting.address = setting.address & 0xFFFF_FFFF | high << 32;
            }
            Register::Data => setting.data = write.low().merge(setting.data, u16::MAX),
            Register::Mask => setting.mask = write.merge(old, u32::MAX),
            Register::Pending => {}
        }
        (self.setting != before).then_some(self.setting)
    }
}
