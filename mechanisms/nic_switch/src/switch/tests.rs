//! Stories and properties of the forwarding decision.

use proptest::prelude::*;

use super::*;
use crate::VlanPolicy;

const POOL: usize = 8;
const VM1: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 1]);
const VM2: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 2]);
const OUTSIDE: MacAddress = MacAddress::new([2, 0, 0, 0, 9, 9]);
const BROADCAST: MacAddress = MacAddress::new([0xFF; 6]);
const GROUP: MacAddress = MacAddress::new([1, 0, 0x5E, 0, 0, 5]);

fn port(id: u32) -> VPortId {
    VPortId::new(id).unwrap()
}

fn filter_id(id: u32) -> FilterId {
    FilterId::new(id).unwrap()
}

fn filter(mac: MacAddress, vlan: VlanMatch, vport: u32) -> ReceiveFilter {
    ReceiveFilter { mac, vlan, vport: port(vport) }
}

/// The default VPort and two VF VPorts with one address each, all receiving.
fn two_vms() -> NicSwitch {
    let mut switch = NicSwitch::new(POOL);
    switch.set_receiving(VPortId::DEFAULT, true).unwrap();
    for (id, mac) in [(1, VM1), (2, VM2)] {
        switch.create_vport(port(id)).unwrap();
        switch.set_filter(filter_id(id), filter(mac, VlanMatch::UntaggedOrZero, id)).unwrap();
        switch.set_receiving(port(id), true).unwrap();
    }
    switch
}

/// A VPort, or `None` for the uplink, and the tag there.
type Place = (Option<u32>, Option<u16>);

/// Forwards one frame and lists where it goes as (VPort or uplink, tag), or why not.
fn forward(
    switch: &NicSwitch,
    ingress: Ingress,
    from: MacAddress,
    to: MacAddress,
    tci: Option<u16>,
) -> Result<Vec<Place>, DropReason> {
    let mut list = EgressList::with_capacity(POOL);
    let key = FrameKey { destination: to.into(), source: from.into(), tci };
    match switch.forward(ingress, &key, &mut list) {
        Verdict::Unicast(egress) => Ok(vec![(egress.vport.map(|id| id.get()), egress.tci)]),
        Verdict::Flood => Ok(list
            .as_slice()
            .iter()
            .map(|egress| (egress.vport.map(|id| id.get()), egress.tci))
            .collect()),
        Verdict::Drop(reason) => Err(reason),
    }
}

#[test]
fn unicast_goes_to_the_filter_that_matches_else_to_uplink_or_default_vport() {
    let switch = two_vms();
    let vm1 = Ingress::VPort(port(1));
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Ok(vec![(Some(2), None)]));
    assert_eq!(forward(&switch, vm1, VM1, OUTSIDE, None), Ok(vec![(None, None)]));
    assert_eq!(forward(&switch, Ingress::Uplink, OUTSIDE, VM1, None), Ok(vec![(Some(1), None)]));
    let unknown = MacAddress::new([2, 0, 0, 0, 7, 7]);
    assert_eq!(
        forward(&switch, Ingress::Uplink, OUTSIDE, unknown, None),
        Ok(vec![(Some(0), None)])
    );
    assert_eq!(forward(&switch, vm1, VM1, VM1, None), Err(DropReason::ToItself));
    // The filter takes untagged frames only.
    assert_eq!(
        forward(&switch, Ingress::Uplink, OUTSIDE, VM1, Some(5)),
        Ok(vec![(Some(0), Some(5))])
    );
}

#[test]
fn broadcast_reaches_everyone_but_its_sender_and_multicast_those_who_asked() {
    let mut switch = two_vms();
    let vm1 = Ingress::VPort(port(1));
    let everyone = vec![(Some(0), None), (Some(2), None), (None, None)];
    assert_eq!(forward(&switch, vm1, VM1, BROADCAST, None), Ok(everyone.clone()));
    assert_eq!(
        forward(&switch, Ingress::Uplink, OUTSIDE, BROADCAST, None),
        Ok(vec![(Some(0), None), (Some(1), None), (Some(2), None)])
    );
    assert_eq!(forward(&switch, vm1, VM1, GROUP, None), Ok(vec![(Some(0), None), (None, None)]));
    switch.set_guest_filters(port(2), [GROUP], false, false, None).unwrap();
    assert_eq!(forward(&switch, vm1, VM1, GROUP, None), Ok(everyone));
}

