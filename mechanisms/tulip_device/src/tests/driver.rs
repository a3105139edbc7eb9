//! A driver for the 21140A, written from its manual: it knows the adapter by its registers and by memory alone.

use shared_memory::{Access, DmaAddress, DmaMap, DmaRegion, PageSize, SharedMapping};
use vfio_user_protocol::{PciIrq, PciRegion};
use vfio_user_server::{EventFd, IrqChange, PciFunctionDevice};

use crate::{FramePort, TulipConfig, TulipFunction};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0x11, 0x22, 0x33];
pub(super) const BROADCAST: [u8; 6] = [0xFF; 6];

/// A port that keeps what it is given.
#[derive(Debug, Default)]
pub(super) struct Wire(pub(super) Vec<Vec<u8>>);

impl FramePort for Wire {
    fn send(&mut self, frame: &[u8]) {
        self.0.push(frame.to_vec());
    }
}

pub(super) const OWN: u32 = 1 << 31;
pub(super) const CHAINED: u32 = 1 << 24;
pub(super) const END_OF_RING: u32 = 1 << 25;
pub(super) const FIRST: u32 = 1 << 29;
pub(super) const LAST: u32 = 1 << 30;
pub(super) const INTERRUPT: u32 = 1 << 31;
pub(super) const SETUP: u32 = 1 << 27;

pub(super) const ENTRIES: u32 = 8;
pub(super) const RX_LIST: u32 = 0x1000;
pub(super) const TX_LIST: u32 = 0x2000;
const SETUP_FRAME: u32 = 0x3000;
const RX_BUFFERS: u32 = 0x8000;
const TX_BUFFERS: u32 = 0x1_0000;
/// Bytes of each buffer.
pub(super) const BUFFER: u32 = 0x600;
/// Bytes of the guest's memory.
pub(super) const MEMORY: usize = 0x2_0000;

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Layout {
    /// Descriptors one after the other, the last marked.
    Ring {
        /// Longwords in between.
        skip: u32,
    },
    /// Each descriptor points to the next.
    Chain,
}

pub(super) struct Machine {
    pub(super) function: TulipFunction<Wire>,
    pub(super) interrupt: EventFd,
    pub(super) dma: DmaMap,
    layout: Layout,
    pub(super) rx: u32,
    pub(super) tx: u32,
}

impl Machine {
    /// A machine with the adapter in it, its BARs assigned and bus mastering on.
    pub(super) fn new() -> Self {
        let mut function = TulipFunction::new(
            TulipConfig { mac: MAC, subsystem: (0x1011, 0x500B) },
            Wire::default(),
        );
        let (mapping, _) = SharedMapping::create("guest", MEMORY, PageSize::Base).unwrap();
        let region = DmaRegion { iova: DmaAddress(0), mapping, access: Access::ReadWrite };
        let dma = DmaMap::empty().with(region).unwrap();
        function.connected();
        function.dma_map_changed(&dma);
        let interrupt = EventFd::new().unwrap();
        let fd = rustix::io::dup(&interrupt).unwrap();
        let eventfds = vec![EventFd::from_peer(fd).unwrap()];
        function.set_irq(PciIrq::Intx, IrqChange::Connect { start: 0, eventfds }).unwrap();
        function.region_write(PciRegion::Config, 0x04, &7u16.to_le_bytes()).unwrap();
        Self { function, interrupt, dma, layout: Layout::Ring { skip: 0 }, rx: 0, tx: 0 }
    }

