//! One vector's state: a 64-bit word, and the transitions on it (SPEC-AVF §6.3).
//!
//! Everything that decides about a message lies in one word, so that each operation is one atomic
//! transition: an event and an arming that race are ordered by it, and exactly one of the two sends.
//! The transition also orders memory: what was written before an event (a descriptor's done bit) is seen
//! by whoever handles the message, and by whoever arms after it.

use std::sync::atomic::{AtomicU64, Ordering};

/// INTENA: a message may be sent.
pub(super) const ARMED: u64 = 1 << 0;
/// A queue had an event since the last message, by ITR index 0–3. Index 3 is no ITR: the VPort's moderation alone
/// spaces its messages.
pub(super) const PEND: [u64; 4] = [1 << 1, 1 << 2, 1 << 3, 1 << 4];
/// There was an event that waits for nothing: of the admin queue, or a software trigger.
pub(super) const PEND_NOW: u64 = 1 << 5;
const PEND_ANY: u64 = 0b11_1110;
/// Causes may fire: always for queue vectors, ICR0_ENA1.ADMINQ for vector 0.
pub(super) const GATE: u64 = 1 << 6;
/// MSI-X is enabled and the function may master the bus.
pub(super) const ENABLED: u64 = 1 << 7;
/// Mask bit of the vector's MSI-X table entry.
pub(super) const VECTOR_MASK: u64 = 1 << 8;
/// Function mask of the MSI-X capability.
pub(super) const FUNCTION_MASK: u64 = 1 << 9;
/// Pending bit of the MSI-X pending bit array.
pub(super) const PENDING_BIT: u64 = 1 << 10;
/// There is an eventfd to write to.
pub(super) const WIRED: u64 = 1 << 11;

const FLAGS: u32 = 12;
const FLAGS_MASK: u64 = (1 << FLAGS) - 1;
/// The time of the last message is kept in units of 128 ns, rounded up; 0 is never. 52 bits last 18 years.
const TIME_SHIFT: u32 = 7;

/// The atomic word, abstract so that the tests can put a model checker's in its place.
pub(super) trait Word {
    fn load(&self) -> u64;
    /// Acquires and releases on success, acquires on failure.
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64>;
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    #[inline]
    fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange_weak(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// What came of a transition.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Attempt {
    /// Nothing is to be sent now.
    Nothing,
    /// The caller is to send one message.
    Send,
    /// A message is due at this time (ns) and not before.
    Wait(u64),
}

/// Changes flags, then sends if everything allows it. Pure.
///
/// `spacing` gives the least time between messages, ns, for an ITR index of 0–3.
#[inline]
fn transition(
    word: u64,
    set: u64,
    clear: u64,
    now_ns: u64,
    spacing: &impl Fn(usize) -> u64,
) -> (u64, Attempt) {
    let mut word = word & !clear | set;
    let deliverable = word & (ENABLED | VECTOR_MASK | FUNCTION_MASK | WIRED) == ENABLED | WIRED;
    let released = word & PENDING_BIT != 0 && deliverable;
    if released {
        word &= !PENDING_BIT;
    }
    let ready = ARMED | GATE | ENABLED;
    if word & ready != ready || word & PEND_ANY == 0 {
        return (word, if released { Attempt::Send } else { Attempt::Nothing });
    }
    // A message that leaves its pending bit takes the new one along: pending bits do not count.
    if !released && word & PEND_NOW == 0 {
        let last = (word >> FLAGS) << TIME_SHIFT;
        let wait = least_spacing(word, spacing);
        let due = last.saturating_add(wait);
        if last != 0 && wait != 0 && now_ns < due {
            return (word, Attempt::Wait(due));
        }
    }
    let time = (now_ns.saturating_add((1 << TIME_SHIFT) - 1) >> TIME_SHIFT).max(1);
    word = time << FLAGS | word & FLAGS_MASK & !(ARMED | PEND_ANY);
    if deliverable { (word, Attempt::Send) } else { (word | PENDING_BIT, Attempt::Nothing) }
}

/// The shortest interval among the causes that are pending.
#[inline]
fn least_spacing(word: u64, spacing: &impl Fn(usize) -> u64) -> u64 {
    let mut least = u64::MAX;
    for (index, bit) in PEND.iter().enumerate() {
        if word & bit != 0 {
            least = least.min(spacing(index));
        }
    }
    least
}

/// The state of one vector.
pub(super) struct VectorState<W = AtomicU64>(pub(super) W);

impl<W: Word> VectorState<W> {
    /// Sets `set` after clearing `clear`, and sends if everything allows it.
    #[inline]
    pub(super) fn update(
        &self,
        set: u64,
        clear: u64,
        now_ns: u64,
        spacing: impl Fn(usize) -> u64,
    ) -> Attempt {
        let mut word = self.0.load();
        loop {
            let (new, attempt) = transition(word, set, clear, now_ns, &spacing);
            // Also when nothing changes: the exchange is what orders an event's data before a later arming.
            match self.0.compare_exchange(word, new) {
                Ok(_) => return attempt,
                Err(current) => word = current,
            }
        }
    }

