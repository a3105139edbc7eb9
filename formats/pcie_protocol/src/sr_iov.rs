//! The single root I/O virtualization capability of a PF (PCIe 6.0 §9.3.3; SPEC-NDIS-SRIOV §7).

use std::{
    fmt,
    mem::{offset_of, size_of},
};

use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use crate::PcieError;

/// Byte offsets of the SR-IOV capability's registers.
pub mod sr_iov_offset {
    /// [`SrIovCapabilities`](super::SrIovCapabilities), 32 bits.
    pub const CAPABILITIES: u16 = 0x04;
    /// [`SrIovControl`](super::SrIovControl), 16 bits.
    pub const CONTROL: u16 = 0x08;
    /// [`SrIovStatus`](super::SrIovStatus), 16 bits.
    pub const STATUS: u16 = 0x0A;
    /// InitialVFs, 16 bits.
    pub const INITIAL_VFS: u16 = 0x0C;
    /// TotalVFs, 16 bits.
    pub const TOTAL_VFS: u16 = 0x0E;
    /// NumVFs, 16 bits.
    pub const NUM_VFS: u16 = 0x10;
    /// Function Dependency Link, 8 bits.
    pub const FUNCTION_DEPENDENCY_LINK: u16 = 0x12;
    /// First VF Offset, 16 bits.
    pub const FIRST_VF_OFFSET: u16 = 0x14;
    /// VF Stride, 16 bits.
    pub const VF_STRIDE: u16 = 0x16;
    /// VF Device ID, 16 bits.
    pub const VF_DEVICE_ID: u16 = 0x1A;
    /// Supported Page Sizes, 32 bits.
    pub const SUPPORTED_PAGE_SIZES: u16 = 0x1C;
    /// System Page Size, 32 bits.
    pub const SYSTEM_PAGE_SIZE: u16 = 0x20;
    /// VF BAR 0 to 5, 32 bits each.
    pub const VF_BARS: u16 = 0x24;
    /// VF Migration State Array Offset, 32 bits.
    pub const VF_MIGRATION_STATE_ARRAY: u16 = 0x3C;
    /// Bytes of the capability.
    pub const END: u16 = 0x40;
}

/// SR-IOV Capabilities register (PCIe 6.0 §9.3.3.2).
#[bitfield(u32)]
#[derive(Eq, PartialEq)]
pub struct SrIovCapabilities {
    /// Bit 0: multi-root VF migration.
    pub vf_migration_capable: bool,
    /// Bit 1: ARI Capable Hierarchy survives D3hot to D0; lowest-numbered PF only.
    pub ari_capable_hierarchy_preserved: bool,
    /// Bit 2: VFs can use 10-bit tags.
    pub vf_10_bit_tag_requester_supported: bool,
    #[bits(18)]
    reserved: u32,
    /// Bits 31:21: MSI vector of VF migration.
    #[bits(11)]
    pub vf_migration_interrupt_message_number: u16,
}

/// SR-IOV Control register (PCIe 6.0 §9.3.3.3).
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct SrIovControl {
    /// Bit 0: the VFs exist.
    pub vf_enable: bool,
    /// Bit 1: multi-root VF migration.
    pub vf_migration_enable: bool,
    /// Bit 2: multi-root VF migration.
    pub vf_migration_interrupt_enable: bool,
    /// Bit 3: the memory of the VFs answers ("VF MSE").
    pub vf_memory_space_enable: bool,
    /// Bit 4: the port above forwards by ARI; lowest-numbered PF only.
    pub ari_capable_hierarchy: bool,
    /// Bit 5: VFs use 10-bit tags.
    pub vf_10_bit_tag_requester_enable: bool,
    #[bits(10)]
    reserved: u16,
}

/// SR-IOV Status register (PCIe 6.0 §9.3.3.4).
#[bitfield(u16)]
#[derive(Eq, PartialEq)]
pub struct SrIovStatus {
    /// Bit 0: a VF migrates; cleared by writing one.
    pub vf_migration_status: bool,
    #[bits(15)]
    reserved: u16,
}

/// One page size, as the System Page Size register holds it: bit *n* is 2^(*n* + 12) bytes
/// (PCIe 6.0 §9.3.3.13).
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SystemPageSize(u32);

impl SystemPageSize {
    /// 4 KiB, the value after a reset.
    pub const SIZE_4_KIB: Self = Self(1);

    /// What every PF supports: 4 KiB, 8 KiB, 64 KiB, 256 KiB, 1 MiB and 4 MiB (PCIe 6.0 §9.3.3.12).
    pub const REQUIRED: u32 = 0x553;

    /// From the register.
    ///
    /// # Errors
    /// [`PcieError::NotAPageSize`] unless exactly one bit is set.
    pub const fn from_register(register: u32) -> Result<Self, PcieError> {
        if register.is_power_of_two() {
            Ok(Self(register))
        } else {
            Err(PcieError::NotAPageSize(register))
        }
    }

    /// The register: one bit.
    pub const fn register(self) -> u32 {
        self.0
    }

    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 12
    }
}

impl Default for SystemPageSize {
    fn default() -> Self {
        Self::SIZE_4_KIB
    }
}

