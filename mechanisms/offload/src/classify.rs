//! Packet types (SPEC-AVF §5.6) and where the layers of a frame begin.

use crate::ether::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_LLDP, VlanTag, is_tpid,
};

/// Packet type as written back in a receive descriptor (SPEC-AVF §5.6, the minimal set).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
#[repr(u8)]
pub enum PacketType {
    /// Nothing is known: the frame has no whole Ethernet header.
    #[default]
    Unknown = 0,
    /// Layer 2 payload: an ethertype of no interest, or an IP header that is none.
    L2 = 1,
    /// Link layer discovery.
    Lldp = 6,
    /// ARP.
    Arp = 11,
    /// A fragment of an IPv4 datagram.
    Ipv4Fragment = 22,
    /// IPv4 with another payload.
    Ipv4Other = 23,
    /// IPv4 UDP.
    Ipv4Udp = 24,
    /// IPv4 TCP.
    Ipv4Tcp = 26,
    /// IPv4 SCTP.
    Ipv4Sctp = 27,
    /// IPv4 ICMP.
    Ipv4Icmp = 28,
    /// A fragment of an IPv6 datagram.
    Ipv6Fragment = 88,
    /// IPv6 with another payload.
    Ipv6Other = 89,
    /// IPv6 UDP.
    Ipv6Udp = 90,
    /// IPv6 TCP.
    Ipv6Tcp = 92,
    /// IPv6 SCTP.
    Ipv6Sctp = 93,
    /// ICMPv6.
    Ipv6Icmp = 94,
}

impl PacketType {
    /// The number in the descriptor.
    #[inline(always)]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// To how many the destination MAC address speaks (UMBCAST of the receive descriptor).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Cast {
    /// One station.
    #[default]
    Unicast = 0,
    /// A group.
    Multicast = 1,
    /// All.
    Broadcast = 2,
}

/// The network protocol found.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum L3Protocol {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The transport protocol found.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum L4Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP over IPv4, ICMPv6 over IPv6.
    Icmp,
}

impl L4Protocol {
    /// Bytes of the shortest header.
    #[inline(always)]
    pub const fn min_header_len(self) -> u16 {
        match self {
            Self::Tcp => 20,
            Self::Udp | Self::Icmp => 8,
            Self::Sctp => 12,
        }
    }
}

/// What [`classify`] found in a frame. Offsets are bytes from the frame's start.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct PacketInfo {
    /// Packet type for the receive descriptor.
    pub packet_type: PacketType,
    /// Destination address class.
    pub cast: Cast,
    /// The outer VLAN tag in the frame's bytes.
    pub vlan: Option<VlanTag>,
    /// Bytes of the Ethernet header with all its tags; where layer 3 begins.
    pub l2_len: u16,
    /// The network protocol, if its header is whole and makes sense.
    pub l3: Option<L3Protocol>,
    /// Bytes of the IP header with options or extension headers; 0 without `l3`.
    pub l3_len: u16,
    /// The transport protocol, if its shortest header lies whole in the header bytes and the datagram is
    /// not a fragment.
    pub l4: Option<L4Protocol>,
    /// Where the IP datagram ends, which padding may follow; `None` when the frame ends sooner, or the
    /// length is not stated (IPv6 jumbograms).
    pub datagram_end: Option<u32>,
    /// IPv6 with extension headers (IPV6EXADD): drivers do not trust the checksum then.
    pub ipv6_extensions: bool,
    /// IPv6 with a routing header that has segments left: the pseudo-header is not that of the addresses.
    pub ipv6_rerouted: bool,
    /// A fragment of a datagram: it has no transport header of its own to check.
    pub fragment: bool,
}

impl PacketInfo {
    /// Where the IP header begins.
    #[inline(always)]
    pub fn l3_offset(&self) -> usize {
        usize::from(self.l2_len)
    }

    /// Where the transport header begins (or would, for a fragment).
    #[inline(always)]
    pub fn l4_offset(&self) -> usize {
        usize::from(self.l2_len) + usize::from(self.l3_len)
    }
}

const IP_ICMP: u8 = 1;
pub(crate) const IP_TCP: u8 = 6;
pub(crate) const IP_UDP: u8 = 17;
const IP_ICMPV6: u8 = 58;
const IP_SCTP: u8 = 132;

const EXT_HOP_BY_HOP: u8 = 0;
const EXT_ROUTING: u8 = 43;
const EXT_FRAGMENT: u8 = 44;
const EXT_AUTHENTICATION: u8 = 51;
const EXT_DESTINATION: u8 = 60;
const EXT_MOBILITY: u8 = 135;
const EXT_HIP: u8 = 139;
const EXT_SHIM6: u8 = 140;

/// Extension headers walked before the rest counts as "other".
const MAX_EXTENSIONS: usize = 8;
/// VLAN tags looked through.
const MAX_TAGS: usize = 2;

