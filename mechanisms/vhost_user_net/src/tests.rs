//! Rings that a driver plays, rightly and wrongly.

mod burst;
mod packed;

use linux_network::{ChecksumState, PacketOffload};
use proptest::prelude::*;
use shared_memory::{MemoryWatch, PageSize, SharedMapping, SharedSlice};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use crate::{
    Device, Features, NotPut, Packet, RingError, Sent,
    device::{Notifiers, QueueSetup},
    memory::{DirtyLog, GuestMemory, RegionAddress},
    ring::Addresses,
    split::passes,
    testing::{INDIRECT, NEXT, PlayedRing, WRITE},
};

/// The guest's memory begins there, for itself and for its front-end.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7F00_0000_0000;
const MEMORY: usize = 0x10_0000;
/// Its receive ring, its transmit ring, and its buffers.
const RX: usize = 0;
const TX: usize = 0x4000;
const BUFFERS: usize = 0x1_0000;
const BASIC: Features = Features::VERSION_1.union(Features::MRG_RXBUF);

fn guest(at: usize) -> u64 {
    GUEST + at as u64
}

/// A device with one pair, its driver played.
struct Played {
    memory: SharedMapping,
    _fd: OwnedFd,
    device: Device,
    rx: PlayedRing,
    tx: PlayedRing,
}

fn setup_at(places: [usize; 3], size: u16, base: u32) -> QueueSetup {
    let [descriptors, driver, device] = places.map(|at| USER + at as u64);
    let at = Addresses { descriptors, driver, device };
    QueueSetup { at, size, base, enabled: true, notifiers: Notifiers::default() }
}

fn setup(ring: &PlayedRing, base: u32) -> QueueSetup {
    setup_at(ring.places(), ring.size(), base)
}

/// A device with memory for its guest.
fn device(features: Features) -> (SharedMapping, OwnedFd, Device) {
    let (memory, fd) = SharedMapping::create("guest", MEMORY, PageSize::Base).unwrap();
    let mut device = Device::new(1).unwrap();
    device.set_features(features);
    let watch = MemoryWatch::new().unwrap();
    device.set_memory(map(&fd, &watch), Arc::clone(&watch), &[]).unwrap();
    (memory, fd, device)
}

/// What a packet is, if it makes sense.
fn plain<'b>(sent: Sent<'b, '_>) -> Option<(Packet<'b>, PacketOffload)> {
    match sent {
        Sent::Plain(packet) => Some((packet, PacketOffload::default())),
        Sent::Other(unread) => unread.read(),
    }
}

/// What a device takes of the transmit queue: bytes, or `None` for what is malformed.
fn sent(device: &mut Device) -> Vec<Option<Vec<u8>>> {
    let mut packets = Vec::new();
    device.transmitted(0, 64, |burst| {
        packets.extend(burst.map(|sent| match plain(sent) {
            None => None,
            Some((packet, _)) => {
                let mut bytes = vec![0; packet.length];
                let mut at = 0;
                for piece in packet.pieces {
                    at += piece.read_into(&mut bytes[at..]);
                }
                let head: Vec<u8> = packet.head.iter().flat_map(|w| w.to_le_bytes()).collect();
                let known = bytes.len().min(16);
                assert_eq!(head[..known], bytes[..known]);
                Some(bytes)
            }
        }));
    });
    packets
}

/// Puts a packet, in two pieces, into the receive queue, and shows it.
fn put(device: &mut Device, bytes: &[u8]) -> Result<(), NotPut> {
    let (memory, _fd) = SharedMapping::create("packet", 1 << 17, PageSize::Base).unwrap();
    let piece = memory.slice(5, bytes.len()).unwrap();
    piece.write_from(bytes);
    let (head, _) = bytes.split_at(bytes.len().min(16));
    let offload = PacketOffload { checksum: ChecksumState::Verified, segmentation: None };
    let parts = piece.split(40);
    let put = device.put(0, &offload, bytes.len(), &[head], [parts.0, parts.1].into_iter());
    device.flush();
    put
}

fn map(fd: &OwnedFd, watch: &Arc<MemoryWatch>) -> GuestMemory {
    // In two regions, so that there is a border to lie across.
    let first = RegionAddress { guest: GUEST, user: USER, length: 0x8_0000 };
    let second = RegionAddress { guest: GUEST + 0x8_0000, user: USER + 0x8_0000, length: 0x8_0000 };
    let memory = GuestMemory::default().with(first, fd.as_fd(), 0, watch).unwrap();
    memory.with(second, fd.as_fd(), 0x8_0000, watch).unwrap()
}

