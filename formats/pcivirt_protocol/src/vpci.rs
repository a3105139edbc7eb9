//! vpci.h: what a VF driver and the guest's VPCI bus driver tell each other (SPEC-PCIVIRT §10.1), and VPCI_PNP_ID.

use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// VPCI_INVALIDATE_BLOCK_OUTPUT: output of IOCTL_VPCI_INVALIDATE_BLOCK.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpciInvalidateBlockOutput {
    /// Bit n set: block id n has to be read again.
    pub block_mask: u64,
}

const _: () = assert!(size_of::<VpciInvalidateBlockOutput>() == 8);

/// VPCI_READ_BLOCK_INPUT: input of IOCTL_VPCI_READ_BLOCK; the output buffer must be as long as asked for here.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpciReadBlockInput {
    /// Which block.
    pub block_id: u32,
    /// How many bytes.
    pub bytes_requested: u32,
}

const _: () = {
    assert!(size_of::<VpciReadBlockInput>() == 8);
    assert!(offset_of!(VpciReadBlockInput, bytes_requested) == 4);
};

/// VPCI_WRITE_BLOCK_INPUT: start of the input of IOCTL_VPCI_WRITE_BLOCK; the data follow.
#[derive(Copy, Clone, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpciWriteBlockInput {
    /// Which block.
    pub block_id: u32,
    /// Bytes of data that follow.
    pub data_length: u32,
}

const _: () = {
    assert!(size_of::<VpciWriteBlockInput>() == 8);
    assert!(offset_of!(VpciWriteBlockInput, data_length) == 4);
};

/// VPCI_PNP_ID: the ids by which a guest finds a driver for a VF; also the first 12 bytes of a device description on
/// the VMBus wire.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VpciPnpId {
    /// PCI vendor id.
    pub vendor_id: u16,
    /// PCI device id.
    pub device_id: u16,
    /// PCI revision id.
    pub revision_id: u8,
    /// Programming interface of the class code.
    pub prog_if: u8,
    /// Subclass of the class code.
    pub sub_class: u8,
    /// Base class of the class code.
    pub base_class: u8,
    /// Subsystem vendor id.
    pub sub_vendor_id: u16,
    /// Subsystem id.
    pub sub_system_id: u16,
}

const _: () = {
    assert!(size_of::<VpciPnpId>() == 12);
    assert!(offset_of!(VpciPnpId, vendor_id) == 0);
    assert!(offset_of!(VpciPnpId, device_id) == 2);
    assert!(offset_of!(VpciPnpId, revision_id) == 4);
    assert!(offset_of!(VpciPnpId, prog_if) == 5);
    assert!(offset_of!(VpciPnpId, sub_class) == 6);
    assert!(offset_of!(VpciPnpId, base_class) == 7);
    assert!(offset_of!(VpciPnpId, sub_vendor_id) == 8);
    assert!(offset_of!(VpciPnpId, sub_system_id) == 10);
};
