//! c42: SPEC-AVF §5.3, segmentation of TCP streams (TSO) and of UDP datagrams (USO).

use avf_protocol::transmit::{L4Type, TxContext, TxData, TxOffload};

use super::{
    offloads::assert_good,
    packets::{Found, L4, Recipe, look_into, tagged},
    *,
};

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Room for a thousand segments.
fn rig() -> Rig {
    Rig::with(2, 1024, 2048, VlanMatch::Any)
}

/// Cuts bytes at the given places, and what is longer than a descriptor can say.
fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < bytes.len()).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).flat_map(|pair| bytes[pair[0]..pair[1]].chunks(12 << 10)).collect()
}

/// What a driver writes for a packet of the recipe to be segmented.
fn context(recipe: &Recipe, mss: u16) -> TxContext {
    TxContext::new().with_segmentation(recipe.payload.len() as u32, mss)
}

/// Sends a packet to be segmented and returns what arrives, with the write-backs.
fn send(rig: &mut Rig, recipe: &Recipe, bytes: &[u8], mss: u16, cuts: &[usize]) -> Vec<Vec<u8>> {
    let (pieces, context) = (pieces(bytes, cuts), context(recipe, mss));
    let last = rig.guest(0).send_with(&pieces, recipe.offload(), None, Some(context));
    rig.run();
    assert!(rig.guests[0].is_done(last));
    let mut frames = Vec::new();
    while let Some((frame, back)) = rig.guest(1).receive() {
        assert_good(back, recipe);
        frames.push(frame);
    }
    rig.guest(1).repost();
    frames
}

/// Checks all that segments have in common, and that they carry the payload.
fn assert_segments(frames: &[Vec<u8>], recipe: &Recipe, mss: usize, flags: u8) {
    let count = recipe.payload.len().div_ceil(mss).max(1);
    assert_eq!(frames.len(), count, "segments of {mss} bytes");
    let mut carried = Vec::new();
    for (index, frame) in frames.iter().enumerate() {
        let last = index + 1 == count;
        let Found { tags, ip_good, l4_good, identification, sequence, flags: found, payload } =
            look_into(frame);
        assert_eq!((ip_good, l4_good), ((!recipe.v6).then_some(true), Some(true)));
        assert_eq!(tags, recipe.tags);
        assert_eq!(frame[..12], [mac(1), mac(0)].concat());
        assert_eq!(identification, (!recipe.v6).then_some(0xFFFEu16.wrapping_add(index as u16)));
        if recipe.l4 == L4::Tcp {
            assert_eq!(sequence, Some(0xFFFF_F000u32.wrapping_add(carried.len() as u32)));
            let mut expected = flags;
            if !last {
                expected &= !(FIN | PSH);
            }
            if index > 0 {
                expected &= !CWR;
            }
            assert_eq!(found, Some(expected), "segment {index} of {count}");
        }
        if !last {
            assert_eq!(payload.len(), mss, "only the last segment is short");
        }
        assert!(!payload.is_empty() || recipe.payload.is_empty());
        carried.extend(payload);
    }
    assert!(carried == recipe.payload, "the payload of {recipe:?} is whole and in order");
}

fn stream(v6: bool, l4: L4, length: usize) -> Recipe {
    Recipe::new(v6, l4, &pattern(length))
}

#[test]
fn c42_segments_of_64_to_9000_bytes_carry_the_stream() {
    let mut rig = rig();
    for mss in [64usize, 65, 536, 1000, 1448, 1460, 4001, 8948, 9000] {
        for v6 in [false, true] {
            for l4 in [L4::Tcp, L4::Udp] {
                for length in [1, mss - 1, mss, mss + 1, 3 * mss, 5 * mss + 7] {
                    let recipe = stream(v6, l4, length);
                    let bytes = recipe.for_segmentation();
                    let frames = send(&mut rig, &recipe, &bytes, mss as u16, &[]);
                    assert_segments(&frames, &recipe, mss, ACK);
                }
            }
        }
    }
    assert_eq!(rig.stats(0).transmit.errors() + rig.stats(1).receive.discards(), 0);
    assert_eq!(rig.stats(0).transmit.unicast, rig.stats(1).receive.unicast);
    assert_eq!(rig.stats(0).transmit.bytes, rig.stats(1).receive.bytes);
}

