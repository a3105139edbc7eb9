//! Packed rings.

use std::collections::VecDeque;

use super::*;
use crate::testing::PlayedPackedRing;

const PACKED: Features = BASIC.union(Features::RING_PACKED);
/// Where a ring of DPDK's begins, and one of QEMU's: both wrap counters are set.
const START: u32 = 0x8000;
const START_OF_QEMU: u32 = 0x8000_8000;
/// Flags of events.
const DISABLE: u16 = 1;
const DESCRIPTOR: u16 = 2;
const WRAP: u16 = 0x8000;

/// A device with one pair of packed rings, its driver played.
struct Played {
    memory: SharedMapping,
    _fd: OwnedFd,
    device: Device,
    rx: PlayedPackedRing,
    tx: PlayedPackedRing,
}

fn setup(ring: &PlayedPackedRing, base: u32) -> QueueSetup {
    setup_at(ring.places(), ring.size(), base)
}

impl Played {
    fn new(features: Features, size: u16) -> Self {
        let (memory, fd, mut device) = device(features);
        let ring = |at| PlayedPackedRing::new(&memory, at, size);
        let (rx, tx) = (ring(RX), ring(TX));
        device.start(0, setup(&rx, START)).unwrap();
        device.start(1, setup(&tx, START_OF_QEMU)).unwrap();
        Self { memory, _fd: fd, device, rx, tx }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.memory.slice(at, bytes.len()).unwrap().write_from(bytes);
    }

    fn read(&self, at: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.slice(at, length).unwrap().read_into(&mut bytes);
        bytes
    }
}

#[test]
fn packets_are_gathered_from_chains_over_the_rings_end_and_from_tables() {
    let mut played = Played::new(PACKED | Features::INDIRECT_DESC, 5);
    let packet = pattern(3000);
    let whole = [&[0u8; 12][..], &packet].concat();
    let border = 0x8_0000 - 100;
    played.write(BUFFERS, &whole);
    played.write(border, &whole);
    let cuts: [&[usize]; 4] =
        [&[3012], &[5, 7, 3000], &[12, 1, 2, 2997], &[1, 11, 1000, 1000, 1000]];
    for turn in 0..12u16 {
        let mut at = BUFFERS;
        let mut pieces = Vec::new();
        for length in cuts[usize::from(turn) % cuts.len()] {
            pieces.push(((guest(at), *length as u32), 0));
            at += length;
        }
        played.tx.make_available(turn * 777, &pieces);
        assert_eq!(sent(&mut played.device), [Some(packet.clone())], "{turn}");
        assert_eq!(played.tx.take_used(), Some((turn * 777, 0)));
        assert_eq!(played.tx.take_used(), None);
    }
    let table = BUFFERS + 0x4000;
    played.tx.write_in(table, 0, (guest(BUFFERS), 12), 0);
    // "Next" says nothing in a table.
    played.tx.write_in(table, 1, (guest(BUFFERS + 12), 1000), NEXT);
    played.tx.write_in(table, 2, (guest(BUFFERS + 1012), 2000), 0);
    played.tx.make_available(3, &[((guest(table), 48), INDIRECT)]);
    played.tx.make_available(4, &[((guest(border), 3012), 0)]);
    assert_eq!(sent(&mut played.device), [Some(packet.clone()), Some(packet)]);
    let used = [played.tx.take_used(), played.tx.take_used(), played.tx.take_used()];
    assert_eq!(used, [Some((3, 0)), Some((4, 0)), None]);
    assert_eq!(played.device.broken(), 0);
}

