//! The adapter's clock: one time base for control, interrupts and data path.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine started.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}
