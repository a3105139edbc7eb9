//! The client: one connection to a device, shared by any number of threads.

use crate::error::{ClientError, ProtocolError, Waited};
use crate::pending::{SentRequest, Slot};
use crate::wire::{self, Received, WireError};
use device_control_protocol::{
    ClientId, Completion, DriverName, Hello, MAX_FDS, MAX_INPUT_LENGTH, MAX_OUTPUT_LENGTH, Message,
    OidRequestKind, PROTOCOL_VERSION, RequestId, Target, Welcome,
};
use pcivirt_protocol::{IoctlCode, NtStatus};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown,
    socket_with,
};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a server may take to accept the bytes of a request, where the caller sets no limit. It reads them as they
/// come unless this client does not take its completions.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How often to try again where the kernel offers nothing to wait for.
const RETRY: Duration = Duration::from_millis(5);

/// A connection to a device. Cheap to clone; the connection ends when the last clone and the last [`SentRequest`] are
/// dropped. All methods may be called from any thread.
///
/// Every method that waits takes the longest time to wait as an argument. A request that is not completed in time is
/// cancelled.
#[derive(Clone)]
pub struct DeviceControlClient {
    link: Arc<Link>,
}

/// The connection, and the thread that receives.
pub(crate) struct Link {
    shared: Arc<Shared>,
    welcome: Welcome,
    receiving: Option<JoinHandle<()>>,
}

/// What senders and the receiving thread share.
struct Shared {
    path: PathBuf,
    socket: OwnedFd,
    /// Makes each message whole: held while one is written, for no longer than the sender's timeout.
    sending: Mutex<()>,
    /// Contended by senders and the receiving thread; held for bookkeeping only.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// Requests that the server has not completed.
    outstanding: BTreeMap<RequestId, Outstanding>,
    /// Why there will be no more completions.
    ended: Option<ClientError>,
}

struct Outstanding {
    slot: Arc<Slot>,
    output_capacity: u32,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disconnected(&self) -> ClientError {
        ClientError::Disconnected { path: self.path.clone() }
    }

    fn error(&self, error: WireError, waited: Waited, timeout: Duration) -> ClientError {
        let path = self.path.clone();
        match error {
            WireError::Closed => ClientError::Disconnected { path },
            WireError::TimedOut => ClientError::TimedOut { path, what: waited, timeout },
            WireError::Os(source) => ClientError::Os { action: "talking to", path, source },
            WireError::Protocol(what) => ClientError::Protocol { path, what },
        }
    }

    /// Ends the connection: every request that is or will be sent gets this error.
    fn end(&self, error: ClientError) {
        let mut state = self.lock();
        let error = state.ended.get_or_insert(error).clone();
        let outstanding = std::mem::take(&mut state.outstanding);
        drop(state);
        // Fails only if the server has hung up already.
        let _ = shutdown(&self.socket, Shutdown::Both);
        for request in outstanding.into_values() {
            request.slot.put(Err(error.clone()));
        }
    }

    fn receive_until_end(&self) {
        let error = loop {
            match wire::receive(&self.socket, None) {
                Ok(Some(received)) => {
                    if let Err(what) = self.completed(received) {
                        break ClientError::Protocol { path: self.path.clone(), what };
                    }
                }
                Ok(None) => break self.disconnected(),
                Err(error) => break self.error(error, Waited::Connection, Duration::ZERO),
            }
        };
        self.end(error);
    }

    fn completed(&self, received: Received) -> Result<(), ProtocolError> {
        let Received { message, payload, fds } = received;
        let Message::Completion { id, status, out_length, needed, .. } = message else {
            return Err(ProtocolError::OutOfOrder);
        };
        let outstanding = self.lock().outstanding.remove(&id);
        let Outstanding { slot, output_capacity } =
            outstanding.ok_or(ProtocolError::UnknownRequest(id))?;
        if out_length > output_capacity {
            slot.put(Err(ClientError::Protocol {
                path: self.path.clone(),
                what: ProtocolError::TooMuchOutput(id),
            }));
            return Err(ProtocolError::TooMuchOutput(id));
        }
        slot.put(Ok((Completion { status, output: payload, needed }, fds)));
        Ok(())
    }

