//! An adapter, a switch and a virtualization stack with guests in QEMU, each as a person would start it.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    guest::{COMMON, LinuxGuest},
    scene::Scene,
};
use crate::guests::{PING_FUNCTIONS, qemu::Lives};

/// How long the stack may take for a change that a guest takes part in.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long others may take to be there.
const START: Duration = Duration::from_secs(20);
/// How often is looked whether something is so that nobody tells of.
const LOOK: Duration = Duration::from_millis(50);

/// A VM of the lab.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Station {
    pub(crate) name: &'static str,
    pub(crate) mac: &'static str,
    pub(crate) address: &'static str,
}

/// Guests in QEMU, and a user-mode VM.
pub(crate) const WEB: Station =
    Station { name: "web", mac: "02:c1:ea:00:05:01", address: "10.77.0.1" };
pub(crate) const DB: Station =
    Station { name: "db", mac: "02:c1:ea:00:05:03", address: "10.77.0.3" };
pub(crate) const PEER: Station =
    Station { name: "peer", mac: "02:c1:ea:00:05:02", address: "10.77.0.2" };

/// A process without which the lab is not whole.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Daemon {
    Adapter,
    Switch,
    Stack,
}

impl Daemon {
    pub(crate) const ALL: [Self; 3] = [Self::Adapter, Self::Switch, Self::Stack];
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adapter => "adapter",
            Self::Switch => "switch",
            Self::Stack => "stack",
        })
    }
}

/// All of it; ended when this drops.
pub(crate) struct Lab<'a> {
    scene: &'a Scene<'a>,
    folder: TempDir,
    daemons: Vec<(Daemon, Process)>,
}

