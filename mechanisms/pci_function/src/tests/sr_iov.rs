//! The SR-IOV capability's rules, as software sees them through configuration space.

use pcie_protocol::{
    Bar, BarIndex, BarKind, ClassCode, RoutingId, SystemPageSize, VfIndex, VfRouting,
};

use super::*;
use crate::{
    Identity, PciFunctionError, PowerManagement, PowerManagementConfig, ResetKind, SrIov,
    SrIovConfig, VfPlacement, avf,
};

fn pf(total_vfs: u16) -> PciFunction {
    let config = avf::PhysicalFunctionConfig { total_vfs, ..Default::default() };
    avf::physical_function(&config).unwrap()
}

fn config() -> SrIovConfig {
    SrIovConfig {
        total_vfs: 8,
        vf_device_id: 0x1889,
        placement: VfPlacement::interleaved(2),
        vf_bars: [Some(Bar::memory32(16 << 10, false).unwrap()), None, None, None, None, None],
        supported_page_sizes: SystemPageSize::REQUIRED,
        lowest_numbered_pf: false,
        ari_capable_hierarchy_preserved: false,
        function_dependency_link: 1,
    }
}

/// A PF whose only extended capability is SR-IOV, at 0x100, and whose wake from D3hot loses its state.
fn small(config: SrIovConfig) -> PciFunction {
    let identity = Identity {
        vendor_id: 0x1234,
        device_id: 1,
        revision_id: 0,
        class: ClassCode::ETHERNET,
        subsystem_vendor_id: 0,
        subsystem_id: 0,
    };
    PciFunction::builder(identity)
        .capability(PowerManagement::new(PowerManagementConfig::default()))
        .capability(SrIov::new(config).unwrap())
        .build()
        .unwrap()
}

#[test]
fn software_enumerates_vfs_as_linux_does() {
    let mut pf = pf(256);
    pf.write_u16(at::SR_IOV_CONTROL, ARI);
    assert_eq!(pf.read_u16(at::SR_IOV_CONTROL), ARI);
    assert_eq!(pf.read_u32(at::SR_IOV + 4), 2, "ARI Capable Hierarchy Preserved");
    assert_eq!(pf.read_u16(at::SR_IOV + 0x0C), 256, "InitialVFs");
    assert_eq!(pf.read_u16(at::SR_IOV + 0x0E), 256, "TotalVFs");
    assert_eq!(pf.read_u16(at::SR_IOV + 0x1A), 0x1889, "VF Device ID");
    assert_eq!(pf.read_u32(at::SR_IOV + 0x1C), 0x553, "Supported Page Sizes");
    pf.write_u32(at::SYSTEM_PAGE_SIZE, 1);
    let sizes: Vec<_> = (0..6).map(|bar| pf.size(at::VF_BAR0 + bar * 4)).collect();
    assert_eq!(sizes, [0xFFFF_000C, 0xFFFF_FFFF, 0, 0xFFFF_C00C, 0xFFFF_FFFF, 0]);
    let mut last_bus = 0;
    for num_vfs in 1..=256u16 {
        pf.write_u16(at::NUM_VFS, num_vfs);
        let routing = VfRouting {
            first_vf_offset: pf.read_u16(at::FIRST_VF_OFFSET),
            vf_stride: pf.read_u16(at::VF_STRIDE),
        };
        let last = routing.routing_id(RoutingId::new(1, 0), VfIndex(num_vfs - 1)).unwrap();
        last_bus = last_bus.max(last.bus());
    }
    assert_eq!(last_bus, 2);
    pf.write_u16(at::NUM_VFS, 4);
    assert_eq!(
        pf.write_u16(at::SR_IOV_CONTROL, ARI | VF_ENABLE | VF_MSE),
        [
            Effect::VfEnableChanged { enabled: true, num_vfs: 4 },
            Effect::VfMemoryEnableChanged { enabled: true }
        ]
    );
    assert_eq!(pf.sr_iov().unwrap().active_vfs(), 4);
}

