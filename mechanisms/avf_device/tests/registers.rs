//! SPEC-AVF §10, items 3 to 11: registers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod guest;

use avf_device::ResetKind;
use avf_protocol::{
    registers::{self, QueueLength, Register, cause},
    virtchnl::{QueueSelect, Reply, Request, Version},
};
use guest::{Call, Guest, Order, VSI};
use shared_memory::DmaMap;

#[test]
fn c03_without_bus_mastering_the_mailbox_waits_and_nothing_is_written() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    g.arm_vector_0();
    g.device.set_dma_map(DmaMap::empty(), g.now, &mut g.host);
    g.interrupts.set_enabled(false, g.now);
    let index = g.queue(Request::Version(Version::V1_1));
    let before = (g.sent_descriptor(index), g.arq_descriptor(0));
    g.ring();
    assert_eq!((g.sent_descriptor(index), g.arq_descriptor(0)), before);
    assert_eq!((g.read(registers::ATQH), g.interrupts_on(0), g.device.faults()), (0, 0, 0));
    // Bus mastering on: what waits is served.
    g.device.set_dma_map(g.dma.clone(), g.now, &mut g.host);
    assert_eq!(g.receive().unwrap().reply(), Reply::Version(Version::V1_1));
    assert_eq!(g.interrupts_on(0), 0);
    g.interrupts.set_enabled(true, g.now);
    assert_eq!(g.interrupts_on(0), 1);
}

#[test]
fn c04_undefined_offsets_read_0_and_ignore_writes_and_defined_ones_work() {
    let mut g = Guest::new();
    for offset in (0..0x1_0000).step_by(4).filter(|offset| Register::decode(*offset).is_none()) {
        g.write(offset, 0xFFFF_FFFF);
        assert_eq!(g.read(offset), 0, "{offset:#x}");
    }
    assert!(g.host.take_calls().is_empty());
    // Plain registers read back what was written.
    for offset in [
        registers::ATQBAL,
        registers::ATQBAH,
        registers::ARQBAL,
        registers::ARQBAH,
        registers::ICR0_ENA1,
        registers::STAT_CTL01,
        registers::HENA,
        registers::HKEY + 48,
        registers::HLUT + 60,
        registers::tx_tail(15),
        registers::rx_tail(0),
    ] {
        g.write(offset, 0x1234_5678);
        assert_eq!(g.read(offset), 0x1234_5678, "{offset:#x}");
    }
    for offset in [registers::ITR01 + 8, registers::itrn(2, 15)] {
        g.write(offset, 0xFFFF_F07A);
        assert_eq!(g.read(offset), 0x07A, "{offset:#x}");
    }
    assert_eq!(g.rx_page.load((0x28BC - 0x2000) / 4), 0x7A, "ITRN lies in the shared page");
    g.write(registers::dyn_ctl(3), 0x19);
    assert_eq!(g.read(registers::dyn_ctl(3)), 0x19);
    g.write(registers::dyn_ctl(3), registers::DynCtl::INTENA_MSK | 0x18);
    assert_eq!(g.read(registers::dyn_ctl(3)) & 1, 1, "INTENA_MSK leaves INTENA alone");
}

#[test]
fn c05_rstat_reads_2_when_idle_and_accepts_writes() {
    let mut g = Guest::new();
    assert_eq!(g.read(registers::RSTAT), 2);
    g.write(registers::RSTAT, 0);
    assert_eq!(g.read(registers::RSTAT), 0);
    g.start_mailbox(Order::LengthFirst);
    g.send(Request::ResetVf);
    assert_eq!(g.read(registers::RSTAT), 2);
}

#[test]
fn c06_the_bases_read_back_before_and_after_enable() {
    let mut g = Guest::new();
    for enable in [0, QueueLength::ENABLE | 32] {
        g.write(registers::ATQLEN, enable);
        g.write(registers::ARQLEN, enable);
        for (base, value) in [(registers::ATQBAL, 0x1000), (registers::ARQBAL, 0xFFFF_FFFF)] {
            g.write(base, value);
            assert_eq!(g.read(base), value);
        }
    }
}

#[test]
fn c07_heads_accept_0_and_are_always_below_the_length() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    g.negotiate(avf_device::RECOMMENDED_CAPABILITIES);
    for head in [registers::ATQH, registers::ARQH] {
        g.write(head, 0);
        assert_eq!(g.read(head), 0);
        g.write(head, 0x3FF);
        assert!(g.read(head) < 32);
    }
}

#[test]
fn c08_both_orders_of_length_and_base_work() {
    for order in [Order::LengthFirst, Order::LengthLast] {
        let mut g = Guest::new();
        g.start_mailbox(order);
        assert_eq!(
            g.ask(Request::Version(Version::V1_1)),
            Ok(Reply::Version(Version::V1_1)),
            "{order:?}"
        );
    }
}