#[test]
fn a_spoofed_source_is_dropped_unless_the_policy_allows_it() {
    let mut switch = two_vms();
    let vm1 = Ingress::VPort(port(1));
    assert_eq!(forward(&switch, vm1, VM2, OUTSIDE, None), Err(DropReason::SpoofedSource));
    assert_eq!(forward(&switch, vm1, OUTSIDE, BROADCAST, None), Err(DropReason::SpoofedSource));
    switch
        .set_policy(port(1), VPortPolicy { allow_spoofing: true, ..VPortPolicy::default() })
        .unwrap();
    assert_eq!(forward(&switch, vm1, OUTSIDE, VM2, None), Ok(vec![(Some(2), None)]));
}

#[test]
fn an_assigned_address_is_no_spoofed_one_wherever_its_filter_is() {
    let mut switch = two_vms();
    let vm1 = Ingress::VPort(port(1));
    switch.move_filter(filter_id(1), port(1), VPortId::DEFAULT).unwrap();
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Err(DropReason::SpoofedSource));
    switch.set_assigned_address(port(1), Some(VM1)).unwrap();
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Ok(vec![(Some(2), None)]));
    assert_eq!(forward(&switch, vm1, OUTSIDE, VM2, None), Err(DropReason::SpoofedSource));
    switch.set_assigned_address(port(1), None).unwrap();
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Err(DropReason::SpoofedSource));
}

#[test]
fn a_vport_takes_frames_only_once_its_driver_receives() {
    let mut switch = two_vms();
    switch.set_receiving(port(2), false).unwrap();
    let vm1 = Ingress::VPort(port(1));
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Ok(vec![(Some(0), None)]));
    assert_eq!(
        forward(&switch, vm1, VM1, BROADCAST, None),
        Ok(vec![(Some(0), None), (None, None)])
    );
    let host = Ingress::VPort(VPortId::DEFAULT);
    assert_eq!(forward(&switch, host, OUTSIDE, VM2, None), Ok(vec![(Some(0), None)]));
    switch.set_receiving(VPortId::DEFAULT, false).unwrap();
    assert_eq!(forward(&switch, host, OUTSIDE, VM2, None), Err(DropReason::NoReceiver));
    switch.set_receiving(VPortId::DEFAULT, true).unwrap();
    switch.set_receiving(port(2), true).unwrap();
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Ok(vec![(Some(2), None)]));
}

#[test]
fn a_vport_that_is_away_is_reached_by_the_uplink_and_takes_no_groups() {
    let mut switch = two_vms();
    let (one, default) = (Ingress::VPort(port(1)), Ingress::VPort(VPortId::DEFAULT));
    switch.set_away(port(2), true).unwrap();
    for ingress in [one, default] {
        let to = forward(&switch, ingress, VM1, VM2, None);
        assert_eq!(to, Ok(vec![(None, None)]), "{ingress:?}");
    }
    assert_eq!(
        forward(&switch, one, VM1, BROADCAST, None),
        Ok(vec![(Some(0), None), (None, None)])
    );
    let from_uplink = |to| forward(&switch, Ingress::Uplink, OUTSIDE, to, None);
    assert_eq!(from_uplink(VM2), Ok(vec![(Some(2), None)]), "the uplink knows that it is here");
    assert_eq!(from_uplink(BROADCAST), Ok(vec![(Some(0), None), (Some(1), None)]));
    switch.set_away(port(2), false).unwrap();
    assert_eq!(forward(&switch, one, VM1, VM2, None), Ok(vec![(Some(2), None)]));
    assert_eq!(switch.set_away(VPortId::DEFAULT, true), Err(SwitchError::DefaultVPort));
}

