//! The interrupts that a guest has made, and the messages that stand for them.

use std::{collections::BTreeMap, ops::RangeInclusive};

use pcivirt_protocol::NtStatus;
use vpci_protocol::{
    DeliveryMode, InterruptGeneration, InterruptRequest, STATUS_BAD_DATA, TranslatedMsi,
};

/// Where interrupt messages are written: the local APIC's range of x86 guests. Nothing is behind it but this table.
const MESSAGE_ADDRESS: u64 = 0xFEE0_0000;
/// Data above this does not fit the 16-bit data register of MSI.
const LAST_DATA: u32 = 0xFFFF;

/// Where an interrupt goes.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct InterruptTarget {
    /// The vector.
    pub vector: u32,
    /// To all of the processors, or to one of them.
    pub delivery_mode: DeliveryMode,
    /// VP indices, at least one, all of them the guest's.
    pub processors: Vec<u16>,
}

impl InterruptTarget {
    /// A vector of one processor.
    pub fn fixed(vector: u32, processor: u16) -> Self {
        Self { vector, delivery_mode: DeliveryMode::Fixed, processors: vec![processor] }
    }
}

/// Interrupts by their messages.
#[derive(Clone, Debug)]
pub(super) struct InterruptTable {
    processors: u16,
    vectors: RangeInclusive<u32>,
    limit: usize,
    /// By the data of the first message; one target for each message.
    interrupts: BTreeMap<u32, Vec<InterruptTarget>>,
    messages: usize,
}

