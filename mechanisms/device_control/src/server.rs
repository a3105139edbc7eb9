//! The server: accepts clients, and gives each its own threads.

use crate::connection::Connection;
use crate::credentials::{Credentials, peer_credentials};
use crate::error::{ProtocolError, ServerError};
use crate::handler::{Client, DeviceControlHandler};
use crate::wire::{self, WireError};
use device_control_protocol::{
    ClientId, DriverName, Hello, MAX_OUTSTANDING_BYTES, MAX_OUTSTANDING_REQUESTS, Message,
    PROTOCOL_VERSION, Welcome,
};
use listening_socket::ListeningSocket;
use pcivirt_protocol::NtStatus;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketType, shutdown};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections the kernel holds for a server that is busy accepting.
const BACKLOG: i32 = 64;

/// How long a server that ends waits for its clients to read what was completed, all of them together.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Path of the socket. A missing directory is made, with mode 0700; the socket itself has mode 0600.
    pub path: PathBuf,
    /// Name of the device, which clients are told.
    pub device: DriverName,
    /// Most connections at a time. Each costs two threads and, at most, some 6 MiB.
    pub max_clients: usize,
    /// Most connections at a time of one process, so that one that floods does not keep the others out.
    pub max_clients_per_process: usize,
    /// How long a connection may take to introduce itself.
    pub hello_timeout: Duration,
    /// Most requests of one client that are not completed; at least 1.
    pub max_outstanding_requests: u32,
}

impl ServerConfig {
    /// The usual limits: 64 clients, 16 of one process, 5 s, and those of the protocol.
    pub fn new(path: impl Into<PathBuf>, device: DriverName) -> Self {
        Self {
            path: path.into(),
            device,
            max_clients: 64,
            max_clients_per_process: 16,
            hello_timeout: Duration::from_secs(5),
            max_outstanding_requests: MAX_OUTSTANDING_REQUESTS,
        }
    }
}

/// What one client may have the server hold.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) outstanding_requests: usize,
    pub(crate) outstanding_bytes: u32,
}

/// A socket that serves one device. It is removed, and all its connections end, when this is dropped.
pub struct DeviceControlServer {
    shared: Arc<Shared>,
    path: PathBuf,
    /// Written to make the accepting thread return.
    stop: Arc<OwnedFd>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    handler: Arc<dyn DeviceControlHandler>,
    config: ServerConfig,
    /// Contended by the accepting thread and by connections that end.
    connections: Mutex<Connections>,
    /// A connection has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    next_id: u64,
    /// Connections that have not ended, introduced or not, and the processes at their other ends.
    alive: BTreeMap<ClientId, i32>,
    /// Sockets that wait for an introduction.
    strangers: BTreeMap<ClientId, Arc<OwnedFd>>,
    /// Clients that have introduced themselves.
    clients: BTreeMap<ClientId, Arc<Connection>>,
    stopping: bool,
}

impl DeviceControlServer {
    /// Starts to serve `handler` at the configured path. What a dead server has left there is replaced; a live one is
    /// left alone.
    ///
    /// # Errors
    /// [`ServerError`]; nothing has been left behind then but, perhaps, the socket's directory.
    pub fn start(
        config: ServerConfig,
        handler: Arc<dyn DeviceControlHandler>,
    ) -> Result<Self, ServerError> {
        let path = config.path.clone();
        let listener = ListeningSocket::bind(&path, SocketType::STREAM, BACKLOG)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|source| ServerError::Os { action: "watching", path: path.clone(), source })?;
        let stop = Arc::new(stop);
        let connections = Mutex::default();
        let shared = Arc::new(Shared { handler, config, connections, ended: Condvar::new() });
        let accepting = std::thread::Builder::new()
            .name("device-control".into())
            .spawn({
                let shared = Arc::clone(&shared);
                let stop = Arc::clone(&stop);
                move || shared.accept_until(&listener, &stop)
            })
            .map_err(|source| ServerError::Thread { path: path.clone(), source })?;
        Ok(Self { shared, path, stop, accepting: Some(accepting) })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The clients that are connected, in the order they came.
    pub fn clients(&self) -> Vec<Client> {
        let connections = self.shared.lock();
        connections.clients.values().map(|connection| connection.client().clone()).collect()
    }
}