/// Classifies a frame by its first bytes.
///
/// `header` is the start of the frame (the first 128 bytes hold all that common traffic has; more than the
/// frame is cut), `frame_len` the length of all of it in bytes. A layer whose header is not whole in
/// `header` is not reported, nor is anything above it. Any bytes are allowed.
#[inline]
pub fn classify(header: &[u8], frame_len: usize) -> PacketInfo {
    let header = header.get(..frame_len).unwrap_or(header);
    let Some((ether, rest)) = header.split_first_chunk::<14>() else {
        return PacketInfo::default();
    };
    let &[d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, e0, e1] = ether;
    let cast = match d0 & 1 {
        0 => Cast::Unicast,
        _ if [d0, d1, d2, d3, d4, d5] == [0xFF; 6] => Cast::Broadcast,
        _ => Cast::Multicast,
    };
    let ethertype = u16::from_be_bytes([e0, e1]);
    let tags = if is_tpid(ethertype) {
        walk_tags(ethertype, rest)
    } else {
        Tags { vlan: None, ethertype: Some(ethertype), l2_len: 14, rest }
    };
    let frame_len = u32::try_from(frame_len).unwrap_or(u32::MAX);
    let network = match tags.ethertype {
        Some(ETHERTYPE_IPV4) => ipv4(tags.rest, tags.l2_len, frame_len),
        Some(ETHERTYPE_IPV6) => ipv6(tags.rest, tags.l2_len, frame_len),
        Some(ETHERTYPE_ARP) => Network::none(PacketType::Arp),
        Some(ETHERTYPE_LLDP) => Network::none(PacketType::Lldp),
        _ => Network::none(PacketType::L2),
    };
    PacketInfo {
        packet_type: network.packet_type,
        cast,
        vlan: tags.vlan,
        l2_len: tags.l2_len,
        l3: network.l3,
        l3_len: network.l3_len,
        l4: network.l4,
        datagram_end: network.datagram_end,
        ipv6_extensions: network.extensions,
        ipv6_rerouted: network.rerouted,
        fragment: network.fragment,
    }
}

/// The Ethernet header's tags and what follows them.
struct Tags<'a> {
    vlan: Option<VlanTag>,
    /// `None` when the bytes end inside a tag.
    ethertype: Option<u16>,
    l2_len: u16,
    rest: &'a [u8],
}

#[inline(never)]
fn walk_tags(ethertype: u16, rest: &[u8]) -> Tags<'_> {
    let mut tags = Tags { vlan: None, ethertype: Some(ethertype), l2_len: 14, rest };
    for _ in 0..MAX_TAGS {
        let Some(tpid) = tags.ethertype.filter(|ethertype| is_tpid(*ethertype)) else { break };
        let Some((&[c0, c1, i0, i1], after)) = tags.rest.split_first_chunk::<4>() else {
            tags.ethertype = None;
            break;
        };
        tags.vlan.get_or_insert(VlanTag { tpid, tci: u16::from_be_bytes([c0, c1]) });
        tags.ethertype = Some(u16::from_be_bytes([i0, i1]));
        tags.l2_len += 4;
        tags.rest = after;
    }
    tags
}

/// What lies above the Ethernet header.
struct Network {
    packet_type: PacketType,
    l3: Option<L3Protocol>,
    l3_len: u16,
    l4: Option<L4Protocol>,
    datagram_end: Option<u32>,
    extensions: bool,
    rerouted: bool,
    fragment: bool,
}

impl Network {
    #[inline(always)]
    const fn none(packet_type: PacketType) -> Self {
        Self {
            packet_type,
            l3: None,
            l3_len: 0,
            l4: None,
            datagram_end: None,
            extensions: false,
            rerouted: false,
            fragment: false,
        }
    }
}

#[inline(always)]
fn ipv4(packet: &[u8], l2_len: u16, frame_len: u32) -> Network {
    let none = Network::none(PacketType::L2);
    let Some(head) = packet.first_chunk::<20>() else { return none };
    let &[version_ihl, _, t0, t1, _, _, f0, f1, _, protocol, ..] = head;
    let header_len = u16::from(version_ihl & 0xF) * 4;
    let total_len = u16::from_be_bytes([t0, t1]);
    if version_ihl >> 4 != 4
        || header_len < 20
        || total_len < header_len
        || packet.len() < usize::from(header_len)
    {
        return none;
    }
    let end = u32::from(l2_len) + u32::from(total_len);
    // MF or an offset.
    let fragment = u16::from_be_bytes([f0, f1]) & 0x3FFF != 0;
    let (l4, packet_type) = match protocol {
        _ if fragment => (None, PacketType::Ipv4Fragment),
        IP_TCP => (Some(L4Protocol::Tcp), PacketType::Ipv4Tcp),
        IP_UDP => (Some(L4Protocol::Udp), PacketType::Ipv4Udp),
        IP_ICMP => (Some(L4Protocol::Icmp), PacketType::Ipv4Icmp),
        IP_SCTP => (Some(L4Protocol::Sctp), PacketType::Ipv4Sctp),
        _ => (None, PacketType::Ipv4Other),
    };
    let needed = header_len + l4.map_or(0, L4Protocol::min_header_len);
    let whole = total_len >= needed && packet.len() >= usize::from(needed);
    Network {
        packet_type: if whole { packet_type } else { PacketType::Ipv4Other },
        l3: Some(L3Protocol::Ipv4),
        l3_len: header_len,
        l4: l4.filter(|_| whole),
        datagram_end: (end <= frame_len).then_some(end),
        fragment,
        extensions: false,
        rerouted: false,
    }
}

