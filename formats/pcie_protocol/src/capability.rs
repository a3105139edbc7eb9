//! Capability ids, headers, and the walks along both capability lists (PCIe 6.0 §7.5.3, §7.6, §7.9).

use std::{collections::HashSet, fmt, mem::size_of};

use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{CONFIG_SPACE_SIZE, CONVENTIONAL_CONFIG_SPACE_SIZE, header_offset};

/// The id of a capability in the first 256 bytes. Open: it holds ids that are not named here too.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Hash,
    Ord,
    PartialOrd,
    Serialize,
    Deserialize,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
#[serde(transparent)]
pub struct CapabilityId(pub u8);

impl CapabilityId {
    /// PCI power management.
    pub const POWER_MANAGEMENT: Self = Self(0x01);
    /// Vital product data.
    pub const VITAL_PRODUCT_DATA: Self = Self(0x03);
    /// Message-signalled interrupts.
    pub const MSI: Self = Self(0x05);
    /// Vendor specific.
    pub const VENDOR_SPECIFIC: Self = Self(0x09);
    /// PCI Express.
    pub const PCI_EXPRESS: Self = Self(0x10);
    /// MSI-X.
    pub const MSI_X: Self = Self(0x11);
    /// Enhanced allocation: addresses instead of BARs.
    pub const ENHANCED_ALLOCATION: Self = Self(0x14);

    /// The name, if this crate knows it.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::POWER_MANAGEMENT => "power management",
            Self::VITAL_PRODUCT_DATA => "vital product data",
            Self::MSI => "MSI",
            Self::VENDOR_SPECIFIC => "vendor specific",
            Self::PCI_EXPRESS => "PCI Express",
            Self::MSI_X => "MSI-X",
            Self::ENHANCED_ALLOCATION => "enhanced allocation",
            _ => return None,
        })
    }
}

impl fmt::Debug for CapabilityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilityId({:#04x}, {})", self.0, self.name().unwrap_or("unknown"))
    }
}

/// The first two bytes of a capability.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CapabilityHeader {
    /// What the capability is.
    pub id: CapabilityId,
    /// Offset of the next one; 0 ends the list. The low two bits are reserved.
    pub next: u8,
}

const _: () = assert!(size_of::<CapabilityHeader>() == 2);

/// The id of an extended capability, from offset 0x100 on. Open: it holds ids that are not named here too.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExtendedCapabilityId(pub u16);

impl ExtendedCapabilityId {
    /// Nothing: what the header at 0x100 holds if there is no extended capability, or a hidden one.
    pub const NULL: Self = Self(0x0000);
    /// Advanced error reporting.
    pub const AER: Self = Self(0x0001);
    /// Virtual channels.
    pub const VIRTUAL_CHANNEL: Self = Self(0x0002);
    /// Device serial number.
    pub const DEVICE_SERIAL_NUMBER: Self = Self(0x0003);
    /// Power budgeting.
    pub const POWER_BUDGETING: Self = Self(0x0004);
    /// Vendor specific.
    pub const VENDOR_SPECIFIC: Self = Self(0x000B);
    /// Access control services.
    pub const ACS: Self = Self(0x000D);
    /// Alternative routing-id interpretation.
    pub const ARI: Self = Self(0x000E);
    /// Address translation services.
    pub const ATS: Self = Self(0x000F);
    /// Single root I/O virtualization.
    pub const SR_IOV: Self = Self(0x0010);
    /// Multicast.
    pub const MULTICAST: Self = Self(0x0012);
    /// Page request interface.
    pub const PAGE_REQUEST: Self = Self(0x0013);
    /// Resizable BARs.
    pub const RESIZABLE_BAR: Self = Self(0x0015);
    /// TLP processing hints.
    pub const TPH: Self = Self(0x0017);
    /// Latency tolerance reporting.
    pub const LTR: Self = Self(0x0018);
    /// Secondary PCI Express.
    pub const SECONDARY_PCI_EXPRESS: Self = Self(0x0019);
    /// Process address space ids.
    pub const PASID: Self = Self(0x001B);
    /// Downstream port containment.
    pub const DPC: Self = Self(0x001D);
    /// Precision time measurement.
    pub const PTM: Self = Self(0x001F);
    /// Resizable VF BARs.
    pub const VF_RESIZABLE_BAR: Self = Self(0x0024);

