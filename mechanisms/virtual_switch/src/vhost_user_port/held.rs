//! Frames that wait until it is known by which path the guest takes them.
//!
//! A guest whose net_failover has a primary drops what comes by the standby, from the moment at which the VF's driver
//! registers its interface until that is unregistered; and the VF receives only while its driver has its queues enabled,
//! which is later, and ends earlier. What comes in between waits here.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use netvsp::ReceiveMetadata;
use shared_memory::{MemoryError, PageSize, SharedMapping};

use crate::{Frame, Offloads, finish::Finished};

/// Bytes of frames that wait, at most.
const ROOM: usize = 1 << 20;
/// How long the first of them waits, at most: several times what a driver takes to be there, on a busy machine. A guest that
/// joins its VF drops them before.
const PATIENCE: Duration = Duration::from_secs(5);

/// A frame: where it is, its tag, and its checked head.
#[derive(Debug)]
struct Waiting {
    at: usize,
    length: usize,
    tci: Option<u16>,
    head: [u64; 2],
}

/// Frames, complete, in their order.
#[derive(Debug)]
pub(super) struct Held {
    memory: SharedMapping,
    waiting: VecDeque<Waiting>,
    used: usize,
    until: Option<Instant>,
}

impl Held {
    pub(super) fn new() -> Result<Self, MemoryError> {
        let (memory, _) = SharedMapping::create("held frames", ROOM, PageSize::Base)?;
        Ok(Self { memory, waiting: VecDeque::new(), used: 0, until: None })
    }

    /// Takes a frame; false if there is no room for it, or the first has waited long enough.
    pub(super) fn take(&mut self, frame: &Finished<'_>, tci: Option<u16>) -> bool {
        let length: usize = frame.pieces.iter().map(|piece| piece.len()).sum();
        let late = self.until.is_some_and(|until| until <= Instant::now());
        let Ok(place) = self.memory.slice(self.used, length) else { return false };
        if late {
            return false;
        }
        let mut at = 0;
        for piece in frame.pieces {
            let (_, rest) = place.split(at);
            let (to, _) = rest.split(piece.len());
            piece.copy_to(to);
            at += piece.len();
        }
        self.waiting.push_back(Waiting { at: self.used, length, tci, head: frame.head });
        self.used += length;
        self.until.get_or_insert_with(|| Instant::now() + PATIENCE);
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Until when they wait at most.
    pub(super) const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Hands all of them on, in their order.
    pub(super) fn release(&mut self, mut each: impl FnMut(&Frame<'_>)) {
        for Waiting { at, length, tci, head } in self.waiting.drain(..) {
            let Ok(bytes) = self.memory.slice(at, length) else { continue };
            let offloads = &Offloads::Known(ReceiveMetadata::default());
            each(&Frame { head, pieces: &[bytes], length, tci, offloads });
        }
        (self.used, self.until) = (0, None);
    }
}
