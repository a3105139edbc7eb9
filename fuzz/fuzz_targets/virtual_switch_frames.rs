//! Frames of hostile VMs and of a wire into a virtual switch: any bytes in any pieces, tags inside and beside them,
//! offloads that make no sense, heads that change after they were checked. What arrives is what may arrive.
#![no_main]

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use ndis_protocol::{MacAddress, VPortId};
use netvsp::{ChecksumRequest, ReceiveMetadata, Segmentation, TransmitMetadata};
use nic_switch::{VPortPolicy, VlanMatch, VlanPolicy};
use offload::{HeaderLayout, L3Protocol, L4Protocol};
use shared_memory::{PageSize, SharedMapping};
use virtual_switch::{Frame, NotDelivered, Offloads, Port, PortPolicy, Staging, VirtualSwitch};

const MEMORY: usize = 0x1_0000;
const PORTS: usize = 5;

/// What a port sends: bytes at places of its memory, and what it says of them.
struct Packet {
    pieces: Vec<(usize, usize)>,
    head: [u64; 2],
    tci: Option<u16>,
    offloads: Offloads,
}

#[derive(Clone)]
struct Arrived {
    from: [u8; 6],
    to: [u8; 6],
    tci: Option<u16>,
}

#[derive(Default)]
struct Wire {
    to_send: VecDeque<Packet>,
    arrived: Vec<Arrived>,
    deaf: bool,
    full: bool,
}

#[derive(Clone)]
struct End {
    wire: Arc<Mutex<Wire>>,
    memory: SharedMapping,
}

impl End {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().expect("one thread")
    }
}

impl Port for End {
    fn poll(&mut self, _now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool {
        let Some(packet) = self.wire().to_send.pop_front() else { return false };
        let pieces: Vec<_> = packet
            .pieces
            .iter()
            .map(|(at, length)| self.memory.slice(*at, *length).expect("inside memory"))
            .collect();
        forward(&[Frame {
            head: packet.head,
            pieces: &pieces,
            length: pieces.iter().map(|piece| piece.len()).sum(),
            tci: packet.tci,
            offloads: &packet.offloads,
        }]);
        true
    }

    fn deliver(&mut self, frame: &Frame<'_>, _staging: &mut Staging) -> Result<(), NotDelivered> {
        let mut wire = self.wire();
        if wire.full {
            return Err(NotDelivered::NoBuffer);
        }
        let sum: usize = frame.pieces.iter().map(|piece| piece.len()).sum();
        assert_eq!(sum, frame.length);
        assert!(frame.length >= 14);
        let bytes: Vec<u8> = frame.head.iter().flat_map(|word| word.to_le_bytes()).collect();
        let address = |at: usize| bytes[at..at + 6].try_into().expect("six bytes");
        wire.arrived.push(Arrived { to: address(0), from: address(6), tci: frame.tci });
        Ok(())
    }

    fn flush(&mut self) {}

    fn prepare_to_wait(&mut self) -> bool {
        self.wire().to_send.is_empty()
    }

    fn wait_on<'a>(&'a self, _fds: &mut Vec<BorrowedFd<'a>>) {}

    fn woken(&mut self) {}

    fn is_receiving(&self) -> bool {
        !self.wire().deaf
    }
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, number]
}

fn policy(number: usize) -> PortPolicy {
    let (receives, vlan) = match number {
        3 => (VlanMatch::Id(7), VlanPolicy::Access(7)),
        _ => (VlanMatch::UntaggedOrZero, VlanPolicy::Transparent),
    };
    let vport = VPortPolicy { vlan, allow_spoofing: number == 2, ..VPortPolicy::default() };
    PortPolicy { mac: MacAddress::new(mac(number as u8)), receives, vport }
}

fn layout(input: &mut Input<'_>) -> HeaderLayout {
    let mut length = |usual: u16| match input.byte() {
        0..=140 => usual,
        byte if byte & 1 == 0 => byte.into(),
        _ => input.word(),
    };
    HeaderLayout { mac_len: length(14), ip_len: length(20), l4_len: length(20) }
}

fn offloads(input: &mut Input<'_>) -> Offloads {
    let which = input.byte();
    if which & 0xC0 == 0xC0 {
        return Offloads::Known(ReceiveMetadata::default());
    }
    let l3 = if which & 1 == 0 { L3Protocol::Ipv4 } else { L3Protocol::Ipv6 };
    let l4 = match which >> 1 & 3 {
        0 => None,
        1 => Some(L4Protocol::Udp),
        _ => Some(L4Protocol::Tcp),
    };
    let mut asked = TransmitMetadata::default();
    if which & 8 != 0 {
        let ip_header = which & 16 != 0;
        asked.checksum = Some(ChecksumRequest { l3, ip_header, l4, layout: layout(input) });
    }
    if which & 32 != 0 {
        let mss = if input.bit() { 1460 } else { input.word() };
        asked.segmentation = Some(Segmentation { mss, l3, layout: layout(input) });
    }
    Offloads::Asked(asked)
}

