//! A VM under KVM, from its files to its exit code.
//!
//! The guest, the host's side of its VMBus, and its console are this process. Each life of the guest has a partition and
//! a worker of its own, at the same socket: the stack sees one end and the next one begin.

mod disks;
mod escape;
mod keyboard;
mod lives;
mod output;
mod signals;

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context, Result};
use kvm_partition::{KvmHost, KvmPartition, KvmPartitionConfig, RunOutcome, boot::Boot};
use partition::host::VmbusHost;
use shared_memory::PageSize;
use virtio_block::Image;
use vm_worker::{IntegrationService, VmWorker, WorkerConfig};
use vmbus::{EventFd, server::ServerConfig};

pub(super) use self::disks::DiskChoice;
use self::{
    keyboard::{Guest, Keyboard},
    lives::{Exit, Life},
    output::Output,
    signals::Signals,
};

/// What the guest's kernel is told before what the caller has to say.
pub(super) const COMMAND_LINE: &str = "console=ttyS0";

/// Where the guest's serial console is.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) enum ConsoleChoice {
    /// Standard input and output.
    Stdio,
    /// Nowhere.
    None,
    /// Output is appended to this file; there is no input.
    File(PathBuf),
}

impl FromStr for ConsoleChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "stdio" => Self::Stdio,
            "none" => Self::None,
            path => Self::File(path.into()),
        })
    }
}

/// A VM to run.
#[derive(Debug)]
pub(super) struct KvmVm {
    pub(super) name: String,
    /// KVM's device.
    pub(super) device: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub(super) command_line: String,
    pub(super) disks: Vec<DiskChoice>,
    pub(super) memory_bytes: u64,
    pub(super) processors: u16,
    /// Where its worker is controlled.
    pub(super) worker: PathBuf,
    pub(super) console: ConsoleChoice,
    /// Whether a guest that asks for a reset begins anew.
    pub(super) reboot: bool,
}

/// Runs a VM until it is over. `serving` is called once it is there for others.
pub(super) fn run<T>(vm: &KvmVm, serving: impl FnOnce() -> Result<T>) -> Result<ExitCode> {
    let name = &vm.name;
    let disks = disks::open(&vm.disks).with_context(|| format!("VM {name} cannot run"))?;
    let host = KvmHost::survey(&vm.device).with_context(|| format!("VM {name} cannot run"))?;
    // Before anything is started, and all signals that come from now on.
    let signals = Signals::catch().context("taking signals")?;
    let (to, from) = files(&vm.console)?;
    let output = Output::start(to).context("a thread for the VM's console")?;
    let mut first = Some(KvmLife::begin(&host, vm, &disks, &output)?);
    let _served = serving()?;
    let keyboard = match from {
        Some(from) => Keyboard::new(from).context("the terminal")?,
        None => Keyboard::none(),
    };
    let leave = if keyboard.is_terminal() { "; ~. at the start of a line ends it" } else { "" };
    eprintln!("VM {name} is served at {}{leave}", vm.worker.display());
    let begin = || -> Result<Box<dyn Life>> {
        let life = first.take().map_or_else(|| KvmLife::begin(&host, vm, &disks, &output), Ok)?;
        Ok(Box::new(life))
    };
    let exit = lives::live(begin, keyboard, &output, signals, vm.reboot)?;
    match &exit {
        Exit::Failed(reason) => eprintln!("clearway: VM {name}: {reason}"),
        other => tracing::info!("VM {name} has ended: {other:?}"),
    }
    Ok(exit.code())
}

/// Where the console's output goes, and where input comes from.
fn files(console: &ConsoleChoice) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let standard = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().context("the standard streams");
    match console {
        ConsoleChoice::Stdio => Ok((standard(&io::stdout())?, Some(standard(&io::stdin())?))),
        ConsoleChoice::None => Ok((open(OpenOptions::new().write(true), "/dev/null")?, None)),
        ConsoleChoice::File(path) => {
            let file = open(OpenOptions::new().create(true).append(true), path)
                .with_context(|| format!("the console's file {}", path.display()))?;
            Ok((file, None))
        }
    }
}

fn open(options: &OpenOptions, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    options.open(path).map(OwnedFd::from)
}

/// One life of the guest. Its worker goes before its partition does.
struct KvmLife {
    worker: VmWorker,
    partition: Arc<KvmPartition>,
}

impl KvmLife {
    fn begin(host: &KvmHost, vm: &KvmVm, disks: &[Arc<Image>], output: &Output) -> Result<Self> {
        let name = &vm.name;
        let file = |what, path: &Path| {
            File::open(path).with_context(|| format!("VM {name}: the {what} {}", path.display()))
        };
        let kernel = file("kernel", &vm.kernel)?;
        let initrd = vm.initrd.as_deref().map(|path| file("initrd", path)).transpose()?;
        let config = KvmPartitionConfig {
            memory_bytes: vm.memory_bytes,
            pages: PageSize::Base,
            processors: vm.processors,
            console: Box::new(output.guest_end()),
        };
        let cannot = || format!("VM {name} cannot start");
        let partition = Arc::new(KvmPartition::new(host, config).with_context(cannot)?);
        let vmbus = VmbusHost::start(partition.clone(), ServerConfig::default())
            .with_context(|| format!("VM {name}: its VMBus"))?;
        let mut config = WorkerConfig::new(name, &vm.worker);
        config.apertures = partition.mmio_windows();
        config.processors = vm.processors;
        config.integration_services = IntegrationService::ALL.into();
        let worker = VmWorker::start(config, partition.clone(), vmbus).with_context(cannot)?;
        disks::attach(&partition, disks).with_context(cannot)?;
        let boot = Boot { kernel, initrd, command_line: vm.command_line.clone() };
        partition.boot(boot).with_context(cannot)?;
        Ok(Self { worker, partition })
    }
}

impl Guest for KvmLife {
    fn input(&self, bytes: &[u8]) -> usize {
        self.partition.console().input(bytes)
    }

    fn room(&self) -> &EventFd {
        self.partition.console().room()
    }

    fn ended(&self) -> &EventFd {
        self.partition.ended()
    }

    fn asked_to_end(&self) -> &EventFd {
        self.worker.shutdown_requested()
    }
}

impl Life for KvmLife {
    fn outcome(&self) -> Option<RunOutcome> {
        self.partition.outcome()
    }

    fn stop(&self) {
        self.partition.stop();
    }
}
