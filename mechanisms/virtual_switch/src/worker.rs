//! The thread that drives a switch.
//!
//! Control sends closures, which run between two rounds: no lock on the frame path, and when
//! [`SwitchHandle::run`] returns, no frame is under way by what was there before.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    thread::{CpuSet, sched_setaffinity},
};

use crate::VirtualSwitch;

/// Without frames for so long, the thread sleeps.
const SPIN: Duration = Duration::from_micros(100);

type Command = Box<dyn FnOnce(&mut VirtualSwitch) + Send>;

/// The thread has ended: the switch is going down.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("the virtual switch has stopped")]
pub struct SwitchStopped;

/// Reaches a switch from other threads. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct SwitchHandle {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl SwitchHandle {
    /// Runs `change` on the switch between two rounds and returns its result.
    ///
    /// # Errors
    /// [`SwitchStopped`] when the thread has ended.
    pub fn run<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut VirtualSwitch) -> R + Send + 'static,
    ) -> Result<R, SwitchStopped> {
        let (reply, result) = crossbeam_channel::bounded(1);
        let command: Command = Box::new(move |switch| {
            // The caller may have gone; then nobody wants the result.
            let _ = reply.send(change(switch));
        });
        self.commands.send(command).map_err(|_| SwitchStopped)?;
        self.wake();
        result.recv().map_err(|_| SwitchStopped)
    }

    fn wake(&self) {
        // A full counter means that a wake-up is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The thread; dropping it ends it, and the switch with it.
#[derive(Debug)]
pub struct Worker {
    handle: SwitchHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that drives `switch`, bound to a CPU if one is given.
    ///
    /// # Errors
    /// The kernel gives no thread or no eventfd, or there is no such CPU.
    pub fn start(switch: VirtualSwitch, cpu: Option<usize>) -> io::Result<Self> {
        let (commands, queue) = crossbeam_channel::unbounded();
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (bound, result) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("switch".into()).spawn({
            let (stop, wake) = (Arc::clone(&stop), Arc::clone(&wake));
            move || {
                let done = cpu.map_or(Ok(()), bind);
                let go_on = done.is_ok();
                // `start` waits for it.
                let _ = bound.send(done);
                if go_on {
                    run(switch, &queue, &wake, &stop);
                }
            }
        })?;
        let worker = Self { handle: SwitchHandle { commands, wake }, stop, thread: Some(thread) };
        result.recv().map_err(io::Error::other)??;
        Ok(worker)
    }

    /// The way for control to reach the switch.
    #[must_use]
    pub fn handle(&self) -> &SwitchHandle {
        &self.handle
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.handle.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the switch's thread had panicked");
        }
    }
}

fn bind(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

fn run(mut switch: VirtualSwitch, queue: &Receiver<Command>, wake: &OwnedFd, stop: &AtomicBool) {
    let mut last_work = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let mut worked = false;
        loop {
            match queue.try_recv() {
                Ok(command) => {
                    command(&mut switch);
                    worked = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let now = Instant::now();
        worked |= switch.poll(now);
        if worked {
            last_work = now;
        } else if now.duration_since(last_work) > SPIN && switch.prepare_to_wait() {
            sleep(&switch, wake, now);
            switch.woken();
        }
    }
}

/// Sleeps until a port has frames, control has a command, or a deadline is there.
fn sleep(switch: &VirtualSwitch, wake: &OwnedFd, now: Instant) {
    let mut fds: Vec<BorrowedFd<'_>> = vec![wake.as_fd()];
    switch.wait_on(&mut fds);
    let mut set: Vec<_> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let limit = switch.deadline().map(|at| at.saturating_duration_since(now));
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    // An interrupted sleep is a short one.
    let _ = poll(&mut set, limit.as_ref());
    let mut counter = [0; 8];
    let _ = rustix::io::read(wake, &mut counter);
}
