//! The stack: all NICs, switches, VMs and adapters, and the one function that takes what happens and yields what to do.

mod configure;
mod nics;
mod reasons;
mod settle;
mod status;

use std::collections::BTreeMap;

use crate::network_adapter::{HoldOffKind, NetworkAdapter};
use crate::nic::Nic;
use crate::outbox::{Outbox, Owner};
use crate::{
    AdapterId, Effect, HostReason, Input, NicId, NicSurvey, Reason, RequestId, StackConfig,
    StackError, State, SwitchConfig, Time, Uplink, VmConfig, VmId, VmState, VmSwitchId,
};

/// A switch.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    pub(crate) config: SwitchConfig,
    /// Whether its process runs.
    pub(crate) running: bool,
    /// How its uplink is.
    pub(crate) uplink: Uplink,
}

/// A VM.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) config: VmConfig,
    pub(crate) state: VmState,
}

/// The virtualization stack.
///
/// [`Stack::step`] is called with everything that happens, in the order in which it happens, by one thread; the effects it
/// returns are to be carried out in their order before the next call, or at least be begun in that order towards each
/// receiver. What follows from a fact is done at once; what has to wait waits for an [`Input`] or for the time that
/// [`Effect::SetTimer`] names.
#[derive(Debug)]
pub struct Stack {
    config: StackConfig,
    host: Vec<HostReason>,
    nics: BTreeMap<NicId, Nic>,
    switches: BTreeMap<VmSwitchId, Switch>,
    vms: BTreeMap<VmId, Vm>,
    adapters: BTreeMap<AdapterId, NetworkAdapter>,
    out: Outbox,
    timer: Option<Time>,
    last_turn: u64,
}

impl Stack {
    /// A stack that knows of nothing yet.
    pub fn new(config: StackConfig) -> Self {
        Self {
            config,
            host: Vec::new(),
            nics: BTreeMap::new(),
            switches: BTreeMap::new(),
            vms: BTreeMap::new(),
            adapters: BTreeMap::new(),
            out: Outbox::new(config.last_serial),
            timer: None,
            last_turn: 0,
        }
    }

    /// Takes what has happened, and yields what is to be done.
    ///
    /// # Errors
    /// [`StackError`] if desired state makes no sense; nothing has changed then. Reports about what the stack does not
    /// know (any more) are not errors, and change nothing.
    pub fn step(&mut self, input: Input, now: Time) -> Result<Vec<Effect>, StackError> {
        self.take(input, now)?;
        self.settle(now);
        let timer = self.next_time();
        if timer != self.timer {
            self.timer = timer;
            self.out.effects.push(Effect::SetTimer(timer));
        }
        Ok(core::mem::take(&mut self.out.effects))
    }

    fn take(&mut self, input: Input, now: Time) -> Result<(), StackError> {
        match input {
            Input::Tick => {}
            Input::Host(reasons) => self.host = reasons,
            Input::NicSurvey(nic, survey) => self.nic_survey(nic, survey),
            Input::SwitchSet(id, config) => self.switch_set(id, config)?,
            Input::SwitchRemoved(id) => self.switch_removed(id)?,
            Input::VmSet(id, config) => self.vm_set(id, config),
            Input::VmRemoved(id) => self.vm_removed(id)?,
            Input::AdapterSet(id, config) => self.adapter_set(id, config)?,
            Input::AdapterRemoved(id) => self.adapter(id)?.removed = true,
            Input::Retry(id) => {
                let adapter = self.adapter(id)?;
                adapter.hold_off = None;
                adapter.refusal = None;
            }
            Input::ExtensionRevokes(id, revokes) => self.adapter(id)?.extension_revoked = revokes,
            Input::VmState(id, state) => self.vm_state(id, state)?,
            Input::GuestReset(id) => {
                self.vms.get(&id).ok_or(StackError::NoSuchVm(id))?;
                self.adapters_of(id).for_each(NetworkAdapter::guest_reset);
            }
            Input::SwitchStarted(id) => self.switch(id)?.running = true,
            Input::SwitchStopped(id) => {
                let switch = self.switch(id)?;
                (switch.running, switch.uplink) = (false, Uplink::Up);
                for adapter in self.adapters.values_mut().filter(|a| a.config.switch == Some(id)) {
                    adapter.switch_gone();
                }
            }
            Input::SwitchUplink(id, uplink) => self.switch(id)?.uplink = uplink,
            Input::NetVsp(id, report) => {
                if let Some(adapter) = self.adapters.get_mut(&id) {
                    adapter.netvsp(report);
                }
            }
            Input::Vpci(id, serial, report) => self.vpci(id, serial, report, now),
            Input::NicConnected(nic) => self.nic_connected(nic, now),
            Input::NicDisconnected(nic) => self.nic_gone(nic, now),
            Input::NicCompleted(nic, request, result) => {
                self.nic_completed(nic, request, result, now);
            }
            Input::NicCapabilitiesChanged(nic) => {
                if let Some(nic) = self.nics.get_mut(&nic) {
                    nic.look_again = true;
                }
            }
            Input::VfError(nic, vf) => self.vf_error(nic, vf, now),
        }
        Ok(())
    }

