//! `clearway switch`: run a virtual switch, and reach one that runs.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use device_control::{ClientError, DeviceControlClient, DriverName, Target};
use virtual_switch::{
    PortStatistics,
    control::{
        GuestState, PortKind, PortStatus, PrivateControl, STATUS_CAPACITY, SwitchStatus, VlanMode,
    },
    server::{SwitchConfig, SwitchServer, SwitchUplink, control_socket},
};

use crate::signals::SignalQueue;

/// How long one answer may take, and a switch that is just being started.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Run a virtual switch, and reach one that runs: the software path between VMs, to an uplink, and to the host.
///
/// Its ports are made by the virtualization stack (`clearway stack`); VMs (`clearway vm run --worker`) connect their
/// synthetic adapters to them.
///
/// Exit codes: 0 done; 1 refused or failed, with the cause on standard error; 2 wrong usage.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  clearway switch run --directory /tmp/clearway/external --name external --uplink adapter:/tmp/clearway/nic0
  clearway switch run --directory /tmp/clearway/lab --uplink tap:lab0 --host-interface lab-host
  clearway switch --directory /tmp/clearway/external show --json")]
pub(crate) struct SwitchArguments {
    /// Folder of the switch's control socket; `run` makes it if missing.
    #[arg(long, value_name = "DIR", global = true)]
    directory: Option<PathBuf>,
    /// Print data as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: SwitchCommand,
}

#[derive(clap::Subcommand, Debug)]
enum SwitchCommand {
    /// Run a switch until a signal or `shutdown` ends it.
    #[command(after_help = "Example:
  clearway switch run --directory /tmp/clearway/external --name external --uplink adapter:/tmp/clearway/nic0")]
    Run {
        /// Name of the switch in logs and reports.
        #[arg(long, default_value = "switch0")]
        name: String,
        /// What it is connected to: adapter:DIRECTORY (the default VPort of `clearway adapter --directory DIRECTORY`;
        /// one that is not there yet, or ends and comes back, is waited for), tap:NAME, packet:INTERFACE,
        /// pcap:IN[,OUT], cable:SOCKET, none.
        #[arg(long, value_name = "SPEC")]
        uplink: SwitchUplink,
        /// TAP device by which the host itself is connected.
        #[arg(long, value_name = "TAP")]
        host_interface: Option<String>,
        /// CPU that the switch's thread is bound to.
        #[arg(long)]
        cpu: Option<usize>,
    },
    /// Show the switch, its uplink, its ports and their counters.
    Show,
    /// End the switch. VMs keep their VFs; their synthetic adapters are gone until a switch is there again.
    Shutdown,
}

pub(crate) fn run(arguments: SwitchArguments) -> Result<()> {
    let directory = arguments.directory.context(
        "which switch? give the folder of its socket with --directory, as it was given to `clearway switch run`",
    )?;
    match arguments.command {
        SwitchCommand::Run { name, uplink, host_interface, cpu } => {
            serve(SwitchConfig { name, directory, uplink, host_interface, cpu })
        }
        SwitchCommand::Show => {
            let output = call(&directory, PrivateControl::Status, STATUS_CAPACITY)?;
            let status: SwitchStatus = serde_json::from_slice(&output)
                .context("the switch's status cannot be read: use programs of one build")?;
            if arguments.json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                show(&status);
            }
            Ok(())
        }
        SwitchCommand::Shutdown => call(&directory, PrivateControl::Shutdown, 0).map(|_| ()),
    }
}

/// Runs the switch until a signal or a client ends it.
fn serve(config: SwitchConfig) -> Result<()> {
    let signals = SignalQueue::take(&[])?;
    let (name, directory) = (config.name.clone(), config.directory.clone());
    let server = SwitchServer::start(config)?;
    tracing::info!(name, directory = %directory.display(), "the switch is up");
    signals.wait_for_end(server.shutdown_requested());
    Ok(())
}