    /// Writes one message. A failure in the middle of one ends the connection.
    fn send(
        &self,
        message: &Message,
        payload: &[u8],
        fds: &[OwnedFd],
        waited: Waited,
        timeout: Duration,
    ) -> Result<(), ClientError> {
        let deadline = Instant::now().checked_add(timeout);
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = wire::send(&self.socket, message, payload, fds, deadline);
        drop(sending);
        sent.map_err(|error| {
            let error = self.error(error, waited, timeout);
            self.end(error.clone());
            error
        })
    }
}

impl Link {
    pub(crate) fn cancel(&self, id: RequestId) {
        if self.shared.lock().outstanding.contains_key(&id) {
            let message = Message::Cancel { id };
            // If it cannot be sent the connection has ended, and the request with it.
            let _ = self.shared.send(&message, &[], &[], Waited::Connection, SEND_TIMEOUT);
        }
    }

    pub(crate) fn timed_out(&self, what: Waited, timeout: Duration) -> ClientError {
        ClientError::TimedOut { path: self.shared.path.clone(), what, timeout }
    }

    pub(crate) fn disconnected(&self) -> ClientError {
        self.shared.disconnected()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.end(self.shared.disconnected());
        if let Some(receiving) = self.receiving.take()
            && receiving.thread().id() != std::thread::current().id()
        {
            // A panic there has been reported already.
            let _ = receiving.join();
        }
    }
}

impl DeviceControlClient {
    /// Connects to the device at `path` as the overlying driver `name`, and waits for its welcome.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if nobody serves the path, [`ClientError::Refused`] if the server does not want this
    /// client, and the other errors of a connection.
    pub fn connect(
        path: impl AsRef<Path>,
        name: &DriverName,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let deadline = Instant::now().checked_add(timeout);
        let socket = open(path, deadline, timeout)?;
        Self::introduce(path, socket, name, deadline, timeout)
    }

