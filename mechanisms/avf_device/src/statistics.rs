//! Statistics since the last reset (SPEC-AVF §4.8 GET_STATS).

use avf_protocol::virtchnl::EthStats;

/// What was counted between `base` and `now`. Counters wrap as 64-bit numbers do.
pub(crate) fn since(base: &EthStats, now: &EthStats) -> EthStats {
    let mut counters = now.counters();
    for (counter, base) in counters.iter_mut().zip(base.counters()) {
        *counter = counter.wrapping_sub(base);
    }
    EthStats::from_counters(counters)
}
