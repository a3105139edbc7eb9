//! The SR-IOV capability of a PF (PCIe 6.0 §9.3.3; SPEC-NDIS-SRIOV §7).
//!
//! What the specification leaves undefined is defined here as "the write changes nothing": NumVFs, System
//! Page Size and ARI Capable Hierarchy while VF Enable is set; NumVFs above TotalVFs; a System Page Size
//! that is not one of the supported ones. VF migration (multi-root) does not exist.

use pcie_protocol::{
    Bar, BarIndex, BarKind, Bars, ExtendedCapabilityId, PcieError, RoutingId, SrIovCapabilities,
    SrIovControl, SystemPageSize, VfIndex, VfRouting, sr_iov_offset as at,
};
use serde::{Deserialize, Serialize};

use super::{Id, Registers, Trigger};
use crate::{
    PciFunctionError, ResetKind,
    access::{DwordWrite, dword},
    bar_registers::BarRegisters,
};

/// The most VFs that a PF of ours can have.
pub const MAX_VFS: u16 = 256;

/// Where VFs are placed: First VF Offset and VF Stride, as they depend on the port above and on NumVFs
/// (PCIe 6.0 §9.3.3.9).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct VfPlacement {
    /// When the port above forwards by ARI: every function number of the bus can be used.
    pub with_ari: VfRouting,
    /// When it does not: on the PF's own bus there is only device 0 with its 8 functions, so that VFs are
    /// on the next bus.
    pub without_ari: VfRouting,
    /// When it does not, but up to so many VFs fit beside the PFs in those 8 functions.
    pub without_ari_beside: Option<(u16, VfRouting)>,
}

impl VfPlacement {
    /// The placement of a device with PFs at functions 0 to `physical_functions` − 1, whose VFs interleave.
    pub fn interleaved(physical_functions: u8) -> Self {
        let pfs = u16::from(physical_functions.max(1));
        let beside = VfRouting { first_vf_offset: pfs, vf_stride: pfs };
        let fit = 8u16.saturating_sub(pfs) / pfs;
        Self {
            with_ari: beside,
            without_ari: VfRouting { first_vf_offset: 256, vf_stride: pfs },
            without_ari_beside: (fit != 0).then_some((fit, beside)),
        }
    }

    /// First VF Offset and VF Stride for `num_vfs` VFs.
    pub fn routing(&self, num_vfs: u16, ari: bool) -> VfRouting {
        match self.without_ari_beside {
            _ if ari => self.with_ari,
            Some((fit, beside)) if num_vfs <= fit => beside,
            _ => self.without_ari,
        }
    }

    /// The most buses beyond the PF's own that up to `total_vfs` VFs need.
    ///
    /// # Errors
    /// [`PcieError::NoVfRoutingId`] if some VF has no routing id.
    pub fn captured_buses(
        &self,
        pf: RoutingId,
        total_vfs: u16,
        ari: bool,
    ) -> Result<u8, PcieError> {
        (0..=total_vfs).try_fold(0, |most, num_vfs| {
            Ok(self.routing(num_vfs, ari).captured_buses(pf, num_vfs)?.max(most))
        })
    }
}

/// What a PF's SR-IOV capability says.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct SrIovConfig {
    /// VFs there can be, 1 to [`MAX_VFS`]. InitialVFs is the same.
    pub total_vfs: u16,
    /// Device id of the VFs; their vendor id is the PF's.
    pub vf_device_id: u16,
    /// Where they are placed.
    pub placement: VfPlacement,
    /// The memory of one VF: no I/O.
    pub vf_bars: Bars<Option<Bar>>,
    /// Page sizes: bit n is 2^(n + 12) bytes. Must have [`SystemPageSize::REQUIRED`].
    pub supported_page_sizes: u32,
    /// The PF with the lowest function number of its device is the one with the ARI bit.
    pub lowest_numbered_pf: bool,
    /// The ARI bit survives D3hot to D0.
    pub ari_capable_hierarchy_preserved: bool,
    /// Function number of the PF on which this one depends; its own if on none.
    pub function_dependency_link: u8,
}

/// The SR-IOV capability of a PF.
#[derive(Clone, Debug)]
pub struct SrIov {
    config: SrIovConfig,
    control: SrIovControl,
    num_vfs: u16,
    page_size: SystemPageSize,
    vf_bars: BarRegisters,
}

/// The saved state of the SR-IOV capability.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct SrIovState {
    /// The SR-IOV Control register.
    pub control: u16,
    /// NumVFs.
    pub num_vfs: u16,
    /// System Page Size.
    pub system_page_size: SystemPageSize,
    /// The address bits of the VF BARs.
    pub vf_bars: [u32; 6],
}