impl Played {
    fn new(features: Features, size: u16) -> Self {
        let (memory, fd, mut device) = device(features);
        let (rx, tx) = (PlayedRing::new(&memory, RX, size), PlayedRing::new(&memory, TX, size));
        device.start(0, setup(&rx, 0)).unwrap();
        device.start(1, setup(&tx, 0)).unwrap();
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

    fn sent(&mut self) -> Vec<Option<Vec<u8>>> {
        sent(&mut self.device)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), NotPut> {
        put(&mut self.device, bytes)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 % 251) as u8).collect()
}

#[test]
fn packets_are_gathered_from_whatever_pieces_they_lie_in() {
    let mut played = Played::new(BASIC | Features::INDIRECT_DESC, 8);
    let packet = pattern(3000);
    let whole = [&[0u8; 12][..], &packet].concat();
    // Header and data together; the header cut in two; a table; across the border of two regions; piece by piece.
    let border = 0x8_0000 - 100;
    played.write(BUFFERS, &whole);
    played.write(border, &whole);
    let cuts: [&[usize]; 3] = [&[3012], &[5, 7, 3000], &[12, 1, 2, 2997]];
    for (turn, cuts) in cuts.iter().enumerate() {
        let mut at = BUFFERS;
        for (index, length) in cuts.iter().enumerate() {
            let flags = if index + 1 < cuts.len() { NEXT } else { 0 };
            let index = index as u16;
            played.tx.describe(index, (guest(at), *length as u32), flags, index + 1);
            at += length;
        }
        played.tx.make_available(0);
        assert_eq!(played.sent(), [Some(packet.clone())], "{turn}");
        assert_eq!(played.tx.take_used(), Some((0, 0)));
    }
    let table = BUFFERS + 0x4000;
    played.tx.describe_in(table, 0, (guest(BUFFERS), 12), NEXT, 2);
    played.tx.describe_in(table, 2, (guest(BUFFERS + 12), 3000), 0, 0);
    played.tx.describe(5, (guest(table), 48), INDIRECT, 0);
    played.tx.describe(6, (guest(border), 3012), 0, 0);
    played.tx.make_available(5);
    played.tx.make_available(6);
    assert_eq!(played.sent(), [Some(packet.clone()), Some(packet)]);
    let used = [played.tx.take_used(), played.tx.take_used(), played.tx.take_used()];
    assert_eq!(used, [Some((5, 0)), Some((6, 0)), None]);
}

