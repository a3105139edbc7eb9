//! The first moments of a stack: guests may still have VFs of its life before. What is on a NIC from then is cleared away
//! when the NIC is connected, so those guests are asked to leave and to give up their VFs first, as long as frames still
//! reach them there: NICs wait meanwhile. A guest that does not answer loses its VF by surprise.
//!
//! Nothing is lost with a guest that answers: until its VF's driver has stopped, the VF receives; from then on the NIC
//! gives its frames to the default VPort.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use virtual_switch::control::{DataPath as PortPath, GuestState, PortStatus, VfCommand};
use virtualization_stack::{AdapterId, VmId};
use vm_worker::control::{DeviceName, DeviceState, PrivateControl, RemoveVf};

use super::Runtime;
use super::links::What;
use crate::event::{Peer, ProcessEvent};

/// How long NICs wait at most.
const LONGEST: Duration = Duration::from_secs(5);
/// And for a guest that gives its VF up by the button of its slot, which it takes 5 s to follow.
const LONGEST_BY_BUTTON: Duration = Duration::from_secs(15);

/// What is known of the life before.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) until: Instant,
    /// Switches and VMs of which it is not known whether they are there, and what they have.
    pending: BTreeSet<Peer>,
    /// Adapters whose guests send and receive on such a VF.
    on_vf: BTreeSet<AdapterId>,
    stale: BTreeMap<(VmId, DeviceKey), Step>,
}

/// Number of the adapter, and serial number.
type DeviceKey = (u32, u32);

/// How far a VF of the life before is given back.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Step {
    Found,
    Leaving,
    Ejecting,
    Removing,
}

impl Greeting {
    pub(super) fn of(peers: impl Iterator<Item = Peer>) -> Self {
        Self {
            until: Instant::now() + LONGEST,
            pending: peers.filter(|peer| !matches!(peer, Peer::Nic(_))).collect(),
            on_vf: BTreeSet::new(),
            stale: BTreeMap::new(),
        }
    }
}

impl Runtime {
    /// It is known of another process what it has, or that it is not there.
    pub(super) fn met(&mut self, peer: Peer) {
        if let Some(greeting) = &mut self.greeting {
            greeting.pending.remove(&peer);
        }
    }

    /// A port as a switch had it when it was connected.
    pub(super) fn met_port(&mut self, adapter: AdapterId, port: &PortStatus) {
        let stale = port.vf.is_some_and(|serial| !self.is_ours(serial));
        let used = port.data_path == PortPath::Vf && port.guest != GuestState::Closed;
        if let Some(greeting) = self.greeting.as_mut().filter(|_| stale && used) {
            greeting.on_vf.insert(adapter);
        }
    }

    /// The guest of an adapter is on the synthetic path.
    pub(super) fn on_synthetic(&mut self, adapter: AdapterId) {
        if let Some(greeting) = &mut self.greeting {
            greeting.on_vf.remove(&adapter);
        }
    }

    /// Whether an adapter's VF of the life before is being given back in order.
    pub(super) fn gives_back(&self, adapter: AdapterId) -> bool {
        let Some(adapter) = self.adapters.get(&adapter) else { return false };
        let Some(greeting) = &self.greeting else { return false };
        !greeting.pending.is_empty()
            || greeting
                .stale
                .keys()
                .any(|(vm, (number, _))| *vm == adapter.vm && *number == adapter.number)
    }

