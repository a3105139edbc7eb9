//! Programs in a VM, as whoever starts them sees them.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use super::{ANSWER_TIME, client::timed_out};
use crate::{
    ProgramExit, UserVmError,
    channel::{Channel, Grouping, ProgramRequest, Received, Reply, Request},
};

/// A program to be run in a VM, with the environment and the working directory of this process.
#[derive(Debug)]
pub struct Program {
    command: Vec<OsString>,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
    pub(super) grouping: Grouping,
}

/// What a program wrote, and how it ended.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ProgramOutput {
    /// How it ended.
    pub exit: ProgramExit,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

impl Program {
    /// A program with its arguments. Standard input is empty; output and error are this process's.
    pub fn new(command: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self {
            command: command.into_iter().map(|word| word.as_ref().to_owned()).collect(),
            input: None,
            output: None,
            error: None,
            grouping: Grouping::Group,
        }
    }

    /// Gives the program a standard input.
    #[must_use]
    pub fn input(self, fd: impl Into<OwnedFd>) -> Self {
        Self { input: Some(fd.into()), ..self }
    }

    /// Gives the program another standard output.
    #[must_use]
    pub fn output(self, fd: impl Into<OwnedFd>) -> Self {
        Self { output: Some(fd.into()), ..self }
    }

    /// Gives the program another standard error.
    #[must_use]
    pub fn error(self, fd: impl Into<OwnedFd>) -> Self {
        Self { error: Some(fd.into()), ..self }
    }

    /// Gives the program a session of its own whose terminal is its standard input: the slave side of a
    /// pseudo terminal.
    #[must_use]
    pub(super) fn session(self) -> Self {
        Self { grouping: Grouping::Session, ..self }
    }

    /// The program's name, for messages.
    fn name(&self) -> String {
        self.command.first().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Starts the program over a connection of its own.
    pub(super) fn start(self, channel: Channel, vm: &str) -> Result<RunningProgram, UserVmError> {
        let program = self.name();
        let failed =
            |source| UserVmError::Program { name: vm.to_owned(), program: program.clone(), source };
        let request = Request::Run(ProgramRequest {
            command: self.command,
            environment: environment(vm),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            grouping: self.grouping,
        });
        let stdio = || {
            let input = match self.input {
                Some(input) => input,
                None => std::fs::File::open("/dev/null")?.into(),
            };
            let output = match self.output {
                Some(output) => output,
                None => io::stdout().as_fd().try_clone_to_owned()?,
            };
            let error = match self.error {
                Some(error) => error,
                None => io::stderr().as_fd().try_clone_to_owned()?,
            };
            Ok([input, output, error])
        };
        let stdio = stdio().map_err(failed)?;
        channel.send(&request, &stdio.each_ref().map(AsFd::as_fd)).map_err(failed)?;
        // The program has its own copies now, and ours would keep its pipes open.
        drop(stdio);
        let deadline = Instant::now() + ANSWER_TIME;
        match channel.receive(Some(deadline)).map_err(failed)? {
            Received::Message(Reply::Started(pid), _) => {
                Ok(RunningProgram { channel, pid, exit: None, vm: vm.to_owned() })
            }
            Received::Message(Reply::NotStarted(errno), _) => Err(failed(match errno {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::ErrorKind::InvalidInput.into(),
            })),
            Received::Nothing => Err(timed_out(vm, "start the program")),
            _ => Err(UserVmError::Gone(vm.to_owned())),
        }
    }
}

/// This process's environment, and the VM's name.
fn environment(vm: &str) -> Vec<(OsString, OsString)> {
    let own = std::env::vars_os().filter(|(name, _)| name != "CLEARWAY_VM");
    own.chain([("CLEARWAY_VM".into(), vm.into())]).collect()
}

/// A program that runs in a VM. It is killed when this is dropped.
#[derive(Debug)]
pub struct RunningProgram {
    channel: Channel,
    pid: i32,
    exit: Option<ProgramExit>,
    vm: String,
}

impl RunningProgram {
    /// Its process id within the VM.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal, by its number. Nothing happens if it has ended.
    pub fn signal(&self, number: i32) {
        // A VM that is gone shows when its end is waited for.
        let _ = self.channel.send(&Request::Signal(number), &[]);
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Result<ProgramExit, UserVmError> {
        self.wait_until(None)?.ok_or_else(|| UserVmError::Gone(self.vm.clone()))
    }

    /// Waits until it has ended, but no longer than this; `None` if it still runs.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ProgramExit>, UserVmError> {
        self.wait_until(Some(Instant::now() + limit))
    }

    fn wait_until(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<ProgramExit>, UserVmError> {
        while self.exit.is_none() {
            match self.channel.receive(deadline) {
                Ok(Received::Message(Reply::Ended(exit), _)) => self.exit = Some(exit),
                Ok(Received::Message(..)) => {}
                Ok(Received::Nothing) => return Ok(None),
                Ok(Received::Closed) | Err(_) => return Err(UserVmError::Gone(self.vm.clone())),
            }
        }
        Ok(self.exit)
    }

    /// The connection's descriptor: readable when the program has ended, or the VM.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }
}

/// Runs a program to its end and collects what it writes.
pub(super) fn collect(
    program: Program,
    channel: Channel,
    vm: &str,
) -> Result<ProgramOutput, UserVmError> {
    let failed = |source| UserVmError::Io {
        name: vm.to_owned(),
        action: "read what a program writes",
        source,
    };
    let (mut stdout, output) = io::pipe().map_err(failed)?;
    let (mut stderr, error) = io::pipe().map_err(failed)?;
    let mut running = program.output(output).error(error).start(channel, vm)?;
    thread::scope(|scope| {
        // Both at once, so that a full pipe never stops the program.
        let errors = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes)
        });
        let mut written = Vec::new();
        stdout.read_to_end(&mut written).map_err(failed)?;
        let errors = errors.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(failed)?;
        Ok(ProgramOutput { exit: running.wait()?, stdout: written, stderr: errors })
    })
}
