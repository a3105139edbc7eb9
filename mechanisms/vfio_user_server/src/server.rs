//! The thread that serves one function: accepts clients, one at a time, and moves their messages.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use listening_socket::{ListeningSocket, SocketPath};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno as OsError,
    net::{SocketFlags, SocketType},
};

use shared_memory::MemoryWatch;

use crate::{
    DisconnectReason, EventFd, Limits, PciFunctionDevice, ServerError,
    connection::{Connection, RefusalNote, WaitFor},
    log_budget::{LogBudget, Verdict},
    session::Session,
};

/// Connections that may wait; further ones are refused by the kernel.
const BACKLOG: i32 = 8;
/// How long accepting pauses when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a function is served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The function's name in logs and of the thread, such as `vf3`.
    pub name: String,
    /// What a client may make this process hold.
    pub limits: Limits,
    /// How long a client may take from connecting to VERSION. Until then it keeps others out.
    pub handshake_timeout: Duration,
}

impl ServerOptions {
    /// The default limits, and 5 s for the handshake.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            limits: Limits::default(),
            handshake_timeout: Duration::from_secs(5),
        }
    }
}

/// A function that is being served, by a thread of its own, until this is dropped.
///
/// Dropping it and [`VfioUserServer::shutdown`] wait for the thread, which may be in the device: do neither
/// while holding the device's lock.
#[derive(Debug)]
pub struct VfioUserServer {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
    /// `None` when the listening socket was given.
    path: Option<SocketPath>,
}

/// What the thread and its owner share.
#[derive(Debug)]
struct Control {
    wake: EventFd,
    disconnect: AtomicBool,
    stop: AtomicBool,
    connected: AtomicBool,
}

impl Control {
    fn new() -> Result<Arc<Self>, ServerError> {
        let wake = EventFd::new()
            .map_err(|source| ServerError::Os { what: "creating an eventfd", source })?;
        Ok(Arc::new(Self {
            wake,
            disconnect: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            connected: AtomicBool::new(false),
        }))
    }
}

impl VfioUserServer {
    /// Listens at `path` and serves `device` there. Missing directories are made (mode 0700); the socket has mode
    /// 0600; a stale socket is replaced, one that is served is not. The path is removed when the server ends.
    pub fn bind<D: PciFunctionDevice + ?Sized + 'static>(
        path: &Path,
        device: Arc<Mutex<D>>,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        let (listener, path) =
            ListeningSocket::bind(path, SocketType::STREAM, BACKLOG)?.into_parts();
        Self::start(listener, Some(path), device, options)
    }

    /// Serves `device` on a Unix stream socket that listens already.
    pub fn from_listener<D: PciFunctionDevice + ?Sized + 'static>(
        listener: OwnedFd,
        device: Arc<Mutex<D>>,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        rustix::io::ioctl_fionbio(&listener, true)
            .map_err(|source| ServerError::Os { what: "setting up the listener", source })?;
        Self::start(listener, None, device, options)
    }

    fn start<D: PciFunctionDevice + ?Sized + 'static>(
        listener: OwnedFd,
        path: Option<SocketPath>,
        device: Arc<Mutex<D>>,
        options: ServerOptions,
    ) -> Result<Self, ServerError> {
        let control = Control::new()?;
        let mut worker = Worker::new(Arc::clone(&control), Some(listener), device, options);
        let thread = std::thread::Builder::new()
            .name(format!("vfio-user {}", worker.options.name))
            .spawn(move || drop(worker.run()))
            .map_err(ServerError::Thread)?;
        Ok(Self { control, thread: Some(thread), path })
    }

    /// Where it listens, unless the listening socket was given.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref().map(SocketPath::path)
    }

    /// Whether a client has agreed on a version and is connected.
    pub fn is_connected(&self) -> bool {
        self.control.connected.load(Ordering::Acquire)
    }

    /// Asks the thread to end the connection, if there is one; to the client it looks as if the device were gone.
    /// Returns at once; the device hears `disconnected`. May be called with the device's lock held.
    pub fn disconnect_client(&self) {
        self.control.disconnect.store(true, Ordering::Release);
        self.control.wake.signal();
    }

    /// Ends the connection and the thread, and removes the path. As dropping.
    pub fn shutdown(self) {}
}

