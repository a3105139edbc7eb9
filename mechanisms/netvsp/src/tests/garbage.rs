//! Random garbage from either end.

use netvsp_protocol::nvsp::{ChannelType, ClientMessage, NvspVersion, SendRndisPacket};
use proptest::{collection::vec, prelude::*};
use vmbus::{Channel, OutgoingGpaRange, OutgoingPacket};
use vmbus_protocol::TransferPageRange;

use super::*;

#[derive(Clone, Debug)]
enum Junk {
    InBand(bool, Vec<u8>),
    Completion(u64, Vec<u8>),
    Gpa(Vec<(u32, u32, u64)>, Vec<u8>),
    Transfer(u16, Vec<(u32, u32)>, Vec<u8>),
    /// Random bytes over the send or receive buffer.
    Scribble(usize, Vec<u8>),
    /// A few random bytes over the rings themselves.
    Ring(usize, Vec<u8>),
    /// Steps of a guest that behaves, so that garbage also comes late.
    Proper(u8),
}

/// Words that are likely to mean something.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..16u32,
        2 => 100..137u32,
        1 => Just(u32::MAX),
        1 => Just(0xE1),
        1 => prop::sample::select(vec![0x0006_0001u32, 0x0005_0000, 44, 60, 128, 0xCAFE]),
        1 => any::<u32>(),
    ]
}

