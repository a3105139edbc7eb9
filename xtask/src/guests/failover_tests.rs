//! A stock kernel whose own net_failover joins a virtio-net, by vhost-user on a switch, with a VF that a virtualization stack
//! gives it and takes away: all of it as a person would start it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Cache, PING_FUNCTIONS,
    kernel::{Kernel, Series},
    linux_tests::{Clock, LinuxGuest},
    programs::Program,
    qemu::{Lives, Qemu},
};

/// A kernel whose iavf can be joined: that of 6.1 and 6.12 hangs when net_failover opens it.
const SERIES: Series = Series::V7_2;
/// How long the stack may take for a change that the guest takes part in.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long others may take to be there.
const START: Duration = Duration::from_secs(20);
/// How often is looked whether something is so that nobody tells of.
const LOOK: Duration = Duration::from_millis(50);

/// Lines that are shown of each log when something fails.
const SHOWN: usize = 20;

const GUEST_MAC: &str = "02:c1:ea:00:05:01";
const PEER_MAC: &str = "02:c1:ea:00:05:02";

/// Has a guest lose its VF and get it back, under pings and a TCP stream.
pub(crate) fn run(qemu: &Qemu, rounds: u32) -> Result<()> {
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(&cache, SERIES)?;
    drop(cache);
    let clock = Clock::new();
    clock.say(&format!("Linux {}", kernel.release()));
    let lab = Lab::start()?;
    let peer = lab.peer(kernel.busybox())?;
    let mut guest = lab.boot(qemu, &kernel)?;
    guest.expect("booted")?;
    guest.expect("pinged synthetic")?;
    clock.say("it has pinged a user-mode VM by its virtio-net");
    lab.change(100, |adapter| adapter.is_at("active"))?;
    let driver = guest.expect("VF")?;
    ensure!(driver == "iavf", "the VF's driver is {driver}");
    guest.expect("pinged VF")?;
    clock.say("net_failover has joined its VF, and it has pinged by that");
    guest.expect("under traffic")?;
    let (mut longest_leave, mut longest_return) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..rounds {
        longest_leave = longest_leave.max(lab.change(0, |adapter| adapter.is_at("synthetic"))?);
        longest_return = longest_return.max(lab.change(100, |adapter| adapter.is_at("active"))?);
    }
    clock.say(&format!(
        "its VF was revoked and returned {rounds} times, in {longest_leave:.1?} and {longest_return:.1?} at most"
    ));
    guest.tell("over")?;
    let sent = guest.expect("sent")?;
    let lost = guest.expect("lost")?;
    guest.expect("end")?;
    let received = peer.received()?;
    ensure!(received == sent, "the peer has received {received}, and not {sent}");
    clock.say(&format!("its TCP stream is whole; pings: lost {lost}"));
    let numbers: Vec<i64> = lost.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [lost, own, standby] = numbers[..] else { bail!("the guest says {lost:?}") };
    ensure!(
        lost <= own,
        "{lost} pings were not answered, of which its own kernel has dropped {own}"
    );
    ensure!(standby == 0, "{standby} frames came by the standby while it had a primary");
    Ok(())
}

/// An adapter, a switch and a stack.
struct Lab {
    clearway: std::path::PathBuf,
    folder: TempDir,
    _processes: Vec<Process>,
}

/// A process that is ended when this drops.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the stack says of the guest's adapter.
struct Adapter<'a>(&'a Value);

impl Adapter<'_> {
    /// Whether it rests in a phase.
    fn is_at(&self, phase: &str) -> bool {
        let step = self.0.get("state").and_then(|state| state.get(phase)).and_then(Value::as_str);
        step == Some("resting")
    }
}

