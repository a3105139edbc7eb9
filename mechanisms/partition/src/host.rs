//! VMBus host: the server core and a partition, joined into a running server.
//!
//! One thread takes what the guest does; devices call in from their own. A device gets a [`HostChannel`] for each
//! channel it offers, on which [`DeviceEvent`]s come, and answers them in its own time. GPADLs are looked up in the
//! snapshot of guest memory that there is when they are made; those that a device has not asked for are taken back
//! without troubling it.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use vmbus::{
    Channel, ChannelDead, EventFd, GuestBuffer, GuestBufferError,
    server::{
        Effect, OfferHandle, OfferParams, OpenRequest, OutgoingMessage, Server, ServerConfig,
        ServerError,
    },
};
use vmbus_protocol::{ChannelId, Gpadl, GpadlId, Negotiated};

use crate::{GuestMemory, Partition, PartitionError, PartitionEvent, PostError};

/// Refused messages that are logged for one guest.
const LOGGED_REFUSALS: u32 = 20;
/// Messages taken before room and devices are looked at again.
const EVENT_BURST: usize = 64;

/// A running VMBus server for one guest. Dropping it stops its thread and leaves the guest without answers.
#[derive(Debug)]
pub struct VmbusHost {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    partition: Arc<dyn Partition>,
    /// Makes the thread look again.
    wake: EventFd,
    /// Readable once the guest is gone.
    gone: EventFd,
    /// Signalled by each start of the guest.
    started: EventFd,
    /// The thread contends with devices that open, close or offer: control only, never per packet.
    core: Mutex<Core>,
}

#[derive(Debug)]
struct Core {
    server: Server,
    devices: BTreeMap<OfferHandle, Device>,
    /// A message that the guest had no room for.
    unsent: Option<OutgoingMessage>,
    stop: bool,
    gone: bool,
    refusals: u32,
    connected_before: bool,
    restarts: u64,
}

#[derive(Debug)]
struct Device {
    queue: Arc<Queue>,
    gpadls: BTreeMap<GpadlId, GpadlMemory>,
    /// GPADLs that the device has asked for.
    taken: std::collections::BTreeSet<GpadlId>,
    /// What the partition holds for the open channel.
    wired: Option<Wired>,
}

/// Signals of an open channel.
#[derive(Copy, Clone, Debug)]
struct Wired {
    connection_id: u32,
    event_flag: Option<u16>,
}

#[derive(Debug)]
struct Queue {
    events: Mutex<VecDeque<DeviceEvent>>,
    ready: EventFd,
}

impl Queue {
    fn push(&self, event: DeviceEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        self.ready.signal();
    }
}

/// What a device is to do, or is told.
#[derive(Debug)]
pub enum DeviceEvent {
    /// Begin to use the channel, then [`HostChannel::opened`].
    Open(Box<OpenedChannel>),
    /// Use the channel no more, nor anything that came with it, then [`HostChannel::closed`].
    Close,
    /// Drop the GPADL's memory, then [`HostChannel::gpadl_released`]. Comes only for GPADLs that were asked for.
    GpadlTeardown(GpadlId),
    /// The subchannel ended with the guest's connection: drop its [`HostChannel`].
    Withdrawn,
}

/// Guest memory that a GPADL describes.
#[derive(Clone, Debug)]
pub struct GpadlMemory {
    /// The pages, for other processes.
    pub pages: Arc<Gpadl>,
    /// The ranges, in this process.
    pub ranges: Vec<GuestBuffer>,
}

/// A channel that the guest opens. The fields are what another process needs to serve it.
#[derive(Clone, Debug)]
pub struct OpenedChannel {
    /// How it is opened.
    pub request: OpenRequest,
    /// The rings' pages.
    pub ring: GpadlMemory,
    /// Guest memory in which they lie.
    pub memory: GuestMemory,
    /// Signals the guest.
    pub to_guest: EventFd,
    /// What the guest signals.
    pub to_host: EventFd,
}

