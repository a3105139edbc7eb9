//! The carrier: the thread that moves packets between one of the guest's interfaces and its paths, the synthetic one and
//! the VF.
//!
//! It owns all of them, and NetVSC and the AVF driver's control part too, so that a move from path to path, or a reset,
//! is a matter of one thread. While there is traffic it polls; when there has been none for a moment it arms the interrupts
//! and sleeps on everything that could wake it. What takes long (opening channels and drivers, closing them) is done
//! elsewhere: paths come by [`Command`] and leave by [`Notice`].
//!
//! | module | what it does |
//! | --- | --- |
//! | `worker` | the thread: frames, sleep |
//! | `upkeep` | what happens to the paths |
//! | `super::paths` | which path is used |

mod upkeep;
mod worker;

use std::{
    fmt,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
};

use linux_network::NetworkError;
use rustix::event::{EventfdFlags, eventfd};
use vmbus::Channel;

use self::worker::Worker;
use super::{
    counters::Counters,
    interface::GuestInterface,
    synthetic::SyntheticPath,
    vf::{VfConfig, VfPath},
};
use crate::AdapterStatistics;

/// What the carrier is started with.
pub(crate) struct CarrierConfig {
    /// An open VF, if the interface has one from the start, and where it is from.
    pub(crate) vf: Option<(VfPath, VfSource)>,
    /// The interface's far side, its name and its index.
    pub(crate) interface: Box<dyn GuestInterface>,
    /// Name of the interface.
    pub(crate) name: String,
    /// Index of the interface.
    pub(crate) index: u32,
    /// Whom to tell. Called on the carrier's thread; must not wait.
    pub(crate) tell: Box<dyn Fn(Notice) + Send>,
}

/// Where a carrier finds its VF by itself.
#[derive(Debug)]
pub(crate) struct VfSource {
    /// How to open it again.
    pub(crate) config: VfConfig,
    /// Whether to wait for another VF on the same socket when this one is gone.
    pub(crate) reconnect: bool,
}

/// What the carrier is to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Here is a synthetic adapter.
    Synthetic(Box<SyntheticPath>),
    /// A subchannel of the synthetic adapter is open.
    Subchannel(u16, Channel),
    /// Use the synthetic adapter no more; answered by [`Notice::SyntheticClosed`].
    CloseSynthetic,
    /// Here is a VF whose driver runs, with its serial number; it comes back after a reset, or is new.
    Vf {
        /// The VF.
        vf: Box<VfPath>,
        /// Its serial number.
        serial: u32,
        /// It was here before.
        after_reset: bool,
    },
    /// Leave the VF, and give it back by [`Notice::VfReturned`].
    EjectVf,
    /// The VF is gone; give back what is left of it.
    VfGone,
    /// Bring the VF's driver up or down; answered by [`Notice::VfSet`].
    SetVf {
        /// Names the request.
        ticket: u64,
        /// Up or down.
        up: bool,
    },
}

/// Why a VF was given back.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum VfEnd {
    /// As it was asked to be.
    Ejected,
    /// It was reset: its driver is to be brought up again.
    Reset,
    /// It vanished.
    Gone,
}

/// What the carrier has to say.
#[derive(Debug)]
pub(crate) enum Notice {
    /// The VF of its own is gone, and why.
    Lost(String),
    /// A VF was found again.
    Found,
    /// The carrier cannot go on.
    Failed(String),
    /// The synthetic adapter is up.
    SyntheticUp,
    /// The synthetic adapter wants its subchannels with indexes 1 to this.
    OpenSubchannels(u16),
    /// The synthetic adapter's channels and buffers are not used any more.
    SyntheticClosed,
    /// Likewise, since it cannot be brought up or the host broke the protocol.
    SyntheticFailed(String),
    /// The host announced a VF with this serial number, or that it takes it away.
    VfAssociation(Option<u32>),
    /// A VF that is not used any more.
    VfReturned(Box<VfPath>, VfEnd),
    /// The answer to [`Command::SetVf`]: whether the data path is as it was asked to be.
    VfSet {
        /// The request.
        ticket: u64,
        /// Whether it is.
        done: bool,
    },
}

/// The running carrier.
#[derive(Debug)]
pub(crate) struct Carrier {
    handle: CarrierHandle,
    thread: Option<JoinHandle<()>>,
}

/// Reaches a carrier from other threads.
#[derive(Clone)]
pub(crate) struct CarrierHandle {
    shared: Arc<Shared>,
    commands: Sender<Command>,
}

impl fmt::Debug for CarrierHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CarrierHandle").field("shared", &self.shared).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shared {
    counters: Counters,
    stop: AtomicBool,
    /// Wakes the carrier.
    wake: OwnedFd,
}

/// Makes an eventfd readable.
pub(super) fn signal(event: &OwnedFd) {
    // The counter cannot be full, and whoever reads it is woken by any value.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Makes an eventfd unreadable.
pub(super) fn clear(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0u8; 8]);
}

/// An eventfd.
pub(super) fn new_event() -> Result<OwnedFd, NetworkError> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| NetworkError::Socket { kind: "event", source: errno.into() })
}

impl Carrier {
    /// Starts the carrier's thread. With a VF, carrier and filters of the interface are set when this returns.
    pub(crate) fn start(config: CarrierConfig) -> Result<Self, NetworkError> {
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            stop: AtomicBool::new(false),
            wake: new_event()?,
        });
        let (commands, queue) = channel();
        let worker = Worker::new(config, queue, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new()
            .name("carrier".to_owned())
            .spawn(move || worker.run())
            .map_err(|source| NetworkError::Namespace { action: "start the carrier", source })?;
        Ok(Self { handle: CarrierHandle { shared, commands }, thread: Some(thread) })
    }

    /// The way for others to reach it.
    pub(crate) fn handle(&self) -> &CarrierHandle {
        &self.handle
    }

    /// Stops the carrier, which gives a VF back in good order and drops its synthetic adapter.
    pub(crate) fn stop(mut self) {
        self.handle.shared.stop.store(true, Ordering::Relaxed);
        signal(&self.handle.shared.wake);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl CarrierHandle {
    /// Has the carrier do something; false if it does nothing any more.
    pub(crate) fn command(&self, command: Command) -> bool {
        let sent = self.commands.send(command).is_ok();
        signal(&self.shared.wake);
        sent
    }

    /// What it counted, but for the interface's name and what the kernel counts.
    pub(crate) fn statistics(&self) -> AdapterStatistics {
        self.shared.counters.statistics()
    }
}
