//! The data path without threads: descriptors are written as a driver would, `poll` is called, memory is
//! looked at. Tests that hold an item of SPEC-AVF §10 carry its number.

mod accounting;
mod concurrent;
mod dma_regions;
mod groups;
mod hashing;
mod hostile;
mod offloads;
mod packets;
mod receive_rules;
mod segmentation;
mod transmit_rules;
mod verdicts;
mod vlans;
mod wire;

use std::sync::{Arc, atomic::Ordering};

use avf_device::{
    InterruptVectors, QueueInterrupt, RssSettings, RxFormat, RxQueueConfig, TxQueueConfig,
    VfSettings,
};
use avf_protocol::{
    receive::RxLegacy,
    transmit::{TxContext, TxData, TxOffload},
};
use ndis_protocol::{FilterId, MacAddress, VPortId, VfId};
use nic_switch::{ReceiveFilter, VlanMatch};
use shared_memory::{
    Access, DescriptorRing, DmaAddress, DmaMap, DmaRegion, DoorbellPage, PageSize, SharedMapping,
};

use super::{DataPath, FunctionContext, FunctionSlot, FunctionStats};

/// Bytes of guest memory of each function.
const MEMORY: usize = 4 << 20;
/// Where its parts lie.
const TX_RING: u64 = 0x0_0000;
const RX_RING: u64 = 0x4_0000;
const TX_BUFFERS: u64 = 0x10_0000;
const RX_BUFFERS: u64 = 0x20_0000;
/// Distance of two receive buffers.
const RX_STRIDE: u64 = 0x800;

pub(super) fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

pub(super) fn vf(number: u16) -> FunctionSlot {
    FunctionSlot::vf(VfId::new(number).unwrap())
}

/// What a driver may have set, before it has set anything.
pub(super) fn settings() -> VfSettings {
    VfSettings {
        queue_pairs: 1,
        max_frame: 9728,
        primary_mac: None,
        unicast: Vec::new(),
        multicast: Vec::new(),
        promiscuous_unicast: false,
        promiscuous_multicast: false,
        vlan_filtering: false,
        vlans: Vec::new(),
        vlan_strip: false,
        vlan_insert: true,
        rss: RssSettings::default_for(1),
        tx_interrupts: [QueueInterrupt::NONE; 16],
        rx_interrupts: [QueueInterrupt::NONE; 16],
    }
}

/// One function as its driver sees it.
pub(super) struct Guest {
    pub(super) memory: SharedMapping,
    pub(super) tx: DescriptorRing<2>,
    pub(super) rx: DescriptorRing<4>,
    pub(super) tx_doorbells: DoorbellPage,
    pub(super) rx_doorbells: DoorbellPage,
    pub(super) interrupts: Arc<InterruptVectors>,
    pub(super) length: u16,
    pub(super) buffer_size: u16,
    /// Next descriptor to fill, and next place for bytes.
    pub(super) tx_tail: u16,
    tx_bytes: u64,
    /// Next descriptor to look at.
    rx_head: u16,
}

/// A data path with VFs that have a VPort and a filter each.
pub(super) struct Rig {
    pub(super) path: DataPath,
    pub(super) guests: Vec<Guest>,
    pub(super) now: u64,
}

impl Rig {
    pub(super) fn new(vfs: u16) -> Self {
        Self::with(vfs, 64, 2048, VlanMatch::UntaggedOrZero)
    }

    pub(super) fn with(vfs: u16, length: u16, buffer_size: u16, vlan: VlanMatch) -> Self {
        let count = usize::from(vfs) + 1;
        let uplink = Box::new(uplink::NoUplink::default());
        let mut path = DataPath::new(count, count, 9728, uplink);
        let guests =
            (0..vfs).map(|number| Guest::new(number, length, buffer_size, &mut path)).collect();
        for number in 0..vfs {
            let vport = VPortId::new(u32::from(number) + 1).unwrap();
            let mac = MacAddress::new(mac(u8::try_from(number).unwrap()));
            path.switch().create_vport(vport).unwrap();
            path.bind(vport, vf(number)).unwrap();
            let filter = ReceiveFilter { mac, vlan, vport };
            path.switch()
                .set_filter(FilterId::new(u32::from(number) + 1).unwrap(), filter)
                .unwrap();
        }
        let mut rig = Self { path, guests, now: 1_000_000 };
        for number in 0..vfs {
            rig.start(number);
            let guest = &mut rig.guests[usize::from(number)];
            guest.post(guest.length - 1);
        }
        rig
    }

