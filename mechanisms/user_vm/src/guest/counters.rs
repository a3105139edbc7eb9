//! Counters that one thread writes and others read.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    AdapterStatistics, CarrierDirection, DataPath, DataPathStatistics, Drops, PathStatistics,
    SyntheticState, Traffic, VfState,
};

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

#[derive(Debug, Default)]
struct TrafficCounters {
    packets: Counter,
    frames: Counter,
    bytes: Counter,
}

impl TrafficCounters {
    fn add(&self, traffic: Traffic) {
        self.packets.add(traffic.packets);
        self.frames.add(traffic.frames);
        self.bytes.add(traffic.bytes);
    }

    fn get(&self) -> Traffic {
        Traffic { packets: self.packets.get(), frames: self.frames.get(), bytes: self.bytes.get() }
    }
}

/// One direction of the carrier.
#[derive(Debug, Default)]
pub(super) struct Direction {
    traffic: TrafficCounters,
    drops: [Counter; 6],
}

impl Direction {
    /// Adds what a burst came to.
    pub(super) fn add(&self, burst: &CarrierDirection) {
        let CarrierDirection { packets, frames, bytes, drops } = *burst;
        self.traffic.add(Traffic { packets, frames, bytes });
        let Drops { no_link, no_room, too_long, malformed, receive_error, interface_error } = drops;
        let counts = [no_link, no_room, too_long, malformed, receive_error, interface_error];
        for (counter, count) in self.drops.iter().zip(counts) {
            counter.add(count);
        }
    }

    fn get(&self) -> CarrierDirection {
        let [no_link, no_room, too_long, malformed, receive_error, interface_error] =
            self.drops.each_ref().map(Counter::get);
        let Traffic { packets, frames, bytes } = self.traffic.get();
        CarrierDirection {
            packets,
            frames,
            bytes,
            drops: Drops { no_link, no_room, too_long, malformed, receive_error, interface_error },
        }
    }
}

/// One path.
#[derive(Debug, Default)]
pub(super) struct PathCounters {
    transmit: TrafficCounters,
    receive: TrafficCounters,
    other_path_groups: Counter,
    lost_in_rings: Counter,
}

impl PathCounters {
    /// Adds what a burst to the path came to.
    pub(super) fn transmitted(&self, burst: &CarrierDirection) {
        let CarrierDirection { packets, frames, bytes, .. } = *burst;
        self.transmit.add(Traffic { packets, frames, bytes });
    }

    /// Adds what a burst from the path came to.
    pub(super) fn received(&self, frames: u64, bytes: u64) {
        self.receive.add(Traffic { packets: frames, frames, bytes });
    }

    /// Frames to groups came, while the other path is the one in use.
    pub(super) fn other_path_groups(&self, count: u64) {
        self.other_path_groups.add(count);
    }

    /// The path ended with so much in its rings.
    pub(super) fn lost_in_rings(&self, count: u64) {
        self.lost_in_rings.add(count);
    }

    fn get(&self) -> PathStatistics {
        PathStatistics {
            transmit: self.transmit.get(),
            receive: self.receive.get(),
            other_path_groups: self.other_path_groups.get(),
            lost_in_rings: self.lost_in_rings.get(),
        }
    }
}

/// What changes seldom.
#[derive(Clone, Default, Debug)]
pub(super) struct States {
    pub(super) vf: VfState,
    pub(super) synthetic: SyntheticState,
    pub(super) data_path: DataPathStatistics,
    pub(super) path: Option<DataPath>,
    pub(super) carrier: bool,
    pub(super) mac: [u8; 6],
}

/// All that the carrier tells of itself.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) from_guest: Direction,
    pub(super) to_guest: Direction,
    synthetic: PathCounters,
    vf: PathCounters,
    /// Written by the carrier when something changes and on request, read by the VM's main thread; never held over a
    /// frame.
    states: Mutex<States>,
}

impl Counters {
    pub(super) fn path(&self, path: DataPath) -> &PathCounters {
        match path {
            DataPath::Synthetic => &self.synthetic,
            DataPath::Vf => &self.vf,
        }
    }

    pub(super) fn states(&self) -> States {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, update: impl FnOnce(&mut States)) {
        update(&mut self.states.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All of it, but for the interface's name and what the kernel counts.
    pub(super) fn statistics(&self) -> AdapterStatistics {
        let States { vf, synthetic, data_path, path, carrier, mac } = self.states();
        AdapterStatistics {
            mac,
            carrier,
            path,
            from_guest: self.from_guest.get(),
            to_guest: self.to_guest.get(),
            synthetic: self.synthetic.get(),
            vf: self.vf.get(),
            synthetic_state: synthetic,
            vf_state: vf,
            data_path,
            ..AdapterStatistics::default()
        }
    }
}
