//! The device side of a split virtqueue (virtio 1.2 §2.7).
//!
//! Every word of the driver's is read once.

use std::sync::atomic::{Ordering, fence};

use shared_memory::{SharedSlice, TranslationCache};

use crate::{
    Features,
    memory::{DirtyLog, GuestMemory, View},
    ring::{
        Addresses, Buffer, DESCRIPTOR, Direction, INDIRECT, MAX_SIZE, NEXT, Piece, RingError,
        Singles, Token, WRITE, part,
    },
};

/// Flag of the available ring: no interrupts (§2.7.6). Flag of the used ring: no notifications (§2.7.8).
const SILENT: u16 = 1;
/// Where both rings have their index, and where their entries begin.
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// A ring's parts.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    descriptors: View,
    available: View,
    used: View,
}

impl Parts {
    fn find(memory: &GuestMemory, at: Addresses, size: u16) -> Result<Self, RingError> {
        let entries = usize::from(size);
        let part = |user, length, alignment, what| part(memory, (user, length, alignment), what);
        // Each with its event index behind its entries.
        Ok(Self {
            descriptors: part(at.descriptors, DESCRIPTOR * entries, 16, "descriptor table")?,
            available: part(at.driver, ENTRIES + 2 * entries + 2, 2, "available ring")?,
            used: part(at.device, ENTRIES + 8 * entries + 2, 4, "used ring")?,
        })
    }
}

/// A split virtqueue.
#[derive(Debug)]
pub(crate) struct SplitRing {
    size: u16,
    event_index: bool,
    indirect: bool,
    parts: Parts,
    /// What is taken next of the available ring.
    next: u16,
    /// How far the driver had filled it when it was looked at.
    seen: u16,
    /// What is written next of the used ring.
    used: u16,
    /// What the driver knows of it.
    told: u16,
    /// The driver was not interrupted yet, so that its event index says nothing.
    fresh: bool,
}

