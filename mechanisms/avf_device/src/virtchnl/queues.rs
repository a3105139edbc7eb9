//! CONFIG_VSI_QUEUES, CONFIG_IRQ_MAP, ENABLE_QUEUES and DISABLE_QUEUES (SPEC-AVF §4.8, §5.1).

use avf_protocol::{
    MAX_RING_LENGTH, RING_ALIGNMENT, RING_LENGTH_MULTIPLE,
    receive::RXDID_FLEX_NIC,
    registers::NO_ITR,
    virtchnl::{
        Capabilities, DatabufferSize, QueuePairInfo, QueueSelect, Reply, RxQueueInfo, Status,
        TxQueueInfo, VectorMap,
    },
};
use shared_memory::DmaAddress;

use super::DONE;
use crate::{
    AvfDevice, QueueInterrupt, RxFormat, RxQueueConfig, TxQueueConfig, VfHost, device::queues,
};

/// The least frame limit of a receive queue, bytes.
const MIN_MAX_FRAME: u32 = 64;

/// One direction of a queue pair.
#[derive(Copy, Clone, Debug)]
pub(crate) struct QueueState<R> {
    /// The ring, if one is configured.
    pub(crate) ring: Option<R>,
    /// Whether it was started and not stopped.
    pub(crate) running: bool,
}

impl<R> Default for QueueState<R> {
    fn default() -> Self {
        Self { ring: None, running: false }
    }
}

/// A TX ring as configured.
#[derive(Copy, Clone, Debug)]
pub(crate) struct TxRing {
    base: DmaAddress,
    length: u16,
}

/// An RX ring as configured.
#[derive(Copy, Clone, Debug)]
pub(crate) struct RxRing {
    base: DmaAddress,
    length: u16,
    buffer_size: u16,
    max_frame_size: u16,
    format: RxFormat,
}

/// A configuration that was checked and not yet taken over.
struct Checked<R> {
    queue: u16,
    /// `None` leaves the queue unused.
    ring: Option<R>,
}

impl AvfDevice {
    pub(super) fn config_vsi_queues(
        &mut self,
        vsi_id: u16,
        pairs: &[QueuePairInfo],
        host: &mut dyn VfHost,
    ) -> Result<Reply, Status> {
        self.check_vsi(vsi_id)?;
        if pairs.is_empty() || pairs.len() > usize::from(self.vf.queue_pairs) {
            return Err(Status::Parameter);
        }
        let mut checked = Vec::with_capacity(pairs.len());
        for pair in pairs {
            if pair.tx.queue_id != pair.rx.queue_id {
                return Err(Status::Parameter);
            }
            checked.push((self.check_tx(&pair.tx)?, self.check_rx(&pair.rx)?));
        }
        for (tx, rx) in checked {
            self.take_over(Some(tx), Some(rx), host);
        }
        DONE
    }

    pub(super) fn config_tx_queue(
        &mut self,
        queue: &TxQueueInfo,
        host: &mut dyn VfHost,
    ) -> Result<Reply, Status> {
        self.check_vsi(queue.vsi_id.get())?;
        let checked = self.check_tx(queue)?;
        self.take_over(Some(checked), None, host);
        DONE
    }

    pub(super) fn config_rx_queue(
        &mut self,
        queue: &RxQueueInfo,
        host: &mut dyn VfHost,
    ) -> Result<Reply, Status> {
        self.check_vsi(queue.vsi_id.get())?;
        let checked = self.check_rx(queue)?;
        self.take_over(None, Some(checked), host);
        DONE
    }

    fn check_tx(&self, info: &TxQueueInfo) -> Result<Checked<TxRing>, Status> {
        let queue = self.check_queue(info.queue_id.get())?;
        if info.ring_len.get() == 0 {
            return Ok(Checked { queue, ring: None });
        }
        if info.headwb_enabled.get() != 0 {
            return Err(Status::Parameter);
        }
        let (base, length) = check_ring(info.dma_ring_addr.get(), info.ring_len.get().into())?;
        Ok(Checked { queue, ring: Some(TxRing { base, length }) })
    }

