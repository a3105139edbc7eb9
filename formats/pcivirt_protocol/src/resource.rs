//! CM_PARTIAL_RESOURCE_DESCRIPTOR (SPEC-PCIVIRT §5.11).

use core::mem::offset_of;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Resource types of [`CmPartialResourceDescriptor::resource_type`]: an open value.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct CmResourceType(pub u8);

impl CmResourceType {
    /// No resource.
    pub const NULL: Self = Self(0);
    /// I/O ports.
    pub const PORT: Self = Self(1);
    /// An interrupt.
    pub const INTERRUPT: Self = Self(2);
    /// Memory of at most 4 GiB - 1 bytes.
    pub const MEMORY: Self = Self(3);
    /// A DMA channel.
    pub const DMA: Self = Self(4);
    /// Private to the device.
    pub const DEVICE_SPECIFIC: Self = Self(5);
    /// PCI bus numbers.
    pub const BUS_NUMBER: Self = Self(6);
    /// Memory whose length is stored shifted; see [`cm_resource_memory`].
    pub const MEMORY_LARGE: Self = Self(7);
}

/// Bits of [`CmPartialResourceDescriptor::flags`] for memory.
pub mod cm_resource_memory {
    /// Cannot be written.
    pub const READ_ONLY: u16 = 0x0001;
    /// Cannot be read.
    pub const WRITE_ONLY: u16 = 0x0002;
    /// Reads have no side effects.
    pub const PREFETCHABLE: u16 = 0x0004;
    /// Writes may be combined.
    pub const COMBINED_WRITE: u16 = 0x0008;
    /// Within the first 16 MiB.
    pub const BITS_24: u16 = 0x0010;
    /// May be cached.
    pub const CACHEABLE: u16 = 0x0020;
    /// A bridge window.
    pub const WINDOW_DECODE: u16 = 0x0040;
    /// Comes from a base address register.
    pub const BAR: u16 = 0x0080;
    /// The length is stored shifted right by 8.
    pub const LARGE_40: u16 = 0x0200;
    /// The length is stored shifted right by 16.
    pub const LARGE_48: u16 = 0x0400;
    /// The length is stored shifted right by 32.
    pub const LARGE_64: u16 = 0x0800;
    /// The three bits that say how the length is stored.
    pub const LARGE_MASK: u16 = LARGE_40 | LARGE_48 | LARGE_64;
}

/// One translated resource, packed to 4 bytes as published.
///
/// Only the memory form of the union is named; the interrupt form uses the same bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CmPartialResourceDescriptor {
    /// What kind of resource it is.
    pub resource_type: CmResourceType,
    /// Whether it may be shared.
    pub share_disposition: u8,
    /// Flags of that kind of resource; for memory those of [`cm_resource_memory`].
    pub flags: u16,
    /// `u.Memory.Start`: physical address, at an offset that is not a multiple of 8.
    pub start: U64,
    /// `u.Memory.Length`: bytes, shifted for [`CmResourceType::MEMORY_LARGE`].
    pub length: u32,
    /// The rest of the union.
    pub rest: u32,
}

const _: () = {
    assert!(size_of::<CmPartialResourceDescriptor>() == 20);
    assert!(offset_of!(CmPartialResourceDescriptor, resource_type) == 0);
    assert!(offset_of!(CmPartialResourceDescriptor, share_disposition) == 1);
    assert!(offset_of!(CmPartialResourceDescriptor, flags) == 2);
    assert!(offset_of!(CmPartialResourceDescriptor, start) == 4);
    assert!(offset_of!(CmPartialResourceDescriptor, length) == 12);
    assert!(offset_of!(CmPartialResourceDescriptor, rest) == 16);
};

impl CmPartialResourceDescriptor {
    /// A descriptor of no resource.
    pub const NULL: Self = Self {
        resource_type: CmResourceType::NULL,
        share_disposition: 0,
        flags: 0,
        start: U64::ZERO,
        length: 0,
        rest: 0,
    };

