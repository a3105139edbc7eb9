//! What can go wrong between a host and its guest.

use std::io;

use shared_memory::MemoryError;

/// An error of a partition.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// The guest has ended, or broke the rules and was cut off.
    #[error("the guest is gone")]
    Gone,
    /// The kernel refused something.
    #[error("the partition needs {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Guest memory cannot be made or mapped.
    #[error("guest memory")]
    Memory(#[from] MemoryError),
    /// The connection id has a signal already.
    #[error("connection id {0:#x} is bound already")]
    Bound(u32),
    /// The event flag is in use, or there is no such flag.
    #[error("event flag {0} is in use or does not exist")]
    EventFlag(u16),
    /// The range overlaps memory or other MMIO, or is empty, or not of whole pages.
    #[error("the MMIO range {gpa:#x}+{length:#x} is taken or not of whole pages")]
    Mmio {
        /// First guest physical address.
        gpa: u64,
        /// Bytes.
        length: u64,
    },
    /// Not so many interrupts at once.
    #[error("{0} interrupt messages cannot be had together")]
    Msi(usize),
    /// There is no such message, or no message of this guest can be moved.
    #[error("interrupt message {0:#x} cannot be moved")]
    NotMovable(u32),
}

impl PartitionError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |source| Self::System { what, source: source.into() }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
