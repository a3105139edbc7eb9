//! SPEC-AVF §10, items 58 to 61 and 63: resets and removal.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod guest;

use avf_device::{AdminSettings, RECOMMENDED_CAPABILITIES, ResetKind, VfSettings};
use avf_protocol::{
    admin_queue::{AdminQueueDescriptor, flags},
    registers,
    virtchnl::{
        Capabilities, EthAddr, Event, MacFilterKind, QueueSelect, Reply, Request, Version,
        VlanFilter,
    },
};
use guest::{Call, Guest, MAC, OTHER_MAC, Order, THIRD_MAC, VSI, vector_map};

/// A VF of which everything has been changed, with traffic.
fn busy() -> Guest {
    let mut g = Guest::ready();
    g.start_queues(4);
    let list = [
        EthAddr::new(OTHER_MAC, MacFilterKind::Primary),
        EthAddr::new(THIRD_MAC, MacFilterKind::Extra),
    ];
    g.must(Request::AddEthAddr { vsi_id: VSI, list: &list });
    g.must(Request::AddVlanV2 { vport_id: VSI, filters: &[VlanFilter::inner(9)] });
    g.must(Request::ConfigRssLut { vsi_id: VSI, lut: &[2; 64] });
    g.device.set_admin(
        AdminSettings { trusted: true, ..AdminSettings::default() },
        g.now,
        &mut g.host,
    );
    g.must(Request::ConfigPromiscuousMode { vsi_id: VSI, flags: 3 });
    for queue in 0..4 {
        g.tx_page.store(queue, 100);
        g.rx_page.store(queue, 50);
        g.write(registers::dyn_ctl(queue as u16 + 1), 0x19 | 40 << 5);
        g.interrupts.raise(queue as u16 + 1, 0, g.now);
        g.interrupts.raise(queue as u16 + 1, 0, g.now);
    }
    g.arm_vector_0();
    for vector in 0..5 {
        g.interrupts_on(vector);
    }
    g.host.take_calls();
    g
}

/// What is left of the settings after a reset of a busy VF.
fn check_reset(g: &mut Guest) {
    let settings = g.host.applied().clone();
    let fresh = Guest::new().device.settings().clone();
    assert_eq!(settings, VfSettings { primary_mac: Some(OTHER_MAC), ..fresh });
    assert_eq!(g.device.settings(), &settings);
    assert_eq!(g.device.running_queues(), (0, 0));
    assert_eq!(g.device.granted(), Capabilities::NONE);
    for word in 0..1024 {
        assert_eq!((g.tx_page.load(word), g.rx_page.load(word)), (0, 0));
    }
    for offset in
        [registers::DYN_CTL01, registers::ICR0_ENA1, registers::dyn_ctl(1), registers::ICR01]
    {
        assert_eq!(g.read(offset), 0, "{offset:#x}");
    }
    // Nothing that happened before fires when the next owner arms its vectors.
    g.arm_vector_0();
    for vector in 1..5 {
        g.write(registers::dyn_ctl(vector), 0x19);
    }
    for vector in 0..5 {
        assert_eq!(g.interrupts_on(vector), 0);
    }
}

#[test]
fn c58_reset_vf_completes_its_descriptor_clears_the_enables_and_keeps_the_heads() {
    let mut g = busy();
    let index = g.queue(Request::ResetVf);
    let (bal, bah) = (g.read(registers::ATQBAL), g.read(registers::ARQBAH));
    let arq_head = g.read(registers::ARQH);
    g.ring();
    let done = g.sent_descriptor(index);
    assert!(done.has(flags::DD | flags::CMP) && !done.has(flags::ERR));
    assert_eq!(g.read(registers::ATQH), g.read(registers::ATQT), "L looks at the head once more");
    assert_eq!(g.read(registers::ARQH), arq_head, "no answer");
    assert_eq!((g.read(registers::ATQBAL), g.read(registers::ARQBAH)), (bal, bah));
    assert_eq!(g.read(registers::ATQLEN), 32);
    assert_eq!(g.read(registers::ARQLEN), 32);
    assert_eq!(g.read(registers::RSTAT), 2);
    assert_eq!(g.host.take_calls(), [Call::Stop(15, 15), Call::Apply]);
    check_reset(&mut g);
    // Requests behind the reset are not looked at.
    let index = g.queue(Request::Version(Version::V1_1));
    g.ring();
    assert!(!g.sent_descriptor(index).has(flags::DD));
    g.start_mailbox(Order::LengthFirst);
    assert_eq!(g.negotiate(RECOMMENDED_CAPABILITIES).default_mac, OTHER_MAC);
}

#[test]
fn c58_requests_queued_behind_a_reset_stay_where_they_are() {
    let mut g = Guest::ready();
    g.queue(Request::ResetVf);
    let behind = g.queue(Request::Version(Version::V1_1));
    g.ring();
    assert!(!g.sent_descriptor(behind).has(flags::DD));
    assert_eq!(g.read(registers::ATQH) + 1, g.read(registers::ATQT));
}

