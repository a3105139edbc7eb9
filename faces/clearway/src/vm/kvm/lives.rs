//! The lives of a guest: from its start to its end, and again if it reboots.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use kvm_partition::RunOutcome;

use super::{
    keyboard::{Ending, Guest, Keyboard},
    output::Output,
    signals::Signals,
};

/// What the guest has written last is shown before the program ends, if whoever reads it does so in this time.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A guest that runs. Dropping it ends it, and takes back whatever others gave it.
pub(super) trait Life: Guest {
    /// How it ended, once it has.
    fn outcome(&self) -> Option<RunOutcome>;

    /// Ends it, wherever it is, and waits until it has ended.
    fn stop(&self);
}

/// How it all ended.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) enum Exit {
    /// The guest turned itself off.
    Off,
    /// The guest asked for a reset, and was to have none.
    Reset,
    /// A client asked for it.
    Asked,
    /// The person left by `~.`.
    Left,
    /// A signal came.
    Signal(i32),
    /// The guest cannot go on.
    Failed(String),
}

impl Exit {
    /// The process's exit code.
    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(self.number())
    }

    fn number(&self) -> u8 {
        match self {
            Self::Off | Self::Reset | Self::Asked => 0,
            Self::Failed(_) => 1,
            // As of a program that is interrupted by a key.
            Self::Left => 130,
            Self::Signal(signal) => u8::try_from(*signal).unwrap_or(127).saturating_add(128),
        }
    }
}

/// Has a guest live, again for as often as it asks for a reset, if `reboot`. Afterwards the terminal is as it was.
pub(super) fn live(
    mut begin: impl FnMut() -> Result<Box<dyn Life>>,
    mut keyboard: Keyboard,
    output: &Output,
    mut signals: Signals,
    reboot: bool,
) -> Result<Exit> {
    loop {
        // One that fails to begin drops the keyboard.
        let life = begin()?;
        let attended = keyboard.attend(&*life, &mut signals).context("the VM's console");
        // A guest that waits for a reader could not be dropped.
        let ending = attended.inspect_err(|_| output.release())?;
        let exit = match ending {
            Ending::Guest => match life.outcome() {
                Some(RunOutcome::Reset) if reboot => {
                    tracing::info!("the guest begins anew");
                    continue;
                }
                outcome => exit(outcome),
            },
            Ending::Left => Exit::Left,
            Ending::Asked => Exit::Asked,
            Ending::Signal(signal) => Exit::Signal(signal),
        };
        // From here on nothing is needed of the person, nor can the guest keep this process from ending.
        keyboard.release_terminal();
        signals.now_end_at_once();
        if ending == Ending::Guest {
            output.drain(None);
        } else {
            output.release();
            life.stop();
            output.drain(Some(LAST_WORDS));
        }
        return Ok(exit);
    }
}

