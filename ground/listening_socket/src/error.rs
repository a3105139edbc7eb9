//! Why a path cannot be listened at.

use std::{io, path::PathBuf};

/// Why a path cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error(
        "{} is served by another process already: stop it, or choose another path",
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{} is not a socket and will not be replaced: remove it, or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else could put a socket of theirs in this directory.
    #[error(
        "the directory {} can be written by others: use one of your own with mode 0700",
        path.display()
    )]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// There is a dead socket, and another process keeps the directory locked, so that it cannot be replaced.
    #[error(
        "the directory {} is kept locked (flock) by another process: end that one, or use a directory of your own with mode 0700",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error("the socket path {} has {length} bytes, and Linux allows 107: choose a shorter one", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
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
        source: io::Error,
    },
}
