//! Numbered datagrams from one VM to the other, for as long as the story lasts.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use user_vm::{Program, RunningProgram, VmClient};

use crate::{demo::command, traffic::Count};

/// A program in a VM that keeps numbered datagrams under way.
pub(super) struct Numbers {
    program: RunningProgram,
    commands: PipeWriter,
    counts: BufReader<PipeReader>,
    /// What was counted at the last mark.
    before: Count,
}

/// What became of the datagrams between two marks.
#[derive(Copy, Clone, Debug, Default, Serialize)]
pub(super) struct Passed {
    /// Datagrams and their acknowledgements.
    pub(super) sent: u64,
    /// Of both, those that never arrived.
    pub(super) lost: u64,
    /// Of both, those that arrived more than once.
    pub(super) doubled: u64,
    /// Those with other contents than were sent.
    pub(super) wrong: u64,
}

impl std::ops::AddAssign for Passed {
    fn add_assign(&mut self, more: Self) {
        self.sent += more.sent;
        self.lost += more.lost;
        self.doubled += more.doubled;
        self.wrong += more.wrong;
    }
}

impl Numbers {
    /// Starts to send from `vm` to `address`, with so many datagrams under way.
    pub(super) fn start(vm: &VmClient, address: &str, window: u64) -> Result<Self> {
        let (input, commands) = pipe()?;
        let (counts, output) = pipe()?;
        let window = window.to_string();
        let program = Program::new(command(&["number", address, "--window", &window])?);
        let program = vm.start(program.input(input).output(output))?;
        let counts = BufReader::new(counts);
        Ok(Self { program, commands, counts, before: Count::default() })
    }

    /// What has passed since the last mark. What was under way has arrived, or is lost.
    pub(super) fn mark(&mut self) -> Result<Passed> {
        self.commands.write_all(b"\n").context("the program that numbers datagrams has ended")?;
        let mut line = String::new();
        self.counts.read_line(&mut line)?;
        let count: Count = serde_json::from_str(&line)
            .with_context(|| format!("the program that numbers datagrams said {line:?}"))?;
        let before = std::mem::replace(&mut self.before, count);
        Ok(Passed {
            sent: (count.sent - before.sent) + (count.received - before.received),
            lost: count.lost().saturating_sub(before.lost()),
            doubled: count.came_twice() - before.came_twice(),
            wrong: count.wrong - before.wrong,
        })
    }

    /// Ends it, after a last mark.
    pub(super) fn end(self) -> Result<()> {
        let Self { mut program, commands, .. } = self;
        drop(commands);
        let exit = program.wait()?;
        ensure!(exit.success(), "the program that numbers datagrams ended with {exit}");
        Ok(())
    }
}
