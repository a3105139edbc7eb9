//! c50: nothing a driver writes stops its ring, reaches outside its memory, or harms another function.

use avf_protocol::transmit::{TxContext, TxData, TxOffload};
use proptest::prelude::*;

use super::*;

#[test]
fn malformed_packets_are_given_back_counted_and_leave_the_ring_running() {
    let mut rig = Rig::new(2);
    let bytes = frame(1, 0, &pattern(100));
    let done = |rig: &mut Rig, words: [u64; 2]| {
        let index = rig.guest(0).descriptor(words);
        rig.guests[0].ring();
        rig.run();
        assert!(rig.guests[0].is_done(index), "{words:x?}");
    };
    let address = rig.guest(0).place(&bytes);
    let whole = TxData::new(address, 114).with_end_of_packet().with_report_status().0;
    // No bytes; a descriptor type that does not exist; a flow director program.
    done(&mut rig, TxData::new(address, 0).with_end_of_packet().with_report_status().0);
    done(&mut rig, [address, whole[1] | 5]);
    done(&mut rig, [address, whole[1] | 8]);
    // Shorter than an Ethernet header.
    done(&mut rig, TxData::new(address, 13).with_end_of_packet().with_report_status().0);
    assert_eq!(rig.stats(0).transmit.malformed, 4);
    // Outside of the DMA map: a fault of this function alone.
    for wild in [MEMORY as u64 - 10, u64::MAX - 5, 1 << 40] {
        done(&mut rig, TxData::new(wild, 114).with_end_of_packet().with_report_status().0);
    }
    assert_eq!(rig.stats(0).transmit.dma_faults, 3);
    // Segmentation into nothing, and of headers that are not there.
    let tcp = TxOffload {
        ip: avf_protocol::transmit::IpType::Ipv4,
        l4: avf_protocol::transmit::L4Type::Tcp,
        mac_length: 14,
        ip_length: 20,
        l4_length: 20,
    };
    for mss in [0, 64] {
        let context = TxContext::new().with_segmentation(60, mss);
        let last = rig.guest(0).send_with(&[&bytes], tcp, None, Some(context));
        rig.run();
        assert!(rig.guests[0].is_done(last));
    }
    assert_eq!(rig.stats(0).transmit.malformed, 6);
    assert_eq!(rig.stats(1), FunctionStats::default());
    rig.guest(0).send(&bytes);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}

#[test]
fn a_chain_that_fills_the_ring_without_an_end_is_dropped() {
    let mut rig = Rig::new(2);
    let bytes = frame(1, 0, &pattern(100));
    let guest = rig.guest(0);
    let address = guest.place(&bytes);
    for _ in 0..63 {
        guest.descriptor(TxData::new(address, 114).0);
    }
    guest.ring();
    rig.run();
    assert_eq!(rig.stats(0).transmit.malformed, 1);
    rig.guest(0).send(&bytes);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}

#[test]
fn a_posted_buffer_outside_of_memory_is_a_fault_of_the_receiver_alone() {
    let mut rig = Rig::new(3);
    rig.guests[1].rx.store(0, 0, MEMORY as u64 - 20, Ordering::Relaxed);
    let bytes = frame(1, 0, &pattern(100));
    rig.guest(0).send(&bytes);
    rig.guest(0).send(&bytes);
    rig.run();
    assert_eq!((rig.stats(1).receive.dma_faults, rig.stats(1).receive.unicast), (1, 1));
    // The driver gets the descriptor back with an error, then the next frame.
    let (nothing, back) = rig.guest(1).receive().unwrap();
    assert!(nothing.is_empty() && back.has(avf_protocol::receive::legacy::RXE));
    assert_eq!(rig.guest(1).receive_frame(), bytes);
}

#[test]
fn a_function_whose_memory_goes_away_stops_and_others_do_not_notice() {
    let mut rig = Rig::new(3);
    rig.path.set_dma_map(vf(0), DmaMap::empty());
    rig.guest(0).send(&frame(1, 0, &pattern(60)));
    let bytes = frame(2, 1, &pattern(60));
    rig.guest(1).send(&bytes);
    rig.run();
    assert_eq!(rig.guest(2).receive_frame(), bytes);
    let stats = rig.stats(0);
    assert_eq!((stats.transmit.frames(), stats.transmit.dma_faults), (0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_descriptors_never_stop_the_data_path(
        words in prop::collection::vec((any::<u64>(), any::<u64>()), 1..63),
        low in prop::collection::vec(0u64..0x40_0000, 63),
    ) {
        let mut rig = Rig::new(3);
        for (at, (first, second)) in words.iter().enumerate() {
            // Half of the addresses are inside of memory.
            let address = if first % 2 == 0 { low[at] } else { *first };
            rig.guest(0).descriptor([address, *second]);
        }
        rig.guests[0].ring();
        rig.run();
        // Another function works, and so does this one after its queues were restarted.
        let bytes = frame(2, 1, &pattern(60));
        rig.path.stop_queues(vf(2), 0, 1);
        rig.guest(2).post(63);
        rig.guest(2).rx_head = 0;
        rig.start(2);
        rig.guest(1).send(&bytes);
        rig.run();
        prop_assert_eq!(rig.guest(2).receive_frame(), bytes);
        rig.path.stop_queues(vf(0), 1, 0);
        rig.guests[0].tx_doorbells.store(0, 0);
        rig.guest(0).tx_tail = 0;
        rig.start(0);
        let bytes = frame(2, 0, &pattern(61));
        rig.guest(0).send(&bytes);
        rig.run();
        prop_assert_eq!(rig.guest(2).receive_frame(), bytes);
    }
}
