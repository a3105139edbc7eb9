//! The configuration window: 8 KiB of guest physical addresses, chosen by the guest (SPEC-VMBUS §4.6).

/// Bytes of the window.
pub const SIZE: u64 = 0x2000;

/// Where a slot is selected: a write of exactly 4 bytes.
pub const SLOT_SELECT: u64 = 0;

/// Where the 4 KiB of the selected function's configuration space begin.
pub const CONFIG_SPACE: u64 = 0x1000;
