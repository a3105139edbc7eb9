//! Capability bits (SPEC-AVF §4.3).

use std::ops::{BitAnd, BitOr, BitOrAssign};

/// A set of `vf_cap_flags`, as asked for and as granted.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default, Debug)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// L2: always granted.
    pub const L2: Self = Self(1 << 0);
    /// RDMA.
    pub const RDMA: Self = Self(1 << 1);
    /// RSS by admin queue commands.
    pub const RSS_AQ: Self = Self(1 << 3);
    /// RSS by registers.
    pub const RSS_REG: Self = Self(1 << 4);
    /// Write-back on ITR.
    pub const WB_ON_ITR: Self = Self(1 << 5);
    /// REQUEST_QUEUES.
    pub const REQ_QUEUES: Self = Self(1 << 6);
    /// Link speeds in Mbit/s.
    pub const ADV_LINK_SPEED: Self = Self(1 << 7);
    /// Inline IPsec.
    pub const INLINE_IPSEC: Self = Self(1 << 8);
    /// More than 16 queue pairs.
    pub const LARGE_NUM_QPAIRS: Self = Self(1 << 9);
    /// The FCS can be kept.
    pub const CRC: Self = Self(1 << 10);
    /// tc u32 filters.
    pub const TC_U32: Self = Self(1 << 11);
    /// Queue groups.
    pub const QGRPS: Self = Self(1 << 12);
    /// Flow steering to a VM's queue.
    pub const FLOW_STEER: Self = Self(1 << 13);
    /// Flow subscription.
    pub const FSUB_PF: Self = Self(1 << 14);
    /// VLAN offload, version 2.
    pub const VLAN_V2: Self = Self(1 << 15);
    /// VLAN offload, version 1.
    pub const VLAN: Self = Self(1 << 16);
    /// RX polling.
    pub const RX_POLLING: Self = Self(1 << 17);
    /// The larger set of packet types to hash.
    pub const RSS_PCTYPE_V2: Self = Self(1 << 18);
    /// RSS by virtchnl messages.
    pub const RSS_PF: Self = Self(1 << 19);
    /// Tunnel segmentation.
    pub const ENCAP: Self = Self(1 << 20);
    /// Tunnel checksums.
    pub const ENCAP_CSUM: Self = Self(1 << 21);
    /// Tunnel checksums on receive.
    pub const RX_ENCAP_CSUM: Self = Self(1 << 22);
    /// Application device queues.
    pub const ADQ: Self = Self(1 << 23);
    /// Application device queues, version 2.
    pub const ADQ_V2: Self = Self(1 << 24);
    /// UDP segmentation.
    pub const USO: Self = Self(1 << 25);
    /// Flex RX descriptors.
    pub const RX_FLEX_DESC: Self = Self(1 << 26);
    /// Advanced RSS configuration.
    pub const ADV_RSS_PF: Self = Self(1 << 27);
    /// Flow director.
    pub const FDIR_PF: Self = Self(1 << 28);
    /// Quality of service.
    pub const QOS: Self = Self(1 << 29);
    /// Device configuration function.
    pub const DCF: Self = Self(1 << 30);
    /// Precision time protocol.
    pub const PTP: Self = Self(1 << 31);

    /// Whether all of `other` are in the set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The set with `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Capabilities {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Capabilities {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Capabilities {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}
