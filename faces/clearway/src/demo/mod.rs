//! `clearway demo`: an adapter, two VMs, real traffic, every step as it happens.
//!
//! Everything is a process of its own, started as a user would start it, and everything is measured at every
//! hop: the demo ends well only if the counters agree and nothing is left behind.

mod capture;
mod timeline;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use adapter::control::{AdapterStatus, VfStatus};
use anyhow::{Context, Result, bail, ensure};
use ndis_protocol::{FilterMatch, MacAddress, VlanCondition};
use serde::Serialize;
use uplink::UplinkSpec;
use user_vm::{Program, UserVm, UserVmConfig};

use crate::{
    nic::{AttachedVf, Nic},
    traffic::{PingOutcome, StreamOutcome},
};
use capture::Contents;
use timeline::{Entry, Timeline};

/// Show the whole of it: an adapter, two VMs with a VF each, traffic between them, a VF reset, teardown.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArguments {
    /// Connect the NIC's physical port: pcap:FILE replays a capture to the VMs; tap:NAME, packet:INTERFACE
    /// and cable:SOCKET connect them to the world.
    #[arg(long, value_name = "SPEC")]
    uplink: Option<UplinkSpec>,
    /// Mebibytes of the bulk transfer.
    #[arg(long, default_value_t = 256)]
    mebibytes: u64,
    /// Print everything as one JSON document.
    #[arg(long)]
    json: bool,
}

/// How long anything may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything the demo found.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    problems: Vec<String>,
    timeline: Vec<Entry>,
    pings: Option<PingOutcome>,
    bulk: Option<Bulk>,
    reset: Option<Reset>,
    replay: Option<Replay>,
    hops: Vec<Hop>,
}

#[derive(Debug, Serialize)]
struct Bulk {
    stream: StreamOutcome,
    megabits_per_second: u64,
}

#[derive(Debug, Serialize)]
struct Reset {
    /// From the PF's reset to the first answered ping.
    recovered_after_ms: u64,
    /// Pings sent and answered while the VF was reset.
    pings: PingOutcome,
}

#[derive(Debug, Serialize)]
struct Replay {
    frames_in_capture: u64,
    frames_on_the_uplink: u64,
    vms: Vec<ReplayedVm>,
}

#[derive(Debug, Serialize)]
struct ReplayedVm {
    vm: String,
    mac: String,
    unicast_in_capture: u64,
    unicast_received: u64,
    broadcast_in_capture: u64,
    broadcast_received: u64,
    multicast_received: u64,
    no_buffer: u64,
}

/// Frames at the places that a frame from one VM to the other passes.
#[derive(Debug, Serialize)]
struct Hop {
    direction: String,
    sent_by_vm: u64,
    entered_the_switch: u64,
    /// Of those, multicast: delivered only to VMs that listen to the group.
    entered_to_groups: u64,
    /// By the switch: nobody to receive, or against its policies.
    refused: u64,
    left_the_switch: u64,
    left_to_groups: u64,
    without_a_buffer: u64,
    received_by_vm: u64,
}

/// The adapter's process; it dies with us.
struct AdapterProcess(Child);

impl AdapterProcess {
    fn start(directory: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let child = Command::new(program)
            .args(["adapter", "--vfs", "4", "--die-with-parent", "--directory"])
            .arg(directory)
            .stdin(Stdio::null())
            .spawn()
            .context("starting the adapter")?;
        Ok(Self(child))
    }

    /// Waits for its end after it was asked to.
    fn wait(mut self) -> Result<()> {
        let status = self.0.wait()?;
        ensure!(status.success(), "the adapter ended with {status}");
        Ok(())
    }
}

impl Drop for AdapterProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A VM of the demo.
struct Vm {
    name: &'static str,
    address: &'static str,
    mac: MacAddress,
}

