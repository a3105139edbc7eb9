//! Desired state: what an administrator has set on switches, VMs and VM network adapters (SPEC-MANAGEMENT §4, §5, §7).

use std::collections::BTreeSet;

use ndis_protocol::{FilterMatch, InterruptModeration, MacAddress, Name, VlanId};
use serde::{Deserialize, Serialize};

use crate::{NicId, VmId, VmSwitchId};

/// Most VM network adapters of one VM (SPEC-MANAGEMENT §5.2 R8).
pub const MAX_ADAPTERS_PER_VM: usize = 8;

/// Most VLANs of a trunk that a VF's VPort can take over: each is a receive filter of the NIC.
pub const MAX_TRUNK_VLANS: usize = 64;

/// A virtual switch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwitchConfig {
    /// Its name for people.
    pub name: String,
    /// What it connects.
    pub kind: SwitchKind,
    /// IovEnabled: whether it was created in SR-IOV mode. Cannot change afterwards (SPEC-MANAGEMENT §4.2 R1).
    pub iov_enabled: bool,
}

/// What a virtual switch connects.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum SwitchKind {
    /// VMs, the host, and a physical NIC. A NIC has one switch.
    External {
        /// The NIC.
        nic: NicId,
        /// Whether the uplink is really a team of NICs in the host, through which SR-IOV does not pass (R5).
        teamed: bool,
    },
    /// VMs and the host.
    Internal,
    /// VMs alone.
    Private,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmConfig {
    /// Identifies it towards the NIC (VMName of OID_NIC_SWITCH_ALLOCATE_VF).
    pub name: Name,
    /// Its name for people.
    pub friendly_name: Name,
}

/// What a VM is doing.
#[derive(
    Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Not running; or its host side has ended, however that came about.
    #[default]
    Off,
    /// Running.
    Running,
    /// Running, and about to move to another host: only the software NIC may have state (SPEC-NDIS-SRIOV §11.5).
    Migrating,
    /// Running, and about to be saved, or just restored and not released yet.
    Saving,
}

/// Kind of a VM network adapter.
#[derive(
    Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// The software NIC over VMBus.
    #[default]
    Synthetic,
    /// The emulated DEC 21140, which never has a VF (R9).
    Legacy,
    /// A virtio-net by vhost-user: the synthetic path of a guest in QEMU. There is no NetVSP: a VF becomes the guest's
    /// path when its driver puts it to work, and is left when it is given up.
    #[serde(rename = "vhost-user")]
    VhostUser,
}

/// VLAN setting of a VM network adapter (Set-VMNetworkAdapterVlan).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum VlanSetting {
    /// Untagged frames.
    #[default]
    Untagged,
    /// One VLAN, of which the guest knows nothing.
    Access(VlanId),
    /// Several VLANs, which the guest tags.
    Trunk {
        /// The VLAN of untagged frames; `None` leaves them untagged.
        native: Option<VlanId>,
        /// The VLANs that pass with their tag.
        allowed: BTreeSet<VlanId>,
    },
}

/// A policy that needs packets in the software switch, and so no VF (SPEC-MANAGEMENT §7).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Port ACLs, basic or extended.
    PortAcl,
    /// A minimum bandwidth.
    MinimumBandwidth,
    /// A maximum bandwidth.
    MaximumBandwidth,
    /// Isolated, community or promiscuous mode of a private VLAN.
    PrivateVlan,
    /// Port mirroring, as source or destination.
    PortMirroring,
    /// DHCP guard.
    DhcpGuard,
    /// Router guard.
    RouterGuard,
    /// A limit on broadcasts and multicasts.
    StormLimit,
    /// A limit on dynamic addresses.
    DynamicIpAddressLimit,
    /// Network virtualization.
    VirtualSubnet,
    /// A capture, filter or monitoring extension on the port.
    Extension,
}

impl Policy {
    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PortAcl => "port ACLs",
            Self::MinimumBandwidth => "a minimum bandwidth",
            Self::MaximumBandwidth => "a maximum bandwidth",
            Self::PrivateVlan => "a private VLAN",
            Self::PortMirroring => "port mirroring",
            Self::DhcpGuard => "DHCP guard",
            Self::RouterGuard => "router guard",
            Self::StormLimit => "a storm limit",
            Self::DynamicIpAddressLimit => "a limit on dynamic IP addresses",
            Self::VirtualSubnet => "network virtualization",
            Self::Extension => "a switch extension on the port",
        }
    }
}

