//! A real adapter as uplink: its default VPort, a VF on the other side of its NIC switch, its death and return.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use adapter::{AdapterConfig, AdapterServer};
use arrayvec::ArrayVec;
use avf_driver::{
    AvfControl, AvfDriver, DriverConfig, QueuePair, RxSegment, TxSegment, VlanConfig,
};
use ndis::{AdapterConfiguration, Keywords};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VPortId, VfId};
use netvsp::client::VfPath;
use nic_switch::{ReceiveFilter, VlanMatch};
use virtual_switch::{
    control::{
        AdapterUplink, DataPath, PortConfig, SocketIdentity, UplinkReport, VfCommand, VlanMode,
    },
    server::SwitchUplink,
};

use crate::common::{PATIENCE, SERIAL, Stack, VmWorker, World, frame, mac, mac_text, wait_for};

/// A VM that has nothing but a VF.
const VF_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];

fn start_adapter(directory: &Path) -> AdapterServer {
    let mut config = AdapterConfig::new("nic0", directory);
    config.total_vfs = 4;
    let keywords = Keywords { sriov_preferred: true, num_vfs: Some(4), ..Keywords::default() };
    let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: Some(1) };
    AdapterServer::start(config, configuration).unwrap()
}

fn vport(number: u32) -> VPortId {
    VPortId::new(number).unwrap()
}

fn filter(server: &AdapterServer, number: u32, mac: [u8; 6], vlan: VlanMatch, to: VPortId) {
    let filter = ReceiveFilter { mac: MacAddress::new(mac), vlan, vport: to };
    server.adapter().set_filter(FilterId::new(number).unwrap(), filter).unwrap();
}

/// A VF whose driver is up.
struct Vf {
    id: VfId,
    _control: AvfControl,
    pair: QueuePair,
}

impl Vf {
    /// On a VPort of this number, without filters.
    fn new(server: &AdapterServer, number: u32, mac: [u8; 6]) -> Self {
        let adapter = server.adapter();
        let (id, _) = adapter.allocate_vf(MacAddress::new(mac)).unwrap();
        let function = FunctionId::Vf(id);
        adapter.create_vport(vport(number), function, 1, InterruptModeration::Undefined).unwrap();
        let mut config = DriverConfig::new(adapter.socket(function));
        config.vlan = VlanConfig { strip: true, insert: true };
        let (control, mut pairs) = AvfDriver::open(config).unwrap();
        Self { id, _control: control, pair: pairs.remove(0) }
    }

    fn send(&mut self, bytes: &[u8]) {
        let start = Instant::now();
        let buffer = loop {
            if let Some(buffer) = self.pair.tx.reserve() {
                break buffer;
            }
            assert!(start.elapsed() < PATIENCE, "no buffer");
        };
        self.pair.tx.memory().bytes(&buffer).unwrap().write_from(bytes);
        let mut burst = ArrayVec::<_, 1>::new();
        burst.push(TxSegment::frame(buffer, bytes.len() as u16));
        assert_eq!(self.pair.tx.transmit(&mut burst), 1);
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let mut burst = ArrayVec::<RxSegment, 64>::new();
        self.pair.rx.receive(&mut burst);
        burst
            .drain(..)
            .map(|segment| {
                let mut bytes = vec![0; segment.length.into()];
                self.pair.rx.memory().bytes(&segment.buffer).unwrap().read_into(&mut bytes);
                self.pair.rx.free(segment.buffer);
                bytes
            })
            .collect()
    }

    fn expect(&mut self, bytes: &[u8]) {
        let mut frames = Vec::new();
        wait_for("a frame at the VF", || {
            frames = self.take();
            !frames.is_empty()
        });
        assert_eq!(frames, [bytes]);
    }
}

fn world(uplink: &Path) -> World {
    let uplink = uplink.to_owned();
    World::with(|config| config.uplink = SwitchUplink::Adapter(uplink))
}

