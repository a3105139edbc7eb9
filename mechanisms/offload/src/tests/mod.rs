//! Whole frames through the offloads, with `etherparse` as the oracle.

mod checksums;
mod classification;
mod segmentation;

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header,
    Ipv4Options, Ipv6Extensions, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder, VlanId,
};
use proptest::prelude::*;

/// The transport of a generated packet.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Transport {
    Tcp { options: u8 },
    Udp,
    Icmp,
    Other(u8),
}

/// A frame to be built.
#[derive(Clone, Debug)]
struct Recipe {
    vlans: Vec<u16>,
    v6: bool,
    /// IPv4: words of options. IPv6: bit 0 hop-by-hop, 1 destination options, 2 an atomic fragment header.
    extras: u8,
    fragment: bool,
    transport: Transport,
    payload: Vec<u8>,
    /// Bytes after the datagram.
    padding: usize,
}

fn recipes() -> impl Strategy<Value = Recipe> {
    let transport = prop_oneof![
        (0u8..=10).prop_map(|options| Transport::Tcp { options }),
        Just(Transport::Udp),
        Just(Transport::Icmp),
        prop_oneof![Just(47u8), Just(50), Just(89), Just(253)].prop_map(Transport::Other),
    ];
    (
        prop::collection::vec(any::<u16>(), 0..=2),
        any::<bool>(),
        0u8..8,
        prop::bool::weighted(0.2),
        transport,
        prop::collection::vec(any::<u8>(), 0..300),
        prop_oneof![Just(0usize), 1usize..40],
    )
        .prop_map(|(vlans, v6, extras, fragment, transport, payload, padding)| Recipe {
            vlans,
            v6,
            extras,
            fragment,
            transport,
            payload,
            padding,
        })
}

fn ip_headers(recipe: &Recipe) -> IpHeaders {
    if recipe.v6 {
        let raw = |byte: u8| {
            Ipv6RawExtHeader::new_raw(IpNumber(0), &[byte; 14]).expect("a length of 6 + 8n bytes")
        };
        let fragment = if recipe.fragment {
            Some(Ipv6FragmentHeader::new(
                IpNumber(0),
                IpFragOffset::try_new(7).expect("13 bits"),
                true,
                1,
            ))
        } else {
            (recipe.extras & 4 != 0)
                .then(|| Ipv6FragmentHeader::new(IpNumber(0), IpFragOffset::default(), false, 1))
        };
        let extensions = Ipv6Extensions {
            hop_by_hop_options: (recipe.extras & 1 != 0).then(|| raw(1)),
            destination_options: (recipe.extras & 2 != 0).then(|| raw(1)),
            fragment,
            ..Default::default()
        };
        let header = Ipv6Header {
            flow_label: Ipv6FlowLabel::default(),
            hop_limit: 64,
            source: [0x20; 16],
            destination: [0x21; 16],
            ..Default::default()
        };
        IpHeaders::Ipv6(header, extensions)
    } else {
        let options = [[1u8; 4].as_slice(); 8][..usize::from(recipe.extras)].concat();
        let header = Ipv4Header {
            identification: 99,
            dont_fragment: !recipe.fragment,
            more_fragments: recipe.fragment,
            time_to_live: 64,
            source: [10, 0, 0, 1],
            destination: [10, 0, 0, 2],
            options: Ipv4Options::try_from(options.as_slice()).expect("at most 28 bytes"),
            ..Default::default()
        };
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    }
}

/// Builds the frame, all checksums right.
fn build(recipe: &Recipe) -> Vec<u8> {
    let mut frame = Vec::new();
    let ip = ip_headers(recipe);
    let payload = &recipe.payload;
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder = match recipe.vlans.as_slice() {
        [] => ethernet.ip(ip),
        [one] => ethernet.single_vlan(vlan(*one)).ip(ip),
        [outer, inner, ..] => ethernet.double_vlan(vlan(*outer), vlan(*inner)).ip(ip),
    };
    match recipe.transport {
        Transport::Tcp { options } => builder
            .tcp(1000, 2000, 3, 4)
            .ack(5)
            .options_raw(&vec![1; usize::from(options) * 4])
            .expect("at most 40 bytes")
            .write(&mut frame, payload),
        Transport::Udp => builder.udp(1000, 2000).write(&mut frame, payload),
        Transport::Icmp if recipe.v6 => {
            builder.icmpv6_echo_request(1, 2).write(&mut frame, payload)
        }
        Transport::Icmp => builder.icmpv4_echo_request(1, 2).write(&mut frame, payload),
        Transport::Other(protocol) => builder.write(&mut frame, IpNumber(protocol), payload),
    }
    .expect("writing to memory");
    frame.resize(frame.len() + recipe.padding, 0xEE);
    frame
}

fn vlan(tci: u16) -> VlanId {
    VlanId::try_new(tci & 0xFFF).expect("12 bits")
}

/// An SCTP packet over IPv4 with a right CRC, by the polynomial division that defines it.
fn sctp(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x03, 0xE8, 0x07, 0xD0, 1, 2, 3, 4, 0, 0, 0, 0];
    packet.extend(payload);
    let crc = crc32c_by_division(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&crc);
    let mut frame = Vec::new();
    Ethernet2Header { source: [2; 6], destination: [4; 6], ether_type: EtherType::IPV4 }
        .write(&mut frame)
        .expect("writing to memory");
    let length = u16::try_from(packet.len()).expect("short");
    let ip =
        Ipv4Header::new(length, 64, IpNumber::SCTP, [10, 0, 0, 1], [10, 0, 0, 2]).expect("short");
    ip.write(&mut frame).expect("writing to memory");
    frame.extend(packet);
    frame
}

/// CRC-32C (RFC 9260 appendix A), bit by bit.
fn crc32c_by_division(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}
