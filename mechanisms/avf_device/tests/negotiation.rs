//! SPEC-AVF §10, items 21 to 25, 28, 33 to 35: version, resources, answers, statistics, REQUEST_QUEUES.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod guest;

use avf_device::{
    AdminSettings, ConfigError, RECOMMENDED_CAPABILITIES, ResetKind, SERVED_CAPABILITIES, VfConfig,
};
use avf_protocol::{
    MacAddress, registers,
    virtchnl::{
        Capabilities, EthAddr, EthStats, Event, LinkStatus, MacFilterKind, Opcode, QueueSelect,
        Reply, Request, Status, Version, VlanV2Capabilities,
    },
};
use guest::{Call, Guest, MAC, OTHER_MAC, Order, THIRD_MAC, VSI, config};

fn on() -> Guest {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    g
}

#[test]
fn c21_versions_1_1_and_1_0_are_answered_in_kind_and_survive_a_vf_reset() {
    let mut g = on();
    assert_eq!(g.ask(Request::Version(Version::V1_0)), Ok(Reply::Version(Version::V1_0)));
    for newer in [Version::V1_1, Version { major: 1, minor: 7 }, Version { major: 2, minor: 0 }] {
        assert_eq!(g.ask(Request::Version(newer)), Ok(Reply::Version(Version::V1_1)));
    }
    g.send(Request::ResetVf);
    g.start_mailbox(Order::LengthFirst);
    // F asks for its resources with capabilities and without a new VERSION.
    let wanted = Capabilities::L2 | Capabilities::RSS_PF;
    let Ok(Reply::VfResources(resources)) = g.ask(Request::GetVfResources(Some(wanted))) else {
        panic!("no resources");
    };
    assert_eq!(resources.capabilities, wanted);
}

#[test]
fn a_driver_is_there_from_its_first_word_after_a_reset_to_the_next_reset() {
    let mut g = on();
    assert!(!g.device.has_driver());
    g.ask(Request::Version(Version::V1_1)).unwrap();
    assert!(g.device.has_driver());
    g.send(Request::ResetVf);
    assert!(!g.device.has_driver());
    // F does not negotiate the version again.
    g.start_mailbox(Order::LengthFirst);
    assert!(!g.device.has_driver());
    g.negotiate(RECOMMENDED_CAPABILITIES);
    assert!(g.device.has_driver());
    for kind in [ResetKind::Pf, ResetKind::Flr] {
        let mut g = Guest::ready();
        assert!(g.device.has_driver());
        g.device.reset(kind, g.now, &mut g.host);
        assert!(!g.device.has_driver(), "{kind:?}");
    }
}

#[test]
fn c22_resources_are_36_bytes_with_one_vsi_of_type_6_and_only_what_was_asked() {
    let mut g = on();
    g.ask(Request::Version(Version::V1_1)).unwrap();
    for bit in 0..32 {
        let wanted = Capabilities(1 << bit);
        g.send(Request::GetVfResources(Some(wanted)));
        let received = g.receive().unwrap();
        assert_eq!((received.status(), received.data.len()), (Status::Success, 36));
        let Reply::VfResources(resources) = received.reply() else { panic!() };
        assert_eq!(resources.capabilities, wanted & RECOMMENDED_CAPABILITIES);
        assert_eq!((resources.num_vsis, resources.vsi_type, resources.vsi_id), (1, 6, VSI));
        assert_eq!((resources.queue_pairs, resources.max_vectors), (4, 9));
        assert_eq!((resources.rss_key_size, resources.rss_lut_size), (52, 64));
        assert_eq!((resources.max_frame, resources.default_mac), (9728, MAC));
        assert_eq!(g.receive().unwrap().opcode(), 17);
    }
}

#[test]
fn c22_vlan_and_vlan_v2_are_never_granted_together() {
    let both = Capabilities::VLAN | Capabilities::VLAN_V2;
    let mut g = on();
    let resources = g.negotiate(Capabilities(u32::MAX));
    assert_eq!(resources.capabilities & both, Capabilities::VLAN_V2);
    let unwanted = Capabilities::RSS_AQ | Capabilities::RSS_REG | Capabilities::ENCAP;
    assert_eq!(resources.capabilities & unwanted, Capabilities::NONE);
    assert_eq!(g.negotiate(Capabilities::VLAN).capabilities, Capabilities::VLAN);
}