impl Lab {
    fn start() -> Result<Self> {
        let clearway = Program::Clearway.find()?;
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let path = |name: &str| at.join(name).display().to_string();
        let vm = |name: &str, mac: &str, kind: &str| {
            format!(
                "[[vm]]\nname = \"{name}\"\nsocket = \"{}\"\n[[vm.adapter]]\nname = \"net0\"\nswitch = \"lab\"\n\
                 mac = \"{mac}\"\niov-weight = 0\n{kind}",
                path(&format!("{name}.sock")),
            )
        };
        let vhost = format!("kind = \"vhost-user\"\nsocket = \"{}\"\n", path("net0.vhost"));
        let config = format!(
            "[[nic]]\nname = \"nic0\"\ndirectory = \"{}\"\n[[switch]]\nname = \"lab\"\nsocket = \"{}\"\nnic = \"nic0\"\n\
             iov = true\n{}{}",
            path("nic"),
            path("switch/control.sock"),
            vm("web", GUEST_MAC, &vhost),
            vm("peer", PEER_MAC, ""),
        );
        fs::write(at.join("stack.toml"), config)?;
        let (nic, switch, stack) = (path("nic"), path("switch"), path("stack"));
        let (uplink, file) = (format!("adapter:{nic}"), path("stack.toml"));
        let processes = [
            ("adapter", vec!["adapter", "--directory", &nic, "--vfs", "4", "--uplink", "none"]),
            (
                "switch",
                vec!["switch", "run", "--directory", &switch, "--name", "lab", "--uplink", &uplink],
            ),
            ("stack", vec!["stack", "run", "--config", &file, "--directory", &stack]),
        ];
        let processes = processes.into_iter().map(|(name, arguments)| {
            let log = File::create(at.join(format!("{name}.log")))?;
            let mut command = Command::new(&clearway);
            command.args(arguments).env("CLEARWAY_LOG", "info");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            Ok(Process(
                command.spawn().with_context(|| format!("starting {}", clearway.display()))?,
            ))
        });
        let processes = processes.collect::<Result<Vec<_>>>()?;
        let this = Self { clearway, folder, _processes: processes };
        let start = Instant::now();
        while !this.path("net0.vhost").exists() {
            ensure!(start.elapsed() < START, "the switch serves no port; {}", this.logs());
            std::thread::sleep(LOOK);
        }
        Ok(this)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn logs(&self) -> String {
        let log = |name: &str| {
            let text = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
            format!("{name}: {}", tail.join("\n"))
        };
        ["adapter", "switch", "stack"].map(log).join("\n")
    }

    /// A user-mode VM on the switch, which answers pings and takes a TCP stream.
    fn peer(&self, busybox: &Path) -> Result<Peer> {
        let stream = self.path("stream");
        // nc would close the connection if it had nothing to read itself.
        let script = format!(
            "echo up; sleep infinity | {} nc -l -p 5001 > {}",
            busybox.display(),
            stream.display()
        );
        let mut child = Command::new(&self.clearway)
            .args(["vm", "run", "peer", "--ip", "10.77.0.2/24", "--worker"])
            .arg(self.path("peer.sock"))
            .args(["--", "sh", "-c", &script])
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(self.path("peer.log"))?)
            .spawn()
            .with_context(|| format!("starting {}", self.clearway.display()))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let peer = Peer { _process: Process(child), stream };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said = fs::read_to_string(self.path("peer.log")).unwrap_or_default();
        ensure!(line == "up\n", "the peer did not come up: {}", said.trim());
        Ok(peer)
    }

    /// The guest, started by `clearway vm qemu`.
    fn boot(&self, qemu: &Qemu, kernel: &Kernel) -> Result<LinuxGuest> {
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let program = at.join("qemu");
        qemu.script(&program, Lives::WithWhoeverStartsIt)?;
        let initramfs = at.join("initramfs");
        let script = format!("{PING_FUNCTIONS}{}", include_str!("failover.guest.sh"));
        let modules = ["virtio_net", "net_failover", "iavf"];
        fs::write(&initramfs, kernel.initramfs(&modules, &script)?)?;
        let serial = at.join("serial.sock");
        let listener = UnixListener::bind(&serial)?;
        let mut command = Command::new(&self.clearway);
        command.args(["vm", "qemu", "web", "--memory", "512", "--accelerator", "tcg", "--worker"]);
        command.arg(self.path("web.sock")).arg("--program").arg(&program);
        command.arg("--nic").arg(format!("{GUEST_MAC},{}", self.path("net0.vhost").display()));
        command.args(["--", "-nodefaults", "-display", "none", "-no-user-config", "-no-reboot"]);
        command.arg("-chardev").arg(format!("socket,id=serial,path={}", serial.display()));
        command.args(["-serial", "chardev:serial"]);
        command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(&initramfs);
        // Without no_timer_check an emulated boot hangs now and then.
        command
            .args(["-append", "console=ttyS0 no_timer_check panic=-1 mitigations=off loglevel=5"]);
        command.env("XDG_RUNTIME_DIR", self.folder.path()).env("CLEARWAY_LOG", "info");
        LinuxGuest::start(command, &listener, folder)
    }

    fn stack(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = Command::new(&self.clearway)
            .args(["stack", "--directory"])
            .arg(self.path("stack"))
            .args(arguments)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "clearway stack {arguments:?}: {}", said.trim());
        Ok(output.stdout)
    }

    /// Changes the guest's IovWeight, and waits until its adapter is as it is to be by it: how long that took.
    fn change(&self, weight: u32, done: impl Fn(Adapter<'_>) -> bool) -> Result<Duration> {
        let start = Instant::now();
        self.stack(&["set-adapter", "web", "net0", "--iov-weight", &weight.to_string()])?;
        loop {
            let status: Value = serde_json::from_slice(&self.stack(&["status", "--json"])?)?;
            let adapter = status.pointer("/vms/0/adapters/0").context("the stack's status")?;
            if done(Adapter(adapter)) {
                return Ok(start.elapsed());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "with IovWeight {weight} the adapter stays {adapter}; {}",
                self.logs()
            );
            std::thread::sleep(LOOK);
        }
    }
}

/// The user-mode VM.
struct Peer {
    _process: Process,
    stream: std::path::PathBuf,
}

impl Peer {
    /// MD5 of what it has received.
    fn received(&self) -> Result<String> {
        md5(&self.stream)
    }
}

fn md5(file: &Path) -> Result<String> {
    let output = Command::new("md5sum").arg(file).output().context("starting md5sum")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
