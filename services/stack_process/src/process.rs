//! The process: the thread that owns the stack, and the control socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use device_control::{
    Client, DeviceControlHandler, DeviceControlServer, DriverName, Request, RequestId,
    ServerConfig, ServerError,
};
use pcivirt_protocol::NtStatus;
use thiserror::Error;
use virtualization_stack::StackError;

use crate::Configuration;
use crate::control::PrivateControl;
use crate::message::Message;
use crate::runtime::Runtime;

/// Name of the control socket in the stack's folder.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The name by which NICs know the stack, and by which it owns what it has made on them, in this life and the next.
const DRIVER: &str = "virtualization-stack";

/// Why a stack cannot be started. Nothing is left running.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is one that [`Configuration::read`] would have refused.
    #[error("the configuration makes no sense")]
    Configuration(#[source] StackError),
    /// The control socket.
    #[error("the control socket cannot be served")]
    Control(#[source] ServerError),
    /// The operating system.
    #[error("the stack's thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// A name that is fixed is not one.
    #[error("{0:?} is not a name for device control")]
    Name(&'static str),
}

/// A virtualization stack that runs. Dropping it ends it; VFs that guests have stay with them, and are given back by the
/// next stack.
pub struct StackProcess {
    control: Option<DeviceControlServer>,
    sender: Sender<Message>,
    running: Option<JoinHandle<()>>,
    shutdown: Receiver<()>,
    path: PathBuf,
}

/// The control socket of a stack whose folder is `directory`.
pub fn control_socket(directory: &Path) -> PathBuf {
    directory.join(CONTROL_SOCKET)
}

/// A number that another life of the stack is unlikely to have been near to: from the time, mixed so that lives that begin
/// one after the other are far apart.
fn first_serial() -> u32 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seconds = since.as_secs().wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    let nanos = since.subsec_nanos();
    seconds.iter().fold(nanos, |mixed, byte| mixed.rotate_left(5).wrapping_add((*byte).into()))
}

impl StackProcess {
    /// Starts a stack with its control socket in `directory`. The NICs, switches and VMs need not be there yet.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(configuration: Configuration, directory: &Path) -> Result<Self, StartError> {
        let name = DriverName::new("stack").map_err(|_| StartError::Name("stack"))?;
        let driver = DriverName::new(DRIVER).map_err(|_| StartError::Name(DRIVER))?;
        let (sender, messages) = unbounded();
        let (ask, shutdown) = bounded(1);
        let path = control_socket(directory);
        let handler = Handler { sender: sender.clone(), uid: rustix::process::getuid().as_raw() };
        // Before anything else: of two stacks with one folder the second ends here.
        let control = DeviceControlServer::start(ServerConfig::new(&path, name), Arc::new(handler))
            .map_err(StartError::Control)?;
        let channel = (sender.clone(), messages);
        let runtime = Runtime::new(configuration, driver, first_serial(), channel, ask)
            .map_err(StartError::Configuration)?;
        let running = std::thread::Builder::new()
            .name("stack".into())
            .spawn(move || runtime.run())
            .map_err(StartError::Thread)?;
        Ok(Self { control: Some(control), sender, running: Some(running), shutdown, path })
    }

    /// Where the stack is controlled.
    pub fn control_path(&self) -> &Path {
        &self.path
    }

    /// Becomes readable when a client has asked the stack to end.
    pub const fn shutdown_requested(&self) -> &Receiver<()> {
        &self.shutdown
    }

    /// Reads the configuration file again, as `clearway stack reload` does; what comes of it is logged.
    pub fn reload(&self) {
        // A stack that has ended reads nothing.
        let _ = self.sender.send(Message::Reload);
    }
}

impl Drop for StackProcess {
    fn drop(&mut self) {
        let _ = self.sender.send(Message::Stop);
        if let Some(running) = self.running.take() {
            // A panic there has been reported already.
            let _ = running.join();
        }
        self.control = None;
    }
}

/// Passes on what clients ask.
struct Handler {
    sender: Sender<Message>,
    uid: u32,
}

impl DeviceControlHandler for Handler {
    fn connected(&self, client: &Client) -> Result<(), NtStatus> {
        if client.uid == self.uid || client.uid == 0 {
            Ok(())
        } else {
            Err(NtStatus::ACCESS_DENIED)
        }
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        let Some(control) = PrivateControl::from_code(code) else {
            request.complete(NtStatus::INVALID_DEVICE_REQUEST);
            return;
        };
        // If the stack has ended the request comes back, and is completed by being dropped.
        let _ = self.sender.send(Message::Asked { client: client.id, control, request });
    }

    fn cancel(&self, client: &Client, id: RequestId) {
        let _ = self.sender.send(Message::Cancelled { client: client.id, request: id });
    }
}
