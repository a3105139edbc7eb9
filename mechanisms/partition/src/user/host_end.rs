//! The host's end of a user-mode partition.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::event::epoll;
use shared_memory::{PageSize, create_memfd};
use vmbus::EventFd;
use vmbus_protocol::{MAX_CHANNELS, MAX_MESSAGE_SIZE, VpIndex};

use super::{
    socket::{Received, Socket},
    wire::{FromGuest, FromHost, Name},
};
use crate::{
    GuestMemory, MmioHandler, MmioPages, MsiBlock, Partition, PartitionError, PartitionEvent,
    PostError, RetargetHandler, VmbusMessage,
};

/// Messages held for a guest that takes none, before it is cut off.
const MAX_QUEUED: usize = 4096;
/// MMIO accesses answered in one call.
const MMIO_BURST: usize = 64;
/// Interrupt messages of one guest, at most.
const MAX_MSIS: usize = 4096;
/// Where a local APIC takes interrupt messages.
const MSI_ADDRESS: u64 = 0xFEE0_0000;

/// What guest to make.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct UserPartitionConfig {
    /// Ranges of guest memory: first address and bytes, multiples of the page size. At least one.
    pub memory: Vec<(u64, usize)>,
    /// Which pages back it.
    pub pages: PageSize,
}

impl UserPartitionConfig {
    /// So many bytes of memory at address 0.
    pub fn with_memory(bytes: usize) -> Self {
        Self { memory: vec![(0, bytes)], pages: PageSize::Base }
    }
}

/// The host's end of a guest that is a process.
#[derive(Debug)]
pub struct UserPartition {
    socket: Socket,
    memory: GuestMemory,
    /// Readable when the guest has sent something, or takes what is held for it.
    events: OwnedFd,
    /// Readable when the guest takes messages.
    room: OwnedFd,
    /// The thread that serves the guest contends with those that add and remove things, rarely.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the guest has not taken.
    queue: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    flags: BTreeMap<u16, EventFd>,
    signals: BTreeMap<u32, EventFd>,
    /// First data and address of blocks, to their number of messages.
    msis: BTreeMap<(u32, u64), u32>,
    next_msi: u32,
    mmio: BTreeMap<u64, Mmio>,
    gone: bool,
    gone_told: bool,
}

struct Mmio {
    length: u64,
    /// `None`: pages are mapped.
    handler: Option<Arc<dyn MmioHandler>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("queued", &self.queue.len())
            .field("flags", &self.flags.keys())
            .field("signals", &self.signals.keys())
            .field("msis", &self.msis)
            .field("mmio", &self.mmio.keys())
            .field("gone", &self.gone)
            .finish()
    }
}

impl UserPartition {
    /// Makes the guest's memory and both ends of the socket. The second value is the guest's end, for the process
    /// that becomes the guest.
    pub fn new(config: &UserPartitionConfig) -> Result<(Self, OwnedFd), PartitionError> {
        let mut memory = GuestMemory::empty();
        for (gpa, length) in &config.memory {
            let fd = create_memfd("clearway-guest", *length, config.pages)?;
            memory = memory.with(*gpa, fd, 0, *length)?;
        }
        let (socket, guest) = Socket::pair().map_err(PartitionError::io("a socket pair"))?;
        let system = PartitionError::system;
        let new_epoll = || epoll::create(epoll::CreateFlags::CLOEXEC);
        let events = new_epoll().map_err(system("an epoll instance"))?;
        let room = new_epoll().map_err(system("an epoll instance"))?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&events, &socket, data, epoll::EventFlags::IN)
            .map_err(system("to watch the guest's socket"))?;
        epoll::add(&room, &socket, data, epoll::EventFlags::OUT)
            .map_err(system("to watch the guest's socket"))?;
        let this = Self { socket, memory, events, room, state: Mutex::default() };
        let count = this.memory.regions().len();
        for (index, region) in this.memory.regions().iter().enumerate() {
            let (gpa, length) = (region.gpa, region.length as u64);
            let message = FromHost::Memory { gpa, length, more: index + 1 < count };
            this.send(&mut this.state(), &message, Some(region.as_fd()))?;
        }
        Ok((this, guest))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: the guest has ended or broke the rules.
    fn cut_off(&self, state: &mut State) {
        if !state.gone {
            state.gone = true;
            state.queue.clear();
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
            let _ = epoll::delete(&self.events, &self.socket);
            let _ = epoll::delete(&self.room, &self.socket);
        }
    }

