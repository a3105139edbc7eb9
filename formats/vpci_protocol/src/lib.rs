//! VPCI on the wire: the messages by which a guest is given a PCI function over VMBus, as types.
//!
//! No rings, no channels, no state: bytes in, values out, and back. Nothing is allocated by a number that a
//! message carries; every count is checked against the bytes that came with it.
//!
//! Follows SPEC-VMBUS §4 (protocol versions 1.1 to 1.5), and SPEC-PCIVIRT §8.5 and §10.2 for the
//! configuration-block backchannel and the stop of a PF.
//!
//! Layer: formats (ARCHITECTURE.md). The host's end (VSP) and the guest's end (VSC) are in `vpci`.
//!
//! * [`GuestMessage`]: what a guest sends; [`HostMessage`]: what a host sends.
//! * [`reply`]: the payloads of completion packets.
//! * [`InterruptRequest`], [`TranslatedMsi`]: interrupts, in all three generations of message.
//! * [`MemoryResource`], [`ResourceList`]: BARs as Windows describes them.
//! * [`window`]: the 8 KiB through which a guest reaches configuration space.
//!
//! Ring packets are padded to a multiple of 8 bytes, so that all parsers take a message that has more bytes than
//! it needs, and none takes one with fewer.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod error;
mod function;
mod guest_message;
mod host_message;
mod interrupt;
mod message_type;
pub mod reply;
mod resource;
mod slot;
#[cfg(test)]
mod tests;
mod version;
pub mod window;
mod wire;

pub use error::VpciProtocolError;
pub use function::FunctionDescription;
pub use guest_message::{AssignedResources, GuestMessage, ResourcesGeneration};
pub use host_message::{HostMessage, MAX_FUNCTIONS};
pub use interrupt::{
    DeliveryMode, InterruptGeneration, InterruptRequest, MAX_PROCESSORS, MAX_VECTORS_PER_REQUEST,
    TranslatedMsi,
};
pub use message_type::MessageType;
pub use resource::{MemoryResource, ResourceList};
pub use slot::SlotNumber;
pub use version::ProtocolVersion;

use pcivirt_protocol::{Guid, NtStatus};

/// Type of a VPCI channel: 44C4F61D-4444-4400-9D52-802E27EDE19F.
pub const VPCI_INTERFACE_ID: Guid =
    Guid::new(0x44C4_F61D, 0x4444, 0x4400, [0x9D, 0x52, 0x80, 0x2E, 0x27, 0xED, 0xE1, 0x9F]);

/// The request is malformed; the answer to any message that cannot be understood (SPEC-VMBUS §4.2).
pub const STATUS_BAD_DATA: NtStatus = NtStatus(0xC000_090B);

/// Bytes of one configuration-block transfer at most (SPEC-PCIVIRT §2.2).
pub const MAX_BLOCK_SIZE: usize = 128;

/// Interrupt entries of one ASSIGNED_RESOURCES message at most.
pub const MAX_MSI_RESOURCES: usize = 494;

/// Bytes of the largest legal message: ASSIGNED_RESOURCES3 with all its interrupts.
pub const MAX_MESSAGE_SIZE: usize = 136 + MAX_MSI_RESOURCES * 80;