impl InterruptTable {
    pub(super) fn new(processors: u16, vectors: RangeInclusive<u32>, limit: usize) -> Self {
        Self { processors, vectors, limit, interrupts: BTreeMap::new(), messages: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.messages
    }

    pub(super) fn clear(&mut self) {
        self.interrupts.clear();
        self.messages = 0;
    }

    /// Checks a target that a guest gave. A mask of processors names more than there are (Linux sets all bits).
    fn check(
        &self,
        mut target: InterruptTarget,
        is_mask: bool,
    ) -> Result<InterruptTarget, NtStatus> {
        let known = self.processors;
        if is_mask {
            target.processors.retain(|vp| *vp < known);
        }
        let processors =
            !target.processors.is_empty() && target.processors.iter().all(|vp| *vp < known);
        let good = processors && self.vectors.contains(&target.vector);
        if good { Ok(target) } else { Err(STATUS_BAD_DATA) }
    }

    pub(super) fn create(
        &mut self,
        generation: InterruptGeneration,
        request: InterruptRequest,
    ) -> Result<TranslatedMsi, NtStatus> {
        let InterruptRequest { vector, delivery_mode, vector_count, processors } = request;
        let first = InterruptTarget { vector, delivery_mode, processors };
        let first = self.check(first, generation == InterruptGeneration::V1)?;
        let last = vector.checked_add(u32::from(vector_count).saturating_sub(1));
        if vector_count == 0 || !last.is_some_and(|last| self.vectors.contains(&last)) {
            return Err(STATUS_BAD_DATA);
        }
        if self.messages.saturating_add(vector_count.into()) > self.limit {
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
        let data = self.free_data(vector_count.into()).ok_or(NtStatus::INSUFFICIENT_RESOURCES)?;
        let targets = (0..u32::from(vector_count))
            .map(|message| InterruptTarget { vector: vector + message, ..first.clone() })
            .collect();
        self.interrupts.insert(data, targets);
        self.messages += usize::from(vector_count);
        Ok(TranslatedMsi { address: MESSAGE_ADDRESS, data, message_count: vector_count })
    }

    /// The first data that `count` messages can have. A function puts the number of a message into the low bits.
    fn free_data(&self, count: u32) -> Option<u32> {
        let align = count.next_power_of_two();
        let mut data = align;
        for (first, targets) in &self.interrupts {
            if data + align <= *first {
                break;
            }
            let end = first + u32::try_from(targets.len()).ok()?.next_power_of_two();
            data = data.max(end.next_multiple_of(align));
        }
        (data + align - 1 <= LAST_DATA).then_some(data)
    }

    /// Forgets an interrupt. Only address and data count: clients leave the count out.
    pub(super) fn delete(&mut self, interrupt: TranslatedMsi) -> Result<(), NtStatus> {
        if interrupt.address != MESSAGE_ADDRESS {
            return Err(STATUS_BAD_DATA);
        }
        let targets = self.interrupts.remove(&interrupt.data).ok_or(STATUS_BAD_DATA)?;
        self.messages -= targets.len();
        Ok(())
    }

    /// Where a message goes.
    pub(super) fn resolve(&self, address: u64, data: u32) -> Option<&InterruptTarget> {
        let (first, targets) = self.interrupts.range(..=data).next_back()?;
        let message = usize::try_from(data - first).ok()?;
        targets.get(message).filter(|_| address == MESSAGE_ADDRESS)
    }

    /// Sends a message elsewhere from now on.
    pub(super) fn retarget(
        &mut self,
        address: u64,
        data: u32,
        target: InterruptTarget,
    ) -> Result<(), NtStatus> {
        let target = self.check(target, false)?;
        if address != MESSAGE_ADDRESS {
            return Err(STATUS_BAD_DATA);
        }
        let found = self.interrupts.range_mut(..=data).next_back();
        let (first, targets) = found.ok_or(STATUS_BAD_DATA)?;
        let message = usize::try_from(data - first).unwrap_or(usize::MAX);
        *targets.get_mut(message).ok_or(STATUS_BAD_DATA)? = target;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(vector: u32, count: u16) -> InterruptRequest {
        InterruptRequest { vector_count: count, ..InterruptRequest::single(vector, 1) }
    }

    #[test]
    fn a_message_finds_its_vector_and_no_other_does() {
        let mut table = InterruptTable::new(4, 0x10..=0xFF, 64);
        let one = table.create(InterruptGeneration::V2, request(0x41, 1)).unwrap();
        let many = table.create(InterruptGeneration::V2, request(0x50, 3)).unwrap();
        assert_eq!(table.len(), 4);
        assert_eq!(table.resolve(one.address, one.data).unwrap().vector, 0x41);
        for message in 0..3 {
            assert!(many.data.is_multiple_of(4), "the function fills in the low bits");
            let target = table.resolve(many.address, many.data + message).unwrap();
            assert_eq!(target.vector, 0x50 + message);
        }
        assert_eq!(table.resolve(many.address, many.data + 3), None);
        assert_eq!(table.resolve(many.address + 4, many.data), None);
        assert_eq!(
            table.delete(TranslatedMsi { data: many.data + 1, ..many }),
            Err(STATUS_BAD_DATA)
        );
        assert_eq!(table.delete(TranslatedMsi { message_count: 0, ..many }), Ok(()));
        assert_eq!(table.delete(many), Err(STATUS_BAD_DATA));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn processors_and_vectors_that_the_guest_does_not_have_are_refused() {
        let mut table = InterruptTable::new(2, 0x10..=0xFF, 64);
        let with = |vector, processors| InterruptRequest {
            processors,
            ..InterruptRequest::single(vector, 0)
        };
        let mut create = |generation, request| table.create(generation, request).map(|_| ());
        use InterruptGeneration::{V1, V3};
        assert_eq!(create(V3, with(0x41, vec![2])), Err(STATUS_BAD_DATA));
        assert_eq!(create(V3, with(0x41, vec![])), Err(STATUS_BAD_DATA));
        assert_eq!(create(V3, with(0x0F, vec![0])), Err(STATUS_BAD_DATA));
        assert_eq!(create(V3, with(0x100, vec![0])), Err(STATUS_BAD_DATA));
        assert_eq!(create(V3, request(0xFE, 3)), Err(STATUS_BAD_DATA));
        assert_eq!(create(V3, request(u32::MAX, 2)), Err(STATUS_BAD_DATA));
        // Linux sets all 64 bits of a mask.
        assert_eq!(create(V1, with(0x41, (0..64).collect())), Ok(()));
        assert_eq!(table.resolve(MESSAGE_ADDRESS, 1).unwrap().processors, [0, 1]);
    }

    #[test]
    fn there_is_a_limit() {
        let mut table = InterruptTable::new(2, 0x10..=0xFF, 33);
        assert!(table.create(InterruptGeneration::V2, request(0x20, 32)).is_ok());
        assert!(table.create(InterruptGeneration::V2, request(0x20, 1)).is_ok());
        assert_eq!(
            table.create(InterruptGeneration::V2, request(0x20, 1)),
            Err(NtStatus::INSUFFICIENT_RESOURCES)
        );
        table.clear();
        assert!(table.create(InterruptGeneration::V2, request(0x20, 1)).is_ok());
    }

    proptest! {
        #[test]
        fn messages_never_overlap(steps in proptest::collection::vec((1u16..=32, any::<prop::sample::Index>(), any::<bool>()), 1..60)) {
            let mut table = InterruptTable::new(2, 0x10..=0xFF, 512);
            let mut live: Vec<TranslatedMsi> = Vec::new();
            for (count, which, delete) in steps {
                if delete && !live.is_empty() {
                    let gone = live.swap_remove(which.index(live.len()));
                    prop_assert_eq!(table.delete(gone), Ok(()));
                } else if let Ok(made) = table.create(InterruptGeneration::V2, request(0x20, count)) {
                    live.push(made);
                }
                let mut data: Vec<_> =
                    live.iter().flat_map(|one| one.data..one.data + u32::from(one.message_count)).collect();
                prop_assert_eq!(data.len(), table.len());
                data.sort_unstable();
                data.dedup();
                prop_assert_eq!(data.len(), table.len());
                for one in &live {
                    prop_assert!(one.data.is_multiple_of(u32::from(one.message_count).next_power_of_two()));
                    for message in 0..u32::from(one.message_count) {
                        let vector = table.resolve(one.address, one.data + message).map(|target| target.vector);
                        prop_assert_eq!(vector, Some(0x20 + message));
                    }
                }
            }
        }
    }
}
