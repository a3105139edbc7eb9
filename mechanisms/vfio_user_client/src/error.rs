//! What can go wrong between a client and its server.

use std::{path::PathBuf, time::Duration};

/// An error of a vfio-user client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("connecting to the vfio-user socket {}; is the adapter running?", socket.display())]
    Connect {
        /// The socket asked for.
        socket: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The server closed the connection or died, or what it sent cannot be followed any more: connect anew.
    #[error("the device is gone: its vfio-user server closed the connection")]
    Gone,
    /// The kernel refused an operation on the connection.
    #[error("{operation} failed")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The server did not answer in time. Its late answer will be passed over.
    #[error("{what} did not happen within {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The server broke the vfio-user protocol.
    #[error("the vfio-user server's reply to {command} is not valid: {problem}")]
    Protocol {
        /// The command it answered.
        command: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The server refused a command.
    #[error("the vfio-user server refused {command}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its error number.
        #[source]
        source: std::io::Error,
    },
    /// An access to configuration space that PCI does not know; nothing was sent.
    #[error(
        "{length} bytes at {offset:#x} of configuration space; 1, 2 or 4 naturally aligned bytes are one access"
    )]
    ConfigAccess {
        /// Byte offset.
        offset: u16,
        /// Bytes.
        length: usize,
    },
}

/// Result of this crate.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;
