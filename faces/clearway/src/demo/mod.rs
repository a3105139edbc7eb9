//! `clearway demo`: an adapter, two VMs, real traffic, every step as it happens; first with VFs alone, then with the
//! whole stack, whose VMs have a synthetic path as well.
//!
//! Everything is a process of its own, started as a user would start it, and everything is measured at every
//! hop: the demo ends well only if the counters agree and nothing is left behind.

mod capture;
mod hops;
mod processes;
mod replay;
mod stack;
mod timeline;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use adapter::control::AdapterStatus;
use anyhow::{Context, Result, bail, ensure};
use ndis_protocol::{FilterMatch, MacAddress, VlanCondition};
use serde::Serialize;
use uplink::UplinkSpec;
use user_vm::{Program, ProgramOutput, UserVm, UserVmConfig, UserVmError, VmClient};

use crate::{
    nic::{AttachedVf, Nic},
    traffic::{PingOutcome, StreamOutcome},
};
use capture::{Contents, Recording};
use hops::Hop;
use processes::{Belongings, RoleProcess};
use replay::Replay;
use stack::Moves;
use timeline::{Entry, Timeline};

/// Show the whole of it: an adapter, VMs, traffic between them, VFs that come and go under it, teardown.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArguments {
    /// Only one part: vfs is an adapter and two VMs with a VF each, and a VF reset under traffic; stack is adapter,
    /// virtual switch and virtualization stack, with VMs that move between synthetic path and VF under traffic.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Connect the NIC's physical port: pcap:FILE replays a capture to the VMs, pcap:,FILE records what they send
    /// out; tap:NAME, packet:INTERFACE and cable:SOCKET connect them to the world. For the part vfs, which is then the
    /// only one.
    #[arg(long, value_name = "SPEC")]
    uplink: Option<UplinkSpec>,
    /// Mebibytes of each bulk transfer.
    #[arg(long, default_value_t = 256)]
    mebibytes: u64,
    /// Data-path switches between synthetic path and VF.
    #[arg(long, default_value_t = 1000)]
    switches: u64,
    /// Times that both VFs are revoked and returned.
    #[arg(long, default_value_t = 5)]
    revocations: u64,
    /// Print everything as one JSON document.
    #[arg(long)]
    json: bool,
}

/// A part of the demo.
#[derive(clap::ValueEnum, Copy, Clone, Eq, PartialEq, Debug)]
enum Part {
    Vfs,
    Stack,
}

/// How long anything may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at counters, which nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Everything the demo found.
#[derive(Debug, Default, Serialize)]
struct Findings {
    problems: Vec<String>,
    pings: Option<PingOutcome>,
    bulk: Option<Bulk>,
    reset: Option<Reset>,
    replay: Option<Replay>,
    record: Option<Record>,
    hops: Vec<Hop>,
    moves: Option<Moves>,
}

/// Everything that `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'f> {
    ok: bool,
    timeline: &'f [Entry],
    #[serde(flatten)]
    findings: &'f Findings,
}

#[derive(Debug, Serialize)]
struct Bulk {
    stream: StreamOutcome,
    megabits_per_second: u64,
}

#[derive(Debug, Serialize)]
struct Reset {
    /// From the PF's reset until the VF's driver had all back.
    recovered_after_ms: u64,
    /// Pings sent and answered while the VF was reset.
    pings: PingOutcome,
}

