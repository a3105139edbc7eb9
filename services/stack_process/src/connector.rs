//! Connections to processes that may not be there yet: each attempt has its own thread, which is woken when the socket
//! appears and looks by itself every [`LONGEST_PAUSE`] at the latest.

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use device_control::{ClientError, DeviceControlClient, DriverName};
use event_fd::EventFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::event::Peer;
use crate::message::Message;

/// The longest time between two attempts.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// The shortest: a socket is there a moment before somebody listens.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// How long a process that accepts a connection may take to say who it is.
const WELCOME: Duration = Duration::from_secs(2);

/// An attempt to connect, which goes on until it succeeds or this is dropped.
#[derive(Debug)]
pub(crate) struct Connector {
    stop: Arc<EventFd>,
}

impl Drop for Connector {
    fn drop(&mut self) {
        // The thread ends by itself; what it still sends is recognized by its number.
        self.stop.signal();
    }
}

/// What is connected to.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) peer: Peer,
    pub(crate) path: PathBuf,
    pub(crate) name: DriverName,
    /// Tells attempts apart.
    pub(crate) attempt: u64,
}

impl Connector {
    /// Begins to connect after `pause`.
    ///
    /// # Errors
    /// When there are no descriptors or threads left.
    pub(crate) fn start(
        destination: Destination,
        pause: Duration,
        messages: Sender<Message>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(EventFd::new()?);
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new()
            .name(format!("connect-{}", destination.attempt))
            .spawn(move || connect(&destination, pause, &stopped, &messages))?;
        Ok(Self { stop })
    }
}

fn connect(destination: &Destination, pause: Duration, stop: &EventFd, messages: &Sender<Message>) {
    let Destination { peer, path, name, attempt } = destination;
    let mut watch = None;
    let mut pause = pause;
    let mut said = String::new();
    // The first pause is not shortened by what happens to the socket: it is there for one that turns clients away.
    if !pause.is_zero() && wait(stop, None, pause) == Woken::Stopped {
        return;
    }
    loop {
        // Before the attempt, so that a socket that appears after it is noticed.
        if watch.is_none() {
            watch = Watch::of(path);
        }
        let error = match DeviceControlClient::connect(path, name, WELCOME) {
            Ok(client) => {
                let _ =
                    messages.send(Message::Connected { peer: *peer, attempt: *attempt, client });
                return;
            }
            Err(error) => error,
        };
        let text = sentence(*peer, &error);
        if text != said {
            said.clone_from(&text);
            let failed = Message::CannotConnect { peer: *peer, attempt: *attempt, error: text };
            if messages.send(failed).is_err() {
                return;
            }
        }
        pause = match error {
            // Whoever turns clients away is not asked all the time.
            ClientError::Refused { .. } => LONGEST_PAUSE,
            _ => (pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
        };
        match wait(stop, watch.as_mut(), pause) {
            Woken::Stopped => return,
            Woken::Appeared => pause = Duration::ZERO,
            Woken::Time => {}
        }
    }
}

/// Why a connection cannot be made or has ended, and what to do.
pub(crate) fn sentence(peer: Peer, error: &ClientError) -> String {
    let program = match peer {
        Peer::Nic(_) => "clearway adapter",
        Peer::Switch(_) => "clearway switch run",
        Peer::Vm(_) => "clearway vm run` or `clearway vm qemu",
    };
    match error {
        ClientError::NotRunning { path, .. } => {
            format!("nobody serves {}: start `{program}`", path.display())
        }
        ClientError::Disconnected { .. } => "its process ended".to_owned(),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        }
    }
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Woken {
    Stopped,
    Appeared,
    Time,
}

/// Waits until the time is over, the socket has appeared, or the attempt is given up.
fn wait(stop: &EventFd, mut watch: Option<&mut Watch>, pause: Duration) -> Woken {
    let deadline = Instant::now() + pause;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Woken::Time;
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        if let Some(watch) = &watch {
            fds.push(PollFd::new(&watch.inotify, PollFlags::IN));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            // Then by time alone.
            Err(_) => std::thread::sleep(left),
        }
        let mut readable = fds.iter().map(|fd| !fd.revents().is_empty());
        let stopped = readable.next().unwrap_or_default();
        let changed = readable.next().unwrap_or_default();
        drop(readable);
        drop(fds);
        if stopped {
            return Woken::Stopped;
        }
        if changed && watch.as_mut().is_some_and(|watch| watch.appeared()) {
            return Woken::Appeared;
        }
    }
}

/// Watches for a file to appear in a folder that exists.
struct Watch {
    inotify: OwnedFd,
    name: OsString,
}

impl Watch {
    /// `None` if the folder is not there or cannot be watched: the time wakes too.
    fn of(path: &Path) -> Option<Self> {
        let (folder, name) = (path.parent()?, path.file_name()?.to_owned());
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).ok()?;
        let appear = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&inotify, folder, appear | inotify::WatchFlags::ONLYDIR).ok()?;
        Some(Self { inotify, name })
    }

    /// Whether the file is among what has appeared.
    fn appeared(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut appeared = false;
        while let Ok(event) = reader.next() {
            let overflow = event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            let named = event
                .file_name()
                .is_some_and(|name| name.to_bytes() == self.name.as_encoded_bytes());
            appeared |= overflow || named;
        }
        appeared
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;
    use device_control::{DeviceControlHandler, DeviceControlServer, ServerConfig};
    use virtualization_stack::NicId;

    use super::*;

    struct Nothing;
    impl DeviceControlHandler for Nothing {}

    const PEER: Peer = Peer::Nic(NicId(0));

    fn destination(path: PathBuf) -> Destination {
        let name = DriverName::new("test").unwrap();
        Destination { peer: PEER, path, name, attempt: 7 }
    }

    #[test]
    fn a_socket_that_appears_is_connected_to_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let (sender, messages) = unbounded();
        let _connector =
            Connector::start(destination(path.clone()), Duration::ZERO, sender).unwrap();
        let patience = Duration::from_secs(20);
        let Message::CannotConnect { peer: PEER, attempt: 7, error } =
            messages.recv_timeout(patience).unwrap()
        else {
            panic!("it is connected to nobody")
        };
        assert!(error.contains("start `clearway adapter`"), "{error}");
        // Long enough that the pause between attempts is long.
        assert!(messages.recv_timeout(Duration::from_millis(500)).is_err(), "said twice");
        let config = ServerConfig::new(path, DriverName::new("nic").unwrap());
        let _server = DeviceControlServer::start(config, Arc::new(Nothing)).unwrap();
        let Message::Connected { attempt: 7, client, .. } =
            messages.recv_timeout(patience).unwrap()
        else {
            panic!("it did not connect")
        };
        assert_eq!(client.device().as_str(), "nic");
    }

    #[test]
    fn an_attempt_that_is_given_up_ends() {
        let directory = tempfile::tempdir().unwrap();
        // Not even the folder is there.
        let path = directory.path().join("missing").join("control.sock");
        let (sender, messages) = unbounded();
        let connector = Connector::start(destination(path), Duration::ZERO, sender).unwrap();
        assert!(matches!(messages.recv(), Ok(Message::CannotConnect { .. })));
        drop(connector);
        // The thread has dropped its sender.
        assert!(messages.recv().is_err());
    }
}
