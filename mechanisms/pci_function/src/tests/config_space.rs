//! One function: identity, BARs, power, resets.

use pcie_protocol::{
    Bar, BarIndex, CapabilityId, CapabilityWalk, ClassCode, ExtendedCapabilityId,
    ExtendedCapabilityWalk, PowerState, Type0Header,
};
use zerocopy::FromBytes;

use super::*;
use crate::{
    Acs, Ari, Express, ExpressConfig, Identity, MsiX, MsiXLayout, PciFunctionError,
    PowerManagement, PowerManagementConfig, ResetKind, avf,
};

const IDENTITY: Identity = Identity {
    vendor_id: 0x1234,
    device_id: 0x5678,
    revision_id: 9,
    class: ClassCode::ETHERNET,
    subsystem_vendor_id: 0xAAAA,
    subsystem_id: 0xBBBB,
};

#[test]
fn a_driver_finds_an_avf_with_msi_x_power_management_and_flr() {
    let vf = avf::virtual_function(17).unwrap();
    let bytes = vf.all();
    let (header, _) = Type0Header::read_from_prefix(&bytes).unwrap();
    assert_eq!((header.vendor_id.get(), header.device_id.get()), (0x8086, 0x1889));
    assert_eq!((header.revision_id, header.class_code), (2, [0, 0, 2]));
    assert_eq!((header.header_type, header.interrupt_pin, header.interrupt_line), (0, 0, 0));
    assert_eq!(header.status.get(), 0x0010);
    assert_eq!(header.expansion_rom.get(), 0);
    let found: Vec<_> = CapabilityWalk::new(&bytes).map(|found| (found.id, found.offset)).collect();
    assert_eq!(
        found,
        [
            (CapabilityId::POWER_MANAGEMENT, 0x40),
            (CapabilityId::MSI_X, 0x50),
            (CapabilityId::PCI_EXPRESS, 0x60)
        ]
    );
    assert_eq!(ExtendedCapabilityWalk::new(&bytes).count(), 0);
    assert_eq!(vf.read_u16(at::MSI_X_CONTROL), 16);
    assert_eq!(vf.read_u32(at::MSI_X + 4), 0x0000_0003, "the table is at 0 of BAR 3");
    assert_eq!(vf.read_u32(at::MSI_X + 8), 0x0000_2003, "the pending bits are at 0x2000 of BAR 3");
    assert_eq!(vf.read_u16(at::EXPRESS + 2), 0x0002, "a PCI Express endpoint, version 2");
    assert_eq!(vf.read_u32(at::EXPRESS + 4) >> 28 & 1, 1, "with function level reset");
}

#[test]
fn a_driver_finds_the_capabilities_of_a_pf() {
    let pf = avf::physical_function(&avf::PhysicalFunctionConfig::default()).unwrap();
    let found: Vec<_> =
        ExtendedCapabilityWalk::new(&pf.all()).map(|found| (found.id, found.offset)).collect();
    assert_eq!(
        found,
        [
            (ExtendedCapabilityId::ARI, 0x100),
            (ExtendedCapabilityId::ACS, 0x110),
            (ExtendedCapabilityId::SR_IOV, 0x120)
        ]
    );
    assert_eq!(pf.sr_iov_offset(), Some(0x120));
}

#[test]
fn a_pf_without_vfs_has_no_sr_iov_capability() {
    let config = avf::PhysicalFunctionConfig { total_vfs: 0, ..Default::default() };
    let pf = avf::physical_function(&config).unwrap();
    assert!(pf.sr_iov().is_none());
    assert_eq!(ExtendedCapabilityWalk::new(&pf.all()).count(), 2);
}

#[test]
fn bars_are_sized_by_writing_ones_and_keep_their_address() {
    let mut vf = avf::virtual_function(5).unwrap();
    vf.write_u32(at::BAR0, 0xFEB0_0000);
    assert_eq!(vf.size(at::BAR0), 0xFFFF_000C);
    assert_eq!(vf.size(at::BAR0 + 4), 0xFFFF_FFFF);
    assert_eq!(vf.size(0x18), 0, "BAR 2 does not exist");
    assert_eq!(vf.size(at::BAR3), 0xFFFF_C00C);
    assert_eq!(vf.size(at::BAR3 + 4), 0xFFFF_FFFF);
    assert_eq!(vf.size(0x24), 0, "BAR 5 does not exist");
    assert_eq!(vf.size(0x30), 0, "there is no ROM");
    assert_eq!(vf.read_u32(at::BAR0), 0xFEB0_000C);
}