    fn check_rx(&self, info: &RxQueueInfo) -> Result<Checked<RxRing>, Status> {
        let queue = self.check_queue(info.queue_id.get())?;
        if info.ring_len.get() == 0 {
            return Ok(Checked { queue, ring: None });
        }
        let (base, length) = check_ring(info.dma_ring_addr.get(), info.ring_len.get())?;
        let buffer_size = info.databuffer_size.get();
        if !(DatabufferSize::MIN..=DatabufferSize::MAX).contains(&buffer_size) {
            return Err(Status::Parameter);
        }
        // Drivers may ask for more than there is; clamp, do not fail.
        let limit = u32::from(self.config.max_frame);
        let max_frame_size = info.max_pkt_size.get().clamp(MIN_MAX_FRAME, limit);
        let flex =
            self.vf.granted.contains(Capabilities::RX_FLEX_DESC) && info.rxdid == RXDID_FLEX_NIC;
        let ring = RxRing {
            base,
            length,
            buffer_size: u16::try_from(buffer_size).map_err(|_| Status::Parameter)?,
            max_frame_size: u16::try_from(max_frame_size).map_err(|_| Status::Parameter)?,
            format: if flex { RxFormat::FlexNic } else { RxFormat::Legacy },
        };
        Ok(Checked { queue, ring: Some(ring) })
    }

    fn check_queue(&self, queue: u16) -> Result<u16, Status> {
        if queue < self.vf.queue_pairs { Ok(queue) } else { Err(Status::Parameter) }
    }

    /// Replaces the configuration of queues. Those that run are stopped first; tails stay, since a driver
    /// may have posted its RX buffers already.
    fn take_over(
        &mut self,
        tx: Option<Checked<TxRing>>,
        rx: Option<Checked<RxRing>>,
        host: &mut dyn VfHost,
    ) {
        let (mut stop_tx, mut stop_rx) = (0, 0);
        if let Some(Checked { queue, ring }) = tx
            && let Some(state) = self.vf.tx.get_mut(usize::from(queue))
        {
            stop_tx = u32::from(state.running) << queue;
            *state = QueueState { ring, running: false };
        }
        if let Some(Checked { queue, ring }) = rx
            && let Some(state) = self.vf.rx.get_mut(usize::from(queue))
        {
            stop_rx = u32::from(state.running) << queue;
            *state = QueueState { ring, running: false };
        }
        if stop_tx | stop_rx != 0 {
            host.stop_queues(stop_tx, stop_rx);
        }
    }

    /// Replaces what the listed vectors serve, also while queues run. Vector 0 may serve queues too.
    pub(super) fn config_irq_map(&mut self, vectors: &[VectorMap]) -> Result<Reply, Status> {
        let allowed = (1_u32 << self.vf.queue_pairs) - 1;
        for map in vectors {
            let bits = u32::from(map.rxq_map.get() | map.txq_map.get());
            if map.vector_id.get() >= self.config.vectors || bits & !allowed != 0 {
                return Err(Status::Parameter);
            }
        }
        let settings = &mut self.settings;
        for map in vectors {
            let vector = Some(map.vector_id.get());
            let all = settings.tx_interrupts.iter_mut().chain(&mut settings.rx_interrupts);
            for interrupt in all.filter(|interrupt| interrupt.vector == vector) {
                *interrupt = QueueInterrupt::NONE;
            }
        }
        for map in vectors {
            let interrupt = |itr: u16| QueueInterrupt {
                vector: Some(map.vector_id.get()),
                itr: u8::try_from(itr).unwrap_or(NO_ITR).min(NO_ITR),
            };
            for queue in queues(map.txq_map.get().into()) {
                if let Some(entry) = settings.tx_interrupts.get_mut(usize::from(queue)) {
                    *entry = interrupt(map.txitr_idx.get());
                }
            }
            for queue in queues(map.rxq_map.get().into()) {
                if let Some(entry) = settings.rx_interrupts.get_mut(usize::from(queue)) {
                    *entry = interrupt(map.rxitr_idx.get());
                }
            }
        }
        DONE
    }

