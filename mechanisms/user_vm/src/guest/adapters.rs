//! The adapters of a guest: each an interface with its carrier.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    carrier::{Carrier, CarrierHandle, Command},
    network::Network,
};
use crate::AdapterStatistics;

/// One adapter.
#[derive(Debug)]
pub(super) struct Adapter {
    /// Its number: that of its interface.
    pub(super) number: u32,
    pub(super) network: Network,
    pub(super) carrier: Carrier,
}

/// All of a guest's, by number. They come and never go: an interface stays when its paths are gone.
#[derive(Default, Debug)]
pub(super) struct Adapters {
    /// The VM's main thread contends with the bus thread, which adds adapters; control only.
    all: Mutex<Vec<Adapter>>,
}

impl Adapters {
    fn all(&self) -> MutexGuard<'_, Vec<Adapter>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub(super) fn add(&self, adapter: Adapter) {
        let mut all = self.all();
        let at = all.partition_point(|other| other.number < adapter.number);
        all.insert(at, adapter);
    }

    /// The carrier of this number, if it is there.
    pub(super) fn handle(&self, number: u32) -> Option<CarrierHandle> {
        let all = self.all();
        let adapter = all.iter().find(|adapter| adapter.number == number)?;
        Some(adapter.carrier.handle().clone())
    }

    /// Has one carrier do something, or all; returns how many will.
    pub(super) fn command(&self, number: Option<u32>, command: impl Fn() -> Command) -> usize {
        let all = self.all();
        let asked = all.iter().filter(|adapter| number.is_none_or(|n| n == adapter.number));
        asked.filter(|adapter| adapter.carrier.handle().command(command())).count()
    }

    /// What was counted.
    pub(super) fn statistics(&self) -> Vec<AdapterStatistics> {
        let mut all = self.all();
        let statistics = |adapter: &mut Adapter| AdapterStatistics {
            interface: adapter.network.interface().to_owned(),
            kernel: adapter.network.counters().unwrap_or_default(),
            ..adapter.carrier.handle().statistics()
        };
        all.iter_mut().map(statistics).collect()
    }

    /// Waits until packets pass through all interfaces that have a carrier.
    pub(super) fn wait_until_running(&self, limit: Duration) {
        for adapter in self.all().iter_mut() {
            if adapter.carrier.handle().statistics().carrier {
                adapter.network.wait_until_running(limit);
            }
        }
    }

    /// Stops all carriers.
    pub(super) fn stop(&self) {
        let all = std::mem::take(&mut *self.all());
        for adapter in all {
            adapter.carrier.stop();
        }
    }
}
