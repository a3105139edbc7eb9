//! SPEC-AVF §10, items 30 to 32: MAC and VLAN filters, promiscuous modes, RSS.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod guest;

use avf_device::AdminSettings;
use avf_protocol::{
    MacAddress, hash_enable,
    virtchnl::{
        Capabilities, EthAddr, MacFilterKind, Reply, Request, RssHfunc, Status, VlanFilter,
        VlanSetting, promiscuous, support,
    },
};
use guest::{Call, Guest, MAC, OTHER_MAC, THIRD_MAC, VSI};
use zerocopy::little_endian::U16;

const MULTICAST: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);

fn one(address: MacAddress, kind: MacFilterKind) -> [EthAddr; 1] {
    [EthAddr::new(address, kind)]
}

fn add(g: &mut Guest, address: MacAddress, kind: MacFilterKind) -> Result<Reply, Status> {
    g.ask(Request::AddEthAddr { vsi_id: VSI, list: &one(address, kind) })
}

fn remove(g: &mut Guest, address: MacAddress) {
    let list = one(address, MacFilterKind::Legacy);
    g.must(Request::DelEthAddr { vsi_id: VSI, list: &list });
}

#[test]
fn c30_the_primary_address_is_received_before_any_message_and_multicast_only_when_added() {
    let mut g = Guest::ready();
    assert_eq!(g.device.settings().primary_mac, Some(MAC));
    assert!(g.device.settings().unicast.is_empty() && g.device.settings().multicast.is_empty());
    assert_eq!(add(&mut g, MULTICAST, MacFilterKind::Extra), Ok(Reply::Empty));
    assert_eq!(g.host.applied().multicast, [MULTICAST]);
    remove(&mut g, MULTICAST);
    assert!(g.host.applied().multicast.is_empty());
}

#[test]
fn c30_duplicates_and_absent_addresses_succeed_and_change_nothing() {
    let mut g = Guest::ready();
    for _ in 0..2 {
        for (address, kind) in [
            (OTHER_MAC, MacFilterKind::Extra),
            (MULTICAST, MacFilterKind::Legacy),
            (MAC, MacFilterKind::Primary),
            (MAC, MacFilterKind::Extra),
            (MacAddress::BROADCAST, MacFilterKind::Extra),
            (MacAddress::ZERO, MacFilterKind::Primary),
        ] {
            assert_eq!(add(&mut g, address, kind), Ok(Reply::Empty));
        }
    }
    let settings = g.host.applied().clone();
    assert_eq!(settings.primary_mac, Some(MAC));
    assert_eq!((settings.unicast, settings.multicast), (vec![OTHER_MAC], vec![MULTICAST]));
    g.host.take_calls();
    for address in [THIRD_MAC, MacAddress::BROADCAST, MacAddress::ZERO] {
        remove(&mut g, address);
    }
    assert!(g.host.take_calls().is_empty());
}

#[test]
fn c30_too_many_addresses_are_refused_without_side_effects() {
    let mut g = Guest::ready();
    let list: Vec<_> = (0..65)
        .map(|i| EthAddr::new(MacAddress([0x02, 1, 0, 0, 0, i]), MacFilterKind::Extra))
        .collect();
    let before = g.device.settings().clone();
    let asked = g.ask(Request::AddEthAddr { vsi_id: VSI, list: &list });
    assert_eq!(asked, Err(Status::Parameter));
    assert_eq!(*g.device.settings(), before);
    g.must(Request::AddEthAddr { vsi_id: VSI, list: &list[..64] });
    assert_eq!(add(&mut g, MULTICAST, MacFilterKind::Extra), Err(Status::Parameter));
    assert_eq!(g.host.applied().unicast.len(), 64);
    g.must(Request::DelEthAddr { vsi_id: VSI, list: &list });
    assert!(g.host.applied().unicast.is_empty());
}

#[test]
fn an_address_the_host_forbids_is_refused_with_all_of_its_message() {
    let mut g = Guest::ready();
    g.host.forbidden = vec![THIRD_MAC];
    let list = [
        EthAddr::new(MULTICAST, MacFilterKind::Extra),
        EthAddr::new(THIRD_MAC, MacFilterKind::Primary),
    ];
    let asked = g.ask(Request::AddEthAddr { vsi_id: VSI, list: &list });
    assert_eq!(asked, Err(Status::AdminQueue));
    assert!(g.host.take_calls().is_empty());
    g.host.forbidden.clear();
    g.must(Request::AddEthAddr { vsi_id: VSI, list: &list });
    // What is forbidden later goes when the administrator's settings are looked at again.
    g.must(Request::AddEthAddr { vsi_id: VSI, list: &one(OTHER_MAC, MacFilterKind::Extra) });
    g.host.forbidden = vec![OTHER_MAC];
    g.device.set_admin(AdminSettings::default(), g.now, &mut g.host);
    assert!(!g.host.applied().unicast.contains(&OTHER_MAC));
}

