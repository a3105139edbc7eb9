//! A switch and the host sides of VMs as the stack sees them, with guests behind them that do what is asked.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use device_control::{
    Client, Completion, DeviceControlHandler, DeviceControlServer, DriverName, Request,
    ServerConfig,
};
use pcivirt_protocol::NtStatus;
use serde::de::DeserializeOwned;
use virtual_switch::control as switch;
use vm_worker::control as worker;

use crate::levels::Levels;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// How the guests behave.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// They take VFs that they are offered.
    pub uses_vf: bool,
    /// They leave VFs and give them up when asked to.
    pub willing: bool,
}

/// Who tells first that a guest has begun anew.
#[derive(Clone, Copy, Debug)]
pub enum Teller {
    Switch,
    HostSide,
}

pub struct Port {
    pub config: switch::PortConfig,
    pub report: switch::PortReport,
    /// The guest's driver sends on the VF.
    pub on_vf: bool,
    /// The VF that the guest was asked to leave.
    left: Option<u32>,
}

#[derive(Default)]
pub struct Vm {
    pub adapters: BTreeMap<u32, worker::AdapterConfig>,
    pub devices: BTreeMap<(u32, u32), worker::OfferVf>,
    /// Its synthetic NICs that are virtio-nets.
    virtio_nets: BTreeMap<u32, worker::SyntheticNicState>,
    life: u64,
    reports: Levels,
}

pub struct State {
    pub manners: Manners,
    pub ports: BTreeMap<String, Port>,
    pub vms: BTreeMap<String, Vm>,
    /// What the switch and the VMs were told, in order.
    pub told: Vec<String>,
    /// Why host sides cannot offer VFs.
    pub offer_error: Option<String>,
    sessions: u64,
    lives: u64,
    uplink: switch::UplinkReport,
    reports: Levels,
}

pub struct Guests {
    state: Mutex<State>,
    changed: Condvar,
}

