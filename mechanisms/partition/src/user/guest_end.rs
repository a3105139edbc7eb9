//! The guest's end of a user-mode partition: what stands for the guest's processors and their SynIC.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmbus::EventFd;
use vmbus_protocol::VpIndex;

use super::{
    socket::{Received, Socket},
    wire::{FromGuest, FromHost, Name},
};
use crate::GuestMemory;

/// MMIO that lies in a file of the host's.
#[derive(Clone, Debug)]
pub struct MappedMmio {
    /// Bytes.
    pub length: u64,
    /// The file.
    pub fd: Arc<OwnedFd>,
    /// Byte offset in it.
    pub offset: u64,
    /// It may be written.
    pub writable: bool,
}

/// What came from the host.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum GuestMessage {
    /// A message to a processor's interrupt source.
    Message {
        /// The interrupt source.
        sint: u8,
        /// The message.
        payload: Vec<u8>,
    },
    /// A handle or MMIO came or went.
    Changed,
    /// The host has ended the guest. Nothing follows.
    Closed,
}

/// The guest's end. One thread takes messages ([`Self::next_message`]); all others may do all else.
#[derive(Debug)]
pub struct UserGuest {
    socket: Socket,
    memory: GuestMemory,
    /// The thread that takes messages contends with drivers, rarely.
    state: Mutex<State>,
    /// An access to MMIO is done, or the guest is closed.
    done: Condvar,
    /// One access at a time.
    access: Mutex<()>,
}

#[derive(Default, Debug)]
struct State {
    events: BTreeMap<Name, EventFd>,
    /// Vector and processor of each interrupt message, with its name.
    vectors: BTreeMap<(u32, u32), Name>,
    mmio: BTreeMap<u64, MappedMmio>,
    /// The answer to the access that is under way.
    answer: Option<u64>,
    closed: bool,
}

