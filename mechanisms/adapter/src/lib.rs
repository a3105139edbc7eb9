//! The software SR-IOV adapter: PF miniport and data path of a NIC.
//!
//! It owns one NIC: a PF with its SR-IOV capability, VFs that follow AVF, a NIC switch, queue pairs, and an
//! uplink. Each function is served as a PCI function on a vfio-user socket; the switch, VPorts and filters
//! are managed by OIDs through the [`ndis::PfMiniport`] contract. It keeps no policy: who gets a VF, and
//! when, is the virtualization stack's business.
//!
//! Layer: mechanisms (ARCHITECTURE.md). Specifications: SPEC-NDIS-SRIOV §2–§6, SPEC-AVF, SPEC-PCIVIRT §9.
//!
//! * [`Adapter`]: PF, VFs, VPorts and their sockets
//! * `function`: one PCI function: configuration space, registers, doorbells, interrupts
//! * `miniport`: the NDIS contract in front of the adapter
//! * [`AdapterServer`]: all of it behind a device control socket; [`control`]: its private controls
//! * `resources`, `rebalance`: what the machine gives the adapter, and how it is changed
//! * `settle`: what a VF's driver has to have taken before its filters are said to have moved
//! * `vf_drivers`, `vf_reports`: what the drivers of VFs do, and how clients of device control hear of it
//! * [`data_path`]: the worker thread that moves the frames

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod adapter;
mod clock;
mod config;
pub mod control;
pub mod data_path;
mod error;
mod function;
mod miniport;
mod rebalance;
mod resources;
mod server;
mod settle;
mod vf_drivers;
mod vf_reports;

pub use adapter::{Adapter, AllocatedVf, RequestError};
pub use config::AdapterConfig;
pub use data_path::{FunctionStats, UplinkStats};
pub use error::AdapterError;
pub use function::FunctionError;
pub use miniport::AdapterMiniport;
pub use server::{AdapterServer, CONTROL_SOCKET, StartError, control_socket};
