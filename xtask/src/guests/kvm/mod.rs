//! Stories of stock Linux as a Hyper-V guest of ours: a guest (L2) under our KVM partition, within a guest (L1) that
//! has KVM, within QEMU's emulator (L0). No machine needs hardware virtualization for it, nor rights.
//!
//! Each story is a script in L1 and the lines it is to print; [`stories`] has them. A run that was cut short is tried
//! once more, since the emulator now and then loses a timer; what a guest itself says has failed is not.

mod capture;
mod judge;
mod level0;
mod stories;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::Args;

use self::{
    judge::judge,
    level0::{Boot, KERNEL_OPTIONS},
    stories::{Inner, KVM_MODULES, STORIES, Story},
};
use super::{
    Cache, PING_FUNCTIONS,
    initramfs::Initramfs,
    kernel::{Kernel, Series},
    programs::Program,
    qemu::Qemu,
    telling::{Run, Telling, Titled, Told, summary},
    tools::{Fetched, Tool},
};

/// What scripts of L1, and of L2, have at hand.
const HOST: &str = include_str!("scripts/host.sh");
const GUEST: &str = include_str!("scripts/guest.sh");
/// Which stories to tell.
#[derive(Args)]
pub(crate) struct KvmTests {
    /// The kernels of both guests, one run each.
    #[arg(long = "kernel", value_enum, default_values_t = [Series::default()], value_delimiter = ',')]
    kernels: Vec<Series>,
    #[command(flatten)]
    telling: Telling,
    /// Has the inner guest's kernel print all it has to say, which takes longer.
    #[arg(long)]
    loud: bool,
}

impl Default for KvmTests {
    fn default() -> Self {
        Self { kernels: vec![Series::default()], telling: Telling::default(), loud: false }
    }
}

/// Tells the stories and prints a summary; an error if one did not pass.
pub(crate) fn run(tests: &KvmTests) -> Result<()> {
    if tests.telling.list {
        Telling::print(STORIES);
        return Ok(());
    }
    let stories = tests.telling.choose(STORIES)?;
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
        let logs = cache.logs();
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
        let tell = |story: &&Story| stage.tell(story, &tests.telling);
        told.extend(tests.telling.tell_all(&stories, tell)?);
    }
    summary(&told)
}

impl Titled for Story {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }
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
    /// Tells one story, again if it was cut short.
    fn tell(&self, story: &Story, telling: &Telling) -> Result<Told> {
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
        telling.tell(self.logs, ("kvm", story.name, self.kernel.release()), |logs| {
            let serial = logs.join("serial.log");
            let level0::Run { end, wall, cpu } =
                level0::run(&boot, &serial, &logs.join("qemu.log"))?;
            // A serial line carries any byte.
            let said = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
            let verdict = judge(&said, story.expected, end).unless((story.check)(&said));
            Ok(Run { verdict, wall, cpu })
        })
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
