//! The worker behind its device control socket.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use device_control::{
    Client, DeviceControlHandler, DeviceControlServer, DriverName, Request, RequestId,
    ServerConfig, ServerError,
};
use integration_services::Service;
use partition::{
    Partition,
    host::{OfferError, VmbusHost},
};
use pcivirt_protocol::NtStatus;
use vmbus::EventFd;

use crate::{
    event::{Event, Events},
    retarget::Retargets,
    worker::{Parts, Worker},
};

/// What a worker is made with.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Name of the VM: 1 to 60 printable characters without spaces.
    pub name: String,
    /// Where the worker is controlled.
    pub socket: PathBuf,
    /// Guest physical addresses where the guest may have its PCI windows and BARs. No memory.
    pub apertures: Vec<Range<u64>>,
    /// Virtual processors of the guest.
    pub processors: u16,
    /// Integration services that the guest is offered. For guests that have drivers for them, as stock Linux and
    /// Windows do.
    pub integration_services: BTreeSet<Service>,
}

/// Where guests have their PCI devices, unless the caller has reasons of its own: 240 MiB below 4 GiB, and 1 TiB from
/// 1 TiB on.
pub const APERTURES: [Range<u64>; 2] = [0xF000_0000..0xFEC0_0000, 1 << 40..2 << 40];

impl WorkerConfig {
    /// A worker for a VM with one processor, PCI devices in [`APERTURES`], and no integration services.
    pub fn new(name: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            socket: socket.into(),
            apertures: APERTURES.to_vec(),
            processors: 1,
            integration_services: BTreeSet::new(),
        }
    }
}

/// An error of starting a worker. Nothing is left running then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The name.
    #[error("{0:?} is not a name for a VM: 1 to 60 printable characters without spaces")]
    Name(String),
    /// The control socket.
    #[error("the worker's control socket cannot be served")]
    Control(#[from] ServerError),
    /// The kernel refuses.
    #[error("the worker needs an eventfd and a thread")]
    System(#[from] std::io::Error),
    /// VMBus refuses.
    #[error("the integration services cannot be offered")]
    IntegrationServices(#[from] OfferError),
}

/// A running worker. Dropping it takes everything back from the guest, leaves switches and VFs, and removes the socket.
pub struct VmWorker {
    control: Option<DeviceControlServer>,
    events: Events,
    thread: Option<JoinHandle<()>>,
    shutdown: EventFd,
}

impl VmWorker {
    /// Serves a VM, whose guest may be running already or start later.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        config: WorkerConfig,
        partition: Arc<dyn Partition>,
        host: VmbusHost,
    ) -> Result<Self, StartError> {
        let name = |_| StartError::Name(config.name.clone());
        let device = DriverName::new(&config.name).map_err(name)?;
        let client = DriverName::new(&format!("vm:{}", config.name)).map_err(name)?;
        let (events, queue, wake) = Events::new()?;
        let shutdown = EventFd::new()?;
        let socket = config.socket.clone();
        partition.set_retarget_handler(Arc::new(Retargets(events.clone())));
        let parts = Parts {
            config,
            client,
            partition,
            host,
            events: events.clone(),
            queue,
            wake,
            shutdown: shutdown.clone(),
        };
        let worker = Worker::new(parts)?;
        let thread =
            std::thread::Builder::new().name("vm-worker".to_owned()).spawn(move || worker.run())?;
        // From here on, dropping it ends the thread.
        let mut this = Self { control: None, events, thread: Some(thread), shutdown };
        let handler = Handler { events: this.events.clone() };
        let control =
            DeviceControlServer::start(ServerConfig::new(socket, device), Arc::new(handler))?;
        this.control = Some(control);
        Ok(this)
    }

    /// Where it is controlled.
    pub fn path(&self) -> Option<&Path> {
        self.control.as_ref().map(|control| control.path())
    }

    /// Readable when a client has asked the VM to end.
    pub fn shutdown_requested(&self) -> &EventFd {
        &self.shutdown
    }
}

impl std::fmt::Debug for VmWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmWorker").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Drop for VmWorker {
    fn drop(&mut self) {
        // Nobody asks for anything any more; then all is given back.
        self.control = None;
        self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}

struct Handler {
    events: Events,
}

impl DeviceControlHandler for Handler {
    fn connected(&self, client: &Client) -> Result<(), NtStatus> {
        let own = rustix::process::geteuid().as_raw();
        if client.uid != own && client.uid != 0 {
            return Err(NtStatus::ACCESS_DENIED);
        }
        self.events.send(Event::Connected(client.clone()));
        Ok(())
    }

    fn disconnected(&self, client: &Client) {
        self.events.send(Event::Disconnected(client.id));
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        self.events.send(Event::Asked(client.id, code, request));
    }

    fn cancel(&self, client: &Client, id: RequestId) {
        self.events.send(Event::Cancelled(client.id, id));
    }
}
