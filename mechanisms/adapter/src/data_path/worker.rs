//! The worker thread that owns the data path, and the handle by which control reaches it.
//!
//! Control sends closures; the worker runs them between bursts. So a change of filters, queues or DMA maps
//! needs no lock on the frame path, is atomic towards frames, and when [`DataPathHandle::run`] returns, no
//! frame uses what was there before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use owner_thread::{Handle, Inbox, OwnerThread, Stopped};

use crate::clock::now_ns;

use super::{
    DataPath,
    schedule::{Idle, IdlePolicy, IdleState},
};

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
    thread: Handle<DataPath>,
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
        self.thread.run(change).map_err(|Stopped| DataPathStopped)
    }

    /// Ends a sleep of the worker: a doorbell was written by a path that can tell.
    pub fn wake(&self) {
        self.thread.wake();
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
    _thread: OwnerThread<DataPath>,
}

impl Worker {
    /// Starts the thread that owns `data_path`.
    ///
    /// # Errors
    /// When the kernel gives no thread or no eventfd.
    pub fn start(data_path: DataPath, config: WorkerConfig) -> std::io::Result<Self> {
        let slept_ns = Arc::new(AtomicU64::new(0));
        let slept = Arc::clone(&slept_ns);
        let thread = OwnerThread::start("data path", data_path, move |data_path, inbox| {
            run(data_path, config.idle, &inbox, &slept);
        })?;
        if let Some(cpu) = config.cpu
            && let Err(error) = thread.bind(cpu)
        {
            tracing::warn!(cpu, %error, "the data path thread cannot be bound to its CPU");
        }
        let handle = DataPathHandle { thread: thread.handle().clone(), slept_ns };
        Ok(Self { handle, _thread: thread })
    }

    /// The way for control to reach the data path.
    pub fn handle(&self) -> &DataPathHandle {
        &self.handle
    }
}

fn run(mut data_path: DataPath, idle: IdlePolicy, inbox: &Inbox<DataPath>, slept: &AtomicU64) {
    let mut idle = IdleState::new(idle);
    while let Some(mut worked) = inbox.serve(&mut data_path) {
        let now = now_ns();
        worked |= data_path.poll(now);
        if let Idle::Sleep(longest) = idle.after_round(worked, now)
            && data_path.prepare_sleep()
        {
            let until =
                data_path.deadline_ns().map(|at| Duration::from_nanos(at.saturating_sub(now)));
            let longest = until.map_or(longest, |until| until.min(longest));
            // The uplink tells of its frames; doorbells are looked at when the time is over.
            inbox.sleep(data_path.uplink_fd(), Some(longest));
            slept.fetch_add(now_ns().saturating_sub(now), Ordering::Relaxed);
        }
    }
}