#[test]
fn a_new_primary_address_leaves_the_old_one_until_it_is_removed() {
    let mut g = Guest::ready();
    assert_eq!(add(&mut g, OTHER_MAC, MacFilterKind::Primary), Ok(Reply::Empty));
    assert_eq!(g.host.applied().primary_mac, Some(OTHER_MAC));
    assert_eq!(g.host.applied().unicast, [MAC]);
    remove(&mut g, MAC);
    assert!(g.host.applied().unicast.is_empty());
    remove(&mut g, OTHER_MAC);
    assert_eq!(g.host.applied().primary_mac, None);
}

#[test]
fn a_driver_without_address_kinds_changes_its_address_by_adding_before_removing() {
    for (seconds, expected) in [(2, Some(OTHER_MAC)), (4, None)] {
        let mut g = Guest::ready();
        assert_eq!(add(&mut g, OTHER_MAC, MacFilterKind::Legacy), Ok(Reply::Empty));
        assert_eq!(g.host.applied().primary_mac, Some(MAC));
        g.now += seconds * 1_000_000_000;
        remove(&mut g, MAC);
        assert_eq!(g.host.applied().primary_mac, expected, "after {seconds} s");
    }
    // And takes the place of the primary address where there is none.
    let mut g = Guest::ready();
    remove(&mut g, MAC);
    assert_eq!(add(&mut g, OTHER_MAC, MacFilterKind::Legacy), Ok(Reply::Empty));
    assert_eq!(g.host.applied().primary_mac, Some(OTHER_MAC));
}

#[test]
fn c31_filtering_is_active_while_there_are_vlans_and_vlan_0_is_none() {
    let mut g = Guest::ready();
    let filters = [VlanFilter::inner(0), VlanFilter::inner(5), VlanFilter::inner(4095)];
    g.must(Request::AddVlanV2 { vport_id: VSI, filters: &filters[..1] });
    assert!(!g.device.settings().vlan_filtering);
    for _ in 0..2 {
        g.must(Request::AddVlanV2 { vport_id: VSI, filters: &filters });
    }
    assert_eq!(
        (g.host.applied().vlan_filtering, &g.host.applied().vlans[..]),
        (true, &[5, 4095][..])
    );
    g.must(Request::DelVlanV2 { vport_id: VSI, filters: &filters[1..] });
    g.must(Request::DelVlanV2 { vport_id: VSI, filters: &filters });
    assert!(!g.host.applied().vlan_filtering && g.host.applied().vlans.is_empty());
}

#[test]
fn c31_filters_beyond_what_was_advertised_are_refused_without_side_effects() {
    let mut g = Guest::ready();
    let many: Vec<_> = (1..=65).map(VlanFilter::inner).collect();
    let outer = VlanFilter { outer: VlanFilter::inner(3).inner, ..VlanFilter::inner(3) };
    let mut tpid = VlanFilter::inner(3);
    tpid.inner.tpid = 0x88A8.into();
    let mut mask = VlanFilter::inner(3);
    mask.inner.tci_mask = 0xFFF.into();
    for bad in [&many[..], &[outer], &[tpid], &[mask], &[VlanFilter::inner(4096)]] {
        let asked = g.ask(Request::AddVlanV2 { vport_id: VSI, filters: bad });
        assert_eq!(asked, Err(Status::Parameter));
    }
    assert!(g.host.take_calls().is_empty());
    g.must(Request::AddVlanV2 { vport_id: VSI, filters: &many[..64] });
    let asked = g.ask(Request::AddVlanV2 { vport_id: VSI + 1, filters: &many[..1] });
    assert_eq!(asked, Err(Status::Parameter));
}

#[test]
fn c31_version_1_filters_and_stripping_work_for_those_granted_them() {
    let mut g = Guest::ready_with(Capabilities::VLAN);
    assert!(g.device.settings().vlan_strip, "O and F expect stripping from the start");
    let ids = [U16::new(0), U16::new(100), U16::new(7)];
    g.must(Request::AddVlan { vsi_id: VSI, ids: &ids });
    assert_eq!(g.host.applied().vlans, [100, 7]);
    g.must(Request::DelVlan { vsi_id: VSI, ids: &ids[1..2] });
    assert_eq!(g.host.applied().vlans, [7]);
    g.must(Request::DisableVlanStripping);
    assert!(!g.host.applied().vlan_strip);
    g.must(Request::EnableVlanStripping);
    assert!(g.host.applied().vlan_strip);
    let bad = [U16::new(4096)];
    assert_eq!(g.ask(Request::AddVlan { vsi_id: VSI, ids: &bad }), Err(Status::Parameter));
}

