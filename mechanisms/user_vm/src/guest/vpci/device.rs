//! The bus driver: a VSC, its channel, and what its effects ask for.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use partition::{
    guest::{GuestRings, VmbusGuest},
    user::UserGuest,
};
use pcivirt_protocol::{NtStatus, VpciPnpId};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use vmbus::EventFd;
use vmbus_protocol::{ChannelId, USER_DEFINED_SIZE};
use vpci::{
    VpciChannel, Vsc, VscEffect,
    vsc::{ReadyFunction, RequestId, Requested, VscConfig, VscError, VscReply},
};
use vpci_protocol::TranslatedMsi;

use super::{
    VpciError, VpciResources, VpciTransport, config_space::mmio_write, interrupt::VpciInterrupt,
    resources::Addresses,
};

/// How long a driver has to let go of its function after [`VpciEvent::EjectRequested`]. The host waits 60 s.
pub(crate) const EJECT_GRACE: Duration = Duration::from_secs(50);

/// Pages of a ring in each direction, its control page included.
const RING_PAGES: usize = 5;
const NO_DATA: [u8; USER_DEFINED_SIZE] = [0; USER_DEFINED_SIZE];

/// A function that its driver can be started for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct VpciFunction {
    /// Names the synthetic adapter that the function belongs to (SPEC-VMBUS §7).
    pub(crate) serial: u32,
    /// Who made it, and what it is.
    pub(crate) ids: VpciPnpId,
    /// Bytes of each BAR; 0 for one that is not there.
    pub(crate) bars: [u64; 6],
}

/// What happened on the bus.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) enum VpciEvent {
    /// A function is mapped and enabled: [`VpciDevice::transport`] reaches it.
    Ready(VpciFunction),
    /// The host wants the function back: stop its driver, then [`VpciDevice::ejected`].
    EjectRequested,
    /// The function is not there any more. Its transports say so too.
    Gone,
    /// Configuration blocks have to be read again: bit n is block n.
    BlocksInvalidated(u64),
    /// The bus cannot be brought up; nothing more comes.
    Failed(VscError),
}

/// A virtual PCI bus with at most one function, as the guest has it.
///
/// Dropping it leaves the channel open until VMBus ends: use [`close`](Self::close).
#[derive(Debug)]
pub(crate) struct VpciDevice {
    shared: Arc<Shared>,
}

/// What the bus thread and the function's driver share.
#[derive(Debug)]
pub(super) struct Shared {
    bus: Arc<VmbusGuest>,
    id: ChannelId,
    pub(super) resources: Arc<VpciResources>,
    /// Readable when the channel or `news` is.
    readable: OwnedFd,
    /// Something happened while another thread did the bus thread's work.
    news: EventFd,
    started: Instant,
    /// The bus thread contends with drivers that ask the bus for something; control only.
    core: Mutex<Core>,
}

#[derive(Debug)]
struct Core {
    vsc: Vsc,
    channel: Option<VpciChannel>,
    rings: Option<GuestRings>,
    rescinded: bool,
    finished: bool,
    function: Option<Arc<Function>>,
    events: VecDeque<VpciEvent>,
    /// Requests that somebody waits for.
    waiting: BTreeMap<RequestId, Waiter>,
    /// Not given back before the channel is closed.
    _addresses: Addresses,
}

/// Somebody who waits for the completion of a request.
#[derive(Debug)]
struct Waiter {
    done: EventFd,
    result: Option<Result<VscReply, NtStatus>>,
}

/// A function, from when it is ready until it goes.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) ready: ReadyFunction,
    /// Interrupts that were made, by vector of its MSI-X table. They stay for the next driver: the host keeps what it
    /// delivers them by for as long as the function is there. Its driver's control part alone asks for them.
    interrupts: Mutex<Vec<MadeInterrupt>>,
    is_gone: AtomicBool,
    /// Readable for good once it is gone.
    gone: EventFd,
}

/// An interrupt, and the message that stands for it in the MSI-X table.
pub(super) type MadeInterrupt = (Arc<VpciInterrupt>, TranslatedMsi);

impl Function {
    fn new(ready: ReadyFunction) -> io::Result<Self> {
        let (interrupts, is_gone) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { ready, interrupts, is_gone, gone: EventFd::new()? })
    }

    pub(super) fn interrupts(&self) -> MutexGuard<'_, Vec<MadeInterrupt>> {
        self.interrupts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    pub(super) fn gone(&self) -> &EventFd {
        &self.gone
    }

    /// Nothing answers any more.
    pub(super) fn set_gone(&self) {
        self.is_gone.store(true, Ordering::Release);
        self.gone.signal();
    }
}

