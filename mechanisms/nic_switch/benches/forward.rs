//! Cost of one forwarding decision as receive filters grow from 16 to 65,536.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndis_protocol::{FilterId, MacAddress, VPortId};
use nic_switch::{EgressList, FrameKey, Ingress, NicSwitch, ReceiveFilter, Verdict, VlanMatch};

fn address(n: u32) -> MacAddress {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddress::new([2, 0, a, b, c, d])
}

fn forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    group.throughput(Throughput::Elements(32));
    for filters in [16u32, 4096, 65536] {
        let mut switch = NicSwitch::new(257);
        switch.set_receiving(VPortId::DEFAULT, true).ok();
        for id in (1..257).filter_map(VPortId::new) {
            switch.create_vport(id).ok();
            switch.set_receiving(id, true).ok();
        }
        for n in 0..filters {
            let (Some(vport), Some(id)) = (VPortId::new(1 + n % 256), FilterId::new(n + 1)) else {
                continue;
            };
            let filter = ReceiveFilter { mac: address(n), vlan: VlanMatch::UntaggedOrZero, vport };
            switch.set_filter(id, filter).ok();
        }
        let mut list = EgressList::with_capacity(257);
        let mut next = 0u32;
        group.bench_function(BenchmarkId::new("burst of 32", filters), |bencher| {
            bencher.iter(|| {
                for _ in 0..32 {
                    next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let key = FrameKey {
                        destination: address((next >> 8) % filters).into(),
                        source: address(0).into(),
                        tci: None,
                    };
                    let verdict = switch.forward(Ingress::Uplink, black_box(&key), &mut list);
                    debug_assert!(matches!(verdict, Verdict::Unicast(_)));
                    black_box(verdict);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, forward);
criterion_main!(benches);