impl Guests {
    pub fn new() -> Arc<Self> {
        let state = State {
            manners: Manners { uses_vf: true, willing: true },
            ports: BTreeMap::new(),
            vms: BTreeMap::new(),
            told: Vec::new(),
            offer_error: None,
            sessions: 0,
            lives: 0,
            uplink: switch::UplinkReport::default(),
            reports: Levels::default(),
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn manners(&self, manners: Manners) {
        self.lock().manners = manners;
    }

    /// Waits for something that is told or becomes so.
    pub fn until(&self, what: &str, done: impl Fn(&State) -> bool) {
        let start = Instant::now();
        let mut state = self.lock();
        while !done(&state) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:#?}", state.told);
            state = self.changed.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
        }
    }

    /// A switch without ports starts.
    pub fn start_switch(self: &Arc<Self>, socket: &Path) -> DeviceControlServer {
        let mut state = self.lock();
        state.ports.clear();
        state.reports = Levels::default();
        state.tell_uplink();
        drop(state);
        let config = ServerConfig::new(socket, DriverName::new("switch").unwrap());
        DeviceControlServer::start(config, Arc::new(SwitchEnd(Arc::clone(self)))).unwrap()
    }

    /// The switch's uplink is, or becomes, this one.
    pub fn set_uplink(&self, adapter: switch::AdapterUplink) {
        let mut state = self.lock();
        state.uplink.adapter = Some(adapter);
        state.tell_uplink();
    }

    /// A VM starts: its NetVSCs come up when their ports are there.
    pub fn start_vm(self: &Arc<Self>, name: &str, socket: &Path) -> DeviceControlServer {
        let mut state = self.lock();
        state.lives += 1;
        let mut vm = Vm { life: state.lives, ..Vm::default() };
        vm.tell_guest(worker::GuestState::Running);
        state.vms.insert(name.into(), vm);
        drop(state);
        let config = ServerConfig::new(socket, DriverName::new(name).unwrap());
        let end = WorkerEnd { guests: Arc::clone(self), vm: name.into() };
        DeviceControlServer::start(config, Arc::new(end)).unwrap()
    }

    /// How the driver of a guest's virtio-net is, or becomes.
    pub fn virtio_net(&self, vm: &str, adapter: u32, nic: worker::SyntheticNicState) {
        let mut state = self.lock();
        let vm = state.vms.get_mut(vm).unwrap();
        vm.virtio_nets.insert(adapter, nic);
        let report = worker::WorkerReport::SyntheticNic { adapter, state: nic };
        vm.reports.set_anew(format!("nic {adapter}"), &report);
    }

    /// What the guest makes of all devices that it has.
    pub fn devices(&self, vm: &str, device: &worker::DeviceState) {
        let mut state = self.lock();
        for (adapter, serial) in state.vms[vm].devices.keys().copied().collect::<Vec<_>>() {
            state.report(vm, adapter, serial, device.clone());
        }
    }

    /// A guest with virtio-nets begins anew, as its host side says in one go.
    pub fn reboot(&self, name: &str) {
        let mut state = self.lock();
        state.lives += 1;
        let life = state.lives;
        let vm = state.vms.get_mut(name).unwrap();
        vm.life = life;
        vm.tell_guest(worker::GuestState::Reset);
        drop(state);
        self.virtio_net(name, 0, worker::SyntheticNicState::Closed);
        self.devices(name, &worker::DeviceState::Offered);
    }

    /// A guest begins anew, of which the switch and the host side tell on connections of their own: this one first, and
    /// the other one when the stack has taken that in.
    pub fn reset(&self, name: &str, first: Teller) {
        let mut state = self.lock();
        state.lives += 1;
        let life = state.lives;
        state.vms.get_mut(name).unwrap().life = life;
        drop(state);
        match first {
            Teller::Switch => self.restart_drivers(name),
            Teller::HostSide => self.say_reset(name),
        }
    }

    /// The drivers of a guest that has begun anew come up.
    pub fn restart_drivers(&self, name: &str) {
        let mut state = self.lock();
        let ports: Vec<String> = state.ports.keys().cloned().collect();
        for port in ports.iter().filter(|port| port.starts_with(&format!("{name}/"))) {
            state.close(port);
            state.open(port);
        }
    }

    /// The host side of a VM says that its guest has begun anew; returns when the stack has heard it.
    pub fn say_reset(&self, name: &str) {
        self.lock().vms.get_mut(name).unwrap().tell_guest(worker::GuestState::Reset);
        self.until("the reset is told", |state| state.vms[name].reports.all_told());
    }

    /// A VM ends, and its channels with it.
    pub fn stop_vm(&self, name: &str, server: DeviceControlServer) {
        drop(server);
        let mut state = self.lock();
        state.vms.remove(name);
        let ports: Vec<String> = state.ports.keys().cloned().collect();
        for port in ports.iter().filter(|port| port.starts_with(&format!("{name}/"))) {
            state.close(port);
        }
    }
}

impl Vm {
    fn tell_guest(&mut self, state: worker::GuestState) {
        let report = worker::WorkerReport::Guest { state, life: self.life };
        self.reports.set("guest".into(), &report);
    }
}

impl State {
    /// The NetVSC behind a port comes up, if there is one that is not.
    fn open(&mut self, port: &str) {
        let on_port = |vm: &&Vm| vm.adapters.values().any(|adapter| adapter.port == port);
        let life = self.vms.values().find(on_port).map(|vm| vm.life);
        self.sessions += 1;
        let session = self.sessions;
        let Some(found) = self.ports.get_mut(port) else { return };
        if let Some(life) = life
            && found.report.guest == switch::GuestState::Closed
        {
            found.report.life = life;
            found.report.guest = switch::GuestState::Ready { sriov: found.config.sriov };
            found.report.session = session;
            found.on_vf = false;
            self.tell(port);
            self.use_vf(port);
        }
    }

    fn close(&mut self, port: &str) {
        let Some(found) = self.ports.get_mut(port) else { return };
        found.report.guest = switch::GuestState::Closed;
        found.report.asks = None;
        found.on_vf = false;
        self.tell(port);
    }

