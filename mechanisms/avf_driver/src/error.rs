//! What can go wrong between the driver, its vfio-user server and the PF behind it.

use std::{path::PathBuf, time::Duration};

use shared_memory::MemoryError;
use vfio_user_client::ClientError;

/// An error of the AVF driver. None of them is raised per frame: the data path counts instead
/// ([`crate::TxCounters`], [`crate::RxCounters`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The configuration asks for what no AVF device can do; nothing was sent.
    #[error("the driver's configuration is not possible: {0}")]
    Configuration(String),
    /// The driver's memory could not be made, mapped or laid out.
    #[error("the memory shared with the device")]
    Memory(#[from] MemoryError),
    /// Nobody serves the socket.
    #[error("connecting to the vfio-user socket {}; is the adapter running?", socket.display())]
    Connect {
        /// The socket asked for.
        socket: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The function is not there any more: its vfio-user server closed the connection or died, or a bus took it
    /// back. Open the device again when it is served again.
    #[error("the device is gone: whoever serves it closed the connection or took it back")]
    DeviceGone,
    /// The kernel refused an operation on the connection or an event descriptor.
    #[error("{operation} failed")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The server or the device did not answer in time.
    #[error("{what} did not happen within {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The server broke the vfio-user protocol, or refused a command.
    #[error(transparent)]
    VfioUser(ClientError),
    /// What reaches the function failed, in a way of its own.
    #[error("{operation} failed")]
    Transport {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The function behind the socket is not an AVF device (SPEC-AVF §1.1).
    #[error("the function is not an AVF device: {vendor:04x}:{device:04x}")]
    NotAvf {
        /// PCI vendor id.
        vendor: u16,
        /// PCI device id.
        device: u16,
    },
    /// A register did not hold what was written to it (SPEC-AVF §3.3), or read as all ones.
    #[error("register {register} reads {value:#x}, which a working AVF device cannot answer")]
    Register {
        /// The register.
        register: &'static str,
        /// What it read.
        value: u32,
    },
    /// The PF answered a message with an error status (SPEC-AVF §4.1).
    #[error("the PF refused virtchnl {operation}: status {status}")]
    Virtchnl {
        /// The message.
        operation: &'static str,
        /// The status of the reply.
        status: i32,
    },
    /// The PF's answer to a message cannot be used.
    #[error("the PF's answer to virtchnl {operation} is not usable: {problem}")]
    Answer {
        /// The message.
        operation: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The device does not offer what was asked for.
    #[error("the device did not grant {0}")]
    NotGranted(&'static str),
    /// The function was reset, or must be; queue pairs stand still until
    /// [`crate::AvfControl::rebuild`].
    #[error("the function was reset: hand all queue pairs to rebuild() first")]
    NeedsRebuild,
    /// [`crate::AvfControl::rebuild`] and [`crate::AvfControl::close`] need every queue pair that
    /// [`crate::AvfDriver::open`] gave out.
    #[error("{given} of {needed} queue pairs were handed back; all are needed")]
    QueuePairsMissing {
        /// Pairs handed in.
        given: usize,
        /// Pairs given out.
        needed: usize,
    },
}

/// Result of this crate.
pub type Result<T, E = DriverError> = std::result::Result<T, E>;

/// What means the same whatever the device is reached by is this driver's own; the rest stays the client's.
impl From<ClientError> for DriverError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Connect { socket, source } => Self::Connect { socket, source },
            ClientError::Gone => Self::DeviceGone,
            ClientError::Io { operation, source } => Self::Io { operation, source },
            ClientError::TimedOut { what, limit } => Self::TimedOut { what, limit },
            error => Self::VfioUser(error),
        }
    }
}
