//! What the switch needs to know of a frame.

use ndis_protocol::MacAddress;

/// A MAC address as a number: its six octets, first octet lowest. What the frame path compares and hashes.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug, Default)]
pub struct MacKey(u64);

impl MacKey {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self(0xFFFF_FFFF_FFFF);

    /// From the low 48 bits of eight bytes loaded from the frame, first byte lowest.
    #[inline(always)]
    pub const fn from_low_bits(word: u64) -> Self {
        Self(word & 0xFFFF_FFFF_FFFF)
    }

    /// From six octets in wire order.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = octets;
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// The six octets in wire order.
    pub const fn octets(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    /// The number: 48 bits.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the group bit is set (multicast and broadcast).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether this is the broadcast address.
    #[inline(always)]
    pub const fn is_broadcast(self) -> bool {
        self.0 == Self::BROADCAST.0
    }
}

impl From<MacAddress> for MacKey {
    fn from(mac: MacAddress) -> Self {
        Self::from_octets(mac.octets())
    }
}

impl From<MacKey> for MacAddress {
    fn from(key: MacKey) -> Self {
        Self::new(key.octets())
    }
}

/// Addresses and VLAN tag of one frame, read once from its header and descriptor.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct FrameKey {
    /// Destination address.
    pub destination: MacKey,
    /// Source address.
    pub source: MacKey,
    /// Tag control information of the outermost 802.1Q tag: in the frame, or to be inserted by the NIC.
    pub tci: Option<u16>,
}

impl FrameKey {
    /// VLAN id of the tag; 0 for untagged and priority-tagged frames.
    #[inline(always)]
    pub const fn vlan_id(&self) -> u16 {
        match self.tci {
            Some(tci) => tci & 0xFFF,
            None => 0,
        }
    }
}
