//! The shutdown service: a guest is asked to shut down, and says whether it will.
//!
//! One request at a time. What the guest says is that it has begun, or why it does not; that it is done shows by its
//! end or reset, elsewhere.

use std::time::Duration;

use integration_protocol::{Service, ShutdownAction, ShutdownRequest, Status, Version};

use crate::{HostTime, Ignored, IntegrationService, Session, session::Received};

/// Why a guest is not asked.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum ShutdownRefused {
    /// The guest has no driver for the service that has agreed on versions.
    #[error(
        "the guest is not ready to be asked: it has no driver for the shutdown service, or not yet"
    )]
    NotReady,
    /// It was asked already, and has not answered.
    #[error("the guest was asked already, and has not answered yet")]
    InProgress,
    /// It does not know what it is to do.
    #[error("the guest's driver speaks {spoken}; what it is asked for is there since {needed}")]
    NotSupported {
        /// What it speaks.
        spoken: Version,
        /// What would be needed.
        needed: Version,
    },
}

/// What became of a request.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum ShutdownOutcome {
    /// The guest has begun.
    Initiated,
    /// The guest will not.
    Refused(Status),
    /// It did not answer in time. It may still do what it was asked, if it has heard of it.
    NoAnswer,
    /// It closed the channel, or was reset, before it answered.
    Closed,
}

#[derive(Clone, Debug)]
struct Asked {
    request: ShutdownRequest,
    deadline: Duration,
    /// Its transaction, once it was sent.
    transaction: Option<u8>,
}

/// The shutdown service.
#[derive(Clone, Debug)]
pub struct ShutdownService {
    session: Session,
    asked: Option<Asked>,
    outcome: Option<ShutdownOutcome>,
}

impl Default for ShutdownService {
    fn default() -> Self {
        Self::new()
    }
}

impl ShutdownService {
    /// The service, offered.
    pub fn new() -> Self {
        let session = Session::new(Service::Shutdown, Service::Shutdown.versions());
        Self { session, asked: None, outcome: None }
    }

    /// Asks the guest. Its answer, or that none came within `limit`, is [`Self::take_outcome`]'s.
    ///
    /// # Errors
    /// [`ShutdownRefused`]: it is not asked.
    pub fn request(
        &mut self,
        request: ShutdownRequest,
        limit: Duration,
        now: Duration,
    ) -> Result<(), ShutdownRefused> {
        let spoken = self.session.versions().ok_or(ShutdownRefused::NotReady)?.message;
        if self.asked.is_some() {
            return Err(ShutdownRefused::InProgress);
        }
        let needed = request.action.since();
        if spoken < needed {
            return Err(ShutdownRefused::NotSupported { spoken, needed });
        }
        self.outcome = None;
        let deadline = now.saturating_add(limit);
        self.asked = Some(Asked { request, deadline, transaction: None });
        Ok(())
    }

    /// Nobody waits for the guest's answer any more. A request that was not sent yet never is.
    pub fn cancel(&mut self) {
        self.asked = None;
        self.outcome = None;
    }

    /// What became of the request, told once.
    pub fn take_outcome(&mut self) -> Option<ShutdownOutcome> {
        self.outcome.take()
    }

    /// How the guest was asked to end, while it has not answered.
    pub fn in_progress(&self) -> Option<ShutdownAction> {
        self.asked.as_ref().map(|asked| asked.request.action)
    }

    fn finish(&mut self, outcome: ShutdownOutcome) {
        self.asked = None;
        self.outcome = Some(outcome);
    }
}

impl IntegrationService for ShutdownService {
    fn session(&self) -> &Session {
        &self.session
    }

    fn opened(&mut self, _now: Duration) {
        self.closed();
        self.session.opened();
    }

    fn closed(&mut self) {
        self.session.closed();
        if self.asked.is_some() {
            self.finish(ShutdownOutcome::Closed);
        }
    }

    fn receive(&mut self, packet: &[u8], _now: Duration) -> Result<(), Ignored> {
        let Received::Answer { transaction, status, .. } = self.session.receive(packet)? else {
            return Ok(());
        };
        if self.asked.as_ref().is_none_or(|asked| asked.transaction != Some(transaction)) {
            return Err(self.session.ignore(Ignored::Unasked));
        }
        self.finish(match status {
            Status::SUCCESS => ShutdownOutcome::Initiated,
            status => ShutdownOutcome::Refused(status),
        });
        Ok(())
    }

    fn poll(&mut self, now: Duration) {
        if self.asked.as_ref().is_some_and(|asked| now >= asked.deadline) {
            self.finish(ShutdownOutcome::NoAnswer);
        }
    }

    fn next_message(
        &mut self,
        _now: Duration,
        _time: &mut dyn FnMut() -> HostTime,
    ) -> Option<Vec<u8>> {
        if let Some(list) = self.session.next_message() {
            return Some(list);
        }
        let asked = self.asked.as_mut().filter(|asked| asked.transaction.is_none())?;
        let (transaction, message) = self.session.request(&asked.request.emit())?;
        asked.transaction = Some(transaction);
        Some(message)
    }

    fn deadline(&self) -> Option<Duration> {
        if self.session.is_due() {
            return Some(Duration::ZERO);
        }
        let asked = self.asked.as_ref()?;
        Some(if asked.transaction.is_none() { Duration::ZERO } else { asked.deadline })
    }
}