/// What left by the uplink into a capture.
#[derive(Debug, Serialize)]
struct Record {
    frames_on_the_uplink: u64,
    frames_in_capture: u64,
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
        belongings: Belongings::default(),
        findings: Findings::default(),
    };
    demo.belongings.watch()?;
    let outcome = demo.play(arguments);
    if let Err(error) = &outcome {
        demo.findings.problems.push(format!("{error:#}"));
    }
    let Demo { timeline, findings, .. } = &demo;
    let report =
        Report { ok: findings.problems.is_empty(), timeline: timeline.entries(), findings };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if report.ok {
        println!("\nEverything agrees.");
    } else {
        for problem in &findings.problems {
            eprintln!("clearway: {problem}");
        }
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Demo {
    timeline: Timeline,
    belongings: Belongings,
    findings: Findings,
}

impl Demo {
    fn play(&mut self, arguments: &DemoArguments) -> Result<()> {
        let part = match (arguments.part, &arguments.uplink) {
            (Some(Part::Stack), Some(_)) => bail!("--uplink is for the part vfs"),
            (None, Some(_)) => Some(Part::Vfs),
            (part, _) => part,
        };
        if part != Some(Part::Stack) {
            self.vfs(arguments)?;
        }
        if part != Some(Part::Vfs) {
            let directory = self.directory()?;
            let pids = stack::play(self, directory.path(), arguments)?;
            self.nothing_is_left(directory, &pids)?;
        }
        Ok(())
    }

    /// A folder for sockets, which goes with the demo.
    fn directory(&mut self) -> Result<tempfile::TempDir> {
        let directory = tempfile::Builder::new()
            .prefix("clearway-demo-")
            .tempdir()
            .context("a folder for the sockets")?;
        self.belongings.lock().directory = Some(directory.path().to_owned());
        Ok(directory)
    }

    /// The part without synthetic path.
    fn vfs(&mut self, arguments: &DemoArguments) -> Result<()> {
        let contents = match &arguments.uplink {
            Some(UplinkSpec::Pcap { input: Some(path), .. }) => Some(Contents::of(path)?),
            _ => None,
        };
        let directory = self.directory()?;
        let sockets = directory.path().join("adapter");

        self.timeline.chapter("The adapter");
        let start = Instant::now();
        let arguments_of_adapter = ["adapter", "--vfs", "4", "--directory"].map(OsStr::new);
        let mut adapter = RoleProcess::start(
            "the adapter",
            arguments_of_adapter.into_iter().chain([sockets.as_os_str()]),
            &[],
            &self.belongings,
        )?
        .serving(&adapter::control_socket(&sockets), PATIENCE)?;
        let mut pids = Vec::new();
        let played = self.with_adapter(arguments, contents.as_ref(), &directory, start, &mut pids);
        if let Err(error) = played {
            // Whatever was noticed first: without its adapter nothing can go on.
            return Err(match adapter.ensure_it_runs() {
                Ok(()) => error,
                Err(end) => end,
            });
        }
        adapter.wait()?;
        self.timeline.done("adapter", "adapter has ended", Instant::now(), "");
        self.nothing_is_left(directory, &pids)
    }

    /// Everything from the adapter's first answer to its last.
    fn with_adapter(
        &mut self,
        arguments: &DemoArguments,
        contents: Option<&Contents>,
        directory: &tempfile::TempDir,
        start: Instant,
        pids: &mut Vec<u32>,
    ) -> Result<()> {
        let vms = vms(contents);
        let sockets = directory.path().join("adapter");
        let status = self.with_nic(&sockets, |nic| nic.status())?;
        for oid in &status.ndis_oids {
            let detail =
                format!("default switch with {} VFs, read from the configuration", status.num_vfs);
            self.timeline.entry("NDIS", &oid.name, &oid.status, oid.microseconds, &detail);
        }
        let copies = format!("copies by {}", status.copy_method);
        self.timeline.done("adapter", "adapter is up", start, &copies);

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

        let recording = match &arguments.uplink {
            Some(UplinkSpec::Pcap { input: None, output: Some(path), .. }) => Some(path),
            _ => None,
        };
        if let (Some(_), Some(spec)) = (recording, &arguments.uplink) {
            self.with_nic(&sockets, |nic| nic.set_uplink(spec))?;
        }
        let traffic = self.traffic(arguments, &sockets, &vms, &running);
        let uplink = match (&traffic, &arguments.uplink, recording) {
            (Err(_), ..) | (Ok(()), None, _) => Ok(()),
            (Ok(()), Some(_), Some(path)) => self.check_record(path, &sockets),
            (Ok(()), Some(spec), None) => {
                self.timeline.chapter("The uplink");
                match contents {
                    Some(contents) => {
                        let setting = replay::Setting {
                            sockets: &sockets,
                            directory: directory.path(),
                            vms: &vms,
                            attached: &attached,
                            running: &running,
                        };
                        self.replay(spec, contents, &setting)
                    }
                    None => self.with_nic(&sockets, |nic| nic.set_uplink(spec)),
                }
            }
        };
        let teardown = self.teardown(&sockets, running, &attached, pids);
        traffic.and(uplink).and(teardown)
    }

    fn teardown(
        &mut self,
        sockets: &Path,
        running: Vec<UserVm>,
        attached: &[AttachedVf],
        pids: &mut Vec<u32>,
    ) -> Result<()> {
        self.timeline.chapter("Teardown");
        let start = Instant::now();
        for vm in running {
            pids.push(vm.pid());
            vm.shutdown();
        }
        self.timeline.done("VM", "both VMs have ended", start, "");
        for vf in attached {
            self.with_nic(sockets, |nic| nic.detach_vf(vf))?;
        }
        self.with_nic(sockets, |nic| nic.shutdown())
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
            self.findings.problems.push(format!("pings were lost or doubled: {pings:?}"));
        }
        self.findings.pings = Some(pings);

        let start = Instant::now();
        let stream = bulk(one, two, to, arguments.mebibytes)?;
        let expected = arguments.mebibytes << 20;
        let megabits = stream.bytes * 8 / 1000 / stream.milliseconds.max(1);
        let detail = format!("{} MiB by TCP, {megabits} Mbit/s", stream.bytes >> 20);
        self.timeline.done("traffic", "bulk transfer", start, &detail);
        if stream.bytes != expected || stream.wrong_bytes > 0 {
            self.findings
                .problems
                .push(format!("the stream did not arrive as it was sent: {stream:?}"));
        }
        self.findings.bulk = Some(Bulk { stream, megabits_per_second: megabits });
        self.count_hops(sockets, running)?;

        self.timeline.chapter("VF 1 is reset by the PF under traffic, and recovers");
        let start = Instant::now();
        let (pings, recovered) = std::thread::scope(|scope| -> Result<_> {
            let pinging =
                scope.spawn(|| in_vm(one, &["ping", to, "--count", "150", "--interval", "10"]));
            // The first pings are under way before the reset.
            let before = one.statistics()?.to_vf.packets;
            wait_until("the pings begin", || Ok(one.statistics()?.to_vf.packets > before))?;
            let reset = Instant::now();
            self.with_nic(sockets, |nic| nic.pf_reset_vf(1))?;
            wait_until("the VF's driver recovers", || {
                let vf = two.statistics()?.vf;
                Ok(vf.resets > 0 && vf.present && vf.link_up)
            })?;
            let recovered = reset.elapsed();
            match pinging.join() {
                Ok(pings) => Ok((pings?, recovered)),
                Err(_) => bail!("the thread that pings has panicked"),
            }
        })?;
        let pings: PingOutcome = pings;
        let after: PingOutcome = in_vm(one, &["ping", to, "--count", "5"])?;
        let detail = format!(
            "driver back after {} ms; {} of {} pings answered across the reset, silence of {} ms at most; \
             then {} of {}",
            recovered.as_millis(),
            pings.received,
            pings.sent,
            pings.longest_silence_us / 1000,
            after.received,
            after.sent
        );
        self.timeline.done("traffic", "VF has recovered", start, &detail);
        if after.received != after.sent || after.sent != 5 {
            self.findings.problems.push(format!("pings were lost after the reset: {after:?}"));
        }
        let recovered_after_ms = u64::try_from(recovered.as_millis())?;
        self.findings.reset = Some(Reset { recovered_after_ms, pings });
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
                Hop::between(first, second, first_vm, second_vm),
                Hop::between(second, first, second_vm, first_vm),
            ];
            if hops.iter().all(Hop::agrees) || Instant::now() > deadline {
                break hops;
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        for hop in &hops {
            let status = if hop.agrees() { "agree" } else { "DIFFER" };
            self.timeline.entry("count", &hop.direction, status, 0, &hop.detail());
            if !hop.agrees() {
                self.findings.problems.push(format!("frame counts differ: {hop:?}"));
            }
        }
        self.findings.hops = hops;
        Ok(())
    }

    /// Compares what the VMs sent out with what was recorded of it.
    fn check_record(&mut self, path: &Path, sockets: &Path) -> Result<()> {
        self.timeline.chapter("The uplink");
        let deadline = Instant::now() + PATIENCE;
        let record = loop {
            let frames_on_the_uplink = self.status(sockets)?.uplink.stats.sent;
            let recording = Recording::of(path);
            let frames_in_capture = recording.as_ref().map_or(0, |recording| recording.frames);
            if recording.is_ok() && frames_in_capture == frames_on_the_uplink {
                break Record { frames_on_the_uplink, frames_in_capture };
            }
            if Instant::now() > deadline {
                recording?;
                break Record { frames_on_the_uplink, frames_in_capture };
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        let agrees = record.frames_on_the_uplink == record.frames_in_capture;
        let detail = format!(
            "{} frames left by the uplink, {} are in {}",
            record.frames_on_the_uplink,
            record.frames_in_capture,
            path.display()
        );
        let status = if agrees { "agree" } else { "DIFFER" };
        self.timeline.entry("count", "record", status, 0, &detail);
        if !agrees {
            self.findings.problems.push(format!("frame counts differ: {detail}"));
        }
        self.findings.record = Some(record);
        Ok(())
    }

    /// No process, no socket, no folder; a namespace lives only as long as its processes.
    fn nothing_is_left(&mut self, directory: tempfile::TempDir, pids: &[u32]) -> Result<()> {
        let start = Instant::now();
        let left: Vec<PathBuf> = walk(directory.path())?;
        if !left.is_empty() {
            self.findings.problems.push(format!("sockets or files are left: {left:?}"));
        }
        directory.close().context("removing the folder of the sockets")?;
        for pid in pids {
            if Path::new(&format!("/proc/{pid}")).exists() {
                self.findings.problems.push(format!("process {pid} of a VM is left"));
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

/// A VM, however it was started.
trait Runs {
    /// Runs a program in it to its end.
    fn output(&self, program: Program) -> Result<ProgramOutput, UserVmError>;
}

impl Runs for UserVm {
    fn output(&self, program: Program) -> Result<ProgramOutput, UserVmError> {
        Self::output(self, program)
    }
}

impl Runs for VmClient {
    fn output(&self, program: Program) -> Result<ProgramOutput, UserVmError> {
        Self::output(self, program)
    }
}

/// Runs one of the traffic commands in a VM and reads its outcome.
fn in_vm<T: serde::de::DeserializeOwned>(vm: &impl Runs, arguments: &[&str]) -> Result<T> {
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
fn bulk<V: Runs + Sync>(from: &V, to: &V, address: &str, mebibytes: u64) -> Result<StreamOutcome> {
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
        ensure!(
            start.elapsed() < PATIENCE,
            "after {} s it is still not so that {what}",
            PATIENCE.as_secs()
        );
        std::thread::sleep(LOOK_AGAIN);
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
