//! Packets, and an oracle that is not ours: `etherparse` builds them and checks what arrives.

use avf_protocol::transmit::{IpType, L4Type, TxOffload};
use etherparse::{
    Ethernet2Header, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options,
    Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, LinkExtSlice, NetSlice,
    PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice,
};

use super::mac;

/// The transport of a packet.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum L4 {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Other,
}

/// A packet to be built.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) to: u8,
    pub(super) from: u8,
    pub(super) v6: bool,
    /// IPv4: words of options, at most 10. IPv6: bit 0 hop-by-hop options, bit 1 destination options, bit 2 an
    /// atomic fragment header.
    pub(super) extras: u8,
    /// The first fragment of a datagram that is longer.
    pub(super) fragment: bool,
    pub(super) l4: L4,
    /// Words of TCP options, at most 10.
    pub(super) options: u8,
    /// Tags in the frame, outer first.
    pub(super) tags: Vec<u16>,
    pub(super) payload: Vec<u8>,
}

impl Recipe {
    /// From VF 0 to VF 1, without anything special.
    pub(super) fn new(v6: bool, l4: L4, payload: &[u8]) -> Self {
        Self {
            to: 1,
            from: 0,
            v6,
            extras: 0,
            fragment: false,
            l4,
            options: 0,
            tags: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    /// The frame, all checksums right.
    pub(super) fn build(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let step = PacketBuilder::ethernet2(mac(self.from), mac(self.to)).ip(self.ip());
        self.finish(step, &mut frame);
        self.tags.iter().rev().fold(frame, |frame, tci| tagged(&frame, *tci))
    }

    fn finish(&self, step: PacketBuilderStep<IpHeaders>, frame: &mut Vec<u8>) {
        let payload = self.payload.as_slice();
        match self.l4 {
            L4::Tcp => step
                .tcp(1000, 2000, 0xFFFF_F000, 500)
                .ack(7)
                .options_raw(&vec![1; usize::from(self.options) * 4])
                .unwrap()
                .write(frame, payload),
            L4::Udp => step.udp(1000, 2000).write(frame, payload),
            L4::Icmp if self.v6 => step.icmpv6_echo_request(1, 2).write(frame, payload),
            L4::Icmp => step.icmpv4_echo_request(1, 2).write(frame, payload),
            L4::Sctp => {
                let mut packet =
                    [&[0x03, 0xE8, 0x07, 0xD0, 1, 2, 3, 4, 0, 0, 0, 0], payload].concat();
                let crc = crc32c(&packet).to_le_bytes();
                packet[8..12].copy_from_slice(&crc);
                step.write(frame, IpNumber::SCTP, &packet)
            }
            L4::Other => step.write(frame, IpNumber(253), payload),
        }
        .unwrap();
    }

    fn ip(&self) -> IpHeaders {
        if self.v6 {
            let raw = Ipv6RawExtHeader::new_raw(IpNumber(0), &[1; 14]).unwrap();
            let fragment =
                Ipv6FragmentHeader::new(IpNumber(0), IpFragOffset::default(), self.fragment, 77);
            let extensions = Ipv6Extensions {
                hop_by_hop_options: (self.extras & 1 != 0).then(|| raw.clone()),
                destination_options: (self.extras & 2 != 0).then(|| raw.clone()),
                fragment: (self.fragment || self.extras & 4 != 0).then_some(fragment),
                ..Default::default()
            };
            let header = Ipv6Header {
                hop_limit: 64,
                source: [0x20 + self.from; 16],
                destination: [0x20 + self.to; 16],
                ..Default::default()
            };
            IpHeaders::Ipv6(header, extensions)
        } else {
            let options = vec![1u8; usize::from(self.extras) * 4];
            let header = Ipv4Header {
                identification: 0xFFFE,
                dont_fragment: !self.fragment,
                more_fragments: self.fragment,
                time_to_live: 64,
                source: [10, 0, 0, self.from],
                destination: [10, 0, 0, self.to],
                options: Ipv4Options::try_from(options.as_slice()).unwrap(),
                ..Default::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
    }

    pub(super) fn mac_length(&self) -> usize {
        Ethernet2Header::LEN + 4 * self.tags.len()
    }

    pub(super) fn ip_length(&self) -> usize {
        self.ip().header_len()
    }

    pub(super) fn l4_length(&self) -> usize {
        match self.l4 {
            L4::Tcp => 20 + 4 * usize::from(self.options),
            L4::Sctp => 12,
            _ => 8,
        }
    }

    pub(super) fn l4_start(&self) -> usize {
        self.mac_length() + self.ip_length()
    }

    /// Bytes of all headers.
    pub(super) fn headers(&self) -> usize {
        self.l4_start() + self.l4_length()
    }

    /// Where the transport checksum lies in the frame, and its length.
    pub(super) fn checksum(&self) -> std::ops::Range<usize> {
        let (at, length) = match self.l4 {
            L4::Tcp => (16, 2),
            L4::Udp => (6, 2),
            L4::Sctp => (8, 4),
            L4::Icmp | L4::Other => (2, 2),
        };
        self.l4_start() + at..self.l4_start() + at + length
    }

    /// What a driver writes into the descriptors to have the checksums filled.
    pub(super) fn offload(&self) -> TxOffload {
        TxOffload {
            ip: if self.v6 { IpType::Ipv6 } else { IpType::Ipv4Checksum },
            l4: match self.l4 {
                L4::Tcp => L4Type::Tcp,
                L4::Udp => L4Type::Udp,
                L4::Sctp => L4Type::Sctp,
                L4::Icmp | L4::Other => L4Type::None,
            },
            mac_length: self.mac_length() as u8,
            ip_length: self.ip_length() as u16,
            l4_length: self.l4_length() as u8,
        }
    }

    /// The frame as a guest hands it over for checksum offload: no IPv4 checksum, and the sum of the
    /// pseudo-header in place of the transport checksum.
    pub(super) fn seeded(&self) -> Vec<u8> {
        let frame = self.build();
        let length = frame.len() - self.l4_start();
        self.seed(frame, length)
    }

    /// The frame as a guest hands it over for segmentation: lengths are zero, in the pseudo-header too.
    pub(super) fn for_segmentation(&self) -> Vec<u8> {
        // What has no room in a length field is cut to segments just because of that.
        let small = Self { payload: Vec::new(), ..self.clone() };
        let mut frame = self.seed(small.build(), 0);
        let ip = self.mac_length();
        let length = if self.v6 { ip + 4..ip + 6 } else { ip + 2..ip + 4 };
        frame[length].fill(0);
        frame.extend(&self.payload);
        frame
    }

    fn seed(&self, mut frame: Vec<u8>, length: usize) -> Vec<u8> {
        let ip = self.mac_length();
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let number = match self.l4 {
            L4::Tcp => 6,
            L4::Udp => 17,
            _ => 0,
        };
        let addresses = &frame[ip..][addresses];
        let words = addresses.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let mut sum = words.sum::<u32>() + number + u32::try_from(length).unwrap();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        if !self.v6 {
            frame[ip + 10..ip + 12].fill(0);
        }
        let field = self.checksum();
        match self.l4 {
            L4::Tcp | L4::Udp => frame[field].copy_from_slice(&(sum as u16).to_be_bytes()),
            L4::Sctp => frame[field].fill(0xA5),
            L4::Icmp | L4::Other => {}
        }
        frame
    }
}

/// A frame with an 802.1Q tag put in behind its addresses.
pub(super) fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &[0x81, 0x00], &tci.to_be_bytes(), rest].concat()
}

/// CRC-32C (RFC 9260 appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    !crc
}

/// What `etherparse` finds in a frame.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) struct Found {
    pub(super) tags: Vec<u16>,
    /// Whether the IPv4 header's checksum is right.
    pub(super) ip_good: Option<bool>,
    /// Whether the transport's checksum is right.
    pub(super) l4_good: Option<bool>,
    pub(super) identification: Option<u16>,
    pub(super) sequence: Option<u32>,
    /// Byte 13 of the TCP header.
    pub(super) flags: Option<u8>,
    pub(super) payload: Vec<u8>,
}

