//! The `clearway` program: an SR-IOV virtualization stack, one role per subcommand.
//!
//! Each role is a process of its own: `adapter` is a NIC, `vm` a virtual machine; `nic` manages an adapter;
//! `demo` puts all of it together. Layer: faces (ARCHITECTURE.md).

use std::process::ExitCode;

use clap::Parser;

mod adapter_command;
mod bench;
mod nic;
mod nic_command;

/// SR-IOV virtualization in software: a NIC with virtual functions, and virtual machines that use them.
#[derive(Parser, Debug)]
#[command(name = "clearway", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Adapter(adapter_command::AdapterArguments),
    Nic(nic_command::NicArguments),
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLEARWAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done: anyhow::Result<ExitCode> = match Arguments::parse().command {
        Command::Adapter(arguments) => adapter_command::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Nic(arguments) => nic_command::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("clearway: {error:#}");
            ExitCode::FAILURE
        }
    }
}
