//! SynIC: the message slots and event flags of a processor, which lie in guest memory.
//!
//! Everything here is the guest's to change at any time: where the pages are is looked up for each use, and what
//! does not lie in its memory is not there.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};
use vmbus_protocol::{MESSAGE_FLAG_PENDING, MessageSlot};
use zerocopy::IntoBytes;

use crate::layout::PAGE;

/// Sources of a processor.
pub const SINTS: u8 = 16;
/// Bytes of a message slot, and of the event flags of a source.
const SLOT: u64 = 256;
/// In all three registers: it is on.
const ENABLED: u64 = 1;
/// Byte offset of the flags of a slot.
const FLAGS_OFFSET: usize = 5;

/// A processor's SynIC registers.
#[derive(Copy, Clone, Default, Eq, PartialEq, Debug)]
pub struct Synic {
    /// HV_X64_MSR_SCONTROL.
    pub control: u64,
    /// HV_X64_MSR_SIEFP: the event flags' page.
    pub event_page: u64,
    /// HV_X64_MSR_SIMP: the messages' page.
    pub message_page: u64,
}

/// What became of a message.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Posted {
    /// It is in its slot: interrupt the processor.
    Written,
    /// The slot is in use. The guest was asked to say when it is free.
    Busy,
    /// The guest has no such slot now.
    NoSlot,
}

impl Synic {
    fn in_page(&self, register: u64, sint: u8) -> Option<GuestAddress> {
        let on = self.control & ENABLED != 0 && register & ENABLED != 0 && sint < SINTS;
        on.then(|| GuestAddress((register & !(PAGE - 1)) + SLOT * u64::from(sint)))
    }

    /// Whether messages and flags can be posted.
    pub fn is_on(&self) -> bool {
        self.in_page(self.message_page & self.event_page, 0).is_some()
    }

    /// Writes a message into the slot of a source: payload first, its type last.
    pub fn post(&self, memory: &GuestMemoryMmap, sint: u8, message: &[u8]) -> Posted {
        let Some(slot) = MessageSlot::vmbus(message) else { return Posted::NoSlot };
        let at = self.in_page(self.message_page, sint);
        let Some(memory) = at.and_then(|at| memory.get_slice(at, size_of::<MessageSlot>()).ok())
        else {
            return Posted::NoSlot;
        };
        let (Ok(kind), Ok(flags)) = (
            memory.get_atomic_ref::<AtomicU32>(0),
            memory.get_atomic_ref::<AtomicU8>(FLAGS_OFFSET),
        ) else {
            return Posted::NoSlot;
        };
        if kind.load(Ordering::Acquire) != 0 {
            flags.fetch_or(MESSAGE_FLAG_PENDING, Ordering::SeqCst);
            // Either the guest sees the flag, or we see that the slot is free.
            fence(Ordering::SeqCst);
            if kind.load(Ordering::Acquire) != 0 {
                return Posted::Busy;
            }
        }
        let Some(behind_kind) = slot.as_bytes().get(4..) else { return Posted::NoSlot };
        if memory.write_slice(behind_kind, 4).is_err() {
            return Posted::NoSlot;
        }
        kind.store(slot.message_type, Ordering::Release);
        Posted::Written
    }

    /// Sets an event flag of a source. True: interrupt the processor.
    pub fn set_flag(&self, memory: &GuestMemoryMmap, sint: u8, flag: u16) -> bool {
        let Some(flags) = self.in_page(self.event_page, sint) else { return false };
        let word = u64::from(flag / 64) * 8;
        if word >= SLOT {
            return false;
        }
        let Ok(memory) = memory.get_slice(GuestAddress(flags.0 + word), 8) else { return false };
        let Ok(word) = memory.get_atomic_ref::<AtomicU64>(0) else { return false };
        word.fetch_or(1 << (flag % 64), Ordering::SeqCst);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: u64 = 0x5000;
    const EVENTS: u64 = 0x6000;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn synic() -> Synic {
        Synic { control: 1, event_page: EVENTS | 1, message_page: MESSAGES | 1 }
    }

    fn slot(memory: &GuestMemoryMmap, sint: u64) -> MessageSlot {
        let mut bytes = [0; 256];
        memory.read_slice(&mut bytes, GuestAddress(MESSAGES + 256 * sint)).unwrap();
        zerocopy::FromBytes::read_from_bytes(&bytes[..]).unwrap()
    }

    #[test]
    fn a_message_waits_for_its_slot_and_asks_to_be_told() {
        let (memory, synic) = (memory(), synic());
        assert_eq!(synic.post(&memory, 2, b"first"), Posted::Written);
        assert_eq!(slot(&memory, 2).message(), Some(&b"first"[..]));
        assert_eq!(slot(&memory, 2).flags, 0);
        assert_eq!(synic.post(&memory, 2, b"second"), Posted::Busy);
        assert_eq!(slot(&memory, 2).message(), Some(&b"first"[..]), "nothing is overwritten");
        assert_eq!(slot(&memory, 2).flags, MESSAGE_FLAG_PENDING);
        assert_eq!(synic.post(&memory, 3, b"other"), Posted::Written, "sources are independent");
        // The guest has taken it.
        memory.write_obj(0u32, GuestAddress(MESSAGES + 512)).unwrap();
        assert_eq!(synic.post(&memory, 2, b"second"), Posted::Written);
        assert_eq!(slot(&memory, 2).message(), Some(&b"second"[..]));
        assert_eq!(slot(&memory, 2).flags, 0);
    }

    #[test]
    fn flags_are_bits_of_the_sources_part_of_the_page() {
        let (memory, synic) = (memory(), synic());
        for flag in [1, 63, 64, 2047] {
            assert!(synic.set_flag(&memory, 2, flag));
            let at = GuestAddress(EVENTS + 512 + u64::from(flag / 8));
            let byte: u8 = memory.read_obj(at).unwrap();
            assert_ne!(byte & 1 << (flag % 8), 0, "{flag}");
        }
        assert!(!synic.set_flag(&memory, 2, 2048));
        let mut page = [0; 4096];
        memory.read_slice(&mut page, GuestAddress(EVENTS)).unwrap();
        assert_eq!(page.iter().map(|byte| byte.count_ones()).sum::<u32>(), 4);
    }

    #[test]
    fn pages_that_are_off_or_nowhere_take_nothing() {
        let memory = memory();
        let off = [
            Synic { control: 0, ..synic() },
            Synic { event_page: EVENTS, message_page: MESSAGES, ..synic() },
            Synic { event_page: 0x10_0001, message_page: 0x10_0001, ..synic() },
            Synic { event_page: u64::MAX, message_page: u64::MAX, ..synic() },
        ];
        for synic in off {
            assert_eq!(synic.post(&memory, 2, b"x"), Posted::NoSlot, "{synic:?}");
            assert!(!synic.set_flag(&memory, 2, 1), "{synic:?}");
        }
        assert_eq!(synic().post(&memory, 16, b"x"), Posted::NoSlot);
        assert_eq!(synic().post(&memory, 2, &[0; 241]), Posted::NoSlot);
    }
}
