//! Addresses and interrupts: what is mapped and routed follows from what the guest has set, and from nothing else.

use std::ops::Range;

use pci_function::Decision;
use pcie_protocol::{BarIndex, BarKind, Bars, PowerState, header_offset};
use pcivirt_protocol::{DevicePowerState, NtStatus};
use vpci_protocol::{MemoryResource, STATUS_BAD_DATA, window};

use super::{
    BusState, Effect, InterruptSource, InterruptTarget, Mapping, PfRequest, Presence, Stop, Vsp,
};

/// A function sends at most 32 messages by MSI.
const MSI_MESSAGES_LOG2: u8 = 5;
/// Windows start at a page.
const PAGE: u64 = 4096;

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Vsp {
    pub(super) fn window_range(&self) -> Option<Range<u64>> {
        match self.bus {
            BusState::D0 { window, .. } => Some(window..window.saturating_add(window::SIZE)),
            _ => None,
        }
    }

    /// Whether something of the guest's can be at `range`: inside an aperture, on nothing of others.
    fn is_free(&self, range: &Range<u64>) -> bool {
        let inside =
            |aperture: &Range<u64>| aperture.start <= range.start && range.end <= aperture.end;
        range.start < range.end
            && self.config.apertures.iter().any(inside)
            && !self.reserved.iter().any(|reserved| overlaps(reserved, range))
    }

    pub(super) fn window_fits(&self, address: u64) -> bool {
        address.checked_add(window::SIZE).is_some_and(|end| {
            let range = address..end;
            // BARs of a removed function stay where they are until the channel is closed.
            let mut bars = self.mapped.iter().flatten();
            address.is_multiple_of(PAGE)
                && self.is_free(&range)
                && !bars.any(|bar| overlaps(&range, &(bar.address..bar.address + bar.size)))
        })
    }

    /// Where the guest's settings put the BARs. One that cannot be there is nowhere.
    fn wanted_bars(&mut self) -> Bars<Option<Mapping>> {
        let mut wanted = [None; 6];
        let on = matches!(self.bus, BusState::D0 { .. })
            && self.power == DevicePowerState::D0
            && self.stop != Stop::Stopped
            && self.mediation.memory_enabled()
            && self.mediation.power_state() == PowerState::D0;
        if !on {
            return wanted;
        }
        let mut taken: Vec<Range<u64>> = self.window_range().into_iter().collect();
        let addresses = self.mediation.bar_addresses();
        for index in BarIndex::ALL {
            let (Some(bar), Some(address)) = (index.of(&self.bars), index.of(&addresses)) else {
                continue;
            };
            // A BAR at 0 has no address yet.
            let (address, size) = (*address, bar.size());
            let range = address..address.saturating_add(size);
            if address == 0 {
                continue;
            }
            if self.is_free(&range) && !taken.iter().any(|taken| overlaps(taken, &range)) {
                taken.push(range);
                *index.of_mut(&mut wanted) = Some(Mapping { address, size });
            } else {
                self.counters.refused_addresses += 1;
            }
        }
        wanted
    }

    /// Maps and unmaps BARs as the guest's settings say now.
    pub(super) fn update_bars(&mut self, effects: &mut Vec<Effect>) {
        if let Presence::Removed(_) = self.presence {
            return;
        }
        let wanted = self.wanted_bars();
        for bar in BarIndex::ALL {
            if bar.of(&self.mapped).is_some() && bar.of(&self.mapped) != bar.of(&wanted) {
                *bar.of_mut(&mut self.mapped) = None;
                effects.push(Effect::UnmapBar { bar });
            }
        }
        for bar in BarIndex::ALL {
            if let (None, Some(mapping)) = (bar.of(&self.mapped), bar.of(&wanted)) {
                let Mapping { address, size } = *mapping;
                *bar.of_mut(&mut self.mapped) = Some(*mapping);
                effects.push(Effect::MapBar { bar, address, size });
            }
        }
    }

    /// Where the guest's settings send an interrupt of the function.
    fn wanted_route(&self, source: InterruptSource) -> Option<&InterruptTarget> {
        let (msi_x_enabled, masked) = self.mediation.msi_x_control();
        match source {
            InterruptSource::MsiX(vector) => {
                let table = self.msi_x.as_ref().filter(|_| msi_x_enabled && !masked)?;
                let (address, data) = table.message(vector)?;
                self.interrupts.resolve(address, data)
            }
            InterruptSource::Msi(message) => {
                let msi = self.mediation.save().msi.filter(|_| !msi_x_enabled)?;
                let count = 1u8 << msi.multiple_message_enable.min(MSI_MESSAGES_LOG2);
                let sends = msi.enabled && message < count && msi.mask >> message & 1 == 0;
                let data = u32::from(msi.data) | u32::from(message);
                self.interrupts.resolve(msi.address, data).filter(|_| sends)
            }
        }
    }

    /// Routes one interrupt of a function that is on as the guest's settings say now.
    fn update_route(&mut self, source: InterruptSource, effects: &mut Vec<Effect>) {
        let wanted = self.wanted_route(source);
        if self.routes.get(&source) == wanted {
            return;
        }
        let target = wanted.cloned();
        match &target {
            Some(target) => drop(self.routes.insert(source, target.clone())),
            None => drop(self.routes.remove(&source)),
        }
        effects.push(Effect::Route { source, target });
    }

    fn routes_interrupts(&self) -> bool {
        matches!(self.bus, BusState::D0 { .. }) && !matches!(self.presence, Presence::Removed(_))
    }

    /// Routes vectors whose table entries were written.
    pub(super) fn update_vectors(&mut self, vectors: Range<u16>, effects: &mut Vec<Effect>) {
        if self.routes_interrupts() {
            for vector in vectors {
                self.update_route(InterruptSource::MsiX(vector), effects);
            }
        }
    }

    /// Routes all interrupts as the guest's settings say now.
    pub(super) fn update_routes(&mut self, effects: &mut Vec<Effect>) {
        if self.routes_interrupts() {
            let vectors = self.msi_x.as_ref().map_or(0, super::MsiXTable::vectors);
            self.update_vectors(0..vectors, effects);
            if self.mediation.save().msi.is_some() {
                for message in 0..1 << MSI_MESSAGES_LOG2 {
                    self.update_route(InterruptSource::Msi(message), effects);
                }
            }
        } else {
            for (source, _) in std::mem::take(&mut self.routes) {
                effects.push(Effect::Route { source, target: None });
            }
        }
    }

    /// The guest sends an interrupt elsewhere: the hypercall of SPEC-VMBUS §8.4. `address` and `data` are those that
    /// CREATE_INTERRUPT answered, `data` that of the message in question.
    ///
    /// # Errors
    /// [`STATUS_BAD_DATA`] for a message that does not exist, or a target that the guest does not have.
    pub fn retarget(
        &mut self,
        address: u64,
        data: u32,
        target: InterruptTarget,
    ) -> Result<Vec<Effect>, NtStatus> {
        self.interrupts
            .retarget(address, data, target)
            .inspect_err(|_| self.counters.refused_interrupts += 1)?;
        let mut effects = Vec::new();
        self.update_routes(&mut effects);
        Ok(effects)
    }

    /// Where a message goes that a device sends.
    pub fn resolve_message(&self, address: u64, data: u32) -> Option<&InterruptTarget> {
        self.interrupts.resolve(address, data)
    }

    /// Checks memory that a guest assigns to BARs by message (SPEC-VMBUS §4.5).
    pub(super) fn check_assigned(
        &self,
        memory: &Bars<Option<MemoryResource>>,
    ) -> Result<(), NtStatus> {
        let mut taken: Vec<Range<u64>> = self.window_range().into_iter().collect();
        for index in BarIndex::ALL {
            let Some(MemoryResource { address, length }) = *index.of(memory) else { continue };
            // The upper half of a 64-bit BAR, or no BAR at all.
            let bar = index.of(&self.bars).ok_or(STATUS_BAD_DATA)?;
            let end = address.checked_add(bar.size()).ok_or(STATUS_BAD_DATA)?;
            let range = address..end;
            let low = matches!(bar.kind(), BarKind::Memory64 { .. }) || end <= 1 << 32;
            if address == 0
                || !address.is_multiple_of(bar.size())
                || length > bar.size()
                || !low
                || !self.is_free(&range)
                || taken.iter().any(|taken| overlaps(taken, &range))
            {
                return Err(STATUS_BAD_DATA);
            }
            taken.push(range);
        }
        Ok(())
    }

    /// Writes BARs that were checked.
    pub(super) fn write_assigned(
        &mut self,
        memory: &Bars<Option<MemoryResource>>,
        effects: &mut Vec<Effect>,
    ) {
        for index in BarIndex::ALL {
            let (Some(bar), Some(resource)) = (index.of(&self.bars), index.of(memory)) else {
                continue;
            };
            let (low, high) = bar.registers(resource.address);
            let mut bytes = low.to_le_bytes().to_vec();
            bytes.extend(high.iter().flat_map(|high| high.to_le_bytes()));
            let offset = u64::from(header_offset::BARS) + 4 * u64::from(index.get());
            let decisions = self.mediation.write(offset, &bytes).unwrap_or_default();
            self.carry_out(decisions, effects);
        }
        self.update_bars(effects);
    }

    /// Does what the mediation has decided of a write.
    pub(super) fn carry_out(&mut self, decisions: Vec<Decision>, effects: &mut Vec<Effect>) {
        for decision in decisions {
            match decision {
                Decision::Forward(write) => {
                    let offset = u16::try_from(write.offset()).unwrap_or(u16::MAX);
                    let data = write.bytes().to_vec();
                    self.tell_pf(PfRequest::WriteConfig { offset, data }, effects);
                }
                Decision::ResetVf => {
                    self.function_reset();
                    self.tell_pf(PfRequest::Reset, effects);
                }
                Decision::SetPowerState { state, wake } => {
                    let state = match state {
                        PowerState::D0 => DevicePowerState::D0,
                        PowerState::D1 => DevicePowerState::D1,
                        PowerState::D2 => DevicePowerState::D2,
                        PowerState::D3hot => DevicePowerState::D3,
                    };
                    self.tell_pf(PfRequest::SetPowerState { state, wake }, effects);
                }
                // What they change is read from the mediation when BARs and routes are brought up to date.
                _ => {}
            }
        }
    }

    /// What a reset does to the function's registers. Interrupts belong to the bus, and stay.
    pub(super) fn function_reset(&mut self) {
        self.mediation.reset();
        if let Some(table) = &mut self.msi_x {
            table.clear();
        }
    }

    /// Forgets all that the guest has set of the function.
    fn forget_settings(&mut self) {
        self.function_reset();
        self.interrupts.clear();
        self.assigned = None;
        self.power = DevicePowerState::D0;
    }

    /// RELEASE_RESOURCES: the function is there, and has nothing.
    pub(super) fn release_resources(&mut self, effects: &mut Vec<Effect>) {
        self.forget_settings();
        self.update_bars(effects);
        self.update_routes(effects);
        if let BusState::D0 { .. } = self.bus {
            // Bus Master Enable is the one bit of Command that is the VF's own.
            let data = vec![0, 0];
            self.tell_pf(PfRequest::WriteConfig { offset: header_offset::COMMAND, data }, effects);
        }
    }

    /// The bus goes off: nothing is mapped any more, and the function is as after power-on.
    pub(super) fn power_off(&mut self, effects: &mut Vec<Effect>) {
        let was_on = match self.bus {
            BusState::D0 { version, .. } => {
                self.bus = BusState::Negotiated(version);
                true
            }
            _ => false,
        };
        self.forget_settings();
        self.invalidated_blocks = 0;
        self.update_routes(effects);
        for bar in BarIndex::ALL {
            if bar.of_mut(&mut self.mapped).take().is_some() {
                effects.push(Effect::UnmapBar { bar });
            }
        }
        if was_on {
            effects.push(Effect::UnmapWindow);
            if !matches!(self.presence, Presence::Removed(_)) {
                self.tell_pf(PfRequest::Reset, effects);
            }
        }
    }
}
