//! What can go wrong at either end of a socket.

use crate::{RequestId, Target};
use device_control_protocol::MessageError;
use listening_socket::ListenError;
use pcivirt_protocol::NtStatus;
use rustix::io::Errno;
use std::path::PathBuf;
use std::time::Duration;

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its socket cannot be listened at.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The operating system refused.
    #[error("{action} {}", path.display())]
    Os {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A thread could not be started.
    #[error("starting a thread for {}", path.display())]
    Thread {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Why a client's request has no completion.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the path.
    #[error("nobody serves {}: is `clearway adapter` running?", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The path does not fit into a socket address.
    #[error("the socket path {} is too long: Linux allows 107 bytes", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{action} {}", path.display())]
    Os {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The server does not want this client.
    #[error("{} refused the connection: {status}{}", path.display(), refusal_cure(*status))]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Why.
        status: NtStatus,
    },
    /// The server does not follow the protocol.
    #[error("{} does not speak device control: {what}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        what: ProtocolError,
    },
    /// The server has gone.
    #[error("the connection to {} has ended: is `clearway adapter` still running?", path.display())]
    Disconnected {
        /// The socket.
        path: PathBuf,
    },
    /// The server did not answer in time. The request has been cancelled, and may or may not have been carried out.
    #[error("{} did not complete {what} within {timeout:?}", path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// What was waited for.
        what: Waited,
        /// How long.
        timeout: Duration,
    },
    /// More requests than the server allows would be outstanding.
    #[error("{limit} requests to {} are outstanding already: wait for some of them", path.display())]
    TooManyRequests {
        /// The socket.
        path: PathBuf,
        /// The server's limit.
        limit: u32,
    },
    /// The request is larger than any may be.
    #[error(
        "{target}: input of {input} bytes or room for {output} bytes of output is more than a message can have"
    )]
    TooLong {
        /// What was asked for.
        target: Target,
        /// Bytes of input.
        input: usize,
        /// Room for output.
        output: usize,
    },
    /// The server completed the request with an error.
    #[error("{target} failed: {status}{}{cause}", if .cause.is_empty() { "" } else { ": " })]
    Failed {
        /// What was asked for.
        target: Target,
        /// The status of its completion.
        status: NtStatus,
        /// Bytes of output that it would have needed, or 0.
        needed: u32,
        /// The cause in words, if the server tells one of a private control; else empty.
        cause: String,
    },
}

/// What a client waits for.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum Waited {
    /// The socket to accept, or the welcome to come.
    Connection,
    /// A request to be sent or completed.
    Request(Target),
}

impl std::fmt::Display for Waited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection => f.write_str("the connection"),
            Self::Request(target) => std::fmt::Display::fmt(target, f),
        }
    }
}

/// How a peer broke the protocol.
#[derive(Debug, Copy, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A header that is none.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message that its sender must not send, or not now.
    #[error("a message came out of order")]
    OutOfOrder,
    /// A message carries other file descriptors than it says.
    #[error("a message says it carries {expected} file descriptors and carries {found}")]
    Fds {
        /// What the header says.
        expected: u16,
        /// What came.
        found: usize,
    },
    /// A greeting that cannot be read.
    #[error("the greeting cannot be read")]
    Greeting,
    /// A request whose name is taken by another that is outstanding.
    #[error("request {} is outstanding already", .0.0)]
    DuplicateRequest(RequestId),
    /// A completion of a request that was not sent.
    #[error("request {} was never sent", .0.0)]
    UnknownRequest(RequestId),
    /// Output for which there was no room.
    #[error("request {} has more output than it had room for", .0.0)]
    TooMuchOutput(RequestId),
}

const fn refusal_cure(status: NtStatus) -> &'static str {
    match status {
        NtStatus::REVISION_MISMATCH => {
            "; it speaks another version of device control: use programs of one build"
        }
        NtStatus::INSUFFICIENT_RESOURCES => "; it has as many clients as it allows: close some",
        _ => "",
    }
}
