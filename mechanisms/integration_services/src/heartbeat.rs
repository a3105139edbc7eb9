//! The heartbeat service: a guest answers every two seconds, or does not.
//!
//! Heartbeats are numbered, and an answer has the number of what it answers, and one more. So an answer that comes twice,
//! or late behind another, is known for what it is, and nothing is kept of those that are under way.

use std::time::Duration;

use integration_protocol::{ApplicationState, Heartbeat, Service};

use crate::{HostTime, Ignored, IntegrationService, Session, session::Received};

/// From one heartbeat to the next.
const PERIOD: Duration = Duration::from_secs(2);
/// A heartbeat that was not answered for so long is a sign that nobody is there.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of the guest's life.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Pulse {
    /// No heartbeat was ever answered: it may have no driver for it.
    NeverSeen,
    /// It answers.
    Alive,
    /// It has answered, and does not any more: for 10 s, or because it closed the channel or was reset.
    Lost,
}

/// The heartbeat service.
#[derive(Clone, Debug)]
pub struct HeartbeatService {
    session: Session,
    pulse: Pulse,
    /// When the next one is sent.
    next: Duration,
    /// The last one that was sent, from 1.
    sent: u64,
    /// The last one that needs no answer any more.
    answered: u64,
    /// Since when the guest owes an answer.
    owed_since: Option<Duration>,
    last_sequence: Option<u64>,
    last_seen: Option<Duration>,
    state: ApplicationState,
}

impl Default for HeartbeatService {
    fn default() -> Self {
        Self::new()
    }
}

impl HeartbeatService {
    /// The service, offered.
    pub fn new() -> Self {
        Self {
            session: Session::new(Service::Heartbeat, Service::Heartbeat.versions()),
            pulse: Pulse::NeverSeen,
            next: Duration::ZERO,
            sent: 0,
            answered: 0,
            owed_since: None,
            last_sequence: None,
            last_seen: None,
            state: ApplicationState::UNKNOWN,
        }
    }

    /// Whether the guest is alive, as far as is known.
    pub fn pulse(&self) -> Pulse {
        self.pulse
    }

    /// The sequence number of the guest's last answer.
    pub fn last_sequence(&self) -> Option<u64> {
        self.last_sequence
    }

    /// When that came.
    pub fn last_seen(&self) -> Option<Duration> {
        self.last_seen
    }

    /// How the guest says that it is. Linux does not say.
    pub fn application_state(&self) -> ApplicationState {
        self.state
    }
}

impl IntegrationService for HeartbeatService {
    fn session(&self) -> &Session {
        &self.session
    }

    fn opened(&mut self, now: Duration) {
        self.closed();
        self.session.opened();
        self.next = now;
    }

    fn closed(&mut self) {
        self.session.closed();
        self.answered = self.sent;
        self.owed_since = None;
        self.state = ApplicationState::UNKNOWN;
        if self.pulse == Pulse::Alive {
            self.pulse = Pulse::Lost;
        }
    }

    fn receive(&mut self, packet: &[u8], now: Duration) -> Result<(), Ignored> {
        let body = match self.session.receive(packet)? {
            Received::Ready => {
                self.next = now;
                return Ok(());
            }
            Received::Incompatible => return Ok(()),
            Received::Answer { body, .. } => body,
        };
        let beat = Heartbeat::parse(body).map_err(|error| self.session.ignore(error.into()))?;
        let answers = beat.sequence.saturating_sub(1);
        if answers <= self.answered || answers > self.sent {
            return Err(self.session.ignore(Ignored::Unasked));
        }
        self.answered = answers;
        // Those that followed are under way since now at the earliest.
        self.owed_since = (answers < self.sent).then_some(now);
        self.last_sequence = Some(beat.sequence);
        self.last_seen = Some(now);
        self.state = beat.state;
        self.pulse = Pulse::Alive;
        Ok(())
    }

    fn poll(&mut self, now: Duration) {
        let silent = self.owed_since.is_some_and(|since| now.saturating_sub(since) >= PATIENCE);
        if silent && self.pulse == Pulse::Alive {
            self.pulse = Pulse::Lost;
        }
    }

    fn next_message(
        &mut self,
        now: Duration,
        _time: &mut dyn FnMut() -> HostTime,
    ) -> Option<Vec<u8>> {
        if let Some(list) = self.session.next_message() {
            return Some(list);
        }
        if now < self.next {
            return None;
        }
        let beat =
            Heartbeat { sequence: self.sent.checked_add(1)?, state: ApplicationState::UNKNOWN };
        let (_, message) = self.session.request(&beat.emit())?;
        self.sent = beat.sequence;
        // Those that were missed are not made up for.
        self.next = now.saturating_add(PERIOD);
        self.owed_since.get_or_insert(now);
        Some(message)
    }

    fn deadline(&self) -> Option<Duration> {
        if self.session.is_due() {
            return Some(Duration::ZERO);
        }
        self.session.versions()?;
        let silent = self.owed_since.filter(|_| self.pulse == Pulse::Alive);
        let silent = silent.map(|since| since.saturating_add(PATIENCE));
        Some(silent.map_or(self.next, |silent| silent.min(self.next)))
    }
}
