//! The PF driver contract (pcivirt.h): interface callbacks, I/O controls and the PnP state machine, for the driver of any
//! SR-IOV physical function.
//!
//! It knows no device, no socket and no wire but the published buffers: a device implements [`SriovDevice`], a
//! [`PfDriver`] in front of it decodes and checks requests, answers with the published statuses, holds the long polls, and
//! makes the PnP thread wait for the virtualization stack. Bad requests change nothing.
//!
//! Follows SPEC-PCIVIRT, whose section numbers the code cites. Layer: mechanisms (ARCHITECTURE.md); above
//! `pcivirt_protocol` and `device_control_protocol`, below `device_control`, `ndis` and the adapter.

mod bar;
mod device;
mod driver;
mod front;
mod invalidation;
mod ioctl;
mod luid;
mod mitigation;
pub mod pnp;
mod rebalance;

pub use bar::vf_resource_for_bar;
pub use device::{InterfaceEntries, MitigableDevice, NO_VENDOR_AND_DEVICE, SriovDevice};
pub use device_control_protocol::{DeviceLocation, VendorAndDevice};
pub use driver::{CompleteRequest, PfDriver};
pub use ioctl::IoctlRequest;
pub use luid::{LuidGenerator, LuidTable};
pub use rebalance::Rebalance;