impl Drop for VfioUserServer {
    fn drop(&mut self) {
        // First the path, so that nobody new comes.
        self.path = None;
        self.control.stop.store(true, Ordering::Release);
        self.control.wake.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a vfio-user server has panicked");
        }
    }
}

/// Serves one client on a connected Unix stream socket, in the caller's thread, until it is gone.
pub fn serve_connection<D: PciFunctionDevice + ?Sized>(
    socket: OwnedFd,
    device: Arc<Mutex<D>>,
    options: ServerOptions,
) -> Result<DisconnectReason, ServerError> {
    let mut worker = Worker::new(Control::new()?, None, device, options);
    worker
        .adopt(socket)
        .map_err(|source| ServerError::Os { what: "setting up a connection", source })?;
    Ok(worker.run().unwrap_or(DisconnectReason::Requested))
}

struct Client<D: ?Sized> {
    connection: Connection<D>,
    wait_for: WaitFor,
    /// Until when VERSION must have come; `None` once it has.
    deadline: Option<Instant>,
    /// Over the memory that it has given.
    memory: Arc<MemoryWatch>,
}

struct Worker<D: ?Sized> {
    control: Arc<Control>,
    listener: Option<OwnedFd>,
    device: Arc<Mutex<D>>,
    options: ServerOptions,
    client: Option<Client<D>>,
    accept_again: Option<Instant>,
    log: LogBudget,
}

impl<D: PciFunctionDevice + ?Sized> Worker<D> {
    fn new(
        control: Arc<Control>,
        listener: Option<OwnedFd>,
        device: Arc<Mutex<D>>,
        options: ServerOptions,
    ) -> Self {
        let log = LogBudget::new(Instant::now());
        Self { control, listener, device, options, client: None, accept_again: None, log }
    }

