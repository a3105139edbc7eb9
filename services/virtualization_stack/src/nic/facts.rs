//! What is known of a NIC, and which reasons against VFs follow from it.

use ndis_protocol::{
    NicSwitchCapabilities, NicSwitchCapabilityFlags, NicSwitchInfo, ReceiveFilterCapabilities,
};

use crate::{NicId, NicSurvey, Reason, SriovSupport};

/// What a NIC says of itself (SPEC-NDIS-SRIOV §2, §5.6).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct NicFacts {
    /// Whether it reports SR-IOV as a hardware capability.
    pub(crate) hardware: bool,
    /// Whether it reports SR-IOV as a current capability.
    pub(crate) current: bool,
    /// Current capabilities of its NIC switch.
    pub(crate) nic_switch: Option<NicSwitchCapabilities>,
    /// Current capabilities of its receive filters.
    pub(crate) receive_filter: Option<ReceiveFilterCapabilities>,
    /// Its NIC switch.
    pub(crate) switch: Option<NicSwitchInfo>,
}

impl NicFacts {
    /// Whether filters and VFs can be had at all.
    pub(crate) fn sriov_active(&self) -> bool {
        self.hardware && self.current && self.nic_switch.is_some() && self.switch.is_some()
    }

    pub(crate) fn can(&self, flag: NicSwitchCapabilityFlags) -> bool {
        self.nic_switch.is_some_and(|nic_switch| nic_switch.flags.contains(flag))
    }

    /// VFs.
    pub(crate) fn vfs(&self) -> u32 {
        let enabled = self.switch.as_ref().map_or(0, |switch| switch.num_vfs);
        self.nic_switch.map_or(0, |nic_switch| nic_switch.max_num_vfs.min(enabled))
    }

    /// VPorts, the default one included.
    pub(crate) fn vports(&self) -> u32 {
        self.nic_switch.map_or(0, |nic_switch| nic_switch.max_num_vports)
    }

    /// Queue pairs that nondefault VPorts can have, all together.
    pub(crate) fn queue_pairs(&self) -> u32 {
        let default =
            self.switch.as_ref().map_or(0, |switch| switch.num_queue_pairs_for_default_vport);
        self.nic_switch
            .map_or(0, |nic_switch| nic_switch.max_num_queue_pairs.saturating_sub(default.max(1)))
    }

    /// Receive filters.
    pub(crate) fn mac_filters(&self) -> u32 {
        let nic_switch = self.nic_switch.map_or(0, |nic_switch| nic_switch.max_num_mac_addresses);
        self.receive_filter.map_or(nic_switch, |filter| filter.max_mac_header_filters)
    }

    /// What stands against VFs.
    pub(crate) fn reasons(&self, nic: NicId, survey: &NicSurvey) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if survey.support != SriovSupport::Supported {
            reasons.push(Reason::Adapter { nic, support: survey.support });
        } else if !self.hardware {
            reasons.push(Reason::Adapter { nic, support: SriovSupport::MissingPfDriver });
        }
        if !self.hardware {
            return reasons;
        }
        if !survey.sriov_preferred {
            reasons.push(Reason::AdapterNotPreferred { nic });
        } else if !self.current {
            reasons.push(Reason::AdapterDisabled { nic });
        } else if !self.sriov_active() {
            reasons.push(Reason::NicSwitchMissing { nic });
        } else if self.vfs() == 0 {
            reasons.push(Reason::NumVfsZero { nic });
        }
        reasons
    }
}
