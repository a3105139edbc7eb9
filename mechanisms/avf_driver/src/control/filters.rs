//! Which frames the function receives: addresses, VLANs, promiscuity; and what the device does with
//! tags.

use avf_protocol::{
    MacAddress,
    admin_queue::MAX_MESSAGE,
    virtchnl::{
        Capabilities as Granted, EthAddr, MacFilterKind, Reply, Request, VlanFilter, VlanFilterTag,
        VlanSetting, VlanV2Capabilities, promiscuous, support,
    },
};
use zerocopy::little_endian::U16;

use super::AvfControl;
use crate::{DriverError, Result};

/// Addresses or VLANs in one message at most; well inside a mailbox buffer.
const CHUNK: usize = 100;

const _: () = assert!(12 + 8 * CHUNK < MAX_MESSAGE && 8 + 32 * CHUNK < MAX_MESSAGE);

/// Frames received beyond those addressed to the function.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub struct Promiscuity {
    /// All unicast frames.
    pub unicast: bool,
    /// All multicast frames.
    pub multicast: bool,
}

/// How VLANs are spoken of with the PF.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub(super) enum VlanMode {
    /// Not at all.
    #[default]
    None,
    /// The first version: one tag, insertion always possible.
    V1,
    /// The second, with what the PF offers.
    V2(VlanV2Capabilities),
}

/// What is to be done with one offload of the second version.
struct Toggle {
    /// The bits of the outer tag are meant, not the inner (or only) one's.
    outer: bool,
    /// The driver may turn it on and off.
    toggle: bool,
    /// 802.1Q tags, in the place where this driver handles them.
    usable: bool,
}

impl Toggle {
    fn of(outer: u32, inner: u32) -> Self {
        let bits = if outer != 0 { outer } else { inner };
        let wanted = support::ETHERTYPE_8100 | support::LOCATION_L2TAG1;
        Self {
            outer: outer != 0,
            toggle: bits & support::TOGGLE != 0,
            usable: bits & wanted == wanted,
        }
    }

    fn setting(&self, vsi_id: u16) -> VlanSetting {
        let mut setting = VlanSetting { vport_id: vsi_id.into(), ..VlanSetting::default() };
        let field = if self.outer { &mut setting.outer } else { &mut setting.inner };
        *field = support::ETHERTYPE_8100.into();
        setting
    }
}

fn addresses(list: &[MacAddress], kind: MacFilterKind) -> Vec<EthAddr> {
    list.iter().map(|address| EthAddr::new(*address, kind)).collect()
}

impl AvfControl {
    /// Receives frames to these multicast addresses too.
    ///
    /// # Errors
    /// One is no multicast address; the PF refuses (its limit is reached); the device was reset or
    /// is gone.
    pub fn add_multicast(&mut self, list: &[MacAddress]) -> Result<()> {
        self.running()?;
        if let Some(address) = list.iter().find(|address| !address.is_multicast()) {
            return Err(DriverError::Configuration(format!("{address} is no multicast address")));
        }
        let new: Vec<_> =
            list.iter().copied().filter(|address| !self.multicast.contains(address)).collect();
        self.add_addresses(&new, MacFilterKind::Extra)?;
        self.multicast.extend(new);
        Ok(())
    }

    /// Receives frames to these multicast addresses no more; unknown ones are passed over.
    ///
    /// # Errors
    /// The PF refuses; the device was reset or is gone.
    pub fn remove_multicast(&mut self, list: &[MacAddress]) -> Result<()> {
        self.running()?;
        let known: Vec<_> =
            list.iter().copied().filter(|address| self.multicast.contains(address)).collect();
        self.delete_addresses(&known, MacFilterKind::Extra)?;
        self.multicast.retain(|address| !known.contains(address));
        Ok(())
    }

