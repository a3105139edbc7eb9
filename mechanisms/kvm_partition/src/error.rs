//! What can go wrong with a guest under KVM, and how it ends.

use std::io;

use partition::PartitionError;
use shared_memory::MemoryError;

use crate::{boot::BootError, layout::LayoutError};

/// An error of making or starting a guest. Nothing is left running then.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// KVM refuses something.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else of the system.
    #[error("the guest needs {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The memory's size.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The number of processors.
    #[error("a guest has 1 to {most} processors on this host, not {wanted}")]
    Processors {
        /// How many were asked for.
        wanted: u16,
        /// How many there may be.
        most: u16,
    },
    /// Guest memory.
    #[error("guest memory")]
    Memory(#[from] MemoryError),
    /// The partition.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The kernel, its initial file system or its command line.
    #[error("the guest's kernel cannot be started")]
    Boot(#[from] BootError),
    /// More virtio devices than there are pins for.
    #[error("a guest has at most {} disks and other virtio devices", crate::layout::MAX_VIRTIO)]
    VirtioDevices,
    /// It has been started before.
    #[error("the guest has been started already")]
    Started,
}

impl KvmError {
    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source: source.into() }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// How a guest's run ended.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum RunOutcome {
    /// It asked to be reset: by the reset register, the keyboard controller or Hyper-V's register.
    Reset,
    /// A processor could not even handle its own faults: a triple fault. A PC is reset by it; mostly the guest crashed
    /// before it could say so, and would again.
    TripleFault {
        /// Which.
        processor: u16,
    },
    /// It turned itself off.
    Shutdown,
    /// The host stopped it.
    Stopped,
    /// A processor cannot go on.
    Failed {
        /// Which.
        processor: u16,
        /// What KVM said.
        reason: String,
    },
}
