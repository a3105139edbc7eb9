//! VMBus in the guest: adapters and VFs come and go, and are given to the carriers.
//!
//! One thread opens and closes what is offered and rescinded, which may take long; the carriers go on meanwhile. It
//! hears of the bus by another thread, and of the carriers by their notices.
//!
//! | module | what it does |
//! | --- | --- |
//! | `nic` | a NetVSP offer: channels and buffers |
//! | `device` | a VPCI offer: the VF's driver, and which adapter it belongs to |
//!
//! An adapter belongs to the *instance* of its offer: when the host offers the instance again, because the switch's
//! process was started anew, the interface that was there goes on.

mod device;
mod nic;

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use linux_network::NetworkError;
use netvsp_protocol::offload::MAX_LARGE_SEND;
use partition::{
    guest::{BusEvent, VmbusGuest},
    user::UserGuest,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmbus::client::ClientConfig;
use vmbus_protocol::{ChannelId, Guid, INTERFACE_NETWORK, INTERFACE_VPCI, Offer};

use self::{device::Device, nic::Nic};
use super::{
    Adapter, GuestEvent, Tell, USUAL_MTU,
    adapters::Adapters,
    carrier::{self, Carrier, CarrierConfig, CarrierHandle, Notice, VfEnd},
    interface_failed,
    network::{InterfaceConfig, create_interface},
    vf::VfPath,
    vpci::VpciResources,
};
use crate::{
    GuestInterfaceKind, InterfaceAddress, MAX_ADAPTERS, StartFailure, StartFailureKind,
    UserVmConfig,
};

/// How long the host may take for each answer, once it is known to be there.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the host may take to let go of everything when the VM ends.
const UNLOAD: Duration = Duration::from_secs(2);
/// How long to wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the thread that listens to the bus looks whether it is still wanted.
const LISTEN: Duration = Duration::from_millis(200);

/// Packets that an interface's queue holds while its data path moves.
const QUEUE: u32 = 4096;

/// Offers that are looked at before the VM counts as started. A bus that is closed says so without end.
const MOST_OFFERS: usize = 4096;

/// What a bus is started with.
pub(super) struct BusStart<'a> {
    pub(super) config: &'a UserVmConfig,
    /// The guest end of the partition.
    pub(super) partition: OwnedFd,
    pub(super) adapters: &'a Arc<Adapters>,
    pub(super) tell: Tell,
}

/// The running bus.
#[derive(Debug)]
pub(super) struct Bus {
    inbox: Inbox,
    listening: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What the bus thread hears.
#[derive(Debug)]
enum Message {
    /// From VMBus.
    Bus(BusEvent),
    /// From an adapter's carrier.
    Carrier(u32, Notice),
    /// A VF's driver was opened, or brought up again, or not.
    VfOpened { channel: ChannelId, vf: Result<Box<VfPath>, String>, after_reset: bool },
    /// The VM ends; all carriers have stopped.
    Stop,
}

/// Where the bus thread hears.
#[derive(Clone, Debug)]
struct Inbox {
    messages: Sender<Message>,
    /// Readable when there is a message.
    ready: Arc<OwnedFd>,
}

impl Inbox {
    fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            carrier::signal(&self.ready);
        }
    }
}

/// What interfaces are to be like.
#[derive(Debug)]
struct InterfaceWishes {
    kind: GuestInterfaceKind,
    mtu: u32,
    /// Addresses and gateway of `eth0`.
    addresses: Vec<InterfaceAddress>,
    gateway: Option<std::net::IpAddr>,
}

