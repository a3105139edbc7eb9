//! A queue pair without a device: the caller plays the device's side of the rings.
//!
//! For tests and measurements of what rings cost, and of users of queue pairs. There is no socket
//! and no mailbox; the played device knows no filters and does no offloads.

use std::sync::{Arc, atomic::Ordering};

use avf_protocol::{
    packet_type::PacketType,
    receive::RxLegacy,
    transmit::{self, DescriptorType, TxDescriptor},
};
use shared_memory::{DescriptorRing, DoorbellPage, PAGE_SIZE, PageSize, SharedMapping};

use crate::{
    DriverConfig, DriverMemory, QueuePair, Result, RxQueue, TxQueue, buffers::Depot,
    doorbell::Doorbell, gate::Generation,
};

/// The device's side of one queue pair.
pub struct PlayedDevice {
    memory: Arc<DriverMemory>,
    tx: DescriptorRing<2>,
    rx: DescriptorRing<4>,
    tx_page: DoorbellPage,
    rx_page: DoorbellPage,
    tx_head: u16,
    rx_head: u16,
    generation: Generation,
}

/// A queue pair, as [`crate::AvfDriver::open`] would give it, and its device's side.
///
/// # Errors
/// The configuration is impossible, or there is no memory.
pub fn queue_pair(mut config: DriverConfig) -> Result<(QueuePair, PlayedDevice)> {
    config.check()?;
    let source = std::mem::take(&mut config.memory);
    let memory = Arc::new(DriverMemory::new(&config, source)?);
    let depot = Arc::new(Depot::new(memory.buffer_numbers()));
    let generation = Generation::default();
    let gate = generation.gate();
    let (pages, _file) = SharedMapping::create("doorbells", 2 * PAGE_SIZE, PageSize::Base)?;
    let tx_page = DoorbellPage::new(&pages, 0)?;
    let rx_page = DoorbellPage::new(&pages, PAGE_SIZE)?;
    let (tx, rx) = memory.rings(0).unwrap_or_default();
    let mapping = memory.mapping();
    let mut pair = QueuePair {
        tx: TxQueue::new(
            0,
            memory.clone(),
            depot.clone(),
            DescriptorRing::new(mapping, tx, config.tx_ring)?,
            config.report,
            Doorbell::Mapped { page: tx_page.clone(), index: 0 },
            gate.clone(),
        ),
        rx: RxQueue::new(
            0,
            memory.clone(),
            depot,
            DescriptorRing::new(mapping, rx, config.rx_ring)?,
            Doorbell::Mapped { page: rx_page.clone(), index: 0 },
            gate,
        ),
    };
    let mut device = PlayedDevice {
        tx: DescriptorRing::new(mapping, tx, config.tx_ring)?,
        rx: DescriptorRing::new(mapping, rx, config.rx_ring)?,
        memory,
        tx_page,
        rx_page,
        tx_head: 0,
        rx_head: 0,
        generation,
    };
    device.rebuild(&mut pair)?;
    Ok((pair, device))
}

impl PlayedDevice {
    /// Ends the pair's generation, as a reset does: its queues stand still.
    pub fn reset(&mut self) {
        self.generation.end();
    }

    /// Does to the pair what [`crate::AvfControl::rebuild`] does to its rings.
    ///
    /// # Errors
    /// There are not enough free buffers to fill the receive ring.
    pub fn rebuild(&mut self, pair: &mut QueuePair) -> Result<()> {
        (self.tx_head, self.rx_head) = (0, 0);
        let doorbell = |page: &DoorbellPage| Doorbell::Mapped { page: page.clone(), index: 0 };
        let gate = self.generation.gate();
        pair.tx.restart(doorbell(&self.tx_page), gate.clone())?;
        pair.rx.restart(doorbell(&self.rx_page), gate, None)?;
        pair.rx.start()
    }

    /// Descriptors between head and the tail the driver wrote.
    fn pending(tail: u32, head: u16, length: u16) -> u16 {
        let Ok(tail) = u16::try_from(tail) else { return 0 };
        if tail >= length {
            0
        } else if tail >= head {
            tail - head
        } else {
            length - head + tail
        }
    }

    /// Takes all that the driver posted for transmission, hands each descriptor to `look`, and
    /// reports where reports are asked for. Returns the descriptors taken.
    #[inline]
    pub fn transmit(&mut self, mut look: impl FnMut(TxDescriptor)) -> u16 {
        let length = self.tx.len();
        let count = Self::pending(self.tx_page.load(0), self.tx_head, length);
        for _ in 0..count {
            let descriptor = TxDescriptor(self.tx.read(self.tx_head));
            look(descriptor);
            if descriptor.kind() == DescriptorType::Data && descriptor.data().report_status() {
                let [_, word] = descriptor.0;
                self.tx.store(self.tx_head, 1, transmit::done(word), Ordering::Release);
            }
            self.tx_head = if self.tx_head + 1 == length { 0 } else { self.tx_head + 1 };
        }
        count
    }

