//! One direction of a cable: frames in a ring of shared memory, from one producer to one consumer.
//!
//! ```text
//! byte 0     head: bytes ever produced, modulo 2^32        (written by the producer)
//! byte 64    tail: bytes ever consumed, modulo 2^32        (written by the consumer)
//! byte 128   waiting: 1 while the consumer wants a wake-up (set by the consumer, cleared by the producer)
//! byte 4096  records, each aligned to 64 bytes: length (4 bytes), 4 bytes of zero, the frame
//! ```
//!
//! A record of length [`SKIP`] fills the rest of the ring before its end. Each side keeps its own position
//! to itself and believes nothing of what the other writes before it has checked it, so that a hostile peer
//! can only garble or end its own cable.

use std::sync::atomic::{Ordering, fence};

use shared_memory::{SharedMapping, SharedSlice};

use crate::FrameBurst;

/// Bytes of records in a ring; a power of two.
pub(super) const RING: u32 = 4 << 20;
/// Bytes of the memory of a ring.
pub(super) const MEMORY: usize = RECORDS + RING as usize;

const HEAD: usize = 0;
const TAIL: usize = 64;
const WAITING: usize = 128;
const RECORDS: usize = 4096;
const RECORD_HEADER: u32 = 8;
const ALIGNMENT: u32 = 64;
/// Length of a record that only fills the ring to its end.
const SKIP: u32 = u32::MAX;

/// What a peer did that no peer may do.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct Violation(pub(super) &'static str);

/// Bytes that a frame's record takes.
fn record_size(length: u32) -> Option<u32> {
    length.checked_add(RECORD_HEADER)?.checked_next_multiple_of(ALIGNMENT)
}

/// `length` bytes of the records from `position` on.
fn at(memory: &SharedMapping, position: u32, length: usize) -> Option<SharedSlice<'_>> {
    memory.as_slice().get(RECORDS + (position % RING) as usize, length)
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Producer {
    memory: SharedMapping,
    head: u32,
    /// The consumer's position when it was last looked at.
    tail: u32,
}

impl Producer {
    /// The end that writes into fresh memory of [`MEMORY`] bytes.
    pub(super) fn new(memory: SharedMapping) -> Self {
        Self { memory, head: 0, tail: 0 }
    }

    /// Bytes of records that may be written; looks at the consumer's position if that is too few.
    fn room(&mut self, wanted: u32) -> Result<u32, Violation> {
        let used = self.head.wrapping_sub(self.tail);
        if RING - used >= wanted {
            return Ok(RING - used);
        }
        let tail = self.memory.as_slice().load_u32(TAIL, Ordering::Acquire).unwrap_or(self.tail);
        let used = self.head.wrapping_sub(tail);
        if used > RING || !tail.is_multiple_of(ALIGNMENT) {
            return Err(Violation("moved its end of the ring to where nothing was sent"));
        }
        self.tail = tail;
        Ok(RING - used)
    }

    /// Writes a frame's record; false if there is no room. The consumer sees it after
    /// [`publish`](Self::publish).
    pub(super) fn push(&mut self, frame: &[u8]) -> Result<bool, Violation> {
        let Some((length, size)) =
            u32::try_from(frame.len()).ok().and_then(|length| Some((length, record_size(length)?)))
        else {
            return Ok(false);
        };
        let to_end = RING - self.head % RING;
        let skip = if size > to_end { to_end } else { 0 };
        let needed = size.saturating_add(skip);
        if needed > RING || self.room(needed)? < needed {
            return Ok(false);
        }
        if skip > 0 {
            self.write_header(SKIP);
            self.head = self.head.wrapping_add(skip);
        }
        self.write_header(length);
        let start = self.head.wrapping_add(RECORD_HEADER);
        if let Some(place) = at(&self.memory, start, frame.len()) {
            place.write_from(frame);
        }
        self.head = self.head.wrapping_add(size);
        Ok(true)
    }

    fn write_header(&self, length: u32) {
        if let Some(place) = at(&self.memory, self.head, 8) {
            place.write_object(0, &[length, 0]);
        }
    }

    /// Whether the consumer wants a wake-up.
    #[cfg(test)]
    pub(super) fn is_waited_for(&self) -> bool {
        self.memory.as_slice().load_u32(WAITING, Ordering::Relaxed) == Some(1)
    }

