//! The gate between control and data path: whether a queue may touch its device.
//!
//! Each opening or rebuilding of the device begins a *generation*. A queue works only while the
//! driver's generation is its own, which costs it one load per burst. Control ends a generation by
//! counting on; queues of an ended generation stand still for good, unless
//! [`crate::AvfControl::rebuild`] takes them into the next.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// The driver's current generation, shared by control and queues.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generation(Arc<AtomicU32>);

impl Generation {
    /// Ends the current generation.
    pub(crate) fn end(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// A gate that is open until the current generation ends.
    pub(crate) fn gate(&self) -> Gate {
        Gate { current: self.clone(), own: self.0.load(Ordering::Acquire) }
    }
}

/// A queue's side of the gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    current: Generation,
    own: u32,
}

impl Gate {
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        self.current.0.load(Ordering::Relaxed) == self.own
    }
}
