//! NDIS: the layer between the virtualization stack and the driver of a NIC's physical function. It turns OIDs, and the
//! interface callbacks of the PF driver contract, into typed requests to a [`PfMiniport`]; it validates, numbers VPorts
//! and filters, keeps who owns what, caches and enumerates.
//!
//! It moves no frame, knows no hardware, no socket and no clock, and sets no policy: which VM gets a VF is the
//! virtualization stack's to say. A request that is refused gets the published status, says why ([`Refusal`]), and has
//! changed nothing; a request that the driver fails has changed nothing either.
//!
//! Follows SPEC-NDIS-SRIOV (§2.4 keywords, §3–§6 rules and OIDs, §11 sequences, §14 indications) and SPEC-PCIVIRT §11.
//! Where the published documents leave a choice, the code says what was chosen and why.
//!
//! Layer: mechanisms (ARCHITECTURE.md); above `ndis_protocol` and `pf_driver`'s contract, below the adapter, which
//! implements [`PfMiniport`].
//!
//! | start reading at | for |
//! | --- | --- |
//! | [`PfMiniport`] | what a driver has to do, and when |
//! | [`Ndis`] | starting, halting, requests, observers |
//! | [`Keywords`] | the configuration file |
//! | [`NdisSriovDevice`] | the PF driver contract over NDIS |

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod adapter;
mod cache;
mod capabilities;
mod completion;
mod event;
mod features;
mod filter;
mod keywords;
mod miniport;
mod query;
mod refusal;
mod route;
mod sriov_device;
mod switch;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vf;
mod vport;

pub use adapter::{AdapterConfiguration, AdapterState, Ndis, ReleaseReport, StartError};
pub use cache::{Cache, FilterRecord, SwitchRecord, VPortRecord, VfRecord};
pub use capabilities::{CapabilityFault, CurrentCapabilities, HardwareCapabilities};
pub use completion::{OidCompletion, nt_status, request_kind};
pub use event::{NdisEvent, Requester, StatusIndication, SubscriptionId, oid_name};
pub use features::ActiveFeatures;
pub use keywords::{KeywordError, Keywords, Preference};
pub use miniport::*;
pub use refusal::{Object, Refusal};
pub use sriov_device::NdisSriovDevice;
