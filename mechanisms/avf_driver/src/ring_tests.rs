//! Tests of the rings against a played device.

use arrayvec::ArrayVec;
use avf_protocol::{
    packet_type::PacketType,
    receive::{RxLegacy, legacy},
    transmit::{DescriptorType, IpType, L4Type, TxDescriptor, TxOffload},
};
use proptest::prelude::*;

use crate::{
    Buffer, DriverConfig, FrameOffload, QueuePair, ReportConfig, RxCounters, RxSegment, TxCounters,
    TxSegment,
    in_memory::{PlayedDevice, queue_pair},
};

type TxBurst = ArrayVec<TxSegment, 64>;
type RxBurst = ArrayVec<RxSegment, 64>;

fn small() -> DriverConfig {
    DriverConfig { tx_ring: 64, rx_ring: 64, spare_buffers: 0, ..DriverConfig::new("unused") }
}

fn small_pair() -> (QueuePair, PlayedDevice) {
    queue_pair(small()).unwrap()
}

fn filled(pair: &mut QueuePair, bytes: &[u8]) -> Buffer {
    let buffer = pair.tx.reserve().unwrap();
    pair.tx.memory().bytes(&buffer).unwrap().write_from(bytes);
    buffer
}

fn bytes_of(pair: &QueuePair, segment: &RxSegment) -> Vec<u8> {
    let mut bytes = vec![0; usize::from(segment.length)];
    pair.rx.memory().bytes(&segment.buffer).unwrap().read_into(&mut bytes);
    bytes
}

/// Asserts that of an idle pair whose user holds no buffer, all are free but those in the receive
/// ring.
fn assert_no_buffer_lost(pair: QueuePair) {
    let QueuePair { mut tx, rx } = pair;
    let in_ring = usize::from(rx.ring_length());
    // What the queue keeps for itself goes back to the depot.
    drop(rx);
    tx.reclaim();
    let mut free = 0;
    while tx.reserve().map(std::mem::forget).is_some() {
        free += 1;
    }
    assert_eq!(free + in_ring, tx.memory().buffer_count() as usize);
}

#[test]
fn frames_arrive_at_the_device_in_order_and_buffers_come_back() {
    let (mut pair, mut device) = small_pair();
    let mut burst = TxBurst::new();
    for round in 0u8..20 {
        let frames: Vec<Vec<u8>> =
            (0..10).map(|n| vec![round * 10 + n; 60 + usize::from(n)]).collect();
        for frame in &frames {
            let buffer = filled(&mut pair, frame);
            burst.push(TxSegment::frame(buffer, frame.len() as u16));
        }
        assert_eq!(pair.tx.transmit(&mut burst), 10);
        assert!(burst.is_empty());
        assert_eq!(device.transmitted_frames(), frames);
    }
    let bytes = 20 * (600 + 45);
    let counters = TxCounters { frames: 200, bytes, ..TxCounters::default() };
    assert_eq!(pair.tx.counters(), counters);
    assert_eq!(pair.tx.room(), 63);
    assert_no_buffer_lost(pair);
}

#[test]
fn the_tail_moves_once_a_burst_and_the_last_frame_is_reported() {
    let (mut pair, mut device) = small_pair();
    let mut burst = TxBurst::new();
    for _ in 0..5 {
        let buffer = pair.tx.reserve().unwrap();
        burst.push(TxSegment::frame(buffer, 60));
    }
    pair.tx.transmit(&mut burst);
    assert_eq!(device.tails().0, 5);
    let mut reports = Vec::new();
    device.transmit(|descriptor| reports.push(descriptor.data().report_status()));
    assert_eq!(reports, [false, false, false, false, true]);
}

#[test]
fn without_burst_reports_only_every_nth_descriptor_is_reported() {
    let report = ReportConfig { every: 4, at_burst_end: false };
    let (mut pair, mut device) = queue_pair(DriverConfig { report, ..small() }).unwrap();
    let mut reports = Vec::new();
    for _ in 0..10 {
        let mut burst = TxBurst::new();
        burst.push(TxSegment::frame(pair.tx.reserve().unwrap(), 60));
        pair.tx.transmit(&mut burst);
        device.transmit(|descriptor| reports.push(descriptor.data().report_status()));
    }
    let expected: Vec<bool> = (1..=10).map(|n| n % 4 == 0).collect();
    assert_eq!(reports, expected);
    assert_eq!(pair.tx.room(), 63 - 2);
}