fn call(directory: &std::path::Path, control: PrivateControl, capacity: usize) -> Result<Vec<u8>> {
    let path = control_socket(directory);
    let name = DriverName::new("clearway-switch").context("the name of this client")?;
    let client =
        DeviceControlClient::connect(&path, &name, TIMEOUT).map_err(|error| match error {
            ClientError::NotRunning { .. } => anyhow::anyhow!(
                "no switch serves {}: start it with `clearway switch run --directory {}`",
                path.display(),
                directory.display()
            ),
            other => other.into(),
        })?;
    let target = Target::Private(control.code());
    Ok(client.call_output(target, &[], capacity, TIMEOUT)?)
}

fn dropped(of: &PortStatistics) -> u64 {
    of.spoofed
        + of.vlan_not_allowed
        + of.no_receiver
        + of.malformed
        + of.not_wanted
        + of.no_buffer
        + of.too_long
}

fn show(status: &SwitchStatus) {
    let uplink = &status.uplink;
    let link = match (uplink.connected, uplink.link_up) {
        (false, _) if uplink.spec == "none" => "private",
        (false, _) => "not connected",
        (true, true) => "link up",
        (true, false) => "no link",
    };
    println!("{}: {} ports", status.name, status.ports.len());
    println!(
        "uplink {} ({link}): {} frames in, {} out, {} dropped",
        uplink.spec,
        uplink.statistics.sent,
        uplink.statistics.received,
        dropped(&uplink.statistics)
    );
    if let Some(error) = &uplink.last_error {
        println!("  last error: {error}");
    }
    println!(
        "{:<16} {:<18} {:<10} {:<8} {:<9} {:>8} {:>12} {:>12} {:>8}",
        "port", "MAC", "VLAN", "guest", "path", "channels", "received", "sent", "dropped"
    );
    let row = |cells: [&str; 5], channels: usize, of: &PortStatistics| {
        let [port, mac, vlan, guest, path] = cells;
        println!(
            "{port:<16} {mac:<18} {vlan:<10} {guest:<8} {path:<9} {channels:>8} {:>12} {:>12} {:>8}",
            of.received,
            of.sent,
            dropped(of)
        );
        let reasons = reasons(of);
        if !reasons.is_empty() {
            println!("  dropped: {reasons}");
        }
    };
    if let Some(host) = &status.host {
        row(["(host)", &host.mac, "-", &host.interface, "-"], 0, &host.statistics);
    }
    for port in &status.ports {
        let PortStatus { port: name, kind, mac, vlan, guest, data_path, channels, .. } = port;
        let guest = match (guest, kind) {
            (GuestState::Closed, _) => "closed",
            (GuestState::Ready { .. }, PortKind::Legacy { .. }) => "emulated",
            (GuestState::Ready { .. }, PortKind::VhostUser { .. }) => "virtio-net",
            (GuestState::Ready { sriov: true }, _) => "SR-IOV",
            (GuestState::Ready { sriov: false }, _) => "up",
        };
        let vlan = match vlan {
            VlanMode::Transparent => "-".to_owned(),
            VlanMode::Access { vlan } => vlan.to_string(),
            VlanMode::Trunk { native, allowed } => format!("trunk:{}/{native}", allowed.len()),
        };
        let path = data_path.to_string();
        row([name, mac, &vlan, guest, &path], channels.len(), &port.statistics);
    }
}

/// Why frames were dropped, as far as any were.
fn reasons(of: &PortStatistics) -> String {
    let reasons = [
        (of.spoofed, "with a foreign source address"),
        (of.vlan_not_allowed, "in a VLAN that may not pass"),
        (of.no_receiver, "to nobody that receives"),
        (of.malformed, "that are none"),
        (of.not_wanted, "that the guest does not want"),
        (of.no_buffer, "without a buffer"),
        (of.too_long, "too long for the guest"),
    ];
    let some = reasons.into_iter().filter(|(count, _)| *count > 0);
    some.map(|(count, why)| format!("{count} {why}")).collect::<Vec<_>>().join(", ")
}
