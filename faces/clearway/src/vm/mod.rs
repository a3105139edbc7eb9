//! `clearway vm`: VMs, which are processes in namespaces of their own (user mode) or guests under KVM. Their network
//! adapters are carried by one VF, or come and go over VMBus.

mod kvm;
mod names;
mod qemu;
mod stop;

use std::{
    env,
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, builder::RangedU64ValueParser, value_parser};
use kvm_partition::KvmHost;
use partition::{
    host::VmbusHost,
    user::{UserPartition, UserPartitionConfig},
};
use user_vm::{
    GuestInterfaceKind, InterfaceAddress, OnVfLoss, ProgramExit, UserVmConfig, VmClient,
};
use vm_worker::{VmWorker, WorkerConfig};

use self::{
    kvm::{ConsoleChoice, DiskChoice, KvmVm},
    names::{Kind, RunningVm, vm_name},
};

/// Run a VM, and reach those that run.
#[derive(clap::Args, Debug)]
pub(crate) struct VmArguments {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(clap::Subcommand, Debug)]
enum VmCommand {
    Run(Box<RunArguments>),
    Qemu(qemu::QemuArguments),
    /// Run a command in a user-mode VM that runs; the exit status is the command's.
    Exec {
        /// Name of the VM.
        #[arg(value_parser = vm_name)]
        name: String,
        /// The command and its arguments; a shell if there is none.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// List the VMs of this user that run.
    List {
        /// Print data as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print what a user-mode VM counted, as JSON.
    Stats {
        /// Name of the VM.
        #[arg(value_parser = vm_name)]
        name: String,
    },
    /// Bring the VF of a user-mode VM's adapters up or down in the guest, as `ip link set dev VF up` does in Linux: the
    /// guest moves its data path. Waits until it has.
    SetVf {
        /// Name of the VM.
        #[arg(value_parser = vm_name)]
        name: String,
        /// up or down.
        state: VfState,
        /// Only of this adapter, counted from 0.
        #[arg(long)]
        adapter: Option<u32>,
    },
    /// End a VM. The guest of one under KVM is asked to shut down, and waited for.
    Stop {
        /// Name of the VM.
        #[arg(value_parser = vm_name)]
        name: String,
        /// Do not ask the guest: pull its plug.
        #[arg(long)]
        force: bool,
        /// Seconds that a guest under KVM may take to shut down.
        #[arg(
            long,
            value_name = "SECONDS",
            default_value_t = 120,
            value_parser = value_parser!(u32).range(1..=3600),
            conflicts_with = "force"
        )]
        timeout: u32,
    },
}

/// Run a VM: a user-mode VM for as long as its command runs, a VM under KVM until its guest turns itself off.
///
/// A user-mode VM is a process in namespaces of its own, on a VF (--vf-socket) or on VMBus (--worker). A VM under KVM
/// (--kvm) boots a stock Linux kernel, which takes this host for Hyper-V.
///
/// Exit codes of a user-mode VM: its command's. Exit codes of a VM under KVM: 0 the guest turned itself off, or a client
/// ended it (`clearway vm stop`), or with --no-reboot it asked for a reset; 1 it cannot be started or cannot go on, with
/// the cause on standard error; 2 wrong usage; 130 ended by ~. at its console; 128 + N ended by signal N.
#[derive(clap::Args, Debug)]
#[command(
    group = ArgGroup::new("network").args(["vf_socket", "worker", "kvm"]).required(true).multiple(true),
    after_help = "Examples:
  clearway vm run web --vf-socket /tmp/nic0/vf0.sock --ip 10.0.0.1/24 -- bash
  clearway vm run web --worker /tmp/web.sock --ip 10.0.0.1/24 -- bash
  clearway vm run web --kvm --kernel vmlinuz --initrd initrd.img --memory 2048 --processors 2
  clearway vm run web --kvm --kernel vmlinuz --initrd initrd.img --disk debian.raw --append root=/dev/vda1"
)]
struct RunArguments {
    /// Name of the VM: what `clearway vm` calls it, and the host name of a user-mode VM.
    #[arg(value_parser = vm_name)]
    name: String,
    /// Give the VM a VMBus, and serve its host side on this socket: `clearway stack` gives it network adapters and VFs.
    /// A VM under KVM always has one [default with --kvm: NAME.worker in the folder that `clearway vm list` shows].
    #[arg(long, value_name = "SOCKET")]
    worker: Option<PathBuf>,
    /// Mebibytes of the VM's memory [default: 32, with --worker 128, with --kvm 1024].
    #[arg(long, value_name = "MIB", value_parser = RangedU64ValueParser::<u64>::new().range(1..=1 << 30))]
    memory: Option<u64>,

