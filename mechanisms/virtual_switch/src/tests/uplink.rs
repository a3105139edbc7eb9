//! The default VPort of a real adapter as uplink, and a VF on the other side of its NIC switch.

use std::time::{Duration, Instant};

use adapter::{Adapter, AdapterConfig};
use arrayvec::ArrayVec;
use avf_driver::{AvfDriver, DriverConfig, QueuePair, RxSegment, TxSegment};
use ndis_protocol::{FilterId, FunctionId, InterruptModeration, MacAddress, VPortId};
use nic_switch::{ReceiveFilter, VlanMatch};

use super::{End, MemoryPort, Packet, frame, id, mac, policy};
use crate::{AvfUplink, VirtualSwitch};

const PATIENCE: Duration = Duration::from_secs(20);
const VF_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];

fn send(pair: &mut QueuePair, bytes: &[u8]) {
    let buffer = pair.tx.reserve().unwrap();
    pair.tx.memory().bytes(&buffer).unwrap().write_from(bytes);
    let mut burst = ArrayVec::<_, 1>::new();
    burst.push(TxSegment::frame(buffer, bytes.len() as u16));
    assert_eq!(pair.tx.transmit(&mut burst), 1);
}

/// Lets the switch work until the VF has frames.
fn receive(pair: &mut QueuePair, switch: &mut VirtualSwitch) -> Vec<Vec<u8>> {
    let start = Instant::now();
    let mut burst = ArrayVec::<RxSegment, 64>::new();
    while pair.rx.receive(&mut burst) == 0 {
        switch.poll(Instant::now());
        assert!(start.elapsed() < PATIENCE, "nothing arrived");
    }
    burst
        .drain(..)
        .map(|segment| {
            let mut bytes = vec![0; segment.length.into()];
            pair.rx.memory().bytes(&segment.buffer).unwrap().read_into(&mut bytes);
            pair.rx.free(segment.buffer);
            bytes
        })
        .collect()
}

#[test]
fn a_synthetic_port_and_a_vf_reach_each_other_through_the_default_vport() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = AdapterConfig::new("test", directory.path());
    config.total_vfs = 1;
    let adapter = Adapter::start(config).unwrap();
    adapter.enable_vfs(1).unwrap();
    let (vf, _) = adapter.allocate_vf(MacAddress::new(VF_MAC)).unwrap();
    let moderation = InterruptModeration::Undefined;
    adapter.create_vport(id(1), FunctionId::Vf(vf), 1, moderation).unwrap();
    let untagged = VlanMatch::UntaggedOrZero;
    for (number, mac, vport) in [(1, VF_MAC, id(1)), (2, mac(1), VPortId::DEFAULT)] {
        let filter = ReceiveFilter { mac: MacAddress::new(mac), vlan: untagged, vport };
        adapter.set_filter(FilterId::new(number).unwrap(), filter).unwrap();
    }
    let (_vf_control, mut pairs) =
        AvfDriver::open(DriverConfig::new(adapter.socket(FunctionId::Vf(vf)))).unwrap();
    let mut vf = pairs.remove(0);
    let (control, mut pairs) =
        AvfDriver::open(AvfUplink::driver_config(adapter.socket(FunctionId::Pf))).unwrap();
    let mut switch = VirtualSwitch::new(4).unwrap();
    let uplink = AvfUplink::new(&control, pairs.remove(0), 9728).unwrap();
    switch.set_uplink(Some(Box::new(uplink)));
    let end = End::default();
    switch.connect(id(1), policy(1), Box::new(MemoryPort(end.clone()))).unwrap();
    switch.poll(Instant::now());

    // Frames of all sizes there and back, more than one buffer long too.
    for length in [3, 46, 1000, 2034, 2035, 5000] {
        let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let there = frame(VF_MAC, mac(1), &payload);
        end.send(Packet::plain(&there));
        let mut arrived = receive(&mut vf, &mut switch);
        while arrived.concat().len() < there.len() {
            arrived.extend(receive(&mut vf, &mut switch));
        }
        let mut arrived = arrived.concat();
        assert_eq!(arrived.len(), there.len().max(60), "padded to what a wire carries");
        arrived.truncate(there.len());
        assert_eq!(arrived, there);
        // The VF's driver sends single buffers here.
        if there.len() > 2048 {
            continue;
        }
        let back = frame(mac(1), VF_MAC, &payload);
        send(&mut vf, &back);
        let start = Instant::now();
        loop {
            switch.poll(Instant::now());
            let arrived = end.bytes();
            if !arrived.is_empty() {
                assert_eq!(arrived, [back]);
                break;
            }
            assert!(start.elapsed() < PATIENCE, "nothing came back");
        }
    }
    let seen = switch.uplink_statistics();
    assert_eq!((seen.sent, seen.received, seen.no_buffer), (4, 6, 0), "{seen:?}");
}
