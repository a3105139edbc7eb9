//! The carrier: the thread that moves packets between the guest's `eth0` and the VF.
//!
//! It owns both, and the driver's control part too, so that a reset is recovered from without another thread
//! taking part. While there is traffic it polls; when there has been none for a moment it arms the interrupts
//! and sleeps on everything that could wake it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use avf_driver::{DriverError, Event, State};
use linux_network::{NetworkError, RouteSocket};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use super::{
    counters::Counters,
    filters::Filters,
    frames::{BURST, Frames},
    interface::GuestInterface,
    translate::{Refusal, to_vf},
    vf::{Totals, VfConfig, VfPath},
};
use crate::{CarrierDirection, Drops, VfState};

/// Rounds without a packet after which the carrier goes to sleep.
const IDLE_ROUNDS: u32 = 64;
/// The longest sleep: the guest's filters are looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// The longest sleep while the VF takes nothing.
const NO_ROOM: Duration = Duration::from_millis(1);
/// How often a VF that is gone is looked for, and a failed rebuild is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Rebuilds that may fail before the VF counts as gone.
const REBUILDS: u32 = 20;
/// Bytes of the longest frame of any AVF device, for the memory of received bursts.
const LONGEST_FRAME: usize = 16_383;

/// What the carrier is started with.
pub(crate) struct CarrierConfig {
    /// The open VF.
    pub(crate) vf: VfPath,
    /// How to open it again.
    pub(crate) config: VfConfig,
    /// Whether to wait for another VF on the same socket when this one is gone.
    pub(crate) reconnect: bool,
    /// `eth0`'s far side, its name and its index.
    pub(crate) interface: Box<dyn GuestInterface>,
    /// Name of the interface.
    pub(crate) name: String,
    /// Index of the interface.
    pub(crate) index: u32,
}

/// What the carrier has to say.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) enum Notice {
    /// The VF is gone, and why.
    Lost(String),
    /// A VF was found again.
    Found,
    /// The carrier cannot go on.
    Failed(String),
}

/// The running carrier.
#[derive(Debug)]
pub(crate) struct Carrier {
    shared: Arc<Shared>,
    notices: Receiver<Notice>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    counters: Counters,
    stop: AtomicBool,
    /// Wakes the carrier.
    wake: OwnedFd,
    /// Readable when there is a notice.
    notice: OwnedFd,
}

fn signal(event: &OwnedFd) {
    // The counter cannot be full, and whoever reads it is woken by any value.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

fn clear(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0u8; 8]);
}

impl Carrier {
    /// Starts the carrier's thread. Carrier and filters of the interface are set when this returns.
    pub(crate) fn start(config: CarrierConfig) -> Result<Self, NetworkError> {
        let event = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|errno| NetworkError::Socket { kind: "event", source: errno.into() })
        };
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            stop: AtomicBool::new(false),
            wake: event()?,
            notice: event()?,
        });
        let (sender, notices) = channel();
        let filters = Filters::new(&config.name, config.index, RouteSocket::open()?);
        let mut worker = Worker {
            vf: Some(config.vf),
            config: config.config,
            reconnect: config.reconnect,
            interface: config.interface,
            filters,
            frames: Frames::new(LONGEST_FRAME),
            shared: Arc::clone(&shared),
            notices: sender,
            totals: Totals::default(),
            missed: 0,
            carrier: false,
            next_attempt: Instant::now(),
            failed_rebuilds: 0,
        };
        worker.settle()?;
        let thread = std::thread::Builder::new()
            .name("carrier".to_owned())
            .spawn(move || worker.run())
            .map_err(|source| NetworkError::Namespace { action: "start the carrier", source })?;
        Ok(Self { shared, notices, thread: Some(thread) })
    }

    /// Readable when there is a notice.
    pub(crate) fn notice_fd(&self) -> impl AsFd {
        self.shared.notice.as_fd()
    }

    /// The next notice.
    pub(crate) fn take_notice(&self) -> Option<Notice> {
        clear(&self.shared.notice);
        self.notices.try_recv().ok()
    }

    /// Both directions, to the VF and to the guest, and the VF.
    pub(crate) fn counters(&self) -> (CarrierDirection, CarrierDirection, VfState) {
        let (to_vf, to_guest) = self.shared.counters.directions();
        (to_vf, to_guest, self.shared.counters.vf())
    }

    /// Stops the carrier and gives the VF back in good order.
    pub(crate) fn stop(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        signal(&self.shared.wake);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The carrier's thread.
struct Worker {
    vf: Option<VfPath>,
    config: VfConfig,
    reconnect: bool,
    interface: Box<dyn GuestInterface>,
    filters: Filters,
    frames: Frames,
    shared: Arc<Shared>,
    notices: Sender<Notice>,
    /// What the driver had counted when its counts were last passed on.
    totals: Totals,
    /// Packets of the guest that were known to be missed.
    missed: u64,
    /// Whether `eth0` has a carrier.
    carrier: bool,
    /// When to try again what failed.
    next_attempt: Instant,
    failed_rebuilds: u32,
}

impl Drop for Worker {
    /// A carrier that panics takes the VM with it, instead of leaving one whose `eth0` is dead.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell(Notice::Failed("the carrier panicked".to_owned()));
        }
    }
}

