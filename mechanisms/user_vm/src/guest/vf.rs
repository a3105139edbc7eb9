//! The VF as the carrier uses it: packets in and out through the AVF driver.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use avf_driver::{
    AvfControl, AvfDriver, DriverConfig, DriverError, DriverMemory, MemorySource, QueuePair,
    RxQueue, RxSegment, TxQueue, TxSegment,
};
use shared_memory::{DmaAddress, PAGE_SIZE, PageSize, SharedMapping, SharedSlice};

use super::{
    filters::{VfFilters, Wanted},
    frames::{BURST, Frames},
    translate::{self, Limits, WirePacket},
    vpci::VpciTransport,
};
use crate::{Drops, VfState};

/// Descriptors of a transmit ring: room for thirty of the largest TCP packets.
const TRANSMIT_RING: u16 = 1024;
/// Descriptors of a receive ring, of which the largest is taken that the VM's memory has room for. The largest
/// holds as much of a TCP stream as Linux sends without an acknowledgement, so that nothing is lost while
/// the carrier waits for a CPU.
const RECEIVE_RINGS: [u16; 4] = [4096, 2048, 1024, 512];
/// Segments handed to the driver at a time; more than the largest TCP packet has.
const SEGMENTS: usize = 128;
/// Device address of the first byte of the VM's memory.
const MEMORY_BASE: DmaAddress = DmaAddress(0x4000_0000);
/// How long to wait before a VF that could not be opened is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Which VF, and with what.
#[derive(Debug)]
pub(crate) struct VfConfig {
    socket: PathBuf,
    queue_pairs: u16,
    memory: SharedMapping,
    file: OwnedFd,
}

impl VfConfig {
    /// Creates the VM's memory, `bytes` long, and names the VF that will reach it.
    pub(crate) fn new(
        name: &str,
        socket: &Path,
        queue_pairs: u16,
        bytes: u64,
    ) -> Result<Self, DriverError> {
        let length = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE_SIZE))
            .ok_or_else(|| DriverError::Configuration(format!("{bytes} bytes of memory")))?;
        let (memory, file) = SharedMapping::create(name, length, PageSize::Base)?;
        Ok(Self { socket: socket.to_owned(), queue_pairs, memory, file })
    }

    fn driver(&self) -> Result<DriverConfig, DriverError> {
        let file = self.file.try_clone().map_err(|source| DriverError::Io {
            operation: "duplicating the descriptor of the VM's memory",
            source,
        })?;
        let mut config = DriverConfig::new(&self.socket);
        config.queue_pairs = self.queue_pairs;
        config.tx_ring = TRANSMIT_RING;
        config.interrupts = true;
        for ring in RECEIVE_RINGS {
            config.rx_ring = ring;
            if config.memory_needed()? <= self.memory.len() {
                break;
            }
        }
        config.memory = MemorySource::Given {
            mapping: self.memory.clone(),
            fd: file,
            file_offset: 0,
            iova: MEMORY_BASE,
            offset: 0,
            length: self.memory.len(),
        };
        Ok(config)
    }
}

/// What the driver counts. Counts go on over resets, and start anew with another VF.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub(super) struct Totals {
    pub(super) received_frames: u64,
    pub(super) received_bytes: u64,
    pub(super) receive_errors: u64,
    pub(super) transmitted_packets: u64,
    pub(super) transmitted_bytes: u64,
}

impl Totals {
    /// What was counted since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let grown = |now: u64, before: u64| now.saturating_sub(before);
        Self {
            received_frames: grown(self.received_frames, before.received_frames),
            received_bytes: grown(self.received_bytes, before.received_bytes),
            receive_errors: grown(self.receive_errors, before.receive_errors),
            transmitted_packets: grown(self.transmitted_packets, before.transmitted_packets),
            transmitted_bytes: grown(self.transmitted_bytes, before.transmitted_bytes),
        }
    }
}

