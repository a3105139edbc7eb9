//! What NICs report, and what follows for the NIC itself.

use pcivirt_protocol::{NtStatus, SriovPfEvent};

use super::Stack;
use crate::network_adapter::NetworkAdapter;
use crate::nic::{self, Nic, On, Survey, When};
use crate::outbox::{Outstanding, Owner};
use crate::{
    CallError, Effect, Event, NicCall, NicId, NicReply, NicState, RequestId, SilentGuest, Time,
};

impl Stack {
    pub(super) fn nic_connected(&mut self, id: NicId, now: Time) {
        self.nics.entry(id).or_insert_with(|| Nic::new(id));
        // A connection that takes the place of another: what was on that one is not to be relied on.
        self.nic_lost(id, false, now);
        self.nic_event(id, On::Connected, now);
    }

    /// The connection has ended.
    pub(super) fn nic_gone(&mut self, id: NicId, now: Time) {
        self.nic_lost(id, false, now);
    }

    /// The NIC is gone, or taken for gone; with `disconnect` its connection is still there and is given up.
    fn nic_lost(&mut self, id: NicId, disconnect: bool, now: Time) {
        if self.nics.get(&id).is_none_or(|nic| nic.state == NicState::Absent) {
            return;
        }
        self.out.publish(Event::PfRemoved { nic: id });
        self.transition(id, On::Gone, disconnect, now);
    }

    fn nic_event(&mut self, id: NicId, on: On, now: Time) -> bool {
        self.transition(id, on, true, now)
    }

    fn transition(&mut self, id: NicId, on: On, disconnect: bool, now: Time) -> bool {
        let Some(state) = self.nics.get(&id).map(|nic| nic.state) else { return false };
        let Some(row) = nic::find(state, on, |when| self.nic_holds(id, when)) else { return false };
        let to = row.to.unwrap_or(state);
        if let Some(nic) = self.nics.get_mut(&id) {
            nic.state = to;
            if to != state {
                nic.deadline = None;
                nic.forced = false;
            }
            if to == NicState::Released {
                nic.deadline = Some(now.after(self.config.timeouts.pf_removal));
            }
        }
        for action in row.does {
            match action {
                nic::Do::Disconnect if !disconnect => {}
                action => self.nic_act(id, *action, to, now),
            }
        }
        true
    }

    fn nic_holds(&self, id: NicId, when: When) -> bool {
        let on_it = || self.adapters.values().filter(|adapter| adapter.home == Some(id));
        match when {
            When::GivenBack => {
                self.nics.get(&id).is_some_and(|nic| nic.survey.is_none())
                    && on_it().all(NetworkAdapter::is_idle)
            }
            When::FiltersCleared => on_it().next().is_none(),
            When::MayVeto => self.config.silent_guest == SilentGuest::Veto,
        }
    }

    fn nic_act(&mut self, id: NicId, action: nic::Do, to: NicState, now: Time) {
        use nic::Do;
        let removal = matches!(to, NicState::Removing | NicState::Released);
        match action {
            Do::Attach => self.nic_call(id, Owner::Attach, NicCall::Attach, now),
            Do::Poll => self.nic_call(id, Owner::Notification, NicCall::Notification, now),
            Do::Survey => {
                if let Some(nic) = self.nics.get_mut(&id) {
                    nic.survey = Some(Survey::new(!nic.swept));
                    nic.look_again = false;
                }
                self.survey(id, now);
            }
            Do::GiveBack => {
                if let Some(nic) = self.nics.get_mut(&id) {
                    // A survey goes on: what an earlier life left on the NIC is to be given back, too.
                    nic.deadline = Some(now.after(self.config.timeouts.pf_stop));
                }
                self.out.publish(Event::PfStopRequested { nic: id, removal });
            }
            Do::Force => {
                if let Some(nic) = self.nics.get_mut(&id) {
                    nic.deadline = None;
                    nic.forced = true;
                }
                self.out.publish(Event::PfStopForced { nic: id, held: self.held(id) });
            }
            Do::Allow => {
                self.complete(id, NtStatus::SUCCESS, now);
                self.out.publish(Event::PfStopAllowed { nic: id, removal });
            }
            Do::Veto => {
                self.complete(id, NtStatus::DEVICE_BUSY, now);
                let removal = to != NicState::Vetoed;
                self.out.publish(Event::PfStopVetoed { nic: id, removal, held: self.held(id) });
            }
            Do::Acknowledge => {
                self.complete(id, NtStatus::SUCCESS, now);
                self.out.publish(Event::PfRestarted { nic: id });
            }
            Do::Disconnect => self.out.effects.push(Effect::DisconnectNic { nic: id }),
            Do::Forget => self.forget(id),
        }
    }

    fn forget(&mut self, id: NicId) {
        self.out.outstanding.retain(|_, request| request.nic != id);
        if let Some(nic) = self.nics.get_mut(&id) {
            *nic = Nic { host_survey: nic.host_survey, ..Nic::new(id) };
        }
        for adapter in self.adapters.values_mut().filter(|adapter| adapter.home == Some(id)) {
            adapter.nic_lost();
        }
    }

    fn complete(&mut self, id: NicId, status: NtStatus, now: Time) {
        self.nic_call(id, Owner::EventComplete, NicCall::EventComplete(status), now);
    }

