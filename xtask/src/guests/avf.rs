//! A minimal AVF driver for one queue pair, by qtest: mailbox, virtchnl, one frame out, one frame in
//! (SPEC-AVF §3 to §5).

use anyhow::{Context, Result, bail, ensure};
use avf_protocol::{
    MacAddress,
    admin_queue::{AdminQueueDescriptor, flags},
    receive::{RxLegacy, RxRead},
    registers::{self, DynCtl, QueueLength, ResetState, cause},
    transmit::{TxData, TxDescriptor},
    virtchnl::{
        Capabilities, Event, Opcode, QueuePairInfo, QueueSelect, Reply, Request, RxQueueInfo,
        TxQueueInfo, VectorMap, Version, VfResources,
    },
};
use zerocopy::{FromBytes, IntoBytes};

use super::qtest::{PciFunction, Qtest, message};

/// Where things lie in the function's share of memory, from its base.
const ATQ: u64 = 0x0_0000;
const ARQ: u64 = 0x0_1000;
const ATQ_BUFFER: u64 = 0x0_2000;
const MSIX_TARGET: u64 = 0x0_3000;
const TX_RING: u64 = 0x0_4000;
const RX_RING: u64 = 0x0_5000;
const TX_FRAME: u64 = 0x0_8000;
const ARQ_BUFFERS: u64 = 0x1_0000;
const RX_BUFFERS: u64 = 0x4_0000;
/// Bytes of memory for each function.
pub(crate) const SHARE: u64 = 0x10_0000;

const QUEUE_LENGTH: u16 = 16;
const BUFFER: u16 = 4096;
const RING: u16 = 64;
const RX_BUFFER: u16 = 2048;

/// One VF, as its driver sees it.
pub(crate) struct Vf {
    function: PciFunction,
    memory: u64,
    registers: u64,
    atq_tail: u16,
    arq_next: u16,
    resources: Option<VfResources>,
    link: Option<bool>,
    rx_next: u16,
    tx_next: u16,
}

impl Vf {
    /// Finds the function and gives it `SHARE` bytes of memory from `memory`.
    pub(crate) fn new(qtest: &mut Qtest, index: usize, memory: u64) -> Result<Self> {
        let function = PciFunction::enable(qtest, index)?;
        ensure!(
            function.ids == (avf_protocol::VENDOR_ID, avf_protocol::DEVICE_ID),
            "{:04x}:{:04x} is no AVF function",
            function.ids.0,
            function.ids.1
        );
        let registers = function.bar(0)?;
        Ok(Self {
            function,
            memory,
            registers,
            atq_tail: 0,
            arq_next: 0,
            resources: None,
            link: None,
            rx_next: 0,
            tx_next: 0,
        })
    }

    fn get(&self, qtest: &mut Qtest, register: u32) -> Result<u32> {
        qtest.read32(self.registers + u64::from(register))
    }

    fn set(&self, qtest: &mut Qtest, register: u32, value: u32) -> Result<()> {
        qtest.write32(self.registers + u64::from(register), value)
    }

    /// The function's PCI side.
    pub(crate) fn function(&self) -> &PciFunction {
        &self.function
    }

    /// The MAC address the PF gave.
    pub(crate) fn mac(&self) -> Result<MacAddress> {
        Ok(self.resources.context("the VF has no resources yet")?.default_mac)
    }

