//! The stack against a real adapter behind its control socket, with scripted guest ends: what it asks for is what NDIS and
//! the PF driver take, and nothing is left when it is done.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use adapter::control::{AdapterStatus, PrivateControl, STATUS_CAPACITY};
use adapter::{AdapterConfig, AdapterServer, control_socket};
use device_control::{DeviceControlClient, DriverName, SentRequest};
use ndis::{AdapterConfiguration, Keywords};
use ndis_protocol::{MacAddress, Name, VlanId};
use pcivirt_protocol::IOCTL_SRIOV_DETACH;
use stack_process::nic_call;
use virtualization_stack::{AdapterConfig as VmAdapterConfig, *};

const PATIENCE: Duration = Duration::from_secs(20);
const NIC: NicId = NicId(0);
const VM: VmId = VmId(0);

/// Carries the stack's effects out: on the adapter for real, on guests as they should be.
struct World {
    stack: Stack,
    client: DeviceControlClient,
    requests: BTreeMap<RequestId, (NicCall, SentRequest)>,
    inputs: VecDeque<Input>,
    active: BTreeMap<AdapterId, DataPath>,
    start: Instant,
}

impl World {
    fn new(directory: &std::path::Path) -> Self {
        let name = DriverName::new("stack").unwrap();
        let client =
            DeviceControlClient::connect(control_socket(directory), &name, PATIENCE).unwrap();
        let mut world = Self {
            stack: Stack::new(StackConfig::default()),
            client,
            requests: BTreeMap::new(),
            inputs: VecDeque::new(),
            active: BTreeMap::new(),
            start: Instant::now(),
        };
        let name = Name::new("vm0").unwrap();
        let kind = SwitchKind::External { nic: NIC, teamed: false };
        let config = SwitchConfig { name: "external".into(), kind, iov_enabled: true };
        world.tell(Input::SwitchSet(VmSwitchId(0), config));
        world.tell(Input::SwitchStarted(VmSwitchId(0)));
        world.tell(Input::VmSet(VM, VmConfig { name: name.clone(), friendly_name: name }));
        world.tell(Input::VmState(VM, VmState::Running));
        world
    }

    fn tell(&mut self, input: Input) {
        self.inputs.push_back(input);
        while let Some(input) = self.inputs.pop_front() {
            let now = Time::since_start(self.start.elapsed());
            for effect in self.stack.step(input, now).unwrap() {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Nic { request, call, .. } => {
                let (target, input) = nic_call::request(&call);
                let sent = self.client.send(target, &input, call.output_capacity()).unwrap();
                self.requests.insert(request, (call, sent));
            }
            Effect::CancelNic { request, .. } => drop(self.requests.remove(&request)),
            Effect::DisconnectNic { .. } => panic!("the adapter is given up"),
            Effect::NetVsp { adapter, command } => {
                let asks = |path| Input::NetVsp(adapter, NetVspReport::AsksDataPath(path));
                match command {
                    NetVspCommand::CompleteSwitch { active } => {
                        self.active.insert(adapter, active);
                    }
                    NetVspCommand::SwitchDataPath(path) => self.inputs.push_back(asks(path)),
                    NetVspCommand::VfAvailable { .. } | NetVspCommand::VfLost { .. } => {}
                }
            }
            Effect::Vpci { adapter, serial, command } => {
                let report = |report| Input::Vpci(adapter, serial, report);
                match command {
                    VpciCommand::Offer(_) => self.inputs.extend([
                        report(VpciReport::Offered),
                        report(VpciReport::BusOpened),
                        report(VpciReport::DeviceStarted),
                        Input::NetVsp(adapter, NetVspReport::AsksDataPath(DataPath::Vf)),
                    ]),
                    VpciCommand::Eject => self.inputs.push_back(report(VpciReport::EjectComplete)),
                    VpciCommand::Remove { .. } => {
                        self.inputs.push_back(report(VpciReport::Removed))
                    }
                    VpciCommand::ReplaceMitigatedRanges(_) => {}
                }
            }
            Effect::Publish(event) => event.log(),
            Effect::SetTimer(_) => {}
        }
    }

    /// Takes in what the adapter answers until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:?}", self.statuses());
            let ready: Vec<_> = self
                .requests
                .iter()
                .filter(|(_, (_, sent))| sent.is_done())
                .map(|(id, _)| *id)
                .collect();
            for request in ready {
                let (call, sent) = self.requests.remove(&request).unwrap();
                let completion = sent.wait(PATIENCE).unwrap();
                let result = nic_call::result(&call, &completion);
                self.tell(Input::NicCompleted(NIC, request, result));
            }
            // Completions come from the adapter's threads; the first one outstanding that is no long poll is waited for.
            if let Some((_, sent)) = self.requests.values().find(|(call, _)| !call.is_long_poll()) {
                sent.wait_for(Duration::from_millis(50));
            }
        }
    }

    fn statuses(&self) -> Vec<AdapterStatusOfVm> {
        self.stack.adapter_ids().filter_map(|id| self.stack.adapter_status(id)).collect()
    }

    fn nic(&self) -> AdapterStatus {
        let code = PrivateControl::Status.code();
        let answer = self.client.private(code, &[], STATUS_CAPACITY, PATIENCE).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    fn all_active(&self) -> bool {
        self.statuses()
            .iter()
            .all(|status| matches!(status.state, State::Active(ActiveStep::Resting)))
    }

    fn all_rest(&self) -> bool {
        self.stack.is_settled()
            && self
                .stack
                .adapter_ids()
                .all(|id| self.stack.state(id) == Some(State::Synthetic(SyntheticStep::Resting)))
    }
}

