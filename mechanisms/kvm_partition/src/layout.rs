//! The guest physical address space: memory, MMIO windows, and the pages that are written before the guest starts.

use std::ops::Range;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Where memory below 4 GiB ends at the latest, and the low MMIO window begins.
pub const LOW_MEMORY_END: u64 = 0xE000_0000;
/// Where memory goes on.
pub const HIGH_MEMORY_START: u64 = 1 << 32;
/// MMIO below 4 GiB that the guest may give to devices.
pub const LOW_MMIO: Range<u64> = LOW_MEMORY_END..0xFEC0_0000;
/// MMIO above 4 GiB, within what processors with 37 address bits reach.
pub const HIGH_MMIO: Range<u64> = 0x10_0000_0000..0x20_0000_0000;
/// The IO-APIC, as KVM has it.
pub const IO_APIC: u32 = 0xFEC0_0000;
/// Registers of virtio devices, a page each: beside the IO-APIC, where nothing that comes over VMBus can be.
pub const VIRTIO: Range<u64> = 0xFEC8_0000..0xFEC8_8000;
/// Where in its registers a virtio device is notified (VIRTIO 1.2 §4.2.2: QueueNotify).
pub const VIRTIO_NOTIFY: u64 = 0x50;
/// The first virtio device's interrupt, a pin of the IO-APIC; the others' follow.
pub const VIRTIO_IRQ: u32 = 16;
/// Virtio devices of one guest, at most: as many as pins are left.
pub const MAX_VIRTIO: usize = 8;
/// The local APICs, as processors have it after reset.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// Three pages for KVM on Intel processors.
pub const KVM_TSS: u32 = 0xFFFB_D000;
/// One page for KVM on Intel processors.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;

/// Segment descriptors for the first instructions.
pub const GDT: u64 = 0x500;
/// PVH: `hvm_start_info`, then the module list.
pub const START_INFO: u64 = 0x6000;
/// PVH: the module list.
pub const MODULE_LIST: u64 = 0x6100;
/// PVH: the memory map.
pub const MEMORY_MAP: u64 = 0x6200;
/// Linux boot protocol: the zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Where the stack begins, downwards, for whoever wants one.
pub const STACK: u64 = 0x8FF0;
/// Linux boot protocol, 64-bit entry: six pages of page tables that map the first 4 GiB to themselves.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of the command line with its NUL, as Linux takes it on x86.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// Where ordinary memory below 1 MiB ends.
pub const BASE_MEMORY_END: u64 = 0x9_FC00;
/// The root of the ACPI tables, and the tables behind it.
pub const ACPI: Range<u64> = 0xE_0000..RESET_VECTOR;
/// Where processors begin after a reset, and where a guest jumps that restarts by firmware: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Where kernels begin.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// A range of guest memory.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Ram {
    /// First guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub length: u64,
    /// Byte offset in the memory file.
    pub file_offset: u64,
}

/// An entry of the memory map that the guest is given.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct MapEntry {
    /// First guest physical address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Memory; otherwise reserved.
    pub usable: bool,
}

/// So much memory cannot be had.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error(
    "{0} bytes of guest memory cannot be had: it must be a multiple of 2 MiB, at least 64 MiB and at most 59.5 GiB"
)]
pub struct LayoutError(pub u64);

/// Where what is.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Layout {
    ram: Vec<Ram>,
    virtio: usize,
}

/// Where a virtio device is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct VirtioPlace {
    /// Its registers, a page.
    pub gpa: u64,
    /// Its interrupt: a pin of the IO-APIC, edge-triggered.
    pub irq: u32,
}

impl Layout {
    /// The layout of a guest with so many bytes of memory: a multiple of 2 MiB, at least 64 MiB.
    pub fn new(bytes: u64) -> Result<Self, LayoutError> {
        let most = LOW_MEMORY_END + (HIGH_MMIO.start - HIGH_MEMORY_START);
        if !bytes.is_multiple_of(2 << 20) || !(64 << 20..=most).contains(&bytes) {
            return Err(LayoutError(bytes));
        }
        let low = bytes.min(LOW_MEMORY_END);
        let mut ram = vec![Ram { gpa: 0, length: low, file_offset: 0 }];
        if bytes > low {
            ram.push(Ram { gpa: HIGH_MEMORY_START, length: bytes - low, file_offset: low });
        }
        Ok(Self { ram, virtio: 0 })
    }

    /// Ranges of memory, in the order of their addresses, all in one file.
    pub fn ram(&self) -> &[Ram] {
        &self.ram
    }

    /// Bytes of memory, and of its file.
    pub fn bytes(&self) -> u64 {
        self.ram.iter().map(|ram| ram.length).sum()
    }