impl Bus {
    /// Connects to VMBus and starts the threads. `eth0` is there when this returns; if the host offers an adapter, it is
    /// up, unless that takes too long.
    pub(super) fn start(start: BusStart<'_>) -> Result<Self, StartFailure> {
        let BusStart { config, partition, adapters, tell } = start;
        let failed =
            |error: &dyn std::error::Error| StartFailure::new(StartFailureKind::Vmbus, error);
        let deadline = Instant::now() + config.start_timeout;
        let guest =
            UserGuest::new(partition, config.start_timeout).map_err(|error| failed(&error))?;
        let bus = VmbusGuest::start(Arc::new(guest), ClientConfig::default())
            .map_err(|error| failed(&error))?;
        let left = deadline.saturating_duration_since(Instant::now());
        bus.connect(left).map_err(|error| failed(&error))?;
        let bus = Arc::new(bus);
        let (messages, queue) = channel();
        let ready = Arc::new(carrier::new_event().map_err(interface_failed)?);
        let inbox = Inbox { messages, ready };
        let (started, first) = channel();
        // All that is offered at the start is there; nobody else listens yet.
        let offered = std::iter::from_fn(|| bus.next_event(Duration::ZERO)).take(MOST_OFFERS);
        let offered = offered.collect();
        let thread = BusThread {
            resources: VpciResources::new(),
            bus: Arc::clone(&bus),
            inbox: inbox.clone(),
            queue,
            adapters: Arc::clone(adapters),
            tell,
            wishes: InterfaceWishes {
                kind: config.interface,
                mtu: config.mtu.unwrap_or(USUAL_MTU),
                addresses: config.addresses.clone(),
                gateway: config.gateway,
            },
            queue_pairs: config.queue_pairs.max(1),
            nics: Vec::new(),
            devices: Vec::new(),
            started: Some(started),
        };
        thread.add_adapter(0).map_err(interface_failed)?;
        let listening = Arc::new(AtomicBool::new(true));
        let thread_failed = |error| failed(&error);
        let listen = {
            let (inbox, listening) = (inbox.clone(), Arc::clone(&listening));
            move || listen_to(&bus, &inbox, &listening)
        };
        let threads = vec![
            std::thread::Builder::new()
                .name("bus".to_owned())
                .spawn(move || thread.run(offered))
                .map_err(thread_failed)?,
            std::thread::Builder::new()
                .name("bus events".to_owned())
                .spawn(listen)
                .map_err(thread_failed)?,
        ];
        let left = deadline.saturating_duration_since(Instant::now());
        if first.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("no adapter is up yet; the VM starts without");
        }
        Ok(Self { inbox, listening, threads })
    }

    /// Ends VMBus. All carriers must have stopped.
    pub(super) fn stop(self) {
        self.listening.store(false, Ordering::Relaxed);
        self.inbox.send(Message::Stop);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Passes on what the bus says.
fn listen_to(bus: &VmbusGuest, inbox: &Inbox, listening: &AtomicBool) {
    while listening.load(Ordering::Relaxed) {
        if let Some(event) = bus.next_event(LISTEN) {
            let closed = event == BusEvent::Closed;
            inbox.send(Message::Bus(event));
            if closed {
                return;
            }
        }
    }
}

/// The instance of a Clearway host's adapter of this number; other hosts have instances of their own.
fn instance_of(number: u32) -> Guid {
    Guid::new(number, 0xC1EA, 0x4000, *b"clearway")
}

/// The bus thread.
struct BusThread {
    bus: Arc<VmbusGuest>,
    resources: Arc<VpciResources>,
    inbox: Inbox,
    queue: Receiver<Message>,
    adapters: Arc<Adapters>,
    tell: Tell,
    wishes: InterfaceWishes,
    queue_pairs: u16,
    nics: Vec<Nic>,
    devices: Vec<Device>,
    /// Told, and taken, when the first adapter is up, or when it is clear that none was offered.
    started: Option<Sender<()>>,
}

impl Drop for BusThread {
    /// A bus thread that panics takes the VM with it, instead of leaving one to which nothing comes any more.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell.tell(GuestEvent::Failed("the thread of the guest's bus panicked".to_owned()));
        }
    }
}

