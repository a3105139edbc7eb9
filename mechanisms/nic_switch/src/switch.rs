//! The switch: VPorts, receive filters and the forwarding decision.

use std::collections::{BTreeMap, btree_map::Entry};

use ndis_protocol::{FilterId, MacAddress, VPortId};

use crate::{
    FrameKey, MacKey, VPortPolicy, VlanSet,
    filter_table::{FilterTable, Key},
};

/// The VLAN half of a receive filter (SPEC-NDIS-SRIOV §6.1).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum VlanMatch {
    /// Frames without a tag, or with VLAN id 0.
    UntaggedOrZero,
    /// Frames with this VLAN id, 1–4095.
    Id(u16),
    /// Any frame: the filter tests the MAC address alone.
    Any,
}

impl VlanMatch {
    const ANY_BITS: u64 = 0xFFFF;

    const fn bits(self) -> u64 {
        match self {
            Self::UntaggedOrZero => 0,
            Self::Id(id) => (id & 0xFFF) as u64,
            Self::Any => Self::ANY_BITS,
        }
    }
}

/// A receive filter: frames for `mac` in the VLANs of `vlan` go to `vport`.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ReceiveFilter {
    /// Destination address, unicast.
    pub mac: MacAddress,
    /// VLAN condition.
    pub vlan: VlanMatch,
    /// The VPort that takes matching frames.
    pub vport: VPortId,
}

impl ReceiveFilter {
    fn key(&self) -> Key {
        key(self.mac.into(), self.vlan.bits())
    }
}

#[inline(always)]
const fn key(mac: MacKey, vlan: u64) -> Key {
    Key(mac.bits() << 16 | vlan)
}

/// Why the switch refuses a change. Nothing has changed then.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum SwitchError {
    /// There is no such VPort.
    #[error("the NIC switch has no VPort {0:?}")]
    NoSuchVPort(VPortId),
    /// The VPort exists already.
    #[error("VPort {0:?} exists already")]
    VPortExists(VPortId),
    /// The default VPort lives as long as the switch, and is where the uplink's frames go.
    #[error("the default VPort can be neither deleted nor away")]
    DefaultVPort,
    /// The VPort still has receive filters.
    #[error("VPort {0:?} still has receive filters: clear or move them first")]
    FiltersLeft(VPortId),
    /// There is no such filter, or it is not on the VPort named.
    #[error("there is no receive filter {0:?} on that VPort")]
    NoSuchFilter(FilterId),
    /// The filter id is in use.
    #[error("receive filter {0:?} exists already")]
    FilterExists(FilterId),
    /// Another filter has the same tests.
    #[error("receive filter {0:?} has the same MAC and VLAN tests already")]
    SameTests(FilterId),
    /// A filter tests a unicast address.
    #[error("{0} is a group address; receive filters take unicast addresses")]
    GroupAddress(MacAddress),
    /// The VPort id is beyond the switch's pool.
    #[error("VPort {0:?} is outside the switch's pool")]
    OutsidePool(VPortId),
}

/// Where a frame comes from.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Ingress {
    /// The physical port.
    Uplink,
    /// A VPort.
    VPort(VPortId),
}

/// One place where a frame goes, and the VLAN tag with which it arrives there.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Egress {
    /// The VPort, or `None` for the uplink.
    pub vport: Option<VPortId>,
    /// Tag control information, if the frame is tagged there.
    pub tci: Option<u16>,
}

/// Places where one frame goes; kept by the caller and reused, so that it allocates once.
#[derive(Clone, Default, Debug)]
pub struct EgressList(Vec<Egress>);

impl EgressList {
    /// An empty list that holds `vports` VPorts and the uplink without growing.
    pub fn with_capacity(vports: usize) -> Self {
        Self(Vec::with_capacity(vports + 1))
    }

    /// The places, in VPort order, the uplink last.
    pub fn as_slice(&self) -> &[Egress] {
        &self.0
    }
}

/// Why a frame goes nowhere.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum DropReason {
    /// Its source address is not the sender's own.
    SpoofedSource,
    /// Its VLAN may not pass at its ingress or at its only egress.
    VlanNotAllowed,
    /// The only VPort it is for is the one it came from.
    ToItself,
    /// No VPort that could take it has a driver receiving, or the ingress VPort does not exist.
    NoReceiver,
}

/// What happens to one frame.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Verdict {
    /// It goes to one place.
    Unicast(Egress),
    /// It goes to every place in the caller's [`EgressList`], which is not empty.
    Flood,
    /// It goes nowhere.
    Drop(DropReason),
}

