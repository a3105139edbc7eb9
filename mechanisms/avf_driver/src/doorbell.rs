//! How a queue tells the device of its new tail: a store where the doorbell page is mapped, a write
//! by the transport where it is not.

use std::sync::Arc;

use shared_memory::DoorbellPage;

use crate::{
    Result,
    bar::{Bar, Registers},
};

/// The tail register of one queue.
#[derive(Clone, Debug)]
pub(crate) enum Doorbell {
    /// A word of a shared page.
    Mapped {
        /// The page.
        page: DoorbellPage,
        /// Index of the word.
        index: usize,
    },
    /// A register that the server handles.
    Register {
        /// The register file.
        bar: Arc<Bar>,
        /// Byte offset.
        offset: u32,
    },
}

impl Doorbell {
    /// Writes the tail. What was stored in the ring before is seen by whoever sees the tail.
    #[inline(always)]
    pub(crate) fn ring(&self, value: u32) {
        match self {
            Self::Mapped { page, index } => page.store(*index, value),
            Self::Register { bar, offset } => ring_register(bar, *offset, value),
        }
    }

    /// As [`ring`](Self::ring), waiting for the server and telling whether it took it: for the
    /// start of a queue.
    pub(crate) fn ring_checked(&self, value: u32) -> Result<()> {
        match self {
            Self::Mapped { page, index } => page.store(*index, value),
            Self::Register { bar, offset } => bar.write(*offset, value)?,
        }
        Ok(())
    }
}

/// The slow way. That the server died is control's to find out.
#[cold]
fn ring_register(bar: &Bar, offset: u32, value: u32) {
    let _ = bar.post(offset, value);
}