/// What came in one burst.
#[derive(Copy, Clone, Default, Debug)]
pub(super) struct Received {
    /// Frames, those included that were not wanted.
    pub(super) frames: usize,
    /// Frames to groups, which were not wanted.
    pub(super) groups: u64,
}

/// What is about to be sent through one queue pair.
#[derive(Debug)]
struct Sending {
    /// Handed to the ring at the end of a burst; it has room for all of them.
    waiting: ArrayVec<TxSegment, SEGMENTS>,
    /// Descriptors that they take.
    descriptors: usize,
    /// Descriptors of the ring when all are free.
    capacity: usize,
}

impl Sending {
    fn flush(&mut self, queue: &mut TxQueue) {
        queue.transmit(&mut self.waiting);
        self.descriptors = 0;
    }
}

/// An open VF.
#[derive(Debug)]
pub(crate) struct VfPath {
    control: AvfControl,
    filters: VfFilters,
    /// Empty only while the pairs are being rebuilt, or could not be.
    pairs: Vec<QueuePair>,
    memory: Arc<DriverMemory>,
    /// By queue pair.
    sending: Vec<Sending>,
    limits: Limits,
    received: ArrayVec<RxSegment, BURST>,
    /// The queue pair that was received from last.
    turn: usize,
}

impl VfPath {
    /// Opens the VF on a socket.
    pub(crate) fn open(config: &VfConfig) -> Result<Self, DriverError> {
        let (control, pairs) = AvfDriver::open(config.driver()?)?;
        Ok(Self::new(control, pairs))
    }

    /// Opens the VF behind a virtual PCI bus, with rings as large as the guest's free memory allows.
    pub(crate) fn open_on(transport: VpciTransport, queue_pairs: u16) -> Result<Self, DriverError> {
        let mut config = DriverConfig::without_socket();
        config.queue_pairs = queue_pairs;
        config.tx_ring = TRANSMIT_RING;
        config.interrupts = true;
        let mut memory = Err(DriverError::Configuration("no receive ring".to_owned()));
        for ring in RECEIVE_RINGS {
            config.rx_ring = ring;
            memory = transport.memory(&config);
            if memory.is_ok() {
                break;
            }
        }
        config.memory = memory?;
        let (control, pairs) = AvfDriver::open_on(Arc::new(transport), config)?;
        Ok(Self::new(control, pairs))
    }

    fn new(control: AvfControl, mut pairs: Vec<QueuePair>) -> Self {
        let sending = |pair: &mut QueuePair| Sending {
            waiting: ArrayVec::new(),
            descriptors: 0,
            capacity: pair.tx.room(),
        };
        let sending = pairs.iter_mut().map(sending).collect();
        let memory = Arc::clone(control.memory());
        let limits = Limits::of_vf(control.capabilities().max_frame.into());
        Self {
            control,
            filters: VfFilters::default(),
            pairs,
            memory,
            sending,
            limits,
            received: ArrayVec::new(),
            turn: 0,
        }
    }

    /// Opens the VF, which may take until `limit` to appear on its socket.
    pub(crate) fn open_within(config: &VfConfig, limit: Duration) -> Result<Self, DriverError> {
        let start = Instant::now();
        loop {
            match Self::open(config) {
                Err(DriverError::Connect { .. } | DriverError::DeviceGone)
                    if start.elapsed() < limit =>
                {
                    std::thread::sleep(RETRY);
                }
                result => return result,
            }
        }
    }

    /// The driver's control part.
    pub(super) fn control(&mut self) -> &mut AvfControl {
        &mut self.control
    }

    /// What packets it takes.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Tells the VF what its interface wants to receive now.
    pub(crate) fn update_filters(&mut self, wanted: &Wanted) {
        self.filters.update(&mut self.control, wanted);
    }

    /// The VF's MAC address.
    pub(crate) fn mac(&self) -> [u8; 6] {
        self.control.mac().0
    }

