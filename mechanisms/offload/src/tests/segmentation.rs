use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{Recipe, Transport, build, checksums::seed, recipes};
use crate::{
    ChecksumVerdict, HeaderLayout, MAX_PAYLOAD_LEN, OffloadError, PacketInfo, SegmentKind,
    SegmentPlan, classify, verify,
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// A header as a guest hands it over for segmentation: lengths and IPv4 checksum zero, the transport
/// checksum seeded without the length.
fn guest_header(recipe: &Recipe) -> (Vec<u8>, HeaderLayout, PacketInfo) {
    let frame = build(&Recipe { payload: vec![], padding: 0, fragment: false, ..recipe.clone() });
    let info = classify(&frame, frame.len());
    let layout = HeaderLayout {
        mac_len: info.l2_len,
        ip_len: info.l3_len,
        l4_len: (frame.len() - info.l4_offset()) as u16,
    };
    let mut header = frame;
    let (l3, l4) = (info.l3_offset(), info.l4_offset());
    let field = if let Transport::Udp = recipe.transport { l4 + 6 } else { l4 + 16 };
    let seed = seed(&header, &info, false);
    header[field..field + 2].copy_from_slice(&seed.to_be_bytes());
    if recipe.v6 {
        header[l3 + 4..l3 + 6].copy_from_slice(&[0, 0]);
    } else {
        header[l3 + 2..l3 + 4].copy_from_slice(&[0, 0]);
        header[l3 + 10..l3 + 12].copy_from_slice(&[0, 0]);
        header[l3 + 4..l3 + 6].copy_from_slice(&[0xFF, 0xFE]); // so that the identification wraps
    }
    (header, layout, info)
}

/// Runs a plan to frames, feeding payload in pieces of `step` bytes.
fn frames(plan: &mut SegmentPlan, payload: &[u8], step: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(mut segment) = plan.next_segment() {
        let bytes = &payload[segment.payload.clone()];
        let mut frame = [segment.header, bytes].concat();
        assert_eq!(frame.len(), segment.frame_len());
        for piece in bytes.chunks(step) {
            segment.update(piece);
        }
        assert!(segment.finish().apply(&mut frame));
        frames.push(frame);
    }
    frames
}

fn segmentable() -> impl Strategy<Value = Recipe> {
    recipes().prop_map(|recipe| Recipe {
        transport: match recipe.transport {
            tcp @ Transport::Tcp { .. } => tcp,
            _ => Transport::Udp,
        },
        ..recipe
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn segments_are_whole_packets_that_carry_the_payload_in_order(
        recipe in segmentable(),
        payload in prop::collection::vec(any::<u8>(), 0..4000),
        mss in prop_oneof![1u16..64, 64u16..5000],
        step in 1usize..700,
        flags in any::<u8>(),
    ) {
        let (mut header, layout, info) = guest_header(&recipe);
        let kind = match recipe.transport {
            Transport::Udp => SegmentKind::Udp,
            _ => SegmentKind::Tcp,
        };
        let flags = flags & !SYN;
        if kind == SegmentKind::Tcp {
            header[info.l4_offset() + 13] = flags;
        }
        let length = payload.len() as u32;
        let mut plan = SegmentPlan::new(&header, layout, length, mss, kind).unwrap();
        let (count, longest) = (plan.segment_count() as usize, plan.max_frame_len());
        let frames = frames(&mut plan, &payload, step);
        prop_assert_eq!(frames.len(), count);
        prop_assert_eq!(frames.iter().map(Vec::len).max(), Some(longest));

        let mut carried: Vec<u8> = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            let last = index + 1 == count;
            let info = classify(frame, frame.len());
            let verdicts = verify(frame, &info, [frame.as_slice()]);
            prop_assert_eq!(verdicts.l4, ChecksumVerdict::Good);
            prop_assert_ne!(verdicts.ip, ChecksumVerdict::Bad);
            prop_assert_eq!(info.datagram_end, Some(frame.len() as u32));
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            if let Some(NetSlice::Ipv4(ip)) = &packet.net {
                prop_assert_eq!(ip.header().identification(), 0xFFFEu16.wrapping_add(index as u16));
            }
            match packet.transport.unwrap() {
                TransportSlice::Tcp(tcp) => {
                    prop_assert_eq!(tcp.sequence_number(), 3 + carried.len() as u32);
                    let mut expected = flags;
                    if !last { expected &= !(FIN | PSH); }
                    if index > 0 { expected &= !CWR; }
                    prop_assert_eq!(frame[info.l4_offset() + 13], expected);
                    carried.extend(tcp.payload());
                }
                TransportSlice::Udp(udp) => {
                    prop_assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
                    carried.extend(udp.payload());
                }
                other => prop_assert!(false, "{:?}", other),
            }
            if !last {
                prop_assert_eq!(frame.len(), header.len() + usize::from(mss));
            }
        }
        prop_assert_eq!(carried, payload);
    }

    #[test]
    fn any_request_is_answered_with_segments_or_an_error(
        header in prop::collection::vec(any::<u8>(), 0..300),
        mac_len in 0u16..300, ip_len in 0u16..300, l4_len in 0u16..300,
        payload_len in any::<u32>(), mss in any::<u16>(), udp in any::<bool>(), version in 0u8..3,
    ) {
        let mut header = header;
        if let Some(first) = header.get_mut(usize::from(mac_len)) {
            *first = [*first, 0x45, 0x60][usize::from(version)];
        }
        let layout = HeaderLayout { mac_len, ip_len, l4_len };
        let kind = if udp { SegmentKind::Udp } else { SegmentKind::Tcp };
        if let Ok(mut plan) = SegmentPlan::new(&header, layout, payload_len, mss, kind) {
            let mut at = 0;
            while let Some(segment) = plan.next_segment() {
                assert_eq!(segment.payload.start, at);
                at = segment.payload.end;
            }
            assert_eq!(at, payload_len as usize);
        }
    }
}

fn tcp4() -> (Vec<u8>, HeaderLayout) {
    let (mut header, layout, info) = guest_header(&Recipe {
        vlans: vec![],
        v6: false,
        extras: 0,
        fragment: false,
        transport: Transport::Tcp { options: 0 },
        payload: vec![],
        padding: 0,
    });
    header[info.l4_offset() + 13] = FIN | PSH | ACK | CWR;
    (header, layout)
}

#[test]
fn malformed_requests_are_told_apart() {
    let (header, layout) = tcp4();
    let plan = |header: &[u8], layout, length, mss, kind| {
        SegmentPlan::new(header, layout, length, mss, kind).err()
    };
    let tcp = SegmentKind::Tcp;
    assert_eq!(plan(&header, layout, 9, 0, tcp), Some(OffloadError::ZeroMss));
    assert_eq!(
        plan(&header, layout, MAX_PAYLOAD_LEN + 1, 9, tcp),
        Some(OffloadError::PayloadTooLong { length: 1 << 18 })
    );
    assert_eq!(
        plan(&header[..53], layout, 9, 9, tcp),
        Some(OffloadError::HeadersBeyondData { stated: 54, available: 53 })
    );
    assert_eq!(
        plan(&header, HeaderLayout { l4_len: 223, ..layout }, 9, 9, tcp),
        Some(OffloadError::HeadersTooLong { stated: 257, limit: 256 })
    );
    assert_eq!(
        plan(&header, HeaderLayout { mac_len: 12, ..layout }, 9, 9, tcp),
        Some(OffloadError::WrongHeaderLength { header: "MAC", stated: 12 })
    );
    assert_eq!(
        plan(&header, HeaderLayout { ip_len: 16, ..layout }, 9, 9, tcp),
        Some(OffloadError::WrongHeaderLength { header: "IPv4", stated: 16 })
    );
    assert_eq!(
        plan(&header, HeaderLayout { l4_len: 16, ..layout }, 9, 9, tcp),
        Some(OffloadError::WrongHeaderLength { header: "TCP", stated: 16 })
    );
    assert_eq!(
        plan(&header, layout, 9, 9, SegmentKind::Udp),
        Some(OffloadError::WrongProtocol { found: 6, expected: 17 })
    );
    assert_eq!(
        plan(&header, layout, 70_000, 0xFFFF, tcp),
        Some(OffloadError::SegmentTooLong { length: 0xFFFF + 40 })
    );
    let mut other = header.clone();
    other[14] = 0x55;
    assert_eq!(plan(&other, layout, 9, 9, tcp), Some(OffloadError::NotIp { version: 5 }));
}

#[test]
fn a_send_of_2_to_the_18_less_one_bytes_at_mss_1_ends() {
    let (header, layout) = tcp4();
    let mut plan = SegmentPlan::new(&header, layout, MAX_PAYLOAD_LEN, 1, SegmentKind::Tcp).unwrap();
    let mut segments = 0;
    while let Some(segment) = plan.next_segment() {
        assert_eq!(segment.payload, segments..segments + 1);
        segments += 1;
    }
    assert_eq!(segments, MAX_PAYLOAD_LEN as usize);
    assert!(plan.next_segment().is_none());
}

#[test]
fn descriptor_lengths_are_in_their_units() {
    let layout = HeaderLayout::from_descriptor(7, 5, 8);
    assert_eq!(layout, HeaderLayout { mac_len: 14, ip_len: 20, l4_len: 32 });
    assert_eq!((layout.l4_offset(), layout.payload_offset()), (34, 66));
}
