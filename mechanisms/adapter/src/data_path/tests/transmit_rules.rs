//! SPEC-AVF §5.1–5.3: how TX rings are read and given back.

use avf_protocol::transmit::{TxContext, TxData, TxOffload};

use super::*;

#[test]
fn c36_a_packet_of_one_to_eight_descriptors_arrives_whole_also_across_the_ring_end() {
    let mut rig = Rig::new(2);
    for round in 0..40usize {
        let count = round % 8 + 1;
        let bytes = frame(1, 0, &pattern(count * 100 + round));
        let pieces: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(count)).collect();
        let last = rig.guest(0).send_with(&pieces, TxOffload::default(), None, None);
        rig.run();
        assert!(rig.guests[0].is_done(last));
        assert_eq!(rig.guest(1).receive_frame(), bytes);
        let tail = (u16::try_from(round).unwrap() + 63) % 64;
        rig.guests[1].rx.store(tail, 1, 0, Ordering::Relaxed);
        rig.guests[1].rx_doorbells.store(0, tail.into());
    }
}

#[test]
fn c37_a_context_descriptor_at_the_ring_end_has_its_data_at_the_ring_start() {
    let mut rig = Rig::new(2);
    let plain = frame(1, 0, &pattern(50));
    for _ in 0..63 {
        rig.guest(0).send(&plain);
        rig.run();
        rig.guest(1).receive_frame();
        let head = rig.guests[1].rx_head;
        rig.guests[1].rx.store((head + 63) % 64, 1, 0, Ordering::Relaxed);
        rig.guests[1].rx_doorbells.store(0, u32::from((head + 63) % 64));
    }
    assert_eq!(rig.guests[0].tx_tail, 63);
    let last =
        rig.guest(0).send_with(&[&plain], TxOffload::default(), None, Some(TxContext::new()));
    assert_eq!(last, 0);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), plain);
}

#[test]
fn c38_only_descriptors_with_rs_are_given_back_and_nothing_else_in_them_changes() {
    let mut rig = Rig::new(2);
    let bytes = frame(1, 0, &pattern(100));
    let guest = rig.guest(0);
    let mut written = Vec::new();
    for at in 0..4 {
        let address = guest.place(&bytes);
        let mut data =
            TxData::new(address, u16::try_from(bytes.len()).unwrap()).with_end_of_packet();
        if at == 3 {
            data = data.with_report_status();
        }
        let index = guest.descriptor(data.0);
        written.push((index, data.0));
    }
    guest.ring();
    rig.run();
    for (at, (index, words)) in written.into_iter().enumerate() {
        let now = rig.guests[0].tx.read(index);
        let expected = if at == 3 { [words[0], words[1] | 0xF] } else { words };
        assert_eq!(now, expected, "descriptor {at}");
    }
    assert_eq!(rig.stats(1).receive.unicast, 4);
}

#[test]
fn c39_a_stale_tail_of_a_stopped_queue_moves_nothing() {
    let mut rig = Rig::new(2);
    rig.guest(0).send(&frame(1, 0, &pattern(60)));
    rig.path.stop_queues(vf(0), 1, 0);
    rig.run();
    assert_eq!(rig.stats(0), FunctionStats::default());
    // The register file zeroes the tail when queues start (SPEC-AVF §5.1).
    rig.guests[0].tx_doorbells.store(0, 0);
    rig.start(0);
    rig.run();
    assert_eq!(rig.stats(0), FunctionStats::default());
}

#[test]
fn a_chain_without_its_end_waits_for_the_next_tail() {
    let mut rig = Rig::new(2);
    let bytes = frame(1, 0, &pattern(200));
    let (first, second) = bytes.split_at(100);
    let guest = rig.guest(0);
    let address = guest.place(first);
    guest.descriptor(TxData::new(address, 100).0);
    guest.ring();
    rig.run();
    assert_eq!(rig.stats(0), FunctionStats::default());
    rig.guest(0).send(second);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}

#[test]
fn a_tail_outside_the_ring_is_ignored_until_it_becomes_valid() {
    let mut rig = Rig::new(2);
    let bytes = frame(1, 0, &pattern(80));
    rig.guest(0).send(&bytes);
    for tail in [64, 8191, u32::MAX] {
        rig.guests[0].tx_doorbells.store(0, tail);
        rig.run();
    }
    assert_eq!(rig.stats(0), FunctionStats::default());
    rig.guests[0].ring();
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}

#[test]
fn frames_of_several_senders_keep_their_order() {
    let mut rig = Rig::with(3, 256, 2048, VlanMatch::UntaggedOrZero);
    for number in 0..100u8 {
        for sender in [0, 1] {
            rig.guest(sender).send(&frame(2, u8::try_from(sender).unwrap(), &[number; 60]));
        }
    }
    rig.run();
    let mut next = [0u8; 2];
    for _ in 0..200 {
        let bytes = rig.guest(2).receive_frame();
        let sender = usize::from(bytes[11]);
        assert_eq!(bytes[14], next[sender]);
        next[sender] += 1;
    }
    assert_eq!(next, [100, 100]);
}

#[test]
fn a_vector_that_is_not_armed_sends_nothing() {
    let mut rig = Rig::new(2);
    rig.path.stop_queues(vf(1), 0, 1);
    let config = RxQueueConfig { vector: Some(1), ..rig.guests[1].rx_config() };
    rig.path.start_queues(vf(1), &[], &[(0, config)]).unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let copy = rustix::io::dup(&event).unwrap();
    rig.guests[1].interrupts.set_eventfd(1, Some(copy), 0).unwrap();
    rig.guests[1].interrupts.set_enabled(true, 0);
    let fired = || {
        let mut counter = [0; 8];
        match rustix::io::read(&event, &mut counter) {
            Ok(_) => u64::from_ne_bytes(counter),
            Err(_) => 0,
        }
    };
    for _ in 0..3 {
        rig.guest(0).send(&frame(1, 0, &pattern(60)));
    }
    rig.run();
    assert_eq!(fired(), 0, "the vector was never armed");
}
