//! A PF with its VFs, and what its driver asks of the host's PCI services.

use std::sync::Arc;

use pcie_protocol::{BarIndex, PciLocation, PcieError, RoutingId, VfIndex, decode_probed_bars};

use super::*;
use crate::{
    DecodedAddress, FunctionNumber, PciFunctionError, ResetKind, VfBarResource, VfDataWritten,
    VirtualizationError, VirtualizationRequest, avf,
};

const INVALID_PARAMETER: u32 = 0xC000_000D;
const INVALID_DEVICE_STATE: u32 = 0xC000_0184;

fn location() -> PciLocation {
    "0001:03:00.0".parse().unwrap()
}

fn adapter(total_vfs: u16) -> PhysicalFunction {
    let config = avf::PhysicalFunctionConfig { total_vfs, ..Default::default() };
    avf::adapter(&config, location()).unwrap()
}

#[test]
fn a_pf_driver_enables_vfs_finds_them_and_disables_them() {
    let mut pf = adapter(256);
    pf.set_ari_capable_hierarchy(true).unwrap();
    assert_eq!(pf.captured_buses(), 1, "256 VFs and the PF are one more than a bus holds");
    assert_eq!(
        pf.enable_virtualization(VirtualizationRequest::enable(256)).unwrap(),
        [
            Effect::NumVfsChanged { num_vfs: 256 },
            Effect::VfEnableChanged { enabled: true, num_vfs: 256 },
            Effect::VfMemoryEnableChanged { enabled: true }
        ]
    );
    assert_eq!(pf.vf_location(VfIndex(0)).unwrap().to_string(), "0001:03:00.1");
    assert_eq!(pf.vf_location(VfIndex(255)).unwrap().to_string(), "0001:04:00.0");
    assert_eq!(pf.function_at(RoutingId::new(3, 0)), Some(FunctionNumber::Physical));
    assert_eq!(pf.function_at(RoutingId::new(4, 0)), Some(FunctionNumber::Virtual(VfIndex(255))));
    assert_eq!(pf.function_at(RoutingId::new(4, 1)), None);
    assert!(pf.vf(VfIndex(255)).is_some() && pf.vf(VfIndex(256)).is_none());
    assert_eq!(
        pf.enable_virtualization(VirtualizationRequest::disable()).unwrap(),
        [
            Effect::VfEnableChanged { enabled: false, num_vfs: 256 },
            Effect::VfMemoryEnableChanged { enabled: false },
            Effect::NumVfsChanged { num_vfs: 0 }
        ]
    );
    assert_eq!((pf.active_vfs(), pf.vf(VfIndex(0)).is_some()), (0, false));
    assert_eq!(pf.function_at(RoutingId::new(3, 1)), None);
}

#[test]
fn wrong_requests_get_the_published_status_and_change_nothing() {
    let mut pf = adapter(64);
    let before = pf.save();
    let enable = VirtualizationRequest::enable;
    for (request, status) in [
        (enable(0), INVALID_PARAMETER),
        (enable(65), INVALID_PARAMETER),
        (VirtualizationRequest { enable_vf_migration: true, ..enable(1) }, INVALID_PARAMETER),
        (
            VirtualizationRequest { enable_migration_interrupt: true, ..enable(1) },
            INVALID_PARAMETER,
        ),
        (
            VirtualizationRequest { num_vfs: 1, ..VirtualizationRequest::disable() },
            INVALID_PARAMETER,
        ),
        (VirtualizationRequest::disable(), INVALID_DEVICE_STATE),
    ] {
        assert_eq!(pf.enable_virtualization(request).unwrap_err().nt_status(), status);
        assert_eq!(pf.save(), before);
    }
    pf.enable_virtualization(enable(1)).unwrap();
    let before = pf.save();
    let again = pf.enable_virtualization(enable(2)).unwrap_err();
    assert_eq!(again, VirtualizationError::AlreadyInState { enabled: true });
    assert_eq!(again.nt_status(), INVALID_DEVICE_STATE);
    assert_eq!(pf.save(), before);
    let beyond = pf.vf_location(VfIndex(64)).unwrap_err();
    assert_eq!(beyond, VirtualizationError::NoSuchVf { vf: VfIndex(64), total_vfs: 64 });
    assert_eq!(beyond.nt_status(), INVALID_PARAMETER);
}

#[test]
fn a_sleeping_pf_brings_up_no_vfs() {
    let mut pf = adapter(64);
    pf.write_u16(at::POWER, 3);
    let refused = pf.enable_virtualization(VirtualizationRequest::enable(1)).unwrap_err();
    assert_eq!(
        (refused.nt_status(), refused),
        (INVALID_DEVICE_STATE, VirtualizationError::NotInD0)
    );
}