    /// vfio-user socket of the VF that carries eth0, as `clearway nic attach-vf` printed it.
    #[arg(
        long,
        value_name = "SOCKET",
        conflicts_with_all = ["worker", "kvm"],
        help_heading = "A user-mode VM"
    )]
    vf_socket: Option<PathBuf>,
    /// Address of eth0 with its prefix length, such as 10.0.0.1/24; may be given several times.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "kvm", help_heading = "A user-mode VM")]
    ip: Vec<InterfaceAddress>,
    /// Default gateway.
    #[arg(long, conflicts_with = "kvm", help_heading = "A user-mode VM")]
    gateway: Option<IpAddr>,
    /// Queue pairs to ask a VF for, and channels to ask a synthetic adapter for.
    #[arg(long, default_value_t = 1, conflicts_with = "kvm", help_heading = "A user-mode VM")]
    queue_pairs: u16,
    /// What eth0 is made of: auto, tap, or veth (where /dev/net/tun cannot be opened).
    #[arg(long, default_value = "auto", conflicts_with = "kvm", help_heading = "A user-mode VM")]
    interface: GuestInterfaceKind,
    /// When the adapter goes away: exit, or wait until it serves the socket again.
    #[arg(
        long,
        default_value = "exit",
        conflicts_with_all = ["worker", "kvm"],
        help_heading = "A user-mode VM"
    )]
    on_vf_loss: OnVfLoss,
    /// The command and its arguments; a shell if there is none.
    #[arg(last = true, conflicts_with = "kvm", help_heading = "A user-mode VM")]
    command: Vec<OsString>,

    /// Run a guest under KVM, whose device is /dev/kvm unless another one is named.
    #[arg(
        long,
        value_name = "DEVICE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = KvmHost::DEVICE,
        requires = "kernel",
        help_heading = "A VM under KVM"
    )]
    kvm: Option<PathBuf>,
    /// The guest's kernel: a bzImage, such as a distribution's vmlinuz, or a vmlinux with a PVH entry.
    #[arg(long, value_name = "FILE", requires = "kvm", help_heading = "A VM under KVM")]
    kernel: Option<PathBuf>,
    /// Its initial RAM file system.
    #[arg(long, value_name = "FILE", requires = "kvm", help_heading = "A VM under KVM")]
    initrd: Option<PathBuf>,
    /// What its command line has after `console=ttyS0`.
    #[arg(long, value_name = "TEXT", requires = "kvm", help_heading = "A VM under KVM")]
    append: Option<String>,
    /// A disk: a raw image or a block device, which the guest reads and writes, or only reads with `,ro`. May be given up
    /// to eight times; Linux calls them vda, vdb, …
    #[arg(
        long = "disk",
        value_name = "FILE[,ro]",
        requires = "kvm",
        help_heading = "A VM under KVM"
    )]
    disks: Vec<DiskChoice>,
    /// Its processors.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = value_parser!(u16).range(1..),
        requires = "kvm",
        help_heading = "A VM under KVM"
    )]
    processors: u16,
    /// Its serial console: stdio (at a terminal every key is the guest's but for ~. at the start of a line, which ends
    /// the VM, and ~?, which lists such), none, or a file to which output is appended.
    #[arg(
        long,
        value_name = "stdio|none|FILE",
        default_value = "stdio",
        requires = "kvm",
        help_heading = "A VM under KVM"
    )]
    console: ConsoleChoice,
    /// End when the guest asks for a reset, instead of starting it anew.
    #[arg(long, requires = "kvm", help_heading = "A VM under KVM")]
    no_reboot: bool,
}