#[test]
fn access_vlans_are_separate_networks() {
    let mut switch = two_vms();
    let access = |vlan| VPortPolicy { vlan: VlanPolicy::Access(vlan), ..VPortPolicy::default() };
    switch.create_vport(port(3)).unwrap();
    switch.set_receiving(port(3), true).unwrap();
    let vm3 = MacAddress::new([2, 0, 0, 0, 0, 3]);
    switch.set_filter(filter_id(3), filter(vm3, VlanMatch::Id(10), 3)).unwrap();
    switch.clear_filter(filter_id(1)).unwrap();
    switch.set_filter(filter_id(1), filter(VM1, VlanMatch::Id(10), 1)).unwrap();
    switch.set_policy(port(1), access(10)).unwrap();
    switch.set_policy(port(3), access(10)).unwrap();
    let vm1 = Ingress::VPort(port(1));
    assert_eq!(forward(&switch, vm1, VM1, vm3, None), Ok(vec![(Some(3), None)]));
    // To a VM outside the VLAN the frame leaves, tagged, to the wire.
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Ok(vec![(None, Some(10))]));
    assert_eq!(
        forward(&switch, vm1, VM1, BROADCAST, None),
        Ok(vec![(Some(0), Some(10)), (Some(3), None), (None, Some(10))])
    );
    assert_eq!(forward(&switch, vm1, VM1, vm3, Some(11)), Err(DropReason::VlanNotAllowed));
    assert_eq!(
        forward(&switch, Ingress::Uplink, OUTSIDE, VM1, Some(10)),
        Ok(vec![(Some(1), None)])
    );
}

#[test]
fn a_filter_without_a_vlan_test_takes_every_vlan_that_the_guest_wants() {
    let mut switch = two_vms();
    switch.clear_filter(filter_id(1)).unwrap();
    switch.set_filter(filter_id(1), filter(VM1, VlanMatch::Any, 1)).unwrap();
    assert_eq!(
        forward(&switch, Ingress::Uplink, OUTSIDE, VM1, Some(9)),
        Ok(vec![(Some(1), Some(9))])
    );
    let vlans = VlanSet::from_iter([4]);
    switch.set_guest_filters(port(1), [], false, false, Some(vlans)).unwrap();
    assert_eq!(
        forward(&switch, Ingress::Uplink, OUTSIDE, VM1, Some(9)),
        Err(DropReason::VlanNotAllowed)
    );
    assert_eq!(forward(&switch, Ingress::Uplink, OUTSIDE, VM1, None), Ok(vec![(Some(1), None)]));
}

#[test]
fn a_promiscuous_vport_sees_unicast_only_where_the_policy_allows_it() {
    let mut switch = two_vms();
    switch.create_vport(port(3)).unwrap();
    switch.set_receiving(port(3), true).unwrap();
    switch.set_guest_filters(port(3), [], false, true, None).unwrap();
    let vm1 = Ingress::VPort(port(1));
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Ok(vec![(Some(2), None)]));
    switch
        .set_policy(port(3), VPortPolicy { allow_promiscuous: true, ..VPortPolicy::default() })
        .unwrap();
    assert_eq!(forward(&switch, vm1, VM1, VM2, None), Ok(vec![(Some(2), None), (Some(3), None)]));
}

#[test]
fn refused_changes_change_nothing() {
    let mut switch = two_vms();
    let before = format!("{switch:?}");
    let same = filter(VM1, VlanMatch::UntaggedOrZero, 2);
    assert_eq!(switch.set_filter(filter_id(9), same), Err(SwitchError::SameTests(filter_id(1))));
    assert_eq!(
        switch.set_filter(filter_id(1), filter(OUTSIDE, VlanMatch::Any, 2)),
        Err(SwitchError::FilterExists(filter_id(1)))
    );
    assert_eq!(
        switch.set_filter(filter_id(9), filter(GROUP, VlanMatch::Any, 2)),
        Err(SwitchError::GroupAddress(GROUP))
    );
    assert_eq!(
        switch.set_filter(filter_id(9), filter(OUTSIDE, VlanMatch::Any, 7)),
        Err(SwitchError::NoSuchVPort(port(7)))
    );
    assert_eq!(
        switch.move_filter(filter_id(1), port(2), port(0)),
        Err(SwitchError::NoSuchFilter(filter_id(1)))
    );
    assert_eq!(
        switch.move_filter(filter_id(1), port(1), port(5)),
        Err(SwitchError::NoSuchVPort(port(5)))
    );
    assert_eq!(switch.delete_vport(port(1)), Err(SwitchError::FiltersLeft(port(1))));
    assert_eq!(switch.delete_vport(port(0)), Err(SwitchError::DefaultVPort));
    assert_eq!(switch.create_vport(port(1)), Err(SwitchError::VPortExists(port(1))));
    assert_eq!(switch.create_vport(port(8)), Err(SwitchError::OutsidePool(port(8))));
    assert_eq!(format!("{switch:?}"), before);
}

