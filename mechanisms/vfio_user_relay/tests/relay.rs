//! A relay between our own AVF driver and VFs of an adapter that come and go.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests may")]

use std::{
    path::PathBuf,
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use adapter::{Adapter, AdapterConfig};
use arrayvec::ArrayVec;
use avf_driver::{AvfControl, AvfDriver, DriverConfig, QueuePair, RxSegment, TxSegment};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VPortId, VfId};
use nic_switch::{ReceiveFilter, VlanMatch};
use pcie_protocol::{
    CapabilityId, CapabilityWalk, PowerManagementCapabilities, PowerManagementControl,
};
use vfio_user_client::{Client, PciRegion};
use vfio_user_relay::{Relay, RelayError, RelayNews};

const PATIENCE: Duration = Duration::from_secs(20);
const VENDOR: [u8; 2] = 0x8086u16.to_le_bytes();
const NOTHING: [u8; 2] = [0xFF; 2];

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 3, number]
}

struct Nic {
    adapter: Adapter,
    folder: tempfile::TempDir,
}

impl Nic {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = AdapterConfig::new("test", folder.path().join("nic"));
        config.total_vfs = 2;
        let adapter = Adapter::start(config).unwrap();
        adapter.enable_vfs(2).unwrap();
        let nic = Self { adapter, folder };
        nic.give(0);
        nic.give(1);
        nic
    }

    /// A VF with a VPort and a filter.
    fn give(&self, number: u8) -> VfId {
        let address = MacAddress::new(mac(number));
        let (id, _) = self.adapter.allocate_vf(address).unwrap();
        let vport = VPortId::new(u32::from(number) + 1).unwrap();
        let undefined = InterruptModeration::Undefined;
        self.adapter.create_vport(vport, FunctionId::Vf(id), 1, undefined).unwrap();
        let filter = ReceiveFilter { mac: address, vlan: VlanMatch::UntaggedOrZero, vport };
        let number = FilterId::new(u32::from(number) + 1).unwrap();
        self.adapter.set_filter(number, filter).unwrap();
        id
    }

    fn take(&self, number: u8, vf: VfId) {
        self.adapter.clear_filter(FilterId::new(u32::from(number) + 1).unwrap()).unwrap();
        self.adapter.delete_vport(VPortId::new(u32::from(number) + 1).unwrap()).unwrap();
        self.adapter.free_vf(vf).unwrap();
    }

    fn socket(&self, number: u16) -> PathBuf {
        self.adapter.socket(FunctionId::Vf(VfId::new(number).unwrap()))
    }

    fn relay(&self) -> (Relay, Receiver<()>) {
        let (tell, events) = mpsc::channel();
        let socket = self.folder.path().join("relay.sock");
        (
            Relay::new(socket, "relay", move || {
                let _ = tell.send(());
            }),
            events,
        )
    }
}

fn wait_for(relay: &Relay, bell: &Receiver<()>, wanted: impl Fn(RelayNews) -> bool) {
    while !wanted(relay.news()) {
        bell.recv_timeout(PATIENCE).unwrap();
    }
}

fn open(socket: PathBuf) -> (AvfControl, QueuePair) {
    let (control, mut pairs) = AvfDriver::open(DriverConfig::new(socket)).unwrap();
    (control, pairs.pop().unwrap())
}

fn send(pair: &mut QueuePair, to: [u8; 6], from: [u8; 6], text: &[u8]) {
    let bytes = [&to[..], &from, &[0x88, 0xB5], text].concat();
    let tx = &mut pair.tx;
    let buffer = tx.reserve().unwrap();
    tx.memory().bytes(&buffer).unwrap().write_from(&bytes);
    let mut burst = ArrayVec::<TxSegment, 1>::new();
    burst.push(TxSegment::frame(buffer, u16::try_from(bytes.len()).unwrap()));
    while !burst.is_empty() {
        tx.transmit(&mut burst);
    }
}

fn receive(pair: &mut QueuePair) -> Vec<u8> {
    let start = std::time::Instant::now();
    let mut burst = ArrayVec::<RxSegment, 5>::new();
    while pair.rx.receive(&mut burst) == 0 {
        assert!(start.elapsed() < PATIENCE, "no frame came");
        std::thread::yield_now();
    }
    let segment = burst.pop().unwrap();
    let mut bytes = vec![0; segment.length.into()];
    pair.rx.memory().bytes(&segment.buffer).unwrap().read_into(&mut bytes);
    pair.rx.free(segment.buffer);
    bytes
}

#[test]
fn a_driver_sends_and_receives_by_a_vf_behind_a_relay_and_again_by_the_next_vf() {
    let nic = Nic::new();
    let (mut relay, events) = nic.relay();
    let (_other_control, mut other) = open(nic.socket(1));
    for round in 0..3u8 {
        relay.attach(&nic.socket(0)).unwrap();
        let (control, mut own) = open(relay.socket().to_owned());
        wait_for(&relay, &events, |news| news.connected);
        wait_for(&relay, &events, |news| news.bus_master);
        send(&mut own, mac(1), mac(0), &[round; 50]);
        assert_eq!(receive(&mut other).get(14..64).unwrap(), [round; 50]);
        send(&mut other, mac(0), mac(1), &[round + 100; 60]);
        assert_eq!(receive(&mut own).get(14..74).unwrap(), [round + 100; 60]);
        drop((own, control));
        wait_for(&relay, &events, |news| news.disconnected);
        relay.detach();
        nic.take(0, VfId::new(0).unwrap());
        nic.give(0);
    }
}

