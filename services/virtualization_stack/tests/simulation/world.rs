//! The world around one stack: NICs, switches, VMs and their guests, what they hear and say, and how time passes; decided
//! by one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ndis_protocol::{MacAddress, Name};
use virtualization_stack::{
    AdapterConfig, AdapterId, AdapterKind, Effect, HostReason, Input, NicId, SilentGuest, Stack,
    StackConfig, SwitchConfig, SwitchKind, Time, Uplink, VmConfig, VmId, VmState, VmSwitchId,
};

use crate::guest::{AdapterModel, Mood};
use crate::happening::Kind;
use crate::nic::NicModel;
use crate::random::Random;

pub(crate) struct VmModel {
    pub(crate) state: VmState,
    pub(crate) mood: Mood,
    /// Its host side carries nothing out.
    pub(crate) host_hung: bool,
}

pub(crate) struct SwitchModel {
    pub(crate) config: SwitchConfig,
    pub(crate) running: bool,
    pub(crate) uplink_up: bool,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) stack: Stack,
    pub(crate) now: Time,
    pub(crate) timer: Option<Time>,
    pub(crate) nics: BTreeMap<NicId, NicModel>,
    pub(crate) switches: BTreeMap<VmSwitchId, SwitchModel>,
    pub(crate) vms: BTreeMap<VmId, VmModel>,
    pub(crate) adapters: BTreeMap<AdapterId, AdapterModel>,
    pub(crate) host: Vec<HostReason>,
    pub(crate) vpci_fails: bool,
    pub(crate) failure: Option<String>,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    kinds: &'static [Kind],
    without: BTreeSet<Kind>,
    /// Whether there are guests with virtio-nets: in the last worlds only, so that recorded seeds mean what they meant.
    virtio_nets: bool,
    next_mac: u8,
}