#[test]
fn c42_the_longest_streams_of_the_stacks_are_segmented() {
    let mut rig = rig();
    for (length, mss) in [(65_160, 64), (65_483, 1448), (65_483, 8948), (0x3_FFFF, 1448)] {
        for v6 in [false, true] {
            let recipe = stream(v6, L4::Tcp, length);
            let frames = send(&mut rig, &recipe, &recipe.for_segmentation(), mss, &[54]);
            assert_segments(&frames, &recipe, mss.into(), ACK);
        }
    }
}

#[test]
fn c42_headers_may_be_split_over_descriptors() {
    let mut rig = rig();
    for v6 in [false, true] {
        for l4 in [L4::Tcp, L4::Udp] {
            for (extras, options) in [(0, 0), (1, 3), (7, 10)] {
                let recipe = Recipe { extras, options, ..stream(v6, l4, 5000) };
                let bytes = recipe.for_segmentation();
                let (ip, l4, headers) = (recipe.mac_length(), recipe.l4_start(), recipe.headers());
                let every_byte_of_tcp: Vec<usize> = (l4..l4 + 20).collect();
                for cuts in [
                    vec![headers],
                    vec![headers - 1],
                    vec![headers + 1],
                    vec![ip, l4, headers],
                    vec![1, ip + 1, ip + 11, l4 + 3, headers + 999, headers + 1001],
                    every_byte_of_tcp,
                ] {
                    let frames = send(&mut rig, &recipe, &bytes, 1111, &cuts);
                    assert_segments(&frames, &recipe, 1111, ACK);
                }
            }
        }
    }
}

#[test]
fn c42_fin_and_psh_are_on_the_last_segment_and_cwr_on_the_first() {
    let mut rig = rig();
    for flags in [FIN | PSH | CWR | ACK, FIN | ACK, PSH | ACK, CWR | ACK, RST | ACK, 0xFF, 0] {
        for length in [100, 200, 1000] {
            let recipe = stream(length == 200, L4::Tcp, length);
            let mut bytes = recipe.for_segmentation();
            bytes[recipe.l4_start() + 13] = flags;
            let frames = send(&mut rig, &recipe, &bytes, 100, &[]);
            assert_segments(&frames, &recipe, 100, flags);
        }
    }
}

#[test]
fn c42_an_empty_stream_is_one_segment() {
    let mut rig = rig();
    for l4 in [L4::Tcp, L4::Udp] {
        let recipe = stream(false, l4, 0);
        let frames = send(&mut rig, &recipe, &recipe.for_segmentation(), 1000, &[]);
        assert_segments(&frames, &recipe, 1000, ACK);
    }
}

#[test]
fn c42_uso_segments_are_datagrams_of_their_own() {
    let mut rig = rig();
    for v6 in [false, true] {
        let recipe = stream(v6, L4::Udp, 4 * 1200 + 1);
        let frames = send(&mut rig, &recipe, &recipe.for_segmentation(), 1200, &[]);
        assert_segments(&frames, &recipe, 1200, 0);
        let at = recipe.l4_start() + 4;
        let lengths: Vec<u16> =
            frames.iter().map(|frame| u16::from_be_bytes([frame[at], frame[at + 1]])).collect();
        assert_eq!(lengths, [1208, 1208, 1208, 1208, 9]);
    }
}

/// A payload that makes a segment's UDP checksum come out as zero.
#[test]
fn c42_a_uso_segment_whose_checksum_is_zero_carries_all_ones() {
    let mut rig = rig();
    let mut one = stream(false, L4::Udp, 0);
    one.payload = vec![0, 0];
    let word = one.build()[one.checksum()].to_vec();
    let recipe = Recipe { payload: word.repeat(3), ..one };
    let frames = send(&mut rig, &recipe, &recipe.for_segmentation(), 2, &[]);
    assert_segments(&frames, &recipe, 2, 0);
    for frame in frames {
        assert_eq!(frame[recipe.checksum()], [0xFF, 0xFF]);
    }
}