/// One VPort as the frame path sees it.
#[derive(Clone, Debug, Default)]
struct VPort {
    policy: VPortPolicy,
    /// Its driver has enabled a receive queue.
    receiving: bool,
    /// Whoever is behind it takes its frames by way of the uplink.
    away: bool,
    /// The default VPort: takes what no filter matches, and every group address.
    is_default: bool,
    /// Own addresses, sorted, each with the number of filters that name it.
    addresses: Vec<(MacKey, u32)>,
    /// The address that is its function's wherever the filter for it may be.
    assigned: Option<MacKey>,
    /// Number of filters with each VLAN condition, sorted by condition.
    vlan_filters: Vec<(VlanMatch, u32)>,
    /// What the guest asked for.
    guest: GuestFilters,
    /// Addresses that the guest uses beyond the receive filters.
    guest_addresses: Vec<MacKey>,
}

/// What a VPort's driver asked for, beyond the receive filters that the virtualization stack set.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
struct GuestFilters {
    multicast: Vec<MacKey>,
    all_multicast: bool,
    promiscuous: bool,
    vlans: Option<VlanSet>,
}

impl VPort {
    #[inline]
    fn owns(&self, mac: MacKey) -> bool {
        let by_filter = match self.addresses.as_slice() {
            [(only, _)] => *only == mac,
            several => several.binary_search_by_key(&mac, |(address, _)| *address).is_ok(),
        };
        by_filter || self.assigned == Some(mac)
    }

    /// Whether the VPort is in a VLAN at all, as its receive filters say.
    fn filters_admit(&self, vlan: u16) -> bool {
        self.is_default
            || self.vlan_filters.iter().any(|(condition, _)| match condition {
                VlanMatch::Any => true,
                VlanMatch::UntaggedOrZero => vlan == 0,
                VlanMatch::Id(id) => *id == vlan,
            })
    }

    fn accepts_group(&self, mac: MacKey, vlan: u16) -> bool {
        self.receiving
            && !self.away
            && self.filters_admit(vlan)
            && (mac.is_broadcast()
                || self.is_default
                || self.guest.all_multicast
                || self.guest.promiscuous
                || self.guest.multicast.binary_search(&mac).is_ok())
    }

    /// The tag at this egress; `None` if the frame may not leave here.
    #[inline]
    fn egress(&self, tci: Option<u16>) -> Option<Option<u16>> {
        let tci = self.policy.vlan.egress(tci).ok()?;
        match (&self.guest.vlans, tci) {
            (Some(vlans), Some(tag)) if tag & 0xFFF != 0 && !vlans.contains(tag) => None,
            _ => Some(tci),
        }
    }
}

/// A NIC switch. VPort ids are indices below the pool size; the default VPort always exists.
#[derive(Clone, Debug)]
pub struct NicSwitch {
    vports: Vec<Option<VPort>>,
    filters: BTreeMap<FilterId, ReceiveFilter>,
    table: FilterTable,
    /// Filter ids by their tests, to refuse duplicates.
    tests: BTreeMap<u64, FilterId>,
    /// Filters that test the MAC alone; while there are none, a lookup is one probe.
    any_vlan_filters: usize,
    /// VPorts that want every frame.
    promiscuous: Vec<VPortId>,
    /// Addresses that guests use beyond the receive filters; empty unless the administrator allows it.
    guest_addresses: BTreeMap<MacKey, VPortId>,
}

impl NicSwitch {
    /// A switch with a pool of `vports` VPorts, of which the default one (0) exists.
    pub fn new(vports: usize) -> Self {
        let mut pool = vec![None; vports.max(1)];
        if let Some(default) = pool.first_mut() {
            *default = Some(VPort {
                is_default: true,
                policy: VPortPolicy {
                    allow_spoofing: true,
                    allow_promiscuous: true,
                    ..VPortPolicy::default()
                },
                ..VPort::default()
            });
        }
        Self {
            vports: pool,
            filters: BTreeMap::new(),
            table: FilterTable::new(),
            tests: BTreeMap::new(),
            any_vlan_filters: 0,
            promiscuous: Vec::new(),
            guest_addresses: BTreeMap::new(),
        }
    }

    #[inline(always)]
    fn vport(&self, id: VPortId) -> Option<&VPort> {
        self.vports.get(id.index())?.as_ref()
    }

    fn vport_mut(&mut self, id: VPortId) -> Result<&mut VPort, SwitchError> {
        self.vports.get_mut(id.index()).and_then(Option::as_mut).ok_or(SwitchError::NoSuchVPort(id))
    }

