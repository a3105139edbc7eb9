//! DEC 21140A in software: the emulated adapter ("Legacy Network Adapter"), as a PCI function over vfio-user.
//!
//! For guests that have a driver for neither of the other two kinds of adapter. It is as slow as its interface is
//! old: every doorbell is a trapped access, every interrupt is a level, and there are no offloads.
//!
//! The core, [`TulipDevice`], does no I/O and has no clock: register accesses and frames come in with the time, what
//! is in guest memory is reached through a [`DmaMap`](shared_memory::DmaMap), frames go out as values. Everything in
//! guest memory is hostile: a descriptor is read once; one call works on a bounded number of descriptors, however
//! they are chained; an address that is not mapped stops the device, as a master abort stops the real one.
//! [`TulipFunction`] serves it over vfio-user.
//!
//! Follows the public *DECchip 21140A PCI Fast Ethernet LAN Controller Hardware Reference Manual* (cited as HRM),
//! the *Digital Semiconductor 21X4 Serial ROM Format* 3.03 (cited as SROM), and IEEE 802.3 clause 22 for the
//! transceiver's registers. What Linux's `tulip` driver looks at is there; what has no meaning without a wire
//! (collisions, thresholds, the boot ROM, big-endian descriptors, early interrupts) is not.
//!
//! Layer: mechanisms (ARCHITECTURE.md). Used by the virtual switch, of which each function is a port.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod config_space;
mod csr;
mod descriptor;
mod device;
mod filter;
mod function;
mod mii;
mod serial_rom;
#[cfg(test)]
mod tests;

pub use config_space::{ConfigSpace, DEVICE_ID, VENDOR_ID};
pub use device::{MAX_FRAME, ReceiveDrop, TulipConfig, TulipCounters, TulipDevice, TxOutcome};
pub use function::{FramePort, TulipFunction};