fn wait_connected(stack: &Stack, connected: bool) {
    let start = Instant::now();
    while stack.status().uplink.connected != connected {
        assert!(start.elapsed() < PATIENCE, "{:?}", stack.status().uplink);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_uplink_is_reported_as_it_is_and_with_the_adapter_s_life_it_is_on() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let socket = folder.path().join("pf.sock");
    let mut stack = world.stack();
    let up = |report: &UplinkReport| report.adapter.as_ref().unwrap().up.is_some();
    let missing = stack.uplink_report(|report| report.adapter.as_ref().unwrap().error.is_some());
    assert!(!up(&missing), "{missing:?}");
    let mut lives = Vec::new();
    for _ in 0..2 {
        let server = start_adapter(folder.path());
        let report = stack.uplink_report(up);
        let identity = SocketIdentity::at(&socket).unwrap();
        assert_eq!(report.adapter, Some(AdapterUplink { up: Some(identity), error: None }));
        // Whoever comes later is told at once how it is, and the status says the same.
        let mut late = world.stack();
        assert_eq!(late.uplink_report(|_| true), report);
        assert_eq!(stack.status().uplink.report, report);
        drop(server);
        let report = stack.uplink_report(|report| !up(report));
        assert!(report.adapter.unwrap().error.is_some());
        lives.push(identity);
    }
    assert_ne!(lives[0], lives[1]);
}

#[test]
fn an_uplink_that_is_no_adapter_is_reported_as_none_to_wait_for() {
    let world = World::new();
    let mut stack = world.stack();
    assert_eq!(stack.uplink_report(|_| true), UplinkReport { adapter: None });
    assert_eq!(stack.status().uplink.report, UplinkReport { adapter: None });
}

#[test]
fn an_uplink_comes_with_its_adapter_goes_with_it_and_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let stack = world.stack();
    stack.port(1);
    stack.port(2);
    let (mut one, mut two) = (world.guest("vm1"), world.guest("vm2"));
    let uplink = stack.status().uplink;
    assert!(!uplink.connected && !uplink.link_up);
    let near = frame(mac(2), mac(1), b"near");
    let mut expected = 0;
    for life in 1..4 {
        // VMs on the same switch reach each other meanwhile.
        one.send(&near);
        two.expect(&near);
        let server = start_adapter(folder.path());
        wait_connected(&stack, true);
        let mut vf = Vf::new(&server, 1, VF_MAC);
        filter(&server, 1, VF_MAC, VlanMatch::UntaggedOrZero, vport(1));
        filter(&server, 2, mac(1), VlanMatch::UntaggedOrZero, VPortId::DEFAULT);
        let there = frame(VF_MAC, mac(1), &[life]);
        one.send(&there);
        vf.expect(&there);
        let back = frame(mac(1), VF_MAC, &[life]);
        vf.send(&back);
        one.expect(&back);
        // A VM without any filter on the adapter: what it sends gets out of the default VPort.
        let there = frame(VF_MAC, mac(2), &[life]);
        two.send(&there);
        vf.expect(&there);
        expected += 2;
        let uplink = stack.status().uplink;
        assert!(uplink.connected && uplink.link_up && uplink.last_error.is_none(), "{uplink:?}");
        assert_eq!(uplink.statistics.received, expected, "counters go on");
        assert_eq!(uplink.statistics.sent, u64::from(life));
        drop(vf);
        drop(server);
        wait_connected(&stack, false);
        one.send(&there);
    }
    let uplink = stack.status().uplink;
    assert!(uplink.last_error.is_some(), "{uplink:?}");
    assert_eq!(uplink.statistics.received, expected);
}

#[test]
fn groups_arrive_once_and_vlans_are_the_same_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_adapter(folder.path());
    let world = world(folder.path());
    let stack = world.stack();
    wait_connected(&stack, true);
    for number in [1, 2] {
        let vlan = VlanMode::Access { vlan: 7 };
        stack.set(&PortConfig { vlan, ..stack.port(number) });
    }
    let (mut one, mut two) = (world.guest("vm1"), world.guest("vm2"));
    let mut vf = Vf::new(&server, 1, VF_MAC);
    filter(&server, 1, VF_MAC, VlanMatch::Id(7), vport(1));
    filter(&server, 2, mac(1), VlanMatch::Id(7), VPortId::DEFAULT);
    let policy = nic_switch::VPortPolicy {
        vlan: nic_switch::VlanPolicy::Access(7),
        ..nic_switch::VPortPolicy::default()
    };
    server.adapter().set_vport_policy(vport(1), policy).unwrap();
    let bytes = frame(VF_MAC, mac(1), b"in seven");
    one.send(&bytes);
    vf.expect(&bytes);
    let bytes = frame(mac(1), VF_MAC, b"in seven");
    vf.send(&bytes);
    one.expect(&bytes);
    let bytes = frame([0xFF; 6], mac(1), b"all of seven");
    one.send(&bytes);
    vf.expect(&bytes);
    two.expect(&bytes);
    let bytes = frame([0xFF; 6], VF_MAC, b"all of seven");
    vf.send(&bytes);
    one.expect(&bytes);
    two.expect(&bytes);
    // Nothing came back to its sender, and nothing comes late.
    let last = frame(VF_MAC, mac(1), b"last");
    one.send(&last);
    vf.expect(&last);
    one.turn();
    two.turn();
    assert!(one.take().is_empty() && two.take().is_empty());
}

/// The guest of a port, with the VF that it moves to and fro.
struct Moving<'w> {
    server: &'w AdapterServer,
    guest: VmWorker,
    vf: Vf,
    seen: BTreeSet<u64>,
    by_vf: u64,
}

impl Moving<'_> {
    /// Takes what came on either path: each frame once.
    fn take(&mut self) {
        self.guest.turn();
        let by_vf = self.vf.take();
        self.by_vf += by_vf.len() as u64;
        for bytes in self.guest.take().into_iter().chain(by_vf) {
            let number = u64::from_le_bytes(bytes[14..22].try_into().unwrap());
            assert!(self.seen.insert(number), "frame {number} came twice");
        }
    }

    fn move_filter(&self, from: u32, to: u32) {
        let filter = FilterId::new(1).unwrap();
        self.server.adapter().move_filter(filter, vport(from), vport(to)).unwrap();
    }
}

