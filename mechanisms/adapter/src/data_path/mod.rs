//! The data path of the NIC: one worker thread that owns every queue of every function.
//!
//! A frame from one VM to another is copied once, from the sender's buffer to the receiver's. Per frame there
//! is no lock, no allocation, no system call and no log line. Guest memory is hostile: each descriptor and
//! each frame header is read once into a local copy, checked, and used from there.
//!
//! * `burst`: a TX queue's burst, from descriptors to delivered frames (the fast path)
//! * `transmit`, `receive`: the two sides of a function, their rings and write-backs
//! * `deliver`: puts a frame where the NIC switch said
//! * `inspect`, `segment`, `rss`: offloads: packet types and checksum verdicts, segmentation, RSS
//! * `uplink_port`: the physical port
//! * `schedule`: which queues are polled when, and how an idle worker sleeps
//! * `due`: interrupts that their interval holds back
//! * `worker`: the thread, and the handle by which control reaches it

mod burst;
mod deliver;
mod due;
mod inspect;
mod receive;
mod rss;
mod schedule;
mod segment;
mod stats;
#[cfg(test)]
mod tests;
mod transmit;
mod uplink_port;
mod worker;

use std::{os::fd::BorrowedFd, sync::Arc};

use avf_device::{InterruptVectors, RxQueueConfig, TxQueueConfig, VfSettings};
use ndis_protocol::{MacAddress, VPortId};
use nic_switch::{EgressList, Ingress, NicSwitch, SwitchError};
use shared_memory::{DmaFault, DmaMap, DoorbellPage};
use uplink::{LinkState, Uplink};

pub use schedule::IdlePolicy;
pub use stats::{FunctionStats, ReceiveStats, TransmitStats, UplinkStats};
pub use worker::{DataPathHandle, DataPathStopped, Worker, WorkerConfig};

use deliver::{Body, Fabric, Frame};
use due::DueInterrupts;
use receive::{Receiver, RxQueue};
use schedule::{QueueId, Schedule};
use transmit::{Sender, TxQueue};
use uplink_port::UplinkPort;

/// Most buffers that one received frame may be spread over (SPEC-AVF §5.5).
const MAX_RX_BUFFERS: usize = 5;
/// Most buffers that one transmitted packet may be gathered from.
const MAX_PIECES: usize = 48;
/// Bytes of a packet that the general path reads once and delivers from the local copy: all headers.
const HEAD_BYTES: usize = 256;
/// Queues of one direction that a function can have.
const MAX_QUEUES: usize = 16;

/// Slot of a function in the data path: 0 is the PF, n+1 is VF n.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct FunctionSlot(usize);

impl FunctionSlot {
    /// The PF's own queue pairs.
    pub const PF: Self = Self(0);

    /// The slot of a VF.
    pub const fn vf(id: ndis_protocol::VfId) -> Self {
        Self(id.index() + 1)
    }

    /// Its place among the functions.
    pub(crate) const fn index(self) -> usize {
        self.0
    }
}

/// What the data path shares with a function's register file.
#[derive(Clone)]
pub struct FunctionContext {
    /// TX tails.
    pub tx_doorbells: DoorbellPage,
    /// RX tails.
    pub rx_doorbells: DoorbellPage,
    /// MSI-X vectors.
    pub interrupts: Arc<InterruptVectors>,
}

/// The data path. Built by control, then owned by its [`Worker`].
pub struct DataPath {
    switch: NicSwitch,
    senders: Vec<Option<Sender>>,
    receivers: Vec<Option<Receiver>>,
    maps: Vec<DmaMap>,
    /// Function slot of each VPort.
    slots: Vec<Option<usize>>,
    uplink: UplinkPort,
    schedule: Schedule,
    list: EgressList,
    dirty: Vec<usize>,
    max_frame: usize,
    due: DueInterrupts,
    /// Functions with RX queues that are enabled and have no buffers yet.
    starting: Vec<FunctionSlot>,
    on_link: Option<Box<dyn Fn(LinkState) + Send>>,
    on_receiving: Option<Box<dyn Fn(FunctionSlot, bool) + Send>>,
}

