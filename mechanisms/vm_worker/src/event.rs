//! What the worker's thread is told, by all others.

use std::sync::mpsc;

use device_control::{Client, ClientId, Request, RequestId};
use partition::Retarget;
use vmbus::EventFd;

use crate::{control::DeviceName, link::LinkEvent, reply::Reply, vf::Access, vf::VfEvent};

/// Something that concerns the worker.
pub(crate) enum Event {
    /// A client of the worker has connected.
    Connected(Client),
    /// It is gone.
    Disconnected(ClientId),
    /// It asks for something: a private control's code.
    Asked(ClientId, u32, Request),
    /// It gives a request up.
    Cancelled(ClientId, RequestId),
    /// About the connection to an adapter's switch. Connections are numbered, so that news of a former one is known.
    Switch(u32, u64, LinkEvent),
    /// About the connection to a NIC.
    Nic(u64, LinkEvent),
    /// About a VF; offerings are numbered.
    Vf(DeviceName, u64, VfEvent),
    /// The guest's processor waits for an access to be done.
    Access(DeviceName, u64, Access),
    /// The guest's processor waits for an interrupt to be moved.
    Retarget(Retarget, Reply<bool>),
    /// End.
    Stop,
}

/// Where events go to. Clones are the same.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Event>,
    wake: EventFd,
}

impl Events {
    /// A queue of events, and the descriptor that tells of them.
    pub(crate) fn new() -> std::io::Result<(Self, mpsc::Receiver<Event>, EventFd)> {
        let wake = EventFd::new()?;
        let (queue, events) = mpsc::channel();
        Ok((Self { queue, wake: wake.clone() }, events, wake))
    }

    /// Tells the worker. After its end nobody listens.
    pub(crate) fn send(&self, event: Event) {
        if self.queue.send(event).is_ok() {
            self.wake.signal();
        }
    }
}
