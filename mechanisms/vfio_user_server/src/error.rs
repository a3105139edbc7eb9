//! What can go wrong when serving, and why a connection ended.

use listening_socket::ListenError;
use rustix::io::Errno as OsError;
use vfio_user_protocol::ProtocolError;

/// A server that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its socket cannot be listened at.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Any other refusal of the kernel.
    #[error("{what} for the vfio-user socket failed")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: OsError,
    },
    /// The server's thread cannot be started.
    #[error("starting the thread of a vfio-user server failed")]
    Thread(#[source] std::io::Error),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum DisconnectReason {
    /// The client closed it, or died.
    #[error("the client closed the connection")]
    ClientClosed,
    /// The client closed it in the middle of a message.
    #[error("the client closed the connection in the middle of a message")]
    Truncated,
    /// The client broke the protocol so that the stream can no longer be trusted.
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
    /// The client announced a message larger than any can be.
    #[error("the client announced a message of {size} bytes; at most {limit} are possible")]
    TooLarge {
        /// Bytes announced.
        size: u32,
        /// Most bytes accepted.
        limit: usize,
    },
    /// The client sent a reply, though nothing was asked.
    #[error("the client sent a reply, though nothing was asked of it")]
    UnexpectedReply,
    /// The first message was not VERSION.
    #[error("the client's first message was command {0}, not VERSION")]
    NoVersion(u16),
    /// The client wants a major version that is not spoken here.
    #[error("the client speaks vfio-user {major}.{minor}, this server 0.0")]
    VersionMismatch {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// The client did not say VERSION in time.
    #[error("the client sent no VERSION in time")]
    HandshakeTimeout,
    /// Memory that the client had given to the function was taken away.
    #[error("the memory that the client had given to the function was taken away")]
    MemoryTaken,
    /// This side asked for it.
    #[error("the connection was ended by this side")]
    Requested,
    /// The socket failed.
    #[error("the connection failed")]
    Socket(#[source] OsError),
}
