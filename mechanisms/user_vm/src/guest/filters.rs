//! What the guest's kernel wants to receive, told to the VF.
//!
//! A NIC's driver is called when an interface joins a multicast group, gets a VLAN or another address. A TAP
//! device or a veth pair tells nobody, so the guest's own lists are read now and then.

use std::{collections::BTreeSet, fs};

use avf_driver::{AvfControl, DriverError, MacAddress};
use linux_network::{LinkChange, RouteSocket};

/// What a VF takes at most, so that a guest cannot fill the PF's tables.
const MOST: usize = 1024;

/// Filters of one interface, as the VF has them.
#[derive(Debug)]
pub(super) struct Filters {
    interface: String,
    index: u32,
    route: RouteSocket,
    multicast: BTreeSet<[u8; 6]>,
    vlans: BTreeSet<u16>,
    /// What the PF refused; not asked again until it changes.
    refused: Option<(BTreeSet<[u8; 6]>, BTreeSet<u16>)>,
}

impl Filters {
    pub(super) fn new(interface: &str, index: u32, route: RouteSocket) -> Self {
        Self {
            interface: interface.to_owned(),
            index,
            route,
            multicast: BTreeSet::new(),
            vlans: BTreeSet::new(),
            refused: None,
        }
    }

    /// Starts over, for a VF that has no filters yet.
    pub(super) fn forget(&mut self) {
        self.multicast.clear();
        self.vlans.clear();
        self.refused = None;
    }

    /// Gives `eth0` the address of the VF.
    pub(super) fn adopt_address(
        &mut self,
        mac: [u8; 6],
    ) -> Result<(), linux_network::NetworkError> {
        let change = LinkChange { mac: Some(linux_network::MacAddress(mac)), ..Default::default() };
        self.route.change_link(self.index, &change)
    }

    /// Tells the VF what has changed since the last call.
    pub(super) fn update(&mut self, control: &mut AvfControl) {
        self.update_address(control);
        let groups =
            read("/proc/thread-self/net/dev_mcast", |line| multicast_group(line, &self.interface));
        let vlans = if control.capabilities().vlan_filtering {
            // Absent where the guest's kernel knows no VLANs.
            read("/proc/thread-self/net/vlan/config", |line| vlan(line, &self.interface))
        } else {
            BTreeSet::new()
        };
        if (&groups, &vlans) == (&self.multicast, &self.vlans)
            || self.refused.as_ref().is_some_and(|(g, v)| (g, v) == (&groups, &vlans))
        {
            return;
        }
        if let Err(error) = self.set(control, &groups, &vlans) {
            tracing::warn!(%error, "the VF refuses filters that {} asks for", self.interface);
            self.refused = Some((groups, vlans));
        }
    }

    fn set(
        &mut self,
        control: &mut AvfControl,
        groups: &BTreeSet<[u8; 6]>,
        vlans: &BTreeSet<u16>,
    ) -> Result<(), DriverError> {
        let list =
            |set: Vec<&[u8; 6]>| set.into_iter().map(|mac| MacAddress(*mac)).collect::<Vec<_>>();
        let difference = |from: &BTreeSet<u16>, to: &BTreeSet<u16>| {
            from.difference(to).copied().collect::<Vec<_>>()
        };
        control.add_multicast(&list(groups.difference(&self.multicast).collect()))?;
        control.remove_multicast(&list(self.multicast.difference(groups).collect()))?;
        self.multicast.clone_from(groups);
        control.add_vlans(&difference(vlans, &self.vlans))?;
        control.remove_vlans(&difference(&self.vlans, vlans))?;
        self.vlans.clone_from(vlans);
        Ok(())
    }

    /// An address that the guest gave its interface becomes the VF's, or is taken back.
    fn update_address(&mut self, control: &mut AvfControl) {
        let Ok(Some(link)) = self.route.link_at(self.index) else {
            return;
        };
        let own = control.mac();
        if link.mac.0 == own.0 {
            return;
        }
        if let Err(error) = control.set_mac(MacAddress(link.mac.0)) {
            tracing::warn!(%error, "the VF refuses the address {} of {}", link.mac, self.interface);
            if let Err(error) = self.adopt_address(own.0) {
                tracing::warn!(%error, "{} keeps an address that is not its VF's", self.interface);
            }
        }
    }
}

/// What `parse` finds in the lines of a file; nothing if there is no such file.
fn read<T: Ord>(path: &str, parse: impl Fn(&str) -> Option<T>) -> BTreeSet<T> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(parse).take(MOST).collect()
}

/// A line of `/proc/net/dev_mcast`: index, name, two counts, and the address in hexadecimal digits.
fn multicast_group(line: &str, interface: &str) -> Option<[u8; 6]> {
    let mut fields = line.split_ascii_whitespace();
    if fields.nth(1)? != interface {
        return None;
    }
    let digits = fields.nth(2).filter(|digits| digits.len() == 12)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    let [_, _, group @ ..] = number.to_be_bytes();
    (group[0] & 1 == 1).then_some(group)
}

/// A line of `/proc/net/vlan/config`: name, VLAN id, and the interface below, between bars.
fn vlan(line: &str, interface: &str) -> Option<u16> {
    let mut fields = line.split('|').map(str::trim);
    let id = fields.nth(1)?.parse().ok()?;
    (fields.next()? == interface && (1..=4094).contains(&id)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_the_interface_are_read() {
        let line = "2    eth0            1     0     333300000001";
        assert_eq!(multicast_group(line, "eth0"), Some([0x33, 0x33, 0, 0, 0, 1]));
        assert_eq!(multicast_group(line, "eth1"), None);
        for line in
            ["", "2 eth0", "2 eth0 1 0 3333", "2 eth0 1 0 020000000001", "2 eth0 1 0 zz3300000001"]
        {
            assert_eq!(multicast_group(line, "eth0"), None, "{line}");
        }
    }

    #[test]
    fn vlans_of_the_interface_are_read() {
        assert_eq!(vlan("eth0.5         | 5  | eth0", "eth0"), Some(5));
        for line in [
            "VLAN Dev name    | VLAN ID",
            "Name-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD",
            "eth1.5 | 5 | eth1",
            "eth0.0 | 0 | eth0",
            "eth0.x | x | eth0",
        ] {
            assert_eq!(vlan(line, "eth0"), None, "{line}");
        }
    }
}
