//! Which path an adapter's frames take: the synthetic one, the VF, or for a moment none.
//!
//! A state machine without I/O and without a clock. What happens is told to it by its methods; what is to be done comes
//! out as [`Effect`]s; where to send is a question ([`Selection::transmit`]).
//!
//! A graceful move away from the VF has these steps, each with a limit:
//!
//! | state | what happens | ends with |
//! | --- | --- | --- |
//! | `Draining` | nothing is taken from the guest; the VF reports its transmit rings back | `drained` |
//! | `Leaving` | NetVSC asks the host for the synthetic path, and sends there | the host's answer |
//! | `Emptying` | only if the VF is to be given back: what is in its receive rings is taken | `emptied` |
//!
//! On the way to the VF the order of frames is kept likewise: after the host's answer nothing is taken from the guest
//! until the host has taken what is in the synthetic adapter's rings; and where the host wants the path back, nothing is
//! taken until the VF has reported its rings back.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use netvsp::client::VfPath as NetVscPath;
use netvsp_protocol::nvsp::DataPath as NvspPath;

use crate::{DataPath, DataPathStatistics};

/// How long a VF may take to report its transmit rings back. It takes microseconds; one that hangs is left all the same.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How long what is in the transmit rings of the path that was left may take, before the other one is used.
const SETTLE_LIMIT: Duration = Duration::from_millis(20);
/// How long the host may take to answer a request to move the data path.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long frames may still come by a VF that the host has moved the adapter's filters away from.
const EMPTY_LIMIT: Duration = Duration::from_millis(200);

/// What becomes of a VF that is left.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Then {
    /// It stays, unused.
    Stay,
    /// It is given back.
    Return,
}

impl Then {
    /// Of two wishes the one that goes further.
    fn or(self, other: Self) -> Self {
        if self == Self::Return { self } else { other }
    }
}

/// Where the VF is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Vf {
    /// There is none.
    Absent,
    /// Its driver runs; NetVSC believes that it is down.
    Unused,
    /// NetVSC was told that its driver is up.
    Used,
    Draining(Then, Instant),
    Leaving(Then, Instant),
    Emptying(Instant),
}

/// What is to be done.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Effect {
    /// Tell NetVSC that the VF's driver is up or down.
    VfDriver(bool),
    /// Give the VF back.
    ReturnVf,
}

/// Where the guest's packets go.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Transmit {
    /// There is no path: they are lost.
    Nowhere,
    /// They wait a moment in the guest's queue.
    Hold,
    /// There.
    On(DataPath),
}

/// A move that was asked for.
#[derive(Copy, Clone, Debug)]
struct Move {
    to: DataPath,
    asked: Instant,
}

/// The selection of one adapter.
#[derive(Debug)]
pub(super) struct Selection {
    /// Whether the guest wants the VF's driver up.
    wanted: bool,
    /// The synthetic adapter's link, while it is up.
    synthetic: Option<bool>,
    vf: Vf,
    vf_link: bool,
    /// What NetVSC says.
    netvsc: NetVscPath,
    /// The path that was left and whose transmit rings are waited for, and until when.
    settling: Option<(DataPath, Instant)>,
    /// The path that was left, from which groups are still taken: what came there before the move came nowhere else.
    late_groups: Option<(DataPath, Instant)>,
    moving: Option<Move>,
    effects: VecDeque<Effect>,
    statistics: DataPathStatistics,
    /// What [`Self::take_changed`] saw last.
    shown: (Transmit, DataPathStatistics),
}

impl Selection {
    pub(super) fn new() -> Self {
        Self {
            wanted: true,
            synthetic: None,
            vf: Vf::Absent,
            vf_link: false,
            netvsc: NetVscPath::Synthetic,
            settling: None,
            late_groups: None,
            moving: None,
            effects: VecDeque::new(),
            statistics: DataPathStatistics::default(),
            shown: (Transmit::Nowhere, DataPathStatistics::default()),
        }
    }

