//! Desired state, checked before it is taken over.

use super::{Stack, Switch, Vm};
use crate::config::MAX_ADAPTERS_PER_VM;
use crate::network_adapter::NetworkAdapter;
use crate::nic::Nic;
use crate::{
    AdapterConfig, AdapterId, StackError, SwitchConfig, SwitchKind, VmConfig, VmId, VmState,
    VmSwitchId,
};

impl Stack {
    pub(super) fn switch_set(
        &mut self,
        id: VmSwitchId,
        config: SwitchConfig,
    ) -> Result<(), StackError> {
        let fixed = |what| StackError::Fixed { object: id.to_string(), what };
        if let Some(switch) = self.switches.get(&id) {
            if switch.config.iov_enabled != config.iov_enabled {
                return Err(fixed("SR-IOV mode"));
            }
            if switch.config.kind != config.kind {
                return Err(fixed("kind"));
            }
        }
        if let SwitchKind::External { nic, .. } = config.kind {
            let other = self.switches.iter().find(|(other, switch)| {
                **other != id
                    && matches!(switch.config.kind, SwitchKind::External { nic: its, .. } if its == nic)
            });
            if let Some((switch, _)) = other {
                return Err(StackError::NicTaken { nic, switch: *switch });
            }
            self.nics.entry(nic).or_insert_with(|| Nic::new(nic));
        }
        let before = self.switches.remove(&id);
        let (running, uplink) =
            before.map(|switch| (switch.running, switch.uplink)).unwrap_or_default();
        self.switches.insert(id, Switch { config, running, uplink });
        Ok(())
    }

    pub(super) fn switch_removed(&mut self, id: VmSwitchId) -> Result<(), StackError> {
        self.switches.remove(&id).ok_or(StackError::NoSuchSwitch(id))?;
        for adapter in self.adapters.values_mut().filter(|a| a.config.switch == Some(id)) {
            adapter.config.switch = None;
            adapter.switch_gone();
        }
        Ok(())
    }

    pub(super) fn vm_set(&mut self, id: VmId, config: VmConfig) {
        let state = self.vms.get(&id).map_or(VmState::Off, |vm| vm.state);
        self.vms.insert(id, Vm { config, state });
    }

    pub(super) fn vm_removed(&mut self, id: VmId) -> Result<(), StackError> {
        let adapters = self.adapters_of(id).count();
        if adapters > 0 {
            return Err(StackError::VmHasAdapters { vm: id, adapters });
        }
        self.vms.remove(&id).map(|_| ()).ok_or(StackError::NoSuchVm(id))
    }

    pub(super) fn adapter_set(
        &mut self,
        id: AdapterId,
        config: AdapterConfig,
    ) -> Result<(), StackError> {
        self.check(id, &config)?;
        let Some(adapter) = self.adapters.get_mut(&id) else {
            self.adapters.insert(id, NetworkAdapter::new(id, config));
            return Ok(());
        };
        if adapter.config == config {
            return Ok(());
        }
        adapter.config = config;
        // What was refused or given up may go well now.
        adapter.hold_off = None;
        adapter.refusal = None;
        Ok(())
    }

    fn check(&self, id: AdapterId, config: &AdapterConfig) -> Result<(), StackError> {
        let vm = config.vm;
        if !self.vms.contains_key(&vm) {
            return Err(StackError::NoSuchVm(vm));
        }
        if let Some(switch) = config.switch.filter(|switch| !self.switches.contains_key(switch)) {
            return Err(StackError::NoSuchSwitch(switch));
        }
        match self.adapters.get(&id) {
            Some(adapter) if adapter.removed => return Err(StackError::BeingRemoved(id)),
            Some(adapter) => {
                let fixed = |what| Err(StackError::Fixed { object: id.to_string(), what });
                if adapter.config.vm != vm {
                    return fixed("VM");
                }
                if adapter.config.kind != config.kind {
                    return fixed("kind");
                }
            }
            None => {
                let has = self.adapters.values().filter(|adapter| adapter.config.vm == vm).count();
                if has >= MAX_ADAPTERS_PER_VM {
                    return Err(StackError::TooManyAdapters { vm, most: MAX_ADAPTERS_PER_VM });
                }
            }
        }
        check_properties(config)?;
        let other = self.adapters.values().find(|other| {
            other.id != id
                && other.config.mac == config.mac
                && other.config.switch.is_some()
                && other.config.switch == config.switch
        });
        match other {
            Some(other) => Err(StackError::MacTaken { other: other.id }),
            None => Ok(()),
        }
    }
}

fn check_properties(config: &AdapterConfig) -> Result<(), StackError> {
    let wrong = |property, value, rule| Err(StackError::Property { property, value, rule });
    if config.iov_weight > 100 {
        let rule = "0 is off, 1 to 100 is on";
        return wrong("IovWeight", config.iov_weight.to_string(), rule);
    }
    if config.iov_queue_pairs_requested == 0 {
        let rule = "a VF has at least one queue pair";
        return wrong("IovQueuePairsRequested", "0".to_owned(), rule);
    }
    if !config.mac.is_valid_unicast() {
        return wrong("MacAddress", config.mac.to_string(), "a unicast address");
    }
    Ok(())
}
