//! What the stack is told: desired state, and what NICs, switches, partitions and guests report.

use core::fmt;

use pcivirt_protocol::NtStatus;
use serde::{Deserialize, Serialize};

use crate::{
    AdapterConfig, AdapterId, CallError, HostReason, NicId, NicReply, RequestId, SriovSupport,
    SwitchConfig, VfSerial, VmConfig, VmId, VmState, VmSwitchId,
};

/// A path of an adapter's frames.
#[derive(
    Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum DataPath {
    /// Through the virtual switch.
    #[default]
    Synthetic,
    /// Through the VF.
    Vf,
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synthetic => "the synthetic path",
            Self::Vf => "the VF",
        })
    }
}

/// How the uplink of a switch on its NIC is, as far as VFs are concerned: between a guest that is on its VF and one that
/// is not, frames take the way through it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Uplink {
    /// Frames pass, or whether they do is not the stack's business: the uplink is an interface, a cable, or none.
    #[default]
    Up,
    /// The switch has not (again) got the NIC's default VPort.
    Down {
        /// Why, as far as is known.
        error: String,
    },
}

/// Something the stack is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Time has passed; see [`Effect::SetTimer`](crate::Effect::SetTimer).
    Tick,

    /// What the host lacks.
    Host(Vec<HostReason>),
    /// What a survey of the host found out about a NIC, beyond what the NIC itself says.
    NicSurvey(NicId, NicSurvey),
    /// A switch is there, or changed. Kind and mode of a switch do not change.
    SwitchSet(VmSwitchId, SwitchConfig),
    /// A switch is deleted. Adapters connected to it are no longer connected.
    SwitchRemoved(VmSwitchId),
    /// A VM is there, or changed.
    VmSet(VmId, VmConfig),
    /// A VM is deleted. It has no adapters any more.
    VmRemoved(VmId),
    /// A VM network adapter is there, or changed.
    AdapterSet(AdapterId, AdapterConfig),
    /// A VM network adapter is deleted. It is forgotten once its VF and filters are given back.
    AdapterRemoved(AdapterId),
    /// Try again what an adapter has given up: its guest is asked anew.
    Retry(AdapterId),
    /// A switch extension takes the VF of an adapter away (NDIS_STATUS_SWITCH_PORT_REMOVE_VF), or allows it again.
    ExtensionRevokes(AdapterId, bool),

    /// A VM starts, stops, is about to be saved or to move. `Off` also when its host side has died.
    VmState(VmId, VmState),
    /// The guest of a running VM started anew: whatever it had done is undone, the devices offered to it stay.
    GuestReset(VmId),
    /// The process of a switch has come up.
    SwitchStarted(VmSwitchId),
    /// The process of a switch has ended, and the NetVSP ends with it.
    SwitchStopped(VmSwitchId),
    /// How the uplink of a running switch is now. Until the first time, and after the process has ended, it is taken
    /// for [`Uplink::Up`].
    SwitchUplink(VmSwitchId, Uplink),
    /// The NetVSP end of an adapter reports.
    NetVsp(AdapterId, NetVspReport),
    /// The VPCI end of an adapter reports on one offering of a VF.
    Vpci(AdapterId, VfSerial, VpciReport),

    /// There is a device control connection to a NIC, on which nothing was said yet.
    NicConnected(NicId),
    /// The connection to a NIC has ended. Its outstanding requests are not completed any more.
    NicDisconnected(NicId),
    /// A request to a NIC is completed.
    NicCompleted(NicId, RequestId, Result<NicReply, CallError>),
    /// The NIC's capabilities have changed, or its NIC switch (NDIS_STATUS_NIC_SWITCH_CURRENT_CAPABILITIES).
    NicCapabilitiesChanged(NicId),
    /// A VF of a NIC has failed.
    VfError(NicId, u16),
}

/// What a survey of the host found out about a NIC.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct NicSurvey {
    /// SriovSupport.
    pub support: SriovSupport,
    /// *SriovPreferred: whether it is set up for SR-IOV rather than VMQ or RSS.
    pub sriov_preferred: bool,
}

impl Default for NicSurvey {
    fn default() -> Self {
        Self { support: SriovSupport::Supported, sriov_preferred: true }
    }
}

/// What the NetVSP end of an adapter reports. An [`AdapterKind::VhostUser`](crate::AdapterKind::VhostUser) has none: the
/// partition's host side says how its virtio-net's driver is, and which path it uses follows from what its VF's does.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum NetVspReport {
    /// The guest's NetVSC has come up: RNDIS is initialized, data may flow.
    Ready {
        /// Whether it speaks a version with SR-IOV, and the configuration it was sent has SR-IOV on; of a virtio-net,
        /// whether VIRTIO_NET_F_STANDBY was agreed on.
        sriov: bool,
    },
    /// The guest's NetVSC has closed its channel.
    Closed,
    /// The guest asks for a data path (NVSP message 129) and waits for
    /// [`CompleteSwitch`](crate::NetVspCommand::CompleteSwitch). A second request before that replaces the first.
    AsksDataPath(DataPath),
}

/// What the VPCI end of an adapter reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VpciReport {
    /// The device is offered to the guest.
    Offered,
    /// The device could not be offered, and nothing of it is left.
    OfferFailed {
        /// How it ended.
        status: NtStatus,
        /// Why, and what to do, in one sentence, if the host side knows more than the status says.
        cause: Option<String>,
    },
    /// The guest's VPCI driver has opened the bus.
    BusOpened,
    /// A driver in the guest has put the device to work.
    DeviceStarted,
    /// The guest has given the device up.
    EjectComplete,
    /// The device is gone: nothing maps its BARs, nobody uses its VF.
    Removed,
}
