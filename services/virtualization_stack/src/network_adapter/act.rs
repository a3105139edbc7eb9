//! What the table's transitions do.

use ndis_protocol::{
    FunctionId, ReceiveFilterMoveFilterParameters, ReceiveFilterParameters, SwitchId, VPortChange,
    VPortId, VPortParameters, VfOwner, VfParameters,
};
use pcivirt_protocol::VfIndex;

use super::table::Do;
use super::upkeep::{self, Task};
use super::{
    Context, Deadlines, Device, Guest, HoldOff, HoldOffKind, NetVsc, NetworkAdapter, State,
};
use crate::event::WaitedFor;
use crate::outbox::Owner;
use crate::{
    AdapterKind, DataPath, Effect, Event, GuestGap, GuestProgress, NetVspCommand, NicCall, NicId,
    OfferedStep, Reason, RevokingStep, Timeouts, VpciCommand, VpciOffer,
};

/// A duration for people.
fn milliseconds(duration: core::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl NetworkAdapter {
    pub(super) fn act(&mut self, action: Do, from: State, cx: &mut Context<'_>) {
        match action {
            Do::AllocateVf => self.allocate_vf(cx),
            Do::CreateVPort => self.create_vport(cx),
            Do::SetPolicy => self.set_policy(cx),
            Do::QueryRanges => self.query_ranges(cx),
            Do::MoveOut => self.move_filter(self.out(), cx),
            Do::MoveHome => self.move_filter(Some(VPortId::DEFAULT), cx),
            Do::DeleteVPort => {
                if let Some(vport) = self.out() {
                    self.call(cx, NicCall::DeleteVPort(vport));
                }
            }
            Do::ResetVf => {
                if let Some(vf) = self.vf.as_ref().map(|vf| vf.id) {
                    self.call(cx, NicCall::ResetVf(vf));
                }
            }
            Do::FreeVf => self.free_vf(cx),
            Do::Upkeep => self.do_upkeep(cx),
            // Announced by rule 2, before the device is offered.
            Do::TellAvailable => {
                self.announce(cx);
            }
            Do::TellLost => self.tell_lost(cx),
            Do::AskToLeave => {
                self.tell(cx, NetVspCommand::SwitchDataPath(DataPath::Synthetic));
                self.deadlines.switch = Some(cx.now.after(cx.timeouts.switch));
            }
            Do::GrantVf => self.grant(DataPath::Vf, cx),
            Do::GrantSynthetic => self.grant(DataPath::Synthetic, cx),
            Do::ForceSynthetic => self.force_synthetic(cx),
            Do::OfferDevice => self.offer_device(cx),
            Do::Eject => {
                if !self.guest.eject_asked {
                    self.guest.eject_asked = true;
                    self.deadlines.eject = Some(cx.now.after(cx.timeouts.eject));
                    self.vpci(cx, VpciCommand::Eject);
                }
            }
            Do::RemoveDevice => self.remove_device(cx),
            Do::ForgetDevice => self.guest.device = Device::Absent,
            Do::HoldOff => self.hold_off_as_refused(cx),
            Do::HoldOffGuest => self.hold_off_guest(cx),
            Do::HoldOffHost => self.hold_off_host(cx),
            Do::Retry => self.deadlines.retry = Some(cx.now.after(cx.timeouts.retry)),
            // The refusal was noted when it was met.
            Do::Note => {}
            Do::NoteSilence => self.note_silence(from, cx),
        }
    }

    pub(super) fn tell(&self, cx: &mut Context<'_>, command: NetVspCommand) {
        cx.out.effects.push(Effect::NetVsp { adapter: self.id, command });
    }

    fn vpci(&self, cx: &mut Context<'_>, command: VpciCommand) {
        if let Some(serial) = self.guest.serial {
            cx.out.effects.push(Effect::Vpci { adapter: self.id, serial, command });
        }
    }

    /// Issues a request of this adapter to its NIC.
    pub(super) fn call(&mut self, cx: &mut Context<'_>, call: NicCall) {
        let Some(nic) = self.home.or(cx.nic.map(|(nic, _)| nic)) else { return };
        self.home = Some(nic);
        self.call_of(nic, cx, call);
    }

    fn call_of(&mut self, nic: NicId, cx: &mut Context<'_>, call: NicCall) {
        let deadline = cx.now.after(cx.timeouts.nic);
        self.request = Some(cx.out.issue(nic, Owner::Adapter(self.id), call, deadline));
    }

    fn allocate_vf(&mut self, cx: &mut Context<'_>) {
        self.deadlines = Deadlines::default();
        self.pairs_limit = None;
        self.ranges = super::Ranges::default();
        let Guest { netvsc, asks, leaves_only_ejected, .. } = self.guest;
        self.guest = Guest { netvsc, asks, leaves_only_ejected, ..Guest::default() };
        let parameters = VfParameters {
            switch_id: SwitchId::DEFAULT,
            owner: VfOwner {
                vm_name: cx.vm.name.clone(),
                vm_friendly_name: cx.vm.friendly_name.clone(),
                nic_name: self.config.name.clone(),
                permanent_mac: self.config.mac,
                current_mac: self.config.mac,
            },
            vf_id: None,
            requestor_id: None,
        };
        self.call(cx, NicCall::AllocateVf(Box::new(parameters)));
    }

    fn create_vport(&mut self, cx: &mut Context<'_>) {
        let (Some(vf), Some((_, facts))) = (&self.vf, cx.nic) else { return };
        let limit = self.pairs_limit.unwrap_or(u32::MAX);
        let pairs = match cx.pairs.grant(self.config.iov_queue_pairs_requested.min(limit)) {
            // The NIC says whether there is really none left.
            0 => cx.pairs.symmetric.unwrap_or(1),
            pairs => pairs,
        };
        self.pairs_tried = pairs;
        let mut parameters = VPortParameters::new(FunctionId::Vf(vf.id), pairs);
        parameters.name = self.config.name.clone();
        parameters.interrupt_moderation =
            upkeep::moderation(self.config.iov_interrupt_moderation, facts);
        self.call(cx, NicCall::CreateVPort(Box::new(parameters)));
    }

    fn set_policy(&mut self, cx: &mut Context<'_>) {
        if let Some(vport) = self.out() {
            let policy = self.config.vport_policy();
            self.call(cx, NicCall::SetVPortPolicy { vport, policy });
        }
    }

    /// The poll for changes is armed first, so that no change is missed.
    fn query_ranges(&mut self, cx: &mut Context<'_>) {
        let (Some(vf), Some(nic)) = (&self.vf, self.home) else { return };
        let index = VfIndex(vf.id.get());
        if self.ranges.poll.is_none() {
            let owner = Owner::RangePoll(self.id, vf.serial);
            let call = NicCall::MitigatedRangeUpdate(index);
            self.ranges.poll = Some(cx.out.issue(nic, owner, call, cx.now));
        }
        self.ranges.stale = false;
        self.ranges.asking.clear();
        self.ranges.answered.clear();
        self.call(cx, NicCall::QueryMitigatedRangeCount(index));
    }

    /// Moves the next filter that is elsewhere.
    fn move_filter(&mut self, to: Option<VPortId>, cx: &mut Context<'_>) {
        let Some(to) = to else { return };
        if let Some(filter) = self.filters.iter().find(|filter| filter.vport != to) {
            let (id, from) = (filter.id, filter.vport);
            let parameters = ReceiveFilterMoveFilterParameters::new(id, from, to);
            self.call(cx, NicCall::MoveFilter(parameters));
        }
    }

    fn free_vf(&mut self, cx: &mut Context<'_>) {
        let Some(vf) = self.vf.as_ref().map(|vf| vf.id) else { return };
        if let Some(poll) = self.ranges.poll.take() {
            cx.out.cancel(poll);
        }
        self.call(cx, NicCall::FreeVf(vf));
    }

    fn do_upkeep(&mut self, cx: &mut Context<'_>) {
        let Some(task) = self.upkeep(cx) else { return };
        match task {
            Task::SetFilter(matches, vport) => {
                let parameters = ReceiveFilterParameters::new(vport, matches);
                self.call(cx, NicCall::SetFilter(parameters));
            }
            Task::ClearFilter(filter) => self.call(cx, NicCall::ClearFilter(filter)),
            Task::Moderation(vport, moderation) => {
                let mut change = VPortChange::new(vport);
                change.interrupt_moderation = Some(moderation);
                self.call(cx, NicCall::ChangeVPort(Box::new(change)));
            }
            Task::Policy(..) => self.set_policy(cx),
            Task::Ranges => self.query_ranges(cx),
        }
    }

    fn offer_device(&mut self, cx: &mut Context<'_>) {
        let (Some(vf), Some(nic)) = (&self.vf, self.home) else { return };
        let offer = VpciOffer {
            nic,
            vf: vf.id,
            requestor_id: vf.requestor_id,
            mac: vf.mac,
            mitigated_ranges: self.ranges.applied.clone(),
        };
        let event = Event::VfOffered { adapter: self.id, vf: vf.id.get(), serial: vf.serial };
        self.guest.device = Device::Offering;
        self.offer_error = None;
        self.deadlines.expose = Some(cx.now.after(cx.timeouts.expose));
        self.vpci(cx, VpciCommand::Offer(Box::new(offer)));
        cx.out.publish(event);
    }

    /// Answers the guest's request for this path, which is active now.
    fn grant(&mut self, path: DataPath, cx: &mut Context<'_>) {
        if self.guest.asks == Some(path) {
            self.guest.asks = None;
            self.tell(cx, NetVspCommand::CompleteSwitch { active: path });
        } else if path == DataPath::Vf || self.guest.path == path {
            // It has changed its mind meanwhile; or it has begun anew, and has answered nothing.
            return;
        }
        if self.guest.path != path {
            self.guest.path = path;
            let event = Event::DataPathSwitched { adapter: self.id, to: path, by_guest: true };
            cx.out.publish(event);
        }
        if path == DataPath::Vf {
            self.guest.progress = GuestProgress::UsedVf;
        }
        // Either way it has answered. A guest that leaves its VF may stay away from it as long as it likes.
        self.deadlines.offer = None;
        self.guest.silent = false;
    }

    fn force_synthetic(&mut self, cx: &mut Context<'_>) {
        if self.guest.path == DataPath::Synthetic {
            return;
        }
        self.guest.path = DataPath::Synthetic;
        let command = match self.guest.asks.take() {
            Some(_) => NetVspCommand::CompleteSwitch { active: DataPath::Synthetic },
            None => NetVspCommand::SwitchDataPath(DataPath::Synthetic),
        };
        self.tell(cx, command);
        let to = DataPath::Synthetic;
        cx.out.publish(Event::DataPathSwitched { adapter: self.id, to, by_guest: false });
    }

    fn tell_lost(&mut self, cx: &mut Context<'_>) {
        if let Some(serial) = self.guest.serial.filter(|_| self.guest.told) {
            self.tell(cx, NetVspCommand::VfLost { serial });
            self.guest.told = false;
        }
    }

    fn remove_device(&mut self, cx: &mut Context<'_>) {
        if self.guest.device == Device::Absent {
            return;
        }
        let surprise = !self.guest.ejected;
        self.guest.device = Device::Removing;
        self.deadlines.remove = Some(cx.now.after(cx.timeouts.remove));
        self.vpci(cx, VpciCommand::Remove { surprise });
        if let Some(serial) = self.guest.serial.filter(|_| surprise) {
            cx.out.publish(Event::VfSurpriseRemoved { adapter: self.id, serial });
        }
    }

    fn hold_off_as_refused(&mut self, cx: &Context<'_>) {
        if let Some((reason, until)) = self.refusal.take() {
            self.hold_off = Some(HoldOff { kind: HoldOffKind::Nic, reason, until: Some(until) });
        } else {
            let reason = Reason::InProgress { state: self.state };
            let until = Some(cx.now.after(cx.timeouts.retry));
            self.hold_off = Some(HoldOff { kind: HoldOffKind::Nic, reason, until });
        }
    }

    /// Why the guest does not use its VF, as far as can be seen from here.
    pub(crate) fn unused(&self, timeouts: &Timeouts) -> Reason {
        let waited_ms = milliseconds(timeouts.offer);
        match self.guest.progress {
            GuestProgress::UsedVf | GuestProgress::DeviceStarted => {
                Reason::GuestVfFailed { waited_ms }
            }
            GuestProgress::BusOpened => Reason::GuestNoVfDriver { waited_ms },
            // Where there is no virtual PCI bus nothing is heard of a guest without driver.
            GuestProgress::Unseen
                if self.config.kind == AdapterKind::VhostUser
                    && self.guest.netvsc != NetVsc::Closed =>
            {
                Reason::GuestNoVfDriver { waited_ms }
            }
            GuestProgress::Unseen if self.guest.netvsc == NetVsc::Closed => {
                Reason::GuestNotResponding { waited_ms }
            }
            GuestProgress::Unseen => Reason::GuestUnsupported { lacks: GuestGap::NoVpciDriver },
        }
    }

    fn hold_off_guest(&mut self, cx: &Context<'_>) {
        let returned = self.guest.ejected || self.guest.device == Device::Absent;
        let reason = if returned { Reason::GuestReturnedVf } else { self.unused(cx.timeouts) };
        self.hold_off = Some(HoldOff { kind: HoldOffKind::Guest, reason, until: None });
    }

    fn hold_off_host(&mut self, cx: &mut Context<'_>) {
        let waited_ms = milliseconds(cx.timeouts.expose);
        // One that says no is asked again. One that says nothing is not, until it is heard of.
        let failed = self.guest.device == Device::Absent;
        let (reason, until) = if failed {
            let error = self.offer_error.take();
            (Reason::OfferFailed { error }, Some(cx.now.after(cx.timeouts.retry)))
        } else {
            (Reason::PartitionNotResponding { waited_ms }, None)
        };
        self.hold_off = Some(HoldOff { kind: HoldOffKind::Guest, reason, until });
    }

    fn note_silence(&mut self, from: State, cx: &mut Context<'_>) {
        let (waited_for, waited) = match from {
            State::Offered(OfferedStep::Exposing) => (WaitedFor::Offer, cx.timeouts.expose),
            State::Offered(_) => {
                self.guest.silent = true;
                (WaitedFor::Use, cx.timeouts.offer)
            }
            State::Revoking(RevokingStep::Switch) => {
                self.guest.leaves_only_ejected = true;
                (WaitedFor::Switch, cx.timeouts.switch)
            }
            State::Revoking(RevokingStep::Eject) => (WaitedFor::Eject, cx.timeouts.eject),
            State::Revoking(RevokingStep::Device) => (WaitedFor::Removal, cx.timeouts.remove),
            _ => return,
        };
        let milliseconds = milliseconds(waited);
        cx.out.publish(Event::NoAnswer { adapter: self.id, waited_for, milliseconds });
    }
}