#[derive(clap::ValueEnum, Copy, Clone, Eq, PartialEq, Debug)]
enum VfState {
    Up,
    Down,
}

/// Mebibytes of memory of a VM on one VF, and of one on VMBus, where each adapter has both kinds of buffers.
const MEMORY_MIB: (u64, u64) = (32, 128);
/// Mebibytes of memory of a guest under KVM: what distributions' kernels and their initrds want.
const KVM_MEMORY_MIB: u64 = 1024;

fn shell(command: Vec<OsString>) -> Vec<OsString> {
    if command.is_empty() {
        vec![env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())]
    } else {
        command
    }
}

pub(crate) fn run(arguments: VmArguments) -> Result<ExitCode> {
    let folder = names::folder();
    match arguments.command {
        VmCommand::Run(arguments) => {
            names::prepare(&folder, &arguments.name)?;
            match arguments.kvm.clone() {
                Some(device) => run_under_kvm(&folder, device, *arguments),
                None => run_in_user_mode(&folder, *arguments),
            }
        }
        VmCommand::Qemu(arguments) => qemu::run(&folder, arguments),
        VmCommand::Exec { name, command } => {
            let client = user_vm(&folder, &name, "run commands at its console, or by ssh")?;
            let exit = client.run(&shell(command))?;
            Ok(ExitCode::from(exit.code()))
        }
        VmCommand::List { json } => {
            let vms = names::running(&folder)
                .with_context(|| format!("the folder {}", folder.display()))?;
            if json {
                println!("{}", serde_json::to_string_pretty(&vms)?);
            } else {
                print!("{}", table(&vms));
            }
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::Stats { name } => {
            let instead = "see `clearway switch show` and `clearway nic show` for what was counted outside of it";
            let statistics = user_vm(&folder, &name, instead)?.statistics()?;
            println!("{}", serde_json::to_string_pretty(&statistics)?);
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::SetVf { name, state, adapter } => {
            let instead = "use `ip link set dev VF up|down` in the guest";
            user_vm(&folder, &name, instead)?.set_vf(adapter, state == VfState::Up)?;
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::Stop { name, force, timeout } => {
            let vm = find(&folder, &name)?;
            match vm.kind {
                Kind::UserMode => VmClient::new(&name, &vm.socket)?.shutdown()?,
                Kind::Kvm | Kind::Qemu if force => stop::pull_plug(&vm)?,
                Kind::Kvm | Kind::Qemu => {
                    stop::shut_down(&vm, Duration::from_secs(timeout.into()))?
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_in_user_mode(folder: &Path, arguments: RunArguments) -> Result<ExitCode> {
    let RunArguments { name, worker, .. } = arguments;
    let control_socket = names::socket(folder, &name, Kind::UserMode);
    let config = match arguments.vf_socket {
        Some(vf_socket) => UserVmConfig::new(name, vf_socket),
        None => UserVmConfig::on_vmbus(name),
    };
    let usual = if worker.is_some() { MEMORY_MIB.1 } else { MEMORY_MIB.0 };
    let config = UserVmConfig {
        addresses: arguments.ip,
        gateway: arguments.gateway,
        queue_pairs: arguments.queue_pairs,
        memory: arguments.memory.unwrap_or(usual) << 20,
        interface: arguments.interface,
        on_vf_loss: arguments.on_vf_loss,
        command: shell(arguments.command),
        control_socket: Some(control_socket),
        ..config
    };
    let exit = match worker {
        Some(worker) => run_on_vmbus(&config, worker)?,
        None => user_vm::run(&config)?,
    };
    Ok(ExitCode::from(exit.code()))
}

fn run_under_kvm(folder: &Path, device: PathBuf, arguments: RunArguments) -> Result<ExitCode> {
    let default = || names::socket(folder, &arguments.name, Kind::Kvm);
    let vm = KvmVm {
        device,
        worker: arguments.worker.unwrap_or_else(default),
        // Clap asks for it.
        kernel: arguments.kernel.context("--kernel is missing")?,
        initrd: arguments.initrd,
        command_line: match arguments.append {
            Some(text) => format!("{} {text}", kvm::COMMAND_LINE),
            None => kvm::COMMAND_LINE.to_owned(),
        },
        disks: arguments.disks,
        memory_bytes: arguments.memory.unwrap_or(KVM_MEMORY_MIB) << 20,
        processors: arguments.processors,
        console: arguments.console,
        reboot: !arguments.no_reboot,
        name: arguments.name,
    };
    kvm::run(&vm, || names::publish(folder, &vm.name, Kind::Kvm, &vm.worker))
}

/// Runs a VM whose host side is this process: partition, VMBus server, and the worker that others control.
fn run_on_vmbus(config: &UserVmConfig, socket: PathBuf) -> Result<ProgramExit> {
    let memory = usize::try_from(config.memory).context("so much memory has no process")?;
    let (partition, guest) = UserPartition::new(&UserPartitionConfig::with_memory(memory))
        .context("the VM's partition")?;
    let partition = Arc::new(partition);
    let host = VmbusHost::start(partition.clone(), vmbus::server::ServerConfig::default())
        .context("the VM's VMBus")?;
    let worker = VmWorker::start(WorkerConfig::new(&config.name, socket), partition, host)?;
    let (name, control) = (config.name.clone(), config.control_socket.clone().unwrap_or_default());
    let wanted = worker.shutdown_requested().clone();
    let ended = Arc::new(AtomicBool::new(false));
    // Ends the VM when a client of the worker asks for it.
    std::thread::scope(|scope| {
        scope.spawn({
            let ended = Arc::clone(&ended);
            move || {
                while !ended.load(Ordering::Acquire) {
                    if matches!(wanted.wait(Duration::from_millis(100)), Ok(true))
                        && VmClient::new(&name, &control).is_ok_and(|vm| vm.shutdown().is_ok())
                    {
                        return;
                    }
                }
            }
        });
        let exit = user_vm::run_on(config, guest);
        ended.store(true, Ordering::Release);
        match exit {
            Err(_) if worker.shutdown_requested().take() > 0 => Ok(ProgramExit::Code(0)),
            exit => Ok(exit?),
        }
    })
}

fn find(folder: &Path, name: &str) -> Result<RunningVm> {
    let none =
        || format!("there is no VM {name} of this user; `clearway vm list` has those that run");
    names::find(folder, name).with_context(none)
}

/// A user-mode VM; of another kind, says what to do instead.
fn user_vm(folder: &Path, name: &str, instead: &str) -> Result<VmClient> {
    let vm = find(folder, name)?;
    let place = match vm.kind {
        Kind::UserMode => return Ok(VmClient::new(name, vm.socket)?),
        Kind::Kvm => "under KVM",
        Kind::Qemu => "in QEMU",
    };
    bail!("VM {name} is a guest {place}, which this command cannot look into: {instead}")
}

fn table(vms: &[RunningVm]) -> String {
    let mut text = format!("{:16} {:10} {:>8}  {}\n", "name", "kind", "pid", "socket");
    for RunningVm { name, kind, pid, socket } in vms {
        let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        text += &format!("{name:16} {:10} {pid:>8}  {}\n", kind.word(), socket.display());
    }
    text
}
