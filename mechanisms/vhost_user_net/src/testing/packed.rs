//! The driver's side of a packed ring.

use std::{collections::VecDeque, sync::atomic::Ordering};

use shared_memory::SharedMapping;

use super::NEXT;

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const WRAP: u16 = 1 << 15;

/// A packed ring in a guest's memory.
#[derive(Clone, Debug)]
pub struct PlayedPackedRing {
    memory: SharedMapping,
    at: usize,
    size: u16,
    next: (u16, bool),
    used: (u16, bool),
    /// Buffers that the device has: what they are called, and how many descriptors each has.
    out: VecDeque<(u16, u16)>,
}

impl PlayedPackedRing {
    /// An empty ring of `size` descriptors, 256 at most, at byte `at`, a multiple of 4096.
    #[must_use]
    pub fn new(memory: &SharedMapping, at: usize, size: u16) -> Self {
        if let Ok(all) = memory.slice(at, super::PlayedRing::BYTES) {
            all.fill(0);
        }
        let (next, used) = ((0, true), (0, true));
        Self { memory: memory.clone(), at, size, next, used, out: VecDeque::new() }
    }

    /// Descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where its descriptors, the driver's event suppression and the device's are.
    #[must_use]
    pub fn places(&self) -> [usize; 3] {
        [self.at, self.at + 0x1000, self.at + 0x2000]
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.size.saturating_sub(self.out.iter().map(|(_, slots)| slots).sum())
    }

    /// Where the driver makes the next buffer available, with its wrap counter in bit 15.
    #[must_use]
    pub fn next(&self) -> u16 {
        bits(self.next)
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        if let Ok(place) = self.memory.slice(at, bytes.len()) {
            place.write_from(bytes);
        }
    }

    /// Writes a descriptor as it is told.
    pub fn write(&self, index: u16, (guest, length): (u64, u32), id: u16, flags: u16) {
        let at = self.at + 16 * usize::from(index);
        self.put(at, &guest.to_le_bytes());
        let second = u64::from(length) | u64::from(id) << 32 | u64::from(flags) << 48;
        let _ = self.memory.as_slice().store_u64(at + 8, second, Ordering::Release);
    }

    /// Writes an entry of a table at byte `table`.
    pub fn write_in(&self, table: usize, index: u16, (guest, length): (u64, u32), flags: u16) {
        let at = table + 16 * usize::from(index);
        self.put(at, &guest.to_le_bytes());
        self.put(at + 8, &(u64::from(length) | u64::from(flags) << 48).to_le_bytes());
    }

    /// Makes a buffer available: its pieces, each with its flags. There should be room.
    pub fn make_available(&mut self, id: u16, pieces: &[((u64, u32), u16)]) {
        let mut places = Vec::new();
        for _ in pieces {
            places.push(self.next);
            self.next = after(self.next, 1, self.size);
        }
        // The first one last.
        let last = pieces.len().saturating_sub(1);
        for (number, (place, (memory, flags))) in places.iter().zip(pieces).enumerate().rev() {
            let chained = if number < last { NEXT } else { 0 };
            let turn = if place.1 { AVAILABLE } else { USED };
            self.write(place.0, *memory, id, flags | chained | turn);
        }
        self.out.push_back((id, u16::try_from(pieces.len()).unwrap_or(u16::MAX)));
    }

    /// The next buffer that the device has given back, and bytes written. Buffers before it come back with it, as they do
    /// where they are used in order.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let at = self.at + 16 * usize::from(self.used.0) + 8;
        let second = self.memory.as_slice().load_u64(at, Ordering::Acquire)?;
        let [l0, l1, l2, l3, i0, i1, f0, f1] = second.to_le_bytes();
        let flags = u16::from_le_bytes([f0, f1]);
        let turn = self.used.1;
        if (flags & AVAILABLE != 0, flags & USED != 0) != (turn, turn) {
            return None;
        }
        let id = u16::from_le_bytes([i0, i1]);
        while let Some((before, slots)) = self.out.pop_front() {
            self.used = after(self.used, slots, self.size);
            if before == id {
                return Some((id, u32::from_le_bytes([l0, l1, l2, l3])));
            }
        }
        None
    }

    /// Says when the driver wants to be interrupted: a place with its wrap counter, and flags.
    pub fn set_event(&self, place: u16, flags: u16) {
        let [_, at, _] = self.places();
        let event = u32::from(place) | u32::from(flags) << 16;
        let _ = self.memory.as_slice().store_u32(at, event, Ordering::Release);
    }

    /// When the device wants to be told.
    #[must_use]
    pub fn device_event(&self) -> (u16, u16) {
        let [_, _, at] = self.places();
        let event = self.memory.as_slice().load_u32(at, Ordering::Acquire).unwrap_or(0);
        let [p0, p1, f0, f1] = event.to_le_bytes();
        (u16::from_le_bytes([p0, p1]), u16::from_le_bytes([f0, f1]))
    }
}

fn bits((index, wrap): (u16, bool)) -> u16 {
    if wrap { index | WRAP } else { index }
}

fn after((index, wrap): (u16, bool), slots: u16, size: u16) -> (u16, bool) {
    let index = index + slots;
    if index >= size { (index - size, !wrap) } else { (index, wrap) }
}
