//! Protocol versions.

use std::fmt;

use crate::InterruptGeneration;

/// A version of the protocol (SPEC-VMBUS §4.1).
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
#[repr(u32)]
pub enum ProtocolVersion {
    /// 1.1 (Windows 10): the base set.
    V1_1 = 0x0001_0001,
    /// 1.2 (RS1): interrupts for a list of processors.
    V1_2 = 0x0001_0002,
    /// 1.3 (VB): bus relations with NUMA nodes.
    V1_3 = 0x0001_0003,
    /// 1.4 (FE): interrupts with vectors of 32 bits.
    V1_4 = 0x0001_0004,
    /// 1.5 (GE): RESET_DEVICE.
    V1_5 = 0x0001_0005,
}

impl ProtocolVersion {
    /// All versions, lowest first.
    pub const ALL: [Self; 5] = [Self::V1_1, Self::V1_2, Self::V1_3, Self::V1_4, Self::V1_5];

    /// The version with this number.
    pub fn from_wire(version: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.to_wire() == version)
    }

    /// The number on the wire: major above minor.
    pub const fn to_wire(self) -> u32 {
        self as u32
    }

    /// Whether bus relations say the NUMA node of a function (BUS_RELATIONS2).
    pub fn has_numa(self) -> bool {
        self >= Self::V1_3
    }

    /// Whether the guest can ask for a reset by message (RESET_DEVICE).
    pub fn has_reset_device(self) -> bool {
        self >= Self::V1_5
    }

    /// Which generation of interrupt messages a guest uses with it.
    pub fn interrupts(self) -> InterruptGeneration {
        match self {
            Self::V1_1 => InterruptGeneration::V1,
            Self::V1_2 | Self::V1_3 => InterruptGeneration::V2,
            Self::V1_4 | Self::V1_5 => InterruptGeneration::V3,
        }
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.to_wire() >> 16, self.to_wire() & 0xFFFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_major_above_minor() {
        assert_eq!(ProtocolVersion::from_wire(0x0001_0003), Some(ProtocolVersion::V1_3));
        assert_eq!(ProtocolVersion::V1_3.to_string(), "1.3");
        for unknown in [0, 0x0001_0000, 0x0001_0006, 0x0002_0001, u32::MAX] {
            assert_eq!(ProtocolVersion::from_wire(unknown), None, "{unknown:#x}");
        }
    }

    #[test]
    fn each_version_adds_what_the_specification_says() {
        let has = |version: ProtocolVersion| {
            (version.has_numa(), version.interrupts(), version.has_reset_device())
        };
        use InterruptGeneration::{V1, V2, V3};
        assert_eq!(
            ProtocolVersion::ALL.map(has),
            [
                (false, V1, false),
                (false, V2, false),
                (true, V2, false),
                (true, V3, false),
                (true, V3, true)
            ]
        );
    }
}
