//! What the administrator does to the world, and what goes wrong in it.

use ndis_protocol::{InterruptModeration, VlanId};
use pcivirt_protocol::NtStatus;
use pf_driver::pnp::PnpEvent;
use virtualization_stack::{
    AdapterId, CallError, HostReason, Input, NetVspReport, NicId, Policy, VlanSetting, VmId,
    VmState,
};

use crate::guest::Mood;
use crate::world::World;

/// A kind of thing that the administrator does or that goes wrong; a run can be made without some of them.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Weight,
    QueuePairs,
    Moderation,
    Vlan,
    Mac,
    Policies,
    Connection,
    Extension,
    VmPower,
    Migration,
    GuestReset,
    GuestMood,
    GuestLeaves,
    VmKill,
    SwitchKill,
    NicStop,
    NicGoesOn,
    NicRemove,
    NicKill,
    NicConnectionLost,
    NicHang,
    NicRefuses,
    NicSurprise,
    NicStart,
    Foreign,
    Ranges,
    VfError,
    HostReasons,
    AddRemove,
    Retry,
    VpciFails,
    Capabilities,
    Hostile,
    Uplink,
}

impl Kind {
    pub(crate) const ALL: [Self; 34] = [
        Self::Weight,
        Self::QueuePairs,
        Self::Moderation,
        Self::Vlan,
        Self::Mac,
        Self::Policies,
        Self::Connection,
        Self::Extension,
        Self::VmPower,
        Self::Migration,
        Self::GuestReset,
        Self::GuestMood,
        Self::GuestLeaves,
        Self::VmKill,
        Self::SwitchKill,
        Self::NicStop,
        Self::NicGoesOn,
        Self::NicRemove,
        Self::NicKill,
        Self::NicConnectionLost,
        Self::NicHang,
        Self::NicRefuses,
        Self::NicSurprise,
        Self::NicStart,
        Self::Foreign,
        Self::Ranges,
        Self::VfError,
        Self::HostReasons,
        Self::AddRemove,
        Self::Retry,
        Self::VpciFails,
        Self::Capabilities,
        Self::Hostile,
        Self::Uplink,
    ];

    /// What happens in a world: uplinks fail in later ones only, so that the recorded seeds mean what they meant.
    pub(crate) const fn of(seed: u64) -> &'static [Self] {
        let (before, _) = Self::ALL.split_at(Self::Uplink as usize);
        if seed > 4000 { &Self::ALL } else { before }
    }
}

