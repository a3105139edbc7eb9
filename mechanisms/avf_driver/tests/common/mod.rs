//! A miniature adapter with one function: every frame that is sent on a queue pair is received on the same.
//!
//! The control part is `avf_device`, the socket `vfio_user_server`; the data path is a thread that looks at the
//! doorbells, since a mapped doorbell wakes nobody.
#![allow(dead_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use avf_device::{
    AvfDevice, InterruptVectors, QueueError, ResetKind, RxQueueConfig, TxQueueConfig, VfConfig,
    VfHost, VfSettings,
};
use avf_driver::{
    AvfControl, AvfDriver, DriverConfig, Event, LinkStatus, MacAddress, QueuePair, RxSegment,
    TxSegment,
};
use avf_protocol::{
    packet_type::PacketType,
    receive::RxLegacy,
    transmit::{self, DescriptorType, TxDescriptor},
    virtchnl::EthStats,
};
use shared_memory::{
    DescriptorRing, DmaAddress, DmaMap, DoorbellPage, PageSize, SharedMapping, TranslationCache,
};
use vfio_user_server::{
    Errno, IrqChange, PciFunctionDevice, PciIrq, PciRegion, Region, RegionMemory, ServerOptions,
    SparseMmapArea, VfioUserServer,
};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 7]);

/// A queue pair that runs.
struct RunningPair {
    tx: DescriptorRing<2>,
    rx: DescriptorRing<4>,
    rx_config: RxQueueConfig,
    tx_head: u16,
    rx_head: u16,
}

/// The host's part: what `avf_device` asks of it, and what the data path needs.
pub struct Host {
    tx: Vec<Option<TxQueueConfig>>,
    rx: Vec<Option<RxQueueConfig>>,
    pairs: Vec<Option<RunningPair>>,
    map: DmaMap,
    pub settings: Option<VfSettings>,
    pub statistics: EthStats,
    pub link: LinkStatus,
    /// Frames the driver had no buffers for.
    pub dropped: u64,
}

impl VfHost for Host {
    fn start_queues(
        &mut self,
        tx: &[(u16, TxQueueConfig)],
        rx: &[(u16, RxQueueConfig)],
    ) -> Result<(), QueueError> {
        for (queue, config) in tx {
            self.tx[usize::from(*queue)] = Some(*config);
        }
        for (queue, config) in rx {
            self.rx[usize::from(*queue)] = Some(*config);
        }
        for queue in 0..16 {
            let (Some(tx), Some(rx)) = (self.tx[queue], self.rx[queue]) else { continue };
            let ring = |fault| QueueError::Ring { queue: queue as u16, fault };
            self.pairs[queue] = Some(RunningPair {
                tx: DescriptorRing::at(&self.map, tx.ring, tx.length).map_err(ring)?,
                rx: DescriptorRing::at(&self.map, rx.ring, rx.length).map_err(ring)?,
                rx_config: rx,
                tx_head: 0,
                rx_head: 0,
            });
        }
        Ok(())
    }

    fn finish_transmit(&mut self, _: u32) {}

    fn stop_queues(&mut self, tx: u32, rx: u32) {
        for queue in 0..16 {
            if (tx | rx) & 1 << queue != 0 {
                (self.tx[queue], self.rx[queue], self.pairs[queue]) = (None, None, None);
            }
        }
    }

    fn apply(&mut self, settings: &VfSettings) {
        self.settings = Some(settings.clone());
    }

    fn permit_mac(&self, _: MacAddress) -> bool {
        true
    }

    fn permit_queue_count(&mut self, pairs: u16) -> Result<u16, u16> {
        Ok(pairs)
    }

    fn statistics(&mut self) -> EthStats {
        self.statistics
    }

    fn link(&self) -> LinkStatus {
        self.link
    }

    fn doorbell(&mut self) {}

    fn interrupt_due(&mut self, _: u64) {}
}

