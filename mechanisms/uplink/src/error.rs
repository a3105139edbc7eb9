//! What can go wrong with an uplink.

use std::{io, path::PathBuf};

use linux_network::NetworkError;

/// An error of opening or using an uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The interface could not be opened or attached to.
    #[error("uplink interface {interface}: cannot {action}")]
    Interface {
        /// Name of the interface.
        interface: String,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: NetworkError,
    },
    /// The interface is gone or no longer answers.
    #[error("uplink interface {interface} is lost; its link is down until the uplink is set again")]
    InterfaceLost {
        /// Name of the interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A capture file could not be opened or written.
    #[error("capture file {}: cannot {action}", path.display())]
    CaptureFile {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no pcap capture of Ethernet frames.
    #[error("capture file {}: {problem}", path.display())]
    NotACapture {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        problem: String,
    },
    /// A capture ends in the middle of a frame.
    #[error("capture file {} is truncated: it ends inside frame {frame} (counted from 1)", path.display())]
    CaptureTruncated {
        /// The file.
        path: PathBuf,
        /// Number of the frame that is not whole, from 1.
        frame: u64,
    },
    /// A frame of a capture has an impossible header.
    #[error("capture file {} is corrupt at frame {frame} (counted from 1): {problem}", path.display())]
    CaptureCorrupt {
        /// The file.
        path: PathBuf,
        /// Number of the frame, from 1.
        frame: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The socket of a cable could not be set up.
    #[error("cable {}: cannot {action}", socket.display())]
    CableSocket {
        /// The socket's path.
        socket: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The other end of a cable broke the rules and was unplugged; a new peer may come.
    #[error("cable {}: the other end was unplugged because it {problem}", socket.display())]
    CablePeer {
        /// The socket's path.
        socket: PathBuf,
        /// What the peer did.
        problem: &'static str,
    },
}
