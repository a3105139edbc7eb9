//! Talking to a VM that runs, over its control socket.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{
    ANSWER_TIME,
    program::{self, Program, ProgramOutput, RunningProgram},
};
use crate::{
    ProgramExit, UserVmError, VmStatistics,
    channel::{Channel, Received, Reply, Request},
};

/// A VM that somebody else started.
#[derive(Clone, Debug)]
pub struct VmClient {
    name: String,
    socket: PathBuf,
}

impl VmClient {
    /// The VM of this name behind this control socket. Connects to it once, to see that it is there.
    pub fn new(name: impl Into<String>, socket: impl Into<PathBuf>) -> Result<Self, UserVmError> {
        let client = Self { name: name.into(), socket: socket.into() };
        client.connect().map(|_| client)
    }

    fn connect(&self) -> Result<Channel, UserVmError> {
        connect(&self.socket)
            .map_err(|source| UserVmError::NotRunning { socket: self.socket.clone(), source })
    }

    /// Starts a program in the VM.
    pub fn start(&self, program: Program) -> Result<RunningProgram, UserVmError> {
        program.start(self.connect()?, &self.name)
    }

    /// Runs a program to its end and collects what it writes.
    pub fn output(&self, program: Program) -> Result<ProgramOutput, UserVmError> {
        program::collect(program, self.connect()?, &self.name)
    }

    /// Runs a program to its end at this process's terminal, as `clearway vm exec` does.
    ///
    /// With a terminal at standard input the program gets one of its own, to which this one is connected
    /// until it ends; so shells in it have job control.
    pub fn run(&self, command: &[std::ffi::OsString]) -> Result<ProgramExit, UserVmError> {
        super::run::at_terminal(command, self.connect()?, &self.name)
    }

    /// What the VM counted.
    pub fn statistics(&self) -> Result<VmStatistics, UserVmError> {
        statistics(&self.connect()?, &self.name)
    }

    /// Brings the VF's driver of an adapter (from 0; all if `None`) up or down in the guest, and waits until the adapter's
    /// data path has moved; see [`UserVm::set_vf`](crate::UserVm::set_vf).
    pub fn set_vf(&self, adapter: Option<u32>, up: bool) -> Result<(), UserVmError> {
        set_vf(&self.connect()?, &self.name, adapter, up)
    }

    /// Ends the VM.
    ///
    /// # Errors
    /// No VM is there; or it does not end.
    pub fn shutdown(&self) -> Result<(), UserVmError> {
        let channel = self.connect()?;
        let deadline = Instant::now() + ANSWER_TIME;
        // It answers by closing.
        let _ = channel.send(&Request::Shutdown, &[]);
        loop {
            match channel.receive::<Reply>(Some(deadline)) {
                Ok(Received::Message(..)) => {}
                Ok(Received::Nothing) => return Err(timed_out(&self.name, "end")),
                Ok(Received::Closed) | Err(_) => return Ok(()),
            }
        }
    }
}

pub(super) fn connect(socket: &Path) -> std::io::Result<Channel> {
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
    Ok(Channel::from_fd(fd))
}

pub(super) fn statistics(channel: &Channel, vm: &str) -> Result<VmStatistics, UserVmError> {
    let gone = || UserVmError::Gone(vm.to_owned());
    channel.send(&Request::Statistics, &[]).map_err(|_| gone())?;
    match channel.receive(Some(Instant::now() + ANSWER_TIME)) {
        Ok(Received::Message(Reply::Statistics(statistics), _)) => Ok(*statistics),
        Ok(Received::Nothing) => Err(timed_out(vm, "tell what it counted")),
        _ => Err(gone()),
    }
}

pub(super) fn set_vf(
    channel: &Channel,
    vm: &str,
    adapter: Option<u32>,
    up: bool,
) -> Result<(), UserVmError> {
    let gone = || UserVmError::Gone(vm.to_owned());
    channel.send(&Request::SetVf { adapter, up }, &[]).map_err(|_| gone())?;
    match channel.receive(Some(Instant::now() + ANSWER_TIME)) {
        Ok(Received::Message(Reply::VfSet(true), _)) => Ok(()),
        Ok(Received::Message(Reply::VfSet(false), _)) => Err(UserVmError::NoVf(vm.to_owned())),
        Ok(Received::Nothing) => Err(timed_out(vm, "move its data path")),
        _ => Err(gone()),
    }
}

/// A VM did not answer in [`ANSWER_TIME`].
pub(super) fn timed_out(vm: &str, what: &'static str) -> UserVmError {
    UserVmError::TimedOut { name: vm.to_owned(), what, seconds: ANSWER_TIME.as_secs() }
}
