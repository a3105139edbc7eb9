//! What is measured of any path of frames whose two ends are in one poll loop: how many arrive, and how long one
//! takes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::time::{ClockId, clock_gettime};

use super::{
    cores::nanoseconds,
    sample::{Rate, RoundTrip, as_f64},
};

const WARM_UP: Duration = Duration::from_millis(500);
/// After this a frame counts as lost.
const PATIENCE: Duration = Duration::from_millis(10);

/// How frames are counted while they flow.
#[derive(Default)]
pub(crate) struct Counts {
    /// Frames that arrived, and were read.
    pub(crate) received: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Bursts that found no room at all.
    pub(crate) full: u64,
    /// Bursts.
    pub(crate) sends: u64,
    /// Looks that found nothing.
    pub(crate) empty: u64,
    /// Looks.
    pub(crate) looks: u64,
}

/// Both ends of a path.
pub(crate) trait Path {
    /// Bytes of a frame.
    fn size(&self) -> u16;

    /// Sends a burst, as far as there is room, and reads what has arrived.
    fn step(&mut self, counts: &mut Counts);

    /// Whether everything is as it should be still.
    fn check(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Gives up what waits to be sent.
    fn cancel(&mut self) {}

    /// Writes one frame; its number.
    fn stage(&mut self) -> Option<u32>;

    /// Sends it.
    fn launch(&mut self);

    /// Reads what has arrived; the number of the last frame.
    fn look(&mut self) -> Option<u32>;

    /// Lets frames flow for so long.
    fn run(&mut self, duration: Duration) -> (Counts, Duration) {
        let mut counts = Counts::default();
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                self.step(&mut counts);
            }
            let took = start.elapsed();
            if took >= duration {
                return (counts, took);
            }
        }
    }

    /// Measures the rate at which frames arrive, and what they cost both sides: the calling thread is the guests',
    /// all others of this process are the host's.
    fn rate(&mut self, duration: Duration) -> anyhow::Result<Rate> {
        self.run(WARM_UP);
        let (guest, all) = (cpu(ClockId::ThreadCPUTime), cpu(ClockId::ProcessCPUTime));
        let (counts, took) = self.run(duration);
        let guest = cpu(ClockId::ThreadCPUTime) - guest;
        let host = cpu(ClockId::ProcessCPUTime) - all - guest;
        ensure!(counts.received > 0, "no frame arrived");
        self.check()?;
        let mut rate = Rate::of(self.size(), counts.received, counts.bytes, took);
        rate.send_ring_full = as_f64(counts.full) / as_f64(counts.sends.max(1));
        rate.receive_ring_empty = as_f64(counts.empty) / as_f64(counts.looks.max(1));
        rate.host_cpu_ns = Some(host / as_f64(counts.received));
        rate.guest_cpu_ns = Some(guest / as_f64(counts.received));
        Ok(rate)
    }

    /// Sends one frame and waits until it has been read. Nanoseconds; `None` if it is lost.
    fn one(&mut self) -> Option<f64> {
        let number = self.stage()?;
        let start = Instant::now();
        self.launch();
        while self.look() != Some(number) {
            if start.elapsed() > PATIENCE {
                return None;
            }
        }
        Some(nanoseconds(start))
    }

    /// Measures round trips, one frame at a time.
    fn round_trips(&mut self, duration: Duration) -> anyhow::Result<RoundTrip> {
        self.cancel();
        let mut quiet = Instant::now();
        while quiet.elapsed() < PATIENCE {
            if self.look().is_some() {
                quiet = Instant::now();
            }
        }
        let (mut samples, mut lost) = (Vec::new(), 0);
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP + duration {
            match self.one() {
                Some(took) if begin.elapsed() > WARM_UP => samples.push(took),
                Some(_) => {}
                None => lost += 1,
            }
        }
        RoundTrip::of(self.size(), samples, lost)
    }
}

/// CPU time, nanoseconds.
fn cpu(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    let part = |value| as_f64(u64::try_from(value).unwrap_or(0));
    part(now.tv_sec) * 1e9 + part(now.tv_nsec)
}
