//! The thread that drives a switch.
//!
//! Control sends closures, which run between two rounds: no lock on the frame path, and when
//! [`SwitchHandle::run`] returns, no frame is under way by what was there before.

use std::{
    io,
    ops::Range,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use owner_thread::{Handle, Inbox, OwnerThread, Stopped};

use crate::{VirtualSwitch, vhost_user_port::BURST};

/// Without frames for so long, the thread sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// Frames of a round after which the thread rests, so that more of them are there in the next one: a round costs what it
/// costs, and who looks for each frame as it is written takes the line away from its writer. Fewer are no stream, and
/// whoever sent them may wait for an answer; where there are more, a queue may be left with some.
const FEW: Range<usize> = 8..BURST;
/// How long it rests.
const REST: Duration = Duration::from_nanos(1000);

/// The thread has ended: the switch is going down.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("the virtual switch has stopped")]
pub struct SwitchStopped;

/// Reaches a switch from other threads. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct SwitchHandle(Handle<VirtualSwitch>);

impl SwitchHandle {
    /// Runs `change` on the switch between two rounds and returns its result.
    ///
    /// # Errors
    /// [`SwitchStopped`] when the thread has ended.
    pub fn run<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut VirtualSwitch) -> R + Send + 'static,
    ) -> Result<R, SwitchStopped> {
        self.0.run(change).map_err(|Stopped| SwitchStopped)
    }
}

/// The thread; dropping it ends it, and the switch with it.
#[derive(Debug)]
pub struct Worker {
    handle: SwitchHandle,
    _thread: OwnerThread<VirtualSwitch>,
}

impl Worker {
    /// Starts a thread that drives `switch`, bound to a CPU if one is given.
    ///
    /// # Errors
    /// The kernel gives no thread or no eventfd, or there is no such CPU.
    pub fn start(switch: VirtualSwitch, cpu: Option<usize>) -> io::Result<Self> {
        let thread = OwnerThread::start("switch", switch, |switch, inbox| run(switch, &inbox))?;
        if let Some(cpu) = cpu {
            thread.bind(cpu)?;
        }
        Ok(Self { handle: SwitchHandle(thread.handle().clone()), _thread: thread })
    }

    /// The way for control to reach the switch.
    #[must_use]
    pub fn handle(&self) -> &SwitchHandle {
        &self.handle
    }
}

fn run(mut switch: VirtualSwitch, inbox: &Inbox<VirtualSwitch>) {
    let mut last_work = Instant::now();
    // When the round before began, if it was one with something to do.
    let mut at_work = None;
    while let Some(asked) = inbox.serve(&mut switch) {
        let now = Instant::now();
        if let Some(since) = at_work.take() {
            switch.note_busy(now - since);
        }
        let worked = switch.poll(now) | asked;
        if worked {
            last_work = now;
            at_work = Some(now);
            if FEW.contains(&switch.gathered()) {
                let after = Instant::now();
                switch.note_busy(after - now);
                at_work = None;
                rest(after + REST);
            }
        } else if now.duration_since(last_work) > SPIN && switch.prepare_to_wait() {
            // Until a port has frames, control has a command, or a deadline is there.
            let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
            switch.wait_on(&mut fds);
            let deadline = switch.deadline().map(|at| at.saturating_duration_since(now));
            inbox.sleep(fds, deadline);
            switch.woken();
        }
    }
}

/// Keeps away from everybody's rings for a moment.
fn rest(until: Instant) {
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}