impl SrIov {
    /// The capability of a PF whose VFs are disabled.
    ///
    /// # Errors
    /// [`PciFunctionError::SrIovConfig`] for a description that breaks the rules above,
    /// [`PciFunctionError::Impossible`] for BARs that cannot be.
    pub fn new(config: SrIovConfig) -> Result<Self, PciFunctionError> {
        let is_io = |bar: &Option<Bar>| bar.is_some_and(|bar| bar.kind() == BarKind::Io);
        let VfPlacement { with_ari, without_ari, .. } = config.placement;
        let problem = if !(1..=MAX_VFS).contains(&config.total_vfs) {
            "TotalVFs must be 1 to 256"
        } else if config.supported_page_sizes & SystemPageSize::REQUIRED != SystemPageSize::REQUIRED
        {
            "a page size that every PF supports is missing"
        } else if config.vf_bars.iter().any(is_io) {
            "VFs have no I/O space"
        } else if [with_ari, without_ari].iter().any(|r| r.first_vf_offset == 0 || r.vf_stride == 0)
        {
            "First VF Offset and VF Stride must not be 0"
        } else {
            let page_size = SystemPageSize::SIZE_4_KIB;
            let vf_bars = BarRegisters::new(aligned(&config.vf_bars, page_size)?)?;
            return Ok(Self {
                config,
                control: SrIovControl::new(),
                num_vfs: 0,
                page_size,
                vf_bars,
            });
        };
        Err(PciFunctionError::SrIovConfig(problem))
    }

    /// What the capability was made of.
    pub fn config(&self) -> &SrIovConfig {
        &self.config
    }

    /// Whether the VFs exist.
    pub fn vf_enable(&self) -> bool {
        self.control.vf_enable()
    }

    /// VF MSE: whether the memory of the VFs answers, when they exist.
    pub fn vf_memory_enable(&self) -> bool {
        self.control.vf_memory_space_enable()
    }

    /// Whether the port above forwards by ARI. (In a PF that is not the lowest-numbered: always false;
    /// the bit of the lowest-numbered one counts.)
    pub fn ari_capable_hierarchy(&self) -> bool {
        self.control.ari_capable_hierarchy()
    }

    /// NumVFs.
    pub fn num_vfs(&self) -> u16 {
        self.num_vfs
    }

    /// How many VFs exist: NumVFs while VF Enable is set.
    pub fn active_vfs(&self) -> u16 {
        if self.vf_enable() { self.num_vfs } else { 0 }
    }

    /// System Page Size.
    pub fn system_page_size(&self) -> SystemPageSize {
        self.page_size
    }

    /// First VF Offset and VF Stride.
    pub fn routing(&self) -> VfRouting {
        self.config.placement.routing(self.num_vfs, self.ari_capable_hierarchy())
    }

    /// The memory of one VF at the current System Page Size: what the VF BARs size.
    pub fn vf_bars(&self) -> &Bars<Option<Bar>> {
        self.vf_bars.bars()
    }

    /// What the VF BARs read as after all ones are written, at the current System Page Size.
    pub fn probed_vf_bars(&self) -> &Bars<u32> {
        self.vf_bars.probed()
    }

    /// The address of each VF BAR.
    pub fn vf_bar_addresses(&self) -> Bars<Option<u64>> {
        self.vf_bars.addresses()
    }

    /// Address and size of the memory of VF `vf` behind VF BAR `bar`: base + index × size (SPEC-NDIS-SRIOV
    /// §9). `None` if the VF or its BAR does not exist, or the address wraps.
    pub fn vf_bar(&self, vf: VfIndex, bar: BarIndex) -> Option<(u64, u64)> {
        let size = (*bar.of(self.vf_bars()))?.size();
        let base = self.vf_bars.address(bar)?;
        let start = size.checked_mul(u64::from(vf.0))?.checked_add(base)?;
        start.checked_add(size - 1)?;
        (vf.0 < self.active_vfs()).then_some((start, size))
    }

    fn write_control(&mut self, write: DwordWrite) {
        let ari_can_change = self.config.lowest_numbered_pf && !self.vf_enable();
        let writable = SrIovControl::new()
            .with_vf_enable(true)
            .with_vf_memory_space_enable(true)
            .with_ari_capable_hierarchy(ari_can_change);
        let control = write.low().merge(self.control.into(), writable.into());
        self.control = SrIovControl::from(control);
    }

    fn set_page_size(&mut self, page_size: SystemPageSize) -> Result<(), PcieError> {
        self.vf_bars.resize(aligned(&self.config.vf_bars, page_size)?)?;
        self.page_size = page_size;
        Ok(())
    }
}

