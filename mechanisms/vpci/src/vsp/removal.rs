//! Stopping a function, and taking it away.

use std::time::Duration;

use pcie_protocol::BarIndex;
use vpci_protocol::HostMessage;

use super::{BusState, Effect, Presence, Removal, Stop, StopAnswer, Vsp};

impl Vsp {
    /// Asks the guest to let go of the function within `grace` ([`EJECT_GRACE`](super::EJECT_GRACE), unless there
    /// are reasons). Everything goes on working until it has. A second call changes nothing.
    pub fn eject(&mut self, grace: Duration, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.presence != Presence::Present {
            return effects;
        }
        if self.bus.version().is_some() {
            let deadline = now.saturating_add(grace);
            self.presence = Presence::Ejecting { deadline };
            let slot = self.config.slot;
            self.send(&HostMessage::Eject { slot }, None, &mut effects);
        } else {
            self.removed(Removal::NotInUse, &mut effects);
            if self.bus != BusState::Closed {
                self.close_deadline = Some(now.saturating_add(self.config.close_timeout));
            }
        }
        effects
    }

    /// Takes the function away without asking: it is gone, or its PF is.
    pub fn surprise_remove(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        if !matches!(self.presence, Presence::Removed(_)) {
            self.take_away(Removal::Surprise, now, &mut effects);
        }
        effects
    }

    /// The guest has let go of the function.
    pub(super) fn ejected(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.abort_pf_requests(effects);
        self.release_resources(effects);
        self.presence = Presence::Removed(Removal::Confirmed);
        if let Some(version) = self.bus.version() {
            self.send_bus_relations(version, effects);
        }
        self.removed(Removal::Confirmed, effects);
        self.close_deadline = Some(now.saturating_add(self.config.close_timeout));
    }

    /// The guest has not let go of the function, and it goes nevertheless.
    pub(super) fn take_away(&mut self, removal: Removal, now: Duration, effects: &mut Vec<Effect>) {
        self.abort_pf_requests(effects);
        self.presence = Presence::Removed(removal);
        self.interrupts.clear();
        self.update_routes(effects);
        for bar in BarIndex::ALL {
            if bar.of(&self.mapped).is_some() {
                effects.push(Effect::IsolateBar { bar });
            }
        }
        if let Some(version) = self.bus.version() {
            self.send_bus_relations(version, effects);
        }
        self.removed(removal, effects);
        if self.bus != BusState::Closed {
            self.close_deadline = Some(now.saturating_add(self.config.close_timeout));
        }
    }

    pub(super) fn removed(&mut self, removal: Removal, effects: &mut Vec<Effect>) {
        tracing::info!(serial = self.config.serial, ?removal, "the function was removed");
        self.presence = Presence::Removed(removal);
        if let Stop::Asked { .. } = self.stop {
            self.stop = Stop::Stopped;
            effects.push(Effect::StopAnswered(StopAnswer::NotInUse));
        }
        effects.push(Effect::Removed(removal));
        effects.push(Effect::Rescind);
    }

    /// Asks the guest to stop using the function within `grace`, since its PF is to be stopped (SPEC-PCIVIRT §8.5).
    /// The answer comes as [`Effect::StopAnswered`], at once if no guest uses the function. Does nothing while a
    /// question is open, or the function is stopped or removed.
    pub fn query_stop(&mut self, grace: Duration, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.stop != Stop::Running || matches!(self.presence, Presence::Removed(_)) {
            return effects;
        }
        if let BusState::D0 { .. } = self.bus {
            let transaction = self.next_transaction;
            self.next_transaction += 1;
            self.stop = Stop::Asked { transaction, deadline: now.saturating_add(grace) };
            let slot = self.config.slot;
            self.send(&HostMessage::QueryStop { slot }, Some(transaction), &mut effects);
        } else {
            self.stop = Stop::Stopped;
            effects.push(Effect::StopAnswered(StopAnswer::NotInUse));
        }
        effects
    }

    pub(super) fn stop_answered(&mut self, answer: StopAnswer, effects: &mut Vec<Effect>) {
        self.stop = match answer {
            StopAnswer::Allowed | StopAnswer::NotInUse => Stop::Stopped,
            StopAnswer::Refused | StopAnswer::TimedOut => Stop::Running,
        };
        self.update_bars(effects);
        effects.push(Effect::StopAnswered(answer));
    }

    /// The function is back, with the same BARs as before, or was not stopped after all: ends
    /// [`Vsp::query_stop`], whatever became of it.
    pub fn re_enable(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.stop == Stop::Running {
            return effects;
        }
        self.stop = Stop::Running;
        if matches!(self.presence, Presence::Removed(_)) {
            return effects;
        }
        self.update_bars(&mut effects);
        if let BusState::D0 { .. } = self.bus {
            let slot = self.config.slot;
            self.send(&HostMessage::ReEnable { slot }, None, &mut effects);
        }
        effects
    }
}
