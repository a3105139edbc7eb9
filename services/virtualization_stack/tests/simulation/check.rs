//! What has to hold: after each step, and where the world has come to rest.

use std::collections::{BTreeMap, BTreeSet};

use ndis_protocol::{FilterMatch, NicSwitchCapabilityFlags};
use virtualization_stack::{
    ActiveStep, AdapterId, AdapterKind, DataPath, Effect, Event, GuestGap, Input, NetVspCommand,
    NicCall, NicId, NicState, OfferedStep, Reason, Standing, State, SwitchKind, SyntheticStep,
    VlanSetting, VmState, VpciCommand, WaitedFor,
};

use crate::guest::{AdapterModel, Mood};
use crate::nic::PnpThread;
use crate::world::World;

const RESTING: State = State::Synthetic(SyntheticStep::Resting);
const WAITING: State = State::Offered(OfferedStep::Waiting);
const ACTIVE: State = State::Active(ActiveStep::Resting);

/// The filters of an adapter, told anew from its configuration.
fn filters(model: &AdapterModel) -> BTreeSet<(u8, Option<u16>)> {
    let mac = model.config.mac.octets()[5];
    match &model.config.vlan {
        VlanSetting::Untagged => [(mac, None)].into(),
        VlanSetting::Access(vlan) => [(mac, Some(vlan.get()))].into(),
        VlanSetting::Trunk { native, allowed } => {
            let mut filters: BTreeSet<_> =
                allowed.iter().map(|vlan| (mac, Some(vlan.get()))).collect();
            filters.insert((mac, native.map(|vlan| vlan.get())));
            filters
        }
    }
}

fn key(matches: &FilterMatch) -> (u8, Option<u16>) {
    let vlan = match matches.vlan {
        ndis_protocol::VlanCondition::Equal(vlan) => Some(vlan.get()),
        _ => None,
    };
    (matches.mac.octets()[5], vlan)
}

impl World {
    /// The NIC behind an adapter's switch.
    fn nic_of(&self, model: &AdapterModel) -> Option<NicId> {
        let switch = self.switches.get(&model.config.switch?)?;
        match switch.config.kind {
            SwitchKind::External { nic, teamed: false } if switch.config.iov_enabled => Some(nic),
            _ => None,
        }
    }

    /// Whether filters of the adapter belong on its NIC.
    fn has_frames(&self, model: &AdapterModel) -> bool {
        model.exists
            && model.config.kind != AdapterKind::Legacy
            && self.vms[&model.config.vm].state != VmState::Off
    }

    /// The NIC has exactly the filters, each on the VPort that `right` says.
    fn filters_at(
        &self,
        nic: NicId,
        wanted: &BTreeSet<(u8, Option<u16>)>,
        right: impl Fn(u32) -> bool,
    ) -> bool {
        let nic = &self.nics[&nic];
        wanted.iter().all(|wanted| {
            let mut at = nic.filters.values().filter(|(matches, _)| key(matches) == *wanted);
            at.next().is_some_and(|(_, vport)| right(*vport)) && at.next().is_none()
        })
    }

    fn status_of(&self, id: AdapterId) -> Option<(NicId, u16, Option<u32>)> {
        let vf = self.stack.adapter_status(id)?.virtual_function?;
        Some((vf.nic, vf.vf, vf.vport))
    }

    /// An adapter's filters that the NIC has: those of its present or former configuration, by its addresses.
    fn set_filters(&self, nic: NicId, model: &AdapterModel) -> Vec<u32> {
        let mac = model.config.mac;
        let its = self.nics[&nic].filters.values().filter(|(matches, _)| matches.mac == mac);
        its.map(|(_, vport)| *vport).collect()
    }

