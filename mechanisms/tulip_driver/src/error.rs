//! What can go wrong with a device.

use shared_memory::MemoryError;
use vfio_user_client::ClientError;

/// A result of the driver.
pub type Result<T> = std::result::Result<T, TulipDriverError>;

/// Why the adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TulipDriverError {
    /// The server did not do as it was asked, or is gone.
    #[error("the emulated adapter's server")]
    Client(#[from] ClientError),
    /// There is no memory for rings and buffers.
    #[error("no memory for the emulated adapter's rings")]
    Memory(#[from] MemoryError),
    /// Another function is behind the socket.
    #[error("a function {vendor:04x}:{device:04x} is served there, not a 21140 (1011:0009)")]
    NotTulip {
        /// Its vendor id.
        vendor: u16,
        /// Its device id.
        device: u16,
    },
    /// The serial ROM has no address in the format that this driver knows.
    #[error("the serial ROM names no address in format version 3; its version is {version}")]
    Rom {
        /// The version that it names.
        version: u8,
    },
    /// A ring that cannot be.
    #[error("a ring of {entries} descriptors; 8 to 4096 can be")]
    Ring {
        /// Descriptors asked for.
        entries: u16,
    },
    /// The adapter did not take the filter in.
    #[error("the adapter does not take in a setup frame; its transmit process is {state}")]
    SetupFrame {
        /// As CSR5 shows it.
        state: u32,
    },
}
