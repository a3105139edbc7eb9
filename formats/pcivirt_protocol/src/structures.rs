//! Buffers of the I/O control requests (SPEC-PCIVIRT §7).

use crate::{Luid, NtStatus, PCI_TYPE0_ADDRESSES, SRIOV_INVALIDATE_BLOCK_ALL_VFS};
use core::fmt;
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A VF of one PF, counted from zero at the PF's first VF. 0xFFFF is no VF: it stands for all of them in
/// [`SriovInvalidateBlock`].
#[derive(
    Copy, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct VfIndex(pub u16);

const _: () = assert!(size_of::<VfIndex>() == 2);

impl VfIndex {
    /// Whether a device with `num_vfs` VFs has this one.
    pub const fn exists(self, num_vfs: u16) -> bool {
        self.0 < num_vfs
    }
}

impl fmt::Display for VfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VF {}", self.0)
    }
}

impl fmt::Debug for VfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SRIOV_PF_EVENT as it is sent: output of IOCTL_SRIOV_NOTIFICATION, an open value.
///
/// The two removal events are named in the published pages but have no published value: theirs are our choice, and
/// are offered only to clients that ask for them at attach (SPEC-PCIVIRT §8.2).
#[derive(Copy, Clone, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SriovPfEvent(pub u32);

const _: () = assert!(size_of::<SriovPfEvent>() == 4);

impl SriovPfEvent {
    /// `SriovEventPfQueryStopDevice`: the PF is about to stop for a rebalance; may be vetoed.
    pub const QUERY_STOP_DEVICE: Self = Self(0);
    /// `SriovEventPfRestart`: the PF runs again after a stop, or the stop was called off.
    pub const RESTART: Self = Self(1);
    /// `SriovEventPfMaximum`: end marker of the published values.
    pub const MAXIMUM: Self = Self(2);
    /// `SriovEventPfQueryRemoveDevice`: extended event, the PF is about to be removed in order; may be vetoed.
    pub const QUERY_REMOVE_DEVICE: Self = Self(0x100);
    /// `SriovEventPfSurpriseRemoveDevice`: extended event, the PF is gone.
    pub const SURPRISE_REMOVE_DEVICE: Self = Self(0x101);

    /// The event's published name, if it has one.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::QUERY_STOP_DEVICE => "SriovEventPfQueryStopDevice",
            Self::RESTART => "SriovEventPfRestart",
            Self::MAXIMUM => "SriovEventPfMaximum",
            Self::QUERY_REMOVE_DEVICE => "SriovEventPfQueryRemoveDevice",
            Self::SURPRISE_REMOVE_DEVICE => "SriovEventPfSurpriseRemoveDevice",
            _ => return None,
        })
    }
}

impl fmt::Display for SriovPfEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "PF event 0x{:X}", self.0),
        }
    }
}

impl fmt::Debug for SriovPfEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SRIOV_PNP_EVENT_COMPLETE: input of IOCTL_SRIOV_EVENT_COMPLETE.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovPnpEventComplete {
    /// What the PF driver has to return for the pended PnP query: an error is a veto.
    pub query_status: NtStatus,
}

const _: () = assert!(size_of::<SriovPnpEventComplete>() == 4);

/// SRIOV_INVALIDATE_BLOCK: buffer of IOCTL_SRIOV_INVALIDATE_BLOCK, filled by the PF driver.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovInvalidateBlock {
    /// Whose blocks: a VF index, or [`SRIOV_INVALIDATE_BLOCK_ALL_VFS`].
    pub vf_index: u16,
    /// Zero.
    pub padding: [u16; 3],
    /// Bit n set: block id n has to be read again. Only block ids 0 to 63 can be named.
    pub block_mask: u64,
}

const _: () = {
    assert!(size_of::<SriovInvalidateBlock>() == 16);
    assert!(offset_of!(SriovInvalidateBlock, vf_index) == 0);
    assert!(offset_of!(SriovInvalidateBlock, block_mask) == 8);
};

impl SriovInvalidateBlock {
    /// Blocks of one VF.
    pub const fn of_vf(vf: VfIndex, block_mask: u64) -> Self {
        Self { vf_index: vf.0, padding: [0; 3], block_mask }
    }

    /// Blocks of every VF.
    pub const fn of_all_vfs(block_mask: u64) -> Self {
        Self { vf_index: SRIOV_INVALIDATE_BLOCK_ALL_VFS, padding: [0; 3], block_mask }
    }

    /// The VF it is about, or `None` when it is about every VF.
    pub const fn vf(&self) -> Option<VfIndex> {
        if self.vf_index == SRIOV_INVALIDATE_BLOCK_ALL_VFS {
            None
        } else {
            Some(VfIndex(self.vf_index))
        }
    }
}

