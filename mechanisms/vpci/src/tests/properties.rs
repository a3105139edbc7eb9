//! Any order of events: nothing panics, nothing leaks, and every effect makes sense ([`Partition`] checks).

use proptest::{collection::vec, prelude::*};
use vpci_protocol::{MessageType, ProtocolVersion};

use super::world::*;
use crate::{Incoming, vsc::VscState, vsp::Presence};

/// Bytes that begin like a message, and often are one.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop::sample::select(MessageType::ALL);
    let zeroes = vec(prop_oneof![6 => Just(0u8), 1 => Just(1), 1 => any::<u8>()], 0..300);
    prop_oneof![
        4 => (kinds, zeroes).prop_map(|(kind, mut rest)| {
            let mut payload = kind.to_wire().to_le_bytes().to_vec();
            payload.append(&mut rest);
            payload
        }),
        1 => Just(b"\x13\x00\x49\x42\x04\x00\x01\x00".to_vec()),
        2 => Just(b"\x07\x00\x49\x42\x00\x00\x00\x00\x00\x00\x00\xF8\x00\x00\x00\x00".to_vec()),
        1 => vec(any::<u8>(), 0..40),
    ]
}

#[derive(Clone, Debug)]
enum HostEvent {
    Message(Option<u64>, Vec<u8>),
    Completion(u64, Vec<u8>),
    Window(u64, Vec<u8>),
    ReadWindow(u64, usize),
    Bar(u64, Vec<u8>),
    Retarget(u32, u16),
    Pf,
    Pass(u64),
    Eject,
    Surprise,
    Invalidate(u64),
    Congested(bool),
    QueryStop,
    ReEnable,
    Close,
    Open,
}

fn host_events() -> impl Strategy<Value = HostEvent> {
    use HostEvent as E;
    let registers = prop_oneof![
        Just(0x1010u64),
        Just(0x1014),
        Just(0x101C),
        Just(0x1004),
        0x1000u64..0x1100,
        any::<u64>(),
        Just(0)
    ];
    let values = prop_oneof![
        Just(0xF010_0000u32.to_le_bytes().to_vec()),
        Just(vec![0; 4]),
        Just(vec![6, 0]),
        vec(any::<u8>(), 0..9)
    ];
    prop_oneof![
        10 => (any::<Option<u64>>(), payloads()).prop_map(|(tid, payload)| E::Message(tid, payload)),
        1 => (prop_oneof![Just(1 << 63), any::<u64>()], vec(any::<u8>(), 0..9))
            .prop_map(|(tid, payload)| E::Completion(tid, payload)),
        8 => (registers.clone(), values.clone()).prop_map(|(at, data)| E::Window(at, data)),
        2 => (registers, 0usize..9).prop_map(|(at, length)| E::ReadWindow(at, length)),
        4 => (0u64..0x120, values).prop_map(|(at, data)| E::Bar(at, data)),
        1 => (0u32..4, 0u16..6).prop_map(|(data, vp)| E::Retarget(data, vp)),
        4 => Just(E::Pf),
        2 => (0u64..30).prop_map(E::Pass),
        1 => Just(E::Eject),
        1 => Just(E::Surprise),
        1 => any::<u64>().prop_map(E::Invalidate),
        1 => any::<bool>().prop_map(E::Congested),
        1 => Just(E::QueryStop),
        1 => Just(E::ReEnable),
        1 => Just(E::Close),
        2 => Just(E::Open),
    ]
}

fn apply(host: &mut Host, event: HostEvent) {
    use HostEvent as E;
    let effects = match event {
        E::Message(transaction, payload) => {
            let packet = Incoming::Message { transaction, payload: &payload };
            host.vsp.receive(packet, host.now)
        }
        E::Completion(transaction, payload) => {
            host.vsp.receive(Incoming::Completion { transaction, payload: &payload }, host.now)
        }
        E::Window(offset, data) => host.vsp.window_write(offset, &data),
        E::ReadWindow(offset, length) => {
            host.vsp.window_read(offset, &mut vec![0; length], &host.vf);
            Vec::new()
        }
        E::Bar(offset, data) => {
            host.vsp.bar_write(pcie_protocol::BarIndex::BAR3, offset, &data).unwrap_or_default()
        }
        E::Retarget(data, vp) => {
            let target = crate::vsp::InterruptTarget::fixed(0x55, vp);
            host.vsp.retarget(0xFEE0_0000, data, target).unwrap_or_default()
        }
        E::Pf => {
            host.run_pf();
            Vec::new()
        }
        E::Pass(time) => {
            host.now += seconds(time);
            host.vsp.poll(host.now)
        }
        E::Eject => host.vsp.eject(seconds(60), host.now),
        E::Surprise => host.vsp.surprise_remove(host.now),
        E::Invalidate(mask) => host.vsp.invalidate_blocks(mask),
        E::Congested(congested) => host.vsp.set_congested(congested),
        E::QueryStop => host.vsp.query_stop(seconds(5), host.now),
        E::ReEnable => host.vsp.re_enable(),
        E::Close => host.vsp.channel_closed(),
        E::Open => {
            // A channel is opened once at a time.
            if host.vsp.bus() == crate::vsp::BusState::Closed {
                host.open();
                return;
            }
            Vec::new()
        }
    };
    host.carry_out(effects);
}