    /// The same, but a server that is not there yet is waited for, until `timeout` has passed: for whoever has just
    /// started it.
    ///
    /// # Errors
    /// As [`DeviceControlClient::connect`].
    pub fn connect_when_ready(
        path: impl AsRef<Path>,
        name: &DriverName,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match Self::connect(path.as_ref(), name, left) {
                Err(ClientError::NotRunning { .. }) if left > RETRY => std::thread::sleep(RETRY),
                result => return result,
            }
        }
    }

    fn introduce(
        path: &Path,
        socket: OwnedFd,
        name: &DriverName,
        deadline: Option<Instant>,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let shared = Shared {
            path: path.to_owned(),
            socket,
            sending: Mutex::default(),
            state: Mutex::default(),
        };
        let protocol = |what| ClientError::Protocol { path: path.to_owned(), what };
        let hello = Hello { version: PROTOCOL_VERSION, name: name.clone() }.emit();
        let in_length = u32::try_from(hello.len()).unwrap_or(u32::MAX);
        let greeting =
            wire::send(&shared.socket, &Message::Hello { in_length }, &hello, &[], deadline);
        // A server that refuses does not wait for the greeting: its answer may be there even if the socket is closed.
        if let Err(error @ (WireError::TimedOut | WireError::Os(_) | WireError::Protocol(_))) =
            greeting
        {
            return Err(shared.error(error, Waited::Connection, timeout));
        }
        let received = match wire::receive(&shared.socket, deadline) {
            Ok(Some(received)) => received,
            Ok(None) => return Err(shared.disconnected()),
            Err(error) => return Err(shared.error(error, Waited::Connection, timeout)),
        };
        let Message::Welcome { status, .. } = received.message else {
            return Err(protocol(ProtocolError::OutOfOrder));
        };
        if !status.is_success() {
            return Err(ClientError::Refused { path: path.to_owned(), status });
        }
        let welcome =
            Welcome::parse(&received.payload).map_err(|_| protocol(ProtocolError::Greeting))?;
        let shared = Arc::new(shared);
        let receiving = std::thread::Builder::new()
            .name("device-control-in".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.receive_until_end()
            })
            .map_err(|error| ClientError::Os {
                action: "starting a thread for",
                path: path.to_owned(),
                source: Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
            })?;
        Ok(Self { link: Arc::new(Link { shared, welcome, receiving: Some(receiving) }) })
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.link.shared.path
    }

    /// Name of the device.
    pub fn device(&self) -> &DriverName {
        &self.link.welcome.device
    }

    /// The number by which the server knows this connection.
    pub fn id(&self) -> ClientId {
        self.link.welcome.client_id
    }

    /// Whether the connection has not ended.
    pub fn is_connected(&self) -> bool {
        self.link.shared.lock().ended.is_none()
    }

    /// Sends a request, and does not wait for its completion: for long polls, and for several requests at a time.
    ///
    /// # Errors
    /// Those of a request that could not be sent.
    pub fn send(
        &self,
        target: Target,
        input: &[u8],
        output_capacity: usize,
    ) -> Result<SentRequest, ClientError> {
        self.send_with_fds(target, input, output_capacity, &[], SEND_TIMEOUT)
    }

    /// Sends a request with file descriptors beside it, and waits at most `timeout` for the server to take it.
    ///
    /// # Errors
    /// Those of a request that could not be sent. After a timeout the connection has ended.
    pub fn send_with_fds(
        &self,
        target: Target,
        input: &[u8],
        output_capacity: usize,
        fds: &[OwnedFd],
        timeout: Duration,
    ) -> Result<SentRequest, ClientError> {
        let shared = &self.link.shared;
        let fits = |length: usize, most: u32| u32::try_from(length).ok().filter(|l| *l <= most);
        let (Some(in_length), Some(out_capacity), Some(fd_count)) = (
            fits(input.len(), MAX_INPUT_LENGTH),
            fits(output_capacity, MAX_OUTPUT_LENGTH),
            u16::try_from(fds.len()).ok().filter(|count| *count <= MAX_FDS),
        ) else {
            return Err(ClientError::TooLong {
                target,
                input: input.len(),
                output: output_capacity,
            });
        };
        let slot = Arc::<Slot>::default();
        let id = {
            let mut state = shared.lock();
            if let Some(error) = &state.ended {
                return Err(error.clone());
            }
            let limit = self.link.welcome.max_outstanding_requests;
            if state.outstanding.len() >= usize::try_from(limit).unwrap_or(usize::MAX) {
                return Err(ClientError::TooManyRequests { path: shared.path.clone(), limit });
            }
            state.next_id += 1;
            let id = RequestId(state.next_id);
            let outstanding =
                Outstanding { slot: Arc::clone(&slot), output_capacity: out_capacity };
            state.outstanding.insert(id, outstanding);
            id
        };
        let message = Message::Request { id, target, in_length, out_capacity, fd_count };
        shared.send(&message, input, fds, Waited::Request(target), timeout)?;
        Ok(SentRequest::new(Arc::clone(&self.link), id, target, slot))
    }

    /// Sends a request and waits for its completion, whatever its status.
    ///
    /// # Errors
    /// Those of a request without completion.
    pub fn call(
        &self,
        target: Target,
        input: &[u8],
        output_capacity: usize,
        timeout: Duration,
    ) -> Result<Completion, ClientError> {
        self.send_with_fds(target, input, output_capacity, &[], timeout)?.wait(timeout)
    }

    /// Sends a request and waits for its output.
    ///
    /// # Errors
    /// [`ClientError::Failed`] if its status is not a success, and those of a request without completion.
    pub fn call_output(
        &self,
        target: Target,
        input: &[u8],
        output_capacity: usize,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        self.send_with_fds(target, input, output_capacity, &[], timeout)?.wait_output(timeout)
    }

    /// An OID request of any kind. The status of a completion is an NDIS_STATUS.
    ///
    /// # Errors
    /// As [`DeviceControlClient::call`].
    pub fn oid(
        &self,
        kind: OidRequestKind,
        oid: u32,
        input: &[u8],
        output_capacity: usize,
        timeout: Duration,
    ) -> Result<Completion, ClientError> {
        self.call(Target::Oid { oid, kind }, input, output_capacity, timeout)
    }

    /// Queries an OID.
    ///
    /// # Errors
    /// As [`DeviceControlClient::call_output`].
    pub fn query_oid(
        &self,
        oid: u32,
        output_capacity: usize,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let kind = OidRequestKind::Query;
        self.call_output(Target::Oid { oid, kind }, &[], output_capacity, timeout)
    }

    /// Sets an OID.
    ///
    /// # Errors
    /// As [`DeviceControlClient::call_output`].
    pub fn set_oid(&self, oid: u32, input: &[u8], timeout: Duration) -> Result<(), ClientError> {
        let kind = OidRequestKind::Set;
        self.call_output(Target::Oid { oid, kind }, input, 0, timeout).map(|_| ())
    }

    /// Calls an OID that takes input and gives output.
    ///
    /// # Errors
    /// As [`DeviceControlClient::call_output`].
    pub fn method_oid(
        &self,
        oid: u32,
        input: &[u8],
        output_capacity: usize,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let kind = OidRequestKind::Method;
        self.call_output(Target::Oid { oid, kind }, input, output_capacity, timeout)
    }

    /// An I/O control.
    ///
    /// # Errors
    /// As [`DeviceControlClient::call_output`].
    pub fn ioctl(
        &self,
        code: IoctlCode,
        input: &[u8],
        output_capacity: usize,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        self.call_output(Target::Ioctl(code), input, output_capacity, timeout)
    }

    /// A control that only this kind of device knows.
    ///
    /// # Errors
    /// As [`DeviceControlClient::call_output`].
    pub fn private(
        &self,
        code: u32,
        input: &[u8],
        output_capacity: usize,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        self.call_output(Target::Private(code), input, output_capacity, timeout)
    }
}

