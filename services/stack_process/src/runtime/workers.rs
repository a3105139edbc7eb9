//! The host sides of VMs: they are told which adapters they have, and which VFs to offer.

use std::collections::{BTreeMap, BTreeSet};

use device_control::{Completion, Target};
use pcivirt_protocol::NtStatus;
use virtual_switch::GuestPath;
use virtualization_stack::{
    AdapterId, AdapterKind, DataPath, Input, MitigatedRanges, NetVspReport, VfSerial, VmId,
    VmState, VpciCommand, VpciOffer, VpciReport,
};
use vm_worker::control::{
    AdapterConfig, AdapterNumber, AdapterStatus, DeviceName, DeviceState, DeviceStatus, GuestState,
    MAX_ADAPTERS, MitigatedRange, OfferVf, PrivateControl, REPORT_CAPACITY, RemoveVf,
    ReplaceMitigatedRanges, STATUS_CAPACITY, SyntheticNicKind, SyntheticNicState, WorkerReport,
    WorkerStatus,
};

use super::links::{NotSent, What};
use super::{Adapter, Runtime};
use crate::event::Peer;
use crate::nic_call::vf_socket;

/// Pages in which mitigated ranges are counted, bytes (SPEC-PCIVIRT §6).
const PAGE: u64 = 4096;

impl Runtime {
    /// What a VM's host side has is asked first: some of it may be of an earlier life of the stack.
    pub(super) fn worker_connected(&mut self, id: VmId) {
        let target = Target::Private(PrivateControl::Status.code());
        // If it cannot be sent the connection is lost again.
        let _ = self.send(Peer::Vm(id), target, &[], STATUS_CAPACITY, What::WorkerStatus);
    }

