//! The numbered timeline of a demo: printed as it happens, kept for `--json`.

use std::time::Instant;

use serde::Serialize;

use crate::nic::Step;

/// One line of the timeline.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    number: usize,
    /// Microseconds since the demo began.
    at_us: u64,
    /// Who did it: NDIS, stack, VM, traffic.
    actor: String,
    /// The OID, or what was done.
    what: String,
    /// How it ended.
    status: String,
    /// Microseconds it took.
    microseconds: u64,
    /// More about it.
    detail: String,
}

/// The timeline.
pub(crate) struct Timeline {
    start: Instant,
    quiet: bool,
    entries: Vec<Entry>,
}

impl Timeline {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { start: Instant::now(), quiet, entries: Vec::new() }
    }

    /// A headline between parts of the story.
    pub(crate) fn chapter(&self, title: &str) {
        if !self.quiet {
            println!("\n{title}");
        }
    }

    pub(crate) fn entry(
        &mut self,
        actor: &str,
        what: &str,
        status: &str,
        microseconds: u64,
        detail: &str,
    ) {
        let entry = Entry {
            number: self.entries.len() + 1,
            at_us: u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX),
            actor: actor.to_owned(),
            what: what.to_owned(),
            status: status.to_owned(),
            microseconds,
            detail: detail.to_owned(),
        };
        if !self.quiet {
            println!(
                "{:>3}  {:<7} {:<34} {:<20} {:>9}  {}",
                entry.number,
                entry.actor,
                entry.what,
                entry.status,
                duration(microseconds),
                entry.detail
            );
        }
        self.entries.push(entry);
    }

    /// A request to the adapter.
    pub(crate) fn step(&mut self, actor: &str, step: &Step) {
        self.entry(actor, &step.request, &step.status, step.microseconds, &step.what);
    }

    /// Something that took from `start` until now.
    pub(crate) fn done(&mut self, actor: &str, what: &str, start: Instant, detail: &str) {
        let microseconds = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.entry(actor, what, "ok", microseconds, detail);
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// Microseconds in the unit that suits them.
fn duration(microseconds: u64) -> String {
    match microseconds {
        0..10_000 => format!("{microseconds} µs"),
        10_000..10_000_000 => format!("{} ms", microseconds / 1000),
        _ => format!("{} s", microseconds / 1_000_000),
    }
}
