//! `clearway nic`: manage a running adapter by hand.

use std::{path::PathBuf, time::Duration};

use adapter::control::{
    AdapterStatus, PnpPhase, PnpStatus, RebalanceOutcome, SetVPortPolicy, VfDriver, VfStatus,
    VlanMode,
};
use anyhow::{Context, Result, bail};
use ndis_protocol::{FilterMatch, MacAddress, VlanCondition, VlanId};

use crate::nic::{AttachedVf, Nic, Step};

/// Manage a running adapter: show it, attach and detach VFs, change uplink and policies.
#[derive(clap::Args, Debug)]
pub(crate) struct NicArguments {
    /// Folder of the adapter's sockets.
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// Print data as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: NicCommand,
}

#[derive(clap::Subcommand, Debug)]
enum NicCommand {
    /// Show the adapter, its uplink, VFs and counters.
    Show,
    /// Allocate a VF and attach it to a VPort by the published sequence; print its socket.
    AttachVf {
        /// Name of the VM it is for.
        #[arg(long, default_value = "vm")]
        vm: String,
        /// MAC address of the VM's network adapter.
        #[arg(long)]
        mac: MacAddress,
        /// Put the VM into this VLAN (access mode).
        #[arg(long)]
        vlan: Option<u16>,
        /// Accept the VM's frames in every VLAN (the receive filter tests the MAC address alone).
        #[arg(long, conflicts_with = "vlan")]
        any_vlan: bool,
        /// Queue pairs of the VPort.
        #[arg(long, default_value_t = 1)]
        queue_pairs: u16,
    },
    /// Take a VF away by the published teardown sequence.
    DetachVf {
        /// VF id, as `attach-vf` printed it.
        #[arg(long)]
        vf: u16,
        /// Receive filter id, as `attach-vf` printed it.
        #[arg(long)]
        filter: u32,
    },
    /// Have the PF reset a VF; its driver comes back by itself.
    ResetVf {
        /// VF id.
        #[arg(long)]
        vf: u16,
    },
    /// Change what a VPort may do.
    SetPolicy {
        /// VPort id.
        #[arg(long)]
        vport: u32,
        /// Let foreign source addresses pass.
        #[arg(long)]
        allow_spoofing: bool,
        /// Let the guest see frames that are not for it.
        #[arg(long)]
        allow_promiscuous: bool,
        /// Access mode: the VLAN of the VPort.
        #[arg(long)]
        access: Option<u16>,
        /// Trunk mode: VLANs that pass tagged.
        #[arg(long, value_delimiter = ',', conflicts_with = "access")]
        trunk: Vec<u16>,
        /// Trunk mode: VLAN of untagged frames; 0 leaves them untagged.
        #[arg(long, default_value_t = 0, requires = "trunk")]
        native: u16,
    },
    /// Connect the physical port to something else.
    SetUplink {
        /// none, tap:NAME, packet:INTERFACE, pcap:IN[,OUT] or cable:SOCKET.
        spec: uplink::UplinkSpec,
    },
    /// Have the PF given other resources, as a PnP manager does it: a client that is attached is asked, and may veto.
    Rebalance {
        /// How long to wait for the client's answers, seconds.
        #[arg(long, default_value_t = 30)]
        timeout: u64,
    },
    /// End the adapter.
    Shutdown,
}