/// A process that is ended when this drops.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Lab<'a> {
    /// Starts the three.
    pub(crate) fn start(scene: &'a Scene<'a>) -> Result<Self> {
        let mut this = Self { scene, folder: tempfile::tempdir()?, daemons: Vec::new() };
        this.configure(0)?;
        for daemon in Daemon::ALL {
            this.begin(daemon)?;
        }
        let start = Instant::now();
        for station in [WEB, DB] {
            while !this.path(&format!("{}.vhost", station.name)).exists() {
                ensure!(start.elapsed() < START, "the switch serves no port for {}", station.name);
                std::thread::sleep(LOOK);
            }
        }
        Ok(this)
    }

    /// Writes the stack's file, with this IovWeight for all; it counts for the stack that is started next.
    pub(crate) fn configure(&self, weight: u32) -> Result<()> {
        let path = |name: &str| self.path(name).display().to_string();
        let vm = |Station { name, mac, .. }: Station, kind: &str| {
            format!(
                "[[vm]]\nname = \"{name}\"\nsocket = \"{}\"\n[[vm.adapter]]\nname = \"net0\"\nswitch = \"lab\"\n\
                 mac = \"{mac}\"\niov-weight = {weight}\n{kind}",
                path(&format!("{name}.sock")),
            )
        };
        let vhost = |Station { name, .. }: Station| {
            format!("kind = \"vhost-user\"\nsocket = \"{}\"\n", path(&format!("{name}.vhost")))
        };
        let config = format!(
            "[[nic]]\nname = \"nic0\"\ndirectory = \"{}\"\n[[switch]]\nname = \"lab\"\nsocket = \"{}\"\nnic = \"nic0\"\n\
             iov = true\n{}{}{}",
            path("nic"),
            path("switch/control.sock"),
            vm(WEB, &vhost(WEB)),
            vm(DB, &vhost(DB)),
            vm(PEER, ""),
        );
        fs::write(self.path("stack.toml"), config)?;
        Ok(())
    }

    /// Starts one of them, anew if it was there.
    pub(crate) fn begin(&mut self, daemon: Daemon) -> Result<()> {
        let path = |name: &str| self.path(name).display().to_string();
        let (nic, switch, stack) = (path("nic"), path("switch"), path("stack"));
        let mut command = self.scene.command();
        match daemon {
            // A link that is up, with nobody at its other end, and a record of what leaves.
            Daemon::Adapter => {
                let lives = 1 + self.lives(daemon);
                let capture = self.scene.logs.join(format!("uplink-{lives}.pcap"));
                command.args(["adapter", "--directory", &nic, "--vfs", "4", "--uplink"]);
                command.arg(format!("pcap:,{}", capture.display()))
            }
            Daemon::Switch => {
                command.args(["switch", "run", "--directory", &switch, "--name", "lab"]);
                command.args(["--uplink", &format!("adapter:{nic}")])
            }
            Daemon::Stack => {
                command.args(["stack", "run", "--config", &path("stack.toml")]);
                command.args(["--directory", &stack])
            }
        };
        let log = self.scene.log(&daemon.to_string());
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("starting the {daemon}"))?;
        self.daemons.push((daemon, Process(child)));
        Ok(())
    }

    /// How often it was started.
    fn lives(&self, daemon: Daemon) -> usize {
        self.daemons.iter().filter(|(other, _)| *other == daemon).count()
    }

    /// Kills one of them as `kill -9` does.
    pub(crate) fn kill(&mut self, daemon: Daemon) -> Result<()> {
        let process = self.daemons.iter_mut().rev().find(|(other, _)| *other == daemon);
        let (_, process) = process.with_context(|| format!("no {daemon} runs"))?;
        process.0.kill()?;
        process.0.wait()?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A user-mode VM on the switch, which answers pings and takes a TCP stream.
    pub(crate) fn peer(&self) -> Result<Peer> {
        let stream = self.path("stream");
        // nc would close the connection if it had nothing to read itself.
        let script = format!(
            "echo up; sleep infinity | {} nc -l -p 5001 > {}",
            self.scene.kernel.busybox().display(),
            stream.display()
        );
        let log = self.scene.log(PEER.name);
        let mut child = self
            .scene
            .command()
            .args(["vm", "run", PEER.name, "--ip", &format!("{}/24", PEER.address), "--worker"])
            .arg(self.path("peer.sock"))
            .args(["--", "sh", "-c", &script])
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting a user-mode VM")?;
        let stdout = child.stdout.take().context("no pipe")?;
        let peer = Peer { _process: Process(child), stream };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "up\n", "the peer did not come up: {}", fs::read_to_string(log)?.trim());
        Ok(peer)
    }

    /// A guest, started by `clearway vm qemu`, with these options of QEMU.
    pub(crate) fn boot(
        &self,
        station: &Station,
        script: &str,
        options: &[&str],
    ) -> Result<LinuxGuest> {
        let Station { name, mac, .. } = station;
        let scene = self.scene;
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let program = at.join("qemu");
        scene.qemu.script(&program, Lives::WithWhoeverStartsIt)?;
        let initramfs = at.join("initramfs");
        let modules = ["virtio_net", "net_failover", "iavf"];
        fs::write(&initramfs, scene.kernel.initramfs(&modules, scene.tools, script)?)?;
        let serial = at.join("serial.sock");
        let listener = UnixListener::bind(&serial)?;
        let mut command = scene.command();
        command.args(["vm", "qemu", name, "--memory", "512", "--accelerator", "tcg", "--worker"]);
        command.arg(self.path(&format!("{name}.sock"))).arg("--program").arg(&program);
        let vhost = self.path(&format!("{name}.vhost"));
        command.arg("--nic").arg(format!("{mac},{}", vhost.display()));
        command.args(["--", "-nodefaults", "-display", "none", "-no-user-config"]);
        command.args(options);
        command.arg("-chardev").arg(format!("socket,id=serial,path={}", serial.display()));
        command.args(["-serial", "chardev:serial"]);
        command.arg("-kernel").arg(scene.kernel.image()).arg("-initrd").arg(&initramfs);
        // Without no_timer_check an emulated boot hangs now and then.
        command
            .args(["-append", "console=ttyS0 no_timer_check panic=-1 mitigations=off loglevel=5"]);
        command.env("XDG_RUNTIME_DIR", self.folder.path());
        LinuxGuest::start(scene, name, command, &listener, folder)
    }

    /// A guest that has its address on its virtio-net and does what it is told from then on.
    pub(crate) fn boot_obeying(&self, station: &Station, options: &[&str]) -> Result<LinuxGuest> {
        let mut guest = self.boot(station, &obeying(station), options)?;
        is_synthetic(&mut guest)?;
        Ok(guest)
    }

    fn stack(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = self
            .scene
            .command()
            .args(["stack", "--directory"])
            .arg(self.path("stack"))
            .args(arguments)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "clearway stack {arguments:?}: {}", said.trim());
        Ok(output.stdout)
    }

    /// The stack's state, for programs.
    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.stack(&["status", "--json"])?)?)
    }

    /// The adapter's state and counters.
    fn nic(&self) -> Result<Value> {
        let mut command = self.scene.command();
        command.args(["nic", "--json", "--directory"]).arg(self.path("nic")).arg("show");
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "clearway nic show: {}", said.trim());
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// How many VFs the adapter has given.
    pub(crate) fn vfs(&self) -> Result<usize> {
        let nic = self.nic()?;
        Ok(nic.get("vfs").and_then(Value::as_array).context("no VFs are told")?.len())
    }

    /// Changes a VM's IovWeight.
    pub(crate) fn weigh(&self, station: &Station, weight: u32) -> Result<()> {
        let weight = weight.to_string();
        self.stack(&["set-adapter", station.name, "net0", "--iov-weight", &weight])?;
        Ok(())
    }

    /// Waits until a VM's adapter rests in a phase of the stack's: how long that took.
    pub(crate) fn until(&self, station: &Station, phase: &str) -> Result<Duration> {
        self.until_it_is(station, phase, |adapter| {
            let state = adapter.get("state").and_then(|state| state.get(phase));
            state.and_then(Value::as_str) == Some("resting")
        })
    }

    /// Waits until what the stack says of a VM's adapter is as it is to be. A stack that does not answer yet is waited for.
    pub(crate) fn until_it_is(
        &self,
        station: &Station,
        what: &str,
        done: impl Fn(&Value) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let status = self.status();
            let adapter = status.as_ref().ok().and_then(|status| adapter_of(status, station));
            if adapter.is_some_and(&done) {
                return Ok(start.elapsed());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "the adapter of {} does not become {what}: it is {adapter:?}, by {status:?}",
                station.name
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Gives a VM a VF, and waits until the VF is its data path: how long that took.
    pub(crate) fn give_vf(&self, station: &Station) -> Result<Duration> {
        self.weigh(station, 100)?;
        self.until(station, "active")
    }

    /// Takes it away: how long that took.
    pub(crate) fn take_vf(&self, station: &Station) -> Result<Duration> {
        self.weigh(station, 0)?;
        self.until(station, "synthetic")
    }
}

/// What the stack says of the adapter of a VM.
pub(crate) fn adapter_of<'v>(status: &'v Value, station: &Station) -> Option<&'v Value> {
    let vms = status.get("vms").and_then(Value::as_array)?;
    let is_it = |vm: &&Value| vm.get("name").and_then(Value::as_str) == Some(station.name);
    vms.iter().find(is_it)?.pointer("/adapters/0")
}

/// The script of a guest that does what it is told.
pub(crate) fn obeying(station: &Station) -> String {
    let (script, address) = (include_str!("scripts/joined.guest.sh"), station.address);
    format!("{PING_FUNCTIONS}{COMMON}{script}synthetic_nic {address}\nobey\n")
}

/// Waits until a guest that boots with that script is there.
pub(crate) fn is_synthetic(guest: &mut LinuxGuest) -> Result<()> {
    guest.expect("booted")?;
    guest.expect("obeys")?;
    Ok(())
}

/// The user-mode VM.
pub(crate) struct Peer {
    _process: Process,
    stream: PathBuf,
}

impl Peer {
    /// MD5 of what it has received.
    pub(crate) fn received(&self) -> Result<String> {
        md5(&self.stream)
    }
}

/// MD5 of a file.
pub(crate) fn md5(file: &Path) -> Result<String> {
    let output = Command::new("md5sum").arg(file).output().context("starting md5sum")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
