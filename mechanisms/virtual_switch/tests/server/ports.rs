//! Ports, channels, reports.

use pcivirt_protocol::NtStatus;
use virtual_switch::{
    control::{
        ChannelName, ChannelUpcall, GuestState, PortConfig, PortKind, PortName, PrivateControl,
        VlanMode,
    },
    server::{SwitchConfig, SwitchServer},
};

use vhost::{
    VhostBackend,
    vhost_user::{Frontend, VhostUserFrontend},
};

use crate::common::{
    PATIENCE, READY, VmWorker, World, connect, frame, mac, mac_text, name, wait_for,
};

#[test]
fn frames_flow_between_the_guests_of_two_workers_and_are_counted() {
    let world = World::new();
    let mut stack = world.stack();
    stack.port(1);
    stack.port(2);
    let (mut one, mut two) = (world.guest("vm1"), world.guest("vm2"));
    for port in ["vm1", "vm2"] {
        let report = stack.report_of(port, |report| report.guest == READY);
        assert_eq!((report.session, report.asks, report.vf), (1, None, None));
    }
    for number in 0..200u32 {
        let there = frame(mac(2), mac(1), &number.to_le_bytes());
        one.send(&there);
        two.expect(&there);
        let back = frame(mac(1), mac(2), &number.to_le_bytes());
        two.send(&back);
        one.expect(&back);
    }
    let broadcast = frame([0xFF; 6], mac(1), b"all");
    one.send(&broadcast);
    two.expect(&broadcast);
    one.send(&frame(mac(2), mac(9), b"not I"));
    one.send(&frame(mac(8), mac(1), b"nobody"));
    wait_for("counters", || stack.port_status("vm1").statistics.no_receiver == 1);
    let status = stack.status();
    assert_eq!((status.name.as_str(), status.uplink.spec.as_str()), ("external", "none"));
    assert!(status.data_path_busy_us > 0, "400 frames took no time");
    let [first, second] = &status.ports[..] else { panic!("{status:?}") };
    let seen = first.statistics;
    assert_eq!((seen.sent, seen.received, seen.spoofed, seen.no_receiver), (201, 200, 1, 1));
    let seen = second.statistics;
    assert_eq!((seen.sent, seen.received, seen.spoofed), (200, 201, 0));
    assert_eq!((&first.channels, first.guest), (&vec![0], READY));
}

#[test]
fn a_worker_that_dies_takes_its_channels_along_and_another_takes_its_place() {
    let world = World::new();
    let mut stack = world.stack();
    stack.port(1);
    stack.port(2);
    let (mut one, two) = (world.guest("vm1"), world.guest("vm2"));
    stack.report_of("vm2", |report| report.guest == READY);
    drop(two);
    let closed = stack.report_of("vm2", |report| report.guest == GuestState::Closed);
    assert_eq!(closed.session, 1);
    assert!(stack.port_status("vm2").channels.is_empty());
    one.send(&frame(mac(2), mac(1), b"to nobody"));
    let mut again = world.guest("vm2");
    assert_eq!(stack.report_of("vm2", |report| report.guest == READY).session, 2);
    let bytes = frame(mac(2), mac(1), b"and to somebody");
    one.send(&bytes);
    again.expect(&bytes);
}

#[test]
fn a_guest_that_closes_and_opens_again_is_served_again() {
    let world = World::new();
    let mut stack = world.stack();
    stack.port(1);
    stack.port(2);
    let (mut one, mut two) = (world.guest("vm1"), world.guest("vm2"));
    for session in 1..5 {
        stack.report_of("vm2", |r| r.session == session && r.guest == READY);
        two.close();
        stack.report_of("vm2", |r| r.session == session && r.guest == GuestState::Closed);
        two.open().unwrap();
        two.run_until("up", |worker| worker.up);
        let bytes = frame(mac(2), mac(1), &[session as u8]);
        one.send(&bytes);
        two.expect(&bytes);
    }
}

#[test]
fn a_policy_counts_from_the_moment_it_is_set() {
    let world = World::new();
    let stack = world.stack();
    let [first, second] = [stack.port(1), stack.port(2)];
    let (mut one, mut two) = (world.guest("vm1"), world.guest("vm2"));
    let in_seven =
        |config: &PortConfig| PortConfig { vlan: VlanMode::Access { vlan: 7 }, ..config.clone() };
    stack.set(&in_seven(&first));
    one.send(&frame(mac(2), mac(1), b"across VLANs"));
    wait_for("counters", || stack.port_status("vm1").statistics.no_receiver == 1);
    stack.set(&in_seven(&second));
    let bytes = frame(mac(2), mac(1), b"in seven");
    one.send(&bytes);
    two.expect(&bytes);
    assert_eq!(stack.port_status("vm2").vlan, VlanMode::Access { vlan: 7 });
    // Whose the address is may change for the sender, too.
    let foreign = frame(mac(2), mac(9), b"as another");
    one.send(&foreign);
    wait_for("counters", || stack.port_status("vm1").statistics.spoofed == 1);
    stack.set(&PortConfig { allow_spoofing: true, ..in_seven(&first) });
    one.send(&foreign);
    two.expect(&foreign);
}

