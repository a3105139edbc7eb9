//! The MSI-X table that a guest sees: its writes choose routes, and never reach the function.

use std::ops::Range;

use pci_function::RawVfConfig;
use pcie_protocol::{
    BarIndex, CONVENTIONAL_CONFIG_SPACE_SIZE, CapabilityId, CapabilityWalk, MSI_X_ENTRY_SIZE,
    MsiXCapability, MsiXControl, MsiXLocation, MsiXTableEntry, MsiXVectorControl, msi_x_pba_length,
};
use zerocopy::{FromBytes, IntoBytes};

const ENTRY: usize = MSI_X_ENTRY_SIZE as usize;
/// Memory is trapped by whole pages.
const PAGE: u64 = 4096;

/// The table of a function, and its pending bits.
#[derive(Clone, Debug)]
pub(super) struct MsiXTable {
    table: MsiXLocation,
    pba: MsiXLocation,
    /// As the guest wrote them.
    entries: Vec<u8>,
    pending: Vec<u8>,
}

impl MsiXTable {
    /// The table that the capability of `raw` describes, if it has one.
    pub(super) fn of(raw: &(impl RawVfConfig + ?Sized)) -> Option<Self> {
        let mut config = [0; CONVENTIONAL_CONFIG_SPACE_SIZE];
        for (register, bytes) in (0u16..).step_by(4).zip(config.as_chunks_mut::<4>().0) {
            *bytes = raw.read_dword(register).to_le_bytes();
        }
        let found = CapabilityWalk::new(&config).find(|found| found.id == CapabilityId::MSI_X)?;
        let bytes = config.get(usize::from(found.offset)..)?;
        let (capability, _) = MsiXCapability::read_from_prefix(bytes).ok()?;
        let control = MsiXControl::from(capability.control.get());
        let vectors = control.table_size_minus_one() + 1;
        let table = Self {
            table: MsiXLocation::from_register(capability.table.get()).ok()?,
            pba: MsiXLocation::from_register(capability.pba.get()).ok()?,
            entries: vec![0; usize::from(vectors) * ENTRY],
            pending: vec![0; usize::try_from(msi_x_pba_length(vectors)).ok()?],
        };
        Some(table.reset())
    }

    fn reset(mut self) -> Self {
        self.clear();
        self
    }

    /// As after a reset: every vector masked.
    pub(super) fn clear(&mut self) {
        self.pending.fill(0);
        for entry in self.entries.as_chunks_mut::<ENTRY>().0 {
            let masked = MsiXTableEntry {
                address_low: 0.into(),
                address_high: 0.into(),
                data: 0.into(),
                vector_control: u32::from(MsiXVectorControl::new().with_mask(true)).into(),
            };
            entry.copy_from_slice(masked.as_bytes());
        }
    }

    pub(super) fn vectors(&self) -> u16 {
        u16::try_from(self.entries.len() / ENTRY).unwrap_or(0)
    }

    /// Where a vector's messages go: address and data, unless it is masked.
    pub(super) fn message(&self, vector: u16) -> Option<(u64, u32)> {
        let bytes = self.entries.as_chunks::<ENTRY>().0.get(usize::from(vector))?;
        let entry = MsiXTableEntry::read_from_bytes(bytes).ok()?;
        if MsiXVectorControl::from(entry.vector_control.get()).mask() {
            return None;
        }
        let low = u64::from(entry.address_low.get() & !3);
        Some((u64::from(entry.address_high.get()) << 32 | low, entry.data.get()))
    }

    pub(super) fn set_pending(&mut self, vector: u16, pending: bool) {
        if let Some(byte) = self.pending.get_mut(usize::from(vector / 8)) {
            let bit = 1 << (vector % 8);
            *byte = if pending { *byte | bit } else { *byte & !bit };
        }
    }

    fn parts(&self) -> [(MsiXLocation, usize); 2] {
        [(self.table, self.entries.len()), (self.pba, self.pending.len())]
    }

    /// The pages of each BAR that hold the table or the pending bits.
    pub(super) fn pages(&self) -> Vec<(BarIndex, Range<u64>)> {
        let pages = |(location, length): (MsiXLocation, usize)| {
            let start = u64::from(location.offset);
            let end = start.saturating_add(length as u64).next_multiple_of(PAGE);
            (location.bar, start / PAGE * PAGE..end)
        };
        let mut pages: Vec<_> = self.parts().into_iter().map(pages).collect();
        if let [(first_bar, first), (second_bar, second)] = pages.as_mut_slice()
            && first_bar == second_bar
            && first.start <= second.end
            && second.start <= first.end
        {
            *first = first.start.min(second.start)..first.end.max(second.end);
            pages.pop();
        }
        pages
    }

