//! Why a request was refused, with the published status.

use device_control_protocol::DriverName;
use ndis_protocol::{FilterId, NdisStatus, Oid, ParseError, RequestKind, SwitchId, VPortId, VfId};
use thiserror::Error;

/// Why a request was refused: what it is about, the facts that led to it, and what can be done. Nothing has changed.
///
/// [`Refusal::status`] is the status that the OID's page names (SPEC-NDIS-SRIOV §0.2 common rule, §4 guard table, §5,
/// §6).
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Refusal {
    /// The code is not in the catalogue.
    #[error("there is no OID {code:#010x}")]
    UnknownOid {
        /// The code.
        code: u32,
    },
    /// The OID is not asked this way.
    #[error("{oid} is not asked by {kind}; ask it by {}", kinds(*.oid))]
    RequestKind {
        /// The OID.
        oid: Oid,
        /// How it was asked.
        kind: RequestKind,
    },
    /// The OID is NDIS's own.
    #[error("{oid} is sent by NDIS only; an overlying driver has no use for it")]
    NdisOnly {
        /// The OID.
        oid: Oid,
    },
    /// The OID is one of the guest.
    #[error("{oid} is answered in the guest, not by a PF")]
    GuestOnly {
        /// The OID.
        oid: Oid,
    },
    /// The adapter is halted.
    #[error("the adapter is halted; start it first")]
    Halted,
    /// The adapter was removed.
    #[error("the adapter was removed; nothing is left to ask")]
    Removed {
        /// Whether the request was to clear a filter, which has a status of its own.
        clearing_filter: bool,
    },
    /// A feature is there but off.
    #[error("{oid} needs {feature}, which is not active; {cure}")]
    NotActive {
        /// The OID.
        oid: Oid,
        /// The feature.
        feature: &'static str,
        /// How to activate it.
        cure: &'static str,
    },
    /// The card, as it is set up, cannot do it.
    #[error("the adapter cannot {what}")]
    NotCapable {
        /// What it cannot do.
        what: &'static str,
    },
    /// The input is not the structure it should be.
    #[error(transparent)]
    Structure(#[from] ParseError),
    /// The output has no room.
    #[error(
        "the answer takes {needed} bytes and there is room for {capacity}; send a buffer of the size in BytesNeeded"
    )]
    OutputTooSmall {
        /// Bytes it takes.
        needed: u64,
        /// Bytes there is room for.
        capacity: usize,
    },
    /// A member may not have its value in this request.
    #[error("{member} may not be {value:#x} here: {rule}")]
    Member {
        /// The member's published name.
        member: &'static str,
        /// Its value.
        value: u64,
        /// The rule.
        rule: &'static str,
    },
    /// There is no NIC switch.
    #[error("there is no NIC switch; start the adapter with SR-IOV active")]
    NoSwitch,
    /// There is no such NIC switch.
    #[error("there is no {switch_id}; the only switch is 0")]
    NoSuchSwitch {
        /// The switch.
        switch_id: SwitchId,
        /// Whether the request was to delete it, which has a status of its own.
        deleting: bool,
    },
    /// There is a NIC switch already.
    #[error("the adapter has its one NIC switch already; delete it first")]
    SwitchExists,
    /// The switch has objects.
    #[error(
        "the switch still has {filters} filters, {vports} nondefault VPorts and {vfs} VFs; release them first"
    )]
    SwitchInUse {
        /// Receive filters.
        filters: usize,
        /// Nondefault VPorts.
        vports: usize,
        /// Allocated VFs.
        vfs: usize,
    },
    /// There is no such VPort.
    #[error("there is no {vport_id}; enumerate the VPorts with OID_NIC_SWITCH_ENUM_VPORTS")]
    NoSuchVPort {
        /// The VPort.
        vport_id: VPortId,
    },
    /// The default VPort is not created or deleted alone.
    #[error("the default VPort comes and goes with its switch")]
    DefaultVPort,
    /// The VPort has receive filters.
    #[error("{vport_id} still has {filters} receive filters; clear or move them first")]
    VPortHasFilters {
        /// The VPort.
        vport_id: VPortId,
        /// Its filters.
        filters: usize,
    },
    /// A member of a VPort cannot change, or not in this way.
    #[error("{member} of {vport_id} cannot change so: {rule}")]
    VPortChange {
        /// The VPort.
        vport_id: VPortId,
        /// The member's published name.
        member: &'static str,
        /// The rule.
        rule: &'static str,
    },
    /// Somebody else's object.
    #[error("{object} belongs to {owner}, who alone may do this")]
    NotOwner {
        /// What it is.
        object: Object,
        /// Whose it is.
        owner: DriverName,
    },
    /// The VF is not allocated.
    #[error("{vf_id} is not allocated; allocate it with OID_NIC_SWITCH_ALLOCATE_VF")]
    VfNotAllocated {
        /// The VF.
        vf_id: VfId,
        /// Whether the request was to free it, which has a status of its own.
        freeing: bool,
    },
    /// The VF has a VPort.
    #[error("{vf_id} has {vport_id}; delete that first")]
    VfHasVPort {
        /// The VF.
        vf_id: VfId,
        /// Its VPort.
        vport_id: VPortId,
        /// Whether the request was to free it, which has a status of its own.
        freeing: bool,
    },
    /// No VF is left.
    #[error("all {num_vfs} VFs are allocated; free one or raise NicSwitches\\0\\*NumVFs")]
    NoVfLeft {
        /// VFs of the switch.
        num_vfs: u32,
    },
    /// No VPort is left.
    #[error("all {limit} nondefault VPorts {pool} are in use; delete one")]
    NoVPortLeft {
        /// How many there are.
        limit: u32,
        /// Of which pool.
        pool: &'static str,
    },
    /// Not enough queue pairs are left.
    #[error(
        "{asked} queue pairs were asked for and {free} of {total} are free; ask for fewer or delete a VPort"
    )]
    NoQueuePairLeft {
        /// How many were asked for.
        asked: u32,
        /// How many are free.
        free: u32,
        /// How many there are.
        total: u32,
    },
    /// A number of queue pairs that the hardware does not do.
    #[error("{asked} queue pairs cannot be: {rule} ({limit})")]
    QueuePairs {
        /// How many were asked for.
        asked: u32,
        /// The number that the rule is about.
        limit: u32,
        /// The rule.
        rule: &'static str,
    },
    /// No receive filter is left.
    #[error("all {limit} receive filters are set; clear one")]
    NoFilterLeft {
        /// How many there can be.
        limit: u32,
    },
    /// There is no such receive filter.
    #[error(
        "there is no receive filter {filter_id}; enumerate them with OID_RECEIVE_FILTER_ENUM_FILTERS"
    )]
    NoSuchFilter {
        /// The wire value.
        filter_id: u32,
        /// Whether the request was to clear it, which has a status of its own.
        clearing: bool,
    },
    /// The receive filter is on another VPort.
    #[error("{filter_id} is on {actual}, not on {source_vport}")]
    FilterElsewhere {
        /// The filter.
        filter_id: FilterId,
        /// Where the request says it is.
        source_vport: VPortId,
        /// Where it is.
        actual: VPortId,
    },
    /// The PF miniport driver refused.
    #[error("the PF miniport driver answered {oid} with {status}")]
    Miniport {
        /// The OID.
        oid: Oid,
        /// Its status.
        status: NdisStatus,
    },
    /// The PF miniport driver broke its contract.
    #[error("the PF miniport driver answered {oid} wrongly: {what}; this is a bug of the driver")]
    MiniportBroken {
        /// The OID.
        oid: Oid,
        /// What is wrong.
        what: &'static str,
    },
}

