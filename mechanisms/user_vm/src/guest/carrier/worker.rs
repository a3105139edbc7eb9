//! The carrier's thread: frames between the interface and its paths, and sleep between them.

use std::{
    io,
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    time::{Duration, Instant},
};

use linux_network::{NetworkError, RouteSocket};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{CarrierConfig, Command, Notice, Shared, VfEnd, VfSource, clear};
use crate::{
    CarrierDirection, DataPath, Drops,
    guest::{
        filters::{KernelFilters, Wanted},
        frames::{BURST, Frames},
        interface::GuestInterface,
        paths::{Selection, Transmit},
        synthetic::SyntheticPath,
        translate::{Limits, Refusal, WirePacket, to_path},
        vf::{Totals, VfPath},
    },
};

/// Rounds without a packet after which the carrier goes to sleep.
const IDLE_ROUNDS: u32 = 64;
/// The longest sleep: the guest's filters are looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// The longest sleep while the path takes nothing.
const NO_ROOM: Duration = Duration::from_millis(1);
/// How often a VF that is gone is looked for, and a failed rebuild is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// Bytes of the longest frame of any path, with a tag, for the memory of received bursts.
const LONGEST_FRAME: usize = 16_383;

/// The carrier's thread.
pub(super) struct Worker {
    pub(super) vf: Option<VfPath>,
    /// The serial number of a VF that came by a command.
    pub(super) serial: Option<u32>,
    /// Why the VF is to be given back.
    pub(super) vf_end: VfEnd,
    pub(super) source: Option<VfSource>,
    pub(super) synthetic: Option<SyntheticPath>,
    pub(super) selection: Selection,
    pub(super) interface: Box<dyn GuestInterface>,
    pub(super) filters: KernelFilters,
    /// What the interface wanted when it was last looked at.
    pub(super) wanted: Wanted,
    frames: Frames,
    pub(super) commands: Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) tell: Box<dyn Fn(Notice) + Send>,
    /// What the driver had counted when its counts were last passed on.
    pub(super) totals: Totals,
    /// Packets of the guest that were known to be missed.
    pub(super) missed: u64,
    /// Whether the interface has a carrier.
    pub(super) carrier: bool,
    /// When to try again what failed.
    pub(super) next_attempt: Instant,
    pub(super) failed_rebuilds: u32,
    /// Requests to bring the VF's driver up or down that are not answered.
    pub(super) requests: Vec<(u64, bool)>,
}

impl Drop for Worker {
    /// A carrier that panics takes the VM with it, instead of leaving one whose interface is dead.
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.tell)(Notice::Failed("the carrier panicked".to_owned()));
        }
    }
}

/// What one round moved.
#[derive(Copy, Clone, Default, Debug)]
pub(super) struct Round {
    /// Packets taken from the guest.
    pub(super) taken: usize,
    /// Frames that came by each path.
    pub(super) from_vf: usize,
    pub(super) from_synthetic: usize,
    /// Whether the guest's packets can be taken: not so while a ring is full, or a path is about to change.
    pub(super) open: bool,
}

