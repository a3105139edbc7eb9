//! A stock Linux in QEMU, which is spoken with by its serial line.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::scene::{CpuTime, Scene};
use crate::guests::{
    machine::Machine,
    qemu::vfio_user_device,
    usage::children,
    verdict::{CutShort, is_fatal},
};

/// How long a guest may take to print the next mark. Emulated, on a busy machine, a boot takes a minute.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What scripts of guests have at hand, but for pings.
pub(crate) const COMMON: &str = include_str!("scripts/common.guest.sh");

/// Where a guest has its adapter.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Slot {
    /// Behind a root port of a PCI Express machine.
    RootPort,
    /// On the conventional bus of a machine that has no other, by whose pin interrupts come.
    Conventional,
}

/// What a guest is made of.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Hardware<'a> {
    /// What its logs are called after.
    pub(crate) name: &'a str,
    /// The vfio-user socket of its adapter.
    pub(crate) socket: &'a Path,
    pub(crate) slot: Slot,
    pub(crate) processors: u32,
    /// Modules of its kernel.
    pub(crate) modules: &'a [&'a str],
}

impl<'a> Hardware<'a> {
    /// A guest called `guest` with one processor, whose adapter is a VF.
    pub(crate) fn vf(socket: &'a Path) -> Self {
        let (slot, modules) = (Slot::RootPort, &["iavf"]);
        Self { name: "guest", socket, slot, processors: 1, modules }
    }
}

/// A Linux guest.
pub(crate) struct LinuxGuest {
    machine: Machine,
    serial: UnixStream,
    lines: Receiver<String>,
    cpu: CpuTime,
    _folder: TempDir,
}

impl LinuxGuest {
    /// Boots one with one adapter.
    pub(crate) fn boot(scene: &Scene<'_>, hardware: Hardware<'_>, script: &str) -> Result<Self> {
        let Hardware { name, socket, slot, processors, modules } = hardware;
        let folder = tempfile::tempdir()?;
        let initramfs = folder.path().join("initramfs");
        fs::write(&initramfs, scene.kernel.initramfs(modules, scene.tools, script)?)?;
        let serial = folder.path().join("serial.sock");
        let listener = UnixListener::bind(&serial)?;
        let mut command = scene.qemu.command();
        command.args(["-nodefaults", "-display", "none", "-no-user-config", "-no-reboot"]);
        command.arg("-M").arg(match slot {
            Slot::RootPort => "q35,accel=tcg,memory-backend=mem,kernel-irqchip=split",
            Slot::Conventional => "pc,accel=tcg,memory-backend=mem",
        });
        command.args(["-cpu", "max", "-m", "512M", "-smp", &processors.to_string()]);
        let iommu = scene.iommu && matches!(slot, Slot::RootPort);
        if iommu {
            command.args(["-device", "intel-iommu,intremap=on,caching-mode=on"]);
        }
        command.args(["-object", "memory-backend-memfd,id=mem,size=512M,share=on"]);
        command.arg("-chardev").arg(format!("socket,id=serial,path={}", serial.display()));
        command.args(["-serial", "chardev:serial"]);
        let bus = match slot {
            Slot::RootPort => {
                command.args(["-device", "pcie-root-port,id=rp0,chassis=1,slot=1"]);
                "rp0"
            }
            Slot::Conventional => "pci.0",
        };
        command.arg("-device").arg(vfio_user_device("nic0", bus, socket));
        command.arg("-kernel").arg(scene.kernel.image()).arg("-initrd").arg(&initramfs);
        // Without no_timer_check an emulated boot hangs now and then.
        let iommu = if iommu { " intel_iommu=on iommu.strict=1" } else { "" };
        command.arg("-append");
        command.arg(format!("console=ttyS0 no_timer_check panic=-1 loglevel=5{iommu}"));
        Self::start(scene, name, command, &listener, folder)
    }

