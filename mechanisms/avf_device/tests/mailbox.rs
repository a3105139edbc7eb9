//! SPEC-AVF §10, items 12 to 20: the mailbox.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod guest;

use avf_protocol::{
    admin_queue::{AdminQueueDescriptor, flags},
    registers,
    virtchnl::{Capabilities, Event, LinkStatus, Opcode, Reply, Request, Status, Version},
};
use guest::{Guest, Order, VSI};

#[test]
fn c12_several_outstanding_requests_are_answered_in_order() {
    let mut g = Guest::ready();
    let requests = [
        Request::GetRssHenaCaps,
        Request::GetOffloadVlanV2Caps,
        Request::ConfigPromiscuousMode { vsi_id: VSI, flags: 0 },
        Request::GetQosCaps,
    ];
    for request in requests {
        g.queue(request);
    }
    g.ring();
    let answered: Vec<_> = g.drain().iter().map(guest::Received::opcode).collect();
    let asked: Vec<_> = requests.iter().map(|request| request.opcode().value()).collect();
    assert_eq!(answered, asked);
}

#[test]
fn c13_atq_write_back_carries_dd_and_cmp_and_retval_0_and_keeps_the_rest() {
    let mut g = Guest::ready();
    let index = g.queue_raw(60, &[0; 48]);
    let posted = g.sent_descriptor(index);
    g.ring();
    let done = g.sent_descriptor(index);
    assert_eq!(done.flags.get(), posted.flags.get() | flags::DD | flags::CMP);
    let rest = AdminQueueDescriptor { flags: posted.flags, ..done };
    assert_eq!(rest, posted, "cookies, opcode and address are untouched");
    // The virtchnl error is in the answer, not in retval.
    assert_eq!(g.receive().unwrap().status(), Status::NotSupported);
}

#[test]
fn c14_arq_write_back_is_that_of_the_byte_examples_before_head_and_interrupt() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    g.arm_vector_0();
    g.send(Request::Version(Version::V1_1));
    assert_eq!(g.interrupts_on(0), 1);
    assert_eq!(g.read(registers::ARQH), 1);
    let answer = g.arq_descriptor(0);
    assert_eq!(answer.flags.get(), 0x1203);
    assert_eq!((answer.opcode.get(), answer.datalen.get(), answer.retval.get()), (0x0802, 8, 0));
    assert_eq!((answer.cookie_high.get(), answer.cookie_low.get()), (1, 0));
    assert_eq!(g.receive().unwrap().data, [1, 0, 0, 0, 1, 0, 0, 0]);
    g.send_raw(60, &[]);
    let refused = g.arq_descriptor(1);
    assert_eq!(refused.flags.get(), 0x0203);
    assert_eq!((refused.datalen.get(), refused.cookie_high.get()), (0, 60));
    assert_eq!(refused.cookie_low.get(), 0xFFFF_FFC0);
}

#[test]
fn c15_a_full_arq_holds_messages_and_delivers_all_in_order() {
    let mut g = Guest::new();
    g.arq_length = 4;
    g.reposts = false;
    g.start_mailbox(Order::LengthFirst);
    for round in 0..10 {
        for opcode in 0..30 {
            g.queue_raw(1000 + round * 30 + opcode, &[]);
        }
        g.ring();
        assert_eq!(g.read(registers::ARQH), g.read(registers::ARQT), "no buffer is left");
        for opcode in 0..30 {
            let received = g.receive().expect("a held answer");
            assert_eq!(received.opcode(), 1000 + round * 30 + opcode);
            repost_oldest(&mut g);
        }
        assert!(g.receive().is_none());
    }
}

#[test]
fn c15_link_events_that_nobody_takes_become_one_with_the_newest_state() {
    let mut g = Guest::ready();
    g.reposts = false;
    for mbps in 0..1000 {
        g.host.link = LinkStatus { up: mbps % 2 == 0, mbps };
        g.device.link_changed(g.now, &mut g.host);
    }
    let mut events = 0;
    let mut last = None;
    while let Some(received) = g.receive() {
        events += 1;
        last = Some(Event::from_message(&received.event(), true));
        repost_oldest(&mut g);
    }
    assert!((65..130).contains(&events), "{events} events");
    assert_eq!(last, Some(Event::LinkChange(g.host.link)));
}

/// Hands one consumed buffer back: the slot at the tail.
fn repost_oldest(g: &mut Guest) {
    let tail = g.read(registers::ARQT);
    let next = (tail + 1) % u32::from(g.arq_length);
    g.repost(next as u16);
}

#[test]
fn c15_held_answers_stop_the_taking_of_requests_so_that_nothing_piles_up() {
    let mut g = Guest::new();
    g.atq_length = 1023;
    g.arq_length = 4;
    g.reposts = false;
    // 1023 descriptors of 32 bytes fit before the ARQ ring; buffers of requests are not used.
    g.start_mailbox(Order::LengthFirst);
    for _ in 0..200 {
        let descriptor = AdminQueueDescriptor::send_to_pf(999, 0, 0);
        g.queue_descriptor(descriptor, &[]);
    }
    g.ring();
    let taken = g.read(registers::ATQH);
    assert!((64..100).contains(&taken), "{taken} requests taken");
    let mut answers = 0;
    while g.receive().is_some() {
        answers += 1;
        repost_oldest(&mut g);
    }
    assert_eq!((answers, g.read(registers::ATQH)), (200, 200));
}

