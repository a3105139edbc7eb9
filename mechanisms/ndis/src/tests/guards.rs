//! Bad requests get the published status and change nothing: the guard table of SPEC-NDIS-SRIOV §4, §5 and §6.
//! [`Bench::send`] checks the "nothing" of every refusal.

use ndis_protocol::*;
use pcivirt_protocol::DevicePowerState;

use crate::testing::*;
use crate::{Keywords, OidCompletion};

const BAD: NdisStatus = NdisStatus::INVALID_PARAMETER;
const NOT_SUPPORTED: NdisStatus = NdisStatus::NOT_SUPPORTED;
const NOT_FOUND: NdisStatus = NdisStatus::FILE_NOT_FOUND;

fn affine(mask: u64) -> GroupAffinity {
    GroupAffinity { mask, group: 0 }
}

#[test]
fn oids_are_asked_as_published_by_whom_published() {
    let mut bench = Bench::new();
    let all =
        [RequestKind::Query, RequestKind::Set, RequestKind::QueryStatistics, RequestKind::Method];
    for oid in Oid::ALL {
        for kind in all {
            let completion = bench.send(*oid, kind, &[], 0);
            let refused = oid.issuer() != Issuer::Overlying || !oid.allows(kind);
            if refused {
                assert_eq!(completion.status, NOT_SUPPORTED, "{oid} {kind}");
            }
            assert_ne!(completion.status, NdisStatus::SUCCESS, "{oid} {kind} with no buffer");
        }
    }
    let stack = driver("stack");
    let unknown = bench.ndis.oid_request(&stack, 0x0001_0101, RequestKind::Query, &[], 64);
    assert_eq!(unknown.status, NdisStatus::INVALID_OID);
}

#[test]
fn vm_queues_are_not_supported_with_sriov() {
    let mut bench = Bench::new();
    for oid in [
        Oid::ReceiveFilterAllocateQueue,
        Oid::ReceiveFilterFreeQueue,
        Oid::ReceiveFilterEnumQueues,
        Oid::ReceiveFilterQueueParameters,
        Oid::ReceiveFilterQueueAllocationComplete,
    ] {
        let input = ReceiveQueueParameters::default().emit();
        let completion = bench.send(oid, oid.kinds()[0], &input, 4096);
        assert_eq!(completion.status, NOT_SUPPORTED);
        let why = completion.refusal.unwrap().to_string();
        assert!(why.contains("VPorts take the place of VM queues"), "{why}");
    }
}

