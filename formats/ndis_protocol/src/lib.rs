//! NDIS SR-IOV: OIDs and structures of NIC switch, VF, VPort and receive filter, as types.
//!
//! Types only: no I/O, no threads, no state, no policy. It says what bytes mean, never whether a request
//! is allowed; that is the `ndis` crate.
//!
//! Follows SPEC-NDIS-SRIOV (§0.2–0.4, §2, §5, §6, §14, §15).
//!
//! Layer: formats (ARCHITECTURE.md). Used by `ndis`, `nic_switch`, `adapter` and the programs that speak
//! device control.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod identifiers;

pub use identifiers::*;