#[test]
fn c22_resources_come_without_a_version_and_with_an_empty_message() {
    let mut g = on();
    for message in [None, Some(Capabilities(u32::MAX))] {
        let Ok(Reply::VfResources(resources)) = g.ask(Request::GetVfResources(message)) else {
            panic!("no resources");
        };
        // Before any VERSION the VF speaks 1.0, which has no capabilities in its message.
        assert_eq!(resources.capabilities, Capabilities::L2 | Capabilities::VLAN);
        g.receive().unwrap();
    }
}

#[test]
fn c23_the_default_mac_is_the_last_primary_mac_after_a_vf_reset() {
    let mut g = Guest::ready();
    let list = [EthAddr::new(OTHER_MAC, MacFilterKind::Primary)];
    g.must(Request::AddEthAddr { vsi_id: VSI, list: &list });
    // L deletes its addresses at close, and resets the VF on an MTU change.
    g.must(Request::DelEthAddr { vsi_id: VSI, list: &list });
    for _ in 0..3 {
        g.send(Request::ResetVf);
        g.start_mailbox(Order::LengthFirst);
        assert_eq!(g.negotiate(RECOMMENDED_CAPABILITIES).default_mac, OTHER_MAC);
        assert_eq!(g.device.settings().primary_mac, Some(OTHER_MAC));
    }
    g.device.reset(ResetKind::Flr, g.now, &mut g.host);
    assert_eq!(g.device.settings().primary_mac, Some(OTHER_MAC));
}

#[test]
fn c24_every_opcode_gets_exactly_one_answer_but_resets() {
    let mut g = Guest::ready();
    for opcode in 0..200 {
        if opcode == Opcode::ResetVf.value() {
            continue;
        }
        for data in [&[0u8; 0][..], &[0; 3], &[0; 100], &[0xFF; 4096]] {
            g.send_raw(opcode, data);
            let received = g.drain();
            let answers: Vec<_> =
                received.iter().filter(|message| message.opcode() == opcode).collect();
            if opcode == 17 {
                // No VF sends events.
                assert_eq!(answers.len(), 1);
                assert_eq!(answers[0].status(), Status::NotSupported);
                continue;
            }
            assert_eq!(answers.len(), 1, "opcode {opcode} with {} bytes", data.len());
            assert!(received.iter().all(|m| [opcode, 17].contains(&m.opcode())));
        }
    }
}

#[test]
fn c25_unsupported_is_64_short_is_5_and_long_is_fine() {
    let mut g = Guest::ready();
    for opcode in [0, 16, 18, 30, 44, 45, 47, 50, 60, 66, 107, 112, 113, 114, 65_000, u32::MAX] {
        assert_eq!(g.ask_raw(opcode, &[0; 64]), Status::NotSupported, "{opcode}");
    }
    // Opcodes of the other VLAN capability were not granted.
    for opcode in [12, 13, 27, 28] {
        assert_eq!(g.ask_raw(opcode, &[7, 0, 0, 0, 0, 0]), Status::NotSupported, "{opcode}");
    }
    for opcode in [1, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 23, 24, 26, 29, 52, 53, 54, 55, 56, 57] {
        assert_eq!(g.ask_raw(opcode, &[1]), Status::Parameter, "{opcode}");
    }
    assert_eq!(g.ask_raw(1, &[1, 0, 0, 0, 1, 0, 0, 0, 99, 99]), Status::Success);
    assert_eq!(g.ask_raw(14, &[7; 4096]), Status::Parameter, "another VSI");
    let mut long = [0; 4096];
    long[0] = 7;
    assert_eq!(g.ask_raw(14, &long), Status::Success);
}

#[test]
fn c28_link_events_follow_resources_and_the_enable_answer_and_are_16_bytes() {
    let mut g = on();
    g.host.link = LinkStatus { up: true, mbps: 100_000 };
    g.ask(Request::Version(Version::V1_1)).unwrap();
    g.send(Request::GetVfResources(Some(Capabilities::ADV_LINK_SPEED)));
    g.receive().unwrap();
    let up = g.receive().unwrap();
    assert_eq!(up.data.len(), 16);
    assert_eq!(up.descriptor.flags.get() & 0x1000, 0x1000, "BUF is set");
    assert_eq!(up.data, [1, 0, 0, 0, 0xA0, 0x86, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[guest::pair(0)] });
    g.send(Request::EnableQueues(QueueSelect::new(VSI, 1, 1)));
    let order: Vec<_> = g.drain().iter().map(guest::Received::opcode).collect();
    assert_eq!(order, [8, 17]);
    g.host.link = LinkStatus { up: false, mbps: 0 };
    g.device.link_changed(g.now, &mut g.host);
    let down = Event::from_message(&g.receive().unwrap().event(), true);
    assert_eq!(down, Event::LinkChange(g.host.link));
}

