//! The virtualization stack as the demo talks to it: desired state, status, events as they come.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use device_control::{DeviceControlClient, DriverName, SentRequest, Target};
use serde::Serialize;
use stack_process::control::{
    AdapterChange, AdapterReport, EVENTS_CAPACITY, EventRecord, Events, NextEvents,
    OUTCOME_CAPACITY, Outcome, PrivateControl, STATUS_CAPACITY, SetAdapter, StackStatus,
};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at the status, if nothing is told meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A connection to the stack.
pub(super) struct StackClient {
    control: DeviceControlClient,
    /// Asks for the events after `last`.
    next: SentRequest,
    last: u64,
}

impl StackClient {
    /// Connects to the stack behind this socket.
    pub(super) fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let name = DriverName::new("demo").context("a name for this client")?;
        let control = DeviceControlClient::connect_when_ready(socket, &name, patience)
            .with_context(|| format!("there is no stack behind {}", socket.display()))?;
        let next = ask(&control, 0)?;
        Ok(Self { control, next, last: 0 })
    }

    fn call(&self, code: PrivateControl, input: &impl Serialize, room: usize) -> Result<Vec<u8>> {
        let input = serde_json::to_vec(input)?;
        Ok(self.control.private(code.code(), &input, room, TIMEOUT)?)
    }

    /// All that the stack knows.
    pub(super) fn status(&self) -> Result<StackStatus> {
        let answer =
            self.control.private(PrivateControl::Status.code(), &[], STATUS_CAPACITY, TIMEOUT)?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Changes what is desired of a VM's adapter.
    pub(super) fn set(&self, vm: &str, adapter: &str, change: AdapterChange) -> Result<()> {
        let input = SetAdapter { vm: vm.to_owned(), adapter: adapter.to_owned(), change };
        let answer = self.call(PrivateControl::SetAdapter, &input, OUTCOME_CAPACITY)?;
        match serde_json::from_slice(&answer)? {
            Outcome::Done => Ok(()),
            Outcome::Refused { why } => bail!("the stack refuses: {why}"),
        }
    }

    /// What has happened since it was last asked, waiting so long for the first of it.
    pub(super) fn news(&mut self, wait: Duration) -> Result<Vec<EventRecord>> {
        let mut news = Vec::new();
        self.next.wait_for(wait);
        while self.next.is_done() {
            let done = std::mem::replace(&mut self.next, ask(&self.control, self.last)?);
            let events: Events = serde_json::from_slice(&done.wait_output(TIMEOUT)?)?;
            let known = self.last;
            if let Some(last) = events.events.last() {
                self.last = last.sequence;
                self.next = ask(&self.control, self.last)?;
            }
            news.extend(events.events.into_iter().filter(|event| event.sequence > known));
        }
        Ok(news)
    }

    /// Looks at each event until something is so of the adapters.
    pub(super) fn until(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut(EventRecord),
        holds: impl Fn(&[AdapterReport]) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let status = self.status()?;
            let adapters: Vec<_> = status.vms.into_iter().flat_map(|vm| vm.adapters).collect();
            let holds = holds(&adapters);
            // All that led to this status is told before anything else is done.
            while self.last < status.last_event && start.elapsed() < patience {
                self.news(TIMEOUT)?.into_iter().for_each(&mut look);
            }
            if holds {
                return Ok(());
            }
            let why: Vec<String> = adapters
                .iter()
                .flat_map(|adapter| {
                    adapter.reasons.iter().map(move |r| format!("{}: {}", adapter.port, r.text))
                })
                .collect();
            ensure!(
                start.elapsed() < patience,
                "after {} s it is still not so that {what}: {}",
                patience.as_secs(),
                why.join("; ")
            );
            self.news(LOOK_AGAIN)?.into_iter().for_each(&mut look);
        }
    }
}

fn ask(control: &DeviceControlClient, after: u64) -> Result<SentRequest> {
    let input = serde_json::to_vec(&NextEvents { after })?;
    let target = Target::Private(PrivateControl::NextEvents.code());
    Ok(control.send(target, &input, EVENTS_CAPACITY)?)
}
