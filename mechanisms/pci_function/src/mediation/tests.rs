//! Stories and properties of mediation.

use pcie_protocol::{
    Bar, BarIndex, Bars, CapabilityId, CapabilityWalk, ClassCode, ExtendedCapabilityId,
    ExtendedCapabilityWalk, PowerState, VfIndex, encode_probed_bars,
};
use proptest::prelude::*;

use super::*;
use crate::{Effect, PhysicalFunction, VirtualizationRequest, avf};

const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
const POWER: u64 = 0x44;
const MSI_X_CONTROL: u64 = 0x52;
const DEVICE_CONTROL: u64 = 0x68;

fn probed() -> Bars<u32> {
    encode_probed_bars(avf::raw_virtual_function(17).unwrap().bars()).unwrap()
}

fn ids() -> VfPnpIds {
    VfPnpIds::new(avf::VENDOR_ID, avf::VF_DEVICE_ID)
}

fn mediate(raw: &(impl RawVfConfig + ?Sized)) -> VfMediation {
    VfMediation::new(raw, ids(), &probed(), &MediationPolicy::default()).unwrap()
}

fn view(mediation: &VfMediation, raw: &(impl RawVfConfig + ?Sized)) -> Vec<u8> {
    let mut data = vec![0; 4096];
    mediation.read(raw, 0, &mut data).unwrap();
    data
}

fn u16_at(view: &[u8], offset: u64) -> u16 {
    let offset = offset as usize;
    u16::from_le_bytes([view[offset], view[offset + 1]])
}

fn u32_at(view: &[u8], offset: u64) -> u32 {
    u32::from(u16_at(view, offset)) | u32::from(u16_at(view, offset + 2)) << 16
}

fn forward(offset: u16, value: u16) -> Decision {
    Decision::Forward(ForwardedWrite::word(offset, value))
}

/// A raw space with everything in it that a guest must not see.
fn crowded() -> Vec<u8> {
    let mut raw = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| raw[at..at + bytes.len()].copy_from_slice(bytes);
    put(
        0x00,
        &[0xFF, 0xFF, 0xFF, 0xFF, 0x04, 0x00, 0x18, 0x20, 7, 1, 2, 3, 0x10, 0x20, 0x80, 0x40],
    );
    put(0x10, &[0xEE; 24]);
    put(0x28, &[0xDD; 4]);
    put(0x2C, &[0x86, 0x80, 0x34, 0x12]);
    put(0x30, &[0xFF; 4]);
    put(0x34, &[0x40]);
    put(0x3C, &[11, 1, 2, 3]);
    // VPD, PCI Express, vendor specific, MSI (64-bit, maskable, 4 vectors), MSI-X, power management.
    put(0x40, &[0x03, 0x50, 0xAB, 0xCD, 1, 2, 3, 4]);
    put(0x50, &[0x10, 0x8C, 0x02, 0x00]);
    put(0x5A, &[0x2F]);
    put(0x8C, &[0x09, 0x90, 4, 0]);
    put(0x90, &[0x05, 0xB0, 0x85, 0x01]);
    put(0xA4, &[0x05, 0, 0, 0]);
    put(0xB0, &[0x11, 0xC0, 0x10, 0x80, 0x03, 0, 0, 0, 0x03, 0x20, 0, 0]);
    put(0xC0, &[0x01, 0x00, 0x03, 0xFE, 0x00, 0x81]);
    // AER, SR-IOV, serial number, ACS, ARI, ATS.
    put(0x100, &0x1501_0001u32.to_le_bytes());
    put(0x104, &[0x77; 4]);
    put(0x150, &0x1A01_0010u32.to_le_bytes());
    put(0x1A0, &0x1B01_0003u32.to_le_bytes());
    put(0x1A4, &[1, 2, 3, 4, 5, 6, 7, 8]);
    put(0x1B0, &0x1C01_000Du32.to_le_bytes());
    put(0x1C0, &0x1D01_000Eu32.to_le_bytes());
    put(0x1D0, &0x0001_000Fu32.to_le_bytes());
    raw
}