    /// Shows the consumer all that was pushed; true if it wants to be woken.
    pub(super) fn publish(&mut self) -> bool {
        let memory = self.memory.as_slice();
        memory.store_u32(HEAD, self.head, Ordering::Release);
        // Between our head and its waiting word: see `Consumer::arm`.
        fence(Ordering::SeqCst);
        if memory.load_u32(WAITING, Ordering::Relaxed) != Some(1) {
            return false;
        }
        memory.store_u32(WAITING, 0, Ordering::Relaxed);
        true
    }
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Consumer {
    memory: SharedMapping,
    tail: u32,
    /// The producer's position when it was last looked at.
    head: u32,
}

/// What came out of the ring.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub(super) struct Popped {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) too_long: u64,
    pub(super) too_short: u64,
}

impl Consumer {
    /// The end that reads from the peer's memory, of which at least [`MEMORY`] bytes are mapped.
    pub(super) fn new(memory: SharedMapping) -> Self {
        Self { memory, tail: 0, head: 0 }
    }

    /// Looks where the producer is; returns the bytes of records to be read.
    fn available(&mut self) -> Result<u32, Violation> {
        let head = self.memory.as_slice().load_u32(HEAD, Ordering::Acquire).unwrap_or(self.tail);
        let available = head.wrapping_sub(self.tail);
        if available > RING || !available.is_multiple_of(ALIGNMENT) {
            return Err(Violation("moved its end of the ring beyond what the ring holds"));
        }
        self.head = head;
        Ok(available)
    }

    /// Appends frames to the burst, as many as there are and there is room for.
    pub(super) fn pop(
        &mut self,
        burst: &mut FrameBurst,
        shortest: usize,
    ) -> Result<Popped, Violation> {
        let mut popped = Popped::default();
        let mut available = self.available()?;
        let start = self.tail;
        while available > 0 && !burst.is_full() {
            // Read once, then checked, then used.
            let length = at(&self.memory, self.tail, 4)
                .and_then(|place| place.read_object::<u32>(0))
                .unwrap_or(SKIP);
            let to_end = RING - self.tail % RING;
            let size = if length == SKIP { Some(to_end) } else { record_size(length) };
            let size = size
                .filter(|size| *size <= available.min(to_end))
                .ok_or(Violation("sent a frame longer than what it said it had sent"))?;
            self.tail = self.tail.wrapping_add(size);
            available -= size;
            if length == SKIP {
                continue;
            }
            let (length, start) =
                (length as usize, self.tail.wrapping_sub(size).wrapping_add(RECORD_HEADER));
            if length > burst.max_frame() {
                popped.too_long += 1;
            } else if length < shortest {
                popped.too_short += 1;
            } else if let (Some(slot), Some(place)) = (
                burst.reserve().and_then(|slot| slot.get_mut(..length)),
                at(&self.memory, start, length),
            ) {
                place.read_into(slot);
                burst.commit(length);
                popped.frames += 1;
                popped.bytes += length as u64;
            }
        }
        if self.tail != start {
            self.memory.as_slice().store_u32(TAIL, self.tail, Ordering::Release);
        }
        Ok(popped)
    }

