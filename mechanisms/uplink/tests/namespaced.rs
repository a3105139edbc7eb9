//! TAP and packet uplinks against the kernel's own network stack, in namespaces of their own.
//!
//! Each test runs in a child process, this program again. Run by root and by ordinary users; where user
//! namespaces or TAP devices are forbidden the tests say so and pass.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Command, ExitCode},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};
use linux_network::{
    LinkChange, Namespaces, NetworkError, RouteSocket, enter_namespaces, enter_network_namespace,
};
use uplink::{FrameBurst, LinkState, PacketUplink, TapUplink, Uplink, UplinkError};

const CHILD: &str = "UPLINK_TEST";
const MAX_FRAME: usize = 1518;

const TESTS: [(&str, fn()); 4] = [
    ("a_tcp_stream_crosses_two_packet_uplinks", a_tcp_stream_crosses_two_packet_uplinks),
    ("a_vlan_tag_is_put_back_and_the_link_follows", a_vlan_tag_is_put_back_and_the_link_follows),
    ("a_tcp_stream_crosses_a_tap_uplink", a_tcp_stream_crosses_a_tap_uplink),
    (
        "a_tap_uplink_follows_its_interface_to_the_end",
        a_tap_uplink_follows_its_interface_to_the_end,
    ),
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
    match enter_namespaces(Namespaces { network: true, ..Default::default() }) {
        Ok(_) => {}
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

fn up(route: &mut RouteSocket, name: &str, address: Option<&str>) -> u32 {
    let index = route.link(name).unwrap().unwrap().index;
    let change = LinkChange { up: Some(true), link_local: Some(false), ..Default::default() };
    route.change_link(index, &change).unwrap();
    if let Some(address) = address {
        route.add_address(index, address.parse().unwrap(), 24).unwrap();
    }
    index
}

/// Waits for the kernel to start an interface's queue, some time after its carrier is there.
fn wait_for_link(name: &str, mut ready: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(5);
    while !ready() {
        assert!(Instant::now() < limit, "{name} has no link");
        std::thread::yield_now();
    }
}

/// Moves frames between two uplinks until told to stop.
fn pump(mut left: impl Uplink, mut right: impl Uplink, stop: &AtomicBool) {
    let mut burst = FrameBurst::new(32, MAX_FRAME);
    while !stop.load(Ordering::Relaxed) {
        let moved = left.receive(&mut burst).unwrap();
        while !burst.is_empty() {
            let sent = right.transmit(&burst).unwrap();
            burst.advance(sent);
        }
        let back = right.receive(&mut burst).unwrap();
        while !burst.is_empty() {
            let sent = left.transmit(&burst).unwrap();
            burst.advance(sent);
        }
        if moved + back == 0 {
            std::thread::yield_now();
        }
    }
    for (name, statistics) in [("left", left.statistics()), ("right", right.statistics())] {
        assert_eq!(statistics.received_malformed + statistics.received_too_long, 0, "{name}");
        assert_eq!(statistics.transmit_errors + statistics.transmit_bad_length, 0, "{name}");
        // Far more frames than packets: large segments were cut into frames that fit.
        assert!(statistics.transmitted_frames > 1000, "{name}: {statistics:?}");
    }
}

/// Sends a stream from this thread's namespace to a listener in another one, and back.
///
/// `near` has 192.0.2.1 here; `far` is moved into the other namespace and gets 192.0.2.2.
fn stream_across(near: &str, far: &str, pump: impl FnOnce(&AtomicBool) + Send) {
    const LENGTH: usize = 4 << 20;
    let data: Vec<u8> = (0..LENGTH).map(|i| (i % 251) as u8).collect();
    let stop = AtomicBool::new(false);
    let (namespace_out, namespace_in) = mpsc::channel();
    let (moved_out, moved_in) = mpsc::channel();
    let (ready_out, ready_in) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            enter_network_namespace().unwrap();
            namespace_out.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            moved_in.recv().unwrap();
            let mut route = RouteSocket::open().unwrap();
            up(&mut route, far, Some("192.0.2.2"));
            wait_for_link(far, || route.link(far).unwrap().unwrap().running);
            let listener = TcpListener::bind("192.0.2.2:7").unwrap();
            ready_out.send(()).unwrap();
            let (mut connection, _) = listener.accept().unwrap();
            let mut received = vec![0; LENGTH];
            connection.read_exact(&mut received).unwrap();
            assert!(received.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8));
            connection.write_all(&received).unwrap();
        });
        let namespace = namespace_in.recv().unwrap();
        let mut route = RouteSocket::open().unwrap();
        let index = route.link(far).unwrap().unwrap().index;
        let change = LinkChange { namespace: Some(namespace.as_fd()), ..Default::default() };
        route.change_link(index, &change).unwrap();
        moved_out.send(()).unwrap();
        ready_in.recv().unwrap();
        wait_for_link(near, || route.link(near).unwrap().unwrap().running);
        let stop = &stop;
        scope.spawn(move || pump(stop));
        let mut connection = TcpStream::connect("192.0.2.2:7").unwrap();
        connection.write_all(&data).unwrap();
        let mut echo = vec![0; LENGTH];
        connection.read_exact(&mut echo).unwrap();
        assert!(echo == data);
        stop.store(true, Ordering::Relaxed);
    });
}

fn a_tcp_stream_crosses_two_packet_uplinks() {
    let mut route = RouteSocket::open().unwrap();
    route.create_veth("near", "near-peer").unwrap();
    route.create_veth("far", "far-peer").unwrap();
    up(&mut route, "near", Some("192.0.2.1"));
    for peer in ["near-peer", "far-peer"] {
        up(&mut route, peer, None);
    }
    let left = PacketUplink::open("near-peer", MAX_FRAME).unwrap();
    let right = PacketUplink::open("far-peer", MAX_FRAME).unwrap();
    stream_across("near", "far", |stop| pump(left, right, stop));
}