fn words(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(word(), 0..most).prop_map(|words| words.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn rndis_packet() -> impl Strategy<Value = Vec<u8>> {
    (0..2u32, prop_oneof![0..9u32, Just(u32::MAX)], prop_oneof![0..300u32, any::<u32>()]).prop_map(
        |(kind, section, size)| {
            let words = [107, kind, section, size];
            words.into_iter().flat_map(u32::to_le_bytes).collect()
        },
    )
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![words(12), rndis_packet()]
}

fn junk() -> impl Strategy<Value = Junk> {
    let gpa = (1..9000u32, 0..4096u32, prop_oneof![0..2000u64, any::<u64>()]);
    let offset = || prop_oneof![0..6u32, 0..2000u32, any::<u32>()];
    let transfer = (offset(), offset());
    prop_oneof![
        4 => (any::<bool>(), payload()).prop_map(|(c, p)| Junk::InBand(c, p)),
        2 => (prop_oneof![0..4u64, any::<u64>(), Just(1 << 32)], words(8))
            .prop_map(|(t, p)| Junk::Completion(t, p)),
        2 => (vec(gpa, 1..5), payload()).prop_map(|(r, p)| Junk::Gpa(r, p)),
        2 => (prop_oneof![Just(0xCAFEu16), any::<u16>()], vec(transfer, 0..5), payload())
            .prop_map(|(s, r, p)| Junk::Transfer(s, r, p)),
        4 => (0..8usize, words(40)).prop_map(|(at, bytes)| Junk::Scribble(at * 6144, bytes)),
        1 => (0..RING_PAGES * 8192 - 64, words(2)).prop_map(|(at, b)| Junk::Ring(at & !3, b)),
        4 => (0..8u8).prop_map(Junk::Proper),
    ]
}

fn throw(junk: &Junk, channel: &mut Channel, rings: &GuestBuffer, buffers: &[GuestBuffer; 2]) {
    match junk {
        Junk::InBand(completion_requested, payload) => {
            let packet = OutgoingPacket::InBand {
                transaction_id: 77,
                completion_requested: *completion_requested,
            };
            let _ = channel.send(packet, payload);
        }
        Junk::Completion(transaction_id, payload) => {
            let packet = OutgoingPacket::Completion { transaction_id: *transaction_id };
            let _ = channel.send(packet, payload);
        }
        Junk::Gpa(list, payload) => {
            let frames: Vec<Vec<u64>> = list
                .iter()
                .map(|(count, offset, frame)| {
                    let pages = (count + offset).div_ceil(4096);
                    (0..u64::from(pages)).map(|page| frame.wrapping_add(page)).collect()
                })
                .collect();
            let ranges: Vec<_> = list
                .iter()
                .zip(&frames)
                .map(|(&(byte_count, byte_offset, _), page_frames)| OutgoingGpaRange {
                    byte_count,
                    byte_offset,
                    page_frames,
                })
                .collect();
            let packet = OutgoingPacket::GpaDirect { transaction_id: 78, ranges: &ranges };
            let _ = channel.send(packet, payload);
        }
        Junk::Transfer(page_set_id, list, payload) => {
            let ranges: Vec<_> = list
                .iter()
                .map(|&(byte_count, byte_offset)| TransferPageRange { byte_count, byte_offset })
                .collect();
            let packet = OutgoingPacket::TransferPages {
                transaction_id: 79,
                page_set_id: *page_set_id,
                ranges: &ranges,
            };
            let _ = channel.send(packet, payload);
        }
        Junk::Scribble(at, bytes) => {
            for buffer in buffers {
                let _ = buffer.write(*at, bytes);
            }
        }
        Junk::Ring(at, bytes) => {
            let _ = rings.write(*at, bytes);
        }
        Junk::Proper(step) => proper(*step, channel, buffers),
    }
    let _ = channel.flush();
}

/// One of the steps by which a guest comes up.
fn proper(step: u8, channel: &mut Channel, [_, send]: &[GuestBuffer; 2]) {
    use netvsp_protocol::{oid::Oid, rndis::Request};
    let message = match step {
        0 => ClientMessage::Init { version: NvspVersion::V61.to_wire() },
        1 => ClientMessage::SendNdisConfig {
            mtu: 1514,
            capabilities: netvsp_protocol::nvsp::NvspCapabilities::SRIOV,
        },
        2 => ClientMessage::SendNdisVersion { major: 6, minor: 30 },
        3 => ClientMessage::SendReceiveBuffer { gpadl: RECEIVE, id: 0xCAFE },
        4 => ClientMessage::SendSendBuffer { gpadl: SEND, id: 0 },
        7 => ClientMessage::Subchannel { operation: 1, count: 3 },
        step => {
            let bytes = if step == 5 {
                Request::Initialize { request_id: 1, major: 1, minor: 0, max_transfer: 1 }.emit()
            } else {
                let oid = Oid::GEN_CURRENT_PACKET_FILTER;
                Request::Set { request_id: 1, oid, info: &[0xFF; 4] }.emit()
            };
            let _ = send.write(0, &bytes);
            let section = Some((0, bytes.len() as u32));
            let packet = SendRndisPacket { channel_type: ChannelType::Control, section };
            let out = OutgoingPacket::InBand { transaction_id: 5, completion_requested: true };
            let _ = channel.send(out, &packet.emit());
            return;
        }
    };
    let out = OutgoingPacket::InBand { transaction_id: 5, completion_requested: true };
    let _ = channel.send(out, &message.emit(NvspVersion::V61));
}

/// Reads what the other end says, now and then completing something.
fn listen(channel: &mut Channel) {
    let mut answers = Vec::new();
    while let Ok(Some(packet)) = channel.receive() {
        if packet.completion_requested {
            answers.push(packet.transaction_id);
        }
    }
    for transaction_id in answers.iter().step_by(2) {
        let _ = channel.send(
            OutgoingPacket::Completion { transaction_id: *transaction_id },
            &[108, 0, 0, 0, 1, 0, 0, 0],
        );
    }
    let _ = channel.flush();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a guest does, the server neither panics nor hangs, and serves the next guest.
    #[test]
    fn a_server_survives_any_guest(
        proper_first in 0..8u8, list in vec((junk(), any::<bool>()), 0..40),
    ) {
        let mut memory = TestMemory::new(300);
        let (receive, _) = memory.buffer(64 * 4096);
        let (send, _) = memory.buffer(12 * 4096);
        let buffers = [receive, send];
        let pair = channel_in(&mut memory, RING_PAGES).unwrap();
        let nic = NicConfig { max_channels: 4, ..NicConfig::new(MAC) };
        let mut server = NetVsp::new(nic, memory.map.clone());
        server.open(0, pair.host);
        let mut guest = pair.guest;
        let now = Instant::now();
        let first = (0..proper_first).map(|step| (Junk::Proper(step), true));
        for (junk, listens) in first.chain(list) {
            throw(&junk, &mut guest, &pair.rings, &buffers);
            server.poll(0, now, |burst| {
                for frame in burst.frames() {
                    assert!(frame.length >= 14 && !frame.pieces.is_empty());
                    let sum: usize = frame.pieces.iter().map(|piece| piece.len()).sum();
                    assert_eq!(sum, frame.length as usize);
                }
            });
            while let Some(upcall) = server.next_upcall() {
                match upcall {
                    server::Upcall::MapGpadl { gpadl, kind } => {
                        let buffer = match gpadl {
                            RECEIVE => Some(buffers[0].clone()),
                            SEND => Some(buffers[1].clone()),
                            _ => None,
                        };
                        server.gpadl_mapped(kind, buffer);
                    }
                    server::Upcall::SwitchDataPath(_) => server.data_path_switched(true, now),
                    _ => {}
                }
            }
            let bytes = frame(1, 100);
            let slice = memory.mapping.slice(0, 100).unwrap();
            let _ = server.deliver(0, head(&bytes), &[slice], &ReceiveMetadata::default());
            server.announce(0);
            server.vf_available(1, now);
            server.tick(now + Duration::from_secs(2));
            let _ = server.prepare_to_wait(0);
            if listens {
                listen(&mut guest);
            }
            prop_assert!(server.control().waiting_count() < 80);
        }
        server.close(0);
        let pair = channel_in(&mut memory, RING_PAGES).unwrap();
        prop_assert!(server.open(0, pair.host));
        let mut guest = pair.guest;
        proper(0, &mut guest, &buffers);
        guest.flush().unwrap();
        server.poll(0, now, |_| ());
        let answer = guest.receive().unwrap().map(|packet| packet.transaction_id);
        prop_assert_eq!(answer, Some(5));
    }

    /// Whatever a server does, the client neither panics nor hangs.
    #[test]
    fn a_client_survives_any_server(
        turns in 0..30u8, list in vec(junk(), 0..40),
    ) {
        let mut memory = TestMemory::new(300);
        let (receive, _) = memory.buffer(64 * 4096);
        let (send, _) = memory.buffer(12 * 4096);
        let buffers = [receive.clone(), send.clone()];
        let pair = channel_in(&mut memory, RING_PAGES).unwrap();
        let mut config = VscConfig::new(RECEIVE, SEND);
        config.channels = 4;
        let mut client = NetVsc::new(config, receive.clone(), send.clone(), None);
        let mut server = NetVsp::new(NicConfig::new(MAC), memory.map.clone());
        client.open(0, pair.guest);
        server.open(0, pair.host);
        let now = Instant::now();
        // Some of the way with a server that behaves; then its end of the ring is ours.
        for _ in 0..turns {
            server.poll(0, now, |_| ());
            while let Some(upcall) = server.next_upcall() {
                if let server::Upcall::MapGpadl { kind, .. } = upcall {
                    let [receive, send] = &buffers;
                    let buffer = if kind == BufferKind::Send { send } else { receive };
                    server.gpadl_mapped(kind, Some(buffer.clone()));
                }
            }
            client.poll(0, |_| ());
        }
        let (upstream, downstream) = pair.rings.rings(RING_PAGES).unwrap();
        let Ok(mut host) = Channel::new(upstream, downstream, pair.to_guest, pair.to_host) else {
            return Ok(());
        };
        for junk in list {
            throw(&junk, &mut host, &pair.rings, &buffers);
            client.poll(0, |burst| {
                for frame in burst.frames() {
                    assert!(frame.length >= 14 && !frame.pieces.is_empty());
                }
            });
            while client.next_upcall().is_some() {}
            client.vf_device(Some((1, MAC)));
            client.vf_driver(true);
            let _ = client.send(0, &frame(1, 60), &TransmitMetadata::default());
            client.flush(0);
            let _ = client.prepare_to_wait(0);
            listen(&mut host);
        }
        client.close();
        prop_assert!(!client.control().is_up());
    }
}
