use proptest::prelude::*;

use crate::testing::{any_name, assert_meaning, structure_properties};
use crate::*;

fn any_switch() -> impl Strategy<Value = SwitchId> {
    (0..u32::MAX).prop_map(|raw| SwitchId::new(raw).unwrap())
}

fn any_vport() -> impl Strategy<Value = VPortId> {
    (0..u32::MAX).prop_map(|raw| VPortId::new(raw).unwrap())
}

fn any_function() -> impl Strategy<Value = FunctionId> {
    any::<u16>().prop_map(FunctionId::from_wire)
}

fn any_state() -> impl Strategy<Value = VPortState> {
    (0_u32..3).prop_map(|raw| VPortState::from_wire(raw).unwrap())
}

fn any_moderation() -> impl Strategy<Value = InterruptModeration> {
    prop::sample::select(vec![0, 1, 2, 100, 200, 300])
        .prop_map(|raw| InterruptModeration::from_wire(raw).unwrap())
}

fn any_affinity() -> impl Strategy<Value = GroupAffinity> {
    any::<(u64, u16)>().prop_map(|(mask, group)| GroupAffinity { mask, group })
}

fn any_flags() -> impl Strategy<Value = VPortFlags> {
    any::<u32>().prop_map(VPortFlags::from_bits_truncate)
}

fn any_ndk() -> impl Strategy<Value = NdkParameters> {
    any::<u8>().prop_map(|byte| NdkParameters([byte; 168]))
}

fn any_extension() -> impl Strategy<Value = VPortExtension> {
    (any_ndk(), any::<u32>())
        .prop_map(|(ndk_parameters, qos_sq_id)| VPortExtension { ndk_parameters, qos_sq_id })
}

fn any_parameters() -> impl Strategy<Value = VPortParameters> {
    (
        (any_flags(), any_switch(), any_vport(), any_name(), any_function()),
        (any::<u32>(), any_moderation(), any_state(), any_affinity(), any::<u32>()),
        proptest::option::of(any_extension()),
    )
        .prop_map(|(a, b, extension)| VPortParameters {
            flags: a.0,
            switch_id: a.1,
            vport_id: a.2,
            name: a.3,
            attached_function: a.4,
            num_queue_pairs: b.0,
            interrupt_moderation: b.1,
            state: b.2,
            processor_affinity: b.3,
            lookahead_size: b.4,
            extension,
        })
}

fn any_change() -> impl Strategy<Value = VPortChange> {
    use proptest::option::of;
    (
        any_vport(),
        (of(any_flags()), of(any_name()), of(any_moderation()), of(any_state())),
        (of(any_affinity()), of(any_ndk()), any::<Option<u32>>(), any::<Option<u32>>()),
    )
        .prop_map(|(vport_id, a, b)| VPortChange {
            vport_id,
            flags: a.0,
            name: a.1,
            interrupt_moderation: a.2,
            state: a.3,
            processor_affinity: b.0,
            ndk_parameters: b.1,
            qos_sq_id: b.2,
            num_queue_pairs: b.3,
        })
}

fn any_info() -> impl Strategy<Value = VPortInfo> {
    (any_parameters(), any::<u32>(), any::<u32>()).prop_map(|(p, flags, num_filters)| VPortInfo {
        vport_id: p.vport_id,
        flags: VPortInfoFlags::from_bits_truncate(flags),
        switch_id: p.switch_id,
        name: p.name,
        attached_function: p.attached_function,
        num_queue_pairs: p.num_queue_pairs,
        interrupt_moderation: p.interrupt_moderation,
        state: p.state,
        processor_affinity: p.processor_affinity,
        lookahead_size: p.lookahead_size,
        num_filters,
    })
}

structure_properties!(parameters, VPortParameters, any_parameters());
structure_properties!(change, VPortChange, any_change());
structure_properties!(
    delete,
    NicSwitchDeleteVPortParameters,
    any_vport().prop_map(|vport_id| NicSwitchDeleteVPortParameters { vport_id })
);
structure_properties!(info, VPortInfo, any_info());
structure_properties!(
    info_array,
    VPortInfoArray,
    (
        proptest::option::of(any_function()),
        proptest::option::of(any_switch()),
        proptest::collection::vec(any_info(), 0..4)
    )
        .prop_map(|(function, switch, elements)| VPortInfoArray { function, switch, elements })
);

#[test]
fn create_vport_has_the_published_layout() {
    let parameters = VPortParameters {
        interrupt_moderation: InterruptModeration::Medium,
        state: VPortState::Activated,
        ..VPortParameters::new(FunctionId::Vf(VfId::new(3).unwrap()), 4)
    };
    let bytes = parameters.emit();
    assert_eq!(bytes.len(), 572);
    assert_eq!(bytes[..4], [0x80, 1, 0x3C, 2]);
    assert_eq!(bytes[532..548], [3, 0, 0, 0, 4, 0, 0, 0, 200, 0, 0, 0, 1, 0, 0, 0]);
    let bytes = parameters.emit_as(2);
    assert_eq!((bytes.len(), bytes[2], bytes[3]), (748, 0xEC, 2));
}

#[test]
fn a_vport_with_the_padded_size_of_revision_2_is_read() {
    let parameters = VPortParameters {
        extension: Some(VPortExtension { ndk_parameters: NdkParameters::NONE, qos_sq_id: 9 }),
        ..VPortParameters::new(FunctionId::Pf, 1)
    };
    let mut bytes = parameters.emit();
    bytes[2] = 0xF0; // 752
    assert_meaning(&bytes, &parameters);
}

#[test]
fn a_change_reads_only_what_its_flags_name() {
    let mut bytes = VPortParameters::new(FunctionId::Pf, 1).emit();
    bytes[12] = 5;
    bytes[540] = 77; // moderation that means nothing
    bytes[544] = 77; // state that means nothing
    bytes[4] = 0x44; // properties that mean nothing
    assert_meaning(&bytes, &VPortChange::new(VPortId::new(5).unwrap()));
    for change in [0x01, 0x04, 0x08, 0x20, 0x40] {
        bytes[6] = change;
        assert!(VPortChange::parse(&bytes).is_err(), "change bit {change:#x}");
    }
    bytes[6] = 0x80;
    assert_eq!(VPortChange::parse(&bytes).unwrap().num_queue_pairs, Some(1));
    bytes[7] = 0x01;
    assert!(VPortChange::parse(&bytes).is_err(), "an unknown change bit");
}

#[test]
fn no_vport_is_not_a_vport() {
    let mut bytes = NicSwitchDeleteVPortParameters { vport_id: VPortId::DEFAULT }.emit();
    bytes[8..12].fill(0xFF);
    let error = NicSwitchDeleteVPortParameters::parse(&bytes).unwrap_err();
    assert!(matches!(error, ParseError::Member { member: "VPortId", .. }), "{error}");
}
