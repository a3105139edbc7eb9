//! The time service: a guest is told the host's time, first to set its clock by it, then as samples.
//!
//! A guest that has stood still, and one whose host's clock was set or stood still, is told to set its clock again.
//! The next time is told when the last one was answered, since times that wait in a ring become old.

use std::time::{Duration, SystemTime};

use integration_protocol::{
    Service, TICKS_FROM_1601_TO_1970, TICKS_PER_SECOND, TimeSync, TimeSyncPurpose, Version,
};

use crate::{Ignored, IntegrationService, Session, session::Received};

/// From one time to the next.
const PERIOD: Duration = Duration::from_secs(5);
/// How long an answer is waited for. A guest that takes longer has stood still.
const PATIENCE: Duration = Duration::from_secs(30);
/// If the host's clock went so much further, or less, than time did, it was set. In 100 ns.
const JUMP: u64 = TICKS_PER_SECOND;

/// A time of the host.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct HostTime {
    /// UTC in 100 ns since 1601.
    pub utc: u64,
    /// What the partition's reference counter (100 ns) showed then, if it has one.
    pub reference: Option<u64>,
}

impl HostTime {
    /// A time of the host's clock, and what the partition's reference counter showed then. Times before 1601 are 1601.
    pub fn new(time: SystemTime, reference: Option<u64>) -> Self {
        let ticks = |span: Duration| u64::try_from(span.as_nanos() / 100).unwrap_or(u64::MAX);
        let utc = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => TICKS_FROM_1601_TO_1970.saturating_add(ticks(since)),
            Err(before) => TICKS_FROM_1601_TO_1970.saturating_sub(ticks(before.duration())),
        };
        Self { utc, reference }
    }
}

/// The time service.
#[derive(Clone, Debug)]
pub struct TimeSyncService {
    session: Session,
    /// The guest is to set its clock.
    sync: bool,
    /// When it is told the time next, if it has answered.
    next: Duration,
    /// What it has not answered: the transaction, and since when.
    owed: Option<(u8, Duration)>,
    /// What was told last, and when.
    told: Option<(u64, Duration)>,
}

impl TimeSyncService {
    /// The service, offered. Without a reference counter that guest and host both read, version 4.0 is not spoken.
    pub fn new(has_reference: bool) -> Self {
        let versions = Service::TimeSync.versions();
        let spoken = |version: &&Version| has_reference || !TimeSync::needs_reference(**version);
        let count = versions.iter().take_while(spoken).count();
        let versions = versions.get(..count).unwrap_or_default();
        let session = Session::new(Service::TimeSync, versions);
        Self { session, sync: false, next: Duration::ZERO, owed: None, told: None }
    }

    /// The guest is to set its clock: it has stood still, and its owner knows.
    pub fn resynchronize(&mut self, now: Duration) {
        self.sync = true;
        self.next = self.next.min(now);
    }

    /// Whether the host's clock was set, or stood still, since it was told last.
    fn has_jumped(&self, utc: u64, now: Duration) -> bool {
        let Some((told, at)) = self.told else { return false };
        let passed = u64::try_from(now.saturating_sub(at).as_nanos() / 100).unwrap_or(u64::MAX);
        told.saturating_add(passed).abs_diff(utc) >= JUMP
    }

    /// When the next time is due.
    fn due(&self) -> Duration {
        match self.owed {
            Some((_, since)) => since.saturating_add(PATIENCE),
            None => self.next,
        }
    }
}

impl IntegrationService for TimeSyncService {
    fn session(&self) -> &Session {
        &self.session
    }

    fn opened(&mut self, now: Duration) {
        self.closed();
        self.session.opened();
        self.sync = true;
        self.next = now;
    }

    fn closed(&mut self) {
        self.session.closed();
        self.owed = None;
        self.told = None;
    }

    fn receive(&mut self, packet: &[u8], now: Duration) -> Result<(), Ignored> {
        let Received::Answer { transaction, .. } = self.session.receive(packet)? else {
            return Ok(());
        };
        // What it says of how it went changes nothing.
        match self.owed {
            Some((asked, since)) if asked == transaction => {
                self.owed = None;
                if now.saturating_sub(since) >= PATIENCE {
                    self.sync = true;
                    self.next = now;
                }
                Ok(())
            }
            _ => Err(self.session.ignore(Ignored::Unasked)),
        }
    }

    fn poll(&mut self, _now: Duration) {}

    fn next_message(
        &mut self,
        now: Duration,
        time: &mut dyn FnMut() -> HostTime,
    ) -> Option<Vec<u8>> {
        if let Some(list) = self.session.next_message() {
            return Some(list);
        }
        let version = self.session.versions()?.message;
        if now < self.due() {
            return None;
        }
        self.next = now.saturating_add(PERIOD);
        // One that was not answered in time has found a guest that stands still.
        self.sync |= self.owed.take().is_some();
        let HostTime { utc, reference } = time();
        let reference = match TimeSync::needs_reference(version) {
            // A counter that cannot be read now may be read next time.
            true => Some(reference?),
            false => None,
        };
        self.sync |= self.has_jumped(utc, now);
        let purpose = match std::mem::take(&mut self.sync) {
            true => TimeSyncPurpose::Sync,
            false => TimeSyncPurpose::Sample,
        };
        let body = TimeSync { host_time: utc, reference, purpose }.emit();
        let (transaction, message) = self.session.request(&body)?;
        self.owed = Some((transaction, now));
        self.told = Some((utc, now));
        Some(message)
    }

    fn deadline(&self) -> Option<Duration> {
        if self.session.is_due() {
            return Some(Duration::ZERO);
        }
        self.session.versions()?;
        Some(self.due())
    }
}
