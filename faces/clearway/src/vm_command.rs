//! `clearway vm`: user-mode VMs, whose eth0 is carried by a VF.

use std::{env, ffi::OsString, net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use user_vm::{GuestInterfaceKind, InterfaceAddress, OnVfLoss, UserVmConfig, VmClient};

/// Run a user-mode VM on a VF, and reach those that run.
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
        /// vfio-user socket of the VF, as `clearway nic attach-vf` printed it.
        #[arg(long, value_name = "SOCKET")]
        vf_socket: PathBuf,
        /// Address of eth0 with its prefix length, such as 10.0.0.1/24; may be given several times.
        #[arg(long, value_name = "ADDRESS")]
        ip: Vec<InterfaceAddress>,
        /// Default gateway.
        #[arg(long)]
        gateway: Option<IpAddr>,
        /// Queue pairs to ask the VF for.
        #[arg(long, default_value_t = 1)]
        queue_pairs: u16,
        /// Mebibytes of the VM's memory, which holds the VF's rings and buffers.
        #[arg(long, default_value_t = 32)]
        memory: u64,
        /// What eth0 is made of: auto, tap, or veth (where /dev/net/tun cannot be opened).
        #[arg(long, default_value = "auto")]
        interface: GuestInterfaceKind,
        /// When the adapter goes away: exit, or wait until it serves the socket again.
        #[arg(long, default_value = "exit")]
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
    /// End a VM.
    Stop {
        /// Name of the VM.
        name: String,
    },
}

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
            let config = UserVmConfig {
                addresses: ip,
                gateway,
                queue_pairs,
                memory: memory << 20,
                interface,
                on_vf_loss,
                command: shell(command),
                control_socket: Some(socket),
                ..UserVmConfig::new(name, vf_socket)
            };
            let exit = user_vm::run(&config)?;
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
        VmCommand::Stop { name } => {
            client(&name)?.shutdown()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn client(name: &str) -> Result<VmClient> {
    VmClient::new(name, control_socket(name))
        .with_context(|| format!("there is no VM {name} of this user"))
}
