//! pcivirt.h: the contract between an SR-IOV physical function's driver (the PF driver) and the virtualization
//! stack, as wire types: structures, IOCTL codes, GUIDs, status values and function table layouts.
//!
//! It decides nothing, sends nothing and allocates nothing: every type here is bytes with names. What the
//! requests *do* is the `pf_driver` crate; how they travel between processes is `device_control_protocol`.
//!
//! Follows SPEC-PCIVIRT (the published pcivirt.h and vpci.h interfaces). Every structure has the published x64
//! layout, checked at compile time; padding is spelled out as fields. Integers are little endian, as on the machines
//! the interface was made for. Values that a peer may choose freely are *open* types here (a newtype that holds
//! any value); their closed meaning is a separate enum, reached by a checked conversion.
//!
//! Layer: formats (ARCHITECTURE.md). Used by `pf_driver`, `device_control_protocol` and everything above.

mod guid;
mod interface;
mod ioctl;
mod luid;
mod power;
mod resource;
mod status;
mod structures;
mod vpci;

pub use guid::*;
pub use interface::*;
pub use ioctl::*;
pub use luid::Luid;
pub use power::{DevicePowerState, DevicePowerStateRaw};
pub use resource::{CmPartialResourceDescriptor, CmResourceType, cm_resource_memory};
pub use status::NtStatus;
pub use structures::*;
pub use vpci::*;

// The structures are read as the machine's own integers.
const _: () = assert!(cfg!(target_endian = "little"), "the wire structures are little endian");

/// Most bytes of one configuration block transfer (`VPCI_MAX_READ_WRITE_BLOCK_SIZE`; SPEC-PCIVIRT §2.2, §5.3).
pub const VPCI_MAX_READ_WRITE_BLOCK_SIZE: usize = 128;

/// The `VfIndex` that stands for every VF in [`SriovInvalidateBlock`] (`SRIOV_INVALIDATE_BLOCK_ALL_VFS`;
/// SPEC-PCIVIRT §2.2).
pub const SRIOV_INVALIDATE_BLOCK_ALL_VFS: u16 = 0xFFFF;

/// Number of base address registers in every probed-BAR array (`PCI_TYPE0_ADDRESSES`; SPEC-PCIVIRT §2.2).
pub const PCI_TYPE0_ADDRESSES: usize = 6;

/// Bytes of a PCI Express function's configuration space, the bound of ReadVfConfig and WriteVfConfig
/// (SPEC-PCIVIRT §5.1).
pub const PCI_EXPRESS_CONFIG_SPACE_SIZE: usize = 4096;

/// Most bytes of one mitigated register access (SPEC-PCIVIRT §5.16).
pub const MITIGATED_REGISTER_MAX_LENGTH: usize = 8;

/// What a location or id callback answers for a VF that is not there: these callbacks return no status
/// (SPEC-PCIVIRT §4.4).
pub const PCI_INVALID_ID: u16 = 0xFFFF;
