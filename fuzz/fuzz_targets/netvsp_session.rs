//! A guest's stream of packets into a synthetic adapter's server: before INIT and after, frames, control messages,
//! completions that nobody asked for, ranges that point anywhere, buffers and rings that change at any time.
#![no_main]

use std::time::{Duration, Instant};

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use netvsp::{
    ReceiveMetadata,
    server::{BufferKind, NetVsp, NicConfig, Upcall},
};
use netvsp_protocol::{
    MacAddress,
    nvsp::{
        ChannelType, ClientMessage, DataPath, NvspCapabilities, NvspVersion,
        SEND_BUFFER_SECTION_SIZE, SendRndisPacket,
    },
    oid::Oid,
    packet::{PacketLayout, PerPacketInfo},
    rndis::Request,
};
use shared_memory::{DmaMap, SharedMapping};
use vmbus::{Channel, EventFd, GuestBuffer, OutgoingGpaRange, OutgoingPacket, testing::TestMemory};
use vmbus_protocol::TransferPageRange;

const PAGE: usize = 4096;
/// Of each direction, control page included.
const RING_PAGES: usize = 5;
const CHANNELS: usize = 2;
const RECEIVE: u32 = 0xE1;
const SEND: u32 = 0xE2;
const PAGES: usize = 16 + 6 + CHANNELS * 2 * RING_PAGES + 2;

struct Memory {
    mapping: SharedMapping,
    map: DmaMap,
    receive: GuestBuffer,
    send: GuestBuffer,
    rings: Vec<GuestBuffer>,
    /// Two more pages: their frame numbers.
    pages: Vec<u64>,
    signals: [EventFd; 2],
}

impl Memory {
    fn new() -> Self {
        let mut memory = TestMemory::new(PAGES);
        let (receive, _) = memory.buffer(16 * PAGE as u32);
        let (send, _) = memory.buffer(6 * PAGE as u32);
        let rings =
            (0..CHANNELS).map(|_| memory.buffer((2 * RING_PAGES * PAGE) as u32).0).collect();
        let pages = memory.allocate(2);
        let signals = [EventFd::new(), EventFd::new()].map(|fd| fd.expect("an eventfd"));
        let (mapping, map) = (memory.mapping.clone(), memory.map.clone());
        Self { mapping, map, receive, send, rings, pages, signals }
    }

    fn clear(&self) {
        self.mapping.slice(0, PAGES * PAGE).expect("all of it").write_from(&[0; PAGES * PAGE]);
    }

    /// Host's and guest's end; `None` if the guest has left rings that are none.
    fn channel(&self, index: usize) -> Option<[Channel; 2]> {
        let [to_host, to_guest] = &self.signals;
        let rings = || self.rings[index].rings(RING_PAGES).expect("rings of five pages");
        let ((up, down), (host_up, host_down)) = (rings(), rings());
        let guest = Channel::new(down, up, to_host.clone(), to_guest.clone()).ok()?;
        let host = Channel::new(host_up, host_down, to_guest.clone(), to_host.clone()).ok()?;
        Some([host, guest])
    }
}

/// Numbers that are likely to mean something.
fn word(input: &mut Input<'_>) -> u32 {
    let known = [0, 1, 2, 44, 60, 0xE1, 0xE2, 0xCAFE, 0x0006_0001, 0x0005_0000, u32::MAX];
    match input.byte() {
        byte @ 0..=140 => byte.into(),
        byte => known
            .get(usize::from(byte - 141))
            .copied()
            .unwrap_or_else(|| if byte & 1 == 0 { input.word().into() } else { input.dword() }),
    }
}

fn payload(input: &mut Input<'_>) -> Vec<u8> {
    match input.byte() % 4 {
        0 | 1 => {
            let kind = if input.bit() { ChannelType::Control } else { ChannelType::Data };
            let section = (input.byte() < 180).then(|| (word(input), word(input)));
            SendRndisPacket { channel_type: kind, section }.emit().to_vec()
        }
        2 => (0..input.byte() % 12).flat_map(|_| word(input).to_le_bytes()).collect(),
        _ => input.short().to_vec(),
    }
}

