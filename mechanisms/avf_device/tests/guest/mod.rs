//! A guest driver's mailbox half, and a host that writes down what it is asked.
#![allow(missing_docs, dead_code, unreachable_pub)]

use std::{os::fd::OwnedFd, sync::Arc};

use avf_device::{
    AvfDevice, InterruptVectors, QueueError, RECOMMENDED_CAPABILITIES, RxQueueConfig,
    TxQueueConfig, VfConfig, VfHost, VfSettings,
};
use avf_protocol::{
    MacAddress,
    admin_queue::{AdminQueueDescriptor, flags, opcode},
    registers::{self, QueueLength, cause},
    virtchnl::{
        Capabilities, EthStats, EventMessage, LinkStatus, Opcode, QueuePairInfo, QueueSelect,
        Reply, Request, RxQueueInfo, Status, TxQueueInfo, VectorMap, Version, VfResources,
    },
};
use rustix::event::{EventfdFlags, eventfd};
use shared_memory::{
    Access, DmaAddress, DmaMap, DmaRegion, DoorbellPage, PAGE_SIZE, PageSize, SharedMapping,
};
use zerocopy::FromBytes;

/// Where guest memory is, as the device sees it.
pub const MEMORY: u64 = 0x1_0000_0000;
const MEMORY_SIZE: usize = 0x22_0000;
const ATQ_RING: u64 = MEMORY;
const ARQ_RING: u64 = MEMORY + 0x8000;
const ATQ_BUFFERS: u64 = MEMORY + 0x1_0000;
const ARQ_BUFFERS: u64 = MEMORY + 0x11_0000;
/// Rings of the data path are somewhere here; the device does not look.
pub const RINGS: u64 = MEMORY + 0x21_0000;

pub const VSI: u16 = 7;
pub const MAC: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 1]);
pub const OTHER_MAC: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 2]);
pub const THIRD_MAC: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 3]);

/// What the host was asked, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    Start(Vec<(u16, TxQueueConfig)>, Vec<(u16, RxQueueConfig)>),
    FinishTransmit(u32),
    Stop(u32, u32),
    Apply,
    Queues(u16),
    Doorbell,
    Due(u64),
}

pub struct Host {
    pub calls: Vec<Call>,
    pub settings: Option<VfSettings>,
    pub statistics: EthStats,
    pub link: LinkStatus,
    pub refuse_start: Option<QueueError>,
    pub forbidden: Vec<MacAddress>,
    pub available_queues: u16,
}

impl Host {
    fn new() -> Self {
        Self {
            calls: Vec::new(),
            settings: None,
            statistics: EthStats::default(),
            link: LinkStatus { up: true, mbps: 100_000 },
            refuse_start: None,
            forbidden: Vec::new(),
            available_queues: 16,
        }
    }

    pub fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }

    /// The settings last applied.
    pub fn applied(&self) -> &VfSettings {
        self.settings.as_ref().expect("the host was given settings")
    }
}

impl VfHost for Host {
    fn start_queues(
        &mut self,
        tx: &[(u16, TxQueueConfig)],
        rx: &[(u16, RxQueueConfig)],
    ) -> Result<(), QueueError> {
        if let Some(error) = self.refuse_start {
            return Err(error);
        }
        self.calls.push(Call::Start(tx.to_vec(), rx.to_vec()));
        Ok(())
    }

    fn finish_transmit(&mut self, tx: u32) {
        self.calls.push(Call::FinishTransmit(tx));
    }

    fn stop_queues(&mut self, tx: u32, rx: u32) {
        self.calls.push(Call::Stop(tx, rx));
    }

    fn apply(&mut self, settings: &VfSettings) {
        self.settings = Some(settings.clone());
        self.calls.push(Call::Apply);
    }

    fn permit_mac(&self, address: MacAddress) -> bool {
        !self.forbidden.contains(&address)
    }

    fn permit_queue_count(&mut self, pairs: u16) -> Result<u16, u16> {
        self.calls.push(Call::Queues(pairs));
        if pairs <= self.available_queues { Ok(pairs) } else { Err(self.available_queues) }
    }

    fn statistics(&mut self) -> EthStats {
        self.statistics
    }

    fn link(&self) -> LinkStatus {
        self.link
    }

    fn doorbell(&mut self) {
        self.calls.push(Call::Doorbell);
    }

    fn interrupt_due(&mut self, deadline_ns: u64) {
        self.calls.push(Call::Due(deadline_ns));
    }
}

/// How a driver sets up its mailbox.
#[derive(Copy, Clone, PartialEq, Debug)]
pub enum Order {
    /// Heads and tails, length and enable, then the base (L, D, F).
    LengthFirst,
    /// The base, then length and enable; ARQ descriptors are filled after that (V, O, X).
    LengthLast,
}

