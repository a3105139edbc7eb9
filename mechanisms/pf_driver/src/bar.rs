//! The resource of one VF's BAR, out of the resource that covers the BARs of all VFs (SPEC-PCIVIRT §5.11).

use pcivirt_protocol::{CmPartialResourceDescriptor, NtStatus, VfIndex};

/// What SRIOV_GET_RESOURCE_FOR_BAR answers for `vf` of `num_vfs`, given the translated resource of that BAR for all VFs
/// together: memory is divided evenly, other resources are returned as they are.
///
/// # Errors
/// STATUS_INVALID_DEVICE_REQUEST if there is no such VF; STATUS_INVALID_PARAMETER if the memory does not divide evenly,
/// or the part cannot be described.
pub fn vf_resource_for_bar(
    all_vfs: &CmPartialResourceDescriptor,
    num_vfs: u16,
    vf: VfIndex,
) -> Result<CmPartialResourceDescriptor, NtStatus> {
    if !vf.exists(num_vfs) {
        return Err(NtStatus::INVALID_DEVICE_REQUEST);
    }
    let Some((base, total)) = all_vfs.memory_range() else {
        return Ok(*all_vfs);
    };
    let count = u64::from(num_vfs);
    if !total.is_multiple_of(count) {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let length = total / count;
    let start = length
        .checked_mul(u64::from(vf.0))
        .and_then(|offset| base.checked_add(offset))
        .ok_or(NtStatus::INVALID_PARAMETER)?;
    let part = CmPartialResourceDescriptor::memory(start, length, all_vfs.flags)
        .ok_or(NtStatus::INVALID_PARAMETER)?;
    Ok(CmPartialResourceDescriptor { share_disposition: all_vfs.share_disposition, ..part })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcivirt_protocol::{CmResourceType, cm_resource_memory};

    fn memory(start: u64, length: u64) -> CmPartialResourceDescriptor {
        CmPartialResourceDescriptor::memory(start, length, cm_resource_memory::BAR).unwrap()
    }

    #[test]
    fn each_vf_gets_its_share_in_order() {
        let all = memory(0xF000_0000, 0x4_0000);
        for vf in 0..4 {
            assert_eq!(
                vf_resource_for_bar(&all, 4, VfIndex(vf)),
                Ok(memory(0xF000_0000 + 0x1_0000 * u64::from(vf), 0x1_0000))
            );
        }
        assert_eq!(vf_resource_for_bar(&all, 4, VfIndex(4)), Err(NtStatus::INVALID_DEVICE_REQUEST));
        assert_eq!(vf_resource_for_bar(&all, 0, VfIndex(0)), Err(NtStatus::INVALID_DEVICE_REQUEST));
    }

    #[test]
    fn a_large_range_becomes_small_parts() {
        let all = memory(1 << 40, 256 << 30);
        assert_eq!(all.resource_type, CmResourceType::MEMORY_LARGE);
        let part = vf_resource_for_bar(&all, 256, VfIndex(255)).unwrap();
        assert_eq!(part, memory((1 << 40) + (255 << 30), 1 << 30));
    }

    #[test]
    fn memory_that_does_not_divide_is_refused_and_other_resources_pass() {
        assert_eq!(
            vf_resource_for_bar(&memory(0, 100), 3, VfIndex(0)),
            Err(NtStatus::INVALID_PARAMETER)
        );
        let interrupt = CmPartialResourceDescriptor {
            resource_type: CmResourceType::INTERRUPT,
            length: 7,
            ..CmPartialResourceDescriptor::NULL
        };
        assert_eq!(vf_resource_for_bar(&interrupt, 3, VfIndex(2)), Ok(interrupt));
        assert_eq!(
            vf_resource_for_bar(&memory(u64::MAX - 10, 100), 2, VfIndex(1)),
            Err(NtStatus::INVALID_PARAMETER)
        );
    }
}
