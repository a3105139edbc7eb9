//! What the drivers of VFs do, for those who are on none of their threads.
//!
//! Of each VF, its function's thread says whether a driver has begun, and the data path whether it lets frames in, by the
//! very fact that has the NIC switch send them elsewhere. Neither waits for whoever wants to know: both ring a bell.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender};
use ndis_protocol::{MacAddress, VfId};

use crate::{adapter::lock, control::VfDriver, data_path::FunctionSlot};

/// The drivers of all VFs that are allocated.
pub(crate) struct VfDrivers {
    /// Of each function, how often the data path has begun or ceased to let frames in: odd while it does.
    receiving: Vec<AtomicU64>,
    vfs: Mutex<Vfs>,
    bell: (Sender<()>, Receiver<()>),
}

#[derive(Default)]
struct Vfs {
    /// VFs that were ever allocated.
    lives: u64,
    allocated: BTreeMap<VfId, Vf>,
}

struct Vf {
    life: u64,
    changes: u64,
    said: DriverState,
}

/// What a function says of its driver.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct DriverState {
    /// One has begun since the last reset.
    pub(crate) begun: bool,
    /// Its primary address; the assigned one if it has none.
    pub(crate) mac: MacAddress,
}

/// One of the states that a VF was in. No two are the same.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Version {
    /// From when it was allocated until it is freed.
    pub(crate) life: u64,
    changes: u64,
}

/// What the driver of a VF does now.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Level {
    pub(crate) version: Version,
    pub(crate) driver: VfDriver,
}

impl VfDrivers {
    /// For so many functions: the PF and its VFs.
    pub(crate) fn new(functions: usize) -> Self {
        Self {
            receiving: std::iter::repeat_with(AtomicU64::default).take(functions).collect(),
            vfs: Mutex::default(),
            bell: crossbeam_channel::bounded(1),
        }
    }

    /// A VF is about to be served, without a driver.
    pub(crate) fn allocated(&self, vf: VfId, assigned: MacAddress) {
        let mut vfs = lock(&self.vfs);
        vfs.lives += 1;
        let said = DriverState { begun: false, mac: assigned };
        let life = vfs.lives;
        vfs.allocated.insert(vf, Vf { life, changes: 0, said });
        drop(vfs);
        self.ring();
    }

    /// A VF is freed.
    pub(crate) fn freed(&self, vf: VfId) {
        lock(&self.vfs).allocated.remove(&vf);
        self.ring();
    }

    /// By a VF's function: its driver is in this state now. A VF that was freed meanwhile has none.
    pub(crate) fn say(&self, vf: VfId, state: DriverState) {
        let mut vfs = lock(&self.vfs);
        let Some(place) = vfs.allocated.get_mut(&vf) else { return };
        let before = self.level(vf, place).driver;
        place.said = state;
        // Addresses of a driver that does not run are no news.
        if self.level(vf, place).driver != before {
            place.changes += 1;
            drop(vfs);
            self.ring();
        }
    }

    /// By the data path alone: whether it lets frames into a function's queues now.
    pub(crate) fn set_receiving(&self, slot: FunctionSlot, receiving: bool) {
        let Some(changes) = self.receiving.get(slot.index()) else { return };
        if is_receiving(changes.load(Ordering::Relaxed)) != receiving {
            // Before the bell is found to have rung already: whoever hears it then sees the change too.
            changes.fetch_add(1, Ordering::SeqCst);
            self.ring();
        }
    }

    /// Rings the bell, also when nothing has changed.
    pub(crate) fn ring(&self) {
        // Full: it has rung, and nobody has looked since.
        let _ = self.bell.0.try_send(());
    }

    /// Rings after changes. One listens at a time.
    pub(crate) fn bell(&self) -> &Receiver<()> {
        &self.bell.1
    }

    /// What the driver of a VF does.
    pub(crate) fn driver(&self, vf: VfId) -> VfDriver {
        let vfs = lock(&self.vfs);
        vfs.allocated.get(&vf).map_or(VfDriver::Gone, |place| self.level(vf, place).driver)
    }

    /// What the drivers of all VFs do.
    pub(crate) fn levels(&self) -> BTreeMap<VfId, Level> {
        let vfs = lock(&self.vfs);
        vfs.allocated.iter().map(|(vf, place)| (*vf, self.level(*vf, place))).collect()
    }