/// Takes a frame apart and computes its checksums anew. Lengths must agree with the frame to the byte.
pub(super) fn look_into(frame: &[u8]) -> Found {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let tags = packet.link_exts.iter().map(|extension| match extension {
        LinkExtSlice::Vlan(vlan) => u16::from_be_bytes([vlan.slice()[0], vlan.slice()[1]]),
        other => panic!("{other:?}"),
    });
    let mut found = Found {
        tags: tags.collect(),
        ip_good: None,
        l4_good: None,
        identification: None,
        sequence: None,
        flags: None,
        payload: Vec::new(),
    };
    let ip = packet.ip_payload().expect("an IP packet");
    let end = ip.payload.as_ptr_range().end;
    assert_eq!(end, frame.as_ptr_range().end, "the lengths are those of the frame");
    match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(net) => {
            let header = net.header().to_header();
            found.identification = Some(header.identification);
            found.ip_good = Some(header.calc_header_checksum() == header.header_checksum);
        }
        NetSlice::Ipv6(_) => {}
        other => panic!("{other:?}"),
    }
    let addresses = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(net) => Ok((net.header().source(), net.header().destination())),
        NetSlice::Ipv6(net) => Err((net.header().source(), net.header().destination())),
        other => panic!("{other:?}"),
    };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let expected = match addresses {
                Ok((from, to)) => tcp.calc_checksum_ipv4(from, to),
                Err((from, to)) => tcp.calc_checksum_ipv6(from, to),
            };
            found.l4_good = Some(expected.unwrap() == tcp.checksum());
            found.sequence = Some(tcp.sequence_number());
            found.flags = Some(tcp.header_slice()[13]);
            found.payload = tcp.payload().to_vec();
        }
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
            let header = udp.to_header();
            let expected = match addresses {
                Ok((from, to)) => header.calc_checksum_ipv4_raw(from, to, udp.payload()),
                Err((from, to)) => header.calc_checksum_ipv6_raw(from, to, udp.payload()),
            };
            found.l4_good = Some(expected.unwrap() == udp.checksum());
            found.payload = udp.payload().to_vec();
        }
        None if ip.ip_number == IpNumber::SCTP => {
            let mut packet = ip.payload.to_vec();
            let stated: [u8; 4] = packet[8..12].try_into().unwrap();
            packet[8..12].fill(0);
            found.l4_good = Some(crc32c(&packet).to_le_bytes() == stated);
            found.payload = packet.split_off(12);
        }
        _ => found.payload = ip.payload.to_vec(),
    }
    found
}

#[test]
fn the_oracle_knows_a_wrong_checksum_when_it_sees_one() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    for l4 in [L4::Tcp, L4::Udp, L4::Sctp] {
        for v6 in [false, true] {
            let recipe = Recipe { tags: vec![0x2005], ..Recipe::new(v6, l4, b"hello") };
            let mut frame = recipe.build();
            let right = look_into(&frame);
            assert_eq!((right.ip_good, right.l4_good), ((!v6).then_some(true), Some(true)));
            assert_eq!(
                (right.tags.as_slice(), right.payload.as_slice()),
                (&[0x2005][..], &b"hello"[..])
            );
            *frame.last_mut().unwrap() ^= 1;
            assert_eq!(look_into(&frame).l4_good, Some(false));
        }
    }
}