    /// Creates a nondefault VPort. It receives nothing before [`set_receiving`](Self::set_receiving).
    pub fn create_vport(&mut self, id: VPortId) -> Result<(), SwitchError> {
        match self.vports.get_mut(id.index()) {
            None => Err(SwitchError::OutsidePool(id)),
            Some(Some(_)) => Err(SwitchError::VPortExists(id)),
            Some(free) => {
                *free = Some(VPort::default());
                Ok(())
            }
        }
    }

    /// Deletes a nondefault VPort that has no filters left.
    pub fn delete_vport(&mut self, id: VPortId) -> Result<(), SwitchError> {
        if id == VPortId::DEFAULT {
            return Err(SwitchError::DefaultVPort);
        }
        if !self.vport_mut(id)?.vlan_filters.is_empty() {
            return Err(SwitchError::FiltersLeft(id));
        }
        self.set_guest_addresses(id, &[])?;
        if let Some(slot) = self.vports.get_mut(id.index()) {
            *slot = None;
        }
        self.update_promiscuous();
        Ok(())
    }

    /// Says whether the VPort's driver has a receive queue enabled.
    pub fn set_receiving(&mut self, id: VPortId, receiving: bool) -> Result<(), SwitchError> {
        self.vport_mut(id)?.receiving = receiving;
        Ok(())
    }

    /// Says whether whoever is behind a nondefault VPort takes its frames by way of the uplink: then frames of other
    /// VPorts for its filters go there, and it takes no group addresses. What comes from the uplink all the same is its
    /// own.
    pub fn set_away(&mut self, id: VPortId, away: bool) -> Result<(), SwitchError> {
        if id == VPortId::DEFAULT {
            return Err(SwitchError::DefaultVPort);
        }
        self.vport_mut(id)?.away = away;
        Ok(())
    }

    /// Says which address is assigned to the function behind a VPort: it may send from it also while the receive filter
    /// for it is on another VPort. So what a VF was given to send before its filter was moved away is not lost.
    pub fn set_assigned_address(
        &mut self,
        id: VPortId,
        mac: Option<MacAddress>,
    ) -> Result<(), SwitchError> {
        self.vport_mut(id)?.assigned = mac.map(MacKey::from);
        Ok(())
    }

    /// Sets what the administrator allows the VPort.
    pub fn set_policy(&mut self, id: VPortId, policy: VPortPolicy) -> Result<(), SwitchError> {
        self.vport_mut(id)?.policy = policy;
        self.update_promiscuous();
        Ok(())
    }

    /// Sets what the VPort's driver asked for: the multicast addresses it wants, all of them, every frame
    /// (granted if the policy allows it), and the VLANs it limits itself to.
    pub fn set_guest_filters(
        &mut self,
        id: VPortId,
        multicast: impl IntoIterator<Item = MacAddress>,
        all_multicast: bool,
        promiscuous: bool,
        vlans: Option<VlanSet>,
    ) -> Result<(), SwitchError> {
        let mut multicast: Vec<MacKey> = multicast.into_iter().map(MacKey::from).collect();
        multicast.sort_unstable();
        multicast.dedup();
        self.vport_mut(id)?.guest = GuestFilters { multicast, all_multicast, promiscuous, vlans };
        self.update_promiscuous();
        Ok(())
    }

    /// Sets the unicast addresses that the VPort's driver was permitted to use beyond its receive filters.
    /// They are served in every VLAN of the VPort, after the filters; an address that another VPort took
    /// first stays with that one.
    pub fn set_guest_addresses(
        &mut self,
        id: VPortId,
        addresses: &[MacAddress],
    ) -> Result<(), SwitchError> {
        let old = std::mem::take(&mut self.vport_mut(id)?.guest_addresses);
        for mac in old {
            self.guest_addresses.remove(&mac);
            count(&mut self.vport_mut(id)?.addresses, mac, false);
        }
        for mac in addresses.iter().map(|mac| MacKey::from(*mac)).filter(|mac| !mac.is_group()) {
            if let Entry::Vacant(free) = self.guest_addresses.entry(mac) {
                free.insert(id);
                let vport = self.vport_mut(id)?;
                vport.guest_addresses.push(mac);
                count(&mut vport.addresses, mac, true);
            }
        }
        Ok(())
    }

    fn update_promiscuous(&mut self) {
        self.promiscuous.clear();
        for (id, vport) in self.vports.iter().enumerate() {
            if let Some(vport) = vport
                && vport.guest.promiscuous
                && vport.policy.allow_promiscuous
            {
                self.promiscuous.push(vport_id(id));
            }
        }
    }

