//! The worker thread that owns the data path, and the handle by which control reaches it.
//!
//! Control sends closures; the worker runs them between bursts. So a change of filters, queues or DMA maps
//! needs no lock on the frame path, is atomic towards frames, and when [`DataPathHandle::run`] returns, no
//! frame uses what was there before.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    thread::{CpuSet, sched_setaffinity},
};

use crate::clock::now_ns;

use super::{
    DataPath,
    schedule::{Idle, IdlePolicy, IdleState},
};

type Command = Box<dyn FnOnce(&mut DataPath) + Send>;

/// The worker thread has ended: the adapter is going down.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("the adapter's data path has stopped")]
pub struct DataPathStopped;

/// How the worker thread runs.
#[derive(Clone, Debug, Default)]
pub struct WorkerConfig {
    /// The CPU it is bound to, if any.
    pub cpu: Option<usize>,
    /// What it does without traffic.
    pub idle: IdlePolicy,
}

/// Reaches the data path from control threads. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct DataPathHandle {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    /// Nanoseconds that the worker has slept, for reports.
    slept_ns: Arc<AtomicU64>,
}

impl DataPathHandle {
    /// Runs `change` on the data path between two bursts and returns its result.
    ///
    /// # Errors
    /// [`DataPathStopped`] when the worker has ended.
    pub fn run<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut DataPath) -> R + Send + 'static,
    ) -> Result<R, DataPathStopped> {
        let (reply, result) = crossbeam_channel::bounded(1);
        let command: Command = Box::new(move |data_path| {
            // The caller may have gone; then nobody wants the result.
            let _ = reply.send(change(data_path));
        });
        self.commands.send(command).map_err(|_| DataPathStopped)?;
        self.wake();
        result.recv().map_err(|_| DataPathStopped)
    }

    /// Ends a sleep of the worker: a doorbell was written by a path that can tell.
    pub fn wake(&self) {
        // A full counter means that a wake-up is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// How long the worker has slept since it started.
    pub fn slept(&self) -> Duration {
        Duration::from_nanos(self.slept_ns.load(Ordering::Relaxed))
    }
}

/// The running worker; dropping it stops the thread.
#[derive(Debug)]
pub struct Worker {
    handle: DataPathHandle,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread that owns `data_path`.
    ///
    /// # Errors
    /// When the kernel gives no thread or no eventfd.
    pub fn start(data_path: DataPath, config: WorkerConfig) -> std::io::Result<Self> {
        let (commands, queue) = crossbeam_channel::unbounded();
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let slept_ns = Arc::new(AtomicU64::new(0));
        let handle = DataPathHandle { commands, wake, slept_ns };
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("data path".into()).spawn({
            let (stop, handle) = (Arc::clone(&stop), handle.clone());
            // The worker must not keep its own command channel alive.
            let (wake, slept) = (Arc::clone(&handle.wake), Arc::clone(&handle.slept_ns));
            drop(handle);
            move || run(data_path, &config, &queue, &wake, &slept, &stop)
        })?;
        Ok(Self { handle, stop, thread: Some(thread) })
    }

    /// The way for control to reach the data path.
    pub fn handle(&self) -> &DataPathHandle {
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
            tracing::error!("the data path thread had panicked");
        }
    }
}

fn run(
    mut data_path: DataPath,
    config: &WorkerConfig,
    queue: &Receiver<Command>,
    wake: &OwnedFd,
    slept: &AtomicU64,
    stop: &AtomicBool,
) {
    if let Some(cpu) = config.cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::warn!(cpu, %error, "the data path thread cannot be bound to its CPU");
        }
    }
    let mut idle = IdleState::new(config.idle);
    while !stop.load(Ordering::Acquire) {
        let mut worked = false;
        loop {
            match queue.try_recv() {
                Ok(command) => {
                    command(&mut data_path);
                    worked = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let now = now_ns();
        worked |= data_path.poll(now);
        if let Idle::Sleep(longest) = idle.after_round(worked, now)
            && data_path.prepare_sleep()
        {
            let until =
                data_path.deadline_ns().map(|at| Duration::from_nanos(at.saturating_sub(now)));
            sleep(&data_path, wake, until.map_or(longest, |until| until.min(longest)));
            slept.fetch_add(now_ns().saturating_sub(now), Ordering::Relaxed);
        }
    }
}

/// Sleeps until the time is over, control has a command, or the uplink has a frame.
fn sleep(data_path: &DataPath, wake: &OwnedFd, longest: Duration) {
    let timeout = Timespec {
        tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: longest.subsec_nanos().into(),
    };
    let mut fds = arrayvec::ArrayVec::<PollFd<'_>, 2>::new();
    fds.push(PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN));
    if let Some(fd) = data_path.uplink_fd() {
        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    }
    // An interrupted sleep is a short one.
    let _ = poll(&mut fds, Some(&timeout));
    let mut counter = [0; 8];
    let _ = rustix::io::read(wake, &mut counter);
}
