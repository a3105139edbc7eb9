//! Packet types: the 8-bit PTYPE of legacy write-backs, which is also the low part of the flex table's ten
//! bits (SPEC-AVF §5.6).

/// A packet type. Values above [`PacketType::LAST`] mean as much as [`PacketType::UNKNOWN`].
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default, Debug)]
#[repr(transparent)]
pub struct PacketType(pub u8);

/// What the innermost known layer of a packet is, as drivers need it for checksum and hash reports.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Payload {
    /// Nothing is known.
    Unknown,
    /// An L2 frame without a known L3 protocol.
    L2,
    /// An IP packet without a known L4 protocol, or a fragment.
    L3,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP or ICMPv6.
    Icmp,
}

impl PacketType {
    /// Unknown or reserved.
    pub const UNKNOWN: Self = Self(0);
    /// L2, payload layer 2.
    pub const L2: Self = Self(1);
    /// L2 time synchronisation.
    pub const L2_TIME_SYNC: Self = Self(2);
    /// L2 LLDP.
    pub const L2_LLDP: Self = Self(6);
    /// ARP.
    pub const ARP: Self = Self(11);
    /// IPv4 fragment.
    pub const IPV4_FRAGMENT: Self = Self(22);
    /// IPv4, other.
    pub const IPV4_OTHER: Self = Self(23);
    /// UDP over IPv4.
    pub const IPV4_UDP: Self = Self(24);
    /// TCP over IPv4.
    pub const IPV4_TCP: Self = Self(26);
    /// SCTP over IPv4.
    pub const IPV4_SCTP: Self = Self(27);
    /// ICMP over IPv4.
    pub const IPV4_ICMP: Self = Self(28);
    /// First of the IPv4-in-IPv4 types: fragment, other, UDP, –, TCP, SCTP, ICMP.
    pub const IPV4_IPV4: Self = Self(29);
    /// First of the IPv6-in-IPv4 types, same order.
    pub const IPV4_IPV6: Self = Self(36);
    /// A GRE or UDP tunnel over IPv4, payload layer 3.
    pub const IPV4_GRENAT: Self = Self(43);
    /// First of the IPv4 types in such a tunnel.
    pub const IPV4_GRENAT_IPV4: Self = Self(44);
    /// First of the IPv6 types in such a tunnel.
    pub const IPV4_GRENAT_IPV6: Self = Self(51);
    /// An Ethernet frame in such a tunnel.
    pub const IPV4_GRENAT_MAC: Self = Self(58);
    /// First of the IPv4 types behind such an Ethernet frame.
    pub const IPV4_GRENAT_MAC_IPV4: Self = Self(59);
    /// First of the IPv6 types behind such an Ethernet frame.
    pub const IPV4_GRENAT_MAC_IPV6: Self = Self(66);
    /// A VLAN-tagged Ethernet frame in such a tunnel.
    pub const IPV4_GRENAT_MAC_VLAN: Self = Self(73);
    /// First of the IPv4 types behind such a tagged frame.
    pub const IPV4_GRENAT_MAC_VLAN_IPV4: Self = Self(74);
    /// First of the IPv6 types behind such a tagged frame.
    pub const IPV4_GRENAT_MAC_VLAN_IPV6: Self = Self(81);
    /// IPv6 fragment.
    pub const IPV6_FRAGMENT: Self = Self(88);
    /// IPv6, other.
    pub const IPV6_OTHER: Self = Self(89);
    /// UDP over IPv6.
    pub const IPV6_UDP: Self = Self(90);
    /// TCP over IPv6.
    pub const IPV6_TCP: Self = Self(92);
    /// SCTP over IPv6.
    pub const IPV6_SCTP: Self = Self(93);
    /// ICMPv6.
    pub const IPV6_ICMP: Self = Self(94);
    /// First of the IPv4-in-IPv6 types; from here the tree of 29–87 repeats with an outer IPv6 header.
    pub const IPV6_IPV4: Self = Self(95);
    /// First of the IPv6-in-IPv6 types.
    pub const IPV6_IPV6: Self = Self(102);
    /// A GRE or UDP tunnel over IPv6, payload layer 3.
    pub const IPV6_GRENAT: Self = Self(109);
    /// The last type that drivers know.
    pub const LAST: Self = Self(153);

    /// The innermost known layer.
    pub const fn payload(self) -> Payload {
        match self.0 {
            1..=11 => Payload::L2,
            22..=28 => ip_payload(self.0 - 22),
            29..=87 => tunnel_payload(self.0 - 29),
            88..=94 => ip_payload(self.0 - 88),
            95..=153 => tunnel_payload(self.0 - 95),
            _ => Payload::Unknown,
        }
    }
}

/// One group of seven: fragment, other, UDP, reserved, TCP, SCTP, ICMP.
const fn ip_payload(index: u8) -> Payload {
    match index {
        0 | 1 => Payload::L3,
        2 => Payload::Udp,
        4 => Payload::Tcp,
        5 => Payload::Sctp,
        6 => Payload::Icmp,
        _ => Payload::Unknown,
    }
}

/// The 59 tunnel types behind one outer IP version.
const fn tunnel_payload(index: u8) -> Payload {
    match index {
        0..=6 => ip_payload(index),
        7..=13 => ip_payload(index - 7),
        // A bare GRE/NAT tunnel: layer 3; Ethernet inside: layer 3 as far as is known.
        14 | 29 | 44 => Payload::L3,
        15..=21 => ip_payload(index - 15),
        22..=28 => ip_payload(index - 22),
        30..=36 => ip_payload(index - 30),
        37..=43 => ip_payload(index - 37),
        45..=51 => ip_payload(index - 45),
        52..=58 => ip_payload(index - 52),
        _ => Payload::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_repeat_as_the_table_says() {
        assert_eq!(PacketType::IPV4_TCP.payload(), Payload::Tcp);
        assert_eq!(PacketType::IPV6_ICMP.payload(), Payload::Icmp);
        assert_eq!(PacketType(25).payload(), Payload::Unknown);
        assert_eq!(PacketType(91).payload(), Payload::Unknown);
        assert_eq!(PacketType(PacketType::IPV4_GRENAT_MAC_VLAN_IPV6.0 + 4).payload(), Payload::Tcp);
        assert_eq!(PacketType::LAST.payload(), Payload::Icmp);
        assert_eq!(PacketType(154).payload(), Payload::Unknown);
        assert_eq!(PacketType::IPV6_GRENAT.payload(), Payload::L3);
        // The IPv6 tree is the IPv4 tree, 66 further on.
        for index in PacketType::IPV4_IPV4.0..88 {
            assert_eq!(PacketType(index).payload(), PacketType(index + 66).payload());
        }
    }
}
