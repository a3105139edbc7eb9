//! The `clearway` program: an SR-IOV virtualization stack, one role per subcommand.
//!
//! Each role is a process of its own: `adapter` is a NIC, `switch` a virtual switch, `vm` a virtual machine, `stack`
//! decides which VM has a VF; `nic` manages an adapter; `demo` puts all of it together. Layer: faces (ARCHITECTURE.md).

use std::{
    io::{IsTerminal, stderr},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;

mod adapter_command;
mod bench;
mod demo;
mod nic;
mod nic_command;
mod signals;
mod stack_command;
mod switch_command;
mod traffic;
mod vm;

/// SR-IOV virtualization in software: a NIC with virtual functions, and virtual machines that use them.
#[derive(Parser, Debug)]
#[command(name = "clearway", version, propagate_version = true)]
struct Arguments {
    /// End when the process that started this one ends.
    #[arg(long, global = true, hide = true)]
    die_with_parent: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Adapter(adapter_command::AdapterArguments),
    Nic(nic_command::NicArguments),
    Vm(vm::VmArguments),
    Stack(stack_command::StackArguments),
    Switch(switch_command::SwitchArguments),
    Demo(demo::DemoArguments),
    Bench(bench::BenchArgs),
    /// What the demo runs inside its VMs.
    #[command(subcommand, hide = true)]
    Traffic(traffic::TrafficCommand),
}

fn main() -> ExitCode {
    // A VM's processes are this program again; they must not get as far as a second thread.
    if let Some(code) = user_vm::enter_if_requested() {
        return code;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLEARWAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    let arguments = Arguments::parse();
    let done = if arguments.die_with_parent { end_with_parent() } else { Ok(()) };
    match done.and_then(|()| run(arguments.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("clearway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn end_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("tying this process to its parent")
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Adapter(arguments) => adapter_command::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Nic(arguments) => nic_command::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Vm(arguments) => vm::run(arguments),
        Command::Stack(arguments) => stack_command::run(arguments),
        Command::Switch(arguments) => switch_command::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Traffic(command) => traffic::run(&command).map(|()| ExitCode::SUCCESS),
    }
}
