//! A PF with its VFs, and the services of the host's PCI bus driver that a PF driver uses
//! (PCI_VIRTUALIZATION_INTERFACE, SPEC-PCIVIRT §9; PCIe 6.0 §9.2, §9.3).

use std::{fmt, sync::Arc};

use pcie_protocol::{
    BarIndex, Bars, PciLocation, PowerState, RoutingId, SrIovControl, VfIndex, sr_iov_offset,
};

use crate::{
    Effect, PciFunction, PciFunctionError, PhysicalFunctionState, ResetKind, SrIov,
    VirtualizationError,
};

/// Makes a VF as it is when VF Enable brings it up: by [`PciFunction::vf_builder`], with the BARs of the
/// PF's SR-IOV capability.
pub type VfBlueprint = Arc<dyn Fn(VfIndex) -> PciFunction + Send + Sync>;

/// A request to bring VFs up or take them down: the arguments of EnableVirtualization.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct VirtualizationRequest {
    /// How many VFs to enable; 0 to disable them.
    pub num_vfs: u16,
    /// Multi-root VF migration: must be clear.
    pub enable_vf_migration: bool,
    /// Multi-root VF migration interrupts: must be clear.
    pub enable_migration_interrupt: bool,
    /// Whether to enable or to disable.
    pub enable_virtualization: bool,
}

impl VirtualizationRequest {
    /// Bring up `num_vfs` VFs.
    pub fn enable(num_vfs: u16) -> Self {
        Self { num_vfs, enable_virtualization: true, ..Self::default() }
    }

    /// Take all VFs down.
    pub fn disable() -> Self {
        Self::default()
    }
}

/// The outcome of [`PhysicalFunction::set_vf_data`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct VfDataWritten {
    /// Bytes written: all, or 0 on failure.
    pub bytes: usize,
    /// What the VF's device has to do, in order.
    pub effects: Vec<Effect>,
}

/// Memory of one VF behind one VF BAR (SPEC-PCIVIRT §5.11).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct VfBarResource {
    /// Address on the PF's bus.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

/// A function of the PF's device.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum FunctionNumber {
    /// The PF.
    Physical,
    /// One of its VFs.
    Virtual(VfIndex),
}

/// What answers at a memory address.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct DecodedAddress {
    /// Which function.
    pub function: FunctionNumber,
    /// Which of its BARs.
    pub bar: BarIndex,
    /// Bytes from the start of the BAR.
    pub offset: u64,
}

/// A PF and the VFs that exist: `NumVFs` of them while VF Enable is set, none otherwise.
///
/// Every change of the PF goes through this object, so that the VFs follow it: configuration writes, resets,
/// and the requests of the PF driver.
pub struct PhysicalFunction {
    function: PciFunction,
    location: PciLocation,
    /// Sized once, when the function was found: probing a running device would disturb it.
    probed_vf_bars: Option<Bars<u32>>,
    blueprint: VfBlueprint,
    vfs: Vec<PciFunction>,
}

impl fmt::Debug for PhysicalFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhysicalFunction")
            .field("location", &self.location)
            .field("function", &self.function)
            .field("vfs", &self.vfs.len())
            .finish_non_exhaustive()
    }
}

impl PhysicalFunction {
    /// Puts `function` at `location`. A function without SR-IOV is allowed; every request for VFs is then
    /// refused.
    ///
    /// # Errors
    /// [`PciFunctionError::Impossible`] if the last of TotalVFs would lie beyond bus 255, with ARI or
    /// without; [`PciFunctionError::VfMismatch`] if `blueprint` makes other VFs than the SR-IOV capability
    /// describes.
    pub fn new(
        function: PciFunction,
        location: PciLocation,
        blueprint: VfBlueprint,
    ) -> Result<Self, PciFunctionError> {
        let probed_vf_bars = function.sr_iov().map(|sr_iov| *sr_iov.probed_vf_bars());
        let pf = Self { function, location, probed_vf_bars, blueprint, vfs: Vec::new() };
        pf.check_buses(location)?;
        if pf.function.sr_iov().is_some() {
            pf.make_vf(VfIndex(0))?;
        }
        Ok(pf)
    }