#[test]
fn truncated_requests_say_what_they_take() {
    let mut bench = Bench::new();
    let vf_id = bench.allocate_vf("vm1").unwrap();
    let filter = ReceiveFilterParameters::new(VPortId::DEFAULT, FilterMatch::untagged(mac(1)));
    let write = SriovWriteVfConfigSpace { vf_id, offset: 0, data: vec![0; 4] };
    let requests: [(Oid, RequestKind, Vec<u8>); 9] = [
        (
            Oid::NicSwitchCreateVport,
            RequestKind::Method,
            VPortParameters::new(vf_id.into(), 1).emit(),
        ),
        (Oid::NicSwitchVportParameters, RequestKind::Set, VPortChange::default().emit()),
        (Oid::NicSwitchAllocateVf, RequestKind::Method, vf_request("vm2", 2).emit()),
        (Oid::NicSwitchFreeVf, RequestKind::Set, NicSwitchFreeVfParameters { vf_id }.emit()),
        (Oid::SriovResetVf, RequestKind::Set, SriovResetVf { vf_id }.emit()),
        (Oid::SriovWriteVfConfigSpace, RequestKind::Set, write.emit()),
        (Oid::ReceiveFilterSetFilter, RequestKind::Method, filter.emit()),
        (Oid::NicSwitchEnumVfs, RequestKind::Method, VfInfoArray::default().emit()),
        (
            Oid::SriovVfVendorDeviceId,
            RequestKind::Method,
            SriovVfVendorDeviceId { vf_id, vendor_id: 0, device_id: 0 }.emit(),
        ),
    ];
    bench.calls();
    for (oid, kind, input) in requests {
        for length in [0, 3, input.len() - 1] {
            let OidCompletion { status, bytes_needed, .. } =
                bench.send(oid, kind, &input[..length], 4096);
            assert_eq!(status, NdisStatus::INVALID_LENGTH, "{oid} with {length} bytes");
            assert!(bytes_needed as usize > length, "{oid} needs {bytes_needed}");
        }
    }
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn methods_without_room_for_their_answer_do_nothing() {
    let mut bench = Bench::new();
    let vf_id = bench.allocate_vf("vm1").unwrap();
    let filter = ReceiveFilterParameters::new(VPortId::DEFAULT, FilterMatch::untagged(mac(1)));
    let read = SriovReadVfConfigSpace { vf_id, offset: 0, length: 4, buffer_offset: 20 };
    let block = SriovReadVfConfigBlock { vf_id, block_id: 0, length: 8, buffer_offset: 30 };
    let ids = SriovVfVendorDeviceId { vf_id, vendor_id: 0, device_id: 0 };
    bench.calls();
    for (oid, input, needed) in [
        (Oid::NicSwitchCreateVport, VPortParameters::new(vf_id.into(), 1).emit(), 572),
        (Oid::NicSwitchCreateVport, VPortParameters::new(vf_id.into(), 1).emit_as(2), 748),
        (Oid::NicSwitchAllocateVf, vf_request("vm2", 2).emit(), 1632),
        (Oid::ReceiveFilterSetFilter, filter.emit(), 44 + 56),
        (Oid::ReceiveFilterSetFilter, filter.emit_as(1), 36 + 56),
        (Oid::SriovReadVfConfigSpace, read.emit(), 24),
        (Oid::SriovReadVfConfigBlock, block.emit(), 38),
        (Oid::SriovVfVendorDeviceId, ids.emit(), 10),
    ] {
        let completion = bench.send(oid, RequestKind::Method, &input, needed as usize - 1);
        assert_eq!(completion.status, NdisStatus::INVALID_LENGTH, "{oid}");
        assert_eq!(completion.bytes_needed, needed, "{oid}");
    }
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn create_vport_is_guarded() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let good = VPortParameters::new(FunctionId::Vf(vf), 1);
    let pf = VPortParameters {
        processor_affinity: affine(1),
        ..VPortParameters::new(FunctionId::Pf, 1)
    };
    let mut refused = |why: &str, status, change: &dyn Fn(&mut VPortParameters)| {
        for base in [&good, &pf] {
            let mut parameters = base.clone();
            change(&mut parameters);
            if parameters != *base {
                assert_eq!(bench.create_vport(&parameters), Err(status), "{why}");
            }
        }
    };
    refused("another switch", BAD, &|p| p.switch_id = SwitchId::new(1).unwrap());
    refused("a VPort id", BAD, &|p| p.vport_id = vport_id(1));
    refused("a VF that is not allocated", BAD, &|p| p.attached_function = vf_id(1).into());
    refused("no queue pairs", BAD, &|p| p.num_queue_pairs = 0);
    refused("too many queue pairs", BAD, &|p| p.num_queue_pairs = 5);
    refused("a lookahead size", BAD, &|p| p.lookahead_size = 1);
    refused("PacketDirect", NOT_SUPPORTED, &|p| p.flags = VPortFlags::PACKET_DIRECT_RX_ONLY);
    let rdma = VPortExtension { ndk_parameters: NdkParameters([1; 168]), qos_sq_id: 0 };
    refused("RDMA", NOT_SUPPORTED, &|p| p.extension = Some(rdma));
    let qos = VPortExtension { ndk_parameters: NdkParameters::NONE, qos_sq_id: 1 };
    refused("QoS", NOT_SUPPORTED, &|p| p.extension = Some(qos));
    refused("an inactive VF VPort", BAD, &|p| {
        if p.attached_function != FunctionId::Pf {
            p.state = VPortState::Deactivated;
        }
    });
    refused("processors of a VF VPort", BAD, &|p| {
        if p.attached_function != FunctionId::Pf {
            p.processor_affinity = affine(2);
        }
    });
    refused("an active PF VPort", BAD, &|p| {
        if p.attached_function == FunctionId::Pf {
            p.state = VPortState::Activated;
        }
    });
    refused("a PF VPort without processor", BAD, &|p| {
        if p.attached_function == FunctionId::Pf {
            p.processor_affinity = affine(0);
        }
    });
    bench.create_vport(&good).unwrap();
    assert_eq!(bench.create_vport(&good), Err(BAD), "the VF has a VPort already");
    bench.create_vport(&VPortParameters { processor_affinity: affine(6), ..pf }).unwrap();
}

#[test]
fn without_rss_on_pf_vports_exactly_one_processor_serves_one() {
    let keywords = Keywords { rss_on_host_vports: false, ..sriov_keywords() };
    let mut bench = Bench::with(sample_hardware(), keywords);
    let with = |mask| VPortParameters {
        processor_affinity: affine(mask),
        ..VPortParameters::new(FunctionId::Pf, 1)
    };
    assert_eq!(bench.create_vport(&with(3)), Err(BAD));
    let vport = bench.create_vport(&with(2)).unwrap();
    let grow = VPortChange { num_queue_pairs: Some(2), ..VPortChange::new(vport) };
    assert_eq!(bench.set(Oid::NicSwitchVportParameters, &grow), Err(BAD));
}

#[test]
fn moderation_per_vport_needs_a_card_that_does_it() {
    let mut hardware = sample_hardware();
    hardware.nic_switch.flags.remove(NicSwitchCapabilityFlags::PER_VPORT_INTERRUPT_MODERATION);
    let mut bench = Bench::with(hardware, sriov_keywords());
    let vf = bench.allocate_vf("vm1").unwrap();
    let mut parameters = VPortParameters::new(FunctionId::Vf(vf), 1);
    parameters.interrupt_moderation = InterruptModeration::Low;
    assert_eq!(bench.create_vport(&parameters), Err(NOT_SUPPORTED));
    let vport = bench.create_vf_vport(vf, 1).unwrap();
    let change = VPortChange {
        interrupt_moderation: Some(InterruptModeration::Low),
        ..VPortChange::new(vport)
    };
    assert_eq!(bench.set(Oid::NicSwitchVportParameters, &change), Err(NOT_SUPPORTED));
}

#[test]
fn only_the_changeable_members_of_a_vport_change() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let of_vf = bench.create_vf_vport(vf, 1).unwrap();
    let of_pf = bench
        .create_vport(&VPortParameters {
            processor_affinity: affine(1),
            ..VPortParameters::new(FunctionId::Pf, 1)
        })
        .unwrap();
    bench.calls();
    let none = VPortChange::default();
    let refused_for_all = [
        VPortChange { flags: Some(VPortFlags::empty()), ..none.clone() },
        VPortChange { ndk_parameters: Some(NdkParameters::NONE), ..none.clone() },
        VPortChange { qos_sq_id: Some(0), ..none.clone() },
        VPortChange { state: Some(VPortState::Deactivated), ..none.clone() },
        VPortChange { state: Some(VPortState::Undefined), ..none.clone() },
        VPortChange { num_queue_pairs: Some(0), ..none.clone() },
        VPortChange { num_queue_pairs: Some(99), ..none.clone() },
    ];
    for change in refused_for_all {
        for vport_id in [VPortId::DEFAULT, of_vf, of_pf] {
            let change = VPortChange { vport_id, ..change.clone() };
            assert_eq!(bench.set(Oid::NicSwitchVportParameters, &change), Err(BAD), "{change:?}");
        }
    }
    for change in [
        VPortChange { processor_affinity: Some(affine(1)), ..VPortChange::new(of_vf) },
        VPortChange { num_queue_pairs: Some(2), ..VPortChange::new(of_vf) },
        VPortChange { processor_affinity: Some(affine(0)), ..VPortChange::new(of_pf) },
        VPortChange::new(vport_id(7)),
    ] {
        assert_eq!(bench.set(Oid::NicSwitchVportParameters, &change), Err(BAD), "{change:?}");
    }
    assert_eq!(bench.calls(), [""; 0]);

    let all = VPortChange {
        name: Some(Name::new("renamed").unwrap()),
        interrupt_moderation: Some(InterruptModeration::Adaptive),
        state: Some(VPortState::Activated),
        processor_affinity: Some(affine(0xC)),
        num_queue_pairs: Some(2),
        ..VPortChange::new(of_pf)
    };
    bench.set(Oid::NicSwitchVportParameters, &all).unwrap();
    let parameters = &bench.ndis.cache().vport(of_pf).unwrap().parameters;
    assert_eq!(
        *parameters,
        VPortParameters {
            vport_id: of_pf,
            name: Name::new("renamed").unwrap(),
            interrupt_moderation: InterruptModeration::Adaptive,
            state: VPortState::Activated,
            processor_affinity: affine(0xC),
            ..VPortParameters::new(FunctionId::Pf, 2)
        }
    );
    let default = VPortChange { num_queue_pairs: Some(4), ..VPortChange::new(VPortId::DEFAULT) };
    bench.set(Oid::NicSwitchVportParameters, &default).unwrap();
}