#[derive(Copy, Clone, Debug)]
enum Step {
    ToHost,
    ToGuest,
    Pf,
    Pass(u64),
    Eject,
    Ejected,
    Surprise,
    QueryStop,
    StopAnswer(bool),
    ReEnable,
    ReadBlock,
    Interrupt,
    Invalidate,
    ShutDown,
    Close,
    Open,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::ToHost),
        12 => Just(Step::ToGuest),
        6 => Just(Step::Pf),
        2 => (0u64..20).prop_map(Step::Pass),
        1 => Just(Step::Eject),
        2 => Just(Step::Ejected),
        1 => Just(Step::Surprise),
        1 => Just(Step::QueryStop),
        2 => any::<bool>().prop_map(Step::StopAnswer),
        1 => Just(Step::ReEnable),
        3 => Just(Step::ReadBlock),
        2 => Just(Step::Interrupt),
        1 => Just(Step::Invalidate),
        1 => Just(Step::ShutDown),
        1 => Just(Step::Close),
        2 => Just(Step::Open),
    ]
}

fn step(world: &mut World, step: Step) {
    let now = world.host.now;
    // Once the offer is taken back, the ring is not used any more; the guest learns that.
    let rescinded = world.host.partition.rescinded;
    match step {
        Step::ToHost if !rescinded => {
            world.one_to_host();
        }
        Step::ToGuest => {
            world.one_to_guest();
        }
        Step::ToHost => {}
        Step::Pf => world.host.run_pf(),
        Step::Pass(time) => world.pass(seconds(time)),
        Step::Ejected if std::mem::take(&mut world.guest.eject_requested) => {
            let effects = world.guest.vsc.ejected();
            world.guest(effects);
        }
        Step::StopAnswer(answer) if std::mem::take(&mut world.guest.stop_requested) => {
            let effects = world.guest.vsc.stop_answer(answer);
            world.guest(effects);
        }
        Step::Ejected | Step::StopAnswer(_) => {}
        Step::Eject | Step::Surprise | Step::QueryStop | Step::ReEnable | Step::Invalidate => {
            let vsp = &mut world.host.vsp;
            let effects = match step {
                Step::Eject => vsp.eject(seconds(60), now),
                Step::Surprise => vsp.surprise_remove(now),
                Step::QueryStop => vsp.query_stop(seconds(5), now),
                Step::ReEnable => vsp.re_enable(),
                _ => vsp.invalidate_blocks(0b101),
            };
            world.host.carry_out(effects);
        }
        Step::ReadBlock => {
            if let Ok((_, effects)) = world.guest.vsc.read_block(1, 16, now) {
                world.guest(effects);
            }
        }
        Step::Interrupt => {
            let request = vpci_protocol::InterruptRequest::single(0x41, 0);
            if let Ok((_, effects)) = world.guest.vsc.create_interrupt(request, now) {
                world.guest(effects);
            }
        }
        Step::ShutDown => {
            let effects = world.guest.vsc.shut_down(now);
            world.guest(effects);
        }
        Step::Close => world.close(),
        Step::Open => {
            if world.host.vsp.bus() == crate::vsp::BusState::Closed
                && *world.guest.vsc.state() == VscState::Closed
            {
                world.open();
            }
        }
    }
}

proptest! {
    #[test]
    fn no_guest_can_break_a_host(running: bool, events in vec(host_events(), 0..120)) {
        let mut host = if running { Host::running() } else { Host::new() };
        if !running {
            host.open();
        }
        for event in events {
            apply(&mut host, event);
            prop_assert!(host.vsp.interrupt_count() <= 2048);
            prop_assert!(host.vsp.claims().len() <= 7);
            // The deadlines of what is waited for are ahead, or due.
            if let Presence::Ejecting { deadline } = host.vsp.presence() {
                prop_assert!(host.vsp.next_deadline() <= Some(deadline));
            }
        }
        // However it went: when the channel is closed, the guest has nothing.
        host.close();
        prop_assert!(host.vsp.claims().is_empty());
        host.now += seconds(1000);
        let effects = host.vsp.poll(host.now);
        host.carry_out(effects);
        prop_assert_eq!(host.vsp.next_deadline(), None);
    }

    #[test]
    fn any_interleaving_of_two_honest_ends_settles(
        versions in prop::sample::select(&ProtocolVersion::ALL[..]),
        steps in vec(steps(), 0..150),
    ) {
        let mut world = World::new(config(), versions);
        world.open();
        for one in steps {
            step(&mut world, one);
        }
        // Whatever is still owed is given, or its deadline comes.
        for _ in 0..20 {
            if !world.host.partition.rescinded {
                world.settle();
            }
            world.pass(seconds(20));
            if world.host.vsp.next_deadline().is_none() && world.guest.vsc.next_deadline().is_none() {
                break;
            }
        }
        if world.host.partition.rescinded || world.guest.close {
            world.close();
        } else {
            // They agree.
            let running = *world.guest.vsc.state() == VscState::Running;
            if running && !world.host.vsp.is_stopped() {
                prop_assert_eq!(world.host.partition.bars.len(), 2);
            }
        }
        prop_assert_eq!(world.host.vsp.next_deadline(), None);
        prop_assert_eq!(world.guest.vsc.next_deadline(), None);
    }

    #[test]
    fn no_host_can_break_a_guest(
        packets in vec((any::<Option<u64>>(), prop_oneof![payloads(), Just(vec![0; 32])], 0u64..12), 0..60)
    ) {
        let mut world = World::new(config(), ProtocolVersion::V1_5);
        let effects = world.guest.vsc.channel_opened(world.host.now);
        let mut count = effects.len();
        let mut now = world.host.now;
        for (transaction, payload, small) in packets {
            for packet in [
                Incoming::Message { transaction, payload: &payload },
                Incoming::Completion { transaction: small, payload: &payload },
            ] {
                let effects = world.guest.vsc.receive(packet, now);
                prop_assert!(effects.len() < 40);
                count += effects.len();
            }
            now += seconds(1);
            count += world.guest.vsc.poll(now).len();
        }
        prop_assert!(count > 0);
        world.guest.vsc.channel_closed();
        prop_assert_eq!(world.guest.vsc.next_deadline(), None);
    }
}
