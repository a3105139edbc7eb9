//! What people are shown of an adapter and of a NIC (SPEC-MANAGEMENT §4.1, §5.1, §5.4).

use serde::{Deserialize, Serialize};

use crate::{AdapterId, DataPath, NicId, Reason, State, VfSerial, VmId};

/// A VM network adapter: the read-only SR-IOV properties of SPEC-MANAGEMENT §5.1, and why they are so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct AdapterStatus {
    /// Which.
    pub adapter: AdapterId,
    /// Whose.
    pub vm: VmId,
    /// Its state.
    pub state: State,
    /// IovWeight.
    pub iov_weight: u32,
    /// IovQueuePairsRequested.
    pub iov_queue_pairs_requested: u32,
    /// IovQueuePairsAssigned: of the VF it holds, else 0.
    pub iov_queue_pairs_assigned: u32,
    /// IovInterruptModeration as it applies to the VF: the published number.
    pub iov_interrupt_moderation: u32,
    /// IovUsage: 1 while the adapter holds a VF.
    pub iov_usage: i32,
    /// VFDataPathActive: whether the guest's data path is on the VF.
    pub vf_data_path_active: bool,
    /// The VF it holds.
    pub virtual_function: Option<VirtualFunction>,
    /// Why SR-IOV is not active, or not as asked for; empty if it is.
    pub reasons: Vec<Reason>,
    /// Status and its description.
    pub health: Health,
}

/// The VF of an adapter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VirtualFunction {
    /// Whose VF.
    pub nic: NicId,
    /// VF id.
    pub vf: u16,
    /// PCI address of the VF, as Linux writes it.
    pub requestor_id: String,
    /// The VPort, once it is there.
    pub vport: Option<u32>,
    /// Serial number.
    pub serial: VfSerial,
    /// Where the guest's data path is.
    pub data_path: DataPath,
}

/// Status of an adapter (SPEC-MANAGEMENT §5.4).
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Health {
    /// 2: as it should be.
    Ok,
    /// 2: as it should be, with SR-IOV.
    OkSriovActive,
    /// 3: SR-IOV was asked for and is not operational.
    Degraded,
}

impl Health {
    /// StatusDescription.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::OkSriovActive => "OK (SR-IOV active)",
            Self::Degraded => "Degraded (SR-IOV not operational)",
        }
    }

    /// Status, as published.
    pub const fn code(self) -> u32 {
        match self {
            Self::Ok | Self::OkSriovActive => 2,
            Self::Degraded => 3,
        }
    }
}

/// A NIC: the SR-IOV properties of its switch (SPEC-MANAGEMENT §4.1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NicStatus {
    /// Which.
    pub nic: NicId,
    /// State of the connection to it.
    pub state: crate::NicState,
    /// IovSupport: whether it can give VFs.
    pub iov_support: bool,
    /// IovSupportReasons: empty iff it can.
    pub iov_support_reasons: Vec<Reason>,
    /// IovVirtualFunctionCount.
    pub iov_virtual_function_count: u32,
    /// IovVirtualFunctionsInUse, by adapters of this stack.
    pub iov_virtual_functions_in_use: u32,
    /// IovQueuePairCount: those that nondefault VPorts can have.
    pub iov_queue_pair_count: u32,
    /// IovQueuePairsInUse, by VFs of this stack.
    pub iov_queue_pairs_in_use: u32,
}
