//! The PF driver contract over NDIS: each callback is an OID (SPEC-PCIVIRT §11).

use std::sync::{Arc, Mutex};

use ndis_protocol::*;
use pcivirt_protocol::{DevicePowerState, Luid, NtStatus, VfIndex};
use pf_driver::{LuidGenerator, NO_VENDOR_AND_DEVICE, SriovDevice};

use crate::testing::*;
use crate::*;

struct Stack {
    device: NdisSriovDevice<FakeMiniport>,
    codes: Arc<Mutex<Vec<String>>>,
}

/// A device with VF 0 allocated, recording the OIDs that its callbacks become.
fn stack() -> Stack {
    let mut bench = Bench::new();
    bench.allocate_vf("vm1").unwrap();
    let codes = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&codes);
    bench.ndis.subscribe(move |event| {
        if let NdisEvent::OidIssued { requester: Requester::Ndis, code, .. } = event {
            sink.lock().unwrap().push(oid_name(*code));
        }
    });
    let ndis = Arc::new(Mutex::new(bench.ndis));
    Stack { device: NdisSriovDevice::new(ndis, &mut LuidGenerator::starting_at(1)), codes }
}

impl Stack {
    fn oids(&self) -> Vec<String> {
        std::mem::take(&mut self.codes.lock().unwrap())
    }
}

const VF0: VfIndex = VfIndex(0);
/// Exists, but is not allocated.
const VF1: VfIndex = VfIndex(1);

#[test]
fn callbacks_become_the_oids_of_the_correspondence_table() {
    let stack = stack();
    let device = &stack.device;
    let mut four = [0; 4];
    device.read_vf_config(VF0, 0x20, &mut four).unwrap();
    assert_eq!(four, [0x20, 0x21, 0x22, 0x23]);
    device.write_vf_config(VF0, 4, &[6, 0]).unwrap();
    device.write_vf_config_block(VF0, 3, &[1, 2, 3]).unwrap();
    let mut block = [0; 3];
    device.read_vf_config_block(VF0, 3, &mut block).unwrap();
    assert_eq!(block, [1, 2, 3]);
    let bars = device.query_probed_bars().unwrap();
    assert_eq!(bars[0], 0xFFFF_0004);
    let ids = device.get_vendor_and_device(VF0);
    assert_eq!((ids.vendor_id, ids.device_id), (0x8086, 0x1889));
    device.reset_vf(VF0).unwrap();
    device.set_vf_power_state(VF0, DevicePowerState::D3, true).unwrap();
    let bar = device.get_resource_for_bar(VF0, 0).unwrap();
    assert_eq!(bar.memory_range(), Some((0x1_0000_0000, 0x1_0000)));
    assert_eq!(device.query_luid(), Ok(Luid::from_u64(0x1234_5678_9ABC)));
    assert_eq!(
        stack.oids(),
        [
            "OID_SRIOV_READ_VF_CONFIG_SPACE",
            "OID_SRIOV_WRITE_VF_CONFIG_SPACE",
            "OID_SRIOV_WRITE_VF_CONFIG_BLOCK",
            "OID_SRIOV_READ_VF_CONFIG_BLOCK",
            "OID_SRIOV_PROBED_BARS",
            "OID_SRIOV_VF_VENDOR_DEVICE_ID",
            "OID_SRIOV_RESET_VF",
            "OID_SRIOV_SET_VF_POWER_STATE",
            "OID_SRIOV_BAR_RESOURCES",
            "OID_SRIOV_PF_LUID",
        ]
    );
}

#[test]
fn the_location_is_the_requestor_id_of_the_allocated_vf() {
    let stack = stack();
    let location = stack.device.get_device_location(VF0);
    assert_eq!((location.segment_number, location.bus_number, location.function_number), (0, 3, 2));
    for absent in [VF1, VfIndex(0xFFFF)] {
        let location = stack.device.get_device_location(absent);
        assert_eq!((location.bus_number, location.function_number), (0, 0));
    }
}

#[test]
fn a_vf_that_is_not_allocated_is_out_of_reach() {
    let stack = stack();
    let device = &stack.device;
    let bad = NtStatus::INVALID_PARAMETER;
    for vf in [VF1, VfIndex(77), VfIndex(0xFFFF)] {
        assert_eq!(device.read_vf_config(vf, 0, &mut [0; 4]), Err(bad));
        assert_eq!(device.write_vf_config(vf, 0, &[0; 4]), Err(bad));
        assert_eq!(device.read_vf_config_block(vf, 0, &mut [0; 4]), Err(bad));
        assert_eq!(device.write_vf_config_block(vf, 0, &[0; 4]), Err(bad));
        assert_eq!(device.reset_vf(vf), Err(bad));
        assert_eq!(device.set_vf_power_state(vf, DevicePowerState::D3, false), Err(bad));
        assert_eq!(device.get_resource_for_bar(vf, 0), Err(bad));
        assert_eq!(device.get_vendor_and_device(vf), NO_VENDOR_AND_DEVICE);
    }
}