    fn tell(&mut self, port: &str) {
        if let Some(found) = self.ports.get(port) {
            let report = switch::SwitchReport::Port(found.report.clone());
            self.reports.set(port.to_owned(), &report);
        }
    }

    fn tell_uplink(&mut self) {
        let report = switch::SwitchReport::Uplink(self.uplink.clone());
        self.reports.set("the uplink".into(), &report);
    }

    fn ask(&mut self, port: &str, path: switch::DataPath) {
        let Some(found) = self.ports.get_mut(port) else { return };
        found.report.asks = Some(path);
        found.report.request += 1;
        self.tell(port);
    }

    /// Asks for the VF if there is one in the guest that belongs to the port, and is not used yet.
    fn use_vf(&mut self, port: &str) {
        if !self.manners.uses_vf {
            return;
        }
        let Some(found) = self.ports.get(port) else { return };
        let Some(serial) = found.report.vf else { return };
        let there = self.vms.values().any(|vm| vm.devices.keys().any(|(_, its)| *its == serial));
        let up = found.report.guest != switch::GuestState::Closed;
        let wants = !found.on_vf && found.left != Some(serial) && found.report.asks.is_none();
        if there && up && wants {
            self.ask(port, switch::DataPath::Vf);
        }
    }

    fn command(&mut self, port: &str, command: switch::VfCommand) -> Result<(), NtStatus> {
        let willing = self.manners.willing;
        let found = self.ports.get_mut(port).ok_or(NtStatus::NOT_FOUND)?;
        match command {
            switch::VfCommand::VfAvailable { serial } => found.report.vf = Some(serial),
            // It is a virtio-net's, and what follows is between the switch and the NIC.
            switch::VfCommand::GuestPath { .. } => {}
            switch::VfCommand::VfLost { serial } => {
                if found.report.vf == Some(serial) {
                    found.report.vf = None;
                }
            }
            switch::VfCommand::SwitchDataPath { to } => {
                found.report.active = to;
                // Whoever is not there is not asked to leave.
                if found.on_vf {
                    found.left = found.report.vf;
                }
                if willing && found.on_vf {
                    self.ask(port, to);
                }
            }
            switch::VfCommand::CompleteSwitch { active, request } => {
                let on_vf = active == switch::DataPath::Vf;
                found.report.active = active;
                // An answer to what is asked no more, by a driver that is gone, is none.
                match found.report.asks.take_if(|_| request == found.report.request) {
                    Some(asked) => found.on_vf = on_vf && asked == active,
                    None => found.on_vf &= on_vf,
                }
            }
        }
        self.tell(port);
        self.use_vf(port);
        Ok(())
    }