    /// [`transmit`](Self::transmit), gathering the bytes of each frame.
    pub fn transmitted_frames(&mut self) -> Vec<Vec<u8>> {
        let memory = self.memory.clone();
        let (mut frames, mut frame) = (Vec::new(), Vec::new());
        self.transmit(|descriptor| {
            if descriptor.kind() != DescriptorType::Data {
                return;
            }
            let data = descriptor.data();
            let at = usize::try_from(data.address() - memory.iova().0).unwrap_or(usize::MAX);
            let mut bytes = vec![0; usize::from(data.length())];
            if let Ok(slice) = memory.mapping().slice(at, bytes.len()) {
                slice.read_into(&mut bytes);
            }
            frame.extend_from_slice(&bytes);
            if data.end_of_packet() {
                frames.push(std::mem::take(&mut frame));
            }
        });
        frames
    }

    /// Receive descriptors that the driver has handed over.
    #[inline]
    pub fn receive_room(&self) -> u16 {
        Self::pending(self.rx_page.load(0), self.rx_head, self.rx.len())
    }

    /// Gives the next receive descriptor back as `write_back`, without touching its buffer. `false`
    /// if there is none.
    #[inline]
    pub fn receive(&mut self, write_back: RxLegacy) -> bool {
        if self.receive_room() == 0 {
            return false;
        }
        self.write_back(self.rx_head, write_back);
        self.rx_head = if self.rx_head + 1 == self.rx.len() { 0 } else { self.rx_head + 1 };
        true
    }

    /// Writes a descriptor that may not be the device's at all, as a broken device would.
    pub fn write_back(&mut self, slot: u16, write_back: RxLegacy) {
        let [word0, word1, word2, word3] = write_back.0;
        self.rx.store(slot, 0, word0, Ordering::Relaxed);
        self.rx.store(slot, 2, word2, Ordering::Relaxed);
        self.rx.store(slot, 3, word3, Ordering::Relaxed);
        self.rx.store(slot, 1, word1, Ordering::Release);
    }

    /// Delivers a frame into as many buffers as it takes. `false` if the driver has not handed over
    /// enough.
    pub fn receive_frame(&mut self, frame: &[u8]) -> bool {
        let pieces: Vec<&[u8]> = frame.chunks(self.memory.buffer_size()).collect();
        if usize::from(self.receive_room()) < pieces.len() {
            return false;
        }
        let count = pieces.len();
        for (number, piece) in (1..).zip(pieces) {
            let at = self.rx.load(self.rx_head, 0, Ordering::Relaxed) - self.memory.iova().0;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Ok(slice) = self.memory.mapping().slice(at, piece.len()) {
                slice.write_from(piece);
            }
            let mut write_back = RxLegacy::new(u16::try_from(piece.len()).unwrap_or(u16::MAX));
            if number == count {
                write_back = write_back.with_end_of_packet(PacketType::L2);
            }
            self.receive(write_back);
        }
        true
    }

    /// Sends every frame back: copies what was posted for transmission into receive buffers, as far
    /// as both rings go and at most `limit` frames of one buffer. Returns how many. What a device
    /// does, without looking into frames.
    #[inline]
    pub fn echo(&mut self, limit: u16) -> u16 {
        let (tx_length, rx_length) = (self.tx.len(), self.rx.len());
        let count = Self::pending(self.tx_page.load(0), self.tx_head, tx_length)
            .min(self.receive_room())
            .min(limit);
        let base = self.memory.iova().0;
        let mapping = self.memory.mapping().as_slice();
        let at = |address: u64| usize::try_from(address.wrapping_sub(base)).unwrap_or(usize::MAX);
        for _ in 0..count {
            let sent = self.tx.slot(self.tx_head);
            let data =
                TxDescriptor([sent.load(0, Ordering::Relaxed), sent.load(1, Ordering::Relaxed)])
                    .data();
            let received = self.rx.slot(self.rx_head);
            let length = usize::from(data.length());
            let from = mapping.get(at(data.address()), length);
            let to = mapping.get(at(received.load(0, Ordering::Relaxed)), length);
            if let (Some(from), Some(to)) = (from, to) {
                from.copy_to(to);
            }
            if data.report_status() {
                sent.store(1, transmit::done(data.0[1]), Ordering::Release);
            }
            let done = RxLegacy::new(data.length()).with_end_of_packet(PacketType::L2);
            received.store(0, done.0[0], Ordering::Relaxed);
            received.store(1, done.0[1], Ordering::Release);
            self.tx_head = if self.tx_head + 1 == tx_length { 0 } else { self.tx_head + 1 };
            self.rx_head = if self.rx_head + 1 == rx_length { 0 } else { self.rx_head + 1 };
        }
        count
    }

    /// What the driver wrote to its tails, transmit and receive.
    pub fn tails(&self) -> (u32, u32) {
        (self.tx_page.load(0), self.rx_page.load(0))
    }
}