    /// Sets a receive filter under an id that is not in use.
    pub fn set_filter(&mut self, id: FilterId, filter: ReceiveFilter) -> Result<(), SwitchError> {
        if MacKey::from(filter.mac).is_group() {
            return Err(SwitchError::GroupAddress(filter.mac));
        }
        if self.filters.contains_key(&id) {
            return Err(SwitchError::FilterExists(id));
        }
        if let Some(other) = self.tests.get(&filter.key().0) {
            return Err(SwitchError::SameTests(*other));
        }
        self.vport_mut(filter.vport)?;
        self.table.insert(filter.key(), filter.vport.get());
        self.tests.insert(filter.key().0, id);
        self.filters.insert(id, filter);
        self.any_vlan_filters += usize::from(filter.vlan == VlanMatch::Any);
        self.account(&filter, true);
        Ok(())
    }

    /// Clears a receive filter; returns it.
    pub fn clear_filter(&mut self, id: FilterId) -> Result<ReceiveFilter, SwitchError> {
        let filter = self.filters.remove(&id).ok_or(SwitchError::NoSuchFilter(id))?;
        self.table.remove(filter.key());
        self.tests.remove(&filter.key().0);
        self.any_vlan_filters -= usize::from(filter.vlan == VlanMatch::Any);
        self.account(&filter, false);
        Ok(filter)
    }

    /// Moves a filter from one VPort to another. Frames decided before go to the one, frames decided after
    /// to the other; there is no in-between (SPEC-NDIS-SRIOV §6.3).
    pub fn move_filter(
        &mut self,
        id: FilterId,
        from: VPortId,
        to: VPortId,
    ) -> Result<(), SwitchError> {
        let old = *self.filters.get(&id).ok_or(SwitchError::NoSuchFilter(id))?;
        if old.vport != from {
            return Err(SwitchError::NoSuchFilter(id));
        }
        self.vport_mut(to)?;
        let new = ReceiveFilter { vport: to, ..old };
        self.filters.insert(id, new);
        self.table.insert(new.key(), to.get());
        self.account(&old, false);
        self.account(&new, true);
        Ok(())
    }

    /// The filter with this id.
    pub fn filter(&self, id: FilterId) -> Option<&ReceiveFilter> {
        self.filters.get(&id)
    }

    /// Keeps a VPort's own addresses and VLAN conditions in step with its filters.
    fn account(&mut self, filter: &ReceiveFilter, added: bool) {
        let mac = MacKey::from(filter.mac);
        if let Ok(vport) = self.vport_mut(filter.vport) {
            count(&mut vport.addresses, mac, added);
            let at = vport.vlan_filters.iter().position(|(condition, _)| *condition == filter.vlan);
            match (at.and_then(|at| vport.vlan_filters.get_mut(at)), added) {
                (Some((_, uses)), true) => *uses += 1,
                (Some((_, uses)), false) => *uses -= 1,
                (None, true) => vport.vlan_filters.push((filter.vlan, 1)),
                (None, false) => {}
            }
            vport.vlan_filters.retain(|(_, uses)| *uses > 0);
        }
    }

    /// Which VPort's filter matches; the default VPort in place of one that does not receive yet.
    #[inline(always)]
    fn matching(&self, mac: MacKey, vlan: u16) -> Option<VPortId> {
        let found = self.table.get(key(mac, u64::from(vlan)));
        let found = match found {
            None if self.any_vlan_filters > 0 => self.table.get(key(mac, VlanMatch::ANY_BITS)),
            found => found,
        };
        match found {
            Some(found) => VPortId::new(found),
            None if self.guest_addresses.is_empty() => None,
            None => self.guest_addresses.get(&mac).copied(),
        }
    }

    /// Decides where a frame goes. `list` is filled only for [`Verdict::Flood`].
    #[inline(always)]
    pub fn forward(&self, ingress: Ingress, frame: &FrameKey, list: &mut EgressList) -> Verdict {
        let tci = match ingress {
            Ingress::Uplink => frame.tci,
            Ingress::VPort(id) => {
                let Some(vport) = self.vport(id) else {
                    return Verdict::Drop(DropReason::NoReceiver);
                };
                if !vport.policy.allow_spoofing && !vport.owns(frame.source) {
                    return Verdict::Drop(DropReason::SpoofedSource);
                }
                match vport.policy.vlan.ingress(frame.tci) {
                    Ok(tci) => tci,
                    Err(()) => return Verdict::Drop(DropReason::VlanNotAllowed),
                }
            }
        };
        if frame.destination.is_group() {
            return self.flood(ingress, frame.destination, tci, list);
        }
        let verdict = self.unicast(ingress, frame.destination, tci);
        if self.promiscuous.is_empty() { verdict } else { self.mirror(ingress, tci, verdict, list) }
    }

