//! Guests with synthetic adapters, and a switch on a thread of its own between them.

use std::{
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use ndis_protocol::VPortId;
use netvsp::{
    Segmentation, TransmitMetadata,
    client::{self, LargeBuffers, NetVsc, NotSent, VscConfig},
    server::{BufferKind, NetVsp, NicConfig, Upcall},
};
use offload::{HeaderLayout, L3Protocol, Sum};
use vmbus::{
    GuestBuffer,
    testing::{TestMemory, channel_in},
};

use super::{frame, id, mac, policy};
use crate::{SwitchHandle, SyntheticPort, VirtualSwitch, Worker};

const PATIENCE: Duration = Duration::from_secs(20);
const RECEIVE: u32 = 1;
const SEND: u32 = 2;
const RING_PAGES: usize = 17;

/// A guest on a port, and its host's control side.
pub(super) struct Guest {
    nic: NetVsc,
    port: VPortId,
    switch: SwitchHandle,
    upcalls: Receiver<Upcall>,
    buffers: (GuestBuffer, GuestBuffer),
    pub(super) received: Vec<Vec<u8>>,
    up: bool,
    _memory: TestMemory,
}

impl Guest {
    pub(super) fn boot(switch: &SwitchHandle, number: u8) -> Self {
        let mut memory = TestMemory::new(1400);
        let (receive, _) = memory.buffer(512 * 4096);
        let (send, _) = memory.buffer(48 * 4096);
        let (large, frames) = memory.buffer(8 * LargeBuffers::PAGES as u32 * 4096);
        let large = LargeBuffers::new(large, frames);
        let config = VscConfig::new(RECEIVE, SEND);
        let mut nic = NetVsc::new(config, receive.clone(), send.clone(), Some(large));
        let mut server = NetVsp::new(NicConfig::new(netvsp_mac(number)), memory.map.clone());
        let rings = channel_in(&mut memory, RING_PAGES).unwrap();
        assert!(server.open(0, rings.host) && nic.open(0, rings.guest));
        let (tell, upcalls) = channel();
        let port = SyntheticPort::new(server, move |upcall| {
            let _ = tell.send(upcall);
        });
        let number = id(number.into());
        let connected = switch.run(move |switch| {
            switch.connect(number, policy(number.index() as u8), Box::new(port))
        });
        connected.unwrap().unwrap();
        let mut guest = Self {
            nic,
            port: number,
            switch: switch.clone(),
            upcalls,
            buffers: (receive, send),
            received: Vec::new(),
            up: false,
            _memory: memory,
        };
        guest.run_until("up", |guest| guest.up);
        guest
    }

    /// One turn of the guest's driver and of its host's control side.
    pub(super) fn turn(&mut self) {
        let received = &mut self.received;
        self.nic.poll(0, |burst| {
            for frame in burst.frames() {
                let mut bytes = vec![0; frame.length as usize];
                frame.read_into(&mut bytes);
                received.push(bytes);
            }
        });
        self.nic.flush(0);
        while let Some(upcall) = self.nic.next_upcall() {
            self.up |= matches!(upcall, client::Upcall::Up { .. });
        }
        while let Ok(upcall) = self.upcalls.try_recv() {
            let Upcall::MapGpadl { gpadl, kind } = upcall else { continue };
            assert_eq!(gpadl, if kind == BufferKind::Receive { RECEIVE } else { SEND });
            let buffers = &self.buffers;
            let buffer = if gpadl == RECEIVE { buffers.0.clone() } else { buffers.1.clone() };
            let port = self.port;
            let told = self.switch.run(move |switch| {
                let port = switch.port::<SyntheticPort>(port).unwrap();
                port.nic().gpadl_mapped(kind, Some(buffer));
            });
            told.unwrap();
        }
    }

    pub(super) fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            self.turn();
            assert!(start.elapsed() < PATIENCE, "{what}: not yet");
            std::thread::yield_now();
        }
    }

    /// Sends a frame, waiting for room.
    pub(super) fn send(&mut self, bytes: &[u8], metadata: &TransmitMetadata) {
        let start = Instant::now();
        loop {
            match self.nic.send(0, bytes, metadata) {
                Ok(()) => break,
                Err(NotSent::NoBuffer | NotSent::RingFull) => self.turn(),
                Err(error) => panic!("{error:?}"),
            }
            assert!(start.elapsed() < PATIENCE, "no room");
        }
    }
}

fn netvsp_mac(number: u8) -> netvsp_protocol::MacAddress {
    netvsp_protocol::MacAddress::new(mac(number))
}

fn numbered(number: u32) -> Vec<u8> {
    let length = 46 + number as usize % 1400;
    let mut payload: Vec<u8> = (0..length).map(|i| (i as u32 + number) as u8).collect();
    payload[..4].copy_from_slice(&number.to_le_bytes());
    frame(mac(2), mac(1), &payload)
}

#[test]
fn frames_cross_between_two_guests_in_order_and_none_is_lost() {
    const FRAMES: u32 = 5_000;
    let worker = Worker::start(VirtualSwitch::new(4).unwrap(), None).unwrap();
    let mut sender = Guest::boot(worker.handle(), 1);
    let mut receiver = Guest::boot(worker.handle(), 2);
    let mut seen = 0;
    for number in 0..FRAMES {
        sender.send(&numbered(number), &TransmitMetadata::default());
        if number % 32 == 31 || number == FRAMES - 1 {
            sender.turn();
            // Not more on their way than the receiver has buffers.
            receiver.run_until("frames", |guest| guest.received.len() as u32 > number - seen);
            for (at, bytes) in receiver.received.drain(..).enumerate() {
                assert_eq!(bytes, numbered(seen + at as u32));
            }
            seen = number + 1;
        }
    }
    let statistics = |port| worker.handle().run(move |switch| switch.statistics(id(port)).unwrap());
    assert_eq!(statistics(1).unwrap().sent, u64::from(FRAMES));
    assert_eq!(statistics(2).unwrap().received, u64::from(FRAMES));
}

#[test]
fn a_large_send_of_a_guest_arrives_as_segments() {
    let worker = Worker::start(VirtualSwitch::new(4).unwrap(), None).unwrap();
    let mut sender = Guest::boot(worker.handle(), 1);
    let mut receiver = Guest::boot(worker.handle(), 2);
    let payload: Vec<u8> = (0..30_000u32).map(|i| (i / 3) as u8).collect();
    let layout = HeaderLayout { mac_len: 14, ip_len: 20, l4_len: 20 };
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let mut seed = Sum::of(&packet[12..20]);
    seed.add_word(6);
    packet.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0]);
    packet.extend(seed.fold().to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(&payload);
    let whole = [&mac(2)[..], &mac(1), &[8, 0], &packet].concat();
    let segmentation = Some(Segmentation { mss: 1460, l3: L3Protocol::Ipv4, layout });
    sender.send(&whole, &TransmitMetadata { segmentation, ..TransmitMetadata::default() });
    sender.turn();
    let count = payload.len().div_ceil(1460);
    receiver.run_until("segments", |guest| guest.received.len() == count);
    let joined: Vec<u8> = receiver.received.iter().flat_map(|frame| frame[54..].to_vec()).collect();
    assert_eq!(joined, payload);
}
