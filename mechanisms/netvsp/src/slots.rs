//! Buffers of equal size that go to the other end in groups and come back together: suballocations of the receive
//! buffer, sections of the send buffer.

/// No further slot in a group.
const END: u32 = u32::MAX;
/// Transaction ids from here on belong to the protocol's own messages.
const GENERATION_MASK: u32 = 0x7FFF_FFFF;

#[derive(Copy, Clone, Debug, Default)]
struct Slot {
    /// The next slot of the group it went with.
    next: u32,
    /// How often the slot led a group; makes transaction ids unique.
    generation: u32,
    /// Whether it leads a group that is out.
    leads: bool,
}

/// Which slots of a buffer are free, and which are with the other end under which transaction.
///
/// A transaction id is the first slot of the group and that slot's generation: an answer that nobody asked for, or a
/// second one, matches nothing.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    out: u32,
}

impl Slots {
    /// `count` slots, all free. They are handed out from the first on, and the one that came back last goes first:
    /// it is the one most likely in a cache.
    pub(crate) fn new(count: u32) -> Self {
        let slots = (0..count).map(|_| Slot::default()).collect();
        Self { slots, free: (0..count).rev().collect(), out: 0 }
    }

    /// As many slots as here, of which none is free: for those that another set gives away.
    fn none_of(count: usize) -> Self {
        Self { slots: vec![Slot::default(); count], free: Vec::new(), out: 0 }
    }

    /// Gives away equal shares of what is free to `parts` new sets, numbered from 1 on, and keeps one.
    pub(crate) fn split(&mut self, parts: u16) -> impl Iterator<Item = (u16, Self)> {
        let share = self.free.len() / (usize::from(parts) + 1);
        (1..=parts).map(move |index| {
            let mut part = Self::none_of(self.slots.len());
            part.free = self.free.split_off(self.free.len().saturating_sub(share));
            (index, part)
        })
    }

    /// All slots are free again: the channel that they went by is closed.
    pub(crate) fn free_all(&mut self) {
        *self = Self::new(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Slots that are with the other end.
    pub(crate) fn outstanding(&self) -> u32 {
        self.out
    }

    #[inline]
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// The slot that is taken after so many others, if none comes back in between.
    #[inline]
    pub(crate) fn peek(&self, after: usize) -> Option<u32> {
        self.free.get(self.free.len().checked_sub(after + 1)?).copied()
    }

    /// Gives back a slot that was taken and did not leave.
    #[inline]
    pub(crate) fn put(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// The transaction under which the slots leave that `take` gave. They must not be none.
    #[inline]
    pub(crate) fn send(&mut self, group: impl DoubleEndedIterator<Item = u32>) -> u64 {
        let mut next = END;
        let mut first = 0;
        for slot in group.rev() {
            if let Some(entry) = self.slots.get_mut(slot as usize) {
                entry.next = next;
                next = slot;
                first = slot;
            }
            self.out += 1;
        }
        match self.slots.get_mut(first as usize) {
            Some(leader) => {
                leader.generation = leader.generation.wrapping_add(1) & GENERATION_MASK;
                leader.leads = true;
                u64::from(leader.generation) << 32 | u64::from(first)
            }
            None => 0,
        }
    }

    /// Takes back the slots of a transaction that did not leave after all; they are as [`Self::take`] gave them.
    pub(crate) fn recall(&mut self, transaction: u64) {
        for _ in 0..self.complete(transaction).unwrap_or(0) {
            self.free.pop();
        }
    }

    /// Frees the slots of a transaction; returns how many, or `None` if there is no such one.
    #[inline]
    pub(crate) fn complete(&mut self, transaction: u64) -> Option<u32> {
        let [generation, first] = [transaction >> 32, transaction & 0xFFFF_FFFF];
        let mut slot = u32::try_from(first).ok()?;
        let leader = self.slots.get_mut(slot as usize)?;
        if !leader.leads || u64::from(leader.generation) != generation {
            return None;
        }
        leader.leads = false;
        let mut count = 0;
        while let Some(entry) = self.slots.get(slot as usize) {
            self.free.push(slot);
            count += 1;
            slot = entry.next;
        }
        self.out -= count;
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_nobody_asked_for_frees_nothing() {
        let mut slots = Slots::new(4);
        for transaction in [0, 1, 1 << 32, u64::MAX, 1 << 63] {
            assert_eq!(slots.complete(transaction), None);
        }
        let group = [slots.take().unwrap(), slots.take().unwrap()];
        let transaction = slots.send(group.into_iter());
        assert_eq!(slots.complete(transaction ^ 1 << 32), None);
        assert_eq!(slots.complete(transaction + 1), None, "a slot of the group, not its first");
        assert_eq!((slots.free(), slots.outstanding()), (2, 2));
        assert_eq!(slots.complete(transaction), Some(2));
        assert_eq!(slots.complete(transaction), None, "a second time");
        assert_eq!((slots.free(), slots.outstanding()), (4, 0));
    }

    proptest! {
        #[test]
        fn no_slot_is_ever_in_two_places(
            steps in prop::collection::vec((0..4u8, any::<u16>()), 1..200), split: bool,
        ) {
            let mut slots = Slots::new(24);
            let part = split.then(|| slots.split(1).next().unwrap().1);
            let mut out: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
            let total = slots.free();
            for (step, pick) in steps {
                if step < 2 {
                    let want = usize::from(pick % 5) + 1;
                    let group: Vec<u32> = std::iter::from_fn(|| slots.take()).take(want).collect();
                    if !group.is_empty() {
                        let transaction = slots.send(group.iter().copied());
                        prop_assert_eq!(out.insert(transaction, group), None);
                    }
                } else if step == 2 && !out.is_empty() {
                    let nth = usize::from(pick) % out.len();
                    let transaction = *out.keys().nth(nth).unwrap();
                    let group = out.remove(&transaction).unwrap();
                    prop_assert_eq!(slots.complete(transaction), Some(group.len() as u32));
                } else {
                    let random = (u64::from(pick) % 24) | (u64::from(pick / 24) << 32);
                    prop_assert_eq!(slots.complete(random).is_some(), out.remove(&random).is_some());
                }
                let mut seen: BTreeSet<u32> = slots.free.iter().copied().collect();
                let with_them: usize = out.values().map(Vec::len).sum();
                seen.extend(out.values().flatten());
                prop_assert_eq!(seen.len(), total);
                prop_assert_eq!(slots.free() + with_them, total);
                prop_assert_eq!(slots.outstanding() as usize, with_them);
            }
            if let Some(mut part) = part {
                let given: BTreeSet<u32> = std::iter::from_fn(|| part.take()).collect();
                prop_assert_eq!(given.len() + total, 24);
                prop_assert!(slots.free.iter().chain(out.values().flatten()).all(|s| !given.contains(s)));
            }
        }
    }
}
