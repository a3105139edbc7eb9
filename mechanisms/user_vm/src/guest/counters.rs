//! Counters that one thread writes and others read.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::{CarrierDirection, Drops, VfState};

/// A counter with one writer. Reading it from another thread gives a recent value.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the one writer may.
    fn add(&self, count: u64) {
        if count != 0 {
            self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
        }
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One direction of the carrier.
#[derive(Debug, Default)]
pub(super) struct Direction {
    packets: Counter,
    frames: Counter,
    bytes: Counter,
    drops: [Counter; 6],
}

impl Direction {
    /// Adds what a burst came to.
    pub(super) fn add(&self, burst: &CarrierDirection) {
        self.packets.add(burst.packets);
        self.frames.add(burst.frames);
        self.bytes.add(burst.bytes);
        let Drops { no_link, no_room, too_long, malformed, receive_error, interface_error } =
            burst.drops;
        let counts = [no_link, no_room, too_long, malformed, receive_error, interface_error];
        for (counter, count) in self.drops.iter().zip(counts) {
            counter.add(count);
        }
    }

    fn get(&self) -> CarrierDirection {
        let [no_link, no_room, too_long, malformed, receive_error, interface_error] =
            self.drops.each_ref().map(Counter::get);
        CarrierDirection {
            packets: self.packets.get(),
            frames: self.frames.get(),
            bytes: self.bytes.get(),
            drops: Drops { no_link, no_room, too_long, malformed, receive_error, interface_error },
        }
    }
}

/// All that the carrier tells of itself.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) to_vf: Direction,
    pub(super) to_guest: Direction,
    /// Written by the carrier when something of the VF changes and on request, read by the VM's main thread;
    /// never held over a frame.
    vf: Mutex<VfState>,
}

impl Counters {
    pub(super) fn directions(&self) -> (CarrierDirection, CarrierDirection) {
        (self.to_vf.get(), self.to_guest.get())
    }

    pub(super) fn vf(&self) -> VfState {
        self.vf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update_vf(&self, update: impl FnOnce(&mut VfState)) {
        update(&mut self.vf.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
