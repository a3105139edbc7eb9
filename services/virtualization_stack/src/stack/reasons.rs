//! Which reasons hold for an adapter. What it is to do follows from them, so that they cannot disagree with it: an adapter
//! is to have a VF if and only if no reason blocks.

use ndis_protocol::{InterruptModeration, NicSwitchCapabilityFlags};

use super::Stack;
use crate::config::MAX_TRUNK_VLANS;
use crate::network_adapter::{NetVsc, NetworkAdapter, PairsLeft, Want};
use crate::nic::Nic;
use crate::{
    AdapterId, AdapterKind, AllocatingStep, DataPath, GuestGap, GuestProgress, NicId, NicState,
    Reason, State, SwitchKind, Uplink, VlanSetting, VmState,
};

impl Stack {
    /// The NIC from which an adapter gets its VF, as it is configured.
    pub(super) fn desired_nic(&self, adapter: &NetworkAdapter) -> Option<NicId> {
        let switch = self.switches.get(&adapter.config.switch?)?;
        match switch.config.kind {
            SwitchKind::External { nic, teamed: false } if switch.config.iov_enabled => Some(nic),
            _ => None,
        }
    }

    /// What calls for the synthetic path.
    pub(super) fn blocking(&self, adapter: &NetworkAdapter) -> Vec<Reason> {
        let own = self.own_blockers(adapter);
        if !own.is_empty() || adapter.state.has_vf() {
            return own;
        }
        self.not_admitted(adapter)
    }

    pub(super) fn want(&self, adapter: &NetworkAdapter, blocking: &[Reason]) -> Want {
        if blocking.is_empty() {
            return Want::Vf;
        }
        let forced = adapter.home.and_then(|nic| self.nics.get(&nic)).is_some_and(|nic| nic.forced);
        let off = self.vms.get(&adapter.config.vm).is_none_or(|vm| vm.state == VmState::Off);
        let failed = blocking.iter().any(|reason| matches!(reason, Reason::VfHardwareError { .. }));
        if forced || off || failed { Want::SyntheticNow } else { Want::Synthetic }
    }

