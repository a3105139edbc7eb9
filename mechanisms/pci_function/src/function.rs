//! A PCI Express function: its configuration space as a whole, and what follows from it.

use pcie_protocol::{
    Bar, BarIndex, Bars, DeviceStatus, ExtendedCapabilityHeader, PowerManagementCapability,
    PowerState, Status, header_offset,
};

use crate::{
    Acs, Ari, Capability, Effect, Express, FunctionBuilder, FunctionState, Identity, MsiX,
    MsixSignal, PciFunctionError, PowerManagement, ResetKind, SrIov,
    access::{DwordWrite, check_config_access, dword_writes, read_bytes},
    capability::{Id, Registers, Trigger},
    effect::Observed,
    header::{Header, HeaderKind},
};

/// A capability and its place in configuration space.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) offset: u16,
    pub(crate) next: u16,
    pub(crate) capability: Capability,
}

impl Placed {
    pub(crate) fn end(&self) -> u16 {
        self.offset + self.capability.length()
    }

    fn read(&self, register: u16) -> u32 {
        let value = self.capability.read(register - self.offset);
        if register != self.offset {
            return value;
        }
        match self.capability.id() {
            Id::Conventional(id) => {
                let [.., low, high] = value.to_le_bytes();
                u32::from_le_bytes([id.0, u8::try_from(self.next).unwrap_or(0), low, high])
            }
            Id::Extended(id) => {
                { ExtendedCapabilityHeader::new().with_id(id).with_version(1).with_next(self.next) }
                    .into()
            }
        }
    }
}

/// A PCI Express function in software.
///
/// Plain data, owned by one thread. Configuration accesses go in by [`config_read`](Self::config_read) and
/// [`config_write`](Self::config_write), accesses to the MSI-X table by
/// [`msix_read`](Self::msix_read) and [`msix_write`](Self::msix_write); the rest of BAR memory is the
/// device's own.
#[derive(Clone, Debug)]
pub struct PciFunction {
    header: Header,
    /// By offset.
    capabilities: Vec<Placed>,
}

/// Finds the capability of one kind.
macro_rules! find {
    ($iter:expr, $variant:ident) => {
        $iter.find_map(|placed| match placed {
            Placed { capability: Capability::$variant(found), .. } => Some(found),
            _ => None,
        })
    };
}

impl PciFunction {
    /// Starts to describe an ordinary function: an endpoint, a PF, or a VF as a guest is to see it.
    pub fn builder(identity: Identity) -> FunctionBuilder {
        FunctionBuilder::new(HeaderKind::Function, identity)
    }

    /// Starts to describe a VF as the PCIe specification has it, behind a PF: its vendor and device id
    /// read 0xFFFF, it has no memory enable, and its BARs read zero (SPEC-AVF §1.4).
    pub fn vf_builder(identity: Identity) -> FunctionBuilder {
        FunctionBuilder::new(HeaderKind::VirtualFunction, identity)
    }

    pub(crate) fn from_parts(header: Header, capabilities: Vec<Placed>) -> Self {
        Self { header, capabilities }
    }

    // ---- configuration space

