//! One VM network adapter: its state, the facts it knows, and how it moves.
//!
//! The state changes by [`NetworkAdapter::step`] alone, one row of the table at a time. Requests to the NIC and reports of
//! the guest's ends only change facts (`absorb.rs`), and what the table calls for is done by `act.rs`. Three rules stand
//! around the table:
//!
//! 1. *one at a time*: while a request of the adapter is outstanding nothing settles, and while a refused step waits to be
//!    tried again neither; a NIC that is gone takes both away;
//! 2. *announce*: a guest whose NetVSC comes up while a VF is offered to it is told (`announce`);
//! 3. *answer*: a guest that asks for a data path it is on, or cannot have, is answered at once (`answer`).
//!
//! # Transitions
#![doc = include_str!("transitions.md")]

mod absorb;
mod act;
mod pairs;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod upkeep;

pub use state::{ActiveStep, AllocatingStep, OfferedStep, RevokingStep, State, SyntheticStep};

use ndis_protocol::{
    FilterId, FilterMatch, InterruptModeration, MacAddress, RequestorId, VPortId, VfId,
};

use crate::effect::MitigatedRanges;
use crate::nic::NicFacts;
use crate::outbox::Outbox;
use crate::{
    AdapterConfig, AdapterId, AdapterKind, DataPath, Event, GuestProgress, NetVspCommand, NicId,
    Reason, RequestId, Time, Timeouts, VPortPolicy, VfSerial, VmConfig,
};
use table::{On, When};

/// What desired state and facts call for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    /// A VF.
    Vf,
    /// The synthetic path.
    Synthetic,
    /// The synthetic path, without waiting for the guest.
    SyntheticNow,
}

/// A receive filter that is set.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) id: FilterId,
    pub(crate) matches: FilterMatch,
    pub(crate) vport: VPortId,
}

/// The VF of an adapter.
#[derive(Clone, Debug)]
pub(crate) struct VirtualFunction {
    pub(crate) id: VfId,
    pub(crate) requestor_id: RequestorId,
    pub(crate) serial: VfSerial,
    /// What of the configuration is fixed for the life of the VF.
    pub(crate) mac: MacAddress,
    pub(crate) queue_pairs_requested: u32,
}

/// The VPort of an adapter's VF.
#[derive(Clone, Debug)]
pub(crate) struct VPort {
    pub(crate) id: VPortId,
    pub(crate) queue_pairs: u32,
    pub(crate) moderation: InterruptModeration,
    pub(crate) policy: Option<VPortPolicy>,
}

/// Mitigated ranges of an adapter's VF.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    /// Those that apply.
    pub(crate) applied: MitigatedRanges,
    /// They may have changed since.
    pub(crate) stale: bool,
    /// The long poll for changes.
    pub(crate) poll: Option<RequestId>,
    /// BARs that are still to be asked for, with their counts; and what was answered so far.
    pub(crate) asking: Vec<(u8, u32)>,
    pub(crate) answered: MitigatedRanges,
}

/// The guest's NetVSC, as its NetVSP end reports it.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum NetVsc {
    #[default]
    Closed,
    Ready {
        sriov: bool,
    },
}

/// The VPCI device in the partition's host side.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Device {
    #[default]
    Absent,
    Offering,
    Present,
    Removing,
}

/// What the adapter knows of its guest.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Guest {
    pub(crate) netvsc: NetVsc,
    /// Serial number of the VF that it is, or was last, offered.
    pub(crate) serial: Option<VfSerial>,
    /// Whether the guest was told that there is a VF.
    pub(crate) told: bool,
    pub(crate) path: DataPath,
    /// What the guest asks for and waits for.
    pub(crate) asks: Option<DataPath>,
    pub(crate) device: Device,
    pub(crate) progress: GuestProgress,
    pub(crate) eject_asked: bool,
    pub(crate) ejected: bool,
    /// It was told of its VF, and has not used it in time. It may still do so.
    pub(crate) silent: bool,
    /// It did not leave its VF when it was asked to: Linux only leaves one that it is to give up.
    pub(crate) leaves_only_ejected: bool,
}

/// What can end a hold-off.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum HoldOffKind {
    /// The NIC has refused something, or failed.
    Nic,
    /// The guest, or its host side, has not answered.
    Guest,
}

/// Why an adapter stays without VF although nothing else stands against it.
#[derive(Clone, Debug)]
pub(crate) struct HoldOff {
    pub(crate) kind: HoldOffKind,
    pub(crate) reason: Reason,
    pub(crate) until: Option<Time>,
}

/// Deadlines, each for one thing that is waited for.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Deadlines {
    pub(crate) expose: Option<Time>,
    pub(crate) offer: Option<Time>,
    pub(crate) switch: Option<Time>,
    pub(crate) eject: Option<Time>,
    pub(crate) remove: Option<Time>,
    pub(crate) retry: Option<Time>,
}

