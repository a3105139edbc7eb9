//! The functions of the software adapter: VFs that follow AVF (SPEC-AVF §1), and a PF with SR-IOV.

use std::sync::Arc;

use pcie_protocol::{Bar, BarIndex, Bars, ClassCode, MsiXLocation, PciLocation, SystemPageSize};

use crate::{
    Acs, Ari, Express, ExpressConfig, FunctionBuilder, Identity, MsiX, MsiXLayout, PciFunction,
    PciFunctionError, PhysicalFunction, PowerManagement, PowerManagementConfig, SrIov, SrIovConfig,
    VfPlacement,
};

/// Intel's vendor id.
pub const VENDOR_ID: u16 = 0x8086;
/// The adaptive virtual function.
pub const VF_DEVICE_ID: u16 = 0x1889;
/// The revision of the VFs of an E810.
pub const REVISION_ID: u8 = 2;

/// The BAR with the register file.
pub const REGISTER_BAR: BarIndex = BarIndex::BAR0;
/// Bytes of the register file's BAR: 64 KiB.
pub const REGISTER_BAR_SIZE: u64 = 64 << 10;
/// The BAR with MSI-X table and pending bits, and nothing else, so that pages of the register file can be
/// mapped by guests.
pub const MSI_X_BAR: BarIndex = BarIndex::BAR3;
/// Bytes of the MSI-X BAR: 16 KiB.
pub const MSI_X_BAR_SIZE: u64 = 16 << 10;
/// Where the MSI-X table is in its BAR.
pub const MSI_X_TABLE_OFFSET: u32 = 0;
/// Where the pending bits are in the MSI-X BAR.
pub const MSI_X_PBA_OFFSET: u32 = 0x2000;
/// The most vectors that fit below the pending bits.
pub const MAX_MSI_X_VECTORS: u16 = 512;
/// The fewest vectors an AVF driver can live with: the mailbox's and one for queues.
pub const MIN_MSI_X_VECTORS: u16 = 2;

/// What can be chosen of an adapter's PF.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct PhysicalFunctionConfig {
    /// Device id. The default is that of an AVF: the PF's own queue pairs are driven by the same driver.
    pub device_id: u16,
    /// Subsystem id.
    pub subsystem_id: u16,
    /// MSI-X vectors of the PF.
    pub msi_x_vectors: u16,
    /// TotalVFs, 0 to [`MAX_VFS`](crate::MAX_VFS); 0 for a PF without the SR-IOV capability.
    pub total_vfs: u16,
    /// MSI-X vectors of each VF.
    pub vf_msi_x_vectors: u16,
}

impl Default for PhysicalFunctionConfig {
    /// 64 VFs with 17 vectors each: one for the mailbox, one for each of 16 queue pairs.
    fn default() -> Self {
        Self {
            device_id: VF_DEVICE_ID,
            subsystem_id: 0,
            msi_x_vectors: 17,
            total_vfs: 64,
            vf_msi_x_vectors: 17,
        }
    }
}

/// An AVF VF as its guest is to see it: ready to be served to a vfio-user client.
///
/// 8086:1889 revision 2, Ethernet; BAR0 64 KiB of registers, BAR3 16 KiB with MSI-X table at 0 and pending
/// bits at 0x2000, both 64-bit and prefetchable; power management with D0 and D3hot (which keeps all
/// state: NoSoftReset is set), MSI-X, PCI Express
/// endpoint with function level reset; no INTx.
///
/// # Errors
/// [`PciFunctionError::MsiXLayout`] unless `msi_x_vectors` is 2 to 512.
pub fn virtual_function(msi_x_vectors: u16) -> Result<PciFunction, PciFunctionError> {
    let express = Express::endpoint(ExpressConfig::default());
    common(PciFunction::builder(identity(VF_DEVICE_ID, 0)), msi_x_vectors, express)?.build()
}

/// An AVF VF as the PCIe specification has it, behind its PF: as [`virtual_function`], but its ids read
/// 0xFFFF, it has no memory enable, and its BARs are the VF BARs of its PF. It has ARI and ACS besides.
///
/// # Errors
/// As [`virtual_function`].
pub fn raw_virtual_function(msi_x_vectors: u16) -> Result<PciFunction, PciFunctionError> {
    let express = Express::virtual_function(ExpressConfig::default());
    common(PciFunction::vf_builder(identity(VF_DEVICE_ID, 0)), msi_x_vectors, express)?
        .capability(Ari::new(0))
        .capability(Acs::isolated())
        .build()
}

