//! Why SR-IOV is not active on a VM network adapter, or not as asked for (SPEC-MANAGEMENT §6). Several reasons can
//! hold at once; each carries its evidence, and knows what can be done about it.

mod cure;
mod host;
mod standing;

pub use cure::Cure;
pub use host::{HostReason, SriovSupport};
pub use standing::Standing;

use core::fmt;
use serde::{Deserialize, Serialize};

use crate::{AdapterKind, NicId, Policy, State, VmId, VmState, VmSwitchId};

/// How far a guest has come with the VF that it was offered.
#[derive(
    Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum GuestProgress {
    /// Nothing was heard of it.
    #[default]
    Unseen,
    /// Its VPCI driver has opened the bus.
    BusOpened,
    /// Some driver has put the device to work (D0).
    DeviceStarted,
    /// Its data path has been on the VF.
    UsedVf,
}

/// What a guest lacks.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestGap {
    /// Its NetVSC did not ask for SR-IOV, or speaks a version that has none.
    NetVscWithoutSriov,
    /// It never opened the virtual PCI bus of its VF.
    NoVpciDriver,
    /// Its virtio-net driver did not agree on VIRTIO_NET_F_STANDBY: it does not know it, or was not offered it.
    VirtioNetWithoutStandby,
}

/// Why SR-IOV is not active on a VM network adapter, or not as asked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(tag = "code")]
pub enum Reason {
    /// The host lacks something.
    Host {
        /// What.
        reason: HostReason,
    },
    /// The NIC's hardware or driver lacks something.
    Adapter {
        /// The NIC.
        nic: NicId,
        /// What.
        support: SriovSupport,
    },
    /// SR-IOV is off on the NIC.
    AdapterDisabled {
        /// The NIC.
        nic: NicId,
    },
    /// The NIC was set up for VMQ or RSS rather than SR-IOV.
    AdapterNotPreferred {
        /// The NIC.
        nic: NicId,
    },
    /// The NIC's number of VFs is 0.
    NumVfsZero {
        /// The NIC.
        nic: NicId,
    },
    /// The switch is internal or private.
    SwitchNotExternal {
        /// The switch.
        switch: VmSwitchId,
    },
    /// The switch was made without SR-IOV.
    SwitchNotIov {
        /// The switch.
        switch: VmSwitchId,
    },
    /// The switch's uplink is a team of NICs in the host.
    HostTeaming {
        /// The switch.
        switch: VmSwitchId,
    },
    /// The switch's process does not run.
    SwitchNotRunning {
        /// The switch.
        switch: VmSwitchId,
    },
    /// The switch has not got the NIC's default VPort as its uplink (yet, or again): guests on VFs and guests on the
    /// synthetic path would not reach each other.
    SwitchUplinkDown {
        /// The switch.
        switch: VmSwitchId,
        /// The NIC.
        nic: NicId,
        /// What the switch, or the stack's process, says of it.
        error: String,
    },
    /// The NIC has no NIC switch.
    NicSwitchMissing {
        /// The NIC.
        nic: NicId,
    },
    /// No VF is asked for.
    WeightZero,
    /// The adapter is connected to no switch.
    NotConnected,
    /// The adapter is emulated.
    LegacyNic,
    /// The VM does not run.
    VmNotRunning {
        /// The VM.
        vm: VmId,
        /// What it does.
        state: VmState,
        /// Kind of the adapter. Beside a virtio-net it is a process of its own that says whether the VM runs.
        kind: AdapterKind,
    },
    /// The guest's NetVSC, or its virtio-net's driver, has not come up yet.
    GuestNotReady,
    /// The guest cannot use VFs.
    GuestUnsupported {
        /// What it lacks.
        lacks: GuestGap,
    },
    /// The guest saw the VF, and no driver took it.
    GuestNoVfDriver {
        /// How long it was waited for, milliseconds.
        waited_ms: u64,
    },
    /// A driver took the VF in the guest, and did not bring it up.
    GuestVfFailed {
        /// How long it was waited for, milliseconds.
        waited_ms: u64,
    },
    /// The VF was offered, and the guest did nothing.
    GuestNotResponding {
        /// How long it was waited for, milliseconds.
        waited_ms: u64,
    },
    /// The guest has given its VF back unasked.
    GuestReturnedVf,
    /// The guest holds a VF, and has moved its data path to the synthetic path by itself.
    GuestLeftVf,
    /// The partition's host side could not offer the VF to the guest.
    OfferFailed {
        /// Why, as it says: a sentence, or the published name of a status.
        error: Option<String>,
    },
    /// The partition's host side did not offer the VF to the guest.
    PartitionNotResponding {
        /// How long it was waited for, milliseconds.
        waited_ms: u64,
    },
    /// The NIC refused a VF: all are taken, some by others than this stack.
    OutOfVfs {
        /// The NIC.
        nic: NicId,
        /// VFs that this stack holds.
        held: u32,
        /// VFs of the NIC.
        total: u32,
    },
    /// The NIC's VPorts are all taken.
    OutOfVPorts {
        /// The NIC.
        nic: NicId,
        /// VPorts of the NIC, the default one included.
        total: u32,
    },
    /// The NIC's queue pairs are all taken.
    OutOfQueuePairs {
        /// The NIC.
        nic: NicId,
        /// Queue pairs of the NIC.
        total: u32,
    },
    /// The NIC's receive filters are all taken.
    OutOfMacFilters {
        /// The NIC.
        nic: NicId,
        /// Receive filters of the NIC.
        total: u32,
    },
    /// The NIC cannot do the adapter's VLANs.
    VlanUnsupported {
        /// The NIC.
        nic: NicId,
        /// How many VLANs the adapter has.
        vlans: u32,
    },
    /// More adapters want VFs than the NIC has, and others came first.
    OverSubscribed {
        /// The NIC.
        nic: NicId,
        /// VFs that can be had.
        total: u32,
        /// Adapters that come first.
        ahead: u32,
    },
    /// The NIC refused a request for some other cause.
    NicRefused {
        /// The NIC.
        nic: NicId,
        /// Published name of the request.
        request: String,
        /// Published name of the status.
        status: String,
    },
    /// Fewer queue pairs than asked for.
    QueuePairsReduced {
        /// IovQueuePairsRequested.
        requested: u32,
        /// IovQueuePairsAssigned.
        assigned: u32,
    },
    /// The NIC refused to bring something up to date; the VF goes on as it was.
    NotUpToDate {
        /// The NIC.
        nic: NicId,
        /// What was refused.
        refusal: String,
    },
    /// The NIC cannot moderate interrupts per VPort: the default is used.
    ModerationUnsupported {
        /// The NIC.
        nic: NicId,
    },
    /// Policies on the port need the software switch.
    PolicyForcesSoftware {
        /// Which.
        policies: Vec<Policy>,
    },
    /// Policies on the port are escaped by the VF's frames, as was allowed.
    PolicyBypassed {
        /// Which.
        policies: Vec<Policy>,
    },
    /// A switch extension took the VF away.
    ExtensionRevoked,
    /// The VM moves to another host.
    Migrating {
        /// The VM.
        vm: VmId,
    },
    /// The VM is being saved or restored.
    SavedStateRestore {
        /// The VM.
        vm: VmId,
    },
    /// The NIC is stopping, stopped, or starting.
    PfStopping {
        /// The NIC.
        nic: NicId,
    },
    /// The NIC is not there.
    PfRemoved {
        /// The NIC.
        nic: NicId,
    },
    /// The VF's hardware failed.
    VfHardwareError {
        /// The NIC.
        nic: NicId,
        /// VF id.
        vf: u16,
    },
    /// VF and filters are given back, to be had anew as the adapter is configured now.
    Reconfiguring,
    /// The adapter is being removed.
    BeingRemoved,
    /// On the way.
    InProgress {
        /// The adapter's state.
        state: State,
    },
}