    /// Whether all of an access lies in the table or in the pending bits.
    pub(super) fn covers(&self, bar: BarIndex, offset: u64, length: usize) -> bool {
        self.parts().into_iter().any(|part| inside(part, bar, offset, length).is_some())
    }

    /// Reads what [`Self::covers`]; all else is 0.
    pub(super) fn read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let length = data.len();
        let [table, pba] = self.parts();
        let bytes = match (inside(table, bar, offset, length), inside(pba, bar, offset, length)) {
            (Some(at), _) => self.entries.get(at..at + length),
            (_, Some(at)) => self.pending.get(at..at + length),
            _ => None,
        };
        if let Some(bytes) = bytes {
            data.copy_from_slice(bytes);
        }
    }

    /// Writes to the table; the vectors whose entries were touched.
    pub(super) fn write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) -> Range<u16> {
        let [table, _] = self.parts();
        let Some(at) = inside(table, bar, offset, data.len()) else { return 0..0 };
        if let Some(bytes) = self.entries.get_mut(at..at + data.len()) {
            bytes.copy_from_slice(data);
        }
        let vector = |at: usize| u16::try_from(at / ENTRY).unwrap_or(u16::MAX);
        vector(at)..vector(at + data.len() + ENTRY - 1)
    }
}

/// Where an access begins in a part, if all of it lies there.
fn inside(
    (location, size): (MsiXLocation, usize),
    bar: BarIndex,
    offset: u64,
    length: usize,
) -> Option<usize> {
    let at = usize::try_from(offset.checked_sub(location.offset.into())?).ok()?;
    (bar == location.bar && length != 0 && at.checked_add(length)? <= size).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pci_function::avf;

    fn table() -> MsiXTable {
        MsiXTable::of(&avf::virtual_function(17).unwrap()).unwrap()
    }

    #[test]
    fn a_vector_goes_where_its_entry_says_once_it_is_unmasked() {
        let mut table = table();
        assert_eq!(table.vectors(), 17);
        assert_eq!(table.message(0), None);
        let bar = avf::MSI_X_BAR;
        assert_eq!(table.write(bar, 16, &0xFEE0_1003u32.to_le_bytes()), 1..2);
        assert_eq!(table.write(bar, 20, &1u32.to_le_bytes()), 1..2);
        assert_eq!(table.write(bar, 24, &0x77u32.to_le_bytes()), 1..2);
        assert_eq!(table.message(1), None);
        assert_eq!(table.write(bar, 28, &0u32.to_le_bytes()), 1..2);
        assert_eq!(table.message(1), Some((0x1_FEE0_1000, 0x77)));
        let mut read = [0; 8];
        table.read(bar, 24, &mut read);
        assert_eq!(read, [0x77, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(table.write(bar, 8, &[0; 24]), 0..2);
        table.clear();
        assert_eq!(table.message(1), None);
    }

    #[test]
    fn accesses_that_leave_the_table_do_nothing() {
        let mut table = table();
        let bar = avf::MSI_X_BAR;
        assert_eq!(table.write(bar, 17 * 16, &[0; 4]), 0..0);
        assert_eq!(table.write(bar, 17 * 16 - 2, &[0; 4]), 0..0);
        assert_eq!(table.write(avf::REGISTER_BAR, 12, &[0; 4]), 0..0);
        assert_eq!(table.write(bar, u64::MAX, &[0; 4]), 0..0);
        assert!(table.covers(bar, 16 * 17 - 1, 1) && !table.covers(bar, 16 * 17, 1));
        assert_eq!(table.message(16), None);
    }

    #[test]
    fn pending_bits_are_read_where_the_capability_says() {
        let mut table = table();
        table.set_pending(9, true);
        table.set_pending(4000, true);
        let mut bits = [0; 8];
        table.read(avf::MSI_X_BAR, avf::MSI_X_PBA_OFFSET.into(), &mut bits);
        assert_eq!(bits, [0, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(table.pages(), [(avf::MSI_X_BAR, 0..0x1000), (avf::MSI_X_BAR, 0x2000..0x3000)]);
    }
}
