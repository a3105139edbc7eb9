//! The emulated machine in which a story happens: an AMD processor with SVM and nested paging, which TCG has, so that
//! the outer guest has a real `/dev/kvm` wherever the tests run.
//!
//! Emulation on a busy machine takes as long as it takes: a run is limited by the processor time it uses; the limit in
//! wall time is for a machine that hangs without using any.

use std::{
    fmt, fs,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::guests::{machine::Machine, qemu::Qemu, usage::usage};

/// How often the machine is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How many times the processor time that it may use a run may take: more than it ever did on a machine that does ten
/// other things. Nothing waits for it but a hang.
const WALL: u32 = 4;

/// The command line of both guests' kernels. Without `no_timer_check` an emulated boot hangs now and then; mitigations
/// cost time and protect nobody here; and what watches over time would take a busy machine for a broken kernel.
pub(crate) const KERNEL_OPTIONS: &str = "no_timer_check panic=-1 mitigations=off nowatchdog \
     rcupdate.rcu_cpu_stall_suppress=1 sysctl.kernel.hung_task_timeout_secs=0";

/// What the machine boots.
pub(crate) struct Boot<'a> {
    pub(crate) qemu: &'a Qemu,
    /// The outer guest's kernel.
    pub(crate) kernel: &'a Path,
    /// Its initramfs.
    pub(crate) initramfs: &'a Path,
    /// Its memory in MiB.
    pub(crate) memory: u32,
    /// Processor time the machine may use.
    pub(crate) cpu: Duration,
}

/// How a run came to its end.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum End {
    /// By itself: powered off, or reset, which with `-no-reboot` is the same.
    PoweredOff,
    /// Ended here, for the processor time it had used.
    OutOfCpuTime,
    /// Ended here, for it had hung.
    OutOfTime,
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::PoweredOff => "it ended",
            Self::OutOfCpuTime => "it used up its CPU time",
            Self::OutOfTime => "it took too long",
        })
    }
}

/// A run that has ended.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Run {
    pub(crate) end: End,
    pub(crate) wall: Duration,
    /// Processor time that QEMU has used.
    pub(crate) cpu: Duration,
}

/// Runs the machine until it ends; its serial line goes to the file `serial`, what QEMU says to `errors`.
pub(crate) fn run(boot: &Boot<'_>, serial: &Path, errors: &Path) -> Result<Run> {
    let mut command = boot.qemu.command();
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]);
    command.args(["-m", &boot.memory.to_string(), "-display", "none", "-nodefaults"]);
    command.args(["-no-user-config", "-no-reboot"]);
    command.arg("-serial").arg(format!("file:{}", serial.display()));
    command.arg("-kernel").arg(boot.kernel).arg("-initrd").arg(boot.initramfs);
    command.args(["-append", &format!("console=ttyS0 {KERNEL_OPTIONS} quiet")]);
    let start = Instant::now();
    let mut machine = Machine::start(command, errors.to_path_buf())?;
    let mut shown = Shown::default();
    let mut cpu = Duration::ZERO;
    loop {
        // A process that has ended keeps its times until it is waited for.
        let usage = usage(machine.process())?;
        cpu = cpu.max(usage.cpu);
        let end = if usage.ended {
            Some(End::PoweredOff)
        } else if cpu > boot.cpu {
            Some(End::OutOfCpuTime)
        } else if start.elapsed() > boot.cpu * WALL {
            Some(End::OutOfTime)
        } else {
            None
        };
        shown.follow(serial);
        if let Some(end) = end {
            machine.ended()?;
            return Ok(Run { end, wall: start.elapsed(), cpu });
        }
        std::thread::sleep(POLL);
    }
}

/// How much of the serial line was printed, for people who asked for it.
#[derive(Default)]
struct Shown(u64);

impl Shown {
    fn follow(&mut self, serial: &Path) {
        if std::env::var_os("CLEARWAY_GUEST_LOG").is_none() {
            return;
        }
        use std::io::{Seek, SeekFrom};
        let mut bytes = Vec::new();
        let read = fs::File::open(serial).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.0))?;
            file.read_to_end(&mut bytes)
        });
        if let Ok(length) = read {
            self.0 += u64::try_from(length).unwrap_or_default();
            eprint!("{}", String::from_utf8_lossy(&bytes));
        }
    }
}
