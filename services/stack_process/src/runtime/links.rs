//! Connections to other processes, and requests on them that are not done.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use device_control::{ClientError, Completion, DeviceControlClient, SentRequest, Target};
use serde::Serialize;
use virtualization_stack::{AdapterId, Input, NicCall, RequestId, VfSerial, VmState};

use super::Runtime;
use crate::connector::{Connector, Destination, LONGEST_PAUSE, sentence};
use crate::event::{Peer, ProcessEvent};
use crate::message::{Ticket, bell};

/// How long a process may take to take a request. One that does not read is as good as gone, and holds up the others.
const SEND: Duration = Duration::from_secs(1);

/// A connection, or the attempt to make one.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) path: PathBuf,
    /// The number of the attempt that counts.
    attempt: u64,
    connector: Option<Connector>,
    client: Option<DeviceControlClient>,
    since: Instant,
    pub(super) last_error: Option<String>,
    /// It was turned away on this connection: there is no use in hurrying.
    pub(super) turned_away: bool,
}

impl Link {
    pub(super) const fn is_up(&self) -> bool {
        self.client.is_some()
    }
}

/// A request that is not done, or whose end was not looked at.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) peer: Peer,
    pub(super) what: What,
    state: SentState,
}

#[derive(Debug)]
enum SentState {
    Pending(SentRequest),
    /// It was done before it could be waited for.
    Done(Result<Completion, ClientError>),
}

/// What was asked for.
#[derive(Debug)]
pub(super) enum What {
    /// A request of the stack to a NIC.
    Nic { request: RequestId, call: NicCall, sent: Instant },
    /// Which ports a switch has.
    SwitchStatus,
    /// Which adapters and devices a VM has.
    WorkerStatus,
    /// What is new of a switch's ports.
    SwitchReport,
    /// A port of a switch is to be as configured.
    SetPort { adapter: AdapterId, port: String },
    /// What is new of a VM and its devices.
    WorkerReport,
    /// Offer a VF.
    Offer { adapter: AdapterId, serial: VfSerial },
    /// Take a VF away.
    Remove { adapter: AdapterId, serial: VfSerial },
    /// Anything that is only of interest if it is refused; statuses that are as good as success.
    Command { adapter: Option<AdapterId>, request: &'static str, absence_is_fine: bool },
}

impl Runtime {
    /// Begins to connect to a process.
    pub(super) fn connect(&mut self, peer: Peer, path: PathBuf, pause: Duration) {
        self.last_attempt += 1;
        let attempt = self.last_attempt;
        let name = self.driver.clone();
        let destination = Destination { peer, path: path.clone(), name, attempt };
        let (connector, last_error) =
            match Connector::start(destination, pause, self.sender.clone()) {
                Ok(connector) => (Some(connector), None),
                Err(error) => {
                    let error = format!("no thread or descriptor is left to connect: {error}");
                    (None, Some(error))
                }
            };
        let last_error = last_error.or_else(|| self.links.remove(&peer).and_then(|l| l.last_error));
        let since = Instant::now();
        let link =
            Link { path, attempt, connector, client: None, since, last_error, turned_away: false };
        self.links.insert(peer, link);
    }

    pub(super) fn connected(&mut self, peer: Peer, attempt: u64, client: DeviceControlClient) {
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.attempt == attempt) else {
            return;
        };
        link.connector = None;
        link.client = Some(client);
        link.since = Instant::now();
        link.last_error = None;
        self.publish(ProcessEvent::Connected { peer });
        match peer {
            Peer::Nic(nic) => {
                self.tell_uplinks(nic);
                self.inputs.push_back(Input::NicConnected(nic));
            }
            Peer::Switch(switch) => self.switch_connected(switch),
            Peer::Vm(vm) => self.worker_connected(vm),
        }
    }

