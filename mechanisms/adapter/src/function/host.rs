//! What a function's register file asks of the adapter: queues, settings, permissions, statistics.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use avf_device::{QueueError, RxQueueConfig, TxQueueConfig, VfHost, VfSettings};
use avf_protocol::{
    MAX_RING_LENGTH, MacAddress,
    virtchnl::{EthStats, LinkStatus},
};

use ndis_protocol::VfId;

use crate::{
    clock::now_ns,
    data_path::{DataPathHandle, DataPathStopped, FunctionSlot},
    vf_drivers::{DriverState, VfDrivers},
};

/// The link of the physical port, as all functions see it.
#[derive(Debug, Default)]
pub(crate) struct SharedLink {
    up: AtomicBool,
    mbps: AtomicU32,
}

/// What is announced where the medium knows no speed: drivers tune their moderation by it (SPEC-AVF §9).
const DEFAULT_MBPS: u32 = 100_000;

impl SharedLink {
    pub(crate) fn set(&self, link: uplink::LinkState) {
        let mbps = if link.speed_mbps == 0 { DEFAULT_MBPS } else { link.speed_mbps };
        self.mbps.store(mbps, Ordering::Release);
        self.up.store(link.up, Ordering::Release);
    }

    pub(crate) fn get(&self) -> LinkStatus {
        let up = self.up.load(Ordering::Acquire);
        LinkStatus { up, mbps: if up { self.mbps.load(Ordering::Acquire) } else { 0 } }
    }
}

/// What the administrator has decided about a function.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct FunctionPolicy {
    /// The address assigned to it; zero leaves the choice to the guest.
    pub(crate) mac: ndis_protocol::MacAddress,
    /// The guest may use other addresses too.
    pub(crate) allow_spoofing: bool,
    /// The guest may see frames that are not for it.
    pub(crate) allow_promiscuous: bool,
    /// Queue pairs of its VPort.
    pub(crate) queue_pairs: u16,
}

/// The adapter as one function sees it.
pub(crate) struct FunctionHost {
    pub(crate) slot: FunctionSlot,
    pub(crate) data_path: DataPathHandle,
    pub(crate) link: Arc<SharedLink>,
    pub(crate) policy: FunctionPolicy,
    pub(crate) drivers: Arc<VfDrivers>,
    /// The VF's number; `None` is the PF.
    pub(crate) vf: Option<VfId>,
}

impl FunctionHost {
    /// Says what the function's driver does.
    pub(crate) fn say(&self, state: DriverState) {
        if let Some(vf) = self.vf {
            self.drivers.say(vf, state);
        }
    }
}

impl VfHost for FunctionHost {
    fn start_queues(
        &mut self,
        tx: &[(u16, TxQueueConfig)],
        rx: &[(u16, RxQueueConfig)],
    ) -> Result<(), QueueError> {
        let (slot, tx, rx) = (self.slot, tx.to_vec(), rx.to_vec());
        let started = self.data_path.run(move |data_path| data_path.start_queues(slot, &tx, &rx));
        match started {
            Ok(Ok(())) => Ok(()),
            Ok(Err((queue, fault))) => Err(QueueError::Ring { queue, fault }),
            Err(DataPathStopped) => Err(QueueError::NoResources),
        }
    }

    fn finish_transmit(&mut self, tx: u32) {
        let slot = self.slot;
        // Between the rounds of the data path, so that nobody else waits for it; a driver that keeps on posting is no
        // reason to stay.
        for _ in 0..MAX_RING_LENGTH {
            match self.data_path.run(move |data_path| data_path.poll_queues(slot, tx, now_ns())) {
                Ok(true) => {}
                Ok(false) | Err(DataPathStopped) => break,
            }
        }
    }

    fn stop_queues(&mut self, tx: u32, rx: u32) {
        let slot = self.slot;
        // A data path that has stopped touches no memory.
        let _ = self.data_path.run(move |data_path| data_path.stop_queues(slot, tx, rx));
    }

    fn apply(&mut self, settings: &VfSettings) {
        let (slot, settings) = (self.slot, settings.clone());
        let assigned = self.policy.mac;
        let _ = self.data_path.run(move |data_path| data_path.apply(slot, &settings, assigned));
    }

    fn permit_mac(&self, address: MacAddress) -> bool {
        self.policy.allow_spoofing
            || self.policy.mac.is_zero()
            || address.0 == self.policy.mac.octets()
    }

    fn permit_queue_count(&mut self, pairs: u16) -> Result<u16, u16> {
        if pairs <= self.policy.queue_pairs { Ok(pairs) } else { Err(self.policy.queue_pairs) }
    }

    fn statistics(&mut self) -> EthStats {
        let slot = self.slot;
        let stats = self.data_path.run(move |data_path| data_path.stats(slot)).unwrap_or_default();
        let (rx, tx) = (stats.receive, stats.transmit);
        EthStats {
            rx_bytes: rx.bytes,
            rx_unicast: rx.unicast,
            rx_multicast: rx.multicast,
            rx_broadcast: rx.broadcast,
            rx_discards: rx.discards(),
            rx_unknown_protocol: 0,
            tx_bytes: tx.bytes,
            tx_unicast: tx.unicast,
            tx_multicast: tx.multicast,
            tx_broadcast: tx.broadcast,
            tx_discards: tx.discards(),
            tx_errors: tx.errors(),
        }
    }

    fn link(&self) -> LinkStatus {
        self.link.get()
    }

    fn doorbell(&mut self) {
        self.data_path.wake();
    }

    fn interrupt_due(&mut self, deadline_ns: u64) {
        let slot = self.slot;
        let _ = self.data_path.run(move |data_path| data_path.interrupt_due(slot, deadline_ns));
    }
}
