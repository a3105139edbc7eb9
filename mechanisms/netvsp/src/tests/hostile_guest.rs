//! A guest that breaks the rules, on a ring of its own making (SPEC-VMBUS §8.2).

use netvsp_protocol::{
    nvsp::{ChannelType, ClientMessage, DataPath, NvspVersion, SendRndisPacket},
    oid::{Oid, PacketFilter},
    packet::{PacketLayout, PerPacketInfo},
    rndis::{Reply, Request},
    rss::{HashInfo, RssParameters},
};
use vmbus::{Channel, OutgoingGpaRange, OutgoingPacket, PacketKind};

use super::*;
use crate::{ProtocolError, server::Upcall};

/// A server, and the guest's end of its primary channel in the test's hand.
struct Hostile {
    server: NetVsp,
    guest: Channel,
    receive: GuestBuffer,
    send: GuestBuffer,
    page: Vec<u64>,
    forwarded: Vec<Vec<u8>>,
    upcalls: Vec<Upcall>,
    /// Completions: transaction and payload.
    completed: Vec<(u64, Vec<u8>)>,
    /// RNDIS control messages.
    control: Vec<Vec<u8>>,
    memory: TestMemory,
}

impl Hostile {
    fn new() -> Self {
        let mut memory = TestMemory::new(400);
        let (receive, _) = memory.buffer(64 * 4096);
        let (send, _) = memory.buffer(12 * 4096);
        let page = memory.allocate(2);
        let pair = channel_in(&mut memory, 9).unwrap();
        let nic = NicConfig { max_channels: 4, ..NicConfig::new(MAC) };
        let mut server = NetVsp::new(nic, memory.map.clone());
        assert!(server.open(0, pair.host));
        Self {
            server,
            guest: pair.guest,
            receive,
            send,
            page,
            forwarded: Vec::new(),
            upcalls: Vec::new(),
            completed: Vec::new(),
            control: Vec::new(),
            memory,
        }
    }

    fn run(&mut self) {
        for _ in 0..4 {
            let _ = self.guest.flush();
            let forwarded = &mut self.forwarded;
            self.server.poll(0, Instant::now(), |burst| {
                for frame in burst.frames() {
                    let mut bytes = vec![0; frame.length as usize];
                    frame.read_into(&mut bytes);
                    forwarded.push(bytes);
                }
            });
            while let Some(upcall) = self.server.next_upcall() {
                if let Upcall::MapGpadl { gpadl, kind } = upcall {
                    let buffer = match gpadl {
                        RECEIVE => Some(self.receive.clone()),
                        SEND => Some(self.send.clone()),
                        _ => None,
                    };
                    self.server.gpadl_mapped(kind, buffer);
                }
                self.upcalls.push(upcall);
            }
            while let Some(packet) = self.guest.receive().unwrap() {
                let mut payload = vec![0; packet.payload.len()];
                packet.payload.read_into(&mut payload);
                match packet.kind {
                    PacketKind::Completion => {
                        self.completed.push((packet.transaction_id, payload));
                    }
                    PacketKind::TransferPages { mut ranges, .. } if payload[4] == 1 => {
                        let range = ranges.next().unwrap();
                        let mut bytes = vec![0; range.byte_count as usize];
                        self.receive.read(range.byte_offset as usize, &mut bytes).unwrap();
                        self.control.push(bytes);
                    }
                    _ => {}
                }
            }
        }
    }

    fn write(&mut self, packet: OutgoingPacket<'_>, payload: &[u8]) {
        self.guest.send(packet, payload).unwrap();
        self.run();
    }

    fn message(&mut self, transaction_id: u64, payload: &[u8]) {
        self.write(OutgoingPacket::InBand { transaction_id, completion_requested: true }, payload);
    }

    fn say(&mut self, transaction_id: u64, message: ClientMessage) {
        self.message(transaction_id, &message.emit(NvspVersion::V61));
    }

    fn init(&mut self) {
        self.say(1, ClientMessage::Init { version: NvspVersion::V61.to_wire() });
        let capabilities = netvsp_protocol::nvsp::NvspCapabilities::SRIOV;
        self.say(2, ClientMessage::SendNdisConfig { mtu: 1514, capabilities });
        self.say(3, ClientMessage::SendNdisVersion { major: 6, minor: 30 });
    }