/// A message to the VF as the driver finds it.
#[derive(Clone, PartialEq, Debug)]
pub struct Received {
    pub descriptor: AdminQueueDescriptor,
    pub data: Vec<u8>,
}

impl Received {
    pub fn opcode(&self) -> u32 {
        self.descriptor.cookie_high.get()
    }

    pub fn status(&self) -> Status {
        Status::of(self.descriptor.virtchnl_status())
    }

    pub fn reply(&self) -> Reply {
        Reply::parse(Opcode::try_from(self.opcode()).unwrap(), &self.data).unwrap()
    }

    pub fn event(&self) -> EventMessage {
        assert_eq!(self.opcode(), 17);
        EventMessage::read_from_bytes(&self.data).unwrap()
    }
}

pub struct Guest {
    pub device: AvfDevice,
    pub host: Host,
    pub interrupts: Arc<InterruptVectors>,
    pub eventfds: Vec<OwnedFd>,
    pub tx_page: DoorbellPage,
    pub rx_page: DoorbellPage,
    pub memory: SharedMapping,
    pub dma: DmaMap,
    pub now: u64,
    pub atq_length: u16,
    pub arq_length: u16,
    atq_next: u16,
    arq_next: u16,
    /// Buffers of this many bytes are posted.
    pub arq_capacity: u16,
    /// Whether consumed ARQ descriptors are posted again at once.
    pub reposts: bool,
}

pub fn config() -> VfConfig {
    VfConfig { max_queue_pairs: 8, vectors: 9, ..VfConfig::new(VSI, 4, MAC) }
}

impl Guest {
    /// A function that was powered on and may master the bus; its mailbox is off.
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(config: VfConfig) -> Self {
        let (pages, _fd) = SharedMapping::create("bar0", 2 * PAGE_SIZE, PageSize::Base).unwrap();
        let tx_page = DoorbellPage::new(&pages, 0).unwrap();
        let rx_page = DoorbellPage::new(&pages, PAGE_SIZE).unwrap();
        let interrupts = Arc::new(InterruptVectors::new(config.vectors, &rx_page));
        let mut eventfds = Vec::new();
        for vector in 0..config.vectors {
            let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            interrupts.set_eventfd(vector, Some(fd.try_clone().unwrap()), 0).unwrap();
            eventfds.push(fd);
        }
        interrupts.set_enabled(true, 0);
        let doorbells = (tx_page.clone(), rx_page.clone());
        let device = AvfDevice::new(config, doorbells, interrupts.clone()).unwrap();
        let (memory, _fd) = SharedMapping::create("guest", MEMORY_SIZE, PageSize::Base).unwrap();
        let region = DmaRegion {
            iova: DmaAddress(MEMORY),
            mapping: memory.clone(),
            access: Access::ReadWrite,
        };
        let dma = DmaMap::empty().with(region).unwrap();
        let mut guest = Self {
            device,
            host: Host::new(),
            interrupts,
            eventfds,
            tx_page,
            rx_page,
            memory,
            dma: dma.clone(),
            now: 1_000_000_000,
            atq_length: 32,
            arq_length: 32,
            atq_next: 0,
            arq_next: 0,
            arq_capacity: 4096,
            reposts: true,
        };
        guest.device.set_dma_map(dma, 0, &mut guest.host);
        guest
    }

    /// A function whose mailbox is on, and whose driver knows its resources with all it can have.
    pub fn ready() -> Self {
        Self::ready_with(RECOMMENDED_CAPABILITIES)
    }

    pub fn ready_with(wanted: Capabilities) -> Self {
        let mut guest = Self::new();
        guest.start_mailbox(Order::LengthFirst);
        guest.negotiate(wanted);
        guest
    }

    /// VERSION and GET_VF_RESOURCES, and the link event that follows.
    pub fn negotiate(&mut self, wanted: Capabilities) -> VfResources {
        assert_eq!(self.ask(Request::Version(Version::V1_1)), Ok(Reply::Version(Version::V1_1)));
        let Ok(Reply::VfResources(resources)) = self.ask(Request::GetVfResources(Some(wanted)))
        else {
            panic!("no resources");
        };
        let event = self.receive().expect("a link event");
        assert_eq!(event.event().event.get(), 1);
        self.host.take_calls();
        resources
    }

    pub fn read(&mut self, offset: u32) -> u32 {
        self.device.read(offset)
    }

    pub fn write(&mut self, offset: u32, value: u32) {
        self.device.write(offset, value, self.now, &mut self.host);
    }