#[test]
fn a_function_without_vf_reads_as_ones_and_serves_the_same_client_again() {
    let nic = Nic::new();
    let (mut relay, events) = nic.relay();
    relay.attach(&nic.socket(0)).unwrap();
    let client = Client::connect(relay.socket(), PATIENCE).unwrap();
    wait_for(&relay, &events, |news| news.connected);
    assert!(relay.is_connected());
    assert_eq!(client.region_read::<2>(PciRegion::Config, 0).unwrap(), VENDOR);
    relay.detach();
    assert_eq!(client.region_read::<2>(PciRegion::Config, 0).unwrap(), NOTHING);
    assert_eq!(client.region_read::<4>(PciRegion::Bar0, 0x8800).unwrap(), [0xFF; 4]);
    client.config_write(4, &[0, 0]).unwrap();
    wait_for(&relay, &events, |news| news.master_cleared);
    // Another VF of the same kind takes its place.
    relay.attach(&nic.socket(1)).unwrap();
    assert_eq!(client.region_read::<2>(PciRegion::Config, 0).unwrap(), VENDOR);
    client.config_write(4, &[4, 0]).unwrap();
    wait_for(&relay, &events, |news| news.master_set);
}

#[test]
fn a_vf_that_is_freed_leaves_a_function_that_reads_as_ones() {
    let nic = Nic::new();
    let (mut relay, events) = nic.relay();
    relay.attach(&nic.socket(0)).unwrap();
    let client = Client::connect(relay.socket(), PATIENCE).unwrap();
    client.config_write(4, &[4, 0]).unwrap();
    wait_for(&relay, &events, |news| news.bus_master);
    nic.take(0, VfId::new(0).unwrap());
    wait_for(&relay, &events, |news| news.vf_lost);
    assert_eq!(client.region_read::<2>(PciRegion::Config, 0).unwrap(), NOTHING);
    let error = relay.attach(&nic.socket(0)).unwrap_err();
    assert!(matches!(error, RelayError::Vf { .. }), "{error}");
    assert_eq!(client.region_read::<2>(PciRegion::Config, 0).unwrap(), NOTHING);
    nic.give(0);
    relay.attach(&nic.socket(0)).unwrap();
    assert_eq!(client.region_read::<2>(PciRegion::Config, 0).unwrap(), VENDOR);
}

#[test]
fn a_guest_that_floods_the_command_register_rings_once_and_no_clearing_is_missed() {
    let nic = Nic::new();
    let (mut relay, bell) = nic.relay();
    relay.attach(&nic.socket(0)).unwrap();
    let client = Client::connect(relay.socket(), PATIENCE).unwrap();
    wait_for(&relay, &bell, |news| news.connected);
    while bell.try_recv().is_ok() {}
    for _ in 0..2000 {
        client.config_write(4, &[4, 0]).unwrap();
    }
    client.config_write(4, &[0, 0]).unwrap();
    client.config_write(4, &[4, 0]).unwrap();
    assert_eq!(bell.try_iter().count(), 1);
    let (connected, bus_master) = (true, true);
    let all = RelayNews {
        connected,
        bus_master,
        master_set: true,
        master_cleared: true,
        ..RelayNews::default()
    };
    assert_eq!(relay.news(), all);
    assert_eq!(relay.news(), RelayNews { connected, bus_master, ..RelayNews::default() });
    client.config_write(4, &[0, 0]).unwrap();
    assert_eq!(bell.try_iter().count(), 1, "whoever has looked is told again");
    assert!(relay.news().master_cleared);
}

#[test]
fn a_function_that_nobody_has_is_not_served_without_vf() {
    let nic = Nic::new();
    let (mut relay, bell) = nic.relay();
    relay.attach(&nic.socket(0)).unwrap();
    relay.detach();
    Client::connect(relay.socket(), PATIENCE).unwrap_err();
    relay.attach(&nic.socket(1)).unwrap();
    let _client = Client::connect(relay.socket(), PATIENCE).unwrap();
    wait_for(&relay, &bell, |news| news.connected);
    nic.take(1, VfId::new(1).unwrap());
    wait_for(&relay, &bell, |news| news.vf_lost);
    nic.give(1);
    relay.attach(&nic.socket(1)).unwrap();
    assert!(!relay.news().vf_lost, "what became of the one before is no news");
}

#[test]
fn a_guest_that_is_about_to_leave_is_told_of_if_it_is_to_wait() {
    let nic = Nic::new();
    let (mut relay, bell) = nic.relay();
    relay.attach(&nic.socket(0)).unwrap();
    let client = Client::connect(relay.socket(), PATIENCE).unwrap();
    wait_for(&relay, &bell, |news| news.connected);
    let mut config = [0; 256];
    for (offset, register) in (0..).step_by(4).zip(config.chunks_exact_mut(4)) {
        client.config_read(offset, register).unwrap();
    }
    let power =
        CapabilityWalk::new(&config).find(|found| found.id == CapabilityId::POWER_MANAGEMENT);
    let at = power.unwrap().offset;
    let mut capabilities = [0; 2];
    client.config_read(at + 2, &mut capabilities).unwrap();
    let capabilities = PowerManagementCapabilities::from(u16::from_le_bytes(capabilities));
    assert_eq!((capabilities.version(), capabilities.pme_support()), (3, 1));

    let off = PowerManagementControl::new().with_pme_status(true);
    let leave = || client.config_write(at + 4, &u16::from(off).to_le_bytes()).unwrap();
    leave();
    assert!(!relay.news().leaving, "Linux does so when it finds a function, too");
    relay.hold_leaving();
    std::thread::scope(|scope| {
        scope.spawn(leave);
        wait_for(&relay, &bell, |news| news.leaving);
        relay.let_leave();
    });
    leave();
    assert!(!relay.news().leaving);
}
