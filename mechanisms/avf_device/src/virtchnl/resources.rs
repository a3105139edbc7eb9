//! VERSION, GET_VF_RESOURCES, REQUEST_QUEUES and GET_SUPPORTED_RXDIDS (SPEC-AVF §4.5).

use avf_protocol::{
    RSS_KEY_SIZE, RSS_LUT_SIZE,
    receive::{RXDID_FLEX_NIC, RXDID_LEGACY},
    virtchnl::{Capabilities, Reply, Status, VSI_TYPE_SRIOV, Version, VfResources},
};

use super::{After, Outcome};
use crate::{AvfDevice, VfHost};

impl AvfDevice {
    /// The PF speaks 1.1, and 1.0 to those that speak no more.
    pub(super) fn negotiate_version(&mut self, version: Version) -> Result<Reply, Status> {
        self.vf.version = if version == Version::V1_0 { Version::V1_0 } else { Version::V1_1 };
        self.vf.version_told = true;
        Ok(Reply::Version(self.vf.version))
    }

    pub(super) fn get_vf_resources(
        &mut self,
        wanted: Option<Capabilities>,
    ) -> Result<Reply, Status> {
        let wanted = match wanted {
            Some(wanted) if self.vf.version > Version::V1_0 => wanted,
            _ => Capabilities::L2 | Capabilities::VLAN,
        };
        let mut granted = wanted & self.config.capabilities;
        if granted.contains(Capabilities::VLAN_V2) {
            granted = granted.without(Capabilities::VLAN);
        }
        self.vf.granted = granted;
        if !self.vf.resources_told {
            self.vf.resources_told = true;
            // Drivers of either VLAN capability expect tags to be stripped until they say otherwise;
            // those of neither would never see them.
            let vlan = Capabilities::VLAN | Capabilities::VLAN_V2;
            self.settings.vlan_strip = granted & vlan != Capabilities::NONE;
        }
        self.settings.rss.enabled =
            granted.contains(Capabilities::RSS_PF) || self.rss_registers_hash();
        Ok(Reply::VfResources(VfResources {
            num_vsis: 1,
            queue_pairs: self.vf.queue_pairs,
            max_vectors: self.config.vectors,
            max_frame: self.config.max_frame,
            capabilities: granted,
            rss_key_size: u32::try_from(RSS_KEY_SIZE).unwrap_or(0),
            rss_lut_size: u32::try_from(RSS_LUT_SIZE).unwrap_or(0),
            vsi_id: self.config.vsi_id,
            vsi_type: VSI_TYPE_SRIOV,
            qset_handle: 0,
            default_mac: self.vf.default_mac,
        }))
    }

    /// Success is a reset with the new number, and no answer; a refusal tells what could be had.
    pub(super) fn request_queues(&mut self, pairs: u16, host: &mut dyn VfHost) -> Outcome {
        let refused = |status, available| Outcome {
            reply: Some((status, Reply::RequestQueues(available))),
            after: After::Nothing,
        };
        if pairs == 0 {
            return refused(Status::Parameter, self.vf.queue_pairs);
        }
        if pairs > self.config.max_queue_pairs {
            return refused(Status::Success, self.config.max_queue_pairs);
        }
        match host.permit_queue_count(pairs) {
            Ok(granted) => {
                self.set_queue_pairs(granted);
                Outcome { reply: None, after: After::ResetByPf }
            }
            Err(available) => refused(Status::Success, available.min(self.config.max_queue_pairs)),
        }
    }

    /// Takes effect with the reset that follows.
    pub(crate) fn set_queue_pairs(&mut self, pairs: u16) {
        self.vf.queue_pairs = pairs.clamp(1, self.config.max_queue_pairs);
    }

    pub(super) fn supported_rxdids(&self) -> Result<Reply, Status> {
        Ok(Reply::SupportedRxdids(1 << RXDID_LEGACY | 1 << RXDID_FLEX_NIC))
    }
}