impl World {
    pub(crate) fn new(seed: u64, without: BTreeSet<Kind>, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let silent_guest =
            random.pick(&[SilentGuest::Veto, SilentGuest::Veto, SilentGuest::SurpriseRemove]);
        let config = StackConfig { silent_guest, ..StackConfig::default() };
        let mut world = Self {
            stack: Stack::new(config),
            now: Time::ZERO,
            timer: None,
            nics: BTreeMap::new(),
            switches: BTreeMap::new(),
            vms: BTreeMap::new(),
            adapters: BTreeMap::new(),
            host: Vec::new(),
            vpci_fails: false,
            failure: None,
            trace: traced.then(Vec::new),
            counts: BTreeMap::new(),
            kinds: Kind::of(seed),
            without,
            virtio_nets: seed > 7000,
            next_mac: 0,
            random: random.clone(),
        };
        let nics = 1 + random.below(2) as u32;
        for nic in 0..nics {
            world.nics.insert(NicId(nic), NicModel::new(&mut random));
            let kind = SwitchKind::External { nic: NicId(nic), teamed: false };
            world.add_switch(VmSwitchId(nic), kind, true);
        }
        world.add_switch(VmSwitchId(10), SwitchKind::Private, random.once_in(2));
        let vms = 1 + random.below(3) as u32;
        let mut adapter = 0;
        for vm in 0..vms {
            world.add_vm(VmId(vm));
            let adapters = if random.once_in(20) { 8 } else { 1 + random.below(2) };
            for _ in 0..adapters {
                world.add_adapter(
                    AdapterId(adapter),
                    VmId(vm),
                    NicId(random.below(nics as usize) as u32),
                );
                adapter += 1;
            }
        }
        let all: Vec<NicId> = world.nics.keys().copied().collect();
        for nic in all {
            world.connect(nic);
        }
        world.random = random;
        world
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(text());
        }
    }

    pub(crate) fn fail(&mut self, text: String) {
        self.note(|| format!("!! {text}"));
        self.failure.get_or_insert(text);
    }

    fn add_switch(&mut self, id: VmSwitchId, kind: SwitchKind, iov_enabled: bool) {
        let config = SwitchConfig { name: id.to_string(), kind, iov_enabled };
        let model = SwitchModel { config: config.clone(), running: true, uplink_up: true };
        self.switches.insert(id, model);
        self.tell(Input::SwitchSet(id, config));
        self.tell(Input::SwitchStarted(id));
    }

    fn add_vm(&mut self, id: VmId) {
        let mood = if self.random.once_in(6) { self.random.pick(&Mood::ALL) } else { Mood::Good };
        self.vms.insert(id, VmModel { state: VmState::Off, mood, host_hung: false });
        let name = Name::new(&id.to_string()).unwrap();
        self.tell(Input::VmSet(id, VmConfig { name: name.clone(), friendly_name: name }));
        self.set_vm(id, VmState::Running);
    }

    pub(crate) fn add_adapter(&mut self, id: AdapterId, vm: VmId, nic: NicId) {
        let mut config = AdapterConfig::new(vm, self.fresh_mac());
        config.switch = Some(VmSwitchId(nic.0));
        config.iov_weight = if self.random.once_in(5) { 0 } else { 100 };
        config.iov_queue_pairs_requested = self.random.pick(&[1, 1, 2, 4, 64]);
        if self.random.once_in(15) {
            config.kind = AdapterKind::Legacy;
        } else if self.virtio_nets && self.random.once_in(2) {
            config.kind = AdapterKind::VhostUser;
            *self.counts.entry("virtio-nets").or_default() += 1;
        }
        self.adapters.insert(id, AdapterModel::new(config.clone()));
        self.tell(Input::AdapterSet(id, config));
    }

    pub(crate) fn fresh_mac(&mut self) -> MacAddress {
        self.next_mac = self.next_mac.wrapping_add(1);
        MacAddress::new([2, 0, 0, 0, 0, self.next_mac])
    }

    /// Tells the stack, checks what it answers, and hands the effects to whom they are for.
    pub(crate) fn tell(&mut self, input: Input) {
        if self.failure.is_some() {
            return;
        }
        let seconds = self.now.elapsed().as_secs_f64();
        self.note(|| format!("{seconds:>9.3} {input:?}"));
        *self.counts.entry("inputs").or_default() += 1;
        let (stack, now) = (&mut self.stack, self.now);
        let stepped =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stack.step(input, now)));
        let effects = match stepped {
            Ok(Ok(effects)) => effects,
            Ok(Err(error)) => return self.fail(format!("refused: {error}")),
            Err(_) => return self.fail("the stack panicked".into()),
        };
        for effect in effects {
            self.check_effect(&effect);
            self.carry_out(effect);
        }
        if self.timer != self.stack.next_time() {
            self.fail("the timer is not the next time".into());
        }
        self.check_always();
    }

    fn carry_out(&mut self, effect: Effect) {
        self.note(|| match &effect {
            Effect::Publish(event) => format!("            {event}"),
            other => format!("            → {other:?}"),
        });
        match effect {
            Effect::Nic { nic, request, call } => {
                let model = self.nics.get_mut(&nic).unwrap();
                if model.connected {
                    model.incoming.push_back((request, call));
                }
            }
            Effect::CancelNic { nic, request } => {
                let model = self.nics.get_mut(&nic).unwrap();
                model.incoming.retain(|(id, _)| *id != request);
                model.polls.retain(|_, id| *id != request);
            }
            Effect::DisconnectNic { nic } => {
                let model = self.nics.get_mut(&nic).unwrap();
                if model.hung {
                    model.kill();
                } else {
                    model.disconnect();
                }
            }
            Effect::NetVsp { adapter, command } => {
                if let Some(model) = self.adapters.get_mut(&adapter) {
                    model.to_netvsp.push_back(command);
                }
            }
            Effect::Vpci { adapter, serial, command } => {
                if let Some(model) = self.adapters.get_mut(&adapter) {
                    model.to_vpci.push_back((serial, command));
                }
            }
            Effect::SetTimer(timer) => self.timer = timer,
            Effect::Publish(_) => {}
        }
    }

    pub(crate) fn connect(&mut self, nic: NicId) {
        let model = self.nics.get_mut(&nic).unwrap();
        if model.alive && !model.connected && !model.is_removed() {
            model.connect();
            self.tell(Input::NicConnected(nic));
        }
    }

    pub(crate) fn start_nic(&mut self, nic: NicId) {
        let model = self.nics.get_mut(&nic).unwrap();
        if !model.alive || model.is_removed() {
            model.kill();
            model.alive = true;
        }
        self.connect(nic);
    }

    pub(crate) fn set_vm(&mut self, id: VmId, state: VmState) {
        let vm = self.vms.get_mut(&id).unwrap();
        vm.state = state;
        if state == VmState::Off {
            vm.host_hung = false;
            for adapter in self.adapters.values_mut().filter(|a| a.config.vm == id) {
                adapter.host_gone();
            }
        }
        self.tell(Input::VmState(id, state));
    }

    pub(crate) fn reset_guest(&mut self, vm: VmId) {
        if self.vms[&vm].state != VmState::Off {
            for model in self.adapters.values_mut().filter(|a| a.config.vm == vm) {
                model.reset();
            }
            self.tell(Input::GuestReset(vm));
        }
    }

    pub(crate) fn set_switch(&mut self, id: VmSwitchId, running: bool) {
        self.switches.get_mut(&id).unwrap().running = running;
        if running {
            self.tell_uplink(id);
            self.tell(Input::SwitchStarted(id));
        } else {
            for adapter in self.adapters.values_mut().filter(|a| a.config.switch == Some(id)) {
                adapter.switch_gone();
            }
            self.tell(Input::SwitchStopped(id));
        }
    }

    pub(crate) fn set_uplink(&mut self, id: VmSwitchId, up: bool) {
        self.switches.get_mut(&id).unwrap().uplink_up = up;
        if self.switches[&id].running {
            self.tell_uplink(id);
        }
    }

    fn tell_uplink(&mut self, id: VmSwitchId) {
        let uplink = match self.switches[&id].uplink_up {
            true => Uplink::Up,
            false => Uplink::Down { error: "so it is".into() },
        };
        self.tell(Input::SwitchUplink(id, uplink));
    }

    pub(crate) fn set_adapter(&mut self, id: AdapterId, change: impl FnOnce(&mut AdapterConfig)) {
        let model = self.adapters.get_mut(&id).unwrap();
        if model.exists {
            change(&mut model.config);
            let config = model.config.clone();
            self.tell(Input::AdapterSet(id, config));
        }
    }

    pub(crate) fn go_on(&mut self, nic: NicId, remove: bool) -> bool {
        let state = self.stack.nic_status(nic).map(|status| status.state);
        let released = state == Some(virtualization_stack::NicState::Released);
        self.nics.get_mut(&nic).unwrap().go_on(remove, released)
    }

    /// One more thing that happens.
    pub(crate) fn step(&mut self) {
        match self.random.below(100) {
            0..=82 => {
                self.deliver();
            }
            83..=86 => {
                let time = Duration::from_millis(1 + self.random.next() % 400);
                self.pass(time);
            }
            87 => self.pass_until_timer(),
            _ => {
                let kind = self.random.pick(self.kinds);
                // The random numbers that follow are the same with and without.
                let mut fork = Random::new(self.random.next());
                if !self.without.contains(&kind) {
                    core::mem::swap(&mut self.random, &mut fork);
                    self.happen(kind);
                    core::mem::swap(&mut self.random, &mut fork);
                }
            }
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        if self.timer.is_some_and(|timer| timer <= self.now) {
            self.tell(Input::Tick);
        }
    }

    pub(crate) fn pass_until_timer(&mut self) {
        if let Some(timer) = self.timer {
            self.now = self.now.max(timer);
            self.tell(Input::Tick);
        }
    }

    /// Something on its way arrives, or somebody acts; false if there is nothing.
    pub(crate) fn deliver(&mut self) -> bool {
        enum Next {
            Handle(NicId),
            Complete(NicId),
            ToNetVsp(AdapterId),
            FromNetVsp(AdapterId),
            ToVpci(AdapterId),
            FromVpci(AdapterId),
            Act(AdapterId),
        }
        let mut next = Vec::new();
        for (id, nic) in &self.nics {
            if !nic.incoming.is_empty() && nic.connected && !nic.hung {
                next.push(Next::Handle(*id));
            }
            if !nic.completed.is_empty() && nic.connected && !nic.hung {
                next.push(Next::Complete(*id));
            }
        }
        for (id, adapter) in &self.adapters {
            let vm = &self.vms[&adapter.config.vm];
            let running = vm.state != VmState::Off;
            let switch_runs = self.switch_runs(adapter);
            if !adapter.to_netvsp.is_empty() {
                next.push(Next::ToNetVsp(*id));
            }
            if !adapter.from_netvsp.is_empty() {
                next.push(Next::FromNetVsp(*id));
            }
            let host_acts = !vm.host_hung || !running;
            if !adapter.to_vpci.is_empty() && host_acts {
                next.push(Next::ToVpci(*id));
            }
            if !adapter.from_vpci.is_empty() {
                next.push(Next::FromVpci(*id));
            }
            if adapter.exists && adapter.can_act(vm.mood, running, switch_runs) {
                next.push(Next::Act(*id));
            }
        }
        if next.is_empty() {
            return false;
        }
        let index = self.random.below(next.len());
        match next[index] {
            Next::Handle(id) => self.nics.get_mut(&id).unwrap().handle(),
            Next::Complete(id) => {
                let (request, result) =
                    self.nics.get_mut(&id).unwrap().completed.pop_front().unwrap();
                self.tell(Input::NicCompleted(id, request, result));
            }
            Next::ToNetVsp(id) => {
                let mood = self.vms[&self.adapters[&id].config.vm].mood;
                self.adapters.get_mut(&id).unwrap().netvsp(mood);
            }
            Next::FromNetVsp(id) => {
                let report = self.adapters.get_mut(&id).unwrap().from_netvsp.pop_front().unwrap();
                self.tell(Input::NetVsp(id, report));
            }
            Next::ToVpci(id) => {
                let adapter = self.adapters.get_mut(&id).unwrap();
                if self.vms[&adapter.config.vm].state == VmState::Off {
                    // There is no end that could do anything.
                    adapter.to_vpci.pop_front();
                } else {
                    adapter.vpci(self.vpci_fails);
                }
            }
            Next::FromVpci(id) => {
                let (serial, report) =
                    self.adapters.get_mut(&id).unwrap().from_vpci.pop_front().unwrap();
                self.tell(Input::Vpci(id, serial, report));
            }
            Next::Act(id) => {
                let switch_runs = self.switch_runs(&self.adapters[&id]);
                let mood = self.vms[&self.adapters[&id].config.vm].mood;
                self.adapters.get_mut(&id).unwrap().act(mood, switch_runs);
            }
        }
        self.check_models();
        true
    }

    pub(crate) fn switch_runs(&self, adapter: &AdapterModel) -> bool {
        adapter
            .config
            .switch
            .and_then(|switch| self.switches.get(&switch))
            .is_some_and(|switch| switch.running)
    }
}
