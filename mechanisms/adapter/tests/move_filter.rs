//! OID_RECEIVE_FILTER_MOVE_FILTER under traffic: no frame is seen by both VPorts, or by none. And to a VF that is not up.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use arrayvec::ArrayVec;
use avf_driver::{DriverConfig, RxSegment};
use common::{Bench, End, PATIENCE, frame, mac};
use ndis_protocol::{FilterId, FunctionId, MacAddress, VPortId};
use nic_switch::{ReceiveFilter, VlanMatch};

/// It is a test after this many frames and this many moves: whichever comes last, for who runs when is the scheduler's.
const FRAMES: u64 = 40_000;
const MOVES: u64 = 200;
/// Frames on their way at most: fewer than either receiver has buffers, so that none is dropped for want of one.
const WINDOW: u64 = 128;
/// The address that moves to and fro.
const MOVING: u8 = 99;

fn numbered(number: u64) -> Vec<u8> {
    let mut payload = [0; 50];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    frame(mac(MOVING), mac(0), &payload)
}

/// Ends the thread that moves the filter, also when another one fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Everything that one of the two receives, until all has arrived somewhere.
fn receive_all(end: &mut End, arrived: &AtomicU64, done: &AtomicBool) -> Vec<u64> {
    let mut numbers = Vec::new();
    let rx = &mut end.pairs[0].rx;
    let memory = Arc::clone(rx.memory());
    let mut burst = ArrayVec::<RxSegment, 32>::new();
    loop {
        let received = rx.receive(&mut burst);
        for segment in burst.drain(..) {
            let mut frame = vec![0; segment.length.into()];
            memory.bytes(&segment.buffer).unwrap().read_into(&mut frame);
            numbers.push(u64::from_be_bytes(frame[14..22].try_into().unwrap()));
            rx.free(segment.buffer);
        }
        arrived.fetch_add(received as u64, Ordering::AcqRel);
        if received == 0 && done.load(Ordering::Acquire) {
            return numbers;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_filter_that_moves_under_traffic_loses_no_frame_and_doubles_none() {
    let bench = Bench::new(3);
    let (mut sender, mut one, mut two) = (bench.open(0), bench.open(1), bench.open(2));
    let [one_vport, two_vport] = [2, 3].map(|number| VPortId::new(number).unwrap());
    let filter = FilterId::new(1000).unwrap();
    let address = MacAddress::new(mac(MOVING));
    let start = ReceiveFilter { mac: address, vlan: VlanMatch::UntaggedOrZero, vport: one_vport };
    bench.adapter.set_filter(filter, start).unwrap();

    let arrived = AtomicU64::new(0);
    let (done, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    let (by_one, by_two, sent) = std::thread::scope(|scope| {
        let finished = Done(&done);
        let one = scope.spawn(|| receive_all(&mut one, &arrived, &done));
        let two = scope.spawn(|| receive_all(&mut two, &arrived, &done));
        let moving = scope.spawn(|| {
            let (mut from, mut to) = (one_vport, two_vport);
            while !done.load(Ordering::Acquire) {
                bench.adapter.move_filter(filter, from, to).unwrap();
                std::mem::swap(&mut from, &mut to);
                // Frames pass between two moves, now more of them and now fewer.
                for _ in 0..moves.fetch_add(1, Ordering::AcqRel) % 7 {
                    std::thread::yield_now();
                }
            }
        });
        let start = Instant::now();
        let wait_for = |count: u64| {
            while arrived.load(Ordering::Acquire) < count {
                assert!(start.elapsed() < PATIENCE, "{arrived:?} frames of {count} arrived");
                std::thread::yield_now();
            }
        };
        let mut sent = 0;
        while sent < FRAMES || moves.load(Ordering::Acquire) < MOVES {
            wait_for(sent.saturating_sub(WINDOW));
            sender.send(&numbered(sent));
            sent += 1;
        }
        wait_for(sent);
        drop(finished);
        moving.join().unwrap();
        (one.join().unwrap(), two.join().unwrap(), sent)
    });

    println!("{moves:?} moves; {} and {} frames", by_one.len(), by_two.len());
    assert!(!by_one.is_empty() && !by_two.is_empty());
    // Each at one of the two, and in order there.
    assert!(by_one.is_sorted() && by_two.is_sorted());
    let mut all = [by_one, by_two].concat();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..sent), "frames were lost or doubled");
    let stats = bench.adapter.stats(ndis_protocol::FunctionId::Vf(common::vf(0))).unwrap();
    assert_eq!((stats.transmit.unicast, stats.transmit.discards()), (sent, 0));
}

/// As Linux has it, which asks for the data path when its VF is open and enables the VF's queues a second later.
#[test]
fn what_the_default_vport_sends_to_a_vf_that_is_not_up_comes_back_to_it() {
    let bench = Bench::with(1, 1, |config| config.default_vport_queue_pairs = 1);
    let pf = bench.adapter.socket(FunctionId::Pf);
    let mut pf = End::open(DriverConfig { queue_pairs: 1, ..DriverConfig::new(pf) });
    let sent = |number: u8| frame(mac(0), mac(50), &[number; 60]);
    for number in 0..3 {
        pf.send(&sent(number));
        assert_eq!(pf.receive(), sent(number));
    }
    let mut vf = bench.open(0);
    pf.send(&sent(3));
    assert_eq!(vf.receive(), sent(3));
    vf.control.close(vf.pairs).unwrap();
    pf.send(&sent(4));
    assert_eq!(pf.receive(), sent(4));
}
