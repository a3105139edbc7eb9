//! Switches: their ports are kept as the adapters are configured, and what they report is what the stack is told of
//! guests' NetVSCs.

use std::collections::BTreeMap;
use std::time::Instant;

use device_control::{Completion, Target};
use virtual_switch::control::{
    DataPath as PortPath, GuestPath, GuestState, PortCommand, PortConfig, PortKind, PortName,
    PortReport, PrivateControl, REPORT_CAPACITY, STATUS_CAPACITY, SocketIdentity, SwitchReport,
    SwitchStatus, UplinkReport, VfCommand,
};
use virtualization_stack::{
    AdapterId, AdapterKind, DataPath, Input, NetVspCommand, NetVspReport, NicId, Uplink, VmSwitchId,
};

use super::links::What;
use super::{PortLevels, RETRY, Runtime};
use crate::configuration::SwitchReach;
use crate::event::{Peer, ProcessEvent};
use crate::nic_call::{pf_socket, vlan_mode};

const fn stack_path(path: PortPath) -> DataPath {
    match path {
        PortPath::Synthetic => DataPath::Synthetic,
        PortPath::Vf => DataPath::Vf,
    }
}

const fn port_path(path: DataPath) -> PortPath {
    match path {
        DataPath::Synthetic => PortPath::Synthetic,
        DataPath::Vf => PortPath::Vf,
    }
}

impl Runtime {
    /// Which ports a switch has is asked first: those of adapters that are gone are deleted.
    pub(super) fn switch_connected(&mut self, id: VmSwitchId) {
        let target = Target::Private(PrivateControl::Status.code());
        let peer = Peer::Switch(id);
        // If it cannot be sent the connection is lost again.
        let _ = self.send(peer, target, &[], STATUS_CAPACITY, What::SwitchStatus);
    }

    pub(super) fn switch_lost(&mut self, id: VmSwitchId) {
        if let Some(switch) = self.switches.get_mut(&id) {
            switch.told = None;
            switch.retry = None;
            switch.uplink = UplinkReport::default();
        }
        for adapter in self.connected_to(id) {
            if let Some(adapter) = self.adapters.get_mut(&adapter) {
                adapter.port = None;
                adapter.port_error = None;
            }
        }
        self.inputs.push_back(Input::SwitchStopped(id));
    }

    pub(super) fn switch_status(&mut self, peer: Peer, completion: &Completion) {
        let Peer::Switch(id) = peer else { return };
        let status = completion.status.is_success().then_some(&completion.output);
        let status = status.and_then(|json| serde_json::from_slice::<SwitchStatus>(json).ok());
        let Some(status) = status else {
            self.nonsense(peer, "Status");
            return;
        };
        if let Some(switch) = self.switches.get_mut(&id) {
            switch.told = Some(BTreeMap::new());
            switch.uplink = status.uplink.report;
        }
        let wanted = self.ports_of(id);
        for port in status.ports.iter().filter(|port| !wanted.contains_key(&port.port)) {
            self.delete_port(id, &port.port);
        }
        for port in &status.ports {
            if let Some((adapter, _)) = wanted.get(&port.port) {
                self.met_port(*adapter, port);
            }
        }
        self.met(peer);
        self.tell_ports(id);
        // What the stack knows of a switch that runs is how it is.
        self.tell_uplink(id);
        self.inputs.push_back(Input::SwitchStarted(id));
        self.ask_switch(id);
    }

