//! What an adapter costs while nothing flows, and how long it then takes to wake up.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::Serialize;

use super::{
    cores::{Cores, apart},
    forward::{Ends, ring, two_vfs},
    path::Path,
    sample::{Spread, as_f64},
};

/// Without traffic for so long before anything is counted.
const SETTLE: Duration = Duration::from_secs(1);
const COUNTED: Duration = Duration::from_secs(2);
const WAKE_UPS: usize = 40;
/// Between two wake-ups; long enough that the worker sleeps its longest.
const PAUSE: Duration = Duration::from_millis(50);

/// An adapter with two VFs up and no traffic.
#[derive(Copy, Clone, Debug, Serialize)]
pub(crate) struct Idle {
    /// CPU time of all of the adapter's threads, % of one core.
    pub(crate) cpu_percent: f64,
    /// From a frame's doorbell to the sink's read, after silence, µs.
    pub(crate) wake_up_us: Spread,
}

/// Measures an idle adapter.
pub(crate) fn measure(cores: Cores) -> anyhow::Result<Idle> {
    apart(|| run(cores))
}

fn run(cores: Cores) -> anyhow::Result<Idle> {
    let (mut ends, _nic) = two_vfs(64, ring(64), cores)?;
    // It has been at work before.
    ends.rate(Duration::from_millis(100))?;
    std::thread::sleep(SETTLE);
    let before = other_threads_ns()?;
    let start = Instant::now();
    std::thread::sleep(COUNTED);
    let busy = other_threads_ns()?.saturating_sub(before);
    let cpu_percent = as_f64(busy) / 1e7 / start.elapsed().as_secs_f64();
    Ok(Idle { cpu_percent, wake_up_us: wake_ups(&mut ends)? })
}

fn wake_ups(ends: &mut Ends) -> anyhow::Result<Spread> {
    let mut took = Vec::new();
    for _ in 0..WAKE_UPS {
        std::thread::sleep(PAUSE);
        took.extend(ends.one().map(|ns| ns / 1000.0));
    }
    Spread::of(took).context("no frame woke the adapter")
}

/// CPU time of every thread of this process but the calling one, ns. The adapter's threads are in this
/// process, and no other thread does anything now.
fn other_threads_ns() -> anyhow::Result<u64> {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut sum = 0;
    for entry in fs::read_dir("/proc/self/task").context("/proc is needed to count CPU time")? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_str() == Some(&own)) {
            continue;
        }
        // A thread may end under way.
        let Ok(text) = fs::read_to_string(path.join("schedstat")) else { continue };
        sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}
