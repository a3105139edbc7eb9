//! VLAN filters, stripping and insertion, versions 1 and 2 (SPEC-AVF §4.8, §4.9).

use avf_protocol::virtchnl::{Reply, Status, VlanFilter, VlanSetting, VlanV2Capabilities, support};
use zerocopy::little_endian::U16;

use super::DONE;
use crate::AvfDevice;

/// VLAN ids are 12 bits, and the last is reserved on the wire but a valid filter.
const MAX_VLAN: u16 = 4095;
const ETHERTYPE: u16 = 0x8100;

impl AvfDevice {
    pub(super) fn add_vlans(&mut self, vsi_id: u16, ids: &[U16]) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        self.add_vlan_ids(ids.iter().map(|id| Ok(id.get())))
    }

    pub(super) fn remove_vlans(&mut self, vsi_id: u16, ids: &[U16]) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        self.remove_vlan_ids(ids.iter().map(|id| Ok(id.get())))
    }

    pub(super) fn add_vlan_filters(
        &mut self,
        vport_id: u16,
        filters: &[VlanFilter],
    ) -> Result<Reply, Status> {
        self.check_vsi(vport_id)?;
        self.add_vlan_ids(filters.iter().map(single_vlan))
    }

    pub(super) fn remove_vlan_filters(
        &mut self,
        vport_id: u16,
        filters: &[VlanFilter],
    ) -> Result<Reply, Status> {
        self.check_vsi(vport_id)?;
        self.remove_vlan_ids(filters.iter().map(single_vlan))
    }

    /// All or none. VLAN 0 is priority-tagged traffic, which always passes.
    fn add_vlan_ids(
        &mut self,
        ids: impl Iterator<Item = Result<u16, Status>>,
    ) -> Result<Reply, Status> {
        let mut vlans = self.settings.vlans.clone();
        for id in ids {
            let id = id?;
            if id > MAX_VLAN {
                return Err(Status::Parameter);
            }
            if id != 0 && !vlans.contains(&id) {
                if vlans.len() >= usize::from(self.config.vlan_filters) {
                    return Err(Status::Parameter);
                }
                vlans.push(id);
            }
        }
        self.set_vlans(vlans);
        DONE
    }

    /// Removing what is not there succeeds.
    fn remove_vlan_ids(
        &mut self,
        ids: impl Iterator<Item = Result<u16, Status>>,
    ) -> Result<Reply, Status> {
        let mut vlans = self.settings.vlans.clone();
        for id in ids {
            let id = id?;
            vlans.retain(|other| *other != id);
        }
        self.set_vlans(vlans);
        DONE
    }

    /// The first VLAN id turns filtering on, removing the last turns it off.
    fn set_vlans(&mut self, vlans: Vec<u16>) {
        self.settings.vlan_filtering = !vlans.is_empty();
        self.settings.vlans = vlans;
    }

    pub(super) fn set_vlan_stripping(&mut self, on: bool) -> Result<Reply, Status> {
        self.settings.vlan_strip = on;
        DONE
    }

    pub(super) fn vlan_v2_capabilities(&self) -> Result<Reply, Status> {
        Ok(Reply::VlanV2Capabilities(VlanV2Capabilities::single_vlan(self.config.vlan_filters)))
    }

    pub(super) fn toggle_vlan_stripping(
        &mut self,
        setting: &VlanSetting,
        on: bool,
    ) -> Result<Reply, Status> {
        if self.check_setting(setting)? {
            self.settings.vlan_strip = on;
        }
        DONE
    }

    pub(super) fn toggle_vlan_insertion(
        &mut self,
        setting: &VlanSetting,
        on: bool,
    ) -> Result<Reply, Status> {
        if self.check_setting(setting)? {
            self.settings.vlan_insert = on;
        }
        DONE
    }

    /// Whether a setting changes anything: V sends ones that name no ethertype, which must succeed.
    fn check_setting(&self, setting: &VlanSetting) -> Result<bool, Status> {
        self.check_vsi(setting.vport_id.get())?;
        let (outer, inner) = (setting.outer.get(), setting.inner.get());
        if outer != 0 || inner & !support::ETHERTYPE_8100 != 0 {
            return Err(Status::Parameter);
        }
        Ok(inner != 0)
    }
}

/// The VLAN id of a filter with the one tag that was advertised: inner, 0x8100, no mask.
fn single_vlan(filter: &VlanFilter) -> Result<u16, Status> {
    let outer = filter.outer;
    let one_tag = outer.tci.get() == 0 && outer.tpid.get() == 0 && outer.tci_mask.get() == 0;
    if !one_tag || filter.inner.tpid.get() != ETHERTYPE || filter.inner.tci_mask.get() != 0 {
        return Err(Status::Parameter);
    }
    Ok(filter.inner.tci.get())
}
