//! Six base address registers: of a header, of an SR-IOV capability, or shown to a guest instead of those.

use pcie_protocol::{Bar, BarIndex, Bars, PcieError, encode_probed_bars};

use crate::access::DwordWrite;

/// Base address registers with sizing: bits below the size are read-only (PCIe 6.0 §7.5.1.2.1).
#[derive(Clone, Debug)]
pub(crate) struct BarRegisters {
    bars: Bars<Option<Bar>>,
    /// What each register reads as after all ones are written.
    probed: Bars<u32>,
    /// The address bits of each register.
    address: Bars<u32>,
}

impl BarRegisters {
    pub(crate) fn new(bars: Bars<Option<Bar>>) -> Result<Self, PcieError> {
        Ok(Self { probed: encode_probed_bars(&bars)?, bars, address: [0; 6] })
    }

    /// What is behind each register.
    pub(crate) fn bars(&self) -> &Bars<Option<Bar>> {
        &self.bars
    }

    /// What each register reads as after all ones are written.
    pub(crate) fn probed(&self) -> &Bars<u32> {
        &self.probed
    }

    /// Puts other BARs behind the registers; address bits that are no longer writable are lost.
    pub(crate) fn resize(&mut self, bars: Bars<Option<Bar>>) -> Result<(), PcieError> {
        self.probed = encode_probed_bars(&bars)?;
        self.bars = bars;
        let raw = self.address;
        self.load(&raw);
        Ok(())
    }

    /// The read-only bits of register `index`.
    fn type_bits(&self, index: BarIndex) -> u32 {
        index.of(&self.bars).map_or(0, |bar| bar.kind().type_bits())
    }

    /// The bits of register `index` that can be written.
    fn writable(&self, index: BarIndex) -> u32 {
        index.of(&self.probed) & !self.type_bits(index)
    }

    pub(crate) fn read(&self, index: BarIndex) -> u32 {
        index.of(&self.address) | self.type_bits(index)
    }

    pub(crate) fn write(&mut self, index: BarIndex, write: DwordWrite) {
        let writable = self.writable(index);
        let register = index.of_mut(&mut self.address);
        *register = write.merge(*register, writable);
    }

    pub(crate) fn reset(&mut self) {
        self.address = [0; 6];
    }

    /// The address bits, to be saved.
    pub(crate) fn save(&self) -> Bars<u32> {
        self.address
    }

    /// Takes saved address bits; those that cannot be written are dropped.
    pub(crate) fn load(&mut self, address: &Bars<u32>) {
        for index in BarIndex::ALL {
            *index.of_mut(&mut self.address) = index.of(address) & self.writable(index);
        }
    }

    /// The address of the BAR that starts at register `index`.
    pub(crate) fn address(&self, index: BarIndex) -> Option<u64> {
        let bar = (*index.of(&self.bars))?;
        let high = match index.next() {
            Some(upper) if bar.kind().is_64_bit() => *upper.of(&self.address),
            _ => 0,
        };
        Some(u64::from(high) << 32 | u64::from(*index.of(&self.address)))
    }

    /// The address of each BAR.
    pub(crate) fn addresses(&self) -> Bars<Option<u64>> {
        BarIndex::ALL.map(|index| self.address(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizing_reads_back_the_probed_value_and_leaves_the_address_to_be_restored() {
        let mut bars = [None; 6];
        bars[1] = Some(Bar::memory64(1 << 34, true).unwrap());
        let mut registers = BarRegisters::new(bars).unwrap();
        let ones = DwordWrite { value: u32::MAX, mask: u32::MAX };
        for index in BarIndex::ALL {
            registers.write(index, ones);
        }
        let read = BarIndex::ALL.map(|index| registers.read(index));
        assert_eq!(read, [0, 0x0000_000C, 0xFFFF_FFFC, 0, 0, 0]);
        assert_eq!(&read, registers.probed());
        assert_eq!(registers.address(BarIndex::BAR1), Some(0xFFFF_FFFC_0000_0000));
        assert_eq!(registers.address(BarIndex::BAR2), None, "an upper half is no BAR");
    }

    #[test]
    fn a_grown_bar_loses_the_address_bits_below_its_size() {
        let small =
            |size| [Some(Bar::memory32(size, false).unwrap()), None, None, None, None, None];
        let mut registers = BarRegisters::new(small(4096)).unwrap();
        registers.write(BarIndex::BAR0, DwordWrite { value: 0xFEBF_1000, mask: u32::MAX });
        registers.resize(small(64 << 10)).unwrap();
        assert_eq!(registers.address(BarIndex::BAR0), Some(0xFEBF_0000));
    }
}
