//! Interfaces, packet sockets and rtnetlink in namespaces of their own.
//!
//! Namespaces belong to a process, so each test runs in a child: this program again, with the test's name
//! in its environment. Run by root and by ordinary users; where user namespaces are forbidden the tests
//! say so and pass.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    io,
    net::UdpSocket,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use linux_network::{
    ChecksumState, Entered, LinkChange, MacAddress, Namespaces, NetworkError, PacketOptions,
    PacketSocket, RouteSocket, TapDevice, TapOptions, VnetHeader, enter_namespaces,
    enter_network_namespace,
};

const CHILD: &str = "LINUX_NETWORK_TEST";

const TESTS: [(&str, fn()); 7] = [
    ("ids_inside_are_those_of_root", ids_inside_are_those_of_root),
    ("an_interface_is_configured_and_counts", an_interface_is_configured_and_counts),
    ("a_missing_interface_is_told_apart_from_an_error", a_missing_interface_is_told_apart),
    ("frames_cross_a_veth_pair_with_offload_headers", frames_cross_a_veth_pair),
    ("a_veth_peer_can_live_in_a_hidden_namespace", a_veth_peer_can_live_in_a_hidden_namespace),
    ("a_tap_device_carries_frames_and_its_carrier_follows", a_tap_device_carries_frames),
    ("what_the_ring_cannot_hold_is_counted", what_the_ring_cannot_hold_is_counted),
];

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(&name);
    }
    let trials = TESTS.iter().map(|(name, _)| Trial::test(*name, || in_child(name))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn in_child(name: &str) -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe()?).env(CHILD, name).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{}: {text}", output.status).into());
    }
    eprint!("{text}");
    Ok(())
}

fn child(name: &str) -> ExitCode {
    let all = Namespaces { network: true, mounts: true, hostname: true, processes: false };
    match enter_namespaces(all) {
        Ok(Entered::AsRoot | Entered::AsCaller | Entered::WithoutUserNamespace) => {}
        Err(NetworkError::NamespacesForbidden { by, .. }) => {
            eprintln!("{name}: skipped, {by}");
            return ExitCode::SUCCESS;
        }
        Err(error) => panic!("{error:?}"),
    }
    let (_, test) = TESTS.iter().find(|(known, _)| *known == name).expect("a known test");
    test();
    ExitCode::SUCCESS
}

/// Makes a veth pair whose ends are up, silent (no IPv6) and have fixed addresses.
fn veth(route: &mut RouteSocket) -> [u32; 2] {
    route.create_veth("left", "right").unwrap();
    [("left", 1), ("right", 2)].map(|(name, last)| {
        let index = route.link(name).unwrap().unwrap().index;
        let change = LinkChange {
            up: Some(true),
            mac: Some(MacAddress([2, 0, 0, 0, 0, last])),
            link_local: Some(false),
            ..Default::default()
        };
        route.change_link(index, &change).unwrap();
        index
    })
}

fn frame(length: usize, mark: u8) -> Vec<u8> {
    let mut frame = vec![mark; length];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame
}

/// Waits until `ready`, by polling, for at most five seconds.
fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what} did not happen");
        std::thread::yield_now();
    }
}

fn ids_inside_are_those_of_root() {
    assert!(rustix::process::geteuid().is_root() && rustix::process::getegid().is_root());
    rustix::system::sethostname(b"inside").unwrap();
}

