//! Checklist item 61 with the driver of this project: a VF that is brought up again and again under traffic, each time with
//! other rings and another number of queue pairs, as `ifup` and `ifdown`, `ethtool -G` and `ethtool -L` do. And a VF that is
//! brought down with frames in its ring.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use avf_driver::{DriverConfig, RxSegment};
use common::{Bench, End, PATIENCE, frame, mac, vf};
use ndis_protocol::FunctionId;

const ROUNDS: u16 = 100;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Ends the sender, also when a check fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn c61_a_hundred_openings_with_other_rings_and_queues_under_traffic_leave_nothing_behind() {
    let bench = Bench::with(2, 4, |_| {});
    let mut sender = bench.open(0);
    let done = AtomicBool::new(false);
    let mut before = 0;
    let sent = std::thread::scope(|scope| {
        let finished = Done(&done);
        let sending = scope.spawn(|| {
            let content = frame(mac(1), mac(0), &[7; 200]);
            let mut sent = 0;
            while !done.load(Ordering::Acquire) {
                sender.send(&content);
                sent += 1;
                std::thread::yield_now();
            }
            sent
        });
        for round in 0..ROUNDS {
            let config = DriverConfig {
                queue_pairs: 1 << (round % 3),
                rx_ring: [64, 512, 1024, 96][usize::from(round % 4)],
                tx_ring: [256, 64, 128][usize::from(round % 3)],
                interrupts: round % 2 == 0,
                ..bench.config(1)
            };
            let mut end = End::open(config);
            assert_eq!(end.pairs.len(), 1 << (round % 3));
            let start = Instant::now();
            let mut burst = ArrayVec::<RxSegment, 16>::new();
            // Traffic is there at once, on whichever queue.
            while end.pairs.iter_mut().all(|pair| pair.rx.receive(&mut burst) == 0) {
                assert!(start.elapsed() < PATIENCE, "no frame came in round {round}");
                std::thread::yield_now();
            }
            // What was received is given back with the driver.
            drop((burst, end));
            if round == 3 {
                before = open_descriptors();
            }
        }
        drop(finished);
        sending.join().unwrap()
    });
    let start = Instant::now();
    while open_descriptors() > before {
        assert!(start.elapsed() < PATIENCE, "{} descriptors, {before} before", open_descriptors());
        std::thread::yield_now();
    }
    // Every frame was for somebody or for nobody, and the sender's function is as sound as before. The last ones may
    // still be in its ring.
    let transmitted = || bench.adapter.stats(FunctionId::Vf(vf(0))).unwrap().transmit;
    let start = Instant::now();
    while transmitted().frames() + transmitted().discards() < sent && start.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    let stats = transmitted();
    assert_eq!((stats.frames() + stats.discards(), stats.errors()), (sent, 0));
    assert!(stats.unicast >= u64::from(ROUNDS));
    let mut end = bench.open(1);
    sender.send(&frame(mac(1), mac(0), b"the last one"));
    while &end.receive()[14..] != b"the last one" {}
}

#[test]
fn what_was_posted_before_an_orderly_end_is_sent() {
    // A data path that looks at doorbells once in a while only.
    let bench = Bench::with(2, 1, |config| {
        let idle = &mut config.worker.idle;
        idle.spin = Duration::ZERO;
        idle.shortest_sleep = Duration::from_secs(1);
        idle.longest_sleep = Duration::from_secs(1);
    });
    let mut receiver = bench.open(1);
    for round in 0..3_u8 {
        let mut sender = bench.open(0);
        for number in 0..200_u8 {
            sender.send(&frame(mac(1), mac(0), &[round, number, 0]));
        }
        sender.control.close(sender.pairs).unwrap();
        let rx = &mut receiver.pairs[0].rx;
        let memory = Arc::clone(rx.memory());
        let (mut came, start) = (Vec::new(), Instant::now());
        while came.len() < 200 {
            assert!(start.elapsed() < PATIENCE, "round {round}: {} frames came", came.len());
            let mut burst = ArrayVec::<RxSegment, 32>::new();
            rx.receive(&mut burst);
            for segment in burst {
                let mut bytes = vec![0; segment.length.into()];
                memory.bytes(&segment.buffer).unwrap().read_into(&mut bytes);
                rx.free(segment.buffer);
                came.push(bytes);
            }
        }
        for (number, frame) in (0..200_u8).zip(came) {
            assert_eq!(&frame[14..], [round, number, 0]);
        }
    }
}
