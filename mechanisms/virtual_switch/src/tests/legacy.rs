//! VMs with emulated adapters, their driver played over vfio-user, beside one with a synthetic adapter.

use std::time::{Duration, Instant};

use netvsp::TransmitMetadata;
use nic_switch::{VPortPolicy, VlanMatch, VlanPolicy};
use tempfile::TempDir;
use tulip_driver::{NotSent, TulipDriver, TulipDriverConfig};

use super::{End, MemoryPort, Packet, frame, id, in_vlan, mac, policy, synthetic::Guest};
use crate::{
    PortPolicy, PortStatistics, SwitchHandle, TulipHandle, TulipPort, VirtualSwitch, Worker,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A VM with an emulated adapter.
struct Legacy {
    number: u8,
    driver: TulipDriver,
    handle: TulipHandle,
    received: Vec<Vec<u8>>,
    _directory: TempDir,
}

impl Legacy {
    fn boot(switch: &SwitchHandle, number: u8, policy: PortPolicy) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("legacy.sock");
        let port = TulipPort::serve(&socket, policy.mac, &format!("port {number}")).unwrap();
        let handle = port.handle();
        let connected =
            switch.run(move |switch| switch.connect(id(number.into()), policy, Box::new(port)));
        connected.unwrap().unwrap();
        let driver = TulipDriver::open(&TulipDriverConfig::new(&socket)).unwrap();
        assert_eq!(driver.mac(), mac(number));
        // The switch sees that it receives.
        switch.run(|switch| switch.poll(Instant::now())).unwrap();
        Self { number, driver, handle, received: Vec::new(), _directory: directory }
    }

    fn turn(&mut self) {
        let received = &mut self.received;
        self.driver.receive(64, |frame| {
            let mut bytes = vec![0; frame.len()];
            frame.read_into(&mut bytes);
            received.push(bytes);
        });
    }

    fn send(&mut self, bytes: &[u8]) {
        let start = Instant::now();
        while let Err(full) = self.driver.send(bytes) {
            assert_eq!(full, NotSent::Full);
            assert!(start.elapsed() < PATIENCE, "no room");
            std::thread::yield_now();
        }
        self.driver.demand().unwrap();
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            self.turn();
            assert!(start.elapsed() < PATIENCE, "port {}: {what}: not yet", self.number);
            std::thread::yield_now();
        }
    }
}

fn numbered(to: u8, from: u8, number: u32) -> Vec<u8> {
    let length = 46 + number as usize * 13 % 1455;
    let mut payload: Vec<u8> = (0..length).map(|at| (at as u32 + number) as u8).collect();
    payload[..4].copy_from_slice(&number.to_le_bytes());
    frame(mac(to), mac(from), &payload)
}

fn statistics(worker: &Worker, port: u32) -> PortStatistics {
    worker.handle().run(move |switch| switch.statistics(id(port)).unwrap()).unwrap()
}

/// A port of memory has frames, which by itself wakes nobody.
fn look(worker: &Worker) {
    worker.handle().run(|_| ()).unwrap();
}

/// Waits until the switch has counted what is to be counted.
fn counted(worker: &Worker, port: u32, done: impl Fn(&PortStatistics) -> bool) {
    let start = Instant::now();
    while !done(&statistics(worker, port)) {
        assert!(start.elapsed() < PATIENCE, "{:?}", statistics(worker, port));
        std::thread::yield_now();
    }
}

#[test]
fn two_emulated_adapters_and_a_synthetic_one_exchange_frames_in_order() {
    const FRAMES: u32 = 400;
    let worker = Worker::start(VirtualSwitch::new(8).unwrap(), None).unwrap();
    let mut synthetic = Guest::boot(worker.handle(), 1);
    let mut legacy = [2, 3].map(|number| Legacy::boot(worker.handle(), number, policy(number)));
    for number in 0..FRAMES {
        // Around: 2 to 3, 3 to 1, 1 to 2.
        let [two, three] = &mut legacy;
        two.send(&numbered(3, 2, number));
        three.send(&numbered(1, 3, number));
        synthetic.send(&numbered(2, 1, number), &TransmitMetadata::default());
        synthetic.turn();
        // Not more on their way than a receiver has descriptors.
        if number % 64 == 63 || number == FRAMES - 1 {
            let seen = number as usize + 1;
            two.run_until("frames of the synthetic one", |vm| vm.received.len() == seen);
            three.run_until("frames of the other", |vm| vm.received.len() == seen);
            synthetic.run_until("frames", |vm| vm.received.len() == seen);
        }
    }
    let expected = |to, from| (0..FRAMES).map(|number| numbered(to, from, number)).collect();
    let [two, three] = &legacy;
    let expected: [Vec<_>; 3] = [expected(2, 1), expected(3, 2), expected(1, 3)];
    assert!(two.received == expected[0] && three.received == expected[1]);
    assert!(synthetic.received == expected[2]);
    for vm in &legacy {
        let counters = vm.handle.counters();
        assert_eq!((counters.tx_frames, counters.rx_frames), (FRAMES.into(), FRAMES.into()));
        assert_eq!(vm.handle.overrun(), 0);
    }
    // To everybody, once.
    legacy[0].send(&frame([0xFF; 6], mac(2), &[1; 46]));
    legacy[1].run_until("a broadcast", |vm| vm.received.len() > FRAMES as usize);
    synthetic.run_until("a broadcast", |vm| vm.received.len() > FRAMES as usize);
    legacy[0].turn();
    assert_eq!(legacy[0].received.len(), FRAMES as usize);
}

