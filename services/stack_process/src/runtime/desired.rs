//! Desired state: the configuration, and what is changed of it.

use std::collections::BTreeSet;
use std::time::Duration;

use ndis_protocol::Name;
use virtual_switch::control::UplinkReport;
use virtualization_stack::{
    AdapterConfig, AdapterId, Input, NetVspReport, NicId, StackError, SwitchConfig, SwitchKind,
    VmConfig, VmId, VmState, VmSwitchId,
};

use super::{Adapter, Runtime, Switch, Vm};
use crate::Configuration;
use crate::configuration::{AdapterSettings, NicSettings, SwitchReach, SwitchSettings, VmSettings};
use crate::control::{AdapterChange, AdapterName, Connection, Outcome, SetAdapter};
use crate::event::{Peer, ProcessEvent};
use crate::nic_call::vlan_setting;

/// The numbers that are given out next. None is used twice.
#[derive(Debug, Default)]
pub(super) struct Ids {
    nic: u32,
    switch: u32,
    vm: u32,
    adapter: u32,
}

fn next(id: &mut u32) -> u32 {
    let this = *id;
    *id += 1;
    this
}

/// A name as NDIS takes it. The configuration's names always fit.
fn name(text: &str) -> Name {
    Name::new(text).unwrap_or_default()
}

impl Runtime {
    pub(super) fn nic_id(&self, name: &str) -> Option<NicId> {
        self.nics.iter().find(|(_, nic)| nic.name == name).map(|(id, _)| *id)
    }

    fn switch_id(&self, name: &str) -> Option<VmSwitchId> {
        self.switches.iter().find(|(_, s)| s.settings.name == name).map(|(id, _)| *id)
    }

    fn vm_id(&self, name: &str) -> Option<VmId> {
        self.vms.iter().find(|(_, vm)| vm.name == name).map(|(id, _)| *id)
    }

    fn adapter_id(&self, vm: VmId, name: &str) -> Option<AdapterId> {
        let adapters = self.adapters.iter();
        adapters
            .filter(|(_, adapter)| !adapter.leaving)
            .find(|(_, adapter)| adapter.vm == vm && adapter.settings.name == name)
            .map(|(id, _)| *id)
    }