#[test]
fn kind_and_address_stay_while_channels_are_open_and_what_cannot_be_is_refused() {
    let world = World::new();
    let stack = world.stack();
    let first = stack.port(1);
    stack.port(2);
    let mut one = world.guest("vm1");
    let set = |config: &PortConfig| stack.call(PrivateControl::SetPort, config);
    let moved = PortConfig { mac: mac_text(5), ..first.clone() };
    assert_eq!(set(&moved), Err(NtStatus::INVALID_DEVICE_STATE));
    let taken = PortConfig::new("vm3", mac_text(2));
    assert_eq!(set(&taken), Err(NtStatus::DEVICE_BUSY));
    for bad in [
        PortConfig::new("", mac_text(3)),
        PortConfig::new("a b", mac_text(3)),
        PortConfig::new("x".repeat(200), mac_text(3)),
        PortConfig::new("vm3", "02:00"),
        PortConfig::new("vm3", "00:00:00:00:00:00"),
        PortConfig::new("vm3", "03:00:00:00:00:01"),
        PortConfig { max_channels: 0, ..PortConfig::new("vm3", mac_text(3)) },
        PortConfig { max_channels: 65, ..PortConfig::new("vm3", mac_text(3)) },
        PortConfig { vlan: VlanMode::Access { vlan: 0 }, ..PortConfig::new("vm3", mac_text(3)) },
    ] {
        assert_eq!(set(&bad), Err(NtStatus::INVALID_PARAMETER), "{bad:?}");
    }
    assert_eq!(stack.status().ports.len(), 2);
    one.close();
    set(&moved).unwrap();
    assert_eq!(stack.port_status("vm1").mac, mac_text(5));
    one.open().unwrap();
    one.run_until("up", |worker| worker.up);
    // The next time it is opened, it may have more channels.
    one.close();
    set(&PortConfig { max_channels: 4, sriov: false, ..moved }).unwrap();
    one.open().unwrap();
    one.run_until("up", |worker| worker.up);
    // The switch looks at its ports once their guests have their answers.
    let ready = GuestState::Ready { sriov: false };
    wait_for("the port knows", || stack.port_status("vm1").guest == ready);
}

#[test]
fn a_virtio_net_s_port_listens_and_stays_as_it_is_while_a_front_end_is_connected() {
    let world = World::new();
    let stack = world.stack();
    let socket = world.directory.path().join("vhost").join("net0");
    let config = PortConfig {
        kind: PortKind::VhostUser { socket: socket.clone() },
        max_channels: 2,
        ..PortConfig::new("vm1", mac_text(1))
    };
    let set = |config: &PortConfig| stack.call(PrivateControl::SetPort, config);
    set(&config).unwrap();
    let taken = PortConfig { port: "vm2".into(), mac: mac_text(2), ..config.clone() };
    assert_eq!(set(&taken), Err(NtStatus::INSUFFICIENT_RESOURCES));
    let queues = || {
        let mut frontend = Frontend::connect(&socket, 4).unwrap();
        frontend.get_features().unwrap();
        let features = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(features).unwrap();
        let queues = frontend.get_queue_num().unwrap();
        (frontend, queues)
    };
    let (frontend, before) = queues();
    assert_eq!(before, 4);
    // What it may do changes; what it is does not.
    set(&PortConfig { allow_spoofing: true, ..config.clone() }).unwrap();
    let wider = PortConfig { max_channels: 4, ..config.clone() };
    for other in [&wider, &PortConfig { mac: mac_text(5), ..config.clone() }] {
        assert_eq!(set(other), Err(NtStatus::INVALID_DEVICE_STATE));
    }
    let status = stack.port_status("vm1");
    assert_eq!((status.kind, status.guest), (config.kind, GuestState::Closed));
    drop(frontend);
    wait_for("the front-end is gone", || set(&wider).is_ok());
    let (frontend, after) = queues();
    assert_eq!(after, 8);
    stack.call(PrivateControl::DeletePort, &PortName { port: "vm1".into() }).unwrap();
    assert!(!socket.exists() && frontend.get_features().is_err());
}