#[test]
fn a_guest_sees_a_whole_function_where_the_raw_vf_is_none() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let seen = view(&mediate(&raw), &raw);
    let mut expected = view_of(&avf::virtual_function(17).unwrap());
    // Memory enable is shown as set; what controls the link is the PF's.
    expected[0x04] = 2;
    for register in [0x68, 0x69, 0x70, 0x71, 0x72, 0x73, 0x90] {
        expected[register] = 0;
    }
    assert_eq!(seen, expected);
}

fn view_of(function: &crate::PciFunction) -> Vec<u8> {
    let mut data = vec![0; 4096];
    function.config_read(0, &mut data).unwrap();
    data
}

#[test]
fn what_describes_the_host_is_hidden() {
    let raw = crowded();
    let seen = view(&mediate(raw.as_slice()), raw.as_slice());
    let found: Vec<_> = CapabilityWalk::new(&seen).map(|found| (found.id, found.offset)).collect();
    assert_eq!(
        found,
        [
            (CapabilityId::PCI_EXPRESS, 0x50),
            (CapabilityId::MSI, 0x90),
            (CapabilityId::MSI_X, 0xB0),
            (CapabilityId::POWER_MANAGEMENT, 0xC0)
        ]
    );
    let found: Vec<_> =
        ExtendedCapabilityWalk::new(&seen).map(|found| (found.id, found.offset)).collect();
    assert_eq!(found, [(ExtendedCapabilityId::DEVICE_SERIAL_NUMBER, 0x1A0)]);
    assert_eq!(u32_at(&seen, 0x100), 0x1A00_0000, "an empty header that points on");
    assert_eq!(seen[0x104..0x1A0], [0; 0x9C]);
    assert_eq!(seen[0x1A4..0x1AC], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(seen[0x1B0..], [0; 0xE50]);
    assert_eq!(seen[0x40..0x50], [0; 16], "vital product data");
    assert_eq!(seen[0x8C..0x90], [0; 4], "vendor specific");
    assert_eq!(u32_at(&seen, 0x00), 0x1889_8086);
    assert_eq!(u16_at(&seen, 0x04), 6, "bus master of the VF, memory enable of the shadow");
    assert_eq!(u16_at(&seen, 0x06), 0x2010, "no INTx is pending");
    assert_eq!(seen[0x08..0x10], [7, 1, 2, 3, 0, 0, 0, 0]);
    assert_eq!(u32_at(&seen, 0x10), 0xC);
    assert_eq!(u32_at(&seen, 0x28), 0);
    assert_eq!(u32_at(&seen, 0x2C), 0x1234_8086);
    assert_eq!(u32_at(&seen, 0x30), 0, "no ROM");
    assert_eq!(u32_at(&seen, 0x3C), 0, "no INTx");
}

#[test]
fn a_policy_hides_and_shows() {
    let raw = crowded();
    let policy = MediationPolicy {
        express: false,
        power_management: false,
        msi: false,
        extended: vec![
            ExtendedCapabilityId::AER,
            ExtendedCapabilityId::SR_IOV,
            ExtendedCapabilityId::ACS,
            ExtendedCapabilityId::ARI,
            ExtendedCapabilityId::ATS,
        ],
        memory_enable_at_reset: false,
        ..MediationPolicy::default()
    };
    let mut mediation = VfMediation::new(raw.as_slice(), ids(), &probed(), &policy).unwrap();
    let seen = view(&mediation, raw.as_slice());
    let found: Vec<_> = CapabilityWalk::new(&seen).map(|found| found.id).collect();
    assert_eq!(found, [CapabilityId::MSI_X]);
    let found: Vec<_> = ExtendedCapabilityWalk::new(&seen).map(|found| found.id).collect();
    assert_eq!(found, [ExtendedCapabilityId::AER]);
    assert_eq!(seen[0x104..0x108], [0x77; 4]);
    assert_eq!(u16_at(&seen, COMMAND), 4);
    // Power management is not there, and neither is the reset.
    assert_eq!(mediation.write(0xC4, &[3]).unwrap(), [Decision::Absorbed { register: 0xC4 }]);
    assert_eq!(
        mediation.write(0x58, &0x8000u16.to_le_bytes()).unwrap(),
        [Decision::Absorbed { register: 0x58 }]
    );
    assert_eq!(mediation.write(0x104, &[1]).unwrap(), [Decision::Absorbed { register: 0x104 }]);
}

#[test]
fn the_pf_driver_can_say_more_than_the_ids() {
    let raw = crowded();
    let ids = VfPnpIds {
        revision_id: Some(0x42),
        class: Some(ClassCode::ETHERNET),
        subsystem_vendor_id: Some(0x1111),
        subsystem_id: Some(0x2222),
        ..ids()
    };
    let policy = MediationPolicy::default();
    let mediation = VfMediation::new(raw.as_slice(), ids, &probed(), &policy).unwrap();
    let seen = view(&mediation, raw.as_slice());
    assert_eq!(seen[0x08..0x0C], [0x42, 0, 0, 2]);
    assert_eq!(u32_at(&seen, 0x2C), 0x2222_1111);
}

#[test]
fn command_is_taken_apart() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let mut mediation = mediate(&raw);
    assert_eq!(
        mediation.write(COMMAND, &0xFFFFu16.to_le_bytes()).unwrap(),
        [forward(0x04, 4), Decision::Shadowed(Shadow::InterruptDisable { disabled: true })]
    );
    assert_eq!(
        mediation.write(COMMAND, &[0, 0, 0xFF, 0xFF]).unwrap(),
        [
            forward(0x04, 0),
            Decision::Shadowed(Shadow::MemoryEnable { enabled: false }),
            Decision::Shadowed(Shadow::InterruptDisable { disabled: false }),
            forward(0x06, 0xF900)
        ]
    );
    assert_eq!(mediation.write(COMMAND + 1, &[1]).unwrap(), [Decision::Absorbed { register: 4 }]);
}