    /// The PF.
    pub fn function(&self) -> &PciFunction {
        &self.function
    }

    /// The PF, to be used where the VFs cannot be concerned: its MSI-X table, its interrupts, its status.
    pub fn function_mut(&mut self) -> PhysicalFunctionMut<'_> {
        PhysicalFunctionMut(&mut self.function)
    }

    /// Where the PF is.
    pub fn location(&self) -> PciLocation {
        self.location
    }

    /// Puts the PF elsewhere (buses were renumbered); its VFs follow.
    ///
    /// # Errors
    /// [`PciFunctionError::Impossible`] as in [`PhysicalFunction::new`]; the PF stays where it is.
    pub fn set_location(&mut self, location: PciLocation) -> Result<(), PciFunctionError> {
        self.check_buses(location)?;
        self.location = location;
        Ok(())
    }

    fn check_buses(&self, location: PciLocation) -> Result<(), PciFunctionError> {
        if let Some(sr_iov) = self.function.sr_iov() {
            let config = sr_iov.config();
            for ari in [true, false] {
                config.placement.captured_buses(location.routing_id, config.total_vfs, ari)?;
            }
        }
        Ok(())
    }

    fn make_vf(&self, vf: VfIndex) -> Result<PciFunction, PciFunctionError> {
        let made = (self.blueprint)(vf);
        let expected = self.function.sr_iov().map(|sr_iov| &sr_iov.config().vf_bars);
        let reason = if !made.is_virtual_function() {
            "it is built as a function of its own"
        } else if expected != Some(made.bars()) {
            "its BARs are not the VF BARs"
        } else {
            return Ok(made);
        };
        Err(PciFunctionError::VfMismatch { vf, reason })
    }

    /// Makes or drops VFs until there are as many as the PF says.
    fn follow(&mut self, effects: &[Effect]) -> Result<(), PciFunctionError> {
        // VFs that disappeared and came back in one access are new ones.
        let gone =
            |effect: &Effect| matches!(effect, Effect::VfEnableChanged { enabled: false, .. });
        if effects.iter().any(gone) {
            self.vfs.clear();
        }
        let active = self.function.sr_iov().map_or(0, SrIov::active_vfs);
        let present = u16::try_from(self.vfs.len()).unwrap_or(u16::MAX);
        for vf in present..active {
            let made = self.make_vf(VfIndex(vf))?;
            self.vfs.push(made);
        }
        Ok(())
    }

    // ---- accesses to the PF

    /// Reads the PF's configuration space; see [`PciFunction::config_read`].
    ///
    /// # Errors
    /// As there.
    pub fn config_read(&self, offset: u64, data: &mut [u8]) -> Result<(), PciFunctionError> {
        self.function.config_read(offset, data)
    }

    /// Writes the PF's configuration space; see [`PciFunction::config_write`]. VFs appear and disappear
    /// with VF Enable.
    ///
    /// # Errors
    /// As there; and [`PciFunctionError::VfMismatch`] if the blueprint makes a VF that does not fit.
    pub fn config_write(
        &mut self,
        offset: u64,
        data: &[u8],
    ) -> Result<Vec<Effect>, PciFunctionError> {
        let effects = self.function.config_write(offset, data)?;
        self.follow(&effects)?;
        Ok(effects)
    }

    /// Resets the PF; its VFs disappear.
    pub fn reset(&mut self, kind: ResetKind) -> Vec<Effect> {
        let effects = self.function.reset(kind);
        self.vfs.clear();
        effects
    }

    /// Tells the PF that the port above forwards by ARI, or does not. Only while no VFs exist, and only in
    /// the lowest-numbered PF; otherwise nothing changes.
    ///
    /// # Errors
    /// [`VirtualizationError::NoSrIov`] if the function has no SR-IOV capability.
    pub fn set_ari_capable_hierarchy(
        &mut self,
        ari: bool,
    ) -> Result<Vec<Effect>, VirtualizationError> {
        let control = SrIovControl::new().with_ari_capable_hierarchy(ari);
        let mask = SrIovControl::new().with_ari_capable_hierarchy(true);
        self.change_control(control, mask)
    }

    /// Turns the memory of the VFs on or off (VF MSE).
    ///
    /// # Errors
    /// [`VirtualizationError::NoSrIov`] if the function has no SR-IOV capability.
    pub fn set_vf_memory_enable(
        &mut self,
        enable: bool,
    ) -> Result<Vec<Effect>, VirtualizationError> {
        let control = SrIovControl::new().with_vf_memory_space_enable(enable);
        let mask = SrIovControl::new().with_vf_memory_space_enable(true);
        self.change_control(control, mask)
    }

    /// Writes the bits of `mask` of the SR-IOV Control register.
    fn change_control(
        &mut self,
        control: SrIovControl,
        mask: SrIovControl,
    ) -> Result<Vec<Effect>, VirtualizationError> {
        let mut old = [0; 2];
        let at = self.sr_iov_register(sr_iov_offset::CONTROL)?;
        self.function.config_read(at, &mut old).map_err(|_| VirtualizationError::NoSrIov)?;
        let kept = u16::from_le_bytes(old) & !u16::from(mask);
        self.write_sr_iov(sr_iov_offset::CONTROL, kept | u16::from(control) & u16::from(mask))
    }

    fn sr_iov_register(&self, register: u16) -> Result<u64, VirtualizationError> {
        let start = self.function.sr_iov_offset().ok_or(VirtualizationError::NoSrIov)?;
        Ok(u64::from(start) + u64::from(register))
    }

    fn write_sr_iov(
        &mut self,
        register: u16,
        value: u16,
    ) -> Result<Vec<Effect>, VirtualizationError> {
        let at = self.sr_iov_register(register)?;
        let effects = self.config_write(at, &value.to_le_bytes());
        // The register is inside, and the blueprint was tried when the PF was made.
        effects.map_err(|_| VirtualizationError::NoSrIov)
    }

    fn sr_iov(&self) -> Result<&SrIov, VirtualizationError> {
        self.function.sr_iov().ok_or(VirtualizationError::NoSrIov)
    }

    // ---- PCI_VIRTUALIZATION_INTERFACE

    /// EnableVirtualization: sets NumVFs, VF Enable and VF MSE, or clears them. Returns what the device has
    /// to do, in order.
    ///
    /// # Errors
    /// With the published statuses ([`VirtualizationError::nt_status`]): NumVFs 0 or above TotalVFs when
    /// enabling, not 0 when disabling; a migration flag; the state asked for already is; no SR-IOV; PF not
    /// in D0. Nothing is changed.
    pub fn enable_virtualization(
        &mut self,
        request: VirtualizationRequest,
    ) -> Result<Vec<Effect>, VirtualizationError> {
        let sr_iov = self.sr_iov()?;
        let VirtualizationRequest { num_vfs, enable_virtualization: enable, .. } = request;
        let total_vfs = sr_iov.config().total_vfs;
        if request.enable_vf_migration || request.enable_migration_interrupt {
            return Err(VirtualizationError::VfMigration);
        }
        if enable && !(1..=total_vfs).contains(&num_vfs) {
            return Err(VirtualizationError::NumVfs { num_vfs, total_vfs });
        }
        if !enable && num_vfs != 0 {
            return Err(VirtualizationError::NumVfsWhenDisabling(num_vfs));
        }
        if sr_iov.vf_enable() == enable {
            return Err(VirtualizationError::AlreadyInState { enabled: enable });
        }
        if enable && self.function.power_state() != PowerState::D0 {
            return Err(VirtualizationError::NotInD0);
        }
        let bits = SrIovControl::new().with_vf_enable(true).with_vf_memory_space_enable(true);
        let mut effects = Vec::new();
        // NumVFs can be written only while VF Enable is clear.
        if enable {
            effects.extend(self.write_sr_iov(sr_iov_offset::NUM_VFS, num_vfs)?);
            effects.extend(self.change_control(bits, bits)?);
        } else {
            effects.extend(self.change_control(SrIovControl::new(), bits)?);
            effects.extend(self.write_sr_iov(sr_iov_offset::NUM_VFS, 0)?);
        }
        Ok(effects)
    }

    /// GetLocation: where VF `vf` is, or would be with the current NumVFs. Do not store it.
    ///
    /// # Errors
    /// [`VirtualizationError::NoSuchVf`] if the index is not below TotalVFs, [`VirtualizationError::NoSrIov`]
    /// without SR-IOV.
    pub fn vf_location(&self, vf: VfIndex) -> Result<PciLocation, VirtualizationError> {
        let sr_iov = self.sr_iov()?;
        let total_vfs = sr_iov.config().total_vfs;
        if vf.0 >= total_vfs {
            return Err(VirtualizationError::NoSuchVf { vf, total_vfs });
        }
        let routing_id = sr_iov
            .routing()
            .routing_id(self.location.routing_id, vf)
            .map_err(VirtualizationError::Location)?;
        Ok(PciLocation { segment: self.location.segment, routing_id })
    }

    /// GetResources: how many buses beyond its own are set aside for this PF, enough for TotalVFs.
    pub fn captured_buses(&self) -> u8 {
        let Ok(sr_iov) = self.sr_iov() else { return 0 };
        let (config, ari) = (sr_iov.config(), sr_iov.ari_capable_hierarchy());
        let captured =
            config.placement.captured_buses(self.location.routing_id, config.total_vfs, ari);
        // That the buses exist was checked when the PF was put at its location.
        captured.unwrap_or(0)
    }

    /// GetVirtualFunctionProbedBars: what the VF BARs read as after all ones are written, as found when
    /// the function was first seen.
    ///
    /// # Errors
    /// [`VirtualizationError::NoSrIov`] without SR-IOV.
    pub fn vf_probed_bars(&self) -> Result<Bars<u32>, VirtualizationError> {
        self.probed_vf_bars.ok_or(VirtualizationError::NoSrIov)
    }

    /// GetVirtualFunctionData: reads the raw configuration space of VF `vf`. Returns the bytes read, 0 if
    /// the VF does not exist or the range is not wholly inside.
    pub fn vf_data(&self, vf: VfIndex, offset: u64, data: &mut [u8]) -> usize {
        match self.vf(vf).map(|function| function.config_read(offset, data)) {
            Some(Ok(())) => data.len(),
            _ => 0,
        }
    }

    /// SetVirtualFunctionData: writes the raw configuration space of VF `vf`. Writes nothing if the VF does
    /// not exist or the range is not wholly inside.
    pub fn set_vf_data(&mut self, vf: VfIndex, offset: u64, data: &[u8]) -> VfDataWritten {
        match self.vf_mut(vf).map(|function| function.config_write(offset, data)) {
            Some(Ok(effects)) => VfDataWritten { bytes: data.len(), effects },
            _ => VfDataWritten::default(),
        }
    }

    // ---- the VFs

    /// How many VFs exist.
    pub fn active_vfs(&self) -> u16 {
        self.function.sr_iov().map_or(0, SrIov::active_vfs)
    }

    /// VF `vf`, if it exists.
    pub fn vf(&self, vf: VfIndex) -> Option<&PciFunction> {
        self.vfs.get(usize::from(vf))
    }

    /// VF `vf`, if it exists, to be changed: by its function level reset, its interrupts.
    pub fn vf_mut(&mut self, vf: VfIndex) -> Option<&mut PciFunction> {
        self.vfs.get_mut(usize::from(vf))
    }

    /// Where the memory of VF `vf` behind VF BAR `bar` is (SPEC-PCIVIRT §5.11).
    pub fn vf_bar(&self, vf: VfIndex, bar: BarIndex) -> Option<VfBarResource> {
        let (address, length) = self.function.sr_iov()?.vf_bar(vf, bar)?;
        Some(VfBarResource { address, length })
    }

    /// Whether the memory of the VFs answers: VF MSE while they exist and the PF is in D0.
    pub fn vf_memory_decoding(&self) -> bool {
        let on = |sr_iov: &SrIov| sr_iov.vf_enable() && sr_iov.vf_memory_enable();
        self.function.sr_iov().is_some_and(on) && self.function.power_state() == PowerState::D0
    }

    /// Which function answers at memory `address`.
    pub fn decode(&self, address: u64) -> Option<DecodedAddress> {
        if let Some((bar, offset)) = self.function.decode(address) {
            return Some(DecodedAddress { function: FunctionNumber::Physical, bar, offset });
        }
        let sr_iov = self.function.sr_iov().filter(|_| self.vf_memory_decoding())?;
        BarIndex::ALL.into_iter().find_map(|bar| {
            let size = (*bar.of(sr_iov.vf_bars()))?.size();
            let distance = address.checked_sub((*bar.of(&sr_iov.vf_bar_addresses()))?)?;
            let vf = VfIndex(u16::try_from(distance / size).ok()?);
            // The VF must exist, must itself be in D0, and its memory must not wrap.
            sr_iov.vf_bar(vf, bar)?;
            let awake = self.vf(vf).is_some_and(|vf| vf.power_state() == PowerState::D0);
            let function = FunctionNumber::Virtual(vf);
            awake.then_some(DecodedAddress { function, bar, offset: distance % size })
        })
    }

    /// Which function answers configuration requests to `routing_id`.
    pub fn function_at(&self, routing_id: RoutingId) -> Option<FunctionNumber> {
        let pf = self.location.routing_id;
        if routing_id == pf {
            return Some(FunctionNumber::Physical);
        }
        let sr_iov = self.function.sr_iov()?;
        let vf = sr_iov.routing().vf_at(pf, sr_iov.active_vfs(), routing_id)?;
        Some(FunctionNumber::Virtual(vf))
    }

    // ---- saved state

    /// All that software and events have changed, in the PF and its VFs.
    pub fn save(&self) -> PhysicalFunctionState {
        PhysicalFunctionState {
            function: self.function.save(),
            vfs: self.vfs.iter().map(PciFunction::save).collect(),
        }
    }

    /// Takes a state saved from a PF built in the same way. Returns what changed in the PF as effects; what
    /// changed in the VFs, which are new, is to be read from them.
    ///
    /// # Errors
    /// [`PciFunctionError::SavedState`] if it is not the state of such a PF; nothing is changed.
    pub fn restore(
        &mut self,
        state: &PhysicalFunctionState,
    ) -> Result<Vec<Effect>, PciFunctionError> {
        let mut function = self.function.clone();
        let effects = function.restore(&state.function)?;
        let mut restored = Self {
            function,
            location: self.location,
            probed_vf_bars: self.probed_vf_bars,
            blueprint: Arc::clone(&self.blueprint),
            vfs: Vec::new(),
        };
        restored.follow(&[])?;
        if restored.vfs.len() != state.vfs.len() {
            return Err(PciFunctionError::SavedState(
                "it has another number of VFs than NumVFs says",
            ));
        }
        for (vf, saved) in restored.vfs.iter_mut().zip(&state.vfs) {
            vf.restore(saved)?;
        }
        *self = restored;
        Ok(effects)
    }
}