    fn buffers(&mut self) {
        self.init();
        self.say(4, ClientMessage::SendReceiveBuffer { gpadl: RECEIVE, id: 0xCAFE });
        self.say(5, ClientMessage::SendSendBuffer { gpadl: SEND, id: 0 });
    }

    fn section(&mut self, transaction: u64, channel_type: ChannelType, bytes: &[u8]) {
        self.send.write(0, bytes).unwrap();
        let section = Some((0, bytes.len() as u32));
        self.message(transaction, &SendRndisPacket { channel_type, section }.emit());
    }

    fn rndis(&mut self, request: Request<'_>) {
        self.section(6, ChannelType::Control, &request.emit());
    }

    fn up() -> Self {
        let mut hostile = Self::new();
        hostile.buffers();
        let max_transfer = 0x4000;
        hostile.rndis(Request::Initialize { request_id: 1, major: 1, minor: 0, max_transfer });
        let filter = PacketFilter::DIRECTED.bits().to_le_bytes();
        let oid = Oid::GEN_CURRENT_PACKET_FILTER;
        hostile.rndis(Request::Set { request_id: 2, oid, info: &filter });
        assert!(hostile.server.control().is_up());
        assert_eq!(hostile.dead(), None);
        hostile.completed.clear();
        hostile
    }

    fn dead(&self) -> Option<ProtocolError> {
        self.upcalls.iter().find_map(|upcall| match upcall {
            Upcall::Dead { error, .. } => Some(*error),
            _ => None,
        })
    }

    /// The status of the only completion since the last time, which must be of a frame.
    fn status(&mut self) -> u32 {
        let completed = std::mem::take(&mut self.completed);
        let [(_, payload)] = &completed[..] else { panic!("{completed:?}") };
        assert_eq!(payload[..4], [108, 0, 0, 0]);
        assert_eq!(payload.len(), 40);
        u32::from(payload[4])
    }
}

fn message(info: &PerPacketInfo, frame: &[u8]) -> Vec<u8> {
    let layout = PacketLayout::packed(info, frame.len() as u32);
    let mut bytes = vec![0; layout.message_length as usize];
    let at = layout.data_offset as usize;
    layout.emit(info, &mut bytes).unwrap();
    bytes[at..].copy_from_slice(frame);
    bytes
}

fn good() -> Vec<u8> {
    message(&PerPacketInfo { checksum: Some(0), ..PerPacketInfo::default() }, &frame(1, 60))
}

#[test]
fn anything_before_init_ends_the_channel_and_nothing_else() {
    let data = SendRndisPacket { channel_type: ChannelType::Data, section: None }.emit();
    let control = SendRndisPacket { channel_type: ChannelType::Control, section: None }.emit();
    let path = ClientMessage::SwitchDataPath { path: DataPath::Vf }.emit(NvspVersion::V61);
    let gpadl = ClientMessage::SendReceiveBuffer { gpadl: RECEIVE, id: 0 }.emit(NvspVersion::V61);
    let many = ClientMessage::Subchannel { operation: 1, count: u32::MAX }.emit(NvspVersion::V61);
    for payload in [&data[..], &control, &path, &gpadl, &many, &[2, 0, 0, 0, 0, 0, 0, 0], &[]] {
        let mut hostile = Hostile::new();
        hostile.message(9, payload);
        assert!(hostile.dead().is_some(), "{payload:?}");
        assert_eq!(hostile.completed, []);
        hostile.init();
        assert_eq!(hostile.completed, [], "it is served no more");
        hostile.server.close(0);
        let pair = channel_in(&mut hostile.memory, 9).unwrap();
        assert!(hostile.server.open(0, pair.host));
        hostile.guest = pair.guest;
        hostile.upcalls.clear();
        hostile.init();
        assert_eq!(hostile.dead(), None, "and again after it was closed");
        assert_eq!(hostile.completed.len(), 3);
    }
}

#[test]
fn a_completion_that_nobody_asked_for_is_counted_and_ignored() {
    let mut hostile = Hostile::new();
    for transaction_id in [0, 1, 1 << 32, 1 << 63, u64::MAX] {
        hostile.write(OutgoingPacket::Completion { transaction_id }, &[]);
        hostile.write(OutgoingPacket::Completion { transaction_id }, &[108, 0, 0, 0, 1, 0, 0, 0]);
    }
    assert_eq!(hostile.dead(), None);
    // The one of the host's own messages is never unasked for.
    assert_eq!(hostile.server.statistics(0).unwrap().unasked_completions, 8);
    hostile.init();
    assert_eq!(hostile.completed.len(), 3);
}

