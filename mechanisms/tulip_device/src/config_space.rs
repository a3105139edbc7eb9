//! The configuration space of a conventional PCI function: 256 bytes, two BARs, an interrupt pin, no capabilities.

use pcie_protocol::{BarIndex, ClassCode, Command, Status, Type0Header, header_offset};
use zerocopy::IntoBytes;

/// Digital Equipment Corporation.
pub const VENDOR_ID: u16 = 0x1011;
/// The DECchip 21140.
pub const DEVICE_ID: u16 = 0x0009;
/// A 21140A.
const REVISION: u8 = 0x22;
/// Bytes of the space.
pub(crate) const SIZE: u64 = 256;
/// Bytes behind each BAR: CSR0 to CSR15.
const BAR_MASK: u32 = !0x7F;
const IO_BAR: u32 = 1;
/// CFDD, driver area and power modes: kept for the driver.
const DRIVER_AREA: u16 = 0x40;
/// Shortest grant and longest latency, quarters of a microsecond.
const MIN_GNT: u8 = 0x14;
const MAX_LAT: u8 = 0x28;

/// The registers that software can change, and who the function is.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    subsystem: (u16, u16),
    command: Command,
    status: Status,
    interrupt_status: bool,
    bars: [u32; 2],
    latency_timer: u8,
    cache_line_size: u8,
    interrupt_line: u8,
    driver_area: u32,
}

impl ConfigSpace {
    /// After power-on; subsystem vendor and subsystem id.
    pub fn new(subsystem: (u16, u16)) -> Self {
        Self {
            subsystem,
            command: Command::new(),
            status: Status::new(),
            interrupt_status: false,
            bars: [0; 2],
            latency_timer: 0,
            cache_line_size: 0,
            interrupt_line: 0,
            driver_area: 0,
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        *self = Self::new(self.subsystem);
    }

    /// Whether the function may reach memory.
    pub fn bus_master(&self) -> bool {
        self.command.bus_master_enable()
    }

    /// Whether the function may assert its interrupt.
    pub fn interrupts_allowed(&self) -> bool {
        !self.command.interrupt_disable()
    }

    /// Whether an interrupt is pending, as the Status register shows it.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        self.interrupt_status = pending;
    }

    /// Records that an access of the function's was not answered.
    pub fn record_master_abort(&mut self) {
        self.status.set_received_master_abort(true);
    }

    /// Where the registers are, of a BAR.
    pub fn bar_address(&self, bar: BarIndex) -> Option<u32> {
        self.bars.get(usize::from(bar.get())).copied()
    }

    fn header(&self) -> Type0Header {
        let status = self
            .status
            .with_interrupt_status(self.interrupt_status)
            .with_fast_back_to_back_capable(true)
            .with_devsel_timing(1);
        let [io, memory] = self.bars;
        let zero = || 0.into();
        Type0Header {
            vendor_id: VENDOR_ID.into(),
            device_id: DEVICE_ID.into(),
            command: u16::from(self.command).into(),
            status: u16::from(status).into(),
            revision_id: REVISION,
            class_code: ClassCode::ETHERNET.to_register(),
            cache_line_size: self.cache_line_size,
            latency_timer: self.latency_timer,
            header_type: 0,
            bist: 0,
            bars: [(io | IO_BAR).into(), memory.into(), zero(), zero(), zero(), zero()],
            cardbus_cis: zero(),
            subsystem_vendor_id: self.subsystem.0.into(),
            subsystem_id: self.subsystem.1.into(),
            expansion_rom: zero(),
            capabilities_pointer: 0,
            reserved: [0; 7],
            interrupt_line: self.interrupt_line,
            interrupt_pin: 1,
            min_gnt: MIN_GNT,
            max_lat: MAX_LAT,
        }
    }