    /// A device that was not offered in this life. Says whether it is taken care of here.
    pub(super) fn met_device(
        &mut self,
        vm: VmId,
        adapter: u32,
        serial: u32,
        state: &DeviceState,
    ) -> bool {
        let key = (vm, (adapter, serial));
        let Some(greeting) = self.greeting.as_mut() else { return false };
        let ejecting = greeting.stale.get(&key) == Some(&Step::Ejecting);
        match state {
            DeviceState::Removed | DeviceState::OfferFailed { .. } => {
                greeting.stale.remove(&key);
            }
            DeviceState::EjectComplete => {
                greeting.stale.insert(key, Step::Removing);
                self.remove_stale(vm, adapter, serial, false);
            }
            // No NIC is connected that could be asked for its filters first.
            DeviceState::DeviceStarted if ejecting => {
                if let Some(id) = self.virtio_net_numbered(vm, adapter) {
                    self.let_leave(id);
                }
            }
            _ => {
                greeting.stale.entry(key).or_insert(Step::Found);
            }
        }
        true
    }

    /// Goes on with what is being given back; NICs are connected when nothing is left, or the time is over.
    pub(super) fn greet(&mut self) {
        let Some(greeting) = &self.greeting else { return };
        let over = greeting.until <= Instant::now();
        if !over && !greeting.pending.is_empty() {
            return;
        }
        let stale: Vec<_> = greeting.stale.iter().map(|(key, step)| (*key, *step)).collect();
        if over || stale.is_empty() {
            for ((vm, (adapter, serial)), _) in stale {
                self.remove_stale(vm, adapter, serial, true);
            }
            self.greeting = None;
            self.connect_nics();
            return;
        }
        for ((vm, key), step) in stale {
            if matches!(step, Step::Found | Step::Leaving) {
                self.ask_back(vm, key, step);
            }
        }
    }

    fn ask_back(&mut self, vm: VmId, key: DeviceKey, step: Step) {
        let (number, serial) = key;
        let adapter = self.adapter_numbered(vm, number);
        let adapter = adapter.and_then(|id| Some((id, self.adapters.get(&id)?.port_switch?)));
        let on_vf = |id| self.greeting.as_ref().is_some_and(|g| g.on_vf.contains(id));
        let next = match (adapter, step) {
            (Some((id, switch)), _) if on_vf(&id) => {
                if step == Step::Found {
                    let command = VfCommand::SwitchDataPath { to: PortPath::Synthetic };
                    self.send_port_command(switch, id, command, "SwitchDataPath");
                }
                Step::Leaving
            }
            _ => {
                if let Some((id, switch)) = adapter {
                    let command = VfCommand::VfLost { serial };
                    self.send_port_command(switch, id, command, "VfLost");
                }
                let input = DeviceName { adapter: number, serial };
                let what = What::Command {
                    adapter: adapter.map(|(id, _)| id),
                    request: "EjectVf",
                    absence_is_fine: true,
                };
                let code = PrivateControl::EjectVf.code();
                let _ = self.send_private(Peer::Vm(vm), code, &input, 0, what);
                Step::Ejecting
            }
        };
        let by_button = self.virtio_net_numbered(vm, number).is_some();
        if let Some(greeting) = &mut self.greeting {
            greeting.stale.insert((vm, key), next);
            if by_button && step != next {
                greeting.until = greeting.until.max(Instant::now() + LONGEST_BY_BUTTON);
            }
        }
    }

    /// Takes away a device that was not offered in this life, or not on this connection.
    pub(super) fn remove_stale(&mut self, vm: VmId, number: u32, serial: u32, surprise: bool) {
        let peer = Peer::Vm(vm);
        let adapter = self.adapter_numbered(vm, number);
        let input = RemoveVf { adapter: number, serial, surprise };
        let what = What::Command { adapter, request: "RemoveVf", absence_is_fine: true };
        if self.send_private(peer, PrivateControl::RemoveVf.code(), &input, 0, what).is_ok()
            && !self.is_ours(serial)
        {
            self.publish(ProcessEvent::StaleVfRemoved { adapter, peer, serial, surprise });
        }
    }

    /// A VM's host side is gone, and what it had.
    pub(super) fn forget_met(&mut self, vm: VmId) {
        if let Some(greeting) = &mut self.greeting {
            greeting.stale.retain(|(its, _), _| *its != vm);
        }
    }
}
