//! ADD_ETH_ADDR and DEL_ETH_ADDR (SPEC-AVF §4.8).

use avf_protocol::{
    MacAddress,
    virtchnl::{EthAddr, MacFilterKind, Reply, Status},
};

use super::DONE;
use crate::{AvfDevice, VfHost, VfSettings};

/// How long an address added by a driver without address kinds may take over from the primary one that it
/// removes (3 s).
const LEGACY_CHANGE_NS: u64 = 3_000_000_000;

impl AvfDevice {
    /// All or none: a refusal has no effect.
    pub(super) fn add_addresses(
        &mut self,
        vsi_id: u16,
        list: &[EthAddr],
        now_ns: u64,
        host: &dyn VfHost,
    ) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        let mut settings = self.settings.clone();
        let (mut default_mac, mut legacy_mac) = (self.vf.default_mac, self.vf.legacy_mac);
        for entry in list {
            let address = entry.address;
            if address.is_zero() || address.is_broadcast() {
                continue;
            }
            if address.is_multicast() {
                insert(&mut settings.multicast, address);
            } else {
                self.permit(address, host)?;
                let primary = match entry.kind() {
                    MacFilterKind::Primary => true,
                    MacFilterKind::Extra => false,
                    MacFilterKind::Legacy => settings.primary_mac.is_none(),
                };
                if primary {
                    set_primary(&mut settings, address);
                    default_mac = address;
                } else if settings.primary_mac != Some(address) {
                    insert(&mut settings.unicast, address);
                    if entry.kind() == MacFilterKind::Legacy {
                        legacy_mac = Some((address, now_ns));
                    }
                }
            }
            // Checked as the lists grow, so that they never grow beyond it.
            let filters = settings.unicast.len() + settings.multicast.len();
            if filters > usize::from(self.config.mac_filters) {
                return Err(Status::Parameter);
            }
        }
        self.settings = settings;
        self.vf.default_mac = default_mac;
        self.vf.legacy_mac = legacy_mac;
        DONE
    }

    /// Removing what is not there succeeds. The primary address remains the one that the VF is told after
    /// its next reset.
    pub(super) fn remove_addresses(
        &mut self,
        vsi_id: u16,
        list: &[EthAddr],
        now_ns: u64,
    ) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        for entry in list {
            let address = entry.address;
            let settings = &mut self.settings;
            if settings.primary_mac == Some(address) {
                if self.admin.pinned_mac == Some(address) && !self.admin.trusted {
                    continue;
                }
                settings.primary_mac = None;
                if let Some((next, added_ns)) = self.vf.legacy_mac.take()
                    && now_ns.saturating_sub(added_ns) <= LEGACY_CHANGE_NS
                    && settings.unicast.contains(&next)
                {
                    set_primary(settings, next);
                    self.vf.default_mac = next;
                }
            } else {
                settings.unicast.retain(|other| *other != address);
                settings.multicast.retain(|other| *other != address);
            }
        }
        DONE
    }

    /// Removes the additional unicast addresses that the VF may not use any more.
    pub(crate) fn drop_forbidden_addresses(&mut self, host: &dyn VfHost) {
        let mut unicast = std::mem::take(&mut self.settings.unicast);
        unicast.retain(|address| self.permit(*address, host).is_ok());
        self.settings.unicast = unicast;
    }

    /// Whether the VF may use a unicast address.
    fn permit(&self, address: MacAddress, host: &dyn VfHost) -> Result<(), Status> {
        let permitted = match self.admin.pinned_mac {
            _ if self.admin.trusted => true,
            Some(pinned) => address == pinned,
            None => host.permit_mac(address),
        };
        if permitted { Ok(()) } else { Err(Status::AdminQueue) }
    }
}

fn insert(list: &mut Vec<MacAddress>, address: MacAddress) {
    if !list.contains(&address) {
        list.push(address);
    }
}

/// Makes an address the primary one. The one before stays as one more address until it is removed.
fn set_primary(settings: &mut VfSettings, address: MacAddress) {
    settings.unicast.retain(|other| *other != address);
    if let Some(before) = settings.primary_mac.replace(address)
        && before != address
    {
        insert(&mut settings.unicast, before);
    }
}