    #[inline(always)]
    fn unicast(&self, ingress: Ingress, destination: MacKey, tci: Option<u16>) -> Verdict {
        let target = match self.matching(destination, tci.unwrap_or(0) & 0xFFF) {
            Some(target) => target,
            None if ingress == Ingress::Uplink => VPortId::DEFAULT,
            None => return Verdict::Unicast(Egress { vport: None, tci }),
        };
        if ingress == Ingress::VPort(target) {
            return Verdict::Drop(DropReason::ToItself);
        }
        self.deliver(ingress, target, tci)
    }

    #[inline(always)]
    fn deliver(&self, ingress: Ingress, target: VPortId, tci: Option<u16>) -> Verdict {
        match self.vport(target) {
            Some(vport) if vport.away && ingress != Ingress::Uplink => {
                Verdict::Unicast(Egress { vport: None, tci })
            }
            Some(vport) if vport.receiving => match vport.egress(tci) {
                Some(tci) => Verdict::Unicast(Egress { vport: Some(target), tci }),
                None => Verdict::Drop(DropReason::VlanNotAllowed),
            },
            // Not receiving yet: its filters still deliver to the default VPort, whose owner reaches the VM by its software
            // path. So does what came from there: a driver may have the data path switched to its VF while the VF is
            // still to come up (Linux's iavf enables its queues a second after `ifup`).
            _ if target != VPortId::DEFAULT => self.deliver(ingress, VPortId::DEFAULT, tci),
            _ => Verdict::Drop(DropReason::NoReceiver),
        }
    }

    #[cold]
    fn mirror(
        &self,
        ingress: Ingress,
        tci: Option<u16>,
        verdict: Verdict,
        list: &mut EgressList,
    ) -> Verdict {
        list.0.clear();
        let first = match verdict {
            Verdict::Unicast(egress) => Some(egress),
            _ => None,
        };
        list.0.extend(first);
        for id in &self.promiscuous {
            if ingress == Ingress::VPort(*id) || first.is_some_and(|e| e.vport == Some(*id)) {
                continue;
            }
            if let Some(vport) = self.vport(*id)
                && vport.receiving
                && let Some(tci) = vport.egress(tci)
            {
                list.0.push(Egress { vport: Some(*id), tci });
            }
        }
        match (list.0.as_slice(), first) {
            ([], _) | ([_], Some(_)) => verdict,
            _ => Verdict::Flood,
        }
    }

    fn flood(
        &self,
        ingress: Ingress,
        destination: MacKey,
        tci: Option<u16>,
        list: &mut EgressList,
    ) -> Verdict {
        list.0.clear();
        let vlan = tci.unwrap_or(0) & 0xFFF;
        for (id, vport) in self.vports.iter().enumerate() {
            let Some(vport) = vport else { continue };
            let id = vport_id(id);
            if ingress != Ingress::VPort(id)
                && vport.accepts_group(destination, vlan)
                && let Some(tci) = vport.egress(tci)
            {
                list.0.push(Egress { vport: Some(id), tci });
            }
        }
        if ingress != Ingress::Uplink {
            list.0.push(Egress { vport: None, tci });
        }
        if list.0.is_empty() { Verdict::Drop(DropReason::NoReceiver) } else { Verdict::Flood }
    }
}

/// Adds or removes one use of `mac` in a sorted list of (address, uses).
fn count(addresses: &mut Vec<(MacKey, u32)>, mac: MacKey, added: bool) {
    match addresses.binary_search_by_key(&mac, |(address, _)| *address) {
        Ok(at) if added => {
            if let Some((_, uses)) = addresses.get_mut(at) {
                *uses += 1;
            }
        }
        Ok(at) => {
            let unused = addresses.get_mut(at).is_some_and(|(_, uses)| {
                *uses -= 1;
                *uses == 0
            });
            if unused {
                addresses.remove(at);
            }
        }
        Err(at) if added => addresses.insert(at, (mac, 1)),
        Err(_) => {}
    }
}

/// The VPort at `index` of the pool.
fn vport_id(index: usize) -> VPortId {
    u32::try_from(index).ok().and_then(VPortId::new).unwrap_or(VPortId::DEFAULT)
}

#[cfg(test)]
mod tests;
