//! The function's configuration space, behind the window.

use std::io;

use partition::user::UserGuest;
use pcie_protocol::{CONVENTIONAL_CONFIG_SPACE_SIZE, CapabilityWalk, FoundCapability};

/// Configuration space of a ready function.
#[derive(Copy, Clone, Debug)]
pub(super) struct ConfigSpace<'a> {
    pub(super) guest: &'a UserGuest,
    /// Guest physical address of its first byte.
    pub(super) address: u64,
}

impl ConfigSpace<'_> {
    /// Reads 1, 2 or 4 bytes, naturally aligned.
    pub(super) fn read(&self, offset: u16, data: &mut [u8]) -> io::Result<()> {
        let size = u8::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let value = self.guest.mmio_read(self.address + u64::from(offset), size)?;
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
        Ok(())
    }

    /// Writes 1, 2 or 4 bytes, naturally aligned.
    pub(super) fn write(&self, offset: u16, data: &[u8]) -> io::Result<()> {
        mmio_write(self.guest, self.address + u64::from(offset), data)
    }

    pub(super) fn read_u16(&self, offset: u16) -> io::Result<u16> {
        let mut data = [0; 2];
        self.read(offset, &mut data)?;
        Ok(u16::from_le_bytes(data))
    }

    pub(super) fn read_u32(&self, offset: u16) -> io::Result<u32> {
        let mut data = [0; 4];
        self.read(offset, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    /// The capabilities of the function. Reads a good part of its configuration space.
    pub(super) fn capabilities(&self) -> io::Result<Vec<FoundCapability>> {
        let mut config = [0; CONVENTIONAL_CONFIG_SPACE_SIZE];
        for (offset, dword) in (0u16..).step_by(4).zip(config.as_chunks_mut::<4>().0) {
            self.read(offset, dword)?;
        }
        Ok(CapabilityWalk::new(&config).collect())
    }
}

/// One access of as many bytes as there are: 1, 2, 4 or 8.
pub(super) fn mmio_write(guest: &UserGuest, address: u64, data: &[u8]) -> io::Result<()> {
    let size = u8::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = [0; 8];
    for (byte, value) in bytes.iter_mut().zip(data) {
        *byte = *value;
    }
    guest.mmio_write(address, size, u64::from_le_bytes(bytes))
}