    /// What is to be done next.
    pub(super) fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether a move is waiting for its first frame.
    pub(super) fn is_moving(&self) -> bool {
        self.moving.is_some()
    }

    /// Whether the path that is sent on, or what was counted, is another than at the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        let now = (self.transmit(), self.statistics);
        std::mem::replace(&mut self.shown, now) != now
    }

    /// How the path moved.
    pub(super) fn statistics(&self) -> DataPathStatistics {
        self.statistics
    }

    /// The synthetic adapter is up, and its link is, or is not. Also when the link changes.
    pub(super) fn synthetic_up(&mut self, link: bool) {
        self.synthetic = Some(link);
        self.step();
    }

    /// The synthetic adapter is gone.
    pub(super) fn synthetic_gone(&mut self, now: Instant) {
        if self.synthetic.take().is_some() && self.vf_usable() {
            self.statistics.synthetic_lost += 1;
        }
        self.netvsc = NetVscPath::Synthetic;
        self.settling = None;
        self.late_groups = None;
        self.moving = None;
        match self.vf {
            // There is nobody to be asked.
            Vf::Leaving(then, _) => self.left(then, now),
            Vf::Used => self.vf = Vf::Unused,
            _ => {}
        }
    }

    /// A VF is there, and its driver runs.
    pub(super) fn vf_up(&mut self, link: bool) {
        self.vf = Vf::Unused;
        self.vf_link = link;
        self.step();
    }

    /// The VF's link changed.
    pub(super) fn vf_link(&mut self, link: bool, now: Instant) {
        self.vf_link = link;
        if !link {
            // Nothing of what is in its rings goes out now.
            self.leave(Then::Stay, now, false);
        }
        self.step();
    }

    /// The VF vanished.
    pub(super) fn vf_gone(&mut self) {
        let in_use = matches!(self.netvsc, NetVscPath::Vf | NetVscPath::AskedForSynthetic);
        if self.vf != Vf::Absent && in_use {
            self.statistics.surprises += 1;
        }
        self.vf = Vf::Absent;
        self.vf_link = false;
        self.settling = None;
    }

    /// The VF is to be given back: at leisure, or at once where its queues stand still.
    pub(super) fn return_vf(&mut self, stopped: bool, now: Instant) {
        self.leave(Then::Return, now, !stopped);
    }

    /// The guest wants the VF's driver up or down.
    pub(super) fn set_vf(&mut self, up: bool, now: Instant) {
        self.wanted = up;
        if !up {
            self.leave(Then::Stay, now, true);
        }
        self.step();
    }

    /// Whether the wish of [`Self::set_vf`] is fulfilled: `None` while it is under way, false if it cannot be.
    pub(super) fn vf_is_set(&self, up: bool) -> Option<bool> {
        match (self.vf, up) {
            (Vf::Draining(..) | Vf::Leaving(..), _) => None,
            (_, false) => match self.netvsc {
                NetVscPath::Synthetic => Some(true),
                _ => None,
            },
            (Vf::Absent | Vf::Emptying(_), true) => Some(false),
            (Vf::Unused | Vf::Used, true) if self.synthetic.is_none() => Some(self.vf_usable()),
            (Vf::Unused, true) => Some(false),
            (Vf::Used, true) => match self.netvsc {
                NetVscPath::Vf if self.settling.is_some() => None,
                NetVscPath::Vf => Some(true),
                NetVscPath::AskedForVf | NetVscPath::AskedForSynthetic => None,
                // The host has not associated it, or has taken the path back.
                NetVscPath::Synthetic => Some(false),
            },
        }
    }

    /// Where NetVSC is. To be told after whatever may have changed it.
    pub(super) fn netvsc(&mut self, path: NetVscPath, now: Instant) {
        let before = std::mem::replace(&mut self.netvsc, path);
        if before == path || self.synthetic.is_none() {
            return;
        }
        match path {
            NetVscPath::AskedForVf => {
                self.moving = Some(Move { to: DataPath::Vf, asked: now });
            }
            NetVscPath::AskedForSynthetic => {
                // What vanished was not moved away from.
                self.moving =
                    (self.vf != Vf::Absent).then_some(Move { to: DataPath::Synthetic, asked: now });
                // If it is the host that wants it, the VF's rings are as full as they are.
                self.settling = (self.vf == Vf::Used && before == NetVscPath::Vf)
                    .then_some((DataPath::Vf, now + SETTLE_LIMIT));
            }
            NetVscPath::Vf => {
                self.statistics.to_vf += 1;
                self.settling = Some((DataPath::Synthetic, now + SETTLE_LIMIT));
                self.late_groups = Some((DataPath::Synthetic, now + SETTLE_LIMIT));
            }
            NetVscPath::Synthetic => {
                self.settling = self.settling.filter(|(path, _)| *path == DataPath::Vf);
                self.late_groups = Some((DataPath::Vf, now + EMPTY_LIMIT));
                match before {
                    // If the VF vanished, that was counted then.
                    _ if self.vf == Vf::Absent => {}
                    NetVscPath::AskedForSynthetic => self.statistics.to_synthetic += 1,
                    NetVscPath::Vf => self.statistics.surprises += 1,
                    _ => {}
                }
            }
        }
        if let Vf::Leaving(then, _) = self.vf
            && path == NetVscPath::Synthetic
        {
            self.left(then, now);
        }
    }

    /// The path whose transmit rings are waited for.
    pub(super) fn draining(&self) -> Option<DataPath> {
        match self.vf {
            Vf::Draining(..) => Some(DataPath::Vf),
            _ => self.settling.map(|(path, _)| path),
        }
    }

    /// Nothing is left in the transmit rings of that path.
    pub(super) fn drained(&mut self, now: Instant) {
        match self.vf {
            Vf::Draining(then, _) => self.ask_to_leave(then, now),
            _ => self.settling = None,
        }
    }

    /// The path whose receive rings are to be seen empty.
    pub(super) fn emptying(&self) -> Option<DataPath> {
        match self.vf {
            Vf::Emptying(_) => Some(DataPath::Vf),
            _ => self.late_groups.map(|(path, _)| path),
        }
    }

    /// Nothing is left in the receive rings of that path.
    pub(super) fn emptied(&mut self, path: DataPath) {
        if self.late_groups.is_some_and(|(late, _)| late == path) {
            self.late_groups = None;
        }
        if path == DataPath::Vf && matches!(self.vf, Vf::Emptying(_)) {
            self.vf = Vf::Absent;
            self.vf_link = false;
            self.effects.push_back(Effect::ReturnVf);
        }
    }

    /// A frame was handed to `path`, or could have been, had there been one (`idle`).
    pub(super) fn sent(&mut self, path: DataPath, idle: bool, now: Instant) {
        let Some(Move { to, asked }) = self.moving else { return };
        let arrived = match to {
            DataPath::Vf => self.netvsc == NetVscPath::Vf,
            DataPath::Synthetic => self.netvsc == NetVscPath::Synthetic || !idle,
        };
        if to == path && arrived {
            let took = now.saturating_duration_since(asked).as_micros();
            self.statistics.last_us = u64::try_from(took).unwrap_or(u64::MAX);
            self.statistics.worst_us = self.statistics.worst_us.max(self.statistics.last_us);
            self.moving = None;
        }
    }

    /// Time has passed: limits may be over.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.settling.is_some_and(|(_, limit)| now >= limit) {
            self.statistics.timeouts += 1;
            self.settling = None;
        }
        if self.late_groups.is_some_and(|(_, limit)| now >= limit) {
            self.late_groups = None;
        }
        match self.vf {
            Vf::Draining(then, limit) if now >= limit => {
                self.statistics.timeouts += 1;
                self.ask_to_leave(then, now);
            }
            Vf::Leaving(then, limit) if now >= limit => {
                self.statistics.timeouts += 1;
                self.left(then, now);
            }
            Vf::Emptying(limit) if now >= limit => {
                self.statistics.timeouts += 1;
                self.emptied(DataPath::Vf);
            }
            _ => {}
        }
    }

    /// Where the guest's packets go.
    pub(super) fn transmit(&self) -> Transmit {
        if matches!(self.vf, Vf::Draining(..)) || self.settling.is_some() {
            return Transmit::Hold;
        }
        match self.synthetic {
            None if self.vf_usable() => Transmit::On(DataPath::Vf),
            None => Transmit::Nowhere,
            Some(link) => match (self.netvsc.transmit(), self.vf) {
                (NvspPath::Vf, Vf::Used) => Transmit::On(DataPath::Vf),
                _ if link => Transmit::On(DataPath::Synthetic),
                _ => Transmit::Nowhere,
            },
        }
    }

    /// Whether frames to groups are taken from `path`: on the other one comes another copy.
    pub(super) fn takes_groups(&self, path: DataPath) -> bool {
        if self.late_groups.is_some_and(|(late, _)| late == path) {
            return true;
        }
        let current = match (self.synthetic, self.vf, self.netvsc) {
            (_, Vf::Absent, _) => DataPath::Synthetic,
            (None, ..) => DataPath::Vf,
            (_, _, NetVscPath::Vf | NetVscPath::AskedForSynthetic) => DataPath::Vf,
            (_, _, NetVscPath::Synthetic | NetVscPath::AskedForVf) => DataPath::Synthetic,
        };
        path == current
    }

    fn vf_usable(&self) -> bool {
        self.wanted && self.vf_link && matches!(self.vf, Vf::Unused | Vf::Used)
    }

    /// Uses a VF that may be used.
    fn step(&mut self) {
        if self.vf == Vf::Unused && self.vf_usable() && self.synthetic.is_some() {
            self.vf = Vf::Used;
            self.effects.push_back(Effect::VfDriver(true));
        }
    }

    /// Begins to leave the VF; `drain` if its transmit rings can be waited for.
    fn leave(&mut self, then: Then, now: Instant, drain: bool) {
        self.vf = match (self.vf, then) {
            (Vf::Used, then) if self.netvsc == NetVscPath::Vf && drain => {
                Vf::Draining(then, now + DRAIN_LIMIT)
            }
            (Vf::Unused, Then::Return) if drain && self.synthetic.is_none() => {
                Vf::Draining(then, now + DRAIN_LIMIT)
            }
            (Vf::Draining(before, _), then) if !drain => {
                return self.ask_to_leave(before.or(then), now);
            }
            (Vf::Draining(before, limit), then) => Vf::Draining(before.or(then), limit),
            (Vf::Leaving(before, limit), then) => Vf::Leaving(before.or(then), limit),
            (Vf::Used, then) => return self.ask_to_leave(then, now),
            (Vf::Unused, Then::Return) => return self.left(then, now),
            (vf, _) => vf,
        };
    }

    fn ask_to_leave(&mut self, then: Then, now: Instant) {
        if self.synthetic.is_none() {
            return self.left(then, now);
        }
        self.effects.push_back(Effect::VfDriver(false));
        if self.netvsc == NetVscPath::Synthetic {
            self.left(then, now);
        } else {
            self.vf = Vf::Leaving(then, now + ANSWER_LIMIT);
        }
    }

    /// Nothing comes to the VF any more.
    fn left(&mut self, then: Then, now: Instant) {
        self.vf = match then {
            Then::Stay => Vf::Unused,
            Then::Return => Vf::Emptying(now + EMPTY_LIMIT),
        };
        self.step();
    }
}

#[cfg(test)]
mod tests;