#[test]
fn delete_vport_is_guarded() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 1).unwrap();
    let filter = bench.set_filter(vport, FilterMatch::untagged(mac(1))).unwrap();
    assert_eq!(bench.delete_vport(VPortId::DEFAULT), Err(BAD));
    assert_eq!(bench.delete_vport(vport_id(2)), Err(BAD));
    assert_eq!(bench.delete_vport(vport), Err(BAD), "a filter is left");
    bench.move_filter(filter, vport, VPortId::DEFAULT).unwrap();
    bench.delete_vport(vport).unwrap();
    assert_eq!(bench.delete_vport(vport), Err(BAD), "it is gone");
}

#[test]
fn allocate_vf_is_guarded() {
    let mut bench = Bench::new();
    let good = vf_request("vm1", 1);
    for (why, bad) in [
        ("another switch", VfParameters { switch_id: SwitchId::new(1).unwrap(), ..good.clone() }),
        ("a VF id", VfParameters { vf_id: Some(vf_id(0)), ..good.clone() }),
        (
            "a requestor id",
            VfParameters { requestor_id: RequestorId::new(0, 1, 2), ..good.clone() },
        ),
        ("no address", {
            let mut bad = good.clone();
            bad.owner.permanent_mac = MacAddress::ZERO;
            bad
        }),
        ("a group address", {
            let mut bad = good.clone();
            bad.owner.current_mac = MacAddress::BROADCAST;
            bad
        }),
    ] {
        assert_eq!(bench.method(Oid::NicSwitchAllocateVf, &bad), Err(BAD), "{why}");
    }
    let mut bytes = good.emit();
    bytes[4] = 1;
    let completion = bench.send(Oid::NicSwitchAllocateVf, RequestKind::Method, &bytes, 1632);
    assert_eq!(completion.status, BAD, "reserved flags");
}