#[test]
fn ids_and_the_rest_of_the_header_absorb_writes() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let mut mediation = mediate(&raw);
    let before = view(&mediation, &raw);
    for register in [0x00, 0x08, 0x0C, 0x18, 0x24, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x3C, 0xFFC] {
        let decisions = mediation.write(u64::from(register), &[0xFF; 4]).unwrap();
        assert_eq!(decisions, [Decision::Absorbed { register }], "{register:#x}");
    }
    assert_eq!(view(&mediation, &raw), before);
}

#[test]
fn virtual_bars_size_as_the_probed_ones_and_never_reach_the_vf() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let mut mediation = mediate(&raw);
    let moved = |bar, address| Decision::Shadowed(Shadow::Bar { bar, address });
    assert_eq!(
        mediation.write(BAR0, &[0xFF; 24]).unwrap(),
        [
            moved(BarIndex::BAR0, 0xFFFF_0000),
            moved(BarIndex::BAR0, 0xFFFF_FFFF_FFFF_0000),
            Decision::Absorbed { register: 0x18 },
            moved(BarIndex::BAR3, 0xFFFF_C000),
            moved(BarIndex::BAR3, 0xFFFF_FFFF_FFFF_C000),
            Decision::Absorbed { register: 0x24 },
        ]
    );
    let seen = view(&mediation, &raw);
    let read: Vec<_> = (0..6).map(|bar| u32_at(&seen, BAR0 + bar * 4)).collect();
    assert_eq!(read, probed());
    mediation.write(BAR0, &0x12_3456_0000u64.to_le_bytes()).unwrap();
    assert_eq!(mediation.bar_addresses()[0], Some(0x12_3456_0000));
    assert_eq!(mediation.decode(0x12_3456_0008), Some((BarIndex::BAR0, 8)));
    mediation.write(COMMAND, &[0]).unwrap();
    assert_eq!(mediation.decode(0x12_3456_0008), None);
    mediation.write(COMMAND, &[2]).unwrap();
    mediation.reset();
    assert_eq!(mediation.decode(0), None, "a BAR at 0 has no address yet");
}

