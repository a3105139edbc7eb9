//! A thread that owns a value and works on it in rounds; others send closures, which run between two rounds.
//!
//! So the value needs no lock, a change is atomic towards the rounds, and when [`Handle::run`] returns, nothing is
//! under way by what was there before. A round without commands costs one look at a flag and one at an empty queue.
//!
//! It refuses to know what a round is, and when the thread may sleep: that is the owner's loop, which
//! [`OwnerThread::start`] is given.
//!
//! Layer: ground (ARCHITECTURE.md).

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    thread::{CpuSet, sched_setaffinity},
};

/// Descriptors that a sleep watches without an allocation.
const FEW: usize = 8;

type Command<T> = Box<dyn FnOnce(&mut T) + Send>;

/// The thread has ended, and what it owned is gone.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
#[error("the thread has stopped")]
pub struct Stopped;

/// Reaches what a thread owns from other threads. Clones reach the same.
pub struct Handle<T> {
    commands: Sender<Command<T>>,
    wake: Arc<OwnedFd>,
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), wake: Arc::clone(&self.wake) }
    }
}

impl<T> Handle<T> {
    /// Runs `change` between two rounds and returns its result.
    ///
    /// # Errors
    /// [`Stopped`] when the thread has ended.
    pub fn run<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (reply, result) = crossbeam_channel::bounded(1);
        let command: Command<T> = Box::new(move |owned| {
            // The caller may have gone; then nobody wants the result.
            let _ = reply.send(change(owned));
        });
        self.commands.send(command).map_err(|_| Stopped)?;
        self.wake();
        result.recv().map_err(|_| Stopped)
    }

    /// Ends a sleep of the thread.
    pub fn wake(&self) {
        // It is non-blocking and nobody else's: a full counter means that a wake-up is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The thread's end: what others ask for.
pub struct Inbox<T> {
    commands: Receiver<Command<T>>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
}

impl<T> Inbox<T> {
    /// Runs what others asked for; tells whether that was anything, or `None` when the thread is to end. Once a
    /// round.
    #[inline]
    pub fn serve(&self, owned: &mut T) -> Option<bool> {
        if self.stop.load(Ordering::Acquire) {
            return None;
        }
        let mut worked = false;
        loop {
            match self.commands.try_recv() {
                Ok(command) => {
                    command(owned);
                    worked = true;
                }
                Err(TryRecvError::Empty) => return Some(worked),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
    }

    /// Sleeps until somebody asks for something or wakes the thread, one of `fds` can be read, or the time is over,
    /// if there is one. It may end early.
    pub fn sleep<'a>(
        &'a self,
        fds: impl IntoIterator<Item = BorrowedFd<'a>>,
        longest: Option<Duration>,
    ) {
        let watched = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = std::iter::once(self.wake.as_fd()).chain(fds).map(watched);
        let mut few: ArrayVec<PollFd<'_>, FEW> = fds.by_ref().take(FEW).collect();
        let limit = longest.map(|longest| Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        });
        // An interrupted sleep is a short one.
        let _ = match fds.next() {
            None => poll(&mut few, limit.as_ref()),
            Some(next) => {
                let mut many: Vec<PollFd<'_>> = few.into_iter().chain([next]).chain(fds).collect();
                poll(&mut many, limit.as_ref())
            }
        };
        self.woken();
    }

    /// Whether nobody has asked for anything since [`Self::serve`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Takes the signals that came.
    pub fn woken(&self) {
        // It is non-blocking.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}

/// Readable when somebody has asked for something.
impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// The two ends by themselves, for a value that is a part of what some thread drives: that thread calls
/// [`Inbox::serve`] once a round, watches the inbox's descriptor when it sleeps, and calls [`Inbox::woken`] after.
/// Who asks when the inbox is gone, or waits for its answer then, gets [`Stopped`].
///
/// # Errors
/// The kernel gives no eventfd.
pub fn inbox<T>() -> io::Result<(Handle<T>, Inbox<T>)> {
    // Unbounded, but every sender waits for its answer.
    let (commands, queue) = crossbeam_channel::unbounded();
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let stop = Arc::new(AtomicBool::new(false));
    let inbox = Inbox { commands: queue, wake: Arc::clone(&wake), stop };
    Ok((Handle { commands, wake }, inbox))
}

/// The running thread; dropping it ends the thread and waits for that.
pub struct OwnerThread<T> {
    handle: Handle<T>,
    name: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> OwnerThread<T> {
    /// Starts a thread with this name that owns `owned`. Its loop is `rounds`, which calls [`Inbox::serve`] once a
    /// round and returns when that says so.
    ///
    /// # Errors
    /// The kernel gives no thread or no eventfd.
    pub fn start(
        name: &'static str,
        owned: T,
        rounds: impl FnOnce(T, Inbox<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (handle, inbox) = inbox()?;
        let stop = Arc::clone(&inbox.stop);
        let thread =
            std::thread::Builder::new().name(name.into()).spawn(move || rounds(owned, inbox))?;
        Ok(Self { handle, name, stop, thread: Some(thread) })
    }

    /// Binds the thread to a CPU.
    ///
    /// # Errors
    /// There is no such CPU, or the process may not use it.
    pub fn bind(&self, cpu: usize) -> io::Result<()> {
        let bind = move |_: &mut T| {
            let mut set = CpuSet::new();
            if cpu >= CpuSet::MAX_CPU {
                return Err(rustix::io::Errno::INVAL);
            }
            set.set(cpu);
            sched_setaffinity(None, &set)
        };
        Ok(self.handle.run(bind).map_err(io::Error::other)??)
    }
}

impl<T> OwnerThread<T> {
    /// The way to reach what the thread owns.
    #[must_use]
    pub fn handle(&self) -> &Handle<T> {
        &self.handle
    }
}

impl<T> Drop for OwnerThread<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.handle.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(thread = self.name, "the thread had panicked");
        }
    }
}

// By hand: what the thread owns need not be `Debug`.

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for OwnerThread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerThread").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn an_inbox_by_itself_is_served_by_whoever_holds_it() {
        let (handle, inbox) = inbox::<u64>().unwrap();
        let asking = std::thread::spawn(move || {
            (handle.run(|number| *number += 1), handle.run(|number| *number))
        });
        let mut number = 4;
        inbox.sleep([], None);
        while inbox.serve(&mut number) != Some(true) || number != 5 {
            std::thread::yield_now();
        }
        // Whoever waits for an answer learns that there will be none.
        drop(inbox);
        let (first, second) = asking.join().unwrap();
        assert_eq!(first, Ok(()));
        assert!(matches!(second, Ok(5) | Err(Stopped)));
    }

    /// A thread that counts rounds and sleeps whenever it has nothing to do.
    fn counter() -> OwnerThread<u64> {
        OwnerThread::start("counter", 0, |mut rounds, inbox| {
            while let Some(worked) = inbox.serve(&mut rounds) {
                rounds += 1;
                if !worked {
                    inbox.sleep([], None);
                }
            }
        })
        .unwrap()
    }

    #[test]
    fn changes_run_between_rounds_and_wake_a_thread_that_sleeps_for_ever() {
        let thread = counter();
        let handle = thread.handle().clone();
        handle.run(|rounds| *rounds = 1 << 40).unwrap();
        assert!(handle.run(|rounds| *rounds).unwrap() > 1 << 40, "a round was in between");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let handle = handle.clone();
                scope.spawn(move || {
                    for _ in 0..500 {
                        handle.run(|_| ()).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn when_the_thread_is_dropped_it_has_ended_and_handles_say_so() {
        let thread = counter();
        let handle = thread.handle().clone();
        drop(thread);
        assert_eq!(handle.run(|_| ()), Err(Stopped));
    }

    #[test]
    fn a_change_that_panics_stops_the_thread_and_nobody_waits_for_ever() {
        let thread = counter();
        assert_eq!(thread.handle().run(|_| panic!("on purpose")), Err::<(), _>(Stopped));
        assert_eq!(thread.handle().run(|_| ()), Err(Stopped));
    }

    #[test]
    fn a_thread_is_bound_to_a_cpu_that_there_is_and_to_no_other() {
        let thread = counter();
        let here = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|cpu| here.is_set(*cpu)).unwrap();
        thread.bind(cpu).unwrap();
        let bound = thread.handle().run(|_| sched_getaffinity(None)).unwrap().unwrap();
        assert!(bound.is_set(cpu) && bound.count() == 1);
        for absent in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU, usize::MAX] {
            assert!(thread.bind(absent).is_err(), "{absent}");
        }
    }

    #[test]
    fn a_sleep_ends_by_any_of_its_descriptors() {
        for count in [1, FEW - 1, FEW, 3 * FEW] {
            let fds: Vec<OwnedFd> =
                (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
            let last = fds[count - 1].try_clone().unwrap();
            let (told, woken) = crossbeam_channel::bounded(1);
            let thread = OwnerThread::start("sleeper", (), move |(), inbox| {
                // Ends at once by the signal, else never.
                inbox.sleep(fds.iter().map(AsFd::as_fd), None);
                told.send(()).unwrap();
            })
            .unwrap();
            rustix::io::write(&last, &1u64.to_ne_bytes()).unwrap();
            woken.recv().unwrap();
            drop(thread);
        }
    }

    #[test]
    fn a_sleep_ends_when_its_time_is_over() {
        let (told, woken) = crossbeam_channel::bounded(1);
        let thread = OwnerThread::start("sleeper", (), move |(), inbox| {
            inbox.sleep([], Some(Duration::from_millis(1)));
            told.send(()).unwrap();
        });
        woken.recv().unwrap();
        drop(thread);
    }
}
