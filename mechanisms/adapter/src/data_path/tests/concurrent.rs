//! c45: descriptors become visible in ring order, each after all that it speaks of, while another thread polls
//! them as vector code does.

use std::sync::atomic::{AtomicBool, AtomicU64};

use avf_protocol::transmit::TxData;

use super::*;

/// Descriptors that the reader looks at together, from the last to the first.
const LOOK: u16 = 8;
/// Descriptors that are handed back together.
const REFILL: u16 = 16;

/// Tells the other thread that it is over when it goes, also by a failed test.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A payload that is told by its number.
fn numbered(number: u32) -> Vec<u8> {
    let length = 46 + (number as usize * 37) % 1100;
    let mut bytes = frame(1, 0, &pattern(length));
    bytes[14..18].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// The driver of a VF that only receives.
struct Reader {
    guest: Guest,
    head: u16,
    tail: u16,
    frame: Vec<u8>,
    numbers: Vec<u32>,
}

impl Reader {
    /// Looks once; returns whether there was anything.
    fn look(&mut self) -> bool {
        let Guest { rx, length, .. } = &self.guest;
        let length = *length;
        let mut qw1 = [0; LOOK as usize];
        for ahead in (0..LOOK).rev() {
            qw1[usize::from(ahead)] = rx.load((self.head + ahead) % length, 1, Ordering::Acquire);
        }
        let done = qw1.iter().take_while(|qw1| **qw1 & 1 != 0).count();
        // Whoever sees a later one sees all before it, which it has read after that one.
        assert!(qw1[done..].iter().all(|qw1| qw1 & 1 == 0), "done out of order: {qw1:x?}");
        for qw1 in &qw1[..done] {
            self.take(*qw1);
        }
        done > 0
    }

    /// Takes in the descriptor at the head, whose quadword 1 was read before everything else.
    fn take(&mut self, qw1: u64) {
        let Guest { rx, memory, length, buffer_size, .. } = &self.guest;
        let [qw0, _, qw2, qw3] = rx.read(self.head);
        let back = RxLegacy([qw0, qw1, qw2, qw3]);
        assert_eq!((qw0, qw2, qw3), (0, 0, 0), "they were written before quadword 1");
        let at = RX_BUFFERS + u64::from(self.head) * RX_STRIDE;
        let mut part = vec![0; back.length().into()];
        memory.slice(at as usize, part.len()).unwrap().read_into(&mut part);
        self.frame.extend(part);
        if back.end_of_packet() {
            let number = u32::from_be_bytes(self.frame[14..18].try_into().unwrap());
            assert!(self.frame == numbered(number), "the bytes of frame {number} are in place");
            self.numbers.push(number);
            self.frame.clear();
        } else {
            assert_eq!(back.length(), *buffer_size);
        }
        self.head = (self.head + 1) % length;
        if (self.head + length - 1 - self.tail) % length >= REFILL {
            self.refill();
        }
    }

    fn refill(&mut self) {
        let Guest { rx, length, rx_doorbells, .. } = &self.guest;
        for _ in 0..REFILL {
            let address = RX_BUFFERS + u64::from(self.tail) * RX_STRIDE;
            rx.store(self.tail, 0, address, Ordering::Relaxed);
            self.tail = (self.tail + 1) % length;
            rx.store(self.tail, 1, 0, Ordering::Relaxed);
        }
        rx_doorbells.store(0, self.tail.into());
    }
}

#[test]
fn c45_descriptors_are_done_in_ring_order_under_concurrent_polling() {
    const FRAMES: u32 = 40_000;
    let mut rig = Rig::with(2, 512, 256, VlanMatch::UntaggedOrZero);
    let guest = rig.guests.remove(1);
    let over = AtomicBool::new(false);
    let taken = AtomicU64::new(0);
    let numbers = std::thread::scope(|scope| {
        let (over, taken) = (&over, &taken);
        let reader = scope.spawn(move || {
            let tail = guest.length - 1;
            let mut reader =
                Reader { guest, head: 0, tail, frame: Vec::new(), numbers: Vec::new() };
            let mut idle = 0u32;
            loop {
                // In this order: what was there when it was over is still seen.
                let last = over.load(Ordering::Acquire);
                if reader.look() {
                    taken.store(reader.numbers.len() as u64, Ordering::Release);
                } else {
                    if last {
                        assert!(reader.frame.is_empty(), "a frame without its end");
                        return reader.numbers;
                    }
                    idle += 1;
                    if idle.is_multiple_of(4096) {
                        std::thread::yield_now();
                    }
                }
            }
        });
        let end = Over(over);
        let mut number = 0;
        while number < FRAMES {
            for _ in 0..1 + number % 64 {
                let bytes = numbered(number);
                if number % 7 == 0 {
                    // The general path, between frames of the fast one.
                    let (first, second) = bytes.split_at(20);
                    rig.guest(0).send_with(&[first, second], Default::default(), None, None);
                } else {
                    rig.guest(0).send(&bytes);
                }
                number += 1;
            }
            rig.run();
            // Mostly the reader is to wait for the very next descriptor; now and then it may lag behind.
            let lag = if number % 8 == 0 { 8 } else { 0 };
            while rig.stats(1).receive.unicast > taken.load(Ordering::Acquire) + lag
                && !reader.is_finished()
            {
                std::thread::yield_now();
            }
            if reader.is_finished() {
                break; // It has failed; joining says how.
            }
        }
        drop(end);
        (reader.join().unwrap(), number)
    });
    let (numbers, sent) = numbers;
    assert!(numbers.is_sorted_by(|a, b| a < b), "frames keep their order");
    let receive = rig.stats(1).receive;
    assert_eq!(receive.unicast, numbers.len() as u64);
    assert_eq!(receive.unicast + receive.no_buffer, u64::from(sent));
    assert!(receive.no_buffer < receive.unicast / 10, "most of it was polled while it came in");
}

/// A sender that rewrites its frames while they are being forwarded gets none where it may not: what was decided
/// on is what is delivered.
#[test]
fn what_was_decided_on_is_what_is_delivered() {
    const ROUNDS: usize = 3_000;
    let mut rig = Rig::with(3, 128, 2048, VlanMatch::Any);
    for (number, vlan) in [(1, 7), (2, 7), (3, 8)] {
        let vlan = nic_switch::VlanPolicy::Access(vlan);
        let policy = nic_switch::VPortPolicy { vlan, ..Default::default() };
        rig.path.switch().set_policy(VPortId::new(number).unwrap(), policy).unwrap();
    }
    let heads: Vec<Vec<u8>> = [(1, 0, 0x88B5u16), (2, 0, 0x88B5), (1, 9, 0x0800), (1, 0, 0x8100)]
        .into_iter()
        .map(|(to, from, kind)| [&mac(to)[..], &mac(from), &kind.to_be_bytes()].concat())
        .collect();
    let bytes = frame(1, 0, &pattern(200));
    let at = rig.guest(0).place(&bytes);
    let memory = rig.guests[0].memory.clone();
    let over = AtomicBool::new(false);
    let mut received = 0;
    std::thread::scope(|scope| {
        let (over, heads) = (&over, &heads);
        scope.spawn(move || {
            let place = memory.slice(at as usize, 14).unwrap();
            while !over.load(Ordering::Relaxed) {
                for head in heads {
                    place.write_from(head);
                }
            }
        });
        let _end = Over(over);
        for round in 0..ROUNDS {
            let guest = rig.guest(0);
            for _ in 0..20 {
                let data = TxData::new(at, if round % 3 == 0 { 100 } else { bytes.len() as u16 });
                if round % 3 == 0 {
                    guest.descriptor(data.0);
                    let rest = TxData::new(at + 100, bytes.len() as u16 - 100);
                    guest.descriptor(rest.with_end_of_packet().with_report_status().0);
                } else {
                    guest.descriptor(data.with_end_of_packet().with_report_status().0);
                }
            }
            guest.ring();
            rig.run();
            while let Some((frame, _)) = rig.guest(1).receive() {
                assert_eq!(frame[..12], [mac(1), mac(0)].concat());
                assert_ne!(frame[12..14], [0x81, 0x00], "the guest may not tag");
                assert_eq!(frame[14..], bytes[14..]);
                received += 1;
            }
            rig.guest(1).repost();
            if round % 300 == 0 {
                std::thread::yield_now();
            }
        }
    });
    assert_eq!(rig.stats(1).receive.unicast, received);
    assert_eq!(rig.stats(2), FunctionStats::default(), "another VLAN");
    rig.guest(0).send(&bytes);
    rig.run();
    assert_eq!(rig.guest(1).receive_frame(), bytes);
    let sent = rig.stats(0).transmit;
    assert_eq!(sent.frames() + sent.discards() + sent.errors(), 20 * ROUNDS as u64 + 1);
}
