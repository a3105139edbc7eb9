use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{Recipe, Transport, build, recipes, sctp};
use crate::{Cast, L3Protocol, L4Protocol, PacketInfo, PacketType, VlanTag, classify};

fn offset_in(frame: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - frame.as_ptr() as usize
}

/// What the oracle says of the frame's layers, in our terms.
fn oracle(recipe: &Recipe, frame: &[u8]) -> PacketInfo {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet as built");
    let mut info = PacketInfo { l2_len: 14 + 4 * recipe.vlans.len() as u16, ..Default::default() };
    // The builder stacks 802.1ad outside.
    let tpid = if recipe.vlans.len() == 2 { 0x88A8 } else { 0x8100 };
    info.vlan = recipe.vlans.first().map(|tci| VlanTag { tpid, tci: tci & 0xFFF });
    let (payload, v6) = match packet.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => (ip.payload(), false),
        NetSlice::Ipv6(ip) => (ip.payload(), true),
        NetSlice::Arp(_) => unreachable!("not built"),
    };
    info.l3 = Some(if v6 { L3Protocol::Ipv6 } else { L3Protocol::Ipv4 });
    info.l3_len = (offset_in(frame, payload.payload) - info.l3_offset()) as u16;
    info.datagram_end = Some((offset_in(frame, payload.payload) + payload.payload.len()) as u32);
    info.ipv6_extensions = v6 && info.l3_len > 40;
    info.fragment = payload.fragmented;
    info.l4 = match packet.transport {
        Some(TransportSlice::Tcp(_)) => Some(L4Protocol::Tcp),
        Some(TransportSlice::Udp(_)) => Some(L4Protocol::Udp),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => Some(L4Protocol::Icmp),
        Some(TransportSlice::Igmp(_)) | None => None,
    };
    info.packet_type = match (v6, info.fragment, info.l4) {
        (false, true, _) => PacketType::Ipv4Fragment,
        (false, _, Some(L4Protocol::Tcp)) => PacketType::Ipv4Tcp,
        (false, _, Some(L4Protocol::Udp)) => PacketType::Ipv4Udp,
        (false, _, Some(L4Protocol::Icmp)) => PacketType::Ipv4Icmp,
        (false, _, _) => PacketType::Ipv4Other,
        (true, true, _) => PacketType::Ipv6Fragment,
        (true, _, Some(L4Protocol::Tcp)) => PacketType::Ipv6Tcp,
        (true, _, Some(L4Protocol::Udp)) => PacketType::Ipv6Udp,
        (true, _, Some(L4Protocol::Icmp)) => PacketType::Ipv6Icmp,
        (true, _, _) => PacketType::Ipv6Other,
    };
    info
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_layer_is_where_etherparse_finds_it(recipe in recipes()) {
        let frame = build(&recipe);
        prop_assert_eq!(classify(&frame, frame.len()), oracle(&recipe, &frame));
        // 256 bytes of header say as much as the whole frame.
        let header = &frame[..frame.len().min(256)];
        prop_assert_eq!(classify(header, frame.len()), oracle(&recipe, &frame));
    }

    #[test]
    fn random_bytes_never_panic_and_offsets_stay_inside(
        bytes in prop::collection::vec(any::<u8>(), 0..200), frame_len in 0usize..400
    ) {
        check_bounds(&bytes, frame_len);
    }

    #[test]
    fn damaged_packets_never_panic_and_offsets_stay_inside(
        recipe in recipes(),
        damage in prop::collection::vec((0usize..120, any::<u8>()), 0..8),
        cut in 0usize..500,
    ) {
        let mut frame = build(&recipe);
        for (at, value) in damage {
            let at = at % frame.len();
            frame[at] = value;
        }
        let header = &frame[..cut.min(frame.len())];
        check_bounds(header, frame.len());
        check_bounds(header, cut);
    }
}

fn check_bounds(header: &[u8], frame_len: usize) {
    let info = classify(header, frame_len);
    let seen = header.len().min(frame_len);
    assert!(info.l4_offset() <= seen);
    if let Some(l4) = info.l4 {
        assert!(info.l4_offset() + usize::from(l4.min_header_len()) <= seen);
    }
    if let Some(end) = info.datagram_end {
        assert!(info.l4_offset() <= end as usize && end as usize <= frame_len);
    }
}

fn udp6() -> Vec<u8> {
    build(&Recipe {
        vlans: vec![],
        v6: true,
        extras: 0,
        fragment: false,
        transport: Transport::Udp,
        payload: vec![7; 40],
        padding: 0,
    })
}