    /// Takes a configuration over: at the start all of it, later what has changed. [`Runtime::objection`] has found
    /// nothing against it. Returns how many objects came, went or changed.
    pub(super) fn configure(&mut self, configuration: Configuration) -> Result<u32, StackError> {
        let mut changes = 0;
        for nic in &configuration.nics {
            changes += u32::from(self.add_nic(nic));
        }
        for switch in &configuration.switches {
            changes += u32::from(self.add_switch(switch)?);
        }
        for vm in &configuration.vms {
            changes += u32::from(self.add_vm(vm)?);
        }
        let names: BTreeSet<(&str, &str)> = configuration
            .vms
            .iter()
            .flat_map(|vm| vm.adapters.iter().map(|a| (vm.name.as_str(), a.name.as_str())))
            .collect();
        let gone = self.adapters.iter().filter(|(_, adapter)| !adapter.leaving);
        let gone = gone.filter(|(_, adapter)| {
            let vm = self.vms.get(&adapter.vm).map_or("", |vm| vm.name.as_str());
            !names.contains(&(vm, adapter.settings.name.as_str()))
        });
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.step(Input::AdapterRemoved(id))?;
            if let Some(adapter) = self.adapters.get_mut(&id) {
                adapter.leaving = true;
            }
            changes += 1;
        }
        for vm in &configuration.vms {
            let Some(id) = self.vm_id(&vm.name) else { continue };
            for adapter in &vm.adapters {
                changes += u32::from(self.put_adapter(id, adapter)?);
            }
        }
        self.configuration = configuration;
        Ok(changes)
    }

    fn add_nic(&mut self, settings: &NicSettings) -> bool {
        if self.nic_id(&settings.name).is_some() {
            return false;
        }
        let id = NicId(next(&mut self.ids.nic));
        self.names.nics.insert(id, settings.name.clone());
        self.nics.insert(id, settings.clone());
        if self.greeting.is_none() {
            self.connect_nic(id);
        }
        true
    }

    fn connect_nic(&mut self, id: NicId) {
        if let Some(nic) = self.nics.get(&id) {
            let socket = adapter::control_socket(&nic.directory);
            self.connect(Peer::Nic(id), socket, Duration::ZERO);
        }
    }

    /// Connects to all NICs to which no connection was begun.
    pub(super) fn connect_nics(&mut self) {
        let nics: Vec<_> = self
            .nics
            .keys()
            .filter(|id| !self.links.contains_key(&Peer::Nic(**id)))
            .copied()
            .collect();
        for id in nics {
            self.connect_nic(id);
        }
    }

    fn add_switch(&mut self, settings: &SwitchSettings) -> Result<bool, StackError> {
        if self.switch_id(&settings.name).is_some() {
            return Ok(false);
        }
        let kind = match &settings.kind {
            SwitchReach::External { nic, teamed } => match self.nic_id(nic) {
                Some(nic) => SwitchKind::External { nic, teamed: *teamed },
                // The configuration's NICs are all there.
                None => SwitchKind::Internal,
            },
            SwitchReach::Internal => SwitchKind::Internal,
            SwitchReach::Private => SwitchKind::Private,
        };
        let id = VmSwitchId(next(&mut self.ids.switch));
        let config = SwitchConfig { name: settings.name.clone(), kind, iov_enabled: settings.iov };
        self.step(Input::SwitchSet(id, config))?;
        self.names.switches.insert(id, settings.name.clone());
        let switch = Switch {
            settings: settings.clone(),
            told: None,
            retry: None,
            uplink: UplinkReport::default(),
        };
        self.switches.insert(id, switch);
        self.connect(Peer::Switch(id), settings.socket.clone(), Duration::ZERO);
        Ok(true)
    }

    fn add_vm(&mut self, settings: &VmSettings) -> Result<bool, StackError> {
        if self.vm_id(&settings.name).is_some() {
            return Ok(false);
        }
        let id = VmId(next(&mut self.ids.vm));
        let config = VmConfig { name: name(&settings.name), friendly_name: name(&settings.name) };
        self.step(Input::VmSet(id, config))?;
        self.names.vms.insert(id, settings.name.clone());
        let (name, socket) = (settings.name.clone(), settings.socket.clone());
        let vm = Vm {
            name,
            socket,
            state: VmState::Off,
            life: 0,
            told: Default::default(),
            synthetic_nics: Default::default(),
        };
        self.vms.insert(id, vm);
        self.connect(Peer::Vm(id), settings.socket.clone(), Duration::ZERO);
        Ok(true)
    }

    fn stack_config(&self, vm: VmId, settings: &AdapterSettings) -> AdapterConfig {
        AdapterConfig {
            name: name(&settings.name),
            kind: settings.kind,
            switch: settings.switch.as_deref().and_then(|switch| self.switch_id(switch)),
            vlan: settings.vlan.clone(),
            iov_weight: settings.iov_weight,
            iov_queue_pairs_requested: settings.queue_pairs,
            iov_interrupt_moderation: settings.interrupt_moderation,
            mac_spoofing: settings.mac_spoofing,
            policies: settings.policies.clone(),
            allow_policy_bypass: settings.allow_policy_bypass,
            ..AdapterConfig::new(vm, settings.mac)
        }
    }

    /// An adapter is there, or changed; says whether it is other than before.
    fn put_adapter(&mut self, vm: VmId, settings: &AdapterSettings) -> Result<bool, StackError> {
        if let Some(id) = self.adapter_id(vm, &settings.name) {
            return self.change_adapter(id, settings.clone());
        }
        let id = AdapterId(next(&mut self.ids.adapter));
        let vm_name = self.vms.get(&vm).map_or("", |vm| vm.name.as_str());
        self.names.adapters.insert(id, format!("{vm_name}/{}", settings.name));
        self.step(Input::AdapterSet(id, self.stack_config(vm, settings)))?;
        let taken: BTreeSet<u32> =
            self.adapters.values().filter(|a| a.vm == vm).map(|a| a.number).collect();
        let number = (0..).find(|number| !taken.contains(number)).unwrap_or_default();
        let adapter = Adapter {
            vm,
            number,
            settings: settings.clone(),
            port_switch: None,
            leaving: false,
            port: None,
            request: 0,
            port_error: None,
            offered: None,
            in_use: false,
            path: None,
        };
        self.adapters.insert(id, adapter);
        self.tell_synthetic_nic(vm, number, None);
        Ok(true)
    }

    fn change_adapter(
        &mut self,
        id: AdapterId,
        settings: AdapterSettings,
    ) -> Result<bool, StackError> {
        let Some(adapter) = self.adapters.get(&id) else {
            return Err(StackError::NoSuchAdapter(id));
        };
        if adapter.settings == settings {
            return Ok(false);
        }
        let vm = adapter.vm;
        let effects = self.effects_of(Input::AdapterSet(id, self.stack_config(vm, &settings)))?;
        if let Some(adapter) = self.adapters.get_mut(&id) {
            adapter.settings = settings;
        }
        self.publish(ProcessEvent::AdapterChanged { adapter: id });
        effects.into_iter().for_each(|effect| self.carry_out(effect));
        if let Some(switch) = self.adapters.get(&id).and_then(|adapter| adapter.port_switch) {
            self.tell_ports(switch);
        }
        self.tell_adapters(vm);
        Ok(true)
    }

    /// What follows desired state when the stack lets it: ports move to another switch once the VF of the one before is
    /// given back, and what is removed goes when nothing of it is left. Says whether there is something new for the stack.
    pub(super) fn follow(&mut self) -> bool {
        for id in self.adapters.keys().copied().collect::<Vec<_>>() {
            let Some(state) = self.stack.state(id) else {
                self.forget_adapter(id);
                continue;
            };
            let has_vf = state.has_vf();
            if !has_vf {
                self.clear_port(id);
            }
            let Some(adapter) = self.adapters.get(&id) else { continue };
            let desired = adapter.settings.switch.as_deref().and_then(|name| self.switch_id(name));
            if adapter.port_switch != desired && !adapter.leaving && !has_vf {
                self.move_port(id, desired);
            }
        }
        self.forget_the_removed();
        self.greet();
        !self.inputs.is_empty()
    }

    /// The new port is there before the VM's host side looks for it.
    fn move_port(&mut self, id: AdapterId, to: Option<VmSwitchId>) {
        let Some(adapter) = self.adapters.get_mut(&id) else { return };
        let from = std::mem::replace(&mut adapter.port_switch, to);
        let vm = adapter.vm;
        if adapter.port.take().is_some() {
            self.inputs.push_back(Input::NetVsp(id, NetVspReport::Closed));
        }
        if let Some(to) = to {
            self.tell_ports(to);
        }
        self.tell_adapters(vm);
        if let Some(from) = from {
            self.tell_ports(from);
        }
    }

    fn forget_adapter(&mut self, id: AdapterId) {
        let Some(adapter) = self.adapters.remove(&id) else { return };
        self.names.adapters.remove(&id);
        self.tell_adapters(adapter.vm);
        if let Some(switch) = adapter.port_switch {
            self.tell_ports(switch);
        }
    }

    /// VMs, switches and NICs that are not configured any more, and that nothing uses.
    fn forget_the_removed(&mut self) {
        let kept = &self.configuration;
        let vms: Vec<_> = self
            .vms
            .iter()
            .filter(|(_, vm)| !kept.vms.iter().any(|its| its.name == vm.name))
            .map(|(id, _)| *id)
            .filter(|id| !self.adapters.values().any(|adapter| adapter.vm == *id))
            .collect();
        let switches: Vec<_> = self
            .switches
            .iter()
            .filter(|(_, s)| !kept.switches.iter().any(|its| its.name == s.settings.name))
            .map(|(id, _)| *id)
            .filter(|id| !self.adapters.values().any(|adapter| adapter.port_switch == Some(*id)))
            .collect();
        for id in vms {
            self.disconnect(Peer::Vm(id));
            self.vms.remove(&id);
            self.inputs.push_back(Input::VmRemoved(id));
            self.names.vms.remove(&id);
        }
        for id in switches {
            self.disconnect(Peer::Switch(id));
            self.switches.remove(&id);
            self.inputs.push_back(Input::SwitchRemoved(id));
            self.names.switches.remove(&id);
        }
        let nics: Vec<_> = self
            .nics
            .iter()
            .filter(|(_, nic)| !self.configuration.nics.iter().any(|its| its.name == nic.name))
            .filter(|(_, nic)| !self.switches.values().any(|switch| {
                matches!(&switch.settings.kind, SwitchReach::External { nic: its, .. } if *its == nic.name)
            }))
            .map(|(id, _)| *id)
            .collect();
        for id in nics {
            self.disconnect(Peer::Nic(id));
            self.nics.remove(&id);
            self.inputs.push_back(Input::NicDisconnected(id));
            self.names.nics.remove(&id);
        }
    }

    /// What stands against taking a configuration over while the stack runs.
    fn objection(&self, new: &Configuration) -> Option<String> {
        let fixed = |what: &str, name: &str, key: &str| {
            Some(format!(
                "{key} of {what} {name} cannot change while the stack runs: give it another name, or restart the stack"
            ))
        };
        if new.timeouts != self.configuration.timeouts
            || new.silent_guest != self.configuration.silent_guest
        {
            return Some(
                "[stack] and [timeouts] count from the start: restart the stack".to_owned(),
            );
        }
        for nic in &new.nics {
            let old = self.nics.values().find(|old| old.name == nic.name);
            if old.is_some_and(|old| old != nic) {
                return fixed("NIC", &nic.name, "directory");
            }
        }
        for switch in &new.switches {
            let others = self.switches.values().map(|switch| &switch.settings);
            if others.clone().any(|old| old.name == switch.name && old != switch) {
                return fixed("switch", &switch.name, "socket, kind, nic, teamed or iov");
            }
            let SwitchReach::External { nic, .. } = &switch.kind else { continue };
            let has = |old: &&SwitchSettings| {
                old.name != switch.name
                    && matches!(&old.kind, SwitchReach::External { nic: its, .. } if its == nic)
            };
            if let Some(old) = others.clone().find(has) {
                return Some(format!(
                    "the NIC {nic} is still the uplink of switch {}: reload without that switch first",
                    old.name
                ));
            }
        }
        for vm in &new.vms {
            let Some(id) = self.vm_id(&vm.name) else { continue };
            if self.vms.get(&id).is_some_and(|old| old.socket != vm.socket) {
                return fixed("VM", &vm.name, "socket");
            }
            let objection = vm.adapters.iter().find_map(|adapter| {
                let old = self.adapter_id(id, &adapter.name)?;
                let old = &self.adapters.get(&old)?.settings;
                let same = old.mac == adapter.mac
                    && old.kind == adapter.kind
                    && old.socket == adapter.socket;
                if same { None } else { fixed("adapter", &adapter.name, "mac, kind or socket") }
            });
            if objection.is_some() {
                return objection;
            }
        }
        // What leaves may still have its address.
        let leaving = self.adapters.iter().filter(|(_, adapter)| {
            let vm = self.vms.get(&adapter.vm).map_or("", |vm| vm.name.as_str());
            let vm = new.vms.iter().find(|its| its.name == vm);
            !vm.is_some_and(|vm| vm.adapters.iter().any(|a| a.name == adapter.settings.name))
        });
        for (id, adapter) in leaving {
            let mac = adapter.settings.mac;
            let mut others = new.vms.iter().flat_map(|vm| &vm.adapters);
            if others.any(|its| its.mac == mac) {
                let old = self.names.adapter(*id);
                return Some(format!(
                    "the address {mac} is still that of {old}: reload without that adapter first"
                ));
            }
        }
        None
    }

    /// Reads the configuration file again.
    pub(super) fn reload(&mut self) -> Outcome {
        let refused = |why| Outcome::Refused { why };
        let Some(file) = self.configuration.file.clone() else {
            return refused("the stack was started without a configuration file".to_owned());
        };
        let new = match Configuration::read(&file) {
            Ok(new) => new,
            Err(error) => return refused(error.to_string()),
        };
        if let Some(why) = self.objection(&new) {
            return refused(format!("{}: {why}", file.display()));
        }
        match self.configure(new) {
            Ok(changes) => {
                self.publish(ProcessEvent::ConfigurationReloaded { changes });
                Outcome::Done
            }
            Err(error) => refused(self.names.spell(&error.to_string())),
        }
    }

    fn named(&self, name: &AdapterName) -> Result<AdapterId, String> {
        let AdapterName { vm, adapter } = name;
        let Some(id) = self.vm_id(vm) else {
            let vms: Vec<_> = self.vms.values().map(|vm| vm.name.as_str()).collect();
            return Err(format!("there is no VM {vm}; there are {}", vms.join(", ")));
        };
        self.adapter_id(id, adapter).ok_or_else(|| {
            let names: Vec<_> = self
                .adapters
                .values()
                .filter(|its| its.vm == id && !its.leaving)
                .map(|its| its.settings.name.as_str())
                .collect();
            format!("VM {vm} has no adapter {adapter}; it has {}", names.join(", "))
        })
    }

    /// Somebody changes an adapter.
    pub(super) fn set_adapter(&mut self, asked: SetAdapter) -> Outcome {
        let SetAdapter { vm, adapter, change } = asked;
        match self.try_to_set(&AdapterName { vm, adapter }, change) {
            Ok(()) => Outcome::Done,
            Err(why) => Outcome::Refused { why: self.names.spell(&why) },
        }
    }

    fn try_to_set(&mut self, name: &AdapterName, change: AdapterChange) -> Result<(), String> {
        let id = self.named(name)?;
        let settings = self.adapters.get(&id).map(|adapter| adapter.settings.clone());
        let mut settings = settings.ok_or("the adapter is gone")?;
        let AdapterChange {
            iov_weight,
            queue_pairs,
            interrupt_moderation,
            vlan,
            connection,
            mac_spoofing,
            policies,
            allow_policy_bypass,
        } = change;
        settings.iov_weight = iov_weight.unwrap_or(settings.iov_weight);
        settings.queue_pairs = queue_pairs.unwrap_or(settings.queue_pairs);
        settings.mac_spoofing = mac_spoofing.unwrap_or(settings.mac_spoofing);
        settings.allow_policy_bypass = allow_policy_bypass.unwrap_or(settings.allow_policy_bypass);
        if let Some(moderation) = interrupt_moderation {
            let known = ndis_protocol::InterruptModeration::from_wire(moderation);
            settings.interrupt_moderation =
                known.ok_or("the interrupt moderation is none of 0, 1, 2, 100, 200 and 300")?;
        }
        if let Some(vlan) = vlan {
            settings.vlan = vlan_setting(&vlan).ok_or("a VLAN is not from 1 to 4094")?;
        }
        if let Some(policies) = policies {
            settings.policies = policies.into_iter().collect();
        }
        match connection {
            None => {}
            Some(Connection::Disconnected) => settings.switch = None,
            Some(Connection::Switch(switch)) => {
                if self.switch_id(&switch).is_none() {
                    let known: Vec<_> =
                        self.configuration.switches.iter().map(|s| s.name.as_str()).collect();
                    let known = known.join(", ");
                    return Err(format!("there is no switch {switch}; there are {known}"));
                }
                settings.switch = Some(switch);
            }
        }
        self.change_adapter(id, settings).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Somebody wants what was given up to be tried again.
    pub(super) fn retry(&mut self, name: &AdapterName) -> Outcome {
        let done = self
            .named(name)
            .and_then(|id| self.step(Input::Retry(id)).map_err(|error| error.to_string()));
        match done {
            Ok(()) => Outcome::Done,
            Err(why) => Outcome::Refused { why: self.names.spell(&why) },
        }
    }
}
