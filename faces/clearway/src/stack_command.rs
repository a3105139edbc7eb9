//! `clearway stack`: run a virtualization stack, and reach one that runs.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use device_control::{ClientError, DeviceControlClient, DriverName};
use ndis_protocol::InterruptModeration;
use serde::{Serialize, de::DeserializeOwned};
use signal_hook::consts::SIGHUP;
use stack_process::{
    Configuration, StackProcess,
    control::{
        AdapterChange, AdapterName, AdapterReport, Connection, ConnectionReport, EVENTS_CAPACITY,
        Events, NextEvents, OUTCOME_CAPACITY, Outcome, PrivateControl, ReasonReport,
        STATUS_CAPACITY, SetAdapter, StackStatus,
    },
    words::{MODERATIONS, POLICIES, parse_vlan, policy_word, show_vlan},
};
use virtualization_stack::{AdapterKind, DataPath, Policy, Standing, VmState};

use crate::signals::SignalQueue;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stack that is just being started is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Run a virtualization stack, and reach one that runs: which VM network adapters have VFs, and why others have none.
///
/// Exit codes: 0 done; 1 refused or failed, with the cause on standard error; 2 wrong usage.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  clearway stack run --config docs/stack.example.toml --directory /tmp/clearway/stack
  clearway stack --directory /tmp/clearway/stack status
  clearway stack --directory /tmp/clearway/stack set-adapter web net0 --iov-weight 0
  clearway stack --directory /tmp/clearway/stack watch --json")]
pub(crate) struct StackArguments {
    /// Folder of the stack's control socket; `run` makes it if missing.
    #[arg(long, value_name = "DIR", global = true)]
    directory: Option<PathBuf>,
    /// Print data as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: StackCommand,
}