fn exit(outcome: Option<RunOutcome>) -> Exit {
    match outcome {
        Some(RunOutcome::Shutdown) => Exit::Off,
        Some(RunOutcome::Reset) => Exit::Reset,
        Some(RunOutcome::TripleFault { processor }) => Exit::Failed(format!(
            "processor {processor} had a triple fault: the guest's kernel crashed before it could say why; try another \
             kernel, or --append earlyprintk=ttyS0"
        )),
        Some(RunOutcome::Failed { processor, reason }) => {
            Exit::Failed(format!("processor {processor} cannot go on: {reason}"))
        }
        Some(RunOutcome::Stopped) | None => Exit::Failed("the guest was stopped".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        fs::File,
        io::{BufRead, BufReader, Write},
        os::fd::{AsFd, OwnedFd},
        process::{Command, Stdio},
        rc::Rc,
        time::Instant,
    };

    use rustix::{
        process::{Pid, Signal, WaitOptions},
        pty::OpenptFlags,
        termios::{LocalModes, OutputModes, Termios},
    };
    use signal_hook::consts::{SIGHUP, SIGTERM};
    use vmbus::EventFd;

    use super::*;

    /// What a guest does when it has been given so much; it takes 64 bytes at a time, and then none until it is looked
    /// at again.
    type Script = Box<dyn Fn(&[u8]) -> Option<RunOutcome>>;

    struct Played {
        script: Script,
        taken: RefCell<Vec<u8>>,
        outcome: RefCell<Option<RunOutcome>>,
        full: Cell<bool>,
        deaf: bool,
        room: EventFd,
        ended: EventFd,
        asked: EventFd,
        stopped: Rc<Cell<u32>>,
    }

    impl Guest for Played {
        fn input(&self, bytes: &[u8]) -> usize {
            if self.deaf {
                return 0;
            }
            if self.full.replace(!self.full.get()) {
                self.room.signal();
                return 0;
            }
            let count = bytes.len().min(64);
            self.taken.borrow_mut().extend(&bytes[..count]);
            if let Some(outcome) = (self.script)(&self.taken.borrow()) {
                self.outcome.replace(Some(outcome));
                self.ended.signal();
            }
            self.room.signal();
            count
        }

        fn room(&self) -> &EventFd {
            &self.room
        }

        fn ended(&self) -> &EventFd {
            &self.ended
        }

        fn asked_to_end(&self) -> &EventFd {
            &self.asked
        }
    }

    impl Life for Played {
        fn outcome(&self) -> Option<RunOutcome> {
            self.outcome.borrow().clone()
        }

        fn stop(&self) {
            self.stopped.set(self.stopped.get() + 1);
        }
    }

    /// A guest that is played once for each life.
    #[derive(Default)]
    struct World {
        lives: Rc<Cell<u32>>,
        stopped: Rc<Cell<u32>>,
        asked: Option<EventFd>,
        /// The guest takes nothing.
        deaf: bool,
    }

    impl World {
        fn live(
            &self,
            script: impl Fn(&[u8]) -> Option<RunOutcome> + Clone + 'static,
            keyboard: Keyboard,
            reboot: bool,
        ) -> Result<Exit> {
            let (_reader, writer) = rustix::pipe::pipe()?;
            let output = Output::start(writer)?;
            let begin = || -> Result<Box<dyn Life>> {
                self.lives.set(self.lives.get() + 1);
                Ok(Box::new(Played {
                    script: Box::new(script.clone()),
                    taken: RefCell::default(),
                    outcome: RefCell::default(),
                    full: Cell::default(),
                    deaf: self.deaf,
                    room: EventFd::new()?,
                    ended: EventFd::new()?,
                    asked: self.asked.clone().map_or_else(EventFd::new, Ok)?,
                    stopped: Rc::clone(&self.stopped),
                }))
            };
            live(begin, keyboard, &output, Signals::catch()?, reboot)
        }

        fn counts(&self) -> (u32, u32) {
            (self.lives.get(), self.stopped.get())
        }
    }

    /// Input from a pipe that has all of it, and is closed then.
    fn piped(text: &[u8]) -> Keyboard {
        let (read, write) = rustix::pipe::pipe().unwrap();
        File::from(write).write_all(text).unwrap();
        Keyboard::new(read).unwrap()
    }

    #[test]
    fn a_guest_that_is_fed_by_a_pipe_gets_every_byte_and_turns_itself_off() {
        let text: Vec<u8> = (0..5000).map(|n| b'a' + (n % 26) as u8).collect();
        let expected = [&text[..], b"\n~.\nend"].concat();
        let script = {
            let expected = expected.clone();
            move |taken: &[u8]| (taken == expected).then_some(RunOutcome::Shutdown)
        };
        let world = World::default();
        assert_eq!(world.live(script, piped(&expected), true).unwrap(), Exit::Off);
        assert_eq!(world.counts(), (1, 0), "there are no commands in what is piped");
    }

    #[test]
    fn a_guest_that_asks_for_a_reset_begins_anew_and_what_was_typed_goes_to_the_next_one() {
        let script = |taken: &[u8]| match taken.last() {
            Some(b'r') => Some(RunOutcome::Reset),
            Some(b'o') => Some(RunOutcome::Shutdown),
            _ => None,
        };
        let world = World::default();
        // It takes 64 bytes at a time.
        let text = [[b'.'; 63].as_slice(), b"r", &[b'.'; 63], b"r", b"..o"].concat();
        assert_eq!(world.live(script, piped(&text), true).unwrap(), Exit::Off);
        assert_eq!(world.counts(), (3, 0));
        let world = World::default();
        assert_eq!(world.live(script, piped(&text), false).unwrap(), Exit::Reset);
        assert_eq!(world.counts(), (1, 0));
    }

    #[test]
    fn a_guest_that_cannot_go_on_is_a_failure_that_says_why() {
        let fails = [
            (RunOutcome::TripleFault { processor: 1 }, "processor 1 had a triple fault: "),
            (
                RunOutcome::Failed { processor: 0, reason: "KVM_RUN: EFAULT".to_owned() },
                "processor 0 cannot go on: KVM_RUN: EFAULT",
            ),
        ];
        for (outcome, said) in fails {
            let script = move |_: &[u8]| Some(outcome.clone());
            let exit = World::default().live(script, piped(b"x"), true).unwrap();
            let Exit::Failed(reason) = &exit else { panic!("{exit:?}") };
            assert!(reason.starts_with(said), "{reason}");
            assert_eq!(exit.number(), 1);
        }
    }

    #[test]
    fn a_client_that_asks_ends_it_though_nobody_types() {
        let asked = EventFd::new().unwrap();
        asked.signal();
        let world = World { asked: Some(asked), ..World::default() };
        assert_eq!(world.live(|_| None, Keyboard::none(), true).unwrap(), Exit::Asked);
        assert_eq!(world.counts(), (1, 1));
    }

    #[test]
    fn exit_codes_are_those_that_are_documented() {
        let codes = [Exit::Off, Exit::Reset, Exit::Asked, Exit::Left].map(|exit| exit.number());
        assert_eq!(codes, [0, 0, 0, 130]);
        assert_eq!([SIGTERM, SIGHUP].map(|signal| Exit::Signal(signal).number()), [143, 129]);
    }

    /// A terminal: the person's end, and the program's.
    fn terminal() -> (File, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let person = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&person).unwrap();
        rustix::pty::unlockpt(&person).unwrap();
        let program = rustix::pty::ioctl_tiocgptpeer(&person, flags).unwrap();
        (File::from(person), program)
    }

    fn modes(terminal: impl AsFd) -> Termios {
        rustix::termios::tcgetattr(terminal).unwrap()
    }

    fn is_raw(terminal: impl AsFd) -> bool {
        let modes = modes(terminal);
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
        let post = modes.output_modes.contains(OutputModes::OPOST);
        !modes.local_modes.intersects(cooked) && post
    }

    /// Whether both are the same, as far as they are modes.
    fn same(one: &Termios, other: &Termios) -> bool {
        (one.input_modes, one.output_modes, one.control_modes, one.local_modes)
            == (other.input_modes, other.output_modes, other.control_modes, other.local_modes)
    }

    #[test]
    fn a_terminal_is_raw_while_a_guest_has_it_and_as_it_was_when_the_person_has_left() {
        let (mut person, program) = terminal();
        let before = modes(&program);
        assert!(!is_raw(&program));
        let keyboard = Keyboard::new(program.try_clone().unwrap()).unwrap();
        // Keys that are signals elsewhere are the guest's.
        person.write_all(b"ls ~.\x03\x1a\r~~\r").unwrap();
        let watched = Rc::new((person, program));
        let script = {
            let watched = Rc::clone(&watched);
            move |taken: &[u8]| {
                assert!(is_raw(&watched.1));
                if taken == b"ls ~.\x03\x1a\r~\r" {
                    (&watched.0).write_all(b"~.rm -r /\r").unwrap();
                }
                None
            }
        };
        let world = World::default();
        assert_eq!(world.live(script, keyboard, true).unwrap(), Exit::Left);
        assert_eq!(world.counts(), (1, 1));
        assert!(same(&modes(&watched.1), &before), "{:?} {before:?}", modes(&watched.1));
        // What was typed for the guest is not there for the shell.
        assert_eq!(rustix::io::ioctl_fionread(&watched.1).unwrap(), 0);
    }

    #[test]
    fn a_terminal_is_as_it_was_after_a_panic_and_when_the_guest_has_ended() {
        let (mut person, program) = terminal();
        let before = modes(&program);
        for panics in [true, false] {
            let keyboard = Keyboard::new(program.try_clone().unwrap()).unwrap();
            assert!(keyboard.is_terminal() && is_raw(&program));
            person.write_all(b"x").unwrap();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let script = move |_: &[u8]| {
                    assert!(!panics, "of the guest's own making");
                    Some(RunOutcome::Shutdown)
                };
                World::default().live(script, keyboard, true).unwrap()
            }));
            assert_eq!(done.ok(), (!panics).then_some(Exit::Off));
            assert!(same(&modes(&program), &before));
        }
    }

    #[test]
    fn a_guest_that_cannot_begin_leaves_the_terminal_as_it_was() {
        let (_person, program) = terminal();
        let before = modes(&program);
        let keyboard = Keyboard::new(program.try_clone().unwrap()).unwrap();
        let output = Output::start(rustix::pipe::pipe().unwrap().1).unwrap();
        let begin = || anyhow::bail!("no kernel");
        let failed = live(begin, keyboard, &output, Signals::catch().unwrap(), true);
        assert_eq!(failed.unwrap_err().to_string(), "no kernel");
        assert!(same(&modes(&program), &before));
    }

    #[test]
    fn pasted_text_arrives_whole_through_a_terminal() {
        let (mut person, program) = terminal();
        let keyboard = Keyboard::new(program).unwrap();
        let text: Vec<u8> = (0..20_000).map(|n| b'a' + (n % 26) as u8).collect();
        let pasted = [&text[..], b"\r"].concat();
        let expected = pasted.clone();
        let paste = std::thread::spawn(move || {
            person.write_all(&pasted).unwrap();
            person
        });
        let script = move |taken: &[u8]| {
            assert!(expected.starts_with(taken));
            (taken.len() == expected.len()).then_some(RunOutcome::Shutdown)
        };
        assert_eq!(World::default().live(script, keyboard, true).unwrap(), Exit::Off);
        drop(paste.join().unwrap());
    }

    #[test]
    fn a_person_leaves_a_guest_that_takes_nothing_and_help_is_no_key() {
        let (mut person, program) = terminal();
        let keyboard = Keyboard::new(program).unwrap();
        person.write_all(b"\r\r\r~?~.").unwrap();
        let world = World { deaf: true, ..World::default() };
        assert_eq!(world.live(|_| None, keyboard, true).unwrap(), Exit::Left);
        assert_eq!(world.counts(), (1, 1));
    }

    /// Set in the process of the next test.
    const AT_A_TERMINAL: &str = "CLEARWAY_TEST_AT_A_TERMINAL";

    /// The program as it sits at a terminal, for the next test; nothing otherwise.
    #[test]
    fn process_at_a_terminal() {
        if std::env::var_os(AT_A_TERMINAL).is_none() {
            return;
        }
        let terminal = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let keyboard = Keyboard::new(terminal).unwrap();
        let script = |taken: &[u8]| {
            println!("took {} raw {}", taken.len(), is_raw(std::io::stdin()));
            None
        };
        let exit = World::default().live(script, keyboard, true).unwrap();
        std::process::exit(exit.number().into());
    }

    #[test]
    fn a_terminal_is_as_it_was_when_a_signal_stops_or_ends_the_program() {
        let (mut person, program) = terminal();
        let before = modes(&program);
        let child = "vm::kvm::lives::tests::process_at_a_terminal";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", child, "--nocapture"])
            .env(AT_A_TERMINAL, "1")
            .stdin(program.try_clone().unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut says = |words: &str| {
            let line = lines.find(|line| line.as_ref().unwrap().contains(words));
            assert!(line.is_some(), "it never says {words:?}");
        };
        person.write_all(b"x").unwrap();
        says("took 1 raw true");
        rustix::process::kill_process(pid, Signal::TSTP).unwrap();
        let stopped = rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(stopped.1.stopped());
        assert!(same(&modes(&program), &before));
        rustix::process::kill_process(pid, Signal::CONT).unwrap();
        // Raw again, or the terminal would wait for the end of the line.
        let started = Instant::now();
        while !is_raw(&program) {
            assert!(started.elapsed() < Duration::from_secs(20), "it is not raw again");
            std::thread::yield_now();
        }
        person.write_all(b"y").unwrap();
        says("took 2 raw true");
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143));
        assert!(same(&modes(&program), &before));
    }
}
