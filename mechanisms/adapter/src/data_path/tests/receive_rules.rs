//! SPEC-AVF §5.4, §5.5: how frames get into RX rings.

use super::*;

#[test]
fn c40_a_tail_written_before_the_queue_starts_counts() {
    let mut rig = Rig::new(2);
    rig.path.stop_queues(vf(1), 0, 1);
    rig.guest(1).post(10);
    rig.start(1);
    rig.guest(0).send(&frame(1, 0, &pattern(60)));
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), frame(1, 0, &pattern(60)));
}

#[test]
fn c44_a_frame_spans_one_to_five_buffers_and_ends_in_the_last() {
    let mut rig = Rig::with(2, 64, 256, VlanMatch::UntaggedOrZero);
    for length in [60, 242, 243, 500, 754, 1010, 1266] {
        let bytes = frame(1, 0, &pattern(length));
        rig.guest(0).send(&bytes);
        rig.run();
        let (received, back) = rig.guest(1).receive().unwrap();
        assert_eq!(received, bytes);
        let last = (bytes.len() - 1) % 256 + 1;
        assert_eq!(usize::from(back.length()), last);
    }
    // Six buffers are too many.
    rig.guest(0).send(&frame(1, 0, &pattern(1267)));
    rig.run();
    assert_eq!(rig.guest(1).receive(), None);
    assert_eq!(rig.stats(1).receive.too_long, 1);
}

#[test]
fn c46_nothing_but_the_buffer_address_of_a_posted_descriptor_is_read() {
    let mut rig = Rig::new(2);
    for index in 0..64 {
        for word in 1..4 {
            let value = if word == 1 { !1 } else { u64::MAX };
            rig.guests[1].rx.store(index, word, value, Ordering::Relaxed);
        }
    }
    let bytes = frame(1, 0, &pattern(1000));
    rig.guest(0).send(&bytes);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}

#[test]
fn c47_frames_from_17_bytes_up_pass_and_what_does_not_fit_is_counted() {
    let mut rig = Rig::with(2, 64, 2048, VlanMatch::UntaggedOrZero);
    for length in [3, 46, 1500, 9714] {
        let bytes = frame(1, 0, &pattern(length));
        rig.guest(0).send(&bytes);
        rig.run();
        assert_eq!(rig.guest(1).receive_frame(), bytes, "{length} bytes of payload");
    }
    rig.path.stop_queues(vf(1), 0, 1);
    let config = RxQueueConfig { max_frame_size: 100, ..rig.guests[1].rx_config() };
    rig.guest(1).post(2);
    rig.path.start_queues(vf(1), &[], &[(0, config)]).unwrap();
    rig.guest(0).send(&frame(1, 0, &pattern(87)));
    for _ in 0..5 {
        rig.guest(0).send(&frame(1, 0, &pattern(60)));
    }
    rig.run();
    let receive = rig.stats(1).receive;
    assert_eq!((receive.too_long, receive.no_buffer, receive.unicast), (1, 3, 6));
    assert_eq!(rig.stats(0).transmit.unicast, 10);
}

#[test]
fn a_vport_takes_frames_only_while_its_driver_has_a_receive_queue() {
    let mut rig = Rig::new(2);
    rig.path.stop_queues(vf(1), 0, 1);
    rig.guest(0).send(&frame(1, 0, &pattern(60)));
    rig.run();
    // Nobody is on the default VPort either, so the frame has no receiver; it is counted where it was sent.
    assert_eq!(rig.stats(1).receive, super::super::ReceiveStats::default());
    assert_eq!(rig.stats(0).transmit.no_receiver, 1);
}

#[test]
fn a_vport_takes_frames_only_once_its_driver_has_posted_buffers() {
    let mut rig = Rig::new(2);
    rig.path.stop_queues(vf(1), 0, 1);
    rig.guest(1).rx_doorbells.store(0, 0);
    rig.start(1);
    rig.guest(0).send(&frame(1, 0, &pattern(60)));
    rig.run();
    // As before the queue was enabled: nothing is taken that there is no buffer for.
    assert_eq!(rig.stats(1).receive, super::super::ReceiveStats::default());
    assert_eq!(rig.stats(0).transmit.no_receiver, 1);
    rig.guest(1).post(1);
    for _ in 0..2 {
        rig.guest(0).send(&frame(1, 0, &pattern(60)));
    }
    rig.run();
    // From then on buffers that are used up are the driver's own affair.
    let receive = rig.stats(1).receive;
    assert_eq!((receive.unicast, receive.no_buffer), (1, 1));
}

#[test]
fn c49_the_hash_is_there_iff_hashing_applies_and_chooses_the_queue() {
    let mut rig = Rig::new(2);
    let second = RxQueueConfig { ring: DmaAddress(RX_RING + 0x8000), ..rig.guests[1].rx_config() };
    let ring = DescriptorRing::<4>::new(&rig.guests[1].memory, 0x4_8000, 64).unwrap();
    for index in 0..64u16 {
        ring.store(
            index,
            0,
            RX_BUFFERS + 0x10_0000 + u64::from(index) * RX_STRIDE,
            Ordering::Relaxed,
        );
        ring.store(index, 1, 0, Ordering::Relaxed);
    }
    rig.guests[1].rx_doorbells.store(1, 63);
    rig.path.start_queues(vf(1), &[], &[(1, second)]).unwrap();
    let mut settings = settings();
    settings.queue_pairs = 2;
    settings.rss = RssSettings { enabled: true, ..RssSettings::default_for(2) };
    let rss = settings.rss;
    rig.path.apply(vf(1), &settings, MacAddress::ZERO);
    let mut expected = [0u32; 2];
    for port in 0..20u16 {
        let udp = offloads::udp4(1, 0, port + 1000, 9, &pattern(30));
        let input = [&udp[26..34], &udp[34..38]].concat();
        let hash = offload::toeplitz_reference(&rss.key, &input);
        expected[usize::from(rss.lut[(hash & 63) as usize])] += 1;
        rig.guest(0).send(&udp);
        rig.run();
    }
    let done = |ring: &DescriptorRing<4>| {
        (0..64u16).map(|index| RxLegacy(ring.read(index))).filter(|back| back.is_done()).collect()
    };
    let (first, second): (Vec<_>, Vec<_>) = (done(&rig.guests[1].rx), done(&ring));
    assert_eq!([first.len(), second.len()], expected.map(|count| count as usize));
    assert!(expected.iter().all(|count| *count > 0), "both queues were hit");
    for (queue, backs) in [first, second].iter().enumerate() {
        for back in backs {
            let hash = back.rss_hash().expect("a hashed packet type");
            assert_eq!(usize::from(rss.lut[(hash & 63) as usize]), queue);
        }
    }
    // What is not IP has no hash and goes to the first queue.
    rig.guest(0).send(&frame(1, 0, &pattern(60)));
    rig.run();
    let last = RxLegacy(rig.guests[1].rx.read(u16::try_from(expected[0]).unwrap()));
    assert!(last.is_done());
    assert_eq!(last.rss_hash(), None);
}