    /// Whether all of `flags` are set.
    pub(super) fn has(&self, flags: u64) -> bool {
        self.0.load() & flags == flags
    }

    /// Whether it is armed, and nothing has happened since.
    pub(super) fn is_quiet(&self) -> bool {
        self.0.load() & (ARMED | PEND_ANY | PENDING_BIT) == ARMED
    }

    /// Whether its message was sent, and it was not armed since; when that was, ns, rounded up.
    pub(super) fn fired_at(&self) -> Option<u64> {
        let word = self.0.load();
        (word & (ARMED | PENDING_BIT) == 0).then_some((word >> FLAGS) << TIME_SHIFT)
    }

    /// Forgets events, arming, the pending bit and the time of the last message; `clear` too.
    pub(super) fn reset(&self, clear: u64) {
        let keep = FLAGS_MASK & !(ARMED | PEND_ANY | PENDING_BIT | clear);
        let mut word = self.0.load();
        while let Err(current) = self.0.compare_exchange(word, word & keep) {
            word = current;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: u64 = GATE | ENABLED | WIRED;
    const NO_SPACING: fn(usize) -> u64 = |_| 0;

    fn state(flags: u64) -> VectorState {
        VectorState(AtomicU64::new(flags))
    }

    #[test]
    fn each_order_of_events_and_armings_sends_once_per_arm() {
        // All sequences of eight steps of: event, arm, disarm.
        for sequence in 0..3_u32.pow(8) {
            let vector = state(LIVE);
            let (mut armed, mut pending, mut sent, mut model) = (false, false, 0, 0);
            let mut rest = sequence;
            for _ in 0..8 {
                let attempt = match rest % 3 {
                    0 => {
                        pending = true;
                        vector.update(PEND[0], 0, 0, NO_SPACING)
                    }
                    1 => {
                        armed = true;
                        vector.update(ARMED, 0, 0, NO_SPACING)
                    }
                    _ => {
                        armed = false;
                        vector.update(0, ARMED, 0, NO_SPACING)
                    }
                };
                rest /= 3;
                if armed && pending {
                    (armed, pending) = (false, false);
                    model += 1;
                }
                sent += u32::from(attempt == Attempt::Send);
            }
            assert_eq!(sent, model, "sequence {sequence}");
            assert_eq!(vector.has(ARMED), armed);
            assert_eq!(vector.has(PEND[0]), pending);
        }
    }

    #[test]
    fn the_shortest_interval_of_the_pending_causes_counts() {
        let spacing = |index| if index == 0 { 100_000 } else { 10_000 };
        let vector = state(LIVE | ARMED);
        assert_eq!(vector.update(PEND[0], 0, 1_280, spacing), Attempt::Send);
        assert_eq!(vector.update(ARMED | PEND[0], 0, 2_000, spacing), Attempt::Wait(101_280));
        assert_eq!(vector.update(PEND[1], 0, 3_000, spacing), Attempt::Wait(11_280));
        assert_eq!(vector.update(0, 0, 11_279, spacing), Attempt::Wait(11_280));
        assert_eq!(vector.update(0, 0, 11_280, spacing), Attempt::Send);
        assert_eq!(vector.update(ARMED | PEND_NOW, 0, 11_281, spacing), Attempt::Send);
    }

    #[test]
    fn a_masked_message_waits_in_the_pending_bit() {
        for mask in [VECTOR_MASK, FUNCTION_MASK] {
            let vector = state(LIVE | ARMED | mask);
            assert_eq!(vector.update(PEND[0], 0, 0, NO_SPACING), Attempt::Nothing);
            assert!(vector.has(PENDING_BIT) && !vector.has(ARMED));
            assert_eq!(vector.update(0, mask, 0, NO_SPACING), Attempt::Send);
            assert!(!vector.has(PENDING_BIT));
        }
        let unwired = state((LIVE | ARMED) & !WIRED);
        assert_eq!(unwired.update(PEND[0], 0, 0, NO_SPACING), Attempt::Nothing);
        assert_eq!(unwired.update(WIRED, 0, 0, NO_SPACING), Attempt::Send);
    }

    #[test]
    fn a_disabled_function_keeps_the_event_until_it_is_enabled() {
        let vector = state(LIVE & !ENABLED | ARMED);
        assert_eq!(vector.update(PEND[0], 0, 0, NO_SPACING), Attempt::Nothing);
        assert!(!vector.has(PENDING_BIT));
        assert_eq!(vector.update(ENABLED, 0, 0, NO_SPACING), Attempt::Send);
    }

    #[test]
    fn reset_leaves_wiring_and_masks_and_nothing_else() {
        let vector = state(LIVE | ARMED | VECTOR_MASK | PENDING_BIT | PEND[1] | 99 << FLAGS);
        vector.reset(GATE);
        assert_eq!(vector.0.load(Ordering::Relaxed), ENABLED | WIRED | VECTOR_MASK);
    }

    impl Word for loom::sync::atomic::AtomicU64 {
        fn load(&self) -> u64 {
            self.load(Ordering::Acquire)
        }

        fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
            self.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
        }
    }

    /// The loss that one-shot arming is to prevent, in every interleaving and memory order: a worker
    /// reports two frames while the driver's handler cleans the ring and then re-arms, not looking again.
    #[test]
    fn no_interleaving_of_reports_and_rearming_loses_a_frame_or_sends_twice_per_arm() {
        use loom::sync::{
            Arc,
            atomic::{AtomicU32, AtomicU64},
        };
        loom::model(|| {
            let vector = Arc::new(VectorState(AtomicU64::new(LIVE)));
            // The done bits, written without any ordering of their own.
            let done = Arc::new(AtomicU32::new(0));
            let worker = {
                let (vector, done) = (vector.clone(), done.clone());
                loom::thread::spawn(move || {
                    let mut sent = 0;
                    for frame in 1..=2 {
                        done.store(frame, Ordering::Relaxed);
                        let attempt = vector.update(PEND[0], 0, 0, NO_SPACING);
                        sent += u32::from(attempt == Attempt::Send);
                    }
                    sent
                })
            };
            let cleaned = done.load(Ordering::Relaxed);
            let by_arming = vector.update(ARMED, 0, 0, NO_SPACING) == Attempt::Send;
            if by_arming {
                // The handler of that message sees what was reported before it.
                assert!(done.load(Ordering::Relaxed) >= 1);
            }
            let sent = worker.join().unwrap() + u32::from(by_arming);
            assert!(sent <= 1, "more messages than armings");
            assert!(!vector.has(ARMED | PEND[0]), "armed and pending, yet silent");
            assert!(cleaned == 2 || sent == 1, "frames that nobody is told of");
        });
    }

    /// Masking, unmasking and an event at once: the message is sent, once, or waits in the pending bit.
    #[test]
    fn no_interleaving_of_mask_and_event_loses_the_message() {
        use loom::sync::{Arc, atomic::AtomicU64};
        loom::model(|| {
            let vector = Arc::new(VectorState(AtomicU64::new(LIVE | ARMED)));
            let worker = {
                let vector = vector.clone();
                loom::thread::spawn(move || {
                    u32::from(vector.update(PEND[1], 0, 0, NO_SPACING) == Attempt::Send)
                })
            };
            let mask = vector.update(VECTOR_MASK, 0, 0, NO_SPACING);
            assert_eq!(mask, Attempt::Nothing);
            let unmask = vector.update(0, VECTOR_MASK, 0, NO_SPACING) == Attempt::Send;
            assert_eq!(worker.join().unwrap() + u32::from(unmask), 1);
        });
    }
}