/// Puts a packet into memory at `at`.
fn packet(input: &mut Input<'_>, memory: &SharedMapping) -> Packet {
    let (to, from) = (input.byte(), input.byte());
    let address = |which: u8| match which {
        0..=200 => mac(which % 6),
        201..=230 => [0xFF; 6],
        _ => [1, 0, 0x5E, 0, 0, which],
    };
    let tagged = input.byte() < 60;
    let kind = [[8, 0], [0x86, 0xDD], [0x88, 0xB5], [0x81, 0]][usize::from(input.byte() & 3)];
    let mut bytes = [&address(to)[..], &address(from)].concat();
    if tagged {
        bytes.extend([0x81, 0, input.byte(), input.byte()]);
    }
    bytes.extend(kind);
    if kind == [8, 0] && input.bit() {
        bytes.extend([0x45, 0, 0, 200, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    }
    bytes.extend(input.short());
    let more = input.word();
    if more & 3 == 0 {
        bytes.resize(bytes.len() + usize::from(more >> 2), 0x77);
    }
    if input.byte() > 240 {
        bytes.truncate(input.below(20));
    }
    let mut head = [[0; 8]; 2];
    let known = bytes.len().min(16);
    head.as_flattened_mut()[..known].copy_from_slice(&bytes[..known]);
    // The sender changes what was checked.
    if input.byte() > 200 {
        let at = input.below(bytes.len().max(1));
        bytes.truncate(MEMORY / 2);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0xFF;
        }
    }
    let (mut at, mut done, mut pieces) = (0, 0, Vec::new());
    for _ in 0..input.byte() % 6 {
        let length = input.below(100).min(bytes.len() - done);
        pieces.push((at, length));
        done += length;
        at += length + 8;
    }
    pieces.push((at, bytes.len() - done));
    let mut from = 0;
    for (at, length) in &pieces {
        let slice = memory.slice(*at, *length).expect("inside memory");
        slice.write_from(&bytes[from..from + length]);
        from += length;
    }
    let tci = (input.byte() < 60).then(|| input.word());
    Packet { pieces, head: head.map(u64::from_le_bytes), tci, offloads: offloads(input) }
}

thread_local! {
    static MEMORIES: Vec<SharedMapping> = (0..=PORTS)
        .map(|_| SharedMapping::create("port", MEMORY, PageSize::Base).expect("memory").0)
        .collect();
}

fuzz_target!(|data: &[u8]| MEMORIES.with(|memories| session(Input::new(data), memories)));

fn session(mut input: Input<'_>, memories: &[SharedMapping]) {
    let now = Instant::now();
    let mut switch = VirtualSwitch::new(PORTS).expect("memory");
    let end = |number: usize| End { wire: Arc::default(), memory: memories[number].clone() };
    let ends: Vec<End> = (0..=PORTS).map(end).collect();
    let id = |number: usize| VPortId::new(number as u32).expect("a small number");
    // The last is the uplink.
    switch.set_uplink(Some(Box::new(ends[PORTS].clone())));
    for number in 0..PORTS {
        let port = Box::new(ends[number].clone());
        switch.connect(id(number), policy(number), port).expect("room");
    }
    switch.poll(now);
    while !input.is_empty() {
        let from = usize::from(input.byte()) % (PORTS + 1);
        match input.byte() % 16 {
            0 => {
                let mut wire = ends[from].wire();
                wire.deaf = input.bit();
                wire.full = input.bit();
            }
            1 if (1..PORTS).contains(&from) => {
                if switch.disconnect(id(from)).is_none() {
                    let port = Box::new(ends[from].clone());
                    switch.connect(id(from), policy(from), port).expect("it was free");
                }
            }
            _ => {
                let packet = packet(&mut input, &memories[from]);
                ends[from].wire().to_send.push_back(packet);
            }
        }
        while switch.poll(now) {}
        for (number, end) in ends.iter().enumerate() {
            for arrived in std::mem::take(&mut end.wire().arrived) {
                assert_ne!(number, from, "nothing goes back where it came from");
                // Only ports of virtual machines are held to their address, and one of them is not.
                if (1..PORTS).contains(&from) && from != 2 {
                    assert_eq!(arrived.from, mac(from as u8), "a foreign source address");
                }
                let id = arrived.tci.map_or(0, |tci| tci & 0xFFF);
                match number {
                    PORTS => {}
                    3 => assert_eq!(id, 0, "an access port sees no tag"),
                    _ => {}
                }
                if number < PORTS && arrived.to[0] & 1 == 0 && number != 0 {
                    assert_eq!(arrived.to, mac(number as u8), "a frame for another");
                }
                if from == 3 && number < PORTS {
                    assert!(number == 0 || id == 7, "a frame left its VLAN");
                }
            }
        }
    }
}
