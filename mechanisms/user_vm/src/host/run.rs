//! Running a VM, or a program in one, at this process's terminal.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pty::OpenptFlags,
    termios::{OptionalActions, Termios},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGWINCH};

use super::{
    program::{Program, RunningProgram},
    signals::Signals,
    spawn::UserVm,
};
use crate::{
    ProgramExit, UserVmConfig, UserVmError,
    channel::{Channel, Grouping},
    sys,
};

/// Runs a VM for as long as its command runs, at this process's terminal; without a command, until a signal
/// ends it.
///
/// The command has the standard input, output and error of this process and is in its session, so that the
/// terminal's keys reach it and shells have job control. A signal that ends this process is passed on to it
/// instead; a second one kills it.
///
/// # Errors
/// As of [`UserVm::spawn`]; the command cannot be run; the VM ended before the command did.
pub fn run(config: &UserVmConfig) -> Result<ProgramExit, UserVmError> {
    run_with(config, None)
}

/// Runs a VM on VMBus for as long as its command runs, like [`run`]. `guest` is the guest end of its partition.
///
/// # Errors
/// As of [`run`]; nobody serves the partition's VMBus in time.
pub fn run_on(config: &UserVmConfig, guest: OwnedFd) -> Result<ProgramExit, UserVmError> {
    run_with(config, Some(guest))
}

fn run_with(config: &UserVmConfig, guest: Option<OwnedFd>) -> Result<ProgramExit, UserVmError> {
    let name = &config.name;
    let failed = |action| move |source| UserVmError::Io { name: name.clone(), action, source };
    let mut signals =
        Signals::catch(&[SIGINT, SIGQUIT, SIGTERM, SIGHUP]).map_err(failed("catch signals"))?;
    let vm = UserVm::spawn_with(config, guest)?;
    if config.command.is_empty() {
        loop {
            vm.sleep(&[signals.as_fd()]).map_err(failed("wait"))?;
            vm.end_reason()?;
            if !signals.take().is_empty() {
                vm.shutdown();
                return Ok(ProgramExit::Code(0));
            }
        }
    }
    let foreground = is_foreground();
    let mut program = Program::new(&config.command)
        .input(standard_input().map_err(failed("pass on standard input"))?);
    program.grouping = Grouping::Caller;
    let mut program = vm.start(program)?;
    let mut ending = false;
    let exit = loop {
        vm.sleep(&[signals.as_fd(), program.channel().as_fd()]).map_err(failed("wait"))?;
        for signal in signals.take() {
            // What the terminal sends it sends to the program as well.
            let from_terminal = foreground && matches!(signal, SIGINT | SIGQUIT);
            if !from_terminal {
                program.signal(if ending { SIGKILL } else { signal });
                ending = true;
            }
        }
        match program.wait_for(Duration::ZERO) {
            Ok(Some(exit)) => break Ok(exit),
            Ok(None) => vm.end_reason()?,
            // The VM ended under it; it may say why.
            Err(error) => {
                break vm.wait_for_end(Duration::from_secs(1)).and(Err(error));
            }
        }
    };
    if foreground {
        // A shell in the VM that was killed leaves the terminal to its jobs.
        let _ = sys::take_terminal();
    }
    vm.shutdown();
    exit
}

/// Whether this process's group is in the foreground of the terminal at its standard input.
fn is_foreground() -> bool {
    rustix::termios::tcgetpgrp(rustix::stdio::stdin())
        .is_ok_and(|group| group == rustix::process::getpgrp())
}

fn standard_input() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}