    pub(super) fn cannot_connect(&mut self, peer: Peer, attempt: u64, error: String) {
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.attempt == attempt) else {
            return;
        };
        if link.last_error.as_ref() != Some(&error) {
            link.last_error = Some(error.clone());
            self.publish(ProcessEvent::CannotConnect { peer, error });
        }
        self.met(peer);
    }

    pub(super) fn is_up(&self, peer: Peer) -> bool {
        self.links.get(&peer).is_some_and(Link::is_up)
    }

    /// A connection has ended by itself: whoever is at its other end is gone.
    pub(super) fn lost(&mut self, peer: Peer, error: &ClientError) {
        if !self.is_up(peer) {
            return;
        }
        self.hang_up(peer, sentence(peer, error));
        match peer {
            Peer::Nic(nic) => self.inputs.push_back(Input::NicDisconnected(nic)),
            Peer::Switch(switch) => self.switch_lost(switch),
            Peer::Vm(vm) => {
                self.worker_lost(vm);
                self.inputs.push_back(Input::VmState(vm, VmState::Off));
            }
        }
    }

    /// Ends a connection, forgets its requests, and connects again. One that did not last is not hurried after.
    pub(super) fn hang_up(&mut self, peer: Peer, error: String) {
        self.met(peer);
        let Some(link) = self.links.get_mut(&peer) else { return };
        let (lasted, turned_away) = (link.since.elapsed(), link.turned_away);
        link.last_error = Some(error.clone());
        let path = link.path.clone();
        let client = link.client.take();
        self.requests.retain(|_, sent| sent.peer != peer);
        drop(client);
        self.publish(ProcessEvent::Disconnected { peer, error });
        let pause = match lasted < LONGEST_PAUSE {
            _ if turned_away => self.configuration.timeouts.retry,
            true => LONGEST_PAUSE,
            false => Duration::ZERO,
        };
        self.connect(peer, path, pause);
    }

    /// Ends a connection for good: nobody needs it any more.
    pub(super) fn disconnect(&mut self, peer: Peer) {
        self.requests.retain(|_, sent| sent.peer != peer);
        self.links.remove(&peer);
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If there is no connection, or the request cannot be sent on it. A connection that turns out to have ended is
    /// taken for lost.
    pub(super) fn send(
        &mut self,
        peer: Peer,
        target: Target,
        input: &[u8],
        room: usize,
        what: What,
    ) -> Result<(), NotSent> {
        let client = self.links.get(&peer).and_then(|link| link.client.as_ref());
        let Some(client) = client else { return Err(NotSent::NoConnection) };
        let mut request = match client.send_with_fds(target, input, room, &[], SEND) {
            Ok(request) => request,
            Err(ClientError::TooManyRequests { .. } | ClientError::TooLong { .. }) => {
                return Err(NotSent::Refused);
            }
            Err(error) => {
                self.lost(peer, &error);
                return Err(NotSent::NoConnection);
            }
        };
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let waker = bell(ticket, self.sender.clone());
        let state = match Pin::new(&mut request).poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => SentState::Pending(request),
            Poll::Ready(result) => {
                waker.wake();
                SentState::Done(result)
            }
        };
        self.requests.insert(ticket, Sent { peer, what, state });
        Ok(())
    }

    /// Sends a private control with its input as JSON.
    pub(super) fn send_private(
        &mut self,
        peer: Peer,
        code: u32,
        input: &impl Serialize,
        room: usize,
        what: What,
    ) -> Result<(), NotSent> {
        // Structures of texts and numbers have no way to fail.
        let input = serde_json::to_vec(input).unwrap_or_default();
        self.send(peer, Target::Private(code), &input, room, what)
    }

    /// A request is done.
    pub(super) fn done(&mut self, ticket: Ticket) {
        // One of a connection that is gone, or that was cancelled, is not there.
        let Some(Sent { peer, what, state }) = self.requests.remove(&ticket) else { return };
        let result = match state {
            SentState::Done(result) => result,
            SentState::Pending(request) => request.wait(Duration::ZERO),
        };
        let completion = match result {
            Ok(completion) => completion,
            Err(error) => {
                self.lost(peer, &error);
                return;
            }
        };
        match what {
            What::Nic { request, call, sent } => {
                self.nic_completed(peer, request, &call, sent.elapsed(), &completion);
            }
            What::SwitchStatus => self.switch_status(peer, &completion),
            What::WorkerStatus => self.worker_status(peer, &completion),
            What::SwitchReport => self.switch_report(peer, &completion),
            What::SetPort { adapter, port } => self.port_set(peer, adapter, &port, &completion),
            What::WorkerReport => self.worker_report(peer, &completion),
            What::Offer { adapter, serial } => self.offer_answered(adapter, serial, &completion),
            What::Remove { adapter, serial } => self.remove_answered(adapter, serial, &completion),
            What::Command { adapter, request, absence_is_fine } => {
                self.command_answered(peer, adapter, request, absence_is_fine, &completion);
            }
        }
    }

    fn command_answered(
        &mut self,
        peer: Peer,
        adapter: Option<AdapterId>,
        request: &'static str,
        absence_is_fine: bool,
        completion: &Completion,
    ) {
        let absent = completion.status == pcivirt_protocol::NtStatus::NOT_FOUND;
        if completion.status.is_success() || (absent && absence_is_fine) {
            return;
        }
        let status = completion.status.to_string();
        let request = request.to_owned();
        self.publish(ProcessEvent::CommandRefused { peer, adapter, request, status });
    }

    /// Another end that does not say what it should is given up.
    pub(super) fn nonsense(&mut self, peer: Peer, what: &str) {
        let error = format!("it answered {what} with something that is no answer: use one build");
        self.hang_up(peer, error);
        match peer {
            Peer::Nic(nic) => self.inputs.push_back(Input::NicDisconnected(nic)),
            Peer::Switch(switch) => self.switch_lost(switch),
            Peer::Vm(vm) => {
                self.worker_lost(vm);
                self.inputs.push_back(Input::VmState(vm, VmState::Off));
            }
        }
    }

    /// Forgets a request, which cancels it.
    pub(super) fn forget_request(&mut self, peer: Peer, request: RequestId) {
        self.requests.retain(|_, sent| {
            sent.peer != peer
                || !matches!(&sent.what, What::Nic { request: its, .. } if *its == request)
        });
    }
}

/// Why a request was not sent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum NotSent {
    /// There is no connection (any more).
    NoConnection,
    /// It is too large, or one too many.
    Refused,
}