    fn nic_call(&mut self, id: NicId, owner: Owner, call: NicCall, now: Time) {
        let deadline = now.after(self.config.timeouts.nic);
        self.out.issue(id, owner, call, deadline);
    }

    /// Asks the next question of a survey, or takes over what it found out.
    fn survey(&mut self, id: NicId, now: Time) {
        let Some(nic) = self.nics.get_mut(&id) else { return };
        let Some(survey) = &mut nic.survey else { return };
        if let Some(call) = survey.next() {
            let deadline = now.after(self.config.timeouts.nic);
            nic.request = Some(self.out.issue(id, Owner::Survey, call, deadline));
            return;
        }
        let Some(survey) = nic.survey.take() else { return };
        let (filters, vports, vfs) = (survey.swept_filters, survey.swept_vports, survey.swept_vfs);
        if filters + vports + vfs > 0 {
            self.out.publish(Event::NicSwept { nic: id, filters, vports, vfs });
        }
        let facts = survey.into_facts();
        let (vfs, queue_pairs) = (facts.vfs(), facts.queue_pairs());
        nic.facts = Some(facts);
        nic.swept = true;
        if self.nic_event(id, On::Surveyed, now) {
            self.out.publish(Event::NicReady { nic: id, vfs, queue_pairs });
        }
    }

    pub(super) fn nic_completed(
        &mut self,
        id: NicId,
        request: RequestId,
        result: Result<NicReply, CallError>,
        now: Time,
    ) {
        let Some(Outstanding { nic, owner, call, .. }) =
            self.out.outstanding.get(&request).cloned()
        else {
            return;
        };
        if nic != id {
            return;
        }
        self.out.outstanding.remove(&request);
        if result.as_ref().is_err_and(CallError::is_removal) {
            self.nic_lost(id, true, now);
            return;
        }
        match owner {
            Owner::Adapter(adapter) => self.with_adapter(adapter, now, |adapter, cx| {
                if adapter.request == Some(request) && adapter.completed(&call, result, cx) {
                    adapter.refused(cx);
                }
            }),
            Owner::RangePoll(adapter, serial) => {
                let adapter = self.adapters.get_mut(&adapter).filter(|adapter| {
                    adapter.ranges.poll == Some(request)
                        && adapter.vf.as_ref().is_some_and(|vf| vf.serial == serial)
                });
                if let Some(adapter) = adapter {
                    adapter.ranges.poll = None;
                    if result.is_ok() {
                        adapter.ranges_changed();
                    }
                }
            }
            Owner::Attach => {
                let on = if result.is_ok() { On::Attached } else { On::Refused };
                self.nic_event(id, on, now);
            }
            Owner::Survey => {
                // One that was given up is answered to nobody.
                let current = self.nics.get_mut(&id).filter(|nic| nic.request == Some(request));
                let Some(nic) = current else { return };
                nic.request = None;
                if let Some(survey) = &mut nic.survey {
                    survey.learn(&call, result);
                    self.survey(id, now);
                }
            }
            Owner::Notification => self.notified(id, result, now),
            // Refused: there is no event any more, and nothing to be done about it.
            Owner::EventComplete => {}
        }
    }

    /// NOTIFICATION is completed. The next is sent at once, then the event is looked at (SPEC-PCIVIRT §8.5).
    fn notified(&mut self, id: NicId, result: Result<NicReply, CallError>, now: Time) {
        let Ok(NicReply::Event(event)) = result else {
            // A PF driver that does not tell of its events cannot be trusted with VFs.
            self.nic_lost(id, true, now);
            return;
        };
        self.nic_call(id, Owner::Notification, NicCall::Notification, now);
        let known = match event {
            SriovPfEvent::QUERY_STOP_DEVICE => self.nic_event(id, On::QueryStop, now),
            SriovPfEvent::QUERY_REMOVE_DEVICE => self.nic_event(id, On::QueryRemove, now),
            SriovPfEvent::RESTART => self.nic_event(id, On::Restart, now),
            SriovPfEvent::SURPRISE_REMOVE_DEVICE => {
                self.complete(id, NtStatus::SUCCESS, now);
                self.nic_lost(id, true, now);
                true
            }
            _ => false,
        };
        if !known {
            // Each event that was delivered is completed.
            self.complete(id, NtStatus::SUCCESS, now);
        }
    }

    /// Takes one transition of a NIC, if one is due.
    pub(super) fn settle_nic(&mut self, id: NicId, now: Time) -> bool {
        let late = self
            .out
            .outstanding
            .values()
            .find(|request| request.nic == id && request.deadline.is_some_and(|at| at <= now));
        if let Some(request) = late.map(|request| request.call.target().to_string()) {
            self.out.publish(Event::NicNotResponding { nic: id, request });
            self.nic_lost(id, true, now);
            return true;
        }
        let Some(nic) = self.nics.get_mut(&id) else { return false };
        if nic.deadline.is_some_and(|deadline| deadline <= now) {
            nic.deadline = None;
            return self.nic_event(id, On::TimedOut, now);
        }
        if nic.look_again && nic.state == NicState::Ready {
            return self.nic_event(id, On::CapabilitiesChanged, now);
        }
        self.nic_event(id, On::Settle, now)
    }
}
