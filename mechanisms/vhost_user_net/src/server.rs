//! The socket, and the thread that listens to front-ends.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use event_fd::EventFd;
use listening_socket::{ListenError, ListeningSocket};
use owner_thread::Handle;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{Shutdown, SocketType, shutdown},
};
use shared_memory::MemoryWatch;
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut};

use crate::{Device, MAX_QUEUE_PAIRS, early::Enable, session::Session};

/// Connections that wait; each is turned away while one is served.
const BACKLOG: i32 = 4;
/// How long to wait after a connection could not be taken.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// One line of the log in so long a time, at most, whatever front-ends do.
const QUIET: Duration = Duration::from_secs(5);

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its socket.
    #[error("the socket of a vhost-user port")]
    Listen(#[from] ListenError),
    /// No thread, or no descriptor.
    #[error("the thread of a vhost-user port")]
    Thread(#[source] io::Error),
}

/// What the thread and its owner share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    connected: AtomicBool,
    /// The connection, so that the owner can end it. Held for a moment by either.
    connection: Mutex<Option<OwnedFd>>,
}

/// Serves one device to one front-end at a time; dropping it ends that.
///
/// Its thread asks the device's thread for each change and waits for the answer. So whoever holds both drops the
/// device's inbox first.
#[derive(Debug)]
pub struct VhostUserServer {
    shared: Arc<Shared>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl VhostUserServer {
    /// Listens at a path, which appears there (mode 0600) and vanishes with the server. `name` is for logs; the device
    /// is reached by `device`, and has so many queue pairs.
    ///
    /// # Errors
    /// The socket cannot be made or is served already; there is no thread or descriptor.
    pub fn bind(
        path: &Path,
        name: &str,
        device: Handle<Device>,
        pairs: u16,
    ) -> Result<Self, ServerError> {
        let listener = ListeningSocket::bind(path, SocketType::STREAM, BACKLOG)?;
        let shared = Arc::new(Shared::default());
        let wake = EventFd::new().map_err(|error| ServerError::Thread(error.into()))?;
        let wake = Arc::new(wake);
        let serving = Serving {
            listener,
            name: name.to_owned(),
            device,
            pairs: pairs.clamp(1, MAX_QUEUE_PAIRS),
            shared: Arc::clone(&shared),
            wake: Arc::clone(&wake),
            last_line: None,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vhost {name}"))
            .spawn(move || serving.run())
            .map_err(ServerError::Thread)?;
        Ok(Self { shared, wake, thread: Some(thread) })
    }

    /// Whether a front-end is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Acquire)
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let connection = self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connection.as_ref() {
            // Whatever its thread waits for there does not come any more.
            let _ = shutdown(connection, Shutdown::Both);
        }
        drop(connection);
        self.wake.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a vhost-user port had panicked");
        }
    }
}

/// What the thread has.
struct Serving {
    listener: ListeningSocket,
    name: String,
    device: Handle<Device>,
    pairs: u16,
    shared: Arc<Shared>,
    wake: Arc<EventFd>,
    last_line: Option<Instant>,
}

impl Serving {
    fn run(mut self) {
        while !self.stopping() {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            ];
            // Interrupted, it looks once more.
            let _ = poll(&mut fds, None);
            match self.listener.accept() {
                Ok(Some(connection)) => self.serve(connection),
                Ok(None) => {}
                Err(error) => {
                    self.tell(&format!("a connection cannot be taken: {error}"));
                    let mut fds = [PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
                    let _ = poll(&mut fds, Some(&PAUSE));
                }
            }
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// A line of the log, if there was none for a while: front-ends come as often as they like.
    fn tell(&mut self, what: &str) {
        let now = Instant::now();
        if self.last_line.is_none_or(|last| now.duration_since(last) >= QUIET) {
            self.last_line = Some(now);
            tracing::warn!(port = self.name, "{what}");
        }
    }

    fn serve(&mut self, connection: OwnedFd) {
        let stream = UnixStream::from(connection);
        // Messages are read and written whole, however long that takes: only this port waits.
        let ready = stream.set_nonblocking(false);
        let clones = ready.and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
        let (kept, watched) = match clones {
            Ok(clones) => clones,
            Err(error) => return self.tell(&format!("a connection cannot be used: {error}")),
        };
        let memory = match MemoryWatch::new() {
            Ok(memory) => memory,
            Err(error) => return self.tell(&format!("a connection cannot be served: {error}")),
        };
        let session = Session::new(self.device.clone(), self.pairs, Arc::clone(&memory));
        let session = Arc::new(Mutex::new(session));
        let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        self.keep(Some(kept.into()));
        self.shared.connected.store(true, Ordering::Release);
        while !self.stopping() {
            let is_message = self.wait_for_message(&watched, &memory);
            if memory.is_lost() {
                self.tell("its front-end is sent away: the guest's memory was taken away");
                break;
            }
            if !is_message {
                continue;
            }
            let handled = match enabled_early(&watched, &session) {
                Ok(true) => continue,
                Ok(false) => handler.handle_request(),
                Err(error) => Err(error),
            };
            match handled {
                Ok(()) => {}
                Err(Error::Disconnected) => break,
                Err(error) => {
                    let why = explain(&error);
                    self.tell(&format!("its front-end is sent away: {why}"));
                    break;
                }
            }
        }
        self.keep(None);
        // If the device has gone, so have its queues.
        let _ = self.device.run(Device::reset);
        self.shared.connected.store(false, Ordering::Release);
    }

    fn keep(&self, connection: Option<OwnedFd>) {
        *self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// Whether there is a message, or the connection's end. Others that connect meanwhile are turned away, so that
    /// they do not wait for answers.
    fn wait_for_message(&mut self, connection: &UnixStream, memory: &MemoryWatch) -> bool {
        let mut fds = [
            PollFd::new(connection, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(memory, PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return false,
            Err(_) => return true,
        }
        let [message, other, ..] = &fds;
        if !message.revents().is_empty() {
            return true;
        }
        if !other.revents().is_empty()
            && let Ok(Some(_)) = self.listener.accept()
        {
            self.tell("another front-end is turned away: one is connected");
        }
        false
    }
}

/// Enables a queue before features are agreed on, if that is what the next message wants.
fn enabled_early(stream: &UnixStream, session: &Mutex<Session>) -> Result<bool, Error> {
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    if session.has_agreed() {
        return Ok(false);
    }
    let Some(early) = Enable::take(stream).map_err(Error::ReqHandlerError)? else {
        return Ok(false);
    };
    session.set_vring_enable(early.index, early.enable)?;
    early.done(stream).map_err(Error::ReqHandlerError)?;
    Ok(true)
}

/// An error with its causes.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = match error {
        Error::ReqHandlerError(error) => error.get_ref().and_then(std::error::Error::source),
        _ => None,
    };
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
