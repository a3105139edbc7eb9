//! From facts to what follows from them, until nothing more follows.

use ndis_protocol::FilterMatch;

use super::Stack;
use crate::network_adapter::{Context, HoldOffKind, NetworkAdapter};
use crate::{AdapterId, AdapterKind, Event, NicId, NicState, Reason, Time, VmState};

/// Passes over all NICs and adapters that one input may take. Each pass but the last moves something, and nothing moves in
/// circles without an answer from outside; this is for the case that that is wrong.
const MOST_PASSES: usize = 1000;

impl Stack {
    pub(super) fn settle(&mut self, now: Time) {
        let mut passes = 0;
        while self.pass(now) {
            passes += 1;
            if passes == MOST_PASSES {
                let last: Vec<_> = self.out.effects.iter().rev().take(8).rev().collect();
                debug_assert!(false, "the stack moves in circles: {last:?}");
                tracing::error!("the stack moves in circles; it goes on with the next input");
                break;
            }
        }
        self.publish_reasons();
    }

    /// One look at everything; says whether something moved.
    fn pass(&mut self, now: Time) -> bool {
        let mut moved = false;
        let nics: Vec<NicId> = self.nics.keys().copied().collect();
        for nic in nics {
            moved |= self.settle_nic(nic, now);
        }
        self.take_turns();
        let adapters: Vec<AdapterId> = self.adapters.keys().copied().collect();
        for id in adapters {
            let had_vf = self.adapters.get(&id).is_some_and(|adapter| adapter.state.has_vf());
            let home = self.adapters.get(&id).and_then(|adapter| adapter.home);
            moved |= self.adapters.get_mut(&id).is_some_and(|adapter| adapter.expire(now));
            moved |= self.with_adapter(id, now, |adapter, cx| adapter.settle(cx));
            let Some(adapter) = self.adapters.get(&id) else { continue };
            if had_vf && !adapter.state.has_vf() {
                self.resources_freed(id, home);
            } else if adapter.removed && adapter.is_idle() && adapter.home.is_none() {
                self.adapters.remove(&id);
                moved = true;
            }
        }
        moved
    }

    /// Whoever has only the others before it waits for its turn.
    fn take_turns(&mut self) {
        let ready: Vec<(AdapterId, bool)> = self
            .adapters
            .values()
            .map(|a| (a.id, !a.state.has_vf() && self.own_blockers(a).is_empty()))
            .collect();
        for (id, ready) in ready {
            let Some(adapter) = self.adapters.get_mut(&id) else { continue };
            if !ready {
                adapter.turn = None;
            } else if adapter.turn.is_none() {
                self.last_turn += 1;
                adapter.turn = Some(self.last_turn);
            }
        }
    }

    /// An adapter has given back a VF: whoever was refused for want of one may ask again at once.
    fn resources_freed(&mut self, by: AdapterId, nic: Option<NicId>) {
        let exhausted = |reason: &Reason| match reason {
            Reason::OutOfVfs { nic: its, .. }
            | Reason::OutOfVPorts { nic: its, .. }
            | Reason::OutOfQueuePairs { nic: its, .. } => nic.is_none_or(|nic| nic == *its),
            _ => false,
        };
        // Whoever was refused itself has freed only what it had tried in vain. Two would try in turns for ever.
        let gave_up = self.adapters.get(&by).and_then(|adapter| adapter.hold_off.as_ref());
        if gave_up.is_some_and(|hold_off| hold_off.kind == HoldOffKind::Nic) {
            return;
        }
        for adapter in self.adapters.values_mut().filter(|adapter| adapter.id != by) {
            if adapter.hold_off.as_ref().is_some_and(|hold_off| exhausted(&hold_off.reason)) {
                adapter.end_hold_off(HoldOffKind::Nic);
            }
        }
    }

    fn publish_reasons(&mut self) {
        let changed: Vec<_> = self
            .adapters
            .values()
            .filter_map(|adapter| {
                let reasons = self.all_reasons(adapter);
                (reasons != adapter.published).then_some((adapter.id, reasons))
            })
            .collect();
        for (id, reasons) in changed {
            if let Some(adapter) = self.adapters.get_mut(&id) {
                adapter.published.clone_from(&reasons);
                self.out.publish(Event::ReasonsChanged { adapter: id, reasons });
            }
        }
    }

    /// The filters that an adapter is to have, and on which NIC; `None` if none may be touched now.
    fn filters_of(&self, adapter: &NetworkAdapter) -> Option<(NicId, Vec<FilterMatch>)> {
        let desired = self.desired_nic(adapter);
        let nic = self.nics.get(&adapter.home.or(desired)?)?;
        let wanted = match nic.state {
            NicState::Ready => desired.filter(|_| self.has_frames(adapter)),
            NicState::Removing => None,
            _ => return None,
        };
        let active = nic.facts.as_ref().is_some_and(crate::nic::NicFacts::sriov_active);
        match wanted.filter(|_| active) {
            Some(desired) => Some((desired, adapter.config.filters())),
            None => Some((nic.id, Vec::new())),
        }
    }

    /// Whether there may be frames for an adapter.
    fn has_frames(&self, adapter: &NetworkAdapter) -> bool {
        !adapter.removed
            && adapter.config.kind != AdapterKind::Legacy
            && self.vms.get(&adapter.config.vm).is_some_and(|vm| vm.state != VmState::Off)
    }

    /// Calls an adapter with all that it may look at.
    pub(super) fn with_adapter<R: Default>(
        &mut self,
        id: AdapterId,
        now: Time,
        call: impl FnOnce(&mut NetworkAdapter, &mut Context<'_>) -> R,
    ) -> R {
        let Some(adapter) = self.adapters.get(&id) else { return R::default() };
        let blocking = self.blocking(adapter);
        let want = self.want(adapter, &blocking);
        let filters = self.filters_of(adapter);
        let nic = adapter.home.or(self.desired_nic(adapter));
        let pairs = nic.map(|nic| self.pairs_left(nic, id)).unwrap_or_default();
        let held = nic.map_or(0, |nic| self.held(nic));
        let Some(vm) = self.vms.get(&adapter.config.vm) else { return R::default() };
        let nic = nic.and_then(|nic| {
            self.nics.get(&nic).and_then(|its| its.facts.as_ref()).map(|facts| (nic, facts))
        });
        let contended = adapter.guest.silent && self.is_contended(adapter);
        let Some(adapter) = self.adapters.get_mut(&id) else { return R::default() };
        let mut cx = Context {
            now,
            timeouts: &self.config.timeouts,
            want,
            blocking: &blocking,
            nic,
            held,
            contended,
            pairs,
            filters: filters.as_ref().map(|(nic, filters)| (*nic, filters.as_slice())),
            vm: &vm.config,
            out: &mut self.out,
        };
        call(adapter, &mut cx)
    }
}
