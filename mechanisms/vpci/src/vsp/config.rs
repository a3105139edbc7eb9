//! What a VSP is made with.

use std::{ops::Range, ops::RangeInclusive, time::Duration};

use pci_function::{MediationPolicy, PciFunctionError};
use pcie_protocol::{BarIndex, Bars};
use pcivirt_protocol::VpciPnpId;
use vpci_protocol::{FunctionDescription, ProtocolVersion, SlotNumber};

/// How long a guest has to confirm an ejection, unless the caller has reasons of its own: as long as Windows waits.
pub const EJECT_GRACE: Duration = Duration::from_secs(60);

/// The function that a VSP exposes, and the limits of the guest.
#[derive(Clone, Debug)]
pub struct FunctionConfig {
    /// Where it is on its bus; 0 for network VFs.
    pub slot: SlotNumber,
    /// Its ids, as the guest gets to see them.
    pub ids: VpciPnpId,
    /// Links it with the software NIC of the guest (SPEC-VMBUS §7).
    pub serial: u32,
    /// The guest's NUMA node that it is near to.
    pub numa_node: Option<u16>,
    /// Its BARs, as SRIOV_QUERY_PROBED_BARS_2 says. No I/O BARs.
    pub probed_bars: Bars<u32>,
    /// Which capabilities the guest sees. Memory enable is shown as clear after a reset whatever this says: a
    /// guest writes BARs first.
    pub mediation: MediationPolicy,
    /// Guest physical addresses where windows and BARs may be: the partition's MMIO ranges, no memory of its own.
    pub apertures: Vec<Range<u64>>,
    /// Virtual processors of the guest; VP indices are below.
    pub processors: u16,
    /// Interrupt vectors that the guest's processors have.
    pub vectors: RangeInclusive<u32>,
    /// Interrupt messages that can exist at a time.
    pub max_interrupts: usize,
    /// The highest version spoken.
    pub max_version: ProtocolVersion,
    /// How long the PF driver has for a request that the guest waits for.
    pub pf_timeout: Duration,
    /// Requests to the PF driver that the guest can wait for at a time; with those that nobody waits for, twice as
    /// many can be open before no more packets are read.
    pub max_pf_requests: usize,
    /// How long a guest has to close a channel that was taken back, before [`Effect::CloseOverdue`] says so.
    ///
    /// [`Effect::CloseOverdue`]: super::Effect::CloseOverdue
    pub close_timeout: Duration,
}

impl FunctionConfig {
    /// A function at slot 0 with the usual limits: 2048 interrupts, x86 vectors from 16, 32 requests to a PF driver
    /// that has 10 s for each, 10 s to close a channel, all versions.
    pub fn new(
        ids: VpciPnpId,
        serial: u32,
        probed_bars: Bars<u32>,
        apertures: Vec<Range<u64>>,
        processors: u16,
    ) -> Self {
        Self {
            slot: SlotNumber::ZERO,
            ids,
            serial,
            numa_node: None,
            probed_bars,
            mediation: MediationPolicy::default(),
            apertures,
            processors,
            vectors: 0x10..=0xFF,
            max_interrupts: 2048,
            max_version: ProtocolVersion::V1_5,
            pf_timeout: Duration::from_secs(10),
            max_pf_requests: 32,
            close_timeout: Duration::from_secs(10),
        }
    }

    pub(super) fn description(&self) -> FunctionDescription {
        FunctionDescription {
            ids: self.ids,
            slot: self.slot,
            serial: self.serial,
            numa_node: self.numa_node,
        }
    }
}

/// A function that cannot be exposed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VspError {
    /// The BARs or capabilities make no function.
    #[error("the function cannot be shown to a guest; its PF driver describes it wrongly")]
    Function(#[from] PciFunctionError),
    /// Guests have no I/O BARs on a virtual bus.
    #[error("{0} is in I/O space, which a virtual PCI bus does not have")]
    IoBar(BarIndex),
}
