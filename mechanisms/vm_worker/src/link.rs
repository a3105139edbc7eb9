//! A connection to a device control server that may come and go, on a thread of its own, so that nobody waits for it.
//!
//! Requests are sent in the order in which they were given, and all at once: each is completed when its server
//! completes it, or when the connection ends. A server that is not there is tried again with growing pauses.

use std::{
    collections::BTreeMap,
    future::Future,
    os::fd::OwnedFd,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use device_control::{Completion, DeviceControlClient, DriverName, SentRequest, Target};
use pcivirt_protocol::NtStatus;

/// How long a server has to welcome us, and to take the bytes of a request.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first pause before another attempt, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often a connection without open requests is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What becomes of a link.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// It is there.
    Connected,
    /// It is not there any more, or could not be had, for this reason. All open requests were completed before.
    Disconnected(String),
    /// A request is done: its output, or why not.
    Completed(u64, Result<Vec<u8>, NtStatus>),
}

/// A request.
#[derive(Debug)]
pub(crate) struct Call {
    /// Names it.
    pub(crate) tag: u64,
    pub(crate) target: Target,
    pub(crate) input: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Room for its output, bytes.
    pub(crate) capacity: usize,
}

enum Command {
    Call(Call),
    /// A request may be done.
    Look(u64),
    Stop,
}

/// A connection, or the attempt at one. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    commands: mpsc::Sender<Command>,
}

impl Link {
    /// Connects to the server at `path`, again and again, and tells `tell` what becomes of it.
    pub(crate) fn start(
        path: PathBuf,
        name: DriverName,
        tell: impl Fn(LinkEvent) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, taken) = mpsc::channel();
        let runner = Runner { path, name, commands: commands.clone(), taken, tell };
        std::thread::Builder::new().name("link".to_owned()).spawn(move || runner.run())?;
        Ok(Self { commands })
    }

    /// Sends a request. While there is no connection it is completed with STATUS_DEVICE_REMOVED.
    pub(crate) fn call(&self, call: Call) {
        // The thread ends with this.
        let _ = self.commands.send(Command::Call(call));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
    }
}

struct Runner<F> {
    path: PathBuf,
    name: DriverName,
    commands: mpsc::Sender<Command>,
    taken: mpsc::Receiver<Command>,
    tell: F,
}

/// Has the thread look at a request.
struct Alarm {
    commands: mpsc::Sender<Command>,
    tag: u64,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let _ = self.commands.send(Command::Look(self.tag));
    }
}

/// Whether to go on.
enum Flow {
    On,
    Stop,
}

impl<F: Fn(LinkEvent)> Runner<F> {
    fn run(self) {
        let mut pause = PAUSES.0;
        loop {
            match DeviceControlClient::connect(&self.path, &self.name, PATIENCE) {
                Ok(client) => {
                    pause = PAUSES.0;
                    (self.tell)(LinkEvent::Connected);
                    let flow = self.serve(client);
                    if let Flow::Stop = flow {
                        return;
                    }
                    let gone = format!("{} has ended the connection", self.path.display());
                    (self.tell)(LinkEvent::Disconnected(gone));
                }
                Err(error) => (self.tell)(LinkEvent::Disconnected(error.to_string())),
            }
            if let Flow::Stop = self.wait_idle(pause) {
                return;
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn complete(&self, tag: u64, result: Result<Vec<u8>, NtStatus>) {
        (self.tell)(LinkEvent::Completed(tag, result));
    }

    /// Lets time pass without a connection.
    fn wait_idle(&self, pause: Duration) -> Flow {
        let deadline = std::time::Instant::now() + pause;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match self.taken.recv_timeout(left) {
                Ok(Command::Call(call)) => self.complete(call.tag, Err(NtStatus::DEVICE_REMOVED)),
                Ok(Command::Look(_)) => {}
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return Flow::Stop,
                Err(mpsc::RecvTimeoutError::Timeout) => return Flow::On,
            }
        }
    }

    /// Serves until the connection ends, or is not wanted any more.
    fn serve(&self, client: DeviceControlClient) -> Flow {
        let mut open: BTreeMap<u64, SentRequest> = BTreeMap::new();
        while client.is_connected() || !open.is_empty() {
            match self.taken.recv_timeout(LOOK) {
                Ok(Command::Call(Call { tag, target, input, fds, capacity })) => {
                    match client.send_with_fds(target, &input, capacity, &fds, PATIENCE) {
                        Ok(sent) => {
                            open.insert(tag, sent);
                            self.look(&mut open, tag);
                        }
                        Err(error) => self.complete(tag, Err(error.status())),
                    }
                }
                Ok(Command::Look(tag)) => self.look(&mut open, tag),
                Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return Flow::Stop,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
        Flow::On
    }

    /// Completes a request if it is done; if not, this is called again when it is.
    fn look(&self, open: &mut BTreeMap<u64, SentRequest>, tag: u64) {
        let Some(request) = open.get_mut(&tag) else { return };
        let waker = Waker::from(Arc::new(Alarm { commands: self.commands.clone(), tag }));
        let Poll::Ready(done) = Pin::new(request).poll(&mut Context::from_waker(&waker)) else {
            return;
        };
        open.remove(&tag);
        self.complete(
            tag,
            match done {
                Ok(Completion { status, output, .. }) if status.is_success() => Ok(output),
                Ok(Completion { status, .. }) => Err(status),
                Err(error) => Err(error.status()),
            },
        );
    }
}
