//! Virtio block device: a guest's disk that is a raw image of the host, behind the registers of virtio-mmio.
//!
//! It knows one image format, raw, and refuses files that look like another one; it does not cache, and never does I/O
//! on the thread of a guest's processor. Interrupts and notifications are eventfds: who places the device says where they
//! lead, and a request takes no exit from the guest to this process but for the acknowledgement of its interrupt.
//!
//! [`Image`] is the file with its lock, [`BlockDevice`] the device. Inside, `registers` is the transport without effects,
//! `request` one request from its descriptors to its status byte, `transfer` the vectored I/O between the file and guest
//! memory (the only `unsafe` here), `device` the thread that owns the queue. The queue itself is rust-vmm's
//! `virtio-queue`.
//!
//! The guest is hostile. What it writes is read once and checked; a request that cannot be is answered by an error, and
//! a queue that cannot be by DEVICE_NEEDS_RESET, after which the device does nothing until it is reset.
//!
//! Follows Virtual I/O Device (VIRTIO) 1.2: §2 (facilities), §4.2 (MMIO, version 2), §5.2 (block device). Layer:
//! mechanisms (ARCHITECTURE.md), beside `partition`, whose trait for MMIO it implements.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod device;
mod image;
mod registers;
mod request;
#[cfg(test)]
mod tests;
mod transfer;

pub use device::{BlockDevice, BlockDeviceConfig};
pub use image::{Access, Image, ImageError, SECTOR};
pub use registers::{NOTIFY_OFFSET, QUEUE_SIZE, REGISTERS_LENGTH, SEGMENTS};