    /// Changes the primary MAC address: the new one is there before the old one goes.
    ///
    /// # Errors
    /// It is no unicast address; the PF refuses (the administrator pinned another); the device was
    /// reset or is gone.
    pub fn set_mac(&mut self, address: MacAddress) -> Result<()> {
        self.running()?;
        if !address.is_unicast() {
            return Err(DriverError::Configuration(format!("{address} is no unicast address")));
        }
        if address == self.mac {
            return Ok(());
        }
        self.add_addresses(&[address], MacFilterKind::Primary)?;
        let old = std::mem::replace(&mut self.mac, address);
        if self.config.mac.is_some() {
            self.config.mac = Some(address);
        }
        self.delete_addresses(&[old], MacFilterKind::Extra)
    }

    /// Receives frames beyond those addressed to the function. A PF may accept and ignore it.
    ///
    /// # Errors
    /// The PF refuses; the device was reset or is gone.
    pub fn set_promiscuity(&mut self, promiscuity: Promiscuity) -> Result<()> {
        self.running()?;
        self.send_promiscuity(promiscuity)?;
        self.promiscuity = promiscuity;
        Ok(())
    }

    /// Receives tagged frames of these VLANs (1–4,094). Once one VLAN is added, only added ones and
    /// untagged frames pass.
    ///
    /// # Errors
    /// An id is no VLAN's; VLAN filtering was not granted; the PF refuses; the device was reset or
    /// is gone.
    pub fn add_vlans(&mut self, ids: &[u16]) -> Result<()> {
        self.running()?;
        if let Some(id) = ids.iter().find(|id| !(1..=4094).contains(*id)) {
            return Err(DriverError::Configuration(format!("{id} is no VLAN")));
        }
        let mut new = ids.to_vec();
        new.sort_unstable();
        new.dedup();
        new.retain(|id| !self.vlans.contains(id));
        self.send_vlans(&new, true)?;
        self.vlans.extend(new);
        Ok(())
    }

    /// Receives tagged frames of these VLANs no more; unknown ones are passed over.
    ///
    /// # Errors
    /// The PF refuses; the device was reset or is gone.
    pub fn remove_vlans(&mut self, ids: &[u16]) -> Result<()> {
        self.running()?;
        let known: Vec<_> = self.vlans.iter().copied().filter(|id| ids.contains(id)).collect();
        self.send_vlans(&known, false)?;
        self.vlans.retain(|id| !known.contains(id));
        Ok(())
    }

    /// Tells the PF all addresses and filters again, after a reset took them.
    pub(super) fn restore_filters(&mut self) -> Result<()> {
        let multicast = self.multicast.clone();
        self.add_addresses(&multicast, MacFilterKind::Extra)?;
        if self.capabilities.vlan_filtering {
            let vlans = self.vlans.clone();
            self.send_vlans(&vlans, true)?;
        }
        if self.promiscuity != Promiscuity::default() {
            self.send_promiscuity(self.promiscuity)?;
        }
        Ok(())
    }

    /// Tells the PF the primary address.
    pub(super) fn add_primary_address(&mut self) -> Result<()> {
        self.add_addresses(&[self.mac], MacFilterKind::Primary)
    }

    /// Gives all addresses back.
    pub(super) fn remove_addresses(&mut self) -> Result<()> {
        let multicast = self.multicast.clone();
        self.delete_addresses(&multicast, MacFilterKind::Extra)?;
        self.delete_addresses(&[self.mac], MacFilterKind::Primary)
    }

    fn add_addresses(&mut self, list: &[MacAddress], kind: MacFilterKind) -> Result<()> {
        for chunk in addresses(list, kind).chunks(CHUNK) {
            self.request(&Request::AddEthAddr { vsi_id: self.vsi_id(), list: chunk })?;
        }
        Ok(())
    }

    fn delete_addresses(&mut self, list: &[MacAddress], kind: MacFilterKind) -> Result<()> {
        for chunk in addresses(list, kind).chunks(CHUNK) {
            self.request(&Request::DelEthAddr { vsi_id: self.vsi_id(), list: chunk })?;
        }
        Ok(())
    }

    fn send_promiscuity(&mut self, promiscuity: Promiscuity) -> Result<()> {
        let flag = |on, bit| if on { bit } else { 0 };
        let flags = flag(promiscuity.unicast, promiscuous::UNICAST)
            | flag(promiscuity.multicast, promiscuous::MULTICAST);
        let vsi_id = self.vsi_id();
        self.request(&Request::ConfigPromiscuousMode { vsi_id, flags }).map(|_| ())
    }