fn open_tap(name: &str) -> Option<TapUplink> {
    match TapUplink::open(name, MAX_FRAME) {
        Ok(tap) => Some(tap),
        Err(UplinkError::Interface { source: NetworkError::TunDevice(error), .. }) => {
            eprintln!("skipped, /dev/net/tun: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn a_tcp_stream_crosses_a_tap_uplink() {
    let Some(tap) = open_tap("up0") else {
        return;
    };
    let mut route = RouteSocket::open().unwrap();
    route.create_veth("far", "far-peer").unwrap();
    up(&mut route, "up0", Some("192.0.2.1"));
    up(&mut route, "far-peer", None);
    let right = PacketUplink::open("far-peer", MAX_FRAME).unwrap();
    stream_across("up0", "far", |stop| pump(tap, right, stop));
}

/// Receives until a frame comes that `wanted` wants; fails after five seconds.
fn receive(uplink: &mut dyn Uplink, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let limit = Instant::now() + Duration::from_secs(5);
    // One at a time, so that those after it are there for the next call.
    let mut burst = FrameBurst::new(1, MAX_FRAME);
    loop {
        uplink.receive(&mut burst).unwrap();
        if let Some(frame) = burst.get(0).filter(|frame| wanted(frame)) {
            return frame.to_vec();
        }
        assert!(Instant::now() < limit, "no such frame came");
    }
}

fn a_vlan_tag_is_put_back_and_the_link_follows() {
    let mut route = RouteSocket::open().unwrap();
    route.create_veth("left", "right").unwrap();
    let [left_index, right_index] = ["left", "right"].map(|name| up(&mut route, name, None));
    let mut left = PacketUplink::open("left", MAX_FRAME).unwrap();
    let mut right = PacketUplink::open("right", MAX_FRAME).unwrap();
    wait_for_link("left and right", || left.link().up && right.link().up);

    let mut tagged = [5; 64];
    tagged[..18]
        .copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0x60, 7, 0x88, 0xb5]);
    let mut longest = vec![6; MAX_FRAME];
    longest[..18].copy_from_slice(&tagged[..18]);
    let mut burst = FrameBurst::new(4, MAX_FRAME + 1);
    burst.push(&tagged);
    burst.push(&longest);
    burst.push(&vec![0; MAX_FRAME + 1]);
    assert_eq!(left.transmit(&burst).unwrap(), 3);
    assert_eq!(left.statistics().transmit_bad_length, 1);
    for sent in [&tagged[..], &longest] {
        assert!(receive(&mut right, |frame| frame == sent) == sent);
    }

    route.change_link(right_index, &LinkChange { up: Some(false), ..Default::default() }).unwrap();
    assert!(!left.link().up && !right.link().up);
    burst.clear();
    burst.push(&tagged);
    assert_eq!(right.transmit(&burst).unwrap(), 1);
    assert_eq!(right.statistics().transmit_no_link, 1);
    // A link that comes back goes on.
    route.change_link(right_index, &LinkChange { up: Some(true), ..Default::default() }).unwrap();
    assert!(right.arm().is_ok());
    wait_for_link("left again", || left.link().up && right.link().up);
    assert_eq!(left.transmit(&burst).unwrap(), 1);
    assert!(receive(&mut right, |frame| frame == tagged) == tagged);

    route.delete_link(left_index).unwrap();
    assert_eq!(right.link(), LinkState::DOWN);
    assert!(matches!(right.arm(), Err(UplinkError::InterfaceLost { .. })));
    assert!(right.wait_fd().is_none() && right.arm().unwrap());
}

fn a_tap_uplink_follows_its_interface_to_the_end() {
    let Some(mut tap) = open_tap("up0") else {
        return;
    };
    // It was set up when it was opened.
    assert!(tap.link().up);
    let mut route = RouteSocket::open().unwrap();
    let index = up(&mut route, "up0", Some("192.0.2.1"));
    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    socket.send_to(b"hello", "192.0.2.255:9").unwrap();
    let frame = receive(&mut tap, |frame| frame.ends_with(b"hello"));
    assert_eq!(frame[..6], [0xff; 6]);
    // The kernel finished the checksum: over pseudo header, header and data it comes to zero.
    let mut sum = u32::from(u16::from_be_bytes([frame[38], frame[39]])) + 17;
    for word in frame[26..].chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
    }
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);

    let mut burst = FrameBurst::new(4, MAX_FRAME);
    burst.push(&frame);
    assert_eq!(tap.transmit(&burst).unwrap(), 1);
    assert_eq!(route.link("up0").unwrap().unwrap().statistics.receive_packets, 1);

    route.change_link(index, &LinkChange { up: Some(false), ..Default::default() }).unwrap();
    assert_eq!(tap.link(), LinkState::DOWN);
    assert_eq!(tap.transmit(&burst).unwrap(), 1);
    assert_eq!(tap.statistics().transmit_no_link, 1);

    route.delete_link(index).unwrap();
    let mut empty = FrameBurst::new(4, MAX_FRAME);
    assert!(matches!(tap.receive(&mut empty), Err(UplinkError::InterfaceLost { .. })));
    assert_eq!(tap.receive(&mut empty).unwrap(), 0);
    assert_eq!(tap.transmit(&burst).unwrap(), 1);
    assert!(tap.wait_fd().is_none() && tap.link() == LinkState::DOWN);
}