    /// Waits for the device to be out of reset, sets up the mailbox and aims MSI-X at memory (§3.3, §6).
    pub(crate) fn open_mailbox(&mut self, qtest: &mut Qtest) -> Result<()> {
        let this = &*self;
        qtest.until("the VF to come out of reset", |qtest| {
            let state = ResetState::of(this.get(qtest, registers::RSTAT)?);
            Ok(matches!(state, ResetState::Completed | ResetState::Active).then_some(()))
        })?;
        self.function.aim_msix(qtest, self.memory + MSIX_TARGET)?;
        for index in 0..QUEUE_LENGTH {
            let buffer = self.memory + ARQ_BUFFERS + u64::from(index) * u64::from(BUFFER);
            let descriptor = AdminQueueDescriptor::receive_buffer(BUFFER, buffer);
            qtest.write(self.memory + ARQ + 32 * u64::from(index), descriptor.as_bytes())?;
        }
        let length = QueueLength::enabled(QUEUE_LENGTH).0;
        let low = |address: u64| u32::try_from(address & 0xFFFF_FFFF);
        let (atq, arq) = (self.memory + ATQ, self.memory + ARQ);
        // The order of the Linux driver: the length before the base.
        for (register, value) in [
            (registers::ATQH, 0),
            (registers::ATQT, 0),
            (registers::ATQLEN, length),
            (registers::ATQBAL, low(atq)?),
            (registers::ATQBAH, 0),
            (registers::ARQH, 0),
            (registers::ARQT, 0),
            (registers::ARQLEN, length),
            (registers::ARQBAL, low(arq)?),
            (registers::ARQBAH, 0),
            (registers::ARQT, u32::from(QUEUE_LENGTH - 1)),
            (registers::ICR0_ENA1, cause::ADMINQ),
            (registers::DYN_CTL01, DynCtl::ENABLE.0),
        ] {
            self.set(qtest, register, value)?;
        }
        ensure!(self.get(qtest, registers::ATQBAL)? == low(atq)?, "ATQBAL does not read back");
        ensure!(self.get(qtest, registers::ARQBAL)? == low(arq)?, "ARQBAL does not read back");
        (self.atq_tail, self.arq_next) = (0, 0);
        Ok(())
    }

    /// Takes the word that a vector has written, once it has.
    fn interrupt(&self, qtest: &mut Qtest, vector: u16) -> Result<()> {
        let target = self.memory + MSIX_TARGET + 4 * u64::from(vector);
        qtest.until(&format!("MSI-X vector {vector}"), |qtest| {
            let found = qtest.read32(target)?;
            ensure!(found == 0 || found == message(vector), "vector {vector} wrote {found:#x}");
            Ok((found != 0).then_some(()))
        })?;
        qtest.write32(target, 0)
    }

    /// Sends a request and gives its answer, reached by the interrupt of vector 0. Events that come before are noted.
    fn call(&mut self, qtest: &mut Qtest, request: &Request<'_>) -> Result<Reply> {
        let opcode = request.opcode();
        let mut bytes = Vec::new();
        request.emit(&mut bytes)?;
        let buffer = self.memory + ATQ_BUFFER;
        qtest.write(buffer, &bytes)?;
        let descriptor =
            AdminQueueDescriptor::send_to_pf(opcode.value(), u16::try_from(bytes.len())?, buffer);
        let place = self.memory + ATQ + 32 * u64::from(self.atq_tail);
        qtest.write(place, descriptor.as_bytes())?;
        self.atq_tail = (self.atq_tail + 1) % QUEUE_LENGTH;
        self.set(qtest, registers::ATQT, u32::from(self.atq_tail))?;
        qtest.until("the mailbox to take a request", |qtest| {
            let descriptor = read_descriptor(qtest, place)?;
            Ok(descriptor.has(flags::DD | flags::CMP).then_some(()))
        })?;
        loop {
            let (answered, status, reply) = self.receive(qtest)?;
            if answered == opcode {
                ensure!(status == 0, "{opcode:?} was answered with status {status}");
                return Ok(reply);
            }
        }
    }

    /// The next message of the PF.
    fn receive(&mut self, qtest: &mut Qtest) -> Result<(Opcode, i32, Reply)> {
        let place = self.memory + ARQ + 32 * u64::from(self.arq_next);
        // One interrupt may stand for several messages: it is waited for only when there is none to read.
        if !read_descriptor(qtest, place)?.has(flags::DD) {
            self.interrupt(qtest, 0)?;
            let causes = self.get(qtest, registers::ICR01)?;
            ensure!(causes & cause::ADMINQ != 0, "vector 0 fired for {causes:#x}, not the mailbox");
            self.set(qtest, registers::DYN_CTL01, DynCtl::ENABLE.0)?;
        }
        let descriptor = qtest.until("a message of the PF", |qtest| {
            Ok(Some(read_descriptor(qtest, place)?).filter(|descriptor| descriptor.has(flags::DD)))
        })?;
        let data = qtest.read(descriptor.buffer(), usize::from(descriptor.datalen.get()))?;
        let index = u64::from(self.arq_next);
        let buffer = self.memory + ARQ_BUFFERS + index * u64::from(BUFFER);
        let free = AdminQueueDescriptor::receive_buffer(BUFFER, buffer);
        qtest.write(place, free.as_bytes())?;
        self.set(qtest, registers::ARQT, u32::from(self.arq_next))?;
        self.arq_next = (self.arq_next + 1) % QUEUE_LENGTH;
        let opcode = Opcode::try_from(descriptor.cookie_high.get())
            .map_err(|unknown| anyhow::anyhow!("the PF sent opcode {}", unknown.0))?;
        let reply = Reply::parse(opcode, &data)?;
        if let Reply::Event(event) = reply
            && let Event::LinkChange(link) = Event::from_message(&event, true)
        {
            self.link = Some(link.up);
        }
        Ok((opcode, descriptor.virtchnl_status(), reply))
    }

