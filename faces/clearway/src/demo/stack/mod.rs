//! The whole stack: VMs that talk over the synthetic path from the start, and whose VFs come and go under traffic.
//!
//! Follows the published *Virtual Function Initialization Sequence*: the VMs boot with a synthetic NIC; they are enabled
//! for SR-IOV; VFs are allocated, exposed by VPCI over VMBus, driven in the guest, and take the data path; then they
//! are revoked and returned, and their PF stops and restarts. Numbered datagrams run both ways all the while, and TCP.

mod client;
mod drops;
mod numbers;
mod world;

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use stack_process::control::{AdapterChange, AdapterReport, AnyEvent, EventRecord, ProcessEvent};
use user_vm::{AdapterStatistics, DataPath as GuestPath};
use virtualization_stack::{DataPath, Event, Reason};

use super::{Demo, DemoArguments, PATIENCE, bulk, in_vm, timeline::Timeline};
use crate::{nic::Nic, traffic::PingOutcome};
use numbers::{Numbers, Passed};
use world::{ADAPTER, VMS, World};

/// Datagrams under way in each direction: far fewer than any ring has room for.
const WINDOW: u64 = 64;

/// What the demo found out about moves between the two paths.
#[derive(Debug, Default, Serialize)]
pub(super) struct Moves {
    /// Numbered datagrams while paths moved in good order: none may be lost, and none doubled.
    graceful: Passed,
    /// Data-path switches by the guests' requests, during that.
    graceful_switches: u64,
    /// The longest of them, from the request to the first frame on the other path, microseconds.
    longest_switch_us: u64,
    /// Numbered datagrams while the adapter was killed and started again.
    surprise: Passed,
    /// Of these, frames that the guests had handed to a VF that was gone.
    surprise_lost_in_rings: u64,
    /// Frames of each VM by each path.
    paths: Vec<Paths>,
}

/// Frames of a VM by each path.
#[derive(Debug, Serialize)]
struct Paths {
    vm: &'static str,
    synthetic_sent: u64,
    synthetic_received: u64,
    vf_sent: u64,
    vf_received: u64,
}

/// The story in progress.
struct Story<'d> {
    demo: &'d mut Demo,
    world: World,
    moves: Moves,
}

/// Plays the story in this folder; the process ids that are to be gone after it.
pub(super) fn play(
    demo: &mut Demo,
    directory: &Path,
    arguments: &DemoArguments,
) -> Result<Vec<u32>> {
    demo.timeline.chapter("Adapter, switch, stack, and two VMs");
    let start = Instant::now();
    let world = World::start(directory, &demo.belongings, PATIENCE)?;
    let detail = "adapter, switch, stack, and each VM's host side and guest";
    demo.timeline.done("demo", "processes are up", start, detail);
    let mut story = Story { demo, world, moves: Moves::default() };
    let told = story.tell(arguments);
    if told.is_err() {
        // Whatever was noticed first: a process that has ended is the cause of the rest.
        story.world.ensure_it_runs()?;
    }
    let Story { demo, world, moves } = story;
    demo.findings.moves = Some(moves);
    told?;
    demo.timeline.chapter("Teardown");
    let start = Instant::now();
    let pids = world.end()?;
    demo.timeline.done("demo", "everything has ended", start, "VMs, stack, switch, adapter");
    Ok(pids)
}

