//! A guest that does its worst: nothing panics, nothing grows, and a function level reset brings the device
//! back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod guest;

use avf_device::ResetKind;
use avf_protocol::{
    registers::{self, Register},
    virtchnl::{Reply, Request, Version},
};
use guest::{Guest, MEMORY, Order};
use proptest::{collection::vec, prelude::*};
use shared_memory::{DmaAddress, DmaMap};

#[derive(Clone, Debug)]
enum Step {
    Write(u32, u32),
    Read(u32),
    Memory(u64, Vec<u8>),
    Message(u32, Vec<u8>),
    Start,
    Raise(u16, u8),
    LinkChange,
    PfReset,
    BusMaster(bool),
    Time(u32),
}

fn offsets() -> impl Strategy<Value = u32> {
    let defined: Vec<u32> =
        (0..0x1_0000).filter(|offset| Register::decode(*offset).is_some()).collect();
    prop_oneof![
        4 => proptest::sample::select(defined),
        1 => any::<u32>(),
        // The mailbox, most of the time.
        8 => proptest::sample::select(vec![
            registers::ATQT, registers::ATQT, registers::ATQH, registers::ATQLEN,
            registers::ATQBAL, registers::ATQBAH, registers::ARQT, registers::ARQH,
            registers::ARQLEN, registers::ARQBAL, registers::ARQBAH,
        ]),
    ]
}

fn values() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        0u32..64,
        Just(MEMORY as u32),
        Just((MEMORY >> 32) as u32),
        (0u32..1024).prop_map(|length| 1 << 31 | length),
        any::<u32>(),
    ]
}

/// Messages that look like requests: small numbers, the right VSI, plausible counts.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![Just(0u8), Just(7), Just(1), Just(0x80), 0u8..16, any::<u8>()];
    prop_oneof![
        vec(small.clone(), 0..200),
        vec(small, 0..120).prop_map(|rest| [vec![7, 0], rest].concat()),
        vec(any::<u8>(), 0..600),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (offsets(), values()).prop_map(|(offset, value)| Step::Write(offset, value)),
        2 => offsets().prop_map(Step::Read),
        4 => (0u64..0x22_0000, vec(any::<u8>(), 1..300)).prop_map(|(at, b)| Step::Memory(at, b)),
        // The rings themselves.
        4 => (0u64..0x400, vec(any::<u8>(), 1..64)).prop_map(|(at, b)| Step::Memory(at, b)),
        12 => (0u32..120, data()).prop_map(|(opcode, data)| Step::Message(opcode, data)),
        2 => Just(Step::Start),
        2 => (any::<u16>(), any::<u8>()).prop_map(|(vector, itr)| Step::Raise(vector % 20, itr)),
        1 => Just(Step::LinkChange),
        1 => Just(Step::PfReset),
        1 => any::<bool>().prop_map(Step::BusMaster),
        1 => any::<u32>().prop_map(Step::Time),
    ]
}

fn run(g: &mut Guest, step: Step) {
    match step {
        Step::Write(offset, value) => g.write(offset, value),
        Step::Read(offset) => drop(g.read(offset)),
        Step::Memory(at, bytes) => drop(g.dma.write_bytes(DmaAddress(MEMORY + at), &bytes)),
        Step::Message(opcode, data) => {
            g.queue_raw(opcode, &data);
            g.ring();
        }
        Step::Start => g.start_mailbox(Order::LengthLast),
        Step::Raise(vector, itr) => drop(g.interrupts.raise(vector, itr, g.now)),
        Step::LinkChange => g.device.link_changed(g.now, &mut g.host),
        Step::PfReset => g.device.reset(ResetKind::Pf, g.now, &mut g.host),
        Step::BusMaster(on) => {
            let map = if on { g.dma.clone() } else { DmaMap::empty() };
            g.device.set_dma_map(map, g.now, &mut g.host);
        }
        Step::Time(ns) => g.now += u64::from(ns),
    }
}

fn check(g: &Guest) {
    let settings = g.device.settings();
    assert!(settings.unicast.len() + settings.multicast.len() <= 64);
    assert!(settings.vlans.len() <= 64 && settings.vlans.iter().all(|id| (1..4096).contains(id)));
    assert!((1..=8).contains(&settings.queue_pairs));
    assert!(settings.rss.lut.iter().all(|queue| u16::from(*queue) < settings.queue_pairs));
    for interrupt in settings.tx_interrupts.iter().chain(&settings.rx_interrupts) {
        assert!(interrupt.vector.is_none_or(|vector| vector < 9) && interrupt.itr < 4);
    }
    let (tx, rx) = g.device.running_queues();
    assert_eq!((tx | rx) >> settings.queue_pairs, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_registers_memory_and_messages_never_panic_and_flr_brings_the_device_back(
        steps in vec(steps(), 0..120),
    ) {
        let mut g = Guest::ready();
        for step in steps {
            run(&mut g, step);
            check(&g);
            g.host.calls.clear();
        }
        g.device.reset(ResetKind::Flr, g.now, &mut g.host);
        g.device.set_dma_map(g.dma.clone(), g.now, &mut g.host);
        g.start_mailbox(Order::LengthFirst);
        prop_assert_eq!(
            g.ask(Request::Version(Version::V1_1)),
            Ok(Reply::Version(Version::V1_1))
        );
    }
}

#[test]
fn a_mailbox_in_read_only_memory_or_across_a_hole_is_a_fault_and_no_more() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    // The ARQ at the last bytes of memory: its second descriptor is out of reach.
    let end = MEMORY + 0x22_0000 - 32;
    g.write(registers::ARQBAL, end as u32);
    g.write(registers::ARQT, 31);
    for _ in 0..100 {
        g.queue(Request::GetQosCaps);
        g.ring();
    }
    assert_eq!(g.device.faults(), 1, "the queue stops at its first fault");
    g.stop_mailbox();
    g.start_mailbox(Order::LengthFirst);
    assert_eq!(g.ask(Request::Version(Version::V1_1)), Ok(Reply::Version(Version::V1_1)));
}

#[test]
fn misaligned_rings_are_faults() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    g.write(registers::ATQBAL, MEMORY as u32 + 2);
    g.write(registers::ATQT, 1);
    assert!(g.device.faults() > 0);
}

#[test]
fn a_flood_of_resets_and_requests_grows_nothing() {
    let mut g = Guest::new();
    g.reposts = false;
    for round in 0..200 {
        g.start_mailbox(Order::LengthFirst);
        for opcode in 0..31 {
            g.queue_raw(if opcode == 30 { 2 } else { 1000 + opcode }, &[0; 8]);
        }
        g.ring();
        assert_eq!(g.read(registers::RSTAT), 2, "round {round}");
        assert_eq!(g.read(registers::ARQLEN) >> 31, 0);
    }
}
