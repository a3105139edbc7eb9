//! What can go wrong when an adapter starts or is changed.

use std::path::PathBuf;

use crate::{data_path::DataPathStopped, function::FunctionError};

/// An error of the adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The uplink cannot be opened.
    #[error("the uplink {spec} cannot be opened")]
    Uplink {
        /// As it was asked for.
        spec: String,
        /// The reason.
        #[source]
        source: uplink::UplinkError,
    },
    /// The configuration of the PCI functions makes no sense.
    #[error("the PCI functions of the adapter cannot be made")]
    Pci(#[source] pci_function::PciFunctionError),
    /// A function cannot be made.
    #[error(transparent)]
    Function(FunctionError),
    /// A socket cannot be served.
    #[error("serving {}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: vfio_user_server::ServerError,
    },
    /// A thread cannot be started.
    #[error("a thread of the adapter cannot be started")]
    Thread(#[source] std::io::Error),
    /// The data path is gone.
    #[error(transparent)]
    DataPath(#[from] DataPathStopped),
}
