//! What a packet costs through a ring: written, published, read and released.
//!
//! CPU time of the thread is counted, so that other work on the machine does not show.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};
use vmbus::{OutgoingPacket, testing::channel};

const IN_BAND: OutgoingPacket<'static> =
    OutgoingPacket::InBand { transaction_id: 7, completion_requested: false };

/// CPU time that `count` turns take.
fn timed(count: u64, mut turn: impl FnMut()) -> Duration {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("a time");
    let start = now();
    for _ in 0..count {
        turn();
    }
    now() - start
}

/// Each packet published and released by itself.
fn single(c: &mut Criterion) {
    let mut group = c.benchmark_group("write_and_read");
    for size in [40usize, 1500] {
        let mut pair = channel(17);
        let payload = vec![0x5A; size];
        let mut seen = vec![0; size];
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|count| {
                timed(count, || {
                    pair.guest.send(IN_BAND, black_box(&payload)).expect("room");
                    pair.guest.flush().expect("alive");
                    let packet = pair.host.receive().expect("alive").expect("a packet");
                    black_box(packet.payload.read_into(&mut seen));
                    pair.host.flush().expect("alive");
                })
            });
        });
    }
}

/// 32 packets at a time.
fn batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("write_and_read_32");
    for size in [40usize, 1500] {
        let mut pair = channel(33);
        let payload = vec![0x5A; size];
        let mut seen = vec![0; size];
        group.throughput(Throughput::Elements(32));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|count| {
                timed(count, || {
                    for _ in 0..32 {
                        pair.guest.send(IN_BAND, black_box(&payload)).expect("room");
                    }
                    pair.guest.flush().expect("alive");
                    while let Some(packet) = pair.host.receive().expect("alive") {
                        black_box(packet.payload.read_into(&mut seen));
                    }
                    pair.host.flush().expect("alive");
                })
            });
        });
    }
}

criterion_group!(benches, single, batch);
criterion_main!(benches);
