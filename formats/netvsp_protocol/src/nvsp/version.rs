//! Versions, statuses and capabilities (SPEC-VMBUS §5.1–5.3).

use core::fmt;

/// A version of NVSP. Ordered from old to new.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
#[repr(u32)]
pub enum NvspVersion {
    /// 0.2.
    V1 = 0x0000_0002,
    /// 3.2.
    V2 = 0x0003_0002,
    /// 4.0: VF association and data-path switch.
    V4 = 0x0004_0000,
    /// 5.0: subchannels.
    V5 = 0x0005_0000,
    /// 6.0: as 5.0.
    V6 = 0x0006_0000,
    /// 6.1: longer messages, RSC over VMBus.
    V61 = 0x0006_0001,
}

impl NvspVersion {
    /// Every version, from new to old: the order in which a client asks.
    pub const NEWEST_FIRST: [Self; 6] =
        [Self::V61, Self::V6, Self::V5, Self::V4, Self::V2, Self::V1];

    /// The version with this number.
    #[must_use]
    pub const fn from_wire(value: u32) -> Option<Self> {
        match value {
            0x0000_0002 => Some(Self::V1),
            0x0003_0002 => Some(Self::V2),
            0x0004_0000 => Some(Self::V4),
            0x0005_0000 => Some(Self::V5),
            0x0006_0000 => Some(Self::V6),
            0x0006_0001 => Some(Self::V61),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self as u32
    }

    /// Bytes that a message is padded to.
    #[must_use]
    pub const fn message_size(self) -> usize {
        match self {
            Self::V61 => 40,
            _ => 28,
        }
    }

    /// What INIT_COMPLETE says as negotiated version.
    #[must_use]
    pub const fn in_init_complete(self) -> u32 {
        match self {
            Self::V1 => 2,
            _ => 0xFFFF_FFFF,
        }
    }

    /// The NDIS version that a Linux client of this version states: major and minor.
    #[must_use]
    pub const fn ndis_version(self) -> (u32, u32) {
        match self {
            Self::V1 | Self::V2 | Self::V4 => (6, 1),
            _ => (6, 30),
        }
    }
}

impl fmt::Display for NvspVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "NVSP 1",
            Self::V2 => "NVSP 2",
            Self::V4 => "NVSP 4",
            Self::V5 => "NVSP 5",
            Self::V6 => "NVSP 6",
            Self::V61 => "NVSP 6.1",
        })
    }
}

/// The status in a completion: an open value.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct NvspStatus(pub u32);

impl NvspStatus {
    /// Nothing was done; INIT_COMPLETE refuses a version with it.
    pub const NONE: Self = Self(0);
    /// Done.
    pub const SUCCESS: Self = Self(1);
    /// Not done.
    pub const FAILURE: Self = Self(2);
    /// The protocol is too new. Not used by servers of today.
    pub const PROTOCOL_TOO_NEW: Self = Self(3);
    /// The protocol is too old. Not used by servers of today.
    pub const PROTOCOL_TOO_OLD: Self = Self(4);
    /// The RNDIS packet is malformed.
    pub const INVALID_RNDIS_PACKET: Self = Self(5);
    /// There is no room now.
    pub const BUSY: Self = Self(6);
    /// The version is not supported. Not used by servers of today.
    pub const PROTOCOL_UNSUPPORTED: Self = Self(7);
}

bitflags::bitflags! {
    /// Capabilities in SEND_NDIS_CONFIG.
    #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
    pub struct NvspCapabilities: u64 {
        /// VM queues.
        const VMQ = 1 << 0;
        /// TCP chimney, obsolete.
        const CHIMNEY = 1 << 1;
        /// The guest can have a VF beside the synthetic adapter.
        const SRIOV = 1 << 2;
        /// 802.1Q tags out of band.
        const IEEE_8021Q = 1 << 3;
        /// Correlation ids.
        const CORRELATION_ID = 1 << 4;
        /// Teaming.
        const TEAMING = 1 << 5;
        /// Virtual subnet ids.
        const VIRTUAL_SUBNET_ID = 1 << 6;
        /// Receive segments coalesced over VMBus.
        const RSC_OVER_VMBUS = 1 << 7;
        /// Bits that are not known keep their value.
        const _ = !0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_keep_their_numbers_and_order() {
        for pair in NvspVersion::NEWEST_FIRST.windows(2) {
            assert!(pair[0] > pair[1]);
        }
        for version in NvspVersion::NEWEST_FIRST {
            assert_eq!(NvspVersion::from_wire(version.to_wire()), Some(version));
        }
        for unknown in [0, 1, 3, 0x0003_0001, 0x0006_0002, u32::MAX] {
            assert_eq!(NvspVersion::from_wire(unknown), None);
        }
        assert_eq!(NvspVersion::V6.message_size(), 28);
        assert_eq!(NvspVersion::V61.message_size(), 40);
    }
}