/// The part of a PF that can be changed without its VFs being concerned.
#[derive(Debug)]
pub struct PhysicalFunctionMut<'a>(&'a mut PciFunction);

impl PhysicalFunctionMut<'_> {
    /// See [`PciFunction::signal_msix`].
    pub fn signal_msix(&mut self, vector: u16) -> crate::MsixSignal {
        self.0.signal_msix(vector)
    }

    /// See [`PciFunction::withdraw_msix`].
    pub fn withdraw_msix(&mut self, vector: u16) {
        self.0.withdraw_msix(vector);
    }

    /// See [`PciFunction::msix_write`].
    ///
    /// # Errors
    /// As there.
    pub fn msix_write(
        &mut self,
        bar: BarIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<Vec<Effect>, PciFunctionError> {
        self.0.msix_write(bar, offset, data)
    }

    /// See [`PciFunction::set_transactions_pending`].
    pub fn set_transactions_pending(&mut self, pending: bool) {
        self.0.set_transactions_pending(pending);
    }

    /// See [`PciFunction::record_dma_fault`].
    pub fn record_dma_fault(&mut self) {
        self.0.record_dma_fault();
    }

    /// See [`PciFunction::record_unsupported_request`].
    pub fn record_unsupported_request(&mut self) {
        self.0.record_unsupported_request();
    }
}