#[test]
fn c16_rings_of_4_16_and_256_entries_wrap() {
    for (atq, arq, order) in [
        (4, 16, Order::LengthLast),
        (256, 256, Order::LengthFirst),
        (32, 32, Order::LengthFirst),
        (2, 2, Order::LengthLast),
    ] {
        let mut g = Guest::new();
        (g.atq_length, g.arq_length) = (atq, arq);
        g.start_mailbox(order);
        for round in 0..600 {
            assert_eq!(
                g.ask(Request::Version(Version::V1_1)),
                Ok(Reply::Version(Version::V1_1)),
                "ring of {atq} and {arq}, round {round}"
            );
        }
    }
}

#[test]
fn c17_queue_shutdown_completes_at_once_and_says_nothing() {
    let mut g = Guest::ready();
    let index = g.queue_descriptor(AdminQueueDescriptor::queue_shutdown(true), &[]);
    g.ring();
    let done = g.sent_descriptor(index);
    assert!(done.has(flags::DD | flags::CMP) && !done.has(flags::ERR));
    assert_eq!(done.retval.get(), 0);
    assert!(g.receive().is_none());
}

#[test]
fn c18_unknown_admin_queue_opcodes_complete_with_enosys_and_the_ring_goes_on() {
    let mut g = Guest::ready();
    for opcode in [0x0001, 0x0B02, 0x0802, 0xFFFF] {
        let mut descriptor = AdminQueueDescriptor::send_to_pf(1, 0, 0);
        descriptor.opcode = opcode.into();
        let index = g.queue_descriptor(descriptor, &[]);
        g.ring();
        let done = g.sent_descriptor(index);
        assert!(done.has(flags::DD | flags::CMP | flags::ERR));
        assert_eq!(done.retval.get(), 17);
        assert!(g.receive().is_none());
    }
    g.must(Request::ConfigPromiscuousMode { vsi_id: VSI, flags: 0 });
}

#[test]
fn c19_the_mailbox_can_be_shut_down_and_started_again_without_a_reset() {
    let mut g = Guest::new();
    for round in 0..50 {
        let order = if round % 2 == 0 { Order::LengthFirst } else { Order::LengthLast };
        g.start_mailbox(order);
        g.negotiate(Capabilities::L2);
        // An answer that nobody fetched is not there the next time.
        g.send(Request::GetQosCaps);
        g.stop_mailbox();
        assert_eq!((g.read(registers::ATQH), g.read(registers::ARQH)), (0, 0));
    }
}

#[test]
fn c20_answers_are_there_when_the_doorbell_write_returns() {
    let mut g = Guest::new();
    g.start_mailbox(Order::LengthFirst);
    for request in [
        Request::Version(Version::V1_1),
        Request::GetVfResources(Some(Capabilities::VLAN_V2)),
        Request::GetOffloadVlanV2Caps,
        Request::GetSupportedRxdids,
    ] {
        g.queue(request);
        let head = g.read(registers::ARQH);
        g.ring();
        assert_ne!(g.read(registers::ARQH), head, "{request:?}");
    }
}

#[test]
fn small_buffers_get_as_much_of_a_message_as_they_hold() {
    let mut g = Guest::new();
    g.arq_capacity = 20;
    g.start_mailbox(Order::LengthLast);
    g.send(Request::GetVfResources(None));
    let received = g.receive().unwrap();
    assert_eq!((received.data.len(), received.status()), (20, Status::Success));
}

#[test]
fn buffers_out_of_reach_are_faults_and_the_mailbox_goes_on() {
    let mut g = Guest::ready();
    // A request whose buffer is nowhere: the mailbox says so.
    let descriptor = AdminQueueDescriptor::send_to_pf(Opcode::AddVlan.value(), 8, 0x1000);
    let index = g.queue_descriptor(descriptor, &[]);
    let at = shared_memory::DmaAddress(guest::MEMORY + u64::from(index) * 32);
    g.dma.write_object(at, &descriptor).unwrap();
    g.ring();
    let done = g.sent_descriptor(index);
    assert!(done.has(flags::DD | flags::CMP | flags::ERR));
    assert_eq!((done.retval.get(), g.device.faults()), (5, 1));
    // A request longer than any buffer.
    let mut descriptor = AdminQueueDescriptor::send_to_pf(1, 8, 0);
    descriptor.datalen = 4097.into();
    let index = g.queue_descriptor(descriptor, &[]);
    g.ring();
    assert_eq!(g.sent_descriptor(index).retval.get(), 14);
    g.must(Request::ConfigPromiscuousMode { vsi_id: VSI, flags: 0 });
}
