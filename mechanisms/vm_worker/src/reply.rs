//! What a processor of the guest waits for, for a limited time.

use std::{sync::mpsc, time::Duration};

/// How long a processor of the guest waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where an answer to a processor is put. Dropped, it lets the processor go on without one.
#[derive(Debug)]
pub(crate) struct Reply<T>(mpsc::SyncSender<T>);

/// The answer, when it comes.
pub(crate) struct Answer<T>(mpsc::Receiver<T>);

impl<T> Reply<T> {
    pub(crate) fn new() -> (Self, Answer<T>) {
        let (reply, answer) = mpsc::sync_channel(1);
        (Self(reply), Answer(answer))
    }

    /// The processor goes on with this.
    pub(crate) fn done(self, answer: T) {
        // A processor that waits no more has gone on without.
        let _ = self.0.try_send(answer);
    }
}

impl<T> Answer<T> {
    /// `None`: there is none, or none in time.
    pub(crate) fn wait(self) -> Option<T> {
        self.0.recv_timeout(PATIENCE).ok()
    }
}