    /// Starts a command that runs QEMU, whose guest's serial line connects to `listener`. The folder lasts as long.
    pub(crate) fn start(
        scene: &Scene<'_>,
        name: &str,
        command: Command,
        listener: &UnixListener,
        folder: TempDir,
    ) -> Result<Self> {
        let mut machine = Machine::start(command, scene.log(&format!("{name}.qemu")))?;
        listener.set_nonblocking(true)?;
        let start = Instant::now();
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("waiting for QEMU"),
            }
            if let Some(status) = machine.ended()? {
                bail!("QEMU ended with {status}: {}", machine.errors());
            }
            ensure!(start.elapsed() < TIMEOUT, CutShort("QEMU did not come up".to_owned()));
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false)?;
        let lines = read_lines(stream.try_clone()?, &scene.log(&format!("{name}.serial")))?;
        Ok(Self { machine, serial: stream, lines, cpu: scene.cpu_time(), _folder: folder })
    }

    /// The next mark that the guest prints; a mark `failed …` is an error.
    pub(crate) fn mark(&mut self) -> Result<String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let line =
                match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => {
                        bail!(CutShort(format!("the guest printed no mark for {TIMEOUT:?}")))
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        bail!(CutShort(format!("QEMU ended: {}", self.machine.errors())))
                    }
                };
            if let Some((_, mark)) = line.split_once("MARK ") {
                ensure!(!mark.starts_with("failed"), "the guest says {mark:?}");
                return Ok(mark.to_owned());
            }
            ensure!(!is_fatal(&line), "the guest's kernel says {line:?}");
        }
    }

    /// Takes the next mark, which must be this, and gives what follows it.
    pub(crate) fn expect(&mut self, what: &str) -> Result<String> {
        let mark = self.mark().with_context(|| format!("waiting for {what:?}"))?;
        let rest = mark.strip_prefix(what);
        let rest = rest.with_context(|| format!("the guest marks {mark:?}, not {what:?}"))?;
        Ok(rest.trim().to_owned())
    }

    /// Says a line to the guest, on its serial line.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.serial, "{line}").context("the guest's serial line")
    }

    /// Has a guest whose script obeys do something, which it must do without failing; what it answers, if it does.
    pub(crate) fn ask(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        let mark = self.mark().with_context(|| format!("waiting for {command:?}"))?;
        if let Some(answer) = mark.strip_prefix("answer") {
            self.expect("done")?;
            return Ok(answer.trim().to_owned());
        }
        let done = mark.strip_prefix("done").map(str::trim);
        ensure!(done == Some(command), "asked for {command:?} the guest marks {mark:?}");
        Ok(String::new())
    }

    /// Has a guest whose script obeys come to its end.
    pub(crate) fn end(mut self) -> Result<()> {
        self.tell("end")?;
        self.expect("log is clean")?;
        self.expect("end")?;
        Ok(())
    }

    /// The process of QEMU itself, where it is started by another.
    pub(crate) fn qemu_process(&self) -> Result<u32> {
        let children = children(self.machine.process());
        let [qemu] = children[..] else { bail!("QEMU is one process, and not {children:?}") };
        Ok(qemu)
    }

    /// Waits until whoever runs QEMU has ended, and takes what it has said.
    pub(crate) fn said_at_end(mut self) -> Result<String> {
        self.cpu.add(self.machine.cpu());
        self.machine.wait()?;
        Ok(self.machine.errors())
    }
}

impl Drop for LinuxGuest {
    fn drop(&mut self) {
        self.cpu.add(self.machine.cpu());
    }
}

/// Reads lines until the serial line ends; all of it goes to the end of the file `log`, too.
fn read_lines(stream: UnixStream, log: &Path) -> Result<Receiver<String>> {
    let mut log = OpenOptions::new().create(true).append(true).open(log)?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        // A serial line carries any byte.
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let _ = log.write_all(&line);
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if std::env::var_os("CLEARWAY_GUEST_LOG").is_some() {
                eprintln!("guest: {text}");
            }
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    Ok(receiver)
}
