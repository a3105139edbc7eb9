//! What a person can do about a reason.

use core::fmt;
use serde::{Deserialize, Serialize};

/// What can be done about a [`Reason`](crate::Reason).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Cure {
    /// Nothing has to be done.
    Nothing,
    /// Wait: it ends by itself.
    Wait,
    /// Set a weight.
    SetIovWeight,
    /// Connect the adapter.
    ConnectToIovSwitch,
    /// Make the switch anew.
    RecreateSwitchWithIov,
    /// Connect the adapter to an external switch.
    UseExternalSwitch,
    /// Take the host team apart.
    TeamInTheGuest,
    /// Use the other kind of adapter.
    UseSyntheticAdapter,
    /// Start the VM.
    StartVm,
    /// Start QEMU, and what drives it.
    DriveQemu,
    /// Start the switch.
    StartSwitch,
    /// Start the switch with the NIC as its uplink.
    ConnectUplink,
    /// Update firmware, or its settings.
    FirmwareSettings,
    /// Change how the system boots.
    EnableIommu,
    /// Use another machine.
    OtherHardware,
    /// Put the card elsewhere.
    OtherSlot,
    /// Update or configure the NIC's driver.
    PfDriver,
    /// Enable SR-IOV on the NIC.
    EnableSriovOnNic,
    /// Prefer SR-IOV over VMQ.
    PreferSriov,
    /// Raise the number of VFs.
    RaiseNumVfs,
    /// Restart the NIC.
    RestartNic,
    /// Bring the NIC back.
    BringNicBack,
    /// Install a VF driver, or another guest.
    GuestDriver,
    /// Install a VF driver.
    VfDriver,
    /// Have the guest's virtio-net join VFs.
    Failover,
    /// Look at what the VM's host side says.
    LookAtHostSide,
    /// Look at the guest, then retry.
    LookAtGuest,
    /// Take VFs away elsewhere.
    FreeVfs,
    /// Ask for fewer queue pairs, or free some elsewhere.
    FewerQueuePairs,
    /// Free receive filters.
    FreeFilters,
    /// Change the adapter's VLANs.
    FewerVlans,
    /// Take the policy away, or allow that it is bypassed.
    RemovePolicy,
    /// Ask the extension.
    AskExtension,
    /// Leave the moderation at its default.
    DefaultModeration,
}

impl fmt::Display for Cure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing has to be done",
            Self::Wait => "wait; it ends by itself",
            Self::SetIovWeight => "set IovWeight to a value from 1 to 100",
            Self::ConnectToIovSwitch => "connect the adapter to a switch in SR-IOV mode",
            Self::RecreateSwitchWithIov => {
                "remove the switch and make it again with EnableIov; the mode cannot be changed later"
            }
            Self::UseExternalSwitch => "connect the adapter to an external switch in SR-IOV mode",
            Self::TeamInTheGuest => {
                "give each NIC a switch of its own, and team two adapters inside the guest"
            }
            Self::UseSyntheticAdapter => "replace it by a synthetic adapter",
            Self::StartVm => "start the VM",
            Self::DriveQemu => {
                "start its QEMU with a QMP socket, and `clearway vm qemu NAME --worker SOCKET --qmp SOCKET` with the VM's socket of the stack's file and that one"
            }
            Self::StartSwitch => "start the switch's process",
            Self::ConnectUplink => {
                "wait for the switch to connect; if it does not, start it with this NIC's folder as its uplink (--uplink adapter:)"
            }
            Self::FirmwareSettings => {
                "update the firmware, and enable VT-d or AMD-Vi and SR-IOV in its settings"
            }
            Self::EnableIommu => "boot with the IOMMU on (intel_iommu=on or amd_iommu=on)",
            Self::OtherHardware => "use a machine whose processor and chipset have it",
            Self::OtherSlot => {
                "put the card into a slot whose bridges have ACS, or one right under the processor"
            }
            Self::PfDriver => "install or update the NIC's PF driver",
            Self::EnableSriovOnNic => "enable SR-IOV on the NIC (*SRIOV = 1)",
            Self::PreferSriov => "prefer SR-IOV on the NIC (*SriovPreferred = 1)",
            Self::RaiseNumVfs => "set the NIC's number of VFs (*NumVFs) above 0",
            Self::RestartNic => "restart the NIC",
            Self::BringNicBack => "start the NIC's process, or put the card back",
            Self::GuestDriver => {
                "use a guest with NetVSC, VPCI and a driver for the VF, and install that driver"
            }
            Self::VfDriver => "install a driver for the VF in the guest",
            Self::Failover => {
                "give QEMU's virtio-net-pci the option failover=on, and the guest a driver that knows it (Linux from 4.18 on, with net_failover)"
            }
            Self::LookAtHostSide => {
                "do what it says, or look at its log; the VF is offered again by itself"
            }
            Self::LookAtGuest => "look at the guest's log, then retry or restart the VM",
            Self::FreeVfs => "take a VF away from another adapter, or raise the NIC's number of VFs",
            Self::FewerQueuePairs => {
                "ask for fewer queue pairs, or free some on the NIC and switch the VF off and on"
            }
            Self::FreeFilters => "disconnect adapters that need no VF, or reduce their VLANs",
            Self::FewerVlans => "use fewer VLANs, or a NIC that filters by VLAN",
            Self::RemovePolicy => {
                "remove the policy, or set AllowPolicyBypass and know that the VF's frames escape it"
            }
            Self::AskExtension => "ask whoever runs the switch extension to allow the VF again",
            Self::DefaultModeration => "set IovInterruptModeration to Default",
        })
    }
}