    /// Checks an effect at the moment it is given, before anybody has seen it.
    pub(crate) fn check_effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Nic { nic, call: NicCall::ClearFilter(filter), .. } => {
                let state = self.stack.nic_status(*nic).map(|status| status.state);
                let model = &self.nics[nic];
                let Some((matches, _)) = model.filters.get(&filter.get()) else { return };
                let wanted = state == Some(NicState::Ready)
                    && self.adapters.values().any(|adapter| {
                        self.nic_of(adapter) == Some(*nic)
                            && self.has_frames(adapter)
                            && filters(adapter).contains(&key(matches))
                    });
                if wanted {
                    self.fail(format!("{filter} is cleared while its frames are wanted"));
                }
            }
            Effect::Nic { nic, call: NicCall::AllocateVf(_), .. } => {
                let down = self.switches.values().any(|switch| {
                    switch.config.kind == SwitchKind::External { nic: *nic, teamed: false }
                        && !switch.uplink_up
                });
                if down {
                    self.fail(format!("a VF of {nic} is allocated without its switch's uplink"));
                }
            }
            Effect::Nic { nic, call: NicCall::DeleteVPort(vport), .. } => {
                if self.stack.nic_status(*nic).is_some_and(|s| s.state == NicState::Surveying) {
                    return;
                }
                let holder = self.adapters.iter().find(|(id, _)| {
                    self.status_of(**id)
                        .is_some_and(|(its, _, at)| its == *nic && at == Some(vport.get()))
                });
                let Some((id, model)) = holder else { return };
                let given_up = model.removal_given_up;
                if model.device.is_some() && !given_up {
                    let id = *id;
                    self.fail(format!("{id}: the VPort goes while the guest has the device"));
                }
            }
            Effect::Vpci { adapter, serial, command } => {
                self.check_vpci(*adapter, *serial, command)
            }
            Effect::NetVsp { adapter, command: NetVspCommand::CompleteSwitch { active } } => {
                let Some((nic, _, Some(vport))) = self.status_of(*adapter) else { return };
                let model = &self.adapters[adapter];
                if !self.nics[&nic].connected {
                    return;
                }
                let at = self.set_filters(nic, model);
                let granted_vf = *active == DataPath::Vf;
                // The driver of a virtio-net's VF may be up again.
                let left_vf = *active == DataPath::Synthetic
                    && model.path == DataPath::Vf
                    && !model.is_virtio_net();
                if (granted_vf && at.iter().any(|at| *at != vport))
                    || (left_vf && at.contains(&vport))
                {
                    self.fail(format!(
                        "{adapter}: {active:?} is granted with filters on VPorts {at:?}, its own is {vport}"
                    ));
                }
            }
            Effect::Publish(event) => self.check_event(event),
            _ => {}
        }
    }

    fn check_vpci(
        &mut self,
        id: AdapterId,
        serial: virtualization_stack::VfSerial,
        command: &VpciCommand,
    ) {
        let Some(model) = self.adapters.get(&id) else { return };
        match command {
            VpciCommand::Offer(offer) => {
                let vports: Vec<_> = self.nics[&offer.nic]
                    .vports
                    .iter()
                    .filter(|(_, vport)| vport.vf == offer.vf.get())
                    .map(|(vport, _)| *vport)
                    .collect();
                let at = self.set_filters(offer.nic, model);
                if at.is_empty() || at.iter().any(|at| !vports.contains(at)) {
                    self.fail(format!(
                        "{id}: a VF is offered with filters on VPorts {at:?}, not {vports:?}"
                    ));
                }
                let told = self.adapters[&id]
                    .to_netvsp
                    .iter()
                    .any(|told| *told == NetVspCommand::VfAvailable { serial });
                let listens = self.adapters[&id].netvsc_up;
                // A guest that went meanwhile is told when it is back.
                let lost = self.adapters[&id].from_netvsp.iter().any(|_| true);
                if !told && listens && !lost {
                    self.fail(format!("{id}: a VF is offered of which the guest was not told"));
                }
            }
            VpciCommand::Remove { .. } => {
                let Some((nic, _, Some(vport))) = self.status_of(id) else { return };
                if self.nics[&nic].connected && self.set_filters(nic, model).contains(&vport) {
                    self.fail(format!("{id}: the device is removed with filters on its VPort"));
                }
            }
            _ => {}
        }
    }

    fn check_event(&mut self, event: &Event) {
        match event {
            Event::NoAnswer { adapter, waited_for, .. } => {
                *self.counts.entry("time-outs").or_default() += 1;
                if *waited_for == WaitedFor::Removal
                    && let Some(model) = self.adapters.get_mut(adapter)
                {
                    model.removal_given_up = true;
                }
            }
            Event::VfFreed { adapter, .. } => {
                if let Some(model) = self.adapters.get_mut(adapter) {
                    model.removal_given_up = false;
                }
            }
            Event::VfAllocated { .. } => *self.counts.entry("VFs allocated").or_default() += 1,
            Event::DataPathSwitched { .. } => {
                *self.counts.entry("data path switches").or_default() += 1;
            }
            Event::VfSurpriseRemoved { .. } => {
                *self.counts.entry("surprise removals").or_default() += 1;
            }
            Event::PfStopVetoed { .. } => *self.counts.entry("vetoes").or_default() += 1,
            Event::PfStopAllowed { .. } => *self.counts.entry("stops allowed").or_default() += 1,
            Event::NicSwept { .. } => *self.counts.entry("sweeps").or_default() += 1,
            _ => {}
        }
    }

    pub(crate) fn check_models(&mut self) {
        let mut violations = Vec::new();
        for (id, nic) in &mut self.nics {
            violations.extend(nic.violations.drain(..).map(|what| format!("{id}: {what}")));
        }
        for (id, adapter) in &mut self.adapters {
            violations.extend(adapter.violations.drain(..).map(|what| format!("{id}: {what}")));
        }
        for violation in violations {
            self.fail(violation);
        }
    }

    /// After each input.
    pub(crate) fn check_always(&mut self) {
        let mut faults = Vec::new();
        for id in self.stack.adapter_ids() {
            let state = self.stack.state(id).unwrap();
            let reasons = self.stack.reasons(id);
            // A guest that is long in using its VF may keep it.
            let unused = |reason: &Reason| {
                let lacks = GuestGap::NoVpciDriver;
                *reason == Reason::GuestUnsupported { lacks }
                    || matches!(
                        reason,
                        Reason::GuestNoVfDriver { .. }
                            | Reason::GuestVfFailed { .. }
                            | Reason::GuestNotResponding { .. }
                    )
            };
            let blocked = reasons.iter().any(|reason| {
                reason.standing() == Standing::Blocks
                    && !(matches!(state, State::Offered(_)) && unused(reason))
            });
            let blocks = reasons.iter().any(|reason| reason.standing() == Standing::Blocks);
            let waits = reasons.iter().any(|reason| reason.standing() == Standing::Waits);
            if blocked && (state == ACTIVE || state == WAITING) {
                faults.push(format!("{id} rests in {state} although {reasons:?}"));
            }
            if !matches!(state, State::Active(_)) && !blocks && !waits {
                faults.push(format!("{id} is in {state} and nothing says why"));
            }
            if state == ACTIVE && waits {
                faults.push(format!("{id} is active and waits: {reasons:?}"));
            }
            if state == RESTING && !blocked {
                faults.push(format!("{id} rests without VF, and no reason says why: {reasons:?}"));
            }
        }
        for fault in faults {
            self.fail(fault);
        }
    }

    /// Lets everything that is on its way arrive.
    fn deliver_all(&mut self) {
        for _ in 0..5000 {
            if self.failure.is_some() || !self.deliver() {
                return;
            }
        }
        self.fail("they never stop talking".into());
    }

    /// Lets everything that is on its way arrive, and time pass, until nothing happens any more.
    pub(crate) fn come_to_rest(&mut self) {
        for _ in 0..200 {
            self.deliver_all();
            let nics: Vec<NicId> = self.nics.keys().copied().collect();
            let mut went_on = false;
            for nic in nics {
                went_on |= self.go_on(nic, false);
            }
            if went_on {
                continue;
            }
            if self.failure.is_some() || self.timer.is_none() {
                return;
            }
            self.pass_until_timer();
        }
        self.deliver_all();
    }

    /// At rest: nothing is outstanding, and NICs hold what adapters hold and nothing else.
    pub(crate) fn check_rest(&mut self) {
        if self.failure.is_some() {
            return;
        }
        if !self.stack.is_settled() {
            return self.fail("at rest, requests are outstanding".into());
        }
        let mut faults = Vec::new();
        let mut held: BTreeMap<NicId, BTreeSet<(u16, u32, u32)>> = BTreeMap::new();
        for id in self.stack.adapter_ids().collect::<Vec<_>>() {
            let status = self.stack.adapter_status(id).unwrap();
            if !matches!(status.state, RESTING | WAITING | ACTIVE) {
                faults.push(format!("{id} is at rest in {}", status.state));
            }
            let model = &self.adapters[&id];
            if !model.exists && self.nic_of(model).is_some_and(|nic| self.nics[&nic].connected) {
                faults.push(format!("{id} is removed and still there: {status:?}"));
            }
            if model.asked.is_some() && model.netvsc_up {
                faults.push(format!("{id}: the guest waits for {:?}", model.asked));
            }
            let hung = self.vms[&model.config.vm].host_hung;
            let knows = model.netvsc_up || model.is_virtio_net();
            if knows && !hung && (status.state == ACTIVE) != (model.path == DataPath::Vf) {
                faults.push(format!("{id} is {} and its guest on {:?}", status.state, model.path));
            }
            if let Some(vf) = &status.virtual_function {
                held.entry(vf.nic).or_default().insert((
                    vf.vf,
                    vf.vport.unwrap_or(0),
                    status.iov_queue_pairs_assigned,
                ));
                if model.device.is_none() {
                    faults.push(format!("{id} holds a VF that its guest does not have"));
                }
            } else if model.device.is_some() && !self.vms[&model.config.vm].host_hung {
                faults.push(format!("{id} holds no VF and its guest has a device"));
            }
        }
        for (id, nic) in &self.nics {
            if !nic.connected {
                continue;
            }
            let there: BTreeSet<_> = nic
                .vports
                .iter()
                .filter(|(_, vport)| !vport.foreign)
                .map(|(number, vport)| (vport.vf, *number, vport.pairs))
                .collect();
            let held = held.remove(id).unwrap_or_default();
            let vfs: BTreeSet<u16> =
                nic.vfs.iter().filter(|(_, vf)| !vf.foreign).map(|(number, _)| *number).collect();
            if there != held || vfs != held.iter().map(|(vf, ..)| *vf).collect() {
                faults
                    .push(format!("{id} has VFs {vfs:?} and VPorts {there:?}, held are {held:?}"));
            }
            // That a NIC hangs is noticed when something is asked of it.
            if !nic.hung && nic.polls.len() != vfs.len() {
                faults.push(format!("{id}: range updates wait for {:?} of {vfs:?}", nic.polls));
            }
        }
        faults.extend(self.filter_faults());
        for fault in faults {
            self.fail(fault);
        }
    }

    /// At rest, a NIC that is ready has each wanted filter once, on the VPort where it belongs, and no other.
    fn filter_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (id, nic) in &self.nics {
            let ready =
                self.stack.nic_status(*id).is_some_and(|status| status.state == NicState::Ready);
            if !ready || !nic.sriov {
                continue;
            }
            let mut wanted = BTreeSet::new();
            let mut short = false;
            for (adapter, model) in &self.adapters {
                if self.nic_of(model) != Some(*id) || !self.has_frames(model) {
                    continue;
                }
                let its = filters(model);
                wanted.extend(its.iter().copied());
                let reasons = self.stack.reasons(*adapter);
                if reasons.iter().any(|r| {
                    matches!(
                        r,
                        Reason::OutOfMacFilters { .. }
                            | Reason::NotUpToDate { .. }
                            | Reason::NicRefused { .. }
                    )
                }) {
                    short = true;
                    continue;
                }
                let own = self.status_of(*adapter).and_then(|(_, _, vport)| vport);
                let state = self.stack.state(*adapter).unwrap();
                let right = |at: u32| match state {
                    State::Active(_) => Some(at) == own,
                    State::Offered(_) => at == 0 || Some(at) == own,
                    _ => at == 0,
                };
                if !self.filters_at(*id, &its, right) {
                    faults.push(format!(
                        "{adapter} ({state}) wants {its:?}, {id} has {:?}",
                        nic.filters
                    ));
                }
            }
            let there: BTreeSet<_> =
                nic.filters.values().map(|(matches, _)| key(matches)).collect();
            if !short && there != wanted {
                faults.push(format!("{id} has filters {there:?}, wanted are {wanted:?}"));
            }
        }
        faults
    }

    /// Everything that went wrong is put right.
    pub(crate) fn heal(&mut self) {
        self.vpci_fails = false;
        self.host.clear();
        self.tell(Input::Host(Vec::new()));
        let nics: Vec<_> = self.nics.keys().copied().collect();
        for nic in &nics {
            let model = self.nics.get_mut(nic).unwrap();
            model.hung = false;
            model.refuses = 0;
            model.free_foreign();
            self.start_nic(*nic);
        }
        let switches: Vec<_> = self.switches.keys().copied().collect();
        for switch in switches {
            if !self.switches[&switch].running {
                self.set_switch(switch, true);
            }
            if !self.switches[&switch].uplink_up {
                self.set_uplink(switch, true);
            }
        }
        let vms: Vec<_> = self.vms.keys().copied().collect();
        for vm in vms {
            let model = self.vms.get_mut(&vm).unwrap();
            model.host_hung = false;
            if !model.mood.is_well() {
                model.mood = Mood::Good;
            }
            if matches!(model.state, VmState::Migrating | VmState::Saving) {
                self.set_vm(vm, VmState::Running);
            }
            // One without SR-IOV gets another driver.
            let mut its = self.adapters.values().filter(|model| model.config.vm == vm);
            if its.any(|model| model.netvsc_up && !model.knows_sriov) {
                self.reset_guest(vm);
            }
        }
        // Before anybody asks again, what was silent says what it had to say.
        self.deliver_all();
        for id in self.stack.adapter_ids().collect::<Vec<_>>() {
            self.tell(Input::Retry(id));
        }
    }

    /// At rest, all well: whoever is to have a VF has it, as far as there are VFs; nobody else has.
    pub(crate) fn check_healed(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let mut faults = Vec::new();
        for (id, model) in &self.adapters {
            if !model.exists {
                continue;
            }
            let state = self.stack.state(*id).unwrap();
            let config = &model.config;
            let nic = self.nic_of(model);
            let called_for = config.iov_weight > 0
                && config.kind != AdapterKind::Legacy
                && self.vms[&config.vm].state == VmState::Running
                && (config.policies.is_empty() || config.allow_policy_bypass)
                && !model.extension_revoked
                && nic.is_some_and(|nic| {
                    let vlans = self.nics[&nic]
                        .capabilities
                        .flags
                        .contains(NicSwitchCapabilityFlags::VLAN_SUPPORTED);
                    self.nics[&nic].thread == PnpThread::Idle
                        && (vlans || filters(model).iter().all(|(_, vlan)| vlan.is_none()))
                });
            let reasons = self.stack.reasons(*id);
            if !called_for {
                if state != RESTING {
                    faults.push(format!("{id} is {state} and nothing calls for a VF"));
                }
                continue;
            }
            if state == ACTIVE {
                continue;
            }
            let nic = &self.nics[&nic.unwrap()];
            let excused = reasons.iter().any(|reason| match reason {
                Reason::OverSubscribed { .. } => {
                    nic.vfs.len() as u32 == nic.capabilities.max_num_vfs
                }
                Reason::OutOfQueuePairs { .. } => {
                    let asymmetric = nic.capabilities.flags.contains(
                        NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT,
                    );
                    let each = nic.vports.values().next().map_or(1, |vport| vport.pairs);
                    nic.free_pairs() < if asymmetric { 1 } else { each }
                }
                Reason::OutOfMacFilters { .. } => {
                    nic.filters.len() as u32 == nic.capabilities.max_num_mac_addresses
                }
                _ => false,
            });
            if !excused {
                faults.push(format!("{id} is {state} although all is well: {reasons:?}"));
            }
        }
        for fault in faults {
            self.fail(fault);
        }
    }

    /// Nobody wants anything any more.
    pub(crate) fn turn_off(&mut self) {
        let vms: Vec<_> = self.vms.keys().copied().collect();
        for id in self.adapters.keys().copied().collect::<Vec<_>>() {
            self.set_adapter(id, |config| config.iov_weight = 0);
        }
        self.deliver_all();
        for vm in vms {
            self.set_vm(vm, VmState::Off);
        }
    }

    /// Nothing is left on any NIC.
    pub(crate) fn check_empty(&mut self) {
        let mut faults = Vec::new();
        for (id, nic) in &self.nics {
            if !(nic.vfs.is_empty() && nic.vports.is_empty() && nic.filters.is_empty()) {
                faults.push(format!(
                    "{id} still has VFs {:?}, VPorts {:?}, filters {:?}",
                    nic.vfs.keys(),
                    nic.vports.keys(),
                    nic.filters
                ));
            }
        }
        for fault in faults {
            self.fail(fault);
        }
    }
}