/// `bars`, each at least a page long, so that no two VFs share a page (PCIe 6.0 §9.3.3.13).
fn aligned(
    bars: &Bars<Option<Bar>>,
    page_size: SystemPageSize,
) -> Result<Bars<Option<Bar>>, PcieError> {
    let mut aligned = *bars;
    for bar in aligned.iter_mut().flatten() {
        *bar = Bar::new(bar.kind(), bar.size().max(page_size.bytes()))?;
    }
    Ok(aligned)
}

impl Registers for SrIov {
    type State = SrIovState;

    fn id(&self) -> Id {
        Id::Extended(ExtendedCapabilityId::SR_IOV)
    }

    fn length(&self) -> u16 {
        at::END
    }

    fn read(&self, register: u16) -> u32 {
        let SrIovConfig { total_vfs, vf_device_id, .. } = self.config;
        match register {
            at::CAPABILITIES => SrIovCapabilities::new()
                .with_ari_capable_hierarchy_preserved(
                    self.config.lowest_numbered_pf && self.config.ari_capable_hierarchy_preserved,
                )
                .into(),
            at::CONTROL => dword(self.control.into(), 0),
            at::INITIAL_VFS => dword(total_vfs, total_vfs),
            at::NUM_VFS => dword(self.num_vfs, u16::from(self.config.function_dependency_link)),
            at::FIRST_VF_OFFSET => {
                let VfRouting { first_vf_offset, vf_stride } = self.routing();
                dword(first_vf_offset, vf_stride)
            }
            // VF Device ID is the high half of the dword at 0x18.
            0x18 => dword(0, vf_device_id),
            at::SUPPORTED_PAGE_SIZES => self.config.supported_page_sizes,
            at::SYSTEM_PAGE_SIZE => self.page_size.register(),
            _ => vf_bar_at(register).map_or(0, |bar| self.vf_bars.read(bar)),
        }
    }

    fn write(&mut self, register: u16, write: DwordWrite) -> Option<Trigger> {
        match register {
            at::CONTROL => self.write_control(write),
            at::NUM_VFS => {
                let num_vfs = write.low().merge(self.num_vfs, u16::MAX);
                if !self.vf_enable() && num_vfs <= self.config.total_vfs {
                    self.num_vfs = num_vfs;
                }
            }
            at::SYSTEM_PAGE_SIZE => {
                let register = write.merge(self.page_size.register(), u32::MAX);
                let supported = register & self.config.supported_page_sizes;
                if let (false, Ok(size)) =
                    (self.vf_enable(), SystemPageSize::from_register(register))
                    && supported != 0
                {
                    // A page larger than a 32-bit VF BAR can be leaves the old one in place.
                    let _ = self.set_page_size(size);
                }
            }
            _ => {
                if let Some(bar) = vf_bar_at(register) {
                    self.vf_bars.write(bar, write);
                }
            }
        }
        None
    }

    fn reset(&mut self, kind: ResetKind) {
        // PCIe 6.0 §9.3.3.3.5: the ARI bit describes the port above, which an FLR does not change.
        let keeps_ari = match kind {
            ResetKind::Conventional => false,
            ResetKind::FunctionLevel => true,
            ResetKind::Soft => self.config.ari_capable_hierarchy_preserved,
        };
        let ari = keeps_ari && self.ari_capable_hierarchy();
        self.control = SrIovControl::new().with_ari_capable_hierarchy(ari);
        self.num_vfs = 0;
        self.vf_bars.reset();
        // 4 KiB pages were accepted when the capability was made.
        let _ = self.set_page_size(SystemPageSize::SIZE_4_KIB);
    }

    fn save(&self) -> SrIovState {
        SrIovState {
            control: self.control.into(),
            num_vfs: self.num_vfs,
            system_page_size: self.page_size,
            vf_bars: self.vf_bars.save(),
        }
    }

    fn restore(&mut self, state: &SrIovState) -> Result<(), PciFunctionError> {
        if state.num_vfs > self.config.total_vfs {
            return Err(PciFunctionError::SavedState("it has more VFs than there can be"));
        }
        if state.system_page_size.register() & self.config.supported_page_sizes == 0 {
            return Err(PciFunctionError::SavedState("its system page size is not supported"));
        }
        let known = SrIovControl::new()
            .with_vf_enable(true)
            .with_vf_memory_space_enable(true)
            .with_ari_capable_hierarchy(self.config.lowest_numbered_pf);
        self.set_page_size(state.system_page_size)?;
        self.control = SrIovControl::from(state.control & u16::from(known));
        self.num_vfs = state.num_vfs;
        self.vf_bars.load(&state.vf_bars);
        Ok(())
    }
}

/// Which VF BAR is at offset `register` of the capability.
fn vf_bar_at(register: u16) -> Option<BarIndex> {
    let index = register.checked_sub(at::VF_BARS)? / 4;
    BarIndex::new(u8::try_from(index).ok()?).ok()
}
