//! Rings as stories, against the byte vectors of SPEC-VMBUS §8.1, and under hostile writers.

use proptest::prelude::*;
use shared_memory::{PAGE_SIZE, PageSize, SharedMapping};
use vmbus_protocol::TransferPageRange;

use super::{
    ChannelDead, GpaRange, OutgoingGpaRange, OutgoingPacket, PacketKind, RingMemory, RingReceiver,
    RingSender, SendError, Signal,
};

struct Ring {
    sender: RingSender,
    receiver: RingReceiver,
    /// What a hostile end writes to: control page, then data.
    raw: SharedMapping,
}

fn ring(data_pages: usize) -> Ring {
    let (raw, _fd) =
        SharedMapping::create("ring", (data_pages + 1) * PAGE_SIZE, PageSize::Base).unwrap();
    let memory = RingMemory::contiguous(&raw, 0, raw.len()).unwrap();
    let receiver = RingReceiver::new(memory.clone()).unwrap();
    Ring { sender: RingSender::new(memory).unwrap(), receiver, raw }
}

fn word(raw: &SharedMapping, offset: usize) -> u32 {
    raw.as_slice().read_object(offset).unwrap()
}

fn set_word(raw: &SharedMapping, offset: usize, value: u32) {
    raw.as_slice().write_object(offset, &value).unwrap();
}

fn in_band(transaction_id: u64) -> OutgoingPacket<'static> {
    OutgoingPacket::InBand { transaction_id, completion_requested: false }
}

/// What a packet said, copied out.
#[derive(Clone, PartialEq, Debug)]
struct Seen {
    kind: SeenKind,
    transaction_id: u64,
    completion_requested: bool,
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, Debug)]
enum SeenKind {
    InBand,
    Completion,
    TransferPages(u16, Vec<TransferPageRange>),
    GpaDirect(Vec<(u32, u32, Vec<u64>)>),
}

fn receive(receiver: &mut RingReceiver) -> Result<Option<Seen>, ChannelDead> {
    let Some(packet) = receiver.receive()? else { return Ok(None) };
    let kind = match packet.kind {
        PacketKind::InBand => SeenKind::InBand,
        PacketKind::Completion => SeenKind::Completion,
        PacketKind::TransferPages { page_set_id, ranges } => {
            SeenKind::TransferPages(page_set_id, ranges.collect())
        }
        PacketKind::GpaDirect { ranges } => {
            let ranges = ranges.collect::<Result<Vec<GpaRange<'_>>, _>>()?;
            let read = |range: &GpaRange<'_>| {
                let frames = (0..range.page_count()).map(|i| range.page_frame(i).unwrap());
                (range.byte_count, range.byte_offset, frames.collect())
            };
            SeenKind::GpaDirect(ranges.iter().map(read).collect())
        }
    };
    let mut payload = vec![0; packet.payload.len()];
    packet.payload.read_into(&mut payload);
    Ok(Some(Seen {
        kind,
        transaction_id: packet.transaction_id,
        completion_requested: packet.completion_requested,
        payload,
    }))
}

#[test]
fn packets_have_the_published_bytes() {
    let mut ring = ring(1);
    let hello = OutgoingPacket::InBand {
        transaction_id: 0x1122_3344_5566_7788,
        completion_requested: true,
    };
    ring.sender.write(hello, b"hello").unwrap();
    ring.sender.write(OutgoingPacket::Completion { transaction_id: 7 }, b"12345678").unwrap();
    let ranges = [TransferPageRange { byte_count: 0x70A, byte_offset: 0x7000 }];
    let pages =
        OutgoingPacket::TransferPages { transaction_id: 9, page_set_id: 0xCAFE, ranges: &ranges };
    ring.sender.write(pages, &[0xAA; 28]).unwrap();
    // The mask is set, so that no signal is due.
    assert_eq!(ring.sender.publish().unwrap(), Signal::NotDue);

    let mut expected = vec![
        0x06, 0, 2, 0, 3, 0, 1, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, //
        0x68, 0x65, 0x6c, 0x6c, 0x6f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
        0x0b, 0, 2, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, //
        0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0, 0, 0, 0, 0x20, 0, 0, 0, //
        7, 0, 4, 0, 8, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, //
        0xfe, 0xca, 0, 0, 1, 0, 0, 0, 0x0a, 7, 0, 0, 0, 0x70, 0, 0,
    ];
    expected.extend([0xAA; 28]);
    expected.extend([0; 4]);
    expected.extend([0, 0, 0, 0, 0x40, 0, 0, 0]);
    let mut bytes = vec![0; 0x88];
    ring.raw.slice(PAGE_SIZE, 0x88).unwrap().read_into(&mut bytes);
    assert_eq!(bytes, expected);
    // in, out, mask, pending, features.
    let control = [0, 4, 8, 12, 64].map(|offset| word(&ring.raw, offset));
    assert_eq!(control, [0x88, 0, 1, 0, 1]);

    let first = receive(&mut ring.receiver).unwrap().unwrap();
    assert_eq!(first.payload, b"hello\0\0\0");
    assert!(first.completion_requested);
    let second = receive(&mut ring.receiver).unwrap().unwrap();
    assert_eq!((second.kind, second.transaction_id), (SeenKind::Completion, 7));
    let third = receive(&mut ring.receiver).unwrap().unwrap();
    assert_eq!(third.kind, SeenKind::TransferPages(0xCAFE, ranges.to_vec()));
    assert_eq!(third.payload.len(), 32);
    assert_eq!(receive(&mut ring.receiver).unwrap(), None);
}

