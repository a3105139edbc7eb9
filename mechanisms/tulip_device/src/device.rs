//! The controller: its registers, and the two processes that walk the descriptor lists.

mod receive;
mod transmit;

use crate::{
    csr::{
        ABNORMAL_INTERRUPTS, BUS_MODE_RESET, BusMode, MASTER_ABORT, NORMAL_INTERRUPTS,
        OPERATION_MODE_READ_ONLY, OPERATION_MODE_RESET, OperationMode, PINS_ARE_DIRECTIONS,
        REGISTERS_SIZE, STATUS_CLEARABLE, STATUS_ONES, SerialPort, Status, TIMER_UNIT_NS, Timer,
        process,
    },
    filter::Filter,
    mii::Mii,
    serial_rom::{SerialRom, contents},
};
pub use receive::ReceiveDrop;
pub use transmit::TxOutcome;

/// Bytes of the longest frame, without its checksum: 1500 of data, and a VLAN tag.
pub const MAX_FRAME: usize = 1518;

/// The serial ROM names the transceiver by its number among those there are.
const FIRST_PHY: u8 = 0;

/// What an adapter is made with.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct TulipConfig {
    /// Its address, in the serial ROM; see [`TulipConfig::mac_is_misread`].
    pub mac: [u8; 6],
    /// Subsystem vendor and subsystem id, in configuration space and in the serial ROM.
    pub subsystem: (u16, u16),
}

impl TulipConfig {
    /// Whether Linux's driver takes the address for another one: early boards of one maker had the bytes of each
    /// pair swapped, and the driver knows them by an address that begins with 02:00, A0:00 or C0:00. To be avoided
    /// where the switch holds a guest to its address.
    pub fn mac_is_misread(&self) -> bool {
        matches!(self.mac, [0x02 | 0xA0 | 0xC0, 0x00, ..])
    }
}

/// What became of frames.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct TulipCounters {
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes, without checksums.
    pub tx_bytes: u64,
    /// Frames that were too long, had no beginning, or found no link.
    pub tx_errors: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Their bytes, without checksums.
    pub rx_bytes: u64,
    /// Frames that found no descriptor.
    pub rx_no_descriptor: u64,
    /// Frames that found too few, and were cut off.
    pub rx_truncated: u64,
    /// Frames to others.
    pub rx_filtered: u64,
    /// Frames that came while the receiver was off or the link was down, or of a length that no frame has.
    pub rx_dropped: u64,
    /// Accesses to memory that is not there.
    pub bus_errors: u64,
}

/// A 21140A, without its PCI interface. See the [crate](crate) for what it leaves out.
///
/// Belongs to one thread. Registers are read and written by [`read`](Self::read) and [`write`](Self::write); after a
/// write that makes [`transmit_due`](Self::transmit_due) true, [`transmit`](Self::transmit) is to be called;
/// [`poll`](Self::poll) is due at [`next_deadline`](Self::next_deadline). Whatever was called, the interrupt line is
/// [`interrupt`](Self::interrupt) from then on. Times are nanoseconds since any fixed moment and never go back.
#[derive(Debug)]
pub struct TulipDevice {
    bus_mode: BusMode,
    receive_list: u32,
    transmit_list: u32,
    status: Status,
    mode: OperationMode,
    interrupt_mask: u32,
    missed: u32,
    serial_port: SerialPort,
    boot_rom: u32,
    timer: Timer,
    timer_deadline: Option<u64>,
    pins: u8,
    watchdog: u32,
    /// Where each process is in its list.
    next_receive: u32,
    next_transmit: u32,
    /// A transmit list is to be looked at.
    transmit_due: bool,
    transmit_poll: Option<u64>,
    /// A frame that has begun in the transmit list.
    partial: transmit::Partial,
    /// Descriptors and bytes of the frame that is being received.
    receiving: receive::Scratch,
    /// After a bus error nothing moves until a reset.
    halted: bool,
    filter: Filter,
    rom: SerialRom,
    mii: Mii,
    counters: TulipCounters,
}

/// CSR numbers.
mod csr_number {
    pub(super) const BUS_MODE: u32 = 0;
    pub(super) const TRANSMIT_DEMAND: u32 = 1;
    pub(super) const RECEIVE_DEMAND: u32 = 2;
    pub(super) const RECEIVE_LIST: u32 = 3;
    pub(super) const TRANSMIT_LIST: u32 = 4;
    pub(super) const STATUS: u32 = 5;
    pub(super) const MODE: u32 = 6;
    pub(super) const INTERRUPT_MASK: u32 = 7;
    pub(super) const MISSED: u32 = 8;
    pub(super) const SERIAL_PORT: u32 = 9;
    pub(super) const BOOT_ROM: u32 = 10;
    pub(super) const TIMER: u32 = 11;
    pub(super) const PINS: u32 = 12;
    pub(super) const WATCHDOG: u32 = 15;
}