#[test]
fn what_the_ring_has_no_room_for_stays_in_the_burst() {
    let (mut pair, mut device) = small_pair();
    let mut burst = TxBurst::new();
    while burst.try_push(TxSegment::frame(pair.tx.reserve().unwrap(), 60)).is_ok() {}
    burst.last_mut().unwrap().length = 99;
    assert_eq!(pair.tx.transmit(&mut burst), 63, "one slot stays empty");
    assert_eq!((burst.len(), burst[0].length), (1, 99));
    assert_eq!(pair.tx.transmit(&mut burst), 0);
    assert_eq!(pair.tx.counters().ring_full, 2);
    assert_eq!(device.transmit(|_| ()), 63);
    assert_eq!(pair.tx.transmit(&mut burst), 1);
}

#[test]
fn offloads_are_what_the_specification_says_bit_for_bit() {
    let (mut pair, mut device) = small_pair();
    let fields = TxOffload {
        ip: IpType::Ipv4,
        l4: L4Type::Udp,
        mac_length: 14,
        ip_length: 20,
        l4_length: 8,
    };
    let offload = FrameOffload::NONE.with_checksum(fields);
    let mut burst = TxBurst::new();
    let buffer = pair.tx.reserve().unwrap();
    burst.push(TxSegment::frame(buffer, 60).with_offload(offload));
    let buffer = pair.tx.reserve().unwrap();
    burst.push(TxSegment::frame(buffer, 60).with_offload(FrameOffload::NONE.with_vlan(0x2064)));
    pair.tx.transmit(&mut burst);
    let mut words = Vec::new();
    device.transmit(|descriptor| words.push(descriptor.0[1]));
    // SPEC-AVF Appendix B, without RS, which the end of the burst has.
    let expected = (0x345 << 4) | (7 << 16) | (5 << 23) | (2 << 30) | (60u64 << 34);
    assert_eq!(words[0], expected);
    assert_eq!(words[1], 0xF << 4 | 60 << 34 | 0x2064 << 48);
}

#[test]
fn a_segmented_frame_has_a_context_and_leaves_no_slot_behind() {
    let (mut pair, mut device) = small_pair();
    let fields = TxOffload {
        ip: IpType::Ipv4Checksum,
        l4: L4Type::Tcp,
        mac_length: 14,
        ip_length: 20,
        l4_length: 20,
    };
    let offload = FrameOffload::NONE.with_checksum(fields).with_segmentation(1448, 54);
    for _ in 0..30 {
        let mut burst = TxBurst::new();
        for end in [false, false, false, true] {
            let buffer = pair.tx.reserve().unwrap();
            burst.push(TxSegment { buffer, offset: 0, length: 2048, end, offload });
        }
        assert_eq!(pair.tx.transmit(&mut burst), 1);
        let mut seen = Vec::new();
        device.transmit(|descriptor: TxDescriptor| seen.push(descriptor));
        assert_eq!(seen.len(), 5);
        assert_eq!(seen[0].kind(), DescriptorType::Context);
        assert_eq!(seen[0].context().segmentation(), Some((8192 - 54, 1448)));
        assert!(seen[1..].iter().all(|piece| piece.data().offload() == fields));
        let ends: Vec<bool> = seen[1..].iter().map(|piece| piece.data().end_of_packet()).collect();
        assert_eq!(ends, [false, false, false, true]);
    }
    assert_eq!(pair.tx.counters().bytes, 30 * 8192);
    assert_no_buffer_lost(pair);
}

