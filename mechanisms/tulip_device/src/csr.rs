//! The control and status registers' bits (HRM chapter 3.2).

use bitfield_struct::bitfield;

/// Bytes of the register file: CSR0 to CSR15, each on 8 bytes.
pub(crate) const REGISTERS_SIZE: u64 = 128;

/// CSR0: bus mode.
#[bitfield(u32)]
#[derive(PartialEq)]
pub(crate) struct BusMode {
    pub(crate) software_reset: bool,
    arbitration: bool,
    /// Longwords between the end of a descriptor and the start of the next one that is not chained.
    #[bits(5)]
    pub(crate) descriptor_skip: u8,
    big_endian: bool,
    #[bits(6)]
    burst_length: u8,
    #[bits(2)]
    cache_alignment: u8,
    reserved_16: bool,
    /// How often the transmit list is polled without being asked to; 0 never.
    #[bits(3)]
    pub(crate) automatic_polling: u8,
    #[bits(12)]
    rest: u16,
}

/// CSR0 after a reset.
pub(crate) const BUS_MODE_RESET: u32 = 0xFE00_0000;

/// CSR5: status; the low 17 bits are cleared by ones, and are the interrupts. CSR7 enables them.
#[bitfield(u32)]
#[derive(PartialEq)]
pub(crate) struct Status {
    /// A frame was sent whose descriptor asked for an interrupt.
    pub(crate) transmit_interrupt: bool,
    pub(crate) transmit_stopped: bool,
    /// The next transmit descriptor is not the device's.
    pub(crate) transmit_unavailable: bool,
    pub(crate) transmit_jabber: bool,
    reserved_4: bool,
    transmit_underflow: bool,
    /// A frame was received.
    pub(crate) receive_interrupt: bool,
    /// The next receive descriptor is not the device's.
    pub(crate) receive_unavailable: bool,
    pub(crate) receive_stopped: bool,
    receive_watchdog: bool,
    early_transmit: bool,
    /// CSR11 has run down.
    pub(crate) timer_expired: bool,
    reserved_12: bool,
    /// The bus did not do what was asked.
    pub(crate) fatal_bus_error: bool,
    early_receive: bool,
    pub(crate) abnormal_summary: bool,
    pub(crate) normal_summary: bool,
    #[bits(3)]
    pub(crate) receive_state: u8,
    #[bits(3)]
    pub(crate) transmit_state: u8,
    /// Of a fatal bus error: 1 is a master abort.
    #[bits(3)]
    pub(crate) bus_error: u8,
    #[bits(6)]
    rest: u8,
}

/// The bits of CSR5 that are cleared by ones.
pub(crate) const STATUS_CLEARABLE: u32 = 0x0001_FFFF;
/// The bits of CSR5 that read as ones.
pub(crate) const STATUS_ONES: u32 = 0xFC00_0000;
/// What the normal summary sums up.
pub(crate) const NORMAL_INTERRUPTS: u32 = 1 << 0 | 1 << 2 | 1 << 6 | 1 << 14;
/// What the abnormal summary sums up.
pub(crate) const ABNORMAL_INTERRUPTS: u32 =
    1 << 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13;
/// A master abort, in [`Status::bus_error`].
pub(crate) const MASTER_ABORT: u8 = 1;

/// Process states, as CSR5 shows them.
pub(crate) mod process {
    /// Either process: not running.
    pub(crate) const STOPPED: u8 = 0;
    /// The receive process: waits for a frame.
    pub(crate) const RECEIVE_WAITING: u8 = 3;
    /// The receive process: has no descriptor.
    pub(crate) const RECEIVE_SUSPENDED: u8 = 4;
    /// The transmit process: has no descriptor, which is where it is at rest.
    pub(crate) const TRANSMIT_SUSPENDED: u8 = 6;
}

/// CSR6: operation mode.
#[bitfield(u32)]
#[derive(PartialEq)]
pub(crate) struct OperationMode {
    /// Read-only: what the last setup frame said.
    pub(crate) hash_filtering: bool,
    pub(crate) start_receive: bool,
    /// Read-only: what the last setup frame said.
    pub(crate) hash_only: bool,
    pass_bad_frames: bool,
    /// Read-only: what the last setup frame said.
    pub(crate) inverse_filtering: bool,
    backoff_counter: bool,
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    reserved_8: bool,
    full_duplex: bool,
    /// 0 is a wire, all else a loop.
    #[bits(2)]
    pub(crate) loopback: u8,
    force_collision: bool,
    pub(crate) start_transmit: bool,
    #[bits(2)]
    threshold: u8,
    reserved_16: bool,
    capture_effect: bool,
    /// MII, not 10BASE-T.
    port_select: bool,
    heartbeat_disable: bool,
    reserved_20: bool,
    store_and_forward: bool,
    /// The wire's clock is that of 10 Mb/s.
    pub(crate) transmit_threshold_mode: bool,
    pcs: bool,
    scrambler: bool,
    must_be_one: bool,
    #[bits(4)]
    reserved_26: u8,
    pub(crate) receive_all: bool,
    special_capture: bool,
}

/// CSR6 after a reset.
pub(crate) const OPERATION_MODE_RESET: u32 = 0x3200_0040;
/// The bits of CSR6 that a write does not change.
pub(crate) const OPERATION_MODE_READ_ONLY: u32 = 0b1_0101;

/// CSR9: serial ROM and transceiver management.
#[bitfield(u32)]
#[derive(PartialEq)]
pub(crate) struct SerialPort {
    pub(crate) rom_chip_select: bool,
    pub(crate) rom_clock: bool,
    pub(crate) rom_data_in: bool,
    /// Read-only.
    pub(crate) rom_data_out: bool,
    #[bits(7)]
    data: u8,
    pub(crate) rom_select: bool,
    boot_rom_select: bool,
    pub(crate) write: bool,
    pub(crate) read: bool,
    mode: bool,
    pub(crate) management_clock: bool,
    pub(crate) management_data_out: bool,
    /// Set while the transceiver drives the data line.
    pub(crate) management_read: bool,
    /// Read-only.
    pub(crate) management_data_in: bool,
    #[bits(12)]
    rest: u16,
}

/// CSR11: general-purpose timer.
#[bitfield(u32)]
#[derive(PartialEq)]
pub(crate) struct Timer {
    pub(crate) value: u16,
    pub(crate) continuous: bool,
    #[bits(15)]
    rest: u16,
}

/// A unit of CSR11 at 100 Mb/s, nanoseconds; at 10 Mb/s it is ten times as long.
pub(crate) const TIMER_UNIT_NS: u64 = 81_920;

/// In a write of CSR12: the low bits say which pins are outputs.
pub(crate) const PINS_ARE_DIRECTIONS: u32 = 1 << 8;