#[test]
fn free_vf_answers_bad_ids_with_file_not_found() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 1).unwrap();
    assert_eq!(bench.free_vf(vf), Err(NOT_FOUND), "a VPort is attached");
    assert_eq!(bench.free_vf(vf_id(3)), Err(NOT_FOUND), "not allocated");
    assert_eq!(bench.free_vf(vf_id(99)), Err(NOT_FOUND), "unknown");
    bench.delete_vport(vport).unwrap();
    bench.free_vf(vf).unwrap();
    assert_eq!(bench.free_vf(vf), Err(NOT_FOUND), "freed");
}

#[test]
fn requests_about_a_vf_need_an_allocated_one_and_stay_in_bounds() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let stranger = vf_id(1);
    bench.calls();
    assert_eq!(bench.reset_vf(stranger), Err(BAD));
    let power = SriovSetVfPowerState {
        vf_id: stranger,
        power_state: DevicePowerState::D3,
        wake_enable: false,
    };
    assert_eq!(bench.set(Oid::SriovSetVfPowerState, &power), Err(BAD));
    let ids = SriovVfVendorDeviceId { vf_id: stranger, vendor_id: 0, device_id: 0 };
    assert_eq!(bench.method(Oid::SriovVfVendorDeviceId, &ids), Err(BAD));

    for (vf_id, offset, length, buffer_offset) in [
        (stranger, 0, 4, 20),
        (vf, 0, 0, 20),
        (vf, 4093, 4, 20),
        (vf, 0, 4097, 20),
        (vf, u32::MAX, 1, 20),
        (vf, 1, u32::MAX, 20),
        (vf, 0, 4, 4097),
    ] {
        let read = SriovReadVfConfigSpace { vf_id, offset, length, buffer_offset };
        let completion =
            bench.send(Oid::SriovReadVfConfigSpace, RequestKind::Method, &read.emit(), 1 << 20);
        assert_eq!(completion.status, BAD, "{read:?}");
    }
    let write = SriovWriteVfConfigSpace { vf_id: vf, offset: 4095, data: vec![0; 2] };
    assert_eq!(bench.set(Oid::SriovWriteVfConfigSpace, &write), Err(BAD));
    for length in [0, 129] {
        let data = vec![0; length as usize];
        let write = SriovWriteVfConfigBlock { vf_id: vf, block_id: 0, data };
        assert_eq!(bench.set(Oid::SriovWriteVfConfigBlock, &write), Err(BAD));
        let read = SriovReadVfConfigBlock { vf_id: vf, block_id: 0, length, buffer_offset: 20 };
        let completion =
            bench.send(Oid::SriovReadVfConfigBlock, RequestKind::Method, &read.emit(), 1 << 10);
        assert_eq!(completion.status, BAD);
    }
    assert_eq!(bench.calls(), [""; 0]);

    let power = SriovSetVfPowerState { vf_id: vf, ..power };
    bench.set(Oid::SriovSetVfPowerState, &power).unwrap();
    assert_eq!(bench.calls(), ["set_vf_power_state 0 D3 wake false"]);
}