    /// VERSION and GET_VF_RESOURCES (§4.5).
    pub(crate) fn negotiate(&mut self, qtest: &mut Qtest) -> Result<VfResources> {
        let request = Request::Version(Version::V1_1);
        let reply = self.call(qtest, &request)?;
        ensure!(reply == Reply::Version(Version::V1_1), "VERSION was answered with {reply:?}");
        let wanted = Capabilities::L2
            .with(Capabilities::RSS_PF)
            .with(Capabilities::WB_ON_ITR)
            .with(Capabilities::ADV_LINK_SPEED);
        let request = Request::GetVfResources(Some(wanted));
        let Reply::VfResources(resources) = self.call(qtest, &request)? else {
            bail!("GET_VF_RESOURCES was answered without resources");
        };
        ensure!(
            resources.capabilities.contains(Capabilities::L2.with(Capabilities::ADV_LINK_SPEED))
        );
        ensure!(resources.queue_pairs >= 1 && resources.max_vectors >= 2, "{resources:?}");
        ensure!(resources.max_vectors <= self.function.vectors(), "more vectors than MSI-X has");
        self.resources = Some(resources);
        Ok(resources)
    }

    /// Configures queue pair 0 on vector 1, posts receive buffers, starts it, and waits to be told of the
    /// link, whatever its state (§4.8): with no cable it is down, and frames between VFs still go.
    pub(crate) fn start_queues(&mut self, qtest: &mut Qtest) -> Result<()> {
        let resources = self.resources.context("the VF has no resources yet")?;
        let vsi_id = resources.vsi_id;
        for index in 0..RING {
            let buffer = self.memory + RX_BUFFERS + u64::from(index) * u64::from(RX_BUFFER);
            qtest.write(
                self.memory + RX_RING + 32 * u64::from(index),
                RxRead::new(buffer).0.as_bytes(),
            )?;
        }
        let pair = QueuePairInfo {
            tx: TxQueueInfo {
                vsi_id: vsi_id.into(),
                ring_len: RING.into(),
                dma_ring_addr: (self.memory + TX_RING).into(),
                ..TxQueueInfo::default()
            },
            rx: RxQueueInfo {
                vsi_id: vsi_id.into(),
                ring_len: u32::from(RING).into(),
                databuffer_size: u32::from(RX_BUFFER).into(),
                max_pkt_size: 1518.into(),
                dma_ring_addr: (self.memory + RX_RING).into(),
                ..RxQueueInfo::default()
            },
        };
        let request = Request::ConfigVsiQueues { vsi_id, pairs: &[pair] };
        self.call(qtest, &request)?;
        let map = |vector: u16, queues: u16| VectorMap {
            vsi_id: vsi_id.into(),
            vector_id: vector.into(),
            rxq_map: queues.into(),
            ..VectorMap::default()
        };
        let request = Request::ConfigIrqMap { vectors: &[map(1, 1), map(0, 0)] };
        self.call(qtest, &request)?;
        // The doorbell before ENABLE, as Linux does.
        self.set(qtest, registers::rx_tail(0), u32::from(RING - 1))?;
        let request = Request::EnableQueues(QueueSelect::new(vsi_id, 1, 1));
        self.call(qtest, &request)?;
        while self.link.is_none() {
            self.receive(qtest)?;
        }
        self.set(qtest, registers::dyn_ctl(1), DynCtl::ENABLE.0)?;
        (self.rx_next, self.tx_next) = (0, 0);
        Ok(())
    }