    /// Where memory below 4 GiB ends.
    pub fn low_end(&self) -> u64 {
        self.ram.first().map_or(0, |ram| ram.length)
    }

    /// The same with so many virtio devices, at most [`MAX_VIRTIO`].
    pub fn with_virtio(self, devices: usize) -> Self {
        Self { virtio: devices.min(MAX_VIRTIO), ..self }
    }

    /// Where its virtio devices are.
    pub fn virtio(&self) -> impl Iterator<Item = VirtioPlace> + use<> {
        let place =
            |irq| VirtioPlace { gpa: VIRTIO.start + u64::from(irq - VIRTIO_IRQ) * PAGE, irq };
        (VIRTIO_IRQ..).map(place).take(self.virtio)
    }

    /// Where the guest may have its devices.
    pub fn mmio_windows(&self) -> [Range<u64>; 2] {
        [LOW_MMIO, HIGH_MMIO]
    }

    /// The memory map that the guest is given.
    pub fn map(&self) -> Vec<MapEntry> {
        let mut map = vec![
            MapEntry { start: 0, length: BASE_MEMORY_END, usable: true },
            MapEntry {
                start: BASE_MEMORY_END,
                length: HIGH_MEMORY - BASE_MEMORY_END,
                usable: false,
            },
            MapEntry {
                start: HIGH_MEMORY,
                length: self.low_end().saturating_sub(HIGH_MEMORY),
                usable: true,
            },
        ];
        map.extend(self.ram.iter().skip(1).map(|ram| MapEntry {
            start: ram.gpa,
            length: ram.length,
            usable: true,
        }));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn small_guests_have_one_range() {
        let layout = Layout::new(512 << 20).unwrap();
        assert_eq!(layout.ram(), [Ram { gpa: 0, length: 512 << 20, file_offset: 0 }]);
        assert_eq!(
            layout.map().iter().map(|entry| entry.length).sum::<u64>(),
            512 << 20,
            "no byte is left out"
        );
    }

    #[test]
    fn memory_goes_around_the_low_window_and_ends_before_the_high_one() {
        let layout = Layout::new(8 * GIB).unwrap();
        assert_eq!(layout.bytes(), 8 * GIB);
        let high = layout.ram()[1];
        assert_eq!((high.gpa, high.file_offset), (4 * GIB, LOW_MEMORY_END));
        let largest = Layout::new(LOW_MEMORY_END + 60 * GIB).unwrap();
        assert_eq!(largest.ram()[1].gpa + largest.ram()[1].length, HIGH_MMIO.start);
        for window in layout.mmio_windows() {
            for ram in largest.ram() {
                assert!(ram.gpa + ram.length <= window.start || window.end <= ram.gpa);
            }
        }
    }

    #[test]
    fn virtio_devices_have_registers_and_pins_of_their_own() {
        let layout = Layout::new(8 * GIB).unwrap();
        assert_eq!(layout.virtio().count(), 0);
        let places: Vec<_> = layout.with_virtio(100).virtio().collect();
        assert_eq!(places.len(), MAX_VIRTIO);
        for (place, index) in places.iter().zip(0u32..) {
            assert_eq!(place.gpa, VIRTIO.start + u64::from(index) * PAGE);
            assert!(VIRTIO.contains(&(place.gpa + PAGE - 1)));
            assert_eq!(place.irq, 16 + index);
            assert!(place.irq < crate::interrupts::IO_APIC_PINS);
        }
        assert!(LOW_MMIO.end <= VIRTIO.start && VIRTIO.end <= u64::from(LOCAL_APIC));
        assert!(u64::from(IO_APIC) + PAGE <= VIRTIO.start);
    }

    #[test]
    fn odd_sizes_are_refused() {
        for bytes in [0, 32 << 20, (64 << 20) + 4096, u64::MAX, 64 * GIB] {
            assert_eq!(Layout::new(bytes), Err(LayoutError(bytes)));
        }
    }

    #[test]
    fn the_pages_of_the_start_do_not_overlap() {
        let pages = [
            GDT..GDT + 64,
            START_INFO..MODULE_LIST,
            MODULE_LIST..MEMORY_MAP,
            MEMORY_MAP..ZERO_PAGE,
            ZERO_PAGE..ZERO_PAGE + PAGE,
            PAGE_TABLES..PAGE_TABLES + 6 * PAGE,
            COMMAND_LINE..COMMAND_LINE + COMMAND_LINE_SIZE as u64,
            BASE_MEMORY_END..BASE_MEMORY_END,
            ACPI,
        ];
        for pair in pages.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }
}