impl World {
    fn some_adapter(&mut self) -> Option<AdapterId> {
        let ids: Vec<_> =
            self.adapters.iter().filter(|(_, a)| a.exists).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| self.random.pick(&ids))
    }

    fn some_nic(&mut self) -> NicId {
        let ids: Vec<_> = self.nics.keys().copied().collect();
        self.random.pick(&ids)
    }

    fn some_vm(&mut self) -> VmId {
        let ids: Vec<_> = self.vms.keys().copied().collect();
        self.random.pick(&ids)
    }

    pub(crate) fn happen(&mut self, kind: Kind) {
        *self.counts.entry("faults and changes").or_default() += 1;
        let nic = self.some_nic();
        let vm = self.some_vm();
        let Some(adapter) = self.some_adapter() else { return };
        let random = self.random.next();
        match kind {
            Kind::Weight => self.set_adapter(adapter, |config| {
                config.iov_weight = if config.iov_weight == 0 { 50 } else { 0 };
            }),
            Kind::QueuePairs => self.set_adapter(adapter, |config| {
                config.iov_queue_pairs_requested = [1, 2, 3, 4, 64][random as usize % 5];
            }),
            Kind::Moderation => self.set_adapter(adapter, |config| {
                use InterruptModeration::{Adaptive, High, Undefined};
                config.iov_interrupt_moderation = [Undefined, Adaptive, High][random as usize % 3];
            }),
            Kind::Vlan => self.set_adapter(adapter, |config| {
                let vlan = |n: u64| VlanId::new(100 + (n % 7) as u16).unwrap();
                config.vlan = match random % 4 {
                    0 | 1 => VlanSetting::Untagged,
                    2 => VlanSetting::Access(vlan(random >> 8)),
                    _ => VlanSetting::Trunk {
                        native: (random & 16 != 0).then(|| vlan(random >> 16)),
                        allowed: (0..random >> 24 & 3).map(|n| vlan((random >> 32) + n)).collect(),
                    },
                };
            }),
            Kind::Mac => {
                let mac = self.fresh_mac();
                self.set_adapter(adapter, |config| config.mac = mac);
            }
            Kind::Policies => self.set_adapter(adapter, |config| match random % 3 {
                0 => config.policies = [Policy::PortAcl, Policy::DhcpGuard].into(),
                1 => config.policies.clear(),
                _ => config.allow_policy_bypass = !config.allow_policy_bypass,
            }),
            Kind::Connection => {
                let switches: Vec<_> = self.switches.keys().copied().collect();
                let to = switches[random as usize % switches.len()];
                let to = (random >> 32 & 7 != 0).then_some(to);
                if self.adapters[&adapter].config.switch != to {
                    let model = self.adapters.get_mut(&adapter).unwrap();
                    model.switch_gone();
                    if !model.is_virtio_net() {
                        self.tell(Input::NetVsp(adapter, NetVspReport::Closed));
                    }
                    self.set_adapter(adapter, |config| config.switch = to);
                }
            }
            Kind::Extension => {
                let model = self.adapters.get_mut(&adapter).unwrap();
                model.extension_revoked = !model.extension_revoked;
                let revoked = model.extension_revoked;
                self.tell(Input::ExtensionRevokes(adapter, revoked));
            }
            Kind::VmPower => {
                let off = self.vms[&vm].state == VmState::Off;
                self.set_vm(vm, if off { VmState::Running } else { VmState::Off });
            }
            Kind::Migration => match self.vms[&vm].state {
                VmState::Off => {}
                VmState::Running => {
                    let state = [VmState::Migrating, VmState::Saving][random as usize % 2];
                    self.set_vm(vm, state);
                }
                _ => self.set_vm(vm, VmState::Running),
            },
            Kind::GuestReset => self.reset_guest(vm),
            Kind::GuestMood => {
                let mood = Mood::ALL[random as usize % Mood::ALL.len()];
                let well = [Mood::Good, Mood::Linux][random as usize >> 8 & 1];
                let model = self.vms.get_mut(&vm).unwrap();
                model.mood = if random >> 32 & 1 == 0 { well } else { mood };
                model.host_hung = random >> 33 & 15 == 0;
                let mood = model.mood;
                self.note(|| format!("{vm} is {mood:?} now"));
            }
            Kind::GuestLeaves => self.adapters.get_mut(&adapter).unwrap().leave(),
            Kind::VmKill => self.set_vm(vm, VmState::Off),
            Kind::SwitchKill => {
                let ids: Vec<_> = self.switches.keys().copied().collect();
                let id = ids[random as usize % ids.len()];
                let running = self.switches[&id].running;
                self.set_switch(id, !running);
            }
            Kind::Uplink => {
                let ids: Vec<_> = self.switches.keys().copied().collect();
                let id = ids[random as usize % ids.len()];
                let up = !self.switches[&id].uplink_up;
                *self.counts.entry("changes of an uplink").or_default() += 1;
                self.set_uplink(id, up);
            }
            _ => self.happen_to_nic(kind, nic, adapter, random),
        }
    }

    fn happen_to_nic(&mut self, kind: Kind, nic: NicId, adapter: AdapterId, random: u64) {
        let model = self.nics.get_mut(&nic).unwrap();
        match kind {
            Kind::NicStop if model.alive => {
                self.note(|| format!("{nic} is asked to stop"));
                self.nics.get_mut(&nic).unwrap().query_stop();
            }
            Kind::NicGoesOn if model.alive => {
                let was = model.thread;
                self.go_on(nic, random.is_multiple_of(2));
                self.note(|| format!("{nic} goes on from {was:?}"));
            }
            Kind::NicRemove if model.alive => {
                self.note(|| format!("{nic} is asked to be removed"));
                self.nics.get_mut(&nic).unwrap().query_remove();
            }
            Kind::NicKill => {
                let was = model.connected;
                model.kill();
                if was {
                    self.tell(Input::NicDisconnected(nic));
                }
            }
            Kind::NicConnectionLost => {
                let was = model.connected;
                model.disconnect();
                if was {
                    self.tell(Input::NicDisconnected(nic));
                }
            }
            Kind::NicHang => model.hung = model.alive && random.is_multiple_of(8),
            Kind::NicRefuses => model.refuses = (random % 3) as u32,
            Kind::NicSurprise if model.alive && random.is_multiple_of(2) => {
                self.note(|| format!("{nic} is pulled out"));
                self.nics.get_mut(&nic).unwrap().pnp(PnpEvent::SurpriseRemoval);
            }
            Kind::NicStart => self.start_nic(nic),
            Kind::Foreign => {
                if random.is_multiple_of(2) {
                    model.take_foreign()
                } else {
                    model.free_foreign()
                }
            }
            Kind::Ranges => model.change_ranges((random % 4) as u16),
            Kind::VfError => self.tell(Input::VfError(nic, (random % 4) as u16)),
            Kind::HostReasons => {
                self.host = match random % 3 {
                    0 => vec![HostReason::NoDmaRemapping, HostReason::NoOscControl],
                    _ => Vec::new(),
                };
                let host = self.host.clone();
                self.tell(Input::Host(host));
            }
            Kind::AddRemove => {
                self.adapters.get_mut(&adapter).unwrap().exists = false;
                self.tell(Input::AdapterRemoved(adapter));
                if random.is_multiple_of(2) {
                    let vm = self.adapters[&adapter].config.vm;
                    // The one that goes may still count.
                    let has = self
                        .stack
                        .adapter_ids()
                        .filter(|id| self.adapters.get(id).is_some_and(|a| a.config.vm == vm));
                    if has.count() < 8 {
                        let id = AdapterId(self.adapters.keys().last().unwrap().0 + 1);
                        self.add_adapter(id, vm, nic);
                    }
                }
            }
            Kind::Retry => self.tell(Input::Retry(adapter)),
            Kind::VpciFails => self.vpci_fails = random.is_multiple_of(4),
            Kind::Capabilities => self.tell(Input::NicCapabilitiesChanged(nic)),
            Kind::Hostile => self.hostile(nic, adapter, random),
            _ => {}
        }
    }

    /// What nobody in his right mind would say.
    fn hostile(&mut self, nic: NicId, adapter: AdapterId, random: u64) {
        use virtualization_stack::{DataPath, NicReply, RequestId, VfSerial, VpciReport};
        let path = [DataPath::Vf, DataPath::Synthetic][random as usize >> 8 & 1];
        let serial = VfSerial((random >> 16 & 7) as u32);
        match random % 6 {
            0 => {
                let model = self.adapters.get_mut(&adapter).unwrap();
                // What is said of a virtio-net's path says its VM's host side.
                if model.netvsc_up && !model.is_virtio_net() {
                    model.hostile = true;
                    model.asked = Some(path);
                    model.from_netvsp.push_back(NetVspReport::AsksDataPath(path));
                }
            }
            1 => {
                if let Some(serial) = self.adapters[&adapter].device {
                    let model = self.adapters.get_mut(&adapter).unwrap();
                    model.ejected = true;
                    model.leave_if_virtio_net();
                    self.tell(Input::Vpci(adapter, serial, VpciReport::EjectComplete));
                }
            }
            2 => self.tell(Input::Vpci(
                adapter,
                serial,
                VpciReport::OfferFailed { status: NtStatus::CANCELLED, cause: None },
            )),
            3 => self.tell(Input::NicCompleted(nic, RequestId(random >> 8 & 63), {
                // Only of requests that are long done: others would be lies of the NIC, which is trusted.
                if self.nics[&nic].connected {
                    return;
                }
                Ok(NicReply::Done)
            })),
            4 => self.tell(Input::NicCompleted(
                NicId(9),
                RequestId(1),
                Err(CallError::Nt(NtStatus::CANCELLED)),
            )),
            _ => self.tell(Input::Tick),
        }
    }
}
