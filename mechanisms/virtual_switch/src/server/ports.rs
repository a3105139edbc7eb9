//! The ports of a switch, as control knows them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use device_control::ClientId;
use ndis_protocol::{MacAddress, VPortId};
use netvsp::server::{self, NetVsp, NicConfig, VfControl};
use nic_switch::{SwitchError, VPortPolicy};
use pcivirt_protocol::NtStatus;
use shared_memory::DmaMap;

use super::reports::{Desk, Listener, News, Waiting};
use crate::{
    AvfUplink, GuestPath, Port as SwitchPort, PortPolicy, SwitchHandle, SwitchStopped,
    SyntheticPort, TulipPort, VhostUserPort, VirtualSwitch,
    control::{
        ChannelUpcall, DataPath, GuestState, MAX_CHANNELS, MAX_PORT_NAME, MAX_PORTS, PortCommand,
        PortConfig, PortKind, PortName, PortReport, UplinkReport, VfCommand, VlanMode,
    },
};

/// How long an adapter may take to send what is in its queue.
const DRAIN_LIMIT: Duration = Duration::from_millis(20);
/// Bytes of an adapter's friendly name.
const MAX_FRIENDLY_NAME: usize = 128;

/// All ports, and whoever waits for news of them.
pub(super) struct Ports {
    pub(super) switch: SwitchHandle,
    news: News,
    /// Contended by the connections' threads and the one that looks into news; held while the switch's thread does what
    /// is asked, which waits for nobody.
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// By name.
    pub(super) ports: BTreeMap<String, Port>,
    pub(super) listeners: BTreeMap<ClientId, Listener>,
    pub(super) uplink: Uplink,
    /// Counts what has changed.
    clock: u64,
}

/// The uplink's report.
#[derive(Default)]
pub(super) struct Uplink {
    pub(super) report: UplinkReport,
    /// When it changed last.
    pub(super) version: u64,
}

/// One port.
pub(super) struct Port {
    pub(super) id: VPortId,
    pub(super) config: PortConfig,
    /// When its report changed last.
    pub(super) version: u64,
    report: PortReport,
    behind: Behind,
}

/// What is behind a port.
enum Behind {
    Synthetic(Box<Synthetic>),
    Legacy,
    VhostUser,
}

/// A synthetic adapter's host side.
pub(super) struct Synthetic {
    pub(super) desk: Arc<Desk>,
    /// Whose channels they are.
    pub(super) owner: Option<ClientId>,
    pub(super) channels: BTreeSet<u16>,
    /// The guest's, while its primary channel is open.
    pub(super) memory: DmaMap,
    pub(super) upcalls: VecDeque<ChannelUpcall>,
    pub(super) waiting: Option<Waiting>,
    /// The NIC's configuration is another one since its primary channel was opened.
    pub(super) stale: bool,
    /// Requests that were passed on by a port of this name that was there before.
    pub(super) requests_before: u64,
    /// The guest's life in which its primary channel was opened.
    pub(super) life: u64,
}

/// What remains of a port whose adapter becomes another one.
#[derive(Default)]
struct Remains {
    sessions: u64,
    requests: u64,
    waiting: Option<Waiting>,
}

/// What a port is to be, checked.
struct Checked {
    mac: MacAddress,
    policy: PortPolicy,
}

/// Whether a port can go on with another configuration: with what is behind it as it is.
fn stays(was: &PortConfig, is: &PortConfig) -> bool {
    // A synthetic adapter's channels count from when its guest opens the first.
    let pairs = matches!(is.kind, PortKind::VhostUser { .. });
    was.kind == is.kind && was.mac == is.mac && !(pairs && was.max_channels != is.max_channels)
}

fn refuse(port: &str, why: &str, status: NtStatus) -> NtStatus {
    tracing::info!(port, why, "a port is refused");
    status
}

pub(super) fn stopped(_: SwitchStopped) -> NtStatus {
    NtStatus::DEVICE_REMOVED
}

