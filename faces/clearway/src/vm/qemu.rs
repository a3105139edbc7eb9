//! A VM in QEMU: the options that it needs, and the host side that gives it VFs.

use std::{
    ffi::OsString,
    io::ErrorKind,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, value_parser};
use ndis_protocol::MacAddress;
use qemu_partition::{GuestOptions, NicOptions, QemuHost, QemuHostConfig};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::names::{self, Kind, vm_name};
use crate::signals::SignalQueue;

/// How long QEMU may take to make its QMP socket, and to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it takes from making a socket to listening on it, more or less.
const LISTENS: Duration = Duration::from_millis(1);

/// Give the guest of a QEMU VFs beside its virtio-nets, and take them away, as `clearway stack` says.
///
/// With --nic it runs QEMU, with the options that this needs and those after --; with --print it prints them. With --qmp it
/// drives a QEMU that runs, and says which option is missing if it cannot; that QEMU goes on when this ends, without VFs.
///
/// In the guest, the kernel's own net_failover joins each virtio-net with its VF, whose driver is iavf. Linux 7.2
/// does it; the iavf of 6.1 and 6.12 hangs the guest when it is joined.
///
/// Exit codes: 0 QEMU ended, or a client ended it (`clearway vm stop`); 1 it cannot be run or driven, or was killed,
/// with the cause on standard error; QEMU's own exit code if it fails; 2 wrong usage.
#[derive(clap::Args, Debug)]
#[command(
    group = ArgGroup::new("which").args(["qmp", "nics"]).required(true),
    after_help = "Examples:
  clearway vm qemu web --worker /tmp/web.sock --nic 00:15:5d:00:00:01,/tmp/web-net0.vhost -- \\
      -nographic -kernel vmlinuz -initrd initrd.img -append console=ttyS0
  clearway vm qemu web --nic 00:15:5d:00:00:01,/tmp/web-net0.vhost --print
  clearway vm qemu web --worker /tmp/web.sock --qmp /tmp/web.qmp"
)]
pub(super) struct QemuArguments {
    /// Name of the VM.
    #[arg(value_parser = vm_name)]
    name: String,
    /// Socket that the stack's configuration names [default: NAME.qemu in the folder that `clearway vm list` shows].
    #[arg(long, value_name = "SOCKET")]
    worker: Option<PathBuf>,
    /// QMP socket of a QEMU that runs (its option -qmp unix:SOCKET,server=on,wait=off).
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// A virtio-net of the guest: its address, the vhost-user socket that the stack's file has for it, and how many
    /// queue pairs. May be given several times.
    #[arg(long = "nic", value_name = "MAC,SOCKET[,queues=N]")]
    nics: Vec<NicChoice>,
    /// Mebibytes of the guest's memory.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 1024,
        value_parser = value_parser!(u64).range(16..=1 << 30),
        requires = "nics"
    )]
    memory: u64,
    /// Its processors.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = value_parser!(u16).range(1..),
        requires = "nics"
    )]
    processors: u16,
    /// QEMU's accelerators, the first of them that works.
    #[arg(long, value_name = "NAME[:NAME]", default_value = "kvm:tcg", requires = "nics")]
    accelerator: String,
    /// QEMU's program.
    #[arg(long, value_name = "FILE", default_value = "qemu-system-x86_64", requires = "nics")]
    program: PathBuf,
    /// Print the command line instead of running it; its QEMU is then driven with --qmp.
    #[arg(long, requires = "nics")]
    print: bool,
    /// More options of QEMU: what the guest boots from, its console.
    #[arg(last = true, requires = "nics")]
    options: Vec<OsString>,
}

/// A virtio-net, as it is given on the command line.
#[derive(Clone, Debug)]
struct NicChoice(NicOptions);

impl FromStr for NicChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mac, rest) = text
            .split_once(',')
            .ok_or("write MAC,SOCKET, such as 00:15:5d:00:00:01,/tmp/web-net0.vhost")?;
        let mac: MacAddress = mac
            .parse()
            .map_err(|_| format!("{mac:?} is not an address such as 00:15:5d:00:00:01"))?;
        let (socket, queues) = match rest.rsplit_once(",queues=") {
            Some((socket, queues)) => {
                let queues = queues.parse().ok().filter(|queues| (1..=64).contains(queues));
                (socket, queues.ok_or("queues is a number from 1 to 64")?)
            }
            None => (rest, 1),
        };
        if socket.is_empty() {
            return Err("the socket is missing after the address".to_owned());
        }
        Ok(Self(NicOptions { mac, socket: socket.into(), queues }))
    }
}