impl VpciDevice {
    /// Opens the channel of a bus that was offered, and begins to bring the bus up. Waits, `limit` at most for each of
    /// two answers of the host's VMBus.
    ///
    /// # Errors
    /// The channel was rescinded or cannot be opened; no addresses, or too little memory for the rings, are left.
    pub(crate) fn open(
        bus: &Arc<VmbusGuest>,
        channel: ChannelId,
        resources: &Arc<VpciResources>,
        limit: Duration,
    ) -> Result<Self, VpciError> {
        let addresses = resources.addresses()?;
        let config = VscConfig {
            eject_grace: EJECT_GRACE,
            ..VscConfig::new(addresses.window(), addresses.aperture())
        };
        let system = VpciError::system;
        let news = EventFd::new().map_err(system("creating an eventfd"))?;
        let readable = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from);
        let readable = readable.map_err(system("creating an epoll instance"))?;
        let opened = bus.open(channel, (RING_PAGES, RING_PAGES), NO_DATA, limit)?;
        let (opened, rings) = opened.into_parts();
        for fd in [opened.as_fd(), news.as_fd()] {
            let data = epoll::EventData::new_u64(0);
            let added = epoll::add(&readable, fd, data, epoll::EventFlags::IN);
            added.map_err(io::Error::from).map_err(system("watching a channel"))?;
        }
        let core = Core {
            vsc: Vsc::new(config),
            channel: Some(VpciChannel::of_guest(opened)),
            rings: Some(rings),
            rescinded: false,
            finished: false,
            function: None,
            events: VecDeque::new(),
            waiting: BTreeMap::new(),
            _addresses: addresses,
        };
        let shared = Arc::new(Shared {
            bus: Arc::clone(bus),
            id: channel,
            resources: Arc::clone(resources),
            readable,
            news,
            started: Instant::now(),
            core: Mutex::new(core),
        });
        let mut core = shared.core();
        let effects = core.vsc.channel_opened(shared.now());
        shared.carry_out(&mut core, effects);
        shared.pump(&mut core);
        drop(core);
        Ok(Self { shared })
    }

    /// Does what there is to do, and says what happened. To be called when the device is readable, and at
    /// [`next_deadline`](Self::next_deadline).
    pub(crate) fn process(&self) -> Vec<VpciEvent> {
        let mut core = self.shared.core();
        self.shared.pump(&mut core);
        // Signalled by whoever holds the lock only.
        self.shared.news.take();
        core.events.drain(..).collect()
    }

    /// When [`process`](Self::process) is due even if nothing comes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let deadline = self.shared.core().vsc.next_deadline()?;
        self.shared.started.checked_add(deadline)
    }

    /// A way for a driver to the function that is ready.
    ///
    /// # Errors
    /// None is; it lacks MSI-X.
    pub(crate) fn transport(&self) -> Result<VpciTransport, VpciError> {
        let function = self.shared.core().function.clone().ok_or(VpciError::Gone)?;
        VpciTransport::new(Arc::clone(&self.shared), function)
    }

    /// The driver has let go of the function, as [`VpciEvent::EjectRequested`] asked: all of it, and its transport, are
    /// dropped.
    pub(crate) fn ejected(&self) {
        let mut core = self.shared.core();
        let effects = core.vsc.ejected();
        if !effects.is_empty()
            && let Some(function) = core.function.take()
        {
            function.set_gone();
        }
        self.shared.carry_out(&mut core, effects);
        self.shared.pump(&mut core);
    }

    /// VMBus has rescinded the channel: the function is gone, if it was not before.
    pub(crate) fn rescinded(&self) {
        let mut core = self.shared.core();
        core.rescinded = true;
        self.shared.end_channel(&mut core);
    }

    /// Gives the bus back: turns it off unless it is finished, closes its channel and takes the rings back. The
    /// function's driver and its transport must be dropped. Waits, `limit` at most for each step.
    ///
    /// # Errors
    /// The host does not answer. The bus is not used any more in any case.
    pub(crate) fn close(self, limit: Duration) -> Result<(), VpciError> {
        let shared = &self.shared;
        {
            let mut core = shared.core();
            if !core.finished {
                let effects = core.vsc.shut_down(shared.now());
                shared.carry_out(&mut core, effects);
            }
        }
        // Nobody else does this bus' work any more.
        let nobody = EventFd::new().map_err(VpciError::system("creating an eventfd"))?;
        let deadline = Instant::now().checked_add(limit);
        shared.wait_until(deadline, &nobody, |core| core.finished.then_some(()));
        let (rings, rescinded) = {
            let mut core = shared.core();
            shared.end_channel(&mut core);
            (core.rings.take(), core.rescinded)
        };
        if let Some(rings) = rings {
            shared.bus.close_rings(rings, limit)?;
        }
        if rescinded {
            shared.bus.release(shared.id)?;
        }
        Ok(())
    }
}

