//! The relay: the function on its socket, and the VF behind it.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use event_fd::EventFd;
use rustix::event::{PollFd, PollFlags, poll};
use vfio_user_client::{Client, ClientError};
use vfio_user_server::{ServerError, ServerOptions, VfioUserServer};

use crate::{
    function::{News, RelayNews, RelayedFunction, Shape},
    leaving::Gate,
};

/// How long a VF's server has to answer: less than the 5 s for which QEMU waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a guest is held back at most, in which QEMU does nothing else. A NIC that has moved the filters waits 200 ms for
/// a driver that has not taken all yet, and one that is held back does not.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);

/// Why a VF cannot be put behind a relay. The function is dormant then.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The VF cannot be had.
    #[error("the VF at {} cannot be used", socket.display())]
    Vf {
        /// Its socket.
        socket: PathBuf,
        /// The reason.
        #[source]
        source: ClientError,
    },
    /// QEMU cannot be told of another shape.
    #[error(
        "the VF at {} has other regions or interrupts than the one that the guest was started with; start the guest anew",
        socket.display()
    )]
    OtherShape {
        /// Its socket.
        socket: PathBuf,
    },
    /// The function's own socket.
    #[error("the function's socket {} cannot be served", socket.display())]
    Socket {
        /// Which one.
        socket: PathBuf,
        /// The reason.
        #[source]
        source: ServerError,
    },
    /// The kernel refuses.
    #[error("the VF cannot be watched")]
    System(#[from] io::Error),
}

/// A function in front of a VF that comes and goes. Dropping it ends the function.
pub struct Relay {
    socket: PathBuf,
    name: String,
    news: Arc<News>,
    gate: Arc<Gate>,
    /// While there is a VF, or a client.
    served: Option<Served>,
    watch: Option<Watch>,
}

struct Served {
    function: Arc<Mutex<RelayedFunction>>,
    /// Held for as long as the function is served.
    _server: VfioUserServer,
}

impl Relay {
    /// A relay that will serve its function at `socket`, once it has a VF. `ring` is called when there are news, by
    /// threads of its own, while they hold the function: it must not wait, nor call the relay.
    pub fn new(
        socket: PathBuf,
        name: impl Into<String>,
        ring: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let news = Arc::new(News::new(ring));
        let gate = Arc::new(Gate::new(LEAVE_LIMIT));
        Self { socket, name: name.into(), news, gate, served: None, watch: None }
    }

    /// What has happened since this was called last.
    pub fn news(&self) -> RelayNews {
        self.news.take()
    }

    /// Where the function is served.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether QEMU has the function.
    pub fn is_connected(&self) -> bool {
        self.news.is_connected()
    }

    /// From now on a guest whose driver is about to be taken from the function waits for [`let_leave`](Self::let_leave), once
    /// and for half a second at most, and [`RelayNews::leaving`] tells of it. QEMU waits with it.
    pub fn hold_leaving(&self) {
        self.gate.close();
    }

    /// The guest may leave the function.
    pub fn let_leave(&self) {
        self.gate.open();
    }

    /// Puts the VF that is served at `vf` behind the function, instead of any it had. Waits for its server, which has
    /// 3 s for each answer.
    ///
    /// # Errors
    /// [`RelayError`]; the function is then dormant.
    pub fn attach(&mut self, vf: &Path) -> Result<(), RelayError> {
        self.detach();
        let wrong = |source| RelayError::Vf { socket: vf.to_owned(), source };
        let client = Client::connect(vf, PATIENCE).map_err(wrong)?;
        let shape = Shape::of(&client).map_err(wrong)?;
        let hang_up = client.duplicate_fd().map_err(wrong)?;
        let served = match &self.served {
            Some(served) => served,
            None => self.served.insert(self.serve(shape.clone())?),
        };
        let mut function = lock(&served.function);
        if *function.shape() != shape {
            return Err(RelayError::OtherShape { socket: vf.to_owned() });
        }
        function.attach(client).map_err(wrong)?;
        // Whatever became of the one before.
        self.news.vf_attached();
        drop(function);
        self.watch = Some(Watch::start(hang_up, Arc::clone(&served.function))?);
        Ok(())
    }

    /// Takes the VF away. When this returns nobody here uses it any more, and it has been reset, if it still answers.
    /// A function that QEMU does not have is not served without VF: QEMU gives up a device at once whose socket is not
    /// there, and one that reads as ones only after it has begun with it.
    pub fn detach(&mut self) {
        self.let_leave();
        self.watch = None;
        let vf = self.served.as_ref().and_then(|served| lock(&served.function).detach());
        if let Some(vf) = vf
            && let Err(error) = vf.reset()
        {
            tracing::debug!(?error, "a VF that is left was not reset");
        }
        if !self.is_connected() {
            self.served = None;
        }
    }

    fn serve(&self, shape: Shape) -> Result<Served, RelayError> {
        let function = RelayedFunction::new(shape, Arc::clone(&self.news), Arc::clone(&self.gate));
        let function = Arc::new(Mutex::new(function));
        let options = ServerOptions::new(&self.name);
        let server = VfioUserServer::bind(&self.socket, Arc::clone(&function), options)
            .map_err(|source| RelayError::Socket { socket: self.socket.clone(), source })?;
        Ok(Served { function, _server: server })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.detach();
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("socket", &self.socket).finish_non_exhaustive()
    }
}

fn lock(function: &Mutex<RelayedFunction>) -> MutexGuard<'_, RelayedFunction> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that waits for the end of a VF's server.
struct Watch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(hang_up: OwnedFd, function: Arc<Mutex<RelayedFunction>>) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new()?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("vf-watch".to_owned())
            .spawn(move || watch(&hang_up, &stopped, &function))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}

fn watch(hang_up: &OwnedFd, stop: &EventFd, function: &Mutex<RelayedFunction>) {
    // A hang-up is reported whatever is asked for; what the server answers is not this thread's business.
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(hang_up, PollFlags::RDHUP)];
    loop {
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "a VF cannot be watched"),
        }
        let [stopped, ended] = &fds;
        if !stopped.revents().is_empty() {
            return;
        }
        if !ended.revents().is_empty() {
            return lock(function).hung_up();
        }
    }
}