#[test]
fn a_32_bit_bar_is_sized_in_one_register() {
    let bar = Bar::memory32(1 << 20, false).unwrap();
    let mut function = PciFunction::builder(IDENTITY).bar(BarIndex::BAR2, bar).build().unwrap();
    assert_eq!(function.size(0x18), 0xFFF0_0000);
    assert_eq!(function.size(0x1C), 0);
    assert_eq!(
        function.write_u32(0x18, 0xFEBC_DEF0),
        [Effect::BarMoved { bar: BarIndex::BAR2, address: 0xFEB0_0000 }]
    );
}

#[test]
fn memory_answers_where_bars_are_only_while_enabled_and_awake() {
    let mut vf = avf::virtual_function(5).unwrap();
    assert_eq!(
        vf.write(at::BAR0, &0x0000_0012_3456_0000u64.to_le_bytes()),
        [
            Effect::BarMoved { bar: BarIndex::BAR0, address: 0x3456_0000 },
            Effect::BarMoved { bar: BarIndex::BAR0, address: 0x12_3456_0000 },
        ]
    );
    assert_eq!(vf.decode(0x12_3456_0010), None);
    assert_eq!(vf.write_u16(at::COMMAND, 2), [Effect::MemoryEnableChanged { enabled: true }]);
    assert_eq!(vf.decode(0x12_3456_0010), Some((BarIndex::BAR0, 0x10)));
    assert_eq!(vf.decode(0x12_3457_0000), None);
    assert_eq!(vf.decode(0x10), Some((BarIndex::BAR3, 0x10)), "a BAR that was not set is at 0");
    assert_eq!(
        vf.write_u16(at::POWER, 3),
        [Effect::PowerStateChanged { from: PowerState::D0, to: PowerState::D3hot }]
    );
    assert_eq!(vf.decode(0x12_3456_0010), None);
}

#[test]
fn command_keeps_what_it_implements_and_reports_changes_alone() {
    let mut vf = avf::virtual_function(5).unwrap();
    assert_eq!(
        vf.write_u16(at::COMMAND, 0xFFFF),
        [Effect::BusMasterChanged { enabled: true }, Effect::MemoryEnableChanged { enabled: true }]
    );
    assert_eq!(vf.read_u16(at::COMMAND), 0x0546);
    assert_eq!(vf.write_u16(at::COMMAND, 0xFFFF), []);
    assert!(vf.dma_allowed());
    assert_eq!(vf.write(at::COMMAND, &[0x02]), [Effect::BusMasterChanged { enabled: false }]);
    assert_eq!(vf.read_u16(at::COMMAND), 0x0502, "the upper byte was not written");
}

#[test]
fn a_dma_fault_is_recorded_until_it_is_cleared_by_a_one() {
    let mut vf = avf::virtual_function(5).unwrap();
    vf.record_dma_fault();
    assert_eq!(vf.read_u16(at::STATUS), 0x2010);
    vf.write_u16(at::STATUS, 0x0FFF);
    assert_eq!(vf.read_u16(at::STATUS), 0x2010);
    vf.write_u16(at::STATUS, 0x2000);
    assert_eq!(vf.read_u16(at::STATUS), 0x0010);
}

#[test]
fn function_level_reset_leaves_the_function_as_new_and_says_what_went() {
    let mut vf = avf::virtual_function(5).unwrap();
    let new = vf.all();
    vf.write_u32(at::BAR0, 0xFEB0_0000);
    vf.write_u16(at::COMMAND, 6);
    vf.write_u16(at::MSI_X_CONTROL, 0x8000);
    vf.set_transactions_pending(true);
    assert_eq!(
        vf.write_u16(at::DEVICE_CONTROL, INITIATE_FLR),
        [
            Effect::FunctionLevelReset,
            Effect::BusMasterChanged { enabled: false },
            Effect::BarMoved { bar: BarIndex::BAR0, address: 0 },
            Effect::MemoryEnableChanged { enabled: false },
            Effect::MsixControlChanged { enabled: false, masked: false },
        ]
    );
    assert_eq!(vf.all(), new);
    assert_eq!(
        vf.write_u16(at::DEVICE_CONTROL, INITIATE_FLR),
        [Effect::FunctionLevelReset],
        "a second one resets again"
    );
}

