//! Programs that run in a VM.

use std::{
    collections::HashMap,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, kill_process, kill_process_group},
};

use crate::{
    ProgramExit,
    channel::{Grouping, ProgramRequest},
    sys,
};

/// The programs that somebody waits for, by process id.
#[derive(Debug, Default)]
pub(super) struct Programs {
    running: HashMap<Pid, Grouping>,
}

impl Programs {
    /// Runs a program with the descriptors as its standard input, output and error.
    pub(super) fn run(&mut self, request: &ProgramRequest, stdio: Vec<OwnedFd>) -> io::Result<Pid> {
        let (program, arguments) =
            request.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let [input, output, error] =
            <[OwnedFd; 3]>::try_from(stdio).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(request.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(error));
        if request.directory.is_dir() {
            command.current_dir(&request.directory);
        }
        match request.grouping {
            Grouping::Caller => {}
            Grouping::Group => {
                command.process_group(0);
            }
            Grouping::Session => sys::new_session(&mut command),
        }
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::Other)?;
        self.running.insert(pid, request.grouping);
        Ok(pid)
    }

    /// Sends a signal to a program that is still running, and to its process group if it has its own.
    pub(super) fn signal(&self, pid: Pid, number: i32) {
        let (Some(grouping), Some(signal)) =
            (self.running.get(&pid), Signal::from_named_raw(number))
        else {
            return;
        };
        // It may have ended in this moment; its number is not given away before it is reaped.
        let _ = match grouping {
            Grouping::Caller => kill_process(pid, signal),
            Grouping::Group | Grouping::Session => kill_process_group(pid, signal),
        };
    }

    /// Reaps what has ended: programs and, as process 1 must, everybody's orphans. Returns the programs.
    pub(super) fn reap(&mut self) -> Vec<(Pid, ProgramExit)> {
        let mut ended = Vec::new();
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let exit = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => ProgramExit::Code(code),
                        (_, Some(signal)) => ProgramExit::Signal(signal),
                        _ => continue,
                    };
                    if self.running.remove(&pid).is_some() {
                        ended.push((pid, exit));
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return ended,
            }
        }
    }
}
