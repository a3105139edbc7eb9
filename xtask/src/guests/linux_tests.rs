//! A stock Debian kernel whose own iavf drives a VF, judged by what it prints.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::{
    PING_FUNCTIONS,
    kernel::Kernel,
    machine::Machine,
    qemu::{Qemu, vfio_user_device},
    stack::Stack,
};

/// How long a guest may take to print the next mark. Emulated, on a busy machine, a boot takes a minute.
const TIMEOUT: Duration = Duration::from_secs(300);

/// What a guest does once its interface is up.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Then<'a> {
    /// Ends.
    End,
    /// Pings somebody and ends.
    Ping(Ipv4Addr),
    /// Does what a script says and ends.
    Run(&'a str),
}

/// What the guest does after its modules are loaded. Each step prints a mark.
fn script(address: Ipv4Addr, then: Then<'_>) -> String {
    let then = match then {
        Then::End => String::new(),
        Then::Run(script) => script.to_owned(),
        Then::Ping(peer) => format!(
            "none_lost -c 5 {peer} && echo MARK pinged small || echo MARK failed ping\n\
             none_lost -c 5 -s 1400 {peer} && echo MARK pinged large || echo MARK failed large ping\n"
        ),
    };
    format!(
        "{PING_FUNCTIONS}\
         n=0; until [ -e /sys/class/net/eth0 ]; do n=$((n+1)); [ $n -gt 600 ] && break; usleep 100000; done\n\
         [ -e /sys/class/net/eth0 ] || {{ echo MARK failed no interface; dmesg; }}\n\
         echo MARK driver $(basename $(readlink /sys/class/net/eth0/device/driver))\n\
         echo MARK mac $(cat /sys/class/net/eth0/address)\n\
         ip link set eth0 up\n\
         ip addr add {address}/24 dev eth0\n\
         n=0; until [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]; do n=$((n+1)); [ $n -gt 600 ] && break; usleep 100000; done\n\
         [ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ] && echo MARK carrier || {{ echo MARK failed no carrier; dmesg; }}\n\
         echo MARK speed $(cat /sys/class/net/eth0/speed)\n\
         {then}\
         cat /proc/interrupts | grep iavf\n"
    )
}

/// What a guest is made of.
#[derive(Copy, Clone)]
pub(crate) struct Hardware<'a> {
    pub(crate) qemu: &'a Qemu,
    pub(crate) kernel: &'a Kernel,
    /// An IOMMU of its own (VT-d), with which the guest maps each buffer by itself: thousands of DMA ranges that
    /// come and go, instead of its memory as a whole.
    pub(crate) iommu: bool,
}

/// Where a guest has its adapter.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Slot {
    /// Behind a root port of a PCI Express machine.
    RootPort,
    /// On the conventional bus of a machine that has no other, by whose pin interrupts come.
    Conventional,
}

/// A Linux guest with one adapter.
pub(crate) struct LinuxGuest {
    machine: Machine,
    serial: UnixStream,
    lines: Receiver<String>,
    recent: VecDeque<String>,
    _folder: TempDir,
}

impl LinuxGuest {
    /// Boots it.
    fn boot(
        hardware: Hardware<'_>,
        socket: &Path,
        slot: Slot,
        modules: &[&str],
        script: &str,
    ) -> Result<Self> {
        let Hardware { qemu, kernel, iommu } = hardware;
        let folder = tempfile::tempdir()?;
        let initramfs = folder.path().join("initramfs");
        fs::write(&initramfs, kernel.initramfs(modules, script)?)?;
        let serial = folder.path().join("serial.sock");
        let listener = UnixListener::bind(&serial)?;
        let mut command = qemu.command();
        command.args(["-nodefaults", "-display", "none", "-no-user-config", "-no-reboot"]);
        command.arg("-M").arg(match slot {
            Slot::RootPort => "q35,accel=tcg,memory-backend=mem,kernel-irqchip=split",
            Slot::Conventional => "pc,accel=tcg,memory-backend=mem",
        });
        command.args(["-cpu", "max", "-m", "512M"]);
        if iommu && matches!(slot, Slot::RootPort) {
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
        command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(&initramfs);
        // Without no_timer_check an emulated boot hangs now and then.
        let iommu = if iommu { " intel_iommu=on iommu.strict=1" } else { "" };
        command.arg("-append");
        command.arg(format!("console=ttyS0 no_timer_check panic=-1 loglevel=5{iommu}"));
        Self::start(command, &listener, folder)
    }

    /// Starts a command that runs QEMU, whose guest's serial line connects to `listener`. The folder lasts as long.
    pub(crate) fn start(
        command: Command,
        listener: &UnixListener,
        folder: TempDir,
    ) -> Result<Self> {
        let mut machine = Machine::start(command, folder.path().join("qemu.log"))?;
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
            ensure!(start.elapsed() < TIMEOUT, "QEMU did not come up");
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false)?;
        let lines = read_lines(stream.try_clone()?);
        Ok(Self { machine, serial: stream, lines, recent: VecDeque::new(), _folder: folder })
    }