#[test]
fn a_packet_takes_as_many_buffers_as_it_needs_and_gives_the_others_back() {
    let mut played = Played::new(BASIC, 8);
    let packet = pattern(2500);
    assert_eq!(played.put(&packet), Err(NotPut::NoBuffer));
    for index in 0..3u16 {
        let at = BUFFERS + usize::from(index) * 0x1000;
        played.rx.describe(index, (guest(at), 1000), WRITE, 0);
        played.rx.make_available(index);
        // Not before the third is there; then nothing is lost of the first two.
        let expected = if index < 2 { Err(NotPut::NoBuffer) } else { Ok(()) };
        assert_eq!(played.put(&packet), expected, "{index}");
    }
    let used: Vec<_> = std::iter::from_fn(|| played.rx.take_used()).collect();
    assert_eq!(used, [(0, 1000), (1, 1000), (2, 512)]);
    let mut seen = played.read(BUFFERS, 1000);
    seen.extend(played.read(BUFFERS + 0x1000, 1000));
    seen.extend(played.read(BUFFERS + 0x2000, 512));
    // Verified; three buffers.
    assert_eq!(seen[..12], [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert!(seen[12..] == packet);
}

#[test]
fn a_driver_without_mergeable_buffers_gets_what_fits_into_one() {
    let mut played = Played::new(Features::empty(), 8);
    played.rx.describe(0, (guest(BUFFERS), 10), WRITE | NEXT, 1);
    played.rx.describe(1, (guest(BUFFERS + 0x1000), 1514), WRITE, 0);
    played.rx.make_available(0);
    assert_eq!(played.put(&pattern(1515)), Err(NotPut::NoBuffer), "one more buffer could come");
    played.rx.make_available(0);
    assert_eq!(played.put(&pattern(1515)), Err(NotPut::TooLong));
    assert_eq!(played.put(&pattern(1514)), Ok(()));
    assert_eq!(played.rx.take_used(), Some((0, 1524)));
    // A legacy header has ten bytes.
    assert_eq!(played.read(BUFFERS, 10), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(played.read(BUFFERS + 0x1000, 1514) == pattern(1514));
}

#[test]
fn what_a_driver_may_not_do_breaks_that_queue_alone() {
    type Deed = fn(&mut PlayedRing);
    let deeds: [(&str, Deed); 9] = [
        ("a circle", |ring| {
            ring.describe(0, (guest(BUFFERS), 4), NEXT, 0);
            ring.make_available(0);
        }),
        ("a descriptor that is none", |ring| ring.make_available(8)),
        ("a next one that is none", |ring| {
            ring.describe(0, (guest(BUFFERS), 4), NEXT, 8);
            ring.make_available(0);
        }),
        ("more than there are", |ring| ring.set_available(9)),
        ("a wrong direction", |ring| {
            ring.describe(0, (guest(BUFFERS), 100), WRITE, 0);
            ring.make_available(0);
        }),
        ("memory that is none", |ring| {
            ring.describe(0, (guest(MEMORY) - 4, 100), 0, 0);
            ring.make_available(0);
        }),
        ("memory that wraps", |ring| {
            ring.describe(0, (u64::MAX - 3, u32::MAX), 0, 0);
            ring.make_available(0);
        }),
        ("less than a header", |ring| {
            ring.describe(0, (guest(BUFFERS), 11), 0, 0);
            ring.make_available(0);
        }),
        ("a table within a table", |ring| {
            ring.describe_in(BUFFERS, 0, (guest(BUFFERS), 16), INDIRECT, 0);
            ring.describe(0, (guest(BUFFERS), 16), INDIRECT, 0);
            ring.make_available(0);
        }),
    ];
    for (what, deed) in deeds {
        let mut played = Played::new(BASIC | Features::INDIRECT_DESC, 8);
        deed(&mut played.tx);
        assert!(played.sent().is_empty(), "{what}");
        assert_eq!(played.device.broken(), 1, "{what}");
        assert!(played.sent().is_empty() && played.device.prepare_to_wait(), "{what}");
        // The other goes on, and so does this one when it was set up again.
        played.rx.describe(0, (guest(BUFFERS), 2000), WRITE, 0);
        played.rx.make_available(0);
        assert_eq!(played.put(b"a packet of some bytes"), Ok(()), "{what}");
        played.device.stop(1);
        played.tx = PlayedRing::new(&played.memory, TX, 8);
        played.device.start(1, setup(&played.tx, 0)).unwrap();
        played.write(BUFFERS, &[0; 12]);
        played.tx.describe(0, (guest(BUFFERS), 40), 0, 0);
        played.tx.make_available(0);
        assert_eq!(played.sent().len(), 1, "{what}");
    }
}

#[test]
fn a_ring_is_refused_that_is_not_all_in_memory_or_of_no_size() {
    let mut played = Played::new(BASIC, 8);
    let ring = PlayedRing::new(&played.memory, RX, 8);
    let refused = |device: &mut Device, change: fn(&mut QueueSetup)| {
        let mut setup = setup(&ring, 0);
        change(&mut setup);
        device.start(0, setup).unwrap_err()
    };
    let device = &mut played.device;
    let size = refused(device, |setup| setup.size = 6);
    assert_eq!(size, RingError::Size { size: 6 });
    let outside = |part| RingError::Outside { part };
    let found = refused(device, |setup| setup.at.descriptors = USER + MEMORY as u64 - 16);
    assert_eq!(found, outside("descriptor table"));
    let found = refused(device, |setup| setup.at.driver += 1);
    assert_eq!(found, outside("available ring"));
    let found = refused(device, |setup| setup.at.device = guest(0));
    assert_eq!(found, outside("used ring"), "a guest's address is not the front-end's");
}

#[test]
fn a_queue_that_stops_goes_on_where_it_was() {
    let mut played = Played::new(BASIC, 8);
    played.write(BUFFERS, &[0; 12]);
    played.tx.describe(3, (guest(BUFFERS), 60), 0, 0);
    for _ in 0..11 {
        played.tx.make_available(3);
        assert_eq!(played.sent().len(), 1);
    }
    played.tx.make_available(3);
    assert_eq!(played.device.stop(1), Some(11));
    assert!(played.sent().is_empty());
    played.device.start(1, QueueSetup { enabled: false, ..setup(&played.tx, 11) }).unwrap();
    // What is sent meanwhile goes nowhere.
    assert!(played.sent().is_empty());
    assert_eq!(std::iter::from_fn(|| played.tx.take_used()).count(), 12);
    played.device.set_enabled(1, true);
    played.tx.make_available(3);
    assert_eq!(played.sent().len(), 1);
}

#[test]
fn drivers_are_interrupted_and_kick_as_they_and_the_device_say() {
    // By flags.
    let mut played = Played::new(BASIC, 8);
    assert_eq!(played.tx.used_flags(), 1, "no kicks while the device looks by itself");
    assert!(played.device.prepare_to_wait());
    assert_eq!(played.tx.used_flags(), 0);
    played.tx.describe(0, (guest(BUFFERS), 60), 0, 0);
    played.tx.make_available(0);
    assert!(!played.device.prepare_to_wait());
    played.device.woken();
    assert_eq!(played.tx.used_flags(), 1);
    // By index.
    let mut played = Played::new(BASIC | Features::EVENT_IDX, 8);
    played.tx.describe(0, (guest(BUFFERS), 60), 0, 0);
    for turn in 1..=3 {
        played.tx.make_available(0);
        assert_eq!(played.sent().len(), 1);
        assert!(played.device.prepare_to_wait());
        assert_eq!(played.tx.available_event(), turn);
    }
    assert!(passes(3, 3, 4) && !passes(4, 3, 4) && !passes(2, 3, 4));
    assert!(passes(u16::MAX, u16::MAX - 1, 1) && !passes(1, u16::MAX - 1, 1));
}

#[test]
fn what_is_written_is_noted_in_the_log() {
    let mut played = Played::new(BASIC | Features::LOG_ALL, 8);
    // A bit each for the pages up to the end of memory, and not a whole word.
    let bytes = (GUEST as usize + MEMORY) / 4096 / 8 + 1;
    let fd = shared_memory::create_memfd("log", bytes, PageSize::Base).unwrap();
    let watch = MemoryWatch::new().unwrap();
    let access = shared_memory::Access::Read;
    let read = SharedMapping::map_bytes_guarded(fd.as_fd(), 0, bytes, access, &watch).unwrap();
    played.device.set_log(DirtyLog::map(fd.as_fd(), 0, bytes as u64, &watch).unwrap());
    let across = BUFFERS + 0x1000 - 20;
    played.rx.describe(0, (guest(across), 4096), WRITE, 0);
    played.rx.make_available(0);
    played.put(&pattern(100)).unwrap();
    let dirty: Vec<usize> = (0..bytes * 8)
        .filter(|page| read.as_slice().read_object::<u8>(page / 8).unwrap() & 1 << (page % 8) != 0)
        .map(|page| page * 4096 - GUEST as usize)
        .collect();
    assert_eq!(dirty, [RX + 0x2000, BUFFERS, BUFFERS + 0x1000]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_is_in_a_ring_nothing_hangs_and_every_buffer_comes_back_once(
        descriptors in proptest::collection::vec(
            (0usize..0x12_0000, 0u32..5000, any::<u16>(), 0u16..10), 8),
        heads in proptest::collection::vec(0u16..9, 0..12),
        jump in proptest::option::of(any::<u16>()),
        headers in proptest::collection::vec(any::<u8>(), 64),
        features in any::<u64>(),
    ) {
        let features = Features::from_bits_truncate(features) - Features::RING_PACKED;
        let mut played = Played::new(features, 8);
        for at in (BUFFERS..BUFFERS + 0x2000).step_by(64) {
            played.write(at, &headers);
        }
        for ring in [RX, TX] {
            let mut ring = PlayedRing::new(&played.memory, ring, 8);
            for (index, (at, length, flags, next)) in descriptors.iter().enumerate() {
                // As a rule within memory.
                ring.describe(index as u16, (guest(*at), *length), flags & 7, *next);
            }
            for head in heads.iter().take(8) {
                ring.make_available(*head);
            }
            if let Some(jump) = jump {
                ring.set_available(jump);
            }
        }
        let mut used = Vec::new();
        for _ in 0..4 {
            played.sent();
            let _ = played.put(&pattern(1200));
            let _ = played.put(&pattern(60));
            while let Some((id, _)) = played.tx.take_used() {
                used.push(id);
            }
        }
        let expected = heads.get(..used.len().min(heads.len()));
        if jump.is_none() {
            prop_assert_eq!(Some(&used[..]), expected);
        }
        prop_assert!(played.rx.used_index() <= 8 || jump.is_some());
    }
}
