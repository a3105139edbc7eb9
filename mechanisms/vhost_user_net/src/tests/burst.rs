//! Packets that are moved together, on either kind of ring.

use super::*;
use crate::{WholePacket, testing::PlayedPackedRing};

/// A driver's receive ring of either kind.
enum Rx {
    Split(PlayedRing),
    Packed(PlayedPackedRing),
}

impl Rx {
    fn make_available(&mut self, id: u16, pieces: &[(u64, u32)]) {
        match self {
            Self::Split(ring) => {
                for (index, piece) in (2 * id..).zip(pieces) {
                    let more = usize::from(index - 2 * id) + 1 < pieces.len();
                    ring.describe(index, *piece, WRITE | if more { NEXT } else { 0 }, index + 1);
                }
                ring.make_available(2 * id);
            }
            Self::Packed(ring) => {
                let pieces: Vec<_> = pieces.iter().map(|piece| (*piece, WRITE)).collect();
                ring.make_available(2 * id, &pieces);
            }
        }
    }

    /// Buffers that have come back, with how many bytes.
    fn used(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| match self {
            Self::Split(ring) => ring.take_used(),
            Self::Packed(ring) => ring.take_used(),
        })
        .map(|(id, length)| (id / 2, length))
        .collect()
    }
}

/// A device whose driver has both rings, of 64 entries, in its memory.
fn receiver(features: Features) -> (SharedMapping, OwnedFd, Device, Rx) {
    let (memory, fd, mut device) = device(features);
    let rx = if features.contains(Features::RING_PACKED) {
        let ring = PlayedPackedRing::new(&memory, RX, 64);
        device.start(0, setup_at(ring.places(), 64, 0x8000_8000)).unwrap();
        Rx::Packed(ring)
    } else {
        let ring = PlayedRing::new(&memory, RX, 64);
        device.start(0, setup(&ring, 0)).unwrap();
        Rx::Split(ring)
    };
    (memory, fd, device, rx)
}

const KINDS: [Features; 3] =
    [Features::empty(), BASIC, Features::VERSION_1.union(Features::RING_PACKED)];

fn place(id: u16) -> usize {
    BUFFERS + usize::from(id) * 0x1000
}

