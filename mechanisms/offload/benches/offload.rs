//! What the offloads cost per frame: classification, checksums of 64, 1500 and 9000 bytes, the RSS hash,
//! and the headers of a segmented 64 KiB send.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use offload::{
    HashEnable, HeaderLayout, L4Fill, L4Protocol, RSS_KEY_LEN, SegmentKind, SegmentPlan, Sum,
    Toeplitz, classify, verify,
};

fn tcp(v6: bool, frame_len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    if v6 {
        let builder = ethernet.ipv6([1; 16], [2; 16], 64).tcp(1000, 2000, 1, 1);
        builder.write(&mut frame, &vec![0x5A; frame_len.saturating_sub(74)]).unwrap();
    } else {
        let builder = ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1000, 2000, 1, 1);
        builder.write(&mut frame, &vec![0x5A; frame_len.saturating_sub(54)]).unwrap();
    }
    frame
}

fn classification(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("classify");
    for (name, frame) in [("ipv4_tcp", tcp(false, 64)), ("ipv6_tcp", tcp(true, 74))] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| classify(black_box(&frame), frame.len()));
        });
    }
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for length in [64, 1500, 9000] {
        let frame = tcp(false, length);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(format!("sum_{length}"), |bencher| {
            bencher.iter(|| Sum::of(black_box(&frame)).fold());
        });
        let info = classify(&frame, frame.len());
        group.bench_function(format!("verify_{length}"), |bencher| {
            bencher.iter(|| verify(black_box(&frame), &info, [frame.as_slice()]));
        });
        group.bench_function(format!("fill_{length}"), |bencher| {
            bencher.iter(|| {
                let mut fill = L4Fill::new(L4Protocol::Tcp, 34, frame.len()).unwrap();
                fill.update(black_box(&frame));
                fill.finish()
            });
        });
    }
    group.finish();
}

fn hashes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("toeplitz");
    let toeplitz = Toeplitz::new(&[0x6D; RSS_KEY_LEN]);
    for (name, frame) in [("ipv4_tcp", tcp(false, 64)), ("ipv6_tcp", tcp(true, 74))] {
        let info = classify(&frame, frame.len());
        group.bench_function(name, |bencher| {
            bencher.iter(|| toeplitz.hash_packet(black_box(&frame), &info, HashEnable::DEFAULT));
        });
    }
    group.finish();
}

fn segmentation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    let frame = tcp(false, 54);
    let layout = HeaderLayout { mac_len: 14, ip_len: 20, l4_len: 20 };
    group.throughput(Throughput::Elements(u64::from(65_000u32.div_ceil(1460))));
    group.bench_function("tcp_65000_by_1460_headers", |bencher| {
        bencher.iter(|| {
            let mut plan =
                SegmentPlan::new(black_box(&frame), layout, 65_000, 1460, SegmentKind::Tcp)
                    .unwrap();
            let mut length = 0;
            while let Some(segment) = plan.next_segment() {
                length += segment.frame_len();
            }
            length
        });
    });
    group.finish();
}

criterion_group!(benches, classification, checksums, hashes, segmentation);
criterion_main!(benches);