impl Story<'_> {
    fn tell(&mut self, arguments: &DemoArguments) -> Result<()> {
        let DemoArguments { switches, revocations, mebibytes, .. } = *arguments;
        self.boot()?;
        let [first, second] = self.world.vms.as_slice() else { return Ok(()) };
        let mut numbers = [
            Numbers::start(&first.client, VMS[1].address, WINDOW)?,
            Numbers::start(&second.client, VMS[0].address, WINDOW)?,
        ];
        self.mark("on the synthetic path", &mut numbers)?;

        self.chapter("VFs for both VMs, under traffic");
        self.weigh(100)?;
        self.until_all("all adapters are on their VFs", on_vf)?;
        self.mark("while the VFs came", &mut numbers)?;

        self.chapter(&format!("{switches} switches of the data path, under traffic"));
        self.switch_to_and_fro(switches)?;
        self.mark("while the data path moved", &mut numbers)?;

        self.chapter("VFs revoked and returned, under traffic");
        self.revoke_and_return(revocations)?;
        self.mark("while the VFs came and went", &mut numbers)?;

        self.chapter("The PF stops and restarts, under traffic");
        self.rebalance()?;
        self.mark("while the PF was stopped", &mut numbers)?;
        self.judge();

        self.chapter("The adapter is killed, and another one takes its place");
        self.kill_adapter(&mut numbers)?;
        for numbers in numbers {
            numbers.end()?;
        }

        self.chapter("A TCP stream, while VFs are revoked and returned");
        self.stream(mebibytes)?;
        self.count_paths()
    }

    fn chapter(&self, title: &str) {
        self.demo.timeline.chapter(title);
    }

    /// The VMs have a synthetic NIC each, and reach each other.
    fn boot(&mut self) -> Result<()> {
        let start = Instant::now();
        self.until_all("all VMs have their synthetic NIC up", |adapters| {
            adapters.len() == VMS.len() && adapters.iter().all(|a| a.phase == "Synthetic")
        })?;
        super::wait_until("the VMs' synthetic NICs are up", || {
            Ok(self.world.vms.iter().all(|vm| {
                vm.adapter().is_ok_and(|adapter| adapter.synthetic_state.link_up && adapter.carrier)
            }))
        })?;
        let timeline = &mut self.demo.timeline;
        timeline.done("VM", "synthetic NICs are up", start, "NetVSC over VMBus, to the switch");
        let start = Instant::now();
        let [first, _] = self.world.vms.as_slice() else { return Ok(()) };
        let pings: PingOutcome = in_vm(&first.client, &["ping", VMS[1].address, "--count", "20"])?;
        let detail = format!(
            "{} of {} answered by way of the switch, {} / {} / {} µs fastest, median, slowest",
            pings.received, pings.sent, pings.fastest_us, pings.median_us, pings.slowest_us
        );
        timeline.done("traffic", "ping", start, &detail);
        if pings.received != pings.sent || pings.duplicates > 0 {
            let problem = format!("pings on the synthetic path were lost or doubled: {pings:?}");
            self.demo.findings.problems.push(problem);
        }
        Ok(())
    }

    /// Sets IovWeight of both adapters.
    fn set_weights(&self, weight: u32) -> Result<()> {
        VMS.iter().try_for_each(|vm| {
            let change = AdapterChange { iov_weight: Some(weight), ..AdapterChange::default() };
            self.world.client.set(vm.name, ADAPTER, change)
        })
    }

    fn weigh(&mut self, weight: u32) -> Result<()> {
        self.set_weights(weight)?;
        let what = format!("IovWeight {weight}");
        self.demo.timeline.entry("admin", &what, "ok", 0, "both VMs' adapters");
        Ok(())
    }

    /// Tells the stack's events until something is so.
    fn until_all(&mut self, what: &str, holds: impl Fn(&[AdapterReport]) -> bool) -> Result<()> {
        let timeline = &mut self.demo.timeline;
        self.world.client.until(what, PATIENCE, |event| tell(timeline, &event), holds)
    }

    /// As [`Self::until_all`], without telling.
    fn until_all_quietly(
        &mut self,
        what: &str,
        holds: impl Fn(&[AdapterReport]) -> bool,
    ) -> Result<()> {
        self.world.client.until(what, PATIENCE, |_| {}, holds)
    }

    /// Takes stock of the numbered datagrams since the last time.
    fn mark(&mut self, when: &str, numbers: &mut [Numbers; 2]) -> Result<Passed> {
        let start = Instant::now();
        let mut passed = Passed::default();
        for numbers in numbers {
            passed += numbers.mark()?;
        }
        let detail = format!(
            "{} datagrams and acknowledgements {when}: {} lost, {} doubled",
            passed.sent, passed.lost, passed.doubled
        );
        self.demo.timeline.done("traffic", "numbered datagrams", start, &detail);
        ensure!(passed.sent > 0, "nothing was sent {when}");
        if passed.wrong > 0 {
            let problem = format!("{} datagrams arrived with wrong contents {when}", passed.wrong);
            self.demo.findings.problems.push(problem);
        }
        self.moves.graceful += passed;
        Ok(passed)
    }

    /// The guests move their data paths, each in turn.
    fn switch_to_and_fro(&mut self, switches: u64) -> Result<()> {
        let start = Instant::now();
        let before = self.switches()?;
        let vms = self.world.vms.len() as u64;
        for number in 0..switches.div_ceil(2) {
            let index = usize::try_from(number % vms)?;
            let vm = self.world.vms.get(index).context("there are two VMs")?;
            for up in [false, true] {
                vm.client.set_vf(Some(0), up)?;
            }
        }
        self.until_all_quietly("all adapters are on their VFs again", on_vf)?;
        let made = self.switches()? - before;
        self.moves.longest_switch_us = self
            .adapters()?
            .iter()
            .map(|adapter| adapter.data_path.worst_us)
            .max()
            .unwrap_or_default();
        let detail = format!(
            "{made} switches by request of the guests, the longest {} µs from the request to the first frame on the other path",
            self.moves.longest_switch_us
        );
        self.demo.timeline.done("VM", "SWITCH_DATA_PATH", start, &detail);
        if made < switches {
            let problem = format!("{made} switches of the data path were made, not {switches}");
            self.demo.findings.problems.push(problem);
        }
        Ok(())
    }

    fn adapters(&self) -> Result<Vec<AdapterStatistics>> {
        self.world.vms.iter().map(|vm| vm.adapter()).collect()
    }

    /// Switches that the guests have asked for and got.
    fn switches(&self) -> Result<u64> {
        Ok(self.adapters()?.iter().map(|adapter| adapter.data_path.switches()).sum())
    }

    fn revoke_and_return(&mut self, times: u64) -> Result<()> {
        self.weigh(0)?;
        self.until_all("all VFs are given back", on_synthetic)?;
        self.weigh(100)?;
        self.until_all("all adapters are on their VFs", on_vf)?;
        let start = Instant::now();
        for _ in 1..times {
            self.revoke_and_return_quietly()?;
        }
        let detail = format!("both VFs, {} times more", times.saturating_sub(1));
        self.demo.timeline.done("stack", "revoked and returned", start, &detail);
        Ok(())
    }

    fn revoke_and_return_quietly(&mut self) -> Result<()> {
        self.set_weights(0)?;
        self.until_all_quietly("all VFs are given back", on_synthetic)?;
        self.set_weights(100)?;
        self.until_all_quietly("all adapters are on their VFs", on_vf)
    }

    /// TCP drops what its own haste has no room for, and sends it again: it has the paths for itself.
    fn stream(&mut self, mebibytes: u64) -> Result<()> {
        let [first, second] = self.world.vms.as_slice() else { return Ok(()) };
        let (from, to) = (first.client.clone(), second.client.clone());
        let start = Instant::now();
        let stream = std::thread::spawn(move || bulk(&from, &to, VMS[1].address, mebibytes));
        let mut times = 0;
        while !stream.is_finished() {
            self.revoke_and_return_quietly()?;
            times += 1;
        }
        let stream = match stream.join() {
            Ok(stream) => stream?,
            Err(_) => bail!("the thread that carries the stream has panicked"),
        };
        let megabits = stream.bytes * 8 / 1000 / stream.milliseconds.max(1);
        let detail = format!(
            "{} MiB, {megabits} Mbit/s, while both VFs were revoked and returned {times} times",
            stream.bytes >> 20
        );
        self.demo.timeline.done("traffic", "bulk transfer", start, &detail);
        if stream.bytes != mebibytes << 20 || stream.wrong_bytes > 0 {
            let problem = format!("the stream did not arrive as it was sent: {stream:?}");
            self.demo.findings.problems.push(problem);
        }
        Ok(())
    }

    /// A PnP manager gives the PF other resources: the stack gives all VFs back first, and gets them again.
    fn rebalance(&mut self) -> Result<()> {
        let nic = self.world.nic();
        let rebalance = std::thread::spawn(move || {
            let mut nic = Nic::connect(&nic, "pnp-manager", PATIENCE, |_| {})?;
            nic.rebalance(PATIENCE)
        });
        self.until_all("the PF runs again and all adapters are on their VFs", |adapters| {
            on_vf(adapters) && rebalance.is_finished()
        })?;
        let outcome = match rebalance.join() {
            Ok(outcome) => outcome?,
            Err(_) => bail!("the thread that asks for the rebalance has panicked"),
        };
        self.demo.timeline.entry("PnP", "rebalance", "ok", 0, &outcome.to_string());
        Ok(())
    }

    /// What moved in good order has lost and doubled nothing.
    fn judge(&mut self) {
        let Passed { sent, lost, doubled, .. } = self.moves.graceful;
        let detail = format!(
            "{lost} lost, {doubled} doubled of {sent} datagrams and acknowledgements, {} switches of the data path",
            self.switches().unwrap_or_default()
        );
        let agrees = lost == 0 && doubled == 0;
        let status = if agrees { "agree" } else { "DIFFER" };
        self.demo.timeline.entry("count", "graceful moves", status, 0, &detail);
        if !agrees {
            let drops = self.world.drops().unwrap_or_default().join(", ");
            let problem = format!("graceful moves: {detail}; counted as dropped: {drops}");
            self.demo.findings.problems.push(problem);
        }
        self.moves.graceful_switches = self.switches().unwrap_or_default();
    }

    fn kill_adapter(&mut self, numbers: &mut [Numbers; 2]) -> Result<()> {
        let graceful = self.moves.graceful;
        self.world.kill_adapter()?;
        let start = Instant::now();
        self.until_all("all adapters are on the synthetic path", |adapters| {
            adapters.iter().all(|adapter| adapter.data_path == DataPath::Synthetic)
        })?;
        // The stack has told the guests; each of them has to hear it.
        super::wait_until("the guests have left their VFs", || {
            let left = |adapter: &AdapterStatistics| adapter.path == Some(GuestPath::Synthetic);
            Ok(self.adapters()?.iter().all(left))
        })?;
        self.demo.timeline.done(
            "stack",
            "surprise removal",
            start,
            "the VMs reach each other by the switch",
        );
        let mut surprise = self.mark("while the adapter was killed", numbers)?;
        let mut after = self.mark("without an adapter", numbers)?;
        self.world.restart_adapter(PATIENCE)?;
        self.until_all("all adapters are on VFs of the new adapter", on_vf)?;
        after += self.mark("while another adapter took its place", numbers)?;
        // These are no graceful moves.
        self.moves.graceful = graceful;
        let under_way = 2 * WINDOW * 2;
        let detail = format!(
            "{} lost, {} doubled until the guests had left the VFs that were gone, {under_way} datagrams and acknowledgements under way at a time; {} lost, {} doubled from then on",
            surprise.lost, surprise.doubled, after.lost, after.doubled
        );
        let agrees = surprise.doubled == 0 && after.lost == 0 && after.doubled == 0;
        surprise += after;
        self.moves.surprise = surprise;
        let adapters = self.adapters()?;
        self.moves.surprise_lost_in_rings =
            adapters.iter().map(|adapter| adapter.vf.lost_in_rings).sum();
        let status = if agrees { "agree" } else { "DIFFER" };
        self.demo.timeline.entry("count", "surprise removal", status, 0, &detail);
        if !agrees {
            self.demo.findings.problems.push(format!("surprise removal: {detail}"));
        }
        Ok(())
    }

    fn count_paths(&mut self) -> Result<()> {
        self.chapter("Frames by each path");
        for (vm, adapter) in VMS.iter().zip(self.adapters()?) {
            let (synthetic, vf) = (adapter.synthetic, adapter.vf);
            let paths = Paths {
                vm: vm.name,
                synthetic_sent: synthetic.transmit.frames,
                synthetic_received: synthetic.receive.frames,
                vf_sent: vf.transmit.frames,
                vf_received: vf.receive.frames,
            };
            let detail = format!(
                "synthetic: {} sent, {} received; VF: {} sent, {} received",
                paths.synthetic_sent, paths.synthetic_received, paths.vf_sent, paths.vf_received
            );
            self.demo.timeline.entry("count", vm.name, "ok", 0, &detail);
            self.moves.paths.push(paths);
        }
        Ok(())
    }
}

