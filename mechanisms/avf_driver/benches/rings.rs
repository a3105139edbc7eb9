//! What the driver's side of the rings costs per burst, with a device that is played in memory.
//!
//! `transmit` and `receive` run on one core: instructions and cache hits. `echo_across_cores` has
//! the device's side on another thread and so shows the cache lines that travel.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use avf_driver::{
    DriverConfig, RxSegment, TxSegment,
    in_memory::{PlayedDevice, queue_pair},
};
use avf_protocol::{packet_type::PacketType, receive::RxLegacy};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BURSTS: [usize; 3] = [1, 32, 64];

fn config() -> DriverConfig {
    DriverConfig { tx_ring: 1024, rx_ring: 1024, ..DriverConfig::new("unused") }
}

/// Runs `turn`, which returns the time its part of interest took, `count` times.
fn timed(count: u64, mut turn: impl FnMut() -> Duration) -> Duration {
    (0..count).map(|_| turn()).sum()
}

fn transmit(c: &mut Criterion) {
    let mut group = c.benchmark_group("transmit");
    for size in BURSTS {
        let (mut pair, mut device) = queue_pair(config()).expect("memory for a queue pair");
        let mut burst = ArrayVec::<TxSegment, 64>::new();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|count| {
                timed(count, || {
                    let start = Instant::now();
                    for _ in 0..size {
                        let buffer = pair.tx.reserve().expect("a free buffer");
                        burst.push(TxSegment::frame(buffer, 60));
                    }
                    pair.tx.transmit(&mut burst);
                    let took = start.elapsed();
                    device.transmit(|descriptor| {
                        black_box(descriptor);
                    });
                    took
                })
            });
        });
    }
}

fn receive(c: &mut Criterion) {
    let frame = RxLegacy::new(60).with_end_of_packet(PacketType::IPV4_UDP);
    let mut group = c.benchmark_group("receive");
    for size in BURSTS {
        let (mut pair, mut device) = queue_pair(config()).expect("memory for a queue pair");
        let mut out = ArrayVec::<RxSegment, 64>::new();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|count| {
                timed(count, || {
                    for _ in 0..size {
                        device.receive(frame);
                    }
                    let start = Instant::now();
                    pair.rx.receive(&mut out);
                    for segment in out.drain(..) {
                        pair.rx.free(black_box(segment).buffer);
                    }
                    start.elapsed()
                })
            });
        });
    }
}

/// The device's side of [`echo_across_cores`]: every frame sent comes back.
fn echo(mut device: PlayedDevice, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if device.echo(64) == 0 {
            std::hint::spin_loop();
        }
    }
}

fn echo_across_cores(c: &mut Criterion) {
    let mut group = c.benchmark_group("echo_across_cores");
    for size in BURSTS {
        let (mut pair, device) = queue_pair(config()).expect("memory for a queue pair");
        let stop = Arc::new(AtomicBool::new(false));
        let other = {
            let stop = stop.clone();
            std::thread::spawn(move || echo(device, &stop))
        };
        let mut burst = ArrayVec::<TxSegment, 64>::new();
        let mut out = ArrayVec::<RxSegment, 64>::new();
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|count| {
                let (mut sent, mut received) = (0, 0);
                let start = Instant::now();
                while received < count {
                    while burst.len() < size && sent < count && sent - received < 512 {
                        let Some(buffer) = pair.tx.reserve() else { break };
                        burst.push(TxSegment::frame(buffer, 60));
                        sent += 1;
                    }
                    pair.tx.transmit(&mut burst);
                    received += pair.rx.receive(&mut out) as u64;
                    for segment in out.drain(..) {
                        pair.rx.free(segment.buffer);
                    }
                }
                start.elapsed()
            });
        });
        stop.store(true, Ordering::Relaxed);
        other.join().expect("the device thread");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = transmit, receive, echo_across_cores
}
criterion_main!(benches);