    pub(super) fn worker_status(&mut self, peer: Peer, completion: &Completion) {
        let Peer::Vm(id) = peer else { return };
        let status = completion.status.is_success().then_some(&completion.output);
        let status = status.and_then(|json| serde_json::from_slice::<WorkerStatus>(json).ok());
        let Some(status) = status else {
            self.nonsense(peer, "Status");
            return;
        };
        let with_device: BTreeSet<u32> = status.devices.iter().map(|d| d.adapter).collect();
        let without =
            self.adapters.iter().filter(|(_, a)| a.vm == id && !with_device.contains(&a.number));
        for adapter in without.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.guest_path(adapter, GuestPath::Synthetic);
        }
        for DeviceStatus { adapter, serial, state, .. } in status.devices {
            // Those of this life are reported, and taken away, by and by.
            if !self.is_ours(serial) {
                self.met_device(id, adapter, serial, &state);
            }
        }
        self.met(peer);
        let wanted = self.adapters_of(id);
        for AdapterStatus { adapter, .. } in status.adapters {
            if !wanted.contains_key(&adapter) {
                self.remove_adapter(id, adapter);
            }
        }
        self.tell_adapters(id);
        self.ask_worker(id);
    }

    pub(super) fn worker_lost(&mut self, id: VmId) {
        self.forget_met(id);
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.told.clear();
            (vm.state, vm.life) = (VmState::Off, 0);
        }
        for adapter in self.adapters.values_mut().filter(|adapter| adapter.vm == id) {
            adapter.offered = None;
        }
        self.forget_paths(id);
    }

    /// What was said of a guest's virtio-nets, and of who uses its VF, holds no more.
    fn forget_paths(&mut self, id: VmId) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.synthetic_nics.clear();
        }
        let ids: Vec<_> =
            self.adapters.iter().filter(|(_, a)| a.vm == id).map(|(id, _)| *id).collect();
        for adapter in ids {
            self.guest_path(adapter, GuestPath::Synthetic);
        }
        for (adapter_id, adapter) in self.adapters.iter_mut().filter(|(_, a)| a.vm == id) {
            adapter.in_use = false;
            if adapter.is_virtio_net() {
                self.inputs.push_back(Input::NetVsp(*adapter_id, NetVspReport::Closed));
            }
        }
    }

    fn ask_worker(&mut self, id: VmId) {
        let target = Target::Private(PrivateControl::NextReport.code());
        let _ = self.send(Peer::Vm(id), target, &[], REPORT_CAPACITY, What::WorkerReport);
    }

    /// The synthetic NICs that a VM is to have, by number.
    fn adapters_of(&self, id: VmId) -> BTreeMap<u32, (AdapterId, AdapterConfig)> {
        let config = |(adapter_id, adapter): (&AdapterId, &super::Adapter)| {
            let switch = self.switches.get(&adapter.port_switch?)?;
            let config = AdapterConfig {
                adapter: adapter.number,
                mac: adapter.settings.mac.to_string(),
                switch: switch.settings.socket.clone(),
                port: self.names.adapter(*adapter_id),
                max_channels: adapter.settings.channels,
                kind: match adapter.settings.kind {
                    AdapterKind::Synthetic => SyntheticNicKind::NetVsc,
                    AdapterKind::VhostUser => SyntheticNicKind::VirtioNet,
                    // It is the guest's like any PCI device, and nobody here has to know of it.
                    AdapterKind::Legacy => return None,
                },
            };
            Some((adapter.number, (*adapter_id, config)))
        };
        self.adapters.iter().filter(|(_, a)| a.vm == id).filter_map(config).collect()
    }

    /// Tells a VM's host side what of its adapters it was not told.
    pub(super) fn tell_adapters(&mut self, id: VmId) {
        let peer = Peer::Vm(id);
        if !self.is_up(peer) {
            return;
        }
        let wanted = self.adapters_of(id);
        let Some(vm) = self.vms.get(&id) else { return };
        let gone: Vec<u32> =
            vm.told.keys().filter(|number| !wanted.contains_key(number)).copied().collect();
        let changed: Vec<_> = wanted
            .into_iter()
            .filter(|(number, (_, config))| vm.told.get(number) != Some(config))
            .collect();
        for number in gone {
            self.remove_adapter(id, number);
        }
        for (number, (adapter, config)) in changed {
            let (adapter, absence_is_fine) = (Some(adapter), false);
            let what = What::Command { adapter, request: "SetAdapter", absence_is_fine };
            let code = PrivateControl::SetAdapter.code();
            let _ = self.send_private(peer, code, &config, 0, what);
            self.vms.get_mut(&id).map(|vm| vm.told.insert(number, config));
        }
    }

    fn remove_adapter(&mut self, id: VmId, adapter: u32) {
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.told.remove(&adapter);
        }
        let what = What::Command { adapter: None, request: "RemoveAdapter", absence_is_fine: true };
        let code = PrivateControl::RemoveAdapter.code();
        let _ = self.send_private(Peer::Vm(id), code, &AdapterNumber { adapter }, 0, what);
    }

    /// The adapter that has this number in its VM.
    pub(super) fn adapter_numbered(&self, vm: VmId, number: u32) -> Option<AdapterId> {
        let found = self.adapters.iter().find(|(_, a)| a.vm == vm && a.number == number);
        found.map(|(id, _)| *id)
    }

    /// The same, if it is a virtio-net.
    pub(super) fn virtio_net_numbered(&self, vm: VmId, number: u32) -> Option<AdapterId> {
        let is_virtio_net =
            |id: &AdapterId| self.adapters.get(id).is_some_and(Adapter::is_virtio_net);
        self.adapter_numbered(vm, number).filter(is_virtio_net)
    }

    /// Tells a VM's host side that its guest may leave the VF: frames come another way now.
    pub(super) fn let_leave(&mut self, id: AdapterId) {
        let Some(&Adapter { vm, number: adapter, .. }) = self.adapters.get(&id) else { return };
        let what = What::Command { adapter: Some(id), request: "LetLeave", absence_is_fine: true };
        let code = PrivateControl::LetLeave.code();
        let _ = self.send_private(Peer::Vm(vm), code, &AdapterNumber { adapter }, 0, what);
    }

    /// Tells a VM's host side about a VF.
    pub(super) fn device_command(&mut self, id: AdapterId, serial: VfSerial, command: VpciCommand) {
        let Some(adapter) = self.adapters.get_mut(&id) else { return };
        let (peer, number) = (Peer::Vm(adapter.vm), adapter.number);
        let device = DeviceName { adapter: number, serial: serial.0 };
        let refusable =
            |request| What::Command { adapter: Some(id), request, absence_is_fine: false };
        let sent = match command {
            VpciCommand::Offer(offer) => {
                (adapter.offered, adapter.in_use) = (Some(serial), false);
                let Some(input) = self.offer(number, serial, &offer) else { return };
                let what = What::Offer { adapter: id, serial };
                self.send_private(peer, PrivateControl::OfferVf.code(), &input, 0, what)
            }
            VpciCommand::ReplaceMitigatedRanges(ranges) => {
                let mitigated_ranges = worker_ranges(&ranges);
                let DeviceName { adapter, serial } = device;
                let input = ReplaceMitigatedRanges { adapter, serial, mitigated_ranges };
                let code = PrivateControl::ReplaceMitigatedRanges.code();
                self.send_private(peer, code, &input, 0, refusable("ReplaceMitigatedRanges"))
            }
            VpciCommand::Eject => {
                let code = PrivateControl::EjectVf.code();
                self.send_private(peer, code, &device, 0, refusable("EjectVf"))
            }
            VpciCommand::Remove { surprise } => {
                let input = RemoveVf { adapter: number, serial: serial.0, surprise };
                let what = What::Remove { adapter: id, serial };
                self.send_private(peer, PrivateControl::RemoveVf.code(), &input, 0, what)
            }
        };
        match sent {
            // The stack is told, or was, that the VM's host side is gone.
            Ok(()) | Err(NotSent::NoConnection) => {}
            Err(NotSent::Refused) => tracing::error!("a command about a VF could not be sent"),
        }
    }

    fn offer(&self, adapter: u32, serial: VfSerial, offer: &VpciOffer) -> Option<OfferVf> {
        let nic = self.nics.get(&offer.nic)?;
        Some(OfferVf {
            adapter,
            serial: serial.0,
            vf_socket: vf_socket(&nic.directory, offer.vf.get()),
            nic: adapter::control_socket(&nic.directory),
            vf: offer.vf.get(),
            mitigated_ranges: worker_ranges(&offer.mitigated_ranges),
            mac: Some(offer.mac.to_string()),
        })
    }

    pub(super) fn offer_answered(
        &mut self,
        adapter: AdapterId,
        serial: VfSerial,
        completion: &Completion,
    ) {
        if !completion.status.is_success() {
            self.device_gone(adapter, serial);
            let report = VpciReport::OfferFailed { status: completion.status, cause: None };
            self.inputs.push_back(Input::Vpci(adapter, serial, report));
        }
    }

    pub(super) fn remove_answered(
        &mut self,
        adapter: AdapterId,
        serial: VfSerial,
        completion: &Completion,
    ) {
        // Whoever does not know of it has nothing of it left.
        if !completion.status.is_success() {
            self.device_gone(adapter, serial);
            self.inputs.push_back(Input::Vpci(adapter, serial, VpciReport::Removed));
        }
    }

    fn device_gone(&mut self, id: AdapterId, serial: VfSerial) {
        if let Some(adapter) = self.adapters.get_mut(&id)
            && adapter.offered == Some(serial)
        {
            (adapter.offered, adapter.in_use) = (None, false);
        }
    }

    pub(super) fn worker_report(&mut self, peer: Peer, completion: &Completion) {
        let Peer::Vm(id) = peer else { return };
        let report = completion.status.is_success().then_some(&completion.output);
        let report = report.and_then(|json| serde_json::from_slice::<WorkerReport>(json).ok());
        let Some(report) = report else {
            self.nonsense(peer, "NextReport");
            return;
        };
        self.ask_worker(id);
        match report {
            WorkerReport::Guest { state, life } => self.guest_report(id, state, life),
            WorkerReport::Device { adapter, serial, state } => {
                self.device_report(id, adapter, serial, state);
            }
            // No VM has more.
            WorkerReport::SyntheticNic { adapter, .. } if adapter as usize >= MAX_ADAPTERS => {}
            WorkerReport::SyntheticNic { adapter, state } => {
                let vm = self.vms.get_mut(&id);
                let before = vm.and_then(|vm| vm.synthetic_nics.insert(adapter, state));
                self.tell_synthetic_nic(id, adapter, before);
            }
        }
    }

    /// Tells the stack how the driver of a guest's virtio-net is. One that is told of again was closed in between.
    pub(super) fn tell_synthetic_nic(
        &mut self,
        vm: VmId,
        number: u32,
        before: Option<SyntheticNicState>,
    ) {
        let Some(state) = self.vms.get(&vm).and_then(|vm| vm.synthetic_nics.get(&number)) else {
            return;
        };
        let Some(id) = self.virtio_net_numbered(vm, number) else { return };
        if matches!(before, Some(SyntheticNicState::Ready { .. })) {
            self.inputs.push_back(Input::NetVsp(id, NetVspReport::Closed));
        }
        if let SyntheticNicState::Ready { failover: sriov } = *state {
            self.inputs.push_back(Input::NetVsp(id, NetVspReport::Ready { sriov }));
        }
    }

    /// A guest is in this life. Its host side says so, and switches say in which life they serve it, sooner or later:
    /// whoever is first resets what the stack knows of the guest, and nobody does so again.
    pub(super) fn guest_life(&mut self, id: VmId, life: u64) {
        let Some(vm) = self.vms.get_mut(&id).filter(|vm| vm.life < life) else { return };
        let before = std::mem::replace(&mut vm.life, life);
        if before != 0 {
            self.forget_paths(id);
            self.inputs.push_back(Input::GuestReset(id));
        }
    }

    fn guest_report(&mut self, id: VmId, state: GuestState, life: u64) {
        self.guest_life(id, life);
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let was = vm.state;
        vm.state = match state {
            GuestState::Running | GuestState::Reset => VmState::Running,
            GuestState::Gone => VmState::Off,
        };
        let now = vm.state;
        if now == VmState::Off {
            self.forget_paths(id);
        }
        if now != was {
            self.inputs.push_back(Input::VmState(id, now));
        }
    }

    fn device_report(&mut self, vm: VmId, number: u32, serial: u32, state: DeviceState) {
        let id = self.adapter_numbered(vm, number);
        // Before all else: frames are on their way. Also of a VF of an earlier life of the stack.
        if let Some(id) = id {
            self.guest_path(id, path_by(&state));
        }
        let found = id.and_then(|id| self.adapters.get_key_value(&id));
        let is_gone = matches!(state, DeviceState::OfferFailed { .. } | DeviceState::Removed);
        let offered = found.and_then(|(_, adapter)| adapter.offered);
        if offered != Some(VfSerial(serial)) {
            let met = !self.is_ours(serial) && self.met_device(vm, number, serial, &state);
            if !met && !is_gone {
                self.remove_stale(vm, number, serial, true);
            }
            return;
        }
        let Some(id) = id else { return };
        let in_use = state == DeviceState::InUse;
        let report = match state {
            // Not reported; nothing follows from it.
            DeviceState::Opening => return,
            DeviceState::Offered => VpciReport::Offered,
            DeviceState::OfferFailed { status, cause } => {
                VpciReport::OfferFailed { status: NtStatus(status), cause }
            }
            DeviceState::BusOpened => VpciReport::BusOpened,
            DeviceState::DeviceStarted | DeviceState::InUse => VpciReport::DeviceStarted,
            DeviceState::EjectComplete => VpciReport::EjectComplete,
            DeviceState::Removed => VpciReport::Removed,
        };
        let moves = self.adapters.get_mut(&id).is_some_and(|adapter| {
            adapter.is_virtio_net() && std::mem::replace(&mut adapter.in_use, in_use) != in_use
        });
        if moves && !in_use {
            let leaves = NetVspReport::AsksDataPath(DataPath::Synthetic);
            self.inputs.push_back(Input::NetVsp(id, leaves));
        }
        if is_gone {
            self.device_gone(id, VfSerial(serial));
        }
        // Of a device that has come far, what it passed through may never have been said.
        let further = matches!(
            report,
            VpciReport::BusOpened | VpciReport::DeviceStarted | VpciReport::EjectComplete
        );
        if further {
            self.inputs.push_back(Input::Vpci(id, VfSerial(serial), VpciReport::Offered));
        }
        self.inputs.push_back(Input::Vpci(id, VfSerial(serial), report));
        if moves && in_use {
            self.inputs.push_back(Input::NetVsp(id, NetVspReport::AsksDataPath(DataPath::Vf)));
        }
    }
}

/// By which path a guest with a virtio-net takes frames whose VF is in this state.
const fn path_by(state: &DeviceState) -> GuestPath {
    match state {
        DeviceState::InUse => GuestPath::Vf,
        DeviceState::DeviceStarted => GuestPath::Moving,
        _ => GuestPath::Synthetic,
    }
}

fn worker_ranges(ranges: &MitigatedRanges) -> vm_worker::control::MitigatedRanges {
    ranges
        .iter()
        .map(|(bar, ranges)| {
            let ranges = ranges.iter().map(|range| MitigatedRange {
                offset: range.base_page_number.saturating_mul(PAGE),
                length: u64::from(range.page_count) * PAGE,
                reads: range.intercept_reads != 0,
                writes: range.intercept_writes != 0,
            });
            (*bar, ranges.collect())
        })
        .collect()
}