    /// The next mark that the guest prints; a mark `failed …` is an error. The last lines of its console go with any
    /// error.
    pub(crate) fn mark(&mut self) -> Result<String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let line =
                match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(line) => line,
                    Err(RecvTimeoutError::Timeout) => {
                        bail!("the guest printed no mark for {TIMEOUT:?}; {}", self.recent())
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        bail!("QEMU ended: {}; {}", self.machine.errors(), self.recent())
                    }
                };
            if std::env::var_os("CLEARWAY_GUEST_LOG").is_some() {
                eprintln!("guest: {line}");
            }
            self.recent.push_back(line.clone());
            if self.recent.len() > 60 {
                self.recent.pop_front();
            }
            if let Some((_, mark)) = line.split_once("MARK ") {
                ensure!(!mark.starts_with("failed"), "the guest says {mark:?}; {}", self.recent());
                return Ok(mark.to_owned());
            }
        }
    }

    /// Takes the next mark, which must be this, and gives what follows it.
    pub(crate) fn expect(&mut self, what: &str) -> Result<String> {
        let mark = self.mark()?;
        let rest = mark.strip_prefix(what);
        let rest = rest.with_context(|| format!("the guest marks {mark:?}, not {what:?}"))?;
        Ok(rest.trim().to_owned())
    }

    /// Says a line to the guest, on its serial line.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.serial, "{line}").context("the guest's serial line")
    }

    fn recent(&self) -> String {
        let lines: Vec<&str> = self.recent.iter().map(String::as_str).collect();
        format!("its console ends with:\n{}", lines.join("\n"))
    }
}

fn read_lines(stream: UnixStream) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        // A serial line carries any byte.
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if sender.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// Boots a guest on the VF of a socket, lets iavf bring it up, and pings.
pub(crate) fn run_on(
    hardware: Hardware<'_>,
    socket: &Path,
    address: Ipv4Addr,
    ping: Option<Ipv4Addr>,
) -> Result<()> {
    let clock = Clock::new();
    let mut guest = up(hardware, socket, address, ping.map_or(Then::End, Then::Ping), &clock)?;
    if let Some(peer) = ping {
        pinged(&mut guest, peer, &clock)?;
    }
    guest.expect("end")?;
    Ok(())
}

/// Starts an adapter, a user-mode VM on one of its VFs and a guest on another, and has the guest ping the VM.
pub(crate) fn run(hardware: Hardware<'_>) -> Result<()> {
    let stack = Stack::start(4)?;
    let vf = stack.attach("guest", "02:c1:ea:00:02:01", 4)?;
    let peer_vf = stack.attach("peer", "02:c1:ea:00:02:02", 1)?;
    let (address, peer_address) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
    let clock = Clock::new();
    let _peer = stack.run_vm("peer", &peer_vf, &format!("{peer_address}/24"))?;
    clock.say(&format!("the user-mode VM is up as {peer_address}"));
    let mut guest = up(hardware, &vf.socket, address, Then::Ping(peer_address), &clock)?;
    pinged(&mut guest, peer_address, &clock)?;
    guest.expect("end")?;
    let (one, two) = (stack.frames(&vf)?, stack.frames(&peer_vf)?);
    clock.say(&format!("the adapter counts {one:?} of the guest and {two:?} of the VM"));
    ensure!(one.dma_faults == 0 && two.dma_faults == 0, "a stock driver caused DMA faults");
    ensure!(
        one.received >= 10 && two.received >= 10,
        "the pings did not go through the NIC switch"
    );
    Ok(())
}

/// Says what happened, and when since the start.
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn say(&self, what: &str) {
        println!("{:6.1} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// Boots a guest with one module.
pub(crate) fn booted(
    hardware: Hardware<'_>,
    socket: &Path,
    slot: Slot,
    module: &str,
    script: &str,
    clock: &Clock,
) -> Result<LinuxGuest> {
    let boot = || {
        let mut guest = LinuxGuest::boot(hardware, socket, slot, &[module], script)?;
        guest.expect("booted").map(|_| guest)
    };
    // An emulated kernel now and then loses a timer for good before it comes to the device at all.
    let guest = boot().or_else(|error| {
        clock.say(&format!("did not boot, once more: {error:#}"));
        boot()
    })?;
    clock.say("the guest has booted");
    Ok(guest)
}

/// Boots a guest and waits until its own iavf has the link up.
pub(crate) fn up(
    hardware: Hardware<'_>,
    socket: &Path,
    address: Ipv4Addr,
    then: Then<'_>,
    clock: &Clock,
) -> Result<LinuxGuest> {
    let script = script(address, then);
    let mut guest = booted(hardware, socket, Slot::RootPort, "iavf", &script, clock)?;
    let driver = guest.expect("driver")?;
    ensure!(driver == "iavf", "the interface's driver is {driver}");
    clock.say(&format!("its iavf is bound, MAC {}", guest.expect("mac")?));
    guest.expect("carrier")?;
    clock.say(&format!("its link is up, {} Mbit/s", guest.expect("speed")?));
    Ok(guest)
}

fn pinged(guest: &mut LinuxGuest, peer: Ipv4Addr, clock: &Clock) -> Result<()> {
    guest.expect("pinged small")?;
    guest.expect("pinged large")?;
    clock.say(&format!("it has pinged {peer}, with 64 and 1,408 bytes, and no answer was lost"));
    Ok(())
}
