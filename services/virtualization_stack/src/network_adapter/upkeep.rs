//! What is kept as it should be while an adapter rests: its receive filters, and its VPort's moderation, policy and
//! mitigated ranges.

use ndis_protocol::{
    FilterId, FilterMatch, InterruptModeration, NicSwitchCapabilityFlags, VPortId,
};

use super::{Context, NetworkAdapter};
use crate::VPortPolicy;
use crate::nic::NicFacts;

/// One thing to be brought up to date.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// A filter is missing.
    SetFilter(FilterMatch, VPortId),
    /// A filter is too many, or on the wrong NIC.
    ClearFilter(FilterId),
    /// The VPort's interrupt moderation is another.
    Moderation(VPortId, InterruptModeration),
    /// The VPort's policy is another.
    Policy(VPortId, VPortPolicy),
    /// The VF's mitigated ranges may have changed.
    Ranges,
}

/// The interrupt moderation that a NIC can apply.
pub(crate) fn moderation(wanted: InterruptModeration, facts: &NicFacts) -> InterruptModeration {
    if facts.can(NicSwitchCapabilityFlags::PER_VPORT_INTERRUPT_MODERATION) {
        wanted
    } else {
        InterruptModeration::Undefined
    }
}

impl NetworkAdapter {
    /// The next thing to be brought up to date, if there is one that is not waiting to be tried again. A missing filter
    /// is set before another is cleared, so that no frame is without one that had one.
    pub(crate) fn upkeep(&self, cx: &Context<'_>) -> Option<Task> {
        let (nic, facts) = cx.nic?;
        let (filter_nic, wanted) = cx.filters?;
        if self.home.is_some_and(|home| home != nic) || self.refusal.is_some() {
            return None;
        }
        let set = |wanted: &FilterMatch| self.filters.iter().any(|set| set.matches == *wanted);
        if filter_nic == nic
            && let Some(missing) = wanted.iter().find(|wanted| !set(wanted))
        {
            let vport = self.out().filter(|_| self.filters_out()).unwrap_or(VPortId::DEFAULT);
            return Some(Task::SetFilter(*missing, vport));
        }
        let stays = |matches| filter_nic == nic && wanted.contains(matches);
        if let Some(extra) = self.filters.iter().find(|filter| !stays(&filter.matches)) {
            return Some(Task::ClearFilter(extra.id));
        }
        let vport = self.vport.as_ref()?;
        let moderation = moderation(self.config.iov_interrupt_moderation, facts);
        if vport.moderation != moderation {
            return Some(Task::Moderation(vport.id, moderation));
        }
        let policy = self.config.vport_policy();
        if vport.policy.as_ref() != Some(&policy) {
            return Some(Task::Policy(vport.id, policy));
        }
        self.ranges.stale.then_some(Task::Ranges)
    }
}