    /// Sends what is held, as far as the guest takes it.
    fn flush(&self, state: &mut State) {
        let was_empty = state.queue.is_empty();
        while let Some((bytes, fd)) = state.queue.front() {
            match self.socket.send(bytes, fd.as_ref().map(AsFd::as_fd)) {
                Ok(true) => drop(state.queue.pop_front()),
                Ok(false) => break,
                Err(_) => self.cut_off(state),
            }
        }
        if !was_empty && state.queue.is_empty() {
            self.watch(state);
        }
    }

    /// Has `events` tell of room as long as something is held.
    fn watch(&self, state: &State) {
        if !state.gone {
            let mut flags = epoll::EventFlags::IN;
            if !state.queue.is_empty() {
                flags |= epoll::EventFlags::OUT;
            }
            let data = epoll::EventData::new_u64(0);
            let _ = epoll::modify(&self.events, &self.socket, data, flags);
        }
    }

    /// Sends a message, or holds it in order.
    fn send(
        &self,
        state: &mut State,
        message: &FromHost,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), PartitionError> {
        self.flush(state);
        if state.gone {
            return Err(PartitionError::Gone);
        }
        let bytes = message.emit();
        if state.queue.is_empty() {
            match self.socket.send(&bytes, fd) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => {
                    self.cut_off(state);
                    return Err(PartitionError::Gone);
                }
            }
        }
        if state.queue.len() >= MAX_QUEUED {
            tracing::warn!("the guest takes no messages; it is cut off");
            self.cut_off(state);
            return Err(PartitionError::Gone);
        }
        let fd = fd.map(|fd| fd.try_clone_to_owned()).transpose();
        let fd = fd.map_err(PartitionError::io("a descriptor"))?;
        state.queue.push_back((bytes, fd));
        self.watch(state);
        Ok(())
    }

    /// Tells the guest that something is not there any more; if it does not hear it, it is gone.
    fn send_removed(&self, state: &mut State, name: Name) {
        let _ = self.send(state, &FromHost::Removed(name), None);
    }

    fn new_event() -> Result<EventFd, PartitionError> {
        EventFd::new().map_err(PartitionError::io("an eventfd"))
    }

    /// What signals the guest, and what the guest gets of it.
    fn new_interrupt() -> Result<(EventFd, EventFd), PartitionError> {
        let event = Self::new_event()?;
        let end = event.receiving_end().map_err(PartitionError::io("an epoll instance"))?;
        Ok((event, end))
    }

    /// Takes one message of the guest and answers it if it is an MMIO access.
    fn take(&self) -> Option<Result<PartitionEvent, ()>> {
        let parsed = match self.socket.receive() {
            Ok(Received::Nothing) => return None,
            Ok(Received::Closed) => None,
            Ok(Received::Message(bytes, None)) => {
                let parsed = FromGuest::parse(&bytes);
                if parsed.is_none() {
                    tracing::warn!("the guest sent a message without a meaning; it is cut off");
                }
                parsed
            }
            // A guest has no descriptors to give.
            Ok(Received::Message(_, Some(_))) => None,
            Err(error) => {
                tracing::debug!(%error, "reading from the guest");
                None
            }
        };
        let Some(message) = parsed else {
            self.cut_off(&mut self.state());
            return None;
        };
        match message {
            FromGuest::Post { connection_id, payload } => {
                Some(Ok(PartitionEvent::Message(VmbusMessage { connection_id, payload })))
            }
            FromGuest::Reset => Some(Ok(PartitionEvent::Reset)),
            FromGuest::MmioRead { gpa, size } => {
                let mut bytes = [0xFF; 8];
                if let (Some((handler, offset)), Some(data)) =
                    (self.handler(gpa, size), bytes.get_mut(..usize::from(size)))
                {
                    handler.read(offset, data);
                }
                if let Some(unused) = bytes.get_mut(usize::from(size)..) {
                    unused.fill(0);
                }
                self.mmio_done(u64::from_le_bytes(bytes));
                Some(Err(()))
            }
            FromGuest::MmioWrite { gpa, size, value } => {
                let bytes = value.to_le_bytes();
                if let (Some((handler, offset)), Some(data)) =
                    (self.handler(gpa, size), bytes.get(..usize::from(size)))
                {
                    handler.write(offset, data);
                }
                self.mmio_done(0);
                Some(Err(()))
            }
        }
    }

    fn handler(&self, gpa: u64, size: u8) -> Option<(Arc<dyn MmioHandler>, u64)> {
        let state = self.state();
        let (start, mmio) = state.mmio.range(..=gpa).next_back()?;
        let offset = gpa - start;
        let end = offset.checked_add(u64::from(size))?;
        if end > mmio.length {
            return None;
        }
        Some((mmio.handler.clone()?, offset))
    }

    fn mmio_done(&self, value: u64) {
        let _ = self.send(&mut self.state(), &FromHost::MmioDone { value }, None);
    }

    fn add_mmio(
        &self,
        state: &mut State,
        gpa: u64,
        length: u64,
        handler: Option<Arc<dyn MmioHandler>>,
    ) -> Result<(), PartitionError> {
        let refused = PartitionError::Mmio { gpa, length };
        let whole = gpa.is_multiple_of(4096) && length.is_multiple_of(4096) && length != 0;
        let Some(end) = gpa.checked_add(length).filter(|_| whole) else { return Err(refused) };
        let overlaps = |start: u64, length: u64| start < end && gpa < start.saturating_add(length);
        let memory = self.memory.regions();
        if memory.iter().any(|region| overlaps(region.gpa, region.length as u64))
            || state.mmio.iter().any(|(start, mmio)| overlaps(*start, mmio.length))
        {
            return Err(refused);
        }
        state.mmio.insert(gpa, Mmio { length, handler });
        Ok(())
    }
}

