//! The device side of a packed virtqueue (virtio 1.2 §2.8).
//!
//! There is one table: a descriptor is the driver's or the device's by two flags, which mean the opposite each time that
//! the table's end was passed. Every word of the driver's is read once.

use std::sync::atomic::{Ordering, fence};

use shared_memory::{DescriptorRing, SharedSlice, TranslationCache};

use crate::{
    Features,
    memory::{DirtyLog, GuestMemory, View},
    ring::{
        Addresses, Buffer, DESCRIPTOR, Direction, INDIRECT, MAX_SIZE, NEXT, Piece, RingError,
        Singles, Token, WRITE, part,
    },
};

/// Descriptors of a cache line, and how many lines ahead one is asked for.
const LINE: u16 = 4;
const AHEAD: u16 = 4;
/// Descriptor flags of packed rings alone (§2.8.1).
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Bytes of an event suppression structure, and its flags (§2.8.10).
const EVENT: usize = 4;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESCRIPTOR: u16 = 2;
const EVENT_MASK: u16 = 3;
/// Of a place in an event suppression structure or in a base: the wrap counter.
const WRAP: u16 = 1 << 15;

/// A descriptor's number, and the wrap counter of whoever has come to it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    /// As the specification and the front-end write it.
    const fn bits(self) -> u16 {
        if self.wrap { self.index | WRAP } else { self.index }
    }

    const fn from_bits(bits: u16) -> Self {
        Self { index: bits & !WRAP, wrap: bits & WRAP != 0 }
    }

    /// So many descriptors further on, at most all of the table.
    #[inline(always)]
    fn advance(&mut self, descriptors: u16, size: u16) {
        let left = size - self.index;
        if descriptors < left {
            self.index += descriptors;
        } else {
            self.index = descriptors - left;
            self.wrap = !self.wrap;
        }
    }

    /// Whether a descriptor with these flags was made available to whoever has come here.
    #[inline(always)]
    const fn is_available(self, flags: u16) -> bool {
        flags & (AVAILABLE | USED) == self.available_flags()
    }

    /// The flags by which a descriptor was made available to whoever has come here.
    #[inline(always)]
    const fn available_flags(self) -> u16 {
        if self.wrap { AVAILABLE } else { USED }
    }

    /// The flags that make the descriptor here a used one.
    #[inline(always)]
    const fn used_flags(self) -> u16 {
        if self.wrap { AVAILABLE | USED } else { 0 }
    }
}

/// A descriptor's second half.
#[derive(Copy, Clone)]
struct Second {
    length: u32,
    id: u16,
    flags: u16,
}

impl Second {
    #[inline(always)]
    const fn parse(word: u64) -> Self {
        let [l0, l1, l2, l3, i0, i1, f0, f1] = word.to_le_bytes();
        Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            id: u16::from_le_bytes([i0, i1]),
            flags: u16::from_le_bytes([f0, f1]),
        }
    }

    #[inline(always)]
    const fn emit(self) -> u64 {
        let ([l0, l1, l2, l3], [i0, i1]) = (self.length.to_le_bytes(), self.id.to_le_bytes());
        let [f0, f1] = self.flags.to_le_bytes();
        u64::from_le_bytes([l0, l1, l2, l3, i0, i1, f0, f1])
    }
}

/// A ring's parts.
#[derive(Debug)]
struct Parts {
    table: View,
    descriptors: DescriptorRing<2>,
    driver_event: View,
    device_event: View,
}

impl Parts {
    fn find(memory: &GuestMemory, at: Addresses, size: u16) -> Result<Self, RingError> {
        let part = |user, length, alignment, what| part(memory, (user, length, alignment), what);
        let table = DESCRIPTOR * usize::from(size);
        let table = part(at.descriptors, table, 16, "descriptor ring")?;
        let outside = RingError::Outside { part: "descriptor ring" };
        Ok(Self {
            descriptors: table.descriptors().ok_or(outside)?,
            table,
            driver_event: part(at.driver, EVENT, 4, "driver's event suppression")?,
            device_event: part(at.device, EVENT, 4, "device's event suppression")?,
        })
    }