#[test]
fn c31_toggles_act_and_one_that_names_nothing_succeeds() {
    let mut g = Guest::ready();
    let setting = |outer: u32, inner: u32| VlanSetting {
        outer: outer.into(),
        inner: inner.into(),
        vport_id: VSI.into(),
        ..VlanSetting::default()
    };
    let ctag = setting(0, support::ETHERTYPE_8100);
    assert!(g.device.settings().vlan_strip && g.device.settings().vlan_insert);
    g.must(Request::DisableVlanStrippingV2(setting(0, 0)));
    assert!(g.device.settings().vlan_strip);
    g.must(Request::DisableVlanStrippingV2(ctag));
    assert!(!g.host.applied().vlan_strip);
    g.must(Request::EnableVlanStrippingV2(ctag));
    assert!(g.host.applied().vlan_strip);
    g.must(Request::DisableVlanInsertionV2(ctag));
    assert!(!g.host.applied().vlan_insert);
    g.must(Request::EnableVlanInsertionV2(ctag));
    assert!(g.host.applied().vlan_insert);
    for bad in [setting(1, 0), setting(0, support::ETHERTYPE_88A8), VlanSetting::default()] {
        assert_eq!(g.ask(Request::EnableVlanStrippingV2(bad)), Err(Status::Parameter));
    }
    // Filtering was not advertised as something to toggle.
    assert_eq!(g.ask(Request::EnableVlanFilteringV2(ctag)), Err(Status::NotSupported));
}

#[test]
fn tags_stay_in_the_frames_of_drivers_without_vlan_offload() {
    let g = Guest::ready_with(Capabilities::L2);
    assert!(!g.device.settings().vlan_strip);
}

#[test]
fn a_vf_is_told_yes_and_is_not_promiscuous_until_it_is_trusted_or_may_be() {
    let mut g = Guest::ready();
    let flags = promiscuous::UNICAST | promiscuous::MULTICAST;
    g.must(Request::ConfigPromiscuousMode { vsi_id: VSI, flags });
    assert!(g.host.take_calls().is_empty());
    let trusted = AdminSettings { trusted: true, ..AdminSettings::default() };
    g.device.set_admin(trusted, g.now, &mut g.host);
    assert!(g.host.applied().promiscuous_unicast && g.host.applied().promiscuous_multicast);
    g.device.set_admin(AdminSettings::default(), g.now, &mut g.host);
    assert!(!g.host.applied().promiscuous_unicast && !g.host.applied().promiscuous_multicast);
    let allowed = AdminSettings { allow_promiscuous: true, ..AdminSettings::default() };
    g.device.set_admin(allowed, g.now, &mut g.host);
    assert!(g.host.applied().promiscuous_unicast && g.host.applied().promiscuous_multicast);
    g.must(Request::ConfigPromiscuousMode { vsi_id: VSI, flags: promiscuous::MULTICAST });
    assert!(!g.host.applied().promiscuous_unicast && g.host.applied().promiscuous_multicast);
    g.device.set_admin(AdminSettings::default(), g.now, &mut g.host);
    assert!(!g.host.applied().promiscuous_multicast);
}

#[test]
fn c32_rss_is_on_after_linux_probe_with_key_and_table_only() {
    let mut g = Guest::ready();
    let rss = g.device.settings().rss;
    assert!(rss.enabled && rss.hash_enable == hash_enable::ADAPTIVE);
    assert_eq!(rss.lut[..6], [0, 1, 2, 3, 0, 1]);
    let key: Vec<u8> = (0..52).collect();
    let lut = [3; 64];
    g.must(Request::ConfigRssKey { vsi_id: VSI, key: &key });
    g.must(Request::ConfigRssLut { vsi_id: VSI, lut: &lut });
    let rss = g.host.applied().rss;
    assert!(rss.enabled && rss.hash_enable == hash_enable::ADAPTIVE);
    assert_eq!((rss.key.to_vec(), rss.lut), (key, lut));
}

#[test]
fn c32_other_sizes_are_refused_and_entries_out_of_range_are_folded() {
    let mut g = Guest::ready();
    for length in [0, 40, 51, 53] {
        let key = vec![0; length];
        assert_eq!(g.ask(Request::ConfigRssKey { vsi_id: VSI, key: &key }), Err(Status::Parameter));
    }
    assert_eq!(
        g.ask(Request::ConfigRssLut { vsi_id: VSI, lut: &[0; 128] }),
        Err(Status::Parameter)
    );
    assert!(g.host.take_calls().is_empty());
    g.must(Request::ConfigRssLut { vsi_id: VSI, lut: &[255; 64] });
    assert!(g.host.applied().rss.lut.iter().all(|queue| *queue < 4));
}

#[test]
fn c32_hash_types_are_told_and_set_and_0_turns_hashing_off() {
    let mut g = Guest::ready();
    assert_eq!(g.ask(Request::GetRssHenaCaps), Ok(Reply::RssHenaCaps(hash_enable::ADAPTIVE)));
    g.must(Request::SetRssHena(0));
    assert_eq!(g.host.applied().rss.hash_enable, 0);
    g.must(Request::SetRssHena(u64::MAX));
    assert_eq!(g.host.applied().rss.hash_enable, hash_enable::ADAPTIVE);
    assert_eq!(g.ask(Request::ConfigRssHfunc(RssHfunc::default())), Err(Status::NotSupported));
}

#[test]
fn requests_that_change_nothing_do_not_bother_the_host() {
    let mut g = Guest::ready();
    let lut = g.device.settings().rss.lut;
    g.must(Request::ConfigRssLut { vsi_id: VSI, lut: &lut });
    g.must(Request::ConfigPromiscuousMode { vsi_id: VSI, flags: 0 });
    assert_eq!(g.host.take_calls(), Vec::<Call>::new());
}
