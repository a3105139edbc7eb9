use proptest::collection::vec;
use proptest::prelude::*;

use pcivirt_protocol::{CmPartialResourceDescriptor, DevicePowerState, Luid};

use crate::testing::{assert_meaning, structure_properties};
use crate::*;

fn any_vf() -> impl Strategy<Value = VfId> {
    (0..u16::MAX).prop_map(|raw| VfId::new(raw).unwrap())
}

fn any_power_state() -> impl Strategy<Value = (DevicePowerState, bool)> {
    (prop::sample::select(DevicePowerState::ALL.to_vec()), any::<bool>())
        .prop_map(|(state, wake)| (state, wake && state != DevicePowerState::D0))
}

structure_properties!(
    read_config_space,
    SriovReadVfConfigSpace,
    (any_vf(), any::<u32>(), any::<u32>(), 20..u32::MAX).prop_map(
        |(vf_id, offset, length, buffer_offset)| SriovReadVfConfigSpace {
            vf_id,
            offset,
            length,
            buffer_offset
        }
    )
);
structure_properties!(
    write_config_space,
    SriovWriteVfConfigSpace,
    (any_vf(), any::<u32>(), vec(any::<u8>(), 0..70))
        .prop_map(|(vf_id, offset, data)| SriovWriteVfConfigSpace { vf_id, offset, data })
);
structure_properties!(
    read_config_block,
    SriovReadVfConfigBlock,
    (any_vf(), any::<u32>(), any::<u32>(), 20..u32::MAX).prop_map(
        |(vf_id, block_id, length, buffer_offset)| SriovReadVfConfigBlock {
            vf_id,
            block_id,
            length,
            buffer_offset
        }
    )
);
structure_properties!(
    write_config_block,
    SriovWriteVfConfigBlock,
    (any_vf(), any::<u32>(), vec(any::<u8>(), 0..129))
        .prop_map(|(vf_id, block_id, data)| SriovWriteVfConfigBlock { vf_id, block_id, data })
);
structure_properties!(reset, SriovResetVf, any_vf().prop_map(|vf_id| SriovResetVf { vf_id }));
structure_properties!(
    power,
    SriovSetVfPowerState,
    (any_vf(), any_power_state()).prop_map(|(vf_id, (power_state, wake_enable))| {
        SriovSetVfPowerState { vf_id, power_state, wake_enable }
    })
);
structure_properties!(
    config_state,
    SriovConfigState,
    any::<(u32, u32)>().prop_map(|(block_id, length)| SriovConfigState { block_id, length })
);
structure_properties!(
    ids,
    SriovVfVendorDeviceId,
    (any_vf(), any::<u16>(), any::<u16>()).prop_map(|(vf_id, vendor_id, device_id)| {
        SriovVfVendorDeviceId { vf_id, vendor_id, device_id }
    })
);
structure_properties!(
    probed_bars,
    SriovProbedBars,
    any::<[u32; 6]>().prop_map(|base_register_values| SriovProbedBars { base_register_values })
);
structure_properties!(
    bar_resources,
    SriovBarResources,
    (any_vf(), 0_u16..6, 12..u32::MAX).prop_map(|(vf_id, bar, bar_resources_offset)| {
        SriovBarResources { vf_id, bar_index: BarIndex::new(bar).unwrap(), bar_resources_offset }
    })
);
structure_properties!(
    pf_luid,
    SriovPfLuid,
    any::<u64>().prop_map(|value| SriovPfLuid { luid: Luid::from_u64(value) })
);
structure_properties!(
    serial_number,
    SriovVfSerialNumber,
    any::<u32>().prop_map(|serial_number| SriovVfSerialNumber { serial_number })
);
structure_properties!(
    invalidate,
    SriovVfInvalidateConfigBlock,
    any::<u64>().prop_map(|block_mask| SriovVfInvalidateConfigBlock { block_mask })
);
structure_properties!(
    overlying,
    SriovOverlyingAdapterInfo,
    any::<(u32, u32)>().prop_map(|(flags, if_index)| SriovOverlyingAdapterInfo { flags, if_index })
);

fn vf(raw: u16) -> VfId {
    VfId::new(raw).unwrap()
}

#[test]
fn requests_have_the_published_layout() {
    assert_eq!(SriovResetVf { vf_id: vf(2) }.emit(), [0x80, 1, 6, 0, 2, 0]);
    let power =
        SriovSetVfPowerState { vf_id: vf(2), power_state: DevicePowerState::D3, wake_enable: true };
    let mut bytes = power.emit();
    assert_eq!(bytes, [0x80, 1, 13, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1]);
    bytes[2] = 16;
    assert_meaning(&bytes, &power);
    let write = SriovWriteVfConfigBlock { vf_id: vf(1), block_id: 9, data: vec![1, 2, 3] };
    assert_eq!(
        write.emit(),
        [0x80, 1, 20, 0, 1, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, 20, 0, 0, 0, 1, 2, 3]
    );
    let luid = SriovPfLuid { luid: Luid { low_part: 1, high_part: -1 } };
    assert_eq!(luid.emit(), [0x80, 1, 12, 0, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    let bars = SriovProbedBars { base_register_values: [0xFFFF_0004, !0, 0, 0, 0, 0] };
    assert_eq!(bars.emit().len(), SriovProbedBars::SIZE);
}

#[test]
fn a_vf_that_may_wake_the_machine_is_not_in_d0() {
    let bytes = [0x80, 1, 13, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1];
    let error = SriovSetVfPowerState::parse(&bytes).unwrap_err();
    assert!(matches!(error, ParseError::Member { member: "WakeEnable", .. }), "{error}");
}

#[test]
fn data_may_be_anywhere_behind_the_structure() {
    let mut bytes = SriovWriteVfConfigSpace { vf_id: vf(0), offset: 4, data: vec![6, 0] }.emit();
    bytes[16] = 24;
    bytes.splice(20..20, [0xEE; 4]);
    assert_meaning(&bytes, &SriovWriteVfConfigSpace { vf_id: vf(0), offset: 4, data: vec![6, 0] });
    bytes[16] = 19;
    let error = SriovWriteVfConfigSpace::parse(&bytes).unwrap_err();
    assert!(matches!(error, ParseError::Member { member: "BufferOffset", .. }), "{error}");
    bytes[16] = 25;
    assert_eq!(SriovWriteVfConfigSpace::parse(&bytes).unwrap_err().bytes_needed(), Some(27));
}

#[test]
fn answers_carry_their_data_at_the_offset_asked_for() {
    let read = SriovReadVfConfigSpace { vf_id: vf(0), offset: 0, length: 3, buffer_offset: 22 };
    let answer = read.emit_with(&[7, 8, 9]);
    assert_eq!(read.data(&answer), Some([7, 8, 9].as_slice()));
    assert_eq!(read.data(&answer[..24]), None);
    assert_meaning(&answer, &read);

    let bar = SriovBarResources::new(vf(1), BarIndex::new(2).unwrap());
    let descriptor = CmPartialResourceDescriptor::memory(0x1000, 0x2000, 0).unwrap();
    let answer = bar.emit_with(&descriptor);
    assert_eq!(answer.len(), 32);
    assert_eq!(bar.descriptor(&answer), Some(descriptor));
    assert_eq!(bar.descriptor(&answer[..31]), None);
}