    /// Starts queues that do not run yet, all or none. Tails that were written since they stopped, or since a reset, count:
    /// those of RX as SPEC-AVF §5.1 says; and of TX, since the iavf of Linux 6.1 sends again after a reset before it has
    /// enabled its queues. What a driver has left from before was forgotten when they stopped.
    pub(super) fn enable_queues(
        &mut self,
        select: &QueueSelect,
        host: &mut dyn VfHost,
    ) -> Result<Reply, Status> {
        let (tx_bits, rx_bits) = self.check_select(select)?;
        if tx_bits | rx_bits == 0 {
            return Err(Status::Parameter);
        }
        let (tx_running, rx_running) = self.vf.running();
        let (tx_bits, rx_bits) = (tx_bits & !tx_running, rx_bits & !rx_running);
        let mut tx = Vec::new();
        for queue in queues(tx_bits) {
            tx.push((queue, self.tx_config(queue).ok_or(Status::Parameter)?));
        }
        let mut rx = Vec::new();
        for queue in queues(rx_bits) {
            rx.push((queue, self.rx_config(queue).ok_or(Status::Parameter)?));
        }
        if tx.is_empty() && rx.is_empty() {
            return DONE;
        }
        host.start_queues(&tx, &rx).map_err(crate::QueueError::status)?;
        self.set_running(tx_bits, rx_bits, true);
        DONE
    }

    /// Stops queues; those that do not run are stopped already.
    pub(super) fn disable_queues(
        &mut self,
        select: &QueueSelect,
        host: &mut dyn VfHost,
    ) -> Result<Reply, Status> {
        let (tx, rx) = self.check_select(select)?;
        let (tx_running, rx_running) = self.vf.running();
        if (tx & tx_running) | (rx & rx_running) != 0 {
            if tx & tx_running != 0 {
                host.finish_transmit(tx & tx_running);
            }
            host.stop_queues(tx & tx_running, rx & rx_running);
        }
        self.set_running(tx, rx, false);
        self.doorbells.clear_tails(tx, rx);
        DONE
    }

    fn check_select(&self, select: &QueueSelect) -> Result<(u32, u32), Status> {
        self.check_vsi(select.vsi_id.get())?;
        let (tx, rx) = (select.tx_queues.get(), select.rx_queues.get());
        if (tx | rx) >> self.vf.queue_pairs != 0 {
            return Err(Status::Parameter);
        }
        Ok((tx, rx))
    }

    fn set_running(&mut self, tx: u32, rx: u32, running: bool) {
        for queue in queues(tx) {
            if let Some(state) = self.vf.tx.get_mut(usize::from(queue)) {
                state.running = running;
            }
        }
        for queue in queues(rx) {
            if let Some(state) = self.vf.rx.get_mut(usize::from(queue)) {
                state.running = running;
            }
        }
    }

    fn tx_config(&self, queue: u16) -> Option<TxQueueConfig> {
        let index = usize::from(queue);
        let ring = self.vf.tx.get(index)?.ring?;
        let interrupt = self.settings.tx_interrupts.get(index)?;
        Some(TxQueueConfig {
            ring: ring.base,
            length: ring.length,
            vector: interrupt.vector,
            itr: interrupt.itr,
            insert_tags: self.settings.vlan_insert,
        })
    }

    fn rx_config(&self, queue: u16) -> Option<RxQueueConfig> {
        let index = usize::from(queue);
        let ring = self.vf.rx.get(index)?.ring?;
        let interrupt = self.settings.rx_interrupts.get(index)?;
        Some(RxQueueConfig {
            ring: ring.base,
            length: ring.length,
            buffer_size: ring.buffer_size,
            max_frame_size: ring.max_frame_size,
            format: ring.format,
            vector: interrupt.vector,
            itr: interrupt.itr,
        })
    }
}

/// A ring's base and length, within what hardware takes.
fn check_ring(base: u64, length: u32) -> Result<(DmaAddress, u16), Status> {
    let length = u16::try_from(length).map_err(|_| Status::Parameter)?;
    let valid = length != 0
        && length.is_multiple_of(RING_LENGTH_MULTIPLE)
        && length <= MAX_RING_LENGTH
        && base.is_multiple_of(RING_ALIGNMENT);
    if valid { Ok((DmaAddress(base), length)) } else { Err(Status::Parameter) }
}
