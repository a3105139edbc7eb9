//! One client at the server: its outstanding requests, and the queue of what it has still to be told.

use crate::Client;
use crate::error::ProtocolError;
use crate::handler::{DeviceControlHandler, PendingRequest, Request};
use crate::server::Limits;
use crate::wire::{self, Received, WireError};
use device_control_protocol::{Completion, MAX_FDS, Message, RequestId, Target};
use pcivirt_protocol::NtStatus;
use rustix::net::{Shutdown, shutdown};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What the connection's two threads and the completing threads share.
pub(crate) struct Connection {
    client: Client,
    socket: Arc<OwnedFd>,
    limits: Limits,
    /// Contended by the thread that reads requests, the one that writes completions, and those that complete; held for
    /// bookkeeping only, never while the socket blocks.
    state: Mutex<State>,
    /// The queue has grown or shrunk, or the connection is closed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outstanding: BTreeMap<RequestId, Outstanding>,
    /// Bytes of input and room for output, of what is outstanding and of what is queued.
    bytes: u32,
    queue: VecDeque<Outgoing>,
    /// A completion has been taken off the queue and is not written yet.
    writing: bool,
    closed: bool,
}

/// A request that its handler has not completed.
#[derive(Copy, Clone)]
struct Outstanding {
    bytes: u32,
    output_capacity: u32,
}

/// A completion that has not been written.
struct Outgoing {
    message: Message,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
    bytes: u32,
}

/// Whether a request may be served.
enum Admission {
    Admitted,
    /// A limit is reached.
    Refused,
    /// Another one with that name is outstanding.
    Duplicate,
}

impl Connection {
    pub(crate) fn new(client: Client, socket: Arc<OwnedFd>, limits: Limits) -> Self {
        Self { client, socket, limits, state: Mutex::default(), changed: Condvar::new() }
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads requests and hands them to the handler, until the client leaves or breaks the protocol.
    pub(crate) fn read_requests<H: DeviceControlHandler + ?Sized>(
        self: &Arc<Self>,
        handler: &H,
    ) -> Result<(), WireError> {
        loop {
            // A client that does not read its completions is not listened to.
            self.wait_for_room();
            let Some(received) = wire::receive(&*self.socket, None)? else {
                return Ok(());
            };
            match received.message {
                Message::Request { id, target, out_capacity, .. } => {
                    self.request(handler, id, target, out_capacity, received)?;
                }
                Message::Cancel { id } => {
                    // A request that has been completed meanwhile cannot be cancelled any more: no error.
                    if self.lock().outstanding.contains_key(&id) {
                        handler.cancel(&self.client, id);
                    }
                }
                Message::Hello { .. } | Message::Welcome { .. } | Message::Completion { .. } => {
                    return Err(ProtocolError::OutOfOrder.into());
                }
            }
        }
    }

    fn request<H: DeviceControlHandler + ?Sized>(
        self: &Arc<Self>,
        handler: &H,
        id: RequestId,
        target: Target,
        out_capacity: u32,
        received: Received,
    ) -> Result<(), WireError> {
        let Received { message, payload, fds } = received;
        match self.admit(id, message.payload_length(), out_capacity) {
            Admission::Admitted => {}
            Admission::Refused => return Ok(()),
            Admission::Duplicate => return Err(ProtocolError::DuplicateRequest(id).into()),
        }
        let request = Request {
            id,
            target,
            input: payload,
            fds,
            output_capacity: usize::try_from(out_capacity).unwrap_or(usize::MAX),
            pending: PendingRequest::new(Arc::clone(self), id),
        };
        match target {
            Target::Ioctl(code) => handler.ioctl(&self.client, code, request),
            Target::Callback(code) => handler.callback(&self.client, code, request),
            Target::Oid { oid, kind } => handler.oid(&self.client, oid, kind, request),
            Target::Private(code) => handler.private(&self.client, code, request),
        }
        Ok(())
    }

    /// Counts a request in, or queues its refusal.
    fn admit(&self, id: RequestId, in_length: u32, output_capacity: u32) -> Admission {
        let mut state = self.lock();
        if state.outstanding.contains_key(&id) {
            return Admission::Duplicate;
        }
        let bytes = in_length.saturating_add(output_capacity);
        let total = state.bytes.saturating_add(bytes);
        let count = state.outstanding.len() + state.queue.len();
        if count >= self.limits.outstanding_requests || total > self.limits.outstanding_bytes {
            let status = NtStatus::INSUFFICIENT_RESOURCES;
            let message = Message::Completion { id, status, out_length: 0, needed: 0, fd_count: 0 };
            let refusal = Outgoing { message, payload: Vec::new(), fds: Vec::new(), bytes: 0 };
            state.queue.push_back(refusal);
            self.changed.notify_all();
            return Admission::Refused;
        }
        state.bytes = total;
        state.outstanding.insert(id, Outstanding { bytes, output_capacity });
        Admission::Admitted
    }

    /// Queues the completion of an outstanding request. Never blocks.
    pub(crate) fn complete(
        &self,
        id: RequestId,
        completion: Completion,
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), Completion> {
        let mut state = self.lock();
        let outstanding = state.outstanding.remove(&id);
        let Some(Outstanding { bytes, output_capacity }) = outstanding.filter(|_| !state.closed)
        else {
            return Err(completion);
        };
        let length = u32::try_from(completion.output.len()).unwrap_or(u32::MAX);
        let Completion { status, output, needed } = if length > output_capacity {
            Completion::too_small(completion.output.len())
        } else {
            completion
        };
        let length = u32::try_from(output.len()).unwrap_or(0);
        fds.truncate(MAX_FDS.into());
        let fd_count = u16::try_from(fds.len()).unwrap_or(0);
        let message = Message::Completion { id, status, out_length: length, needed, fd_count };
        state.queue.push_back(Outgoing { message, payload: output, fds, bytes });
        self.changed.notify_all();
        Ok(())
    }

    /// Writes completions until the connection is closed. A client that does not read blocks this thread alone.
    pub(crate) fn write_completions(&self) {
        while let Some(Outgoing { message, payload, fds, .. }) = self.next_outgoing() {
            if wire::send(&*self.socket, &message, &payload, &fds, None).is_err() {
                self.hang_up();
            }
        }
    }

    fn next_outgoing(&self) -> Option<Outgoing> {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        loop {
            if state.closed {
                return None;
            }
            if let Some(outgoing) = state.queue.pop_front() {
                state.writing = true;
                state.bytes = state.bytes.saturating_sub(outgoing.bytes);
                self.changed.notify_all();
                return Some(outgoing);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_for_room(&self) {
        let mut state = self.lock();
        while !state.closed && state.queue.len() >= self.limits.outstanding_requests {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until what was completed is written, or `deadline` has passed.
    pub(crate) fn flush(&self, deadline: Instant) {
        let mut state = self.lock();
        while !state.closed && (state.writing || !state.queue.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes both threads return, and completions go nowhere.
    pub(crate) fn hang_up(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queue.clear();
        self.changed.notify_all();
        // Fails only if the other end has done so already.
        let _ = shutdown(&*self.socket, Shutdown::Both);
    }

    /// Hangs up, and returns the requests that their handler has not completed.
    pub(crate) fn close(&self) -> Vec<RequestId> {
        self.hang_up();
        std::mem::take(&mut self.lock().outstanding).into_keys().collect()
    }
}