impl Reason {
    /// The code, as SPEC-MANAGEMENT §6 has it where it has one: `Host` and `Adapter` with what they lack.
    pub fn code(&self) -> String {
        match self {
            Self::Host { reason } => format!("Host:{reason:?}"),
            Self::Adapter { support, .. } => format!("Adapter:{support:?}"),
            other => {
                let debug = format!("{other:?}");
                debug.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
            }
        }
    }
}

/// The reason as one sentence, without the full stop.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { reason } => write!(f, "the host cannot do SR-IOV: {reason}"),
            Self::Adapter { nic, support } => {
                write!(f, "{nic} cannot be used for SR-IOV: {support}")
            }
            Self::AdapterDisabled { nic } => write!(f, "SR-IOV is disabled on {nic}"),
            Self::AdapterNotPreferred { nic } => {
                write!(f, "{nic} is set up to prefer VMQ or RSS over SR-IOV")
            }
            Self::NumVfsZero { nic } => write!(f, "{nic} has SR-IOV enabled with no VFs"),
            Self::SwitchNotExternal { switch } => {
                write!(f, "{switch} is not external: there is no NIC behind it that could have VFs")
            }
            Self::SwitchNotIov { switch } => write!(f, "{switch} was made without SR-IOV"),
            Self::HostTeaming { switch } => {
                write!(
                    f,
                    "the uplink of {switch} is a host team, through which SR-IOV does not pass"
                )
            }
            Self::SwitchNotRunning { switch } => write!(f, "the process of {switch} does not run"),
            Self::SwitchUplinkDown { switch, nic, error } => {
                write!(f, "the uplink of {switch} on {nic} is down: {error}")
            }
            Self::NicSwitchMissing { nic } => write!(f, "{nic} has no NIC switch"),
            Self::WeightZero => f.write_str("no VF is asked for: IovWeight is 0"),
            Self::NotConnected => f.write_str("the adapter is connected to no switch"),
            Self::LegacyNic => f.write_str("an emulated adapter never has a VF"),
            Self::VmNotRunning { vm, kind: AdapterKind::VhostUser, .. } => write!(
                f,
                "{vm} does not run, or no `clearway vm qemu NAME --worker SOCKET --qmp SOCKET` drives its QEMU"
            ),
            Self::VmNotRunning { vm, .. } => write!(f, "{vm} does not run"),
            Self::GuestNotReady => f.write_str("the guest's network driver has not come up yet"),
            Self::GuestUnsupported { lacks: GuestGap::NetVscWithoutSriov } => {
                f.write_str("the guest's network driver does not do SR-IOV")
            }
            Self::GuestUnsupported { lacks: GuestGap::NoVpciDriver } => {
                f.write_str("the guest never opened the virtual PCI bus of its VF")
            }
            Self::GuestUnsupported { lacks: GuestGap::VirtioNetWithoutStandby } => f.write_str(
                "the guest's virtio-net driver did not agree on VIRTIO_NET_F_STANDBY, without which it joins no VF",
            ),
            Self::GuestNoVfDriver { waited_ms } => {
                write!(f, "no driver in the guest took the VF within {waited_ms} ms")
            }
            Self::GuestVfFailed { waited_ms } => write!(
                f,
                "the guest's VF driver started and did not bring the VF up within {waited_ms} ms"
            ),
            Self::GuestNotResponding { waited_ms } => {
                write!(f, "the guest was offered a VF and did nothing for {waited_ms} ms")
            }
            Self::GuestReturnedVf => f.write_str("the guest has given its VF back unasked"),
            Self::GuestLeftVf => {
                f.write_str("the guest holds a VF and has itself moved its traffic off it")
            }
            Self::OfferFailed { error } => {
                f.write_str("the VM's host side could not offer the VF to the guest")?;
                match error {
                    Some(error) => write!(f, ": {}", error.trim_end_matches('.')),
                    None => Ok(()),
                }
            }
            Self::PartitionNotResponding { waited_ms } => {
                write!(f, "the VM's host side did not offer the VF within {waited_ms} ms")
            }
            Self::OutOfVfs { nic, held, total } => write!(
                f,
                "{nic} has no VF left: of {total}, adapters here hold {held} and others the rest"
            ),
            Self::OutOfVPorts { nic, total } => write!(f, "all {total} VPorts of {nic} are in use"),
            Self::OutOfQueuePairs { nic, total } => {
                write!(f, "none of the {total} queue pairs of {nic} is left for a VF")
            }
            Self::OutOfMacFilters { nic, total } => {
                write!(f, "{nic} has no receive filter left of {total}")
            }
            Self::VlanUnsupported { nic, vlans } => {
                write!(f, "{nic} cannot filter a VF's frames by the adapter's {vlans} VLAN(s)")
            }
            Self::OverSubscribed { nic, total, ahead } => {
                write!(f, "{ahead} adapters came first for the {total} VFs that {nic} has for them")
            }
            Self::NicRefused { nic, request, status } => {
                write!(f, "{nic} refused {request} with {status}")
            }
            Self::QueuePairsReduced { requested, assigned } => {
                write!(f, "the VF has {assigned} of the {requested} queue pairs asked for")
            }
            Self::NotUpToDate { nic, refusal } => {
                write!(f, "the VF goes on as it was, until {nic} takes a change: {refusal}")
            }
            Self::ModerationUnsupported { nic } => write!(
                f,
                "{nic} cannot moderate interrupts per VPort, so the VF uses the NIC's default"
            ),
            Self::PolicyForcesSoftware { policies } => {
                f.write_str("policies need the software switch: ")?;
                list(f, policies)
            }
            Self::PolicyBypassed { policies } => {
                f.write_str("the VF's frames escape policies, as was allowed: ")?;
                list(f, policies)
            }
            Self::ExtensionRevoked => f.write_str("a switch extension took the VF away"),
            Self::Migrating { vm } => write!(f, "{vm} is moving to another host"),
            Self::SavedStateRestore { vm } => write!(f, "{vm} is being saved or restored"),
            Self::PfStopping { nic } => write!(f, "{nic} is stopping or starting"),
            Self::PfRemoved { nic } => write!(f, "{nic} is not there"),
            Self::VfHardwareError { nic, vf } => write!(f, "VF {vf} of {nic} failed"),
            Self::Reconfiguring => {
                f.write_str("VF and filters are given back, to be had anew as it is configured now")
            }
            Self::BeingRemoved => f.write_str("the adapter is being removed"),
            Self::InProgress { state } => write!(f, "the VF is on its way ({state})"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, policies: &[Policy]) -> fmt::Result {
    for (index, policy) in policies.iter().enumerate() {
        write!(f, "{}{}", if index == 0 { "" } else { ", " }, policy.name())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
