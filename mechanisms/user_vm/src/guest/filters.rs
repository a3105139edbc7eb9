//! What the guest's kernel wants to receive, told to the VF and to the synthetic adapter.
//!
//! A NIC's driver is called when an interface joins a multicast group, gets a VLAN or another address. A TAP
//! device or a veth pair tells nobody, so the guest's own lists are read now and then.

use std::{collections::BTreeSet, fs, io};

use avf_driver::{AvfControl, DriverError, MacAddress, Promiscuity};
use linux_network::{LinkChange, NetworkError, RouteSocket};
use netvsp_protocol::oid::PacketFilter;

/// What a VF takes at most, so that a guest cannot fill the PF's tables.
const MOST: usize = 1024;

/// What an interface wants to receive, beside broadcasts.
#[derive(Clone, Eq, PartialEq, Default, Debug)]
pub(crate) struct Wanted {
    mac: Option<[u8; 6]>,
    multicast: BTreeSet<[u8; 6]>,
    vlans: BTreeSet<u16>,
    promiscuous: bool,
    all_multicast: bool,
}

impl Wanted {
    /// The same as a synthetic adapter is told, as Linux does it: groups are not told apart.
    pub(super) fn packet_filter(&self) -> PacketFilter {
        if self.promiscuous {
            return PacketFilter::PROMISCUOUS;
        }
        let mut filter = PacketFilter::DIRECTED | PacketFilter::BROADCAST;
        if self.all_multicast || !self.multicast.is_empty() {
            filter |= PacketFilter::ALL_MULTICAST;
        }
        filter
    }

    /// The address that the guest gave its interface.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }
}

/// An interface's own lists.
#[derive(Debug)]
pub(super) struct KernelFilters {
    interface: String,
    index: u32,
    route: RouteSocket,
    /// What was read last, for when it cannot be read, as without a free descriptor.
    last: Wanted,
}

impl KernelFilters {
    pub(super) fn new(interface: &str, index: u32, route: RouteSocket) -> Self {
        Self { interface: interface.to_owned(), index, route, last: Wanted::default() }
    }

    /// What the interface wants now.
    pub(super) fn read(&mut self) -> Wanted {
        let link = self.route.link_at(self.index).ok().flatten();
        let groups = |line: &str| multicast_group(line, &self.interface);
        let multicast = read("/proc/thread-self/net/dev_mcast", groups);
        // Absent where the guest's kernel knows no VLANs.
        let vlans = read("/proc/thread-self/net/vlan/config", |line| vlan(line, &self.interface));
        let last = std::mem::take(&mut self.last);
        self.last = Wanted {
            mac: link.as_ref().map_or(last.mac, |link| Some(link.mac.0)),
            multicast: multicast.unwrap_or(last.multicast),
            vlans: vlans.unwrap_or(last.vlans),
            promiscuous: link.as_ref().map_or(last.promiscuous, |link| link.promiscuous),
            all_multicast: link.as_ref().map_or(last.all_multicast, |link| link.all_multicast),
        };
        self.last.clone()
    }

    /// Gives the interface an address.
    pub(super) fn set_address(&mut self, mac: [u8; 6]) -> Result<(), NetworkError> {
        let change = LinkChange { mac: Some(linux_network::MacAddress(mac)), ..Default::default() };
        self.route.change_link(self.index, &change)
    }

    /// Makes the interface's MTU no more than `most`; true if it was.
    pub(super) fn limit_mtu(&mut self, most: u32) -> Result<bool, NetworkError> {
        match self.route.link_at(self.index)? {
            Some(link) if link.mtu > most => {
                let change = LinkChange { mtu: Some(most), ..Default::default() };
                self.route.change_link(self.index, &change).map(|()| true)
            }
            _ => Ok(false),
        }
    }
}

/// Filters of one interface, as a VF has them.
#[derive(Default, Debug)]
pub(super) struct VfFilters {
    multicast: BTreeSet<[u8; 6]>,
    vlans: BTreeSet<u16>,
    promiscuity: Promiscuity,
    /// What the PF refused; not asked again until it changes.
    refused: Option<Wanted>,
}

impl VfFilters {
    /// Tells the VF what has changed since the last call. Its address is not among that.
    pub(super) fn update(&mut self, control: &mut AvfControl, wanted: &Wanted) {
        let vlans = if control.capabilities().vlan_filtering {
            wanted.vlans.clone()
        } else {
            BTreeSet::new()
        };
        let wanted = Wanted { mac: None, vlans, ..wanted.clone() };
        if self.refused.as_ref() == Some(&wanted) {
            return;
        }
        self.refused = None;
        if let Err(error) = self.set(control, &wanted) {
            tracing::warn!(%error, "the VF refuses filters that the guest asks for");
            self.refused = Some(wanted);
        }
    }

    fn set(&mut self, control: &mut AvfControl, wanted: &Wanted) -> Result<(), DriverError> {
        let list =
            |set: Vec<&[u8; 6]>| set.into_iter().map(|mac| MacAddress(*mac)).collect::<Vec<_>>();
        let difference = |from: &BTreeSet<u16>, to: &BTreeSet<u16>| {
            from.difference(to).copied().collect::<Vec<_>>()
        };
        if wanted.multicast != self.multicast {
            control.add_multicast(&list(wanted.multicast.difference(&self.multicast).collect()))?;
            control
                .remove_multicast(&list(self.multicast.difference(&wanted.multicast).collect()))?;
            self.multicast.clone_from(&wanted.multicast);
        }
        if wanted.vlans != self.vlans {
            control.add_vlans(&difference(&wanted.vlans, &self.vlans))?;
            control.remove_vlans(&difference(&self.vlans, &wanted.vlans))?;
            self.vlans.clone_from(&wanted.vlans);
        }
        let promiscuity = Promiscuity {
            unicast: wanted.promiscuous,
            multicast: wanted.promiscuous || wanted.all_multicast,
        };
        if promiscuity != self.promiscuity {
            control.set_promiscuity(promiscuity)?;
            self.promiscuity = promiscuity;
        }
        Ok(())
    }
}

/// What `parse` finds in the lines of a file; nothing if there is no such file. `None` if it cannot be read now.
fn read<T: Ord>(path: &str, parse: impl Fn(&str) -> Option<T>) -> Option<BTreeSet<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(_) => return None,
    };
    Some(text.lines().filter_map(parse).take(MOST).collect())
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
    fn a_list_that_cannot_be_read_is_no_empty_list() {
        let number = |line: &str| line.parse::<u8>().ok();
        assert_eq!(read("/proc/self/no such list", number), Some(BTreeSet::new()));
        // A folder opens, and cannot be read.
        assert_eq!(read("/proc/self", number), None);
    }

    #[test]
    fn a_synthetic_adapter_is_told_what_linux_would_tell_it() {
        let mut wanted = Wanted::default();
        let least = PacketFilter::DIRECTED | PacketFilter::BROADCAST;
        assert_eq!(wanted.packet_filter(), least);
        wanted.multicast.insert([1, 0, 0x5E, 0, 0, 1]);
        assert_eq!(wanted.packet_filter(), least | PacketFilter::ALL_MULTICAST);
        wanted.promiscuous = true;
        assert_eq!(wanted.packet_filter(), PacketFilter::PROMISCUOUS);
    }

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
