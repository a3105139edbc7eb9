//! VMBus guest: the client core and the guest's end of a user-mode partition, joined into a running client.
//!
//! One thread takes what the host sends; drivers call in from their own and wait, with a limit of their choice, for
//! what they asked for.

use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};
use vmbus::{
    Channel, ChannelDead, EventFd, GuestBuffer, GuestBufferError,
    client::{Client, ClientConfig, ClientError, ClientEvent, OpenParams},
};
use vmbus_protocol::{
    ChannelId, Gpadl, GpadlId, GpadlRange, MessageBytes, Negotiated, Offer, USER_DEFINED_SIZE,
    VpIndex,
};

use crate::{
    PageAllocator,
    user::{GuestMessage, UserGuest},
};

/// What a guest's kernel hears of its bus.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum BusEvent {
    /// A channel.
    Offered(Box<Offer>),
    /// A channel is gone: close it, then [`VmbusGuest::release`].
    Rescinded(ChannelId),
    /// The host has ended the guest.
    Closed,
}

/// What keeps a driver from what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The core refuses.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server refuses.
    #[error("the host refuses {0}")]
    Refused(&'static str),
    /// The device is gone.
    #[error("channel {0} was rescinded")]
    Rescinded(ChannelId),
    /// No answer within the limit.
    #[error("the host did not answer {0} in time")]
    TimedOut(&'static str),
    /// There is no host any more.
    #[error("the host is gone")]
    Closed,
    /// Guest memory is used up.
    #[error("{0} pages of guest memory are not to be had")]
    NoMemory(usize),
    /// The rings cannot be mapped.
    #[error("a channel's rings")]
    Buffer(#[from] GuestBufferError),
    /// The rings are broken.
    #[error("a channel's rings")]
    Dead(#[from] ChannelDead),
    /// The channel has no signal: the host has not told of one.
    #[error("channel {0} has no signal")]
    NoSignal(ChannelId),
    /// The kernel refuses.
    #[error("the guest's end of VMBus")]
    System(#[from] io::Error),
}

/// A channel that is open.
#[derive(Debug)]
pub struct GuestChannel {
    /// The guest's end.
    pub channel: Channel,
    id: ChannelId,
    gpadl: GpadlId,
    frames: Vec<u64>,
}

impl GuestChannel {
    /// The channel's name.
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// The guest's end, for a thread of its own, and what is to be taken back once that end is dropped
    /// ([`VmbusGuest::close_rings`]).
    pub fn into_parts(self) -> (Channel, GuestRings) {
        let Self { channel, id, gpadl, frames } = self;
        (channel, GuestRings { id, gpadl, frames })
    }
}

/// The rings of a channel that is open, without its end.
#[derive(Debug)]
pub struct GuestRings {
    id: ChannelId,
    gpadl: GpadlId,
    frames: Vec<u64>,
}

impl GuestRings {
    /// The channel's name.
    pub fn id(&self) -> ChannelId {
        self.id
    }
}

/// Memory that the guest shares with a device.
#[derive(Debug)]
pub struct SharedBuffer {
    /// The memory.
    pub buffer: GuestBuffer,
    gpadl: GpadlId,
    frames: Vec<u64>,
}

impl SharedBuffer {
    /// Its name, by which the device is told of it.
    pub fn gpadl(&self) -> GpadlId {
        self.gpadl
    }
}

/// A running VMBus client. Dropping it stops its thread; the host then sees a guest that says nothing.
#[derive(Debug)]
pub struct VmbusGuest {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    guest: Arc<UserGuest>,
    pages: PageAllocator,
    wake: EventFd,
    /// The thread contends with drivers that ask for something: control only, never per packet.
    core: Mutex<Core>,
    changed: Condvar,
}

#[derive(Debug)]
struct Core {
    client: Client,
    unsent: Option<(u32, MessageBytes)>,
    /// Answers that nobody has waited for yet.
    answers: Vec<ClientEvent>,
    events: VecDeque<BusEvent>,
    closed: bool,
    stop: bool,
}

impl VmbusGuest {
    /// Starts a client on a guest's end.
    pub fn start(guest: Arc<UserGuest>, config: ClientConfig) -> io::Result<Self> {
        let pages = PageAllocator::new(guest.memory());
        let core = Core {
            client: Client::new(config),
            unsent: None,
            answers: Vec::new(),
            events: VecDeque::new(),
            closed: false,
            stop: false,
        };
        let shared = Arc::new(Shared {
            guest,
            pages,
            wake: EventFd::new()?,
            core: Mutex::new(core),
            changed: Condvar::new(),
        });
        let running = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("vmbus-guest".to_owned())
            .spawn(move || running.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The guest's end of the partition.
    pub fn guest(&self) -> &Arc<UserGuest> {
        &self.shared.guest
    }

    /// The guest's pages.
    pub fn pages(&self) -> &PageAllocator {
        &self.shared.pages
    }

    /// Connects, and waits until all channels were offered ([`Self::next_event`] gives them).
    pub fn connect(&self, limit: Duration) -> Result<Negotiated, GuestError> {
        self.shared.ask(|client| client.connect())?;
        let connected = self.shared.wait("INITIATE_CONTACT", limit, |event| match event {
            ClientEvent::Connected(negotiated) => Some(Ok(*negotiated)),
            ClientEvent::ConnectionFailed => Some(Err(GuestError::Refused("all versions"))),
            _ => None,
        })??;
        self.shared.wait("REQUEST_OFFERS", limit, |event| {
            (*event == ClientEvent::AllOffersDelivered).then_some(())
        })?;
        Ok(connected)
    }

    /// The next news of the bus, waiting for it at most `limit`.
    pub fn next_event(&self, limit: Duration) -> Option<BusEvent> {
        let deadline = Instant::now() + limit;
        let mut core = self.shared.core();
        loop {
            if let Some(event) = core.events.pop_front() {
                return Some(event);
            }
            if core.closed {
                return Some(BusEvent::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            core = self.shared.sleep(core, left);
        }
    }

    /// Shares `pages` fresh pages with the device of a channel.
    pub fn share(
        &self,
        channel: ChannelId,
        pages: usize,
        limit: Duration,
    ) -> Result<SharedBuffer, GuestError> {
        let frames = self.shared.pages.allocate(pages).ok_or(GuestError::NoMemory(pages))?;
        match self.share_frames(channel, &frames, limit) {
            Ok((buffer, gpadl)) => Ok(SharedBuffer { buffer, gpadl, frames }),
            Err(error) => {
                // Memory that the host may have got stays out of use.
                if !matches!(error, GuestError::TimedOut(_)) {
                    self.shared.pages.release(&frames);
                }
                Err(error)
            }
        }
    }

    fn share_frames(
        &self,
        channel: ChannelId,
        frames: &[u64],
        limit: Duration,
    ) -> Result<(GuestBuffer, GpadlId), GuestError> {
        let no_memory = || GuestError::NoMemory(frames.len());
        let range = GpadlRange::pages(frames.to_vec()).ok_or_else(no_memory)?;
        let map = self.shared.guest.memory().map();
        let buffer = GuestBuffer::new(map, frames, 0, range.byte_count)?;
        let pages = Gpadl::new(vec![range]).ok_or_else(no_memory)?;
        let gpadl = self.shared.ask(|client| client.create_gpadl(channel, &pages))?;
        let accepted = self.shared.wait("GPADL_HEADER", limit, |event| match event {
            ClientEvent::GpadlCreated { gpadl: of, accepted, .. } if *of == gpadl => {
                Some(*accepted)
            }
            _ => None,
        })?;
        if accepted { Ok((buffer, gpadl)) } else { Err(GuestError::Refused("the GPADL")) }
    }

    /// Takes memory back from a device.
    pub fn unshare(&self, shared: SharedBuffer, limit: Duration) -> Result<(), GuestError> {
        self.take_back(shared.gpadl, &shared.frames, limit)
    }

    fn take_back(&self, gpadl: GpadlId, frames: &[u64], limit: Duration) -> Result<(), GuestError> {
        self.shared.ask(|client| client.teardown_gpadl(gpadl))?;
        self.shared.wait("GPADL_TEARDOWN", limit, |event| {
            matches!(event, ClientEvent::GpadlTorndown { gpadl: of, .. } if *of == gpadl)
                .then_some(())
        })?;
        self.shared.pages.release(frames);
        Ok(())
    }

    /// Opens a channel with rings of so many pages (at least 2, the control page included) to the host and to the
    /// guest.
    pub fn open(
        &self,
        id: ChannelId,
        pages: (usize, usize),
        user_data: [u8; USER_DEFINED_SIZE],
        limit: Duration,
    ) -> Result<GuestChannel, GuestError> {
        let SharedBuffer { buffer, gpadl, frames } =
            self.share(id, pages.0.saturating_add(pages.1), limit)?;
        let opened = self.open_rings(id, pages.0, user_data, gpadl, &buffer, limit);
        match opened {
            Ok(channel) => Ok(GuestChannel { channel, id, gpadl, frames }),
            Err(error) => {
                let _ = self.shared.ask(|client| client.close(id));
                let _ = self.take_back(gpadl, &frames, limit);
                Err(error)
            }
        }
    }

    fn open_rings(
        &self,
        id: ChannelId,
        downstream: usize,
        user_data: [u8; USER_DEFINED_SIZE],
        ring_gpadl: GpadlId,
        buffer: &GuestBuffer,
        limit: Duration,
    ) -> Result<Channel, GuestError> {
        let (outgoing, incoming) = buffer.rings(downstream)?;
        outgoing.clear();
        incoming.clear();
        let open = OpenParams {
            ring_gpadl,
            downstream_page_offset: u32::try_from(downstream).unwrap_or(u32::MAX),
            target_vp: Some(VpIndex(0)),
            user_data,
        };
        let connection_id = self.shared.ask(|client| {
            client.open(id, open)?;
            let offer = client.offers().find(|offer| offer.channel == id);
            offer.map(|offer| offer.connection_id).ok_or(ClientError::NoChannel(id))
        })?;
        let success = self.shared.wait_on(id, "OPEN_CHANNEL", limit, |event| match event {
            ClientEvent::Opened { channel, success } if *channel == id => Some(*success),
            _ => None,
        })?;
        if !success {
            return Err(GuestError::Refused("to open the channel"));
        }
        // The host has told of both before it told that the channel is open.
        let guest = &self.shared.guest;
        let flag = u16::try_from(id.0).ok().and_then(|flag| guest.event_flag(flag));
        let (Some(interrupt), Some(host)) = (flag, guest.signal(connection_id)) else {
            return Err(GuestError::NoSignal(id));
        };
        Ok(Channel::new(incoming, outgoing, host, interrupt)?)
    }

    /// Closes a channel and takes its rings back; also one that was rescinded.
    pub fn close(&self, channel: GuestChannel, limit: Duration) -> Result<(), GuestError> {
        let (channel, rings) = channel.into_parts();
        drop(channel);
        self.close_rings(rings, limit)
    }

    /// Closes a channel whose end was dropped, and takes its rings back; also one that was rescinded.
    pub fn close_rings(&self, rings: GuestRings, limit: Duration) -> Result<(), GuestError> {
        let GuestRings { id, gpadl, frames } = rings;
        match self.shared.ask(|client| client.close(id)) {
            Ok(()) => {}
            // Rescinded: there is nothing to close.
            Err(GuestError::Client(ClientError::ChannelState(_))) => {}
            Err(error) => return Err(error),
        }
        self.take_back(gpadl, &frames, limit)
    }

    /// Forgets a channel that was rescinded; all that was shared with it must be taken back.
    pub fn release(&self, id: ChannelId) -> Result<(), GuestError> {
        self.shared.ask(|client| client.release(id))
    }

    /// Moves a channel's interrupt.
    pub fn modify(&self, id: ChannelId, vp: VpIndex) -> Result<(), GuestError> {
        self.shared.ask(|client| client.modify(id, vp))
    }

    /// Disconnects; the host holds nothing any more when it returns.
    pub fn unload(&self, limit: Duration) -> Result<(), GuestError> {
        self.shared.ask(|client| client.unload())?;
        self.shared.wait("UNLOAD", limit, |event| (*event == ClientEvent::Unloaded).then_some(()))
    }
}

impl Drop for VmbusGuest {
    fn drop(&mut self) {
        self.shared.core().stop = true;
        self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a>(&self, core: MutexGuard<'a, Core>, limit: Duration) -> MutexGuard<'a, Core> {
        self.changed.wait_timeout(core, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Has the core do something, and sends what comes of it.
    fn ask<T>(
        &self,
        call: impl FnOnce(&mut Client) -> Result<T, ClientError>,
    ) -> Result<T, GuestError> {
        let mut core = self.core();
        if core.closed {
            return Err(GuestError::Closed);
        }
        let result = call(&mut core.client);
        self.work(&mut core)?;
        Ok(result?)
    }

    /// Waits for an answer.
    fn wait<T>(
        &self,
        what: &'static str,
        limit: Duration,
        answer: impl FnMut(&ClientEvent) -> Option<T>,
    ) -> Result<T, GuestError> {
        self.wait_until(None, what, limit, answer)
    }

    /// Waits for an answer about a channel, or for the end of the channel.
    fn wait_on<T>(
        &self,
        channel: ChannelId,
        what: &'static str,
        limit: Duration,
        answer: impl FnMut(&ClientEvent) -> Option<T>,
    ) -> Result<T, GuestError> {
        self.wait_until(Some(channel), what, limit, answer)
    }

    fn wait_until<T>(
        &self,
        channel: Option<ChannelId>,
        what: &'static str,
        limit: Duration,
        mut answer: impl FnMut(&ClientEvent) -> Option<T>,
    ) -> Result<T, GuestError> {
        let deadline = Instant::now() + limit;
        let mut core = self.core();
        loop {
            let found = core
                .answers
                .iter()
                .enumerate()
                .find_map(|(at, event)| answer(event).map(|value| (at, value)));
            if let Some((at, value)) = found {
                core.answers.remove(at);
                return Ok(value);
            }
            if core.closed {
                return Err(GuestError::Closed);
            }
            if let Some(channel) = channel.filter(|channel| core.client.is_rescinded(*channel)) {
                return Err(GuestError::Rescinded(channel));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(GuestError::TimedOut(what));
            }
            core = self.sleep(core, left);
        }
    }

    /// Sends what the core has for the host, and sorts its news.
    fn work(&self, core: &mut Core) -> io::Result<()> {
        while let Some((connection_id, message)) =
            core.unsent.take().or_else(|| core.client.next_message())
        {
            if !self.guest.try_post(connection_id, message.as_bytes())? {
                core.unsent = Some((connection_id, message));
                self.wake.signal();
                break;
            }
        }
        while let Some(event) = core.client.next_event() {
            match event {
                ClientEvent::Offered(offer) => {
                    core.events.push_back(BusEvent::Offered(Box::new(offer)));
                }
                ClientEvent::Rescinded(channel) => {
                    core.events.push_back(BusEvent::Rescinded(channel));
                }
                // Nobody waits for these.
                ClientEvent::Modified { .. } => {}
                answer => core.answers.push(answer),
            }
        }
        self.changed.notify_all();
        Ok(())
    }

    /// The thread: takes what the host sends.
    fn run(&self) {
        loop {
            let waits = {
                let mut core = self.core();
                if self.work(&mut core).is_err() {
                    core.closed = true;
                    self.changed.notify_all();
                }
                // Whoever signals it holds the lock, or has set `stop` before.
                self.wake.take();
                if core.stop || core.closed {
                    return;
                }
                core.unsent.is_some()
            };
            let out = if waits { PollFlags::OUT } else { PollFlags::empty() };
            let mut ready = [
                PollFd::new(&self.wake, PollFlags::IN),
                PollFd::from_borrowed_fd(self.guest.as_fd(), PollFlags::IN | out),
            ];
            if poll(&mut ready, None).is_err() {
                continue;
            }
            loop {
                let message = self.guest.next_message();
                let mut core = self.core();
                match message {
                    Ok(None) => break,
                    Ok(Some(GuestMessage::Changed)) => {}
                    Ok(Some(GuestMessage::Message { payload, .. })) => {
                        if let Err(error) = core.client.handle_message(&payload) {
                            tracing::debug!(%error, "a VMBus message of the host was refused");
                        }
                    }
                    Ok(Some(GuestMessage::Closed)) | Err(_) => {
                        core.closed = true;
                        self.changed.notify_all();
                        return;
                    }
                }
                if self.work(&mut core).is_err() {
                    break;
                }
            }
        }
    }
}
