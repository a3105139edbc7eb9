//! Out of VFs, VPorts, queue pairs or filters: the published status, a clear line, and nothing has changed.

use ndis_protocol::*;

use crate::testing::*;
use crate::{Keywords, Refusal};

fn refusal(completion: crate::OidCompletion) -> (NdisStatus, String) {
    (completion.status, completion.refusal.as_ref().map(Refusal::to_string).unwrap_or_default())
}

#[test]
fn out_of_vfs() {
    let mut bench =
        Bench::with(sample_hardware(), Keywords { num_vfs: Some(2), ..sriov_keywords() });
    bench.allocate_vf("vm1").unwrap();
    bench.allocate_vf("vm2").unwrap();
    let input = vf_request("vm3", 3).emit();
    let completion = bench.send(Oid::NicSwitchAllocateVf, RequestKind::Method, &input, 1632);
    let (status, why) = refusal(completion);
    assert_eq!(status, NdisStatus::RESOURCES);
    assert_eq!(why, r"all 2 VFs are allocated; free one or raise NicSwitches\0\*NumVFs");
    bench.free_vf(vf_id(0)).unwrap();
    assert_eq!(bench.allocate_vf("vm3"), Ok(vf_id(0)));
}

fn pf_vport(pairs: u32) -> VPortParameters {
    VPortParameters {
        processor_affinity: GroupAffinity { mask: 1, group: 0 },
        ..VPortParameters::new(FunctionId::Pf, pairs)
    }
}

#[test]
fn vports_of_vfs_are_reserved_without_a_single_pool() {
    let mut bench = Bench::new();
    for id in 1..=3 {
        assert_eq!(bench.create_vport(&pf_vport(1)), Ok(vport_id(id)));
    }
    let input = pf_vport(1).emit();
    let (status, why) =
        refusal(bench.send(Oid::NicSwitchCreateVport, RequestKind::Method, &input, 1024));
    assert_eq!(status, NdisStatus::RESOURCES);
    assert_eq!(why, "all 3 nondefault VPorts of the PF are in use; delete one");
    for vm in ["a", "b", "c", "d"] {
        let vf = bench.allocate_vf(vm).unwrap();
        bench.create_vf_vport(vf, 1).expect("every VF finds a VPort");
    }
}

#[test]
fn with_a_single_pool_a_vf_can_come_away_empty() {
    let mut hardware = sample_hardware();
    hardware.nic_switch.flags |= NicSwitchCapabilityFlags::SINGLE_VPORT_POOL;
    let mut bench = Bench::with(hardware, sriov_keywords());
    for _ in 0..7 {
        bench.create_vport(&pf_vport(1)).unwrap();
    }
    let vf = bench.allocate_vf("vm1").unwrap();
    assert_eq!(bench.create_vf_vport(vf, 1), Err(NdisStatus::RESOURCES));
    bench.delete_vport(vport_id(4)).unwrap();
    assert_eq!(bench.create_vf_vport(vf, 1), Ok(vport_id(4)), "the lowest free id");
}

#[test]
fn out_of_queue_pairs() {
    let mut bench = Bench::new();
    for vm in ["a", "b", "c"] {
        let vf = bench.allocate_vf(vm).unwrap();
        bench.create_vf_vport(vf, 4).unwrap();
    }
    let vf = bench.allocate_vf("d").unwrap();
    let input = VPortParameters::new(FunctionId::Vf(vf), 4).emit();
    let (status, why) =
        refusal(bench.send(Oid::NicSwitchCreateVport, RequestKind::Method, &input, 1024));
    assert_eq!(status, NdisStatus::RESOURCES);
    assert_eq!(
        why,
        "4 queue pairs were asked for and 3 of 16 are free; ask for fewer or delete a VPort"
    );
    bench.create_vf_vport(vf, 3).expect("what is free can be had");
}

#[test]
fn out_of_filters() {
    let mut bench = Bench::new();
    let first = bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(0))).unwrap();
    for last in 1..12 {
        bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(last))).unwrap();
    }
    let input =
        ReceiveFilterParameters::new(VPortId::DEFAULT, FilterMatch::untagged(mac(12))).emit();
    let (status, why) =
        refusal(bench.send(Oid::ReceiveFilterSetFilter, RequestKind::Method, &input, 1024));
    assert_eq!(status, NdisStatus::FAILURE, "RESOURCES is not a status of SET_FILTER");
    assert_eq!(why, "all 12 receive filters are set; clear one");
    bench.clear_filter(first).unwrap();
    assert_eq!(
        bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(12))),
        Ok(filter_id(13)),
        "an id that was used is not given again at once"
    );
}

#[test]
fn symmetric_hardware_gives_all_nondefault_vports_the_same() {
    let mut hardware = sample_hardware();
    hardware
        .nic_switch
        .flags
        .remove(NicSwitchCapabilityFlags::ASYMMETRIC_QUEUE_PAIRS_FOR_NONDEFAULT_VPORT);
    let mut bench = Bench::with(hardware, sriov_keywords());
    let vf = bench.allocate_vf("a").unwrap();
    let first = bench.create_vf_vport(vf, 2).unwrap();
    let vf = bench.allocate_vf("b").unwrap();
    let input = VPortParameters::new(FunctionId::Vf(vf), 1).emit();
    let (status, why) =
        refusal(bench.send(Oid::NicSwitchCreateVport, RequestKind::Method, &input, 1024));
    assert_eq!(status, NdisStatus::INVALID_PARAMETER);
    assert_eq!(
        why,
        "1 queue pairs cannot be: this card gives all nondefault VPorts the same number (2)"
    );
    bench.create_vf_vport(vf, 2).unwrap();
    bench.delete_vport(first).unwrap();
}

/// The published example: 128 queue pairs, 64 VPorts, at most 4 pairs per nondefault VPort, symmetric.
#[test]
fn symmetric_assignment_has_63_vports_of_2_pairs_or_31_of_4() {
    for (pairs, vports) in [(2, 63), (4, 31)] {
        let mut hardware = sample_hardware();
        let switch = &mut hardware.nic_switch;
        switch.flags = NicSwitchCapabilityFlags::SINGLE_VPORT_POOL;
        switch.max_num_vports = 64;
        switch.max_num_vfs = 63;
        switch.max_num_queue_pairs = 128;
        switch.max_num_mac_addresses = 64;
        let mut bench = Bench::with(hardware, sriov_keywords());
        let mut created = 0;
        let refused = loop {
            match bench.create_vport(&pf_vport(pairs)) {
                Ok(_) => created += 1,
                Err(status) => break status,
            }
        };
        assert_eq!((created, refused), (vports, NdisStatus::RESOURCES));
    }
}