/// What the product's guest has no use for so far: the AVF driver speaks to its PF by its mailbox, not by configuration
/// blocks, and the bus thread follows the events.
#[cfg_attr(not(test), expect(dead_code))]
impl VpciDevice {
    /// The channel's name, by which VMBus rescinds it.
    pub(crate) fn id(&self) -> ChannelId {
        self.shared.id
    }

    /// The function, while it is ready.
    pub(crate) fn function(&self) -> Option<VpciFunction> {
        let core = self.shared.core();
        core.function.as_ref().map(|function| describe(&function.ready))
    }

    /// Whether nothing more will come: the bus has failed, or its channel was rescinded. Time for
    /// [`close`](Self::close).
    pub(crate) fn is_finished(&self) -> bool {
        self.shared.core().finished
    }

    /// Reads `length` bytes (1 to 128) of a configuration block, by which a VF's driver talks to its PF's
    /// (SPEC-PCIVIRT §5). Waits for the host's answer.
    ///
    /// # Errors
    /// No function is ready; the PF's driver refuses, or does not answer in time.
    pub(crate) fn read_block(&self, block: u32, length: u8) -> Result<Vec<u8>, VpciError> {
        let what = "a configuration block";
        match self.shared.request(what, |vsc, now| vsc.read_block(block, length, now))? {
            VscReply::Block(data) => Ok(data),
            VscReply::Done | VscReply::Interrupt(_) => Ok(Vec::new()),
        }
    }

    /// Writes 1 to 128 bytes to a configuration block. Waits for the host's answer.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block).
    pub(crate) fn write_block(&self, block: u32, data: &[u8]) -> Result<(), VpciError> {
        let what = "to write a configuration block";
        self.shared.request(what, |vsc, now| vsc.write_block(block, data, now)).map(drop)
    }
}

impl AsFd for VpciDevice {
    /// Readable when [`VpciDevice::process`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.readable.as_fd()
    }
}

fn describe(ready: &ReadyFunction) -> VpciFunction {
    let bars = ready.bars.map(|place| place.map_or(0, |place| place.size));
    VpciFunction { serial: ready.description.serial, ids: ready.description.ids, bars }
}

impl Shared {
    pub(super) fn guest(&self) -> &UserGuest {
        self.bus.guest()
    }