/// Why a channel's rings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingsError {
    /// The pages cannot be mapped as rings.
    #[error("the channel's rings")]
    Memory(#[from] GuestBufferError),
    /// What lies in them is no ring.
    #[error("the channel's rings")]
    Dead(#[from] ChannelDead),
    /// There are no pages at all.
    #[error("the channel's GPADL has no range")]
    Empty,
}

impl OpenedChannel {
    /// The host's end of the channel, in this process. Only one may be in use at a time.
    pub fn channel(&self) -> Result<Channel, RingsError> {
        let pages = self.ring.ranges.first().ok_or(RingsError::Empty)?;
        let (incoming, outgoing) = pages.rings(self.request.downstream_page_offset as usize)?;
        Ok(Channel::new(incoming, outgoing, self.to_guest.clone(), self.to_host.clone())?)
    }
}

impl VmbusHost {
    /// Starts to serve a guest.
    pub fn start(partition: Arc<dyn Partition>, config: ServerConfig) -> io::Result<Self> {
        let core = Core {
            server: Server::new(config),
            devices: BTreeMap::new(),
            unsent: None,
            stop: false,
            gone: false,
            refusals: 0,
            connected_before: false,
            restarts: 0,
        };
        let shared = Arc::new(Shared {
            partition,
            wake: EventFd::new()?,
            gone: EventFd::new()?,
            started: EventFd::new()?,
            core: Mutex::new(core),
        });
        let running = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("vmbus-host".to_owned())
            .spawn(move || running.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Offers a channel.
    pub fn offer(&self, params: OfferParams) -> Result<HostChannel, OfferError> {
        Shared::offer(&self.shared, params)
    }

    /// What the connection speaks, if the guest is connected.
    pub fn connection(&self) -> Option<Negotiated> {
        self.shared.core().server.connection()
    }

    /// Whether nothing of the guest is held by VMBus or its devices.
    pub fn is_idle(&self) -> bool {
        self.shared.core().server.is_idle()
    }

    /// How often the guest has begun anew: its processors were reset, or it connected again. One start of a guest may
    /// count as both.
    pub fn restarts(&self) -> u64 {
        self.shared.core().restarts
    }

    /// Signalled whenever the guest connects or begins anew.
    pub fn started(&self) -> &EventFd {
        &self.shared.started
    }

    /// Readable once the guest is gone.
    pub fn gone(&self) -> &EventFd {
        &self.shared.gone
    }
}

impl Drop for VmbusHost {
    fn drop(&mut self) {
        self.shared.core().stop = true;
        self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a channel is not offered.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The server refuses.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The kernel refuses.
    #[error("an eventfd for a channel")]
    System(#[from] io::Error),
}

/// A device's channel, open or not. Dropping it takes the offer back: drop whatever came with it before.
#[derive(Debug)]
pub struct HostChannel {
    shared: Arc<Shared>,
    handle: OfferHandle,
    queue: Arc<Queue>,
}

impl HostChannel {
    /// The next event, if there is one. Wait for [`AsFd`] to be readable.
    pub fn next_event(&self) -> Option<DeviceEvent> {
        let mut events = self.queue.events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = events.pop_front();
        if events.is_empty() {
            self.queue.ready.take();
        }
        event
    }

    /// The next event, waiting for it at most `limit`.
    pub fn wait_event(&self, limit: Duration) -> io::Result<Option<DeviceEvent>> {
        let deadline = std::time::Instant::now() + limit;
        loop {
            if let Some(event) = self.next_event() {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.queue.ready.wait(left)?;
        }
    }

    /// Answers [`DeviceEvent::Open`].
    pub fn opened(&self, success: bool) -> Result<(), ServerError> {
        let mut core = self.shared.core();
        core.server.open_complete(self.handle, success)?;
        if !success {
            self.shared.unwire(&mut core, self.handle);
        }
        self.shared.work(&mut core);
        Ok(())
    }

    /// Answers [`DeviceEvent::Close`].
    pub fn closed(&self) -> Result<(), ServerError> {
        let mut core = self.shared.core();
        self.shared.unwire(&mut core, self.handle);
        core.server.close_complete(self.handle)?;
        self.shared.work(&mut core);
        Ok(())
    }

    /// The memory of a GPADL of this channel, `None` if there is none. Once asked for, it is the guest's again only
    /// after [`Self::gpadl_released`].
    pub fn gpadl(&self, gpadl: GpadlId) -> Option<GpadlMemory> {
        let mut core = self.shared.core();
        let device = core.devices.get_mut(&self.handle)?;
        let memory = device.gpadls.get(&gpadl)?.clone();
        device.taken.insert(gpadl);
        Some(memory)
    }

    /// Answers [`DeviceEvent::GpadlTeardown`].
    pub fn gpadl_released(&self, gpadl: GpadlId) -> Result<(), ServerError> {
        let mut core = self.shared.core();
        core.server.gpadl_released(self.handle, gpadl)?;
        if let Some(device) = core.devices.get_mut(&self.handle) {
            device.gpadls.remove(&gpadl);
            device.taken.remove(&gpadl);
        }
        self.shared.work(&mut core);
        Ok(())
    }

    /// Offers another channel of this device or of another: subchannels, once the guest has asked for them.
    pub fn offer(&self, params: OfferParams) -> Result<HostChannel, OfferError> {
        Shared::offer(&self.shared, params)
    }

    /// The guest's name of the channel, if it was told of it.
    pub fn channel_id(&self) -> Option<ChannelId> {
        self.shared.core().server.channel_id(self.handle)
    }
}

impl AsFd for HostChannel {
    /// Readable when there is an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.ready.as_fd()
    }
}

impl Drop for HostChannel {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        self.shared.unwire(&mut core, self.handle);
        core.devices.remove(&self.handle);
        // Withdrawn before, perhaps.
        let _ = core.server.revoke(self.handle);
        self.shared.work(&mut core);
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offer(this: &Arc<Self>, params: OfferParams) -> Result<HostChannel, OfferError> {
        let events = Mutex::new(VecDeque::new());
        let queue = Arc::new(Queue { events, ready: EventFd::new()? });
        let mut core = this.core();
        let handle = core.server.offer(params)?;
        let device = Device {
            queue: Arc::clone(&queue),
            gpadls: BTreeMap::new(),
            taken: std::collections::BTreeSet::new(),
            wired: None,
        };
        core.devices.insert(handle, device);
        this.work(&mut core);
        drop(core);
        Ok(HostChannel { shared: Arc::clone(this), handle, queue })
    }

    /// The thread: takes what the guest does.
    fn run(&self) {
        loop {
            let (listens, waits) = {
                let mut core = self.core();
                self.work(&mut core);
                // Whoever signals it holds the lock, or has set `stop` before.
                self.wake.take();
                if core.stop {
                    return;
                }
                (core.server.takes_messages() && !core.gone, core.unsent.is_some() && !core.gone)
            };
            let mut ready = vec![PollFd::new(&self.wake, PollFlags::IN)];
            if listens {
                ready.push(PollFd::from_borrowed_fd(self.partition.events_ready(), PollFlags::IN));
            }
            if waits {
                ready.push(PollFd::from_borrowed_fd(self.partition.room_ready(), PollFlags::IN));
            }
            if poll(&mut ready, None).is_err() {
                continue;
            }
            if !listens {
                continue;
            }
            for _ in 0..EVENT_BURST {
                // Without the lock: a device's MMIO handler may be called.
                let Some(event) = self.partition.next_event() else { break };
                let mut core = self.core();
                self.handle(&mut core, event);
                self.work(&mut core);
                if core.gone || core.stop || !core.server.takes_messages() {
                    break;
                }
            }
        }
    }

    fn handle(&self, core: &mut Core, event: PartitionEvent) {
        match event {
            PartitionEvent::Message(message) => {
                if !core.server.has_connection_id(message.connection_id) {
                    return;
                }
                if let Err(refusal) = core.server.handle_message(&message.payload)
                    && core.refusals < LOGGED_REFUSALS
                {
                    core.refusals += 1;
                    tracing::warn!(%refusal, "a VMBus message of the guest was refused");
                }
            }
            PartitionEvent::Reset => {
                core.server.reset();
                core.restarts += 1;
                self.started.signal();
            }
            PartitionEvent::Gone => {
                core.server.reset();
                core.gone = true;
                self.gone.signal();
            }
        }
    }

    /// Does what the server wants done, as far as it needs no device, and sends what it has for the guest.
    fn work(&self, core: &mut Core) {
        while let Some(effect) = core.server.next_effect() {
            self.effect(core, effect);
        }
        while let Some(message) = core.unsent.take().or_else(|| core.server.next_message()) {
            let OutgoingMessage { message: bytes, target_vp, target_sint } = message;
            match self.partition.post_message(target_vp, target_sint, bytes.as_bytes()) {
                Ok(()) | Err(PostError::TooLong | PostError::Gone) => {}
                Err(PostError::Busy) => {
                    core.unsent = Some(message);
                    self.wake.signal();
                    break;
                }
            }
        }
    }

    fn effect(&self, core: &mut Core, effect: Effect) {
        // What a device is not asked for any more is refused by the server, and that is fine.
        match effect {
            Effect::GpadlCreated { offer, gpadl, pages } => {
                let memory = self.partition.memory();
                let ranges = pages.ranges().iter().map(|range| {
                    let (offset, count) = (range.byte_offset, range.byte_count);
                    GuestBuffer::new(memory.map(), &range.page_frames, offset, count)
                });
                let ranges = ranges.collect::<Result<Vec<_>, _>>();
                let accepted = match (ranges, core.devices.get_mut(&offer)) {
                    (Ok(ranges), Some(device)) => {
                        let memory = GpadlMemory { pages: Arc::new(pages), ranges };
                        device.gpadls.insert(gpadl, memory);
                        true
                    }
                    _ => false,
                };
                let _ = core.server.gpadl_complete(offer, gpadl, accepted);
            }
            Effect::GpadlTeardown { offer, gpadl } => {
                if let Some(device) = core.devices.get_mut(&offer) {
                    if device.taken.contains(&gpadl) {
                        device.queue.push(DeviceEvent::GpadlTeardown(gpadl));
                        return;
                    }
                    device.gpadls.remove(&gpadl);
                }
                let _ = core.server.gpadl_released(offer, gpadl);
            }
            Effect::Open { offer, request } => match self.wire(core, offer, &request) {
                Ok(opened) => {
                    if let Some(device) = core.devices.get(&offer) {
                        device.queue.push(DeviceEvent::Open(Box::new(opened)));
                    }
                }
                Err(error) => {
                    tracing::debug!(?error, "a channel's signals cannot be had");
                    self.unwire(core, offer);
                    let _ = core.server.open_complete(offer, false);
                }
            },
            Effect::Close { offer } => {
                if let Some(device) = core.devices.get(&offer) {
                    device.queue.push(DeviceEvent::Close);
                }
            }
            Effect::Modify { offer, target_vp } => {
                let wired = core.devices.get(&offer).and_then(|device| device.wired);
                let moved = wired
                    .and_then(|wired| wired.event_flag)
                    .is_some_and(|flag| self.partition.move_event_flag(flag, target_vp).is_ok());
                let _ = core.server.modify_complete(offer, moved);
            }
            Effect::Withdrawn { offer } => {
                if let Some(device) = core.devices.remove(&offer) {
                    device.queue.push(DeviceEvent::Withdrawn);
                }
            }
            Effect::Connected(negotiated) => {
                tracing::debug!(version = %negotiated.version, "the guest is connected to VMBus");
                core.restarts += u64::from(core.connected_before);
                core.connected_before = true;
                self.started.signal();
            }
            // Nothing is signalled by monitor pages here.
            Effect::MonitorPages(_) | Effect::Disconnected => {}
        }
    }

    /// Makes an opened channel's signals.
    fn wire(
        &self,
        core: &mut Core,
        offer: OfferHandle,
        request: &OpenRequest,
    ) -> Result<OpenedChannel, PartitionError> {
        let device = core.devices.get_mut(&offer).ok_or(PartitionError::Gone)?;
        let ring = device.gpadls.get(&request.ring_gpadl).ok_or(PartitionError::Gone)?.clone();
        let to_host = self.partition.create_signal(request.connection_id)?;
        let mut wired = Wired { connection_id: request.connection_id, event_flag: None };
        device.wired = Some(wired);
        let to_guest = match request.target_vp {
            Some(vp) => {
                let event = self.partition.create_event_flag(vp, request.event_flag)?;
                wired.event_flag = Some(request.event_flag);
                device.wired = Some(wired);
                event
            }
            // The guest wants no interrupts.
            None => EventFd::new().map_err(PartitionError::io("an eventfd"))?,
        };
        let memory = self.partition.memory();
        Ok(OpenedChannel { request: *request, ring, memory, to_guest, to_host })
    }

    /// Takes a channel's signals back.
    fn unwire(&self, core: &mut Core, offer: OfferHandle) {
        let wired = core.devices.get_mut(&offer).and_then(|device| device.wired.take());
        if let Some(Wired { connection_id, event_flag }) = wired {
            self.partition.remove_signal(connection_id);
            if let Some(flag) = event_flag {
                self.partition.remove_event_flag(flag);
            }
        }
    }
}
