//! What ports have to tell: reports to every client that wants them, upcalls to whoever plays the port's guest.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use crossbeam_channel::{Receiver, Sender};
use device_control::{ClientId, Completion, PendingRequest, Request, RequestId};
use netvsp::server::{self, Upcall};
use pcivirt_protocol::NtStatus;

use super::ports::{Port, Ports, State, Uplink};
use crate::control::{BufferKind, ChannelUpcall, PortName, SwitchReport};

/// Upcalls of one port that wait. The protocol makes no more: two buffers to map, two released, one offer, one end.
const UPCALLS: usize = 16;

/// What the switch's thread notes of one port, and how it says that there is something.
#[derive(Debug)]
pub(super) struct Desk {
    /// The port's name.
    pub(super) port: String,
    /// Something was noted that nobody has looked into. While it is set, nothing more is sent.
    noted: AtomicBool,
    /// How many times the guest's driver has started.
    sessions: AtomicU64,
    upcalls: (Sender<ChannelUpcall>, Receiver<ChannelUpcall>),
}

impl Desk {
    /// For a port whose guest's driver has started so many times.
    pub(super) fn new(port: &str, sessions: u64) -> Arc<Self> {
        Arc::new(Self {
            port: port.to_owned(),
            noted: AtomicBool::new(false),
            sessions: AtomicU64::new(sessions),
            upcalls: crossbeam_channel::bounded(UPCALLS),
        })
    }

    pub(super) fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    /// What the port's NIC tells is noted by this, on the switch's thread: without a lock, and however much a guest has
    /// it tell, nothing grows.
    pub(super) fn teller(self: &Arc<Self>, news: News) -> impl FnMut(Upcall) + Send + 'static {
        let desk = Arc::clone(self);
        move |upcall| {
            let upcall = match upcall {
                Upcall::MapGpadl { gpadl, kind } => {
                    let buffer = match kind {
                        server::BufferKind::Receive => BufferKind::Receive,
                        server::BufferKind::Send => BufferKind::Send,
                    };
                    Some(ChannelUpcall::MapGpadl { gpadl, buffer })
                }
                Upcall::GpadlReleased { gpadl } => Some(ChannelUpcall::GpadlReleased { gpadl }),
                Upcall::OfferSubchannels { count } => {
                    Some(ChannelUpcall::OfferSubchannels { count })
                }
                Upcall::Dead { channel, error } => {
                    Some(ChannelUpcall::Dead { channel, error: error.to_string() })
                }
                Upcall::Initialized { .. } => {
                    desk.sessions.fetch_add(1, Ordering::AcqRel);
                    None
                }
                Upcall::Halted | Upcall::SwitchDataPath(_) => None,
                // Nobody's business outside of the port.
                _ => return,
            };
            if let Some(upcall) = upcall {
                // There is room by the protocol's rules; without it, it is an answer that nobody waits for.
                let _ = desk.upcalls.0.try_send(upcall);
            }
            if !desk.noted.swap(true, Ordering::AcqRel) {
                // Nobody looks any more: the switch is ending.
                let _ = news.0.send(Arc::clone(&desk));
            }
        }
    }

    /// Takes what was noted.
    pub(super) fn take(&self, into: &mut VecDeque<ChannelUpcall>) {
        self.noted.store(false, Ordering::Release);
        into.extend(self.upcalls.1.try_iter());
        into.truncate(UPCALLS);
    }
}

/// Where the switch's thread says which port has something noted: each port once at most.
#[derive(Clone, Debug)]
pub(super) struct News(Sender<Arc<Desk>>);

/// The thread that looks into it, not started yet.
pub(super) struct Prepared(Receiver<Arc<Desk>>);

/// The thread that looks into what ports have noted; dropping it ends it.
pub(super) struct Reporter {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Reporter {
    pub(super) fn prepare() -> (News, Prepared) {
        let (send, receive) = crossbeam_channel::unbounded();
        (News(send), Prepared(receive))
    }
}

impl Prepared {
    pub(super) fn start(self, ports: Arc<Ports>) -> io::Result<Reporter> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let thread = std::thread::Builder::new().name("reports".into()).spawn(move || {
            loop {
                crossbeam_channel::select! {
                    recv(self.0) -> desk => match desk {
                        Ok(desk) => ports.look_into(&desk),
                        Err(_) => return,
                    },
                    recv(stopped) -> _ => return,
                }
            }
        })?;
        Ok(Reporter { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a switch's reports had panicked");
        }
    }
}

/// A request that waits for something to be told.
pub(super) struct Waiting {
    pub(super) client: ClientId,
    capacity: usize,
    request: PendingRequest,
}

impl Waiting {
    pub(super) fn new(client: ClientId, request: Request) -> Self {
        let capacity = request.output_capacity;
        Self { client, capacity, request: request.pend() }
    }

