//! A `clearway adapter` with VFs, as a person would start it.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::programs::Program;

/// A running adapter, whose uplink records what leaves; ended when this drops.
pub(crate) struct Stack {
    clearway: PathBuf,
    adapter: Child,
    folder: TempDir,
    logs: PathBuf,
    options: AdapterOptions,
}

/// What an adapter is to be.
pub(crate) struct AdapterOptions {
    /// What its log and its capture are called after.
    pub(crate) name: &'static str,
    pub(crate) vfs: u16,
    /// Its uplink; without one a link that is up, with nobody at its other end, and a record of what leaves.
    pub(crate) uplink: Option<String>,
}

impl Default for AdapterOptions {
    fn default() -> Self {
        Self { name: "adapter", vfs: 4, uplink: None }
    }
}

/// A VF that was attached by the published sequence.
#[derive(Clone, Debug)]
pub(crate) struct AttachedVf {
    /// Its vfio-user socket.
    pub(crate) socket: PathBuf,
    /// Its id.
    pub(crate) vf: u64,
    /// The VPort that it is attached to.
    vport: u64,
}

impl Stack {
    /// Starts an adapter with `vfs` VFs.
    pub(crate) fn start(vfs: u16) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let logs = folder.path().to_path_buf();
        let adapter = AdapterOptions { vfs, ..AdapterOptions::default() };
        Self::start_in(folder, Program::Clearway.find()?, adapter, logs)
    }

    /// The same, whose logs and capture go to the folder `logs`.
    pub(crate) fn start_logging(clearway: &Path, vfs: u16, logs: &Path) -> Result<Self> {
        Self::start_as(clearway, AdapterOptions { vfs, ..AdapterOptions::default() }, logs)
    }

    /// The same with more to choose.
    pub(crate) fn start_as(clearway: &Path, adapter: AdapterOptions, logs: &Path) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, clearway.to_path_buf(), adapter, logs.to_path_buf())
    }

    fn start_in(
        folder: TempDir,
        clearway: PathBuf,
        options: AdapterOptions,
        logs: PathBuf,
    ) -> Result<Self> {
        let adapter = options.spawn(&clearway, folder.path(), &logs)?;
        let stack = Self { clearway, adapter, folder, logs, options };
        stack.show()?;
        Ok(stack)
    }

    /// Kills the adapter as `kill -9` does; its sockets stay behind.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.adapter.kill()?;
        self.adapter.wait()?;
        Ok(())
    }

    /// Starts an adapter anew in the same folder.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.adapter = self.options.spawn(&self.clearway, self.folder.path(), &self.logs)?;
        self.show()?;
        Ok(())
    }

    /// The `clearway` program.
    pub(crate) fn program(&self) -> &Path {
        &self.clearway
    }

    /// The adapter's process.
    pub(crate) fn process(&self) -> u32 {
        self.adapter.id()
    }

    fn nic(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_slice(&self.command(arguments)?)?)
    }

    fn command(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = Command::new(&self.clearway)
            .args(["nic", "--json", "--directory"])
            .arg(self.folder.path().join("nic"))
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "clearway nic {} failed: {}\nthe adapter's log:\n{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim(),
            self.log()
        );
        Ok(output.stdout)
    }

    /// The adapter's state and counters.
    pub(crate) fn show(&self) -> Result<Value> {
        self.nic(&["show"])
    }

    /// Allocates a VF for a VM and attaches it to a VPort.
    pub(crate) fn attach(&self, vm: &str, mac: &str, queue_pairs: u16) -> Result<AttachedVf> {
        self.attach_with(vm, mac, &["--queue-pairs", &queue_pairs.to_string()])
    }

    /// The same with these options.
    pub(crate) fn attach_with(&self, vm: &str, mac: &str, options: &[&str]) -> Result<AttachedVf> {
        let attached = self.nic(&[&["attach-vf", "--vm", vm, "--mac", mac], options].concat())?;
        let socket =
            attached.get("socket").and_then(Value::as_str).context("no socket was told")?;
        let number = |name: &str| {
            attached
                .get(name)
                .and_then(Value::as_u64)
                .with_context(|| format!("no {name} was told"))
        };
        let (vf, vport) = (number("vf")?, number("vport")?);
        Ok(AttachedVf { socket: PathBuf::from(socket), vf, vport })
    }

    /// Lets a VF's VPort do these things, and nothing else that it may not by itself.
    pub(crate) fn allow(&self, vf: &AttachedVf, what: &[&str]) -> Result<()> {
        let vport = vf.vport.to_string();
        self.command(&[&["set-policy", "--vport", &vport], what].concat())?;
        Ok(())
    }

    /// One of a VF's counters.
    pub(crate) fn count(&self, vf: &AttachedVf, side: &str, name: &str) -> Result<u64> {
        let count = self.stats(vf)?.get(side).and_then(|side| side.get(name)?.as_u64());
        count.with_context(|| format!("the adapter does not count {name} of {side}"))
    }

    fn stats(&self, vf: &AttachedVf) -> Result<Value> {
        let status = self.show()?;
        let entry = status.get("vfs").and_then(Value::as_array).and_then(|vfs| {
            vfs.iter().find(|entry| entry.get("vf").and_then(Value::as_u64) == Some(vf.vf))
        });
        let entry = entry.with_context(|| format!("the adapter does not show VF {}", vf.vf))?;
        entry.get("stats").cloned().context("no counters are shown")
    }

    /// Frames that a VF's guest has received and sent, and those dropped on the way.
    pub(crate) fn frames(&self, vf: &AttachedVf) -> Result<Frames> {
        let stats = self.stats(vf)?;
        let sum = |side: &str, names: &[&str]| -> u64 {
            names.iter().filter_map(|name| stats.get(side)?.get(*name)?.as_u64()).sum()
        };
        let casts = ["unicast", "multicast", "broadcast"];
        Ok(Frames {
            received: sum("receive", &casts),
            sent: sum("transmit", &casts),
            dma_faults: sum("receive", &["dma_faults"]) + sum("transmit", &["dma_faults"]),
        })
    }

    /// Runs a user-mode VM on a VF, which answers pings until what is returned drops.
    pub(crate) fn run_vm(&self, name: &str, vf: &AttachedVf, address: &str) -> Result<UserVm> {
        self.run_vm_with(name, vf, address, "exec sleep infinity")
    }

    /// The same with a script for the VM's shell.
    pub(crate) fn run_vm_with(
        &self,
        name: &str,
        vf: &AttachedVf,
        address: &str,
        script: &str,
    ) -> Result<UserVm> {
        let log = self.logs.join(format!("{name}.log"));
        let mut child = Command::new(&self.clearway)
            .args(["--die-with-parent", "vm", "run", name, "--ip", address, "--vf-socket"])
            .arg(&vf.socket)
            .args(["--", "sh", "-c", &format!("echo up; {script}")])
            // Its control socket is nobody else's business.
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", self.clearway.display()))?;
        let stdout = child.stdout.take().context("no pipe")?;
        let vm = UserVm { child };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said = std::fs::read_to_string(log).unwrap_or_default();
        ensure!(line == "up\n", "the VM {name} did not come up: {}", said.trim());
        Ok(vm)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.logs.join(format!("{}.log", self.options.name)))
            .unwrap_or_default()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.adapter.kill();
        let _ = self.adapter.wait();
    }
}

/// A running user-mode VM.
pub(crate) struct UserVm {
    child: Child,
}

impl Drop for UserVm {
    fn drop(&mut self) {
        // What runs inside ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl AdapterOptions {
    fn spawn(&self, clearway: &Path, folder: &Path, logs: &Path) -> Result<Child> {
        let Self { name, vfs, uplink } = self;
        let log = File::create(logs.join(format!("{name}.log")))?;
        let recorded = || format!("pcap:,{}", logs.join(format!("{name}.pcap")).display());
        Command::new(clearway)
            .args(["--die-with-parent", "adapter", "--directory"])
            .arg(folder.join("nic"))
            .args(["--vfs", &vfs.to_string(), "--uplink"])
            .arg(uplink.clone().unwrap_or_else(recorded))
            .env("CLEARWAY_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", clearway.display()))
    }
}

/// Counters of a VF.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Frames {
    /// Frames its guest has received.
    pub(crate) received: u64,
    /// Frames its guest has sent.
    pub(crate) sent: u64,
    /// Accesses outside of its DMA map.
    pub(crate) dma_faults: u64,
}