    /// Reads a descriptor: its flags before its address, which is there if they say so.
    #[inline(always)]
    fn read(&self, index: u16) -> (u64, Second) {
        let slot = self.descriptors.slot(index);
        let second = Second::parse(slot.load(1, Ordering::Acquire));
        (slot.load(0, Ordering::Relaxed), second)
    }

    /// Shows the driver a buffer that is given back.
    #[inline(always)]
    fn show(&self, Hidden { at, length, id, write }: Hidden) {
        let second = Second { length, id, flags: at.used_flags() | write };
        self.descriptors.slot(at.index).store(1, second.emit(), Ordering::Release);
    }
}

/// What was given back and not shown: it is seen with its first descriptor, which is written last.
#[derive(Copy, Clone, Debug)]
struct Hidden {
    at: Place,
    length: u32,
    id: u16,
    write: u16,
}

/// A packed virtqueue.
#[derive(Debug)]
pub(crate) struct PackedRing {
    size: u16,
    event_index: bool,
    indirect: bool,
    /// The driver takes a buffer that is given back for all that it had made available before.
    in_order: bool,
    parts: Parts,
    /// What is taken next.
    next: Place,
    /// Where the next buffer is given back.
    used: Place,
    /// What the driver knows of it.
    told: Place,
    hidden: Option<Hidden>,
}

impl PackedRing {
    /// A ring that begins at `base`: the place that is taken next, and that where buffers are given back above it.
    pub(crate) fn new(
        memory: &GuestMemory,
        at: Addresses,
        size: u16,
        base: u32,
        features: Features,
    ) -> Result<Self, RingError> {
        if size == 0 || u32::from(size) > MAX_SIZE {
            return Err(RingError::Size { size: size.into() });
        }
        let [a0, a1, u0, u1] = base.to_le_bytes();
        let (available, used) = (u16::from_le_bytes([a0, a1]), u16::from_le_bytes([u0, u1]));
        // DPDK's front-end says nothing there. Buffers in between were taken by another that has not given them back:
        // they are available, and taken once more.
        let bits = if used == 0 { available } else { used };
        let place = Place::from_bits(bits);
        if place.index >= size || available & !WRAP >= size {
            return Err(RingError::Base { size, base });
        }
        Ok(Self {
            size,
            event_index: features.contains(Features::EVENT_IDX),
            indirect: features.contains(Features::INDIRECT_DESC),
            in_order: features.contains(Features::IN_ORDER),
            parts: Parts::find(memory, at, size)?,
            next: place,
            used: place,
            told: place,
            hidden: None,
        })
    }

    /// Goes on where the parts are now.
    pub(crate) fn relocate(
        &mut self,
        memory: &GuestMemory,
        at: Addresses,
    ) -> Result<(), RingError> {
        self.parts = Parts::find(memory, at, self.size)?;
        Ok(())
    }

    /// Where one that serves it afterwards begins.
    pub(crate) fn base(&self) -> u32 {
        u32::from(self.used.bits()) << 16 | u32::from(self.next.bits())
    }

    /// What is taken next.
    #[inline(always)]
    pub(crate) fn position(&self) -> u16 {
        self.next.bits()
    }

    /// Makes as if what was taken since had not been.
    pub(crate) fn rewind(&mut self, position: u16) {
        self.next = Place::from_bits(position);
    }

    /// Takes the next buffer; false if there is none.
    #[inline]
    pub(crate) fn take(
        &mut self,
        memory: &GuestMemory,
        cache: &mut TranslationCache,
        direction: Direction,
        buffer: &mut Buffer,
    ) -> Result<bool, RingError> {
        let mut at = self.next;
        let mut slots = 0;
        loop {
            let (guest, Second { length, id, flags }) = self.parts.read(at.index);
            // Those behind the first need not say anything of the kind, for it was written last.
            if slots == 0 && !at.is_available(flags) {
                return Ok(false);
            }
            slots += 1;
            if flags & INDIRECT == 0 {
                buffer.count()?;
                buffer.push(Piece { guest, length }, flags & WRITE != 0, direction)?;
            } else {
                if !self.indirect || slots > 1 || flags & NEXT != 0 {
                    return Err(RingError::Indirect { length });
                }
                walk_table(memory.slice(cache, guest, length as usize)?, direction, buffer)?;
            }
            at.advance(1, self.size);
            if flags & NEXT == 0 {
                buffer.token = Token { id, slots };
                self.next = at;
                return Ok(true);
            }
            if slots == self.size {
                return Err(RingError::Endless);
            }
        }
    }

