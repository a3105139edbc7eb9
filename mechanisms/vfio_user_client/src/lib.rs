//! vfio-user client: one PCI function behind a socket, as a driver or a hypervisor uses it.
//!
//! It refuses to know the device, to wait without a limit, and to trust the server: replies are checked, what
//! does not fit ends in a [`ClientError`], and a server that dies is [`ClientError::Gone`] at the next call. It
//! has no threads, no per-region state, and no locks but one around the socket.
//!
//! Why not the published crate `vfio_user` (0.1.7)? Its client waits without limit (a hung server
//! would hang the VM), passes over error replies as if they were success, panics on a version or
//! region reply of unexpected size, offers minor version 1, drops all but the first descriptor of a
//! reply, keeps the socket to itself (no way to wait for the server's death), and sends no posted
//! writes. Each of these is the point of a client that must outlive its device.
//!
//! Follows vfio-user 0.0 (`vfio_user_protocol`). Layer: mechanisms (ARCHITECTURE.md), above
//! `vfio_user_protocol`. Used by `avf_driver`, and by the host side of a partition that gives a VF to its guest.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod client;
mod connection;
mod error;

#[cfg(test)]
mod tests;

pub use client::{Client, Region, SharedRegion};
pub use error::{ClientError, Result};
pub use vfio_user_protocol::{DeviceInfo, IrqInfo, PciIrq, PciRegion, SparseMmapArea};
