//! Which configuration blocks of which VF have to be read again, and who waits to hear of it (SPEC-PCIVIRT §3.6). Sans I/O.

use crate::pnp::RequestKey;
use device_control_protocol::ClientId;
use pcivirt_protocol::{SriovInvalidateBlock, VfIndex};
use std::collections::{BTreeMap, VecDeque};

/// Invalidations that nobody has been told of, and requests that wait for one. Masks of several invalidations are ORed;
/// there is at most one mask per VF and one for all VFs, so this does not grow.
#[derive(Debug, Default)]
pub(crate) struct Invalidations {
    /// Never zero.
    masks: BTreeMap<VfIndex, u64>,
    /// Blocks of every VF, or zero.
    all_vfs: u64,
    /// Requests in order, each for one VF or for any.
    waiting: VecDeque<(RequestKey, Option<VfIndex>)>,
}

impl Invalidations {
    /// A request waits for invalidations of one VF, or of any.
    pub(crate) fn arm(&mut self, request: RequestKey, vf: Option<VfIndex>) {
        self.waiting.push_back((request, vf));
    }

    /// Blocks of one VF, or of every VF, have to be read again.
    pub(crate) fn invalidate(&mut self, block: SriovInvalidateBlock) {
        if block.block_mask == 0 {
            return;
        }
        match block.vf() {
            Some(vf) => *self.masks.entry(vf).or_default() |= block.block_mask,
            None => self.all_vfs |= block.block_mask,
        }
    }

    /// Takes out the requests that can be completed now, with what they are completed with.
    pub(crate) fn take_ready(&mut self, num_vfs: u16) -> Vec<(RequestKey, SriovInvalidateBlock)> {
        let mut ready = Vec::new();
        for (request, vf) in std::mem::take(&mut self.waiting) {
            let block = match vf {
                None => self.take_any(),
                Some(vf) => self.take_vf(vf, num_vfs),
            };
            match block {
                Some(block) => ready.push((request, block)),
                None => self.waiting.push_back((request, vf)),
            }
        }
        ready
    }

    fn take_any(&mut self) -> Option<SriovInvalidateBlock> {
        let all = std::mem::take(&mut self.all_vfs);
        if all != 0 {
            // It says what single VFs would be told of the same blocks.
            self.masks.retain(|_, mask| {
                *mask &= !all;
                *mask != 0
            });
            return Some(SriovInvalidateBlock::of_all_vfs(all));
        }
        let (vf, mask) = self.masks.pop_first()?;
        Some(SriovInvalidateBlock::of_vf(vf, mask))
    }

    fn take_vf(&mut self, vf: VfIndex, num_vfs: u16) -> Option<SriovInvalidateBlock> {
        // Somebody waits for a single VF: what concerns all has to be kept for each of the others.
        let all = std::mem::take(&mut self.all_vfs);
        if all != 0 {
            for other in (0..num_vfs).map(VfIndex) {
                *self.masks.entry(other).or_default() |= all;
            }
        }
        let mask = self.masks.remove(&vf)?;
        Some(SriovInvalidateBlock::of_vf(vf, mask))
    }

