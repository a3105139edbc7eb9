//! What a story has at hand.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::guests::{kernel::Kernel, qemu::Qemu, tools::Fetched};

/// What a story has at hand.
pub(crate) struct Scene<'a> {
    pub(crate) qemu: &'a Qemu,
    pub(crate) kernel: &'a Kernel,
    /// What guests have beside busybox and ethtool.
    pub(crate) tools: &'a [Fetched],
    /// The program `clearway`.
    pub(crate) clearway: &'a Path,
    /// An IOMMU of the guest's own (VT-d), with which it maps each buffer by itself: thousands of DMA ranges that come
    /// and go, instead of its memory as a whole.
    pub(crate) iommu: bool,
    /// How often something is to be done that is done again and again.
    pub(crate) rounds: Option<u32>,
    /// The folder for what all of its processes log, and for captures.
    pub(crate) logs: PathBuf,
    name: &'static str,
    start: Instant,
    cpu: CpuTime,
}

/// Options of all stories.
#[derive(Copy, Clone)]
pub(crate) struct Wishes {
    pub(crate) iommu: bool,
    pub(crate) rounds: Option<u32>,
}

/// Processor time that guests which have ended have used.
#[derive(Clone, Default)]
pub(crate) struct CpuTime(Arc<Mutex<Duration>>);

impl CpuTime {
    /// Adds that of a guest.
    pub(crate) fn add(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }

    fn get(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Scene<'a> {
    /// For a run of the story `name` that begins now.
    pub(crate) fn new(
        name: &'static str,
        (qemu, kernel, tools): (&'a Qemu, &'a Kernel, &'a [Fetched]),
        clearway: &'a Path,
        wishes: Wishes,
        logs: &Path,
    ) -> Self {
        let Wishes { iommu, rounds } = wishes;
        let (logs, start, cpu) = (logs.to_path_buf(), Instant::now(), CpuTime::default());
        Self { qemu, kernel, tools, clearway, iommu, rounds, logs, name, start, cpu }
    }

    /// Says what happened, and when since the start.
    pub(crate) fn say(&self, what: &str) {
        println!("{:6.1} s  {}: {what}", self.start.elapsed().as_secs_f64(), self.name);
    }

    /// A log of this run.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// A command that runs `clearway`, which tells in its log what it does, and ends with whoever starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.clearway);
        // Whoever looks at the state again and again is a client each time.
        command.env("CLEARWAY_LOG", "info,device_control::server=warn").arg("--die-with-parent");
        command
    }

    /// Where guests that end add what they have used.
    pub(crate) fn cpu_time(&self) -> CpuTime {
        self.cpu.clone()
    }

    /// How long it has taken, and the processor time of its guests.
    pub(crate) fn times(&self) -> (Duration, Duration) {
        (self.start.elapsed(), self.cpu.get())
    }
}