/// The PF of an adapter: BARs and capabilities as [`virtual_function`], and ARI, ACS and SR-IOV.
///
/// # Errors
/// [`PciFunctionError::MsiXLayout`] unless both numbers of vectors are 2 to 512,
/// [`PciFunctionError::SrIovConfig`] for more than 256 VFs.
pub fn physical_function(config: &PhysicalFunctionConfig) -> Result<PciFunction, PciFunctionError> {
    let PhysicalFunctionConfig { device_id, subsystem_id, msi_x_vectors, total_vfs, .. } = *config;
    let express = Express::endpoint(ExpressConfig::default());
    let builder = PciFunction::builder(identity(device_id, subsystem_id));
    let builder = common(builder, msi_x_vectors, express)?
        .capability(Ari::new(0))
        .capability(Acs::isolated());
    if total_vfs == 0 {
        return builder.build();
    }
    check_vectors(config.vf_msi_x_vectors)?;
    let sr_iov = SrIov::new(SrIovConfig {
        total_vfs,
        vf_device_id: VF_DEVICE_ID,
        placement: VfPlacement::interleaved(1),
        vf_bars: bars()?,
        supported_page_sizes: SystemPageSize::REQUIRED,
        lowest_numbered_pf: true,
        ari_capable_hierarchy_preserved: true,
        function_dependency_link: 0,
    })?;
    builder.capability(sr_iov).build()
}

/// The PF of an adapter with its VFs, at `location`.
///
/// # Errors
/// As [`physical_function`]; and [`PciFunctionError::Impossible`] if the buses after `location` are too few
/// for the VFs.
pub fn adapter(
    config: &PhysicalFunctionConfig,
    location: PciLocation,
) -> Result<PhysicalFunction, PciFunctionError> {
    let function = physical_function(config)?;
    // With no VFs the pattern is never used, and any number of vectors will do.
    let vectors = config.vf_msi_x_vectors.clamp(MIN_MSI_X_VECTORS, MAX_MSI_X_VECTORS);
    let pattern = raw_virtual_function(vectors)?;
    PhysicalFunction::new(function, location, Arc::new(move |_| pattern.clone()))
}

fn identity(device_id: u16, subsystem_id: u16) -> Identity {
    Identity {
        vendor_id: VENDOR_ID,
        device_id,
        revision_id: REVISION_ID,
        class: ClassCode::ETHERNET,
        subsystem_vendor_id: VENDOR_ID,
        subsystem_id,
    }
}

fn bars() -> Result<Bars<Option<Bar>>, PciFunctionError> {
    let mut bars = [None; 6];
    *REGISTER_BAR.of_mut(&mut bars) = Some(Bar::memory64(REGISTER_BAR_SIZE, true)?);
    *MSI_X_BAR.of_mut(&mut bars) = Some(Bar::memory64(MSI_X_BAR_SIZE, true)?);
    Ok(bars)
}

fn check_vectors(vectors: u16) -> Result<(), PciFunctionError> {
    if (MIN_MSI_X_VECTORS..=MAX_MSI_X_VECTORS).contains(&vectors) {
        Ok(())
    } else {
        Err(PciFunctionError::MsiXLayout("an AVF function has 2 to 512 vectors"))
    }
}

/// What all functions of the adapter have.
fn common(
    mut builder: FunctionBuilder,
    msi_x_vectors: u16,
    express: Express,
) -> Result<FunctionBuilder, PciFunctionError> {
    check_vectors(msi_x_vectors)?;
    let bars = bars()?;
    for index in BarIndex::ALL {
        if let Some(bar) = *index.of(&bars) {
            builder = builder.bar(index, bar);
        }
    }
    let msi_x = MsiX::new(MsiXLayout {
        vectors: msi_x_vectors,
        table: MsiXLocation { bar: MSI_X_BAR, offset: MSI_X_TABLE_OFFSET },
        pba: MsiXLocation { bar: MSI_X_BAR, offset: MSI_X_PBA_OFFSET },
    })?;
    let power = PowerManagementConfig { d1: false, d2: false, no_soft_reset: true };
    Ok(builder.capability(PowerManagement::new(power)).capability(msi_x).capability(express))
}