impl SplitRing {
    /// A ring of which the buffer with number `base` is taken next.
    pub(crate) fn new(
        memory: &GuestMemory,
        at: Addresses,
        size: u16,
        base: u32,
        features: Features,
    ) -> Result<Self, RingError> {
        if !size.is_power_of_two() || u32::from(size) > MAX_SIZE {
            return Err(RingError::Size { size: size.into() });
        }
        let base = u16::try_from(base).map_err(|_| RingError::Base { size, base })?;
        let parts = Parts::find(memory, at, size)?;
        // Where the one that served it before has left it.
        let used = parts.used.bytes().load_u16(INDEX, Ordering::Acquire).unwrap_or(base);
        Ok(Self {
            size,
            event_index: features.contains(Features::EVENT_IDX),
            indirect: features.contains(Features::INDIRECT_DESC),
            parts,
            next: base,
            seen: base,
            used,
            told: used,
            fresh: true,
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
        self.next.into()
    }

    /// What is taken next.
    pub(crate) fn position(&self) -> u16 {
        self.next
    }

    /// Makes as if what was taken since had not been.
    pub(crate) fn rewind(&mut self, position: u16) {
        self.next = position;
    }

    #[inline(always)]
    fn place(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// The first descriptor of the next buffer, if there is one.
    #[inline(always)]
    fn next_head(&mut self) -> Result<Option<u16>, RingError> {
        let outside = RingError::Outside { part: "available ring" };
        let available = self.parts.available.bytes();
        if self.next == self.seen {
            let index = available.load_u16(INDEX, Ordering::Acquire).ok_or(outside)?;
            let more = index.wrapping_sub(self.next);
            if more > self.size {
                return Err(RingError::Index { size: self.size, available: more });
            }
            self.seen = index;
            if more == 0 {
                return Ok(None);
            }
        }
        let entry = ENTRIES + 2 * self.place(self.next);
        available.load_u16(entry, Ordering::Relaxed).ok_or(outside).map(Some)
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
        let Some(id) = self.next_head()? else { return Ok(false) };
        buffer.token = Token { id, slots: 1 };
        self.walk(memory, cache, direction, buffer)?;
        self.next = self.next.wrapping_add(1);
        Ok(true)
    }

    #[inline]
    fn walk(
        &self,
        memory: &GuestMemory,
        cache: &mut TranslationCache,
        direction: Direction,
        buffer: &mut Buffer,
    ) -> Result<(), RingError> {
        let mut table: SharedSlice<'_> = self.parts.descriptors.bytes();
        let mut size = self.size;
        let mut is_indirect = false;
        let mut index = buffer.token.id;
        loop {
            buffer.count()?;
            let words = table.get(DESCRIPTOR * usize::from(index), DESCRIPTOR);
            let words: Option<[u64; 2]> = words.and_then(|words| words.load_words());
            let [guest, rest] = words.ok_or(RingError::Descriptor { index, size })?;
            let (length, flags) = length_and_flags(rest);
            if flags & INDIRECT != 0 {
                let refused = RingError::Indirect { length };
                let entries = length / 16;
                let odd = !length.is_multiple_of(16) || entries == 0 || entries > MAX_SIZE;
                if is_indirect || !self.indirect || odd || flags & NEXT != 0 {
                    return Err(refused);
                }
                table = memory.slice(cache, guest, length as usize)?;
                size = u16::try_from(entries).map_err(|_| refused)?;
                (is_indirect, index) = (true, 0);
                continue;
            }
            buffer.push(Piece { guest, length }, flags & WRITE != 0, direction)?;
            if flags & NEXT == 0 {
                return Ok(());
            }
            let [_, _, _, _, _, _, n0, n1] = rest.to_le_bytes();
            index = u16::from_le_bytes([n0, n1]);
        }
    }

    /// Gives a buffer back that was read.
    #[inline]
    pub(crate) fn give_back(&mut self, token: Token) {
        self.put(token, 0);
    }

    /// Gives a buffer back, into which so many bytes were written; the driver sees it by [`Self::publish`].
    #[inline]
    pub(crate) fn put(&mut self, Token { id, .. }: Token, written: u32) {
        let entry = ENTRIES + 8 * self.place(self.used);
        let ring = self.parts.used.bytes();
        // It lies inside, and an entry begins at a multiple of four.
        let _ = ring.store_u32(entry, u32::from(id), Ordering::Relaxed);
        let _ = ring.store_u32(entry + 4, written, Ordering::Relaxed);
        self.used = self.used.wrapping_add(1);
    }

    /// Shows the driver what was given back. True if it wants to be interrupted for that.
    #[inline]
    pub(crate) fn publish(&mut self, log: Option<&DirtyLog>) -> bool {
        let (before, now) = (self.told, self.used);
        if before == now {
            return false;
        }
        let _ = self.parts.used.bytes().store_u16(INDEX, now, Ordering::Release);
        self.told = now;
        if let Some(log) = log {
            self.parts.used.note(log);
        }
        // The index is there before the driver's wish is read, as the driver's wish is there before it reads the index.
        fence(Ordering::SeqCst);
        let fresh = std::mem::take(&mut self.fresh);
        let available = self.parts.available.bytes();
        if self.event_index {
            let at = ENTRIES + 2 * usize::from(self.size);
            let event = available.load_u16(at, Ordering::Relaxed).unwrap_or(now);
            fresh || passes(event, before, now)
        } else {
            available.load_u16(0, Ordering::Relaxed).is_none_or(|flags| flags & SILENT == 0)
        }
    }

    /// Asks to be notified of new buffers; true if there are some already.
    pub(crate) fn listen(&mut self, log: Option<&DirtyLog>) -> bool {
        let used = self.parts.used.bytes();
        let _ = if self.event_index {
            let at = ENTRIES + 8 * usize::from(self.size);
            used.store_u16(at, self.next, Ordering::Relaxed)
        } else {
            used.store_u16(0, 0, Ordering::Relaxed)
        };
        if let Some(log) = log {
            self.parts.used.note(log);
        }
        fence(Ordering::SeqCst);
        let index = self.parts.available.bytes().load_u16(INDEX, Ordering::Acquire);
        index.is_some_and(|index| index != self.next)
    }

    /// Wants no notifications until [`Self::listen`].
    pub(crate) fn ignore(&mut self, log: Option<&DirtyLog>) {
        // An event index that stays behind asks for none.
        if !self.event_index {
            let _ = self.parts.used.bytes().store_u16(0, SILENT, Ordering::Relaxed);
            if let Some(log) = log {
                self.parts.used.note(log);
            }
        }
    }
}

impl Singles for SplitRing {
    #[inline(always)]
    fn take_singles(&mut self, direction: Direction, mut each: impl FnMut(Token, Piece) -> bool) {
        let wanted = if direction == Direction::ToDriver { WRITE } else { 0 };
        while let Ok(Some(id)) = self.next_head() {
            let table = self.parts.descriptors.bytes();
            let words = table.get(DESCRIPTOR * usize::from(id), DESCRIPTOR);
            let words: Option<[u64; 2]> = words.and_then(|words| words.load_words());
            let Some([guest, second]) = words else { return };
            let (length, flags) = length_and_flags(second);
            if flags & (WRITE | NEXT | INDIRECT) != wanted
                || length == 0
                || !each(Token { id, slots: 1 }, Piece { guest, length })
            {
                return;
            }
            self.next = self.next.wrapping_add(1);
        }
    }
}

/// Of a descriptor's second half.
#[inline(always)]
fn length_and_flags(second: u64) -> (u32, u16) {
    let [l0, l1, l2, l3, f0, f1, ..] = second.to_le_bytes();
    (u32::from_le_bytes([l0, l1, l2, l3]), u16::from_le_bytes([f0, f1]))
}

/// Whether an index that went from `before` to `now` has passed `event` (§2.7.10).
#[inline]
pub(crate) fn passes(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}