fn an_interface_is_configured_and_counts() {
    let mut route = RouteSocket::open().unwrap();
    let lo = route.link("lo").unwrap().unwrap();
    assert!(!lo.up && lo.mac == MacAddress::default());
    route
        .change_link(
            lo.index,
            &LinkChange { up: Some(true), mtu: Some(9000), ..Default::default() },
        )
        .unwrap();
    route.add_address(lo.index, "192.0.2.1".parse().unwrap(), 24).unwrap();
    route.add_address(lo.index, "fd00::1".parse().unwrap(), 64).unwrap();
    route.set_default_route(lo.index, "192.0.2.254".parse().unwrap()).unwrap();
    let twice = route.add_address(lo.index, "192.0.2.1".parse().unwrap(), 24);
    assert!(
        matches!(twice, Err(NetworkError::Route { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists)
    );
    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 1);
    // Bound to the new address, which the kernel would refuse for one that it does not have.
    UdpSocket::bind("[fd00::1]:0").unwrap();
    let lo = route.link_at(lo.index).unwrap().unwrap();
    assert_eq!((lo.name.as_str(), lo.up, lo.carrier, lo.mtu), ("lo", true, true, 9000));
    assert!(lo.statistics.transmit_packets > 0);
    assert_eq!(lo.statistics.transmit_packets, lo.statistics.receive_packets);
}

fn a_missing_interface_is_told_apart() {
    let mut route = RouteSocket::open().unwrap();
    assert_eq!(route.link("nowhere").unwrap(), None);
    assert!(matches!(route.link("a name"), Err(NetworkError::BadName(_))));
    let missing = PacketSocket::open("nowhere", PacketOptions::default());
    assert!(matches!(missing, Err(NetworkError::NoInterface(_))));
}

fn frames_cross_a_veth_pair() {
    let mut route = RouteSocket::open().unwrap();
    let [left_index, right_index] = veth(&mut route);
    let left = PacketSocket::open("left", PacketOptions::default()).unwrap();
    let mut right = PacketSocket::open("right", PacketOptions { promiscuous: true }).unwrap();
    assert_eq!(left.interface_index(), left_index);

    // Forty frames of all lengths arrive in order; those that `right` itself sends do not come back.
    let frames: Vec<_> = (0..40u8).map(|mark| frame(60 + 36 * usize::from(mark), mark)).collect();
    let plain = VnetHeader::default();
    let mut sent = 0;
    while sent < frames.len() {
        let rest = frames[sent..].iter().map(|frame| (&plain, frame.as_slice()));
        sent += left.transmit(rest).unwrap();
    }
    right.transmit([(&plain, frames[0].as_slice())].into_iter()).unwrap();
    let mut seen = Vec::new();
    eventually("the arrival of all frames", || {
        right.receive(7, |packet| {
            seen.push(packet.packet.to_vec());
            assert!(!packet.truncated && packet.vlan.is_none());
            true
        });
        seen.len() >= frames.len()
    });
    assert_eq!(seen, frames);
    assert!(!right.is_ready());

    // A packet that is not taken stays.
    left.transmit([(&plain, frames[3].as_slice())].into_iter()).unwrap();
    eventually("the arrival of one more", || right.is_ready());
    assert_eq!(right.receive(8, |_| false), 0);
    assert_eq!(right.receive(8, |packet| packet.packet == frames[3]), 1);

    // What the kernel's own stack sends has its checksum left open, and says so.
    route.add_address(left_index, "192.0.2.1".parse().unwrap(), 24).unwrap();
    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    socket.send_to(&[7; 100], "192.0.2.255:9").unwrap();
    let mut partial = false;
    eventually("a UDP packet", || {
        right.receive(8, |packet| {
            let offload = packet.header.parse(packet.packet.len()).unwrap();
            partial |= offload.checksum == ChecksumState::Partial { start: 34, offset: 6 };
            true
        });
        partial
    });

    // Down is an error of its own.
    route.change_link(right_index, &LinkChange { up: Some(false), ..Default::default() }).unwrap();
    assert!(!route.link("left").unwrap().unwrap().carrier);
    let refused = right.transmit([(&plain, frames[0].as_slice())].into_iter()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENETDOWN));
}