#[test]
fn a_packet_takes_as_many_buffers_as_it_needs_and_leaves_the_others() {
    let mut played = Played::new(PACKED, 7);
    let packet = pattern(2500);
    for round in 0..5u16 {
        assert_eq!(put(&mut played.device, &packet), Err(NotPut::NoBuffer));
        for index in 0..3u16 {
            let at = BUFFERS + usize::from(index) * 0x1000;
            // Each in two pieces.
            let pieces = [((guest(at), 300), WRITE), ((guest(at + 300), 700), WRITE)];
            played.rx.make_available(round * 3 + index, &pieces);
            let expected = if index < 2 { Err(NotPut::NoBuffer) } else { Ok(()) };
            assert_eq!(put(&mut played.device, &packet), expected, "{round} {index}");
        }
        let used: Vec<_> = std::iter::from_fn(|| played.rx.take_used()).collect();
        assert_eq!(used, [(round * 3, 1000), (round * 3 + 1, 1000), (round * 3 + 2, 512)]);
        let mut seen = played.read(BUFFERS, 1000);
        seen.extend(played.read(BUFFERS + 0x1000, 1000));
        seen.extend(played.read(BUFFERS + 0x2000, 512));
        assert_eq!(seen[..12], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
        assert!(seen[12..] == packet);
    }
}

#[test]
fn what_a_driver_may_not_do_breaks_that_queue_alone() {
    type Deed = fn(&mut PlayedPackedRing);
    let deeds: [(&str, Deed); 10] = [
        ("a chain without end", |ring| {
            for index in 0..ring.size() {
                ring.write(index, (guest(BUFFERS), 4), 0, NEXT | 1 << 7);
            }
        }),
        ("a chain of more descriptors than there are", |ring| {
            let pieces = [((guest(BUFFERS), 4), 0); 7];
            ring.make_available(0, &pieces);
            ring.write(6, (guest(BUFFERS), 4), 0, NEXT | 1 << 7);
        }),
        ("a wrong direction", |ring| ring.make_available(0, &[((guest(BUFFERS), 100), WRITE)])),
        ("memory that is none", |ring| ring.make_available(0, &[((guest(MEMORY) - 4, 100), 0)])),
        ("memory that wraps", |ring| ring.make_available(0, &[((u64::MAX - 3, u32::MAX), 0)])),
        ("less than a header", |ring| ring.make_available(0, &[((guest(BUFFERS), 11), 0)])),
        ("a table in a chain", |ring| {
            let pieces = [((guest(BUFFERS), 16), 0), ((guest(BUFFERS), 16), INDIRECT)];
            ring.make_available(0, &pieces);
        }),
        ("a table and more", |ring| {
            let pieces = [((guest(BUFFERS), 16), INDIRECT), ((guest(BUFFERS), 16), 0)];
            ring.make_available(0, &pieces);
        }),
        ("a table of no whole entries", |ring| {
            ring.make_available(0, &[((guest(BUFFERS), 40), INDIRECT)]);
        }),
        ("a table of too many entries", |ring| {
            ring.make_available(0, &[((guest(BUFFERS), 16 * 1025), INDIRECT)]);
        }),
    ];
    for (what, deed) in deeds {
        let mut played = Played::new(PACKED | Features::INDIRECT_DESC, 7);
        deed(&mut played.tx);
        assert!(sent(&mut played.device).is_empty(), "{what}");
        assert_eq!(played.device.broken(), 1, "{what}");
        assert!(sent(&mut played.device).is_empty() && played.device.prepare_to_wait(), "{what}");
        // The other goes on, and so does this one when it was set up again.
        played.rx.make_available(9, &[((guest(BUFFERS), 2000), WRITE)]);
        assert_eq!(put(&mut played.device, b"a packet of some bytes"), Ok(()), "{what}");
        played.device.stop(1);
        played.tx = PlayedPackedRing::new(&played.memory, TX, 7);
        played.device.start(1, setup(&played.tx, START)).unwrap();
        played.write(BUFFERS, &[0; 12]);
        played.tx.make_available(0, &[((guest(BUFFERS), 40), 0)]);
        assert_eq!(sent(&mut played.device).len(), 1, "{what}");
    }
    // Tables may be there only if the driver has agreed to that.
    let mut played = Played::new(PACKED, 7);
    played.tx.make_available(0, &[((guest(BUFFERS), 16), INDIRECT)]);
    assert!(sent(&mut played.device).is_empty());
    assert_eq!(played.device.broken(), 1);
}

#[test]
fn descriptors_of_the_wrong_turn_are_not_there() {
    let mut played = Played::new(PACKED, 4);
    // Both, neither, and the other turn's.
    for flags in [1 << 7 | 1 << 15, 0, 1 << 15] {
        played.tx.write(0, (guest(BUFFERS), 40), 0, flags);
        assert!(sent(&mut played.device).is_empty());
    }
    for turn in 0..4 {
        played.tx.make_available(turn, &[((guest(BUFFERS), 40), 0)]);
    }
    assert_eq!(sent(&mut played.device).len(), 4);
    // The same ones are none of the next turn's.
    for index in 0..4 {
        played.tx.write(index, (guest(BUFFERS), 40), 0, 1 << 7);
    }
    assert!(sent(&mut played.device).is_empty());
    assert_eq!(played.device.broken(), 0);
}

#[test]
fn a_ring_is_refused_that_is_not_all_in_memory_or_of_no_size_or_begins_beyond_its_end() {
    let mut played = Played::new(PACKED, 7);
    let ring = PlayedPackedRing::new(&played.memory, RX, 7);
    let device = &mut played.device;
    let mut refused = |change: fn(&mut QueueSetup)| {
        let mut setup = setup(&ring, START);
        change(&mut setup);
        device.start(0, setup).unwrap_err()
    };
    assert_eq!(refused(|setup| setup.size = 0), RingError::Size { size: 0 });
    assert_eq!(refused(|setup| setup.size = 32769), RingError::Size { size: 32769 });
    let beyond = |base| RingError::Base { size: 7, base };
    assert_eq!(refused(|setup| setup.base = 7), beyond(7));
    assert_eq!(refused(|setup| setup.base = 0x8007_8000), beyond(0x8007_8000));
    assert_eq!(refused(|setup| setup.base = 0x8000_8007), beyond(0x8000_8007));
    let outside = |part| RingError::Outside { part };
    let found = refused(|setup| setup.at.descriptors = USER + MEMORY as u64 - 96);
    assert_eq!(found, outside("descriptor ring"));
    assert_eq!(refused(|setup| setup.at.driver += 2), outside("driver's event suppression"));
    assert_eq!(refused(|setup| setup.at.device += 1), outside("device's event suppression"));
}

#[test]
fn a_queue_that_stops_goes_on_where_it_was_with_its_wrap_counters() {
    let mut played = Played::new(PACKED, 5);
    played.write(BUFFERS, &[0; 12]);
    let mut sent_so_far = 0u16;
    for stop_after in [1, 4, 5, 3, 7] {
        for _ in 0..stop_after {
            played.tx.make_available(sent_so_far, &[((guest(BUFFERS), 60), 0)]);
            assert_eq!(sent(&mut played.device).len(), 1);
            assert_eq!(played.tx.take_used(), Some((sent_so_far, 0)));
            sent_so_far += 1;
        }
        let next = u32::from(played.tx.next());
        assert_eq!(next & 0x7FFF, u32::from(sent_so_far) % 5);
        let base = played.device.stop(1).unwrap();
        assert_eq!(base, next << 16 | next);
        // Without the upper half, as DPDK's front-end has it, it is the same.
        let base = if stop_after % 2 == 0 { base & 0xFFFF } else { base };
        played.device.start(1, setup(&played.tx, base)).unwrap();
        assert!(sent(&mut played.device).is_empty());
    }
    // What another device has taken and not given back is taken again.
    played.tx.make_available(70, &[((guest(BUFFERS), 60), 0)]);
    let used = played.device.stop(1).unwrap() >> 16;
    let base = used << 16 | u32::from(played.tx.next());
    played.device.start(1, setup(&played.tx, base)).unwrap();
    assert_eq!(sent(&mut played.device).len(), 1);
    assert_eq!(played.tx.take_used(), Some((70, 0)));
}

#[test]
fn drivers_are_told_and_tell_as_they_and_the_device_say() {
    let call = Arc::new(event_fd::EventFd::new().unwrap());
    for features in [PACKED, PACKED | Features::EVENT_IDX] {
        let by_descriptor = features.contains(Features::EVENT_IDX);
        let mut played = Played::new(features, 3);
        let notifiers = Notifiers { call: Some(Arc::clone(&call)), ..Notifiers::default() };
        played.device.set_notifiers(1, notifiers);
        call.take();
        assert_eq!(
            played.tx.device_event().1,
            DISABLE,
            "no kicks while the device looks by itself"
        );
        let interrupted = |played: &mut Played| {
            let id = played.tx.next();
            played.tx.make_available(id, &[((guest(BUFFERS), 60), 0)]);
            assert!(!played.device.prepare_to_wait(), "there is something");
            played.device.woken();
            assert_eq!(sent(&mut played.device).len(), 1);
            assert_eq!(played.tx.take_used(), Some((id, 0)));
            call.take() > 0
        };
        for turn in 0..4u16 {
            assert!(played.device.prepare_to_wait());
            let wanted = if by_descriptor { DESCRIPTOR } else { 0 };
            assert_eq!(played.tx.device_event(), (played.tx.next(), wanted), "{turn}");
            played.device.woken();
            assert_eq!(played.tx.device_event().1, DISABLE);
            played.tx.set_event(0, 0);
            assert!(interrupted(&mut played));
            played.tx.set_event(0, DISABLE);
            assert!(!interrupted(&mut played));
            // When this one is used, and when another is.
            played.tx.set_event(played.tx.next(), DESCRIPTOR);
            assert!(interrupted(&mut played));
            played.tx.set_event(played.tx.next() ^ WRAP, DESCRIPTOR);
            assert_eq!(interrupted(&mut played), !by_descriptor);
        }
    }
}

#[test]
fn buffers_that_are_used_in_order_come_back_by_the_last_of_them() {
    let mut played = Played::new(PACKED | Features::IN_ORDER, 9);
    played.write(BUFFERS, &[0; 12]);
    for round in 0..10u16 {
        for id in 0..3 {
            let pieces = [((guest(BUFFERS), 12), 0), ((guest(BUFFERS), 60), 0)];
            played.tx.make_available(round * 3 + id, &pieces);
        }
        assert_eq!(sent(&mut played.device).len(), 3);
        assert_eq!(played.tx.take_used(), Some((round * 3 + 2, 0)));
        assert_eq!((played.tx.take_used(), played.tx.room()), (None, 9));
    }
    // Those for receiving say each how much is in them.
    for id in 0..2 {
        played.rx.make_available(id, &[((guest(BUFFERS), 2000), WRITE)]);
        put(&mut played.device, &pattern(60 + usize::from(id))).unwrap();
    }
    assert_eq!([played.rx.take_used(), played.rx.take_used()], [Some((0, 72)), Some((1, 73))]);
}

#[test]
fn what_is_written_is_noted_in_the_log() {
    let mut played = Played::new(PACKED | Features::LOG_ALL, 8);
    let bytes = (GUEST as usize + MEMORY) / 4096 / 8;
    let fd = shared_memory::create_memfd("log", bytes, PageSize::Base).unwrap();
    let watch = MemoryWatch::new().unwrap();
    played.device.set_log(DirtyLog::map(fd.as_fd(), 0, bytes as u64, &watch).unwrap());
    let across = BUFFERS + 0x1000 - 20;
    played.rx.make_available(0, &[((guest(across), 4096), WRITE)]);
    put(&mut played.device, &pattern(100)).unwrap();
    let mut log = vec![0; bytes];
    rustix::io::pread(&fd, &mut log, 0).unwrap();
    let dirty: Vec<usize> = (0..bytes * 8)
        .filter(|page| log[page / 8] & 1 << (page % 8) != 0)
        .map(|page| page * 4096 - GUEST as usize)
        .collect();
    assert_eq!(dirty, [RX, BUFFERS, BUFFERS + 0x1000]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_packet_goes_once_and_every_buffer_comes_back_in_order(
        size in 1u16..=40,
        in_order in any::<bool>(),
        steps in proptest::collection::vec((0u8..4, 1u16..6, any::<u16>(), 1usize..300), 1..200),
    ) {
        let features = if in_order { PACKED | Features::IN_ORDER } else { PACKED };
        let mut played = Played::new(features, size);
        let (mut waiting, mut posted) = (VecDeque::new(), VecDeque::new());
        let mut free = BUFFERS;
        for (step, pieces, id, length) in steps {
            // There is room for buffers of their own for all steps.
            let pieces = pieces.min(size);
            let bytes = 12 + length;
            let at = free;
            free += bytes;
            let cut = |flags| {
                let each = bytes / usize::from(pieces);
                let part = move |number: u16| {
                    let from = usize::from(number) * each;
                    let to = if number + 1 == pieces { bytes } else { from + each };
                    ((guest(at + from), (to - from) as u32), flags)
                };
                (0..pieces).map(part).collect::<Vec<_>>()
            };
            match step {
                0 if played.tx.room() >= pieces => {
                    let packet: Vec<u8> = pattern(length).iter().map(|byte| byte ^ id as u8).collect();
                    played.write(at, &[&[0u8; 12][..], &packet].concat());
                    played.tx.make_available(id, &cut(0));
                    waiting.push_back((id, packet));
                }
                1 => {
                    let packets = sent(&mut played.device);
                    let mut ids = Vec::new();
                    prop_assert_eq!(packets.len(), waiting.len().min(64));
                    for packet in packets {
                        let (id, expected) = waiting.pop_front().unwrap();
                        prop_assert_eq!(packet, Some(expected));
                        ids.push(id);
                    }
                    let back: Vec<u16> = std::iter::from_fn(|| played.tx.take_used()).map(|used| used.0).collect();
                    if in_order {
                        // Each that comes back stands for those before it.
                        prop_assert_eq!(back.last(), ids.last());
                    } else {
                        prop_assert_eq!(back, ids);
                    }
                    let taken: u16 = played.tx.room();
                    prop_assert_eq!(taken, size);
                }
                2 if played.rx.room() >= pieces => {
                    played.rx.make_available(id, &cut(WRITE));
                    posted.push_back((id, bytes, at));
                }
                3 => {
                    let room: usize = posted.iter().map(|(_, bytes, _)| bytes).sum();
                    let done = put(&mut played.device, &pattern(length));
                    if room < length + 12 {
                        prop_assert_eq!(done, Err(NotPut::NoBuffer));
                        prop_assert_eq!(played.rx.take_used(), None);
                        continue;
                    }
                    prop_assert_eq!(done, Ok(()));
                    let mut left = length + 12;
                    while left > 0 {
                        let (id, bytes, at) = posted.pop_front().unwrap();
                        let written = left.min(bytes);
                        prop_assert_eq!(played.rx.take_used(), Some((id, written as u32)));
                        let from = length + 12 - left;
                        if from >= 12 {
                            prop_assert_eq!(played.read(at, written), &pattern(length)[from - 12..][..written]);
                        }
                        left -= written;
                    }
                    prop_assert_eq!(played.rx.take_used(), None);
                }
                _ => {}
            }
        }
        prop_assert_eq!(played.device.broken(), 0);
    }

    #[test]
    fn whatever_is_in_a_ring_nothing_hangs_or_panics(
        descriptors in proptest::collection::vec(
            (0usize..0x12_0000, 0u32..5000, any::<u16>(), any::<(bool, bool)>(), 0u16..8), 1..20),
        events in any::<(u16, u16)>(),
        base in any::<u32>(),
        features in any::<u64>(),
    ) {
        let features = Features::from_bits_truncate(features) | Features::RING_PACKED;
        let (memory, _fd, mut device) = device(features);
        let size = descriptors.len() as u16;
        for (index, ring) in [RX, TX].into_iter().enumerate() {
            let ring = PlayedPackedRing::new(&memory, ring, size);
            for (at, (place, length, id, (available, used), flags)) in descriptors.iter().enumerate() {
                let turn = u16::from(*available) << 7 | u16::from(*used) << 15;
                ring.write(at as u16, (guest(*place), *length), *id, flags | turn);
            }
            ring.set_event(events.0, events.1);
            let within = |place: u32| place & 0x8000 | ((place & 0x7FFF) % u32::from(size));
            let base = within(base >> 16) << 16 | within(base & 0xFFFF);
            device.start(index, setup(&ring, base)).unwrap();
        }
        for _ in 0..4 {
            prop_assert!(sent(&mut device).len() <= 64);
            let _ = put(&mut device, &pattern(1200));
            let _ = put(&mut device, &pattern(60));
            device.prepare_to_wait();
            device.woken();
        }
        prop_assert!(device.stop(0).is_some() && device.stop(1).is_some());
    }
}