    fn level(&self, vf: VfId, place: &Vf) -> Level {
        let Vf { life, changes, said } = place;
        let receiving = self.receiving.get(FunctionSlot::vf(vf).index());
        let receiving = receiving.map_or(0, |changes| changes.load(Ordering::SeqCst));
        Level {
            version: Version { life: *life, changes: changes + receiving },
            driver: if is_receiving(receiving) {
                VfDriver::Running { mac: said.mac.to_string() }
            } else if said.begun {
                VfDriver::Present
            } else {
                VfDriver::Absent
            },
        }
    }
}

const fn is_receiving(changes: u64) -> bool {
    !changes.is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 1]);
    const OTHER_MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 2]);

    fn vf(number: u16) -> VfId {
        VfId::new(number).unwrap()
    }

    fn running(mac: MacAddress) -> VfDriver {
        VfDriver::Running { mac: mac.to_string() }
    }

    #[test]
    fn what_the_data_path_lets_in_counts_more_than_what_the_function_says() {
        let drivers = VfDrivers::new(3);
        drivers.allocated(vf(1), MAC);
        assert_eq!(drivers.driver(vf(1)), VfDriver::Absent);
        drivers.say(vf(1), DriverState { begun: true, mac: MAC });
        assert_eq!(drivers.driver(vf(1)), VfDriver::Present);
        drivers.set_receiving(FunctionSlot::vf(vf(1)), true);
        assert_eq!(drivers.driver(vf(1)), running(MAC));
        drivers.say(vf(1), DriverState { begun: true, mac: OTHER_MAC });
        assert_eq!(drivers.driver(vf(1)), running(OTHER_MAC));
        // The first half of a reset.
        drivers.set_receiving(FunctionSlot::vf(vf(1)), false);
        assert_eq!(drivers.driver(vf(1)), VfDriver::Present);
        drivers.say(vf(1), DriverState { begun: false, mac: OTHER_MAC });
        assert_eq!(drivers.driver(vf(1)), VfDriver::Absent);
        drivers.freed(vf(1));
        assert_eq!(drivers.driver(vf(1)), VfDriver::Gone);
        assert_eq!(drivers.levels(), BTreeMap::new());
    }

    #[test]
    fn the_bell_rings_once_for_many_changes_and_not_for_none() {
        let drivers = VfDrivers::new(2);
        drivers.allocated(vf(0), MAC);
        drivers.set_receiving(FunctionSlot::vf(vf(0)), true);
        assert!(drivers.bell().try_recv().is_ok() && drivers.bell().try_recv().is_err());
        let before = drivers.levels();
        drivers.set_receiving(FunctionSlot::vf(vf(0)), true);
        drivers.say(vf(0), DriverState { begun: false, mac: MAC });
        // It is not allocated.
        drivers.say(vf(1), DriverState { begun: true, mac: MAC });
        // No function has this place.
        drivers.set_receiving(FunctionSlot::vf(vf(7)), true);
        assert!(drivers.bell().try_recv().is_err());
        assert_eq!(drivers.levels(), before);
    }

    #[test]
    fn the_address_of_a_driver_that_does_not_run_is_no_news() {
        let drivers = VfDrivers::new(2);
        drivers.allocated(vf(0), MAC);
        drivers.say(vf(0), DriverState { begun: true, mac: MAC });
        let before = drivers.levels();
        drivers.say(vf(0), DriverState { begun: true, mac: OTHER_MAC });
        assert_eq!(drivers.levels(), before);
        drivers.set_receiving(FunctionSlot::vf(vf(0)), true);
        assert_eq!(drivers.driver(vf(0)), running(OTHER_MAC));
    }

    #[test]
    fn a_state_that_a_vf_is_in_again_is_another_one() {
        let drivers = VfDrivers::new(2);
        drivers.allocated(vf(0), MAC);
        let slot = FunctionSlot::vf(vf(0));
        let mut seen = Vec::new();
        for _ in 0..2 {
            drivers.set_receiving(slot, true);
            seen.push(drivers.levels()[&vf(0)].version);
            drivers.set_receiving(slot, false);
            drivers.say(vf(0), DriverState { begun: true, mac: MAC });
            drivers.say(vf(0), DriverState { begun: false, mac: MAC });
        }
        drivers.freed(vf(0));
        drivers.allocated(vf(0), MAC);
        drivers.set_receiving(slot, true);
        seen.push(drivers.levels()[&vf(0)].version);
        assert_ne!(seen[0], seen[1]);
        assert_ne!(seen[1].life, seen[2].life);
    }
}
