//! What a reason means for the adapter, and what can be done about it.

use serde::{Deserialize, Serialize};

use super::{Cure, GuestGap, HostReason, Reason, SriovSupport};
use crate::AdapterKind;

/// What a reason means for the adapter.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It calls for the synthetic path: as long as it holds, the adapter has no VF, or gives it back.
    Blocks,
    /// Nothing calls for the synthetic path, and the guest's data path is not on the VF yet, or not any more.
    Waits,
    /// SR-IOV may be active, but not quite as asked for.
    Notes,
}

impl Reason {
    /// What it means for the adapter.
    pub const fn standing(&self) -> Standing {
        match self {
            Self::InProgress { .. } | Self::GuestLeftVf => Standing::Waits,
            Self::QueuePairsReduced { .. }
            | Self::NotUpToDate { .. }
            | Self::ModerationUnsupported { .. }
            | Self::PolicyBypassed { .. } => Standing::Notes,
            _ => Standing::Blocks,
        }
    }

    /// Whether somebody should see that SR-IOV was asked for and is not there: not so where nothing was asked for, or
    /// where it is as it should be for now.
    pub const fn is_degradation(&self) -> bool {
        !matches!(
            self,
            Self::WeightZero
                | Self::LegacyNic
                | Self::NotConnected
                | Self::VmNotRunning { .. }
                | Self::BeingRemoved
                | Self::Reconfiguring
                | Self::InProgress { .. }
                | Self::ModerationUnsupported { .. }
                | Self::PolicyBypassed { .. }
                | Self::QueuePairsReduced { .. }
        )
    }

    /// What can be done about it.
    pub const fn cure(&self) -> Cure {
        match self {
            Self::Host { reason } => match reason {
                HostReason::NoSlat | HostReason::NoPciExpressBus => Cure::OtherHardware,
                HostReason::IommuDisabledByConfig => Cure::EnableIommu,
                HostReason::NoAcsAtRootPorts => Cure::OtherSlot,
                HostReason::NoInterruptRemapping
                | HostReason::NoDmaRemapping
                | HostReason::CheckChipsetAndBios
                | HostReason::FirmwareTablesWrong
                | HostReason::NoOscControl => Cure::FirmwareSettings,
            },
            Self::Adapter { support, .. } => match support {
                SriovSupport::MissingAcs => Cure::OtherSlot,
                SriovSupport::Unknown | SriovSupport::MissingPfDriver => Cure::PfDriver,
                SriovSupport::NoIoMmuSupport => Cure::EnableIommu,
                SriovSupport::NoBusResources
                | SriovSupport::NoVfBarSpace
                | SriovSupport::NoOscSupport => Cure::FirmwareSettings,
                SriovSupport::Supported => Cure::Nothing,
            },
            Self::AdapterDisabled { .. } => Cure::EnableSriovOnNic,
            Self::AdapterNotPreferred { .. } => Cure::PreferSriov,
            Self::NumVfsZero { .. } => Cure::RaiseNumVfs,
            Self::SwitchNotExternal { .. } => Cure::UseExternalSwitch,
            Self::SwitchNotIov { .. } => Cure::RecreateSwitchWithIov,
            Self::HostTeaming { .. } => Cure::TeamInTheGuest,
            Self::SwitchNotRunning { .. } => Cure::StartSwitch,
            Self::SwitchUplinkDown { .. } => Cure::ConnectUplink,
            Self::NicSwitchMissing { .. } | Self::VfHardwareError { .. } => Cure::RestartNic,
            Self::NicRefused { .. } | Self::NotUpToDate { .. } => Cure::PfDriver,
            Self::WeightZero => Cure::SetIovWeight,
            Self::NotConnected => Cure::ConnectToIovSwitch,
            Self::LegacyNic => Cure::UseSyntheticAdapter,
            Self::VmNotRunning { kind: AdapterKind::VhostUser, .. } => Cure::DriveQemu,
            Self::VmNotRunning { .. } => Cure::StartVm,
            Self::GuestUnsupported { lacks: GuestGap::VirtioNetWithoutStandby } => Cure::Failover,
            Self::GuestUnsupported { .. } => Cure::GuestDriver,
            Self::GuestNoVfDriver { .. } => Cure::VfDriver,
            Self::OfferFailed { .. } => Cure::LookAtHostSide,
            Self::GuestVfFailed { .. }
            | Self::GuestNotResponding { .. }
            | Self::PartitionNotResponding { .. }
            | Self::GuestReturnedVf
            | Self::GuestLeftVf => Cure::LookAtGuest,
            Self::OutOfVfs { .. } | Self::OutOfVPorts { .. } | Self::OverSubscribed { .. } => {
                Cure::FreeVfs
            }
            Self::OutOfQueuePairs { .. } | Self::QueuePairsReduced { .. } => Cure::FewerQueuePairs,
            Self::OutOfMacFilters { .. } => Cure::FreeFilters,
            Self::VlanUnsupported { .. } => Cure::FewerVlans,
            Self::ModerationUnsupported { .. } => Cure::DefaultModeration,
            Self::PolicyForcesSoftware { .. } | Self::PolicyBypassed { .. } => Cure::RemovePolicy,
            Self::ExtensionRevoked => Cure::AskExtension,
            Self::PfRemoved { .. } => Cure::BringNicBack,
            Self::GuestNotReady
            | Self::Migrating { .. }
            | Self::SavedStateRestore { .. }
            | Self::PfStopping { .. }
            | Self::Reconfiguring
            | Self::BeingRemoved
            | Self::InProgress { .. } => Cure::Wait,
        }
    }
}
