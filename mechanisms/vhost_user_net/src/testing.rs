//! The driver's side of rings, played by tests: it may break every rule.

mod packed;

use std::sync::atomic::Ordering;

use shared_memory::SharedMapping;

pub use self::packed::PlayedPackedRing;

/// Descriptor flags.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

/// A split ring in a guest's memory, whose guest physical addresses begin at `base`.
#[derive(Clone, Debug)]
pub struct PlayedRing {
    memory: SharedMapping,
    at: usize,
    size: u16,
    available: u16,
    used: u16,
}

impl PlayedRing {
    /// An empty ring of `size` entries at byte `at`, a multiple of 4096. It takes [`Self::BYTES`] at most.
    #[must_use]
    pub fn new(memory: &SharedMapping, at: usize, size: u16) -> Self {
        let ring = Self { memory: memory.clone(), at, size, available: 0, used: 0 };
        if let Ok(all) = memory.slice(at, Self::BYTES) {
            all.fill(0);
        }
        ring
    }

    /// Room for a ring of 256 entries.
    pub const BYTES: usize = 0x3000;

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where its descriptor table, its available ring and its used ring are.
    #[must_use]
    pub fn places(&self) -> [usize; 3] {
        [self.at, self.at + 0x1000, self.at + 0x2000]
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        if let Ok(place) = self.memory.slice(at, bytes.len()) {
            place.write_from(bytes);
        }
    }

    fn load(&self, at: usize) -> u16 {
        self.memory.as_slice().load_u16(at, Ordering::Acquire).unwrap_or(0)
    }

    /// Writes a descriptor into a table at byte `table`.
    pub fn describe_in(
        &self,
        table: usize,
        index: u16,
        (guest, length): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let at = table + 16 * usize::from(index);
        self.put(at, &guest.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, memory: (u64, u32), flags: u16, next: u16) {
        self.describe_in(self.at, index, memory, flags, next);
    }

    /// Makes the buffer that begins with a descriptor available.
    pub fn make_available(&mut self, head: u16) {
        let [_, ring, _] = self.places();
        self.put(ring + 4 + 2 * usize::from(self.available % self.size), &head.to_le_bytes());
        self.set_available(self.available.wrapping_add(1));
    }

    /// Says how far the available ring is filled.
    pub fn set_available(&mut self, index: u16) {
        self.available = index;
        let [_, ring, _] = self.places();
        let _ = self.memory.as_slice().store_u16(ring + 2, index, Ordering::Release);
    }

    /// Sets the available ring's flags.
    pub fn set_flags(&self, flags: u16) {
        let [_, ring, _] = self.places();
        let _ = self.memory.as_slice().store_u16(ring, flags, Ordering::Release);
    }

    /// Says after which used buffer it wants to be interrupted.
    pub fn set_used_event(&self, event: u16) {
        let [_, ring, _] = self.places();
        let at = ring + 4 + 2 * usize::from(self.size);
        let _ = self.memory.as_slice().store_u16(at, event, Ordering::Release);
    }

    /// After which available buffer the device wants to be told.
    #[must_use]
    pub fn available_event(&self) -> u16 {
        let [_, _, ring] = self.places();
        self.load(ring + 4 + 8 * usize::from(self.size))
    }

    /// The used ring's flags.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        let [_, _, ring] = self.places();
        self.load(ring)
    }

    /// How far the device has filled the used ring.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        let [_, _, ring] = self.places();
        self.load(ring + 2)
    }

    /// The next used buffer: its first descriptor, and bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.used {
            return None;
        }
        let [_, _, ring] = self.places();
        let entry = ring + 4 + 8 * usize::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let [id, length]: [u32; 2] = self.memory.as_slice().read_object(entry)?;
        Some((u16::try_from(id).ok()?, length))
    }
}
