//! The configuration window, and the trapped pages of BARs (SPEC-VMBUS §4.6).

use std::ops::Range;

use pci_function::{Decision, RawVfConfig};
use pcie_protocol::{BAR_COUNT, BarIndex, header_offset};
use vpci_protocol::window;

use super::{BusState, Effect, Presence, Vsp};

/// An access of 1, 2 or 4 bytes, naturally aligned.
fn is_natural(offset: u64, length: usize) -> bool {
    matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length as u64)
}

const BARS: Range<u64> =
    header_offset::BARS as u64..header_offset::BARS as u64 + 4 * BAR_COUNT as u64;

impl Vsp {
    /// The register of configuration space that a window access reaches: none unless the function is there and
    /// selected.
    fn window_register(&self, offset: u64, length: usize) -> Option<u64> {
        let register = offset.checked_sub(window::CONFIG_SPACE)?;
        let reaches = matches!(self.bus, BusState::D0 { .. })
            && !matches!(self.presence, Presence::Removed(_))
            && self.selected_slot == self.config.slot.to_wire()
            && offset < window::SIZE
            && is_natural(offset, length);
        reaches.then_some(register)
    }

    /// The guest reads from its configuration window, `offset` bytes into it; `raw` is the function's configuration
    /// space now. What cannot be read is all ones.
    pub fn window_read(&mut self, offset: u64, data: &mut [u8], raw: &(impl RawVfConfig + ?Sized)) {
        data.fill(0xFF);
        match self.window_register(offset, data.len()) {
            Some(register) => {
                // All of it lies inside.
                let _ = self.mediation.read(raw, register, data);
            }
            None => self.counters.dropped_accesses += 1,
        }
    }

    /// The guest writes to its configuration window. What cannot be written is dropped; so are writes to BARs while
    /// memory is enabled, as Hyper-V does.
    pub fn window_write(&mut self, offset: u64, data: &[u8]) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let (window::SLOT_SELECT, Some(slot), 4, BusState::D0 { .. }) =
            (offset, data.first_chunk::<4>(), data.len(), self.bus)
        {
            self.selected_slot = u32::from_le_bytes(*slot);
            return effects;
        }
        let register = self.window_register(offset, data.len());
        let register = register
            .filter(|register| !(self.mediation.memory_enabled() && BARS.contains(register)));
        let Some(register) = register else {
            self.counters.dropped_accesses += 1;
            return effects;
        };
        let decisions = self.mediation.write(register, data).unwrap_or_default();
        let decided_nothing =
            decisions.iter().all(|decision| matches!(decision, Decision::Absorbed { .. }));
        self.carry_out(decisions, &mut effects);
        if !decided_nothing {
            self.update_bars(&mut effects);
            self.update_routes(&mut effects);
        }
        effects
    }

    /// The pages of BARs that the partition must trap, and hand to [`Vsp::bar_read`] and [`Vsp::bar_write`]: those
    /// with the MSI-X table and its pending bits. Byte ranges from the start of the BAR.
    pub fn msi_x_pages(&self) -> Vec<(BarIndex, Range<u64>)> {
        self.msi_x.as_ref().map(super::MsiXTable::pages).unwrap_or_default()
    }

    /// The guest reads from a trapped page. False if what it reads is not MSI-X: then it is the device's to answer.
    pub fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) -> bool {
        let table = self.msi_x.as_ref().filter(|table| table.covers(bar, offset, data.len()));
        match (table, self.presence) {
            (_, Presence::Removed(_)) => data.fill(0xFF),
            (Some(table), _) => table.read(bar, offset, data),
            (None, _) => return false,
        }
        true
    }

    /// The guest writes to a trapped page. `None` if what it writes is not MSI-X: then it is the device's.
    pub fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) -> Option<Vec<Effect>> {
        let mut effects = Vec::new();
        if let Presence::Removed(_) = self.presence {
            return Some(effects);
        }
        let table = self.msi_x.as_mut().filter(|table| table.covers(bar, offset, data.len()))?;
        let touched = table.write(bar, offset, data);
        self.update_vectors(touched, &mut effects);
        Some(effects)
    }

    /// Says whether an interrupt of the function waits for a route, for the guest that reads the pending bits.
    pub fn set_msi_x_pending(&mut self, vector: u16, pending: bool) {
        if let Some(table) = &mut self.msi_x {
            table.set_pending(vector, pending);
        }
    }
}