    /// The name, if this crate knows it.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NULL => "null",
            Self::AER => "advanced error reporting",
            Self::VIRTUAL_CHANNEL => "virtual channel",
            Self::DEVICE_SERIAL_NUMBER => "device serial number",
            Self::POWER_BUDGETING => "power budgeting",
            Self::VENDOR_SPECIFIC => "vendor specific",
            Self::ACS => "access control services",
            Self::ARI => "alternative routing-id interpretation",
            Self::ATS => "address translation services",
            Self::SR_IOV => "single root I/O virtualization",
            Self::MULTICAST => "multicast",
            Self::PAGE_REQUEST => "page request interface",
            Self::RESIZABLE_BAR => "resizable BAR",
            Self::TPH => "TLP processing hints",
            Self::LTR => "latency tolerance reporting",
            Self::SECONDARY_PCI_EXPRESS => "secondary PCI Express",
            Self::PASID => "process address space id",
            Self::DPC => "downstream port containment",
            Self::PTM => "precision time measurement",
            Self::VF_RESIZABLE_BAR => "VF resizable BAR",
            _ => return None,
        })
    }

    const fn into_bits(self) -> u16 {
        self.0
    }

    const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for ExtendedCapabilityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExtendedCapabilityId({:#06x}, {})", self.0, self.name().unwrap_or("unknown"))
    }
}

/// The first four bytes of an extended capability (PCIe 6.0 §7.6.3).
#[bitfield(u32)]
#[derive(Eq, PartialEq)]
pub struct ExtendedCapabilityHeader {
    /// Bits 15:0: what the capability is.
    #[bits(16)]
    pub id: ExtendedCapabilityId,
    /// Bits 19:16: version of its layout.
    #[bits(4)]
    pub version: u8,
    /// Bits 31:20: offset of the next one; 0 ends the list.
    #[bits(12)]
    pub next: u16,
}

/// A capability found in configuration space.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct FoundCapability {
    /// What it is.
    pub id: CapabilityId,
    /// Where it starts, bytes.
    pub offset: u16,
}

/// Walks the capability list of a configuration space that may be wrong or hostile: a pointer into the
/// header, beyond the end, or to a place visited before ends the walk.
#[derive(Debug)]
pub struct CapabilityWalk<'a> {
    config: &'a [u8],
    next: usize,
    visited: u64,
}

impl<'a> CapabilityWalk<'a> {
    /// Starts at the capabilities pointer of `config`, the bytes of a configuration space from offset 0.
    pub fn new(config: &'a [u8]) -> Self {
        let read = |offset: u16| config.get(usize::from(offset)).copied().unwrap_or(0);
        // The pointer means something only if Status bit 4 is set.
        let pointer = match read(header_offset::STATUS) & 0x10 {
            0 => 0,
            _ => read(header_offset::CAPABILITIES_POINTER),
        };
        Self { config, next: usize::from(pointer & !3), visited: 0 }
    }
}

impl Iterator for CapabilityWalk<'_> {
    type Item = FoundCapability;

    fn next(&mut self) -> Option<FoundCapability> {
        let offset = self.next;
        let seen = 1u64 << (offset / 4 % 64);
        if !(usize::from(header_offset::END)..CONVENTIONAL_CONFIG_SPACE_SIZE).contains(&offset)
            || self.visited & seen != 0
        {
            return None;
        }
        self.visited |= seen;
        let bytes = self.config.get(offset..offset + 2)?;
        let header = CapabilityHeader::read_from_bytes(bytes).ok()?;
        self.next = usize::from(header.next & !3);
        Some(FoundCapability { id: header.id, offset: u16::try_from(offset).ok()? })
    }
}

/// An extended capability found in configuration space.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct FoundExtendedCapability {
    /// What it is.
    pub id: ExtendedCapabilityId,
    /// Version of its layout.
    pub version: u8,
    /// Where it starts, bytes.
    pub offset: u16,
}

/// Walks the extended capability list of a configuration space that may be wrong or hostile, as
/// [`CapabilityWalk`] does. A null capability at 0x100 that points on is walked past.
#[derive(Debug)]
pub struct ExtendedCapabilityWalk<'a> {
    config: &'a [u8],
    next: usize,
    visited: HashSet<usize>,
}

