//! The uplink: what it may be, and the thread that keeps the one by way of an SR-IOV adapter.

use std::{
    any::Any,
    fmt::{self, Display},
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use avf_driver::{AvfControl, AvfDriver, DriverConfig, DriverError, Event, MacAddress, QueuePair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uplink::{SpecError, UplinkSpec};
use vmbus::EventFd;

use super::ports::Ports;
use crate::{
    AvfUplink, SwitchStopped, UplinkUnsuitable,
    control::{AdapterUplink as AdapterLevel, SocketIdentity, UplinkReport},
};

/// Bytes of the longest frame that passes an uplink.
pub(super) const MAX_FRAME: usize = 9728;
/// How often an adapter that is not there is looked for.
const RETRY: Duration = Duration::from_millis(100);
/// How often an adapter is looked at though it has not called: a reset may come without a word.
const LOOK: Duration = Duration::from_secs(1);
/// How long the adapter may take for an answer, and for a reset.
const PATIENCE: Duration = Duration::from_secs(2);
/// The adapter's socket on which the default VPort's queue pairs are served.
const PF_SOCKET: &str = "pf.sock";

/// Which uplink a switch has.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum SwitchUplink {
    /// The default VPort of the SR-IOV adapter whose sockets are in this folder.
    Adapter(PathBuf),
    /// An interface, a capture, a cable, or none.
    Other(UplinkSpec),
}

impl Display for SwitchUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adapter(directory) => write!(f, "adapter:{}", directory.display()),
            Self::Other(spec) => spec.fmt(f),
        }
    }
}

impl FromStr for SwitchUplink {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        let refused = |problem: &str| SpecError {
            spec: spec.to_owned(),
            problem: format!("{problem}; a switch also takes adapter:DIRECTORY"),
        };
        match spec.strip_prefix("adapter:") {
            Some("") => Err(refused("names no folder")),
            Some(directory) if directory.contains('\0') => {
                Err(refused("a path cannot hold a zero byte"))
            }
            Some(directory) => Ok(Self::Adapter(directory.into())),
            None => match spec.parse() {
                Ok(other) => Ok(Self::Other(other)),
                Err(SpecError { problem, .. }) => Err(refused(&problem)),
            },
        }
    }
}

/// How an uplink by way of an adapter is.
#[derive(Clone, Debug, Default)]
pub(super) struct AdapterState {
    pub(super) connected: bool,
    pub(super) link_up: bool,
    pub(super) last_error: Option<String>,
}

/// Keeps the uplink by way of an adapter: brings it up whenever the adapter is there. Dropping it ends that.
#[derive(Debug)]
pub(super) struct AdapterUplink {
    /// Contended by the thread and by whoever asks for the status.
    state: Arc<Mutex<AdapterState>>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl AdapterUplink {
    /// Starts to keep it. The host's own address, if there is one, becomes the default VPort's, so that VFs reach it.
    pub(super) fn start(
        directory: PathBuf,
        host: Option<MacAddress>,
        ports: Arc<Ports>,
    ) -> std::io::Result<Self> {
        let state = Arc::<Mutex<AdapterState>>::default();
        let stop = EventFd::new()?;
        let keeper = Keeper {
            directory,
            host,
            ports,
            state: Arc::clone(&state),
            stop: stop.clone(),
            said: None,
        };
        let thread =
            std::thread::Builder::new().name("uplink".into()).spawn(move || keeper.run())?;
        Ok(Self { state, stop, thread: Some(thread) })
    }

    pub(super) fn state(&self) -> AdapterState {
        lock(&self.state).clone()
    }
}

impl Drop for AdapterUplink {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the uplink's thread had panicked");
        }
    }
}