#[test]
fn function_level_reset_byte_by_byte_fires_with_its_own_byte() {
    let mut vf = avf::virtual_function(5).unwrap();
    assert_eq!(vf.write(at::DEVICE_CONTROL, &[0x10]), []);
    assert_eq!(vf.write(at::DEVICE_CONTROL + 1, &[0xA9]), [Effect::FunctionLevelReset]);
}

#[test]
fn sleep_and_wake_keep_state_with_no_soft_reset() {
    let mut vf = avf::virtual_function(5).unwrap();
    vf.write_u16(at::COMMAND, 6);
    vf.write_u16(at::POWER, 3);
    assert!(!vf.dma_allowed() && vf.bus_master_enabled());
    assert_eq!(
        vf.write_u16(at::POWER, 0),
        [Effect::PowerStateChanged { from: PowerState::D3hot, to: PowerState::D0 }]
    );
    assert!(vf.dma_allowed());
    assert_eq!(vf.read_u16(at::POWER), 0x0008, "NoSoftReset");
}

#[test]
fn sleep_and_wake_lose_state_without_no_soft_reset() {
    let power = PowerManagement::new(PowerManagementConfig::default());
    let mut function = PciFunction::builder(IDENTITY).capability(power).build().unwrap();
    let new = function.all();
    function.write_u16(at::COMMAND, 4);
    function.write_u16(at::POWER, 3);
    assert_eq!(
        function.write_u16(at::POWER, 0),
        [
            Effect::SoftReset,
            Effect::PowerStateChanged { from: PowerState::D3hot, to: PowerState::D0 },
            Effect::BusMasterChanged { enabled: false }
        ]
    );
    assert_eq!(function.all(), new);
}

#[test]
fn a_pf_driver_sets_the_power_state_as_the_register_does() {
    let mut vf = avf::virtual_function(5).unwrap();
    let mut written = vf.clone();
    assert_eq!(vf.set_power_state(PowerState::D3hot), written.write_u16(at::POWER, 3));
    assert_eq!(vf.all(), written.all());
    assert_eq!(vf.set_power_state(PowerState::D2), [], "there is no D2, and no way to it");
    assert_eq!(vf.set_power_state(PowerState::D0), written.write_u16(at::POWER, 0));
    assert_eq!(vf.all(), written.all());
    let mut without = PciFunction::builder(IDENTITY).build().unwrap();
    assert_eq!(without.set_power_state(PowerState::D3hot), []);
    assert_eq!(without.power_state(), PowerState::D0);
}

#[test]
fn a_reset_of_the_machine_clears_what_an_flr_keeps() {
    let mut vf = avf::virtual_function(5).unwrap();
    let new = vf.all();
    vf.write_u16(at::DEVICE_CONTROL, 0x2930);
    vf.write_u16(at::COMMAND, 4);
    let mut reset = vf.clone();
    assert_eq!(
        reset.reset(ResetKind::FunctionLevel),
        [Effect::BusMasterChanged { enabled: false }]
    );
    assert_eq!(reset.read_u16(at::DEVICE_CONTROL), 0x2930, "the payload size stays");
    assert_eq!(vf.reset(ResetKind::Conventional), [Effect::BusMasterChanged { enabled: false }]);
    assert_eq!(vf.all(), new);
}

#[test]
fn accesses_beyond_the_end_are_refused_and_change_nothing() {
    let mut vf = avf::virtual_function(5).unwrap();
    for (offset, length) in [(4096, 1), (4095, 2), (0, 4097), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        let error = PciFunctionError::OutsideConfigSpace { offset, length };
        assert_eq!(vf.config_read(offset, &mut vec![0; length]), Err(error.clone()));
        assert_eq!(vf.config_write(offset, &vec![0xFF; length]), Err(error));
    }
    assert_eq!(vf.all(), avf::virtual_function(5).unwrap().all());
    assert_eq!(vf.config_read(4096, &mut []), Ok(()), "nothing, at the end, is inside");
    assert_eq!(vf.read_u8(4095), 0);
}