#[test]
fn frames_that_no_device_can_send_are_counted_and_their_buffers_freed() {
    let (mut pair, mut device) = small_pair();
    let (mut other, _) = small_pair();
    let mut burst = TxBurst::new();
    let segment = |buffer, offset, length, end, mss, headers| TxSegment {
        buffer,
        offset,
        length,
        end,
        offload: FrameOffload::NONE.with_segmentation(mss, headers),
    };
    let mut take = || pair.tx.reserve().unwrap();
    burst.push(segment(take(), 0, 16, true, 0, 0)); // too short
    burst.push(segment(take(), 2040, 60, true, 0, 0)); // beyond the buffer
    burst.push(segment(take(), 0, 60, true, 32, 54)); // MSS too small
    burst.push(segment(take(), 0, 60, true, 1448, 60)); // headers alone
    burst.push(segment(take(), 0, 60, true, 1448, 0)); // no headers
    burst.push(segment(other.tx.reserve().unwrap(), 0, 60, true, 0, 0)); // another memory
    for number in 0..9 {
        burst.push(segment(take(), 0, 60, number == 8, 0, 0)); // too many pieces
    }
    burst.push(segment(take(), 0, 60, true, 0, 0)); // good
    burst.push(segment(take(), 0, 60, false, 0, 0)); // never ends
    assert_eq!(pair.tx.transmit(&mut burst), 9);
    assert!(burst.is_empty());
    let counters = TxCounters { frames: 1, bytes: 60, rejected: 8, ring_full: 0 };
    assert_eq!(pair.tx.counters(), counters);
    assert_eq!(device.transmitted_frames().len(), 1);
    assert_no_buffer_lost(pair);
}

#[test]
fn frames_arrive_whole_over_one_to_five_buffers() {
    let (mut pair, mut device) = small_pair();
    let mut out = RxBurst::new();
    for length in [60usize, 2048, 2049, 4096, 9000, 9728] {
        let frame: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
        assert!(device.receive_frame(&frame));
        assert_eq!(pair.rx.receive(&mut out), 1);
        let mut got = Vec::new();
        for segment in &out {
            got.extend(bytes_of(&pair, segment));
        }
        assert_eq!(got, frame);
        let ends: Vec<bool> = out.iter().map(RxSegment::end).collect();
        assert_eq!(ends.iter().filter(|end| **end).count(), 1);
        assert_eq!(ends.last(), Some(&true));
        out.drain(..).for_each(|segment| pair.rx.free(segment.buffer));
    }
    let bytes = 60 + 2048 + 2049 + 4096 + 9000 + 9728;
    assert_eq!(pair.rx.counters(), RxCounters { frames: 6, bytes, ..RxCounters::default() });
}

#[test]
fn a_frame_whose_end_is_not_there_yet_waits() {
    let (mut pair, mut device) = small_pair();
    let mut out = RxBurst::new();
    device.receive(RxLegacy::new(2048));
    assert!(pair.rx.is_ready());
    assert_eq!(pair.rx.receive(&mut out), 0);
    device.receive(RxLegacy::new(10).with_end_of_packet(PacketType::L2));
    assert_eq!(pair.rx.receive(&mut out), 1);
    assert_eq!(out.len(), 2);
}

#[test]
fn buffers_are_handed_over_in_groups_and_never_the_last_slot() {
    let (mut pair, mut device) = small_pair();
    let mut out = RxBurst::new();
    assert_eq!((device.receive_room(), device.tails().1), (63, 63));
    let frame = RxLegacy::new(60).with_end_of_packet(PacketType::L2);
    for received in 1..=200u16 {
        assert!(device.receive(frame));
        assert_eq!(pair.rx.receive(&mut out), 1);
        out.drain(..).for_each(|segment| pair.rx.free(segment.buffer));
        assert_eq!(device.receive_room(), 63 - received % 16);
    }
}

#[test]
fn a_user_who_keeps_all_buffers_stalls_only_its_own_reception() {
    let (mut pair, mut device) = small_pair();
    let mut kept = Vec::new();
    let mut out = RxBurst::new();
    let frame = RxLegacy::new(60).with_end_of_packet(PacketType::L2);
    while pair.rx.counters().no_buffer == 0 {
        device.receive(frame);
        pair.rx.receive(&mut out);
        kept.extend(out.drain(..));
    }
    assert!(pair.rx.is_ready(), "the frame waits in the ring");
    let frames = pair.rx.counters().frames;
    kept.drain(..).for_each(|segment| pair.rx.free(segment.buffer));
    assert!(pair.rx.receive(&mut out) > 0);
    assert!(pair.rx.counters().frames > frames);
}