#[test]
fn messages_twice_or_out_of_order_end_the_channel() {
    use ClientMessage as M;
    let config = M::SendNdisConfig {
        mtu: 1514,
        capabilities: netvsp_protocol::nvsp::NvspCapabilities::empty(),
    };
    let before: [M; 4] = [
        M::SendSendBuffer { gpadl: SEND, id: 0 },
        M::RevokeReceiveBuffer { id: 0 },
        M::RevokeSendBuffer { id: 0 },
        config,
    ];
    for message in before {
        let mut hostile = Hostile::new();
        hostile.init();
        hostile.say(9, message);
        assert!(hostile.dead().is_some(), "{message:?}");
    }
    let after: [M; 6] = [
        M::Init { version: 2 },
        config,
        M::SendNdisVersion { major: 6, minor: 1 },
        M::SendReceiveBuffer { gpadl: RECEIVE, id: 0 },
        M::SendSendBuffer { gpadl: SEND, id: 0 },
        M::SendRndisPacketComplete { status: netvsp_protocol::nvsp::NvspStatus::SUCCESS },
    ];
    for message in after {
        let mut hostile = Hostile::up();
        hostile.say(9, message);
        assert!(hostile.dead().is_some(), "{message:?}");
    }
}

#[test]
fn what_only_a_server_may_send_ends_the_channel() {
    for kind in [2u8, 102, 105, 128, 132, 134] {
        let mut hostile = Hostile::up();
        let mut payload = [0; 40];
        payload[0] = kind;
        hostile.message(9, &payload);
        assert!(matches!(hostile.dead(), Some(ProtocolError::Nvsp(_))), "{kind}");
    }
    let mut hostile = Hostile::up();
    let ranges = [vmbus_protocol::TransferPageRange { byte_count: 100, byte_offset: 0 }];
    let packet =
        OutgoingPacket::TransferPages { transaction_id: 1, page_set_id: 0, ranges: &ranges };
    hostile.write(packet, &[107; 16]);
    assert_eq!(hostile.dead(), Some(ProtocolError::PacketKind));
}

#[test]
fn a_message_of_a_newer_version_ends_the_channel() {
    let mut hostile = Hostile::new();
    hostile.say(1, ClientMessage::Init { version: NvspVersion::V2.to_wire() });
    hostile.say(2, ClientMessage::Subchannel { operation: 1, count: 1 });
    assert!(matches!(hostile.dead(), Some(ProtocolError::NotInVersion { .. })));
}

