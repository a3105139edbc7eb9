use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use crate::testing::{any_mac, assert_meaning, structure_properties};
use crate::*;

fn any_vport() -> impl Strategy<Value = VPortId> {
    (0..u32::MAX).prop_map(|raw| VPortId::new(raw).unwrap())
}

fn any_filter() -> impl Strategy<Value = FilterId> {
    (1..=u32::MAX).prop_map(|raw| FilterId::new(raw).unwrap())
}

fn any_type() -> impl Strategy<Value = FilterType> {
    prop::sample::select(vec![FilterType::VmQueue, FilterType::PacketCoalescing])
}

fn any_field() -> impl Strategy<Value = FieldParameters> {
    (any::<bool>(), 1_u32..4, 1_u32..7, any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(
        |(untagged, test, field, value, result)| FieldParameters {
            flags: if untagged { FieldFlags::all() } else { FieldFlags::empty() },
            test: FilterTest::from_wire(test).unwrap(),
            field: MacHeaderField::from_wire(field).unwrap(),
            value,
            result,
        },
    )
}

fn any_match() -> impl Strategy<Value = FilterMatch> {
    let vlan = prop_oneof![
        Just(VlanCondition::Any),
        Just(VlanCondition::UntaggedOrZero),
        (1_u16..4095).prop_map(|id| VlanCondition::Equal(VlanId::new(id).unwrap())),
    ];
    (any_mac(), vlan, any::<bool>()).prop_map(|(mac, vlan, inner)| FilterMatch { mac, vlan, inner })
}

fn any_parameters() -> impl Strategy<Value = ReceiveFilterParameters> {
    (
        (any::<bool>(), any_type(), of(any_filter()), any_vport()),
        any::<[u32; 3]>(),
        vec(any_field(), 0..4),
    )
        .prop_map(|((inner, filter_type, filter_id, vport_id), n, fields)| {
            ReceiveFilterParameters {
                flags: if inner { FilterFlags::all() } else { FilterFlags::empty() },
                filter_type,
                queue_id: n[0],
                filter_id,
                vport_id,
                requested_filter_id_bit_count: n[1],
                max_coalescing_delay: n[2],
                fields,
            }
        })
}

fn any_info() -> impl Strategy<Value = ReceiveFilterInfo> {
    (any_type(), any_filter())
        .prop_map(|(filter_type, filter_id)| ReceiveFilterInfo { filter_type, filter_id })
}

structure_properties!(field, FieldParameters, any_field());
structure_properties!(parameters, ReceiveFilterParameters, any_parameters());
structure_properties!(
    clear,
    ReceiveFilterClearParameters,
    (any::<u32>(), of(any_filter()))
        .prop_map(|(queue_id, filter_id)| ReceiveFilterClearParameters { queue_id, filter_id })
);
structure_properties!(
    move_filter,
    ReceiveFilterMoveFilterParameters,
    (any_filter(), any_vport(), any_vport(), any::<[u32; 2]>()).prop_map(|(id, from, to, n)| {
        ReceiveFilterMoveFilterParameters {
            filter_id: id,
            source_queue_id: n[0],
            source_vport_id: from,
            dest_queue_id: n[1],
            dest_vport_id: to,
        }
    })
);
structure_properties!(info, ReceiveFilterInfo, any_info());
structure_properties!(
    info_array,
    ReceiveFilterInfoArray,
    (any::<u32>(), of(any_vport()), vec(any_info(), 0..9)).prop_map(
        |(queue_id, vport, elements)| ReceiveFilterInfoArray { queue_id, vport, elements }
    )
);
structure_properties!(
    global,
    ReceiveFilterGlobalParameters,
    any::<[u32; 2]>().prop_map(|n| ReceiveFilterGlobalParameters {
        enabled_filter_types: FilterTypes::from_bits_retain(n[0]),
        enabled_queue_types: QueueTypes::from_bits_retain(n[1]),
    })
);

proptest! {
    #[test]
    fn what_a_filter_takes_survives_its_tests(vport in any_vport(), matches in any_match()) {
        let parameters = ReceiveFilterParameters::new(vport, matches);
        prop_assert_eq!(parameters.matches(), Ok(matches));
        prop_assert_eq!(ReceiveFilterParameters::parse(&parameters.emit()), Ok(parameters));
    }

    #[test]
    fn any_tests_are_judged_without_panic(parameters in any_parameters()) {
        if let Ok(matches) = parameters.matches() {
            prop_assert!(parameters.fields.len() <= 2);
            let again = ReceiveFilterParameters::new(parameters.vport_id, matches);
            prop_assert_eq!(again.matches(), Ok(matches));
        }
    }
}

const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 7]);