    /// Gives a buffer back that was read.
    #[inline]
    pub(crate) fn give_back(&mut self, Token { id, slots }: Token) {
        if let Some(hidden) = self.hidden.as_mut().filter(|_| self.in_order) {
            // The last one stands for all.
            hidden.id = id;
            self.used.advance(slots, self.size);
        } else {
            self.push(Token { id, slots }, 0, 0);
        }
    }

    /// Gives a buffer back, into which so many bytes were written; the driver sees it by [`Self::publish`].
    #[inline]
    pub(crate) fn put(&mut self, token: Token, written: u32) {
        self.push(token, written, WRITE);
    }

    #[inline]
    fn push(&mut self, Token { id, slots }: Token, length: u32, write: u16) {
        let used = Hidden { at: self.used, length, id, write };
        if self.hidden.is_none() {
            self.hidden = Some(used);
        } else {
            self.parts.show(used);
        }
        self.used.advance(slots, self.size);
    }

    /// Shows the driver what was given back. True if it wants to be interrupted for that.
    #[inline]
    pub(crate) fn publish(&mut self, log: Option<&DirtyLog>) -> bool {
        let Some(first) = self.hidden.take() else { return false };
        self.parts.show(first);
        if let Some(log) = log {
            self.parts.table.note(log);
        }
        let told = std::mem::replace(&mut self.told, self.used);
        // The descriptors are there before the driver's wish is read, as its wish is before it reads them.
        fence(Ordering::SeqCst);
        let event = self.parts.driver_event.bytes().load_u32(0, Ordering::Relaxed);
        let [p0, p1, f0, f1] = event.unwrap_or(0).to_le_bytes();
        match u16::from_le_bytes([f0, f1]) & EVENT_MASK {
            EVENT_DISABLE => false,
            EVENT_DESCRIPTOR if self.event_index => {
                let event = Place::from_bits(u16::from_le_bytes([p0, p1]));
                passes(event, told, self.used, self.size)
            }
            _ => true,
        }
    }

    fn set_event(&self, place: u16, flags: u16, log: Option<&DirtyLog>) {
        let ([p0, p1], [f0, f1]) = (place.to_le_bytes(), flags.to_le_bytes());
        let event = u32::from_le_bytes([p0, p1, f0, f1]);
        let _ = self.parts.device_event.bytes().store_u32(0, event, Ordering::Relaxed);
        if let Some(log) = log {
            self.parts.device_event.note(log);
        }
    }

    /// Asks to be notified of new buffers; true if there are some already.
    pub(crate) fn listen(&mut self, log: Option<&DirtyLog>) -> bool {
        let flags = if self.event_index { EVENT_DESCRIPTOR } else { 0 };
        self.set_event(self.next.bits(), flags, log);
        fence(Ordering::SeqCst);
        let (_, second) = self.parts.read(self.next.index);
        self.next.is_available(second.flags)
    }

    /// Wants no notifications until [`Self::listen`].
    pub(crate) fn ignore(&mut self, log: Option<&DirtyLog>) {
        self.set_event(0, EVENT_DISABLE, log);
    }
}