    /// Tells the stack how a switch's uplink on its NIC is: a VF that is given before it is there cuts its guest off
    /// from those on the synthetic path.
    fn tell_uplink(&mut self, id: VmSwitchId) {
        let Some(switch) = self.switches.get(&id) else { return };
        let uplink = match (&switch.settings.kind, &switch.uplink.adapter) {
            (SwitchReach::External { nic, .. }, Some(adapter)) => {
                let settings = self.nics.values().find(|settings| settings.name == *nic);
                let now = settings.map(|nic| SocketIdentity::at(&pf_socket(&nic.directory)));
                // Of an adapter that was killed and started anew the switch may still say what was before.
                match (adapter.up, now) {
                    (Some(its), Some(Ok(now))) if its == now => Uplink::Up,
                    (Some(_), Some(Err(error))) => Uplink::Down {
                        error: format!("the NIC does not serve its default VPort: {error}"),
                    },
                    (Some(_), _) => Uplink::Down {
                        error: "it is on another adapter, or on one that has ended".to_owned(),
                    },
                    (None, _) => Uplink::Down {
                        error: adapter.error.clone().unwrap_or_else(|| {
                            "the switch is about to connect for the first time".to_owned()
                        }),
                    },
                }
            }
            _ => Uplink::Up,
        };
        self.inputs.push_back(Input::SwitchUplink(id, uplink));
    }

    /// The same for the switches of a NIC that is there (again).
    pub(super) fn tell_uplinks(&mut self, nic: NicId) {
        let Some(name) = self.nics.get(&nic).map(|settings| settings.name.clone()) else { return };
        let on_it =
            |kind: &SwitchReach| matches!(kind, SwitchReach::External { nic, .. } if *nic == name);
        let switches: Vec<_> = self
            .switches
            .iter()
            .filter(|(_, switch)| switch.told.is_some() && on_it(&switch.settings.kind))
            .map(|(id, _)| *id)
            .collect();
        for id in switches {
            self.tell_uplink(id);
        }
    }

    fn ask_switch(&mut self, id: VmSwitchId) {
        let target = Target::Private(PrivateControl::NextReport.code());
        let _ = self.send(Peer::Switch(id), target, &[], REPORT_CAPACITY, What::SwitchReport);
    }

    /// Adapters whose ports are on a switch.
    pub(super) fn connected_to(&self, id: VmSwitchId) -> Vec<AdapterId> {
        let adapters = self.adapters.iter().filter(|(_, a)| a.port_switch == Some(id));
        adapters.map(|(id, _)| *id).collect()
    }

    /// The ports that a switch is to have.
    fn ports_of(&self, id: VmSwitchId) -> BTreeMap<String, (AdapterId, PortConfig)> {
        let sriov = self.switches.get(&id).is_some_and(|switch| switch.settings.iov);
        let port = |adapter: AdapterId| {
            let settings = &self.adapters.get(&adapter)?.settings;
            let port = self.names.adapter(adapter);
            let config = PortConfig {
                kind: match (&settings.kind, &settings.socket) {
                    (AdapterKind::Legacy, Some(socket)) => {
                        PortKind::Legacy { socket: socket.clone() }
                    }
                    (AdapterKind::VhostUser, Some(socket)) => {
                        PortKind::VhostUser { socket: socket.clone() }
                    }
                    _ => PortKind::Synthetic,
                },
                vlan: vlan_mode(&settings.vlan),
                allow_spoofing: settings.mac_spoofing,
                max_channels: settings.channels,
                sriov,
                friendly_name: settings.name.clone(),
                ..PortConfig::new(port.clone(), settings.mac)
            };
            Some((port, (adapter, config)))
        };
        self.connected_to(id).into_iter().filter_map(port).collect()
    }

    /// Tells a switch what of its ports it was not told.
    pub(super) fn tell_ports(&mut self, id: VmSwitchId) {
        let wanted = self.ports_of(id);
        let Some(told) = self.switches.get(&id).and_then(|switch| switch.told.as_ref()) else {
            return;
        };
        let gone: Vec<_> =
            told.keys().filter(|port| !wanted.contains_key(*port)).cloned().collect();
        let changed: Vec<_> = wanted
            .into_iter()
            .filter(|(port, (_, config))| told.get(port) != Some(config))
            .collect();
        for port in gone {
            self.delete_port(id, &port);
        }
        for (port, (adapter, config)) in changed {
            let what = What::SetPort { adapter, port: port.clone() };
            let code = PrivateControl::SetPort.code();
            if self.send_private(Peer::Switch(id), code, &config, 0, what).is_ok()
                && let Some(told) = self.told_ports(id)
            {
                told.insert(port, config);
            }
            // A port that is made anew takes its guest to be on the synthetic path.
            if let Some(path) = self.adapters.get(&adapter).and_then(|adapter| adapter.path) {
                self.send_port_command(id, adapter, VfCommand::GuestPath { path }, "GuestPath");
            }
        }
    }