    /// Runs until stopped; without a listener, until the client is gone.
    fn run(&mut self) -> Option<DisconnectReason> {
        loop {
            if self.control.stop.load(Ordering::Acquire) {
                return self.end_client(DisconnectReason::Requested);
            }
            if self.control.disconnect.swap(false, Ordering::AcqRel) {
                self.end_client(DisconnectReason::Requested);
            }
            if self.listener.is_none() && self.client.is_none() {
                return None;
            }
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(OsError::INTR) => continue,
                Err(error) => {
                    // Nothing that passes: poll fails for lack of kernel memory alone.
                    tracing::error!(function = %self.options.name, %error, "waiting for messages failed");
                    return self.end_client(DisconnectReason::Socket(error));
                }
            };
            if ready.wake {
                self.control.wake.take();
            }
            // The client first: one that has just closed makes room for the one that waits.
            if let Some(reason) = self.serve_client(ready.client)
                && self.listener.is_none()
            {
                return Some(reason);
            }
            if ready.listener {
                self.accept();
            }
        }
    }

    fn wait(&self) -> Result<Ready, OsError> {
        let now = Instant::now();
        let client = self.client.as_ref();
        let deadline = client.and_then(|client| client.deadline);
        let at_once = client.is_some_and(|client| client.wait_for == WaitFor::Nothing);
        let accept_again = self.accept_again.filter(|again| *again > now);
        let timeout = if at_once {
            Some(Duration::ZERO)
        } else {
            deadline
                .into_iter()
                .chain(accept_again)
                .min()
                .map(|until| until.saturating_duration_since(now))
        };
        let mut fds = vec![PollFd::new(&self.control.wake, PollFlags::IN)];
        let mut client_at = None;
        if let Some(client) = client {
            let flags = match client.wait_for {
                WaitFor::Readable | WaitFor::Nothing => PollFlags::IN,
                WaitFor::Writable => PollFlags::OUT,
            };
            client_at = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(client.connection.socket(), flags));
            // It wakes, and is looked at each time.
            fds.push(PollFd::from_borrowed_fd(client.memory.as_fd(), PollFlags::IN));
        }
        let mut listener_at = None;
        if let Some(listener) = self.listener.as_ref().filter(|_| accept_again.is_none()) {
            listener_at = Some(fds.len());
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        rustix::event::poll(&mut fds, timeout.as_ref())?;
        let fired = |at: Option<usize>| {
            at.and_then(|at| fds.get(at)).is_some_and(|fd| !fd.revents().is_empty())
        };
        Ok(Ready {
            wake: fired(Some(0)),
            client: fired(client_at) || at_once,
            listener: fired(listener_at),
        })
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(OsError::AGAIN | OsError::INTR | OsError::CONNABORTED) => return,
            Err(error) => {
                self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                self.warn(format_args!("a client cannot be accepted: {error}"));
                return;
            }
        };
        if self.client.is_some() {
            // Closed as it drops: the other side sees the end of the stream instead of waiting for an answer.
            self.warn(format_args!("a second client was turned away: one is connected already"));
            return;
        }
        if let Err(error) = self.adopt(socket) {
            self.warn(format_args!("a client cannot be served: {error}"));
        }
    }

    fn adopt(&mut self, socket: OwnedFd) -> Result<(), OsError> {
        let memory = MemoryWatch::new()?;
        let session =
            Session::new(Arc::clone(&self.device), self.options.limits, Arc::clone(&memory));
        self.client = Some(Client {
            connection: Connection::new(socket, session)?,
            wait_for: WaitFor::Readable,
            deadline: Instant::now().checked_add(self.options.handshake_timeout),
            memory,
        });
        Ok(())
    }

    /// Lets the client's messages through if there are any, and ends the connection if it is time to.
    fn serve_client(&mut self, ready: bool) -> Option<DisconnectReason> {
        let client = self.client.as_mut()?;
        let mut notes: Vec<RefusalNote> = Vec::new();
        let mut ended = None;
        if client.memory.is_lost() {
            ended = Some(DisconnectReason::MemoryTaken);
        } else if ready {
            // Bounded by the burst; few commands of a working client are refused with a reason.
            match client.connection.advance(&mut |note| notes.push(note)) {
                Ok(wait_for) => client.wait_for = wait_for,
                Err(reason) => ended = Some(reason),
            }
        }
        if client.deadline.is_some() && client.connection.is_active() {
            client.deadline = None;
            self.control.connected.store(true, Ordering::Release);
            if let Verdict::Write { suppressed } = self.log.line(Instant::now()) {
                let pid = peer_pid(&self.client);
                tracing::info!(function = %self.options.name, pid, suppressed, "vfio-user client connected");
            }
        } else if ended.is_none() && client.deadline.is_some_and(|at| at <= Instant::now()) {
            ended = Some(DisconnectReason::HandshakeTimeout);
        }
        for note in notes {
            let RefusalNote { command, errno, reason } = note;
            self.warn(format_args!("command {command} refused with {errno}: {reason}"));
        }
        self.end_client(ended?)
    }

    fn end_client(&mut self, reason: DisconnectReason) -> Option<DisconnectReason> {
        let mut client = self.client.take()?;
        let was_active = client.connection.is_active();
        client.connection.end();
        self.control.connected.store(false, Ordering::Release);
        match reason {
            DisconnectReason::ClientClosed | DisconnectReason::Requested if was_active => {
                if let Verdict::Write { suppressed } = self.log.line(Instant::now()) {
                    tracing::info!(function = %self.options.name, %reason, suppressed, "vfio-user client gone");
                }
            }
            // A probe of the socket, such as that of a second instance.
            DisconnectReason::ClientClosed | DisconnectReason::Requested => {}
            _ => {
                use std::error::Error;
                match reason.source() {
                    Some(source) => self.warn(format_args!("client dropped: {reason}: {source}")),
                    None => self.warn(format_args!("client dropped: {reason}")),
                }
            }
        }
        Some(reason)
    }

    fn warn(&mut self, message: std::fmt::Arguments<'_>) {
        if let Verdict::Write { suppressed } = self.log.line(Instant::now()) {
            tracing::warn!(function = %self.options.name, suppressed, "{message}");
        }
    }
}

struct Ready {
    wake: bool,
    client: bool,
    listener: bool,
}

fn peer_pid<D: PciFunctionDevice + ?Sized>(client: &Option<Client<D>>) -> Option<i32> {
    let socket = client.as_ref()?.connection.socket();
    let credentials = rustix::net::sockopt::socket_peercred(socket.as_fd()).ok()?;
    Some(credentials.pid.as_raw_nonzero().get())
}