    /// A memory range of `length` bytes at physical address `start`. `flags` are those of
    /// [`cm_resource_memory`]; the large forms are chosen by the length, whatever `flags` says about them.
    ///
    /// `None` if no form can hold the length exactly: above 4 GiB it must be a multiple of 256 bytes, above 1 TiB of
    /// 64 KiB, above 256 TiB of 4 GiB.
    pub fn memory(start: u64, length: u64, flags: u16) -> Option<Self> {
        let flags = flags & !cm_resource_memory::LARGE_MASK;
        if let Ok(length) = u32::try_from(length) {
            return Some(Self {
                resource_type: CmResourceType::MEMORY,
                flags,
                start: U64::new(start),
                length,
                ..Self::NULL
            });
        }
        for (large, shift) in [
            (cm_resource_memory::LARGE_40, 8),
            (cm_resource_memory::LARGE_48, 16),
            (cm_resource_memory::LARGE_64, 32),
        ] {
            if let Ok(stored) = u32::try_from(length >> shift)
                && u64::from(stored) << shift == length
            {
                return Some(Self {
                    resource_type: CmResourceType::MEMORY_LARGE,
                    flags: flags | large,
                    start: U64::new(start),
                    length: stored,
                    ..Self::NULL
                });
            }
        }
        None
    }

    /// Physical address and length in bytes, if this describes memory in one of the two forms.
    pub fn memory_range(&self) -> Option<(u64, u64)> {
        let shift = match self.resource_type {
            CmResourceType::MEMORY => 0,
            CmResourceType::MEMORY_LARGE => match self.flags & cm_resource_memory::LARGE_MASK {
                cm_resource_memory::LARGE_40 => 8,
                cm_resource_memory::LARGE_48 => 16,
                cm_resource_memory::LARGE_64 => 32,
                _ => return None,
            },
            _ => return None,
        };
        Some((self.start.get(), u64::from(self.length) << shift))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_range_is_plain_memory() {
        let bar = CmPartialResourceDescriptor::memory(
            0x12_3456_7000,
            0x1_0000,
            cm_resource_memory::BAR
                | cm_resource_memory::PREFETCHABLE
                | cm_resource_memory::LARGE_64,
        )
        .unwrap();
        assert_eq!(
            bar.as_bytes(),
            [3, 0, 0x84, 0, 0, 0x70, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
        );
        assert_eq!(bar.memory_range(), Some((0x12_3456_7000, 0x1_0000)));
    }

    #[test]
    fn a_length_that_no_form_can_hold_is_refused() {
        assert_eq!(CmPartialResourceDescriptor::memory(0, (1 << 32) + 1, 0), None);
        assert_eq!(CmPartialResourceDescriptor::memory(0, (1 << 50) + (1 << 16), 0), None);
    }

    #[test]
    fn what_is_not_memory_has_no_range() {
        assert_eq!(CmPartialResourceDescriptor::NULL.memory_range(), None);
        let ambiguous = CmPartialResourceDescriptor {
            resource_type: CmResourceType::MEMORY_LARGE,
            ..CmPartialResourceDescriptor::NULL
        };
        assert_eq!(ambiguous.memory_range(), None);
    }

    proptest! {
        #[test]
        fn a_range_survives_its_descriptor(start: u64, significant: u32, shift in 0u32..32, flags: u16) {
            let length = u64::from(significant) << shift;
            if let Some(descriptor) = CmPartialResourceDescriptor::memory(start, length, flags) {
                prop_assert_eq!(descriptor.memory_range(), Some((start, length)));
                prop_assert_eq!(
                    CmPartialResourceDescriptor::read_from_bytes(descriptor.as_bytes()).unwrap(),
                    descriptor
                );
            } else {
                prop_assert!(length > u64::from(u32::MAX));
            }
        }
    }
}