impl Worker {
    pub(super) fn new(
        config: CarrierConfig,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Result<Self, NetworkError> {
        let CarrierConfig { vf, interface, name, index, tell } = config;
        let (vf, source) = vf.map_or((None, None), |(vf, source)| (Some(vf), Some(source)));
        let mut worker = Self {
            vf,
            serial: None,
            vf_end: VfEnd::Ejected,
            source,
            synthetic: None,
            selection: Selection::new(),
            interface,
            filters: KernelFilters::new(&name, index, RouteSocket::open()?),
            wanted: Wanted::default(),
            frames: Frames::new(LONGEST_FRAME),
            commands,
            shared,
            tell,
            totals: Totals::default(),
            missed: 0,
            carrier: false,
            next_attempt: Instant::now(),
            failed_rebuilds: 0,
            requests: Vec::new(),
        };
        if worker.vf.is_some() {
            worker.settle_vf()?;
            worker.follow_selection();
        }
        Ok(worker)
    }

    pub(super) fn run(mut self) {
        let mut idle_rounds = 0;
        let mut next_tick = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let emptying = self.selection.emptying();
            let (taken, open) = self.carry_from_guest();
            let round = Round {
                taken,
                from_vf: self.carry_from_vf(),
                from_synthetic: self.carry_from_synthetic(),
                open,
            };
            self.look_after_paths(now, emptying, round);
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick();
            }
            let moved = round.taken + round.from_vf + round.from_synthetic;
            idle_rounds = if moved > 0 { 0 } else { idle_rounds + 1 };
            if idle_rounds > IDLE_ROUNDS && self.selection.draining().is_none() {
                idle_rounds = 0;
                let mut limit = next_tick.saturating_duration_since(now);
                if !round.open {
                    limit = limit.min(NO_ROOM);
                }
                self.sleep(limit, round.open);
            } else if moved == 0 {
                std::thread::yield_now();
            }
        }
        self.end();
    }

    /// Moves a burst of the guest's packets to the path that is in use. Returns how many were taken from the guest, and
    /// whether more can be.
    fn carry_from_guest(&mut self) -> (usize, bool) {
        let Self { vf, synthetic, interface, .. } = self;
        let interface = &mut **interface;
        let mut burst = Burst::default();
        let path = match self.selection.transmit() {
            Transmit::Hold => return (0, false),
            Transmit::Nowhere => None,
            Transmit::On(path) => Some(path),
        };
        let taken = match (path, vf, synthetic) {
            (Some(DataPath::Vf), Some(vf), _) if !vf.is_stopped() => {
                let limits = vf.limits().clone();
                let taken = burst.take(interface, &limits, |packet| vf.send(packet));
                vf.flush();
                taken
            }
            // A VF in reset comes back in a moment, or is left; then what waits is taken.
            (Some(DataPath::Vf), ..) => return (0, false),
            (Some(DataPath::Synthetic), _, Some(synthetic)) => {
                let limits = synthetic.limits().clone();
                let taken = burst.take(interface, &limits, |packet| synthetic.send(packet));
                burst.full |= !synthetic.flush();
                taken
            }
            _ => interface.receive(BURST, &mut |_| {
                burst.counts.drops.no_link += 1;
                true
            }),
        };
        let Burst { counts, full } = burst;
        if counts != CarrierDirection::default() {
            self.shared.counters.from_guest.add(&counts);
        }
        if let Some(path) = path {
            self.shared.counters.path(path).transmitted(&counts);
            let idle = matches!(taken, Ok(0)) && !full;
            if (counts.packets > 0 || idle) && self.selection.is_moving() {
                self.selection.sent(path, idle, Instant::now());
            }
        }
        match taken {
            Ok(taken) => (taken, !full),
            Err(error) => {
                self.fail(format!("the guest's interface can no longer be read: {error}"));
                (0, true)
            }
        }
    }

    /// Moves a burst of frames that came by the VF to the guest; returns how many came.
    fn carry_from_vf(&mut self) -> usize {
        let Some(vf) = &mut self.vf else {
            return 0;
        };
        let groups = self.selection.takes_groups(DataPath::Vf);
        let mut drops = Drops::default();
        let received = vf.receive(&mut self.frames, groups, &mut drops);
        let Self { frames, interface, shared, .. } = self;
        deliver(frames, &mut **interface, shared, DataPath::Vf, drops);
        shared.counters.path(DataPath::Vf).other_path_groups(received.groups);
        received.frames
    }

    /// Moves the frames that came by the synthetic path to the guest; returns how many came.
    fn carry_from_synthetic(&mut self) -> usize {
        let Self { frames, interface, shared, selection, synthetic, .. } = self;
        let Some(synthetic) = synthetic else {
            return 0;
        };
        let groups = selection.takes_groups(DataPath::Synthetic);
        let received = synthetic.receive(frames, groups, |frames| {
            let path = DataPath::Synthetic;
            deliver(frames, &mut **interface, shared, path, Drops::default());
        });
        shared.counters.path(DataPath::Synthetic).other_path_groups(received.groups);
        if received.too_long > 0 {
            let drops = Drops { too_long: received.too_long, ..Drops::default() };
            shared.counters.to_guest.add(&CarrierDirection { drops, ..Default::default() });
        }
        // What is no frame moves things along as well.
        received.frames + usize::from(received.more)
    }

    /// Sleeps until something happens, or `limit` has passed. Without `open`, what the guest has sent cannot be taken,
    /// and must not end the sleep.
    fn sleep(&mut self, limit: Duration, open: bool) {
        let mut ready = match &mut self.vf {
            // What is wrong shows among the events.
            Some(vf) if !vf.is_stopped() => vf.arm().unwrap_or(true),
            _ => false,
        };
        if let Some(synthetic) = &mut self.synthetic {
            ready |= !synthetic.arm();
        }
        ready |= open && self.interface.is_ready();
        if !ready {
            self.publish();
            self.wait(limit, open);
        }
        clear(&self.shared.wake);
        if let Some(vf) = &mut self.vf {
            vf.acknowledge();
        }
        if let Some(synthetic) = &mut self.synthetic {
            synthetic.acknowledge();
        }
    }

    fn wait(&mut self, limit: Duration, open: bool) {
        let searching = self.source.is_some() && self.vf.as_ref().is_none_or(VfPath::is_stopped);
        let limit = if searching { limit.min(RETRY) } else { limit };
        let mut set = Vec::with_capacity(32);
        set.push(PollFd::new(&self.shared.wake, PollFlags::IN));
        if open {
            set.push(PollFd::from_borrowed_fd(self.interface.fd(), PollFlags::IN));
        }
        if let Some(vf) = &self.vf {
            set.extend(vf.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        if let Some(synthetic) = &self.synthetic {
            let fds = synthetic.descriptors();
            set.extend(fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut set, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => self.fail(format!("the carrier cannot sleep: {error}")),
        }
    }

    /// The carrier cannot go on; the VM's main thread ends the VM.
    pub(super) fn fail(&mut self, problem: String) {
        self.shared.stop.store(true, Ordering::Relaxed);
        (self.tell)(Notice::Failed(problem));
    }
}

/// What a burst of the guest's packets comes to.
#[derive(Default, Debug)]
struct Burst {
    counts: CarrierDirection,
    /// The path has no room for the next.
    full: bool,
}

impl Burst {
    /// Hands packets to a path until it takes no more; what it does not take stays with the interface.
    fn take(
        &mut self,
        interface: &mut dyn GuestInterface,
        limits: &Limits,
        mut send: impl FnMut(&WirePacket<'_>) -> bool,
    ) -> io::Result<usize> {
        let Self { counts, full } = self;
        interface.receive(BURST, &mut |packet| {
            match to_path(packet, limits) {
                Ok(wire) => {
                    if !send(&wire) {
                        *full = true;
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
        })
    }
}

/// Gives received frames to the guest, and counts them.
fn deliver(
    frames: &mut Frames,
    interface: &mut dyn GuestInterface,
    shared: &Shared,
    path: DataPath,
    drops: Drops,
) {
    let mut counts = CarrierDirection { drops, ..CarrierDirection::default() };
    if frames.len() > 0 {
        shared.counters.path(path).received(frames.len() as u64, frames.bytes());
        let (count, bytes) = interface.transmit(frames, &mut counts.drops);
        (counts.packets, counts.frames, counts.bytes) = (count, count, bytes);
        frames.clear();
    }
    if counts != CarrierDirection::default() {
        shared.counters.to_guest.add(&counts);
    }
}