fn on_vf(adapters: &[AdapterReport]) -> bool {
    adapters.iter().all(|a| a.data_path == DataPath::Vf && a.phase == "Active")
}

fn on_synthetic(adapters: &[AdapterReport]) -> bool {
    adapters.iter().all(|a| a.phase == "Synthetic" && a.virtual_function.is_none())
}

/// A line of the timeline, but for what the lines around it say as well.
fn tell(timeline: &mut Timeline, event: &EventRecord) {
    match &event.event {
        AnyEvent::Stack(Event::StateChanged { .. }) => return,
        AnyEvent::Stack(Event::ReasonsChanged { reasons, .. })
            if reasons.iter().any(|reason| matches!(reason, Reason::InProgress { .. })) =>
        {
            return;
        }
        _ => {}
    }
    let adapter = event.adapter.as_deref().unwrap_or_default();
    if let AnyEvent::Process(ProcessEvent::NicRequest(request)) = &event.event {
        let about = format!("{adapter}{}", request.objects());
        let actor = if request.kind.is_some() { "NDIS" } else { "pcivirt" };
        let (status, took) = (&request.status, request.microseconds);
        return timeline.entry(actor, &request.request, status, took, about.trim_start());
    }
    let text = event.text.strip_prefix(adapter).and_then(|text| text.strip_prefix(": "));
    timeline.entry("stack", adapter, "", 0, text.unwrap_or(&event.text));
}
