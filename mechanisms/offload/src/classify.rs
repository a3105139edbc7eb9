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
    let mut info = PacketInfo::default();
    let Some((ether, mut rest)) = header.split_first_chunk::<14>() else { return info };
    let &[d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, e0, e1] = ether;
    info.cast = match d0 & 1 {
        0 => Cast::Unicast,
        _ if [d0, d1, d2, d3, d4, d5] == [0xFF; 6] => Cast::Broadcast,
        _ => Cast::Multicast,
    };
    info.l2_len = 14;
    info.packet_type = PacketType::L2;
    let mut ethertype = u16::from_be_bytes([e0, e1]);
    for _ in 0..MAX_TAGS {
        if !is_tpid(ethertype) {
            break;
        }
        let Some((&[c0, c1, i0, i1], after)) = rest.split_first_chunk::<4>() else { return info };
        info.vlan.get_or_insert(VlanTag { tpid: ethertype, tci: u16::from_be_bytes([c0, c1]) });
        info.l2_len += 4;
        ethertype = u16::from_be_bytes([i0, i1]);
        rest = after;
    }
    let frame_len = u32::try_from(frame_len).unwrap_or(u32::MAX);
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(&mut info, rest, frame_len),
        ETHERTYPE_IPV6 => ipv6(&mut info, rest, frame_len),
        ETHERTYPE_ARP => info.packet_type = PacketType::Arp,
        ETHERTYPE_LLDP => info.packet_type = PacketType::Lldp,
        _ => {}
    }
    info
}

#[inline(always)]
fn ipv4(info: &mut PacketInfo, packet: &[u8], frame_len: u32) {
    let Some(head) = packet.first_chunk::<20>() else { return };
    let &[version_ihl, _, t0, t1, _, _, f0, f1, _, protocol, ..] = head;
    let header_len = u16::from(version_ihl & 0xF) * 4;
    let total_len = u16::from_be_bytes([t0, t1]);
    if version_ihl >> 4 != 4
        || header_len < 20
        || total_len < header_len
        || packet.len() < usize::from(header_len)
    {
        return;
    }
    info.l3 = Some(L3Protocol::Ipv4);
    info.l3_len = header_len;
    info.packet_type = PacketType::Ipv4Other;
    let end = u32::from(info.l2_len) + u32::from(total_len);
    info.datagram_end = (end <= frame_len).then_some(end);
    // MF or an offset.
    if u16::from_be_bytes([f0, f1]) & 0x3FFF != 0 {
        info.fragment = true;
        info.packet_type = PacketType::Ipv4Fragment;
        return;
    }
    let (l4, packet_type) = match protocol {
        IP_TCP => (L4Protocol::Tcp, PacketType::Ipv4Tcp),
        IP_UDP => (L4Protocol::Udp, PacketType::Ipv4Udp),
        IP_ICMP => (L4Protocol::Icmp, PacketType::Ipv4Icmp),
        IP_SCTP => (L4Protocol::Sctp, PacketType::Ipv4Sctp),
        _ => return,
    };
    let needed = header_len + l4.min_header_len();
    if total_len >= needed && packet.len() >= usize::from(needed) {
        info.l4 = Some(l4);
        info.packet_type = packet_type;
    }
}

#[inline(always)]
fn ipv6(info: &mut PacketInfo, packet: &[u8], frame_len: u32) {
    let Some((head, rest)) = packet.split_first_chunk::<40>() else { return };
    let &[version, _, _, _, p0, p1, next_header, ..] = head;
    if version >> 4 != 6 {
        return;
    }
    info.l3 = Some(L3Protocol::Ipv6);
    info.l3_len = 40;
    info.packet_type = PacketType::Ipv6Other;
    let payload_len = u32::from(u16::from_be_bytes([p0, p1]));
    let end = u32::from(info.l2_len) + 40 + payload_len;
    if payload_len != 0 || next_header != EXT_HOP_BY_HOP {
        info.datagram_end = (end <= frame_len).then_some(end);
    }
    let (next_header, rest) = if is_extension(next_header) {
        match walk_extensions(info, next_header, rest, payload_len) {
            Some(after) => after,
            None => return,
        }
    } else {
        (next_header, rest)
    };
    let (l4, packet_type) = match next_header {
        IP_TCP => (L4Protocol::Tcp, PacketType::Ipv6Tcp),
        IP_UDP => (L4Protocol::Udp, PacketType::Ipv6Udp),
        IP_ICMPV6 => (L4Protocol::Icmp, PacketType::Ipv6Icmp),
        IP_SCTP => (L4Protocol::Sctp, PacketType::Ipv6Sctp),
        _ => return,
    };
    let needed = l4.min_header_len();
    let extensions = u32::from(info.l3_len) - 40;
    if payload_len >= extensions + u32::from(needed) && rest.len() >= usize::from(needed) {
        info.l4 = Some(l4);
        info.packet_type = packet_type;
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

/// Walks extension headers. Yields the upper-layer protocol and the bytes from there on; `None` when the
/// packet type is decided already (fragments) or the chain is broken, too long, or not all there.
#[cold]
fn walk_extensions<'a>(
    info: &mut PacketInfo,
    mut next_header: u8,
    mut rest: &'a [u8],
    payload_len: u32,
) -> Option<(u8, &'a [u8])> {
    info.ipv6_extensions = true;
    for position in 0..MAX_EXTENSIONS {
        if !is_extension(next_header) {
            return Some((next_header, rest));
        }
        if next_header == EXT_HOP_BY_HOP && position != 0 {
            return None; // RFC 8200 §4.1: only directly after the IPv6 header.
        }
        let &[following, length, b2, b3, ..] = rest.first_chunk::<8>()?;
        let length = match next_header {
            EXT_FRAGMENT => 8,
            EXT_AUTHENTICATION => (u16::from(length) + 2) * 4,
            _ => (u16::from(length) + 1) * 8,
        };
        let (_, after) = rest.split_at_checked(usize::from(length))?;
        if u32::from(info.l3_len) - 40 + u32::from(length) > payload_len {
            return None;
        }
        match next_header {
            // An offset or M; without either it is an "atomic fragment" (RFC 6946), a whole datagram.
            EXT_FRAGMENT if u16::from_be_bytes([b2, b3]) & 0xFFF9 != 0 => {
                info.l3_len += length;
                info.fragment = true;
                info.packet_type = PacketType::Ipv6Fragment;
                return None;
            }
            EXT_ROUTING if b3 != 0 => info.ipv6_rerouted = true,
            _ => {}
        }
        info.l3_len += length;
        next_header = following;
        rest = after;
    }
    (!is_extension(next_header)).then_some((next_header, rest))
}
