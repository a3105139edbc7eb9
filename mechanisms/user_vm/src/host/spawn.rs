//! Starting a VM and holding on to it.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use listening_socket::{ListenError, ListeningSocket, SocketPath};
use rustix::net::SocketType;

use super::{
    client,
    program::{self, Program, ProgramOutput, RunningProgram},
};
use crate::{
    GuestNetwork, UserVmConfig, UserVmError, VmStatistics,
    channel::{Channel, Received, Reply, Request},
    sys, vm,
};

/// How long a VM may take to start beyond the time that its VF has.
const SETUP_TIME: Duration = Duration::from_secs(15);
/// How long a VM may take to end before it is killed.
const SHUTDOWN_TIME: Duration = Duration::from_secs(5);
/// Connections to a control socket that may wait.
const BACKLOG: i32 = 16;
/// Bytes of a host name, at most, in one label.
const MAX_NAME: usize = 63;

/// A VM that this process started. It ends when this is dropped, or this process ends, however that comes.
#[derive(Debug)]
pub struct UserVm {
    name: String,
    channel: Channel,
    launcher: Child,
    pid: u32,
    /// Removed when the VM has ended.
    _control_socket: Option<SocketPath>,
}

impl UserVm {
    /// Starts a VM on a VF and waits until its VF runs and its `eth0` is there. Its command is not run: that is what
    /// [`run`](crate::run) does, or [`start`](Self::start).
    ///
    /// The program of this process is started again as the VM's process, which needs its `main` to call
    /// [`enter_if_requested`](crate::enter_if_requested) first.
    ///
    /// # Errors
    /// The host forbids namespaces to this user; the VF does not answer in time; another VM uses the control
    /// socket. Nothing is left behind.
    pub fn spawn(config: &UserVmConfig) -> Result<Self, UserVmError> {
        Self::spawn_with(config, None)
    }

    /// Starts a VM on VMBus: the process at the guest end of a user-mode partition
    /// (`partition::user::UserPartition::new` gives it), which may end up in nobody else's hands. Waits until the VM is
    /// connected to VMBus and its `eth0` is there, and, if a NIC is offered already, until that one is up; others, and
    /// VFs, come and go later.
    ///
    /// # Errors
    /// As of [`Self::spawn`]; nobody serves the partition's VMBus in time. Nothing is left behind.
    pub fn spawn_on(config: &UserVmConfig, guest: OwnedFd) -> Result<Self, UserVmError> {
        Self::spawn_with(config, Some(guest))
    }

