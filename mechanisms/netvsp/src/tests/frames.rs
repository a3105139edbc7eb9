//! Frames of all kinds both ways.

use etherparse::PacketBuilder;
use offload::{ChecksumVerdict, ChecksumVerdicts, HeaderLayout, L3Protocol, L4Protocol};
use proptest::prelude::*;
use vmbus::OutgoingGpaRange;

use super::*;
use crate::{ChecksumRequest, Segmentation, server::NotDelivered};

#[test]
fn frames_of_every_length_arrive_both_ways_as_they_were_sent() {
    let mut pair = Pair::up();
    for length in (14..=1514).step_by(7).chain([15, 16, 17, 1513, 1514]) {
        let bytes = frame(length as u64, length);
        pair.send(&bytes).unwrap();
        pair.client.flush(0);
        pair.deliver(0, &bytes, &ReceiveMetadata::default()).unwrap();
        pair.settle();
        let sent = Seen { bytes: bytes.clone(), metadata: TransmitMetadata::default() };
        assert_eq!(std::mem::take(&mut pair.forwarded), [sent], "{length}");
        let got = Seen { bytes, metadata: ReceiveMetadata::default() };
        assert_eq!(std::mem::take(&mut pair.received), [got], "{length}");
    }
    assert_eq!((pair.server.outstanding(0), pair.client.outstanding(0)), (Some(0), Some(0)));
    assert_eq!(pair.server.statistics(0).unwrap().malformed, 0);
    assert_eq!(pair.client.statistics(0).unwrap().malformed, 0);
}

#[test]
fn what_is_said_of_a_frame_arrives_with_it() {
    let mut pair = Pair::up();
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ethernet2([4; 6], MAC.octets()).ipv4([1; 4], [2; 4], 64);
    packet.tcp(1, 2, 3, 4).write(&mut bytes, &[9; 700]).unwrap();
    let layout = HeaderLayout { mac_len: 14, ip_len: 20, l4_len: 20 };
    let sent = TransmitMetadata {
        checksum: Some(ChecksumRequest {
            l3: L3Protocol::Ipv4,
            ip_header: true,
            l4: Some(L4Protocol::Tcp),
            layout,
        }),
        segmentation: None,
        vlan_tci: Some(0x6123),
        hash: Some(0xDEAD_BEEF),
    };
    pair.client.send(0, &bytes, &sent).unwrap();
    let got = ReceiveMetadata {
        checksums: ChecksumVerdicts { ip: ChecksumVerdict::Good, l4: ChecksumVerdict::Bad },
        l4: Some(L4Protocol::Tcp),
        vlan_tci: Some(0x0FFF),
        hash: Some(7),
    };
    let mut to_guest = bytes.clone();
    to_guest[..6].copy_from_slice(&MAC.octets());
    pair.client.flush(0);
    pair.deliver(0, &to_guest, &got).unwrap();
    pair.settle();
    assert_eq!(pair.forwarded, [Seen { bytes, metadata: sent }]);
    assert_eq!(pair.received, [Seen { bytes: to_guest, metadata: got }]);
}

/// A stream of so many bytes over TCP and IPv6, to be segmented.
pub(super) fn large_send(payload: usize) -> (Vec<u8>, TransmitMetadata) {
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ethernet2([4; 6], MAC.octets()).ipv6([1; 16], [2; 16], 64);
    let payload: Vec<u8> = (0..payload).map(|i| (i % 251) as u8).collect();
    packet.tcp(1, 2, 3, 4).write(&mut bytes, &payload).unwrap();
    let layout = HeaderLayout { mac_len: 14, ip_len: 40, l4_len: 20 };
    let segmentation = Some(Segmentation { mss: 1400, l3: L3Protocol::Ipv6, layout });
    let metadata = TransmitMetadata { segmentation, ..TransmitMetadata::default() };
    (bytes, metadata)
}

#[test]
fn large_sends_arrive_whole_with_their_segmentation() {
    let mut pair = Pair::up();
    for payload in [3000, 6100, 8192, 40_000, 60_000] {
        let (bytes, metadata) = large_send(payload);
        pair.client.send(0, &bytes, &metadata).unwrap();
        pair.client.flush(0);
        pair.settle();
        assert_eq!(std::mem::take(&mut pair.forwarded), [Seen { bytes, metadata }]);
    }
    assert_eq!(pair.client.outstanding(0), Some(0));
}