impl<'a> ExtendedCapabilityWalk<'a> {
    /// Starts at offset 0x100 of `config`, the bytes of a configuration space from offset 0.
    pub fn new(config: &'a [u8]) -> Self {
        Self { config, next: CONVENTIONAL_CONFIG_SPACE_SIZE, visited: HashSet::new() }
    }
}

impl Iterator for ExtendedCapabilityWalk<'_> {
    type Item = FoundExtendedCapability;

    fn next(&mut self) -> Option<FoundExtendedCapability> {
        loop {
            let offset = self.next;
            if !(CONVENTIONAL_CONFIG_SPACE_SIZE..CONFIG_SPACE_SIZE).contains(&offset)
                || !self.visited.insert(offset)
            {
                return None;
            }
            let bytes = self.config.get(offset..)?.first_chunk::<4>()?;
            let bits = u32::from_le_bytes(*bytes);
            if bits == crate::NO_FUNCTION {
                return None;
            }
            let header = ExtendedCapabilityHeader::from_bits(bits);
            self.next = usize::from(header.next() & !3);
            if header.id() != ExtendedCapabilityId::NULL {
                return Some(FoundExtendedCapability {
                    id: header.id(),
                    version: header.version(),
                    offset: u16::try_from(offset).ok()?,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> Vec<u8> {
        let mut config = vec![0; CONFIG_SPACE_SIZE];
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        config
    }

    #[test]
    fn walk_follows_both_lists_to_their_ends() {
        let mut config = space();
        config[0x40..0x42].copy_from_slice(&[0x10, 0x80]);
        config[0x80..0x82].copy_from_slice(&[0x11, 0x00]);
        config[0x100..0x104].copy_from_slice(&0x1401_000Eu32.to_le_bytes());
        config[0x140..0x144].copy_from_slice(&0x0001_0010u32.to_le_bytes());
        let found: Vec<_> = CapabilityWalk::new(&config).map(|c| (c.id, c.offset)).collect();
        assert_eq!(found, [(CapabilityId::PCI_EXPRESS, 0x40), (CapabilityId::MSI_X, 0x80)]);
        let found: Vec<_> =
            ExtendedCapabilityWalk::new(&config).map(|c| (c.id, c.version, c.offset)).collect();
        assert_eq!(
            found,
            [(ExtendedCapabilityId::ARI, 1, 0x100), (ExtendedCapabilityId::SR_IOV, 1, 0x140)]
        );
    }

    #[test]
    fn walk_ends_at_a_loop_and_at_a_pointer_into_the_header() {
        let mut config = space();
        config[0x40..0x42].copy_from_slice(&[0x01, 0x50]);
        config[0x50..0x52].copy_from_slice(&[0x05, 0x40]);
        assert_eq!(CapabilityWalk::new(&config).count(), 2);
        config[0x51] = 0x10;
        assert_eq!(CapabilityWalk::new(&config).count(), 2);
        config[0x06] = 0;
        assert_eq!(CapabilityWalk::new(&config).count(), 0, "no list without the status bit");
    }

    #[test]
    fn walk_passes_a_hidden_first_extended_capability() {
        let mut config = space();
        config[0x100..0x104].copy_from_slice(&0x1400_0000u32.to_le_bytes());
        config[0x140..0x144].copy_from_slice(&0x0001_0001u32.to_le_bytes());
        let found: Vec<_> = ExtendedCapabilityWalk::new(&config).map(|c| c.offset).collect();
        assert_eq!(found, [0x140]);
    }

    #[test]
    fn header_fields_lie_where_the_specification_puts_them() {
        let header = ExtendedCapabilityHeader::new()
            .with_id(ExtendedCapabilityId::SR_IOV)
            .with_version(1)
            .with_next(0x160);
        assert_eq!(u32::from(header), 0x1601_0010);
    }

    proptest! {
        #[test]
        fn walks_of_random_bytes_end(config in proptest::collection::vec(any::<u8>(), 0..=CONFIG_SPACE_SIZE)) {
            prop_assert!(CapabilityWalk::new(&config).count() <= 48);
            prop_assert!(ExtendedCapabilityWalk::new(&config).count() <= 960);
        }

        #[test]
        fn header_survives_its_bits(bits: u32) {
            let header = ExtendedCapabilityHeader::from_bits(bits);
            let again = ExtendedCapabilityHeader::new()
                .with_id(header.id())
                .with_version(header.version())
                .with_next(header.next());
            prop_assert_eq!(u32::from(again), bits);
        }
    }
}
