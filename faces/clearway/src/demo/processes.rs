//! The adapter's process, and what is to be gone when the demo is interrupted.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

/// The adapter's process; it dies with us.
pub(crate) struct AdapterProcess {
    child: Child,
    belongings: Belongings,
}

impl AdapterProcess {
    /// Starts it and waits until it serves its control socket.
    pub(crate) fn start(
        sockets: &Path,
        belongings: &Belongings,
        patience: Duration,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        let mut command = Command::new(program);
        if std::env::var_os("CLEARWAY_LOG").is_none() {
            // What goes wrong is told by the demo, once.
            command.env("CLEARWAY_LOG", "error");
        }
        let child = command
            .args(["adapter", "--vfs", "4", "--die-with-parent", "--directory"])
            .arg(sockets)
            .stdin(Stdio::null())
            .spawn()
            .context("starting the adapter")?;
        let mut adapter = Self { child, belongings: belongings.clone() };
        let handle = pidfd_open(Pid::from_child(&adapter.child), PidfdFlags::empty());
        belongings.lock().adapter = Some(handle.context("a handle of the adapter's process")?);
        let start = Instant::now();
        let control = adapter::control_socket(sockets);
        while !control.exists() {
            adapter.ensure_it_runs()?;
            ensure!(start.elapsed() < patience, "the adapter does not start");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(adapter)
    }

    /// An error if it has ended.
    pub(crate) fn ensure_it_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "the adapter's process has ended before its time ({status}); CLEARWAY_LOG=info tells more"
            ),
        }
    }

    /// Waits for its end after it was asked to.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the adapter ended with {status}");
        Ok(())
    }
}

impl Drop for AdapterProcess {
    fn drop(&mut self) {
        self.belongings.lock().adapter = None;
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
    adapter: Option<OwnedFd>,
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
        if let Some(adapter) = &inner.adapter {
            // It may have ended by itself: the signal reached it as well.
            let _ = pidfd_send_signal(adapter, Signal::KILL);
        }
        if let Some(directory) = &inner.directory {
            // The adapter may have made one more socket before it was gone.
            for _ in 0..10 {
                if std::fs::remove_dir_all(directory).is_ok() || !directory.exists() {
                    break;
                }
            }
        }
    }
}
