//! What a person types, on its way from a terminal or a pipe to the guest; and what else may happen meanwhile.
//!
//! A terminal is in raw mode for as long as the guest has it: every key is the guest's, but for the commands of
//! [`escape`](super::escape). It is as it was when the guest has ended, when this process is stopped or ended by a
//! signal, and when it panics.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    termios::{LocalModes, OptionalActions, OutputModes, QueueSelector, Termios},
};
use signal_hook::consts::{SIGCONT, SIGTSTP};
use vmbus::EventFd;

use super::{
    escape::{self, Command, Escapes},
    signals::Signals,
};

/// What is typed or pasted while the guest takes nothing, bytes. Beyond that it waits where it comes from, and commands
/// with it.
const MOST_PENDING: usize = 64 << 10;

/// A guest, as whoever sits at its console sees it.
pub(super) trait Guest {
    /// Takes what there is room for, and says how much.
    fn input(&self, bytes: &[u8]) -> usize;

    /// Signalled when there is room again, after [`Guest::input`] took less than there was.
    fn room(&self) -> &EventFd;

    /// Readable once it has ended by itself.
    fn ended(&self) -> &EventFd;

    /// Signalled when a client of the VM's wants it to end.
    fn asked_to_end(&self) -> &EventFd;
}

/// Why nobody sits at the console any more.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Ending {
    /// The guest has ended.
    Guest,
    /// The person typed `~.`.
    Left,
    /// A client asked for it.
    Asked,
    /// A signal came.
    Signal(i32),
}

/// Where input comes from, through all lives of a guest.
pub(super) struct Keyboard {
    /// None once there is no more.
    from: Option<OwnedFd>,
    /// Finds commands, if a person types.
    escapes: Option<Escapes>,
    /// The terminal as it was, while it is in raw mode.
    before: Option<Termios>,
    /// What the guest has not taken.
    pending: VecDeque<u8>,
}

impl Keyboard {
    /// Nobody types.
    pub(super) fn none() -> Self {
        Self { from: None, escapes: None, before: None, pending: VecDeque::new() }
    }

    /// Input comes from here; if that is a terminal in whose foreground this process is, it is in raw mode from now on.
    pub(super) fn new(from: OwnedFd) -> io::Result<Self> {
        let escapes = rustix::termios::isatty(&from).then(Escapes::default);
        let mut this = Self { from: Some(from), escapes, before: None, pending: VecDeque::new() };
        this.take_terminal()?;
        Ok(this)
    }

    /// Whether a person sits at a terminal that is this process's now.
    pub(super) fn is_terminal(&self) -> bool {
        self.before.is_some()
    }

    /// Gives the terminal back, as it was.
    pub(super) fn release_terminal(&mut self) {
        if let (Some(terminal), Some(before)) = (&self.from, self.before.take())
            && is_foreground(terminal)
        {
            // What was typed for the guest is not for the shell.
            let _ = rustix::termios::tcflush(terminal, QueueSelector::IFlush);
            let _ = rustix::termios::tcsetattr(terminal, OptionalActions::Now, &before);
        }
    }

    fn take_terminal(&mut self) -> io::Result<()> {
        let Some(terminal) = self.from.as_ref().filter(|_| self.escapes.is_some()) else {
            return Ok(());
        };
        if self.before.is_some() || !is_foreground(terminal) {
            return Ok(());
        }
        let before = rustix::termios::tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Lines of this program remain lines; a guest ends its own with both characters, and one more does no harm.
        raw.output_modes |= before.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
        // Signals by keys are the guest's.
        debug_assert!(!raw.local_modes.contains(LocalModes::ISIG));
        rustix::termios::tcsetattr(terminal, OptionalActions::Now, &raw)?;
        self.before = Some(before);
        Ok(())
    }

