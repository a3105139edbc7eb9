//! Time as an argument: the stack reads no clock.

use core::time::Duration;

/// A moment: nanoseconds since a start that the caller chooses and keeps. It must not go backwards.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(u64);

impl Time {
    /// The start.
    pub const ZERO: Self = Self(0);

    /// The moment this long after the start; the far future if it does not fit.
    pub fn since_start(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// How long after the start.
    pub const fn elapsed(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// The moment `wait` later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(Self::since_start(wait).0))
    }
}

/// How long the stack waits for whom, and what it does then. The published documents give no values (SPEC-PCIVIRT §8.5);
/// 60 s for an eject is what Windows hosts are seen to wait (SPEC-VMBUS §4.7).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// For the partition's host side to offer the VPCI device. Then the VF is taken back.
    pub expose: Duration,
    /// For the guest, told of its VF, to switch its data path to it. Then the stack says why it has not, as far as it can
    /// see. The guest keeps its VF, for it may be long in coming up, unless another adapter waits for one: then the VF is
    /// taken back in order, and the adapter stays on the synthetic path until its guest starts anew, its configuration
    /// changes, or somebody asks for a retry.
    pub offer: Duration,
    /// For the guest to leave the VF when asked to. Then the device is ejected all the same.
    pub switch: Duration,
    /// For the guest to complete an eject. Then the device is removed by surprise.
    pub eject: Duration,
    /// For the partition's host side to take the device away. Then the VF is reset and freed all the same.
    pub remove: Duration,
    /// For all VFs of a PF that wants to stop or to be removed in order. Then [`SilentGuest`](crate::SilentGuest) says.
    pub pf_stop: Duration,
    /// For the removal of a PF after the stack has agreed. Then the removal is taken for called off: the published
    /// interface has no event for that.
    pub pf_removal: Duration,
    /// For a NIC to complete a request. Then the NIC is taken for gone and its connection given up.
    pub nic: Duration,
    /// Between two attempts at what a NIC has refused.
    pub retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            expose: Duration::from_secs(10),
            offer: Duration::from_secs(60),
            switch: Duration::from_secs(2),
            eject: Duration::from_secs(60),
            remove: Duration::from_secs(5),
            pf_stop: Duration::from_secs(10),
            pf_removal: Duration::from_secs(30),
            nic: Duration::from_secs(30),
            retry: Duration::from_secs(5),
        }
    }
}