#[test]
fn unicast_from_the_switch_is_neither_lost_nor_doubled_while_a_guest_moves() {
    const MOVES: u64 = 60;
    let folder = tempfile::tempdir().unwrap();
    let server = start_adapter(folder.path());
    let world = world(folder.path());
    let mut stack = world.stack();
    wait_connected(&stack, true);
    stack.port(1);
    stack.port(2);
    let (guest, mut sender) = (world.guest("vm1"), world.guest("vm2"));
    let vf = Vf::new(&server, 1, mac(1));
    assert_eq!(vf.id.get(), 0);
    filter(&server, 1, mac(1), VlanMatch::UntaggedOrZero, vport(0));
    filter(&server, 2, mac(2), VlanMatch::UntaggedOrZero, vport(0));
    let mut one = Moving { server: &server, guest, vf, seen: BTreeSet::new(), by_vf: 0 };
    stack.command("vm1", VfCommand::VfAvailable { serial: SERIAL });
    one.guest.nic.vf_device(Some((SERIAL, netvsp_protocol::MacAddress::new(mac(1)))));
    one.move_filter(0, 1);
    let mut sent = 0u64;
    let mut load = |one: &mut Moving<'_>| {
        // Not more on their way than there are buffers.
        for _ in 0..8 {
            sender.send(&frame(mac(1), mac(2), &sent.to_le_bytes()));
            sent += 1;
        }
        one.take();
        let start = Instant::now();
        while sent - one.seen.len() as u64 > 64 {
            one.take();
            sender.turn();
            assert!(start.elapsed() < PATIENCE, "{} of {sent} arrived", one.seen.len());
        }
        sent
    };
    for round in 0..MOVES {
        let to = if round % 2 == 0 { DataPath::Vf } else { DataPath::Synthetic };
        one.guest.nic.vf_driver(to == DataPath::Vf);
        let start = Instant::now();
        loop {
            load(&mut one);
            if stack.poll_report().is_some_and(|report| report.asks == Some(to)) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "round {round}: it was not asked");
        }
        match to {
            // Filters are out before the VF is offered, and again after the guest has left it.
            DataPath::Vf if round == 0 => {}
            DataPath::Vf => one.move_filter(0, 1),
            DataPath::Synthetic => one.move_filter(1, 0),
        }
        load(&mut one);
        stack.complete("vm1", to);
        let path = if to == DataPath::Vf { VfPath::Vf } else { VfPath::Synthetic };
        let start = Instant::now();
        while one.guest.nic.control().path() != path {
            load(&mut one);
            assert!(start.elapsed() < PATIENCE, "round {round}: no answer");
        }
        (0..4).for_each(|_| _ = load(&mut one));
    }
    let sent = load(&mut one);
    wait_for("the last frames", || {
        one.take();
        one.seen.len() as u64 == sent
    });
    assert!(one.by_vf > 4 * MOVES, "{} of {sent} by the VF", one.by_vf);
    let seen = stack.port_status("vm2").statistics;
    assert_eq!((seen.sent, seen.no_receiver), (sent, 0));
    assert_eq!(mac_text(1), stack.port_status("vm1").mac);
}

#[test]
fn an_uplink_survives_a_reset_of_its_function() {
    let folder = tempfile::tempdir().unwrap();
    let server = start_adapter(folder.path());
    // A VF takes the PF's place, since a PF can reset a VF.
    let (id, _) = server.adapter().allocate_vf(MacAddress::new(mac(1))).unwrap();
    let function = FunctionId::Vf(id);
    let moderation = InterruptModeration::Undefined;
    server.adapter().create_vport(vport(1), function, 1, moderation).unwrap();
    filter(&server, 1, mac(1), VlanMatch::UntaggedOrZero, vport(1));
    let played = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(server.adapter().socket(function), played.path().join("pf.sock"))
        .unwrap();
    let world = world(played.path());
    let stack = world.stack();
    wait_connected(&stack, true);
    stack.port(1);
    let mut one = world.guest("vm1");
    let mut vf = Vf::new(&server, 2, VF_MAC);
    filter(&server, 2, VF_MAC, VlanMatch::UntaggedOrZero, vport(2));
    for life in 0..3u8 {
        let bytes = frame(VF_MAC, mac(1), &[life]);
        one.send(&bytes);
        vf.expect(&bytes);
        let before = stack.status().uplink.statistics;
        server.adapter().pf_reset_vf(id).unwrap();
        let start = Instant::now();
        // Frames are lost while it is reset, and come again by themselves.
        let probe = frame(VF_MAC, mac(1), b"after the reset");
        while vf.take().is_empty() {
            one.send(&probe);
            assert!(start.elapsed() < PATIENCE, "{:?}", stack.status().uplink);
            std::thread::sleep(Duration::from_millis(2));
        }
        let after = stack.status().uplink;
        assert!(after.connected && after.last_error.is_none(), "{after:?}");
        assert!(after.statistics.received > before.received, "counters go on");
        // What is still on its way.
        let last = frame(VF_MAC, mac(1), &[0xAA, life]);
        one.send(&last);
        wait_for("the last frame", || vf.take().contains(&last));
    }
}