#[test]
fn num_vfs_is_fixed_while_vf_enable_is_set() {
    let mut pf = pf(64);
    assert_eq!(pf.write_u16(at::NUM_VFS, 8), [Effect::NumVfsChanged { num_vfs: 8 }]);
    pf.write_u16(at::SR_IOV_CONTROL, VF_ENABLE);
    assert_eq!(pf.write_u16(at::NUM_VFS, 2), []);
    assert_eq!(pf.read_u16(at::NUM_VFS), 8);
    assert_eq!(
        pf.write_u16(at::SR_IOV_CONTROL, 0),
        [Effect::VfEnableChanged { enabled: false, num_vfs: 8 }]
    );
    assert_eq!(pf.write_u16(at::NUM_VFS, 2), [Effect::NumVfsChanged { num_vfs: 2 }]);
}

#[test]
fn num_vfs_above_total_vfs_is_not_taken() {
    let mut pf = pf(64);
    pf.write_u16(at::NUM_VFS, 64);
    for num_vfs in [65, 256, u16::MAX] {
        assert_eq!(pf.write_u16(at::NUM_VFS, num_vfs), []);
        assert_eq!(pf.read_u16(at::NUM_VFS), 64);
    }
}

#[test]
fn vf_enable_with_num_vfs_zero_brings_up_no_vf() {
    let mut pf = pf(64);
    assert_eq!(
        pf.write_u16(at::SR_IOV_CONTROL, VF_ENABLE),
        [Effect::VfEnableChanged { enabled: true, num_vfs: 0 }]
    );
    assert_eq!(pf.sr_iov().unwrap().active_vfs(), 0);
}

#[test]
fn control_and_num_vfs_in_one_long_write_take_effect_in_ascending_order() {
    let mut pf = pf(64);
    let mut data = [0; 12];
    data[0] = VF_ENABLE as u8;
    data[8] = 5;
    assert_eq!(
        pf.write(at::SR_IOV_CONTROL, &data),
        [Effect::VfEnableChanged { enabled: true, num_vfs: 0 }],
        "VF Enable comes first, and then NumVFs is fixed"
    );
}

#[test]
fn migration_and_reserved_bits_of_control_stay_clear() {
    let mut pf = pf(64);
    pf.write_u16(at::SR_IOV_CONTROL, 0xFFFF);
    assert_eq!(pf.read_u16(at::SR_IOV_CONTROL), VF_ENABLE | VF_MSE | ARI);
    pf.write_u16(at::SR_IOV_CONTROL + 2, 0xFFFF);
    assert_eq!(pf.read_u16(at::SR_IOV_CONTROL + 2), 0, "VF Migration Status");
}

#[test]
fn the_ari_bit_is_in_the_lowest_numbered_pf_alone_and_fixed_while_vfs_exist() {
    let mut pf = pf(64);
    pf.write_u16(at::SR_IOV_CONTROL, VF_ENABLE);
    assert_eq!(pf.write_u16(at::SR_IOV_CONTROL, VF_ENABLE | ARI), []);
    pf.write_u16(at::SR_IOV_CONTROL, 0);
    assert_eq!(
        pf.write_u16(at::SR_IOV_CONTROL, ARI),
        [Effect::AriCapableHierarchyChanged { enabled: true }]
    );
    let mut other = small(config());
    assert_eq!(other.write_u16(0x108, ARI), []);
    assert_eq!(other.read_u16(0x108), 0);
    assert_eq!(other.read_u8(0x112), 1, "Function Dependency Link");
}

#[test]
fn placement_follows_ari_and_num_vfs() {
    let mut pf = pf(64);
    let placed = |pf: &PciFunction| (pf.read_u16(at::FIRST_VF_OFFSET), pf.read_u16(at::VF_STRIDE));
    pf.write_u16(at::NUM_VFS, 7);
    assert_eq!(placed(&pf), (1, 1), "beside the PF, as functions 1 to 7 of its device");
    pf.write_u16(at::NUM_VFS, 8);
    assert_eq!(placed(&pf), (256, 1), "on the next bus");
    pf.write_u16(at::SR_IOV_CONTROL, ARI);
    assert_eq!(placed(&pf), (1, 1), "anywhere on the bus");
    pf.write_u32(at::FIRST_VF_OFFSET, 0x1234_5678);
    assert_eq!(placed(&pf), (1, 1), "read-only");
}