#[test]
fn ports_are_bounded_and_a_deleted_one_is_gone_with_its_channels() {
    let world = World::new();
    let stack = world.stack();
    let set = |number: usize| {
        let mac = format!("02:00:00:00:{:02x}:{:02x}", number / 256, number % 256);
        stack.call(PrivateControl::SetPort, &PortConfig::new(format!("p{number}"), mac))
    };
    for number in 0..127 {
        set(number).unwrap();
    }
    assert_eq!(set(127), Err(NtStatus::INSUFFICIENT_RESOURCES));
    let mut worker = world.guest("p5");
    let delete =
        |port: &str| stack.call(PrivateControl::DeletePort, &PortName { port: port.into() });
    delete("p5").unwrap();
    assert_eq!(delete("p5"), Err(NtStatus::NOT_FOUND));
    set(127).unwrap();
    // Its worker hears of it, and its channel is not there to be closed.
    let channel = ChannelName { port: "p5".into(), channel: 0 };
    let closed = crate::common::call(&worker.client, PrivateControl::CloseChannel, &channel, &[]);
    assert_eq!(closed, Err(NtStatus::NOT_FOUND));
    worker.nic.close();
    assert_eq!(worker.open(), Err(NtStatus::NOT_FOUND));
}

#[test]
fn reports_are_levels_and_a_new_client_is_told_everything() {
    let world = World::new();
    let mut stack = world.stack();
    for number in 1..6 {
        stack.port(number);
    }
    let mut worker = world.guest("vm3");
    for _ in 0..10 {
        worker.close();
        worker.open().unwrap();
        worker.run_until("up", |worker| worker.up);
    }
    let mut last = stack.report_of("vm3", |report| report.session == 11);
    assert_eq!(last.guest, READY);
    let mut ports: Vec<String> = Vec::new();
    let mut late = world.stack();
    while ports.len() < 5 {
        let report = late.report();
        if report.port == "vm3" {
            last = report.clone();
        }
        ports.push(report.port);
    }
    ports.sort();
    assert_eq!(ports, (1..6).map(name).collect::<Vec<_>>(), "each port once");
    assert_eq!((last.session, last.guest), (11, READY));
    assert_eq!(late.poll_report(), None, "nothing more to tell");
}

#[test]
fn one_report_and_one_upcall_may_be_waited_for() {
    let world = World::new();
    let mut stack = world.stack();
    stack.uplink_report(|_| true);
    assert_eq!(stack.poll_report(), None);
    let target = device_control::Target::Private(PrivateControl::NextReport.code());
    let second = stack.client.call(target, &[], 1024, PATIENCE).unwrap();
    assert_eq!(second.status, NtStatus::DEVICE_BUSY);
    // What is given up makes room.
    drop(stack);
    let mut stack = world.stack();
    stack.port(1);
    stack.report_of("vm1", |_| true);
    let waiting = connect(world.socket(), "idle");
    let name = serde_json::to_vec(&PortName { port: "vm1".into() }).unwrap();
    let target = device_control::Target::Private(PrivateControl::NextUpcall.code());
    let first = waiting.send(target, &name, 1024).unwrap();
    let second = waiting.call(target, &name, 1024, PATIENCE).unwrap();
    assert_eq!(second.status, NtStatus::DEVICE_BUSY);
    // Whoever opens the channel is the one to be asked.
    let mut worker = VmWorker::new(world.socket(), "vm1");
    worker.open().unwrap();
    assert_eq!(first.wait(PATIENCE).unwrap().status, NtStatus::CANCELLED);
    worker.run_until("up", |worker| worker.up);
    assert_eq!(worker.asked, Vec::<ChannelUpcall>::new());
}

#[test]
fn a_second_switch_in_the_same_folder_is_refused_and_a_stale_socket_replaced() {
    let world = World::new();
    let folder = world.directory.path().join("switch");
    let error = SwitchServer::start(SwitchConfig::new("second", &folder)).unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("served by another process already"), "{text}");
    assert_eq!(world.stack().status().name, "external", "and the first one goes on");
    let socket = world.socket().to_owned();
    drop(world.server);
    assert!(!socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let server = SwitchServer::start(SwitchConfig::new("third", &folder)).unwrap();
    connect(server.control_path().unwrap(), "anybody");
}

#[test]
fn a_client_may_end_the_switch() {
    let world = World::new();
    world.stack().call(PrivateControl::Shutdown, &()).unwrap();
    world.server.shutdown_requested().recv_timeout(PATIENCE).unwrap();
}
