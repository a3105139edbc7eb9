//! The table of receive filters: (MAC, VLAN condition) → VPort, with open addressing.
//!
//! Lookups of a burst are independent of each other, so that the CPU overlaps their cache misses; an entry
//! is 16 bytes, four to a cache line. Load stays at or below one half. Removal shifts entries back, so
//! there are no tombstones and a lookup's cost does not depend on the table's history.

/// A slot's key when it is free; no address and condition make this number.
const FREE: u64 = u64::MAX;

/// Smallest table, slots.
const MINIMUM_SLOTS: usize = 64;

#[derive(Copy, Clone, Debug)]
struct Slot {
    key: u64,
    value: u32,
}

/// (MAC, VLAN condition), packed: address in the high 48 bits, condition in the low 16.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Key(pub(crate) u64);

#[derive(Clone, Debug)]
pub(crate) struct FilterTable {
    slots: Vec<Slot>,
    used: usize,
    /// Right shift that leaves as many bits of the hash as the table has slots.
    shift: u32,
}

impl FilterTable {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![Slot { key: FREE, value: 0 }; MINIMUM_SLOTS],
            used: 0,
            shift: 64 - MINIMUM_SLOTS.trailing_zeros(),
        }
    }

    #[inline(always)]
    fn home(&self, key: u64) -> usize {
        // Fibonacci hashing; the shift leaves fewer bits than usize has.
        let hash = (key ^ (key >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift;
        #[expect(clippy::cast_possible_truncation, reason = "at most log2(slots) bits are left")]
        {
            hash as usize
        }
    }

    #[inline(always)]
    fn slot(&self, index: usize) -> Slot {
        // The mask keeps the index inside; `get` costs one compare that never fails.
        self.slots
            .get(index & (self.slots.len() - 1))
            .copied()
            .unwrap_or(Slot { key: FREE, value: 0 })
    }

    /// The value stored for `key`.
    #[inline(always)]
    pub(crate) fn get(&self, key: Key) -> Option<u32> {
        let mut index = self.home(key.0);
        loop {
            let slot = self.slot(index);
            if slot.key == key.0 {
                return Some(slot.value);
            }
            if slot.key == FREE {
                return None;
            }
            index += 1;
        }
    }

    /// Stores `value`; returns the one it replaces.
    pub(crate) fn insert(&mut self, key: Key, value: u32) -> Option<u32> {
        if (self.used + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut index = self.home(key.0) & mask;
        loop {
            let slot = self.slot(index);
            if slot.key == FREE || slot.key == key.0 {
                if let Some(place) = self.slots.get_mut(index) {
                    *place = Slot { key: key.0, value };
                }
                self.used += usize::from(slot.key == FREE);
                return (slot.key != FREE).then_some(slot.value);
            }
            index = (index + 1) & mask;
        }
    }

    /// Removes `key`; returns its value.
    pub(crate) fn remove(&mut self, key: Key) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut hole = self.home(key.0) & mask;
        let removed = loop {
            let slot = self.slot(hole);
            if slot.key == FREE {
                return None;
            }
            if slot.key == key.0 {
                break slot.value;
            }
            hole = (hole + 1) & mask;
        };
        // Shift back every later entry of the run that may live at the hole.
        let mut next = hole;
        loop {
            next = (next + 1) & mask;
            let slot = self.slot(next);
            if slot.key == FREE {
                break;
            }
            let distance_home = next.wrapping_sub(self.home(slot.key) & mask) & mask;
            let distance_hole = next.wrapping_sub(hole) & mask;
            if distance_home >= distance_hole {
                if let Some(place) = self.slots.get_mut(hole) {
                    *place = slot;
                }
                hole = next;
            }
        }
        if let Some(place) = self.slots.get_mut(hole) {
            place.key = FREE;
        }
        self.used -= 1;
        Some(removed)
    }

    fn grow(&mut self) {
        let slots = self.slots.len() * 2;
        let old = std::mem::replace(&mut self.slots, vec![Slot { key: FREE, value: 0 }; slots]);
        self.shift -= 1;
        self.used = 0;
        for slot in old.into_iter().filter(|slot| slot.key != FREE) {
            self.insert(Key(slot.key), slot.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(operations in prop::collection::vec((0u64..400, any::<u32>(), any::<bool>()), 1..2000)) {
            let mut table = FilterTable::new();
            let mut model = HashMap::new();
            for (key, value, insert) in operations {
                // Keys that collide: few distinct high parts.
                let key = (key % 20) << 40 | key;
                if insert {
                    prop_assert_eq!(table.insert(Key(key), value), model.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(Key(key)), model.remove(&key));
                }
                prop_assert_eq!(table.used, model.len());
            }
            for (key, value) in &model {
                prop_assert_eq!(table.get(Key(*key)), Some(*value));
            }
            for key in 0..500u64 {
                let key = (key % 20) << 40 | key;
                prop_assert_eq!(table.get(Key(key)), model.get(&key).copied());
            }
        }
    }
}
