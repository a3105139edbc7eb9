//! LUIDs of a device and of its VFs (SPEC-PCIVIRT §3.8, §5.12 to §5.14).

use pcivirt_protocol::{Luid, NtStatus, VfIndex};
use std::hash::{BuildHasher, RandomState};

/// Makes LUIDs that no other generator on this machine makes until it is restarted: a random start of 63 bits for each
/// generator, then counting. It never makes the zero LUID.
#[derive(Debug)]
pub struct LuidGenerator {
    next: u64,
}

impl LuidGenerator {
    /// A generator with a random start.
    pub fn new() -> Self {
        // `RandomState` is keyed from the system's random numbers.
        Self::starting_at(
            RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now())),
        )
    }

    /// A generator with a given start, so that a test or a restored device gets the same LUIDs again.
    pub const fn starting_at(value: u64) -> Self {
        Self { next: value }
    }

    /// The next LUID. Its high part is never negative.
    pub const fn allocate(&mut self) -> Luid {
        let mut value = self.next & (u64::MAX >> 1);
        if value == 0 {
            value = 1;
        }
        self.next = value.wrapping_add(1);
        Luid::from_u64(value)
    }
}

impl Default for LuidGenerator {
    fn default() -> Self {
        Self::new()
    }
}

/// The LUIDs of one device: its own, and one per VF it can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuidTable {
    device: Luid,
    vfs: Vec<Luid>,
}

impl LuidTable {
    /// Makes the LUIDs of a device that can have `total_vfs` VFs. They are kept for the device's life, so that a VF has
    /// the same LUID each time it is enabled.
    pub fn new(generator: &mut LuidGenerator, total_vfs: u16) -> Self {
        Self {
            device: generator.allocate(),
            vfs: (0..total_vfs).map(|_| generator.allocate()).collect(),
        }
    }

    /// LUID of the physical device.
    pub const fn device(&self) -> Luid {
        self.device
    }

    /// LUID of a VF.
    ///
    /// # Errors
    /// STATUS_INVALID_PARAMETER if the device cannot have this VF.
    pub fn vf_luid(&self, vf: VfIndex) -> Result<Luid, NtStatus> {
        self.vfs.get(usize::from(vf.0)).copied().ok_or(NtStatus::INVALID_PARAMETER)
    }

    /// The VF that has this LUID.
    ///
    /// # Errors
    /// STATUS_NOT_FOUND if none has.
    pub fn luid_vf(&self, luid: Luid) -> Result<VfIndex, NtStatus> {
        (0..)
            .zip(&self.vfs)
            .find_map(|(index, known)| (*known == luid).then_some(VfIndex(index)))
            .ok_or(NtStatus::NOT_FOUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luids_of_a_device_are_distinct_and_lead_back_to_their_vf() {
        let table = LuidTable::new(&mut LuidGenerator::new(), 256);
        let mut all: Vec<_> = (0..256).map(|vf| table.vf_luid(VfIndex(vf)).unwrap()).collect();
        for (vf, luid) in (0..).zip(&all) {
            assert_eq!(table.luid_vf(*luid), Ok(VfIndex(vf)));
        }
        all.push(table.device());
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 257);
        assert_eq!(table.vf_luid(VfIndex(256)), Err(NtStatus::INVALID_PARAMETER));
        assert_eq!(table.luid_vf(table.device()), Err(NtStatus::NOT_FOUND));
    }

    #[test]
    fn two_devices_do_not_share_luids() {
        assert_ne!(LuidGenerator::new().allocate(), LuidGenerator::new().allocate());
    }

    #[test]
    fn the_generator_wraps_past_zero() {
        let mut generator = LuidGenerator::starting_at(u64::MAX >> 1);
        assert_eq!(generator.allocate(), Luid { low_part: u32::MAX, high_part: i32::MAX });
        assert_eq!(generator.allocate(), Luid { low_part: 1, high_part: 0 });
    }
}