/// Waits until the descriptor is ready, or `limit` is over.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, limit: Option<Duration>) -> io::Result<()> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl UserGuest {
    /// Becomes the guest at this end of the socket: waits, at most `limit`, until the host has told of its memory.
    pub fn new(socket: OwnedFd, limit: Duration) -> io::Result<Self> {
        let socket = Socket::from_fd(socket);
        let deadline = Instant::now() + limit;
        let mut memory = GuestMemory::empty();
        loop {
            match socket.receive()? {
                Received::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
                Received::Nothing => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait(socket.as_fd(), PollFlags::IN, Some(left))?;
                }
                Received::Message(bytes, fd) => {
                    let (Some(FromHost::Memory { gpa, length, more }), Some(fd)) =
                        (FromHost::parse(&bytes), fd)
                    else {
                        return Err(io::ErrorKind::InvalidData.into());
                    };
                    let length = usize::try_from(length).map_err(io::Error::other)?;
                    memory = memory.with(gpa, fd, 0, length).map_err(io::Error::other)?;
                    if !more {
                        break;
                    }
                }
            }
        }
        Ok(Self {
            socket,
            memory,
            state: Mutex::default(),
            done: Condvar::new(),
            access: Mutex::new(()),
        })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the host sent next, `None` if there is nothing now. Wait for [`AsFd`] to be readable.
    pub fn next_message(&self) -> io::Result<Option<GuestMessage>> {
        let (bytes, fd) = match self.socket.receive()? {
            Received::Nothing => return Ok(None),
            Received::Closed => {
                self.state().closed = true;
                self.done.notify_all();
                return Ok(Some(GuestMessage::Closed));
            }
            Received::Message(bytes, fd) => (bytes, fd),
        };
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let message = FromHost::parse(&bytes).ok_or_else(invalid)?;
        let mut state = self.state();
        let mut event = |name: Name, fd: Option<OwnedFd>| -> io::Result<()> {
            let event = EventFd::from_peer(fd.ok_or_else(invalid)?)?;
            state.events.insert(name, event);
            Ok(())
        };
        match message {
            FromHost::Message { sint, payload, .. } => {
                return Ok(Some(GuestMessage::Message { sint, payload }));
            }
            FromHost::Memory { .. } => return Err(invalid()),
            FromHost::EventFlag { flag, .. } => event(Name::EventFlag(flag), fd)?,
            FromHost::EventFlagMoved { .. } => {}
            FromHost::Signal { connection_id } => event(Name::Signal(connection_id), fd)?,
            FromHost::Msi { address, data, vector, vp } => {
                event(Name::Msi { address, data }, fd)?;
                state.vectors.insert((vector, vp), Name::Msi { address, data });
            }
            FromHost::MmioPages { gpa, length, offset, writable } => {
                let fd = Arc::new(fd.ok_or_else(invalid)?);
                state.mmio.insert(gpa, MappedMmio { length, fd, offset, writable });
            }
            FromHost::Removed(Name::Mmio { gpa }) => drop(state.mmio.remove(&gpa)),
            FromHost::Removed(name) => {
                state.events.remove(&name);
                state.vectors.retain(|_, of| *of != name);
            }
            FromHost::MmioDone { value } => {
                state.answer = Some(value);
                drop(state);
                self.done.notify_all();
            }
        }
        Ok(Some(GuestMessage::Changed))
    }

    /// Posts a message to a connection id; `false` if the host takes none now: wait for [`AsFd`] to be writable.
    pub fn try_post(&self, connection_id: u32, payload: &[u8]) -> io::Result<bool> {
        let message = FromGuest::Post { connection_id, payload: payload.to_vec() };
        self.socket.send(&message.emit(), None)
    }

    /// Tells the host that the guest's processors begin anew.
    pub fn reset(&self) -> io::Result<()> {
        self.send_waiting(&FromGuest::Reset)
    }

    fn send_waiting(&self, message: &FromGuest) -> io::Result<()> {
        let bytes = message.emit();
        while !self.socket.send(&bytes, None)? {
            wait(self.socket.as_fd(), PollFlags::OUT, None)?;
        }
        Ok(())
    }

    /// The event flag's handle: readable when the host has signalled it.
    pub fn event_flag(&self, flag: u16) -> Option<EventFd> {
        self.state().events.get(&Name::EventFlag(flag)).cloned()
    }

    /// The handle by which the host is signalled.
    pub fn signal(&self, connection_id: u32) -> Option<EventFd> {
        self.state().events.get(&Name::Signal(connection_id)).cloned()
    }

    /// The handle of an interrupt message: readable when a device has raised it.
    pub fn msi(&self, address: u64, data: u32) -> Option<EventFd> {
        self.state().events.get(&Name::Msi { address, data }).cloned()
    }

    /// The handle of the interrupt message that raises `vector` on a processor, whatever its address and data: a
    /// virtual PCI bus names its interrupts by messages of its own (SPEC-VMBUS §4.4). There is one once the host
    /// delivers the interrupt, and another one if the host delivers it anew. Of several the last counts.
    pub fn interrupt(&self, vector: u32, vp: VpIndex) -> Option<EventFd> {
        let state = self.state();
        state.events.get(state.vectors.get(&(vector, vp.0))?).cloned()
    }

    /// The MMIO that begins at `gpa` and lies in a file.
    pub fn mapped_mmio(&self, gpa: u64) -> Option<MappedMmio> {
        self.state().mmio.get(&gpa).cloned()
    }

    /// Reads `size` bytes (1, 2, 4 or 8, not across a page) of intercepted MMIO. All ones where nobody answers.
    /// Not to be called by the thread that takes messages, which brings the answer.
    pub fn mmio_read(&self, gpa: u64, size: u8) -> io::Result<u64> {
        self.mmio(&FromGuest::MmioRead { gpa, size })
    }

    /// Writes the low `size` bytes of `value`, likewise.
    pub fn mmio_write(&self, gpa: u64, size: u8, value: u64) -> io::Result<()> {
        self.mmio(&FromGuest::MmioWrite { gpa, size, value }).map(drop)
    }

    fn mmio(&self, access: &FromGuest) -> io::Result<u64> {
        let _one = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        self.state().answer = None;
        self.send_waiting(access)?;
        let mut state = self.state();
        loop {
            if let Some(value) = state.answer.take() {
                return Ok(value);
            }
            if state.closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl AsFd for UserGuest {
    /// Readable when [`UserGuest::next_message`] has something, writable when the host takes messages.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