    /// Brings the guest what is typed until something ends that.
    pub(super) fn attend(
        &mut self,
        guest: &dyn Guest,
        signals: &mut Signals,
    ) -> io::Result<Ending> {
        loop {
            self.give(guest);
            let (mut ended, mut asked, mut typed) = (false, false, false);
            {
                let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
                let mut set = vec![
                    readable(guest.ended().as_fd()),
                    readable(guest.asked_to_end().as_fd()),
                    readable(guest.room().as_fd()),
                    readable(signals.as_fd()),
                ];
                set.extend(self.readable().map(readable));
                match poll(&mut set, None) {
                    Ok(_) => {}
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                let mut ready = set.iter().map(|fd| !fd.revents().is_empty());
                for flag in [&mut ended, &mut asked] {
                    *flag = ready.next() == Some(true);
                }
                if ready.next() == Some(true) {
                    guest.room().take();
                }
                typed |= ready.nth(1) == Some(true);
            }
            for signal in signals.take() {
                match signal {
                    SIGTSTP => {
                        self.release_terminal();
                        let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
                    }
                    // In the foreground now, perhaps, and a shell may have changed the terminal meanwhile.
                    SIGCONT => self.take_terminal_again()?,
                    signal => return Ok(Ending::Signal(signal)),
                }
            }
            if ended {
                return Ok(Ending::Guest);
            }
            if asked && guest.asked_to_end().take() > 0 {
                return Ok(Ending::Asked);
            }
            if typed && self.read()? == Some(Command::Leave) {
                return Ok(Ending::Left);
            }
        }
    }

    fn take_terminal_again(&mut self) -> io::Result<()> {
        if let (Some(terminal), Some(before)) = (&self.from, self.before.take()) {
            if !is_foreground(terminal) {
                return Ok(());
            }
            let _ = rustix::termios::tcsetattr(terminal, OptionalActions::Now, &before);
        }
        self.take_terminal()
    }

    /// What to read from, if there is room, and if it is this process's.
    fn readable(&self) -> Option<BorrowedFd<'_>> {
        let ours = self.escapes.is_none() || self.before.is_some();
        let from = self.from.as_ref().filter(|_| ours && self.pending.len() < MOST_PENDING)?;
        Some(from.as_fd())
    }

    fn give(&mut self, guest: &dyn Guest) {
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.as_slices();
            let (taken, offered) = (guest.input(bytes), bytes.len());
            self.pending.drain(..taken.min(offered));
            if taken < offered {
                return;
            }
        }
    }

    /// Reads what there is.
    fn read(&mut self) -> io::Result<Option<Command>> {
        let Some(from) = &self.from else { return Ok(None) };
        let mut bytes = [0; 4096];
        let count = match rustix::io::read(from, &mut bytes) {
            // The pipe's other end, or the terminal, is gone; the guest goes on.
            Ok(0) | Err(Errno::IO) => {
                self.from = None;
                return Ok(None);
            }
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let bytes = bytes.get(..count).unwrap_or_default();
        let Some(escapes) = &mut self.escapes else {
            self.pending.extend(bytes);
            return Ok(None);
        };
        for key in bytes {
            match escapes.take(*key, &mut self.pending) {
                Some(Command::Leave) => return Ok(Some(Command::Leave)),
                Some(Command::Help) => eprint!("{}", escape::HELP),
                None => {}
            }
        }
        Ok(None)
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.release_terminal();
    }
}

/// Whether this process may use a terminal: it is in its foreground, or the terminal has no such thing for it.
fn is_foreground(terminal: impl AsFd) -> bool {
    match rustix::termios::tcgetpgrp(terminal) {
        Ok(group) => group == rustix::process::getpgrp(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_that_ends_is_not_waited_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut keyboard = Keyboard::new(read).unwrap();
        assert!(!keyboard.is_terminal() && keyboard.readable().is_some());
        rustix::io::write(&write, b"x").unwrap();
        drop(write);
        for _ in 0..2 {
            assert_eq!(keyboard.read().unwrap(), None);
        }
        assert!(keyboard.readable().is_none());
        assert_eq!(keyboard.pending, b"x");
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut keyboard = Keyboard::new(read).unwrap();
        let mut written = 0;
        while keyboard.readable().is_some() {
            written += rustix::io::write(&write, &[b'x'; 4096]).unwrap();
            keyboard.read().unwrap();
        }
        assert_eq!((keyboard.pending.len(), written), (MOST_PENDING, MOST_PENDING));
    }
}