impl Deadlines {
    /// That of what a state waits for.
    fn of(&mut self, state: State) -> &mut Option<Time> {
        match state {
            State::Offered(OfferedStep::Exposing) => &mut self.expose,
            State::Offered(OfferedStep::Waiting) => &mut self.offer,
            State::Revoking(RevokingStep::Switch) => &mut self.switch,
            State::Revoking(RevokingStep::Eject) => &mut self.eject,
            State::Revoking(RevokingStep::Device) => &mut self.remove,
            _ => &mut self.retry,
        }
    }
}

/// A VM network adapter.
#[derive(Clone, Debug)]
pub(crate) struct NetworkAdapter {
    pub(crate) id: AdapterId,
    pub(crate) config: AdapterConfig,
    pub(crate) removed: bool,
    pub(crate) extension_revoked: bool,
    pub(crate) state: State,
    pub(crate) deadlines: Deadlines,
    pub(crate) request: Option<RequestId>,
    /// The NIC on which it has filters or a VF.
    pub(crate) home: Option<NicId>,
    pub(crate) filters: Vec<Filter>,
    pub(crate) vf: Option<VirtualFunction>,
    pub(crate) vport: Option<VPort>,
    pub(crate) ranges: Ranges,
    pub(crate) guest: Guest,
    pub(crate) hold_off: Option<HoldOff>,
    /// Why its VF could not be offered, as the host side said last.
    pub(crate) offer_error: Option<String>,
    /// A refusal met in upkeep or teardown, and when what was refused is tried again.
    pub(crate) refusal: Option<(Reason, Time)>,
    /// Queue pairs with which the VPort is tried at most, after refusals; and those of the last try.
    pub(crate) pairs_limit: Option<u32>,
    pub(crate) pairs_tried: u32,
    /// Since when, in turns, it waits for a VF.
    pub(crate) turn: Option<u64>,
    /// What was last published.
    pub(crate) published: Vec<Reason>,
}