/// An RNDIS message, most of them good.
fn rndis(input: &mut Input<'_>) -> Vec<u8> {
    let oids = [
        Oid::GEN_CURRENT_PACKET_FILTER,
        Oid::GEN_LINK_SPEED,
        Oid(0x0101_0103),
        Oid(0x0101_0203),
        Oid(0x0101_0204),
        Oid(0xFC01_020A),
        Oid(0xFC01_020C),
        Oid(0xFC01_020D),
        Oid(0x0001_021B),
        Oid(0x0001_0117),
    ];
    let request_id = input.byte().into();
    let oid = input.one_of(&oids).unwrap_or_else(|| Oid(input.dword()));
    match input.byte() % 8 {
        0 => Request::Initialize { request_id, major: 1, minor: 0, max_transfer: 0x4000 }.emit(),
        1 => Request::Set { request_id, oid, info: input.short() }.emit(),
        2 => Request::Query { request_id, oid, info: input.short() }.emit(),
        3 => match input.byte() % 3 {
            0 => Request::Halt { request_id }.emit(),
            1 => Request::Reset.emit(),
            _ => Request::KeepAlive { request_id }.emit(),
        },
        4..=6 => {
            // A frame, with what a guest may say of it.
            let mut info = PerPacketInfo::default();
            let which = input.byte();
            info.checksum = (which & 1 != 0).then(|| input.dword());
            info.large_send =
                (which & 2 != 0).then(|| netvsp_protocol::packet::LargeSend(input.dword()));
            info.vlan = (which & 4 != 0).then(|| netvsp_protocol::packet::VlanInfo(input.dword()));
            info.hash = (which & 8 != 0).then(|| input.dword());
            let frame = input.short();
            let layout = PacketLayout::packed(&info, frame.len() as u32);
            let mut bytes = vec![0; layout.data_offset as usize];
            layout.emit(&info, &mut bytes).expect("room for it");
            bytes.extend(frame);
            bytes
        }
        _ => (0..input.byte() % 40).flat_map(|_| word(input).to_le_bytes()).collect(),
    }
}

struct Session<'m> {
    memory: &'m Memory,
    server: NetVsp,
    guests: [Option<Channel>; CHANNELS],
    now: Instant,
}