impl fmt::Display for SystemPageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB", self.bytes() >> 10)
    }
}

impl TryFrom<u32> for SystemPageSize {
    type Error = PcieError;
    fn try_from(register: u32) -> Result<Self, PcieError> {
        Self::from_register(register)
    }
}

impl From<SystemPageSize> for u32 {
    fn from(size: SystemPageSize) -> u32 {
        size.0
    }
}

/// The capability's bytes.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SrIovCapability {
    /// Extended id 0x0010, version 1.
    pub header: U32,
    /// [`SrIovCapabilities`].
    pub capabilities: U32,
    /// [`SrIovControl`].
    pub control: U16,
    /// [`SrIovStatus`].
    pub status: U16,
    /// VFs there are at first; equals TotalVFs without VF migration.
    pub initial_vfs: U16,
    /// The most VFs there can be.
    pub total_vfs: U16,
    /// VFs that VF Enable brings up.
    pub num_vfs: U16,
    /// PF on which this one depends; itself if none.
    pub function_dependency_link: u8,
    /// Reserved.
    pub reserved_13: u8,
    /// Routing ids from the PF to its first VF.
    pub first_vf_offset: U16,
    /// Routing ids from one VF to the next.
    pub vf_stride: U16,
    /// Reserved.
    pub reserved_18: U16,
    /// Device id of all VFs; their vendor id is the PF's.
    pub vf_device_id: U16,
    /// Page sizes there can be: bit *n* is 2^(*n* + 12) bytes.
    pub supported_page_sizes: U32,
    /// The page size in force: one bit.
    pub system_page_size: U32,
    /// Base addresses of the VFs' memory: VF *n* is at base + *n* × size.
    pub vf_bars: [U32; 6],
    /// Multi-root VF migration.
    pub vf_migration_state_array: U32,
}

const _: () = {
    use sr_iov_offset as at;
    assert!(size_of::<SrIovCapability>() == at::END as usize);
    assert!(offset_of!(SrIovCapability, capabilities) == at::CAPABILITIES as usize);
    assert!(offset_of!(SrIovCapability, control) == at::CONTROL as usize);
    assert!(offset_of!(SrIovCapability, status) == at::STATUS as usize);
    assert!(offset_of!(SrIovCapability, initial_vfs) == at::INITIAL_VFS as usize);
    assert!(offset_of!(SrIovCapability, total_vfs) == at::TOTAL_VFS as usize);
    assert!(offset_of!(SrIovCapability, num_vfs) == at::NUM_VFS as usize);
    assert!(
        offset_of!(SrIovCapability, function_dependency_link)
            == at::FUNCTION_DEPENDENCY_LINK as usize
    );
    assert!(offset_of!(SrIovCapability, first_vf_offset) == at::FIRST_VF_OFFSET as usize);
    assert!(offset_of!(SrIovCapability, vf_stride) == at::VF_STRIDE as usize);
    assert!(offset_of!(SrIovCapability, vf_device_id) == at::VF_DEVICE_ID as usize);
    assert!(offset_of!(SrIovCapability, supported_page_sizes) == at::SUPPORTED_PAGE_SIZES as usize);
    assert!(offset_of!(SrIovCapability, system_page_size) == at::SYSTEM_PAGE_SIZE as usize);
    assert!(offset_of!(SrIovCapability, vf_bars) == at::VF_BARS as usize);
    assert!(
        offset_of!(SrIovCapability, vf_migration_state_array)
            == at::VF_MIGRATION_STATE_ARRAY as usize
    );
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_specification_puts_them() {
        assert_eq!(u16::from(SrIovControl::new().with_vf_enable(true)), 1);
        assert_eq!(u16::from(SrIovControl::new().with_vf_migration_enable(true)), 2);
        assert_eq!(u16::from(SrIovControl::new().with_vf_migration_interrupt_enable(true)), 4);
        assert_eq!(u16::from(SrIovControl::new().with_vf_memory_space_enable(true)), 8);
        assert_eq!(u16::from(SrIovControl::new().with_ari_capable_hierarchy(true)), 0x10);
        assert_eq!(
            u32::from(SrIovCapabilities::new().with_ari_capable_hierarchy_preserved(true)),
            2
        );
    }

    #[test]
    fn page_sizes_every_pf_supports_are_the_six_of_the_specification() {
        let sizes: Vec<_> = (0..32)
            .filter_map(|bit| {
                SystemPageSize::from_register(SystemPageSize::REQUIRED & 1 << bit).ok()
            })
            .map(|size| size.to_string())
            .collect();
        assert_eq!(sizes, ["4 KiB", "8 KiB", "64 KiB", "256 KiB", "1024 KiB", "4096 KiB"]);
    }

    #[test]
    fn page_size_is_one_bit() {
        assert_eq!(SystemPageSize::from_register(0), Err(PcieError::NotAPageSize(0)));
        assert_eq!(SystemPageSize::from_register(3), Err(PcieError::NotAPageSize(3)));
        assert_eq!(SystemPageSize::from_register(0x10).unwrap().bytes(), 64 << 10);
        assert_eq!(SystemPageSize::from_register(1 << 31).unwrap().bytes(), 1 << 43);
    }
}
