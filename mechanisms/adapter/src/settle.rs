//! Holds back the completion of OID_RECEIVE_FILTER_MOVE_FILTER away from a VF until the VF's driver has taken what was
//! delivered before.
//!
//! Who asks for the move goes on to tell the guest that it is off its VF, and the guest then takes the VF's queues down:
//! Linux does so without a look at what they still hold. A driver says that it has seen all by arming its vectors
//! ([`InterruptVectors::is_settled`]). One that does not within [`LIMIT`] of its last message polls, and is not waited for;
//! nobody else waits meanwhile.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use avf_device::InterruptVectors;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::{adapter::lock, clock::now_ns};

/// How long after a message a driver is waited for, ns: more than it takes one with interrupts on a busy machine.
pub(crate) const LIMIT: u64 = 200_000_000;

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
    limit_ns: u64,
    waits: Option<Sender<Wait>>,
    thread: Option<JoinHandle<()>>,
}

impl Settling {
    /// Starts the thread. A driver is waited for `limit_ns` after its last message.
    pub(crate) fn start(limit_ns: u64) -> std::io::Result<Self> {
        let (waits, ends) = crossbeam_channel::unbounded();
        let builder = std::thread::Builder::new().name("filter-moves".to_owned());
        let thread = builder.spawn(move || end_waits(&ends))?;
        Ok(Self { limit_ns, waits: Some(waits), thread: Some(thread) })
    }

    /// Calls `then` when the driver behind `vectors` has taken what it was sent, or is not waited for any more.
    pub(crate) fn wait(&self, vectors: &InterruptVectors, then: impl FnOnce() + Send + 'static) {
        let now = now_ns();
        let ends = vectors.settles_by(now, self.limit_ns).and_then(|ends| ends.checked_sub(now));
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
    // By their ends, and those of the same time by their order.
    let mut waits = BTreeMap::new();
    for number in 0u64.. {
        let next = match waits.first_key_value() {
            Some(((ends, _), _)) => begun.recv_deadline(*ends),
            None => begun.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(Wait { ends, completion }) => _ = waits.insert((ends, number), completion),
            Err(RecvTimeoutError::Timeout) => {
                if let Some((_, completion)) = waits.pop_first() {
                    complete(&completion);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    waits.values().for_each(|completion| complete(completion));
}

#[cfg(test)]
mod tests {
    use avf_protocol::registers::DynCtl;
    use crossbeam_channel::TryRecvError;
    use rustix::event::{EventfdFlags, eventfd};
    use shared_memory::{DoorbellPage, PageSize, SharedMapping};

    use super::*;

    /// DYN_CTLN1: INTENA, and an interval of none.
    const ARM: DynCtl = DynCtl(0x19);
    const LONG: u64 = 3_600_000_000_000;

    fn vectors() -> InterruptVectors {
        let (memory, _) = SharedMapping::create("vectors", 4096, PageSize::Base).unwrap();
        let vectors = InterruptVectors::new(3, &DoorbellPage::new(&memory, 0).unwrap());
        vectors.set_enabled(true, now_ns());
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        vectors.set_eventfd(1, Some(eventfd), now_ns()).unwrap();
        vectors
    }

    /// Waits for the driver behind some vectors; what is told when it has settled.
    fn wait(settling: &Settling, vectors: &InterruptVectors) -> Receiver<()> {
        let (done, is_done) = crossbeam_channel::bounded(1);
        settling.wait(vectors, move || done.send(()).unwrap());
        is_done
    }

    #[test]
    fn a_driver_that_uses_no_interrupts_is_not_waited_for() {
        let settling = Settling::start(LONG).unwrap();
        let vectors = vectors();
        vectors.raise(1, 0, now_ns());
        wait(&settling, &vectors).try_recv().unwrap();
    }

    #[test]
    fn a_driver_with_something_to_handle_is_waited_for_until_it_arms_its_vector() {
        let settling = Settling::start(LONG).unwrap();
        let vectors = vectors();
        vectors.write_dyn_ctl(1, ARM, now_ns());
        wait(&settling, &vectors).try_recv().unwrap();
        vectors.raise(1, 3, now_ns());
        let is_done = wait(&settling, &vectors);
        assert_eq!(is_done.try_recv(), Err(TryRecvError::Empty));
        vectors.write_dyn_ctl(1, ARM, now_ns());
        is_done.try_recv().unwrap();
    }

    #[test]
    fn a_driver_that_does_nothing_is_waited_for_no_longer_than_the_limit() {
        let settling = Settling::start(1_000_000).unwrap();
        let vectors = vectors();
        vectors.write_dyn_ctl(1, ARM, now_ns());
        vectors.raise(1, 3, now_ns());
        let both = [wait(&settling, &vectors), wait(&settling, &vectors)];
        for is_done in both {
            is_done.recv().unwrap();
        }
    }

    #[test]
    fn who_still_waits_at_the_end_is_told() {
        let settling = Settling::start(LONG).unwrap();
        let vectors = vectors();
        vectors.write_dyn_ctl(1, ARM, now_ns());
        vectors.raise(1, 3, now_ns());
        let is_done = wait(&settling, &vectors);
        drop(settling);
        is_done.try_recv().unwrap();
    }
}