#[test]
fn damaged_frames_and_descriptors_without_sense_are_dropped_and_counted() {
    let (mut pair, mut device) = small_pair();
    let mut out = RxBurst::new();
    let end = |length| RxLegacy::new(length).with_end_of_packet(PacketType::L2);
    device.receive(end(60).with_status(legacy::RXE));
    device.receive(end(2049)); // more than the buffer has
    device.receive(end(0));
    for _ in 0..13 {
        device.receive(RxLegacy::new(2048)); // a frame without end…
    }
    device.receive(end(1)); // …but for this
    device.receive(end(61));
    assert_eq!(pair.rx.receive(&mut out), 1);
    assert_eq!((out.len(), out[0].length), (1, 61));
    let counters =
        RxCounters { frames: 1, bytes: 61, damaged: 1, malformed: 3, ..RxCounters::default() };
    assert_eq!(pair.rx.counters(), counters);
}

#[test]
fn a_device_that_marks_everything_done_is_not_followed_beyond_what_it_owns() {
    let (mut pair, mut device) = small_pair();
    for slot in 0..64 {
        device.write_back(slot, RxLegacy::new(60).with_end_of_packet(PacketType::L2));
    }
    let mut out = ArrayVec::<RxSegment, 128>::new();
    assert_eq!(pair.rx.receive(&mut out), 63);
}

#[test]
fn received_buffers_are_sent_on_without_a_copy_and_circulate_for_ever() {
    let (mut pair, mut device) = small_pair();
    let (mut received, mut burst) = (RxBurst::new(), TxBurst::new());
    for round in 0..1000u32 {
        let frame = [round.to_le_bytes().as_slice(), &[0xAB; 60]].concat();
        assert!(device.receive_frame(&frame));
        assert_eq!(pair.rx.receive(&mut received), 1);
        burst.extend(received.drain(..).map(RxSegment::forward));
        assert_eq!(pair.tx.transmit(&mut burst), 1);
        assert_eq!(device.transmitted_frames(), [frame]);
    }
}

#[test]
fn after_a_reset_queues_stand_still_until_rebuilt_and_no_buffer_is_lost() {
    let (mut pair, mut device) = small_pair();
    for _ in 0..50 {
        let mut burst = TxBurst::new();
        for _ in 0..20 {
            burst.push(TxSegment::frame(pair.tx.reserve().unwrap(), 60));
        }
        assert_eq!(pair.tx.transmit(&mut burst), 20);
        device.receive_frame(&[1; 60]);
        device.receive_frame(&[2; 60]);
        let mut out = RxBurst::new();
        pair.rx.receive(&mut out);
        out.drain(..).for_each(|segment| pair.rx.free(segment.buffer));
        device.receive_frame(&[3; 60]);
        device.reset();
        assert!(pair.tx.is_stopped() && pair.rx.is_stopped());
        burst.push(TxSegment::frame(pair.tx.reserve().unwrap(), 60));
        assert_eq!((pair.tx.transmit(&mut burst), pair.rx.receive(&mut out)), (0, 0));
        burst.drain(..).for_each(|segment| pair.tx.free(segment.buffer));
        device.rebuild(&mut pair).unwrap();
        assert_eq!(device.tails(), (0, 63));
        assert!(!pair.rx.is_ready(), "the frame from before the reset is gone");
    }
    assert_no_buffer_lost(pair);
}

proptest! {
    /// Whatever the device writes, `receive` returns frames inside their buffers and loses no
    /// buffer.
    #[test]
    fn random_write_backs_never_panic_or_lose_buffers(
        writes in prop::collection::vec((0u16..64, any::<[u64; 4]>(), any::<bool>()), 1..200)
    ) {
        let (mut pair, mut device) = small_pair();
            let mut out = RxBurst::new();
        for (slot, mut words, plausible) in writes {
            if plausible {
                words[1] |= 1;
                device.receive(RxLegacy(words));
            } else {
                device.write_back(slot, RxLegacy(words));
            }
            pair.rx.receive(&mut out);
            for segment in out.drain(..) {
                prop_assert!(usize::from(segment.length) <= 2048);
                pair.rx.free(segment.buffer);
            }
        }
        prop_assert_eq!(pair.rx.receive(&mut out), out.iter().filter(|s| s.end()).count());
        out.drain(..).for_each(|segment| pair.rx.free(segment.buffer));
        assert_no_buffer_lost(pair);
    }
}