fn check(config: &PortConfig) -> Result<Checked, NtStatus> {
    let invalid = |why| refuse(&config.port, why, NtStatus::INVALID_PARAMETER);
    let named = !config.port.is_empty()
        && config.port.len() <= MAX_PORT_NAME
        && !config.port.chars().any(|c| c.is_control() || c.is_whitespace());
    if !named {
        return Err(invalid("its name is empty, too long, or has spaces"));
    }
    if !(1..=MAX_CHANNELS).contains(&config.max_channels) {
        return Err(invalid("it cannot have so many channels"));
    }
    if config.friendly_name.len() > MAX_FRIENDLY_NAME {
        return Err(invalid("its friendly name is too long"));
    }
    let mac = config.mac.parse::<MacAddress>().ok().filter(|mac| *mac != MacAddress::ZERO);
    let mac = mac.ok_or_else(|| invalid("its address is none"))?;
    let vlan = config.vlan.policy().ok_or_else(|| invalid("one of its VLANs cannot be"))?;
    let policy = PortPolicy {
        mac,
        receives: config.vlan.receives(),
        vport: VPortPolicy {
            allow_spoofing: config.allow_spoofing,
            vlan,
            ..VPortPolicy::default()
        },
    };
    Ok(Checked { mac, policy })
}

/// The NIC that a port's guest sees.
pub(super) fn nic_config(config: &PortConfig, mac: MacAddress) -> NicConfig {
    let mut nic = NicConfig::new(netvsp_protocol::MacAddress::new(mac.octets()));
    nic.max_channels = config.max_channels;
    nic.sriov = config.sriov;
    nic.vf = VfControl::Host;
    if !config.friendly_name.is_empty() {
        nic.friendly_name.clone_from(&config.friendly_name);
    }
    nic
}

fn refused_by_table(port: &str, error: SwitchError) -> NtStatus {
    let status = match error {
        SwitchError::SameTests(_) => NtStatus::DEVICE_BUSY,
        _ => NtStatus::INVALID_PARAMETER,
    };
    refuse(port, &error.to_string(), status)
}

impl Port {
    pub(super) fn report(&self) -> PortReport {
        self.report.clone()
    }

    pub(super) fn is_of(&self, desk: &Arc<Desk>) -> bool {
        matches!(&self.behind, Behind::Synthetic(port) if Arc::ptr_eq(&port.desk, desk))
    }

    const fn is_virtio_net(&self) -> bool {
        matches!(self.behind, Behind::VhostUser)
    }

    fn synthetic(&mut self) -> Option<&mut Synthetic> {
        match &mut self.behind {
            Behind::Synthetic(port) => Some(port),
            Behind::Legacy | Behind::VhostUser => None,
        }
    }

    pub(super) fn take_notes(&mut self) {
        if let Some(port) = self.synthetic() {
            port.desk.take(&mut port.upcalls);
        }
    }

    pub(super) fn tell_upcalls(&mut self) {
        if let Some(port) = self.synthetic() {
            port.tell_upcall();
        }
    }
}

impl Synthetic {
    fn new(desk: Arc<Desk>, requests_before: u64, waiting: Option<Waiting>) -> Self {
        Self {
            desk,
            owner: None,
            channels: BTreeSet::new(),
            memory: DmaMap::empty(),
            upcalls: VecDeque::new(),
            waiting,
            stale: false,
            requests_before,
            life: 0,
        }
    }

    /// Whether this client may wait for upcalls.
    pub(super) fn may_wait(&self, client: ClientId) -> Result<(), NtStatus> {
        let owned = self.owner.is_none_or(|owner| owner == client);
        if self.waiting.is_none() && owned { Ok(()) } else { Err(NtStatus::DEVICE_BUSY) }
    }

    /// Hands the next upcall to whoever waits for it.
    pub(super) fn tell_upcall(&mut self) {
        if let Some(upcall) = self.upcalls.front()
            && let Some(waiting) = self.waiting.take()
        {
            waiting.tell(upcall);
            self.upcalls.pop_front();
        }
    }
}

impl State {
    /// A synthetic port.
    pub(super) fn synthetic(&mut self, name: &str) -> Result<&mut Synthetic, NtStatus> {
        let port = self.ports.get_mut(name).ok_or(NtStatus::NOT_FOUND)?;
        port.synthetic().ok_or(NtStatus::INVALID_DEVICE_REQUEST)
    }