impl Partition for UserPartition {
    fn memory(&self) -> GuestMemory {
        self.memory.clone()
    }

    fn next_event(&self) -> Option<PartitionEvent> {
        self.flush(&mut self.state());
        for _ in 0..MMIO_BURST {
            if self.state().gone {
                break;
            }
            match self.take() {
                Some(Ok(event)) => return Some(event),
                Some(Err(())) => {}
                None => break,
            }
        }
        let mut state = self.state();
        if state.gone && !state.gone_told {
            state.gone_told = true;
            return Some(PartitionEvent::Gone);
        }
        None
    }

    fn events_ready(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn post_message(&self, vp: VpIndex, sint: u8, message: &[u8]) -> Result<(), PostError> {
        if message.len() > MAX_MESSAGE_SIZE {
            return Err(PostError::TooLong);
        }
        let mut state = self.state();
        self.flush(&mut state);
        if state.gone {
            return Err(PostError::Gone);
        }
        if !state.queue.is_empty() {
            return Err(PostError::Busy);
        }
        let message = FromHost::Message { vp: vp.0, sint, payload: message.to_vec() };
        match self.socket.send(&message.emit(), None) {
            Ok(true) => Ok(()),
            Ok(false) => Err(PostError::Busy),
            Err(_) => {
                self.cut_off(&mut state);
                Err(PostError::Gone)
            }
        }
    }

    fn room_ready(&self) -> BorrowedFd<'_> {
        self.room.as_fd()
    }

    fn create_event_flag(&self, vp: VpIndex, flag: u16) -> Result<EventFd, PartitionError> {
        let mut state = self.state();
        if flag == 0 || u32::from(flag) >= MAX_CHANNELS || state.flags.contains_key(&flag) {
            return Err(PartitionError::EventFlag(flag));
        }
        let (event, end) = Self::new_interrupt()?;
        self.send(&mut state, &FromHost::EventFlag { flag, vp: vp.0 }, Some(end.as_fd()))?;
        state.flags.insert(flag, event.clone());
        Ok(event)
    }

    fn move_event_flag(&self, flag: u16, vp: VpIndex) -> Result<(), PartitionError> {
        let mut state = self.state();
        if !state.flags.contains_key(&flag) {
            return Err(PartitionError::EventFlag(flag));
        }
        self.send(&mut state, &FromHost::EventFlagMoved { flag, vp: vp.0 }, None)
    }

