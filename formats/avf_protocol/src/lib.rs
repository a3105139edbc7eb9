//! Intel Adaptive Virtual Function: registers, admin queue, virtchnl messages and descriptors, as types.
//!
//! It does nothing: no I/O, no threads, no memory access, no policy. It says where bits are, turns bytes
//! into meaning and meaning into bytes, in both directions: the device parses requests and emits replies,
//! a driver emits requests and parses replies. Senders emit the exact lengths that real PFs demand,
//! receivers are lenient (SPEC-AVF §4.7). The descriptor types are inline `const fn` over `[u64; 2]` and
//! `[u64; 4]`, because both ends use them for each frame.
//!
//! Specification: SPEC-AVF. Layer: formats (ARCHITECTURE.md).
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod admin_queue;
pub mod hash_enable;
pub mod link_speed;
mod mac;
pub mod packet_type;
pub mod receive;
pub mod registers;
pub mod transmit;
pub mod virtchnl;

pub use mac::MacAddress;

/// PCI vendor id (SPEC-AVF §1.1).
pub const VENDOR_ID: u16 = 0x8086;
/// PCI device id of the Adaptive Virtual Function (SPEC-AVF §1.1).
pub const DEVICE_ID: u16 = 0x1889;
/// PCI revision id, that of E810 VFs (SPEC-AVF §1.1).
pub const REVISION_ID: u8 = 0x02;
/// PCI class code: Ethernet controller (SPEC-AVF §1.1).
pub const CLASS_CODE: u32 = 0x02_0000;
/// Bytes of BAR0, the register file (SPEC-AVF §1.2).
pub const BAR0_SIZE: u64 = 0x1_0000;
/// Bytes of BAR3, which holds the MSI-X table and the pending bit array (SPEC-AVF §1.2).
pub const BAR3_SIZE: u64 = 0x4000;
/// Where the MSI-X table is in BAR3 (SPEC-AVF §1.2).
pub const MSIX_TABLE_OFFSET: u32 = 0;
/// Where the MSI-X pending bit array is in BAR3 (SPEC-AVF §1.2).
pub const MSIX_PBA_OFFSET: u32 = 0x2000;
/// Queue pairs a VF can have without the large-VF opcodes (SPEC-AVF §0).
pub const MAX_QUEUE_PAIRS: u16 = 16;
/// Bytes of a TX descriptor (SPEC-AVF §5.1).
pub const TX_DESCRIPTOR_SIZE: usize = 16;
/// Bytes of an RX descriptor, always the 32-byte form (SPEC-AVF §5.1).
pub const RX_DESCRIPTOR_SIZE: usize = 32;
/// Ring base addresses are multiples of this many bytes (SPEC-AVF §5.1).
pub const RING_ALIGNMENT: u64 = 128;
/// Ring lengths are multiples of this (SPEC-AVF §5.1).
pub const RING_LENGTH_MULTIPLE: u16 = 32;
/// Descriptors in the longest ring (SPEC-AVF §4.8).
pub const MAX_RING_LENGTH: u16 = 8160;
/// The most RX descriptors one frame may span (SPEC-AVF §5.5).
pub const MAX_RX_DESCRIPTORS_PER_FRAME: usize = 5;
/// The largest frame of the hardware, bytes without FCS (SPEC-AVF §5.5).
pub const MAX_FRAME_SIZE: u16 = 9728;
/// Bytes of L2 overhead that drivers subtract from the maximum frame to get the MTU (SPEC-AVF §4.5).
pub const L2_OVERHEAD: u16 = 26;
/// Bytes of the RSS hash key (SPEC-AVF §5.7).
pub const RSS_KEY_SIZE: usize = 52;
/// Entries of the RSS lookup table, one byte each (SPEC-AVF §5.7).
pub const RSS_LUT_SIZE: usize = 64;
/// What reads of a VF's registers give while hardware resets it (SPEC-AVF §2.1, §7.3).
pub const DEAD_REGISTER: u32 = 0xDEAD_BEEF;
