//! Stories of stock Linux as a Hyper-V guest of ours: a guest (L2) under our KVM partition, within a guest (L1) that
//! has KVM, within QEMU's emulator (L0). No machine needs hardware virtualization for it, nor rights.
//!
//! Each story is a script in L1 and the lines it is to print; [`stories`] has them. A run that was cut short is tried
//! once more, since the emulator now and then loses a timer; what a guest itself says has failed is not.

mod capture;
mod level0;
mod stories;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    num::NonZeroUsize,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::{
    level0::{Boot, KERNEL_OPTIONS, Run},
    stories::{Inner, KVM_MODULES, STORIES, Story},
    verdict::Verdict,
};
use super::{
    Cache, PING_FUNCTIONS,
    initramfs::Initramfs,
    kernel::{Kernel, Series},
    programs::Program,
    qemu::Qemu,
    tools::{Fetched, Tool},
};

/// What scripts of L1, and of L2, have at hand.
const HOST: &str = include_str!("scripts/host.sh");
const GUEST: &str = include_str!("scripts/guest.sh");
/// Runs of a story, if those before were cut short.
const TRIES: u32 = 2;
/// Lines of the serial line that are shown of a run that failed.
const SHOWN: usize = 40;

/// Which stories to tell.
#[derive(Args)]
pub(crate) struct KvmTests {
    /// The kernels of both guests, one run each.
    #[arg(long = "kernel", value_enum, default_values_t = [Series::default()], value_delimiter = ',')]
    kernels: Vec<Series>,
    /// Only these stories.
    #[arg(long, value_name = "STORY")]
    only: Vec<String>,
    /// Lists the stories.
    #[arg(long)]
    list: bool,
    /// Has the inner guest's kernel print all it has to say, which takes longer.
    #[arg(long)]
    loud: bool,
    /// Keeps the serial lines of stories that passed, too.
    #[arg(long)]
    keep_logs: bool,
    /// How many stories to tell at a time: each takes one processor.
    #[arg(long, value_name = "NUMBER", default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
}

/// A line of the summary.
struct Told {
    story: &'static str,
    kernel: String,
    verdict: Verdict,
    tries: u32,
    run: Run,
}

impl Default for KvmTests {
    fn default() -> Self {
        Self {
            kernels: vec![Series::default()],
            only: Vec::new(),
            list: false,
            loud: false,
            keep_logs: false,
            jobs: NonZeroUsize::MIN,
        }
    }
}

/// Tells the stories and prints a summary; an error if one did not pass.
pub(crate) fn run(tests: &KvmTests) -> Result<()> {
    if tests.list {
        for story in STORIES {
            println!("{:12} {}", story.name, story.about);
        }
        return Ok(());
    }
    for name in &tests.only {
        if !STORIES.iter().any(|story| story.name == name) {
            bail!("there is no story {name:?}; --list names them");
        }
    }
    let chosen =
        |story: &&Story| tests.only.is_empty() || tests.only.iter().any(|name| name == story.name);
    let stories: Vec<&Story> = STORIES.iter().filter(chosen).collect();
    let mut programs = BTreeMap::new();
    for story in &stories {
        let program = story.inner.program();
        if let Entry::Vacant(entry) = programs.entry(program) {
            entry.insert(program.find()?);
        }
    }
    let mut told = Vec::new();
    for series in &tests.kernels {
        let cache = Cache::open()?;
        let logs = cache.folder.join("logs");
        fs::create_dir_all(&logs)?;
        let (qemu, kernel) = (Qemu::fetch(&cache)?, Kernel::fetch(&cache, *series)?);
        let vmlinux = kernel.vmlinux(&cache)?;
        let tools: BTreeSet<Tool> = stories.iter().flat_map(|story| story.all_tools()).collect();
        let tools: Result<Vec<Fetched>> =
            tools.into_iter().map(|tool| tool.fetch(&cache)).collect();
        let tools = tools?;
        // Others may fetch while guests run.
        drop(cache);
        println!("QEMU {}, Linux {}", qemu.version()?, kernel.release());
        let stage = Stage {
            qemu: &qemu,
            kernel: &kernel,
            vmlinux: &vmlinux,
            tools: &tools,
            programs: &programs,
            logs: &logs,
            loud: tests.loud,
        };
        told.extend(stage.tell_all(&stories, tests)?);
    }
    summary(&told)
}

/// What the stories of one kernel share.
struct Stage<'a> {
    qemu: &'a Qemu,
    kernel: &'a Kernel,
    vmlinux: &'a Path,
    tools: &'a [Fetched],
    programs: &'a BTreeMap<Program, PathBuf>,
    logs: &'a Path,
    loud: bool,
}