#[derive(Clone, Debug)]
enum Change {
    Set(u32, u8, VlanMatch, u32),
    Clear(u32),
    Move(u32, u32, u32),
    Receive(u32, bool),
}

fn change() -> impl Strategy<Value = Change> {
    let vlan = prop_oneof![
        Just(VlanMatch::UntaggedOrZero),
        (1u16..3).prop_map(VlanMatch::Id),
        Just(VlanMatch::Any)
    ];
    prop_oneof![
        (1u32..12, 0u8..6, vlan, 0u32..4)
            .prop_map(|(id, mac, vlan, to)| Change::Set(id, mac, vlan, to)),
        (1u32..12).prop_map(Change::Clear),
        (1u32..12, 0u32..4, 0u32..4).prop_map(|(id, from, to)| Change::Move(id, from, to)),
        (0u32..4, any::<bool>()).prop_map(|(id, on)| Change::Receive(id, on)),
    ]
}

fn mac(n: u8) -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 1, n])
}

proptest! {
    /// Against a model that knows only a list of filters: after any changes, a frame from the uplink goes
    /// to exactly one VPort, the one that the rules name, or nowhere because nobody receives.
    #[test]
    fn every_unicast_frame_from_the_uplink_has_one_destination(
        changes in prop::collection::vec(change(), 0..60)
    ) {
        let mut switch = NicSwitch::new(4);
        let mut filters: BTreeMap<u32, (u8, VlanMatch, u32)> = BTreeMap::new();
        let mut receiving = [false; 4];
        for id in 1..4 {
            switch.create_vport(port(id)).unwrap();
        }
        for change in changes {
            match change {
                Change::Set(id, m, vlan, to) => {
                    let free = !filters.contains_key(&id)
                        && !filters.values().any(|f| (f.0, f.1) == (m, vlan));
                    let done = switch.set_filter(filter_id(id), filter(mac(m), vlan, to));
                    prop_assert_eq!(done.is_ok(), free);
                    if free {
                        filters.insert(id, (m, vlan, to));
                    }
                }
                Change::Clear(id) => {
                    let done = switch.clear_filter(filter_id(id));
                    prop_assert_eq!(done.is_ok(), filters.remove(&id).is_some());
                }
                Change::Move(id, from, to) => {
                    let there = filters.get(&id).is_some_and(|f| f.2 == from);
                    let done = switch.move_filter(filter_id(id), port(from), port(to));
                    prop_assert_eq!(done.is_ok(), there);
                    if let (true, Some(f)) = (there, filters.get_mut(&id)) {
                        f.2 = to;
                    }
                }
                Change::Receive(id, on) => {
                    switch.set_receiving(port(id), on).unwrap();
                    receiving[id as usize] = on;
                }
            }
        }
        for m in 0..6 {
            for vlan in 0..3u16 {
                let tci = (vlan != 0).then_some(vlan);
                let exact = if vlan == 0 { VlanMatch::UntaggedOrZero } else { VlanMatch::Id(vlan) };
                let target = [exact, VlanMatch::Any]
                    .into_iter()
                    .find_map(|v| filters.values().find(|f| (f.0, f.1) == (m, v)))
                    .map_or(0, |f| f.2);
                let expected = [target, 0]
                    .into_iter()
                    .find(|id| receiving[*id as usize])
                    .map(|id| vec![(Some(id), tci)])
                    .ok_or(DropReason::NoReceiver);
                prop_assert_eq!(forward(&switch, Ingress::Uplink, OUTSIDE, mac(m), tci), expected);
            }
        }
    }
}