    /// Asks the producer for a wake-up; false if there are frames already.
    pub(super) fn arm(&mut self) -> Result<bool, Violation> {
        self.memory.as_slice().store_u32(WAITING, 1, Ordering::Relaxed);
        // Either the producer sees our waiting word after its head, or we see its head after our word.
        fence(Ordering::SeqCst);
        Ok(self.available()? == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared_memory::PageSize;

    fn ring() -> (Producer, Consumer, SharedMapping) {
        let (memory, _) = SharedMapping::create("test", MEMORY, PageSize::Base).unwrap();
        (Producer::new(memory.clone()), Consumer::new(memory.clone()), memory)
    }

    fn burst() -> FrameBurst {
        FrameBurst::new(64, 2000)
    }

    #[test]
    fn a_frame_is_seen_when_it_is_published() {
        let (mut producer, mut consumer, _) = ring();
        let mut burst = burst();
        assert!(producer.push(&[7; 60]).unwrap());
        assert_eq!(consumer.pop(&mut burst, 14).unwrap(), Popped::default());
        assert!(!producer.publish());
        assert_eq!(consumer.pop(&mut burst, 14).unwrap().frames, 1);
        assert_eq!(burst.get(0), Some(&[7u8; 60][..]));
    }

    #[test]
    fn a_waiting_consumer_is_woken_once() {
        let (mut producer, mut consumer, _) = ring();
        assert!(consumer.arm().unwrap());
        producer.push(&[1; 60]).unwrap();
        assert!(producer.publish());
        producer.push(&[2; 60]).unwrap();
        assert!(!producer.publish());
        assert!(!consumer.arm().unwrap());
    }

    #[test]
    fn a_full_ring_takes_no_more_until_some_is_read() {
        let (mut producer, mut consumer, _) = ring();
        let frame = [3; 1000];
        let mut sent = 0;
        while producer.push(&frame).unwrap() {
            sent += 1;
        }
        assert_eq!(sent, RING / record_size(1000).unwrap());
        producer.publish();
        let mut burst = burst();
        consumer.pop(&mut burst, 14).unwrap();
        assert_eq!(burst.len(), 64);
        assert!(producer.push(&frame).unwrap());
    }

    #[test]
    fn lengths_that_do_not_suit_the_receiver_are_counted() {
        let (mut producer, mut consumer, _) = ring();
        for length in [13, 14, 2000, 2001, 100] {
            producer.push(&vec![0; length]).unwrap();
        }
        producer.publish();
        let mut burst = burst();
        let popped = consumer.pop(&mut burst, 14).unwrap();
        assert_eq!(popped, Popped { frames: 3, bytes: 2114, too_long: 1, too_short: 1 });
    }

    #[test]
    fn a_peer_that_lies_about_its_position_is_found_out() {
        let (_, mut consumer, memory) = ring();
        for head in [RING + 64, 32, u32::MAX - 63] {
            memory.as_slice().store_u32(HEAD, head, Ordering::Relaxed);
            assert!(consumer.pop(&mut burst(), 14).is_err() && consumer.arm().is_err());
        }
        for lie in [64, 1, RING, u32::MAX - RING] {
            let (mut producer, _, memory) = ring();
            while producer.push(&[0; 2000]).unwrap() {}
            let tail = producer.head.wrapping_add(lie);
            memory.as_slice().store_u32(TAIL, tail, Ordering::Relaxed);
            assert!(producer.push(&[0; 2000]).is_err(), "{lie}");
        }
    }

    #[test]
    fn a_length_beyond_what_was_sent_is_found_out() {
        for length in [57, RING, SKIP - 1, 0x8000_0000] {
            let (mut producer, mut consumer, memory) = ring();
            producer.push(&[0; 56]).unwrap();
            producer.publish();
            memory.slice(RECORDS, 4).unwrap().write_object(0, &length);
            assert!(consumer.pop(&mut burst(), 14).is_err());
        }
    }

    proptest! {
        #[test]
        fn frames_of_any_length_cross_any_number_of_wraps_in_order(
            lengths in proptest::collection::vec(14usize..2000, 1..200),
            start in 0u32..=u32::MAX / 64,
            room in 1usize..64,
        ) {
            let (mut producer, mut consumer, memory) = ring();
            let position = start * 64;
            (producer.head, producer.tail) = (position, position);
            (consumer.head, consumer.tail) = (position, position);
            for word in [HEAD, TAIL] {
                memory.as_slice().store_u32(word, position, Ordering::Relaxed);
            }
            let mut burst = FrameBurst::new(room, 2000);
            let mut expected = lengths.iter().zip(0u8..).collect::<std::collections::VecDeque<_>>();
            let mut to_send = expected.clone();
            while !expected.is_empty() {
                while let Some((length, mark)) = to_send.front() {
                    if !producer.push(&vec![*mark; **length]).unwrap() {
                        break;
                    }
                    to_send.pop_front();
                }
                producer.publish();
                burst.clear();
                consumer.pop(&mut burst, 14).unwrap();
                for frame in burst.iter() {
                    let (length, mark) = expected.pop_front().unwrap();
                    prop_assert!(frame.len() == *length && frame.iter().all(|byte| *byte == mark));
                }
            }
        }

        #[test]
        fn a_ring_full_of_anything_harms_nobody(words: Vec<u32>, head: u32, tail: u32) {
            let (mut producer, mut consumer, memory) = ring();
            for (index, word) in words.iter().enumerate() {
                memory.slice(RECORDS + index * 64, 4).unwrap().write_object(0, word);
            }
            memory.as_slice().store_u32(HEAD, head & !63, Ordering::Relaxed);
            memory.as_slice().store_u32(TAIL, tail, Ordering::Relaxed);
            for _ in 0..100 {
                let _ = consumer.pop(&mut burst(), 14);
                let _ = producer.push(&[0; 2000]);
            }
        }
    }
}
