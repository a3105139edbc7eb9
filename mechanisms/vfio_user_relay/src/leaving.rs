//! How a guest shows that it is about to leave the function, and how it is made to wait until it may.
//!
//! A driver that is taken from a function looks no more at what the VF has received, and tells the VF of its end later.
//! But Linux, which gives a function up, turns its PME off before its driver hears of it, if the function can send PME at
//! all. So this one says that it can; it never does. The write comes before all that the driver does to end, and while
//! it is held back the guest does not go on.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pcie_protocol::{
    CONVENTIONAL_CONFIG_SPACE_SIZE, CapabilityId, CapabilityWalk, PowerManagementCapabilities,
    PowerManagementCapability, PowerManagementControl,
};
use vfio_user_client::{Client, ClientError};

/// Where a function has its power management capability, bytes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Pme(u64);

impl Pme {
    /// Looks for it in a VF's configuration space.
    pub(crate) fn find(vf: &Client) -> Result<Option<Self>, ClientError> {
        let mut config = [0; CONVENTIONAL_CONFIG_SPACE_SIZE];
        for (offset, register) in (0..).step_by(4).zip(config.chunks_exact_mut(4)) {
            vf.config_read(offset, register)?;
        }
        let found = CapabilityWalk::new(&config).find(|it| it.id == CapabilityId::POWER_MANAGEMENT);
        Ok(found.map(|found| Self(found.offset.into())))
    }

    /// Adds to what the VF says of itself that it can send PME, from D0.
    pub(crate) fn add_to(self, offset: u64, data: &mut [u8]) {
        let more = PowerManagementCapabilities::new().with_pme_support(1);
        for (at, more) in (self.0 + 2..).zip(u16::from(more).to_le_bytes()) {
            let byte = at.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = byte.and_then(|at| data.get_mut(at)) {
                *byte |= more;
            }
        }
    }

    /// Whether PME is off from this write on.
    pub(crate) fn is_disabled_by(self, offset: u64, data: &[u8]) -> bool {
        let upper = self.0 + u64::from(PowerManagementCapability::CONTROL_OFFSET) + 1;
        let at = upper.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        let byte = at.and_then(|at| data.get(at));
        byte.is_some_and(|byte| {
            let control = PowerManagementControl::from(u16::from_le_bytes([0, *byte]));
            control.pme_status() && !control.pme_enable()
        })
    }
}

/// Where a guest that leaves waits, if it is to.
pub(crate) struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    limit: Duration,
}

impl Gate {
    /// One that is open, and at which nobody waits for longer than `limit`.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { closed: Mutex::new(false), opened: Condvar::new(), limit }
    }

    /// The next guest that leaves waits.
    pub(crate) fn close(&self) {
        *self.lock() = true;
    }

    /// No guest waits any more.
    pub(crate) fn open(&self) {
        *self.lock() = false;
        self.opened.notify_all();
    }

    /// The guest leaves: `tell` is told if it waits.
    pub(crate) fn pass(&self, tell: impl FnOnce()) {
        let closed = self.lock();
        if !*closed {
            return;
        }
        tell();
        let waited = self.opened.wait_timeout_while(closed, self.limit, |closed| *closed);
        let (mut closed, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            tracing::debug!("a guest leaves its VF before its frames have left");
        }
        // Once: it has left by then.
        *closed = false;
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    /// Where the capability is here.
    const PME: Pme = Pme(0x40);

    #[test]
    fn pme_from_d0_is_added_to_whatever_part_of_the_capability_is_read() {
        let mut whole = [0; 8];
        PME.add_to(0x40, &mut whole);
        assert_eq!(whole, [0, 0, 0, 0x08, 0, 0, 0, 0]);
        let mut upper = [0x01];
        PME.add_to(0x43, &mut upper);
        assert_eq!(upper, [0x09]);
        let (mut before, mut after) = ([0; 4], [0; 4]);
        PME.add_to(0x3C, &mut before);
        PME.add_to(0x44, &mut after);
        assert_eq!((before, after), ([0; 4], [0; 4]));
    }

    #[test]
    fn pme_is_off_once_its_status_is_cleared_without_its_enable() {
        let control = PowerManagementControl::new().with_pme_status(true);
        let off = u16::from(control).to_le_bytes();
        assert!(PME.is_disabled_by(0x44, &off));
        let [_, upper] = off;
        assert!(PME.is_disabled_by(0x45, &[upper]));
        assert!(PME.is_disabled_by(0x40, &[0, 0, 0, 0, 0, upper]));
        let on = u16::from(control.with_pme_enable(true)).to_le_bytes();
        assert!(!PME.is_disabled_by(0x44, &on));
        // A change of the power state is none of PME.
        assert!(!PME.is_disabled_by(0x44, &[3, 0]));
        assert!(!PME.is_disabled_by(0x44, &[3]));
        assert!(!PME.is_disabled_by(0x46, &off));
    }

    #[test]
    fn whoever_leaves_waits_once_until_the_gate_is_opened() {
        let gate = Gate::new(LONG);
        gate.pass(|| panic!("the gate was open"));
        gate.close();
        let (told, is_told) = channel();
        thread::scope(|scope| {
            let leaver = scope.spawn(|| gate.pass(|| told.send(()).unwrap()));
            is_told.recv().unwrap();
            assert!(!leaver.is_finished());
            gate.open();
        });
        gate.pass(|| panic!("it had left"));
    }

    #[test]
    fn nobody_waits_for_longer_than_the_limit() {
        let gate = Gate::new(Duration::from_millis(1));
        gate.close();
        let mut told = 0;
        gate.pass(|| told += 1);
        gate.pass(|| told += 1);
        assert_eq!(told, 1);
    }
}
