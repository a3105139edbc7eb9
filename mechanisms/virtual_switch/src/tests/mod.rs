//! Switches with ports of memory, and one with a real adapter as uplink.

mod legacy;
mod offloads;
mod rules;
mod synthetic;
mod uplink;
mod vhost_user;

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use ndis_protocol::{MacAddress, VPortId};
use netvsp::{ReceiveMetadata, TransmitMetadata};
use nic_switch::{VPortPolicy, VlanMatch, VlanPolicy};
use shared_memory::{PageSize, SharedMapping};

use crate::{
    Frame, NotDelivered, Offloads, Port, PortPolicy, PortStatistics, Staging, VirtualSwitch,
    finish::finish,
};

/// A packet to be sent by a port of memory.
struct Packet {
    /// Each is a piece of memory of its own.
    pieces: Vec<Vec<u8>>,
    tci: Option<u16>,
    offloads: Offloads,
}

impl Packet {
    fn plain(bytes: &[u8]) -> Self {
        Self::asking(bytes, TransmitMetadata::default())
    }

    fn asking(bytes: &[u8], asked: TransmitMetadata) -> Self {
        Self { pieces: vec![bytes.to_vec()], tci: None, offloads: Offloads::Asked(asked) }
    }
}

/// A frame that arrived at a port of memory.
#[derive(Clone, PartialEq, Debug)]
struct Arrived {
    bytes: Vec<u8>,
    tci: Option<u16>,
    known: ReceiveMetadata,
}

#[derive(Default)]
struct Wire {
    to_send: VecDeque<Packet>,
    arrived: Vec<Arrived>,
    deaf: bool,
}

/// The end of a port that a test holds.
#[derive(Clone, Default)]
struct End(Arc<Mutex<Wire>>);

impl End {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }

    fn send(&self, packet: Packet) {
        self.wire().to_send.push_back(packet);
    }

    fn take(&self) -> Vec<Arrived> {
        std::mem::take(&mut self.wire().arrived)
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        self.take().into_iter().map(|frame| frame.bytes).collect()
    }
}

struct MemoryPort(End);

impl Port for MemoryPort {
    fn poll(&mut self, _now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool {
        let Some(packet) = self.0.wire().to_send.pop_front() else { return false };
        let (memory, _fd) = SharedMapping::create("packet", 1 << 20, PageSize::Base).unwrap();
        let mut at = 0;
        let mut pieces = Vec::new();
        for bytes in &packet.pieces {
            let piece = memory.slice(at, bytes.len()).unwrap();
            piece.write_from(bytes);
            pieces.push(piece);
            at += bytes.len() + 24;
        }
        let whole = packet.pieces.concat();
        let mut head = [[0; 8]; 2];
        let known = whole.len().min(16);
        head.as_flattened_mut()[..known].copy_from_slice(&whole[..known]);
        forward(&[Frame {
            head: head.map(u64::from_le_bytes),
            pieces: &pieces,
            length: whole.len(),
            tci: packet.tci,
            offloads: &packet.offloads,
        }]);
        true
    }

    fn deliver(&mut self, frame: &Frame<'_>, staging: &mut Staging) -> Result<(), NotDelivered> {
        let mut wire = self.0.wire();
        finish(frame, staging, |finished| {
            let mut bytes = Vec::new();
            for piece in finished.pieces {
                piece.for_each_chunk(|chunk| bytes.extend_from_slice(chunk));
            }
            let head: Vec<u8> = finished.head.iter().flat_map(|word| word.to_le_bytes()).collect();
            let known = bytes.len().min(16);
            bytes[..known].copy_from_slice(&head[..known]);
            wire.arrived.push(Arrived { bytes, tci: frame.tci, known: finished.known });
            Ok(())
        })
    }

    fn flush(&mut self) {}

    fn prepare_to_wait(&mut self) -> bool {
        self.0.wire().to_send.is_empty()
    }

    fn wait_on<'a>(&'a self, _fds: &mut Vec<BorrowedFd<'a>>) {}

    fn woken(&mut self) {}

    fn is_receiving(&self) -> bool {
        !self.0.wire().deaf
    }
}

fn id(number: u32) -> VPortId {
    VPortId::new(number).unwrap()
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, number]
}

fn policy(number: u8) -> PortPolicy {
    PortPolicy {
        mac: MacAddress::new(mac(number)),
        receives: VlanMatch::UntaggedOrZero,
        vport: VPortPolicy::default(),
    }
}

fn in_vlan(number: u8, vlan: u16) -> PortPolicy {
    PortPolicy {
        receives: VlanMatch::Id(vlan),
        vport: VPortPolicy { vlan: VlanPolicy::Access(vlan), ..VPortPolicy::default() },
        ..policy(number)
    }
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xB5], payload].concat()
}

/// A switch with ports of memory and an uplink of memory.
struct Bench {
    switch: VirtualSwitch,
    ends: Vec<End>,
    uplink: End,
}

impl Bench {
    /// Port 0 is the host's; the others have these policies.
    fn new(policies: impl IntoIterator<Item = PortPolicy>) -> Self {
        let mut switch = VirtualSwitch::new(16).unwrap();
        let uplink = End::default();
        assert!(switch.set_uplink(Some(Box::new(MemoryPort(uplink.clone())))).is_none());
        let mut ends = Vec::new();
        for (number, policy) in [policy(0)].into_iter().chain(policies).enumerate() {
            let end = End::default();
            let port = Box::new(MemoryPort(end.clone()));
            switch.connect(id(number as u32), policy, port).unwrap();
            ends.push(end);
        }
        // The switch sees that they receive.
        switch.poll(Instant::now());
        Self { switch, ends, uplink }
    }

    fn run(&mut self) {
        while self.switch.poll(Instant::now()) {}
    }

    fn send(&mut self, from: usize, packet: Packet) {
        self.ends[from].send(packet);
        self.run();
    }

    fn send_up(&mut self, bytes: &[u8], tci: Option<u16>) {
        let offloads = Offloads::Known(ReceiveMetadata::default());
        self.uplink.send(Packet { pieces: vec![bytes.to_vec()], tci, offloads });
        self.run();
    }

    fn statistics(&self, port: u32) -> PortStatistics {
        self.switch.statistics(id(port)).unwrap()
    }
}
