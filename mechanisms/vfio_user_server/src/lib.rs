//! vfio-user server: serves one PCI function to one client at a time on one Unix socket.
//!
//! It knows messages, descriptors, DMA ranges and interrupt wiring, and nothing of what the function does: that
//! is a [`PciFunctionDevice`]. It refuses to trust the client: a client that lies, floods, drips or dies ends
//! its own connection, after which the next one is served; memory and descriptors held for it are bounded
//! ([`Limits`]). It sends no commands to the client and keeps no state of the device across connections.
//!
//! Follows the vfio-user protocol specification 0.0 (crate `vfio_user_protocol`, cited as "vfio-user §Title")
//! and what stock QEMU's client is known to do (GUESTS-QEMU). Peers: QEMU's `vfio-user-pci`, Cloud
//! Hypervisor, and user-mode VMs through the AVF driver.
//!
//! Layer: mechanisms (ARCHITECTURE.md). Used by `adapter`.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod connection;
mod device;
mod dma_table;
mod error;
mod limits;
mod log_budget;
mod server;
mod session;

#[cfg(test)]
mod tests;

pub use device::{DmaRange, IrqChange, PciFunctionDevice, Region, RegionMemory};
pub use error::{DisconnectReason, ServerError};
pub use event_fd::{EventFd, NotAnEventFd};
pub use limits::Limits;
pub use listening_socket::ListenError;
pub use server::{ServerOptions, VfioUserServer, serve_connection};
pub use vfio_user_protocol::{DmaAccess, Errno, PciIrq, PciRegion, SparseMmapArea};
