//! What one measurement yields. The same JSON comes from `clearway bench forward --json` and from the peers'
//! scripts; unknown members are ignored.

use std::time::Duration;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// Frames that arrived, per second.
#[derive(Copy, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// Bytes of a frame, without FCS.
    pub(crate) size: u16,
    /// Frames that the sink read.
    pub(crate) received: u64,
    pub(crate) frames_per_second: f64,
    pub(crate) bytes_per_second: f64,
    /// Share of the sender's bursts that found no room at all: near 1, the forwarder is the bottleneck.
    #[serde(default)]
    pub(crate) send_ring_full: f64,
    /// Share of the receiver's looks that found nothing.
    #[serde(default)]
    pub(crate) receive_ring_empty: f64,
    /// CPU time per frame of the host's threads, ns; of Clearway alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host_cpu_ns: Option<f64>,
    /// The same of the thread that plays both guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest_cpu_ns: Option<f64>,
    /// How long the forwarder was at work for a frame, ns, without the turns in which nothing had come; as it says itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) busy_ns: Option<f64>,
}

impl Rate {
    pub(crate) fn of(size: u16, frames: u64, bytes: u64, took: Duration) -> Self {
        let seconds = took.as_secs_f64().max(1e-9);
        Self {
            size,
            received: frames,
            frames_per_second: as_f64(frames) / seconds,
            bytes_per_second: as_f64(bytes) / seconds,
            send_ring_full: 0.0,
            receive_ring_empty: 0.0,
            host_cpu_ns: None,
            guest_cpu_ns: None,
            busy_ns: None,
        }
    }

    /// Nanoseconds per frame.
    pub(crate) fn cost_ns(&self) -> f64 {
        1e9 / self.frames_per_second.max(1e-9)
    }
}

/// Time until a frame has come back to the core that sent it, one at a time.
#[derive(Copy, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RoundTrip {
    /// Bytes of the frame.
    pub(crate) size: u16,
    pub(crate) samples: u64,
    /// Frames that did not come within 10 ms.
    pub(crate) lost: u64,
    pub(crate) rtt_ns_median: f64,
    pub(crate) rtt_ns_p99: f64,
    pub(crate) rtt_ns_min: f64,
}

impl RoundTrip {
    pub(crate) fn of(size: u16, mut samples: Vec<f64>, lost: u64) -> anyhow::Result<Self> {
        ensure!(!samples.is_empty(), "not one round trip was made");
        samples.sort_unstable_by(f64::total_cmp);
        Ok(Self {
            size,
            samples: samples.len() as u64,
            lost,
            rtt_ns_median: percentile(&samples, 50),
            rtt_ns_p99: percentile(&samples, 99),
            rtt_ns_min: percentile(&samples, 0),
        })
    }
}

/// A count as a float; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds stay far below 2^53")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The value below which `percent` of the sorted values lie; 0 of nothing.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}

/// Median, least and greatest of some values.
#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = match middle.checked_sub(1).and_then(|lower| values.get(lower)) {
            Some(lower) if values.len().is_multiple_of(2) => (lower + upper) / 2.0,
            _ => upper,
        };
        Some(Self { median, least: *values.first()?, greatest: *values.last()? })
    }

    /// (greatest − least) / median.
    pub(crate) fn relative(&self) -> f64 {
        (self.greatest - self.least) / self.median.abs().max(1e-12)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_of_an_even_count_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.5, least: 1.0, greatest: 4.0 });
        assert!((spread.relative() - 1.2).abs() < 1e-9);
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn what_the_peers_scripts_print_is_understood() {
        let line = r#"{"size":64,"seconds":2.0,"sent":9,"received":8,"frames_per_second":4.0,
            "bytes_per_second":256.0,"send_ring_full":0.5,"receive_ring_empty":0.25,"check":0,"busy_ns":31.5}"#;
        let rate: Rate = serde_json::from_str(line).unwrap();
        assert_eq!((rate.size, rate.received, rate.busy_ns), (64, 8, Some(31.5)));
        let line = r#"{"size":64,"samples":5,"lost":0,"rtt_ns_median":1.0,"rtt_ns_p99":2.0,"rtt_ns_min":0.5}"#;
        let round_trip: RoundTrip = serde_json::from_str(line).unwrap();
        assert_eq!(round_trip.samples, 5);
    }
}