#[test]
fn a_function_without_sr_iov_refuses_all_requests_for_vfs() {
    let mut pf = adapter(0);
    let error = VirtualizationError::NoSrIov;
    assert_eq!(error.nt_status(), INVALID_DEVICE_STATE);
    assert_eq!(pf.vf_probed_bars(), Err(error.clone()));
    assert_eq!(pf.vf_location(VfIndex(0)), Err(error.clone()));
    assert_eq!(pf.set_ari_capable_hierarchy(true), Err(error.clone()));
    assert_eq!(pf.enable_virtualization(VirtualizationRequest::enable(1)), Err(error));
    assert_eq!((pf.captured_buses(), pf.active_vfs()), (0, 0));
    assert_eq!(pf.function_at(RoutingId::new(3, 1)), None);
}

#[test]
fn buses_are_captured_as_the_contract_says() {
    // SPEC-PCIVIRT §9: more than 8 functions where the port above lacks ARI, more than 256 with ARI.
    for (total_vfs, without_ari, with_ari) in [(7, 0, 0), (8, 1, 0), (255, 1, 0), (256, 1, 1)] {
        let mut pf = adapter(total_vfs);
        assert_eq!(pf.captured_buses(), without_ari, "{total_vfs} VFs without ARI");
        pf.set_ari_capable_hierarchy(true).unwrap();
        assert_eq!(pf.captured_buses(), with_ari, "{total_vfs} VFs with ARI");
    }
}

#[test]
fn vf_locations_follow_the_pf_and_stop_at_the_last_bus() {
    let mut pf = adapter(64);
    pf.enable_virtualization(VirtualizationRequest::enable(8)).unwrap();
    assert_eq!(pf.vf_location(VfIndex(7)).unwrap().to_string(), "0001:04:00.7");
    pf.set_location("0002:80:00.0".parse().unwrap()).unwrap();
    assert_eq!(pf.vf_location(VfIndex(7)).unwrap().to_string(), "0002:81:00.7");
    let last = "0002:ff:00.0".parse().unwrap();
    let refused = pf.set_location(last);
    assert!(
        matches!(refused, Err(PciFunctionError::Impossible(PcieError::NoVfRoutingId { .. }))),
        "without ARI the VFs would be on bus 256"
    );
    assert_eq!(pf.location().to_string(), "0002:80:00.0");
}

#[test]
fn probed_bars_are_those_of_one_vf_and_do_not_follow_the_page_size() {
    let mut pf = adapter(64);
    let probed = pf.vf_probed_bars().unwrap();
    assert_eq!(probed, [0xFFFF_000C, 0xFFFF_FFFF, 0, 0xFFFF_C00C, 0xFFFF_FFFF, 0]);
    assert_eq!(decode_probed_bars(&probed).unwrap(), *pf.function().sr_iov().unwrap().vf_bars());
    pf.write_u32(at::SYSTEM_PAGE_SIZE, 0x10);
    assert_eq!(pf.vf_probed_bars().unwrap(), probed);
}

#[test]
fn vf_data_reaches_the_raw_configuration_space_of_existing_vfs() {
    let mut pf = adapter(64);
    let mut data = [0; 4];
    assert_eq!(pf.vf_data(VfIndex(0), 0, &mut data), 0, "the VF does not exist");
    assert_eq!(pf.set_vf_data(VfIndex(0), 4, &[4, 0]), VfDataWritten::default());
    pf.enable_virtualization(VirtualizationRequest::enable(2)).unwrap();
    assert_eq!(pf.vf_data(VfIndex(0), 0, &mut data), 4);
    assert_eq!(data, [0xFF; 4], "a VF has no ids of its own");
    assert_eq!(pf.vf_data(VfIndex(2), 0, &mut data), 0);
    assert_eq!(pf.vf_data(VfIndex(0), 4094, &mut data), 0);
    assert_eq!(
        pf.set_vf_data(VfIndex(1), 4, &[4, 0]),
        VfDataWritten { bytes: 2, effects: vec![Effect::BusMasterChanged { enabled: true }] }
    );
    assert!(pf.vf(VfIndex(1)).unwrap().dma_allowed());
    assert!(!pf.vf(VfIndex(0)).unwrap().dma_allowed());
}

#[test]
fn function_level_reset_of_a_vf_concerns_that_vf_alone() {
    let mut pf = adapter(64);
    pf.enable_virtualization(VirtualizationRequest::enable(3)).unwrap();
    for vf in 0..3 {
        pf.set_vf_data(VfIndex(vf), at::COMMAND, &[4]);
    }
    let mut expected = pf.save();
    let written = pf.set_vf_data(VfIndex(1), at::DEVICE_CONTROL, &INITIATE_FLR.to_le_bytes());
    assert_eq!(
        written.effects,
        [Effect::FunctionLevelReset, Effect::BusMasterChanged { enabled: false }]
    );
    expected.vfs[1].header.command = 0;
    assert_eq!(pf.save(), expected);
}

#[test]
fn function_level_reset_of_the_pf_takes_its_vfs() {
    let mut pf = adapter(64);
    pf.enable_virtualization(VirtualizationRequest::enable(3)).unwrap();
    let effects = pf.write_u16(at::DEVICE_CONTROL, INITIATE_FLR);
    assert!(effects.contains(&Effect::VfEnableChanged { enabled: false, num_vfs: 3 }));
    assert!(pf.vf(VfIndex(0)).is_none());
}