#[test]
fn function_level_reset_becomes_reset_vf() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let mut mediation = mediate(&raw);
    let new = view(&mediation, &raw);
    mediation.write(BAR0, &0x8000_0000u32.to_le_bytes()).unwrap();
    mediation.write(COMMAND, &[0, 4]).unwrap();
    mediation.write(MSI_X_CONTROL, &0x8000u16.to_le_bytes()).unwrap();
    assert_eq!(
        mediation.write(DEVICE_CONTROL, &0x8000u16.to_le_bytes()).unwrap(),
        [Decision::ResetVf]
    );
    assert_eq!(view(&mediation, &raw), new);
    assert_eq!(
        mediation.write(DEVICE_CONTROL, &0x7FFFu16.to_le_bytes()).unwrap(),
        [Decision::Absorbed { register: 0x68 }]
    );
    assert_eq!(
        mediation.write(DEVICE_CONTROL, &[0, 0, 0xFF, 0xFF]).unwrap(),
        [forward(0x6A, 0x004F)]
    );
}

#[test]
fn power_control_becomes_set_vf_power_state() {
    let raw = crowded();
    let mut mediation = mediate(raw.as_slice());
    let control = 0xC4;
    let set = |state, wake| Decision::SetPowerState { state, wake };
    let mut write = |value: u16| mediation.write(control, &value.to_le_bytes()).unwrap();
    assert_eq!(write(0x0100), [Decision::Shadowed(Shadow::Wake { armed: true })]);
    assert_eq!(write(0x0101), [set(PowerState::D1, true)]);
    assert_eq!(write(0x0001), [set(PowerState::D1, false)]);
    assert_eq!(write(0x0001), [Decision::Absorbed { register: 0xC4 }]);
    assert_eq!(write(0x0103), [set(PowerState::D3hot, true)]);
    assert_eq!(write(0x0102), [Decision::Absorbed { register: 0xC4 }], "D3hot wakes to D0 alone");
    assert_eq!(
        write(0x8103),
        [Decision::Forward(ForwardedWrite::byte(0xC5, 0x81))],
        "PME status is cleared by a one"
    );
    assert_eq!(write(0x0100), [set(PowerState::D0, false)], "wake never goes with D0");
    let seen = view(&mediation, raw.as_slice());
    assert_eq!(u16_at(&seen, control), 0x8000, "this VF has no NoSoftReset: its wake lost PME_En");
}

#[test]
fn waking_a_vf_that_keeps_no_state_resets_the_shadows() {
    let raw = crowded();
    let mut mediation = mediate(raw.as_slice());
    mediation.write(BAR0, &0x8000_0000u32.to_le_bytes()).unwrap();
    mediation.write(0xC4, &[3]).unwrap();
    assert_eq!(mediation.power_state(), PowerState::D3hot);
    assert_eq!(mediation.bar_addresses()[0], Some(0x8000_0000));
    assert_eq!(mediation.decode(0x8000_0000), None, "asleep");
    mediation.write(0xC4, &[0]).unwrap();
    assert_eq!(mediation.bar_addresses()[0], Some(0));

    let keeps = avf::raw_virtual_function(17).unwrap();
    let mut mediation = mediate(&keeps);
    mediation.write(BAR0, &0x8000_0000u32.to_le_bytes()).unwrap();
    mediation.write(POWER, &[3]).unwrap();
    mediation.write(POWER, &[0]).unwrap();
    assert_eq!(mediation.decode(0x8000_0000), Some((BarIndex::BAR0, 0)));
}

