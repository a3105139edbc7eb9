//! Signals as messages, beside what clients ask of a role's process.

use std::thread::JoinHandle;

use anyhow::{Context, Result};
use crossbeam_channel::Receiver;
use signal_hook::{
    consts::TERM_SIGNALS,
    iterator::{Handle, Signals},
};

/// Signals that may wait to be looked at.
const WAITING: usize = 8;

/// The signals that end a process, and others that it wants, taken from here on until this is dropped.
pub(crate) struct SignalQueue {
    received: Receiver<i32>,
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SignalQueue {
    /// Takes TERM_SIGNALS and `also`.
    pub(crate) fn take(also: &[i32]) -> Result<Self> {
        let wanted = TERM_SIGNALS.iter().chain(also);
        let mut signals = Signals::new(wanted).context("taking signals")?;
        let (tell, received) = crossbeam_channel::bounded(WAITING);
        let handle = signals.handle();
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                // Of more than are looked at, those that came first count.
                let _ = tell.try_send(signal);
            }
        })?;
        Ok(Self { received, handle, thread: Some(thread) })
    }

    /// The signals, in their order.
    pub(crate) fn received(&self) -> &Receiver<i32> {
        &self.received
    }

    /// Waits until a signal ends the process, or what `over` tells of: a client that asked for it, or the end of what
    /// the process is for.
    pub(crate) fn wait_for_end(&self, over: &Receiver<()>) {
        crossbeam_channel::select! {
            recv(self.received) -> signal => {
                tracing::info!(signal = signal.unwrap_or_default(), "ending");
            }
            recv(over) -> _ => tracing::info!("ending: a client asked for it, or there is nothing more to do"),
        }
    }
}

impl Drop for SignalQueue {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the signal thread had panicked");
        }
    }
}
