//! The host side behind its device control socket.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
};

use device_control::{
    Client, DeviceControlHandler, DeviceControlServer, DriverName, Request, RequestId,
    ServerConfig, ServerError,
};
use pcivirt_protocol::NtStatus;

use crate::{
    MachineError,
    qmp::Qmp,
    slot::SlotTimes,
    worker::{Event, Worker},
};

/// What a host side is made with.
#[derive(Clone, Debug)]
pub struct QemuHostConfig {
    /// Name of the VM: 1 to 60 printable characters without spaces.
    pub name: String,
    /// Where it is controlled.
    pub socket: PathBuf,
    /// QEMU's QMP socket.
    pub qmp: PathBuf,
    /// Let the guest go on, once QEMU is being listened to: it was started with `-S`.
    pub resume: bool,
}

/// An error of starting a host side. Nothing is left running then, and QEMU is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The name.
    #[error("{0:?} is not a name for a VM: 1 to 60 printable characters without spaces")]
    Name(String),
    /// QEMU cannot be driven.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The control socket.
    #[error("the control socket of the VM's host side cannot be served")]
    Control(#[from] ServerError),
    /// The kernel refuses.
    #[error("the VM's host side needs a thread")]
    System(#[from] std::io::Error),
}

/// A running host side. Dropping it takes the VFs from the guest by surprise, and leaves QEMU running.
pub struct QemuHost {
    control: Option<DeviceControlServer>,
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

impl QemuHost {
    /// Drives the QEMU behind a QMP socket. `gone` is called once when it has ended, by a thread that must not wait for
    /// this.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        config: &QemuHostConfig,
        gone: impl Fn() + Send + 'static,
    ) -> Result<Self, StartError> {
        Self::start_with(config, SlotTimes::default(), gone)
    }

    /// As [`start`](Self::start), for guests that are quicker or slower than those that there are.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        config: &QemuHostConfig,
        times: SlotTimes,
        gone: impl Fn() + Send + 'static,
    ) -> Result<Self, StartError> {
        let name = |_| StartError::Name(config.name.clone());
        let device = DriverName::new(&config.name).map_err(name)?;
        let client = DriverName::new(&format!("vm:{}", config.name)).map_err(name)?;
        let (events, queue) = channel();
        // Whoever asks for something before QEMU is known waits for it. QEMU is touched last.
        let handler = Handler { events: events.clone() };
        let server = ServerConfig::new(config.socket.clone(), device);
        let control = DeviceControlServer::start(server, Arc::new(handler))?;
        let to_worker = events.clone();
        let ring = move || drop(to_worker.send(Event::Qmp));
        let qmp = Qmp::connect(&config.qmp, ring).map_err(MachineError::from)?;
        let gone = Box::new(gone);
        let worker = Worker::new(config, times, client, qmp, events.clone(), queue, gone)?;
        let thread =
            std::thread::Builder::new().name("qemu-host".to_owned()).spawn(move || worker.run())?;
        Ok(Self { control: Some(control), events, thread: Some(thread) })
    }

    /// Where it is controlled.
    pub fn path(&self) -> Option<&Path> {
        self.control.as_ref().map(|control| control.path())
    }
}

impl std::fmt::Debug for QemuHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QemuHost").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Drop for QemuHost {
    fn drop(&mut self) {
        // Nobody asks for anything any more; then all is given back.
        self.control = None;
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}

struct Handler {
    events: Sender<Event>,
}

impl Handler {
    fn send(&self, event: Event) {
        // After the worker's end nobody listens.
        let _ = self.events.send(event);
    }
}

impl DeviceControlHandler for Handler {
    fn connected(&self, client: &Client) -> Result<(), NtStatus> {
        let own = rustix::process::geteuid().as_raw();
        if client.uid != own && client.uid != 0 {
            return Err(NtStatus::ACCESS_DENIED);
        }
        self.send(Event::Connected(client.id));
        Ok(())
    }

    fn disconnected(&self, client: &Client) {
        self.send(Event::Disconnected(client.id));
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        self.send(Event::Asked(client.id, code, request));
    }

    fn cancel(&self, client: &Client, id: RequestId) {
        self.send(Event::Cancelled(client.id, id));
    }
}
