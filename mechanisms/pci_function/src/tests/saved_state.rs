//! Saving and restoring.

use pcie_protocol::{PowerState, SystemPageSize, VfIndex};

use super::*;
use crate::{FunctionState, PciFunctionError, PhysicalFunctionState, VirtualizationRequest, avf};

fn busy_vf() -> PciFunction {
    let mut vf = avf::virtual_function(17).unwrap();
    vf.write(at::BAR0, &0x12_3456_0000u64.to_le_bytes());
    vf.write_u16(at::COMMAND, 0x0406);
    vf.write_u16(at::DEVICE_CONTROL, 0x5830);
    vf.write_u16(at::MSI_X_CONTROL, 0xC000);
    vf.msix_write(avf::MSI_X_BAR, 16, &[0xA5; 32]).unwrap();
    vf.signal_msix(1);
    vf.record_dma_fault();
    vf.record_unsupported_request();
    vf
}

fn busy_pf() -> PhysicalFunction {
    let mut pf = avf::adapter(&Default::default(), "03:00.0".parse().unwrap()).unwrap();
    pf.write_u32(at::SYSTEM_PAGE_SIZE, 0x10);
    pf.write_u32(at::VF_BAR0, 0x8000_0000);
    pf.set_ari_capable_hierarchy(true).unwrap();
    pf.enable_virtualization(VirtualizationRequest::enable(5)).unwrap();
    pf.set_vf_data(VfIndex(3), at::COMMAND, &[4]);
    pf
}

#[test]
fn a_restored_function_reads_as_the_saved_one() {
    let vf = busy_vf();
    let json = serde_json::to_string(&vf.save()).unwrap();
    let mut restored = avf::virtual_function(17).unwrap();
    let effects = restored.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    assert!(effects.contains(&Effect::BusMasterChanged { enabled: true }));
    assert!(effects.contains(&Effect::MsixControlChanged { enabled: true, masked: true }));
    assert_eq!(restored.all(), vf.all());
    assert_eq!(restored.save(), vf.save());
    assert!(restored.msi_x().unwrap().pending(1));
}

#[test]
fn a_restored_pf_has_its_vfs_again() {
    let pf = busy_pf();
    let json = serde_json::to_string(&pf.save()).unwrap();
    let mut restored = avf::adapter(&Default::default(), "03:00.0".parse().unwrap()).unwrap();
    let effects = restored.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    assert!(effects.contains(&Effect::VfEnableChanged { enabled: true, num_vfs: 5 }));
    assert_eq!(restored.all(), pf.all());
    assert_eq!(restored.save(), pf.save());
    assert!(restored.vf(VfIndex(3)).unwrap().dma_allowed());
}

fn refused(change: impl FnOnce(&mut FunctionState)) {
    let mut state = busy_vf().save();
    change(&mut state);
    let mut vf = avf::virtual_function(17).unwrap();
    let before = vf.save();
    assert!(matches!(vf.restore(&state), Err(PciFunctionError::SavedState(_))));
    assert_eq!(vf.save(), before);
}

#[test]
fn the_state_of_another_function_is_refused_and_changes_nothing() {
    refused(|state| state.header.identity.device_id = 0x154C);
    refused(|state| state.msi_x.as_mut().unwrap().vectors.truncate(3));
    refused(|state| state.msi_x = None);
    refused(|state| state.ari = Some(Default::default()));
    refused(|state| state.power_management.as_mut().unwrap().power_state = PowerState::D1);
}

#[test]
fn the_state_of_another_pf_is_refused_and_changes_nothing() {
    let refused = |change: fn(&mut PhysicalFunctionState)| {
        let mut state = busy_pf().save();
        change(&mut state);
        let mut pf = avf::adapter(&Default::default(), "03:00.0".parse().unwrap()).unwrap();
        let before = pf.save();
        assert!(matches!(pf.restore(&state), Err(PciFunctionError::SavedState(_))));
        assert_eq!(pf.save(), before);
    };
    refused(|state| state.function.sr_iov.as_mut().unwrap().num_vfs = 65);
    refused(|state| state.vfs.truncate(4));
    refused(|state| state.vfs[2].msi_x = None);
    refused(|state| {
        let size = SystemPageSize::from_register(4).unwrap();
        state.function.sr_iov.as_mut().unwrap().system_page_size = size;
    });
}

#[test]
fn bits_that_cannot_be_set_are_dropped_from_a_restored_state() {
    let mut state = avf::virtual_function(17).unwrap().save();
    state.header.command = 0xFFFF;
    state.header.status = 0xFFFF;
    state.header.bars = [u32::MAX; 6];
    let express = state.express.as_mut().unwrap();
    express.device_control = 0xFFFF;
    express.device_status = 0xFFFF;
    express.link_control = 0xFFFF;
    express.device_control_2 = 0xFFFF;
    express.link_control_2 = 0xFFFF;
    let mut vf = avf::virtual_function(17).unwrap();
    vf.restore(&state).unwrap();
    assert_eq!(vf.read_u32(at::COMMAND), 0xF910_0546);
    assert_eq!(vf.read_u32(at::BAR0), 0xFFFF_000C);
    assert_eq!(vf.read_u32(0x18), 0);
    assert_eq!(vf.read_u32(at::DEVICE_CONTROL), 0x006F_79FF);
    assert_eq!(vf.read_u16(at::EXPRESS + 0x10), 0x00CB);
    assert_eq!(vf.read_u16(at::EXPRESS + 0x28), 0x0010);
    assert_eq!(vf.read_u16(at::EXPRESS + 0x30), 0x000F);
}

#[test]
fn nonsense_is_not_read_as_a_state() {
    let json = serde_json::to_value(busy_pf().save()).unwrap();
    for (pointer, value) in [
        ("/function/sr_iov/system_page_size", serde_json::json!(3)),
        ("/function/header/bars", serde_json::json!([0, 0])),
        ("/function/header/command", serde_json::json!(65536)),
        ("/vfs", serde_json::json!({})),
    ] {
        let mut wrong = json.clone();
        *wrong.pointer_mut(pointer).unwrap() = value;
        assert!(serde_json::from_value::<PhysicalFunctionState>(wrong).is_err(), "{pointer}");
    }
}
