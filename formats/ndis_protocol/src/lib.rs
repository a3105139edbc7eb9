//! NDIS SR-IOV: OIDs and structures of NIC switch, VF, VPort and receive filter, as types.
//!
//! Types only: no I/O, no threads, no state, no policy. It says what bytes mean, never whether a request
//! is allowed; that is the `ndis` crate.
//!
//! Follows SPEC-NDIS-SRIOV (§0.2–0.4, §2, §5, §6, §14, §15). Every structure has two types: `Ndis…` is its bytes,
//! with the published offsets checked at compile time; the name without the prefix is its meaning. A
//! `…Change` type is the meaning of a set request that uses the same bytes. [`NdisStructure::parse`] turns
//! bytes into meaning, [`NdisStructure::emit`] meaning into bytes.
//!
//! Layer: formats (ARCHITECTURE.md). Used by `ndis`, `nic_switch`, `adapter` and the programs that speak
//! device control.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod affinity;
mod capabilities;
mod identifiers;
mod indication;
mod name;
mod nic_switch;
mod object;
mod oid;
mod receive_filter;
mod receive_filter_capabilities;
mod receive_filter_info;
mod receive_queue;
mod sriov;
mod status;
#[cfg(test)]
mod testing;
mod vf;
mod vf_config;
mod vport;
mod vport_info;

pub use affinity::*;
pub use capabilities::*;
pub use identifiers::*;
pub use indication::IndicationCode;
pub use name::*;
pub use nic_switch::*;
pub use object::{
    FixedStructure, NDIS_OBJECT_TYPE_DEFAULT, NdisObjectHeader, NdisStructure, ParseError,
    WireStructure,
};
pub use oid::*;
pub use receive_filter::*;
pub use receive_filter_capabilities::*;
pub use receive_filter_info::*;
pub use receive_queue::*;
pub use sriov::*;
pub use status::NdisStatus;
pub use vf::*;
pub use vf_config::*;
pub use vport::*;
pub use vport_info::*;
