//! A driver by hand: it writes registers, descriptors and rings, right ones and others.

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use partition::MmioHandler;
use virtio_bindings::{virtio_mmio as mmio, virtio_ring::*};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{Access, BlockDevice, BlockDeviceConfig, Image, registers::feature};

/// Longer than any machine takes for a request.
const LIMIT: Duration = Duration::from_secs(60);
/// Guest memory: two regions that touch, and nothing behind them.
pub(crate) const MEMORY_END: u64 = 8 << 20;
const REGION_BORDER: u64 = 1 << 20;
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x3000;
pub(crate) const USED: u64 = 0x4000;
/// Headers and status bytes of requests.
const HEADERS: u64 = 0x8000;
/// Free for data, and across the regions' border.
pub(crate) const DATA: u64 = REGION_BORDER - 0x800;
/// Sectors of the image.
pub(crate) const SECTORS: u64 = 64;

pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

/// A part of a chain: address, bytes, and whether the device writes it.
pub(crate) type Part = (u64, u32, bool);

/// An answered request.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    /// Bytes that the device says it has written.
    pub(crate) written: u32,
}

pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) device: BlockDevice,
    pub(crate) image: tempfile::NamedTempFile,
    /// Descriptors of the queue.
    pub(crate) size: u16,
    pub(crate) features: u64,
    available: u16,
    used: u16,
}

impl Driver {
    /// The content of the image before anybody writes.
    pub(crate) fn content() -> Vec<u8> {
        (0..SECTORS * 512).map(|n| (n / 512 + n) as u8).collect()
    }