#[test]
fn an_emulated_adapter_obeys_the_policy_of_its_port() {
    let mut switch = VirtualSwitch::new(8).unwrap();
    // Sees tags: it lets VLANs 5 to 6 through.
    let trunk = PortPolicy {
        receives: VlanMatch::Any,
        vport: VPortPolicy {
            vlan: VlanPolicy::Trunk { native: 0, allowed: [5, 6].into_iter().collect() },
            ..VPortPolicy::default()
        },
        ..policy(3)
    };
    let end = End::default();
    switch.connect(id(3), trunk, Box::new(MemoryPort(end.clone()))).unwrap();
    let worker = Worker::start(switch, None).unwrap();
    let mut vm = Legacy::boot(worker.handle(), 2, in_vlan(2, 5));
    // Not its own address.
    vm.send(&frame(mac(3), mac(9), &[1; 46]));
    counted(&worker, 2, |seen| seen.spoofed == 1);
    // A tag that it may not send.
    let mut tagged = frame(mac(3), mac(2), &[1; 46]);
    tagged.splice(12..12, [0x81, 0, 0, 6]);
    vm.send(&tagged);
    counted(&worker, 2, |seen| seen.vlan_not_allowed == 1);
    // Its own VLAN, which it does not see.
    let out = frame(mac(3), mac(2), &[2; 46]);
    vm.send(&out);
    counted(&worker, 2, |seen| seen.sent == 1);
    let arrived = end.take();
    assert_eq!(arrived.len(), 1);
    assert_eq!((&arrived[0].bytes, arrived[0].tci), (&out, Some(5)));
    let answer = frame(mac(2), mac(3), &[3; 46]);
    end.send(Packet { tci: Some(5), ..Packet::plain(&answer) });
    end.send(Packet { tci: Some(6), ..Packet::plain(&answer) });
    look(&worker);
    vm.run_until("the answer", |vm| !vm.received.is_empty());
    counted(&worker, 3, |seen| seen.sent == 1 && seen.no_receiver == 1);
    vm.turn();
    assert_eq!(vm.received, [answer]);
}

#[test]
fn a_trunk_sees_its_tags_in_its_frames() {
    let mut switch = VirtualSwitch::new(8).unwrap();
    let end = End::default();
    switch.connect(id(3), in_vlan(3, 6), Box::new(MemoryPort(end.clone()))).unwrap();
    let worker = Worker::start(switch, None).unwrap();
    let trunk = PortPolicy {
        receives: VlanMatch::Any,
        vport: VPortPolicy {
            vlan: VlanPolicy::Trunk { native: 0, allowed: [5, 6].into_iter().collect() },
            ..VPortPolicy::default()
        },
        ..policy(2)
    };
    let mut vm = Legacy::boot(worker.handle(), 2, trunk);
    // Shorter than frames are on a wire, and its last bytes are zeros.
    end.send(Packet::plain(&frame(mac(2), mac(3), &[7; 20])));
    look(&worker);
    vm.run_until("the frame", |vm| !vm.received.is_empty());
    let mut expected = frame(mac(2), mac(3), &[7; 20]);
    expected.splice(12..12, [0x81, 0, 0, 6]);
    expected.resize(60, 0);
    assert_eq!(vm.received, [expected.clone()]);
    // And back, with its tag.
    let mut back = frame(mac(3), mac(2), &[8; 46]);
    let plain = back.clone();
    back.splice(12..12, [0x81, 0, 0, 6]);
    vm.send(&back);
    counted(&worker, 2, |seen| seen.sent == 1);
    assert_eq!(end.bytes(), [plain]);
    // What is longer than the adapter's frames is not delivered.
    end.send(Packet::plain(&frame(mac(2), mac(3), &[9; 1501])));
    look(&worker);
    counted(&worker, 2, |seen| seen.too_long == 1);
}

#[test]
fn a_guest_without_its_driver_receives_nothing_and_a_new_one_does() {
    let worker = Worker::start(VirtualSwitch::new(8).unwrap(), None).unwrap();
    let receiver = Legacy::boot(worker.handle(), 2, policy(2));
    let mut sender = Legacy::boot(worker.handle(), 3, policy(3));
    let Legacy { driver, _directory: directory, .. } = receiver;
    drop(driver);
    let start = Instant::now();
    let is_receiving = || {
        let looked = worker
            .handle()
            .run(|switch| crate::Port::is_receiving(switch.port::<TulipPort>(id(2)).unwrap()));
        looked.unwrap()
    };
    while is_receiving() {
        assert!(start.elapsed() < PATIENCE, "still receiving");
        std::thread::yield_now();
    }
    sender.send(&frame(mac(2), mac(3), &[1; 46]));
    counted(&worker, 3, |seen| seen.no_receiver == 1);
    let socket = directory.path().join("legacy.sock");
    let mut driver = TulipDriver::open(&TulipDriverConfig::new(&socket)).unwrap();
    let out = frame(mac(2), mac(3), &[2; 46]);
    // Until the switch's next round it counts as off.
    let mut seen = Vec::new();
    while seen.is_empty() {
        sender.send(&out);
        driver.receive(1, |frame| {
            seen.resize(frame.len(), 0);
            frame.read_into(&mut seen);
        });
        assert!(start.elapsed() < PATIENCE, "nothing comes");
        std::thread::yield_now();
    }
    assert_eq!(seen, out);
    // A port that goes takes its socket with it.
    let gone = worker.handle().run(|switch| switch.disconnect(id(2))).unwrap();
    drop(gone);
    assert!(!socket.exists());
    assert!(TulipDriver::open(&TulipDriverConfig::new(&socket)).is_err());
}
