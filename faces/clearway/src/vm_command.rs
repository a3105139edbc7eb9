//! `clearway vm`: user-mode VMs. Their network adapters are carried by one VF, or come and go over VMBus.

use std::{
    env,
    ffi::OsString,
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use partition::{
    host::VmbusHost,
    user::{UserPartition, UserPartitionConfig},
};
use user_vm::{
    GuestInterfaceKind, InterfaceAddress, OnVfLoss, ProgramExit, UserVmConfig, VmClient,
};
use vm_worker::{VmWorker, WorkerConfig};

/// Run a user-mode VM, and reach those that run.
#[derive(clap::Args, Debug)]
pub(crate) struct VmArguments {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(clap::Subcommand, Debug)]
enum VmCommand {
    /// Run a VM for as long as its command runs; the exit status is the command's.
    Run {
        /// Name of the VM: its host name, and what `exec`, `stats` and `stop` call it.
        name: String,
        /// vfio-user socket of the VF that carries eth0, as `clearway nic attach-vf` printed it.
        #[arg(
            long,
            value_name = "SOCKET",
            required_unless_present = "worker",
            conflicts_with = "worker"
        )]
        vf_socket: Option<PathBuf>,
        /// Give the VM a VMBus, and serve its host side on this socket: `clearway stack` gives it network adapters and
        /// VFs.
        #[arg(long, value_name = "SOCKET")]
        worker: Option<PathBuf>,
        /// Address of eth0 with its prefix length, such as 10.0.0.1/24; may be given several times.
        #[arg(long, value_name = "ADDRESS")]
        ip: Vec<InterfaceAddress>,
        /// Default gateway.
        #[arg(long)]
        gateway: Option<IpAddr>,
        /// Queue pairs to ask a VF for, and channels to ask a synthetic adapter for.
        #[arg(long, default_value_t = 1)]
        queue_pairs: u16,
        /// Mebibytes of the VM's memory, which holds rings and buffers [default: 32, with --worker 128].
        #[arg(long)]
        memory: Option<u64>,
        /// What eth0 is made of: auto, tap, or veth (where /dev/net/tun cannot be opened).
        #[arg(long, default_value = "auto")]
        interface: GuestInterfaceKind,
        /// When the adapter goes away: exit, or wait until it serves the socket again.
        #[arg(long, default_value = "exit", conflicts_with = "worker")]
        on_vf_loss: OnVfLoss,
        /// The command and its arguments; a shell if there is none.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Run a command in a VM that runs; the exit status is the command's.
    Exec {
        /// Name of the VM.
        name: String,
        /// The command and its arguments; a shell if there is none.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Print what a VM counted, as JSON.
    Stats {
        /// Name of the VM.
        name: String,
    },
    /// Bring the VF of a VM's adapters up or down in the guest, as `ip link set dev VF up` does in Linux: the guest
    /// moves its data path. Waits until it has.
    SetVf {
        /// Name of the VM.
        name: String,
        /// up or down.
        state: VfState,
        /// Only of this adapter, counted from 0.
        #[arg(long)]
        adapter: Option<u32>,
    },
    /// End a VM.
    Stop {
        /// Name of the VM.
        name: String,
    },
}

#[derive(clap::ValueEnum, Copy, Clone, Eq, PartialEq, Debug)]
enum VfState {
    Up,
    Down,
}

/// Mebibytes of memory of a VM on one VF, and of one on VMBus, where each adapter has both kinds of buffers.
const MEMORY_MIB: (u64, u64) = (32, 128);

/// Where the control sockets of this user's VMs are.
fn control_socket(name: &str) -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let user = rustix::process::getuid().as_raw();
    runtime
        .unwrap_or_else(|| env::temp_dir().join(format!("clearway-{user}")))
        .join("clearway-vms")
        .join(format!("{name}.sock"))
}

fn shell(command: Vec<OsString>) -> Vec<OsString> {
    if command.is_empty() {
        vec![env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())]
    } else {
        command
    }
}

pub(crate) fn run(arguments: VmArguments) -> Result<ExitCode> {
    match arguments.command {
        VmCommand::Run {
            name,
            vf_socket,
            worker,
            ip,
            gateway,
            queue_pairs,
            memory,
            interface,
            on_vf_loss,
            command,
        } => {
            let socket = control_socket(&name);
            if let Some(folder) = socket.parent() {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("the folder {}", folder.display()))?;
            }
            let config = match vf_socket {
                Some(vf_socket) => UserVmConfig::new(name, vf_socket),
                None => UserVmConfig::on_vmbus(name),
            };
            let usual = if worker.is_some() { MEMORY_MIB.1 } else { MEMORY_MIB.0 };
            let config = UserVmConfig {
                addresses: ip,
                gateway,
                queue_pairs,
                memory: memory.unwrap_or(usual) << 20,
                interface,
                on_vf_loss,
                command: shell(command),
                control_socket: Some(socket),
                ..config
            };
            let exit = match worker {
                Some(worker) => run_on_vmbus(&config, worker)?,
                None => user_vm::run(&config)?,
            };
            Ok(ExitCode::from(exit.code()))
        }
        VmCommand::Exec { name, command } => {
            let exit = client(&name)?.run(&shell(command))?;
            Ok(ExitCode::from(exit.code()))
        }
        VmCommand::Stats { name } => {
            let statistics = client(&name)?.statistics()?;
            println!("{}", serde_json::to_string_pretty(&statistics)?);
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::SetVf { name, state, adapter } => {
            client(&name)?.set_vf(adapter, state == VfState::Up)?;
            Ok(ExitCode::SUCCESS)
        }
        VmCommand::Stop { name } => {
            client(&name)?.shutdown()?;
            Ok(ExitCode::SUCCESS)
        }
    }
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

fn client(name: &str) -> Result<VmClient> {
    VmClient::new(name, control_socket(name))
        .with_context(|| format!("there is no VM {name} of this user"))
}