    /// Reads any bytes; what lies beyond the space is all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let header = self.header();
        let driver_area = self.driver_area.to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(index as u64);
            let place = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = match at {
                SIZE.. => 0xFF,
                _ => match header.as_bytes().get(place) {
                    Some(byte) => *byte,
                    None => {
                        let place = place.wrapping_sub(DRIVER_AREA.into());
                        driver_area.get(place).copied().unwrap_or(0)
                    }
                },
            };
        }
    }

    /// Writes any bytes; those that are read-only stay.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            if let Ok(at) = u16::try_from(offset.saturating_add(index as u64)) {
                self.write_byte(at, *byte);
            }
        }
    }

    fn write_byte(&mut self, offset: u16, byte: u8) {
        use header_offset as h;
        const COMMAND_UPPER: u16 = h::COMMAND + 1;
        const STATUS_UPPER: u16 = h::STATUS + 1;
        const BARS_END: u16 = h::BARS + 8;
        const DRIVER_AREA_END: u16 = DRIVER_AREA + 4;
        match offset {
            h::COMMAND | COMMAND_UPPER => {
                let writable = Command::new()
                    .with_io_space_enable(true)
                    .with_memory_space_enable(true)
                    .with_bus_master_enable(true)
                    .with_memory_write_and_invalidate(true)
                    .with_parity_error_response(true)
                    .with_serr_enable(true)
                    .with_interrupt_disable(true);
                let mut bytes = u16::from(self.command).to_le_bytes();
                set(&mut bytes, offset - h::COMMAND, byte);
                let command = u16::from_le_bytes(bytes) & u16::from(writable);
                self.command = Command::from(command);
            }
            STATUS_UPPER => {
                let cleared = u16::from(byte) << 8 & u16::from(Status::WRITE_ONE_TO_CLEAR);
                self.status = Status::from(u16::from(self.status) & !cleared);
            }
            h::CACHE_LINE_SIZE => self.cache_line_size = byte,
            h::LATENCY_TIMER => self.latency_timer = byte,
            h::INTERRUPT_LINE => self.interrupt_line = byte,
            h::BARS..BARS_END => {
                let place = offset - h::BARS;
                if let Some(bar) = self.bars.get_mut(usize::from(place / 4)) {
                    let mut bytes = bar.to_le_bytes();
                    set(&mut bytes, place % 4, byte);
                    *bar = u32::from_le_bytes(bytes) & BAR_MASK;
                }
            }
            DRIVER_AREA..DRIVER_AREA_END => {
                let mut bytes = self.driver_area.to_le_bytes();
                set(&mut bytes, offset - DRIVER_AREA, byte);
                self.driver_area = u32::from_le_bytes(bytes);
            }
            _ => {}
        }
    }
}

fn set(bytes: &mut [u8], place: u16, value: u8) {
    if let Some(byte) = bytes.get_mut(usize::from(place)) {
        *byte = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &ConfigSpace, offset: u64) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_finds_the_function_its_bars_and_its_interrupt() {
        let mut config = ConfigSpace::new((0x1011, 0x500B));
        assert_eq!(read(&config, 0x00), 0x0009_1011);
        assert_eq!(read(&config, 0x08), 0x0200_0022);
        assert_eq!(read(&config, 0x2C), 0x500B_1011);
        assert_eq!(read(&config, 0x3C), 0x2814_0100);
        for (bar, probed) in [(0x10, 0xFFFF_FF81), (0x14, 0xFFFF_FF80), (0x18, 0), (0x30, 0)] {
            config.write(bar, &[0xFF; 4]);
            assert_eq!(read(&config, bar), probed);
        }
        config.write(0x14, &0xFEBF_1080u32.to_le_bytes());
        assert_eq!(config.bar_address(BarIndex::BAR1), Some(0xFEBF_1080));
        config.write(0x04, &[0xFF, 0xFF]);
        assert_eq!(read(&config, 0x04) & 0xFFFF, 0x0557);
        assert!(config.bus_master() && !config.interrupts_allowed());
        config.write(0x40, &0x8000_1234u32.to_le_bytes());
        assert_eq!(read(&config, 0x40), 0x8000_1234);
        config.record_master_abort();
        assert_eq!(read(&config, 0x04) >> 16, 0x2280);
        config.write(0x06, &[0, 0x20]);
        assert_eq!(read(&config, 0x04) >> 16, 0x0280);
        assert_eq!(read(&config, 0x100), u32::MAX);
        config.reset();
        assert!(!config.bus_master());
    }

    #[test]
    fn bytes_can_be_written_one_by_one() {
        let mut config = ConfigSpace::new((0, 0));
        config.write(0x13, &[0xC0]);
        config.write(0x3C, &[9, 9, 9, 9]);
        config.write(u64::MAX, &[1]);
        assert_eq!(read(&config, 0x10), 0xC000_0001);
        assert_eq!(read(&config, 0x3C), 0x2814_0109);
    }
}