fn packet(bytes: SharedSlice<'_>, verified: bool) -> WholePacket<'_> {
    // What is delivered is what was checked, whatever is there meanwhile.
    WholePacket { verified, head: [u64::MAX, 7], bytes }
}

#[test]
fn each_packet_of_a_burst_has_its_header_and_the_head_that_was_checked() {
    for features in KINDS {
        let (memory, _fd, mut device, mut rx) = receiver(features);
        let header = features.header_length();
        let (from, _packets) = SharedMapping::create("packets", 1 << 16, PageSize::Base).unwrap();
        from.as_slice().write_from(&pattern(1 << 15));
        let lengths = [16, 17, 60, 64, 1514, 2000];
        // Twice, for what is there already is not written.
        for round in 0..2u16 {
            for id in 0..6 {
                rx.make_available(id, &[(guest(place(id)), 2048)]);
            }
            let slices = lengths.map(|length| from.slice(length, length).unwrap());
            let packets = slices.iter().enumerate();
            let verified = |index: usize| (index + usize::from(round)).is_multiple_of(2);
            let packets = packets.map(|(index, bytes)| packet(*bytes, verified(index)));
            assert_eq!(device.put_whole(0, packets), lengths.len());
            assert_eq!(rx.used(), [], "not before it is shown");
            device.flush();
            let expected: Vec<_> =
                (0..).zip(lengths.map(|length| (header + length) as u32)).collect();
            assert_eq!(rx.used(), expected);
            for (index, length) in lengths.into_iter().enumerate() {
                let mut seen = vec![0; header + length];
                memory.slice(place(index as u16), seen.len()).unwrap().read_into(&mut seen);
                let mut said = [0; 12];
                // One buffer, where the header says how many.
                (said[0], said[10]) = (if verified(index) { 2 } else { 0 }, 1);
                assert_eq!(seen[..header], said[..header], "{features:?} {index}");
                let head = [&[0xFF; 8][..], &[7, 0, 0, 0, 0, 0, 0, 0]].concat();
                assert_eq!(seen[header..header + 16], head);
                assert!(seen[header + 16..] == pattern(1 << 15)[length + 16..2 * length]);
            }
        }
    }
}

#[test]
fn a_burst_ends_before_the_packet_that_has_no_simple_place() {
    for features in KINDS {
        let header = features.header_length() as u32;
        // A buffer in two pieces, one that is too small, one that lies across regions, one outside, and none.
        let border = 0x8_0000 - 50;
        let others: [&[(u64, u32)]; 5] = [
            &[(guest(place(9)), 100), (guest(place(9) + 100), 1900)],
            &[(guest(place(9)), header + 63)],
            &[(guest(border), 2048)],
            &[(u64::MAX - 5, 2048)],
            &[],
        ];
        for other in others {
            let (memory, _fd, mut device, mut rx) = receiver(features);
            let (from, _packets) = SharedMapping::create("packets", 4096, PageSize::Base).unwrap();
            rx.make_available(0, &[(guest(place(0)), 2048)]);
            rx.make_available(1, &[(guest(place(1)), 2048)]);
            if !other.is_empty() {
                rx.make_available(2, other);
                rx.make_available(3, &[(guest(place(3)), 2048)]);
            }
            let bytes = from.slice(0, 64).unwrap();
            let packets = || (0..5).map(|_| packet(bytes, false));
            assert_eq!(device.put_whole(0, packets()), 2, "{features:?} {other:?}");
            assert_eq!(device.put_whole(0, packets()), 0);
            device.flush();
            assert_eq!(rx.used(), [(0, header + 64), (1, header + 64)]);
            assert_eq!(device.broken(), 0, "that is for the one packet to find");
            let alone = put(&mut device, &pattern(64));
            match other {
                [] => assert_eq!(alone, Err(NotPut::NoBuffer)),
                [(address, _)] if *address > u64::from(u32::MAX) => {
                    assert_eq!((alone, device.broken()), (Err(NotPut::NotRunning), 1));
                }
                _ => assert!(matches!(alone, Ok(()) | Err(NotPut::TooLong))),
            }
            drop(memory);
        }
    }
}

#[test]
fn what_a_burst_writes_is_in_the_log() {
    for features in [BASIC, Features::VERSION_1 | Features::RING_PACKED] {
        let (_memory, _fd, mut device, mut rx) = receiver(features | Features::LOG_ALL);
        let (log, log_fd) = SharedMapping::create("log", 4096, PageSize::Base).unwrap();
        let watch = MemoryWatch::new().unwrap();
        device.set_log(DirtyLog::map(log_fd.as_fd(), 0, 4096, &watch).unwrap());
        for id in 0..2 {
            // Over a page's end.
            rx.make_available(id, &[(guest(place(2 * id) + 0xF80), 2048)]);
        }
        let (from, _packets) = SharedMapping::create("packets", 4096, PageSize::Base).unwrap();
        let bytes = from.slice(0, 1000).unwrap();
        assert_eq!(device.put_whole(0, (0..2).map(|_| packet(bytes, false))), 2);
        device.flush();
        let is_dirty = |at: usize| {
            let page = guest(at) / 4096;
            let byte: u8 = log.as_slice().read_object((page / 8) as usize).unwrap();
            byte & 1 << (page % 8) != 0
        };
        for id in 0..2 {
            assert!(is_dirty(place(2 * id)) && is_dirty(place(2 * id + 1)), "{features:?} {id}");
        }
        assert!(!is_dirty(place(4)));
    }
}

#[test]
fn a_header_is_read_only_of_a_driver_that_could_ask_for_something() {
    for (features, expected) in [(BASIC, Some(pattern(60))), (BASIC | Features::CSUM, None)] {
        let mut played = Played::new(features, 8);
        // A kind of segmentation that there is not.
        let bytes = [&[0, 0x77][..], &[0; 10], &pattern(60)].concat();
        played.write(BUFFERS, &bytes);
        played.tx.describe(0, (guest(BUFFERS), 72), 0, 0);
        played.tx.describe(1, (guest(BUFFERS), 12), NEXT, 2);
        played.tx.describe(2, (guest(BUFFERS + 12), 60), 0, 0);
        played.tx.make_available(0);
        played.tx.make_available(1);
        assert_eq!(played.sent(), [expected.clone(), expected], "{features:?}");
    }
}

#[test]
fn packets_of_all_sorts_are_handed_over_in_their_order() {
    for features in KINDS.map(|features| features | Features::CSUM) {
        let (memory, _fd, mut device) = device(features);
        let header = features.header_length();
        let whole = |number: u8| [&vec![0; header][..], &[number; 60]].concat();
        let mut packed = PlayedPackedRing::new(&memory, TX, 256);
        let mut split = PlayedRing::new(&memory, TX, 256);
        let is_packed = features.contains(Features::RING_PACKED);
        let (places, base) =
            if is_packed { (packed.places(), 0x8000_8000) } else { (split.places(), 0) };
        if is_packed {
            // The split one has cleared it.
            packed = PlayedPackedRing::new(&memory, TX, 256);
        }
        device.start(1, setup_at(places, 256, base)).unwrap();
        let mut expected = Vec::new();
        for number in 0..100u8 {
            let at = BUFFERS + usize::from(number) * 256;
            let mut bytes = whole(number);
            // Some in three pieces, some with a header that makes no sense.
            let cuts: &[usize] = if number % 3 == 1 { &[5, header, 55] } else { &[header + 60] };
            if number % 7 == 2 {
                bytes[1] = 0x77;
            }
            memory.slice(at, bytes.len()).unwrap().write_from(&bytes);
            expected.push((number % 7 != 2).then_some(vec![number; 60]));
            let mut from = at;
            let pieces: Vec<_> = cuts
                .iter()
                .map(|length| {
                    let piece = (guest(from), *length as u32);
                    from += length;
                    piece
                })
                .collect();
            if is_packed {
                let pieces: Vec<_> = pieces.iter().map(|piece| (*piece, 0)).collect();
                packed.make_available(number.into(), &pieces);
            } else {
                let first = u16::from(number) * 2;
                for (index, piece) in (0..).zip(&pieces) {
                    let flags = if usize::from(index) + 1 < pieces.len() { NEXT } else { 0 };
                    split.describe((first + index) % 256, *piece, flags, (first + index + 1) % 256);
                }
                split.make_available(first);
                // The table has no room for more of them at a time.
                assert_eq!(sent(&mut device), [expected.pop().unwrap()], "{number}");
                let _ = split.take_used();
            }
        }
        let mut seen = sent(&mut device);
        if is_packed {
            assert_eq!(seen.len(), 64, "a turn");
        }
        seen.extend(sent(&mut device));
        assert_eq!(seen, expected);
        assert_eq!(device.broken(), 0);
    }
}
