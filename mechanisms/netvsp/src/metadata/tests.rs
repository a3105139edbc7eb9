use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;

fn tcp4(payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut frame, &vec![7; payload])
        .unwrap();
    frame
}

fn udp6() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([1; 16], [2; 16], 64)
        .udp(1, 2)
        .write(&mut frame, &[0; 30])
        .unwrap();
    frame
}

fn info(checksum: Option<TxChecksum>, large_send: Option<LargeSend>) -> PerPacketInfo {
    PerPacketInfo { checksum: checksum.map(|sum| sum.0), large_send, ..PerPacketInfo::default() }
}

fn parse(info: PerPacketInfo, frame: &[u8]) -> Result<TransmitMetadata, ParseError> {
    TransmitMetadata::from_wire(&info, &frame[..frame.len().min(256)], frame.len())
}

#[test]
fn a_checksum_request_says_what_offload_and_avf_want_to_know() {
    let frame = tcp4(100);
    let request = TxChecksum::ipv4(34).with_tcp().with_ip_header();
    let metadata = parse(info(Some(request), None), &frame).unwrap();
    let layout = HeaderLayout { mac_len: 14, ip_len: 20, l4_len: 20 };
    let expected = ChecksumRequest {
        l3: L3Protocol::Ipv4,
        ip_header: true,
        l4: Some(L4Protocol::Tcp),
        layout,
    };
    assert_eq!(metadata.checksum, Some(expected));
    let (fields, segmentation) = metadata.to_avf();
    assert_eq!((fields.ip, fields.l4, segmentation), (IpType::Ipv4Checksum, L4Type::Tcp, None));
    assert_eq!((fields.mac_length, fields.ip_length, fields.l4_length), (14, 20, 20));

    let metadata = parse(info(Some(TxChecksum::ipv6(54).with_udp()), None), &udp6()).unwrap();
    assert_eq!(metadata.checksum.unwrap().layout.l4_len, 8);
    assert_eq!(metadata.to_avf().0.ip, IpType::Ipv6);
}

#[test]
fn where_the_guest_does_not_say_the_frame_tells_where_the_transport_header_is() {
    let said = parse(info(Some(TxChecksum::ipv4(34).with_tcp()), None), &tcp4(9));
    let unsaid = parse(info(Some(TxChecksum::ipv4(0).with_tcp()), None), &tcp4(9));
    assert_eq!(said, unsaid);
    assert!(parse(info(Some(TxChecksum::ipv4(0).with_udp()), None), &tcp4(9)).is_err());
    assert!(parse(info(Some(TxChecksum::ipv6(0).with_tcp()), None), &tcp4(9)).is_err());
}

#[test]
fn tags_in_the_frame_move_the_headers() {
    let mut frame = tcp4(9);
    frame.splice(12..12, [0x81, 0, 0, 5]);
    let metadata = parse(info(Some(TxChecksum::ipv4(38).with_tcp()), None), &frame).unwrap();
    let layout = metadata.checksum.unwrap().layout;
    assert_eq!((layout.mac_len, layout.ip_len, layout.l4_len), (18, 20, 20));
}

#[test]
fn a_large_send_is_laid_out_for_the_segmenter() {
    let frame = tcp4(4000);
    let metadata = parse(info(None, Some(LargeSend::v2(1460, 34, false))), &frame).unwrap();
    let segmentation = metadata.segmentation.unwrap();
    let plan = offload::SegmentPlan::new(
        &frame[..54],
        segmentation.layout,
        4000,
        segmentation.mss,
        offload::SegmentKind::Tcp,
    );
    assert_eq!(plan.unwrap().segment_count(), 3);
    let (fields, avf) = metadata.to_avf();
    assert_eq!((fields.ip, fields.l4, avf), (IpType::Ipv4Checksum, L4Type::Tcp, Some((1460, 54))));
}

#[test]
fn headers_that_do_not_lie_in_the_frame_are_refused() {
    let frame = tcp4(100);
    let lso = |mss, offset| parse(info(None, Some(LargeSend::v2(mss, offset, false))), &frame);
    assert!(lso(1460, 34).is_ok());
    for offset in [0, 13, 33, 142, 153, 154, 1023] {
        assert!(lso(1460, offset).is_err(), "TCP header at {offset}");
    }
    assert!(lso(65_536, 34).is_err());
    assert_eq!(lso(0, 34), Ok(TransmitMetadata::default()), "asks for nothing");
    let version_1 = LargeSend(1460 | 34 << 20);
    assert!(parse(info(None, Some(version_1)), &frame).is_err());
    let mut short = frame.clone();
    for nibble in [0x00, 0x40, 0xF0] {
        short[46] = nibble;
        let whole = LargeSend::v2(1460, 34, false);
        assert!(parse(info(None, Some(whole)), &short[..60]).is_err(), "{nibble:#x}");
    }
    for request in [
        TxChecksum::ipv4(1000).with_tcp(),
        TxChecksum::ipv4(20).with_tcp(),
        TxChecksum::ipv4(147).with_udp(),
        TxChecksum::ipv4(34).with_tcp().with_udp(),
        TxChecksum(4 | 34 << 16),
        TxChecksum(7 | 34 << 16),
    ] {
        assert!(parse(info(Some(request), None), &frame).is_err(), "{request:?}");
    }
}