pub(crate) fn run(arguments: NicArguments) -> Result<()> {
    let json = arguments.json;
    let print_step = move |step: &Step| {
        if !json {
            println!(
                "{:<34} {:<16} {:>6} µs  {}",
                step.request, step.status, step.microseconds, step.what
            );
        }
    };
    let mut nic =
        Nic::connect(&arguments.directory, "clearway-nic", Duration::from_secs(2), print_step)?;
    match arguments.command {
        NicCommand::Show => {
            let status = nic.status()?;
            if json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                show(&status);
            }
        }
        NicCommand::AttachVf { vm, mac, vlan, any_vlan, queue_pairs } => {
            let condition = match (vlan, any_vlan) {
                (Some(id), _) => VlanCondition::Equal(
                    VlanId::new(id)
                        .with_context(|| format!("{id} is not a VLAN id: 1 to 4094 are"))?,
                ),
                (None, true) => VlanCondition::Any,
                (None, false) => VlanCondition::UntaggedOrZero,
            };
            let matches = FilterMatch { mac, vlan: condition, inner: false };
            let attached = nic.attach_vf(&vm, matches, queue_pairs)?;
            if let Some(vlan) = vlan {
                nic.set_policy(&SetVPortPolicy {
                    vport: attached.vport,
                    allow_spoofing: false,
                    allow_promiscuous: false,
                    vlan: VlanMode::Access { vlan },
                })?;
            }
            if json {
                println!("{}", serde_json::to_string_pretty(&attached)?);
            } else {
                println!(
                    "VF {} on VPort {}, filter {}: vfio-user socket {}",
                    attached.vf, attached.vport, attached.filter, attached.socket
                );
            }
        }
        NicCommand::DetachVf { vf, filter } => {
            let status = nic.status()?;
            let entry = status.vfs.iter().find(|entry| entry.vf == vf);
            let Some(entry) = entry else {
                bail!("VF {vf} is not allocated; `clearway nic show` lists those that are");
            };
            let attached = AttachedVf {
                vf,
                vport: entry.vport.with_context(|| format!("VF {vf} has no VPort"))?,
                filter,
                mac: entry.mac.clone(),
                requestor_id: String::new(),
                socket: String::new(),
            };
            nic.detach_vf(&attached)?;
        }
        NicCommand::ResetVf { vf } => nic.pf_reset_vf(vf)?,
        NicCommand::SetPolicy {
            vport,
            allow_spoofing,
            allow_promiscuous,
            access,
            trunk,
            native,
        } => {
            let vlan = match access {
                Some(vlan) => VlanMode::Access { vlan },
                None if trunk.is_empty() => VlanMode::Transparent,
                None => VlanMode::Trunk { native, allowed: trunk },
            };
            nic.set_policy(&SetVPortPolicy { vport, allow_spoofing, allow_promiscuous, vlan })?;
        }
        NicCommand::SetUplink { spec } => nic.set_uplink(&spec)?,
        NicCommand::Rebalance { timeout } => {
            let outcome = nic.rebalance(Duration::from_secs(timeout))?;
            if json {
                println!("{}", serde_json::to_string_pretty(&outcome)?);
            } else if matches!(outcome, RebalanceOutcome::Done { .. }) {
                println!("{outcome}");
            }
            if matches!(outcome, RebalanceOutcome::Vetoed { .. }) {
                bail!("the rebalance was {outcome}");
            }
        }
        NicCommand::Shutdown => nic.shutdown()?,
    }
    Ok(())
}

fn show(status: &AdapterStatus) {
    let uplink = &status.uplink;
    println!("{}: {} VFs enabled, copies by {}", status.name, status.num_vfs, status.copy_method);
    println!("{}", attached(&status.pnp));
    println!(
        "uplink {} ({}): {} frames in, {} out, {} not taken",
        uplink.spec,
        if uplink.link_up { "link up" } else { "no link" },
        uplink.stats.received,
        uplink.stats.sent,
        uplink.stats.sent_dropped
    );
    if let Some(error) = &uplink.last_error {
        println!("  last error: {error}");
    }
    println!(
        "{:<6} {:<18} {:>5} {:>6} {:<9} {:>12} {:>12} {:>8}",
        "", "MAC", "VPort", "queues", "guest", "received", "sent", "dropped"
    );
    let row = |name: &str,
               mac: &str,
               vport: String,
               queues: String,
               guest: &str,
               function: &adapter::control::FunctionStatus| {
        let (rx, tx) = (&function.stats.receive, &function.stats.transmit);
        println!(
            "{name:<6} {mac:<18} {vport:>5} {queues:>6} {guest:<9} {:>12} {:>12} {:>8}",
            rx.frames(),
            tx.frames(),
            rx.discards() + tx.discards() + tx.errors()
        );
    };
    let pf = if status.pf.connected { "connected" } else { "-" };
    row("PF", "", "0".into(), String::new(), pf, &status.pf);
    for vf in &status.vfs {
        let vport = vf.vport.map_or("-".into(), |vport| vport.to_string());
        let (name, queues) = (format!("VF {}", vf.vf), vf.queue_pairs.to_string());
        row(&name, &vf.mac, vport, queues, guest(vf), &vf.function);
    }
}

/// What the guest of a VF does with it, in a word.
const fn guest(vf: &VfStatus) -> &'static str {
    match (&vf.driver, vf.function.connected) {
        (VfDriver::Running { .. }, _) => "running",
        (VfDriver::Present, _) => "present",
        (VfDriver::Absent, true) => "connected",
        (VfDriver::Absent, false) => "-",
        (VfDriver::Gone, _) => "gone",
    }
}

/// The PF driver towards the virtualization stack, in words.
fn attached(pnp: &PnpStatus) -> String {
    let client = pnp.client.as_deref().unwrap_or("no client");
    match pnp.phase {
        PnpPhase::Running => format!("{client} is attached"),
        PnpPhase::AskingToStop => format!("{client} is asked whether the PF may stop"),
        PnpPhase::Stopped => format!("the PF is stopped; {client} is attached"),
        PnpPhase::AnnouncingRestart => format!("{client} is told that the PF runs again"),
        PnpPhase::AskingToRemove => format!("{client} is asked whether the PF may be removed"),
        PnpPhase::Removed => "the PF is gone".into(),
    }
}