    /// Messages on a vector since the last look.
    pub fn interrupts_on(&self, vector: usize) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.eventfds[vector], &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    fn post_buffer(&self, index: u16) {
        let buffer = ARQ_BUFFERS + u64::from(index) * 4096;
        let descriptor = AdminQueueDescriptor::receive_buffer(self.arq_capacity, buffer);
        let at = DmaAddress(ARQ_RING + u64::from(index) * 32);
        self.dma.write_object(at, &descriptor).unwrap();
    }

    pub fn start_mailbox(&mut self, order: Order) {
        let (atq, arq) = (self.atq_length, self.arq_length);
        (self.atq_next, self.arq_next) = (0, 0);
        let fill = |guest: &Self| (0..arq).for_each(|index| guest.post_buffer(index));
        match order {
            Order::LengthFirst => {
                fill(self);
                for (head, tail, length, low, high, ring, count) in self.queues(atq, arq) {
                    self.write(head, 0);
                    self.write(tail, 0);
                    self.write(length, QueueLength::enabled(count).0);
                    self.write(low, ring as u32);
                    self.write(high, (ring >> 32) as u32);
                    assert_eq!(self.read(low), ring as u32, "the base reads back");
                }
            }
            Order::LengthLast => {
                self.write(registers::ATQLEN, 0);
                self.write(registers::ARQLEN, 0);
                for (head, tail, length, low, high, ring, count) in self.queues(atq, arq) {
                    self.write(tail, 0);
                    self.write(head, 0);
                    self.write(low, ring as u32);
                    self.write(high, (ring >> 32) as u32);
                    self.write(length, QueueLength::enabled(count).0);
                    assert_eq!(self.read(low), ring as u32, "the base reads back");
                }
                fill(self);
            }
        }
        self.write(registers::ARQT, u32::from(arq) - 1);
    }

    fn queues(&self, atq: u16, arq: u16) -> [(u32, u32, u32, u32, u32, u64, u16); 2] {
        use registers::*;
        [
            (ATQH, ATQT, ATQLEN, ATQBAL, ATQBAH, ATQ_RING, atq),
            (ARQH, ARQT, ARQLEN, ARQBAL, ARQBAH, ARQ_RING, arq),
        ]
    }

    pub fn stop_mailbox(&mut self) {
        use registers::*;
        for register in [ATQH, ATQT, ATQLEN, ATQBAL, ATQBAH, ARQH, ARQT, ARQLEN, ARQBAL, ARQBAH] {
            self.write(register, 0);
        }
    }

    /// Puts a descriptor into the ATQ without ringing; returns its index.
    pub fn queue_descriptor(&mut self, descriptor: AdminQueueDescriptor, data: &[u8]) -> u16 {
        let index = self.atq_next;
        self.atq_next = (self.atq_next + 1) % self.atq_length;
        let buffer = ATQ_BUFFERS + u64::from(index) * 4096;
        self.dma.write_bytes(DmaAddress(buffer), data).unwrap();
        let at = DmaAddress(ATQ_RING + u64::from(index) * 32);
        self.dma.write_object(at, &descriptor.with_buffer(buffer)).unwrap();
        index
    }

    pub fn queue_raw(&mut self, virtchnl_opcode: u32, data: &[u8]) -> u16 {
        let length = u16::try_from(data.len()).unwrap();
        let descriptor = AdminQueueDescriptor::send_to_pf(virtchnl_opcode, length, 0);
        self.queue_descriptor(descriptor, data)
    }

    pub fn queue(&mut self, request: Request<'_>) -> u16 {
        let mut data = Vec::new();
        request.emit(&mut data).unwrap();
        self.queue_raw(request.opcode().value(), &data)
    }

    /// Rings the ATQ's doorbell.
    pub fn ring(&mut self) {
        self.write(registers::ATQT, self.atq_next.into());
    }

    pub fn sent_descriptor(&self, index: u16) -> AdminQueueDescriptor {
        self.dma.read_object(DmaAddress(ATQ_RING + u64::from(index) * 32)).unwrap()
    }

    pub fn arq_descriptor(&self, index: u16) -> AdminQueueDescriptor {
        self.dma.read_object(DmaAddress(ARQ_RING + u64::from(index) * 32)).unwrap()
    }

    /// Sends a message and checks that the mailbox took it.
    pub fn send_raw(&mut self, virtchnl_opcode: u32, data: &[u8]) {
        let index = self.queue_raw(virtchnl_opcode, data);
        self.ring();
        let done = self.sent_descriptor(index);
        assert!(done.has(flags::DD | flags::CMP) && !done.has(flags::ERR), "{done:?}");
        assert_eq!(done.retval.get(), 0);
        assert_eq!(self.read(registers::ATQH), u32::from(self.atq_next));
    }

