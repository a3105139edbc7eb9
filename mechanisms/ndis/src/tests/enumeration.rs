//! Queries and enumerations answered from the cache (SPEC-NDIS-SRIOV §5.1–§5.13, §5.21, §6.4).

use ndis_protocol::*;
use pcivirt_protocol::Luid;

use crate::testing::*;

/// Two VFs of which one has a VPort, a PF VPort, and three filters.
fn populated() -> Bench {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    bench.allocate_vf("vm2").unwrap();
    let vf_vport = bench.create_vf_vport(vf, 3).unwrap();
    let pf = VPortParameters {
        name: Name::new("queue of vm3").unwrap(),
        processor_affinity: GroupAffinity { mask: 0x10, group: 0 },
        interrupt_moderation: InterruptModeration::High,
        ..VPortParameters::new(FunctionId::Pf, 1)
    };
    bench.create_vport(&pf).unwrap();
    let vlan = VlanId::new(7).unwrap();
    bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(1))).unwrap();
    bench.set_filter(vf_vport, FilterMatch::on_vlan(mac(2), vlan)).unwrap();
    bench.set_filter(vf_vport, FilterMatch::untagged(mac(3))).unwrap();
    bench.calls();
    bench
}

#[test]
fn the_switch_tells_how_much_of_it_is_in_use() {
    let mut bench = populated();
    let switches: NicSwitchInfoArray = bench.query(Oid::NicSwitchEnumSwitches).unwrap();
    assert_eq!(
        switches.elements,
        [NicSwitchInfo {
            switch_type: SwitchType::External,
            switch_id: SwitchId::DEFAULT,
            name: Name::new("Default Switch").unwrap(),
            num_vfs: 4,
            num_allocated_vfs: 2,
            num_vports: 8,
            num_active_vports: 3,
            num_queue_pairs_for_default_vport: 1,
            num_queue_pairs_for_non_default_vports: 4,
            num_active_default_vport_mac_addresses: 1,
            num_active_non_default_vport_mac_addresses: 2,
            num_active_default_vport_vlan_ids: 0,
            num_active_non_default_vport_vlan_ids: 1,
        }]
    );
    assert_eq!(bench.calls(), [""; 0], "the driver is not asked");
}

#[test]
fn vports_are_listed_all_or_by_function_or_by_switch() {
    let mut bench = populated();
    let mut list = |function, switch| -> Vec<(u32, u32)> {
        let request = VPortInfoArray { function, switch, elements: Vec::new() };
        let answer = bench.method(Oid::NicSwitchEnumVports, &request).unwrap();
        assert_eq!((answer.function, answer.switch), (function, switch));
        answer.elements.iter().map(|info| (info.vport_id.get(), info.num_filters)).collect()
    };
    assert_eq!(list(None, None), [(0, 1), (1, 2), (2, 0)]);
    assert_eq!(list(None, Some(SwitchId::DEFAULT)), [(0, 1), (1, 2), (2, 0)]);
    assert_eq!(list(Some(FunctionId::Pf), None), [(0, 1), (2, 0)]);
    assert_eq!(list(Some(FunctionId::Vf(vf_id(0))), None), [(1, 2)]);
    assert_eq!(list(Some(FunctionId::Vf(vf_id(1))), None), []);
    let request = VPortInfoArray { switch: SwitchId::new(1), ..Default::default() };
    assert_eq!(
        bench.method(Oid::NicSwitchEnumVports, &request),
        Err(NdisStatus::INVALID_PARAMETER)
    );
}

#[test]
fn a_vport_is_queried_in_the_revision_asked_with() {
    let mut bench = populated();
    let mut key = VPortParameters::new(FunctionId::Pf, 0);
    key.vport_id = vport_id(2);
    for (revision, size) in [(1, 572), (2, 748)] {
        let completion = bench.send(
            Oid::NicSwitchVportParameters,
            RequestKind::Method,
            &key.emit_as(revision),
            size,
        );
        assert_eq!(completion.output.len(), size);
        let answer = VPortParameters::parse(&completion.output).unwrap();
        assert_eq!(answer.name.as_str(), "queue of vm3");
        assert_eq!(answer.interrupt_moderation, InterruptModeration::High);
        assert_eq!(answer.state, VPortState::Deactivated);
    }
    key.vport_id = vport_id(9);
    assert_eq!(
        bench.method(Oid::NicSwitchVportParameters, &key),
        Err(NdisStatus::INVALID_PARAMETER)
    );
}

#[test]
fn allocated_vfs_are_listed_and_queried() {
    let mut bench = populated();
    let answer = bench.method(Oid::NicSwitchEnumVfs, &VfInfoArray::default()).unwrap();
    let listed: Vec<_> =
        answer.elements.iter().map(|vf| (vf.vf_id.get(), vf.owner.vm_name.as_str())).collect();
    assert_eq!(listed, [(0, "vm1"), (1, "vm2")]);

    let mut key = vf_request("", 0);
    key.vf_id = Some(vf_id(1));
    let answer = bench.method(Oid::NicSwitchVfParameters, &key).unwrap();
    assert_eq!(answer.owner, vf_request("vm2", b'2').owner);
    assert_eq!(answer.requestor_id.unwrap().to_string(), "0000:03:00.3");
    for unknown in [Some(vf_id(2)), None] {
        key.vf_id = unknown;
        assert_eq!(
            bench.method(Oid::NicSwitchVfParameters, &key),
            Err(NdisStatus::INVALID_PARAMETER)
        );
    }
}