#[test]
fn c42_c43_each_segment_has_its_tags() {
    let mut rig = rig();
    for v6 in [false, true] {
        for l4 in [L4::Tcp, L4::Udp] {
            // In the payload.
            let recipe = Recipe { tags: vec![0x6007], ..stream(v6, l4, 3333) };
            let bytes = recipe.for_segmentation();
            let frames = send(&mut rig, &recipe, &bytes, 1000, &[]);
            assert_segments(&frames, &recipe, 1000, ACK);
            // To be inserted, before the one in the payload.
            let context = context(&recipe, 1000);
            rig.guest(0).send_with(
                &pieces(&bytes, &[60]),
                recipe.offload(),
                Some(0x0009),
                Some(context),
            );
            rig.run();
            for frame in frames {
                assert_eq!(rig.guest(1).receive_frame(), tagged(&frame, 9));
            }
            assert_eq!(rig.guest(1).receive(), None);
            rig.guest(1).repost();
        }
    }
}

#[test]
fn c42_segments_leave_by_the_wire_as_they_reach_a_vf() {
    let mut rig = rig();
    let wire = rig.plug();
    let recipe = Recipe { to: 200, ..stream(true, L4::Tcp, 50_000) };
    let last = rig.guest(0).send_with(
        &pieces(&recipe.for_segmentation(), &[]),
        recipe.offload(),
        None,
        Some(context(&recipe, 1000)),
    );
    rig.run();
    assert!(rig.guests[0].is_done(last));
    let payload: Vec<u8> = wire
        .take()
        .iter()
        .map(|frame| look_into(frame))
        .inspect(|found| assert_eq!(found.l4_good, Some(true)))
        .flat_map(|found| found.payload)
        .collect();
    assert_eq!(payload, recipe.payload);
    assert_eq!((rig.path.uplink_stats().sent, rig.path.uplink_stats().sent_dropped), (50, 0));
}

#[test]
fn what_cannot_be_segmented_is_malformed_and_given_back() {
    let mut rig = rig();
    let recipe = stream(false, L4::Tcp, 3000);
    let bytes = recipe.for_segmentation();
    let right = recipe.offload();
    let mut other_version = bytes.clone();
    other_version[14] = 0x55;
    let mut other_header_length = bytes.clone();
    other_header_length[14] = 0x46;
    let cases: &[(&[u8], TxOffload, u16)] = &[
        (&bytes, right, 0),
        (&bytes, TxOffload { l4: L4Type::None, ..right }, 1000),
        (&bytes, TxOffload { l4: L4Type::Sctp, ..right }, 1000),
        (&bytes, TxOffload { l4: L4Type::Udp, ..right }, 1000),
        (&bytes, TxOffload { mac_length: 12, ..right }, 1000),
        (&bytes, TxOffload { ip_length: 508, ..right }, 1000),
        (&bytes, TxOffload { ip_length: 16, ..right }, 1000),
        (&bytes, TxOffload { l4_length: 60, ..right }, 1000),
        (&bytes[..40], right, 1000),
        (&other_version, right, 1000),
        (&other_header_length, right, 1000),
    ];
    for (number, (bytes, offload, mss)) in cases.iter().enumerate() {
        let context = context(&recipe, *mss);
        let last = rig.guest(0).send_with(&[bytes], *offload, None, Some(context));
        rig.run();
        assert!(rig.guests[0].is_done(last));
        assert_eq!(rig.stats(0).transmit.malformed, number as u64 + 1, "case {number}");
    }
    // Segments longer than a frame may be, each.
    let recipe = stream(false, L4::Tcp, 20_000);
    let before = rig.stats(0).transmit.malformed;
    let bytes = recipe.for_segmentation();
    let context = context(&recipe, 9700);
    rig.guest(0).send_with(&pieces(&bytes, &[]), recipe.offload(), None, Some(context));
    rig.run();
    assert_eq!(rig.stats(0).transmit.malformed, before + 2);
    assert_eq!(rig.stats(1).receive.unicast, 1, "the last one is short enough");
}

