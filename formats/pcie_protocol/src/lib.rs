//! PCI and PCI Express configuration registers and capabilities, as types.
//!
//! Layouts and meanings only: no configuration space is kept here, nothing is read or written, nothing
//! is allocated by a number that came from outside. The software functions that answer configuration
//! accesses are in `pci_function`.
//!
//! Follows the PCI Express Base Specification 6.0 (chapters 6.7, 7.5 to 7.9 and 9), and
//! SPEC-NDIS-SRIOV §7 to §10 and SPEC-PCIVIRT §9 where those say how the registers are used.
//!
//! Layer: formats (ARCHITECTURE.md). For every register there are its bits (a `bitfield` over the
//! little-endian word), for every capability its layout (`#[repr(C)]`, offsets checked at compile time),
//! and for what software means by them a closed type: [`Bar`], [`PowerState`], [`RoutingId`], [`VfRouting`].

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod acs;
mod ari;
mod bar;
mod capability;
mod error;
mod express;
mod header;
mod msi;
mod msi_x;
mod power_management;
mod routing_id;
mod sr_iov;

pub use acs::{AcsCapabilities, AcsCapability, AcsControl};
pub use ari::{AriCapabilities, AriCapability, AriControl};
pub use bar::{BAR_COUNT, Bar, BarIndex, BarKind, Bars, decode_probed_bars, encode_probed_bars};
pub use capability::{
    CapabilityHeader, CapabilityId, CapabilityWalk, ExtendedCapabilityHeader, ExtendedCapabilityId,
    ExtendedCapabilityWalk, FoundCapability, FoundExtendedCapability,
};
pub use error::PcieError;
pub use express::{
    DeviceCapabilities, DeviceCapabilities2, DeviceControl, DeviceControl2, DeviceStatus,
    ExpressCapabilities, ExpressCapability, LinkCapabilities, LinkCapabilities2, LinkControl,
    LinkControl2, LinkStatus, LinkStatus2, PortType,
};
pub use header::{ClassCode, Command, HeaderType, Status, Type0Header, header_offset};
pub use msi::{MsiControl, msi_capability_length};
pub use msi_x::{
    MSI_X_ENTRY_SIZE, MSI_X_MAX_VECTORS, MsiXCapability, MsiXControl, MsiXLocation, MsiXTableEntry,
    MsiXVectorControl, msi_x_pba_length,
};
pub use power_management::{
    PowerManagementCapabilities, PowerManagementCapability, PowerManagementControl, PowerState,
};
pub use routing_id::{PciLocation, RoutingId, VfIndex, VfRouting};
pub use sr_iov::{
    SrIovCapabilities, SrIovCapability, SrIovControl, SrIovStatus, SystemPageSize, sr_iov_offset,
};

/// Bytes of a PCI Express function's configuration space.
pub const CONFIG_SPACE_SIZE: usize = 4096;

/// Bytes of the part of configuration space that conventional PCI has too; extended capabilities start here.
pub const CONVENTIONAL_CONFIG_SPACE_SIZE: usize = 256;

/// What a read returns where no function answers: all ones.
pub const NO_FUNCTION: u32 = 0xFFFF_FFFF;

/// The vendor id that no vendor has; also what the vendor and device id registers of a VF read as
/// (PCIe 6.0 §9.3.4.1.1).
pub const INVALID_VENDOR_ID: u16 = 0xFFFF;