#[inline(always)]
fn ipv6(packet: &[u8], l2_len: u16, frame_len: u32) -> Network {
    let none = Network::none(PacketType::L2);
    let Some((head, rest)) = packet.split_first_chunk::<40>() else { return none };
    let &[version, _, _, _, p0, p1, next_header, ..] = head;
    if version >> 4 != 6 {
        return none;
    }
    let payload_len = u16::from_be_bytes([p0, p1]);
    let end = u32::from(l2_len) + 40 + u32::from(payload_len);
    // A payload length of 0 before hop-by-hop options is a jumbogram's.
    let stated = payload_len != 0 || next_header != EXT_HOP_BY_HOP;
    let upper = if is_extension(next_header) {
        walk_extensions(next_header, rest, payload_len)
    } else {
        Upper { protocol: Some(next_header), rest, ..Upper::default() }
    };
    let (l4, packet_type) = match upper.protocol {
        _ if upper.fragment => (None, PacketType::Ipv6Fragment),
        Some(IP_TCP) => (Some(L4Protocol::Tcp), PacketType::Ipv6Tcp),
        Some(IP_UDP) => (Some(L4Protocol::Udp), PacketType::Ipv6Udp),
        Some(IP_ICMPV6) => (Some(L4Protocol::Icmp), PacketType::Ipv6Icmp),
        Some(IP_SCTP) => (Some(L4Protocol::Sctp), PacketType::Ipv6Sctp),
        _ => (None, PacketType::Ipv6Other),
    };
    let needed = l4.map_or(0, L4Protocol::min_header_len);
    let whole = payload_len >= upper.extensions_len.saturating_add(needed)
        && upper.rest.len() >= usize::from(needed);
    Network {
        packet_type: if whole { packet_type } else { PacketType::Ipv6Other },
        l3: Some(L3Protocol::Ipv6),
        l3_len: 40 + upper.extensions_len,
        l4: l4.filter(|_| whole),
        datagram_end: (stated && end <= frame_len).then_some(end),
        extensions: is_extension(next_header),
        rerouted: upper.rerouted,
        fragment: upper.fragment,
    }
}

#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        EXT_HOP_BY_HOP
            | EXT_ROUTING
            | EXT_FRAGMENT
            | EXT_AUTHENTICATION
            | EXT_DESTINATION
            | EXT_MOBILITY
            | EXT_HIP
            | EXT_SHIM6
    )
}

/// What follows the IPv6 header and its extension headers.
#[derive(Default)]
struct Upper<'a> {
    /// `None` when the chain is broken, too long, or not all there.
    protocol: Option<u8>,
    extensions_len: u16,
    fragment: bool,
    rerouted: bool,
    rest: &'a [u8],
}

#[inline(never)]
fn walk_extensions(mut next_header: u8, rest: &[u8], payload_len: u16) -> Upper<'_> {
    let mut upper = Upper { rest, ..Upper::default() };
    for position in 0..MAX_EXTENSIONS {
        if !is_extension(next_header) {
            break;
        }
        if next_header == EXT_HOP_BY_HOP && position != 0 {
            return upper; // RFC 8200 §4.1: only directly after the IPv6 header.
        }
        let Some(&[following, length, b2, b3, ..]) = upper.rest.first_chunk::<8>() else {
            return upper;
        };
        let length = match next_header {
            EXT_FRAGMENT => 8,
            EXT_AUTHENTICATION => (u16::from(length) + 2) * 4,
            _ => (u16::from(length) + 1) * 8,
        };
        // Eight headers of at most 2 KiB each: no overflow.
        let total = upper.extensions_len + length;
        let Some((_, after)) = upper.rest.split_at_checked(usize::from(length)) else {
            return upper;
        };
        if total > payload_len {
            return upper;
        }
        upper.extensions_len = total;
        upper.rest = after;
        match next_header {
            // An offset or M; without either it is an "atomic fragment" (RFC 6946), a whole datagram.
            EXT_FRAGMENT if u16::from_be_bytes([b2, b3]) & 0xFFF9 != 0 => {
                upper.fragment = true;
                return upper;
            }
            EXT_ROUTING if b3 != 0 => upper.rerouted = true,
            _ => {}
        }
        next_header = following;
    }
    upper.protocol = Some(next_header).filter(|next_header| !is_extension(*next_header));
    upper
}