/// Runs a program in a VM that somebody else started, with this process's standard input, output and error.
pub(super) fn at_terminal(
    command: &[OsString],
    channel: Channel,
    vm: &str,
) -> Result<ProgramExit, UserVmError> {
    let failed = |action| move |source| UserVmError::Io { name: vm.to_owned(), action, source };
    let program = Program::new(command);
    if rustix::termios::isatty(rustix::stdio::stdin()) {
        let made = "make a terminal for the program";
        let (terminal, slave) = Terminal::open().map_err(failed(made))?;
        let clone = || slave.try_clone().map_err(failed(made));
        let program = program.input(clone()?).output(clone()?).error(slave).session();
        let program = program.start(channel, vm)?;
        return terminal.relay(program).map_err(failed("relay the terminal"))?;
    }
    let input = standard_input().map_err(failed("pass on standard input"))?;
    let mut signals =
        Signals::catch(&[SIGINT, SIGQUIT, SIGTERM, SIGHUP]).map_err(failed("catch signals"))?;
    let mut program = program.input(input).start(channel, vm)?;
    loop {
        sleep(&[signals.as_fd(), program.channel().as_fd()]).map_err(failed("wait"))?;
        for signal in signals.take() {
            program.signal(signal);
        }
        if let Some(exit) = program.wait_for(Duration::ZERO)? {
            return Ok(exit);
        }
    }
}

/// Sleeps until one of these is readable or closed.
fn sleep(fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
    let mut set: Vec<_> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    match poll(&mut set, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl UserVm {
    /// Sleeps until one of these is readable, or the VM has something to say.
    fn sleep(&self, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        let mut all = fds.to_vec();
        all.push(self.channel().as_fd());
        sleep(&all)
    }
}

/// A pseudo terminal for a program, and this process's own terminal in raw mode.
struct Terminal {
    master: OwnedFd,
    /// This process's terminal as it was.
    before: Termios,
}

impl Terminal {
    /// Makes the pseudo terminal, of which only the program must keep the slave.
    fn open() -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin)?;
        if let Ok(size) = rustix::termios::tcgetwinsize(stdin) {
            rustix::termios::tcsetwinsize(&master, size)?;
        }
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(stdin, OptionalActions::Flush, &raw)?;
        Ok((Self { master, before }, slave))
    }

    /// Copies between the two terminals until the program has ended and all it wrote was shown.
    fn relay(self, mut program: RunningProgram) -> io::Result<Result<ProgramExit, UserVmError>> {
        let mut signals = Signals::catch(&[SIGWINCH, SIGTERM, SIGHUP])?;
        let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        let mut input_open = true;
        let mut exit = None;
        loop {
            let mut set = vec![
                PollFd::new(&self.master, PollFlags::IN),
                PollFd::new(&signals, PollFlags::IN),
            ];
            if exit.is_none() {
                set.push(PollFd::new(program.channel(), PollFlags::IN));
            }
            if input_open {
                set.push(PollFd::new(&stdin, PollFlags::IN));
            }
            match poll(&mut set, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready = |fd: usize| set.get(fd).is_some_and(|fd| !fd.revents().is_empty());
            let (output, input) = (ready(0), input_open && ready(set.len() - 1));
            for signal in signals.take() {
                if signal == SIGWINCH {
                    if let Ok(size) = rustix::termios::tcgetwinsize(stdin) {
                        let _ = rustix::termios::tcsetwinsize(&self.master, size);
                    }
                } else {
                    program.signal(signal);
                }
            }
            if output && !copy(&self.master, stdout)? {
                // Nobody has the slave any more.
                return Ok(match exit {
                    Some(exit) => exit,
                    None => program.wait(),
                });
            }
            if input {
                input_open = copy(stdin, &self.master)?;
            }
            if exit.is_none() {
                exit = program.wait_for(Duration::ZERO).transpose();
            }
            // A job that the program left behind may keep the terminal; it is not waited for.
            if exit.is_some() && !output {
                return Ok(exit.unwrap_or_else(|| program.wait()));
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let stdin = rustix::stdio::stdin();
        let _ = rustix::termios::tcsetattr(stdin, OptionalActions::Flush, &self.before);
    }
}

/// Copies what is there; false if there will be no more.
fn copy(from: impl AsFd, to: impl AsFd) -> io::Result<bool> {
    let mut bytes = [0; 4096];
    let count = match rustix::io::read(from, &mut bytes) {
        Ok(0) | Err(Errno::IO) => return Ok(false),
        Ok(count) => count,
        Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let mut rest = bytes.get(..count).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(&to, rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::IO) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