/// An object that has an owner.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Object {
    /// A VPort.
    VPort(VPortId),
    /// A VF.
    Vf(VfId),
    /// A receive filter.
    Filter(FilterId),
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::VPort(id) => id.fmt(f),
            Self::Vf(id) => id.fmt(f),
            Self::Filter(id) => id.fmt(f),
        }
    }
}

fn kinds(oid: Oid) -> String {
    oid.kinds().iter().map(RequestKind::to_string).collect::<Vec<_>>().join(" or ")
}

impl Refusal {
    /// The published status.
    #[must_use]
    pub const fn status(&self) -> NdisStatus {
        match self {
            Self::UnknownOid { .. } => NdisStatus::INVALID_OID,
            Self::RequestKind { .. }
            | Self::NdisOnly { .. }
            | Self::GuestOnly { .. }
            | Self::NotActive { .. }
            | Self::NotCapable { .. } => NdisStatus::NOT_SUPPORTED,
            Self::Halted | Self::SwitchExists | Self::SwitchInUse { .. } => {
                NdisStatus::INVALID_STATE
            }
            // A removed adapter takes no CLEAR_FILTER (SPEC-NDIS-SRIOV §6.2).
            Self::Removed { clearing_filter: true } => NdisStatus::NOT_ACCEPTED,
            Self::Removed { clearing_filter: false } => NdisStatus::ADAPTER_REMOVED,
            Self::Structure(error) => error.status(),
            Self::OutputTooSmall { .. } => NdisStatus::INVALID_LENGTH,
            Self::NoVfLeft { .. } | Self::NoVPortLeft { .. } | Self::NoQueuePairLeft { .. } => {
                NdisStatus::RESOURCES
            }
            // RESOURCES is not among the statuses of SET_FILTER (SPEC-NDIS-SRIOV §6.1).
            Self::NoFilterLeft { .. } | Self::MiniportBroken { .. } => NdisStatus::FAILURE,
            // The front layer's answers to bad ids (SPEC-NDIS-SRIOV §5.5, §5.10, §6.2).
            Self::NoSuchSwitch { deleting: true, .. }
            | Self::VfNotAllocated { freeing: true, .. }
            | Self::VfHasVPort { freeing: true, .. }
            | Self::NoSuchFilter { clearing: true, .. } => NdisStatus::FILE_NOT_FOUND,
            Self::Miniport { status, .. } => *status,
            Self::Member { .. }
            | Self::NoSwitch
            | Self::NoSuchSwitch { .. }
            | Self::NoSuchVPort { .. }
            | Self::DefaultVPort
            | Self::VPortHasFilters { .. }
            | Self::VPortChange { .. }
            | Self::NotOwner { .. }
            | Self::VfNotAllocated { .. }
            | Self::VfHasVPort { .. }
            | Self::QueuePairs { .. }
            | Self::NoSuchFilter { .. }
            | Self::FilterElsewhere { .. } => NdisStatus::INVALID_PARAMETER,
        }
    }

    /// The size of the buffer that was too small; 0 if that was not the reason.
    #[must_use]
    pub fn bytes_needed(&self) -> u32 {
        let needed = match self {
            Self::Structure(error) => error.bytes_needed().and_then(|n| u32::try_from(n).ok()),
            Self::OutputTooSmall { needed, .. } => u32::try_from(*needed).ok(),
            _ => return 0,
        };
        match (needed, self.status()) {
            (Some(needed), _) => needed,
            (None, NdisStatus::INVALID_LENGTH) => u32::MAX,
            (None, _) => 0,
        }
    }
}