/// Puts extension headers between the IPv6 header and what followed it.
fn with_extensions(chain: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let plain = udp6();
    let mut frame = plain[..54].to_vec();
    frame[20] = chain[0].0;
    for (index, (_, header)) in chain.iter().enumerate() {
        let start = frame.len();
        frame.extend(header);
        frame[start] = chain.get(index + 1).map_or(17, |(kind, _)| *kind);
    }
    frame.extend(&plain[54..]);
    let payload = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&payload.to_be_bytes());
    frame
}

#[test]
fn an_authentication_header_is_counted_in_words() {
    let frame = with_extensions(&[(51, [&[0, 4], [0; 22].as_slice()].concat())]);
    let info = classify(&frame, frame.len());
    assert_eq!((info.packet_type, info.l3_len), (PacketType::Ipv6Udp, 64));
}

#[test]
fn a_routing_header_with_segments_left_is_marked() {
    for left in [0u8, 1] {
        let routing = [&[0, 2, 0, left], [0; 20].as_slice()].concat();
        let frame = with_extensions(&[(43, routing)]);
        let info = classify(&frame, frame.len());
        assert_eq!(info.packet_type, PacketType::Ipv6Udp);
        assert_eq!(info.ipv6_rerouted, left == 1);
    }
}

#[test]
fn the_extension_walk_ends_after_eight_headers() {
    let options = || (60u8, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let eight: Vec<_> = (0..8).map(|_| options()).collect();
    let nine: Vec<_> = (0..9).map(|_| options()).collect();
    let frame = with_extensions(&eight);
    assert_eq!(classify(&frame, frame.len()).packet_type, PacketType::Ipv6Udp);
    let frame = with_extensions(&nine);
    let info = classify(&frame, frame.len());
    assert_eq!((info.packet_type, info.l4), (PacketType::Ipv6Other, None));
}

#[test]
fn hop_by_hop_options_in_the_wrong_place_hide_what_follows() {
    let options = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    let frame = with_extensions(&[(60, options()), (0, options())]);
    assert_eq!(classify(&frame, frame.len()).packet_type, PacketType::Ipv6Other);
    let frame = with_extensions(&[(0, options()), (60, options())]);
    assert_eq!(classify(&frame, frame.len()).packet_type, PacketType::Ipv6Udp);
}

#[test]
fn layer_two_frames_have_their_types() {
    let typed = |ethertype: [u8; 2]| {
        let mut frame = [0u8; 60];
        frame[12..14].copy_from_slice(&ethertype);
        classify(&frame, 60).packet_type
    };
    assert_eq!(typed([0x08, 0x06]), PacketType::Arp);
    assert_eq!(typed([0x88, 0xCC]), PacketType::Lldp);
    assert_eq!(typed([0x12, 0x34]), PacketType::L2);
    assert_eq!(typed([0x08, 0x00]), PacketType::L2, "version 0 is no IPv4");
    assert_eq!(typed([0x86, 0xDD]), PacketType::L2, "version 0 is no IPv6");
    assert_eq!(classify(&[0; 13], 13).packet_type, PacketType::Unknown);
    assert_eq!(classify(&sctp(&[1, 2, 3]), 49).packet_type, PacketType::Ipv4Sctp);
}

#[test]
fn the_destination_address_tells_the_cast() {
    let cast = |first: u8, rest: u8| {
        let mut frame = [rest; 60];
        frame[0] = first;
        classify(&frame, 60).cast
    };
    assert_eq!(cast(0x02, 0xFF), Cast::Unicast);
    assert_eq!(cast(0x01, 0x00), Cast::Multicast);
    assert_eq!(cast(0xFF, 0xFF), Cast::Broadcast);
    assert_eq!(cast(0xFF, 0xFE), Cast::Multicast);
}

#[test]
fn codes_are_those_of_the_descriptor() {
    let codes = [
        PacketType::Unknown,
        PacketType::L2,
        PacketType::Lldp,
        PacketType::Arp,
        PacketType::Ipv4Fragment,
        PacketType::Ipv4Other,
        PacketType::Ipv4Udp,
        PacketType::Ipv4Tcp,
        PacketType::Ipv4Sctp,
        PacketType::Ipv4Icmp,
        PacketType::Ipv6Fragment,
        PacketType::Ipv6Other,
        PacketType::Ipv6Udp,
        PacketType::Ipv6Tcp,
        PacketType::Ipv6Sctp,
        PacketType::Ipv6Icmp,
    ]
    .map(PacketType::code);
    assert_eq!(codes, [0, 1, 6, 11, 22, 23, 24, 26, 27, 28, 88, 89, 90, 92, 93, 94]);
}