    /// Sends one frame and waits until it is written back as done (§5.3).
    pub(crate) fn send(&mut self, qtest: &mut Qtest, frame: &[u8]) -> Result<()> {
        let buffer = self.memory + TX_FRAME;
        qtest.write(buffer, frame)?;
        let place = self.post(qtest, buffer, u16::try_from(frame.len())?)?;
        qtest.until("a sent frame to be written back", |qtest| {
            let words = read_words::<2>(qtest, place)?;
            Ok(TxDescriptor(words).is_done().then_some(()))
        })
    }

    /// Posts one frame that lies at an address; gives where its descriptor is.
    pub(crate) fn post(&mut self, qtest: &mut Qtest, buffer: u64, length: u16) -> Result<u64> {
        let descriptor = TxData::new(buffer, length).with_end_of_packet().with_report_status();
        let place = self.memory + TX_RING + 16 * u64::from(self.tx_next);
        qtest.write(place, descriptor.0.as_bytes())?;
        self.tx_next = (self.tx_next + 1) % RING;
        self.set(qtest, registers::tx_tail(0), u32::from(self.tx_next))?;
        Ok(place)
    }

    /// What VFGEN_RSTAT reads.
    pub(crate) fn status(&self, qtest: &mut Qtest) -> Result<u32> {
        self.get(qtest, registers::RSTAT)
    }

    /// Waits for the interrupt of vector 1 and gives the one frame that has come (§5.5, §6).
    pub(crate) fn receive_frame(&mut self, qtest: &mut Qtest) -> Result<Vec<u8>> {
        self.interrupt(qtest, 1)?;
        let index = u64::from(self.rx_next);
        let descriptor = RxLegacy(read_words::<4>(qtest, self.memory + RX_RING + 32 * index)?);
        ensure!(descriptor.is_done(), "vector 1 fired before the descriptor was written back");
        ensure!(descriptor.end_of_packet(), "a short frame takes one buffer");
        let buffer = self.memory + RX_BUFFERS + index * u64::from(RX_BUFFER);
        let frame = qtest.read(buffer, usize::from(descriptor.length()))?;
        self.rx_next = (self.rx_next + 1) % RING;
        self.set(qtest, registers::dyn_ctl(1), DynCtl::ENABLE.0)?;
        Ok(frame)
    }

    /// Stops the queues.
    pub(crate) fn stop_queues(&mut self, qtest: &mut Qtest) -> Result<()> {
        let vsi_id = self.resources.context("the VF has no resources yet")?.vsi_id;
        let request = Request::DisableQueues(QueueSelect::new(vsi_id, 1, 1));
        self.call(qtest, &request)?;
        self.link = None;
        Ok(())
    }

    /// RESET_VF: no answer comes; ARQLEN loses its enable bit and RSTAT says when it is over (§7).
    pub(crate) fn reset(&mut self, qtest: &mut Qtest) -> Result<()> {
        let place = self.memory + ATQ + 32 * u64::from(self.atq_tail);
        let descriptor = AdminQueueDescriptor::send_to_pf(Opcode::ResetVf.value(), 0, 0);
        qtest.write(place, descriptor.as_bytes())?;
        self.set(qtest, registers::ATQT, u32::from((self.atq_tail + 1) % QUEUE_LENGTH))?;
        let this = &*self;
        qtest.until("the mailbox to go down with the reset", |qtest| {
            Ok((!QueueLength(this.get(qtest, registers::ARQLEN)?).is_enabled()).then_some(()))
        })?;
        (self.resources, self.link) = (None, None);
        Ok(())
    }
}

fn read_descriptor(qtest: &mut Qtest, address: u64) -> Result<AdminQueueDescriptor> {
    let bytes = qtest.read(address, 32)?;
    AdminQueueDescriptor::read_from_bytes(&bytes)
        .map_err(|_| anyhow::anyhow!("a descriptor has {} bytes", bytes.len()))
}

fn read_words<const N: usize>(qtest: &mut Qtest, address: u64) -> Result<[u64; N]> {
    let bytes = qtest.read(address, N * 8)?;
    <[u64; N]>::read_from_bytes(&bytes)
        .map_err(|_| anyhow::anyhow!("a descriptor has {} bytes", bytes.len()))
}
