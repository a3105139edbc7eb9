//! The two chips behind CSR9's pins: serial ROM and transceiver.

use vfio_user_client::{Client, PciRegion};

use crate::Result;

/// Address bits of the ROM: 64 words.
const ADDRESS_BITS: u32 = 6;
/// Where the address is in the ROM, words (SROM format, version 3).
const ADDRESS_AT: u32 = 10;
/// Format version and number of controllers.
const VERSION_AT: u32 = 9;

/// CSR9's bits.
mod csr9 {
    pub(super) const ROM_CHIP_SELECT: u32 = 1 << 0;
    pub(super) const ROM_CLOCK: u32 = 1 << 1;
    pub(super) const ROM_DATA_IN_SHIFT: u32 = 2;
    pub(super) const ROM_DATA_OUT_SHIFT: u32 = 3;
    pub(super) const ROM_READ: u32 = 1 << 11 | 1 << 14;
    pub(super) const MII_CLOCK: u32 = 1 << 16;
    pub(super) const MII_DATA_OUT_SHIFT: u32 = 17;
    pub(super) const MII_READ: u32 = 1 << 18;
    pub(super) const MII_DATA_IN_SHIFT: u32 = 19;
}

/// Registers of the adapter.
#[derive(Clone, Debug)]
pub(crate) struct Registers(pub(crate) Client);

impl Registers {
    pub(crate) fn read(&self, csr: u32) -> Result<u32> {
        let bytes = self.0.region_read::<4>(PciRegion::Bar1, u64::from(csr) * 8)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(crate) fn write(&self, csr: u32, value: u32) -> Result<()> {
        let at = u64::from(csr) * 8;
        Ok(self.0.region_write(PciRegion::Bar1, at, &value.to_le_bytes())?)
    }

    /// As a write on a bus: nobody waits for its end.
    pub(crate) fn post(&self, csr: u32, value: u32) -> Result<()> {
        Ok(self.0.region_post(PciRegion::Bar1, u64::from(csr) * 8, value)?)
    }

    /// A word of the serial ROM.
    fn rom_word(&self, location: u32) -> Result<u16> {
        use csr9::{ROM_CHIP_SELECT, ROM_CLOCK, ROM_DATA_IN_SHIFT, ROM_DATA_OUT_SHIFT, ROM_READ};
        let enabled = ROM_READ | ROM_CHIP_SELECT;
        self.write(9, ROM_READ)?;
        self.write(9, enabled)?;
        let command = 0b110 << ADDRESS_BITS | location;
        for bit in (0..3 + ADDRESS_BITS).rev() {
            let data = (command >> bit & 1) << ROM_DATA_IN_SHIFT;
            self.write(9, enabled | data)?;
            self.write(9, enabled | data | ROM_CLOCK)?;
        }
        self.write(9, enabled)?;
        let mut word = 0;
        for _ in 0..16 {
            self.write(9, enabled | ROM_CLOCK)?;
            let set = self.read(9)? >> ROM_DATA_OUT_SHIFT & 1 != 0;
            word = word << 1 | u16::from(set);
            self.write(9, enabled)?;
        }
        self.write(9, ROM_READ)?;
        Ok(word)
    }

    /// The version of the ROM's format.
    pub(crate) fn rom_version(&self) -> Result<u8> {
        let [version, _] = self.rom_word(VERSION_AT)?.to_le_bytes();
        Ok(version)
    }

    /// The address in the ROM.
    pub(crate) fn rom_address(&self) -> Result<[u8; 6]> {
        let mut address = [0; 6];
        for (location, to) in (ADDRESS_AT..).zip(address.chunks_exact_mut(2)) {
            to.copy_from_slice(&self.rom_word(location)?.to_le_bytes());
        }
        Ok(address)
    }

    /// A register of the transceiver (IEEE 802.3 clause 22).
    pub(crate) fn transceiver(&self, address: u32, register: u32) -> Result<u16> {
        use csr9::{MII_CLOCK, MII_DATA_IN_SHIFT, MII_DATA_OUT_SHIFT, MII_READ};
        let send = |value: u32, bits: u32| -> Result<()> {
            for bit in (0..bits).rev() {
                let data = (value >> bit & 1) << MII_DATA_OUT_SHIFT;
                self.write(9, data)?;
                self.write(9, data | MII_CLOCK)?;
            }
            Ok(())
        };
        send(u32::MAX, 32)?;
        send(0b0110 << 10 | address << 5 | register, 14)?;
        let mut word = 0u16;
        // The turn-around, and 16 bits; the last clock ends it.
        for _ in 0..18 {
            self.write(9, MII_READ)?;
            let set = self.read(9)? >> MII_DATA_IN_SHIFT & 1 != 0;
            word = word << 1 | u16::from(set);
            self.write(9, MII_READ | MII_CLOCK)?;
        }
        Ok(word)
    }
}