    /// Reads `data.len()` bytes of configuration space at `offset`: any size, any alignment. No read has a
    /// side effect.
    ///
    /// # Errors
    /// [`PciFunctionError::OutsideConfigSpace`] if not all of it lies in the 4096 bytes.
    pub fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), PciFunctionError> {
        check_config_access(offset, data.len())?;
        read_bytes(offset, data, |register| {
            u16::try_from(register).map_or(0, |register| self.read_dword(register))
        });
        Ok(())
    }

    /// Writes `data` to configuration space at `offset`: any size, any alignment, lower dwords first.
    /// Returns what the device has to do, in order.
    ///
    /// # Errors
    /// [`PciFunctionError::OutsideConfigSpace`] if not all of it lies in the 4096 bytes; nothing is written.
    pub fn config_write(
        &mut self,
        offset: u64,
        data: &[u8],
    ) -> Result<Vec<Effect>, PciFunctionError> {
        check_config_access(offset, data.len())?;
        let mut effects = Vec::new();
        for (register, write) in dword_writes(offset, data) {
            if let Ok(register) = u16::try_from(register) {
                self.write_dword(register, write, &mut effects);
            }
        }
        Ok(effects)
    }

    /// The aligned dword at `register`, zero beyond the end: for those who walk the space.
    pub fn read_dword(&self, register: u16) -> u32 {
        let register = register & !3;
        if register < header_offset::END {
            return self.header.read(register);
        }
        self.at(register).map_or(0, |placed| placed.read(register))
    }

    fn write_dword(&mut self, register: u16, write: DwordWrite, effects: &mut Vec<Effect>) {
        let before = Observed::of(self);
        if register < header_offset::END {
            self.header.write(register, write);
        } else if let Some(placed) = self.at_mut(register) {
            match placed.capability.write(register - placed.offset, write) {
                Some(Trigger::FunctionLevelReset) => {
                    self.reset_registers(ResetKind::FunctionLevel);
                    effects.push(Effect::FunctionLevelReset);
                }
                Some(Trigger::SoftReset) => {
                    self.reset_registers(ResetKind::Soft);
                    effects.push(Effect::SoftReset);
                }
                None => {}
            }
        }
        self.report(&before, effects);
    }

    /// Adds the effects of all that changed since `before`.
    fn report(&mut self, before: &Observed, effects: &mut Vec<Effect>) {
        before.changes(&Observed::of(self), effects);
        self.release_messages(effects);
    }

    fn at(&self, register: u16) -> Option<&Placed> {
        let after = self.capabilities.partition_point(|placed| placed.offset <= register);
        let placed = self.capabilities.get(after.checked_sub(1)?)?;
        (register < placed.end()).then_some(placed)
    }

    fn at_mut(&mut self, register: u16) -> Option<&mut Placed> {
        let after = self.capabilities.partition_point(|placed| placed.offset <= register);
        let placed = self.capabilities.get_mut(after.checked_sub(1)?)?;
        (register < placed.end()).then_some(placed)
    }

    // ---- reset

    /// Resets the function from outside: by the machine, by the bus, or by its PF. Returns the registers
    /// that changed as effects; that the device itself is reset goes without saying.
    pub fn reset(&mut self, kind: ResetKind) -> Vec<Effect> {
        let before = Observed::of(self);
        self.reset_registers(kind);
        let mut effects = Vec::new();
        self.report(&before, &mut effects);
        effects
    }

    /// Puts the function into a power state, as a write of its power management register does: for a PF
    /// driver that was asked to (SET_VF_POWER_STATE). Returns what the device has to do, in order. A state
    /// that cannot be entered, or a function without power management, stays as it is.
    pub fn set_power_state(&mut self, state: PowerState) -> Vec<Effect> {
        let is_power =
            |placed: &&Placed| matches!(placed.capability, Capability::PowerManagement(_));
        let mut effects = Vec::new();
        if let Some(offset) = self.capabilities.iter().find(is_power).map(|placed| placed.offset) {
            let write = DwordWrite { value: u32::from(state.into_bits()), mask: 0xFF };
            let register = offset + PowerManagementCapability::CONTROL_OFFSET;
            self.write_dword(register, write, &mut effects);
        }
        effects
    }

    fn reset_registers(&mut self, kind: ResetKind) {
        self.header.reset(kind);
        for placed in &mut self.capabilities {
            placed.capability.reset(kind);
        }
    }

    // ---- what the registers say

    /// Who the function says it is. (A VF behind its PF says so only through its PF.)
    pub fn identity(&self) -> &Identity {
        self.header.identity()
    }

    /// Whether this is a VF behind its PF ([`PciFunction::vf_builder`]).
    pub fn is_virtual_function(&self) -> bool {
        self.header.kind() == HeaderKind::VirtualFunction
    }

    /// Bus Master Enable.
    pub fn bus_master_enabled(&self) -> bool {
        self.header.command().bus_master_enable()
    }

    /// Memory Space Enable. A VF behind its PF has none: VF MSE of the PF counts.
    pub fn memory_enabled(&self) -> bool {
        self.header.command().memory_space_enable()
    }

    /// The power state; D0 for a function without power management.
    pub fn power_state(&self) -> PowerState {
        find!(self.capabilities.iter(), PowerManagement)
            .map_or(PowerState::D0, PowerManagement::power_state)
    }

    /// Whether the function may send requests: DMA and interrupts. Bus Master Enable, in D0.
    pub fn dma_allowed(&self) -> bool {
        self.bus_master_enabled() && self.power_state() == PowerState::D0
    }

    /// Whether the function's memory answers: Memory Space Enable, in D0.
    pub fn memory_decoding(&self) -> bool {
        self.memory_enabled() && self.power_state() == PowerState::D0
    }

    /// What is behind each BAR.
    pub fn bars(&self) -> &Bars<Option<Bar>> {
        self.header.bars().bars()
    }

    /// The address that software wrote to each BAR; none for a VF behind its PF.
    pub fn bar_addresses(&self) -> Bars<Option<u64>> {
        match self.is_virtual_function() {
            true => [None; 6],
            false => self.header.bars().addresses(),
        }
    }

    /// Which BAR of the function answers at `address`, and at what offset of it; none while its memory
    /// does not answer.
    pub fn decode(&self, address: u64) -> Option<(BarIndex, u64)> {
        let addresses = self.memory_decoding().then(|| self.bar_addresses())?;
        BarIndex::ALL.into_iter().find_map(|index| {
            let offset = address.checked_sub((*index.of(&addresses))?)?;
            (offset < (*index.of(self.bars()))?.size()).then_some((index, offset))
        })
    }

    // ---- capabilities

    /// The power management capability.
    pub fn power_management(&self) -> Option<&PowerManagement> {
        find!(self.capabilities.iter(), PowerManagement)
    }

    /// The MSI-X capability.
    pub fn msi_x(&self) -> Option<&MsiX> {
        find!(self.capabilities.iter(), MsiX)
    }

    /// The SR-IOV capability.
    pub fn sr_iov(&self) -> Option<&SrIov> {
        find!(self.capabilities.iter(), SrIov).map(Box::as_ref)
    }

    /// Where the SR-IOV capability starts in configuration space.
    pub fn sr_iov_offset(&self) -> Option<u16> {
        let is_sr_iov = |placed: &&Placed| matches!(placed.capability, Capability::SrIov(_));
        self.capabilities.iter().find(is_sr_iov).map(|placed| placed.offset)
    }

    fn msi_x_mut(&mut self) -> Option<&mut MsiX> {
        find!(self.capabilities.iter_mut(), MsiX)
    }

    fn express_mut(&mut self) -> Option<&mut Express> {
        find!(self.capabilities.iter_mut(), Express)
    }

    // ---- MSI-X

    /// Raises the interrupt of `vector`, and says what becomes of it.
    pub fn signal_msix(&mut self, vector: u16) -> MsixSignal {
        let may_send = self.dma_allowed();
        self.msi_x_mut().map_or(MsixSignal::NoSuchVector, |msi_x| msi_x.signal(vector, may_send))
    }

    /// Clears the pending bit of `vector`: the cause went away before the message was sent.
    pub fn withdraw_msix(&mut self, vector: u16) {
        if let Some(msi_x) = self.msi_x_mut() {
            msi_x.withdraw(vector);
        }
    }

    /// Reads memory of `bar` that holds MSI-X table or pending bits; other bytes read zero. To be used for
    /// a whole BAR set aside for MSI-X, or where [`MsiX::is_memory`] says so.
    ///
    /// # Errors
    /// [`PciFunctionError::OutsideBar`] if not all of it lies inside the BAR.
    pub fn msix_read(
        &self,
        bar: BarIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), PciFunctionError> {
        self.check_bar_access(bar, offset, data.len())?;
        match self.msi_x() {
            Some(msi_x) => msi_x.read_memory(bar, offset, data),
            None => data.fill(0),
        }
        Ok(())
    }

    /// Writes memory of `bar` that holds the MSI-X table; other bytes are not changed. Returns what the
    /// device has to do, in order.
    ///
    /// # Errors
    /// [`PciFunctionError::OutsideBar`] if not all of it lies inside the BAR; nothing is written.
    pub fn msix_write(
        &mut self,
        bar: BarIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<Vec<Effect>, PciFunctionError> {
        self.check_bar_access(bar, offset, data.len())?;
        let mut effects = Vec::new();
        if let Some(msi_x) = self.msi_x_mut() {
            msi_x.write_memory(bar, offset, data, &mut effects);
        }
        self.release_messages(&mut effects);
        Ok(effects)
    }

    fn release_messages(&mut self, effects: &mut Vec<Effect>) {
        let may_send = self.dma_allowed();
        if let Some(msi_x) = self.msi_x_mut() {
            msi_x.release(may_send, effects);
        }
    }

    fn check_bar_access(
        &self,
        bar: BarIndex,
        offset: u64,
        length: usize,
    ) -> Result<(), PciFunctionError> {
        let size = bar.of(self.bars()).map_or(0, Bar::size);
        match offset.checked_add(length as u64) {
            Some(end) if end <= size => Ok(()),
            _ => Err(PciFunctionError::OutsideBar { bar, offset, length, size }),
        }
    }

    // ---- what the device says of itself

    /// Says whether the device still waits for answers to its requests (Device Status): software polls
    /// this around a function level reset.
    pub fn set_transactions_pending(&mut self, pending: bool) {
        if let Some(express) = self.express_mut() {
            express.set_transactions_pending(pending);
        }
    }

    /// Records that a DMA read of the function's was answered with Unsupported Request: the address was not
    /// mapped (Received Master Abort in Status).
    pub fn record_dma_fault(&mut self) {
        self.header.record_status(Status::new().with_received_master_abort(true));
    }

    /// Records that software made a request which the function does not support (Device Status).
    pub fn record_unsupported_request(&mut self) {
        if let Some(express) = self.express_mut() {
            express.record_status(DeviceStatus::new().with_unsupported_request_detected(true));
        }
    }

    // ---- saved state

    /// All that software and events have changed.
    pub fn save(&self) -> FunctionState {
        let capabilities = || self.capabilities.iter();
        FunctionState {
            header: self.header.save(),
            power_management: find!(capabilities(), PowerManagement).map(Registers::save),
            msi_x: find!(capabilities(), MsiX).map(Registers::save),
            express: find!(capabilities(), Express).map(Registers::save),
            ari: find!(capabilities(), Ari).map(Registers::save),
            acs: find!(capabilities(), Acs).map(Registers::save),
            sr_iov: find!(capabilities(), SrIov).map(|sr_iov| sr_iov.save()),
        }
    }

    /// Takes a state saved from a function built in the same way. Returns what changed as effects.
    ///
    /// # Errors
    /// [`PciFunctionError::SavedState`] if it is not the state of such a function; nothing is changed.
    pub fn restore(&mut self, state: &FunctionState) -> Result<Vec<Effect>, PciFunctionError> {
        let mut restored = self.clone();
        restored.header.restore(&state.header)?;
        let capabilities = &mut restored.capabilities;
        restore_one(find!(capabilities.iter_mut(), PowerManagement), &state.power_management)?;
        restore_one(find!(capabilities.iter_mut(), MsiX), &state.msi_x)?;
        restore_one(find!(capabilities.iter_mut(), Express), &state.express)?;
        restore_one::<Ari>(find!(capabilities.iter_mut(), Ari), &state.ari)?;
        restore_one::<Acs>(find!(capabilities.iter_mut(), Acs), &state.acs)?;
        let sr_iov = find!(capabilities.iter_mut(), SrIov).map(Box::as_mut);
        restore_one(sr_iov, &state.sr_iov)?;
        let before = Observed::of(self);
        *self = restored;
        let mut effects = Vec::new();
        self.report(&before, &mut effects);
        Ok(effects)
    }
}

/// Restores a capability; it must be in the function and in the state, or in neither.
fn restore_one<R: Registers>(
    capability: Option<&mut R>,
    state: &Option<R::State>,
) -> Result<(), PciFunctionError> {
    match (capability, state) {
        (Some(capability), Some(state)) => capability.restore(state),
        (None, None) => Ok(()),
        _ => Err(PciFunctionError::SavedState("it has other capabilities")),
    }
}