#[test]
fn arguments_out_of_bounds_are_refused_without_panic() {
    let stack = stack();
    let device = &stack.device;
    let bad = Err(NtStatus::INVALID_PARAMETER);
    assert_eq!(device.read_vf_config(VF0, 4094, &mut [0; 4]), bad);
    assert_eq!(device.read_vf_config(VF0, 0, &mut []), bad);
    assert_eq!(device.read_vf_config(VF0, 0, &mut vec![0; 5000]), bad);
    assert_eq!(device.read_vf_config_block(VF0, 0, &mut [0; 129]), bad);
    assert_eq!(device.set_vf_power_state(VF0, DevicePowerState::D0, true), bad);
    assert!(device.get_resource_for_bar(VF0, 6).is_err());
}

#[test]
fn every_vf_has_a_luid_of_its_own() {
    let stack = stack();
    let device = &stack.device;
    assert_eq!(device.num_vfs(), 4);
    let luids: Vec<_> = (0..4).map(|vf| device.query_vf_luid(VfIndex(vf)).unwrap()).collect();
    for (vf, luid) in (0..).zip(&luids) {
        assert_eq!(device.query_luid_vf(*luid), Ok(VfIndex(vf)));
    }
    assert_eq!(device.query_luid_vf(Luid::from_u64(99)), Err(NtStatus::NOT_FOUND));
    assert!(device.query_vf_luid(VfIndex(4)).is_err());
    assert_eq!(device.query_probed_bars_2(VF1), device.query_probed_bars());
    assert_eq!(device.query_probed_bars_2(VfIndex(4)), Err(NtStatus::INVALID_PARAMETER));
}

#[test]
fn the_drivers_status_comes_through_as_ntstatus() {
    let stack = stack();
    let fail = |status| {
        stack.device.ndis().lock().unwrap().miniport_mut().fail = Some((0, status));
        stack.device.reset_vf(VF0).unwrap_err()
    };
    assert_eq!(fail(ndis_protocol::NdisStatus::RESET_IN_PROGRESS), NtStatus::DEVICE_BUSY);
    assert_eq!(fail(ndis_protocol::NdisStatus::FAILURE), NtStatus::UNSUCCESSFUL);
    let ndis = Arc::clone(stack.device.ndis());
    ndis.lock().unwrap().surprise_removed();
    assert_eq!(stack.device.reset_vf(VF0), Err(NtStatus::DEVICE_REMOVED));
    ndis.lock().unwrap().halt();
    assert_eq!(stack.device.reset_vf(VF0), Err(NtStatus::INVALID_DEVICE_STATE));
    assert_eq!(stack.device.num_vfs(), 0);
}

#[test]
fn observers_hear_of_blocks_that_were_written_and_of_vfs_that_were_freed() {
    let mut bench = Bench::new();
    let vf_id = bench.allocate_vf("vm1").unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    bench.ndis.subscribe(move |event| match event {
        NdisEvent::ConfigBlockWritten { vf_id, block_id, requester } => {
            sink.lock().unwrap().push(format!("VF {} block {block_id} {requester}", vf_id.get()));
        }
        NdisEvent::VfFreed { vf_id } => {
            sink.lock().unwrap().push(format!("VF {} freed", vf_id.get()));
        }
        _ => {}
    });
    let write =
        |block_id, data: &[u8]| SriovWriteVfConfigBlock { vf_id, block_id, data: data.to_vec() };
    bench.set(Oid::SriovWriteVfConfigBlock, &write(5, &[1])).unwrap();
    // Refused: nothing was written.
    bench.set(Oid::SriovWriteVfConfigBlock, &write(6, &[0; 129])).unwrap_err();
    let ndis = Arc::new(Mutex::new(bench.ndis));
    let device = NdisSriovDevice::new(Arc::clone(&ndis), &mut LuidGenerator::starting_at(1));
    device.write_vf_config_block(VF0, 7, &[2]).unwrap();
    ndis.lock().unwrap().unbind(&driver("stack"));
    assert_eq!(*heard.lock().unwrap(), ["VF 0 block 5 stack", "VF 0 block 7 NDIS", "VF 0 freed"]);
}

#[test]
fn vfs_that_have_moved_are_found_where_they_are_now() {
    let stack = stack();
    let moved = RequestorId::new(0, 9, 3);
    stack.device.ndis().lock().unwrap().vfs_moved(|vf_id| moved.filter(|_| vf_id.get() == 0));
    let location = stack.device.get_device_location(VF0);
    assert_eq!((location.bus_number, location.function_number), (9, 3));
    let ndis = stack.device.ndis().lock().unwrap();
    let info = &ndis.cache().vf(vf_id(0)).unwrap().info;
    assert_eq!(Some(info.requestor_id), moved);
    drop(ndis);
    stack.device.ndis().lock().unwrap().vfs_moved(|_| None);
    assert_eq!(stack.device.get_device_location(VF0).bus_number, 9);
}