    /// Bytes of the longest frame that the VF sends and receives.
    pub(crate) fn max_frame(&self) -> usize {
        self.control.capabilities().max_frame.into()
    }

    /// Whether the VF's link is up.
    pub(super) fn link_up(&self) -> bool {
        self.control.link().up
    }

    /// Writes down where the VF stands.
    pub(super) fn describe(&self, state: &mut VfState) {
        let link = self.control.link();
        state.present = true;
        state.link_up = link.up;
        state.link_speed_mbps = link.mbps;
        state.mac = self.mac();
        state.queue_pairs = u16::try_from(self.pairs.len()).unwrap_or(u16::MAX);
    }

    /// What the driver counted, over all queue pairs; `None` while it has none.
    pub(super) fn totals(&self) -> Option<Totals> {
        if self.pairs.is_empty() {
            return None;
        }
        let mut totals = Totals::default();
        for pair in &self.pairs {
            let (rx, tx) = (pair.rx.counters(), pair.tx.counters());
            totals.received_frames += rx.frames;
            totals.received_bytes += rx.bytes;
            totals.receive_errors += rx.damaged + rx.malformed;
            totals.transmitted_packets += tx.frames;
            totals.transmitted_bytes += tx.bytes;
        }
        Some(totals)
    }

    /// Whether the queues stand still: the VF was reset, or is gone.
    pub(super) fn is_stopped(&self) -> bool {
        self.pairs.iter().any(|pair| pair.rx.is_stopped()) || self.pairs.is_empty()
    }

    /// Receives the next burst from one of the queue pairs, each in its turn. Frames to groups only if they are wanted.
    pub(super) fn receive(
        &mut self,
        frames: &mut Frames,
        groups: bool,
        drops: &mut Drops,
    ) -> Received {
        frames.clear();
        for _ in 0..self.pairs.len() {
            self.turn = (self.turn + 1) % self.pairs.len();
            if let Some(pair) = self.pairs.get_mut(self.turn)
                && pair.rx.receive(&mut self.received) > 0
            {
                let rx = &mut pair.rx;
                return take_frames(&self.memory, rx, &mut self.received, frames, groups, drops);
            }
        }
        Received::default()
    }

    /// Hands a packet to the driver; false if there is no room for it now. What was taken goes out with
    /// [`flush`](Self::flush), but for a reset.
    pub(super) fn send(&mut self, packet: &WirePacket<'_>) -> bool {
        let index = match self.pairs.len() {
            0 => return false,
            1 => 0,
            pairs => packet.flow() as usize % pairs,
        };
        let (Some(pair), Some(sending)) = (self.pairs.get_mut(index), self.sending.get_mut(index))
        else {
            return false;
        };
        let offload = packet.avf_offload();
        let parts = packet.len().div_ceil(self.memory.buffer_size());
        let descriptors = parts + usize::from(offload.segments());
        if sending.waiting.remaining_capacity() < parts {
            sending.flush(&mut pair.tx);
        }
        if sending.waiting.remaining_capacity() < parts
            || pair.tx.room() < sending.descriptors + descriptors
        {
            return false;
        }
        let waiting = &mut sending.waiting;
        let first = waiting.len();
        let mut bytes = Bytes { head: &packet.head, body: &packet.body };
        for _ in 0..parts {
            let Some(buffer) = pair.tx.reserve() else {
                for segment in waiting.drain(first..) {
                    pair.tx.free(segment.buffer);
                }
                return false;
            };
            let length = self.memory.bytes(&buffer).map_or(0, |slice| bytes.write_to(slice));
            let mut segment = TxSegment::frame(buffer, length);
            segment.end = bytes.is_empty();
            waiting.push(segment);
        }
        if let Some(segment) = waiting.get_mut(first) {
            segment.offload = offload;
        }
        sending.descriptors += descriptors;
        true
    }