    /// Starts the queues of a function.
    pub(super) fn start(&mut self, number: u16) {
        let guest = &self.guests[usize::from(number)];
        let (tx, rx) = (guest.tx_config(), guest.rx_config());
        self.path.start_queues(vf(number), &[(0, tx)], &[(0, rx)]).unwrap();
    }

    /// Polls until there is nothing to do.
    pub(super) fn run(&mut self) {
        let mut rounds = 0;
        while self.path.poll(self.now) {
            self.now += 1_000;
            rounds += 1;
            assert!(rounds < 10_000, "the data path never comes to rest");
        }
    }

    /// Connects the physical port to a wire whose other end is the result.
    fn plug(&mut self) -> wire::Wire {
        let wire = wire::Wire::new();
        self.path.set_uplink(Box::new(wire.end()));
        wire
    }

    pub(super) fn stats(&self, number: u16) -> FunctionStats {
        self.path.stats(vf(number))
    }

    pub(super) fn guest(&mut self, number: usize) -> &mut Guest {
        &mut self.guests[number]
    }
}

impl Guest {
    fn new(number: u16, length: u16, buffer_size: u16, path: &mut DataPath) -> Self {
        let (memory, _) = SharedMapping::create("guest", MEMORY, PageSize::Base).unwrap();
        let (doorbells, _) = SharedMapping::create("doorbells", 8192, PageSize::Base).unwrap();
        let tx_doorbells = DoorbellPage::new(&doorbells, 0).unwrap();
        let rx_doorbells = DoorbellPage::new(&doorbells, 4096).unwrap();
        let interrupts = Arc::new(InterruptVectors::new(2, &rx_doorbells));
        let context = FunctionContext {
            tx_doorbells: tx_doorbells.clone(),
            rx_doorbells: rx_doorbells.clone(),
            interrupts: Arc::clone(&interrupts),
        };
        path.attach(vf(number), context);
        let region =
            DmaRegion { iova: DmaAddress(0), mapping: memory.clone(), access: Access::ReadWrite };
        path.set_dma_map(vf(number), DmaMap::empty().with(region).unwrap());
        Self {
            tx: DescriptorRing::new(&memory, usize::try_from(TX_RING).unwrap(), length).unwrap(),
            rx: DescriptorRing::new(&memory, usize::try_from(RX_RING).unwrap(), length).unwrap(),
            memory,
            tx_doorbells,
            rx_doorbells,
            interrupts,
            length,
            buffer_size,
            tx_tail: 0,
            tx_bytes: TX_BUFFERS,
            rx_head: 0,
        }
    }

    pub(super) fn tx_config(&self) -> TxQueueConfig {
        TxQueueConfig {
            ring: DmaAddress(TX_RING),
            length: self.length,
            vector: None,
            itr: 1,
            insert_tags: true,
        }
    }

    pub(super) fn rx_config(&self) -> RxQueueConfig {
        RxQueueConfig {
            ring: DmaAddress(RX_RING),
            length: self.length,
            buffer_size: self.buffer_size,
            max_frame_size: 9728,
            format: RxFormat::Legacy,
            vector: None,
            itr: 0,
        }
    }

    /// Posts receive buffers up to (not including) descriptor `tail`. Quadwords 1 to 3 hold garbage but for
    /// the done bit, as after a former write-back.
    pub(super) fn post(&mut self, tail: u16) {
        for index in 0..self.length {
            self.rx.store(index, 0, RX_BUFFERS + u64::from(index) * RX_STRIDE, Ordering::Relaxed);
            self.rx.store(index, 1, 0xDEAD_BEEF_0000_0000, Ordering::Relaxed);
            self.rx.store(index, 2, u64::MAX, Ordering::Relaxed);
            self.rx.store(index, 3, u64::MAX, Ordering::Relaxed);
        }
        self.rx_doorbells.store(0, tail.into());
    }