impl Stage<'_> {
    /// Tells these stories, some at a time, in whatever order they end.
    fn tell_all(&self, stories: &[&Story], tests: &KvmTests) -> Result<Vec<Told>> {
        let next = Mutex::new(stories.iter());
        // The lock is not held while a story is told.
        let next = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
        let tell =
            || std::iter::from_fn(next).map(|story| self.tell(story, tests.keep_logs)).collect();
        let told: Result<Vec<Vec<Told>>> = thread::scope(|scope| {
            let tellers: Vec<_> = (0..tests.jobs.get()).map(|_| scope.spawn(tell)).collect();
            let told = |teller: ScopedJoinHandle<'_, Result<Vec<Told>>>| {
                teller.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            tellers.into_iter().map(told).collect()
        });
        let mut told: Vec<Told> = told?.into_iter().flatten().collect();
        told.sort_by_key(|told| stories.iter().position(|story| story.name == told.story));
        Ok(told)
    }

    /// Tells one story, again if it was cut short.
    fn tell(&self, story: &Story, keep_logs: bool) -> Result<Told> {
        let folder = tempfile::tempdir()?;
        let initramfs = folder.path().join("initramfs");
        let bytes = self.initramfs(story, folder.path());
        fs::write(&initramfs, bytes.with_context(|| format!("preparing {}", story.name))?)?;
        let boot = Boot {
            qemu: self.qemu,
            kernel: self.kernel.image(),
            initramfs: &initramfs,
            memory: story.memory,
            cpu: story.cpu,
        };
        let mut tries = 1;
        loop {
            let name = format!("kvm-{}-{}-{tries}", story.name, self.kernel.release());
            let serial = self.logs.join(format!("{name}.log"));
            let errors = folder.path().join("qemu.log");
            let run = level0::run(&boot, &serial, &errors)?;
            // A serial line carries any byte.
            let said = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
            let verdict = Verdict::of(&said, story.expected, run.end).unless((story.check)(&said));
            println!("{}", line(story.name, &verdict, tries, run));
            if verdict == Verdict::Passed {
                if !keep_logs {
                    fs::remove_file(&serial)?;
                }
            } else {
                let lines: Vec<&str> = said.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
                println!("{}\n{}", fs::read_to_string(&errors)?.trim(), tail.join("\n"));
                println!("the whole serial line: {}", serial.display());
            }
            if matches!(verdict, Verdict::CutShort(_)) && tries < TRIES {
                tries += 1;
                continue;
            }
            let kernel = self.kernel.release().to_owned();
            return Ok(Told { story: story.name, kernel, verdict, tries, run });
        }
    }

    /// L1's initramfs, with the program that has the partition, and with L2's kernel and initramfs if it is to boot one.
    fn initramfs(&self, story: &Story, folder: &Path) -> Result<Vec<u8>> {
        let mut outer = Initramfs::new(self.kernel, "")?;
        outer.modules(&KVM_MODULES)?;
        outer.modules(story.modules)?;
        self.add_tools(story.tools, &mut outer)?;
        let program = story.inner.program();
        let built = self.programs.get(&program).context("a program that was not built")?;
        outer.program(program.name(), &stripped(built, folder)?, Path::new("/"))?;
        if let Inner::Linux(linux) = &story.inner {
            let mut inner = Initramfs::new(self.kernel, "L2 ")?;
            inner.modules(linux.modules)?;
            self.add_tools(linux.tools, &mut inner)?;
            if let Some(script) = linux.next {
                let mut next = Initramfs::new(self.kernel, "L2 ")?;
                next.modules(linux.modules)?;
                inner.file("next/initramfs", 0o644, &next.finish(&in_guest(script))?)?;
                inner.copy("next/vmlinuz", self.kernel.image())?;
            }
            outer.file("guest/initramfs", 0o644, &inner.finish(&in_guest(linux.script))?)?;
            outer.copy("guest/vmlinux", self.vmlinux)?;
        }
        outer.finish(&format!("{}{HOST}{}", guest(self.loud), story.script))
    }

    fn add_tools(&self, tools: &[Tool], to: &mut Initramfs<'_>) -> Result<()> {
        self.tools
            .iter()
            .filter(|fetched| tools.contains(&fetched.tool()))
            .try_for_each(|tool| to.tool(tool))
    }
}

/// A script of L2: before it what all have at hand, after it a look at what its kernel had to say.
fn in_guest(script: &str) -> String {
    const ERRORS: &str = "dmesg | grep -E 'WARNING:|BUG:|Call Trace|irq_unmask.. failed' \
                          && echo MARK L2 failed errors in the log\n";
    format!("{PING_FUNCTIONS}{GUEST}{script}\n{ERRORS}")
}

/// The shell function by which scripts of L1 boot L2.
fn guest(loud: bool) -> String {
    // Each byte that L2 prints is an exit to L1's user space, by way of an emulated processor.
    let quiet = if loud { "loglevel=7" } else { "quiet" };
    format!(
        "REBOOT=--no-reboot\n\
         guest() {{ clearway vm run web --kvm --kernel /guest/vmlinux --initrd /guest/initramfs $REBOOT \
         --append '{KERNEL_OPTIONS} {quiet}' \"$@\"; }}\n"
    )
}

/// A copy of a program without what debuggers need, which is most of it; as it is where there is no `strip`.
fn stripped(program: &Path, folder: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program without a name")?;
    let copy = folder.join(name);
    let done = Command::new("strip").arg("-o").arg(&copy).arg(program).status();
    Ok(if done.is_ok_and(|status| status.success()) { copy } else { program.to_path_buf() })
}

fn line(story: &str, verdict: &Verdict, tries: u32, run: Run) -> String {
    let seconds = |duration: Duration| duration.as_secs_f64();
    let verdict = match verdict {
        Verdict::Passed => "passed".to_owned(),
        Verdict::Failed(why) => format!("FAILED: {why}"),
        Verdict::Missing(words) => format!("FAILED: nothing said {words:?}"),
        Verdict::CutShort(how) => format!("CUT SHORT: {how}"),
    };
    let (wall, cpu) = (seconds(run.wall), seconds(run.cpu));
    format!("{story:12} {wall:7.1} s {cpu:7.1} s CPU  try {tries}  {verdict}")
}

fn summary(told: &[Told]) -> Result<()> {
    println!();
    let mut failed = 0_usize;
    for Told { story, kernel, verdict, tries, run } in told {
        println!("{kernel:28} {}", line(story, verdict, *tries, *run));
        failed += usize::from(*verdict != Verdict::Passed);
    }
    if failed > 0 {
        bail!("{failed} of {} did not pass", told.len());
    }
    println!("{} passed", told.len());
    Ok(())
}