    pub fn send(&mut self, request: Request<'_>) {
        let mut data = Vec::new();
        request.emit(&mut data).unwrap();
        self.send_raw(request.opcode().value(), &data);
    }

    /// Takes the next message from the ARQ, by the head register as Linux does.
    pub fn receive(&mut self) -> Option<Received> {
        if self.read(registers::ARQH) == u32::from(self.arq_next) {
            return None;
        }
        let index = self.arq_next;
        let descriptor = self.arq_descriptor(index);
        assert!(descriptor.has(flags::DD | flags::CMP), "{descriptor:?}");
        assert_eq!(descriptor.opcode.get(), opcode::SEND_TO_VF);
        assert_eq!(descriptor.has(flags::BUF), descriptor.datalen.get() > 0);
        assert_eq!(descriptor.retval.get(), 0);
        let mut data = vec![0; descriptor.datalen.get().into()];
        self.dma.read_bytes(DmaAddress(descriptor.buffer()), &mut data).unwrap();
        self.arq_next = (self.arq_next + 1) % self.arq_length;
        if self.reposts {
            self.repost(index);
        }
        Some(Received { descriptor, data })
    }

    /// Posts the buffer of a consumed descriptor again.
    pub fn repost(&mut self, index: u16) {
        self.post_buffer(index);
        self.write(registers::ARQT, index.into());
    }

    /// Sends a request and takes its answer, which must be the next message.
    pub fn ask(&mut self, request: Request<'_>) -> Result<Reply, Status> {
        self.send(request);
        let opcode = request.opcode();
        let received = self.receive().unwrap_or_else(|| panic!("no answer to {opcode:?}"));
        assert_eq!(received.opcode(), opcode.value());
        match received.status() {
            Status::Success => Ok(received.reply()),
            status => Err(status),
        }
    }

    pub fn ask_raw(&mut self, virtchnl_opcode: u32, data: &[u8]) -> Status {
        self.send_raw(virtchnl_opcode, data);
        let received =
            self.receive().unwrap_or_else(|| panic!("no answer to opcode {virtchnl_opcode}"));
        assert_eq!(received.opcode(), virtchnl_opcode);
        received.status()
    }

    /// Sends a request that is to succeed without a payload in its answer.
    #[track_caller]
    pub fn must(&mut self, request: Request<'_>) {
        assert_eq!(self.ask(request), Ok(Reply::Empty), "{request:?}");
    }

    /// Everything in the ARQ.
    pub fn drain(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.receive()).collect()
    }

    /// Arms vector 0 for the admin queue.
    pub fn arm_vector_0(&mut self) {
        self.write(registers::DYN_CTL01, 0x19);
        self.write(registers::ICR0_ENA1, cause::ADMINQ);
    }

    /// Configures `count` queue pairs with rings of 512 and 64 descriptors, maps their vectors, and runs
    /// them.
    pub fn start_queues(&mut self, count: u16) {
        let pairs: Vec<_> = (0..count).map(pair).collect();
        self.must(Request::ConfigVsiQueues { vsi_id: VSI, pairs: &pairs });
        let vectors: Vec<_> = (0..count).map(|queue| vector_map(queue + 1, 1 << queue)).collect();
        self.must(Request::ConfigIrqMap { vectors: &vectors });
        let bits = (1 << count) - 1;
        self.must(Request::EnableQueues(QueueSelect::new(VSI, bits, bits)));
        assert_eq!(self.receive().expect("a link event").opcode(), 17);
        assert_eq!(self.device.running_queues(), (bits, bits));
    }
}

/// A queue pair's configuration as Linux sends it.
pub fn pair(queue: u16) -> QueuePairInfo {
    let ring = RINGS + u64::from(queue) * 0x1000;
    QueuePairInfo {
        tx: TxQueueInfo {
            vsi_id: VSI.into(),
            queue_id: queue.into(),
            ring_len: 512.into(),
            dma_ring_addr: ring.into(),
            ..TxQueueInfo::default()
        },
        rx: RxQueueInfo {
            vsi_id: VSI.into(),
            queue_id: queue.into(),
            ring_len: 64.into(),
            databuffer_size: 1536.into(),
            max_pkt_size: 1522.into(),
            dma_ring_addr: (ring + 0x800).into(),
            ..RxQueueInfo::default()
        },
    }
}

/// A vector that serves both directions of the queues in `bits`, as Linux maps them.
pub fn vector_map(vector: u16, bits: u16) -> VectorMap {
    VectorMap {
        vsi_id: VSI.into(),
        vector_id: vector.into(),
        rxq_map: bits.into(),
        txq_map: bits.into(),
        rxitr_idx: 0.into(),
        txitr_idx: 1.into(),
    }
}