    /// Sends what was handed over.
    pub(super) fn flush(&mut self) {
        for (pair, sending) in self.pairs.iter_mut().zip(&mut self.sending) {
            sending.flush(&mut pair.tx);
        }
    }

    /// Descriptors that were handed to the VF and that it has not reported back.
    pub(super) fn in_flight(&mut self) -> u64 {
        let mut count = 0;
        for (pair, sending) in self.pairs.iter_mut().zip(&self.sending) {
            count += sending.capacity.saturating_sub(pair.tx.room()) + sending.descriptors;
        }
        count as u64
    }

    /// Arms the interrupts of all receive queues; true if there are frames already.
    pub(super) fn arm(&mut self) -> Result<bool, DriverError> {
        let mut ready = false;
        for pair in &mut self.pairs {
            ready |= pair.rx.arm()?;
        }
        Ok(ready)
    }

    /// What to sleep on: readable when frames, messages of the PF, or the server's end are there.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let queues = self.pairs.iter().filter_map(|pair| pair.rx.event_fd());
        queues.chain(self.control.event_fd()).chain([self.control.server_fd()])
    }

    /// Makes the receive queues' descriptors unreadable again.
    pub(super) fn acknowledge(&mut self) {
        for pair in &mut self.pairs {
            pair.rx.acknowledge();
        }
    }

    /// Brings the VF up again after a reset. What was in its rings is lost.
    pub(crate) fn rebuild(&mut self) -> Result<(), DriverError> {
        let pairs = std::mem::take(&mut self.pairs);
        match self.control.rebuild(pairs) {
            Ok(pairs) => {
                self.pairs = pairs;
                Ok(())
            }
            Err(failure) => {
                self.pairs = failure.pairs;
                Err(failure.error)
            }
        }
    }

    /// Gives the VF back in good order.
    pub(crate) fn close(self) -> Result<(), DriverError> {
        self.control.close(self.pairs)
    }
}

/// Copies received frames out of the driver's buffers, each into one piece, and frees the buffers.
fn take_frames(
    memory: &DriverMemory,
    queue: &mut RxQueue,
    received: &mut ArrayVec<RxSegment, BURST>,
    frames: &mut Frames,
    groups: bool,
    drops: &mut Drops,
) -> Received {
    let mut taken = Received::default();
    // Bytes of the frame so far; `None` once it is longer than any frame may be.
    let mut length = Some(0);
    for segment in received.drain(..) {
        let part = usize::from(segment.length);
        length = length.and_then(|start| {
            let place = frames.next()?.get_mut(start..start + part)?;
            memory.part(&segment.buffer, 0, part)?.read_into(place);
            Some(start + part)
        });
        if segment.end() {
            taken.frames += 1;
            let to_group = |frames: &mut Frames| {
                frames.next().and_then(|place| place.first()).is_some_and(|first| first & 1 != 0)
            };
            match length {
                Some(_) if !groups && to_group(frames) => taken.groups += 1,
                Some(length) => frames.commit(length, translate::from_vf(segment.checksum())),
                None => drops.too_long += 1,
            }
            length = Some(0);
        }
        queue.free(segment.buffer);
    }
    taken
}

/// The bytes of a packet that are still to be copied.
struct Bytes<'a> {
    head: &'a [u8],
    body: &'a [u8],
}

impl Bytes<'_> {
    /// Copies as many as fit; returns how many.
    fn write_to(&mut self, slice: SharedSlice<'_>) -> u16 {
        let copied = slice.write_from(self.head);
        self.head = self.head.get(copied..).unwrap_or_default();
        let (_, rest) = slice.split(copied);
        let more = rest.write_from(self.body);
        self.body = self.body.get(more..).unwrap_or_default();
        // A buffer has at most 16,256 bytes.
        u16::try_from(copied + more).unwrap_or(u16::MAX)
    }

    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.body.is_empty()
    }
}