    fn remove_event_flag(&self, flag: u16) {
        let mut state = self.state();
        if state.flags.remove(&flag).is_some() {
            self.send_removed(&mut state, Name::EventFlag(flag));
        }
    }

    fn create_signal(&self, connection_id: u32) -> Result<EventFd, PartitionError> {
        let mut state = self.state();
        if state.signals.contains_key(&connection_id) {
            return Err(PartitionError::Bound(connection_id));
        }
        let event = Self::new_event()?;
        self.send(&mut state, &FromHost::Signal { connection_id }, Some(event.as_fd()))?;
        state.signals.insert(connection_id, event.clone());
        Ok(event)
    }

    fn remove_signal(&self, connection_id: u32) {
        let mut state = self.state();
        if state.signals.remove(&connection_id).is_some() {
            self.send_removed(&mut state, Name::Signal(connection_id));
        }
    }

    fn create_msi(
        &self,
        vector: u32,
        vps: &[VpIndex],
        count: usize,
    ) -> Result<MsiBlock, PartitionError> {
        let mut state = self.state();
        let refused = PartitionError::Msi(count);
        let Some(blocks) = u32::try_from(count).ok().filter(|count| (1..=32).contains(count))
        else {
            return Err(refused);
        };
        let held: u32 = state.msis.values().sum();
        if held as usize + count > MAX_MSIS {
            return Err(refused);
        }
        // Data values are told apart by the guest and by us, so that no two messages have the same.
        let mut data = state.next_msi.max(1);
        loop {
            let end = u64::from(data) + u64::from(blocks);
            let taken = state.msis.iter().find(|((first, _), count)| {
                u64::from(*first) < end && data < first.saturating_add(**count)
            });
            match taken {
                Some(((first, _), count)) => data = first.saturating_add(*count),
                None if end <= u64::from(u32::MAX) => break,
                None => data = 1,
            }
        }
        let vp = vps.first().map_or(0, |vp| vp.0);
        let address = MSI_ADDRESS | u64::from(vp & 0xFF) << 12;
        let mut events = Vec::new();
        for index in 0..blocks {
            let (event, end) = Self::new_interrupt()?;
            let (data, vector) = (data + index, vector.wrapping_add(index));
            let message = FromHost::Msi { address, data, vector, vp };
            self.send(&mut state, &message, Some(end.as_fd()))?;
            events.push(event);
        }
        state.msis.insert((data, address), blocks);
        state.next_msi = data + blocks;
        Ok(MsiBlock { address, data, events })
    }

    fn move_msi(&self, _: u64, data: u32, _: u32, _: &[VpIndex]) -> Result<(), PartitionError> {
        // A guest that is a process has an eventfd for each message, and no processors to move it between.
        Err(PartitionError::NotMovable(data))
    }

    fn set_retarget_handler(&self, _: Arc<dyn RetargetHandler>) {}

    fn remove_msi(&self, address: u64, data: u32) {
        let mut state = self.state();
        if let Some(count) = state.msis.remove(&(data, address)) {
            for data in data..data + count {
                self.send_removed(&mut state, Name::Msi { address, data });
            }
        }
    }

    fn intercept_mmio(
        &self,
        gpa: u64,
        length: u64,
        handler: Arc<dyn MmioHandler>,
    ) -> Result<(), PartitionError> {
        let mut state = self.state();
        if state.gone {
            return Err(PartitionError::Gone);
        }
        self.add_mmio(&mut state, gpa, length, Some(handler))
    }

    fn map_mmio(&self, gpa: u64, length: u64, pages: MmioPages) -> Result<(), PartitionError> {
        let mut state = self.state();
        self.add_mmio(&mut state, gpa, length, None)?;
        let MmioPages { fd, offset, writable } = pages;
        let message = FromHost::MmioPages { gpa, length, offset, writable };
        let sent = self.send(&mut state, &message, Some(fd.as_fd()));
        if sent.is_err() {
            state.mmio.remove(&gpa);
        }
        sent
    }

    fn remove_mmio(&self, gpa: u64) {
        let mut state = self.state();
        if let Some(mmio) = state.mmio.remove(&gpa)
            && mmio.handler.is_none()
        {
            self.send_removed(&mut state, Name::Mmio { gpa });
        }
    }
}
