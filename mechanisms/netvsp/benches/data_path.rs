//! Cost of a frame on the host's side: from the guest's ring to the switch, and from the switch into the guest's
//! receive buffer. The guest's own work is done between, and not measured.
#![allow(missing_docs)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use netvsp::{
    ReceiveMetadata, TransmitMetadata,
    client::{self, LargeBuffers, NetVsc, VscConfig},
    server::{self, BufferKind, NetVsp, NicConfig},
};
use netvsp_protocol::MacAddress;
use vmbus::testing::{TestMemory, channel_in};

const FRAMES: u32 = 48;

struct Pair {
    server: NetVsp,
    client: NetVsc,
    now: Instant,
    memory: TestMemory,
}

fn up() -> Pair {
    let mut memory = TestMemory::new(4096);
    let (receive, _) = memory.buffer(1024 * 4096);
    let (send, _) = memory.buffer(256 * 4096);
    let (large, frames) = memory.buffer(8 * 17 * 4096);
    let primary = channel_in(&mut memory, 129).expect("a channel");
    let mac = MacAddress::new([2, 0, 0, 0, 0, 1]);
    let mut server = NetVsp::new(NicConfig::new(mac), memory.map.clone());
    let large = LargeBuffers::new(large, frames);
    let config = VscConfig { mtu: 9014, ..VscConfig::new(1, 2) };
    let mut client = NetVsc::new(config, receive.clone(), send.clone(), Some(large));
    server.open(0, primary.host);
    client.open(0, primary.guest);
    let now = Instant::now();
    while !client.control().is_up() {
        server.poll(0, now, |_| ());
        while let Some(upcall) = server.next_upcall() {
            if let server::Upcall::MapGpadl { kind, .. } = upcall {
                let buffer = if kind == BufferKind::Send { &send } else { &receive };
                server.gpadl_mapped(kind, Some(buffer.clone()));
            }
        }
        client.poll(0, |_| ());
        while let Some(upcall) = client.next_upcall() {
            assert!(!matches!(upcall, client::Upcall::Failed(_)));
        }
    }
    Pair { server, client, now, memory }
}

fn transmit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transmit");
    group.throughput(Throughput::Elements(u64::from(FRAMES)));
    for (name, together) in [("one frame a packet", false), ("eight frames a packet", true)] {
        for length in [64usize, 1500] {
            let mut pair = up();
            let mut frame = vec![7u8; length];
            frame.get_mut(..6).expect("long enough").fill(2);
            group.bench_function(BenchmarkId::new(name, length), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut time = Duration::ZERO;
                    for _ in 0..rounds {
                        for _ in 0..FRAMES {
                            let metadata = TransmitMetadata::default();
                            pair.client.send(0, &frame, &metadata).expect("room");
                            if !together {
                                pair.client.flush(0);
                            }
                        }
                        pair.client.flush(0);
                        let mut seen = 0;
                        let start = Instant::now();
                        while seen < FRAMES as usize {
                            seen += pair
                                .server
                                .poll(0, pair.now, |burst| {
                                    for frame in burst.frames() {
                                        black_box((frame.head, frame.pieces));
                                    }
                                })
                                .frames;
                        }
                        time += start.elapsed();
                        pair.client.poll(0, |_| ());
                    }
                    time
                });
            });
        }
    }
    group.finish();
}

fn receive(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("receive");
    group.throughput(Throughput::Elements(u64::from(FRAMES)));
    for length in [64usize, 1500, 9000] {
        let mut pair = up();
        let frame = pair.memory.allocate(3);
        let at = frame.first().map_or(0, |frame| usize::try_from(*frame).unwrap_or(0) * 4096);
        let mapping = pair.memory.mapping.clone();
        let slice = mapping.slice(at, length).expect("guest memory");
        slice.fill(2);
        let head = [0x0202_0202_0202_0202; 2];
        group.bench_function(BenchmarkId::new("frame", length), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let start = Instant::now();
                    for _ in 0..FRAMES {
                        let metadata = ReceiveMetadata::default();
                        pair.server.deliver(0, head, &[slice], &metadata).expect("room");
                    }
                    pair.server.announce(0);
                    time += start.elapsed();
                    pair.client.poll(0, |burst| {
                        black_box(burst.len());
                    });
                    // Takes the completions.
                    pair.server.poll(0, pair.now, |_| ());
                }
                time
            });
        });
    }
    group.finish();
}

criterion_group!(benches, transmit, receive);
criterion_main!(benches);
