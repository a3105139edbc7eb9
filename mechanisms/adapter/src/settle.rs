//! Holds back the completion of OID_RECEIVE_FILTER_MOVE_FILTER away from a VF until the VF's driver has taken what was
//! delivered before.
//!
//! Who asks for the move goes on to tell the guest that it is off its VF, and the guest then takes the VF's queues down:
//! Linux does so without a look at what they still hold. A driver says that it has seen all by arming its vectors
//! ([`InterruptVectors::is_settled`]). One that does not within [`LIMIT`] of its last message polls, and is not waited for;
//! nobody else waits meanwhile.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use avf_device::InterruptVectors;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::{adapter::lock, clock::now_ns};

/// How long after a message a driver is waited for, ns: more than it takes one with interrupts on a busy machine.
const LIMIT: u64 = 200_000_000;

/// What is to be done once.
type Completion = Mutex<Option<Box<dyn FnOnce() + Send>>>;

fn complete(completion: &Completion) {
    let taken = lock(completion).take();
    if let Some(complete) = taken {
        complete();
    }
}

/// Something to be done at a time, unless it was done before.
struct Wait {
    ends: Instant,
    completion: Arc<Completion>,
}

/// The thread that ends waits; it ends when this drops.
pub(crate) struct Settling {
    waits: Option<Sender<Wait>>,
    thread: Option<JoinHandle<()>>,
}

impl Settling {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (waits, ends) = crossbeam_channel::unbounded();
        let builder = std::thread::Builder::new().name("filter-moves".to_owned());
        let thread = builder.spawn(move || end_waits(&ends))?;
        Ok(Self { waits: Some(waits), thread: Some(thread) })
    }

    /// Calls `then` when the driver behind `vectors` has taken what it was sent, or [`LIMIT`] after its last message.
    pub(crate) fn wait(&self, vectors: &InterruptVectors, then: impl FnOnce() + Send + 'static) {
        let now = now_ns();
        let ends = vectors.settles_by(now, LIMIT).and_then(|ends| ends.checked_sub(now));
        let (Some(left), Some(waits)) = (ends, &self.waits) else { return then() };
        let completion = Arc::new(Completion::new(Some(Box::new(then))));
        let settled = Arc::clone(&completion);
        vectors.when_settled(move || complete(&settled));
        let ends = Instant::now() + Duration::from_nanos(left);
        // The thread is there for as long as this is.
        let _ = waits.send(Wait { ends, completion });
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.waits = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ends each wait at its time; all of them when nobody begins any more.
fn end_waits(begun: &Receiver<Wait>) {
    let mut waits = BinaryHeap::new();
    loop {
        let next = match waits.peek() {
            Some(Reverse(Wait { ends, .. })) => begun.recv_deadline(*ends),
            None => begun.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(wait) => waits.push(Reverse(wait)),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(Reverse(wait)) = waits.pop() {
                    complete(&wait.completion);
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                waits.iter().for_each(|Reverse(wait)| complete(&wait.completion));
                return;
            }
        }
    }
}

impl Ord for Wait {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.ends.cmp(&other.ends)
    }
}

impl PartialOrd for Wait {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Wait {}

impl PartialEq for Wait {
    fn eq(&self, other: &Self) -> bool {
        self.ends == other.ends
    }
}

#[cfg(test)]
mod tests {
    use shared_memory::{DoorbellPage, PageSize, SharedMapping};

    use super::*;

    fn vectors() -> InterruptVectors {
        let (memory, _) = SharedMapping::create("vectors", 4096, PageSize::Base).unwrap();
        InterruptVectors::new(3, &DoorbellPage::new(&memory, 0).unwrap())
    }

    #[test]
    fn a_driver_that_uses_no_interrupts_is_not_waited_for() {
        let settling = Settling::start().unwrap();
        let (done, is_done) = crossbeam_channel::bounded(1);
        let vectors = vectors();
        vectors.raise(1, 0, 0);
        settling.wait(&vectors, move || done.send(()).unwrap());
        is_done.try_recv().unwrap();
    }
}
