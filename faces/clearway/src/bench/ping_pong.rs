//! The ping-pong: how long two cores take to hand each other a pair of cache lines and have an answer. What
//! the round trip of a frame is held against: no frame can go to the other core and come back faster than a
//! line of descriptors and a line of data.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{
    cores::{Cores, nanoseconds, pin},
    sample::RoundTrip,
};

/// Data and signal, each on a pair of lines of its own so that the adjacent-line prefetcher fetches
/// neither with the other.
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

#[derive(Default)]
struct Lines {
    data: Line,
    signal: Line,
}

const OVER: u64 = u64::MAX;
/// Exchanges timed together: the clock costs as much as one.
const TOGETHER: u32 = 16;

/// Measures exchanges of two lines there and two lines back.
pub(crate) fn measure(duration: Duration, cores: Cores) -> anyhow::Result<RoundTrip> {
    let (there, back) = (Lines::default(), Lines::default());
    let samples = std::thread::scope(|scope| {
        let answering = scope.spawn(|| -> anyhow::Result<()> {
            pin(cores.forwarder)?;
            let mut seen = 0;
            loop {
                let signal = there.signal.0.load(Ordering::Acquire);
                if signal == OVER {
                    return Ok(());
                }
                if signal == seen {
                    std::hint::spin_loop();
                    continue;
                }
                seen = signal;
                back.data.0.store(there.data.0.load(Ordering::Relaxed), Ordering::Relaxed);
                back.signal.0.store(signal, Ordering::Release);
            }
        });
        let asking = scope.spawn(|| -> anyhow::Result<Vec<f64>> {
            let samples = pin(cores.client).map(|()| ask(&there, &back, duration));
            there.signal.0.store(OVER, Ordering::Release);
            samples
        });
        let samples = asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?;
        answering.join().map_err(|_| anyhow::anyhow!("the answering thread panicked"))??;
        samples
    })?;
    RoundTrip::of(64, samples, 0)
}

fn ask(there: &Lines, back: &Lines, duration: Duration) -> Vec<f64> {
    let mut samples = Vec::new();
    let begin = Instant::now();
    let mut number = 0;
    while begin.elapsed() < duration {
        let start = Instant::now();
        for _ in 0..TOGETHER {
            number += 1;
            there.data.0.store(number, Ordering::Relaxed);
            there.signal.0.store(number, Ordering::Release);
            while back.signal.0.load(Ordering::Acquire) != number {
                std::hint::spin_loop();
            }
            std::hint::black_box(back.data.0.load(Ordering::Relaxed));
        }
        samples.push(nanoseconds(start) / f64::from(TOGETHER));
    }
    samples
}