#[test]
fn the_receiver_is_signalled_when_it_sleeps_and_only_then() {
    let mut ring = ring(1);
    assert!(ring.receiver.prepare_to_wait().unwrap());
    ring.sender.write(in_band(0), b"1").unwrap();
    assert_eq!(ring.sender.publish().unwrap(), Signal::Due);
    // It has not read the first yet, and so is awake.
    ring.sender.write(in_band(0), b"2").unwrap();
    assert_eq!(ring.sender.publish().unwrap(), Signal::NotDue);
    assert_eq!(ring.sender.publish().unwrap(), Signal::NotDue, "there is nothing new");
    assert!(!ring.receiver.prepare_to_wait().unwrap(), "there is something to read");
    while receive(&mut ring.receiver).unwrap().is_some() {}
    ring.receiver.mask_signals().unwrap();
    assert_eq!(ring.receiver.release().unwrap(), Signal::NotDue);
    ring.sender.write(in_band(0), b"3").unwrap();
    assert_eq!(ring.sender.publish().unwrap(), Signal::NotDue, "masked");
    assert!(!ring.receiver.prepare_to_wait().unwrap());
}

#[test]
fn a_sender_without_room_is_signalled_once_there_is_what_it_waits_for() {
    let mut ring = ring(1);
    let payload = [0; 1000];
    let needed = loop {
        match ring.sender.write(in_band(0), &payload) {
            Ok(()) => {}
            Err(SendError::Full { needed }) => break needed,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(needed, 1024);
    // 3 packets of 1,024 bytes are in the ring of 4,096, of which 8 stay free.
    let request = ring.sender.request_room(2000).unwrap();
    assert!(!request.has_room);
    assert_eq!(word(&ring.raw, 12), 2000);
    receive(&mut ring.receiver).unwrap().unwrap();
    assert_eq!(ring.receiver.release().unwrap(), Signal::Due, "1016 + 1024 bytes are free");
    receive(&mut ring.receiver).unwrap().unwrap();
    assert_eq!(ring.receiver.release().unwrap(), Signal::NotDue, "it was signalled before");
    ring.sender.write(in_band(0), &payload).unwrap();
    assert_eq!(word(&ring.raw, 12), 0, "nothing is waited for any more");
    assert!(ring.sender.request_room(1000).unwrap().has_room);
}

#[test]
fn a_pending_size_that_is_one_short_is_understood() {
    let mut ring = ring(1);
    ring.sender.write(in_band(0), &[0; 2000]).unwrap();
    let _ = ring.sender.publish().unwrap();
    set_word(&ring.raw, 12, 4088 - 1);
    receive(&mut ring.receiver).unwrap().unwrap();
    assert_eq!(ring.receiver.release().unwrap(), Signal::Due);
}

#[test]
fn what_can_never_fit_is_refused_and_what_just_fits_is_sent() {
    let mut ring = ring(1);
    let longest = 4096 - 16 - 8 - 16;
    assert!(matches!(
        ring.sender.write(in_band(0), &vec![0; longest + 1]),
        Err(SendError::TooLong { size: 4096, .. })
    ));
    for turn in 0..10 {
        ring.sender.write(in_band(turn), &vec![turn as u8; longest]).unwrap();
        let _ = ring.sender.publish().unwrap();
        let seen = receive(&mut ring.receiver).unwrap().unwrap();
        assert_eq!(seen.payload, vec![turn as u8; longest]);
        let _ = ring.receiver.release().unwrap();
    }
    let huge = vec![0; 600_000];
    assert!(matches!(ring.sender.write(in_band(0), &huge), Err(SendError::TooLong { .. })));
}

#[test]
fn ranges_that_contradict_their_pages_are_not_sent() {
    let mut ring = ring(1);
    for (byte_count, byte_offset, page_frames) in
        [(0, 0, &[1u64][..]), (1, 4096, &[1, 2]), (4096, 1, &[1]), (5, 0, &[])]
    {
        let ranges = [OutgoingGpaRange { byte_count, byte_offset, page_frames }];
        let packet = OutgoingPacket::GpaDirect { transaction_id: 1, ranges: &ranges };
        assert_eq!(ring.sender.write(packet, b""), Err(SendError::BadRange));
    }
    let packet = OutgoingPacket::GpaDirect { transaction_id: 1, ranges: &[] };
    assert_eq!(ring.sender.write(packet, b""), Err(SendError::BadRange));
    assert_eq!(ring.sender.unpublished(), 0);
}

#[test]
fn indices_outside_of_the_ring_end_the_channel() {
    for value in [4096, 4, 0xFFFF_FFF8, 0xFFFF_FFFF] {
        let mut ring = ring(1);
        set_word(&ring.raw, 0, value);
        let dead = ChannelDead::BadIndex { name: "in", value, size: 4096 };
        assert_eq!(receive(&mut ring.receiver), Err(dead));
        assert!(ring.receiver.prepare_to_wait().is_err());
        set_word(&ring.raw, 4, value);
        let dead = ChannelDead::BadIndex { name: "out", value, size: 4096 };
        assert_eq!(ring.sender.room(), Err(dead));
        assert_eq!(ring.sender.request_room(8), Err(dead));
        let memory = RingMemory::contiguous(&ring.raw, 0, ring.raw.len()).unwrap();
        assert!(RingSender::new(memory.clone()).is_err());
        assert!(RingReceiver::new(memory).is_err());
    }
}

/// Puts a packet's first words into an empty ring, `available` bytes long by the index.
fn forged(descriptor: [u16; 4], rest: &[u8], available: u32) -> Result<Option<Seen>, ChannelDead> {
    let mut ring = ring(1);
    for (at, half) in descriptor.into_iter().enumerate() {
        ring.raw.as_slice().write_object(PAGE_SIZE + at * 2, &half).unwrap();
    }
    ring.raw.slice(PAGE_SIZE + 16, rest.len()).unwrap().write_from(rest);
    set_word(&ring.raw, 0, available);
    receive(&mut ring.receiver)
}

#[test]
fn packets_that_contradict_themselves_end_the_channel() {
    assert!(forged([6, 2, 2, 0], &[], 24).unwrap().is_some(), "an empty packet is fine");
    let lengths = [
        ([6, 2, 2, 0], 16),        // no room for the footer
        ([6, 2, 2, 0], 8),         // half a descriptor
        ([6, 1, 2, 0], 24),        // data within the descriptor
        ([6, 3, 2, 0], 24),        // data behind the end
        ([6, 2, 4, 0], 32),        // longer than what is there
        ([6, 2, 0xFFFF, 0], 4088), // longer than the ring
        ([6, 0, 0, 0], 4088),
    ];
    for (descriptor, available) in lengths {
        let answer = forged(descriptor, &[], available);
        assert!(matches!(answer, Err(ChannelDead::BadLength { .. })), "{descriptor:?}: {answer:?}");
    }
    for packet_type in [0, 1, 5, 8, 0xA, 0xC, 0xFFFF] {
        let answer = forged([packet_type, 2, 2, 0], &[], 24);
        assert_eq!(answer, Err(ChannelDead::BadType { offset: 0, packet_type }));
    }
    for flags in [2, 3, 0x8000] {
        let answer = forged([6, 2, 2, flags], &[], 24);
        assert_eq!(answer, Err(ChannelDead::BadFlags { offset: 0, flags }));
    }
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let ranges: [([u16; 4], &[u64], u32); 8] = [
        ([9, 2, 2, 1], &[], 24),                          // no list
        ([9, 3, 3, 1], &[word(0, 0)], 32),                // no range
        ([9, 4, 4, 1], &[word(0, 1), word(1, 0)], 40),    // no page
        ([9, 5, 5, 1], &[word(0, 1), word(0, 0), 1], 48), // an empty range
        ([9, 5, 5, 1], &[word(0, 1), word(1, 4096), 1], 48),
        ([9, 5, 5, 1], &[word(0, 1), word(u32::MAX, 4095), 1], 48),
        ([9, 5, 5, 1], &[word(0, u32::MAX), word(1, 0), 1], 48),
        ([7, 4, 4, 1], &[word(0, 0x2000_0001), word(1, 0)], 40),
    ];
    for (descriptor, words, available) in ranges {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let answer = forged(descriptor, &bytes, available);
        assert_eq!(answer, Err(ChannelDead::BadRanges), "{words:x?}");
    }
    assert!(forged([7, 3, 3, 1], &[0; 8], 32).unwrap().is_some(), "no transfer pages");
}

#[derive(Clone, Debug)]
enum Written {
    InBand(u64, bool, Vec<u8>),
    Completion(u64, Vec<u8>),
    TransferPages(u64, u16, Vec<(u32, u32)>, Vec<u8>),
    GpaDirect(u64, Vec<(u32, u32)>, Vec<u8>),
}

fn written() -> impl Strategy<Value = Written> {
    let payload = || proptest::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (any::<u64>(), any::<bool>(), payload())
            .prop_map(|(id, ask, payload)| Written::InBand(id, ask, payload)),
        (any::<u64>(), payload()).prop_map(|(id, payload)| Written::Completion(id, payload)),
        (
            any::<u64>(),
            any::<u16>(),
            proptest::collection::vec(any::<(u32, u32)>(), 0..5),
            payload()
        )
            .prop_map(|(id, set, ranges, payload)| Written::TransferPages(
                id, set, ranges, payload
            )),
        (any::<u64>(), proptest::collection::vec((1u32..20_000, 0u32..4096), 1..4), payload())
            .prop_map(|(id, ranges, payload)| Written::GpaDirect(id, ranges, payload)),
    ]
}

/// Sends it; what is to arrive.
fn send(sender: &mut RingSender, packet: &Written) -> Result<Seen, SendError> {
    let padded = |payload: &[u8]| {
        let mut payload = payload.to_vec();
        payload.resize(payload.len().next_multiple_of(8), 0);
        payload
    };
    let seen = |kind, transaction_id, completion_requested, payload: &[u8]| Seen {
        kind,
        transaction_id,
        completion_requested,
        payload: padded(payload),
    };
    match packet {
        Written::InBand(transaction_id, completion_requested, payload) => {
            let (transaction_id, completion_requested) = (*transaction_id, *completion_requested);
            let packet = OutgoingPacket::InBand { transaction_id, completion_requested };
            let (first, second) = payload.split_at(payload.len() / 2);
            sender.write_parts(packet, &[first, second])?;
            Ok(seen(SeenKind::InBand, transaction_id, completion_requested, payload))
        }
        Written::Completion(transaction_id, payload) => {
            let transaction_id = *transaction_id;
            sender.write(OutgoingPacket::Completion { transaction_id }, payload)?;
            Ok(seen(SeenKind::Completion, transaction_id, false, payload))
        }
        Written::TransferPages(transaction_id, set, ranges, payload) => {
            let (transaction_id, page_set_id) = (*transaction_id, *set);
            let ranges = ranges
                .iter()
                .map(|(byte_count, byte_offset)| TransferPageRange {
                    byte_count: *byte_count,
                    byte_offset: *byte_offset,
                })
                .collect::<Vec<_>>();
            let packet =
                OutgoingPacket::TransferPages { transaction_id, page_set_id, ranges: &ranges };
            sender.write(packet, payload)?;
            Ok(seen(SeenKind::TransferPages(page_set_id, ranges), transaction_id, true, payload))
        }
        Written::GpaDirect(transaction_id, ranges, payload) => {
            let transaction_id = *transaction_id;
            let frames = |count: u32, offset: u32| {
                (0..u64::from((count + offset).div_ceil(4096))).map(|i| i * 77).collect::<Vec<_>>()
            };
            let ranges = ranges
                .iter()
                .map(|(count, offset)| (*count, *offset, frames(*count, *offset)))
                .collect::<Vec<_>>();
            let outgoing = ranges
                .iter()
                .map(|(byte_count, byte_offset, frames)| OutgoingGpaRange {
                    byte_count: *byte_count,
                    byte_offset: *byte_offset,
                    page_frames: frames,
                })
                .collect::<Vec<_>>();
            let packet = OutgoingPacket::GpaDirect { transaction_id, ranges: &outgoing };
            sender.write(packet, payload)?;
            Ok(seen(SeenKind::GpaDirect(ranges), transaction_id, true, payload))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Everything arrives as sent and in order, however publishing, reading and releasing interleave.
    #[test]
    fn what_is_sent_arrives(
        steps in proptest::collection::vec((0u8..6, written()), 1..200)
    ) {
        let mut ring = ring(1);
        let mut in_flight = std::collections::VecDeque::new();
        let mut unpublished = std::collections::VecDeque::new();
        for (step, packet) in &steps {
            match step {
                0..=2 => match send(&mut ring.sender, packet) {
                    Ok(seen) => unpublished.push_back(seen),
                    Err(SendError::Full { .. }) => {}
                    Err(error) => prop_assert!(false, "{error}"),
                },
                3 => {
                    let _ = ring.sender.publish().unwrap();
                    in_flight.append(&mut unpublished);
                }
                4 => {
                    prop_assert_eq!(receive(&mut ring.receiver).unwrap(), in_flight.pop_front());
                }
                _ => {
                    let _ = ring.receiver.release().unwrap();
                }
            }
        }
        let _ = ring.sender.publish().unwrap();
        in_flight.append(&mut unpublished);
        for expected in in_flight {
            prop_assert_eq!(receive(&mut ring.receiver).unwrap(), Some(expected));
        }
        prop_assert_eq!(receive(&mut ring.receiver).unwrap(), None);
        let _ = ring.receiver.release().unwrap();
        prop_assert_eq!(ring.sender.room().unwrap(), 4088);
    }

    /// A peer that writes what it likes to the whole ring is survived, and read from at most as long as it writes.
    #[test]
    fn a_ring_of_random_bytes_never_panics(
        control in proptest::collection::vec(0u32..4200, 4),
        aligned: bool,
        packet_type in proptest::sample::select(vec![6u16, 7, 9, 0xB, 1]),
        descriptor in (0u16..8, 0u16..40, 0u16..3),
        bytes in proptest::collection::vec(any::<u8>(), 64..256),
    ) {
        let ring = ring(1);
        for at in (PAGE_SIZE..2 * PAGE_SIZE).step_by(bytes.len()) {
            ring.raw.as_slice().split(at).1.write_from(&bytes);
        }
        for at in (PAGE_SIZE..2 * PAGE_SIZE).step_by(64) {
            let (offset, length, flags) = descriptor;
            for (i, half) in [packet_type, offset, length, flags].into_iter().enumerate() {
                ring.raw.as_slice().write_object(at + i * 2, &half).unwrap();
            }
        }
        for (at, value) in control.iter().enumerate() {
            set_word(&ring.raw, at * 4, if aligned { value & !7 } else { *value });
        }
        let memory = RingMemory::contiguous(&ring.raw, 0, ring.raw.len()).unwrap();
        if let Ok(mut receiver) = RingReceiver::new(memory.clone()) {
            let mut count = 0;
            while let Ok(Some(_)) = receive(&mut receiver) {
                count += 1;
                prop_assert!(count <= 4096 / 24);
            }
            let _ = receiver.release();
        }
        if let Ok(mut sender) = RingSender::new(memory) {
            let _ = sender.write(in_band(1), &bytes);
            let _ = sender.publish();
            let _ = sender.request_room(4000);
        }
    }
}

#[test]
fn two_threads_exchange_packets_and_miss_no_signal() {
    let mut pair = crate::testing::channel(3);
    const COUNT: u64 = 20_000;
    let guest = std::thread::spawn(move || {
        let mut guest = pair.guest;
        let mut sent = 0u64;
        while sent < COUNT {
            let packet = in_band(sent);
            let length = (sent * 31 % 700) as usize;
            match guest.send(packet, &vec![sent as u8; length]) {
                Ok(()) => sent += 1,
                Err(SendError::Full { needed }) => {
                    if !guest.request_room(needed).unwrap() {
                        assert!(
                            guest.interrupt().wait(std::time::Duration::from_secs(60)).unwrap()
                        );
                        guest.woken().unwrap();
                    }
                }
                Err(error) => panic!("{error}"),
            }
            if sent.is_multiple_of(7) {
                guest.flush().unwrap();
            }
        }
        guest.flush().unwrap();
        guest
    });
    let mut seen = 0u64;
    while seen < COUNT {
        if let Some(packet) = pair.host.receive().unwrap() {
            assert_eq!(packet.transaction_id, seen);
            let length = (seen * 31 % 700) as usize;
            assert_eq!(packet.payload.len(), length.next_multiple_of(8));
            seen += 1;
        } else if pair.host.prepare_to_wait().unwrap() {
            assert!(pair.host.interrupt().wait(std::time::Duration::from_secs(60)).unwrap());
            pair.host.woken().unwrap();
        }
    }
    drop(guest.join().unwrap());
}
