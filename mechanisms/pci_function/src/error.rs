//! What can go wrong with a function.

use pcie_protocol::{BarIndex, PcieError, VfIndex};

/// An error of building, accessing or restoring a function.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PciFunctionError {
    /// An access to configuration space that is not wholly inside its 4096 bytes.
    #[error(
        "configuration access of {length} bytes at {offset:#x} leaves the 4096 bytes of configuration space"
    )]
    OutsideConfigSpace {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// An access to BAR memory that is not wholly inside the BAR, or to a BAR that does not exist.
    #[error("access of {length} bytes at {offset:#x} leaves {bar}, which has {size} bytes")]
    OutsideBar {
        /// The BAR.
        bar: BarIndex,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
        /// Bytes of the BAR; 0 if it does not exist.
        size: u64,
    },
    /// A BAR, size or routing id is not possible.
    #[error("the function cannot be built as described")]
    Impossible(#[from] PcieError),
    /// A BAR was given twice, or is the upper half of another.
    #[error("{0} is described twice")]
    BarTwice(BarIndex),
    /// Two capabilities with the same id.
    #[error("the function has the {0} capability twice")]
    CapabilityTwice(&'static str),
    /// Capabilities do not fit where they should be.
    #[error(
        "the {name} capability of {length} bytes does not fit at {offset:#x} of configuration space"
    )]
    CapabilityDoesNotFit {
        /// Which capability.
        name: &'static str,
        /// Where it should start.
        offset: u16,
        /// Bytes.
        length: u16,
    },
    /// The MSI-X table or pending bit array is not inside memory of the function, aligned and apart.
    #[error("the MSI-X layout cannot be: {0}")]
    MsiXLayout(&'static str),
    /// The SR-IOV capability's description breaks a rule.
    #[error("the SR-IOV capability cannot be: {0}")]
    SrIovConfig(&'static str),
    /// The VFs made for a PF are not the VFs that its SR-IOV capability describes.
    #[error("VF {vf} is not the VF that the SR-IOV capability of its PF describes: {reason}")]
    VfMismatch {
        /// Which VF.
        vf: VfIndex,
        /// What differs.
        reason: &'static str,
    },
    /// A saved state is not one of this function.
    #[error("the saved state is not of this function: {0}")]
    SavedState(&'static str),
}

/// A refusal of the host PCI services that a PF driver uses (SPEC-PCIVIRT §9). Nothing was changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtualizationError {
    /// NumVFs to enable is 0 or more than TotalVFs.
    #[error("{num_vfs} VFs cannot be enabled: ask for 1 to {total_vfs} (TotalVFs of the PF)")]
    NumVfs {
        /// VFs asked for.
        num_vfs: u16,
        /// TotalVFs of the SR-IOV capability.
        total_vfs: u16,
    },
    /// NumVFs was given with a request to disable.
    #[error("disabling VFs takes NumVFs 0, not {0}")]
    NumVfsWhenDisabling(u16),
    /// VF migration belongs to multi-root I/O virtualization, which this is not.
    #[error(
        "VF migration was asked for, but the PF is not multi-root capable: leave both flags clear"
    )]
    VfMigration,
    /// Virtualization already is on or off, as asked for.
    #[error("VFs are already {}", if *.enabled { "enabled: disable them first" } else { "disabled" })]
    AlreadyInState {
        /// Whether they are enabled.
        enabled: bool,
    },
    /// The function has no SR-IOV capability.
    #[error("the function has no SR-IOV capability")]
    NoSrIov,
    /// The PF is not in D0, so that its VFs cannot be brought up.
    #[error("the PF is not in D0: power it up first")]
    NotInD0,
    /// There is no such VF.
    #[error("there is no VF {vf}: the PF has VFs 0 to {} at most", .total_vfs.saturating_sub(1))]
    NoSuchVf {
        /// VF asked for.
        vf: VfIndex,
        /// TotalVFs of the SR-IOV capability.
        total_vfs: u16,
    },
    /// The VF has no routing id.
    #[error("the VF cannot be located")]
    Location(#[source] PcieError),
}

impl VirtualizationError {
    /// The published NTSTATUS (SPEC-PCIVIRT §9): STATUS_INVALID_PARAMETER (0xC000000D) for a wrong request,
    /// STATUS_INVALID_DEVICE_STATE (0xC0000184) for a right one at the wrong time.
    pub const fn nt_status(&self) -> u32 {
        const INVALID_PARAMETER: u32 = 0xC000_000D;
        const INVALID_DEVICE_STATE: u32 = 0xC000_0184;
        match self {
            Self::NumVfs { .. }
            | Self::NumVfsWhenDisabling(_)
            | Self::VfMigration
            | Self::NoSuchVf { .. }
            | Self::Location(_) => INVALID_PARAMETER,
            Self::AlreadyInState { .. } | Self::NoSrIov | Self::NotInD0 => INVALID_DEVICE_STATE,
        }
    }
}