#[test]
fn a_raw_vf_has_no_ids_no_memory_enable_and_no_bars() {
    let mut vf = avf::raw_virtual_function(5).unwrap();
    assert_eq!(vf.read_u32(0), 0xFFFF_FFFF);
    assert_eq!(vf.write_u16(at::COMMAND, 0xFFFF), [Effect::BusMasterChanged { enabled: true }]);
    assert_eq!(vf.read_u16(at::COMMAND), 4);
    for register in (at::BAR0..0x28).step_by(4) {
        assert_eq!(vf.write_u32(register, u32::MAX), []);
        assert_eq!(vf.read_u32(register), 0);
    }
    assert_eq!(vf.read_u32(0x2C), 0x0000_8086);
    assert_eq!(vf.read_u32(0x08), 0x0200_0002);
    assert_eq!(vf.bar_addresses(), [None; 6]);
    assert_eq!(vf.decode(0), None);
}

#[test]
fn builder_refuses_what_cannot_be() {
    let bar = |size| Bar::memory64(size, false).unwrap();
    let msi_x = |vectors, table, pba| {
        let location = |offset| pcie_protocol::MsiXLocation { bar: BarIndex::BAR0, offset };
        MsiX::new(MsiXLayout { vectors, table: location(table), pba: location(pba) })
    };
    let with_msi_x = |msi_x: MsiX| {
        PciFunction::builder(IDENTITY).bar(BarIndex::BAR0, bar(4096)).capability(msi_x).build()
    };
    assert!(with_msi_x(msi_x(128, 0, 0x800).unwrap()).is_ok());
    for (vectors, table, pba) in [(129, 0, 0x800), (255, 8, 0xFF8), (1, 0x1000, 0), (1, 0, 0x1000)]
    {
        let refused = with_msi_x(msi_x(vectors, table, pba).unwrap()).map(drop);
        assert!(matches!(refused, Err(PciFunctionError::MsiXLayout(_))), "{vectors} {refused:?}");
    }
    for (vectors, table, pba) in [(0, 0, 0x800), (2049, 0, 0x800), (1, 4, 0x800), (1, 0, 0x804)] {
        assert!(matches!(msi_x(vectors, table, pba), Err(PciFunctionError::MsiXLayout(_))));
    }
    let build = |builder: crate::FunctionBuilder| builder.build().map(drop);
    let new = || PciFunction::builder(IDENTITY);
    assert_eq!(
        build(new().bar(BarIndex::BAR0, bar(4096)).bar(BarIndex::BAR0, bar(4096))),
        Err(PciFunctionError::BarTwice(BarIndex::BAR0))
    );
    let upper_half_taken = new().bar(BarIndex::BAR0, bar(4096)).bar(BarIndex::BAR1, bar(4096));
    assert!(matches!(build(upper_half_taken), Err(PciFunctionError::Impossible(_))));
    assert_eq!(
        build(new().capability(Acs::isolated()).capability(Acs::isolated())),
        Err(PciFunctionError::CapabilityTwice("access control services"))
    );
    let express = || Express::endpoint(ExpressConfig::default());
    for misplaced in [
        new().capability_at(0x3C, express()),
        new().capability_at(0xC8, express()),
        new().capability_at(0x41, express()),
        new().capability_at(0x100, express()),
        new().capability_at(0x40, Ari::new(0)),
        new().capability_at(0x104, Ari::new(0)),
        new().capability(Ari::new(0)).capability_at(0xFFC, Acs::isolated()),
        new().capability(Ari::new(0)).capability_at(0x104, Acs::isolated()),
    ] {
        let refused = build(misplaced);
        assert!(
            matches!(refused, Err(PciFunctionError::CapabilityDoesNotFit { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn capabilities_are_where_they_were_put_in_the_order_they_were_given() {
    let function = PciFunction::builder(IDENTITY)
        .multi_function()
        .capability_at(0xC0, Express::endpoint(ExpressConfig::default()))
        .capability_at(0x50, PowerManagement::new(PowerManagementConfig::default()))
        .build()
        .unwrap();
    let found: Vec<_> =
        CapabilityWalk::new(&function.all()).map(|found| (found.id, found.offset)).collect();
    assert_eq!(found, [(CapabilityId::PCI_EXPRESS, 0xC0), (CapabilityId::POWER_MANAGEMENT, 0x50)]);
    assert_eq!(function.read_u8(0x0E), 0x80, "multi-function");
    assert_eq!(function.read_u32(0x2C), 0xBBBB_AAAA);
}

#[test]
fn a_function_without_capabilities_has_no_list() {
    let function = PciFunction::builder(IDENTITY).build().unwrap();
    assert_eq!(function.read_u16(at::STATUS), 0);
    assert_eq!(function.read_u8(0x34), 0);
    assert_eq!(function.power_state(), PowerState::D0);
}
