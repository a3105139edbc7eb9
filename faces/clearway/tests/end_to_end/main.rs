//! What a user does, end to end: the demo, and ordinary programs in VMs.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../faults/common.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
mod demo;
mod kvm;
mod programs;
mod stack;
mod vms;