impl TulipDevice {
    /// A controller after power-on, with its link up.
    pub fn new(config: TulipConfig) -> Self {
        Self {
            bus_mode: BusMode::from(BUS_MODE_RESET),
            receive_list: 0,
            transmit_list: 0,
            status: Status::new(),
            mode: OperationMode::from(OPERATION_MODE_RESET),
            interrupt_mask: 0,
            missed: 0,
            serial_port: SerialPort::new(),
            boot_rom: 0,
            timer: Timer::new(),
            timer_deadline: None,
            pins: 0,
            watchdog: 0,
            next_receive: 0,
            next_transmit: 0,
            transmit_due: false,
            transmit_poll: None,
            partial: transmit::Partial::default(),
            receiving: receive::Scratch::default(),
            halted: false,
            filter: Filter::None,
            rom: SerialRom::new(contents(config.mac, config.subsystem, FIRST_PHY)),
            mii: Mii::new(),
            counters: TulipCounters::default(),
        }
    }

    /// Resets the controller, as CSR0 and a reset of the bus do. The transceiver and the serial ROM are chips of
    /// their own, and counters are the host's.
    pub fn reset(&mut self) {
        self.bus_mode = BusMode::from(BUS_MODE_RESET);
        (self.receive_list, self.transmit_list) = (0, 0);
        self.status = Status::new();
        self.mode = OperationMode::from(OPERATION_MODE_RESET);
        (self.interrupt_mask, self.missed, self.boot_rom, self.watchdog) = (0, 0, 0, 0);
        self.serial_port = SerialPort::new();
        (self.timer, self.timer_deadline) = (Timer::new(), None);
        (self.next_receive, self.next_transmit) = (0, 0);
        (self.transmit_due, self.transmit_poll) = (false, None);
        self.partial = transmit::Partial::default();
        self.halted = false;
        self.filter = Filter::None;
    }

    /// What became of frames since power-on.
    pub fn counters(&self) -> TulipCounters {
        self.counters
    }

    /// Whether the link is up.
    pub fn link(&self) -> bool {
        self.mii.link()
    }

    /// Pulls the cable out, or puts it in.
    pub fn set_link(&mut self, up: bool) {
        self.mii.set_link(up);
    }

    // ---- registers

    /// Reads the register at `offset`, 0 to 127. Reading CSR8 clears it.
    pub fn read(&mut self, offset: u32, now: u64) -> u32 {
        if !offset.is_multiple_of(8) || u64::from(offset) >= REGISTERS_SIZE {
            return 0;
        }
        match offset / 8 {
            csr_number::BUS_MODE => self.bus_mode.into(),
            csr_number::RECEIVE_LIST => self.receive_list,
            csr_number::TRANSMIT_LIST => self.transmit_list,
            csr_number::STATUS => self.status_register(),
            csr_number::MODE => self.mode.into(),
            csr_number::INTERRUPT_MASK => self.interrupt_mask,
            csr_number::MISSED => std::mem::take(&mut self.missed),
            csr_number::SERIAL_PORT => {
                let data_in = match self.serial_port.management_read() {
                    true => self.mii.output(),
                    false => self.serial_port.management_data_out(),
                };
                self.serial_port
                    .with_rom_data_out(self.rom.output())
                    .with_management_data_in(data_in)
                    .into()
            }
            csr_number::BOOT_ROM => self.boot_rom,
            csr_number::TIMER => self.timer_register(now),
            csr_number::PINS => self.pins.into(),
            csr_number::WATCHDOG => self.watchdog,
            _ => u32::MAX,
        }
    }

    /// Writes the register at `offset`, 0 to 127.
    pub fn write(&mut self, offset: u32, value: u32, now: u64) {
        if !offset.is_multiple_of(8) || u64::from(offset) >= REGISTERS_SIZE {
            return;
        }
        match offset / 8 {
            csr_number::BUS_MODE => {
                let mode = BusMode::from(value);
                if mode.software_reset() {
                    self.reset();
                }
                self.bus_mode = mode.with_software_reset(false);
                self.schedule_transmit_poll(now);
            }
            csr_number::TRANSMIT_DEMAND => self.transmit_due = self.mode.start_transmit(),
            csr_number::RECEIVE_DEMAND => self.demand_receive(),
            csr_number::RECEIVE_LIST => {
                self.receive_list = value & !3;
                self.next_receive = self.receive_list;
            }
            csr_number::TRANSMIT_LIST => {
                self.transmit_list = value & !3;
                self.next_transmit = self.transmit_list;
                self.partial = transmit::Partial::default();
            }
            csr_number::STATUS => {
                let cleared = value & STATUS_CLEARABLE;
                self.status = Status::from(u32::from(self.status) & !cleared);
            }
            csr_number::MODE => self.write_mode(value, now),
            csr_number::INTERRUPT_MASK => self.interrupt_mask = value & STATUS_CLEARABLE,
            csr_number::SERIAL_PORT => {
                self.serial_port = SerialPort::from(value);
                self.rom.pins(self.serial_port);
                self.mii.pins(self.serial_port);
            }
            csr_number::BOOT_ROM => self.boot_rom = value,
            csr_number::TIMER => {
                self.timer = Timer::from(value);
                self.timer_deadline = self.timer_period().map(|period| now.saturating_add(period));
            }
            csr_number::PINS if value & PINS_ARE_DIRECTIONS == 0 => {
                [self.pins, ..] = value.to_le_bytes();
            }
            csr_number::WATCHDOG => self.watchdog = value,
            _ => {}
        }
    }