#[test]
fn c09_icr01_latches_the_admin_queue_while_everything_is_masked_and_clears_on_read() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    assert_eq!(g.read(registers::ICR01), 0);
    g.send(Request::Version(Version::V1_1));
    assert_eq!(g.read(registers::ICR01), cause::ADMINQ);
    assert_eq!(g.read(registers::ICR01), 0);
}

#[test]
fn c10_error_bits_stay_0_and_can_be_cleared() {
    let mut g = Guest::ready();
    g.start_queues(4);
    for length in [registers::ATQLEN, registers::ARQLEN] {
        assert_eq!(g.read(length), QueueLength::enabled(32).0);
        g.write(length, QueueLength::enabled(32).0);
        assert_eq!(g.read(length) & QueueLength::ERRORS, 0);
    }
    assert_eq!(g.ask(Request::Version(Version::V1_1)), Ok(Reply::Version(Version::V1_1)));
}

#[test]
fn a_ring_out_of_reach_sets_the_error_bit_counts_a_fault_and_recovers() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    g.write(registers::ATQBAH, 0xDEAD);
    g.queue(Request::Version(Version::V1_1));
    g.ring();
    assert_eq!(g.device.faults(), 1);
    assert_ne!(g.read(registers::ATQLEN) & QueueLength::CRITICAL, 0);
    g.ring();
    assert_eq!(g.device.faults(), 1, "a stopped queue makes no further accesses");
    g.stop_mailbox();
    g.start_mailbox(Order::LengthFirst);
    assert_eq!(g.ask(Request::Version(Version::V1_1)), Ok(Reply::Version(Version::V1_1)));
}

#[test]
fn c11_tails_of_unconfigured_queues_have_no_effect() {
    let mut g = Guest::ready();
    for word in 0..1024 {
        g.tx_page.store(word, 0xFFFF_FFFF);
        g.rx_page.store(word, 0xABCD_EF01);
    }
    for queue in 0..16 {
        g.write(registers::tx_tail(queue), 77);
        g.write(registers::rx_tail(queue), 77);
    }
    assert_eq!(g.host.take_calls(), vec![Call::Doorbell; 32], "told to look, nothing else");
    assert_eq!(g.device.running_queues(), (0, 0));
    g.must(Request::DisableQueues(QueueSelect::new(VSI, 15, 15)));
}

#[test]
fn trapped_tails_reach_the_doorbell_pages() {
    let mut g = Guest::new();
    g.write(registers::tx_tail(3), 17);
    g.write(registers::rx_tail(9), 18);
    assert_eq!((g.tx_page.load(3), g.rx_page.load(9)), (17, 18));
    g.tx_page.store(3, 19);
    assert_eq!(g.read(registers::tx_tail(3)), 19);
}

#[test]
fn a_message_that_moderation_holds_back_is_announced_to_the_host() {
    let mut g = Guest::ready();
    let arm = registers::DynCtl::enable_with_interval(0, 100).0;
    g.write(registers::dyn_ctl(1), arm);
    g.interrupts.raise(1, 0, g.now);
    g.interrupts.raise(1, 0, g.now);
    g.now += 10_000;
    g.write(registers::dyn_ctl(1), arm);
    let calls = g.host.take_calls();
    let [Call::Due(due)] = calls[..] else { panic!("{calls:?}") };
    assert_eq!(g.interrupts_on(1), 1);
    assert_eq!(g.interrupts.expire_due(due), None);
    assert_eq!(g.interrupts_on(1), 1);
}

#[test]
fn rss_registers_count_where_the_rss_capability_was_withheld() {
    let mut g = Guest::ready_with(avf_protocol::virtchnl::Capabilities::L2);
    assert!(!g.device.settings().rss.enabled);
    g.write(registers::HENA, 1 << 31);
    g.write(registers::HENA + 4, 1 << 1);
    for i in 0..13 {
        g.write(registers::HKEY + 4 * i, 0x0302_0100 + 0x0404_0404 * i);
    }
    g.write(registers::HLUT + 4, 0x0302_0100);
    let rss = g.host.applied().rss;
    assert!(rss.enabled);
    assert_eq!(rss.hash_enable, 1 << 31 | 1 << 33);
    assert_eq!(rss.key[..6], [0, 1, 2, 3, 4, 5]);
    assert_eq!(rss.lut[4..8], [0, 1, 2, 3]);
    g.device.reset(ResetKind::Pf, g.now, &mut g.host);
    assert!(!g.host.applied().rss.enabled);
    assert_eq!(g.read(registers::HENA), 0);
}
