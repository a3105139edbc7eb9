//! KVM partition: a stock Linux guest under KVM that takes this host for Hyper-V.
//!
//! The second implementation of [`partition::Partition`]: the guest's own VMBus driver talks to the same server and
//! the same devices as the processes of the user-mode partition do. It runs a partition and is no VMM: a kernel is
//! loaded and entered directly, and there are a serial port, a clock, places for virtio devices such as disks, and nothing
//! else but what comes over VMBus.
//!
//! Everything that can be decided without KVM is in modules without ioctls: [`layout`] (the memory map), [`acpi`],
//! [`boot`] (kernel loading, first pages, first registers), [`cpuid`], [`synic`] (message slots and event flags),
//! [`hypercall`], [`interrupts`] (the routing table), [`cmos`], [`ports`]. The shell around them is `kernel` (the
//! ioctls that no safe crate has, the only `unsafe` here), `vcpu` (what a processor's exits become), `make`, `machine`, `devices` and `virtio`.
//!
//! The guest is hostile. What it writes is read once and checked; what it posts is held up to a bound; whatever it does
//! ends at worst in a [`RunOutcome`].
//!
//! Follows SPEC-VMBUS §1.1 and §8.4. Layer: mechanisms (ARCHITECTURE.md), above `partition`.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod acpi;
pub mod boot;
pub mod cmos;
mod console;
pub mod cpuid;
mod devices;
mod error;
mod event_flags;
pub mod hypercall;
pub mod interrupts;
mod kernel;
pub mod layout;
mod machine;
mod make;
pub mod ports;
mod survey;
pub mod synic;
mod vcpu;
mod virtio;

pub use console::Console;
pub use error::{KvmError, RunOutcome};
pub use machine::{KvmPartition, KvmPartitionConfig};
pub use survey::{KvmHost, Missing, SurveyError};
pub use virtio::VirtioDevice;