    /// What calls for the synthetic path, besides other adapters that came first.
    pub(super) fn own_blockers(&self, adapter: &NetworkAdapter) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let config = &adapter.config;
        if adapter.removed {
            reasons.push(Reason::BeingRemoved);
        }
        if !self.config.host_override {
            reasons.extend(self.host.iter().map(|reason| Reason::Host { reason: *reason }));
        }
        if config.kind == AdapterKind::Legacy {
            reasons.push(Reason::LegacyNic);
        }
        if config.iov_weight == 0 {
            reasons.push(Reason::WeightZero);
        }
        self.vm_reasons(adapter, &mut reasons);
        self.switch_reasons(adapter, &mut reasons);
        if !config.policies.is_empty() && !config.allow_policy_bypass {
            let policies = config.policies.iter().copied().collect();
            reasons.push(Reason::PolicyForcesSoftware { policies });
        }
        if adapter.extension_revoked {
            reasons.push(Reason::ExtensionRevoked);
        }
        self.guest_reasons(adapter, &mut reasons);
        if let Some(hold_off) = &adapter.hold_off {
            reasons.push(hold_off.reason.clone());
        }
        if let Some((reason, _)) = &adapter.refusal
            && !matches!(adapter.state, State::Offered(_) | State::Active(_))
        {
            reasons.push(reason.clone());
        }
        reasons
    }

    fn vm_reasons(&self, adapter: &NetworkAdapter, reasons: &mut Vec<Reason>) {
        let vm = adapter.config.vm;
        match self.vms.get(&vm).map_or(VmState::Off, |vm| vm.state) {
            VmState::Running => {}
            VmState::Off => {
                let kind = adapter.config.kind;
                reasons.push(Reason::VmNotRunning { vm, state: VmState::Off, kind });
            }
            VmState::Migrating => reasons.push(Reason::Migrating { vm }),
            VmState::Saving => reasons.push(Reason::SavedStateRestore { vm }),
        }
    }

    fn switch_reasons(&self, adapter: &NetworkAdapter, reasons: &mut Vec<Reason>) {
        let has_vf = adapter.state.has_vf();
        let desired = self.desired_nic(adapter);
        // As long as the NIC of the former switch has a VF or a filter of it, it gets none from another.
        let elsewhere = adapter.home.is_some() && adapter.home != desired;
        if elsewhere && (adapter.vf.is_some() || desired.is_some()) {
            reasons.push(Reason::Reconfiguring);
        }
        let connected = adapter.config.switch;
        let Some((id, switch)) =
            connected.and_then(|id| self.switches.get(&id).map(|switch| (id, switch)))
        else {
            reasons.push(Reason::NotConnected);
            return;
        };
        // What a switch does for the guest is wanted to begin with; VFs outlive its process.
        if !switch.running && !has_vf {
            reasons.push(Reason::SwitchNotRunning { switch: id });
        }
        match switch.config.kind {
            SwitchKind::Internal | SwitchKind::Private => {
                reasons.push(Reason::SwitchNotExternal { switch: id });
            }
            SwitchKind::External { teamed, .. } => {
                if teamed {
                    reasons.push(Reason::HostTeaming { switch: id });
                }
                if !switch.config.iov_enabled {
                    reasons.push(Reason::SwitchNotIov { switch: id });
                }
            }
        }
        if let Some(nic) = desired.and_then(|nic| self.nics.get(&nic)) {
            nic_reasons(adapter, nic, has_vf, reasons);
            // Without the NIC there is no uplink on it, which says nothing more. VFs that there are stay.
            if let Uplink::Down { error } = &switch.uplink
                && nic.state != NicState::Absent
                && !has_vf
            {
                let (nic, error) = (nic.id, error.clone());
                reasons.push(Reason::SwitchUplinkDown { switch: id, nic, error });
            }
        }
    }

    fn guest_reasons(&self, adapter: &NetworkAdapter, reasons: &mut Vec<Reason>) {
        let running = self.vms.get(&adapter.config.vm).is_some_and(|vm| vm.state != VmState::Off);
        match adapter.guest.netvsc {
            NetVsc::Ready { sriov: true } => {}
            NetVsc::Ready { sriov: false } => {
                let lacks = match adapter.config.kind {
                    AdapterKind::VhostUser => GuestGap::VirtioNetWithoutStandby,
                    AdapterKind::Synthetic | AdapterKind::Legacy => GuestGap::NetVscWithoutSriov,
                };
                reasons.push(Reason::GuestUnsupported { lacks });
            }
            // Once it has a VF, a guest keeps it (SPEC-VMBUS §7).
            NetVsc::Closed if running && !adapter.state.has_vf() => {
                reasons.push(Reason::GuestNotReady);
            }
            NetVsc::Closed => {}
        }
    }

    /// VFs of a NIC that adapters of this stack hold, or are about to.
    pub(super) fn held(&self, nic: NicId) -> u32 {
        let held = self.adapters.values().filter(|a| a.home == Some(nic) && a.state.has_vf());
        u32::try_from(held.count()).unwrap_or(u32::MAX)
    }

    /// Queue pairs of a NIC that are left for an adapter. Those that another is just asking for are not.
    pub(super) fn pairs_left(&self, nic: NicId, whose: AdapterId) -> PairsLeft {
        let Some(facts) = self.nics.get(&nic).and_then(|nic| nic.facts.as_ref()) else {
            return PairsLeft::default();
        };
        let mut free = facts.queue_pairs();
        let mut common = None;
        for adapter in self.adapters.values().filter(|adapter| adapter.home == Some(nic)) {
            let asked = (adapter.id != whose
                && adapter.state == State::Allocating(AllocatingStep::VPort))
            .then_some(adapter.pairs_tried);
            if let Some(pairs) = adapter.vport.as_ref().map(|vport| vport.queue_pairs).or(asked) {
                free = free.saturating_sub(pairs);
                common = Some(pairs);
            }
        }
        let asymmetric =
            facts.can(NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT);
        let max = facts
            .nic_switch
            .map_or(0, |nic_switch| nic_switch.max_num_queue_pairs_per_non_default_vport);
        PairsLeft { free, max, symmetric: common.filter(|_| !asymmetric) }
    }

    /// Why an adapter that has nothing else against it gets no VF now: others came first, and too little is left.
    fn not_admitted(&self, adapter: &NetworkAdapter) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let Some(nic) = self.desired_nic(adapter) else { return reasons };
        let Some(facts) = self.nics.get(&nic).and_then(|nic| nic.facts.as_ref()) else {
            return reasons;
        };
        let turn = adapter.turn.unwrap_or(u64::MAX);
        let waiting = self.adapters.values().filter(|other| {
            other.id != adapter.id
                && other.turn.is_some_and(|others| others < turn)
                && self.desired_nic(other) == Some(nic)
        });
        let ahead = u32::try_from(waiting.count()).unwrap_or(u32::MAX);
        let held = self.held(nic);
        let before = held.saturating_add(ahead);
        let total = facts.vfs();
        if before >= total {
            reasons.push(Reason::OverSubscribed { nic, total, ahead: before });
        }
        if before.saturating_add(1) >= facts.vports() {
            reasons.push(Reason::OutOfVPorts { nic, total: facts.vports() });
        }
        let left = self.pairs_left(nic, adapter.id);
        let unfinished = self.adapters.values().filter(|other| {
            other.home == Some(nic) && other.state == State::Allocating(AllocatingStep::Vf)
        });
        let unfinished = u32::try_from(unfinished.count()).unwrap_or(u32::MAX);
        let each = left.symmetric.unwrap_or(1);
        let needed = ahead.saturating_add(unfinished).saturating_add(1).saturating_mul(each);
        if left.free < needed {
            reasons.push(Reason::OutOfQueuePairs { nic, total: facts.queue_pairs() });
        }
        reasons
    }

    /// Whether another adapter waits for what this one holds.
    pub(super) fn is_contended(&self, holder: &NetworkAdapter) -> bool {
        self.adapters.values().any(|other| {
            other.id != holder.id
                && other.turn.is_some()
                && self.desired_nic(other) == holder.home
                && !self.not_admitted(other).is_empty()
        })
    }

    /// All reasons: what blocks, what is on its way, and what is not quite as asked for.
    pub(super) fn all_reasons(&self, adapter: &NetworkAdapter) -> Vec<Reason> {
        let mut reasons = self.blocking(adapter);
        let guest = &adapter.guest;
        if reasons.is_empty() && !matches!(adapter.state, State::Active(_)) {
            let offered = matches!(adapter.state, State::Offered(_));
            let left = offered
                && guest.told
                && guest.progress == GuestProgress::UsedVf
                && guest.path == DataPath::Synthetic;
            reasons.push(if left {
                Reason::GuestLeftVf
            } else if offered && guest.silent {
                adapter.unused(&self.config.timeouts)
            } else {
                Reason::InProgress { state: adapter.state }
            });
        }
        if !adapter.state.has_vf() {
            return reasons;
        }
        let config = &adapter.config;
        if let Some((refusal, _)) = &adapter.refusal
            && let Some(nic) = adapter.home
            && matches!(adapter.state, State::Offered(_) | State::Active(_))
        {
            reasons.push(Reason::NotUpToDate { nic, refusal: refusal.to_string() });
        }
        if let Some(vport) = &adapter.vport
            && vport.queue_pairs < config.iov_queue_pairs_requested
        {
            let (requested, assigned) = (config.iov_queue_pairs_requested, vport.queue_pairs);
            reasons.push(Reason::QueuePairsReduced { requested, assigned });
        }
        if config.iov_interrupt_moderation != InterruptModeration::Undefined
            && let Some(nic) = adapter.home
            && !self.nics.get(&nic).and_then(|nic| nic.facts.as_ref()).is_some_and(|facts| {
                facts.can(NicSwitchCapabilityFlags::PER_VPORT_INTERRUPT_MODERATION)
            })
        {
            reasons.push(Reason::ModerationUnsupported { nic });
        }
        if !config.policies.is_empty() && config.allow_policy_bypass {
            let policies = config.policies.iter().copied().collect();
            reasons.push(Reason::PolicyBypassed { policies });
        }
        reasons
    }
}