/// SRIOV_MITIGATED_RANGE_COUNT_INPUT: input of IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovMitigatedRangeCountInput {
    /// Whose ranges; 0 when the device has no VFs.
    pub vf_index: VfIndex,
}

const _: () = assert!(size_of::<SriovMitigatedRangeCountInput>() == 2);

/// SRIOV_MITIGATED_RANGE_COUNT_OUTPUT: output of IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovMitigatedRangeCountOutput {
    /// Number of ranges of each BAR.
    pub range_count: [u32; PCI_TYPE0_ADDRESSES],
}

const _: () = assert!(size_of::<SriovMitigatedRangeCountOutput>() == 24);

/// SRIOV_MITIGATED_RANGES_INPUT: input of IOCTL_SRIOV_QUERY_MITIGATED_RANGES.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovMitigatedRangesInput {
    /// Whose ranges; 0 when the device has no VFs.
    pub vf_index: VfIndex,
    /// Which BAR, 0 to 5.
    pub bar_number: u8,
    /// Zero.
    pub padding: u8,
}

const _: () = {
    assert!(size_of::<SriovMitigatedRangesInput>() == 4);
    assert!(offset_of!(SriovMitigatedRangesInput, bar_number) == 2);
};

/// SRIOV_MITIGATED_RANGES_OUTPUT: one element of the output of IOCTL_SRIOV_QUERY_MITIGATED_RANGES.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovMitigatedRangesOutput {
    /// First page of the range, in pages of 4 KiB counted from the start of the BAR.
    pub base_page_number: u64,
    /// Pages in the range.
    pub page_count: u32,
    /// BOOLEAN: whether reads are intercepted.
    pub intercept_reads: u8,
    /// BOOLEAN: whether writes are intercepted.
    pub intercept_writes: u8,
    /// Zero.
    pub padding: [u8; 2],
}

const _: () = {
    assert!(size_of::<SriovMitigatedRangesOutput>() == 16);
    assert!(offset_of!(SriovMitigatedRangesOutput, page_count) == 8);
    assert!(offset_of!(SriovMitigatedRangesOutput, intercept_reads) == 12);
    assert!(offset_of!(SriovMitigatedRangesOutput, intercept_writes) == 13);
};

impl SriovMitigatedRangesOutput {
    /// A range of pages whose reads or writes are intercepted.
    pub const fn new(base_page_number: u64, page_count: u32, reads: bool, writes: bool) -> Self {
        Self {
            base_page_number,
            page_count,
            intercept_reads: reads as u8,
            intercept_writes: writes as u8,
            padding: [0; 2],
        }
    }
}

/// SRIOV_MITIGATED_RANGE_UPDATE_INPUT: input of IOCTL_SRIOV_MITIGATED_RANGE_UPDATE.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovMitigatedRangeUpdateInput {
    /// The VF whose changes are waited for.
    pub vf_index: VfIndex,
}

const _: () = assert!(size_of::<SriovMitigatedRangeUpdateInput>() == 2);

/// SRIOV_MITIGATED_RANGE_UPDATE_OUTPUT: output of IOCTL_SRIOV_MITIGATED_RANGE_UPDATE.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovMitigatedRangeUpdateOutput {
    /// The VF whose ranges have changed.
    pub vf_index: VfIndex,
}

const _: () = assert!(size_of::<SriovMitigatedRangeUpdateOutput>() == 2);

/// SRIOV_PROXY_QUERY_LUID_OUTPUT: output of IOCTL_SRIOV_PROXY_QUERY_LUID.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SriovProxyQueryLuidOutput {
    /// LUID of the physical device.
    pub device_luid: Luid,
}

const _: () = assert!(size_of::<SriovProxyQueryLuidOutput>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidation_of_all_vfs_names_none() {
        let all = SriovInvalidateBlock::of_all_vfs(1 << 63);
        assert_eq!(all.vf(), None);
        assert_eq!(all.as_bytes(), [0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(SriovInvalidateBlock::of_vf(VfIndex(3), 5).vf(), Some(VfIndex(3)));
    }

    #[test]
    fn a_mitigated_range_has_the_published_bytes() {
        assert_eq!(
            SriovMitigatedRangesOutput::new(2, 3, false, true).as_bytes(),
            [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0]
        );
    }

    #[test]
    fn events_are_named_and_others_numbered() {
        assert_eq!(SriovPfEvent::RESTART.to_string(), "SriovEventPfRestart");
        assert_eq!(SriovPfEvent(7).to_string(), "PF event 0x7");
    }

    #[test]
    fn a_vf_exists_below_num_vfs_only() {
        assert!(VfIndex(3).exists(4));
        assert!(!VfIndex(4).exists(4));
        assert!(!VfIndex(0).exists(0));
    }
}
