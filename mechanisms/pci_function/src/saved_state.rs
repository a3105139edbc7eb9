//! Saved states: plain data, one part for each capability.

use serde::{Deserialize, Serialize};

use crate::{
    AcsState, AriState, ExpressState, HeaderState, MsiXState, PowerManagementState, SrIovState,
};

/// The saved state of a function: what software and events have changed in its configuration space.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionState {
    /// The header.
    pub header: HeaderState,
    /// Power management, if the function has it.
    pub power_management: Option<PowerManagementState>,
    /// MSI-X, if the function has it.
    pub msi_x: Option<MsiXState>,
    /// PCI Express, if the function has it.
    pub express: Option<ExpressState>,
    /// ARI, if the function has it.
    pub ari: Option<AriState>,
    /// ACS, if the function has it.
    pub acs: Option<AcsState>,
    /// SR-IOV, if the function has it.
    pub sr_iov: Option<SrIovState>,
}

/// The saved state of a PF and of the VFs that exist.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhysicalFunctionState {
    /// The PF.
    pub function: FunctionState,
    /// The VFs, by index.
    pub vfs: Vec<FunctionState>,
}