    /// Where requests for upcalls wait.
    pub(super) fn waiting_for_upcalls(&mut self) -> impl Iterator<Item = &mut Option<Waiting>> {
        self.ports.values_mut().filter_map(Port::synthetic).map(|port| &mut port.waiting)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// What a port's NIC says of itself.
struct Facts {
    up: bool,
    vf: Option<server::VfReport>,
}

impl Facts {
    fn of(switch: &mut VirtualSwitch, id: VPortId) -> Self {
        let control = switch.port::<SyntheticPort>(id).map(|port| port.nic_state().control());
        Self {
            up: control.is_some_and(server::Control::is_up),
            vf: control.and_then(server::Control::vf_report),
        }
    }
}

impl Ports {
    /// Without ports, and with this uplink.
    pub(super) fn new(switch: SwitchHandle, news: News, uplink: UplinkReport) -> Self {
        let uplink = Uplink { report: uplink, version: 0 };
        Self { switch, news, state: Mutex::new(State { uplink, ..State::default() }) }
    }

    /// How the uplink is.
    pub(super) fn uplink(&self) -> UplinkReport {
        self.lock().uplink.report.clone()
    }

    /// The uplink is like this now.
    pub(super) fn set_uplink(&self, report: UplinkReport) {
        let mut state = self.lock();
        if state.uplink.report != report {
            let version = state.tick();
            state.uplink = Uplink { report, version };
            state.tell_listeners();
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports, by name: number, configuration and report of each.
    pub(super) fn listed(&self) -> Vec<(VPortId, PortConfig, PortReport)> {
        let state = self.lock();
        let listed = |port: &Port| (port.id, port.config.clone(), port.report());
        state.ports.values().map(listed).collect()
    }

    /// Makes a port, or replaces what it is and may do.
    pub(super) fn set(&self, config: PortConfig) -> Result<(), NtStatus> {
        let checked = check(&config)?;
        let mut state = self.lock();
        match state.ports.get_mut(&config.port) {
            None => self.make(&mut state, config, checked, Remains::default()),
            Some(port) if stays(&port.config, &config) => {
                let (id, policy) = (port.id, checked.policy);
                let set = self.switch.run(move |switch| switch.set_policy(id, policy));
                set.map_err(stopped)?.map_err(|error| refused_by_table(&config.port, error))?;
                if let Behind::Synthetic(synthetic) = &mut port.behind {
                    synthetic.stale = true;
                }
                port.config = config;
                Ok(())
            }
            Some(port) => {
                if self.is_in_use(port)? {
                    let why = "kind, address and queue pairs stay while it is in use";
                    return Err(refuse(&config.port, why, NtStatus::INVALID_DEVICE_STATE));
                }
                // The address first: one that is taken leaves the port as it was.
                let (id, policy) = (port.id, checked.policy.clone());
                let set = self.switch.run(move |switch| switch.set_policy(id, policy));
                set.map_err(stopped)?.map_err(|error| refused_by_table(&config.port, error))?;
                let remains = self.remove(&mut state, &config.port)?;
                self.make(&mut state, config, checked, remains)
            }
        }
    }

    fn is_in_use(&self, port: &Port) -> Result<bool, NtStatus> {
        let id = port.id;
        match &port.behind {
            Behind::Synthetic(port) => Ok(!port.channels.is_empty()),
            Behind::Legacy => {
                let connected = move |switch: &mut VirtualSwitch| {
                    switch.port::<TulipPort>(id).is_some_and(|port| port.is_connected())
                };
                self.switch.run(connected).map_err(stopped)
            }
            Behind::VhostUser => {
                let connected = move |switch: &mut VirtualSwitch| {
                    switch.port::<VhostUserPort>(id).is_some_and(|port| port.is_connected())
                };
                self.switch.run(connected).map_err(stopped)
            }
        }
    }

    fn make(
        &self,
        state: &mut State,
        config: PortConfig,
        checked: Checked,
        remains: Remains,
    ) -> Result<(), NtStatus> {
        let taken: BTreeSet<VPortId> = state.ports.values().map(|port| port.id).collect();
        let free = (1..=u32::try_from(MAX_PORTS).unwrap_or(u32::MAX)).filter_map(VPortId::new);
        let id = free.into_iter().find(|id| !taken.contains(id));
        let id = id.ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
        let Checked { mac, policy } = checked;
        let Remains { sessions, requests, mut waiting } = remains;
        let (behind, port): (Behind, Box<dyn SwitchPort>) = match &config.kind {
            PortKind::Synthetic => {
                let desk = Desk::new(&config.port, sessions);
                let nic = NetVsp::new(nic_config(&config, mac), DmaMap::empty());
                let port = SyntheticPort::new(nic, desk.teller(self.news.clone()));
                let synthetic = Synthetic::new(desk, requests, waiting.take());
                (Behind::Synthetic(Box::new(synthetic)), Box::new(port))
            }
            PortKind::Legacy { socket } => {
                let served = TulipPort::serve(socket, mac, &config.port).map_err(|error| {
                    tracing::warn!(port = config.port, %error, "an emulated adapter");
                    NtStatus::INSUFFICIENT_RESOURCES
                })?;
                (Behind::Legacy, Box::new(served))
            }
            PortKind::VhostUser { socket } => {
                let served = VhostUserPort::serve(socket, &config.port, config.max_channels);
                let served = served.map_err(|error| {
                    tracing::warn!(port = config.port, %error, "a vhost-user port");
                    NtStatus::INSUFFICIENT_RESOURCES
                })?;
                (Behind::VhostUser, Box::new(served))
            }
        };
        let connected = self.switch.run(move |switch| switch.connect(id, policy, port));
        let connected = connected.map_err(stopped)?;
        connected.map_err(|error| refused_by_table(&config.port, error))?;
        let report = PortReport {
            port: config.port.clone(),
            guest: GuestState::Closed,
            session: sessions,
            life: 0,
            asks: None,
            request: requests,
            vf: None,
            active: DataPath::Synthetic,
        };
        if let Some(waiting) = waiting {
            waiting.end(NtStatus::INVALID_DEVICE_REQUEST);
        }
        tracing::info!(port = config.port, %mac, "a port is made");
        let version = state.tick();
        state.ports.insert(config.port.clone(), Port { id, config, version, report, behind });
        state.tell_listeners();
        Ok(())
    }

    /// Deletes a port; whoever plays its guest is told by the end of its request for upcalls.
    pub(super) fn delete(&self, name: &PortName) -> Result<(), NtStatus> {
        let mut state = self.lock();
        if let Some(waiting) = self.remove(&mut state, &name.port)?.waiting {
            waiting.end(NtStatus::NOT_FOUND);
        }
        for listener in state.listeners.values_mut() {
            listener.forget(&name.port);
        }
        Ok(())
    }

    fn remove(&self, state: &mut State, name: &str) -> Result<Remains, NtStatus> {
        let mut port = state.ports.remove(name).ok_or(NtStatus::NOT_FOUND)?;
        let remains = Remains {
            sessions: port.report.session,
            requests: port.report.request,
            waiting: port.synthetic().and_then(|port| port.waiting.take()),
        };
        let id = port.id;
        // What is behind it may take its time to end; here, and not on the switch's thread.
        drop(self.switch.run(move |switch| switch.disconnect(id)).map_err(stopped)?);
        tracing::info!(port = name, "a port is deleted");
        Ok(remains)
    }

    /// Tells a port about its VF.
    pub(super) fn command(&self, command: &PortCommand) -> Result<(), NtStatus> {
        let mut state = self.lock();
        if let VfCommand::GuestPath { path } = command.command
            && state.ports.get(&command.port).is_some_and(Port::is_virtio_net)
        {
            return self.guest_path(&state, &command.port, path);
        }
        let requests_before = state.synthetic(&command.port)?.requests_before;
        let told = match command.command {
            VfCommand::VfAvailable { serial } => server::VfCommand::Available { serial },
            VfCommand::VfLost { serial } => server::VfCommand::Lost { serial },
            VfCommand::GuestPath { .. } => return Err(NtStatus::INVALID_DEVICE_REQUEST),
            VfCommand::SwitchDataPath { to: DataPath::Synthetic } => server::VfCommand::Leave,
            // A guest takes the VF by itself.
            VfCommand::SwitchDataPath { to: DataPath::Vf } => {
                return Err(NtStatus::INVALID_PARAMETER);
            }
            VfCommand::CompleteSwitch { active, request } => server::VfCommand::Complete {
                active: active.into(),
                // One of a NIC before this one is none of this one's: they count from 1.
                request: Some(request.saturating_sub(requests_before)),
            },
        };
        self.change(&state, &command.port, move |port| port.nic().vf_command(told))?;
        self.look_at(&mut state, &command.port);
        Ok(())
    }

    /// Notes by which path the guest of a virtio-net takes frames.
    fn guest_path(&self, state: &State, name: &str, path: GuestPath) -> Result<(), NtStatus> {
        let port = state.ports.get(name).ok_or(NtStatus::NOT_FOUND)?;
        let vlan = match port.config.vlan {
            VlanMode::Access { vlan } => Some(vlan),
            _ => None,
        };
        let id = port.id;
        let noted = self.switch.run(move |switch| {
            if let Some(port) = switch.port::<VhostUserPort>(id) {
                port.set_path(path, vlan);
            }
            switch.refresh(id);
        });
        noted.map_err(stopped)
    }

    /// Changes a synthetic port between two rounds of the switch, which sees at once what has become of it.
    pub(super) fn change<R: Send + 'static>(
        &self,
        state: &State,
        name: &str,
        change: impl FnOnce(&mut SyntheticPort) -> R + Send + 'static,
    ) -> Result<R, NtStatus> {
        let id = state.ports.get(name).ok_or(NtStatus::NOT_FOUND)?.id;
        let changed = self.switch.run(move |switch| {
            let changed = switch.port::<SyntheticPort>(id).map(change);
            switch.refresh(id);
            changed
        });
        changed.map_err(stopped)?.ok_or(NtStatus::INVALID_DEVICE_REQUEST)
    }

    /// Sees what has become of a port, and tells whoever waits if that is news.
    pub(super) fn look_at(&self, state: &mut State, name: &str) {
        let Some(id) = state.ports.get(name).map(|port| port.id) else { return };
        // A switch that has stopped has no news.
        let Ok(facts) = self.switch.run(move |switch| Facts::of(switch, id)) else { return };
        let version = state.clock + 1;
        let Some(port) = state.ports.get_mut(name) else { return };
        let Some(synthetic) = port.synthetic() else { return };
        let (session, before) = (synthetic.desk.sessions(), synthetic.requests_before);
        let life = synthetic.life;
        let vf = facts.vf;
        let able = vf.is_some_and(|vf| vf.able);
        let report = PortReport {
            port: name.to_owned(),
            guest: if facts.up { GuestState::Ready { sriov: able } } else { GuestState::Closed },
            session,
            life,
            asks: vf.and_then(|vf| vf.asks).map(DataPath::from),
            request: before + vf.map_or(0, |vf| vf.requests),
            vf: vf.and_then(|vf| vf.serial),
            active: vf.map_or(DataPath::Synthetic, |vf| vf.active.into()),
        };
        if report != port.report {
            let leaves = report.asks == Some(DataPath::Synthetic);
            if leaves && report.request != port.report.request {
                self.drain_uplink();
            }
            port.report = report;
            port.version = version;
            state.clock = version;
            state.tell_listeners();
        }
    }

    /// Waits until what ports have sent to an adapter is out of its queue: frames for a guest that leaves its VF must
    /// not meet its filters on their way home. It takes microseconds; an adapter that hangs is not waited for.
    fn drain_uplink(&self) {
        let progress =
            || self.switch.run(|switch| switch.uplink::<AvfUplink>().map(AvfUplink::progress));
        let Ok(Some((handed, _))) = progress() else { return };
        let start = Instant::now();
        while let Ok(Some((_, sent))) = progress()
            && sent < handed
            && start.elapsed() < DRAIN_LIMIT
        {
            std::thread::yield_now();
        }
    }

    /// A client has gone: its channels close, and nobody waits for anything for it.
    pub(super) fn disconnected(&self, client: ClientId) {
        let mut state = self.lock();
        state.listeners.remove(&client);
        for slot in state.waiting_for_upcalls() {
            if let Some(waiting) = slot.take_if(|waiting| waiting.client == client) {
                waiting.end(NtStatus::CANCELLED);
            }
        }
        let owned = |port: &mut Port| port.synthetic().is_some_and(|p| p.owner == Some(client));
        let names: Vec<String> = state
            .ports
            .iter_mut()
            .filter_map(|(name, port)| owned(port).then(|| name.clone()))
            .collect();
        for name in names {
            // A switch that has stopped has no channels open.
            let _ = self.close_all(&mut state, &name);
        }
    }
}
