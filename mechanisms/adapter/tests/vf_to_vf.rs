//! Frames between real VFs: the adapter's data path with the AVF driver on vfio-user sockets.

mod common;

use avf_driver::Promiscuity;
use common::{Bench, frame, mac};
use ndis_protocol::{FunctionId, VPortId};
use nic_switch::VPortPolicy;

#[test]
fn a_frame_goes_from_one_vf_to_the_other_and_every_counter_agrees() {
    let bench = Bench::new(2);
    let (mut one, mut two) = (bench.open(0), bench.open(1));
    let sent = frame(mac(1), mac(0), &[0xAB; 300]);
    one.send(&sent);
    assert_eq!(two.receive(), sent);
    let stats = |vf| bench.adapter.stats(FunctionId::Vf(common::vf(vf))).unwrap();
    assert_eq!((stats(0).transmit.unicast, stats(0).transmit.bytes), (1, sent.len() as u64));
    assert_eq!((stats(1).receive.unicast, stats(1).receive.bytes), (1, sent.len() as u64));
    assert_eq!(stats(0).receive.frames() + stats(1).transmit.frames(), 0);
}

#[test]
fn jumbo_frames_span_several_buffers_and_arrive_whole() {
    let bench = Bench::new(2);
    let (mut one, mut two) = (bench.open(0), bench.open(1));
    for length in [46, 1500, 2034, 2035, 4096, 9000, 9714] {
        let payload: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let sent = frame(mac(1), mac(0), &payload);
        one.send(&sent);
        assert_eq!(two.receive(), sent, "{length} bytes of payload");
    }
}

#[test]
fn broadcast_reaches_every_other_vf_and_spoofed_frames_nobody() {
    let bench = Bench::new(3);
    let (mut one, mut two, mut three) = (bench.open(0), bench.open(1), bench.open(2));
    let hello = frame([0xFF; 6], mac(0), b"hello, everyone; padded to the least length");
    one.send(&hello);
    assert_eq!(two.receive(), hello);
    assert_eq!(three.receive(), hello);
    // A frame that pretends to be from VF 2 goes nowhere; the one behind it arrives.
    one.send(&frame(mac(1), mac(2), &[1; 60]));
    let honest = frame(mac(1), mac(0), &[2; 60]);
    one.send(&honest);
    assert_eq!(two.receive(), honest);
    let transmit = bench.adapter.stats(FunctionId::Vf(common::vf(0))).unwrap().transmit;
    assert_eq!((transmit.spoofed, transmit.unicast, transmit.broadcast), (1, 1, 1));
}

#[test]
fn a_promiscuous_vf_gets_frames_for_others_only_while_its_policy_allows_it() {
    let bench = Bench::new(3);
    let (mut one, mut two, mut three) = (bench.open(0), bench.open(1), bench.open(2));
    three.control.set_promiscuity(Promiscuity { unicast: true, multicast: true }).unwrap();
    let others = frame(mac(1), mac(0), &[1; 60]);
    let mut check = |seen: bool, content: u8| {
        one.send(&others);
        assert_eq!(two.receive(), others);
        if seen {
            assert_eq!(three.receive(), others);
        }
        // What comes to all shows that nothing else came before it.
        let all = frame([0xFF; 6], mac(0), &[content; 60]);
        one.send(&all);
        assert_eq!(two.receive(), all);
        assert_eq!(three.receive(), all);
    };
    check(false, 2);
    let vport = VPortId::new(3).unwrap();
    let policy = VPortPolicy { allow_promiscuous: true, ..VPortPolicy::default() };
    bench.adapter.set_vport_policy(vport, policy).unwrap();
    check(true, 3);
    bench.adapter.set_vport_policy(vport, VPortPolicy::default()).unwrap();
    check(false, 4);
}

#[test]
fn a_client_whose_eventfd_would_block_stops_nobody() {
    let bench = Bench::new(3);
    let (mut one, mut three) = (bench.open(0), bench.open(2));
    let mut two =
        common::End::open(avf_driver::DriverConfig { interrupts: true, ..bench.config(1) });
    // The client makes its eventfd blocking, and fills the counter.
    let eventfd = two.pairs[0].rx.event_fd().unwrap();
    let flags = rustix::fs::fcntl_getfl(eventfd).unwrap();
    rustix::fs::fcntl_setfl(eventfd, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    rustix::io::write(eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    for round in 0..10 {
        two.pairs[0].rx.arm().unwrap();
        // The frame raises the interrupt; the next one is for somebody else, and arrives.
        let first = frame(mac(1), mac(0), &[round; 100]);
        let second = frame(mac(2), mac(0), &[round; 100]);
        one.send(&first);
        one.send(&second);
        assert_eq!(two.receive(), first);
        assert_eq!(three.receive(), second);
    }
}