/// The function.
pub struct Function {
    pub device: AvfDevice,
    pub host: Host,
    interrupts: Arc<InterruptVectors>,
    bar: RegionMemory,
    tx_doorbells: DoorbellPage,
    rx_doorbells: DoorbellPage,
    dma: DmaMap,
    command: u16,
    start: Instant,
    /// Whether doorbell pages are offered.
    share: bool,
    /// The first four bytes of configuration space.
    pub identity: [u8; 4],
}

impl Function {
    fn new(config: VfConfig, share: bool) -> Self {
        let (mapping, file) = SharedMapping::create("bar0", 0x1_0000, PageSize::Base).unwrap();
        let tx_doorbells = DoorbellPage::new(&mapping, 0).unwrap();
        let rx_doorbells = DoorbellPage::new(&mapping, 0x2000).unwrap();
        let interrupts = Arc::new(InterruptVectors::new(config.vectors, &rx_doorbells));
        let doorbells = (tx_doorbells.clone(), rx_doorbells.clone());
        let area = |offset| SparseMmapArea { offset, size: 4096 };
        Self {
            device: AvfDevice::new(config, doorbells, interrupts.clone()).unwrap(),
            host: Host {
                tx: vec![None; 16],
                rx: vec![None; 16],
                pairs: (0..16).map(|_| None).collect(),
                map: DmaMap::empty(),
                settings: None,
                statistics: EthStats::default(),
                link: LinkStatus { up: true, mbps: 100_000 },
                dropped: 0,
            },
            interrupts,
            bar: RegionMemory {
                file: Arc::new(file),
                offset: 0,
                areas: vec![area(0), area(0x2000)],
            },
            tx_doorbells,
            rx_doorbells,
            dma: DmaMap::empty(),
            command: 0,
            start: Instant::now(),
            share,
            identity: [0x86, 0x80, 0x89, 0x18],
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The PF resets the function.
    pub fn reset_by_pf(&mut self) {
        let now = self.now();
        self.device.reset(ResetKind::Pf, now, &mut self.host);
    }

    pub fn set_link(&mut self, link: LinkStatus) {
        self.host.link = link;
        let now = self.now();
        self.device.link_changed(now, &mut self.host);
    }

    fn update_bus_master(&mut self) {
        let on = self.command & 4 != 0;
        let map = if on { self.dma.clone() } else { DmaMap::empty() };
        self.host.map = map.clone();
        let now = self.now();
        self.device.set_dma_map(map, now, &mut self.host);
        self.interrupts.set_enabled(on, now);
    }

    /// One look at all queues; `true` if there was anything to do.
    fn turn(&mut self) -> bool {
        let now = self.now();
        self.interrupts.expire_due(now);
        let mut busy = false;
        let host = &mut self.host;
        for queue in 0..16 {
            let Some(pair) = &mut host.pairs[queue] else { continue };
            let tx_tail = self.tx_doorbells.load(queue);
            let rx_tail = self.rx_doorbells.load(queue);
            let mut received = false;
            let mut frame = Vec::new();
            while u32::from(pair.tx_head) != tx_tail && tx_tail < u32::from(pair.tx.len()) {
                busy = true;
                let descriptor = TxDescriptor(pair.tx.read(pair.tx_head));
                let data = descriptor.data();
                if descriptor.kind() == DescriptorType::Data {
                    let mut bytes = vec![0; usize::from(data.length())];
                    host.map.read_bytes(DmaAddress(data.address()), &mut bytes).unwrap();
                    frame.extend_from_slice(&bytes);
                    if data.report_status() {
                        let done = transmit::done(descriptor.0[1]);
                        pair.tx.store(pair.tx_head, 1, done, Ordering::Release);
                    }
                    if data.end_of_packet() {
                        host.statistics.tx_bytes += frame.len() as u64;
                        host.statistics.tx_unicast += 1;
                        if pair.deliver(&host.map, rx_tail, &frame) {
                            received = true;
                            host.statistics.rx_unicast += 1;
                        } else {
                            host.dropped += 1;
                        }
                        frame.clear();
                    }
                }
                pair.tx_head = (pair.tx_head + 1) % pair.tx.len();
            }
            if received && let Some(vector) = pair.rx_config.vector {
                self.interrupts.raise(vector, pair.rx_config.itr, now);
            }
        }
        busy
    }
}

impl RunningPair {
    fn deliver(&mut self, map: &DmaMap, tail: u32, frame: &[u8]) -> bool {
        let length = u32::from(self.rx.len());
        let room = (tail + length - u32::from(self.rx_head)) % length;
        let size = usize::from(self.rx_config.buffer_size);
        let pieces = frame.len().div_ceil(size);
        if tail >= length || (room as usize) < pieces {
            return false;
        }
        for (number, piece) in frame.chunks(size).enumerate() {
            let address = DmaAddress(self.rx.load(self.rx_head, 0, Ordering::Relaxed));
            let slice = map.write_slice(&mut TranslationCache::default(), address, piece.len());
            slice.unwrap().write_from(piece);
            let mut done = RxLegacy::new(piece.len() as u16);
            if number + 1 == pieces {
                done = done.with_end_of_packet(PacketType::L2);
            }
            self.rx.store(self.rx_head, 0, done.0[0], Ordering::Relaxed);
            self.rx.store(self.rx_head, 1, done.0[1], Ordering::Release);
            self.rx_head = (self.rx_head + 1) % self.rx.len();
        }
        true
    }
}

impl PciFunctionDevice for Function {
    fn region(&self, region: PciRegion) -> Region {
        match region {
            PciRegion::Config => Region::trapped(4096),
            PciRegion::Bar0 => {
                let memory = self.share.then(|| self.bar.clone());
                Region { memory, ..Region::trapped(0x1_0000) }
            }
            _ => Region::ABSENT,
        }
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        if irq == PciIrq::Msix { self.interrupts.vectors().into() } else { 0 }
    }

    fn region_read(
        &mut self,
        region: PciRegion,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        if region == PciRegion::Bar0 {
            data.copy_from_slice(&self.device.read(offset as u32).to_le_bytes());
            return Ok(());
        }
        let mut space = [0u8; 4096];
        space[..4].copy_from_slice(&self.identity);
        space[4..6].copy_from_slice(&self.command.to_le_bytes());
        data.copy_from_slice(&space[offset as usize..][..data.len()]);
        Ok(())
    }

    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let now = self.now();
        if region == PciRegion::Bar0 {
            let value = u32::from_le_bytes(data.try_into().map_err(|_| Errno::INVAL)?);
            self.device.write(offset as u32, value, now, &mut self.host);
        } else if offset == 4 {
            self.command = u16::from_le_bytes(data.try_into().map_err(|_| Errno::INVAL)?);
            self.update_bus_master();
        }
        Ok(())
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        self.dma = map.clone();
        self.update_bus_master();
    }

    fn set_irq(&mut self, _: PciIrq, change: IrqChange) -> Result<(), Errno> {
        let now = self.now();
        match change {
            IrqChange::Connect { start, eventfds } => {
                for (vector, event) in (start..).zip(eventfds) {
                    let event: OwnedFd = event.into();
                    self.interrupts.set_eventfd(vector as u16, Some(event), now).unwrap();
                }
            }
            _ => {
                for vector in 0..self.interrupts.vectors() {
                    self.interrupts.set_eventfd(vector, None, now).unwrap();
                }
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        let now = self.now();
        self.device.reset(ResetKind::Flr, now, &mut self.host);
        self.command = 0;
        self.update_bus_master();
    }

    fn connected(&mut self) {}

    fn disconnected(&mut self) {
        self.reset();
    }
}

/// The function on its socket, and the thread of its data path.
pub struct Loopback {
    pub function: Arc<Mutex<Function>>,
    pub server: Option<VfioUserServer>,
    worker: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    directory: tempfile::TempDir,
}

impl Loopback {
    pub fn new() -> Self {
        Self::with(VfConfig::new(1, 4, MAC), true)
    }

    pub fn with(config: VfConfig, share_doorbells: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let function = Arc::new(Mutex::new(Function::new(config, share_doorbells)));
        let stop = Arc::new(AtomicBool::new(false));
        let worker = {
            let (function, stop) = (function.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if !function.lock().unwrap().turn() {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
            })
        };
        let mut loopback = Self { function, server: None, worker: Some(worker), stop, directory };
        loopback.serve();
        loopback
    }

    pub fn serve(&mut self) {
        let options = ServerOptions::new("vf0");
        let function = self.function.clone();
        self.server = Some(VfioUserServer::bind(&self.socket(), function, options).unwrap());
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vf0.sock")
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn config(&self) -> DriverConfig {
        DriverConfig::new(self.socket())
    }

    pub fn open(&self) -> (AvfControl, QueuePair) {
        let (control, mut pairs) = AvfDriver::open(self.config()).unwrap();
        assert_eq!(pairs.len(), 1);
        (control, pairs.remove(0))
    }

    pub fn with_function<T>(&self, look: impl FnOnce(&mut Function) -> T) -> T {
        look(&mut self.function.lock().unwrap())
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.server = None;
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.worker.take().unwrap().join();
    }
}

/// Repeats `look` until it gives something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_micros(100));
    }
}

pub fn wait_for_event(control: &mut AvfControl, wanted: Event) {
    wait_for("the event", || {
        control.poll_events(Instant::now()).unwrap().contains(&wanted).then_some(())
    });
}

pub fn wait_for_link(control: &mut AvfControl) {
    wait_for("link up", || {
        control.poll_events(Instant::now()).unwrap();
        control.link().up.then_some(())
    });
}

/// A frame with a number in it.
pub fn frame(number: u32, length: usize) -> Vec<u8> {
    let header = [&MAC.0[..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xB5], &number.to_le_bytes()].concat();
    let mut bytes: Vec<u8> = (0..length).map(|at| (at as u32 * 31 + number) as u8).collect();
    bytes[..header.len()].copy_from_slice(&header);
    bytes
}

pub fn send(pair: &mut QueuePair, bytes: &[u8]) {
    let memory = pair.tx.memory().clone();
    let mut burst = ArrayVec::<TxSegment, 8>::new();
    for part in bytes.chunks(memory.buffer_size()) {
        let buffer = wait_for("a free buffer", || pair.tx.reserve());
        memory.bytes(&buffer).unwrap().write_from(part);
        let segment = TxSegment::frame(buffer, part.len() as u16);
        burst.push(TxSegment { end: false, ..segment });
    }
    burst.last_mut().unwrap().end = true;
    wait_for("room in the ring", || (pair.tx.transmit(&mut burst) == 1).then_some(()));
}

pub fn try_receive(pair: &mut QueuePair) -> Vec<Vec<u8>> {
    let memory = pair.rx.memory().clone();
    let mut segments = ArrayVec::<RxSegment, 32>::new();
    pair.rx.receive(&mut segments);
    let (mut frames, mut frame) = (Vec::new(), Vec::new());
    for segment in segments {
        let mut part = vec![0; usize::from(segment.length)];
        memory.bytes(&segment.buffer).unwrap().read_into(&mut part);
        frame.extend_from_slice(&part);
        if segment.end() {
            frames.push(std::mem::take(&mut frame));
        }
        pair.rx.free(segment.buffer);
    }
    frames
}

pub fn receive(pair: &mut QueuePair, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    wait_for("the frames", || {
        frames.extend(try_receive(pair));
        (frames.len() >= count).then_some(())
    });
    frames
}

/// Sends frames of many sizes and expects them back.
pub fn loop_frames(pair: &mut QueuePair) {
    for (number, length) in [60, 64, 512, 1514, 2048, 2049, 4096, 9000].into_iter().enumerate() {
        let sent = frame(number as u32, length);
        send(pair, &sent);
        assert_eq!(receive(pair, 1), [sent]);
    }
}