fn nic_reasons(adapter: &NetworkAdapter, nic: &Nic, has_vf: bool, reasons: &mut Vec<Reason>) {
    let id = nic.id;
    match nic.state {
        NicState::Absent => reasons.push(Reason::PfRemoved { nic: id }),
        NicState::Ready => {}
        // VFs that there are stay.
        NicState::Attaching | NicState::Surveying | NicState::Vetoed if has_vf => {}
        _ => reasons.push(Reason::PfStopping { nic: id }),
    }
    let Some(facts) = &nic.facts else {
        if nic.host_survey.support != crate::SriovSupport::Supported {
            reasons.push(Reason::Adapter { nic: id, support: nic.host_survey.support });
        }
        return;
    };
    reasons.extend(facts.reasons(id, &nic.host_survey));
    let config = &adapter.config;
    let vlans = config.vlans();
    let too_many = matches!(
        &config.vlan,
        VlanSetting::Trunk { allowed, .. } if allowed.len() > MAX_TRUNK_VLANS
    );
    if too_many || (vlans > 0 && !facts.can(NicSwitchCapabilityFlags::VLAN_SUPPORTED)) {
        reasons.push(Reason::VlanUnsupported { nic: id, vlans });
    }
    let max = facts
        .nic_switch
        .map_or(0, |nic_switch| nic_switch.max_num_queue_pairs_per_non_default_vport)
        .max(1);
    if let Some(vf) = &adapter.vf
        && (vf.mac != config.mac
            || vf.queue_pairs_requested.min(max) != config.iov_queue_pairs_requested.min(max))
        && !reasons.contains(&Reason::Reconfiguring)
    {
        reasons.push(Reason::Reconfiguring);
    }
}