/// Does what the command line says.
pub(super) fn run(folder: &Path, arguments: QemuArguments) -> Result<ExitCode> {
    let QemuArguments {
        name,
        worker,
        qmp,
        nics,
        memory,
        processors,
        accelerator,
        program,
        print,
        options,
    } = arguments;
    let worker = worker.unwrap_or_else(|| names::socket(folder, &name, Kind::Qemu));
    let own = match &qmp {
        Some(_) => None,
        None => Some(GuestOptions {
            name: name.clone(),
            memory_mib: memory,
            processors,
            accelerator,
            nics: nics.into_iter().map(|NicChoice(nic)| nic).collect(),
            qmp: worker.with_extension("qmp"),
        }),
    };
    if let Some(guest) = own.as_ref().filter(|_| print) {
        let line = [vec![program.display().to_string()], guest.arguments()].concat();
        let more = options.iter().map(|option| option.to_string_lossy().into_owned());
        let line: Vec<_> = line.into_iter().chain(more).map(|word| quoted(&word)).collect();
        println!("{}", line.join(" "));
        return Ok(ExitCode::SUCCESS);
    }
    names::prepare(folder, &name)?;
    let signals = SignalQueue::take(&[])?;
    let qemu = own.map(|guest| Qemu::start(&program, &guest, &options)).transpose()?;
    let (resume, qmp) = match (&qemu, qmp) {
        (Some(qemu), _) => (true, qemu.qmp.clone()),
        (None, Some(qmp)) => (false, qmp),
        (None, None) => bail!("either --qmp or --nic is needed"),
    };
    let (tell, gone) = crossbeam_channel::bounded(1);
    let config = QemuHostConfig { name: name.clone(), socket: worker.clone(), qmp, resume };
    let host = QemuHost::start(&config, move || {
        let _ = tell.try_send(());
    })?;
    let link = names::publish(folder, &name, Kind::Qemu, &worker)?;
    signals.wait_for_end(&gone);
    drop((link, host));
    qemu.map_or(Ok(ExitCode::SUCCESS), Qemu::end)
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A QEMU that was started here, and ends with this.
struct Qemu {
    child: Child,
    /// By which its end can be awaited.
    process: OwnedFd,
    qmp: PathBuf,
}

impl Qemu {
    /// Starts it with its guest held, and waits for its QMP socket.
    fn start(program: &Path, guest: &GuestOptions, options: &[OsString]) -> Result<Self> {
        let qmp = guest.qmp.clone();
        // The socket of one that was killed, perhaps; a live one keeps the worker's socket too.
        let _ = std::fs::remove_file(&qmp);
        let made = watch_for_files(&qmp)?;
        let mut command = Command::new(program);
        command.args(guest.arguments()).args(options).arg("-S");
        let mut child = command.spawn().with_context(|| {
            format!("QEMU's program {}: install it, or name it with --program", program.display())
        })?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let process = process.inspect_err(|_| drop(child.kill().and_then(|()| child.wait())))?;
        let mut this = Self { child, process, qmp };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = UnixStream::connect(&this.qmp) {
            if let Some(status) = this.child.try_wait()? {
                bail!("QEMU did not start: {status}; what it said is above");
            }
            if Instant::now() > deadline {
                bail!("QEMU has not made its QMP socket {} in time", this.qmp.display());
            }
            // A socket is there a moment before anybody listens on it, and nothing tells of that.
            let bound = error.kind() == ErrorKind::ConnectionRefused;
            let until = if bound { deadline.min(Instant::now() + LISTENS) } else { deadline };
            wait_for(&[&made, &this.process], until)?;
            let mut room = [MaybeUninit::uninit(); 1024];
            let mut news = inotify::Reader::new(&made, &mut room);
            // What is there is looked for above.
            while news.next().is_ok() {}
        }
        Ok(this)
    }

    /// Ends it if it has not ended, and has its exit code for this process's.
    fn end(mut self) -> Result<ExitCode> {
        let _ = pidfd_send_signal(&self.process, Signal::TERM);
        if !wait_for(&[&self.process], Instant::now() + PATIENCE)? {
            bail!("QEMU does not end: it is killed");
        }
        let status = self.child.wait()?;
        match status.code() {
            Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
            // Asked before it listened to that.
            None if status.signal() == Some(Signal::TERM.as_raw()) => Ok(ExitCode::SUCCESS),
            None => bail!("QEMU was ended by another: {status}"),
        }
    }
}

/// What can be read of when a file is made in the folder of this one.
fn watch_for_files(file: &Path) -> Result<OwnedFd> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let made = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&made, folder, inotify::WatchFlags::CREATE)
        .with_context(|| format!("watching {}", folder.display()))?;
    Ok(made)
}

/// Waits until one of these can be read; false if none could until the deadline.
fn wait_for(descriptors: &[&OwnedFd], deadline: Instant) -> Result<bool> {
    let mut fds: Vec<_> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).try_into()?;
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.qmp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_that_was_killed_is_told_and_one_that_was_asked_to_end_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let qemu = || {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
            Qemu { child, process, qmp: folder.path().join("qmp") }
        };
        let mut killed = qemu();
        killed.child.kill().unwrap();
        let said = killed.end().unwrap_err().to_string();
        assert!(said.contains("SIGKILL"), "{said}");
        assert_eq!(qemu().end().unwrap(), ExitCode::SUCCESS);
    }

    #[test]
    fn a_nic_is_an_address_a_socket_and_queues() {
        let NicChoice(nic) = "00:15:5d:00:00:01,/tmp/a,b.vhost,queues=4".parse().unwrap();
        assert_eq!((nic.socket, nic.queues), (PathBuf::from("/tmp/a,b.vhost"), 4));
        let NicChoice(nic) = "00:15:5d:00:00:01,/tmp/a".parse().unwrap();
        assert_eq!(nic.queues, 1);
        for wrong in
            ["", "/tmp/a", "00:15,/tmp/a", "00:15:5d:00:00:01,", "00:15:5d:00:00:01,/a,queues=0"]
        {
            assert!(wrong.parse::<NicChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_printed_line_is_one_that_a_shell_reads_back() {
        assert_eq!(quoted("share=on,size=1M"), "share=on,size=1M");
        assert_eq!(quoted("it's two"), r"'it'\''s two'");
        assert_eq!(quoted(""), "''");
    }
}
