//! PCI Express functions in software: configuration space, BARs, MSI-X, power states, FLR and SR-IOV.
//!
//! No I/O, no threads, no clock, no guest memory: a caller hands in configuration accesses and MSI-X
//! table accesses as bytes, and gets bytes and a list of [`Effect`]s to carry out. What a guest writes
//! cannot panic, and cannot make a function grow.
//!
//! Follows the PCI Express Base Specification 6.0 (chapters 5.3, 6.1.4, 6.6.2, 7.5 to 7.9 and 9),
//! SPEC-NDIS-SRIOV §7 to §10, SPEC-PCIVIRT §9 and, for the ready-made functions of [`avf`], SPEC-AVF §1.
//!
//! Layer: mechanisms (ARCHITECTURE.md), above `pcie_protocol`. A vfio-user server or a VPCI VSP passes a
//! guest's accesses in; the device model (for us AVF) carries the effects out.
//!
//! * [`PciFunction`]: one function. Built by [`FunctionBuilder`] from a header and capability objects; one
//!   file per capability in `capability/`, each with read, write, reset and saved state.
//! * [`PhysicalFunction`]: a PF with its VFs, and what a PF driver asks of the PCI bus driver
//!   (PCI_VIRTUALIZATION_INTERFACE): enable VFs, find them, size them, reach their configuration space.
//! * [`VfMediation`]: what a guest sees of a VF whose raw configuration space is not fit to be seen, and
//!   what becomes of its writes.
//! * [`avf`]: the functions of Clearway's software adapter.
//!
//! ```
//! use pci_function::{Effect, avf};
//!
//! let mut vf = avf::virtual_function(17)?;
//! let mut ids = [0; 4];
//! vf.config_read(0x00, &mut ids)?;
//! assert_eq!(ids, [0x86, 0x80, 0x89, 0x18]);
//! // The guest turns bus mastering on; the device may do DMA from now on.
//! assert_eq!(vf.config_write(0x04, &[0x04])?, [Effect::BusMasterChanged { enabled: true }]);
//! assert!(vf.dma_allowed());
//! # Ok::<(), pci_function::PciFunctionError>(())
//! ```

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod access;
pub mod avf;
mod bar_registers;
mod builder;
mod capability;
mod effect;
mod error;
mod function;
mod header;
mod mediation;
mod physical_function;
mod saved_state;
#[cfg(test)]
mod tests;

pub use builder::FunctionBuilder;
pub use capability::{
    Capability,
    acs::{Acs, AcsState},
    ari::{Ari, AriState},
    express::{Express, ExpressConfig, ExpressState},
    msi_x::{MsiX, MsiXLayout, MsiXState, MsiXVectorState, MsixMessage, MsixSignal},
    power_management::{PowerManagement, PowerManagementConfig, PowerManagementState},
    sr_iov::{MAX_VFS, SrIov, SrIovConfig, SrIovState, VfPlacement},
};
pub use effect::{Effect, ResetKind};
pub use error::{PciFunctionError, VirtualizationError};
pub use function::PciFunction;
pub use header::{HeaderState, Identity};
pub use mediation::{
    Decision, ForwardedWrite, MediationPolicy, MediationState, MsiSetting, RawVfConfig, Shadow,
    VfMediation, VfPnpIds,
};
pub use physical_function::{
    DecodedAddress, FunctionNumber, PhysicalFunction, PhysicalFunctionMut, VfBarResource,
    VfBlueprint, VfDataWritten, VirtualizationRequest,
};
pub use saved_state::{FunctionState, PhysicalFunctionState};
