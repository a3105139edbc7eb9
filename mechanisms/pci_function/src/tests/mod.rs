//! Stories and properties of whole functions.

mod config_space;
mod msi_x;
mod physical_function;
mod properties;
mod saved_state;
mod sr_iov;

use crate::{Effect, PciFunction, PhysicalFunction};

/// What reads and writes configuration space in a test.
trait Config {
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Effect>;

    fn read_u8(&self, offset: u64) -> u8 {
        let mut data = [0];
        self.read(offset, &mut data);
        data[0]
    }

    fn read_u16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn read_u32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write_u16(&mut self, offset: u64, value: u16) -> Vec<Effect> {
        self.write(offset, &value.to_le_bytes())
    }

    fn write_u32(&mut self, offset: u64, value: u32) -> Vec<Effect> {
        self.write(offset, &value.to_le_bytes())
    }

    fn all(&self) -> Vec<u8> {
        let mut data = vec![0; 4096];
        self.read(0, &mut data);
        data
    }

    /// Writes all ones, reads back, and puts the register back, as software does to size a BAR.
    fn size(&mut self, offset: u64) -> u32 {
        let old = self.read_u32(offset);
        self.write_u32(offset, u32::MAX);
        let probed = self.read_u32(offset);
        self.write_u32(offset, old);
        probed
    }
}

impl Config for PciFunction {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.config_read(offset, data).unwrap();
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Effect> {
        self.config_write(offset, data).unwrap()
    }
}

impl Config for PhysicalFunction {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.config_read(offset, data).unwrap();
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Effect> {
        self.config_write(offset, data).unwrap()
    }
}

/// Where the capabilities of the functions of [`avf`](crate::avf) are.
mod at {
    pub(super) const COMMAND: u64 = 0x04;
    pub(super) const STATUS: u64 = 0x06;
    pub(super) const BAR0: u64 = 0x10;
    pub(super) const BAR3: u64 = 0x1C;
    pub(super) const POWER: u64 = 0x44;
    pub(super) const MSI_X: u64 = 0x50;
    pub(super) const MSI_X_CONTROL: u64 = 0x52;
    pub(super) const EXPRESS: u64 = 0x60;
    pub(super) const DEVICE_CONTROL: u64 = 0x68;
    pub(super) const SR_IOV: u64 = 0x120;
    pub(super) const SR_IOV_CONTROL: u64 = SR_IOV + 0x08;
    pub(super) const NUM_VFS: u64 = SR_IOV + 0x10;
    pub(super) const FIRST_VF_OFFSET: u64 = SR_IOV + 0x14;
    pub(super) const VF_STRIDE: u64 = SR_IOV + 0x16;
    pub(super) const SYSTEM_PAGE_SIZE: u64 = SR_IOV + 0x20;
    pub(super) const VF_BAR0: u64 = SR_IOV + 0x24;
}

/// Function level reset, with the defaults of the rest of Device Control.
const INITIATE_FLR: u16 = 0xA910;

const VF_ENABLE: u16 = 1 << 0;
const VF_MSE: u16 = 1 << 3;
const ARI: u16 = 1 << 4;