#[test]
fn msi_x_control_is_for_the_interrupt_layer() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let mut mediation = mediate(&raw);
    let mut write = |value: u16| mediation.write(MSI_X_CONTROL, &value.to_le_bytes()).unwrap();
    assert_eq!(write(0xC000), [Decision::MsiXControl { enabled: true, masked: true }]);
    assert_eq!(write(0x8000), [Decision::MsiXControl { enabled: true, masked: false }]);
    assert_eq!(write(0xBFFF), [Decision::Absorbed { register: 0x50 }], "nothing else is writable");
    assert_eq!(mediation.msi_x_control(), (true, false));
    assert_eq!(u16_at(&view(&mediation, &raw), MSI_X_CONTROL), 0x8010);
    assert_eq!(raw.msi_x().map(crate::MsiX::enabled), Some(false));
}

#[test]
fn msi_is_for_the_interrupt_layer_too() {
    let raw = crowded();
    let mut mediation = mediate(raw.as_slice());
    let mut setting = MsiSetting::default();
    assert_eq!(
        u32_at(&view(&mediation, raw.as_slice()), 0x90),
        0x0184_B005,
        "off, whatever the host has made of the VF's own"
    );
    setting.address = 0x1_FEE0_1000;
    setting.data = 0x4021;
    setting.mask = 2;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(setting.address | 3).to_le_bytes());
    bytes[8..10].copy_from_slice(&setting.data.to_le_bytes());
    bytes[12] = 2;
    let decisions = mediation.write(0x94, &bytes).unwrap();
    assert_eq!(decisions.len(), 4);
    assert_eq!(decisions[3], Decision::Msi(setting));
    setting.enabled = true;
    setting.multiple_message_enable = 2;
    assert_eq!(mediation.write(0x92, &0xFF2Fu16.to_le_bytes()).unwrap(), [Decision::Msi(setting)]);
    let seen = view(&mediation, raw.as_slice());
    assert_eq!(u16_at(&seen, 0x92), 0x01A5);
    assert_eq!(seen[0x94..0x9E], [0x00, 0x10, 0xE0, 0xFE, 1, 0, 0, 0, 0x21, 0x40]);
    assert_eq!(u32_at(&seen, 0xA4), 5, "pending bits are the VF's own");
    assert_eq!(mediation.write(0xA4, &[0xFF; 4]).unwrap(), [Decision::Absorbed { register: 0xA4 }]);
}

#[test]
fn msi_with_a_short_address_has_its_data_earlier() {
    let mut raw = crowded();
    raw[0x92..0x94].copy_from_slice(&[0, 0]);
    let mut mediation = mediate(raw.as_slice());
    let data = MsiSetting { data: 0xBEEF, ..MsiSetting::default() };
    assert_eq!(mediation.write(0x98, &[0xEF, 0xBE]).unwrap(), [Decision::Msi(data)]);
    assert_eq!(mediation.write(0x9C, &[1]).unwrap(), [Decision::Absorbed { register: 0x9C }]);
    let mut saved = mediation.save();
    saved.msi.as_mut().unwrap().address = u64::MAX;
    saved.msi.as_mut().unwrap().mask = u32::MAX;
    mediation.restore(&saved).unwrap();
    let kept = mediation.save().msi.unwrap();
    assert_eq!((kept.address, kept.mask), (0xFFFF_FFFC, 0));
}

#[test]
fn probed_values_that_are_no_bars_are_refused() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let policy = MediationPolicy::default();
    let refused = VfMediation::new(&raw, ids(), &[0, 0, 0, 0, 0, 0xFFFF_0004], &policy);
    assert!(matches!(refused, Err(PciFunctionError::Impossible(_))));
}

#[test]
fn accesses_beyond_the_end_are_refused() {
    let raw = avf::raw_virtual_function(17).unwrap();
    let mut mediation = mediate(&raw);
    let error = PciFunctionError::OutsideConfigSpace { offset: 4095, length: 2 };
    assert_eq!(mediation.read(&raw, 4095, &mut [0; 2]), Err(error.clone()));
    assert_eq!(mediation.write(4095, &[0; 2]), Err(error));
}

#[test]
fn a_vf_that_does_not_answer_shows_no_capabilities() {
    let gone = [0xFF; 4096];
    let seen = view(&mediate(gone.as_slice()), gone.as_slice());
    assert_eq!(seen[0x34], 0);
    assert_eq!(u16_at(&seen, 0x06) & 0x10, 0);
    assert_eq!(seen[0x40..], [0; 0xFC0]);
}