#[test]
fn subchannel_requests_that_make_no_sense_are_refused() {
    let mut hostile = Hostile::up();
    for (operation, count) in
        [(1, 0), (1, 4), (1, 65_536), (1, 65_537), (1, u32::MAX), (0, 1), (2, 1)]
    {
        hostile.say(9, ClientMessage::Subchannel { operation, count });
        let (_, payload) = hostile.completed.pop().unwrap();
        assert_eq!(payload[..12], [133, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], "{operation} {count}");
    }
    hostile.say(9, ClientMessage::Subchannel { operation: 1, count: 3 });
    assert_eq!(hostile.completed.pop().unwrap().1[..12], [133, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
    hostile.say(9, ClientMessage::Subchannel { operation: 1, count: 3 });
    assert_eq!(hostile.completed.pop().unwrap().1[4], 2, "a second time");
    assert_eq!(hostile.dead(), None);
}

#[test]
fn frames_before_rndis_is_up_end_the_channel_and_those_after_halt_are_refused() {
    let mut hostile = Hostile::new();
    hostile.buffers();
    hostile.section(9, ChannelType::Data, &good());
    assert!(matches!(hostile.dead(), Some(ProtocolError::OutOfOrder { .. })));

    let mut hostile = Hostile::up();
    hostile.rndis(Request::Halt { request_id: 3 });
    hostile.completed.clear();
    hostile.section(9, ChannelType::Data, &good());
    assert_eq!(hostile.status(), 2);
    assert_eq!((hostile.dead(), hostile.forwarded.len()), (None, 0));
}

#[test]
fn malformed_frames_cost_themselves_only() {
    let change = |at: usize, value: u32| {
        let mut bytes = good();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let bad = [
        change(0, 2),
        change(4, 0),
        change(4, 43),
        change(4, 121),
        change(4, u32::MAX),
        change(8, u32::MAX),
        change(12, u32::MAX),
        change(12, 13),
        change(20, 1),
        change(28, 200),
        change(32, u32::MAX),
        change(36, 1),
        change(44, 0),
        change(44, 15),
        change(44, 17),
        change(52, 0),
        change(52, 40),
        [good(), vec![0; 8]].concat(),
        good().repeat(9),
        message(&PerPacketInfo::default(), &frame(1, 1515)),
        good()[..43].to_vec(),
        good()[..50].to_vec(),
    ];
    let mut hostile = Hostile::up();
    for (index, bytes) in bad.iter().enumerate() {
        hostile.section(9, ChannelType::Data, bytes);
        assert_eq!(hostile.status(), 5, "{index}");
        assert_eq!(hostile.server.statistics(0).unwrap().malformed, index as u64 + 1);
    }
    assert_eq!((hostile.dead(), hostile.forwarded.len()), (None, 0));
    hostile.section(9, ChannelType::Data, &good());
    assert_eq!((hostile.status(), hostile.forwarded.len()), (1, 1));
    hostile.section(9, ChannelType::Data, &good().repeat(8));
    assert_eq!((hostile.status(), hostile.forwarded.len()), (1, 9));
}

#[test]
fn sections_and_pages_that_are_not_there_are_refused() {
    let mut hostile = Hostile::up();
    for section in [(8, 60), (7, 6145), (u32::MAX - 1, 60), (0, u32::MAX), (0, 0)] {
        let packet = SendRndisPacket { channel_type: ChannelType::Data, section: Some(section) };
        hostile.message(9, &packet.emit());
        let expected = if section == (0, 0) { 1 } else { 5 };
        assert_eq!(hostile.status(), expected, "{section:?}");
    }
    let none = SendRndisPacket { channel_type: ChannelType::Data, section: None }.emit();
    for frame in [400, 1 << 40, u64::MAX / 4096, u64::MAX] {
        let range = OutgoingGpaRange { byte_count: 100, byte_offset: 0, page_frames: &[frame] };
        hostile.write(OutgoingPacket::GpaDirect { transaction_id: 9, ranges: &[range] }, &none);
        assert_eq!(hostile.status(), 5, "page {frame:#x}");
    }
    // More pieces than any packet has.
    let page = hostile.page.clone();
    let ranges: Vec<_> = (0..200)
        .map(|_| OutgoingGpaRange { byte_count: 8, byte_offset: 0, page_frames: &page[..1] })
        .collect();
    hostile.write(OutgoingPacket::GpaDirect { transaction_id: 9, ranges: &ranges }, &none);
    assert_eq!(hostile.status(), 5);
    assert_eq!((hostile.dead(), hostile.forwarded.len()), (None, 0));
}

#[test]
fn a_header_split_over_pieces_is_refused_and_a_split_frame_is_not() {
    let mut hostile = Hostile::up();
    let bytes = good();
    let page = hostile.page.clone();
    let memory = hostile.memory.mapping.clone();
    let none = SendRndisPacket { channel_type: ChannelType::Data, section: None }.emit();
    for (at, expected) in [(8, 5), (43, 5), (59, 5), (60, 1), (61, 1), (75, 1), (119, 1)] {
        // The first piece at the end of one page, the second in the middle of the other.
        let start = page[0] as usize * 4096 + 4096 - at;
        memory.slice(start, at).unwrap().write_from(&bytes[..at]);
        let second = page[1] as usize * 4096 + 512;
        memory.slice(second, bytes.len() - at).unwrap().write_from(&bytes[at..]);
        let ranges = [
            OutgoingGpaRange {
                byte_count: at as u32,
                byte_offset: 4096 - at as u32,
                page_frames: &page[..1],
            },
            OutgoingGpaRange {
                byte_count: (bytes.len() - at) as u32,
                byte_offset: 512,
                page_frames: &page[1..],
            },
        ];
        hostile.write(OutgoingPacket::GpaDirect { transaction_id: 9, ranges: &ranges }, &none);
        assert_eq!(hostile.status(), expected, "cut at {at}");
    }
    assert_eq!(hostile.forwarded, vec![frame(1, 60); 4]);
}

#[test]
fn a_control_message_that_is_too_long_ends_the_channel_and_one_that_is_malformed_does_not() {
    let mut hostile = Hostile::up();
    hostile.section(9, ChannelType::Control, &[4, 0, 0, 0, 200, 0, 0, 0]);
    assert_eq!(hostile.completed.pop().unwrap().1[4], 5);
    assert_eq!(hostile.dead(), None);
    let ranges: Vec<_> = (0..3)
        .map(|_| OutgoingGpaRange { byte_count: 4096, byte_offset: 0, page_frames: &[0] })
        .collect();
    let control = SendRndisPacket { channel_type: ChannelType::Control, section: None }.emit();
    hostile.write(OutgoingPacket::GpaDirect { transaction_id: 9, ranges: &ranges }, &control);
    assert!(matches!(hostile.dead(), Some(ProtocolError::ControlTooLong { .. })));
}

#[test]
fn an_indirection_table_names_channels_that_exist() {
    let mut hostile = Hostile::up();
    let mut ask = |table: Vec<u32>| {
        let hash = HashInfo::TOEPLITZ | HashInfo::IPV4;
        let info = RssParameters { disable: false, hash, table, key: [7; 40] }.emit();
        let oid = Oid::GEN_RECEIVE_SCALE_PARAMETERS;
        hostile.rndis(Request::Set { request_id: 5, oid, info: &info });
        let bytes = hostile.control.pop().unwrap();
        let Ok(Reply::SetComplete { request_id: 5, status }) = Reply::parse(&bytes) else {
            panic!("{bytes:?}")
        };
        status.0
    };
    assert_eq!(ask(vec![0; 128]), 0);
    assert_eq!(ask(vec![0, 1]), 0xC001_0015);
    assert_eq!(ask(vec![u32::MAX]), 0xC001_0015);
}

#[test]
fn a_guest_that_reads_nothing_makes_nothing_grow() {
    let mut hostile = Hostile::up();
    let request = Request::KeepAlive { request_id: 9 }.emit();
    hostile.send.write(0, &request).unwrap();
    let section = Some((0, request.len() as u32));
    let packet = SendRndisPacket { channel_type: ChannelType::Control, section }.emit();
    let mut full = 0;
    for round in 0..3000u64 {
        let out = OutgoingPacket::InBand { transaction_id: round, completion_requested: true };
        full += u32::from(hostile.guest.send(out, &packet).is_err());
        hostile.guest.flush().unwrap();
        hostile.server.poll(0, Instant::now(), |_| ());
        // The host's own news do not grow either.
        hostile.server.set_link(round % 2 == 0, 1);
        if round % 2 == 0 {
            hostile.server.vf_available(round as u32, Instant::now());
        } else {
            hostile.server.vf_lost(Instant::now());
        }
    }
    assert!(full > 1000, "the server stopped reading");
    assert!(hostile.server.control().waiting_count() < 64);
    // Once the guest reads, everything that was asked is answered.
    hostile.upcalls.clear();
    for _ in 0..200 {
        hostile.run();
    }
    assert_eq!(hostile.dead(), None);
    assert!(hostile.completed.len() > 50);
}

#[test]
fn a_subchannel_takes_frames_and_nothing_else() {
    let control = SendRndisPacket { channel_type: ChannelType::Control, section: None }.emit();
    let init = ClientMessage::Init { version: 2 }.emit(NvspVersion::V61);
    for payload in [&control[..], &init] {
        let mut hostile = Hostile::up();
        hostile.say(9, ClientMessage::Subchannel { operation: 1, count: 1 });
        assert!(!hostile.server.open(2, channel_in(&mut hostile.memory, 9).unwrap().host));
        let mut pair = channel_in(&mut hostile.memory, 9).unwrap();
        assert!(hostile.server.open(1, pair.host));
        hostile.send.write(0, &good()).unwrap();
        let section = Some((0, good().len() as u32));
        let frame = SendRndisPacket { channel_type: ChannelType::Data, section }.emit();
        let out = OutgoingPacket::InBand { transaction_id: 1, completion_requested: true };
        pair.guest.send(out, &frame).unwrap();
        pair.guest.flush().unwrap();
        assert_eq!(hostile.server.poll(1, Instant::now(), |_| ()).frames, 1);
        pair.guest.send(out, payload).unwrap();
        pair.guest.flush().unwrap();
        hostile.server.poll(1, Instant::now(), |_| ());
        hostile.run();
        assert!(matches!(hostile.dead(), Some(ProtocolError::OnSubchannel { .. })));
    }
}