/// What a step may look at, and where its effects go.
pub(crate) struct Context<'a> {
    pub(crate) now: Time,
    pub(crate) timeouts: &'a Timeouts,
    pub(crate) want: Want,
    /// Reasons that block, for those who ask why.
    pub(crate) blocking: &'a [Reason],
    /// What is known of the adapter's NIC, or of the one it is to get its VF from.
    pub(crate) nic: Option<(NicId, &'a NicFacts)>,
    /// VFs of the NIC that adapters of this stack hold.
    pub(crate) held: u32,
    /// Another adapter waits for a VF that is not used.
    pub(crate) contended: bool,
    /// Queue pairs of the NIC that are left for this adapter, and those that its VPorts must all have.
    pub(crate) pairs: pairs::PairsLeft,
    /// The filters that are to be set, on which NIC; `None`: they stay as they are.
    pub(crate) filters: Option<(NicId, &'a [FilterMatch])>,
    /// Names of the VM, as the NIC is told them.
    pub(crate) vm: &'a VmConfig,
    pub(crate) out: &'a mut Outbox,
}

pub(crate) use pairs::PairsLeft;

impl NetworkAdapter {
    pub(crate) fn new(id: AdapterId, config: AdapterConfig) -> Self {
        Self {
            id,
            config,
            removed: false,
            extension_revoked: false,
            state: State::START,
            deadlines: Deadlines::default(),
            request: None,
            home: None,
            filters: Vec::new(),
            vf: None,
            vport: None,
            ranges: Ranges::default(),
            guest: Guest::default(),
            hold_off: None,
            offer_error: None,
            refusal: None,
            pairs_limit: None,
            pairs_tried: 0,
            turn: None,
            published: Vec::new(),
        }
    }

    /// Whether nothing is going on and nothing is held.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::START && self.request.is_none()
    }

    /// Number of the VPort of the VF.
    fn out(&self) -> Option<VPortId> {
        self.vport.as_ref().map(|vport| vport.id)
    }

    fn filters_out(&self) -> bool {
        self.out().is_some_and(|out| self.filters.iter().all(|filter| filter.vport == out))
    }

    fn filters_home(&self) -> bool {
        self.filters.iter().all(|filter| filter.vport.is_default())
    }

    /// Whether a condition of the table holds.
    fn holds(&self, when: When, cx: &Context<'_>) -> bool {
        let guest = &self.guest;
        match when {
            When::Wanted => cx.want == Want::Vf,
            When::Unwanted => cx.want != Want::Vf,
            When::Urgent => cx.want == Want::SyntheticNow,
            When::UpkeepDue => self.upkeep(cx).is_some(),
            When::VfGone => self.vf.is_none(),
            When::VPortGone => self.vport.is_none(),
            When::FewerPairs => {
                cx.pairs.symmetric.is_none()
                    && self.pairs_limit.is_some_and(|limit| (1..self.pairs_tried).contains(&limit))
            }
            When::FiltersOut => self.filters_out(),
            When::FiltersHome => self.filters_home(),
            When::DeviceOffered => guest.device == Device::Present,
            When::DeviceGone => guest.device == Device::Absent,
            When::GuestAsksVf => {
                guest.asks == Some(DataPath::Vf) && guest.path == DataPath::Synthetic
            }
            When::GuestLeaves => match guest.path {
                DataPath::Vf => guest.asks == Some(DataPath::Synthetic),
                // It started anew.
                DataPath::Synthetic => {
                    matches!(self.state, State::Active(_) | State::Revoking(RevokingStep::Switch))
                }
            },
            When::GuestListens => {
                matches!(guest.netvsc, NetVsc::Ready { .. })
                    && !guest.leaves_only_ejected
                    && self.config.kind != AdapterKind::VhostUser
            }
            When::GuestEjected => guest.ejected || guest.device == Device::Absent,
            When::Spared => guest.silent && cx.contended,
        }
    }

    /// The deadline of what the state waits for.
    pub(crate) fn deadline(&self) -> Option<Time> {
        if self.request.is_some() {
            None
        } else {
            {
                let mut deadlines = self.deadlines;
                *deadlines.of(self.state)
            }
        }
    }

    /// When the adapter wants to be looked at again, if nothing happens before.
    pub(crate) fn next_time(&self) -> Option<Time> {
        let hold_off = self.hold_off.as_ref().and_then(|hold_off| hold_off.until);
        let refusal = self.refusal.as_ref().map(|(_, until)| *until);
        [self.deadline(), hold_off, refusal].into_iter().flatten().min()
    }

    /// Takes one transition, if one is due; says whether it did.
    pub(crate) fn settle(&mut self, cx: &mut Context<'_>) -> bool {
        if self.request.is_none() {
            if self.deadline().is_some_and(|deadline| deadline <= cx.now)
                && self.step(On::TimedOut, cx)
            {
                return true;
            }
            if self.deadlines.retry.is_none() && self.step(On::Settle, cx) {
                return true;
            }
        }
        self.announce(cx) | self.answer(cx)
    }

    /// The step's request was refused.
    pub(crate) fn refused(&mut self, cx: &mut Context<'_>) {
        self.step(On::Refused, cx);
    }

    fn step(&mut self, on: On, cx: &mut Context<'_>) -> bool {
        let Some(row) = table::find(self.state, on, |when| self.holds(when, cx)) else {
            return false;
        };
        let from = self.state;
        if on == On::TimedOut {
            *self.deadlines.of(from) = None;
        }
        self.state = row.to;
        for action in row.does {
            self.act(*action, from, cx);
        }
        if row.to != from {
            let state_changed = Event::StateChanged { adapter: self.id, from, to: row.to };
            cx.out.publish(state_changed);
            if row.to.phase() == "Revoking" && from.phase() != "Revoking" {
                self.publish_revocation(cx);
            }
        }
        true
    }

    fn publish_revocation(&self, cx: &mut Context<'_>) {
        if let Some(vf) = &self.vf {
            cx.out.publish(Event::RevocationStarted {
                adapter: self.id,
                vf: vf.id.get(),
                because: cx.blocking.to_vec(),
            });
        }
    }

    /// Rule 2.
    fn announce(&mut self, cx: &mut Context<'_>) -> bool {
        let offered = matches!(self.state, State::Offered(_) | State::Active(_));
        let listens = self.guest.netvsc == (NetVsc::Ready { sriov: true });
        let Some(vf) = self.vf.as_ref().filter(|_| offered && listens && !self.guest.told) else {
            return false;
        };
        let command = NetVspCommand::VfAvailable { serial: vf.serial };
        self.guest.told = true;
        self.guest.silent = false;
        self.tell(cx, command);
        if self.guest.path == DataPath::Synthetic {
            self.deadlines.offer = Some(cx.now.after(cx.timeouts.offer));
        }
        true
    }

    /// Rule 3.
    fn answer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(asked) = self.guest.asks else { return false };
        let path = self.guest.path;
        let on_the_move = match self.state {
            State::Offered(OfferedStep::Switching)
            | State::Active(ActiveStep::Leaving)
            | State::Revoking(RevokingStep::Leaving) => true,
            State::Revoking(RevokingStep::Filter) => path == DataPath::Vf,
            _ => false,
        };
        let pending = match (asked, path) {
            _ if on_the_move => true,
            (DataPath::Vf, DataPath::Synthetic) => {
                matches!(self.state, State::Offered(_) | State::Active(_))
            }
            (DataPath::Synthetic, DataPath::Vf) => true,
            _ => false,
        };
        if pending {
            return false;
        }
        self.guest.asks = None;
        self.tell(cx, NetVspCommand::CompleteSwitch { active: path });
        if asked != path {
            cx.out.publish(Event::DataPathRefused { adapter: self.id, asked });
        }
        true
    }
}
