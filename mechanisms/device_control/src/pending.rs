//! A request that a client has sent: to be waited for by a thread or by a task, or cancelled.

use crate::client::Link;
use crate::error::{ClientError, Waited};
use device_control_protocol::{Completion, RequestId, Target};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What a request ends with.
pub(crate) type Answer = Result<(Completion, Vec<OwnedFd>), ClientError>;

/// Where the answer to one request is put.
#[derive(Default)]
pub(crate) struct Slot {
    state: Mutex<SlotState>,
    answered: Condvar,
}

#[derive(Default)]
struct SlotState {
    answer: Option<Answer>,
    waker: Option<Waker>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, answer: Answer) {
        let mut state = self.lock();
        state.answer = Some(answer);
        let waker = state.waker.take();
        drop(state);
        self.answered.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A request that has been sent. Wait for its completion with [`SentRequest::wait`], or await it: it is a future, of any
/// executor. A request that is dropped before it was completed is cancelled.
///
/// It may be waited for on another thread than it was sent on.
#[must_use = "a request that is dropped is cancelled"]
pub struct SentRequest {
    link: Arc<Link>,
    id: RequestId,
    target: Target,
    slot: Arc<Slot>,
    taken: bool,
}

impl SentRequest {
    pub(crate) const fn new(
        link: Arc<Link>,
        id: RequestId,
        target: Target,
        slot: Arc<Slot>,
    ) -> Self {
        Self { link, id, target, slot, taken: false }
    }

    /// What it asks for.
    pub const fn target(&self) -> Target {
        self.target
    }

    /// Whether it has been completed, or never will be.
    pub fn is_done(&self) -> bool {
        self.slot.lock().answer.is_some()
    }

    /// Asks the server to give the request up. It is completed all the same: with STATUS_CANCELLED, unless it was too late.
    pub fn cancel(&self) {
        // If the connection has ended, so has the request.
        self.link.cancel(self.id);
    }

    /// Waits until it is completed, or `timeout` has passed; says whether it is completed.
    pub fn wait_for(&self, timeout: Duration) -> bool {
        // A timeout beyond the clock's end is none.
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.slot.lock();
        while state.answer.is_none() {
            state = match deadline {
                None => self.slot.answered.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let waited = self.slot.answered.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Waits for the completion, whatever its status. `Duration::MAX` waits as long as the server lives.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], after which the request is cancelled; or what ended the connection.
    pub fn wait(self, timeout: Duration) -> Result<Completion, ClientError> {
        self.wait_with_fds(timeout).map(|(completion, _)| completion)
    }

    /// Waits for the completion and the file descriptors beside it.
    ///
    /// # Errors
    /// As [`SentRequest::wait`].
    pub fn wait_with_fds(
        mut self,
        timeout: Duration,
    ) -> Result<(Completion, Vec<OwnedFd>), ClientError> {
        if !self.wait_for(timeout) {
            // Dropping this cancels it.
            return Err(self.link.timed_out(Waited::Request(self.target), timeout));
        }
        self.take()
    }

    /// Waits for the output of a successful completion.
    ///
    /// # Errors
    /// [`ClientError::Failed`] if the status is not a success; else as [`SentRequest::wait`].
    pub fn wait_output(self, timeout: Duration) -> Result<Vec<u8>, ClientError> {
        let target = self.target;
        let Completion { status, output, needed } = self.wait(timeout)?;
        if !status.is_success() {
            let cause = match target {
                Target::Private(_) => String::from_utf8_lossy(&output).into_owned(),
                _ => String::new(),
            };
            return Err(ClientError::Failed { target, status, needed, cause });
        }
        Ok(output)
    }

    fn take(&mut self) -> Answer {
        self.taken = true;
        let answer = self.slot.lock().answer.take();
        answer.unwrap_or_else(|| Err(self.link.disconnected()))
    }
}

impl Future for SentRequest {
    type Output = Result<Completion, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.lock();
        if state.answer.is_none() && !self.taken {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        Poll::Ready(self.take().map(|(completion, _)| completion))
    }
}

impl Drop for SentRequest {
    fn drop(&mut self) {
        if !self.taken && !self.is_done() {
            self.cancel();
        }
    }
}

impl std::fmt::Debug for SentRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SentRequest")
            .field("id", &self.id)
            .field("target", &self.target)
            .field("done", &self.is_done())
            .finish_non_exhaustive()
    }
}