#[derive(clap::Subcommand, Debug)]
enum StackCommand {
    /// Run a stack until a signal or `shutdown` ends it. SIGHUP reads the configuration again.
    #[command(after_help = "Example:
  clearway stack run --config docs/stack.example.toml --directory /tmp/clearway/stack")]
    Run {
        /// Configuration file (TOML); docs/stack.example.toml explains it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show NICs, switches, and each VM's adapters: state, path, VF, and every reason why SR-IOV is not active.
    Status,
    /// Change properties of a VM's network adapter. They count until the stack ends or reads its configuration again.
    #[command(after_help = "Examples:
  clearway stack --directory DIR set-adapter web net0 --iov-weight 100 --queue-pairs 4
  clearway stack --directory DIR set-adapter web net0 --vlan trunk:10,20:native=1
  clearway stack --directory DIR set-adapter web net0 --switch none
  clearway stack --directory DIR set-adapter web net0 --policies port-acl --allow-policy-bypass true")]
    SetAdapter(SetAdapterArguments),
    /// Try again what was given up on an adapter, such as a guest that did not use its VF.
    Retry {
        /// Name of the VM.
        vm: String,
        /// Name of the adapter.
        adapter: String,
    },
    /// Print events as they happen, until SIGINT: with --json one JSON object a line.
    Watch {
        /// Begin with all events that are kept (4,096), not with the next one.
        #[arg(long)]
        all: bool,
    },
    /// Read the configuration file again and do what has changed in it.
    Reload,
    /// End the stack. VFs stay with their guests; the next stack takes them back.
    Shutdown,
}

#[derive(clap::Args, Debug)]
struct SetAdapterArguments {
    /// Name of the VM.
    vm: String,
    /// Name of the adapter.
    adapter: String,
    #[command(flatten)]
    changes: Changes,
}

/// At least one.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = true)]
struct Changes {
    /// 0 asks for no VF, 1 to 100 does.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    iov_weight: Option<u32>,
    /// Queue pairs to ask for; as many as can be had are assigned.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    queue_pairs: Option<u32>,
    /// Interrupt moderation of the VF: default, adaptive, off, low, medium or high.
    #[arg(long, value_name = "WORD", value_parser = moderation)]
    interrupt_moderation: Option<InterruptModeration>,
    /// VLANs on both paths: none, 7, trunk:10,20, or trunk:10,20:native=1.
    #[arg(long, value_name = "VLANS", value_parser = parse_vlan)]
    vlan: Option<nic_switch::VlanMode>,
    /// The switch to be connected to, or none.
    #[arg(long, value_name = "NAME")]
    switch: Option<String>,
    /// Whether the guest may send from other addresses than its own.
    #[arg(long, value_name = "BOOL")]
    mac_spoofing: Option<bool>,
    /// All policies that need the software switch, separated by commas, or none.
    #[arg(long, value_name = "WORDS", value_parser = policies)]
    policies: Option<Policies>,
    /// Whether the adapter may have a VF although its frames escape those policies.
    #[arg(long, value_name = "BOOL")]
    allow_policy_bypass: Option<bool>,
}

#[derive(Clone, Debug)]
struct Policies(Vec<Policy>);

fn moderation(text: &str) -> Result<InterruptModeration, String> {
    let known = MODERATIONS.iter().find(|(word, _)| *word == text);
    known.map(|(_, moderation)| *moderation).ok_or_else(|| {
        let words: Vec<_> = MODERATIONS.iter().map(|(word, _)| *word).collect();
        format!("there are {}", words.join(", "))
    })
}

fn policies(text: &str) -> Result<Policies, String> {
    if text == "none" {
        return Ok(Policies(Vec::new()));
    }
    let policy = |text: &str| {
        let known = POLICIES.iter().find(|(word, _)| *word == text);
        known.map(|(_, policy)| *policy).ok_or_else(|| {
            let words: Vec<_> = POLICIES.iter().map(|(word, _)| *word).collect();
            format!("{text:?} is no policy; there are none, {}", words.join(", "))
        })
    };
    let policies: BTreeSet<Policy> = text.split(',').map(policy).collect::<Result<_, _>>()?;
    Ok(Policies(policies.into_iter().collect()))
}

impl From<Changes> for AdapterChange {
    fn from(changes: Changes) -> Self {
        Self {
            iov_weight: changes.iov_weight,
            queue_pairs: changes.queue_pairs,
            interrupt_moderation: changes.interrupt_moderation.map(InterruptModeration::to_wire),
            vlan: changes.vlan,
            connection: changes.switch.map(|switch| match switch.as_str() {
                "none" => Connection::Disconnected,
                _ => Connection::Switch(switch),
            }),
            mac_spoofing: changes.mac_spoofing,
            policies: changes.policies.map(|Policies(policies)| policies),
            allow_policy_bypass: changes.allow_policy_bypass,
        }
    }
}

pub(crate) fn run(arguments: StackArguments) -> Result<ExitCode> {
    let StackArguments { directory, json, command } = arguments;
    let Some(directory) = directory else {
        bail!("--directory is missing: name the folder of the stack's control socket");
    };
    if let StackCommand::Run { config } = command {
        return serve(&config, &directory).map(|()| ExitCode::SUCCESS);
    }
    let stack = Client::connect(&directory)?;
    match command {
        StackCommand::Run { .. } => {}
        StackCommand::Status => {
            let status: StackStatus = stack.ask(PrivateControl::Status, &(), STATUS_CAPACITY)?;
            let mut out = std::io::stdout().lock();
            let text =
                if json { serde_json::to_string_pretty(&status)? + "\n" } else { show(&status) };
            out.write_all(text.as_bytes())?;
        }
        StackCommand::SetAdapter(SetAdapterArguments { vm, adapter, changes }) => {
            let asked = SetAdapter { vm, adapter, change: changes.into() };
            stack.change(PrivateControl::SetAdapter, &asked)?;
        }
        StackCommand::Retry { vm, adapter } => {
            stack.change(PrivateControl::Retry, &AdapterName { vm, adapter })?;
        }
        StackCommand::Reload => stack.change(PrivateControl::Reload, &())?,
        StackCommand::Watch { all } => watch(&stack, all, json)?,
        StackCommand::Shutdown => {
            stack.client.private(PrivateControl::Shutdown.code(), &[], 0, TIMEOUT)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a stack until a signal or a client ends it.
fn serve(config: &Path, directory: &Path) -> Result<()> {
    let signals = SignalQueue::take(&[SIGHUP])?;
    let stack = StackProcess::start(Configuration::read(config)?, directory)?;
    tracing::info!(socket = %stack.control_path().display(), "the stack is up");
    loop {
        crossbeam_channel::select! {
            recv(signals.received()) -> signal => match signal {
                Ok(SIGHUP) => stack.reload(),
                signal => {
                    tracing::info!(signal = signal.unwrap_or_default(), "ending");
                    break;
                }
            },
            recv(stack.shutdown_requested()) -> asked => {
                asked.context("the stack's thread has ended; its panic is above")?;
                tracing::info!("ending: a client asked for it");
                break;
            }
        }
    }
    Ok(())
}

/// A connection to a stack that runs.
struct Client {
    client: DeviceControlClient,
}

impl Client {
    fn connect(directory: &Path) -> Result<Self> {
        let name = DriverName::new("clearway-stack").context("a name for this client")?;
        let path = stack_process::control_socket(directory);
        match DeviceControlClient::connect_when_ready(&path, &name, PATIENCE) {
            Ok(client) => Ok(Self { client }),
            Err(ClientError::NotRunning { .. }) => bail!(
                "there is no stack in {}: start one with `clearway stack run --directory {} --config FILE`",
                directory.display(),
                directory.display()
            ),
            Err(error) => Err(error).context("reaching the stack"),
        }
    }

    fn ask<T: DeserializeOwned>(
        &self,
        control: PrivateControl,
        input: &impl Serialize,
        room: usize,
    ) -> Result<T> {
        let input = serde_json::to_vec(input)?;
        let answer = self.client.private(control.code(), &input, room, TIMEOUT)?;
        serde_json::from_slice(&answer).context("the stack's answer: use one build of clearway")
    }

    fn change(&self, control: PrivateControl, input: &impl Serialize) -> Result<()> {
        match self.ask(control, input, OUTCOME_CAPACITY)? {
            Outcome::Done => Ok(()),
            Outcome::Refused { why } => bail!("refused: {why}"),
        }
    }
}

/// Prints events until a signal.
fn watch(stack: &Client, all: bool, json: bool) -> Result<()> {
    let signals = SignalQueue::take(&[])?;
    let mut after = if all {
        0
    } else {
        stack.ask::<StackStatus>(PrivateControl::Status, &(), STATUS_CAPACITY)?.last_event
    };
    let (deliver, delivered) = crossbeam_channel::bounded(1);
    let client = stack.client.clone();
    // It ends with the connection; the program does not wait for it.
    std::thread::Builder::new().name("events".into()).spawn(move || {
        loop {
            let input = serde_json::to_vec(&NextEvents { after }).unwrap_or_default();
            let code = PrivateControl::NextEvents.code();
            let answer = client.private(code, &input, EVENTS_CAPACITY, Duration::MAX);
            let events = answer.map_err(anyhow::Error::from).and_then(|json| {
                serde_json::from_slice::<Events>(&json).context("the stack's answer")
            });
            let ends = events.is_err();
            if let Some(last) = events.as_ref().ok().and_then(|events| events.events.last()) {
                after = last.sequence;
            }
            if deliver.send(events).is_err() || ends {
                return;
            }
        }
    })?;
    loop {
        crossbeam_channel::select! {
            recv(signals.received()) -> _ => break Ok(()),
            recv(delivered) -> events => match events {
                Ok(Ok(events)) => match print_events(&events, json) {
                    Ok(()) => {}
                    // Whoever read them has gone.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break Ok(()),
                    Err(error) => break Err(error).context("printing events"),
                },
                Ok(Err(error)) => break Err(error.context("the stack has ended")),
                Err(_) => break Ok(()),
            }
        }
    }
}

fn print_events(events: &Events, json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if events.missed > 0 && !json {
        writeln!(out, "… {} events are not kept any more", events.missed)?;
    }
    for record in &events.events {
        if json {
            serde_json::to_writer(&mut out, record)?;
            writeln!(out)?;
        } else {
            let mark = match record.level {
                virtualization_stack::Level::Step => ' ',
                virtualization_stack::Level::Notice => '*',
                virtualization_stack::Level::Warning => '!',
            };
            writeln!(out, "{} {mark} {}", record.time, record.text)?;
        }
    }
    out.flush()
}

/// The status for people.
fn show(status: &StackStatus) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, content: String| {
        text.push_str(&format!("{:indent$}{content}\n", ""));
    };
    for nic in &status.nics {
        let support = if nic.iov_support {
            format!(
                "{}: {} of {} VFs and {} of {} queue pairs in use",
                nic.state,
                nic.virtual_functions_in_use,
                nic.virtual_functions,
                nic.queue_pairs_in_use,
                nic.queue_pairs
            )
        } else {
            "no SR-IOV".to_owned()
        };
        line(0, format!("NIC {}: {support}{}", nic.name, down(&nic.connection)));
        for reason in &nic.iov_support_reasons {
            show_reason(reason, 2, &mut line);
        }
    }
    for switch in &status.switches {
        let iov = if switch.iov_enabled { ", SR-IOV" } else { "" };
        let nic = switch.nic.as_ref().map(|nic| format!(" on {nic}")).unwrap_or_default();
        let (name, kind) = (&switch.name, &switch.kind);
        line(0, format!("switch {name}: {kind}{nic}{iov}{}", down(&switch.connection)));
    }
    for vm in &status.vms {
        let state = match vm.state {
            VmState::Off => "off",
            VmState::Running => "running",
            VmState::Migrating => "about to migrate",
            VmState::Saving => "about to be saved",
        };
        line(0, String::new());
        line(0, format!("VM {}: {state}{}", vm.name, down(&vm.connection)));
        for adapter in &vm.adapters {
            show_adapter(adapter, &mut line);
        }
    }
    text
}

/// What is to be said of a process that is not there.
fn down(connection: &ConnectionReport) -> String {
    match &connection.last_error {
        _ if connection.connected => String::new(),
        Some(error) => format!(" (not connected: {error})"),
        None => " (not connected yet)".to_owned(),
    }
}

fn show_adapter(adapter: &AdapterReport, line: &mut impl FnMut(usize, String)) {
    let AdapterReport { name, number, mac, description, .. } = adapter;
    let switch = adapter.switch.as_deref().unwrap_or("no switch");
    line(2, format!("adapter {name} (eth{number}) {mac} on {switch}: {description}"));
    let path = match adapter.data_path {
        DataPath::Synthetic => "synthetic",
        DataPath::Vf => "VF",
    };
    let state = format!("state {}, data path {path}", adapter.state);
    line(
        4,
        match adapter.kind {
            AdapterKind::Synthetic => state,
            AdapterKind::Legacy => "emulated".to_owned(),
            AdapterKind::VhostUser => format!("virtio-net by vhost-user, {state}"),
        },
    );
    if let Some(vf) = &adapter.virtual_function {
        let vport = vf.vport.map(|vport| format!(", VPort {vport}")).unwrap_or_default();
        let (id, nic, at) = (vf.vf, &vf.nic, &vf.requestor_id);
        line(4, format!("VF {id} of {nic} at {at}{vport}, serial {}", vf.serial));
    }
    let (assigned, requested) = (adapter.queue_pairs_assigned, adapter.queue_pairs_requested);
    line(
        4,
        format!(
            "IovWeight {}, queue pairs {assigned} of {requested} requested, VLAN {}{}",
            adapter.iov_weight,
            show_vlan(&adapter.vlan),
            if adapter.mac_spoofing { ", MAC spoofing allowed" } else { "" }
        ),
    );
    if !adapter.policies.is_empty() {
        let words: Vec<_> = adapter.policies.iter().map(|policy| policy_word(*policy)).collect();
        let bypass = if adapter.allow_policy_bypass { ", which a VF may bypass" } else { "" };
        line(4, format!("policies {}{bypass}", words.join(", ")));
    }
    if let Some(error) = &adapter.port_error {
        line(4, format!("! its port is not as configured: the switch refused it with {error}"));
    }
    for reason in &adapter.reasons {
        show_reason(reason, 4, line);
    }
}

fn show_reason(reason: &ReasonReport, indent: usize, line: &mut impl FnMut(usize, String)) {
    let mark = match reason.standing {
        Standing::Blocks => '-',
        Standing::Waits => '~',
        Standing::Notes => '+',
    };
    line(indent, format!("{mark} {} [{}]", reason.text, reason.code));
    line(indent + 4, format!("cure: {}", reason.cure));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Line {
        #[command(flatten)]
        stack: StackArguments,
    }

    fn changes(options: &[&str]) -> Result<AdapterChange, clap::Error> {
        let head = ["stack", "--directory", "/tmp/s", "set-adapter", "web", "net0"];
        let line = Line::try_parse_from(head.iter().chain(options))?;
        let StackCommand::SetAdapter(asked) = line.stack.command else { panic!() };
        Ok(asked.changes.into())
    }

    #[test]
    fn changes_are_read_as_they_are_written() {
        let change = changes(&["--iov-weight", "0", "--switch", "none", "--vlan", "7"]).unwrap();
        let expected = AdapterChange {
            iov_weight: Some(0),
            connection: Some(Connection::Disconnected),
            vlan: Some(nic_switch::VlanMode::Access { vlan: 7 }),
            ..AdapterChange::default()
        };
        assert_eq!(change, expected);
        let change = changes(&[
            "--policies",
            "port-acl,dhcp-guard",
            "--allow-policy-bypass",
            "true",
            "--interrupt-moderation",
            "low",
            "--switch",
            "external",
        ]);
        let expected = AdapterChange {
            policies: Some(vec![Policy::PortAcl, Policy::DhcpGuard]),
            allow_policy_bypass: Some(true),
            interrupt_moderation: Some(100),
            connection: Some(Connection::Switch("external".into())),
            ..AdapterChange::default()
        };
        assert_eq!(change.unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_is_refused_before_the_stack_is_asked() {
        for wrong in [
            vec![],
            vec!["--iov-weight", "101"],
            vec!["--queue-pairs", "0"],
            vec!["--vlan", "4095"],
            vec!["--policies", "acl"],
            vec!["--interrupt-moderation", "some"],
        ] {
            assert!(changes(&wrong).is_err(), "{wrong:?}");
        }
    }
}