#[test]
fn a_saved_mediation_goes_on_elsewhere() {
    let raw = crowded();
    let mut mediation = mediate(raw.as_slice());
    mediation.write(BAR0, &0x12_3456_0000u64.to_le_bytes()).unwrap();
    mediation.write(COMMAND, &[0, 4]).unwrap();
    mediation.write(0xB2, &0x8000u16.to_le_bytes()).unwrap();
    mediation.write(0x92, &[1]).unwrap();
    mediation.write(0xC4, &0x0101u16.to_le_bytes()).unwrap();
    let json = serde_json::to_string(&mediation.save()).unwrap();
    let mut restored = mediate(raw.as_slice());
    restored.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(view(&restored, raw.as_slice()), view(&mediation, raw.as_slice()));
    assert_eq!(restored.save(), mediation.save());

    let other = avf::raw_virtual_function(17).unwrap();
    let mut without_msi = mediate(&other);
    let before = without_msi.save();
    assert!(without_msi.restore(&mediation.save()).is_err());
    let mut no_d1 = before.clone();
    no_d1.power_state = PowerState::D1;
    assert!(without_msi.restore(&no_d1).is_err());
    assert_eq!(without_msi.save(), before);
}

/// What a PF driver does with decisions.
fn carry_out(pf: &mut PhysicalFunction, vf: VfIndex, decisions: &[Decision]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for decision in decisions {
        match decision {
            Decision::Forward(write) => {
                effects.extend(pf.set_vf_data(vf, write.offset(), write.bytes()).effects);
            }
            Decision::ResetVf => {
                effects.extend(pf.vf_mut(vf).unwrap().reset(crate::ResetKind::FunctionLevel));
            }
            Decision::SetPowerState { state, .. } => {
                effects.extend(pf.set_vf_data(vf, POWER, &[state.into_bits()]).effects);
            }
            _ => {}
        }
    }
    effects
}

#[test]
fn a_guest_drives_a_vf_through_its_pf_driver() {
    let mut pf = avf::adapter(&Default::default(), "03:00.0".parse().unwrap()).unwrap();
    pf.enable_virtualization(VirtualizationRequest::enable(2)).unwrap();
    let vf = VfIndex(1);
    let probed = pf.vf_probed_bars().unwrap();
    let policy = MediationPolicy::default();
    let mut guest = VfMediation::new(pf.vf(vf).unwrap(), ids(), &probed, &policy).unwrap();

    let decisions = guest.write(COMMAND, &[6, 0]).unwrap();
    let effects = carry_out(&mut pf, vf, &decisions);
    assert_eq!(effects, [Effect::BusMasterChanged { enabled: true }]);
    assert_eq!(u16_at(&view(&guest, pf.vf(vf).unwrap()), COMMAND), 6);
    assert!(!pf.vf(VfIndex(0)).unwrap().bus_master_enabled());

    let decisions = guest.write(POWER, &[3]).unwrap();
    let effects = carry_out(&mut pf, vf, &decisions);
    let slept = Effect::PowerStateChanged { from: PowerState::D0, to: PowerState::D3hot };
    assert_eq!(effects, [slept]);

    let decisions = guest.write(DEVICE_CONTROL, &0x8000u16.to_le_bytes()).unwrap();
    carry_out(&mut pf, vf, &decisions);
    let fresh = avf::raw_virtual_function(17).unwrap();
    assert_eq!(pf.vf(vf).unwrap().save(), fresh.save());
    assert_eq!(view(&guest, pf.vf(vf).unwrap()), view(&mediate(&fresh), &fresh));
}

fn any_write() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let offset = prop_oneof![4 => 0u64..0xD0, 1 => 0u64..4096];
    (offset, prop::collection::vec(any::<u8>(), 0..12))
        .prop_filter("inside", |(offset, data)| *offset + data.len() as u64 <= 4096)
}