impl DataPath {
    /// A data path for a pool of `vports` VPorts and `functions` function slots, frames of at most
    /// `max_frame` bytes.
    pub fn new(vports: usize, functions: usize, max_frame: usize, uplink: Box<dyn Uplink>) -> Self {
        Self {
            switch: NicSwitch::new(vports),
            senders: std::iter::repeat_with(|| None).take(functions).collect(),
            receivers: std::iter::repeat_with(|| None).take(functions).collect(),
            maps: vec![DmaMap::empty(); functions],
            slots: vec![None; vports.max(1)],
            uplink: UplinkPort::new(uplink, max_frame),
            schedule: Schedule::default(),
            list: EgressList::with_capacity(vports),
            dirty: Vec::with_capacity(functions),
            max_frame,
            due: DueInterrupts::default(),
            starting: Vec::new(),
            on_link: None,
            on_receiving: None,
        }
    }

    /// Whom to tell when the uplink's link changes. Called on the worker thread: it must not wait.
    pub fn on_link_change(&mut self, tell: impl Fn(LinkState) + Send + 'static) {
        self.on_link = Some(Box::new(tell));
    }

    /// Whom to tell whether frames are let into a function's queues, after whatever may have changed it. Called on the
    /// worker thread: it must not wait.
    pub fn on_receiving_change(&mut self, tell: impl Fn(FunctionSlot, bool) + Send + 'static) {
        self.on_receiving = Some(Box::new(tell));
    }

    /// The NIC switch, to be changed between two bursts.
    pub fn switch(&mut self) -> &mut NicSwitch {
        &mut self.switch
    }

    /// Brings a function in: it has no queues yet, and no VPort.
    pub fn attach(&mut self, slot: FunctionSlot, context: FunctionContext) {
        let FunctionContext { tx_doorbells, rx_doorbells, interrupts } = context;
        self.detach(slot);
        if let Some(place) = self.senders.get_mut(slot.0) {
            *place = Some(Sender {
                vport: None,
                doorbells: tx_doorbells,
                interrupts: Arc::clone(&interrupts),
                queues: std::iter::repeat_with(|| None).take(MAX_QUEUES).collect(),
                max_frame: self.max_frame,
                stats: TransmitStats::default(),
            });
        }
        if let Some(place) = self.receivers.get_mut(slot.0) {
            *place = Some(Receiver {
                doorbells: rx_doorbells,
                interrupts,
                queues: std::iter::repeat_with(|| None).take(MAX_QUEUES).collect(),
                steering: rss::RssSteering::default(),
                strip_vlan: false,
                stats: ReceiveStats::default(),
                dirty: 0,
                starting: 0,
            });
        }
    }

    /// Takes a function out; nothing touches its memory any more.
    pub fn detach(&mut self, slot: FunctionSlot) {
        self.stop_queues(slot, u32::MAX, u32::MAX);
        if let Some(place) = self.senders.get_mut(slot.0) {
            *place = None;
        }
        if let Some(place) = self.receivers.get_mut(slot.0) {
            *place = None;
        }
        if let Some(map) = self.maps.get_mut(slot.0) {
            *map = DmaMap::empty();
        }
        for place in &mut self.slots {
            if *place == Some(slot.0) {
                *place = None;
            }
        }
    }

    /// Attaches a function to a VPort of the switch, which must exist.
    pub fn bind(&mut self, vport: VPortId, slot: FunctionSlot) -> Result<(), SwitchError> {
        let receiving = self.is_receiving(slot);
        self.switch.set_receiving(vport, receiving)?;
        if let Some(place) = self.slots.get_mut(vport.index()) {
            *place = Some(slot.0);
        }
        if let Some(Some(sender)) = self.senders.get_mut(slot.0) {
            sender.vport.get_or_insert(vport);
        }
        Ok(())
    }

    /// Takes a VPort from its function.
    pub fn unbind(&mut self, vport: VPortId) -> Result<(), SwitchError> {
        self.switch.set_receiving(vport, false)?;
        self.forget_vport(vport);
        Ok(())
    }

    /// Forgets which function a VPort had, after the switch has deleted it.
    pub fn forget_vport(&mut self, vport: VPortId) {
        let slot = self.slots.get_mut(vport.index()).and_then(Option::take);
        if let Some(Some(sender)) = slot.and_then(|slot| self.senders.get_mut(slot))
            && sender.vport == Some(vport)
        {
            sender.vport = None;
        }
    }