    fn told_ports(&mut self, id: VmSwitchId) -> Option<&mut BTreeMap<String, PortConfig>> {
        self.switches.get_mut(&id)?.told.as_mut()
    }

    fn delete_port(&mut self, id: VmSwitchId, port: &str) {
        if let Some(told) = self.told_ports(id) {
            told.remove(port);
        }
        let input = PortName { port: port.to_owned() };
        let code = PrivateControl::DeletePort.code();
        let what = What::Command { adapter: None, request: "DeletePort", absence_is_fine: true };
        let _ = self.send_private(Peer::Switch(id), code, &input, 0, what);
    }

    pub(super) fn port_set(
        &mut self,
        peer: Peer,
        adapter: AdapterId,
        port: &str,
        completion: &Completion,
    ) {
        let Peer::Switch(id) = peer else { return };
        let error = (!completion.status.is_success()).then(|| completion.status.to_string());
        if error.is_some() {
            // Another may have to leave the address first, or the guest the port.
            if let Some(switch) = self.switches.get_mut(&id) {
                switch.told.as_mut().map(|told| told.remove(port));
                switch.retry = Some(Instant::now() + RETRY);
            }
        }
        let Some(its) = self.adapters.get_mut(&adapter) else { return };
        if its.port_error == error {
            return;
        }
        its.port_error.clone_from(&error);
        if let Some(status) = error {
            let (adapter, request) = (Some(adapter), "SetPort".to_owned());
            self.publish(ProcessEvent::CommandRefused { peer, adapter, request, status });
        }
    }

    /// Tells the port of a virtio-net by which path its guest takes frames, as its VM's host side says.
    pub(super) fn guest_path(&mut self, id: AdapterId, path: GuestPath) {
        let Some(adapter) = self.adapters.get_mut(&id).filter(|a| a.is_virtio_net()) else {
            return;
        };
        if adapter.path.replace(path) != Some(path)
            && let Some(switch) = adapter.port_switch
        {
            self.send_port_command(switch, id, VfCommand::GuestPath { path }, "GuestPath");
        }
    }

    /// Tells an adapter's port of its VF; or, of a virtio-net, its VM's host side what matters to that.
    pub(super) fn port_command(&mut self, adapter: AdapterId, command: NetVspCommand) {
        if self.adapters.get(&adapter).is_some_and(super::Adapter::is_virtio_net) {
            if command == (NetVspCommand::CompleteSwitch { active: DataPath::Synthetic }) {
                self.let_leave(adapter);
            }
            return;
        }
        let Some(switch) = self.adapters.get(&adapter).and_then(|a| a.port_switch) else { return };
        let (command, request) = match command {
            NetVspCommand::VfAvailable { serial } => {
                (VfCommand::VfAvailable { serial: serial.0 }, "VfAvailable")
            }
            NetVspCommand::VfLost { serial } => (VfCommand::VfLost { serial: serial.0 }, "VfLost"),
            NetVspCommand::SwitchDataPath(to) => {
                (VfCommand::SwitchDataPath { to: port_path(to) }, "SwitchDataPath")
            }
            NetVspCommand::CompleteSwitch { active } => {
                let request = self.adapters.get(&adapter).map_or(0, |adapter| adapter.request);
                let active = port_path(active);
                (VfCommand::CompleteSwitch { active, request }, "CompleteSwitch")
            }
        };
        self.send_port_command(switch, adapter, command, request);
    }