    /// Takes out a request.
    pub(crate) fn cancel(&mut self, request: RequestKey) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(waiting, _)| *waiting != request);
        self.waiting.len() != before
    }

    /// Takes out the requests of a client.
    pub(crate) fn cancel_client(&mut self, client: ClientId) -> Vec<RequestKey> {
        self.take_where(|(request, _)| request.client == client)
    }

    /// Forgets a VF that does not exist any more, and takes out the requests that wait for it alone.
    pub(crate) fn forget_vf(&mut self, vf: VfIndex) -> Vec<RequestKey> {
        self.masks.remove(&vf);
        self.take_where(|(_, waits_for)| *waits_for == Some(vf))
    }

    /// Forgets everything, and takes out all requests.
    pub(crate) fn clear(&mut self) -> Vec<RequestKey> {
        self.masks.clear();
        self.all_vfs = 0;
        self.take_where(|_| true)
    }

    fn take_where(
        &mut self,
        test: impl Fn(&(RequestKey, Option<VfIndex>)) -> bool,
    ) -> Vec<RequestKey> {
        let (taken, kept): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(|entry| test(entry));
        self.waiting = kept;
        taken.into_iter().map(|(request, _)| request).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device_control_protocol::RequestId;
    use proptest::prelude::*;

    const ANY: Option<VfIndex> = None;

    fn key(id: u64) -> RequestKey {
        RequestKey { client: ClientId(1), id: RequestId(id) }
    }

    fn vf(index: u16, mask: u64) -> SriovInvalidateBlock {
        SriovInvalidateBlock::of_vf(VfIndex(index), mask)
    }

    #[test]
    fn masks_are_ored_until_somebody_asks() {
        let mut pending = Invalidations::default();
        pending.invalidate(vf(3, 0b0001));
        pending.invalidate(vf(3, 0b1000));
        pending.invalidate(vf(1, 1 << 63));
        assert_eq!(pending.take_ready(4), []);
        pending.arm(key(1), ANY);
        pending.arm(key(2), ANY);
        pending.arm(key(3), ANY);
        assert_eq!(pending.take_ready(4), [(key(1), vf(1, 1 << 63)), (key(2), vf(3, 0b1001))]);
        pending.invalidate(vf(0, 2));
        assert_eq!(pending.take_ready(4), [(key(3), vf(0, 2))]);
    }

    #[test]
    fn an_invalidation_of_all_vfs_is_one_message_for_who_waits_for_any() {
        let mut pending = Invalidations::default();
        pending.invalidate(SriovInvalidateBlock::of_all_vfs(1));
        pending.invalidate(SriovInvalidateBlock::of_all_vfs(4));
        pending.arm(key(1), ANY);
        assert_eq!(pending.take_ready(4), [(key(1), SriovInvalidateBlock::of_all_vfs(5))]);
    }

    #[test]
    fn an_invalidation_of_all_vfs_reaches_each_that_waits_for_its_own() {
        let mut pending = Invalidations::default();
        pending.arm(key(2), Some(VfIndex(2)));
        pending.invalidate(vf(0, 8));
        assert_eq!(pending.take_ready(3), []);
        pending.invalidate(SriovInvalidateBlock::of_all_vfs(1));
        assert_eq!(pending.take_ready(3), [(key(2), vf(2, 1))]);
        pending.arm(key(0), Some(VfIndex(0)));
        pending.arm(key(1), ANY);
        pending.arm(key(3), Some(VfIndex(2)));
        assert_eq!(pending.take_ready(3), [(key(0), vf(0, 9)), (key(1), vf(1, 1))]);
        assert!(pending.cancel(key(3)));
        assert!(!pending.cancel(key(3)));
    }

    #[test]
    fn a_vf_that_is_gone_leaves_nothing_behind() {
        let mut pending = Invalidations::default();
        pending.invalidate(vf(1, 1));
        pending.arm(key(1), Some(VfIndex(2)));
        assert_eq!(pending.forget_vf(VfIndex(1)), []);
        assert_eq!(pending.forget_vf(VfIndex(2)), [key(1)]);
        pending.arm(key(2), ANY);
        assert_eq!(pending.take_ready(4), []);
        assert_eq!(pending.clear(), [key(2)]);
    }

    #[test]
    fn an_empty_mask_is_no_invalidation() {
        let mut pending = Invalidations::default();
        pending.arm(key(1), ANY);
        pending.invalidate(vf(1, 0));
        assert_eq!(pending.take_ready(4), []);
        assert_eq!(pending.cancel_client(ClientId(2)), []);
        assert_eq!(pending.cancel_client(ClientId(1)), [key(1)]);
    }

    proptest! {
        /// Each VF hears of every block that was invalidated since it was last told, however the requests come.
        #[test]
        fn no_bit_is_lost_and_none_is_invented(
            steps in prop::collection::vec((0u8..4, 0u16..4, 0u32..64), 0..80)
        ) {
            const NUM_VFS: u16 = 4;
            let mut pending = Invalidations::default();
            let mut expected = [0u64; NUM_VFS as usize];
            for (id, (action, index, bit)) in (0u64..).zip(steps) {
                match action {
                    0 => {
                        pending.invalidate(vf(index, 1 << bit));
                        expected[usize::from(index)] |= 1 << bit;
                    }
                    1 => {
                        pending.invalidate(SriovInvalidateBlock::of_all_vfs(1 << bit));
                        expected.iter_mut().for_each(|mask| *mask |= 1 << bit);
                    }
                    2 => pending.arm(key(id), ANY),
                    _ => pending.arm(key(id), Some(VfIndex(index))),
                }
                for (_, block) in pending.take_ready(NUM_VFS) {
                    prop_assert_ne!(block.block_mask, 0);
                    match block.vf() {
                        Some(vf) => {
                            let mask = &mut expected[usize::from(vf.0)];
                            prop_assert_eq!(*mask & block.block_mask, block.block_mask);
                            *mask &= !block.block_mask;
                        }
                        None => {
                            for mask in &mut expected {
                                prop_assert_eq!(*mask & block.block_mask, block.block_mask);
                                *mask &= !block.block_mask;
                            }
                        }
                    }
                }
            }
            // Whatever is left is told to who asks for each VF.
            pending.clear_waiting_for_test();
            for index in 0..NUM_VFS {
                pending.arm(key(1000 + u64::from(index)), Some(VfIndex(index)));
            }
            for (_, block) in pending.take_ready(NUM_VFS) {
                expected[usize::from(block.vf_index)] &= !block.block_mask;
            }
            prop_assert_eq!(expected, [0; NUM_VFS as usize]);
        }
    }

    impl Invalidations {
        fn clear_waiting_for_test(&mut self) {
            self.waiting.clear();
        }
    }
}