    fn is_receiving(&self, slot: FunctionSlot) -> bool {
        matches!(self.receivers.get(slot.0), Some(Some(receiver)) if receiver.receiving())
    }

    fn update_receiving(&mut self, slot: FunctionSlot) {
        let receiving = self.is_receiving(slot);
        for (index, place) in self.slots.iter().enumerate() {
            if *place == Some(slot.0)
                && let Some(vport) = u32::try_from(index).ok().and_then(VPortId::new)
            {
                // A VPort in the list exists.
                let _ = self.switch.set_receiving(vport, receiving);
            }
        }
        if let Some(tell) = &self.on_receiving {
            tell(slot, receiving);
        }
    }

    /// Replaces a function's DMA map. When this returns the old one is not used any more. Queues whose ring
    /// is no longer mapped are stopped; each is a fault of the function.
    pub fn set_dma_map(&mut self, slot: FunctionSlot, map: DmaMap) {
        if let Some(Some(sender)) = self.senders.get_mut(slot.0) {
            for (number, place) in sender.queues.iter_mut().enumerate() {
                if place.as_mut().is_some_and(|queue| queue.remap(&map).is_err()) {
                    *place = None;
                    sender.stats.dma_faults += 1;
                    self.schedule.remove(QueueId { function: slot.0, number });
                }
            }
        }
        if let Some(Some(receiver)) = self.receivers.get_mut(slot.0) {
            for place in &mut receiver.queues {
                if place.as_mut().is_some_and(|queue| queue.remap(&map).is_err()) {
                    *place = None;
                    receiver.stats.dma_faults += 1;
                }
            }
        }
        if let Some(place) = self.maps.get_mut(slot.0) {
            *place = map;
        }
        self.update_receiving(slot);
    }

    /// Starts queues with their heads at 0. All or none.
    ///
    /// # Errors
    /// The first queue whose ring the function's DMA map does not hold.
    pub fn start_queues(
        &mut self,
        slot: FunctionSlot,
        tx: &[(u16, TxQueueConfig)],
        rx: &[(u16, RxQueueConfig)],
    ) -> Result<(), (u16, DmaFault)> {
        let map = self.maps.get(slot.0).cloned().unwrap_or_default();
        let tx: Vec<_> = tx
            .iter()
            .map(|&(number, config)| match TxQueue::new(number, config, &map) {
                Ok(queue) => Ok((number, queue)),
                Err(fault) => Err((number, fault)),
            })
            .collect::<Result<_, _>>()?;
        let rx: Vec<_> = rx
            .iter()
            .map(|&(number, config)| match RxQueue::new(number, config, &map) {
                Ok(queue) => Ok((number, queue)),
                Err(fault) => Err((number, fault)),
            })
            .collect::<Result<_, _>>()?;
        if let Some(Some(sender)) = self.senders.get_mut(slot.0) {
            for (number, queue) in tx {
                let number = usize::from(number);
                if let Some(place) = sender.queues.get_mut(number) {
                    *place = Some(queue);
                    self.schedule.add(QueueId { function: slot.0, number });
                }
            }
        }
        if let Some(Some(receiver)) = self.receivers.get_mut(slot.0) {
            for (number, queue) in rx {
                if let Some(place) = receiver.queues.get_mut(usize::from(number)) {
                    *place = Some(queue);
                    receiver.starting |= 1 << number;
                }
            }
            self.starting.push(slot);
        }
        self.admit_starting_queues();
        Ok(())
    }

    /// Lets frames into queues that have got their first buffers. Until then they go elsewhere: a driver may enable a
    /// queue before it posts buffers, and nothing is lost by that.
    #[cold]
    fn admit_starting_queues(&mut self) {
        for slot in std::mem::take(&mut self.starting) {
            let Some(Some(receiver)) = self.receivers.get_mut(slot.0) else { continue };
            if receiver.look_for_buffers() {
                receiver.update_steering();
            }
            if receiver.starting != 0 {
                self.starting.push(slot);
            }
            self.update_receiving(slot);
        }
    }