    /// A device and a driver that has not introduced itself.
    pub(crate) fn new(access: Access) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&Self::content()).unwrap();
        let border = REGION_BORDER as usize;
        let ranges = [
            (GuestAddress(0), border),
            (GuestAddress(REGION_BORDER), MEMORY_END as usize - border),
        ];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let image = Arc::new(Image::open(file.path(), access).unwrap());
        let config =
            BlockDeviceConfig { image, memory: memory.clone(), name: "a disk's name".to_owned() };
        let device = BlockDevice::start(config).unwrap();
        let features = feature::VERSION_1 | feature::INDIRECT | feature::FLUSH;
        Self { memory, device, image: file, size: 64, features, available: 0, used: 0 }
    }

    /// The same, ready for requests.
    pub(crate) fn ready(access: Access) -> Self {
        let mut driver = Self::new(access);
        driver.introduce();
        driver
    }

    pub(crate) fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.device.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn set(&self, register: u32, value: u32) {
        self.device.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.get(mmio::VIRTIO_MMIO_STATUS)
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.status() & 0x40 != 0
    }

    pub(crate) fn reset(&mut self) {
        self.set(mmio::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
    }

    /// Resets the device and has it ready, with empty rings.
    pub(crate) fn introduce(&mut self) {
        self.agree();
        self.set_queue(self.size.into(), DESCRIPTORS, AVAILABLE, USED);
        self.set(mmio::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(self.status(), 15);
    }

    /// Resets the device and agrees on features.
    pub(crate) fn agree(&mut self) {
        self.reset();
        for register in [AVAILABLE, USED] {
            self.memory.write_slice(&[0; 0x1000], GuestAddress(register)).unwrap();
        }
        (self.available, self.used) = (0, 0);
        self.device.interrupt().take();
        self.set(mmio::VIRTIO_MMIO_STATUS, 1);
        self.set(mmio::VIRTIO_MMIO_STATUS, 3);
        for index in [0, 1] {
            self.set(mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, index);
            let word = self.features >> (32 * index) & 0xFFFF_FFFF;
            self.set(mmio::VIRTIO_MMIO_DRIVER_FEATURES, word as u32);
        }
        self.set(mmio::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.status(), 11);
    }

    pub(crate) fn set_queue(&self, size: u32, descriptors: u64, available: u64, used: u64) {
        self.set(mmio::VIRTIO_MMIO_QUEUE_NUM, size);
        for (register, address) in [
            (mmio::VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
            (mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
            (mmio::VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(mmio::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.get(mmio::VIRTIO_MMIO_QUEUE_READY), 1);
    }

    /// Writes a descriptor of a table.
    pub(crate) fn describe(
        &self,
        table: u64,
        index: u16,
        gpa: u64,
        length: u32,
        flags: u32,
        next: u16,
    ) {
        let mut bytes = Vec::new();
        bytes.extend(gpa.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend((flags as u16).to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Writes a chain from a table's descriptor on.
    pub(crate) fn chain(&self, table: u64, first: u16, parts: &[Part]) {
        for ((gpa, length, write), index) in parts.iter().zip(first..) {
            let last = index + 1 == first + parts.len() as u16;
            let flags = if last { 0 } else { VRING_DESC_F_NEXT }
                | if *write { VRING_DESC_F_WRITE } else { 0 };
            self.describe(table, index, *gpa, *length, flags, index + 1);
        }
    }

    /// Makes a chain available, without saying so.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    pub(crate) fn set_available(&self, index: u16) {
        self.memory.write_obj(index.to_le(), GuestAddress(AVAILABLE + 2)).unwrap();
    }

    pub(crate) fn notify(&self) {
        self.set(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    pub(crate) fn used_index(&self) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(USED + 2)).unwrap())
    }

    /// Waits for interrupts until something is so.
    pub(crate) fn until(&self, mut so: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !so(self) {
            let left = LIMIT.saturating_sub(start.elapsed());
            assert!(!left.is_zero(), "the device does not answer");
            self.device.interrupt().wait(left).unwrap();
            self.device.interrupt().take();
            let causes = self.get(mmio::VIRTIO_MMIO_INTERRUPT_STATUS);
            self.set(mmio::VIRTIO_MMIO_INTERRUPT_ACK, causes);
        }
    }

    /// Waits for an answer, and says for which chain it is and how much was written.
    pub(crate) fn answer(&mut self) -> (u32, u32) {
        self.until(|driver| driver.used_index() != driver.used);
        let at = USED + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let [head, written] = self.memory.read_obj::<[u32; 2]>(GuestAddress(at)).unwrap();
        (u32::from_le(head), u32::from_le(written))
    }

    pub(crate) fn write_header(&self, at: u64, kind: u32, sector: u64) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Sends a request whose data is in these parts, and waits for its answer.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> Answer {
        self.write_header(HEADERS, kind, sector);
        let mut parts = vec![(HEADERS, 16, false)];
        parts.extend(data);
        self.send(&parts)
    }

    /// Sends a chain, whose status byte is added, and waits for its answer.
    pub(crate) fn send(&mut self, parts: &[Part]) -> Answer {
        let status = HEADERS + 0x100;
        self.memory.write_obj(0xEEu8, GuestAddress(status)).unwrap();
        let mut parts = parts.to_vec();
        parts.push((status, 1, true));
        self.chain(DESCRIPTORS, 0, &parts);
        self.offer(0);
        self.notify();
        let (head, written) = self.answer();
        assert_eq!(head, 0);
        Answer { status: self.memory.read_obj(GuestAddress(status)).unwrap(), written }
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(crate) fn on_disk(&self) -> Vec<u8> {
        std::fs::read(self.image.path()).unwrap()
    }

    /// The device does what it should, after whatever was done to it.
    pub(crate) fn assert_works_after_a_reset(&mut self) {
        self.introduce();
        let answer = self.request(READ, 3, &[(DATA, 512, true)]);
        assert_eq!(answer, Answer { status: OK, written: 513 });
        assert_eq!(self.bytes(DATA, 512), self.on_disk()[3 * 512..4 * 512]);
    }

    /// The device has seen that its queue is broken, and interrupts its driver for it.
    pub(crate) fn assert_breaks_down(&self) {
        self.until(Self::needs_reset);
        let used = self.used_index();
        self.notify();
        assert_eq!(self.used_index(), used);
    }
}