#[test]
fn vfs_of_several_pfs_interleave_without_meeting() {
    for pfs in 1..=8u8 {
        let placement = VfPlacement::interleaved(pfs);
        for ari in [false, true] {
            for num_vfs in [1, 2, 3, 7, 8, 30] {
                let mut taken: Vec<_> = (0..pfs).map(|pf| RoutingId::new(1, pf)).collect();
                for pf in 0..pfs {
                    let routing = placement.routing(num_vfs, ari);
                    taken.extend(
                        (0..num_vfs).map(|vf| {
                            routing.routing_id(RoutingId::new(1, pf), VfIndex(vf)).unwrap()
                        }),
                    );
                }
                let all = taken.len();
                taken.sort();
                taken.dedup();
                assert_eq!(taken.len(), all, "{pfs} PFs with {num_vfs} VFs, ARI {ari}");
                let device_0 = |id: &RoutingId| id.bus() != 1 || id.device() == 0;
                assert!(ari || taken.iter().all(device_0), "without ARI bus 1 has device 0 alone");
            }
        }
    }
}

#[test]
fn vf_bars_size_one_vf_and_hold_the_base_of_all() {
    let mut pf = pf(64);
    pf.write_u16(at::NUM_VFS, 3);
    assert_eq!(
        pf.write(at::VF_BAR0, &0x40_0000_0000u64.to_le_bytes()),
        [Effect::VfBarMoved { bar: BarIndex::BAR0, address: 0x40_0000_0000 }]
    );
    let vf_bar = |pf: &PciFunction, vf| pf.sr_iov().unwrap().vf_bar(VfIndex(vf), BarIndex::BAR0);
    assert_eq!(vf_bar(&pf, 0), None, "the VFs do not exist yet");
    pf.write_u16(at::SR_IOV_CONTROL, VF_ENABLE);
    assert_eq!(vf_bar(&pf, 0), Some((0x40_0000_0000, 0x1_0000)));
    assert_eq!(vf_bar(&pf, 2), Some((0x40_0002_0000, 0x1_0000)));
    assert_eq!(vf_bar(&pf, 3), None);
    pf.write(at::VF_BAR0, &u64::MAX.to_le_bytes());
    assert_eq!(vf_bar(&pf, 0), Some((0xFFFF_FFFF_FFFF_0000, 0x1_0000)));
    assert_eq!(vf_bar(&pf, 1), None, "its address would wrap");
}

#[test]
fn system_page_size_grows_small_vf_bars_and_takes_supported_sizes_alone() {
    let mut pf = pf(64);
    assert_eq!(
        pf.write_u32(at::SYSTEM_PAGE_SIZE, 0x10),
        [Effect::SystemPageSizeChanged { size: SystemPageSize::from_register(0x10).unwrap() }]
    );
    assert_eq!(pf.size(at::VF_BAR0), 0xFFFF_000C);
    assert_eq!(pf.size(at::VF_BAR0 + 12), 0xFFFF_000C, "16 KiB of MSI-X became 64 KiB");
    for refused in [0, 0x11, 0x4, 0x8000_0000, u32::MAX] {
        assert_eq!(pf.write_u32(at::SYSTEM_PAGE_SIZE, refused), []);
        assert_eq!(pf.read_u32(at::SYSTEM_PAGE_SIZE), 0x10, "{refused:#x}");
    }
    pf.write_u16(at::SR_IOV_CONTROL, VF_ENABLE);
    assert_eq!(pf.write_u32(at::SYSTEM_PAGE_SIZE, 1), []);
    assert_eq!(pf.read_u32(at::SYSTEM_PAGE_SIZE), 0x10, "fixed while VFs exist");
}