impl Session<'_> {
    fn open(&mut self, index: usize) {
        if let Some([host, guest]) = self.memory.channel(index)
            && self.server.open(index as u16, host)
        {
            self.guests[index] = Some(guest);
        }
    }

    fn send(&mut self, index: usize, packet: OutgoingPacket<'_>, payload: &[u8]) {
        if let Some(guest) = &mut self.guests[index] {
            let _ = guest.send(packet, payload);
            let _ = guest.flush();
        }
    }

    fn message(&mut self, message: ClientMessage) {
        let packet = OutgoingPacket::InBand { transaction_id: 5, completion_requested: true };
        self.send(0, packet, &message.emit(NvspVersion::V61));
    }

    /// RNDIS through the send buffer, or from pages of the guest's.
    fn rndis(&mut self, index: usize, input: &mut Input<'_>, bytes: &[u8], kind: ChannelType) {
        let length = bytes.len() as u32;
        if input.bit() {
            let section = u32::from(input.byte() % 4);
            let _ = self.memory.send.write((section * SEND_BUFFER_SECTION_SIZE) as usize, bytes);
            let message = SendRndisPacket { channel_type: kind, section: Some((section, length)) };
            let packet = OutgoingPacket::InBand { transaction_id: 6, completion_requested: true };
            return self.send(index, packet, &message.emit());
        }
        let [first, second] = self.memory.pages[..] else { return };
        let start = first as usize * PAGE;
        let room = self.memory.mapping.slice(start, 2 * PAGE).expect("two pages");
        let at = input.below(PAGE);
        if at + bytes.len() > 2 * PAGE {
            return;
        }
        room.get(at, bytes.len()).expect("room").write_from(bytes);
        // In one piece, or in two.
        let cut = input.below(bytes.len().max(1)) as u32;
        let pieces = [(at as u32, cut), (at as u32 + cut, length - cut)];
        let frames = [first, second, first];
        let ranges: Vec<_> = pieces
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(at, byte_count)| {
                let page = *at as usize / PAGE;
                let byte_offset = at % PAGE as u32;
                let pages = (byte_offset + byte_count).div_ceil(PAGE as u32) as usize;
                let page_frames = &frames[page..page + pages];
                OutgoingGpaRange { byte_count: *byte_count, byte_offset, page_frames }
            })
            .collect();
        let packet = OutgoingPacket::GpaDirect { transaction_id: 78, ranges: &ranges };
        let message = SendRndisPacket { channel_type: kind, section: None };
        self.send(index, packet, &message.emit());
    }

    /// A step by which a guest comes up.
    fn proper(&mut self, step: u8) {
        let message = match step % 8 {
            0 => ClientMessage::Init { version: NvspVersion::V61.to_wire() },
            1 => ClientMessage::SendNdisConfig { mtu: 1514, capabilities: NvspCapabilities::SRIOV },
            2 => ClientMessage::SendNdisVersion { major: 6, minor: 30 },
            3 => ClientMessage::SendReceiveBuffer { gpadl: RECEIVE, id: 0xCAFE },
            4 => ClientMessage::SendSendBuffer { gpadl: SEND, id: 0 },
            5 => ClientMessage::Subchannel { operation: 1, count: 1 },
            step => {
                let bytes = if step == 6 {
                    Request::Initialize { request_id: 1, major: 1, minor: 0, max_transfer: 1 }
                        .emit()
                } else {
                    let oid = Oid::GEN_CURRENT_PACKET_FILTER;
                    Request::Set { request_id: 1, oid, info: &[0xFF; 4] }.emit()
                };
                let mut inline = Input::new(&[1]);
                return self.rndis(0, &mut inline, &bytes, ChannelType::Control);
            }
        };
        self.message(message);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let index = usize::from(input.byte() & 15 == 0);
        match input.byte() % 16 {
            0 | 1 => self.proper(input.byte()),
            2 | 3 => {
                let bytes = payload(input);
                let completion_requested = input.bit();
                let packet = OutgoingPacket::InBand { transaction_id: 77, completion_requested };
                self.send(index, packet, &bytes);
            }
            4 => {
                // To a frame that was delivered, to another message of the server's, or to nothing.
                let ids = [0, 1, 2, 1 << 32, 1 << 63, (1 << 63) + 1];
                let transaction_id = input.one_of(&ids).unwrap_or_else(|| input.qword());
                self.send(index, OutgoingPacket::Completion { transaction_id }, &payload(input));
            }
            5 => {
                let count = input.below(9000) as u32;
                let byte_offset = u32::from(input.word() & 0xFFF);
                let frame = if input.bit() { input.qword() } else { input.byte().into() };
                let pages = u64::from((count + byte_offset).div_ceil(PAGE as u32));
                let frames: Vec<_> = (0..pages).map(|page| frame.wrapping_add(page)).collect();
                let range =
                    OutgoingGpaRange { byte_count: count, byte_offset, page_frames: &frames };
                let packet =
                    OutgoingPacket::GpaDirect { transaction_id: 78, ranges: &[range, range] };
                self.send(index, packet, &payload(input));
            }
            6 => {
                let range = TransferPageRange { byte_count: word(input), byte_offset: word(input) };
                let page_set_id = if input.bit() { 0xCAFE } else { input.word() };
                let packet = OutgoingPacket::TransferPages {
                    transaction_id: 79,
                    page_set_id,
                    ranges: &[range],
                };
                self.send(index, packet, &payload(input));
            }
            7..=9 => {
                let bytes = rndis(input);
                let kind =
                    if input.byte() < 128 { ChannelType::Data } else { ChannelType::Control };
                self.rndis(index, input, &bytes, kind);
            }
            10 => {
                let bytes = input.short();
                let at = input.below(6 * PAGE - 255);
                self.memory.send.write(at, bytes).expect("inside");
                self.memory.receive.write(at, bytes).expect("inside");
            }
            11 => {
                let bytes = input.take(8);
                let at = input.below(2 * RING_PAGES * PAGE - 8) & !3;
                self.memory.rings[index].write(at, bytes).expect("inside");
            }
            12 => {
                self.server.close(index as u16);
                self.guests[index] = None;
                self.open(index);
            }
            13 => match input.byte() % 6 {
                0 => self.server.vf_available(1, self.now),
                1 => self.server.vf_lost(self.now),
                2 => self.server.set_link(input.bit(), 1_000_000),
                3 => {
                    self.now += Duration::from_secs(input.byte().into());
                    self.server.tick(self.now);
                }
                4 => self.message(ClientMessage::SwitchDataPath { path: DataPath::Vf }),
                _ => self.message(ClientMessage::SwitchDataPath { path: DataPath::Synthetic }),
            },
            14 => {
                let length = 14 + input.below(1600);
                let slice = self.memory.mapping.slice(0, length).expect("inside");
                let head = [[0xFF; 8], [0; 8]].map(u64::from_le_bytes);
                let metadata = ReceiveMetadata::default();
                let _ = self.server.deliver(index as u16, head, &[slice], &metadata);
                self.server.announce(index as u16);
            }
            _ => self.listen(index, input.bit()),
        }
    }

    /// The guest reads what it is told, and perhaps completes it.
    fn listen(&mut self, index: usize, completes: bool) {
        let Some(guest) = &mut self.guests[index] else { return };
        let mut answers = Vec::new();
        while let Ok(Some(packet)) = guest.receive() {
            if packet.completion_requested && completes {
                answers.push(packet.transaction_id);
            }
        }
        for transaction_id in answers {
            let packet = OutgoingPacket::Completion { transaction_id };
            let _ = guest.send(packet, &[108, 0, 0, 0, 1, 0, 0, 0]);
        }
        let _ = guest.flush();
    }

    fn serve(&mut self, moves: bool) {
        for index in 0..CHANNELS as u16 {
            self.server.poll(index, self.now, |burst| {
                for frame in burst.frames() {
                    assert!(frame.length >= 14 && !frame.pieces.is_empty());
                    let sum: usize = frame.pieces.iter().map(|piece| piece.len()).sum();
                    assert_eq!(sum, frame.length as usize);
                }
            });
        }
        while let Some(upcall) = self.server.next_upcall() {
            match upcall {
                Upcall::MapGpadl { gpadl, kind } => {
                    let buffer = match gpadl {
                        RECEIVE => Some(self.memory.receive.clone()),
                        SEND => Some(self.memory.send.clone()),
                        _ => None,
                    };
                    self.server.gpadl_mapped(kind, buffer);
                }
                Upcall::SwitchDataPath(_) => self.server.data_path_switched(moves, self.now),
                Upcall::OfferSubchannels { count } => {
                    assert!(usize::from(count) < CHANNELS);
                    self.open(1);
                }
                _ => {}
            }
        }
        for index in 0..CHANNELS as u16 {
            let _ = self.server.prepare_to_wait(index);
            self.server.woken(index);
        }
        let waiting = self.server.control().waiting_count();
        assert!(waiting < 80, "{waiting} messages wait for a guest that does not read");
    }
}