#[test]
fn c59_a_pf_reset_is_announced_and_the_driver_recovers_from_any_state() {
    // Each state of a driver, and what it does first after the reset.
    let states: [fn(&mut Guest); 6] = [
        |_| {},
        |g| g.start_mailbox(Order::LengthFirst),
        |g| {
            g.start_mailbox(Order::LengthFirst);
            g.send(Request::Version(Version::V1_1));
        },
        |g| {
            g.start_mailbox(Order::LengthFirst);
            g.negotiate(RECOMMENDED_CAPABILITIES);
        },
        |g| {
            g.start_mailbox(Order::LengthFirst);
            g.negotiate(RECOMMENDED_CAPABILITIES);
            g.start_queues(4);
        },
        |g| {
            g.start_mailbox(Order::LengthFirst);
            g.negotiate(RECOMMENDED_CAPABILITIES);
            g.start_queues(4);
            g.must(Request::DisableQueues(QueueSelect::new(VSI, 15, 15)));
        },
    ];
    for (state, reach) in states.into_iter().enumerate() {
        let mut g = Guest::new();
        reach(&mut g);
        g.arm_vector_0();
        g.interrupts_on(0);
        let listening = g.read(registers::ARQLEN) >> 31 == 1;
        g.device.reset(ResetKind::Pf, g.now, &mut g.host);
        let last = g.drain().pop();
        if listening {
            let event = last.expect("the announcement").event();
            assert_eq!(event, Event::ResetImpending.to_message(false), "state {state}");
        } else {
            assert!(last.is_none());
        }
        assert_eq!(g.read(registers::ARQLEN) >> 31, 0);
        assert_eq!(g.read(registers::RSTAT), 2);
        assert_eq!(g.device.running_queues(), (0, 0));
        g.stop_mailbox();
        g.start_mailbox(Order::LengthFirst);
        g.negotiate(RECOMMENDED_CAPABILITIES);
        g.start_queues(4);
    }
}

#[test]
fn c60_flr_under_traffic_leaves_nothing_and_a_clean_probe_follows() {
    let mut g = busy();
    g.device.reset(ResetKind::Flr, g.now, &mut g.host);
    assert_eq!(g.host.take_calls(), [Call::Stop(15, 15), Call::Apply]);
    for offset in [
        registers::ATQLEN,
        registers::ATQBAL,
        registers::ATQT,
        registers::ATQH,
        registers::ARQLEN,
        registers::ARQBAH,
        registers::ARQH,
    ] {
        assert_eq!(g.read(offset), 0, "{offset:#x}");
    }
    assert_eq!(g.read(registers::RSTAT), 2);
    check_reset(&mut g);
    // Bus mastering is off: nothing is read or written until it is on again.
    g.start_mailbox(Order::LengthFirst);
    let index = g.queue(Request::GetVfResources(Some(RECOMMENDED_CAPABILITIES)));
    g.ring();
    assert!(!g.sent_descriptor(index).has(flags::DD));
    g.device.set_dma_map(g.dma.clone(), g.now, &mut g.host);
    g.interrupts.set_enabled(true, g.now);
    let Reply::VfResources(resources) = g.receive().unwrap().reply() else { panic!() };
    // The version is remembered: a Linux driver whose function was reset under it asks for resources at once.
    assert!(resources.capabilities.contains(Capabilities::RSS_PF), "{:?}", resources.capabilities);
    assert_eq!(g.receive().unwrap().opcode(), 17);
    g.negotiate(RECOMMENDED_CAPABILITIES);
    g.start_queues(4);
}

#[test]
fn c60_flr_restores_the_initial_number_of_queue_pairs() {
    let mut g = Guest::ready();
    g.send(Request::RequestQueues(2));
    assert_eq!(g.device.settings().queue_pairs, 2);
    g.device.reset(ResetKind::Flr, g.now, &mut g.host);
    assert_eq!(g.device.settings().queue_pairs, 4);
}

#[test]
fn c61_a_hundred_loads_and_unloads_leave_nothing_behind() {
    let mut g = Guest::new();
    let fresh = g.device.settings().clone();
    for _ in 0..100 {
        g.start_mailbox(Order::LengthFirst);
        g.negotiate(RECOMMENDED_CAPABILITIES);
        g.must(Request::ConfigIrqMap { vectors: &[vector_map(1, 15)] });
        for _ in 0..5 {
            let list = [EthAddr::new(MAC, MacFilterKind::Primary)];
            g.must(Request::AddEthAddr { vsi_id: VSI, list: &list });
            g.start_queues(4);
            g.must(Request::DisableQueues(QueueSelect::new(VSI, 15, 15)));
            g.must(Request::DelEthAddr { vsi_id: VSI, list: &list });
        }
        g.send(Request::ResetVf);
        let index = g.queue_descriptor(AdminQueueDescriptor::queue_shutdown(true), &[]);
        assert!(!g.sent_descriptor(index).has(flags::DD));
        g.stop_mailbox();
        assert_eq!(g.device.settings(), &fresh);
        assert_eq!((g.read(registers::ARQH), g.read(registers::ATQH)), (0, 0));
    }
    assert_eq!(g.device.faults(), 0);
}

#[test]
fn c63_the_next_owner_sees_no_tails_and_no_interrupts() {
    for kind in [ResetKind::Flr, ResetKind::Pf] {
        let mut g = busy();
        g.device.reset(kind, g.now, &mut g.host);
        g.interrupts.set_enabled(true, g.now);
        for vector in 0..5 {
            g.interrupts_on(vector);
        }
        check_reset(&mut g);
    }
}