fn a_veth_peer_can_live_in_a_hidden_namespace() {
    let mut route = RouteSocket::open().unwrap();
    let [left, right] = veth(&mut route);
    let (mut hidden, peer) = std::thread::scope(|scope| {
        let helper = scope.spawn(|| {
            enter_network_namespace().unwrap();
            let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            use std::os::fd::AsFd;
            let change = LinkChange { namespace: Some(namespace.as_fd()), ..Default::default() };
            route.change_link(right, &change).unwrap();
            let mut inside = RouteSocket::open().unwrap();
            let peer = inside.link("right").unwrap().unwrap();
            let change =
                LinkChange { up: Some(true), link_local: Some(false), ..Default::default() };
            inside.change_link(peer.index, &change).unwrap();
            (inside, PacketSocket::open("right", PacketOptions::default()).unwrap())
        });
        helper.join().unwrap()
    });
    // The thread is gone; the sockets keep the namespace and the pair.
    assert_eq!(route.link("right").unwrap(), None);
    assert!(route.link("left").unwrap().unwrap().carrier);
    let down = LinkChange { up: Some(false), ..Default::default() };
    hidden.change_link(peer.interface_index(), &down).unwrap();
    assert!(!route.link_at(left).unwrap().unwrap().carrier);
    drop((peer, hidden));
    eventually("the end of the pair", || route.link("left").unwrap().is_none());
}

fn a_tap_device_carries_frames() {
    let tap = match TapDevice::open("tap0", TapOptions { offload: true }) {
        Ok(tap) => tap,
        Err(NetworkError::TunDevice(error)) => {
            eprintln!("a_tap_device_carries_frames: skipped, /dev/net/tun: {error}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let mut route = RouteSocket::open().unwrap();
    let index = route.link("tap0").unwrap().unwrap().index;
    let mut buffer = vec![0; 70_000];
    let down = tap.transmit(&frame(60, 1), &VnetHeader::default()).unwrap_err();
    assert_eq!(down.raw_os_error(), Some(libc::EIO));
    let change = LinkChange { up: Some(true), link_local: Some(false), ..Default::default() };
    route.change_link(index, &change).unwrap();
    route.add_address(index, "192.0.2.1".parse().unwrap(), 24).unwrap();
    assert_eq!(tap.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);

    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    socket.send_to(&[7; 100], "192.0.2.255:9").unwrap();
    let (length, header) = tap.receive(&mut buffer).unwrap();
    assert_eq!(length, 14 + 20 + 8 + 100);
    let offload = header.parse(length).unwrap();
    assert_eq!(offload.checksum, ChecksumState::Partial { start: 34, offset: 6 });

    tap.transmit(&frame(60, 1), &VnetHeader::default()).unwrap();
    assert_eq!(route.link("tap0").unwrap().unwrap().statistics.receive_packets, 1);
    for carrier in [false, true] {
        tap.set_carrier(carrier).unwrap();
        assert_eq!(route.link("tap0").unwrap().unwrap().carrier, carrier);
    }
    drop(tap);
    assert_eq!(route.link("tap0").unwrap(), None);
}

fn what_the_ring_cannot_hold_is_counted() {
    let mut route = RouteSocket::open().unwrap();
    veth(&mut route);
    let left = PacketSocket::open("left", PacketOptions::default()).unwrap();
    let mut right = PacketSocket::open("right", PacketOptions::default()).unwrap();
    let (plain, frame) = (VnetHeader::default(), frame(60, 0));
    let mut sent = 0;
    eventually("an overflow", || {
        sent += left.transmit((0..32).map(|_| (&plain, frame.as_slice()))).unwrap();
        right.dropped() > 0
    });
    let mut received = 0;
    eventually("the arrival of what fits", || {
        received += right.receive(usize::MAX, |_| true);
        received >= 240
    });
    assert!(received as u64 + right.dropped() <= sent as u64);
    // The ring goes on after its overflow.
    left.transmit([(&plain, frame.as_slice())].into_iter()).unwrap();
    eventually("one more", || right.receive(1, |_| true) == 1);
}