#[test]
fn c28_a_driver_that_has_not_asked_for_resources_gets_no_events() {
    let mut g = on();
    g.device.link_changed(g.now, &mut g.host);
    assert!(g.receive().is_none());
}

#[test]
fn without_adv_link_speed_events_carry_the_legacy_enumeration() {
    let mut g = Guest::ready_with(Capabilities::L2);
    g.device.link_changed(g.now, &mut g.host);
    assert_eq!(g.receive().unwrap().event().link_speed.get(), 1 << 4);
}

#[test]
fn c33_statistics_are_96_bytes_monotonic_and_start_over_with_a_reset() {
    let mut g = Guest::ready();
    let select = QueueSelect::new(VSI, 0, 0);
    let counted = EthStats { rx_bytes: 1000, tx_errors: 3, ..EthStats::default() };
    g.host.statistics = counted;
    g.send(Request::GetStats(select));
    let received = g.receive().unwrap();
    assert_eq!((received.data.len(), received.reply()), (96, Reply::Stats(counted)));
    g.send(Request::ResetVf);
    g.start_mailbox(Order::LengthFirst);
    g.negotiate(RECOMMENDED_CAPABILITIES);
    assert_eq!(g.ask(Request::GetStats(select)), Ok(Reply::Stats(EthStats::default())));
    g.host.statistics.rx_bytes += 64;
    let since = EthStats { rx_bytes: 64, ..EthStats::default() };
    assert_eq!(g.ask(Request::GetStats(select)), Ok(Reply::Stats(since)));
    assert_eq!(g.ask(Request::GetStats(QueueSelect::new(9, 0, 0))), Err(Status::Parameter));
}

#[test]
fn c34_request_queues_resets_without_an_answer_and_gives_the_new_number() {
    let mut g = Guest::ready();
    g.start_queues(4);
    g.host.take_calls();
    g.send(Request::RequestQueues(8));
    // The event is the only message, and the VF was reset behind it.
    let event = g.receive().unwrap();
    assert_eq!(event.data, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0, 0, 0]);
    assert_eq!(event.opcode(), 17);
    assert!(g.receive().is_none());
    assert_eq!(g.read(registers::ARQLEN) >> 31, 0);
    assert_eq!(g.read(registers::ATQLEN) >> 31, 0);
    assert_eq!(g.read(registers::RSTAT), 2);
    assert_eq!(g.host.take_calls(), [Call::Queues(8), Call::Stop(15, 15), Call::Apply]);
    // V does not send VERSION again.
    g.start_mailbox(Order::LengthLast);
    let Ok(Reply::VfResources(resources)) =
        g.ask(Request::GetVfResources(Some(RECOMMENDED_CAPABILITIES)))
    else {
        panic!("no resources");
    };
    assert_eq!(resources.queue_pairs, 8);
    assert_eq!(g.device.settings().rss.lut[7], 7, "the default table uses all of them");
}

#[test]
fn c34_request_queues_that_fails_is_answered_with_what_there_is() {
    let mut g = Guest::ready();
    g.host.available_queues = 6;
    assert_eq!(g.ask(Request::RequestQueues(7)), Ok(Reply::RequestQueues(6)));
    assert_eq!(g.ask(Request::RequestQueues(9)), Ok(Reply::RequestQueues(8)));
    assert_eq!(g.ask(Request::RequestQueues(0)), Err(Status::Parameter));
    assert_eq!(g.host.take_calls(), [Call::Queues(7)]);
    g.start_queues(4);
}

#[test]
fn c35_a_driver_without_wb_on_itr_finds_its_messages_by_icr01_and_maps_all_to_vector_0() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    let wanted = RECOMMENDED_CAPABILITIES.without(Capabilities::WB_ON_ITR);
    g.negotiate(wanted);
    assert_eq!(g.read(registers::ICR01), 1 << 30);
    assert_eq!(g.read(registers::ICR01), 0);
    g.must(Request::ConfigIrqMap { vectors: &[guest::vector_map(0, 0b1111)] });
    assert!(g.host.applied().rx_interrupts[..4].iter().all(|i| i.vector == Some(0)));
    g.device.link_changed(g.now, &mut g.host);
    assert_eq!(g.read(registers::ICR01), 1 << 30);
    g.interrupts.raise(0, 0, g.now);
    assert_eq!(g.read(registers::ICR01), 1 << 1);
}