thread_local! {
    static MEMORY: Memory = Memory::new();
    static START: Instant = Instant::now();
}

fuzz_target!(|data: &[u8]| MEMORY.with(|memory| session(Input::new(data), memory)));

fn session(mut input: Input<'_>, memory: &Memory) {
    memory.clear();
    let mac = MacAddress::new([2, 0x15, 0x5d, 0, 0, 1]);
    let nic = NicConfig { max_channels: CHANNELS as u16, ..NicConfig::new(mac) };
    let server = NetVsp::new(nic, memory.map.clone());
    let now = START.with(|start| *start);
    let mut session = Session { memory, server, guests: [None, None], now };
    session.open(0);
    for step in 0..input.byte() % 10 {
        session.proper(step);
        session.serve(true);
    }
    while !input.is_empty() {
        session.step(&mut input);
        session.serve(input.byte() & 7 != 0);
    }
    // The next guest is served.
    for index in 0..CHANNELS {
        session.server.close(index as u16);
        session.guests[index] = None;
    }
    while let Some(upcall) = session.server.next_upcall() {
        if let Upcall::MapGpadl { .. } = upcall {
            session.server.gpadl_mapped(BufferKind::Receive, None);
        }
    }
    memory.clear();
    session.open(0);
    session.proper(0);
    session.serve(true);
    let guest = session.guests[0].as_mut().expect("a channel that opens again");
    let answer = guest.receive().expect("a fresh ring").map(|packet| packet.transaction_id);
    assert_eq!(answer, Some(5));
}