    pub(super) fn bus(&self) -> &Arc<VmbusGuest> {
        &self.bus
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Reads what the host sent, sees to deadlines, and goes on until there is nothing to do.
    fn pump(&self, core: &mut Core) {
        if self.serve(core).is_err() {
            tracing::warn!(channel = %self.id, "the ring of a virtual PCI bus is broken");
            self.end_channel(core);
        }
    }

    fn serve(&self, core: &mut Core) -> Result<(), VpciError> {
        loop {
            let now = self.now();
            if core.vsc.next_deadline().is_some_and(|deadline| deadline <= now) {
                let effects = core.vsc.poll(now);
                self.carry_out(core, effects);
            }
            let Core { channel: Some(channel), vsc, .. } = core else { return Ok(()) };
            channel.channel_mut().woken().map_err(vpci::ChannelError::from)?;
            if let Some(effects) = channel.receive(|packet| vsc.receive(packet, now))? {
                self.carry_out(core, effects);
            } else if channel.prepare_to_wait()? {
                return Ok(());
            }
        }
    }

    fn carry_out(&self, core: &mut Core, effects: Vec<VscEffect>) {
        for effect in effects {
            let event = match effect {
                VscEffect::Send(packet) => {
                    if let Some(channel) = &mut core.channel
                        && let Err(error) = channel.send(packet)
                    {
                        tracing::warn!(channel = %self.id, %error, "a virtual PCI bus");
                    }
                    continue;
                }
                VscEffect::MmioWrite { address, data } => {
                    // It fails if there is no host any more, which VMBus says too.
                    let _ = mmio_write(self.guest(), address, &data);
                    continue;
                }
                VscEffect::Ready(ready) => {
                    let description = describe(&ready);
                    match Function::new(ready) {
                        Ok(function) => core.function = Some(Arc::new(function)),
                        Err(error) => {
                            tracing::error!(%error, "a function cannot be used");
                            continue;
                        }
                    }
                    VpciEvent::Ready(description)
                }
                VscEffect::EjectRequested => VpciEvent::EjectRequested,
                // The function's driver cannot be halted and go on afterwards.
                VscEffect::StopRequested => {
                    let effects = core.vsc.stop_answer(false);
                    self.carry_out(core, effects);
                    continue;
                }
                VscEffect::Resumed => continue,
                VscEffect::Gone => {
                    if let Some(function) = core.function.take() {
                        function.set_gone();
                    }
                    VpciEvent::Gone
                }
                VscEffect::BlocksInvalidated(blocks) => VpciEvent::BlocksInvalidated(blocks),
                VscEffect::Completed { request, result } => {
                    if let Some(waiter) = core.waiting.get_mut(&request) {
                        waiter.result = Some(result);
                        waiter.done.signal();
                    }
                    continue;
                }
                VscEffect::Failed(error) => {
                    if let Some(function) = core.function.take() {
                        function.set_gone();
                    }
                    VpciEvent::Failed(error)
                }
                VscEffect::CloseChannel => {
                    core.finished = true;
                    self.news.signal();
                    continue;
                }
            };
            core.add(event);
            self.news.signal();
        }
    }

    /// The channel is not used any more.
    fn end_channel(&self, core: &mut Core) {
        core.channel = None;
        core.finished = true;
        let effects = core.vsc.channel_closed();
        self.carry_out(core, effects);
        self.news.signal();
    }

    /// Does the bus thread's work until `done`, or until the deadline. `event` is signalled when another thread, which
    /// does it too, may have brought it about.
    fn wait_until<T>(
        &self,
        deadline: Option<Instant>,
        event: &EventFd,
        mut done: impl FnMut(&mut Core) -> Option<T>,
    ) -> Option<T> {
        loop {
            let mut core = self.core();
            self.pump(&mut core);
            if let Some(value) = done(&mut core) {
                return Some(value);
            }
            let due = core.vsc.next_deadline().and_then(|due| self.started.checked_add(due));
            let channel =
                core.channel.as_ref().map(|channel| channel.channel().interrupt().clone());
            drop(core);
            let until = [due, deadline].into_iter().flatten().min();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return None;
            }
            let mut ready = vec![PollFd::new(event, PollFlags::IN)];
            ready.extend(channel.as_ref().map(|channel| PollFd::new(channel, PollFlags::IN)));
            let _ = poll(&mut ready, left.and_then(|left| Timespec::try_from(left).ok()).as_ref());
        }
    }

    /// Asks the host for something and waits for its answer: the VSC gives up after a time.
    pub(super) fn request(
        &self,
        what: &'static str,
        ask: impl FnOnce(&mut Vsc, Duration) -> Requested,
    ) -> Result<VscReply, VpciError> {
        let done = EventFd::new().map_err(VpciError::system("creating an eventfd"))?;
        let mut core = self.core();
        let (request, effects) = ask(&mut core.vsc, self.now())?;
        core.waiting.insert(request, Waiter { done: done.clone(), result: None });
        self.carry_out(&mut core, effects);
        drop(core);
        let result = self.wait_until(None, &done, |core| {
            let answered = core.waiting.get(&request).is_some_and(|one| one.result.is_some());
            // A bus that has failed answers nothing any more.
            let ended = core.finished.then_some(Err(NtStatus::DEVICE_REMOVED));
            if !answered && ended.is_none() {
                return None;
            }
            core.waiting.remove(&request).and_then(|one| one.result).or(ended)
        });
        match result {
            Some(Ok(reply)) => Ok(reply),
            Some(Err(NtStatus::DEVICE_REMOVED)) | None => Err(VpciError::Gone),
            Some(Err(status)) => Err(VpciError::Refused { what, status }),
        }
    }
}

impl Core {
    /// Keeps an event for the bus thread. Of invalidated blocks the union counts: a host cannot make them pile up.
    fn add(&mut self, event: VpciEvent) {
        if let (VpciEvent::BlocksInvalidated(blocks), Some(VpciEvent::BlocksInvalidated(earlier))) =
            (&event, self.events.back_mut())
        {
            *earlier |= blocks;
            return;
        }
        self.events.push_back(event);
    }
}
