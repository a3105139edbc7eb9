//! What a device implements to be controlled, and how it completes requests.

use crate::connection::Connection;
use device_control_protocol::{
    ClientId, Completion, DriverName, OidRequestKind, RequestId, Target,
};
use pcivirt_protocol::{IoctlCode, NtStatus};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One connection of an overlying driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    /// The connection. Requests and subscriptions belong to it, and end with it.
    pub id: ClientId,
    /// The overlying driver. What it allocated belongs to it by this name, also after it was restarted and connects
    /// again; several connections may have the same name, and are the same owner.
    pub name: DriverName,
    /// Process id of the connection's other end, as the kernel knows it; for logs.
    pub pid: i32,
    /// User id of the connection's other end, as the kernel knows it.
    pub uid: u32,
}

/// A device that can be controlled.
///
/// # Lifecycle
///
/// For each connection: [`connected`](Self::connected) once; then the request methods and [`cancel`](Self::cancel), one at a time on
/// the connection's own thread, in the order the client sent them; then `cancel` for each request that is still
/// pending; then [`disconnected`](Self::disconnected) once, whatever ended the connection. Different connections are
/// served at the same time by different threads.
///
/// Each request must be completed exactly once ([`Request::complete`]), at once or later from any thread
/// ([`Request::pend`]); one that is dropped instead is completed with STATUS_UNSUCCESSFUL. While a request method runs, its
/// own client's next requests wait, and no others: so it may take its time, but must not wait for anything that this
/// client still has to send. What has to wait for a client (a stop, a removal) belongs on another thread, with the request
/// pending.
///
/// A handler must not own the server that calls it: the server waits for running calls when it is dropped.
pub trait DeviceControlHandler: Send + Sync + 'static {
    /// A client has introduced itself. An error refuses it; the client is told the status.
    ///
    /// # Errors
    /// The status to refuse the client with.
    fn connected(&self, client: &Client) -> Result<(), NtStatus> {
        let _ = client;
        Ok(())
    }

    /// A client has gone: it closed, died, or broke the protocol. All its requests have been offered to
    /// [`cancel`](Self::cancel); completions of any that are left go nowhere. Subscriptions of this connection end
    /// here; objects that the overlying driver allocated stay, since it may come back.
    fn disconnected(&self, client: &Client) {
        let _ = client;
    }

    /// An I/O control.
    fn ioctl(&self, client: &Client, code: IoctlCode, request: Request) {
        let _ = (client, code);
        request.complete(NtStatus::INVALID_DEVICE_REQUEST);
    }

    /// An interface callback, by its `device_control_protocol::CallbackCode`.
    fn callback(&self, client: &Client, code: u32, request: Request) {
        let _ = (client, code);
        request.complete(NtStatus::INVALID_DEVICE_REQUEST);
    }

    /// An OID request. Its status is an NDIS_STATUS.
    fn oid(&self, client: &Client, oid: u32, kind: OidRequestKind, request: Request) {
        let _ = (client, oid, kind);
        request.complete(NtStatus::NOT_SUPPORTED);
    }

    /// A control that only this kind of device knows.
    fn private(&self, client: &Client, code: u32, request: Request) {
        let _ = (client, code);
        request.complete(NtStatus::INVALID_DEVICE_REQUEST);
    }

    /// The client gives up a request, or has gone. If the handler still holds it, it completes it, with STATUS_CANCELLED
    /// unless it is done anyway; if not, there is nothing to do.
    fn cancel(&self, client: &Client, id: RequestId) {
        let _ = (client, id);
    }
}

/// A request that has not been completed.
pub struct Request {
    /// Its name among its client's requests.
    pub id: RequestId,
    /// What it asks for.
    pub target: Target,
    /// Its input.
    pub input: Vec<u8>,
    /// File descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Room for output, in bytes.
    pub output_capacity: usize,
    /// The right, and the duty, to complete it.
    pub pending: PendingRequest,
}

impl Request {
    /// Completes it. Output that has no room is replaced by STATUS_BUFFER_TOO_SMALL and the bytes it needs.
    pub fn complete(self, completion: impl Into<Completion>) {
        // Whoever completes at once has nothing that could get lost.
        let _ = self.pending.complete(completion);
    }

    /// Keeps what is needed to complete it later.
    pub fn pend(self) -> PendingRequest {
        self.pending
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("id", &self.id)
            .field("target", &self.target)
            .field("input", &self.input.len())
            .field("output_capacity", &self.output_capacity)
            .finish_non_exhaustive()
    }
}

/// The right, and the duty, to complete a request: from any thread, without ever blocking.
pub struct PendingRequest {
    connection: Option<Arc<Connection>>,
    id: RequestId,
}

impl PendingRequest {
    pub(crate) const fn new(connection: Arc<Connection>, id: RequestId) -> Self {
        Self { connection: Some(connection), id }
    }

    /// Its name among its client's requests.
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// Completes it. Output that has no room is replaced by STATUS_BUFFER_TOO_SMALL and the bytes it needs.
    ///
    /// # Errors
    /// The completion, if the client has gone and nobody will receive it.
    pub fn complete(self, completion: impl Into<Completion>) -> Result<(), Completion> {
        self.complete_with_fds(completion, Vec::new())
    }

    /// Completes it, with file descriptors beside the output: at most `device_control_protocol::MAX_FDS`, the rest is
    /// closed.
    ///
    /// # Errors
    /// The completion, if the client has gone and nobody will receive it.
    pub fn complete_with_fds(
        mut self,
        completion: impl Into<Completion>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Completion> {
        match self.connection.take() {
            Some(connection) => connection.complete(self.id, completion.into(), fds),
            None => Ok(()),
        }
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let completion = Completion::status(NtStatus::UNSUCCESSFUL);
            let _ = connection.complete(self.id, completion, Vec::new());
        }
    }
}

impl fmt::Debug for PendingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingRequest").field("id", &self.id).finish_non_exhaustive()
    }
}