impl Singles for PackedRing {
    #[inline(always)]
    fn take_singles(&mut self, direction: Direction, mut each: impl FnMut(Token, Piece) -> bool) {
        let Self { parts, size, in_order, next, .. } = self;
        let write = if direction == Direction::ToDriver { WRITE } else { 0 };
        // Of what is read in its order, one descriptor in a burst is written.
        let is_written = direction == Direction::ToDriver || !*in_order;
        let ask_for = |index: u16| {
            if is_written {
                parts.descriptors.prefetch_write(index);
            } else {
                parts.descriptors.prefetch_read(index);
            }
        };
        let mut at = *next;
        let mut is_first = true;
        loop {
            let (guest, Second { length, id, flags }) = parts.read(at.index);
            let decide = AVAILABLE | USED | WRITE | NEXT | INDIRECT;
            if flags & decide != at.available_flags() | write
                || length == 0
                || !each(Token { id, slots: 1 }, Piece { guest, length })
            {
                break;
            }
            // Nothing is asked for where nothing is: the driver may be about to write there.
            if is_first {
                (1..AHEAD).for_each(|line| ask_for(at.index.wrapping_add(line * LINE)));
                is_first = false;
            }
            if at.index.is_multiple_of(LINE) {
                ask_for(at.index.wrapping_add(AHEAD * LINE));
            }
            at.advance(1, *size);
        }
        *next = at;
    }
}

/// Adds what an indirect table describes (§2.8.8): all of it, one after the other.
#[inline]
fn walk_table(
    table: SharedSlice<'_>,
    direction: Direction,
    buffer: &mut Buffer,
) -> Result<(), RingError> {
    let length = u32::try_from(table.len()).unwrap_or(u32::MAX);
    let mut rest = table;
    if table.is_empty() || !table.len().is_multiple_of(DESCRIPTOR) {
        return Err(RingError::Indirect { length });
    }
    while !rest.is_empty() {
        buffer.count()?;
        let words: Option<[u64; 2]> = rest.load_words();
        let [guest, second] = words.ok_or(RingError::Indirect { length })?;
        let Second { length, flags, .. } = Second::parse(second);
        buffer.push(Piece { guest, length }, flags & WRITE != 0, direction)?;
        (_, rest) = rest.split(DESCRIPTOR);
    }
    Ok(())
}

/// Whether a place that went from `before` to `now`, by one descriptor at least, has passed `event` (§2.8.10).
fn passes(event: Place, before: Place, now: Place, size: u16) -> bool {
    let size = i32::from(size);
    // Counted from where the table that `now` is in begins: what is of the other wrap counter lies a table behind.
    let behind = |place: Place| {
        let index = i32::from(place.index);
        if place.wrap == now.wrap { index } else { index - size }
    };
    let now = i32::from(now.index);
    let mut before = behind(before);
    if before >= now {
        // All of the table, and perhaps more.
        before = now - size;
    }
    (before..now).contains(&behind(event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_round_any_size_and_turn_their_wrap_counter() {
        for size in [1u16, 2, 3, 5, 256, 1000, 32768] {
            let mut place = Place { index: 0, wrap: true };
            let mut count = 0u32;
            for step in [1, size, 1, size / 2, size] {
                place.advance(step, size);
                count += u32::from(step);
                assert_eq!(u32::from(place.index), count % u32::from(size), "{size}");
                assert_eq!(place.wrap, (count / u32::from(size)).is_multiple_of(2), "{size}");
                assert_eq!(Place::from_bits(place.bits()), place);
                assert!(!place.is_available(place.used_flags()));
            }
        }
    }

    #[test]
    fn an_event_is_passed_by_whoever_goes_over_its_descriptor() {
        let at = |index, wrap| Place { index, wrap };
        // Within a table, and over its end.
        assert!(passes(at(3, true), at(3, true), at(4, true), 5));
        assert!(!passes(at(4, true), at(3, true), at(4, true), 5));
        assert!(!passes(at(2, true), at(3, true), at(4, true), 5));
        assert!(!passes(at(3, false), at(3, true), at(4, true), 5), "a table ago");
        assert!(passes(at(4, true), at(3, true), at(1, false), 5));
        assert!(passes(at(0, false), at(3, true), at(1, false), 5));
        assert!(!passes(at(1, false), at(3, true), at(1, false), 5));
        // All of the table.
        for index in 0..5 {
            assert_eq!(passes(at(index, true), at(2, true), at(2, false), 5), index >= 2);
            assert_eq!(passes(at(index, false), at(2, true), at(2, false), 5), index < 2);
        }
    }
}