type AdapterStatusOfVm = virtualization_stack::AdapterStatus;

fn start(directory: &std::path::Path) -> AdapterServer {
    let config = AdapterConfig { total_vfs: 4, ..AdapterConfig::new("nic0", directory) };
    let keywords = Keywords { sriov_preferred: true, num_vfs: Some(4), ..Keywords::default() };
    let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
    AdapterServer::start(config, configuration).unwrap()
}

fn vm_adapter(number: u8) -> VmAdapterConfig {
    let mut config = VmAdapterConfig::new(VM, MacAddress::new([2, 0, 0, 0, 9, number]));
    config.switch = Some(VmSwitchId(0));
    config.iov_weight = 100;
    config.iov_queue_pairs_requested = 2;
    config
}

#[test]
fn adapters_get_vfs_of_a_real_nic_and_give_everything_back() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let mut world = World::new(directory.path());
    for number in 0..3 {
        let id = AdapterId(number.into());
        let mut config = vm_adapter(number);
        if number == 1 {
            config.vlan = VlanSetting::Access(VlanId::new(7).unwrap());
        }
        world.tell(Input::AdapterSet(id, config));
        world.tell(Input::NetVsp(id, NetVspReport::Ready { sriov: true }));
    }
    world.tell(Input::NicConnected(NIC));
    world.until("VFs become active", |world| world.all_active() && world.stack.is_settled());

    let nic = world.nic();
    assert_eq!(nic.vfs.iter().map(|vf| vf.queue_pairs).collect::<Vec<_>>(), [2, 2, 2]);
    assert!(world.active.values().all(|path| *path == DataPath::Vf));
    for status in world.statuses() {
        assert_eq!(status.health, Health::OkSriovActive, "{status:?}");
        assert_eq!(status.iov_queue_pairs_assigned, 2);
    }

    for number in 0..3 {
        let config = VmAdapterConfig { iov_weight: 0, ..world_config(&world, number) };
        world.tell(Input::AdapterSet(AdapterId(number.into()), config));
    }
    world.until("VFs are given back", World::all_rest);
    assert_eq!(world.nic().vfs, []);

    world.tell(Input::VmState(VM, VmState::Off));
    world.until("filters are cleared", World::all_rest);
}

fn world_config(_world: &World, number: u8) -> VmAdapterConfig {
    let mut config = vm_adapter(number);
    if number == 1 {
        config.vlan = VlanSetting::Access(VlanId::new(7).unwrap());
    }
    config
}

#[test]
fn what_an_earlier_life_of_the_stack_left_on_a_real_nic_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let _server = start(directory.path());
    let mut world = World::new(directory.path());
    world.tell(Input::AdapterSet(AdapterId(0), vm_adapter(0)));
    world.tell(Input::NetVsp(AdapterId(0), NetVspReport::Ready { sriov: true }));
    world.tell(Input::NicConnected(NIC));
    world.until("a VF becomes active", World::all_active);
    assert_eq!(world.nic().vfs.len(), 1);
    // The end of a connection is noticed in its own time, and until then the next one may not attach.
    world.client.ioctl(IOCTL_SRIOV_DETACH, &[], 0, PATIENCE).unwrap();
    drop(world);

    let mut world = World::new(directory.path());
    world.tell(Input::NicConnected(NIC));
    world.until("the NIC is ready", |world| {
        world.stack.nic_status(NIC).is_some_and(|status| status.state == NicState::Ready)
    });
    assert_eq!(world.nic().vfs, []);
}