impl BusThread {
    fn run(mut self, offered: Vec<BusEvent>) {
        for event in offered {
            self.hear_bus(event);
        }
        if self.nics.is_empty() {
            self.started = None;
        }
        loop {
            self.wait();
            carrier::clear(&self.inbox.ready);
            while let Ok(message) = self.queue.try_recv() {
                match message {
                    Message::Bus(event) => self.hear_bus(event),
                    Message::Carrier(number, notice) => self.hear_carrier(number, notice),
                    Message::VfOpened { channel, vf, after_reset } => {
                        self.vf_opened(channel, vf, after_reset);
                    }
                    Message::Stop => return self.end(),
                }
            }
            self.look_after_devices();
            self.retry();
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) {
        let deadlines = self.devices.iter().filter_map(Device::deadline);
        let deadlines = deadlines.chain(self.nics.iter().filter_map(Nic::deadline));
        let limit = deadlines.min().map(|at| at.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut set = vec![PollFd::new(&self.inbox.ready, PollFlags::IN)];
        let fds = self.devices.iter().filter_map(Device::fd);
        set.extend(fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // An interrupted sleep is a short one.
        let _ = poll(&mut set, limit.as_ref());
    }

    fn hear_bus(&mut self, event: BusEvent) {
        match event {
            BusEvent::Offered(offer) => self.offered(&offer),
            BusEvent::Rescinded(channel) => self.rescinded(channel),
            BusEvent::Closed => {
                let reason = "the host has ended the partition".to_owned();
                self.tell.tell(GuestEvent::Failed(reason));
            }
        }
    }

    fn offered(&mut self, offer: &Offer) {
        tracing::debug!(channel = offer.channel.0, instance = ?offer.instance_id, "an offer");
        match offer.interface_id {
            INTERFACE_NETWORK if offer.subchannel_index == 0 => self.nic_offered(offer),
            INTERFACE_NETWORK => self.subchannel_offered(offer),
            INTERFACE_VPCI => self.device_offered(offer),
            // Nobody here drives it.
            _ => {}
        }
    }

    fn rescinded(&mut self, channel: ChannelId) {
        tracing::debug!(channel = channel.0, "a channel is rescinded");
        if !self.nic_rescinded(channel) && !self.device_rescinded(channel) {
            let _ = self.bus.release(channel);
        }
    }

    fn hear_carrier(&mut self, number: u32, notice: Notice) {
        match notice {
            Notice::Failed(reason) => self.tell.tell(GuestEvent::Failed(reason)),
            Notice::SyntheticUp => {
                if let Some(started) = self.started.take() {
                    // If nobody waits any more, nobody does.
                    let _ = started.send(());
                }
                self.nic_up(number);
            }
            Notice::OpenSubchannels(count) => self.subchannels_wanted(number, count),
            Notice::SyntheticClosed => self.nic_closed(number),
            Notice::SyntheticFailed(reason) => {
                tracing::warn!(reason, "eth{number}'s synthetic adapter failed");
                self.nic_failed(number);
            }
            Notice::VfAssociation(serial) => self.associated(number, serial),
            Notice::VfReturned(vf, end) => self.vf_returned(number, *vf, end),
            // The VM's main thread was told.
            Notice::VfSet { .. } => {}
            // Only a carrier with a VF of its own says so.
            Notice::Lost(_) | Notice::Found => {}
        }
    }

    /// The number of the adapter with this instance: of its own, or the first that is free.
    fn number_of(&self, instance: Guid) -> Option<u32> {
        let most = u32::try_from(MAX_ADAPTERS).unwrap_or(u32::MAX);
        let taken: BTreeSet<u32> = self.nics.iter().map(|nic| nic.number).collect();
        let own = (0..most).find(|number| instance_of(*number) == instance);
        own.filter(|number| !taken.contains(number))
            .or_else(|| (0..most).find(|number| !taken.contains(number)))
    }

    /// Creates an interface and its carrier.
    fn add_adapter(&self, number: u32) -> Result<CarrierHandle, NetworkError> {
        let InterfaceWishes { kind, mtu, addresses, gateway } = &self.wishes;
        let first = number == 0;
        let (network, interface) = create_interface(&InterfaceConfig {
            name: &format!("eth{number}"),
            kind: *kind,
            mac: None,
            mtu: *mtu,
            largest_segmented: Some(MAX_LARGE_SEND),
            queue_length: Some(QUEUE),
            addresses: if first { addresses } else { &[] },
            gateway: gateway.filter(|_| first),
        })?;
        let (inbox, tell) = (self.inbox.clone(), self.tell.clone());
        let carrier = Carrier::start(CarrierConfig {
            vf: None,
            interface,
            name: network.interface().to_owned(),
            index: network.index(),
            tell: Box::new(move |notice| match notice {
                Notice::VfSet { ticket, done } => tell.tell(GuestEvent::VfSet { ticket, done }),
                notice => inbox.send(Message::Carrier(number, notice)),
            }),
        })?;
        let handle = carrier.handle().clone();
        self.adapters.add(Adapter { number, network, carrier });
        Ok(handle)
    }

    /// The carrier of an adapter, whose interface is made if need be.
    fn carrier_of(&self, number: u32) -> Option<CarrierHandle> {
        if let Some(handle) = self.adapters.handle(number) {
            return Some(handle);
        }
        match self.add_adapter(number) {
            Ok(handle) => Some(handle),
            Err(error) => {
                tracing::error!(%error, "eth{number} cannot be made; its adapter is not used");
                None
            }
        }
    }

    fn retry(&mut self) {
        let now = Instant::now();
        self.retry_nics(now);
        self.retry_devices(now);
    }

    /// The VM ends.
    fn end(self) {
        if let Err(error) = self.bus.unload(UNLOAD) {
            tracing::info!(%error, "VMBus could not be left in good order");
        }
    }
}