proptest! {
    #[test]
    fn only_harmless_registers_of_the_vf_are_ever_written(writes in prop::collection::vec(any_write(), 0..40)) {
        let raw = crowded();
        let mut mediation = mediate(raw.as_slice());
        for (offset, data) in writes {
            for decision in mediation.write(offset, &data).unwrap() {
                if let Decision::Forward(write) = decision {
                    let bytes = write.bytes();
                    let value = u16::from(bytes[0]) | u16::from(*bytes.get(1).unwrap_or(&0)) << 8;
                    let allowed = match (write.offset(), bytes.len()) {
                        (0x04, 2) => 0x0004,
                        (0x06, 2) => 0xF900,
                        (0x5A, 2) => 0x004F,
                        (0xC5, 1) => 0x0081,
                        _ => 0,
                    };
                    prop_assert_eq!(value & !allowed, 0, "{:?}", write);
                    prop_assert_ne!(allowed, 0);
                }
            }
        }
    }

    #[test]
    fn each_dword_written_gets_a_decision_and_absorbed_ones_change_nothing((offset, data) in any_write()) {
        let raw = crowded();
        let mut mediation = mediate(raw.as_slice());
        let before = view(&mediation, raw.as_slice());
        let decisions = mediation.write(offset, &data).unwrap();
        let dwords = if data.is_empty() { 0 } else { (offset + data.len() as u64 - 1) / 4 - offset / 4 + 1 };
        prop_assert!(decisions.len() as u64 >= dwords);
        let absorbed = |decision: &Decision| matches!(decision, Decision::Absorbed { .. } | Decision::Forward(_));
        if decisions.iter().all(absorbed) {
            prop_assert_eq!(view(&mediation, raw.as_slice()), before);
        }
    }

    #[test]
    fn a_hostile_raw_space_is_mediated_all_the_same(
        mut raw in prop::collection::vec(any::<u8>(), 4096),
        header in any::<[u8; 4]>(),
        writes in prop::collection::vec(any_write(), 0..20),
    ) {
        raw[0x06] |= 0x10;
        raw[0x34] = header[0] | 0x40;
        let policy = MediationPolicy {
            extended: (0..0x30).map(ExtendedCapabilityId).collect(),
            ..MediationPolicy::default()
        };
        let mut mediation = VfMediation::new(raw.as_slice(), ids(), &probed(), &policy).unwrap();
        for (offset, data) in writes {
            mediation.write(offset, &data).unwrap();
        }
        let seen = view(&mediation, raw.as_slice());
        for found in CapabilityWalk::new(&seen) {
            prop_assert!(matches!(
                found.id,
                CapabilityId::PCI_EXPRESS | CapabilityId::POWER_MANAGEMENT | CapabilityId::MSI | CapabilityId::MSI_X
            ));
        }
        for found in ExtendedCapabilityWalk::new(&seen) {
            prop_assert!(!matches!(
                found.id,
                ExtendedCapabilityId::SR_IOV | ExtendedCapabilityId::ACS | ExtendedCapabilityId::ATS
            ));
        }
    }

    #[test]
    fn a_short_raw_space_reads_all_ones_beyond_its_end(raw in prop::collection::vec(any::<u8>(), 0..512)) {
        let mediation = mediate(raw.as_slice());
        let _ = view(&mediation, raw.as_slice());
    }

    #[test]
    fn any_bars_are_virtual_bars(size in 7u32..40, prefetchable: bool, address: u64) {
        let bar = Bar::memory64(1 << size, prefetchable).unwrap();
        let bars = [None, Some(bar), None, None, None, None];
        let probed = encode_probed_bars(&bars).unwrap();
        let raw = avf::raw_virtual_function(17).unwrap();
        let mut mediation = VfMediation::new(&raw, ids(), &probed, &MediationPolicy::default()).unwrap();
        mediation.write(0x14, &address.to_le_bytes()).unwrap();
        prop_assert_eq!(mediation.bar_addresses()[1], Some(address & bar.address_mask()));
    }
}