    fn report(&mut self, vm: &str, adapter: u32, serial: u32, state: worker::DeviceState) {
        let report = worker::WorkerReport::Device { adapter, serial, state };
        let Some(vm) = self.vms.get_mut(vm) else { return };
        vm.reports.set_anew(format!("vf {adapter} {serial}"), &report);
    }
}

fn parse<T: DeserializeOwned>(request: &Request) -> Result<T, NtStatus> {
    serde_json::from_slice(&request.input).map_err(|_| NtStatus::INVALID_PARAMETER)
}

fn finish(request: Request, result: Result<(), NtStatus>) {
    request.complete(result.err().unwrap_or(NtStatus::SUCCESS));
}

struct SwitchEnd(Arc<Guests>);

impl DeviceControlHandler for SwitchEnd {
    fn disconnected(&self, client: &Client) {
        self.0.lock().reports.gone(client.id.0);
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        use switch::PrivateControl as Control;
        let mut state = self.0.lock();
        match Control::from_code(code).unwrap() {
            Control::Status => {
                let status = status(&state);
                let output = serde_json::to_vec(&status).unwrap();
                let room = request.output_capacity;
                request.complete(Completion::output(output, room));
            }
            Control::SetPort => {
                let config: switch::PortConfig = parse(&request).unwrap();
                let port = config.port.clone();
                state.told.push(format!("SetPort {port}"));
                let report = switch::PortReport {
                    port: port.clone(),
                    guest: switch::GuestState::Closed,
                    session: 0,
                    life: 0,
                    asks: None,
                    request: 0,
                    vf: None,
                    active: switch::DataPath::Synthetic,
                };
                let entry = state.ports.entry(port.clone());
                let made = Port { config: config.clone(), report, on_vf: false, left: None };
                entry.or_insert(made).config = config.clone();
                state.tell(&port);
                state.open(&port);
                request.complete(NtStatus::SUCCESS);
            }
            Control::DeletePort => {
                let switch::PortName { port } = parse(&request).unwrap();
                state.told.push(format!("DeletePort {port}"));
                let found = state.ports.remove(&port).map(|_| ()).ok_or(NtStatus::NOT_FOUND);
                finish(request, found);
            }
            Control::PortCommand => {
                let switch::PortCommand { port, command } = parse(&request).unwrap();
                state.told.push(format!("{port} {}", kind(&command)));
                let done = state.command(&port, command);
                finish(request, done);
            }
            Control::NextReport => state.reports.next(client.id.0, request.pend()),
            other => panic!("the stack does not ask for {other:?}"),
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// A command without the serial number, which differs from run to run.
fn kind(command: &switch::VfCommand) -> String {
    match command {
        switch::VfCommand::VfAvailable { .. } => "VfAvailable".into(),
        switch::VfCommand::VfLost { .. } => "VfLost".into(),
        switch::VfCommand::GuestPath { path } => format!("GuestPath {path:?}"),
        switch::VfCommand::SwitchDataPath { to } => format!("SwitchDataPath {to}"),
        switch::VfCommand::CompleteSwitch { active, .. } => format!("CompleteSwitch {active}"),
    }
}

fn status(state: &State) -> switch::SwitchStatus {
    let ports = state.ports.values().map(|port| switch::PortStatus {
        port: port.config.port.clone(),
        kind: port.config.kind.clone(),
        mac: port.config.mac.clone(),
        vlan: port.config.vlan.clone(),
        guest: port.report.guest,
        vf: port.report.vf,
        data_path: if port.on_vf { switch::DataPath::Vf } else { switch::DataPath::Synthetic },
        channels: Vec::new(),
        statistics: Default::default(),
    });
    let uplink = switch::UplinkStatus {
        spec: "none".into(),
        connected: true,
        link_up: true,
        report: state.uplink.clone(),
        last_error: None,
        statistics: Default::default(),
    };
    let ports = ports.collect();
    switch::SwitchStatus { name: "switch".into(), uplink, host: None, ports, data_path_busy_us: 0 }
}

fn worker_status(name: &str, vm: &Vm) -> worker::WorkerStatus {
    let adapters = vm.adapters.values().map(|config| worker::AdapterStatus {
        adapter: config.adapter,
        mac: config.mac.clone(),
        switch: config.switch.clone(),
        port: config.port.clone(),
        connected: true,
        last_error: None,
        offered: true,
        channels: 1,
    });
    let devices = vm.devices.values().map(|offer| worker::DeviceStatus {
        adapter: offer.adapter,
        serial: offer.serial,
        vf: offer.vf,
        state: worker::DeviceState::DeviceStarted,
        bars: BTreeMap::new(),
        vectors: 1,
    });
    worker::WorkerStatus {
        name: name.into(),
        guest: worker::GuestState::Running,
        vmbus: None,
        adapters: adapters.collect(),
        devices: devices.collect(),
        integration: Default::default(),
    }
}

struct WorkerEnd {
    guests: Arc<Guests>,
    vm: String,
}

impl DeviceControlHandler for WorkerEnd {
    fn disconnected(&self, client: &Client) {
        if let Some(vm) = self.guests.lock().vms.get_mut(&self.vm) {
            vm.reports.gone(client.id.0);
        }
    }

    fn private(&self, client: &Client, code: u32, request: Request) {
        let mut state = self.guests.lock();
        self.control(&mut state, client, code, request);
        drop(state);
        self.guests.changed.notify_all();
    }
}

impl WorkerEnd {
    fn control(&self, state: &mut State, client: &Client, code: u32, request: Request) {
        use worker::DeviceState as Device;
        use worker::PrivateControl as Control;
        let manners = state.manners;
        let name = self.vm.clone();
        let Some(vm) = state.vms.get_mut(&name) else { return };
        match Control::from_code(code).unwrap() {
            Control::Status => {
                let output = serde_json::to_vec(&worker_status(&name, vm)).unwrap();
                let room = request.output_capacity;
                request.complete(Completion::output(output, room));
            }
            Control::SetAdapter => {
                let config: worker::AdapterConfig = parse(&request).unwrap();
                let port = config.port.clone();
                let before = vm.adapters.insert(config.adapter, config);
                state.told.push(format!("{name} SetAdapter {port}"));
                if let Some(before) = before.filter(|before| before.port != port) {
                    state.close(&before.port);
                }
                state.open(&port);
                request.complete(NtStatus::SUCCESS);
            }
            Control::RemoveAdapter => {
                let worker::AdapterNumber { adapter } = parse(&request).unwrap();
                let removed = vm.adapters.remove(&adapter);
                if let Some(removed) = &removed {
                    state.told.push(format!("{name} RemoveAdapter {adapter}"));
                    state.close(&removed.port);
                }
                finish(request, removed.map(|_| ()).ok_or(NtStatus::NOT_FOUND));
            }
            Control::OfferVf => {
                let offer: worker::OfferVf = parse(&request).unwrap();
                let (adapter, serial) = (offer.adapter, offer.serial);
                vm.devices.insert((adapter, serial), offer);
                let port = vm.adapters.get(&adapter).map(|adapter| adapter.port.clone());
                let virtio_net = vm.virtio_nets.contains_key(&adapter);
                if let Some(cause) = state.offer_error.clone() {
                    vm.devices.remove(&(adapter, serial));
                    request.complete(NtStatus::SUCCESS);
                    let (status, cause) = (NtStatus::UNSUCCESSFUL.0, Some(cause));
                    let failed = Device::OfferFailed { status, cause };
                    state.report(&name, adapter, serial, failed);
                    return;
                }
                state.told.push(format!("{name} OfferVf {adapter}"));
                request.complete(NtStatus::SUCCESS);
                if !manners.uses_vf {
                    state.report(&name, adapter, serial, Device::Offered);
                    return;
                }
                let used = if virtio_net { Device::InUse } else { Device::DeviceStarted };
                state.report(&name, adapter, serial, used);
                if let Some(port) = port {
                    state.use_vf(&port);
                }
            }
            Control::EjectVf => {
                let worker::DeviceName { adapter, serial } = parse(&request).unwrap();
                state.told.push(format!("{name} EjectVf {adapter}"));
                request.complete(NtStatus::SUCCESS);
                if manners.willing {
                    state.report(&name, adapter, serial, Device::EjectComplete);
                }
            }
            Control::RemoveVf => {
                let worker::RemoveVf { adapter, serial, surprise } = parse(&request).unwrap();
                vm.devices.remove(&(adapter, serial));
                let how = if surprise { " by surprise" } else { "" };
                state.told.push(format!("{name} RemoveVf {adapter}{how}"));
                request.complete(NtStatus::SUCCESS);
                state.report(&name, adapter, serial, Device::Removed);
            }
            Control::LetLeave => {
                let worker::AdapterNumber { adapter } = parse(&request).unwrap();
                state.told.push(format!("{name} LetLeave {adapter}"));
                request.complete(NtStatus::SUCCESS);
            }
            Control::ReplaceMitigatedRanges => request.complete(NtStatus::SUCCESS),
            Control::NextReport => vm.reports.next(client.id.0, request.pend()),
            other => panic!("the stack does not ask for {other:?}"),
        }
    }
}