#[test]
fn set_filter_is_guarded() {
    let mut bench = Bench::new();
    let good = ReceiveFilterParameters::new(VPortId::DEFAULT, FilterMatch::untagged(mac(1)));
    let mut refused = |why: &str, change: &dyn Fn(&mut ReceiveFilterParameters)| {
        let mut bad = good.clone();
        change(&mut bad);
        assert_eq!(bench.method(Oid::ReceiveFilterSetFilter, &bad), Err(BAD), "{why}");
    };
    refused("packet coalescing", &|f| f.filter_type = FilterType::PacketCoalescing);
    refused("another queue", &|f| f.queue_id = 1);
    refused("a filter id", &|f| f.filter_id = Some(filter_id(1)));
    refused("bits of a filter id", &|f| f.requested_filter_id_bit_count = 1);
    refused("an unknown VPort", &|f| f.vport_id = vport_id(1));
    refused("no test", &|f| f.fields.clear());
    refused("another test", &|f| f.fields[0].test = FilterTest::NotEqual);
    refused("another field", &|f| f.fields[0].field = MacHeaderField::SourceAddress);
    refused("no address", &|f| f.fields[0] = FieldParameters::destination_is(MacAddress::ZERO));
    refused("a group address", &|f| {
        f.fields[0] = FieldParameters::destination_is(MacAddress::BROADCAST);
    });
    refused("untagged and a VLAN", &|f| {
        f.fields.push(FieldParameters::vlan_is(VlanId::new(2).unwrap()));
    });
    bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(1))).unwrap();
}

#[test]
fn without_vlan_filtering_filters_go_by_address_alone() {
    let keywords = Keywords { vmq_vlan_filtering: false, ..sriov_keywords() };
    let mut bench = Bench::with(sample_hardware(), keywords);
    let vlan = FilterMatch::on_vlan(mac(1), VlanId::new(5).unwrap());
    assert_eq!(bench.set_filter(VPortId::DEFAULT, vlan), Err(NOT_SUPPORTED));
    let untagged = FilterMatch::untagged(mac(1));
    assert_eq!(bench.set_filter(VPortId::DEFAULT, untagged), Err(NOT_SUPPORTED));
    let any = FilterMatch { mac: mac(1), vlan: VlanCondition::Any, inner: false };
    bench.set_filter(VPortId::DEFAULT, any).unwrap();
}

#[test]
fn a_filter_of_revision_1_is_one_of_the_default_vport() {
    let mut bench = Bench::new();
    let filter = ReceiveFilterParameters::new(VPortId::DEFAULT, FilterMatch::untagged(mac(1)));
    let input = filter.emit_as(1);
    let completion =
        bench.send(Oid::ReceiveFilterSetFilter, RequestKind::Method, &input, input.len());
    let answer = ReceiveFilterParameters::parse(&completion.output).unwrap();
    assert_eq!((completion.output[1], answer.filter_id), (1, Some(filter_id(1))));
}

#[test]
fn clear_and_move_filter_are_guarded() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 1).unwrap();
    let filter = bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(1))).unwrap();
    bench.calls();
    assert_eq!(bench.clear_filter(filter_id(2)), Err(NOT_FOUND));
    let none = ReceiveFilterClearParameters { queue_id: 0, filter_id: None };
    assert_eq!(bench.set(Oid::ReceiveFilterClearFilter, &none), Err(NOT_FOUND));
    let queue = ReceiveFilterClearParameters { queue_id: 1, filter_id: Some(filter) };
    assert_eq!(bench.set(Oid::ReceiveFilterClearFilter, &queue), Err(BAD));

    let default = VPortId::DEFAULT;
    assert_eq!(bench.move_filter(filter_id(2), default, vport), Err(BAD), "unknown filter");
    assert_eq!(bench.move_filter(filter, vport, default), Err(BAD), "not on the source");
    assert_eq!(bench.move_filter(filter, default, vport_id(5)), Err(BAD), "unknown VPort");
    let good = ReceiveFilterMoveFilterParameters::new(filter, default, vport);
    for bad in [
        ReceiveFilterMoveFilterParameters { source_queue_id: 1, ..good },
        ReceiveFilterMoveFilterParameters { dest_queue_id: 1, ..good },
    ] {
        assert_eq!(bench.set(Oid::ReceiveFilterMoveFilter, &bad), Err(BAD));
    }
    assert_eq!(bench.calls(), [""; 0]);
    bench.move_filter(filter, default, default).unwrap();
    assert_eq!(bench.calls(), [""; 0], "it is there already");
    bench.ndis.miniport_mut().fail = Some((0, NdisStatus::FAILURE));
    assert_eq!(bench.move_filter(filter, default, vport), Err(NdisStatus::FAILURE));
    assert_eq!(bench.ndis.cache().filter(filter).unwrap().parameters.vport_id, default);
}
