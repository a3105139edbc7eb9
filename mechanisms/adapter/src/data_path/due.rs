//! Interrupts that their interval holds back: which functions have one, and when the next is due.

use super::earlier;

/// Functions with a message held back.
#[derive(Default, Debug)]
pub(crate) struct DueInterrupts {
    /// Slots, each once.
    slots: Vec<usize>,
    /// The earliest deadline, nanoseconds.
    next: Option<u64>,
}

impl DueInterrupts {
    /// Notes that a message of the function in `slot` is due then, if at all.
    #[inline]
    pub(crate) fn note(&mut self, slot: usize, deadline_ns: Option<u64>) {
        if deadline_ns.is_some() {
            if !self.slots.contains(&slot) {
                self.slots.push(slot);
            }
            self.next = earlier(self.next, deadline_ns);
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<u64> {
        self.next
    }

    /// Asks every function with a message held back to send what is due; `send` returns when it has the
    /// next one.
    pub(crate) fn expire(&mut self, now_ns: u64, mut send: impl FnMut(usize) -> Option<u64>) {
        if self.next.is_none_or(|next| next > now_ns) {
            return;
        }
        let mut next = None;
        self.slots.retain(|slot| {
            let due = send(*slot);
            next = earlier(next, due);
            due.is_some()
        });
        self.next = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_asked_when_the_first_is_due_and_forgotten_when_they_have_nothing_left() {
        let mut due = DueInterrupts::default();
        due.note(3, Some(500));
        due.note(1, Some(300));
        due.note(1, None);
        assert_eq!(due.next(), Some(300));
        due.expire(299, |_| unreachable!("nothing is due"));
        due.expire(300, |slot| (slot == 3).then_some(500));
        assert_eq!((due.next(), due.slots.as_slice()), (Some(500), [3].as_slice()));
        due.expire(600, |_| None);
        assert_eq!(due.next(), None);
    }
}