    fn adapter(&mut self, id: AdapterId) -> Result<&mut NetworkAdapter, StackError> {
        self.adapters.get_mut(&id).ok_or(StackError::NoSuchAdapter(id))
    }

    fn switch(&mut self, id: VmSwitchId) -> Result<&mut Switch, StackError> {
        self.switches.get_mut(&id).ok_or(StackError::NoSuchSwitch(id))
    }

    fn adapters_of(&mut self, vm: VmId) -> impl Iterator<Item = &mut NetworkAdapter> {
        self.adapters.values_mut().filter(move |adapter| adapter.config.vm == vm)
    }

    fn nic_survey(&mut self, nic: NicId, survey: NicSurvey) {
        self.nics.entry(nic).or_insert_with(|| Nic::new(nic)).host_survey = survey;
    }

    fn vm_state(&mut self, id: VmId, state: VmState) -> Result<(), StackError> {
        let vm = self.vms.get_mut(&id).ok_or(StackError::NoSuchVm(id))?;
        let changed = core::mem::replace(&mut vm.state, state) != state;
        for adapter in self.adapters_of(id) {
            if state == VmState::Off {
                adapter.guest_gone();
            }
            if changed {
                adapter.end_hold_off(HoldOffKind::Guest);
            }
        }
        Ok(())
    }

    fn vpci(
        &mut self,
        id: AdapterId,
        serial: crate::VfSerial,
        report: crate::VpciReport,
        now: Time,
    ) {
        self.with_adapter(id, now, |adapter, cx| {
            if adapter.guest.serial == Some(serial) {
                adapter.vpci_report(report, cx);
            }
        });
    }

    fn vf_error(&mut self, nic: NicId, vf: u16, now: Time) {
        let holder = self.adapters.values().find(|adapter| {
            adapter.home == Some(nic) && adapter.vf.as_ref().is_some_and(|held| held.id.get() == vf)
        });
        if let Some(id) = holder.map(|adapter| adapter.id) {
            self.with_adapter(id, now, |adapter, cx| adapter.vf_failed(cx));
        }
    }

    /// When the stack wants to be called again, if nothing happens before.
    pub fn next_time(&self) -> Option<Time> {
        let adapters = self.adapters.values().filter_map(NetworkAdapter::next_time);
        let nics = self.nics.values().filter_map(|nic| nic.deadline);
        let requests = self.out.outstanding.values().filter_map(|request| request.deadline);
        adapters.chain(nics).chain(requests).min()
    }

    /// State of an adapter.
    pub fn state(&self, adapter: AdapterId) -> Option<State> {
        self.adapters.get(&adapter).map(|adapter| adapter.state)
    }

    /// Why SR-IOV is not active on an adapter, or not as asked for: empty if it is. As it is now.
    pub fn reasons(&self, adapter: AdapterId) -> Vec<Reason> {
        self.adapters.get(&adapter).map_or_else(Vec::new, |adapter| self.all_reasons(adapter))
    }

    /// For which adapter a request was issued that is not completed; `None` if it is about the NIC alone.
    pub fn adapter_of(&self, request: RequestId) -> Option<AdapterId> {
        match self.out.outstanding.get(&request)?.owner {
            Owner::Adapter(adapter) | Owner::RangePoll(adapter, _) => Some(adapter),
            Owner::Attach | Owner::Survey | Owner::Notification | Owner::EventComplete => None,
        }
    }

    /// Whether every request but the long polls is completed, and no adapter is on the way anywhere.
    pub fn is_settled(&self) -> bool {
        self.out.outstanding.values().all(|request| request.call.is_long_poll())
    }
}