#[test]
fn a_frame_in_guest_pages_follows_its_headers_in_a_section() {
    let mut pair = Pair::up();
    let (buffer, frames) = pair.memory.buffer(3 * 4096);
    let bytes = frame(3, 1500);
    buffer.write(4000, &bytes).unwrap();
    // In two ranges, of which the first crosses a page, and out of order in guest memory.
    let first = OutgoingGpaRange { byte_count: 200, byte_offset: 4000, page_frames: &frames[..2] };
    let rest = OutgoingGpaRange { byte_count: 1300, byte_offset: 104, page_frames: &frames[1..2] };
    pair.client.send_pages(0, &[first, rest], &TransmitMetadata::default()).unwrap();
    pair.client.flush(0);
    pair.settle();
    assert_eq!(pair.forwarded.len(), 1);
    assert_eq!(pair.forwarded[0].bytes, bytes);
    assert_eq!(pair.client.outstanding(0), Some(0));
}

#[test]
fn short_frames_share_a_message() {
    let mut pair = Pair::up();
    for i in 0..64 {
        pair.send(&frame(i, 60)).unwrap();
    }
    pair.client.flush(0);
    assert_eq!(pair.client.outstanding(0), Some(8), "eight frames to a section");
    pair.settle();
    let numbers: Vec<u64> = pair.forwarded.iter().map(|seen| number(&seen.bytes)).collect();
    assert_eq!(numbers, (0..64).collect::<Vec<_>>());
}

#[test]
fn a_frame_from_several_pieces_is_put_together() {
    let mut pair = Pair::up();
    for at in [1, 8, 15, 16, 17, 100, 1399] {
        let bytes = frame(at as u64, 1400);
        pair.deliver_pieces(&bytes, at);
        pair.settle();
        assert_eq!(pair.received.pop().unwrap().bytes, bytes, "cut at {at}");
    }
}

#[test]
fn frames_that_the_guest_does_not_want_are_not_delivered() {
    let mut pair = Pair::up();
    let mut group = frame(1, 60);
    group[0] = 1;
    pair.deliver(0, &group, &ReceiveMetadata::default()).unwrap();
    group[..6].fill(0xFF);
    pair.deliver(0, &group, &ReceiveMetadata::default()).unwrap();
    pair.settle();
    assert_eq!(pair.received.len(), 2);
    let mut down = Pair::new(NicConfig::new(MAC), VscConfig::new(RECEIVE, SEND));
    down.open();
    let result = down.deliver(0, &frame(1, 60), &ReceiveMetadata::default());
    assert_eq!(result, Err(NotDelivered::NotWanted));
}

#[test]
fn a_guest_that_takes_nothing_costs_its_own_frames_and_nothing_else() {
    let mut pair = Pair::up();
    let mut delivered = 0u64;
    let (mut no_buffer, mut ring_full) = (0, 0);
    for i in 0..5000 {
        match pair.deliver(0, &frame(i, 64), &ReceiveMetadata::default()) {
            Ok(()) => delivered += 1,
            Err(NotDelivered::NoBuffer) => no_buffer += 1,
            Err(NotDelivered::RingFull) => ring_full += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(no_buffer + ring_full > 3000);
    pair.settle();
    assert_eq!(pair.received.len() as u64, delivered, "what was delivered arrives");
    let statistics = pair.server.statistics(0).unwrap();
    assert_eq!((statistics.no_buffer, statistics.ring_full), (no_buffer, ring_full));
    // And the NIC goes on.
    pair.deliver(0, &frame(1, 64), &ReceiveMetadata::default()).unwrap();
    pair.settle();
    assert_eq!(pair.server.outstanding(0), Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random bursts both ways with random turns of either end: every frame that was taken arrives once, in order.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(
        steps in prop::collection::vec((0..4u8, 1..40u64, 60..1515usize), 1..60),
    ) {
        let mut pair = Pair::up();
        let (mut sent, mut delivered) = (Vec::new(), Vec::new());
        let mut next = 0;
        for (kind, count, length) in steps {
            for _ in 0..count {
                next += 1;
                match kind {
                    0 => if pair.send(&frame(next, length)).is_ok() { sent.push(next) },
                    1 => {
                        let metadata = ReceiveMetadata::default();
                        if pair.deliver(0, &frame(next, length), &metadata).is_ok() {
                            delivered.push(next);
                        }
                    }
                    2 => { pair.client.flush(0); }
                    _ => { pair.step(); }
                }
            }
        }
        pair.client.flush(0);
        pair.settle();
        let numbers = |list: Vec<Vec<u8>>| list.iter().map(|f| number(f)).collect::<Vec<_>>();
        prop_assert_eq!(numbers(pair.forwarded.into_iter().map(|s| s.bytes).collect()), sent);
        prop_assert_eq!(numbers(pair.received.into_iter().map(|s| s.bytes).collect()), delivered);
        prop_assert_eq!(pair.server.outstanding(0), Some(0));
        prop_assert_eq!(pair.client.outstanding(0), Some(0));
    }
}