    /// Posts the buffers of all frames that were received, as a driver does.
    pub(super) fn repost(&mut self) {
        let mut index = u16::try_from(self.rx_doorbells.load(0)).unwrap();
        let tail = (self.rx_head + self.length - 1) % self.length;
        while index != tail {
            self.rx.store(index, 0, RX_BUFFERS + u64::from(index) * RX_STRIDE, Ordering::Relaxed);
            index = (index + 1) % self.length;
            // The one after those handed over, so that the driver never takes it for done.
            self.rx.store(index, 1, 0, Ordering::Relaxed);
        }
        self.rx_doorbells.store(0, tail.into());
    }

    /// Places bytes in memory; returns their DMA address. Places are used again after a mebibyte.
    pub(super) fn place(&mut self, bytes: &[u8]) -> u64 {
        if self.tx_bytes + bytes.len() as u64 > RX_BUFFERS {
            self.tx_bytes = TX_BUFFERS;
        }
        let at = self.tx_bytes;
        self.memory.slice(usize::try_from(at).unwrap(), bytes.len()).unwrap().write_from(bytes);
        self.tx_bytes += u64::try_from(bytes.len().next_multiple_of(64)).unwrap();
        at
    }

    /// Fills the next TX descriptor; returns its index.
    pub(super) fn descriptor(&mut self, words: [u64; 2]) -> u16 {
        let index = self.tx_tail;
        self.tx.store(index, 0, words[0], Ordering::Relaxed);
        self.tx.store(index, 1, words[1], Ordering::Relaxed);
        self.tx_tail = (index + 1) % self.length;
        index
    }

    /// Rings the doorbell.
    pub(super) fn ring(&self) {
        self.tx_doorbells.store(0, self.tx_tail.into());
    }

    /// Sends a frame in pieces, the last with EOP and RS; returns the index of its last descriptor.
    pub(super) fn send_with(
        &mut self,
        pieces: &[&[u8]],
        offload: TxOffload,
        tci: Option<u16>,
        context: Option<TxContext>,
    ) -> u16 {
        if let Some(TxContext(words)) = context {
            self.descriptor(words);
        }
        let mut last = 0;
        for (at, piece) in pieces.iter().enumerate() {
            let address = self.place(piece);
            let mut data =
                TxData::new(address, u16::try_from(piece.len()).unwrap()).with_offload(offload);
            if let Some(tci) = tci {
                data = data.with_l2tag1(tci);
            }
            if at + 1 == pieces.len() {
                data = data.with_end_of_packet().with_report_status();
            }
            last = self.descriptor(data.0);
        }
        self.ring();
        last
    }

    pub(super) fn send(&mut self, frame: &[u8]) -> u16 {
        self.send_with(&[frame], TxOffload::default(), None, None)
    }

    /// Whether a TX descriptor was given back.
    pub(super) fn is_done(&self, index: u16) -> bool {
        self.tx.load(index, 1, Ordering::Acquire) & 0xF == 0xF
    }

    /// The next received frame with the write-back of its last descriptor.
    pub(super) fn receive(&mut self) -> Option<(Vec<u8>, RxLegacy)> {
        let mut frame = Vec::new();
        loop {
            let back = RxLegacy(self.rx.read(self.rx_head));
            if !back.is_done() {
                assert!(frame.is_empty(), "a frame without its end");
                return None;
            }
            let at = RX_BUFFERS + u64::from(self.rx_head) * RX_STRIDE;
            let mut part = vec![0; back.length().into()];
            let length = part.len();
            self.memory.slice(usize::try_from(at).unwrap(), length).unwrap().read_into(&mut part);
            frame.extend(part);
            assert_eq!(back.0[1] >> 52, 0, "header length and SPH are 0");
            assert_eq!((back.0[2], back.0[3]), (0, 0));
            self.rx_head = (self.rx_head + 1) % self.length;
            if back.end_of_packet() {
                return Some((frame, back));
            }
            assert_eq!(back.length(), self.buffer_size, "only the last buffer may be part full");
        }
    }

    pub(super) fn receive_frame(&mut self) -> Vec<u8> {
        self.receive().expect("a frame has arrived").0
    }
}

/// An experimental frame that no offload looks into.
pub(super) fn frame(to: u8, from: u8, payload: &[u8]) -> Vec<u8> {
    [&mac(to)[..], &mac(from), &[0x88, 0xB5], payload].concat()
}

/// A pattern that shows where a byte came from.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}