    pub(super) fn read(&mut self, csr: u64) -> u32 {
        let mut data = [0; 4];
        self.function.region_read(PciRegion::Bar1, csr * 8, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&mut self, csr: u64, value: u32) {
        self.function.region_write(PciRegion::Bar0, csr * 8, &value.to_le_bytes()).unwrap();
    }

    pub(super) fn load(&self, address: u32) -> u32 {
        self.dma.read_object(DmaAddress(address.into())).unwrap()
    }

    pub(super) fn store(&self, address: u32, value: u32) {
        self.dma.write_object(DmaAddress(address.into()), &value).unwrap();
    }

    pub(super) fn descriptor(&self, list: u32, entry: u32) -> u32 {
        match self.layout {
            Layout::Ring { skip } => list + entry * (16 + 4 * skip),
            // Nothing says that they lie in order.
            Layout::Chain => list + (entry * 5 % ENTRIES) * 64,
        }
    }

    /// What the control word of an entry says of the list, and its second address.
    fn links(&self, list: u32, entry: u32) -> (u32, u32) {
        let next = (entry + 1) % ENTRIES;
        match self.layout {
            Layout::Chain => (CHAINED, self.descriptor(list, next)),
            Layout::Ring { .. } if next == 0 => (END_OF_RING, 0),
            Layout::Ring { .. } => (0, 0),
        }
    }

    /// The word at `location` of the serial ROM, by the four pins.
    pub(super) fn read_rom(&mut self, location: u32, address_bits: u32) -> u32 {
        const ENABLE: u32 = 0x4801;
        self.write(9, ENABLE & !1);
        self.write(9, ENABLE);
        let command = 0b110 << address_bits | location;
        let mut result = 0;
        for bit in (0..5 + address_bits).rev() {
            let data = (command >> bit & 1) << 2;
            self.write(9, ENABLE | data);
            self.write(9, ENABLE | data | 2);
            result = result << 1 | (self.read(9) >> 3 & 1);
        }
        self.write(9, ENABLE);
        for _ in 0..16 {
            self.write(9, ENABLE | 2);
            result = result << 1 | (self.read(9) >> 3 & 1);
            self.write(9, ENABLE);
        }
        self.write(9, ENABLE & !1);
        result
    }

    fn mii_bits(&mut self, value: u32, bits: u32) {
        for bit in (0..bits).rev() {
            let data = (value >> bit & 1) << 17;
            self.write(9, data);
            self.write(9, data | 1 << 16);
        }
    }

    pub(super) fn read_mii(&mut self, phy: u32, register: u32) -> u16 {
        self.mii_bits(u32::MAX, 32);
        self.mii_bits(0b0110 << 10 | phy << 5 | register, 14);
        let mut result = 0u32;
        for _ in 0..19 {
            self.write(9, 1 << 18);
            result = result << 1 | (self.read(9) >> 19 & 1);
            self.write(9, 1 << 18 | 1 << 16);
        }
        (result >> 1) as u16
    }

    pub(super) fn write_mii(&mut self, phy: u32, register: u32, value: u16) {
        self.mii_bits(u32::MAX, 32);
        self.mii_bits(
            0b0101 << 28 | phy << 23 | register << 18 | 0b10 << 16 | u32::from(value),
            32,
        );
        self.mii_bits(0b11, 2);
    }

    /// Resets the adapter, makes both lists, sets the filter up and starts both processes.
    pub(super) fn start(&mut self, layout: Layout) {
        self.layout = layout;
        (self.rx, self.tx) = (0, 0);
        self.write(0, 1);
        let skip = if let Layout::Ring { skip } = layout { skip } else { 0 };
        self.write(0, 0x01A0_8000 | skip << 2);
        for entry in 0..ENTRIES {
            self.give_receive(entry, BUFFER);
            self.store(self.descriptor(TX_LIST, entry), 0);
        }
        self.write(3, RX_LIST);
        self.write(4, TX_LIST);
        self.write(7, 0x0001_EBEF);
        self.set_filter(&[MAC, BROADCAST]);
        // Full duplex, MII, store and forward, start of both.
        self.write(6, 0x0204_0200 | 1 << 21 | 1 << 13 | 1 << 1);
        assert_eq!(self.load(self.descriptor(TX_LIST, 0)), 0x7FFF_FFFF, "the setup frame is taken");
        self.acknowledge();
    }

    pub(super) fn give_receive(&mut self, entry: u32, size: u32) {
        let at = self.descriptor(RX_LIST, entry);
        let (control, second) = self.links(RX_LIST, entry);
        self.store(at + 4, control | size);
        self.store(at + 8, RX_BUFFERS + entry * BUFFER);
        self.store(at + 12, second);
        self.store(at, OWN);
    }

    /// Queues a setup frame for perfect filtering.
    pub(super) fn set_filter(&mut self, addresses: &[[u8; 6]]) {
        let mut frame = [0u8; 192];
        for entry in 0..16 {
            let address = addresses.get(entry).unwrap_or(&addresses[0]);
            for (word, pair) in address.chunks(2).enumerate() {
                frame[entry * 12 + word * 4..][..2].copy_from_slice(pair);
            }
        }
        self.queue_setup(&frame, 0);
    }

    pub(super) fn queue_setup(&mut self, frame: &[u8; 192], filter: u32) {
        self.dma.write_bytes(DmaAddress(SETUP_FRAME.into()), frame).unwrap();
        self.queue(SETUP_FRAME, 192, SETUP | filter);
    }

    /// Queues a descriptor with one buffer.
    pub(super) fn queue(&mut self, buffer: u32, size: u32, control: u32) {
        let at = self.descriptor(TX_LIST, self.tx);
        let (links, second) = self.links(TX_LIST, self.tx);
        self.store(at + 4, control | links | size);
        self.store(at + 8, buffer);
        self.store(at + 12, second);
        self.store(at, OWN);
        self.tx = (self.tx + 1) % ENTRIES;
    }

    /// Sends a frame, in pieces of at most `piece` bytes.
    pub(super) fn send(&mut self, frame: &[u8], piece: usize) {
        let count = frame.chunks(piece).count();
        let mut address = TX_BUFFERS + self.tx * 0x1000;
        for (number, bytes) in frame.chunks(piece).enumerate() {
            self.dma.write_bytes(DmaAddress(address.into()), bytes).unwrap();
            let first = if number == 0 { FIRST } else { 0 };
            let last = if number + 1 == count { LAST | INTERRUPT } else { 0 };
            self.queue(address, bytes.len() as u32, first | last);
            address += bytes.len() as u32;
        }
        self.write(1, 1);
    }

    /// The next frame of the receive list, with its checksum and its status; gives the descriptors back.
    pub(super) fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        let (mut bytes, mut size) = (Vec::new(), 0);
        loop {
            let at = self.descriptor(RX_LIST, self.rx);
            let status = self.load(at);
            if status & OWN != 0 {
                assert!(bytes.is_empty(), "a frame ends");
                return None;
            }
            size += (self.load(at + 4) & 0x7FF) as usize;
            let length = (status >> 16 & 0x3FFF) as usize;
            let end = if status & 1 << 8 != 0 { length } else { size };
            let mut piece = vec![0; end - bytes.len()];
            let buffer = RX_BUFFERS + self.rx * BUFFER;
            self.dma.read_bytes(DmaAddress(buffer.into()), &mut piece).unwrap();
            assert_eq!(status & 1 << 9 != 0, bytes.is_empty(), "a frame begins once");
            bytes.append(&mut piece);
            self.give_receive(self.rx, (self.load(at + 4) & 0x7FF).max(1));
            self.rx = (self.rx + 1) % ENTRIES;
            if status & 1 << 8 != 0 {
                return Some((status, bytes));
            }
        }
    }

    pub(super) fn sent(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.function.port_mut().0)
    }

    /// Handles the interrupt: its causes, acknowledged.
    pub(super) fn acknowledge(&mut self) -> u32 {
        let causes = self.read(5) & 0x1_FFFF;
        self.write(5, causes);
        self.interrupt.take();
        self.function.set_irq(PciIrq::Intx, IrqChange::Unmask(vec![0])).unwrap();
        causes
    }
}

pub(super) fn frame(destination: [u8; 6], length: usize) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 9, 9, 9, 0x08, 0x00]);
    frame.extend((frame.len()..length).map(|at| at as u8));
    frame
}
