//! The two CPUs of a measurement, and clocks.

use std::{str::FromStr, time::Instant};

use anyhow::{Context, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

/// The CPUs: one forwards, the other generates and sinks.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Cores {
    /// Runs what is measured.
    pub(crate) forwarder: usize,
    /// Runs both ends of the traffic.
    pub(crate) client: usize,
}

impl FromStr for Cores {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (forwarder, client) = text.split_once(',').context("two CPU numbers, as in 0,1")?;
        let number = |text: &str| text.trim().parse::<usize>().context("a CPU number");
        let cores = Self { forwarder: number(forwarder)?, client: number(client)? };
        if cores.forwarder == cores.client {
            bail!("forwarder and client need a CPU each; {text} is one");
        }
        Ok(cores)
    }
}

impl std::fmt::Display for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.forwarder, self.client)
    }
}

/// Runs `measure` on a thread of its own. Measuring binds the thread to a CPU; so the calling one stays free,
/// and with it the peers that it starts, which would inherit the binding.
pub(crate) fn apart<T: Send>(
    measure: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(measure);
        thread.join().map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
    })
}

/// Binds the calling thread to one CPU.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        bail!("CPU {cpu} is beyond what the kernel can name");
    }
    set.set(cpu);
    sched_setaffinity(None, &set)
        .with_context(|| format!("this thread cannot be bound to CPU {cpu}; is there one?"))
}

/// Nanoseconds since `start`.
#[inline]
pub(crate) fn nanoseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e9
}