    pub(super) fn is(&self, client: ClientId, id: RequestId) -> bool {
        self.client == client && self.request.id() == id
    }

    pub(super) fn tell(self, what: &impl serde::Serialize) {
        let completion = match serde_json::to_vec(what) {
            Ok(output) => Completion::output(output, self.capacity),
            Err(_) => Completion::status(NtStatus::UNSUCCESSFUL),
        };
        // A client that has gone needs nothing; all of its channels close.
        let _ = self.request.complete(completion);
    }

    pub(super) fn end(self, status: NtStatus) {
        // As above.
        let _ = self.request.complete(status);
    }
}

/// A client that takes reports.
#[derive(Default)]
pub(super) struct Listener {
    /// For each port, the version of its report that the client was told.
    told: BTreeMap<String, u64>,
    /// The same for the uplink's.
    told_uplink: Option<u64>,
    waiting: Option<Waiting>,
}

impl Listener {
    /// Tells it what it has not been told, the oldest first, if it waits.
    fn tell(&mut self, ports: &BTreeMap<String, Port>, uplink: &Uplink) {
        if self.waiting.is_none() {
            return;
        }
        let news =
            |port: &&Port| self.told.get(&port.config.port).is_none_or(|told| *told < port.version);
        let port = ports.values().filter(news).min_by_key(|port| port.version);
        let of_uplink = self.told_uplink.is_none_or(|told| told < uplink.version);
        let report = match port {
            Some(port) if !of_uplink || port.version < uplink.version => {
                self.told.insert(port.config.port.clone(), port.version);
                SwitchReport::Port(port.report())
            }
            _ if of_uplink => {
                self.told_uplink = Some(uplink.version);
                SwitchReport::Uplink(uplink.report.clone())
            }
            _ => return,
        };
        if let Some(waiting) = self.waiting.take() {
            waiting.tell(&report);
        }
    }

    pub(super) fn forget(&mut self, port: &str) {
        self.told.remove(port);
    }
}

impl State {
    /// Tells whoever waits.
    pub(super) fn tell_listeners(&mut self) {
        for listener in self.listeners.values_mut() {
            listener.tell(&self.ports, &self.uplink);
        }
    }
}

impl Ports {
    /// Something was noted of a port.
    pub(super) fn look_into(&self, desk: &Arc<Desk>) {
        let mut state = self.lock();
        // It may have been deleted, and another one made with its name.
        let port = state.ports.get_mut(&desk.port);
        let Some(port) = port.filter(|port| port.is_of(desk)) else { return };
        port.take_notes();
        port.tell_upcalls();
        self.look_at(&mut state, &desk.port);
    }

    /// Completed when there is something that the client has not been told.
    pub(super) fn next_report(&self, client: ClientId, request: Request) {
        let mut state = self.lock();
        let State { listeners, ports, uplink, .. } = &mut *state;
        let listener = listeners.entry(client).or_default();
        if listener.waiting.is_some() {
            request.complete(NtStatus::DEVICE_BUSY);
            return;
        }
        listener.waiting = Some(Waiting::new(client, request));
        listener.tell(ports, uplink);
    }

    /// Completed when the port asks for something of the guest that the client plays.
    pub(super) fn next_upcall(&self, client: ClientId, name: &PortName, request: Request) {
        let mut state = self.lock();
        let port = state.synthetic(&name.port);
        match port.and_then(|port| port.may_wait(client).map(|()| port)) {
            Ok(port) => {
                port.waiting = Some(Waiting::new(client, request));
                port.tell_upcall();
            }
            Err(status) => request.complete(status),
        }
    }

    /// The client gives a request up.
    pub(super) fn cancel(&self, client: ClientId, id: RequestId) {
        let mut state = self.lock();
        let listener = state.listeners.get_mut(&client).map(|listener| &mut listener.waiting);
        if let Some(waiting) = listener.and_then(|slot| slot.take_if(|w| w.is(client, id))) {
            return waiting.end(NtStatus::CANCELLED);
        }
        for slot in state.waiting_for_upcalls() {
            if let Some(waiting) = slot.take_if(|waiting| waiting.is(client, id)) {
                return waiting.end(NtStatus::CANCELLED);
            }
        }
    }
}