    fn send_vlans(&mut self, ids: &[u16], add: bool) -> Result<()> {
        let vsi_id = self.vsi_id();
        for chunk in ids.chunks(CHUNK) {
            match self.vlan {
                VlanMode::None => return Err(DriverError::NotGranted("VLAN filtering")),
                VlanMode::V1 => {
                    let ids: Vec<_> = chunk.iter().map(|id| U16::new(*id)).collect();
                    let request = if add {
                        Request::AddVlan { vsi_id, ids: &ids }
                    } else {
                        Request::DelVlan { vsi_id, ids: &ids }
                    };
                    self.request(&request)?;
                }
                VlanMode::V2(offered) => {
                    let outer = offered.filtering_outer.get() != 0;
                    let filters: Vec<_> = chunk.iter().map(|id| filter(*id, outer)).collect();
                    let request = if add {
                        Request::AddVlanV2 { vport_id: vsi_id, filters: &filters }
                    } else {
                        Request::DelVlanV2 { vport_id: vsi_id, filters: &filters }
                    };
                    self.request(&request)?;
                }
            }
        }
        Ok(())
    }

    /// Learns how to speak of VLANs, from what was granted.
    pub(super) fn learn_vlan_mode(&mut self) -> Result<()> {
        let granted = self.capabilities.granted;
        self.vlan = if granted.contains(Granted::VLAN_V2) {
            match self.request(&Request::GetOffloadVlanV2Caps)? {
                Reply::VlanV2Capabilities(offered) => VlanMode::V2(offered),
                _ => VlanMode::None,
            }
        } else if granted.contains(Granted::VLAN) {
            VlanMode::V1
        } else {
            VlanMode::None
        };
        Ok(())
    }

    /// Turns stripping and insertion on or off as configured (SPEC-AVF §4.9).
    pub(super) fn set_vlan_offloads(&mut self) -> Result<()> {
        let wanted = self.config.vlan;
        match self.vlan {
            VlanMode::None => {}
            VlanMode::V1 => {
                self.request(if wanted.strip {
                    &Request::EnableVlanStripping
                } else {
                    &Request::DisableVlanStripping
                })?;
                self.capabilities.vlan_stripping = wanted.strip;
                self.capabilities.vlan_insertion = true;
                self.capabilities.vlan_filtering = true;
            }
            VlanMode::V2(offered) => {
                let vsi_id = self.vsi_id();
                let from_start =
                    offered.offload_ethertype_init.get() & support::ETHERTYPE_8100 != 0;
                let strip = Toggle::of(offered.strip_outer.get(), offered.strip_inner.get());
                let on = wanted.strip && strip.usable;
                if strip.toggle {
                    let setting = strip.setting(vsi_id);
                    self.request(&if on {
                        Request::EnableVlanStrippingV2(setting)
                    } else {
                        Request::DisableVlanStrippingV2(setting)
                    })?;
                }
                self.capabilities.vlan_stripping =
                    if strip.toggle { on } else { strip.usable && from_start };
                let insert = Toggle::of(offered.insert_outer.get(), offered.insert_inner.get());
                let on = wanted.insert && insert.usable;
                if insert.toggle {
                    let setting = insert.setting(vsi_id);
                    self.request(&if on {
                        Request::EnableVlanInsertionV2(setting)
                    } else {
                        Request::DisableVlanInsertionV2(setting)
                    })?;
                }
                self.capabilities.vlan_insertion =
                    if insert.toggle { on } else { insert.usable && from_start };
                let filtering = offered.filtering_outer.get() | offered.filtering_inner.get();
                self.capabilities.vlan_filtering = filtering & support::ETHERTYPE_8100 != 0;
            }
        }
        Ok(())
    }
}

fn filter(id: u16, outer: bool) -> VlanFilter {
    if !outer {
        return VlanFilter::inner(id);
    }
    let outer = VlanFilterTag { tci: id.into(), tpid: 0x8100.into(), ..VlanFilterTag::default() };
    VlanFilter { outer, ..VlanFilter::default() }
}