/// A VM network adapter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdapterConfig {
    /// Whose it is. Cannot change.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// Its kind. Cannot change.
    pub kind: AdapterKind,
    /// The switch it is connected to.
    pub switch: Option<VmSwitchId>,
    /// Its address, on both paths.
    pub mac: MacAddress,
    /// Its VLANs, on both paths.
    pub vlan: VlanSetting,
    /// IovWeight, 0 to 100: 0 does not ask for a VF, everything else does. Nothing is weighed.
    pub iov_weight: u32,
    /// IovQueuePairsRequested, at least 1.
    pub iov_queue_pairs_requested: u32,
    /// IovInterruptModeration; [`InterruptModeration::Undefined`] is Default.
    pub iov_interrupt_moderation: InterruptModeration,
    /// MacAddressSpoofing: whether the guest may send from other addresses than its own.
    pub mac_spoofing: bool,
    /// Policies set on its port that need the software switch.
    pub policies: BTreeSet<Policy>,
    /// Whether a VF may be used although its traffic escapes those policies.
    pub allow_policy_bypass: bool,
}

impl AdapterConfig {
    /// An adapter as Hyper-V makes it: not connected, no VF asked for, one queue pair.
    pub fn new(vm: VmId, mac: MacAddress) -> Self {
        Self {
            vm,
            name: Name::default(),
            kind: AdapterKind::Synthetic,
            switch: None,
            mac,
            vlan: VlanSetting::Untagged,
            iov_weight: 0,
            iov_queue_pairs_requested: 1,
            iov_interrupt_moderation: InterruptModeration::Undefined,
            mac_spoofing: false,
            policies: BTreeSet::new(),
            allow_policy_bypass: false,
        }
    }

    /// The receive filters of its frames. None for a trunk that takes more than [`MAX_TRUNK_VLANS`] of them: the
    /// default VPort, which gets what no filter sends elsewhere, serves it.
    pub(crate) fn filters(&self) -> Vec<FilterMatch> {
        let mac = self.mac;
        match &self.vlan {
            VlanSetting::Untagged => vec![FilterMatch::untagged(mac)],
            VlanSetting::Access(vlan) => vec![FilterMatch::on_vlan(mac, *vlan)],
            VlanSetting::Trunk { allowed, .. } if allowed.len() > MAX_TRUNK_VLANS => Vec::new(),
            VlanSetting::Trunk { native, allowed } => {
                let first = match native {
                    Some(vlan) => FilterMatch::on_vlan(mac, *vlan),
                    None => FilterMatch::untagged(mac),
                };
                let others = allowed.iter().filter(|vlan| Some(**vlan) != *native);
                let others = others.map(|vlan| FilterMatch::on_vlan(mac, *vlan));
                core::iter::once(first).chain(others).collect()
            }
        }
    }

    /// How many VLANs it has.
    pub(crate) fn vlans(&self) -> u32 {
        match &self.vlan {
            VlanSetting::Untagged => 0,
            VlanSetting::Access(_) => 1,
            VlanSetting::Trunk { native, allowed } => {
                let native = native.filter(|vlan| !allowed.contains(vlan));
                u32::try_from(allowed.len() + native.iter().count()).unwrap_or(u32::MAX)
            }
        }
    }

    pub(crate) fn vport_policy(&self) -> VPortPolicy {
        VPortPolicy { allow_spoofing: self.mac_spoofing, vlan: self.vlan.clone() }
    }
}

/// What the NIC enforces on a VF's VPort in place of the software switch: the same as that does on the synthetic path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VPortPolicy {
    /// Whether foreign source addresses pass.
    pub allow_spoofing: bool,
    /// VLAN mode.
    pub vlan: VlanSetting,
}

/// What is done with a guest that holds a VF and does not answer while its PF waits to stop or to be removed in order
/// (SPEC-PCIVIRT §8.5). A PF that is gone already cannot be vetoed.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum SilentGuest {
    /// The stop is vetoed; the VF stays.
    #[default]
    Veto,
    /// The VF is removed by surprise; the stop goes on.
    SurpriseRemove,
}

/// How the stack behaves.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct StackConfig {
    /// Time-outs.
    pub timeouts: crate::Timeouts,
    /// What is done with a guest that does not answer while its PF waits.
    pub silent_guest: SilentGuest,
    /// Whether VFs are given although the host lacks something (IovEnableOverride). Unsafe: without DMA remapping a VF
    /// reaches all memory.
    pub host_override: bool,
    /// The serial number before the first one that is given out. Where guests may still hold VFs of an earlier life of the
    /// stack, another than that one's, so that reports about those are told apart.
    pub last_serial: u32,
}