#[test]
fn a_vf_bar_that_grows_moves_down_to_its_new_alignment() {
    let mut pf = pf(64);
    pf.write_u32(at::VF_BAR0 + 12, 0x8000_C000);
    assert_eq!(
        pf.write_u32(at::SYSTEM_PAGE_SIZE, 0x10),
        [
            Effect::SystemPageSizeChanged { size: SystemPageSize::from_register(0x10).unwrap() },
            Effect::VfBarMoved { bar: BarIndex::BAR3, address: 0x8000_0000 }
        ]
    );
}

#[test]
fn function_level_reset_of_the_pf_takes_the_vfs_and_keeps_the_ari_bit() {
    let mut pf = pf(64);
    let new = pf.all();
    pf.write_u16(at::SR_IOV_CONTROL, ARI);
    pf.write_u16(at::NUM_VFS, 3);
    pf.write_u32(at::SYSTEM_PAGE_SIZE, 2);
    pf.write_u32(at::VF_BAR0, 0x8000_0000);
    pf.write_u16(at::SR_IOV_CONTROL, ARI | VF_ENABLE | VF_MSE);
    assert_eq!(
        pf.write_u16(at::DEVICE_CONTROL, INITIATE_FLR),
        [
            Effect::FunctionLevelReset,
            Effect::VfEnableChanged { enabled: false, num_vfs: 3 },
            Effect::NumVfsChanged { num_vfs: 0 },
            Effect::SystemPageSizeChanged { size: SystemPageSize::SIZE_4_KIB },
            Effect::VfBarMoved { bar: BarIndex::BAR0, address: 0 },
            Effect::VfMemoryEnableChanged { enabled: false },
        ]
    );
    assert_eq!(pf.read_u16(at::SR_IOV_CONTROL), ARI);
    assert_eq!(
        pf.reset(ResetKind::Conventional),
        [Effect::AriCapableHierarchyChanged { enabled: false }]
    );
    assert_eq!(pf.all(), new);
}

#[test]
fn waking_a_pf_that_keeps_no_state_takes_the_vfs_and_the_ari_bit_unless_preserved() {
    for preserved in [false, true] {
        let mut pf = small(SrIovConfig {
            lowest_numbered_pf: true,
            ari_capable_hierarchy_preserved: preserved,
            ..config()
        });
        pf.write_u16(0x110, 2);
        pf.write_u16(0x108, ARI | VF_ENABLE);
        pf.write_u16(at::POWER, 3);
        assert_eq!(pf.sr_iov().unwrap().active_vfs(), 2, "sleeping alone takes nothing");
        let effects = pf.write_u16(at::POWER, 0);
        assert_eq!(effects[0], Effect::SoftReset);
        assert!(effects.contains(&Effect::VfEnableChanged { enabled: false, num_vfs: 2 }));
        assert_eq!(pf.read_u16(0x108), if preserved { ARI } else { 0 });
        assert_eq!(pf.read_u32(0x104), if preserved { 2 } else { 0 });
    }
}

#[test]
fn capabilities_that_break_a_rule_are_refused() {
    let io = Bar::new(BarKind::Io, 32).unwrap();
    let no_stride = VfRouting { first_vf_offset: 1, vf_stride: 0 };
    let no_offset = VfRouting { first_vf_offset: 0, vf_stride: 1 };
    let placement = VfPlacement::interleaved(1);
    for wrong in [
        SrIovConfig { total_vfs: 0, ..config() },
        SrIovConfig { total_vfs: 257, ..config() },
        SrIovConfig { supported_page_sizes: 1, ..config() },
        SrIovConfig { vf_bars: [Some(io), None, None, None, None, None], ..config() },
        SrIovConfig { placement: VfPlacement { with_ari: no_stride, ..placement }, ..config() },
        SrIovConfig { placement: VfPlacement { without_ari: no_offset, ..placement }, ..config() },
    ] {
        let refused = SrIov::new(wrong).map(drop);
        assert!(matches!(refused, Err(PciFunctionError::SrIovConfig(_))), "{refused:?}");
    }
}