impl std::fmt::Debug for DeviceControlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceControlClient")
            .field("path", &self.path())
            .field("device", &self.device())
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

impl ClientError {
    /// The status that says the same to whoever can only understand one.
    pub const fn status(&self) -> NtStatus {
        match self {
            Self::Failed { status, .. } | Self::Refused { status, .. } => *status,
            Self::TimedOut { .. } => NtStatus::IO_TIMEOUT,
            Self::TooManyRequests { .. } => NtStatus::INSUFFICIENT_RESOURCES,
            Self::TooLong { .. } => NtStatus::INVALID_PARAMETER,
            Self::NotRunning { .. } => NtStatus::NO_SUCH_DEVICE,
            Self::Disconnected { .. } => NtStatus::DEVICE_REMOVED,
            Self::PathTooLong { .. } | Self::Os { .. } | Self::Protocol { .. } => {
                NtStatus::UNSUCCESSFUL
            }
        }
    }
}

/// Opens a connection. Where the server's backlog is full, the kernel offers nothing to wait for.
fn open(path: &Path, deadline: Option<Instant>, timeout: Duration) -> Result<OwnedFd, ClientError> {
    let os = |action| move |source| ClientError::Os { action, path: path.to_owned(), source };
    let address = SocketAddrUnix::new(path).map_err(|error| match error {
        Errno::NAMETOOLONG => ClientError::PathTooLong { path: path.to_owned() },
        source => os("using the socket path")(source),
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(os("making a socket for"))?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    let (path, what) = (path.to_owned(), Waited::Connection);
                    return Err(ClientError::TimedOut { path, what, timeout });
                }
                std::thread::sleep(RETRY);
            }
            Err(source @ (Errno::NOENT | Errno::CONNREFUSED)) => {
                return Err(ClientError::NotRunning { path: path.to_owned(), source });
            }
            Err(source) => return Err(os("connecting to")(source)),
        }
    }
}
