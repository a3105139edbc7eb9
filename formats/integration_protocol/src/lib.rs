//! Hyper-V's integration services on the wire: shutdown, heartbeat and time synchronization over VMBus, as types.
//!
//! No rings, no channels, no state, no clock: bytes in, values out, and back. Nothing is allocated by a number that a
//! message carries; every count is checked against the bytes that came with it.
//!
//! A host offers a channel for each [`Service`], in pipe mode (SPEC-VMBUS §3.4). It asks, and a guest answers, with one
//! [`Message`] in one in-band packet each:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | the pipe's header: 1 (data), and the bytes that follow |
//! | 20 | the message's header: versions, type, length of the body, status, transaction, flags |
//! | … | the body: [`Negotiate`], [`ShutdownRequest`], [`Heartbeat`] or [`TimeSync`] |
//!
//! The first message is the host's list of versions, the first answer the guest's choice. Known guests answer into the
//! bytes that came: an answer may be longer than it needs to be, and its pipe header may count bytes that its own does
//! not.
//!
//! Facts from Linux's `hv_util` and `include/linux/hyperv.h`, and from OpenVMM's `hyperv_ic_protocol`.
//!
//! Layer: formats (ARCHITECTURE.md). The host's end is in `integration_services`.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod error;
mod heartbeat;
mod message;
mod negotiate;
mod service;
mod shutdown;
#[cfg(test)]
mod tests;
mod time_sync;
mod version;

pub use error::IntegrationProtocolError;
pub use heartbeat::{ApplicationState, Heartbeat};
pub use message::{HeaderFlags, MAX_MESSAGE_SIZE, Message, MessageType, Status};
pub use negotiate::{MAX_VERSIONS, Negotiate, Versions};
pub use service::Service;
pub use shutdown::{REASON_PLANNED, ShutdownAction, ShutdownRequest, TEXT_SIZE};
pub use time_sync::{TICKS_FROM_1601_TO_1970, TICKS_PER_SECOND, TimeSync, TimeSyncPurpose};
pub use version::{FRAMEWORK_VERSIONS, Version};