fn layouts() -> impl Strategy<Value = HeaderLayout> {
    (0..3u16, 5..15u16, 5..16u16).prop_map(|(tags, ip, l4)| HeaderLayout {
        mac_len: 14 + tags * 4,
        ip_len: ip * 4,
        l4_len: l4 * 4,
    })
}

fn l3() -> impl Strategy<Value = L3Protocol> {
    prop_oneof![Just(L3Protocol::Ipv4), Just(L3Protocol::Ipv6)]
}

fn transmit() -> impl Strategy<Value = TransmitMetadata> {
    let segmentation = (1..=u16::MAX, l3(), layouts()).prop_map(|(mss, l3, layout)| Segmentation {
        mss,
        l3,
        layout,
    });
    let checksum = (l3(), layouts(), any::<bool>(), 0..3u8).prop_map(|(l3, mut layout, ip, l4)| {
        let ip_header = ip && l3 == L3Protocol::Ipv4;
        let l4 = match l4 {
            0 if ip_header => None,
            1 => Some(L4Protocol::Udp),
            _ => Some(L4Protocol::Tcp),
        };
        match l4 {
            None => layout.l4_len = 0,
            Some(L4Protocol::Udp) => layout.l4_len = 8,
            _ => {}
        }
        ChecksumRequest { l3, ip_header, l4, layout }
    });
    let offload = prop_oneof![
        Just((None, None)),
        segmentation.prop_map(|s| (Some(s), None)),
        checksum.prop_map(|c| (None, Some(c))),
    ];
    (offload, prop::option::of(any::<u16>())).prop_map(|((segmentation, checksum), vlan_tci)| {
        TransmitMetadata { checksum, segmentation, vlan_tci, hash: None }
    })
}

/// The beginning of a frame with these headers, as far as anyone looks.
fn headers(layout: HeaderLayout) -> Vec<u8> {
    let mut frame = vec![0; 2000];
    for tag in 0..(usize::from(layout.mac_len) - 14) / 4 {
        frame[12 + tag * 4] = 0x81;
    }
    frame[layout.l4_offset() + 12] = (layout.l4_len as u8 / 4) << 4;
    frame
}

proptest! {
    #[test]
    fn transmit_metadata_survives_the_way_to_an_avf_queue_and_back(metadata in transmit()) {
        let (fields, segmentation) = metadata.to_avf();
        let back =
            TransmitMetadata::from_avf(fields, segmentation.map(|s| s.0), metadata.vlan_tci);
        prop_assert_eq!(back, metadata);
    }

    #[test]
    fn transmit_metadata_survives_the_wire(metadata in transmit(), hash: Option<u32>) {
        let metadata = TransmitMetadata { hash, ..metadata };
        let layout = metadata.segmentation.map(|s| s.layout)
            .or(metadata.checksum.map(|c| c.layout))
            .unwrap_or(HeaderLayout { mac_len: 14, ip_len: 20, l4_len: 20 });
        prop_assert_eq!(parse(metadata.to_wire(), &headers(layout)), Ok(metadata));
    }

    #[test]
    fn receive_metadata_survives_the_wire(
        ip in 0..3u8, l4 in 0..3u8, tcp: bool, vlan_tci: Option<u16>, hash: Option<u32>,
    ) {
        use ChecksumVerdict::{Bad, Good, NotChecked};
        let verdict = |n| [NotChecked, Good, Bad][usize::from(n)];
        let protocol = if tcp { L4Protocol::Tcp } else { L4Protocol::Udp };
        let metadata = ReceiveMetadata {
            checksums: ChecksumVerdicts { ip: verdict(ip), l4: verdict(l4) },
            l4: (l4 != 0).then_some(protocol),
            vlan_tci,
            hash,
        };
        prop_assert_eq!(ReceiveMetadata::from_wire(&metadata.to_wire()), metadata);
    }

    #[test]
    fn random_elements_and_frames_never_panic(
        checksum: Option<u32>, lso: Option<u32>, frame in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let info =
            PerPacketInfo { checksum, large_send: lso.map(LargeSend), ..PerPacketInfo::default() };
        if let Ok(metadata) = parse(info, &frame) {
            let layout =
                metadata.segmentation.map(|s| s.layout).or(metadata.checksum.map(|c| c.layout));
            prop_assert!(layout.is_none_or(|layout| layout.payload_offset() <= frame.len()));
        }
    }
}
