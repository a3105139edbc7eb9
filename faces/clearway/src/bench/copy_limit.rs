//! The copy limit: how fast one core copies frames whose lines are dirty in the sender's core into buffers
//! whose lines were last read by the receiver's core. No forwarder that copies each frame once can do better.
//!
//! Two threads take turns on a set of buffers. The client writes every line of each source and reads every
//! line of each target; then the copier copies them all, and only that is timed. The copy is the one the
//! data path uses, and the buffers lie as the AVF driver lays them.
//!
//! Two limits: the *copy limit* copies one frame after the other and leaves it to the CPU to overlap them; the
//! *copy limit with hints* asks for the lines of frames to come, as far ahead as helps. It shows how much of
//! the first is waiting for lines; a forwarder that knows its frames in advance could have that too.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use shared_memory::{PageSize, SharedMapping, SharedSlice};

use super::{
    cores::{Cores, pin},
    sample::Rate,
    traffic::{read_lines, write_lines},
};

/// Cache lines of all buffers of one side: half of the L2 cache of the machines at hand.
const LINES_A_SIDE: usize = 8192;
/// Buffers at most, as in a ring.
const MOST_BUFFERS: usize = 256;
/// How many frames ahead lines are asked for.
const AHEAD: usize = 8;
const HUGE: usize = 2 << 20;

/// Source and target buffers.
struct Buffers {
    mapping: SharedMapping,
    count: usize,
    stride: usize,
    size: usize,
}

impl Buffers {
    fn new(size: usize) -> anyhow::Result<Self> {
        // The buffers of `forward` for frames of this size.
        let buffer = super::forward::buffer_size(size);
        let stride = (usize::from(buffer).div_ceil(64) | 1) * 64;
        let count = (LINES_A_SIDE / size.div_ceil(64)).clamp(32, MOST_BUFFERS);
        let length = (2 * count * stride).next_multiple_of(HUGE);
        let mapping = SharedMapping::create("copy limit", length, PageSize::Huge2M)
            .or_else(|_| SharedMapping::create("copy limit", length, PageSize::Base))?
            .0;
        mapping.as_slice().fill(0x5A);
        Ok(Self { mapping, count, stride, size })
    }

    fn slice(&self, index: usize) -> anyhow::Result<SharedSlice<'_>> {
        Ok(self.mapping.slice(index * self.stride, self.size)?)
    }

    fn sides(&self) -> anyhow::Result<(Vec<SharedSlice<'_>>, Vec<SharedSlice<'_>>)> {
        let sources = (0..self.count).map(|at| self.slice(at)).collect::<Result<_, _>>()?;
        let targets =
            (self.count..2 * self.count).map(|at| self.slice(at)).collect::<Result<_, _>>()?;
        Ok((sources, targets))
    }
}

/// Whose turn it is: even the client's, odd the copier's; then [`OVER`].
struct Turn(AtomicU64);

const OVER: u64 = u64::MAX;

impl Turn {
    fn wait(&self, turn: u64) -> bool {
        loop {
            match self.0.load(Ordering::Acquire) {
                OVER => return false,
                now if now == turn => return true,
                _ => std::hint::spin_loop(),
            }
        }
    }
}

/// Measures for frames of `size` bytes.
pub(crate) fn measure(
    size: u16,
    hints: bool,
    duration: Duration,
    cores: Cores,
) -> anyhow::Result<Rate> {
    let buffers = Buffers::new(usize::from(size))?;
    let (sources, targets) = buffers.sides()?;
    let turn = Turn(AtomicU64::new(0));
    let (frames, busy) = std::thread::scope(|scope| {
        let copier = scope.spawn(|| -> anyhow::Result<(u64, Duration)> {
            pin(cores.forwarder)?;
            let (mut frames, mut busy) = (0u64, Duration::ZERO);
            let mut at = 1;
            while turn.wait(at) {
                let start = Instant::now();
                if hints {
                    copy_all_hinted(&sources, &targets);
                } else {
                    copy_all(&sources, &targets);
                }
                // The first turns warm the caches and the pages.
                if at > 200 {
                    busy += start.elapsed();
                    frames += sources.len() as u64;
                }
                turn.0.store(at + 1, Ordering::Release);
                at += 2;
            }
            Ok((frames, busy))
        });
        let client = scope.spawn(|| -> anyhow::Result<()> {
            // Whatever happens here, the copier must not wait for ever.
            let _over = Over(&turn);
            pin(cores.client)?;
            let end = Instant::now() + duration;
            let (mut at, mut number) = (0, 0u32);
            while turn.wait(at) {
                for (source, target) in sources.iter().zip(&targets) {
                    number = number.wrapping_add(read_lines(*target)).wrapping_add(1);
                    write_lines(*source, number);
                }
                turn.0.store(at + 1, Ordering::Release);
                at += 2;
                if at > 400 && Instant::now() > end {
                    turn.wait(at);
                    break;
                }
            }
            Ok(())
        });
        client.join().map_err(|_| anyhow::anyhow!("the client thread panicked"))??;
        copier.join().map_err(|_| anyhow::anyhow!("the copying thread panicked"))?
    })
    .context("copy limit")?;
    Ok(Rate::of(size, frames, frames * u64::from(size), busy))
}

/// Says that it is over, when dropped.
struct Over<'a>(&'a Turn);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.0.store(OVER, Ordering::Release);
    }
}

fn copy_all(sources: &[SharedSlice<'_>], targets: &[SharedSlice<'_>]) {
    for (source, target) in sources.iter().zip(targets) {
        source.copy_to(*target);
    }
}

fn copy_all_hinted(sources: &[SharedSlice<'_>], targets: &[SharedSlice<'_>]) {
    for (source, target) in sources.iter().zip(targets).take(AHEAD) {
        source.prefetch_read();
        target.prefetch_write();
    }
    for (at, (source, target)) in sources.iter().zip(targets).enumerate() {
        if let (Some(source), Some(target)) = (sources.get(at + AHEAD), targets.get(at + AHEAD)) {
            source.prefetch_read();
            target.prefetch_write();
        }
        source.copy_to(*target);
    }
}