    pub(super) fn send_port_command(
        &mut self,
        switch: VmSwitchId,
        adapter: AdapterId,
        command: VfCommand,
        request: &'static str,
    ) {
        // A virtio-net's port has no NetVSP.
        let for_virtio_net = matches!(command, VfCommand::GuestPath { .. });
        if self.adapters.get(&adapter).is_some_and(|a| a.is_virtio_net() != for_virtio_net) {
            return;
        }
        let input = PortCommand { port: self.names.adapter(adapter), command };
        let what = What::Command { adapter: Some(adapter), request, absence_is_fine: false };
        let code = PrivateControl::PortCommand.code();
        let _ = self.send_private(Peer::Switch(switch), code, &input, 0, what);
    }

    pub(super) fn switch_report(&mut self, peer: Peer, completion: &Completion) {
        let Peer::Switch(id) = peer else { return };
        let report = completion.status.is_success().then_some(&completion.output);
        let report = report.and_then(|json| serde_json::from_slice::<SwitchReport>(json).ok());
        let Some(report) = report else {
            self.nonsense(peer, "NextReport");
            return;
        };
        // Asked for at once, so that the next is on its way while this one is looked at.
        self.ask_switch(id);
        let report = match report {
            SwitchReport::Port(report) => report,
            SwitchReport::Uplink(report) => {
                if let Some(switch) = self.switches.get_mut(&id) {
                    switch.uplink = report;
                }
                self.tell_uplink(id);
                return;
            }
        };
        let of = |adapter: &AdapterId| self.names.adapters.get(adapter) == Some(&report.port);
        let Some(adapter) = self.connected_to(id).into_iter().find(of) else { return };
        if report.active == PortPath::Synthetic || report.guest == GuestState::Closed {
            self.on_synthetic(adapter);
        }
        self.port_levels(adapter, &report);
    }

    /// What is new of a port since the stack was told of it.
    fn port_levels(&mut self, id: AdapterId, report: &PortReport) {
        let PortReport { session, life, request, asks, vf, active, .. } = *report;
        // Whatever a port of a virtio-net reports, it is not of a NetVSC.
        let netvsc = self.adapters.get(&id).filter(|adapter| !adapter.is_virtio_net());
        let Some(vm) = netvsc.map(|adapter| adapter.vm) else { return };
        self.guest_life(vm, life);
        // A guest that has begun anew has left what it had, though its switch has yet to notice.
        let is_over = self.vms.get(&vm).is_some_and(|vm| life < vm.life);
        let guest = if is_over { GuestState::Closed } else { report.guest };
        let Some(adapter) = self.adapters.get_mut(&id) else { return };
        let before = adapter.port.replace(PortLevels { guest, session, request, vf, active });
        let was_up = before.is_some_and(|port| port.guest != GuestState::Closed);
        let same_guest = before.is_some_and(|port| port.guest == guest && port.session == session);
        if !same_guest {
            // A driver that is another than before was closed in between.
            if was_up {
                self.inputs.push_back(Input::NetVsp(id, NetVspReport::Closed));
            }
            if let GuestState::Ready { sriov } = guest {
                self.inputs.push_back(Input::NetVsp(id, NetVspReport::Ready { sriov }));
            }
        }
        let same_request = same_guest && before.is_some_and(|port| port.request == request);
        if let Some(path) = asks.filter(|_| !same_request) {
            let report = NetVspReport::AsksDataPath(stack_path(path));
            self.inputs.push_back(Input::NetVsp(id, report));
        }
    }

    /// A port that knows of a VF although its adapter has none: of an earlier life of the stack, or of a guest that is
    /// gone. Who is still on it is to leave.
    pub(super) fn clear_port(&mut self, id: AdapterId) {
        if self.gives_back(id) {
            return;
        }
        let Some(adapter) = self.adapters.get_mut(&id) else { return };
        let (Some(switch), Some(port)) = (adapter.port_switch, &mut adapter.port) else { return };
        let (vf, active) = (port.vf.take(), std::mem::take(&mut port.active));
        if active == PortPath::Vf {
            let command = VfCommand::SwitchDataPath { to: PortPath::Synthetic };
            self.send_port_command(switch, id, command, "SwitchDataPath");
        }
        if let Some(serial) = vf {
            self.send_port_command(switch, id, VfCommand::VfLost { serial }, "VfLost");
        }
    }
}