impl Drop for DeviceControlServer {
    fn drop(&mut self) {
        // An eventfd that cannot be written is full, and wakes its reader all the same.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(accepting) = self.accepting.take() {
            // A panic there has been reported already.
            let _ = accepting.join();
        }
        self.shared.end_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_until(self: &Arc<Self>, listener: &ListeningSocket, stop: &OwnedFd) {
        loop {
            let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "device control cannot wait for clients any more");
                    return;
                }
            }
            let [_, stopped] = &fds;
            if !stopped.revents().is_empty() {
                return;
            }
            match listener.accept() {
                Ok(Some(socket)) => self.admit(socket),
                Ok(None) => {}
                Err(error) => {
                    // Out of descriptors or memory: the client waits in the backlog; look again shortly, or stop.
                    tracing::warn!(%error, "device control cannot accept a client now");
                    let mut fds = [PollFd::new(stop, PollFlags::IN)];
                    let pause = wire::timespec(Duration::from_millis(200));
                    let _ = poll(&mut fds, Some(&pause));
                }
            }
        }
    }

    /// Gives a new connection its thread, or turns it away.
    fn admit(self: &Arc<Self>, socket: OwnedFd) {
        let Ok(Credentials { pid, .. }) = peer_credentials(socket.as_fd()) else {
            return;
        };
        let socket = Arc::new(socket);
        let id = {
            let mut connections = self.lock();
            let alive = connections.alive.len();
            let of_process = connections.alive.values().filter(|process| **process == pid).count();
            if alive >= self.config.max_clients || of_process >= self.config.max_clients_per_process
            {
                drop(connections);
                refuse(&socket, NtStatus::INSUFFICIENT_RESOURCES);
                return;
            }
            connections.next_id += 1;
            let id = ClientId(connections.next_id);
            connections.alive.insert(id, pid);
            connections.strangers.insert(id, Arc::clone(&socket));
            id
        };
        // Counts the connection out when its thread ends, however that ends, and when it never starts.
        let presence = Presence { shared: Arc::clone(self), id };
        let started = std::thread::Builder::new()
            .name(format!("device-control-{}", id.0))
            .spawn(move || presence.serve(socket));
        if let Err(error) = started {
            tracing::warn!(%error, "device control cannot start a thread for a client");
        }
    }

    fn introduce(&self, id: ClientId, socket: &OwnedFd) -> Result<Option<Client>, WireError> {
        let deadline = Instant::now().checked_add(self.config.hello_timeout);
        let Some(received) = wire::receive(socket, deadline)? else {
            return Ok(None);
        };
        let Message::Hello { .. } = received.message else {
            return Err(ProtocolError::OutOfOrder.into());
        };
        // The version comes first: another one may have another name format.
        if Hello::parse_version(&received.payload) != Some(PROTOCOL_VERSION) {
            refuse(socket, NtStatus::REVISION_MISMATCH);
            return Err(ProtocolError::Greeting.into());
        }
        let hello = Hello::parse(&received.payload).map_err(|_| {
            refuse(socket, NtStatus::INVALID_PARAMETER);
            ProtocolError::Greeting
        })?;
        let Credentials { pid, uid } = peer_credentials(socket.as_fd())?;
        let client = Client { id, name: hello.name, pid, uid };
        if let Err(status) = self.handler.connected(&client) {
            tracing::warn!(%client.id, %client.name, %status, "the device refuses a client");
            refuse(socket, status);
            return Ok(None);
        }
        Ok(Some(client))
    }

    fn welcome(&self, id: ClientId, socket: &OwnedFd) -> Result<(), WireError> {
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            max_outstanding_requests: self.config.max_outstanding_requests.max(1),
            max_outstanding_bytes: MAX_OUTSTANDING_BYTES,
            client_id: id,
            device: self.config.device.clone(),
        }
        .emit();
        let out_length = u32::try_from(welcome.len()).map_err(|_| Errno::OVERFLOW)?;
        let message = Message::Welcome { status: NtStatus::SUCCESS, out_length };
        let deadline = Instant::now().checked_add(self.config.hello_timeout);
        wire::send(socket, &message, &welcome, &[], deadline)
    }

    fn end_all(&self) {
        let mut connections = self.lock();
        connections.stopping = true;
        for socket in connections.strangers.values() {
            let _ = shutdown(&**socket, Shutdown::Both);
        }
        // What was completed is still told, such as the completion of the request that ended the device.
        let deadline = Instant::now() + LAST_WORDS;
        for connection in connections.clients.values() {
            connection.flush(deadline);
            connection.hang_up();
        }
        while !connections.alive.is_empty() {
            connections = self.ended.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells a connection that it is not wanted. It has nothing else queued, so there is room for this.
fn refuse(socket: &OwnedFd, status: NtStatus) {
    let message = Message::Welcome { status, out_length: 0 };
    let _ = wire::send(socket, &message, &[], &[], Some(Instant::now()));
}

/// A connection's place among those that are alive.
struct Presence {
    shared: Arc<Shared>,
    id: ClientId,
}

impl Presence {
    /// The life of one connection, on its own thread.
    fn serve(self, socket: Arc<OwnedFd>) {
        let shared = &self.shared;
        let client = match shared.introduce(self.id, &socket) {
            Ok(Some(client)) => client,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(client = %self.id, ?error, "a connection did not introduce itself");
                return;
            }
        };
        let session = Session::begin(shared, client, socket);
        if let Err(error) = session.run() {
            let client = session.connection.client();
            tracing::warn!(client = %client.id, name = %client.name, ?error, "a client is disconnected");
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut connections = self.shared.lock();
        connections.strangers.remove(&self.id);
        connections.clients.remove(&self.id);
        connections.alive.remove(&self.id);
        self.shared.ended.notify_all();
    }
}

/// A client that the handler knows of, until it is told that the client has gone: also when a request method panics.
struct Session<'a> {
    shared: &'a Shared,
    connection: Arc<Connection>,
    socket: Arc<OwnedFd>,
}

impl<'a> Session<'a> {
    fn begin(shared: &'a Shared, client: Client, socket: Arc<OwnedFd>) -> Self {
        let limits = Limits {
            outstanding_requests: usize::try_from(shared.config.max_outstanding_requests)
                .unwrap_or(usize::MAX)
                .max(1),
            outstanding_bytes: MAX_OUTSTANDING_BYTES,
        };
        let id = client.id;
        let connection = Arc::new(Connection::new(client, Arc::clone(&socket), limits));
        let mut connections = shared.lock();
        connections.strangers.remove(&id);
        connections.clients.insert(id, Arc::clone(&connection));
        if connections.stopping {
            connection.hang_up();
        }
        Self { shared, connection, socket }
    }

    fn run(&self) -> Result<(), WireError> {
        let client = self.connection.client();
        self.shared.welcome(client.id, &self.socket)?;
        tracing::info!(client = %client.id, name = %client.name, pid = client.pid, "a client is connected");
        let connection = Arc::clone(&self.connection);
        std::thread::scope(|scope| {
            let writer = std::thread::Builder::new()
                .name(format!("device-control-{}-out", client.id.0))
                .spawn_scoped(scope, || connection.write_completions());
            if let Err(error) = writer {
                tracing::warn!(%error, "device control cannot start a thread for a client");
                return Err(WireError::Os(Errno::AGAIN));
            }
            // However reading ends, the writer is told.
            let _ending = HangUp(&connection);
            connection.read_requests(&*self.shared.handler)
        })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let client = self.connection.client();
        for id in self.connection.close() {
            self.shared.handler.cancel(client, id);
        }
        self.shared.handler.disconnected(client);
        tracing::info!(client = %client.id, name = %client.name, "a client has gone");
    }
}

/// Hangs up when it is dropped.
struct HangUp<'a>(&'a Connection);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}