fn lock(state: &Mutex<AdapterState>) -> MutexGuard<'_, AdapterState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the uplink is down.
#[derive(Debug, thiserror::Error)]
enum Down {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Unsuitable(#[from] UplinkUnsuitable),
    #[error("the adapter granted no queue pair: is its default VPort without any?")]
    NoQueuePair,
    #[error("the adapter has gone; the uplink is up again when it is back")]
    Gone,
    #[error(transparent)]
    Stopped(#[from] SwitchStopped),
}

struct Keeper {
    directory: PathBuf,
    host: Option<MacAddress>,
    ports: Arc<Ports>,
    state: Arc<Mutex<AdapterState>>,
    stop: EventFd,
    /// What was logged last: a retry that fails like the one before is not news.
    said: Option<String>,
}

impl Keeper {
    fn run(mut self) {
        loop {
            let ended = self.keep();
            // Whatever is left of it: its buffers are those of a device that is gone.
            let left = self.ports.switch.run(|switch| switch.set_uplink(None));
            drop(left);
            let Err(down) = ended else { return };
            if matches!(down, Down::Stopped(_)) {
                return;
            }
            let error = with_causes(&down);
            let mut state = lock(&self.state);
            (state.connected, state.link_up) = (false, false);
            state.last_error = Some(error.clone());
            drop(state);
            self.report(AdapterLevel::down(&error));
            if self.said.as_ref() != Some(&error) {
                tracing::warn!(uplink = %self.directory.display(), error, "the uplink is down");
                self.said = Some(error);
            }
            match self.stop.wait(RETRY) {
                Ok(false) => {}
                Ok(true) | Err(_) => return,
            }
        }
    }

    /// Brings the uplink up and keeps it, until it is to end.
    fn keep(&mut self) -> Result<(), Down> {
        let socket = self.directory.join(PF_SOCKET);
        let identity = SocketIdentity::at(&socket);
        let mut config: DriverConfig = AvfUplink::driver_config(&socket);
        config.mac = self.host;
        config.timeouts.request = PATIENCE;
        config.timeouts.mailbox = PATIENCE;
        config.timeouts.reset = PATIENCE;
        let (mut control, pairs) = AvfDriver::open(config)?;
        // One that had taken the place of another meanwhile may be or not be the one that was opened.
        let identity = identity.ok().filter(|it| SocketIdentity::at(&socket).ok() == Some(*it));
        let identity = identity.ok_or(Down::Gone)?;
        self.connect(&control, pairs, identity)?;
        tracing::info!(uplink = %self.directory.display(), "the uplink is up");
        self.said = None;
        loop {
            for event in control.poll_events(Instant::now())? {
                match event {
                    Event::LinkChange(link) => lock(&self.state).link_up = link.up,
                    Event::ResetImpending | Event::ResetDetected => {
                        self.rebuild(&mut control, identity)?;
                    }
                    Event::PfDriverClosed | Event::DeviceGone => return Err(Down::Gone),
                    _ => {}
                }
            }
            let mut fds = vec![
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::from_borrowed_fd(control.server_fd(), PollFlags::IN),
            ];
            fds.extend(control.event_fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let look = Timespec { tv_sec: LOOK.as_secs().try_into().unwrap_or(1), tv_nsec: 0 };
            // An interrupted wait is a short one.
            let _ = poll(&mut fds, Some(&look));
            if self.stop.wait(Duration::ZERO).unwrap_or(true) {
                return Ok(());
            }
        }
    }

    fn connect(
        &self,
        control: &AvfControl,
        mut pairs: Vec<QueuePair>,
        identity: SocketIdentity,
    ) -> Result<(), Down> {
        let pair = pairs.pop().ok_or(Down::NoQueuePair)?;
        let uplink = AvfUplink::new(control, pair, MAX_FRAME)?;
        self.ports.switch.run(move |switch| switch.set_uplink(Some(Box::new(uplink))))?;
        let mut state = lock(&self.state);
        state.connected = true;
        state.link_up = control.link().up;
        state.last_error = None;
        drop(state);
        self.report(AdapterLevel { up: Some(identity), error: None });
        Ok(())
    }

    /// Frames pass from now on, or do not any more.
    fn report(&self, adapter: AdapterLevel) {
        self.ports.set_uplink(UplinkReport { adapter: Some(adapter) });
    }

    /// Brings the device up again after a reset. Meanwhile frames for the uplink are dropped and counted.
    fn rebuild(&self, control: &mut AvfControl, identity: SocketIdentity) -> Result<(), Down> {
        lock(&self.state).link_up = false;
        self.report(AdapterLevel::down("the adapter resets its default VPort"));
        let port = self.ports.switch.run(|switch| switch.set_uplink(None))?;
        let port: Option<Box<dyn Any>> = port.map(|port| port as Box<dyn Any>);
        let uplink = port.and_then(|port| port.downcast::<AvfUplink>().ok());
        let pairs: Vec<QueuePair> = uplink.map(|uplink| uplink.into_pair()).into_iter().collect();
        match control.rebuild(pairs) {
            Ok(pairs) => self.connect(control, pairs, identity),
            // The device is opened anew then.
            Err(failure) => Err(failure.error.into()),
        }
    }
}

/// An error with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uplink_is_an_adapter_or_whatever_an_adapter_may_have_as_one() {
        for text in ["adapter:/tmp/nic0", "none", "tap:up0", "cable:/tmp/x"] {
            assert_eq!(text.parse::<SwitchUplink>().unwrap().to_string(), text);
        }
        let adapter = SwitchUplink::Adapter("/tmp/nic0".into());
        assert_eq!("adapter:/tmp/nic0".parse(), Ok(adapter));
        for text in ["adapter:", "adaptor:/tmp", "tap:"] {
            let refused = text.parse::<SwitchUplink>().unwrap_err().to_string();
            assert!(refused.contains("adapter:DIRECTORY"), "{refused}");
        }
    }
}