fn filter(fields: Vec<FieldParameters>) -> ReceiveFilterParameters {
    let mut parameters = ReceiveFilterParameters::new(VPortId::DEFAULT, FilterMatch::untagged(MAC));
    parameters.fields = fields;
    parameters
}

#[test]
fn set_filter_has_the_published_layout() {
    let vlan = VlanId::new(0x123).unwrap();
    let vport = VPortId::new(3).unwrap();
    let parameters = ReceiveFilterParameters::new(vport, FilterMatch::on_vlan(MAC, vlan));
    let bytes = parameters.emit();
    assert_eq!(bytes.len(), 44 + 2 * 56);
    assert_eq!(bytes[..12], [0x80, 2, 44, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(bytes[20..32], [44, 0, 0, 0, 2, 0, 0, 0, 56, 0, 0, 0]);
    assert_eq!(bytes[40..48], [3, 0, 0, 0, 0x80, 1, 56, 0]);
    assert_eq!(bytes[52..64], [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(bytes[68..74], MAC.octets());
    assert_eq!(bytes[116..120], [4, 0, 0, 0]);
    assert_eq!(bytes[124..126], [0x23, 0x01]);
    let revision_1 = parameters.emit_as(1);
    assert_eq!(revision_1.len(), 36 + 2 * 56);
    assert_meaning(
        &revision_1,
        &ReceiveFilterParameters { vport_id: VPortId::DEFAULT, ..parameters },
    );
}

#[test]
fn tests_that_sriov_does_not_define_are_refused() {
    let destination = FieldParameters::destination_is(MAC);
    let vlan = FieldParameters::vlan_is(VlanId::new(5).unwrap());
    let untagged = FieldParameters { flags: FieldFlags::VLAN_UNTAGGED_OR_ZERO, ..destination };
    let refused = |fields: Vec<FieldParameters>| match filter(fields).matches().unwrap_err() {
        ParseError::Member { member, .. } => member,
        error => panic!("{error}"),
    };
    assert_eq!(refused(vec![]), "FieldParametersArrayNumElements");
    assert_eq!(refused(vec![vlan]), "FieldParametersArrayNumElements");
    assert_eq!(refused(vec![destination, destination]), "HeaderField");
    assert_eq!(refused(vec![destination, vlan, vlan]), "HeaderField");
    assert_eq!(refused(vec![untagged, vlan]), "Flags");
    let source = FieldParameters { field: MacHeaderField::SourceAddress, ..destination };
    assert_eq!(refused(vec![destination, source]), "HeaderField");
    let masked = FieldParameters { test: FilterTest::MaskEqual, ..destination };
    assert_eq!(refused(vec![masked]), "ReceiveFilterTest");
    for id in [0_u16, 4095, 0xFFFF] {
        let mut zero = vlan;
        zero.value[..2].copy_from_slice(&id.to_le_bytes());
        assert_eq!(refused(vec![destination, zero]), "FieldValue", "VLAN {id}");
    }
}

#[test]
fn headers_other_than_the_mac_header_are_refused() {
    let mut bytes = FieldParameters::destination_is(MAC).emit();
    bytes[8] = 3;
    let error = FieldParameters::parse(&bytes).unwrap_err();
    assert!(matches!(error, ParseError::Member { member: "FrameHeader", .. }), "{error}");
}

#[test]
fn an_enumeration_of_revision_1_asks_for_all_vports() {
    let vport = Some(VPortId::new(4).unwrap());
    let request = ReceiveFilterInfoArray { vport, ..Default::default() };
    assert_eq!(request.emit().len(), 28);
    let revision_1 = request.emit_as(1);
    assert_eq!(revision_1.len(), 20);
    assert_meaning(&revision_1, &ReceiveFilterInfoArray::default());
}