#[test]
fn vlan_v2_capabilities_are_the_single_vlan_mode_and_only_for_those_granted() {
    let mut g = Guest::ready();
    assert_eq!(
        g.ask(Request::GetOffloadVlanV2Caps),
        Ok(Reply::VlanV2Capabilities(VlanV2Capabilities::single_vlan(64)))
    );
    let mut g = Guest::ready_with(Capabilities::VLAN);
    assert_eq!(g.ask(Request::GetOffloadVlanV2Caps), Err(Status::NotSupported));
}

#[test]
fn flex_descriptors_are_offered_only_by_a_function_that_has_them() {
    let config = VfConfig { capabilities: SERVED_CAPABILITIES, ..config() };
    let mut g = Guest::with(config);
    g.start_mailbox(Order::LengthFirst);
    g.negotiate(Capabilities(u32::MAX));
    assert_eq!(g.ask(Request::GetSupportedRxdids), Ok(Reply::SupportedRxdids(0b110)));
    let mut pair = guest::pair(0);
    pair.rx.rxdid = 2;
    g.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &[pair] });
    g.must(Request::ConfigTxQueue(pair.tx));
    pair.rx.rxdid = 1;
    g.must(Request::ConfigRxQueue(pair.rx));
}

#[test]
fn a_pinned_mac_reaches_the_vf_by_a_reset_and_no_other_is_accepted() {
    let mut g = Guest::ready();
    let extra = [EthAddr::new(THIRD_MAC, MacFilterKind::Extra)];
    g.must(Request::AddEthAddr { vsi_id: VSI, list: &extra });
    let admin = AdminSettings { pinned_mac: Some(OTHER_MAC), ..AdminSettings::default() };
    g.device.set_admin(admin, g.now, &mut g.host);
    assert_eq!(g.receive().unwrap().event(), Event::ResetImpending.to_message(true));
    g.start_mailbox(Order::LengthFirst);
    assert_eq!(g.negotiate(RECOMMENDED_CAPABILITIES).default_mac, OTHER_MAC);
    let add = |address| [EthAddr::new(address, MacFilterKind::Primary)];
    let ask = |g: &mut Guest, mac| g.ask(Request::AddEthAddr { vsi_id: VSI, list: &add(mac) });
    assert_eq!(ask(&mut g, MAC), Err(Status::AdminQueue));
    assert_eq!(ask(&mut g, OTHER_MAC), Ok(Reply::Empty));
    // The pinned address cannot be removed either.
    g.must(Request::DelEthAddr { vsi_id: VSI, list: &add(OTHER_MAC) });
    assert_eq!(g.device.settings().primary_mac, Some(OTHER_MAC));
    // A trusted VF may.
    g.device.set_admin(AdminSettings { trusted: true, ..admin }, g.now, &mut g.host);
    assert_eq!(ask(&mut g, MAC), Ok(Reply::Empty));
}

#[test]
fn impossible_configurations_are_refused_with_their_reason() {
    let page = Guest::new().rx_page;
    let make = |config: VfConfig| {
        let interrupts =
            std::sync::Arc::new(avf_device::InterruptVectors::new(config.vectors, &page));
        avf_device::AvfDevice::new(config, (page.clone(), page.clone()), interrupts).err()
    };
    assert_eq!(make(config()), None);
    assert_eq!(make(VfConfig { vsi_id: 0, ..config() }), Some(ConfigError::VsiId));
    assert_eq!(
        make(VfConfig { queue_pairs: 9, ..config() }),
        Some(ConfigError::QueuePairs { initial: 9, maximum: 8 })
    );
    assert_eq!(make(VfConfig { vectors: 1, ..config() }), Some(ConfigError::Vectors(1)));
    let nine = std::sync::Arc::new(avf_device::InterruptVectors::new(9, &page));
    let three = VfConfig { vectors: 3, ..config() };
    assert_eq!(
        avf_device::AvfDevice::new(three, (page.clone(), page.clone()), nine).err(),
        Some(ConfigError::VectorsDiffer { configured: 3, made: 9 })
    );
    let mac = MacAddress::BROADCAST;
    assert_eq!(make(VfConfig { mac, ..config() }), Some(ConfigError::Mac(mac)));
    let capabilities = Capabilities::PTP | Capabilities::L2;
    assert_eq!(
        make(VfConfig { capabilities, ..config() }),
        Some(ConfigError::Capabilities(Capabilities::PTP))
    );
    assert_eq!(make(VfConfig { max_frame: 64, ..config() }), Some(ConfigError::MaxFrame(64)));
}