    pub(super) fn spawn_with(
        config: &UserVmConfig,
        guest: Option<OwnedFd>,
    ) -> Result<Self, UserVmError> {
        let name = config.name.clone();
        check_name(&name)?;
        if guest.is_some() != (config.path == GuestNetwork::Vmbus) {
            return Err(UserVmError::Partition(name));
        }
        let failed = |action| {
            let name = name.clone();
            move |source| UserVmError::Io { name, action, source }
        };
        let control_socket = config.control_socket.as_deref();
        let (listener, control_socket) =
            control_socket.map(|path| listen(&name, path)).transpose()?.unzip();
        let (channel, theirs) = Channel::pair().map_err(failed("make a channel to it"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(vm::LAUNCHER).arg(theirs.as_fd().as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        sys::keep_open(&mut command, theirs.as_fd());
        let launcher = command.spawn().map_err(failed("start its process"))?;
        drop(theirs);
        // From here on dropping `vm` cleans up.
        let mut vm = Self { name, channel, launcher, pid: 0, _control_socket: control_socket };
        vm.set_up(config, guest, listener)?;
        Ok(vm)
    }

    fn set_up(
        &mut self,
        config: &UserVmConfig,
        guest: Option<OwnedFd>,
        listener: Option<OwnedFd>,
    ) -> Result<(), UserVmError> {
        let start = Request::Start(Box::new(config.clone()));
        let fds: Vec<_> = guest.iter().chain(&listener).map(AsFd::as_fd).collect();
        // A launcher that failed says why, even if it is gone by now.
        let _ = self.channel.send(&start, &fds);
        let limit = config.start_timeout + SETUP_TIME;
        let deadline = Instant::now() + limit;
        loop {
            match self.next_reply(Some(deadline))? {
                Some(Reply::Launched(pid)) => self.pid = pid,
                Some(Reply::Ready) => return Ok(()),
                Some(_) => return Err(UserVmError::Gone(self.name.clone())),
                None => {
                    return Err(UserVmError::TimedOut {
                        name: self.name.clone(),
                        what: "start",
                        seconds: limit.as_secs(),
                    });
                }
            }
        }
    }

    /// The next message to the owner; those that tell of the VM's end become errors.
    fn next_reply(&self, deadline: Option<Instant>) -> Result<Option<Reply>, UserVmError> {
        let name = self.name.clone();
        match self.channel.receive(deadline) {
            Ok(Received::Message(Reply::Failed(failure), _)) => {
                Err(UserVmError::Start { name, failure })
            }
            Ok(Received::Message(Reply::VfLost(reason), _)) => {
                Err(UserVmError::VfLost { name, reason })
            }
            Ok(Received::Message(Reply::Broken(reason), _)) => {
                Err(UserVmError::Broken { name, reason })
            }
            Ok(Received::Message(reply, _)) => Ok(Some(reply)),
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::Closed) | Err(_) => Err(UserVmError::Gone(name)),
        }
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id of the VM's process 1, as this process sees it. All of the VM dies with that process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A connection of its own, for one program or question.
    fn connect(&self) -> Result<Channel, UserVmError> {
        let gone = |_| UserVmError::Gone(self.name.clone());
        let (ours, theirs) = Channel::pair().map_err(gone)?;
        self.channel.send(&Request::Adopt, &[theirs.as_fd()]).map_err(gone)?;
        Ok(ours)
    }

    /// Starts a program in the VM.
    pub fn start(&self, program: Program) -> Result<RunningProgram, UserVmError> {
        program.start(self.connect()?, &self.name)
    }

    /// Runs a program to its end and collects what it writes.
    pub fn output(&self, program: Program) -> Result<ProgramOutput, UserVmError> {
        program::collect(program, self.connect()?, &self.name)
    }

    /// What the VM counted. Exact when nothing moves.
    pub fn statistics(&self) -> Result<VmStatistics, UserVmError> {
        client::statistics(&self.connect()?, &self.name)
    }

    /// Brings the VF's driver of an adapter (from 0; all if `None`) up or down in the guest, as `ip link set` does with a
    /// VF's interface, and waits until the adapter's data path has moved. A VF that comes later is used, or not, as the
    /// last call says.
    ///
    /// # Errors
    /// There is no VF that could be used; it does not answer in time; the VM is gone.
    pub fn set_vf(&self, adapter: Option<u32>, up: bool) -> Result<(), UserVmError> {
        client::set_vf(&self.connect()?, &self.name, adapter, up)
    }

    /// Waits until the VM ends by itself, but no longer than this. The error tells why it ended; `Ok` means that
    /// it still runs.
    pub fn wait_for_end(&self, limit: Duration) -> Result<(), UserVmError> {
        let deadline = Instant::now() + limit;
        while self.next_reply(Some(deadline))?.is_some() {}
        Ok(())
    }

    /// Ends the VM and gives its VF back in good order.
    pub fn shutdown(self) {
        drop(self);
    }

    /// The connection's descriptor: readable when the VM has something to say or is gone.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Why the VM ended, if it has something to say about that.
    pub(super) fn end_reason(&self) -> Result<(), UserVmError> {
        while self.next_reply(Some(Instant::now()))?.is_some() {}
        Ok(())
    }
}

impl Drop for UserVm {
    fn drop(&mut self) {
        let _ = self.channel.try_send(&Request::Shutdown);
        // Both processes close their end when they are gone.
        let deadline = Instant::now() + SHUTDOWN_TIME;
        while let Ok(Received::Message(..)) = self.channel.receive::<Reply>(Some(deadline)) {}
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn check_name(name: &str) -> Result<(), UserVmError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() <= MAX_NAME
        && name.chars().all(good)
        && edge(name.chars().next())
        && edge(name.chars().next_back())
    {
        Ok(())
    } else {
        Err(UserVmError::BadName(name.to_owned()))
    }
}

/// Listens at the control socket of a VM of this name.
fn listen(name: &str, path: &Path) -> Result<(OwnedFd, SocketPath), UserVmError> {
    match ListeningSocket::bind(path, SocketType::SEQPACKET, BACKLOG) {
        Ok(listening) => Ok(listening.into_parts()),
        Err(ListenError::InUse { path }) => Err(UserVmError::AlreadyRuns(path)),
        Err(source) => Err(UserVmError::ControlSocket { name: name.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn names_are_host_names() {
        for name in ["vm1", "a", "web-3", &"x".repeat(63)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a.b", "a b", "ä", "a/b", &"x".repeat(64)] {
            assert!(matches!(check_name(name), Err(UserVmError::BadName(_))), "{name}");
        }
    }

    #[test]
    fn a_control_socket_is_private_and_replaced_only_if_nobody_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let (socket, held) = listen("web", &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        client::connect(&path).unwrap();
        let refused = listen("db", &path).unwrap_err();
        assert!(matches!(&refused, UserVmError::AlreadyRuns(other) if *other == path));
        drop(socket);
        let replaced = listen("db", &path).unwrap();
        client::connect(&path).unwrap();
        drop((replaced, held));
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        let refused = listen("web", &path).unwrap_err();
        assert!(matches!(refused, UserVmError::ControlSocket { .. }), "{refused:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