#[test]
fn filters_are_listed_all_or_by_vport_and_queried_with_their_tests() {
    let mut bench = populated();
    let mut list = |vport| -> Vec<u32> {
        let request = ReceiveFilterInfoArray { vport, ..Default::default() };
        let answer = bench.method(Oid::ReceiveFilterEnumFilters, &request).unwrap();
        answer.elements.iter().map(|filter| filter.filter_id.get()).collect()
    };
    assert_eq!(list(None), [1, 2, 3]);
    assert_eq!(list(Some(vport_id(1))), [2, 3]);
    assert_eq!(list(Some(VPortId::DEFAULT)), [1]);
    assert_eq!(list(Some(vport_id(2))), []);

    let mut key = ReceiveFilterParameters::new(VPortId::DEFAULT, FilterMatch::untagged(mac(0)));
    key.filter_id = Some(filter_id(2));
    let answer = bench.method(Oid::ReceiveFilterParameters, &key).unwrap();
    assert_eq!(answer.matches(), Ok(FilterMatch::on_vlan(mac(2), VlanId::new(7).unwrap())));
    assert_eq!(answer.vport_id, vport_id(1));
    key.filter_id = Some(filter_id(4));
    assert_eq!(
        bench.method(Oid::ReceiveFilterParameters, &key),
        Err(NdisStatus::INVALID_PARAMETER)
    );
}

#[test]
fn an_answer_that_has_no_room_says_what_it_takes() {
    let mut bench = populated();
    let requests: [(Oid, Vec<u8>, u32); 8] = [
        (Oid::NicSwitchEnumSwitches, vec![], 16 + 572),
        (Oid::NicSwitchEnumVports, VPortInfoArray::default().emit(), 28 + 3 * 576),
        (Oid::NicSwitchEnumVfs, VfInfoArray::default().emit(), 24 + 2 * 1632),
        (Oid::ReceiveFilterEnumFilters, ReceiveFilterInfoArray::default().emit(), 28 + 3 * 16),
        (Oid::ReceiveFilterEnumFilters, ReceiveFilterInfoArray::default().emit_as(1), 20 + 3 * 16),
        (Oid::SriovPfLuid, vec![], 12),
        (Oid::NicSwitchHardwareCapabilities, vec![], 132),
        (Oid::ReceiveFilterCurrentCapabilities, vec![], 84),
    ];
    for (oid, input, size) in requests {
        let kind = oid.kinds()[0];
        let completion = bench.send(oid, kind, &input, size as usize - 1);
        assert_eq!(completion.status, NdisStatus::INVALID_LENGTH, "{oid}");
        assert_eq!(completion.bytes_needed, size, "{oid}");
        let completion = bench.send(oid, kind, &input, size as usize);
        assert_eq!((completion.status, completion.bytes_written), (NdisStatus::SUCCESS, size));
    }
}

#[test]
fn the_pf_tells_its_luid_and_capabilities() {
    let mut bench = populated();
    let luid: SriovPfLuid = bench.query(Oid::SriovPfLuid).unwrap();
    assert_eq!(luid.luid, Luid::from_u64(0x1234_5678_9ABC));
    for oid in [Oid::SriovHardwareCapabilities, Oid::SriovCurrentCapabilities] {
        assert_eq!(bench.query::<SriovCapabilities>(oid), Ok(SriovCapabilities::PF));
    }
    let global: ReceiveFilterGlobalParameters =
        bench.query(Oid::ReceiveFilterGlobalParameters).unwrap();
    assert_eq!(global.enabled_filter_types, FilterTypes::VMQ_FILTERS_ENABLED);
    assert_eq!(global.enabled_queue_types, QueueTypes::empty());
}

#[test]
fn the_switch_is_queried_by_id() {
    let mut bench = populated();
    let key = NicSwitchParameters::default();
    let answer = bench.method(Oid::NicSwitchParameters, &key).unwrap();
    assert_eq!((answer.num_vfs, answer.num_queue_pairs_for_default_vport), (4, None));
    let key = NicSwitchParameters { num_queue_pairs_for_default_vport: Some(0), ..key };
    let answer = bench.method(Oid::NicSwitchParameters, &key).unwrap();
    assert_eq!(answer.num_queue_pairs_for_default_vport, Some(1), "asked with revision 2");
    let key = NicSwitchParameters { switch_id: SwitchId::new(3).unwrap(), ..key };
    assert_eq!(bench.method(Oid::NicSwitchParameters, &key), Err(NdisStatus::INVALID_PARAMETER));
}
