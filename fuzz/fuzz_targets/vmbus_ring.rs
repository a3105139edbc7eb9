//! A ring whose other end writes anywhere in it: indices, control words, descriptors, payload, also while a packet
//! is being read. At worst the channel is dead; what lies around the rings is never touched.
#![no_main]

use clearway_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use vmbus::{
    Channel, EventFd, GuestBuffer, OutgoingGpaRange, OutgoingPacket, PacketKind, SendError,
    testing::TestMemory,
};
use vmbus_protocol::{
    CONTROL_PAGE_FEATURE_BITS, CONTROL_PAGE_IN, CONTROL_PAGE_INTERRUPT_MASK, CONTROL_PAGE_OUT,
    CONTROL_PAGE_PENDING_SEND_SIZE, TransferPageRange,
};

const PAGE: usize = 4096;
/// Of each direction, control page included.
const PAGES: usize = 3;
/// Bytes of a ring's data area.
const SIZE: usize = (PAGES - 1) * PAGE;
const RINGS: usize = 2 * PAGES * PAGE;

struct Memory {
    rings: GuestBuffer,
    around: [GuestBuffer; 2],
    signals: [EventFd; 2],
}

impl Memory {
    fn new() -> Self {
        let mut memory = TestMemory::new(2 * PAGES + 2);
        let (before, _) = memory.buffer(PAGE as u32);
        let (rings, _) = memory.buffer(RINGS as u32);
        let (behind, _) = memory.buffer(PAGE as u32);
        let signals = [EventFd::new(), EventFd::new()].map(|fd| fd.expect("an eventfd"));
        Self { rings, around: [before, behind], signals }
    }

    /// The two ends of a fresh channel.
    fn channels(&self) -> [Channel; 2] {
        self.rings.write(0, &[0; RINGS]).expect("inside");
        let [to_host, to_guest] = &self.signals;
        let rings = || self.rings.rings(PAGES).expect("rings of three pages");
        let ((up, down), (host_up, host_down)) = (rings(), rings());
        let guest = Channel::new(down, up, to_host.clone(), to_guest.clone());
        let host = Channel::new(host_up, host_down, to_guest.clone(), to_host.clone());
        [host.expect("a fresh ring"), guest.expect("a fresh ring")]
    }
}

/// One thing that only a hostile end writes.
fn scribble(input: &mut Input<'_>, rings: &GuestBuffer) {
    let ring = usize::from(input.byte() & 1) * PAGES * PAGE;
    match input.byte() % 4 {
        0 | 1 => {
            let words = [
                CONTROL_PAGE_IN,
                CONTROL_PAGE_OUT,
                CONTROL_PAGE_INTERRUPT_MASK,
                CONTROL_PAGE_PENDING_SEND_SIZE,
                CONTROL_PAGE_FEATURE_BITS,
            ];
            let at = words[input.below(words.len())];
            // Most indices are such as could be.
            let value = if input.byte() < 200 {
                (input.below(SIZE / 8 + 1) * 8) as u32
            } else {
                input.dword()
            };
            rings.write(ring + at, &value.to_le_bytes()).expect("inside the control page");
        }
        2 => {
            // A descriptor, and perhaps a list of ranges.
            let at = input.below(SIZE / 8 - 8) * 8;
            let kind = input.one_of(&[6u16, 7, 9, 11]).unwrap_or_else(|| input.word());
            let (offset, length) = (input.byte(), input.word() & 0x3FF);
            let mut bytes = Vec::new();
            for word in [kind, offset.into(), length, input.byte().into()] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(input.take(40));
            rings.write(ring + PAGE + at, &bytes).expect("inside the data area");
        }
        _ => {
            let bytes = input.short();
            let at = input.below(RINGS - bytes.len());
            rings.write(at, bytes).expect("inside the rings");
        }
    }
}