    fn write_mode(&mut self, value: u32, now: u64) {
        let kept = u32::from(self.mode) & OPERATION_MODE_READ_ONLY;
        let mode = OperationMode::from(value & !OPERATION_MODE_READ_ONLY | kept);
        let before = std::mem::replace(&mut self.mode, mode);
        match (before.start_receive(), mode.start_receive()) {
            (false, true) => self.status.set_receive_state(process::RECEIVE_WAITING),
            (true, false) => {
                self.status.set_receive_state(process::STOPPED);
                self.status.set_receive_stopped(true);
            }
            _ => {}
        }
        match (before.start_transmit(), mode.start_transmit()) {
            (false, true) => {
                self.status.set_transmit_state(process::TRANSMIT_SUSPENDED);
                self.transmit_due = true;
            }
            (true, false) => {
                self.status.set_transmit_state(process::STOPPED);
                self.status.set_transmit_stopped(true);
                self.transmit_due = false;
                self.partial = transmit::Partial::default();
            }
            _ => {}
        }
        self.schedule_transmit_poll(now);
    }

    // ---- interrupts

    /// The bits of CSR5 that CSR7 lets count for a summary.
    fn pending(&self, summary: u32) -> bool {
        u32::from(self.status) & self.interrupt_mask & summary != 0
    }

    fn status_register(&self) -> u32 {
        let status = self
            .status
            .with_normal_summary(self.pending(NORMAL_INTERRUPTS))
            .with_abnormal_summary(self.pending(ABNORMAL_INTERRUPTS));
        u32::from(status) | STATUS_ONES
    }

    /// Whether the interrupt line is asserted.
    pub fn interrupt(&self) -> bool {
        let shown = Status::from(self.status_register());
        let enabled = Status::from(self.interrupt_mask);
        shown.normal_summary() && enabled.normal_summary()
            || shown.abnormal_summary() && enabled.abnormal_summary()
    }

    /// The bus did not answer: nothing moves any more until the driver resets the controller.
    fn bus_error(&mut self) {
        self.counters.bus_errors += 1;
        self.halted = true;
        self.status.set_fatal_bus_error(true);
        self.status.set_bus_error(MASTER_ABORT);
        self.status.set_receive_state(process::STOPPED);
        self.status.set_transmit_state(process::STOPPED);
        self.transmit_due = false;
    }

    // ---- time

    /// Nanoseconds that the timer runs for, if it runs.
    fn timer_period(&self) -> Option<u64> {
        let ticks = u64::from(self.timer.value());
        (ticks != 0).then(|| ticks * self.timer_unit())
    }

    fn timer_unit(&self) -> u64 {
        if self.mode.transmit_threshold_mode() { 10 * TIMER_UNIT_NS } else { TIMER_UNIT_NS }
    }

    fn timer_register(&self, now: u64) -> u32 {
        let left = self.timer_deadline.map_or(0, |deadline| deadline.saturating_sub(now));
        let value = u16::try_from(left.div_ceil(self.timer_unit())).unwrap_or(u16::MAX);
        self.timer.with_value(value).into()
    }

    /// When [`Self::poll`] is due.
    pub fn next_deadline(&self) -> Option<u64> {
        [self.timer_deadline, self.transmit_poll].into_iter().flatten().min()
    }

    /// Lets the time be `now`.
    pub fn poll(&mut self, now: u64) {
        if self.timer_deadline.is_some_and(|deadline| deadline <= now) {
            self.status.set_timer_expired(true);
            let period = self.timer_period().filter(|_| self.timer.continuous());
            self.timer_deadline = period.map(|period| now.saturating_add(period));
        }
        if self.transmit_poll.is_some_and(|deadline| deadline <= now) {
            self.transmit_due = self.mode.start_transmit() && !self.halted;
            self.schedule_transmit_poll(now);
        }
    }

    /// Transmit lists can be looked at every now and then, if the driver wants it (CSR0). The shorter intervals are
    /// those of the chip's 10 Mb/s; here they are no shorter than the first.
    fn schedule_transmit_poll(&mut self, now: u64) {
        const MICROSECOND: u64 = 1000;
        let interval = match self.bus_mode.automatic_polling() {
            0 => None,
            2 => Some(800 * MICROSECOND),
            3 => Some(1600 * MICROSECOND),
            _ => Some(200 * MICROSECOND),
        };
        let interval = interval.filter(|_| self.mode.start_transmit() && !self.halted);
        self.transmit_poll = interval.map(|interval| now.saturating_add(interval));
    }

    /// Whether [`Self::transmit`] is to be called.
    pub fn transmit_due(&self) -> bool {
        self.transmit_due && !self.halted
    }

    /// Whether the receiver is on.
    pub fn is_receiving(&self) -> bool {
        self.mode.start_receive() && !self.halted
    }

    /// Whether a bus error has stopped everything.
    pub fn is_halted(&self) -> bool {
        self.halted
    }
}