#[test]
fn a_reset_of_the_machine_takes_the_vfs() {
    let mut pf = adapter(64);
    pf.enable_virtualization(VirtualizationRequest::enable(3)).unwrap();
    let effects = pf.reset(ResetKind::Conventional);
    assert!(effects.contains(&Effect::VfEnableChanged { enabled: false, num_vfs: 3 }));
    assert!(pf.vf(VfIndex(0)).is_none());
}

#[test]
fn vfs_that_come_back_are_new() {
    let mut pf = adapter(64);
    pf.enable_virtualization(VirtualizationRequest::enable(1)).unwrap();
    let new = pf.vf(VfIndex(0)).unwrap().save();
    pf.set_vf_data(VfIndex(0), at::COMMAND, &[4]);
    assert_ne!(pf.vf(VfIndex(0)).unwrap().save(), new);
    pf.write_u16(at::SR_IOV_CONTROL, 0);
    pf.write_u16(at::SR_IOV_CONTROL, VF_ENABLE);
    assert_eq!(pf.vf(VfIndex(0)).unwrap().save(), new, "nothing of a former owner is left");
}

#[test]
fn memory_of_a_vf_answers_only_while_the_pf_lets_it() {
    let mut pf = adapter(64);
    pf.write(at::BAR0, &0x10_0000_0000u64.to_le_bytes());
    pf.write(at::VF_BAR0, &0x20_0000_0000u64.to_le_bytes());
    pf.write(at::VF_BAR0 + 12, &0x30_0000_0000u64.to_le_bytes());
    pf.write_u16(at::COMMAND, 2);
    let pf_registers =
        DecodedAddress { function: FunctionNumber::Physical, bar: BarIndex::BAR0, offset: 0x1234 };
    assert_eq!(pf.decode(0x10_0000_1234), Some(pf_registers));
    assert_eq!(pf.decode(0x20_0001_0008), None, "no VFs");
    pf.enable_virtualization(VirtualizationRequest::enable(2)).unwrap();
    let vf_1 = |bar, offset| {
        Some(DecodedAddress { function: FunctionNumber::Virtual(VfIndex(1)), bar, offset })
    };
    assert_eq!(pf.decode(0x20_0001_0008), vf_1(BarIndex::BAR0, 8));
    assert_eq!(pf.decode(0x30_0000_6000), vf_1(BarIndex::BAR3, 0x2000));
    assert_eq!(pf.decode(0x20_0002_0000), None, "beyond the last VF");
    assert_eq!(
        pf.vf_bar(VfIndex(1), BarIndex::BAR3),
        Some(VfBarResource { address: 0x30_0000_4000, length: 0x4000 })
    );
    assert_eq!(pf.vf_bar(VfIndex(1), BarIndex::BAR1), None);
    assert_eq!(
        pf.set_vf_memory_enable(false).unwrap(),
        [Effect::VfMemoryEnableChanged { enabled: false }]
    );
    assert_eq!(pf.decode(0x20_0001_0008), None);
    pf.set_vf_memory_enable(true).unwrap();
    pf.set_vf_data(VfIndex(1), at::POWER, &[3, 0]);
    assert_eq!(pf.decode(0x20_0001_0008), None, "VF 1 sleeps");
    assert!(pf.decode(0x20_0000_0008).is_some(), "VF 0 does not");
    pf.write_u16(at::POWER, 3);
    assert!(!pf.vf_memory_decoding() && pf.decode(0x20_0000_0008).is_none(), "the PF sleeps");
}

#[test]
fn vfs_that_are_not_those_of_the_capability_are_refused() {
    let pf = || avf::physical_function(&avf::PhysicalFunctionConfig::default()).unwrap();
    let whole = avf::virtual_function(5).unwrap();
    let refused = PhysicalFunction::new(pf(), location(), Arc::new(move |_| whole.clone()));
    assert!(matches!(refused, Err(PciFunctionError::VfMismatch { .. })));
    let identity = *pf().identity();
    let no_bars = PciFunction::vf_builder(identity).build().unwrap();
    let refused = PhysicalFunction::new(pf(), location(), Arc::new(move |_| no_bars.clone()));
    assert!(matches!(refused, Err(PciFunctionError::VfMismatch { .. })));
}

#[test]
fn the_pf_has_its_own_msi_x() {
    let mut pf = adapter(64);
    pf.write_u16(at::COMMAND, 6);
    pf.write_u16(at::MSI_X_CONTROL, 0x8000);
    let mut function = pf.function_mut();
    let unmask = function.msix_write(avf::MSI_X_BAR, 12, &[0; 4]).unwrap();
    assert_eq!(unmask.len(), 1);
    assert!(matches!(function.signal_msix(0), crate::MsixSignal::Message(_)));
}