/// An MSS of a few bytes is allowed, but not to make of one packet work for as long as one likes.
#[test]
fn a_packet_makes_a_bounded_number_of_segments() {
    let mut rig = rig();
    let recipe = stream(false, L4::Tcp, 900);
    let frames = send(&mut rig, &recipe, &recipe.for_segmentation(), 1, &[]);
    assert_segments(&frames, &recipe, 1, ACK);
    let recipe = stream(false, L4::Tcp, 4096);
    let bytes = recipe.for_segmentation();
    let before = rig.stats(0).transmit;
    send(&mut rig, &recipe, &bytes, 1, &[]);
    assert_eq!(rig.stats(0).transmit.unicast, before.unicast + 4096);
    let recipe = stream(false, L4::Tcp, 4097);
    assert!(send(&mut rig, &recipe, &recipe.for_segmentation(), 1, &[]).is_empty());
    assert_eq!(rig.stats(0).transmit.malformed, before.malformed + 1);
}

#[test]
fn a_queue_full_of_segmentation_leaves_other_queues_their_turn() {
    let mut rig = Rig::with(3, 64, 2048, VlanMatch::Any);
    let recipe = Recipe { to: 2, ..stream(false, L4::Tcp, 4096) };
    let bytes = recipe.for_segmentation();
    for _ in 0..20 {
        rig.guest(0).send_with(&[&bytes], recipe.offload(), None, Some(context(&recipe, 4)));
    }
    rig.guest(1).send(&frame(2, 1, &pattern(60)));
    rig.path.poll(rig.now);
    assert_eq!(rig.stats(1).transmit.unicast, 1);
    assert_eq!(rig.stats(0).transmit.unicast, 1024, "one packet's segments");
    rig.run();
    assert_eq!(rig.stats(0).transmit.unicast, 20 * 1024);
    let receive = rig.stats(2).receive;
    assert_eq!(receive.unicast + receive.no_buffer, 20 * 1024 + 1);
}

/// Many segments fill what a queue collects before it writes back; that must not be written back while
/// frames of the same burst still wait to be copied.
#[test]
fn c45_a_descriptor_is_given_back_only_after_its_bytes_are_in_place() {
    let mut rig = Rig::with(3, 1024, 2048, VlanMatch::Any);
    for segments in 480..=512u16 {
        let head = rig.guests[1].rx_head;
        let index = (head + segments) % 1024;
        // The first plain frame behind the segments is received into quadwords 2 and 3 of its own descriptor,
        // which the write-back clears: what they hold in the end shows which of the two came last.
        let address = RX_RING + u64::from(index) * 32 + 16;
        rig.guests[1].rx.store(index, 0, address, Ordering::Relaxed);
        let recipe = stream(false, L4::Tcp, segments.into());
        let bytes = recipe.for_segmentation();
        rig.guest(0).send_with(&[&bytes], recipe.offload(), None, Some(context(&recipe, 1)));
        let guest = rig.guest(0);
        let mut plain = |bytes: &[u8]| {
            let address = guest.place(bytes);
            let data = TxData::new(address, bytes.len() as u16).with_end_of_packet();
            guest.descriptor(data.with_report_status().0);
        };
        plain(&frame(1, 0, &[0xEE; 5]));
        for _ in 0..16 {
            plain(&frame(1, 0, &[1; 60]));
            plain(&[&[0xFF; 6], &mac(0)[..], &[0x88, 0xB5], &[2; 46]].concat());
        }
        rig.guests[0].ring();
        rig.run();
        let back = rig.guests[1].rx.read(index);
        assert_eq!((back[2], back[3]), (0, 0), "after {segments} segments");
        assert_eq!(back[1] & 1, 1);
        // On to the next round: all of it has arrived.
        let total = segments + 33;
        rig.guest(1).rx_head = (head + total) % 1024;
        rig.guest(1).repost();
    }
    assert_eq!(rig.stats(1).receive.discards(), 0);
}