impl Worker {
    fn run(mut self) {
        let mut idle_rounds = 0;
        let mut next_tick = Instant::now() + TICK;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let (sent, flushed) = self.carry_to_vf();
            let moved = self.carry_to_guest() + sent;
            self.look_after_vf(now);
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick();
            }
            idle_rounds = if moved > 0 { 0 } else { idle_rounds + 1 };
            if idle_rounds > IDLE_ROUNDS {
                idle_rounds = 0;
                let mut limit = next_tick.saturating_duration_since(now);
                if !flushed {
                    limit = limit.min(NO_ROOM);
                }
                self.sleep(limit);
            } else if moved == 0 {
                std::thread::yield_now();
            }
        }
        self.publish();
        if let Some(vf) = self.vf.take()
            && let Err(error) = vf.close()
        {
            tracing::info!(%error, "the VF could not be given back in good order");
        }
    }

    /// Moves a burst of the guest's packets to the VF. Returns how many were taken from the guest, and
    /// whether the VF takes more: it does not while its ring is full or it is in reset.
    fn carry_to_vf(&mut self) -> (usize, bool) {
        let mut counts = CarrierDirection::default();
        let mut full = false;
        let link = self.carrier;
        let present = self.vf.is_some();
        let vf = self.vf.as_mut().filter(|vf| link && !vf.is_stopped());
        let taken = match vf {
            Some(vf) => {
                let max_frame = vf.max_frame();
                let taken = self.interface.receive(BURST, &mut |packet| {
                    match to_vf(packet, max_frame) {
                        Ok(wire) => {
                            if !vf.send(&wire) {
                                full = true;
                                return false;
                            }
                            counts.packets += 1;
                            counts.frames += wire.frames;
                            counts.bytes += wire.bytes;
                        }
                        Err(Refusal::TooLong) => counts.drops.too_long += 1,
                        Err(Refusal::Malformed) => counts.drops.malformed += 1,
                    }
                    true
                });
                full |= !vf.flush();
                taken
            }
            // A VF in reset comes back in a moment, and takes what waits until then.
            None if link && present => {
                full = true;
                Ok(0)
            }
            None => self.interface.receive(BURST, &mut |_| {
                counts.drops.no_link += 1;
                true
            }),
        };
        self.shared.counters.to_vf.add(&counts);
        match taken {
            Ok(taken) => (taken, !full),
            Err(error) => {
                self.fail(format!("eth0 can no longer be read: {error}"));
                (0, true)
            }
        }
    }

    /// Moves a burst of received frames to the guest; returns how many.
    fn carry_to_guest(&mut self) -> usize {
        let Some(vf) = &mut self.vf else {
            return 0;
        };
        let mut counts = CarrierDirection::default();
        vf.receive(&mut self.frames, &mut counts.drops);
        let received = self.frames.len();
        if received > 0 {
            let (frames, bytes) = self.interface.transmit(&self.frames, &mut counts.drops);
            (counts.packets, counts.frames, counts.bytes) = (frames, frames, bytes);
            self.frames.clear();
        }
        if counts != CarrierDirection::default() {
            self.shared.counters.to_guest.add(&counts);
        }
        received
    }

    /// Handles what happened to the VF: link changes, resets, its end.
    fn look_after_vf(&mut self, now: Instant) {
        let Some(vf) = &mut self.vf else {
            if self.reconnect && now >= self.next_attempt {
                self.next_attempt = now + RETRY;
                self.find();
            }
            return;
        };
        match vf.control().poll_events(now) {
            Ok(events) => {
                for event in events {
                    match event {
                        Event::LinkChange(_) => self.follow_link(),
                        // Nothing passes until the PF is back, which resets the function.
                        Event::PfDriverClosed => self.set_carrier(false),
                        Event::DeviceGone => return self.lose(&DriverError::DeviceGone),
                        _ => {}
                    }
                }
            }
            Err(error) => return self.lose(&error),
        }
        let Some(vf) = &mut self.vf else {
            return;
        };
        match vf.control().state() {
            State::Running => {}
            State::Gone => self.lose(&DriverError::DeviceGone),
            State::NeedsRebuild if now >= self.next_attempt => self.rebuild(now),
            State::NeedsRebuild => {}
        }
    }

    fn rebuild(&mut self, now: Instant) {
        let Some(vf) = &mut self.vf else {
            return;
        };
        tracing::info!("the VF was reset; bringing it up again");
        match vf.rebuild() {
            Ok(()) => {
                self.failed_rebuilds = 0;
                self.shared.counters.update_vf(|state| state.resets += 1);
                if let Err(error) = self.settle() {
                    self.fail(error.to_string());
                }
            }
            Err(error) => {
                self.failed_rebuilds += 1;
                self.next_attempt = now + RETRY;
                if matches!(error, DriverError::DeviceGone) || self.failed_rebuilds > REBUILDS {
                    self.lose(&error);
                } else {
                    tracing::warn!(%error, "the VF could not be brought up again yet");
                }
            }
        }
    }

    /// The VF is gone.
    fn lose(&mut self, error: &DriverError) {
        self.publish();
        self.vf = None;
        self.failed_rebuilds = 0;
        self.totals = Totals::default();
        self.filters.forget();
        self.set_carrier(false);
        self.shared.counters.update_vf(|state| {
            state.present = false;
            state.link_up = false;
            state.link_speed_mbps = 0;
        });
        self.next_attempt = Instant::now() + RETRY;
        self.tell(Notice::Lost(error.to_string()));
    }

    /// Looks for a VF on the socket of the one that is gone.
    fn find(&mut self) {
        match VfPath::open(&self.config) {
            Ok(vf) => {
                self.vf = Some(vf);
                self.shared.counters.update_vf(|state| state.reconnects += 1);
                match self.settle() {
                    Ok(()) => self.tell(Notice::Found),
                    Err(error) => self.fail(error.to_string()),
                }
            }
            Err(error) => tracing::debug!(%error, "no VF yet"),
        }
    }

    /// Makes `eth0` and a VF that was just brought up agree: address, filters, carrier.
    fn settle(&mut self) -> Result<(), NetworkError> {
        if let Some(vf) = &mut self.vf {
            self.filters.adopt_address(vf.mac())?;
            self.filters.update(vf.control());
        }
        self.follow_link();
        Ok(())
    }

    fn follow_link(&mut self) {
        let up = self.vf.as_ref().is_some_and(VfPath::link_up);
        self.set_carrier(up);
        self.publish();
    }

    fn set_carrier(&mut self, carrier: bool) {
        if self.carrier != carrier {
            self.carrier = carrier;
            if let Err(error) = self.interface.set_carrier(carrier) {
                self.fail(error.to_string());
            }
        }
    }

    fn tick(&mut self) {
        if let Some(vf) = &mut self.vf
            && vf.control().state() == State::Running
        {
            self.filters.update(vf.control());
        }
        self.publish();
    }

    /// Passes on what the driver and the interface counted.
    fn publish(&mut self) {
        let missed = self.interface.missed();
        let drops = Drops { no_room: missed.saturating_sub(self.missed), ..Default::default() };
        self.missed = missed;
        self.shared.counters.to_vf.add(&CarrierDirection { drops, ..Default::default() });
        let Some(vf) = &self.vf else {
            return;
        };
        // While a VF could not be rebuilt it has no queues, and nothing that they counted.
        let Some(totals) = vf.totals() else {
            return;
        };
        let before = std::mem::replace(&mut self.totals, totals);
        let receive_error = totals.receive_errors.saturating_sub(before.receive_errors);
        let drops = Drops { receive_error, ..Default::default() };
        self.shared.counters.to_guest.add(&CarrierDirection { drops, ..Default::default() });
        self.shared.counters.update_vf(|state| {
            vf.describe(state);
            let grown = |now: u64, before: u64| now.saturating_sub(before);
            state.received_frames += grown(totals.received_frames, before.received_frames);
            state.received_bytes += grown(totals.received_bytes, before.received_bytes);
            state.transmitted_packets +=
                grown(totals.transmitted_packets, before.transmitted_packets);
            state.transmitted_bytes += grown(totals.transmitted_bytes, before.transmitted_bytes);
        });
    }

    /// Sleeps until something happens, or `limit` has passed.
    fn sleep(&mut self, limit: Duration) {
        let armed = match &mut self.vf {
            Some(vf) if !vf.is_stopped() => vf.arm(),
            _ => Ok(false),
        };
        match armed {
            Ok(true) => return,
            Ok(false) => {}
            // What is wrong shows among the events.
            Err(_) => return,
        }
        // What the guest has sent cannot be taken then, and must not end the sleep.
        let no_room = limit <= NO_ROOM;
        if !no_room && self.interface.is_ready() {
            return;
        }
        self.publish();
        let limit =
            if self.vf.as_ref().is_none_or(VfPath::is_stopped) { limit.min(RETRY) } else { limit };
        let mut set = Vec::with_capacity(24);
        set.push(PollFd::new(&self.shared.wake, PollFlags::IN));
        if !no_room {
            set.push(PollFd::from_borrowed_fd(self.interface.fd(), PollFlags::IN));
        }
        if let Some(vf) = &self.vf {
            set.extend(vf.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut set, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => self.fail(format!("the carrier cannot sleep: {error}")),
        }
        clear(&self.shared.wake);
        if let Some(vf) = &mut self.vf {
            vf.acknowledge();
        }
    }

    /// The carrier cannot go on; the VM's main thread ends the VM.
    fn fail(&mut self, problem: String) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.tell(Notice::Failed(problem));
    }

    fn tell(&self, notice: Notice) {
        if self.notices.send(notice).is_ok() {
            signal(&self.shared.notice);
        }
    }
}