    /// One burst of each TX queue of the bitmap. Returns whether any had something.
    pub fn poll_queues(&mut self, slot: FunctionSlot, tx: u32, now_ns: u64) -> bool {
        let mut worked = false;
        for number in (0..u32::BITS as usize).filter(|number| tx & (1 << number) != 0) {
            worked |= self.poll_queue(QueueId { function: slot.0, number }, now_ns);
        }
        self.uplink.flush();
        worked
    }

    /// Stops the queues of the two bitmaps. When this returns their memory is not touched any more.
    pub fn stop_queues(&mut self, slot: FunctionSlot, tx: u32, rx: u32) {
        if let Some(Some(sender)) = self.senders.get_mut(slot.0) {
            for (number, place) in sender.queues.iter_mut().enumerate() {
                if tx & (1 << number) != 0 && place.take().is_some() {
                    self.schedule.remove(QueueId { function: slot.0, number });
                }
            }
        }
        if let Some(Some(receiver)) = self.receivers.get_mut(slot.0) {
            for (number, place) in receiver.queues.iter_mut().enumerate() {
                if rx & (1 << number) != 0 {
                    *place = None;
                }
            }
            receiver.update_steering();
        }
        self.update_receiving(slot);
    }

    /// Takes over what a function's driver asked for. Unicast addresses besides the `assigned` one, which
    /// the receive filters govern, get filters of their own: the function was permitted to use them.
    pub fn apply(&mut self, slot: FunctionSlot, settings: &VfSettings, assigned: MacAddress) {
        if let Some(Some(receiver)) = self.receivers.get_mut(slot.0) {
            receiver.apply(settings);
        }
        if let Some(Some(sender)) = self.senders.get_mut(slot.0) {
            sender.apply(settings);
        }
        let vports: Vec<_> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, place)| **place == Some(slot.0))
            .filter_map(|(index, _)| u32::try_from(index).ok().and_then(VPortId::new))
            .collect();
        for vport in vports {
            let vlans = settings.vlan_filtering.then(|| settings.vlans.iter().copied().collect());
            // A VPort in the list exists.
            let _ = self.switch.set_guest_filters(
                vport,
                settings.multicast.iter().map(|mac| MacAddress::new(mac.0)),
                settings.promiscuous_multicast,
                settings.promiscuous_unicast,
                vlans,
            );
            let addresses = settings.unicast.iter().chain(&settings.primary_mac);
            let addresses = addresses.map(|mac| MacAddress::new(mac.0));
            let addresses: Vec<_> = addresses.filter(|mac| *mac != assigned).collect();
            // As above.
            let _ = self.switch.set_guest_addresses(vport, &addresses);
        }
    }

    /// Counters of one function; zero for one that is not there.
    pub fn stats(&self, slot: FunctionSlot) -> FunctionStats {
        FunctionStats {
            receive: match self.receivers.get(slot.0) {
                Some(Some(receiver)) => receiver.stats,
                _ => ReceiveStats::default(),
            },
            transmit: match self.senders.get(slot.0) {
                Some(Some(sender)) => sender.stats,
                _ => TransmitStats::default(),
            },
        }
    }

    /// Zeroes the counters of one function, as a reset does.
    pub fn clear_stats(&mut self, slot: FunctionSlot) {
        if let Some(Some(receiver)) = self.receivers.get_mut(slot.0) {
            receiver.stats = ReceiveStats::default();
        }
        if let Some(Some(sender)) = self.senders.get_mut(slot.0) {
            sender.stats = TransmitStats::default();
        }
    }

    /// Counters of the physical port.
    pub fn uplink_stats(&self) -> UplinkStats {
        self.uplink.stats
    }

    /// Link of the physical port.
    pub fn link(&self) -> LinkState {
        self.uplink.link()
    }

    /// What the physical port is connected to, and the last error it had.
    pub fn uplink_state(&self) -> (String, Option<String>) {
        (self.uplink.uplink().spec().to_string(), self.uplink.last_error().map(str::to_owned))
    }

    /// Whether a replaying uplink is through with its capture.
    pub fn replay_finished(&self) -> Option<bool> {
        self.uplink.uplink().replay_finished()
    }

    /// Connects the physical port to something else.
    pub fn set_uplink(&mut self, uplink: Box<dyn Uplink>) {
        let before = self.uplink.link();
        self.uplink.replace(uplink);
        let now = self.uplink.link();
        if now != before {
            self.link_changed(now);
        }
    }

    fn link_changed(&self, link: LinkState) {
        if let Some(tell) = &self.on_link {
            tell(link);
        }
    }

    /// One round over the queues and the uplink. Returns whether there was anything to do.
    pub fn poll(&mut self, now_ns: u64) -> bool {
        if !self.starting.is_empty() {
            self.admit_starting_queues();
        }
        let mut worked = false;
        let mut position = 0;
        while let Some(queue) = self.schedule.hot(position) {
            let busy = self.poll_queue(queue, now_ns);
            worked |= busy;
            position = self.schedule.polled_hot(position, busy);
        }
        for _ in 0..self.schedule.cold_looks() {
            let Some(queue) = self.schedule.cold() else { break };
            let busy = self.poll_queue(queue, now_ns);
            worked |= busy;
            self.schedule.polled_cold(busy);
        }
        worked |= self.poll_uplink(now_ns);
        self.uplink.flush();
        if self.due.next().is_some_and(|due| due <= now_ns) {
            self.send_due(now_ns);
        }
        worked
    }

    fn poll_queue(&mut self, queue: QueueId, now_ns: u64) -> bool {
        let Some(Some(sender)) = self.senders.get_mut(queue.function) else { return false };
        let Some(map) = self.maps.get(queue.function) else { return false };
        let mut fabric = Fabric {
            switch: &self.switch,
            receivers: &mut self.receivers,
            maps: &self.maps,
            slots: &self.slots,
            uplink: &mut self.uplink,
            list: &mut self.list,
            dirty: &mut self.dirty,
            due: &mut self.due,
            now_ns,
        };
        burst::poll_queue(sender, queue.function, queue.number, map, &mut fabric)
    }

    fn poll_uplink(&mut self, now_ns: u64) -> bool {
        if let Some(link) = self.uplink.poll_link(now_ns) {
            self.link_changed(link);
        }
        let count = self.uplink.receive();
        if count == 0 {
            return false;
        }
        // The burst leaves the port for as long as the fabric borrows the port.
        let incoming = std::mem::replace(&mut self.uplink.incoming, uplink::FrameBurst::new(0, 0));
        let mut fabric = Fabric {
            switch: &self.switch,
            receivers: &mut self.receivers,
            maps: &self.maps,
            slots: &self.slots,
            uplink: &mut self.uplink,
            list: &mut self.list,
            dirty: &mut self.dirty,
            due: &mut self.due,
            now_ns,
        };
        let mut dropped = 0;
        for bytes in incoming.iter() {
            let (head, rest) = bytes.split_at_checked(HEAD_BYTES).unwrap_or((bytes, &[]));
            let Some((key, tag_in_head)) = burst::frame_key(head, None) else {
                dropped += 1;
                continue;
            };
            let body = Body::Local(rest);
            let inspection = inspect::inspect(head, body, bytes.len());
            let frame = Frame { head, body, key, tag_in_head, inspection };
            dropped += u64::from(fabric.forward(Ingress::Uplink, &frame).is_err());
        }
        fabric.finish();
        self.uplink.incoming = incoming;
        self.uplink.stats.received_dropped += dropped;
        true
    }

    /// A register write has left a message of a function held back until `deadline_ns`.
    pub fn interrupt_due(&mut self, slot: FunctionSlot, deadline_ns: u64) {
        self.due.note(slot.0, Some(deadline_ns));
    }

    /// Sends the messages whose intervals have passed.
    fn send_due(&mut self, now_ns: u64) {
        let receivers = &self.receivers;
        self.due.expire(now_ns, |slot| match receivers.get(slot) {
            Some(Some(receiver)) => receiver.interrupts.expire_due(now_ns),
            _ => None,
        });
    }

    /// When the worker must look again, although nothing arrives.
    fn deadline_ns(&self) -> Option<u64> {
        self.due.next()
    }

    /// Prepares a sleep; false if there is something to do already.
    fn prepare_sleep(&mut self) -> bool {
        self.uplink.arm()
    }

    /// What the uplink can wake the worker by.
    fn uplink_fd(&self) -> Option<BorrowedFd<'_>> {
        self.uplink.wait_fd()
    }
}

/// The earlier of two times, if any.
fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