pub(crate) fn run(arguments: &DemoArguments) -> Result<ExitCode> {
    let mut demo = Demo {
        timeline: Timeline::new(arguments.json),
        problems: Vec::new(),
        pings: None,
        bulk: None,
        reset: None,
        replay: None,
        hops: Vec::new(),
    };
    let outcome = demo.play(arguments);
    if let Err(error) = &outcome {
        demo.problems.push(format!("{error:#}"));
    }
    let report = Report {
        ok: demo.problems.is_empty(),
        timeline: demo.timeline.entries().to_vec(),
        problems: demo.problems,
        pings: demo.pings,
        bulk: demo.bulk,
        reset: demo.reset,
        replay: demo.replay,
        hops: demo.hops,
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if report.ok {
        println!("\nEverything agrees.");
    } else {
        for problem in &report.problems {
            eprintln!("clearway: {problem}");
        }
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Demo {
    timeline: Timeline,
    problems: Vec<String>,
    pings: Option<PingOutcome>,
    bulk: Option<Bulk>,
    reset: Option<Reset>,
    replay: Option<Replay>,
    hops: Vec<Hop>,
}

impl Demo {
    fn play(&mut self, arguments: &DemoArguments) -> Result<()> {
        let contents = match &arguments.uplink {
            Some(UplinkSpec::Pcap { input: Some(path), .. }) => Some(Contents::of(path)?),
            _ => None,
        };
        let vms = vms(contents.as_ref());
        let directory = tempfile::Builder::new()
            .prefix("clearway-demo-")
            .tempdir()
            .context("a folder for the sockets")?;
        let sockets = directory.path().join("adapter");

        self.timeline.chapter("The adapter");
        let start = Instant::now();
        let adapter = AdapterProcess::start(&sockets)?;
        let status = self.with_nic(&sockets, |nic| nic.status())?;
        for oid in &status.ndis_oids {
            let detail =
                format!("default switch with {} VFs, read from the configuration", status.num_vfs);
            self.timeline.entry("NDIS", &oid.name, &oid.status, oid.microseconds, &detail);
        }
        self.timeline.done(
            "adapter",
            "adapter is up",
            start,
            &format!("copies by {}", status.copy_method),
        );

        self.timeline.chapter("A VF for each VM");
        let mut attached = Vec::new();
        for vm in &vms {
            let matches =
                FilterMatch { mac: vm.mac, vlan: VlanCondition::UntaggedOrZero, inner: false };
            attached.push(self.with_nic(&sockets, |nic| nic.attach_vf(vm.name, matches, 1))?);
        }

        self.timeline.chapter("The VMs");
        let mut running = Vec::new();
        for (vm, vf) in vms.iter().zip(&attached) {
            running.push(self.boot(vm, vf, directory.path())?);
        }

        let traffic = self.traffic(arguments, &sockets, &vms, &running);
        let replay = match (traffic, &arguments.uplink) {
            (Ok(()), Some(spec)) => {
                self.connect_uplink(spec, contents.as_ref(), &sockets, &vms, &attached)
            }
            (outcome, _) => outcome,
        };

        self.timeline.chapter("Teardown");
        let start = Instant::now();
        let mut pids = Vec::new();
        for vm in running {
            pids.push(vm.pid());
            vm.shutdown();
        }
        self.timeline.done("VM", "both VMs have ended", start, "");
        for vf in &attached {
            self.with_nic(&sockets, |nic| nic.detach_vf(vf))?;
        }
        let start = Instant::now();
        self.with_nic(&sockets, |nic| nic.shutdown())?;
        adapter.wait()?;
        self.timeline.done("adapter", "adapter has ended", start, "");
        self.nothing_is_left(directory, &pids)?;
        replay
    }

    /// Talks to the adapter; each request is a line of the timeline.
    fn with_nic<R>(
        &mut self,
        sockets: &Path,
        talk: impl FnOnce(&mut Nic<'_>) -> Result<R>,
    ) -> Result<R> {
        let timeline = &mut self.timeline;
        let mut nic = Nic::connect(sockets, "virtualization-stack", PATIENCE, |step| {
            timeline.step("stack", step);
        })?;
        talk(&mut nic)
    }

    fn status(&mut self, sockets: &Path) -> Result<AdapterStatus> {
        self.with_nic(sockets, |nic| nic.status())
    }

    fn boot(&mut self, vm: &Vm, vf: &AttachedVf, directory: &Path) -> Result<UserVm> {
        let start = Instant::now();
        let mut config = UserVmConfig::new(vm.name, &vf.socket);
        config.addresses = vec![vm.address.parse()?];
        config.control_socket = Some(directory.join(format!("{}.sock", vm.name)));
        let machine = UserVm::spawn(&config).with_context(|| format!("starting {}", vm.name))?;
        let statistics = machine.statistics()?;
        let detail =
            format!("{} has eth0 {} with {}, carried by VF {}", vm.name, vm.address, vm.mac, vf.vf);
        self.timeline.done("VM", "VF driver is up", start, &detail);
        ensure!(statistics.vf.link_up || statistics.vf.present, "{} has no VF", vm.name);
        Ok(machine)
    }

    fn traffic(
        &mut self,
        arguments: &DemoArguments,
        sockets: &Path,
        vms: &[Vm],
        running: &[UserVm],
    ) -> Result<()> {
        let ([_, second], [one, two]) = (vms, running) else { bail!("the demo has two VMs") };
        let to = second.address.split('/').next().unwrap_or_default();

        self.timeline.chapter("Traffic from VM to VM, through the NIC switch");
        let start = Instant::now();
        let pings: PingOutcome = in_vm(one, &["ping", to, "--count", "20"])?;
        let detail = format!(
            "{} of {} answered, {} / {} / {} µs fastest, median, slowest",
            pings.received, pings.sent, pings.fastest_us, pings.median_us, pings.slowest_us
        );
        self.timeline.done("traffic", "ping", start, &detail);
        if pings.received != pings.sent || pings.sent != 20 || pings.duplicates > 0 {
            self.problems.push(format!("pings were lost or doubled: {pings:?}"));
        }
        self.pings = Some(pings);

        let start = Instant::now();
        let stream = bulk(one, two, to, arguments.mebibytes)?;
        let expected = arguments.mebibytes << 20;
        let megabits = stream.bytes * 8 / 1000 / stream.milliseconds.max(1);
        let detail = format!("{} MiB by TCP, {megabits} Mbit/s", stream.bytes >> 20);
        self.timeline.done("traffic", "bulk transfer", start, &detail);
        if stream.bytes != expected || stream.wrong_bytes > 0 {
            self.problems.push(format!("the stream did not arrive as it was sent: {stream:?}"));
        }
        self.bulk = Some(Bulk { stream, megabits_per_second: megabits });
        self.count_hops(sockets, running)?;

        self.timeline.chapter("VF 1 is reset by the PF under traffic, and recovers");
        let start = Instant::now();
        let pings = std::thread::scope(|scope| -> Result<PingOutcome> {
            let pinging =
                scope.spawn(|| in_vm(one, &["ping", to, "--count", "150", "--interval", "10"]));
            // The first pings are under way before the reset.
            wait_until("the pings have begun", || Ok(one.statistics()?.to_vf.packets > 0))?;
            self.with_nic(sockets, |nic| nic.pf_reset_vf(1))?;
            match pinging.join() {
                Ok(pings) => pings,
                Err(_) => bail!("the thread that pings has panicked"),
            }
        })?;
        wait_until("the VF driver has recovered", || Ok(two.statistics()?.vf.resets > 0))?;
        let again = Instant::now();
        let after: PingOutcome = in_vm(one, &["ping", to, "--count", "5"])?;
        let detail = format!(
            "{} of {} pings answered across the reset, then {} of {}",
            pings.received, pings.sent, after.received, after.sent
        );
        self.timeline.done("traffic", "VF has recovered", start, &detail);
        if after.received != after.sent {
            self.problems.push(format!("pings were lost after the reset: {after:?}"));
        }
        let recovered = again.duration_since(start).as_millis();
        self.reset = Some(Reset { recovered_after_ms: u64::try_from(recovered)?, pings });
        Ok(())
    }

    /// Compares what was counted at every hop, once nothing moves any more.
    fn count_hops(&mut self, sockets: &Path, running: &[UserVm]) -> Result<()> {
        let [one, two] = running else { bail!("the demo has two VMs") };
        self.timeline.chapter("Frames at every hop");
        let deadline = Instant::now() + PATIENCE;
        let hops = loop {
            let status = self.status(sockets)?;
            let statistics = [one.statistics()?, two.statistics()?];
            let [first, second] = status.vfs.as_slice() else { bail!("there are not two VFs") };
            let [first_vm, second_vm] = &statistics;
            let hops = vec![
                hop(first, second, first_vm, second_vm),
                hop(second, first, second_vm, first_vm),
            ];
            if hops.iter().all(Hop::agrees) || Instant::now() > deadline {
                break hops;
            }
            std::thread::yield_now();
        };
        for hop in &hops {
            let detail = format!(
                "{} sent by the VM, {} into the switch ({} to groups), {} refused; {} out of it ({} to groups), \
                 {} without a buffer; {} received by the VM",
                hop.sent_by_vm,
                hop.entered_the_switch,
                hop.entered_to_groups,
                hop.refused,
                hop.left_the_switch,
                hop.left_to_groups,
                hop.without_a_buffer,
                hop.received_by_vm
            );
            let status = if hop.agrees() { "agree" } else { "DIFFER" };
            self.timeline.entry("count", &hop.direction, status, 0, &detail);
            if !hop.agrees() {
                self.problems.push(format!("frame counts differ: {hop:?}"));
            }
        }
        self.hops = hops;
        Ok(())
    }

    fn connect_uplink(
        &mut self,
        spec: &UplinkSpec,
        contents: Option<&Contents>,
        sockets: &Path,
        vms: &[Vm],
        attached: &[AttachedVf],
    ) -> Result<()> {
        self.timeline.chapter("The uplink");
        let before = self.status(sockets)?;
        let start = Instant::now();
        self.with_nic(sockets, |nic| nic.set_uplink(&spec.to_string()))?;
        let Some(contents) = contents else { return Ok(()) };
        let after = loop {
            let status = self.status(sockets)?;
            if status.uplink.replay_finished == Some(true) {
                break status;
            }
            if let Some(error) = &status.uplink.last_error {
                bail!("the replay failed: {error}");
            }
            ensure!(start.elapsed() < PATIENCE * 10, "the replay does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let replayed = after.uplink.stats.received - before.uplink.stats.received;
        self.timeline.done(
            "uplink",
            "replay",
            start,
            &format!("{replayed} of {} frames of the capture", contents.frames),
        );
        if replayed != contents.frames {
            self.problems.push(format!(
                "the capture has {} frames, the uplink has delivered {replayed}",
                contents.frames
            ));
        }
        let mut report = Replay {
            frames_in_capture: contents.frames,
            frames_on_the_uplink: replayed,
            vms: Vec::new(),
        };
        for (vm, vf) in vms.iter().zip(attached) {
            let find = |status: &AdapterStatus| {
                status
                    .vfs
                    .iter()
                    .find(|entry| entry.vf == vf.vf)
                    .map(|entry| entry.function.stats.receive)
            };
            let (Some(before), Some(after)) = (find(&before), find(&after)) else {
                bail!("VF {} is gone", vf.vf);
            };
            let row = ReplayedVm {
                vm: vm.name.to_owned(),
                mac: vm.mac.to_string(),
                unicast_in_capture: contents.unicast.get(&vm.mac.octets()).copied().unwrap_or(0),
                unicast_received: after.unicast - before.unicast,
                broadcast_in_capture: contents.broadcast,
                broadcast_received: after.broadcast - before.broadcast,
                multicast_received: after.multicast - before.multicast,
                no_buffer: after.no_buffer - before.no_buffer,
            };
            let detail = format!(
                "{}: {} of {} unicast, {} of {} broadcast, {} of {} multicast, {} without a buffer",
                row.mac,
                row.unicast_received,
                row.unicast_in_capture,
                row.broadcast_received,
                row.broadcast_in_capture,
                row.multicast_received,
                contents.multicast,
                row.no_buffer
            );
            let agree = row.no_buffer + row.unicast_received + row.broadcast_received
                >= row.unicast_in_capture + row.broadcast_in_capture;
            self.timeline.entry(
                "VM",
                &format!("{} received", vm.name),
                if agree { "agree" } else { "DIFFER" },
                0,
                &detail,
            );
            if !agree {
                self.problems.push(format!("{} did not receive what was for it: {row:?}", vm.name));
            }
            report.vms.push(row);
        }
        self.replay = Some(report);
        Ok(())
    }

    /// No process, no socket, no folder; a namespace lives only as long as its processes.
    fn nothing_is_left(&mut self, directory: tempfile::TempDir, pids: &[u32]) -> Result<()> {
        let start = Instant::now();
        let left: Vec<PathBuf> = walk(directory.path())?;
        if !left.is_empty() {
            self.problems.push(format!("sockets or files are left: {left:?}"));
        }
        directory.close().context("removing the folder of the sockets")?;
        for pid in pids {
            if Path::new(&format!("/proc/{pid}")).exists() {
                self.problems.push(format!("process {pid} of a VM is left"));
            }
        }
        self.timeline.done("demo", "nothing is left", start, "no process, socket or namespace");
        Ok(())
    }
}

/// The two VMs: with a capture, the stations that most of its frames go to.
fn vms(contents: Option<&Contents>) -> [Vm; 2] {
    let mut macs = contents.map(|contents| contents.busiest(2)).unwrap_or_default().into_iter();
    let mut mac = |last| macs.next().unwrap_or(MacAddress::new([2, 0xC1, 0xEA, 0, 1, last]));
    [
        Vm { name: "vm1", address: "10.77.0.1/24", mac: mac(1) },
        Vm { name: "vm2", address: "10.77.0.2/24", mac: mac(2) },
    ]
}

fn hop(
    from: &VfStatus,
    to: &VfStatus,
    sender: &user_vm::VmStatistics,
    receiver: &user_vm::VmStatistics,
) -> Hop {
    Hop {
        direction: format!("VF {} to VF {}", from.vf, to.vf),
        sent_by_vm: sender.to_vf.frames,
        entered_the_switch: from.function.stats.transmit.frames(),
        entered_to_groups: from.function.stats.transmit.multicast,
        refused: from.function.stats.transmit.discards() + from.function.stats.transmit.errors(),
        left_to_groups: to.function.stats.receive.multicast,
        left_the_switch: to.function.stats.receive.frames(),
        without_a_buffer: to.function.stats.receive.discards(),
        received_by_vm: receiver.to_guest.frames,
    }
}

impl Hop {
    fn agrees(&self) -> bool {
        let entered = self.entered_the_switch - self.entered_to_groups;
        let left = self.left_the_switch - self.left_to_groups;
        self.sent_by_vm == self.entered_the_switch + self.refused
            && entered == left + self.without_a_buffer
            && self.left_the_switch == self.received_by_vm
    }
}

/// Runs one of the traffic commands in a VM and reads its outcome.
fn in_vm<T: serde::de::DeserializeOwned>(vm: &UserVm, arguments: &[&str]) -> Result<T> {
    let outcome = vm.output(Program::new(command(arguments)?))?;
    ensure!(
        outcome.exit.success(),
        "{} in the VM ended with {}: {}",
        arguments.join(" "),
        outcome.exit,
        String::from_utf8_lossy(&outcome.stderr).trim()
    );
    serde_json::from_slice(&outcome.stdout)
        .with_context(|| format!("the outcome of {}", arguments.join(" ")))
}

fn command(arguments: &[&str]) -> Result<Vec<std::ffi::OsString>> {
    let program = std::env::current_exe().context("the path of this program")?;
    let mut command = vec![program.into_os_string(), "traffic".into()];
    command.extend(arguments.iter().map(Into::into));
    Ok(command)
}

/// Sends a stream from one VM to the other.
fn bulk(from: &UserVm, to: &UserVm, address: &str, mebibytes: u64) -> Result<StreamOutcome> {
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| in_vm::<StreamOutcome>(to, &["receive"]));
        let mebibytes = mebibytes.to_string();
        let program = Program::new(command(&["send", address, "--mebibytes", &mebibytes])?);
        let sent = from.output(program)?;
        ensure!(
            sent.exit.success(),
            "sending ended with {}: {}",
            sent.exit,
            String::from_utf8_lossy(&sent.stderr).trim()
        );
        match receiving.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("the thread that receives has panicked"),
        }
    })
}

/// Looks again and again until something is true.
fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < PATIENCE, "it takes too long until {what}");
        std::thread::yield_now();
    }
    Ok(())
}

/// Everything in a folder that is not a folder.
fn walk(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(walk(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}