/// Sends a packet that is well-formed as far as an honest sender's are.
fn send(input: &mut Input<'_>, channel: &mut Channel) -> Result<(), SendError> {
    let transaction_id = input.byte().into();
    let frames = [1, 2, 3, 4, 5, 6, 7, 8];
    let counts = [input.below(frames.len() + 1), input.below(frames.len() + 1)];
    let kind = input.byte() % 8;
    let payload = vec![0xA5; input.below(9000)];
    let payload = if input.bit() { &payload[..] } else { input.short() };
    match kind {
        0..=2 => {
            let packet = OutgoingPacket::InBand { transaction_id, completion_requested: kind == 0 };
            channel.send(packet, payload)
        }
        3 | 4 => channel.send(OutgoingPacket::Completion { transaction_id }, payload),
        5 | 6 => {
            let ranges = counts.map(|count| OutgoingGpaRange {
                byte_count: (count * PAGE) as u32,
                byte_offset: 0,
                page_frames: &frames[..count],
            });
            channel.send(OutgoingPacket::GpaDirect { transaction_id, ranges: &ranges }, payload)
        }
        _ => {
            let ranges =
                counts.map(|count| TransferPageRange { byte_count: 8, byte_offset: count as u32 });
            let packet =
                OutgoingPacket::TransferPages { transaction_id, page_set_id: 1, ranges: &ranges };
            channel.send(packet, payload)
        }
    }
}

/// Reads all there is; the other end writes meanwhile.
fn receive(input: &mut Input<'_>, channel: &mut Channel, rings: &GuestBuffer) {
    let mut packets = 0;
    let mut bytes = 0;
    let scribbles = input.bit();
    while let Ok(Some(packet)) = channel.receive() {
        packets += 1;
        if scribbles && packets < 8 {
            scribble(input, rings);
        }
        match packet.kind {
            PacketKind::GpaDirect { ranges } => {
                assert!(!ranges.is_empty() && ranges.len() <= SIZE / 16);
                for (range, number) in ranges.zip(0..) {
                    assert!(number < SIZE / 16);
                    let Ok(range) = range else { continue };
                    assert!(range.byte_count > 0 && range.byte_offset < PAGE as u32);
                    let end = u64::from(range.byte_offset) + u64::from(range.byte_count);
                    assert_eq!(end.div_ceil(PAGE as u64), range.page_count() as u64);
                    assert!((0..range.page_count()).all(|page| range.page_frame(page).is_some()));
                    assert_eq!(range.page_frame(range.page_count()), None);
                }
            }
            PacketKind::TransferPages { ranges, .. } => assert!(ranges.count() <= SIZE / 8),
            PacketKind::InBand | PacketKind::Completion => {}
        }
        let mut copy = vec![0; packet.payload.len()];
        assert_eq!(packet.payload.read_into(&mut copy), copy.len());
        bytes += copy.len() + 24;
        // What is in the ring is read once; more may have been said to be there meanwhile.
        assert!(scribbles || bytes <= SIZE, "it never ends");
        assert!(packets <= 16 * SIZE / 24, "it never ends");
    }
}

thread_local! {
    static MEMORY: Memory = Memory::new();
}

fuzz_target!(|data: &[u8]| MEMORY.with(|memory| session(Input::new(data), memory)));

fn session(mut input: Input<'_>, memory: &Memory) {
    let [mut host, mut guest] = memory.channels();
    while !input.is_empty() {
        let channel = if input.bit() { &mut guest } else { &mut host };
        match input.byte() % 10 {
            0..=2 => scribble(&mut input, &memory.rings),
            3 | 4 => {
                let _ = send(&mut input, channel);
            }
            5 => {
                let _ = channel.flush();
            }
            6 => {
                if let Err(SendError::Full { needed }) = send(&mut input, channel) {
                    let _ = channel.request_room(needed);
                }
            }
            7 => {
                let _ = channel.prepare_to_wait();
                let _ = channel.woken();
            }
            _ => receive(&mut input, channel, &memory.rings),
        }
    }
    for buffer in &memory.around {
        let mut bytes = [0; PAGE];
        buffer.read(0, &mut bytes).expect("inside");
        assert!(bytes.iter().all(|byte| *byte == 0), "written outside of the rings");
    }
    // The same memory is a good ring for the next channel.
    let [mut host, mut guest] = memory.channels();
    let packet = OutgoingPacket::Completion { transaction_id: 77 };
    guest.send(packet, b"hello").expect("room");
    guest.flush().expect("a fresh ring");
    let packet = host.receive().expect("a fresh ring").expect("a packet");
    assert_eq!((packet.transaction_id, packet.payload.len()), (77, 8));
}
