//! The processes of the demo, and what is to be gone when it is interrupted.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

/// A process with one of the program's roles; it dies with us.
pub(crate) struct RoleProcess {
    role: String,
    child: Child,
    belongings: Belongings,
}

impl RoleProcess {
    /// Starts this program with these arguments, of which the first is the role; `role` is what people call it.
    pub(crate) fn start(
        role: &str,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        environment: &[(&str, &Path)],
        belongings: &Belongings,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut command = Command::new(program);
        if std::env::var_os("CLEARWAY_LOG").is_none() {
            // What goes wrong is told by the demo, once.
            command.env("CLEARWAY_LOG", "error");
        }
        let child = command
            .arg("--die-with-parent")
            .args(arguments.into_iter().map(Into::into))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {role}"))?;
        let process = Self { role: role.to_owned(), child, belongings: belongings.clone() };
        let handle = pidfd_open(Pid::from_child(&process.child), PidfdFlags::empty());
        let handle = handle.with_context(|| format!("a handle of {role}'s process"))?;
        belongings.lock().processes.insert(process.child.id(), handle);
        Ok(process)
    }

    /// Waits until it serves this socket.
    pub(crate) fn serving(mut self, socket: &Path, patience: Duration) -> Result<Self> {
        let start = Instant::now();
        while !socket.exists() {
            self.ensure_it_runs()?;
            ensure!(start.elapsed() < patience, "{} does not start", self.role);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error if it has ended.
    pub(crate) fn ensure_it_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} has ended before its time ({status}); CLEARWAY_LOG=info tells more",
                self.role
            ),
        }
    }

    /// Kills it, as a fault would: it gets no chance to put anything in order.
    pub(crate) fn kill(mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("killing {}", self.role))?;
        Ok(self.child.wait()?)
    }

    /// Has it end in good order.
    pub(crate) fn end(self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM)
            .with_context(|| format!("ending {}", self.role))?;
        self.wait()
    }

    /// Waits for its end after it was asked to.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.role);
        Ok(())
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        self.belongings.lock().processes.remove(&self.child.id());
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an interrupted demo takes along. Its VMs end with it by themselves.
#[derive(Clone, Default)]
pub(crate) struct Belongings(Arc<Mutex<Inner>>);

#[derive(Default)]
pub(crate) struct Inner {
    /// By process id.
    processes: BTreeMap<u32, OwnedFd>,
    pub(crate) directory: Option<PathBuf>,
}

impl Belongings {
    /// From now on a signal that ends the demo ends all of it.
    pub(crate) fn watch(&self) -> Result<()> {
        let mut signals = Signals::new(TERM_SIGNALS).context("taking signals")?;
        let belongings = self.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            if let Some(signal) = signals.forever().next() {
                belongings.take_away();
                eprintln!("clearway: the demo was interrupted; nothing of it is left");
                std::process::exit(128 + signal);
            }
        })?;
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_away(&self) {
        let inner = self.lock();
        for process in inner.processes.values() {
            // It may have ended by itself: the signal reached it as well.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        if let Some(directory) = &inner.directory {
            // A process may have made one more socket before it was gone.
            for _ in 0..10 {
                if std::fs::remove_dir_all(directory).is_ok() || !directory.exists() {
                    break;
                }
            }
        }
    }
}
