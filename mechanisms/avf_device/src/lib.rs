//! AVF device: register file, mailbox, virtchnl responder, interrupts and queue contexts of one Virtual Function.
//!
//! It is the control part of a function, and serves the PF's own queue pairs as well. Sans-I/O: it has no
//! threads and no clock (time comes in as `now_ns`), reaches guest memory only through the function's DMA
//! map, and leaves the frames, the policy and the resources to its [`VfHost`]. It moves no frame: the data
//! path is the host's, told by [`VfHost::start_queues`] and [`VfHost::apply`], and shares the
//! [`InterruptVectors`] and the doorbell pages with this code.
//!
//! Specification: SPEC-AVF §2–§4, §6, §7. Layer: mechanisms (ARCHITECTURE.md), above `avf_protocol` and
//! `shared_memory`.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod config;
mod device;
mod host;
mod interrupts;
mod mailbox;
mod registers;
mod reset;
mod settings;
mod statistics;
mod virtchnl;

pub use config::{
    AdminSettings, ConfigError, MAX_VECTORS, RECOMMENDED_CAPABILITIES, SERVED_CAPABILITIES,
    VfConfig,
};
pub use device::AvfDevice;
pub use host::{QueueError, RxFormat, RxQueueConfig, TxQueueConfig, VfHost};
pub use interrupts::{InterruptError, InterruptVectors};
pub use reset::ResetKind;
pub use settings::{QueueInterrupt, RssSettings, VfSettings};
