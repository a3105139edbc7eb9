//! The published sequences: VF start-up (SPEC-NDIS-SRIOV §11.2), VF teardown (§11.3), and what is left when a step fails.

use ndis_protocol::*;

use crate::testing::*;

/// Steps 2 to 5 of §11.2: returns the VF, its VPort and the moved filter.
fn vf_start_up(bench: &mut Bench) -> (VfId, VPortId, FilterId) {
    let filter = bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(1))).unwrap();
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 2).unwrap();
    bench.move_filter(filter, VPortId::DEFAULT, vport).unwrap();
    (vf, vport, filter)
}

#[test]
fn a_vf_starts_up_in_the_published_order() {
    let mut bench = Bench::new();
    let (vf, vport, filter) = vf_start_up(&mut bench);
    assert_eq!((vf, vport, filter), (vf_id(0), vport_id(1), filter_id(1)));
    assert_eq!(
        bench.calls(),
        [
            "set_filter 1 02:00:00:00:00:01 on VPort 0",
            "allocate_vf for vm1",
            "create_vport 1 on VF 0 with 2 queue pairs",
            "move_filter 1 from VPort 0 to VPort 1",
        ]
    );
    let record = bench.ndis.cache().vport(vport).unwrap();
    assert_eq!(record.parameters.state, VPortState::Activated);
    assert_eq!(bench.ndis.cache().filter(filter).unwrap().parameters.vport_id, vport);
}

#[test]
fn the_allocated_vf_answers_with_its_location() {
    let mut bench = Bench::new();
    let answer = bench.method(Oid::NicSwitchAllocateVf, &vf_request("vm1", 1)).unwrap();
    assert_eq!(answer.vf_id, Some(vf_id(0)));
    assert_eq!(answer.requestor_id.unwrap().to_string(), "0000:03:00.2");
    assert_eq!(answer.owner, vf_request("vm1", 1).owner);
}

#[test]
fn a_vf_is_torn_down_in_the_published_order() {
    let mut bench = Bench::new();
    let started = bench.ndis.cache().clone();
    let (vf, vport, filter) = vf_start_up(&mut bench);
    bench.calls();

    bench.move_filter(filter, vport, VPortId::DEFAULT).unwrap();
    bench.delete_vport(vport).unwrap();
    bench.reset_vf(vf).unwrap();
    bench.free_vf(vf).unwrap();
    assert_eq!(
        bench.calls(),
        ["move_filter 1 from VPort 1 to VPort 0", "delete_vport 1", "reset_vf 0", "free_vf 0"]
    );
    bench.clear_filter(filter).unwrap();
    assert_eq!(bench.ndis.cache().vports().count(), started.vports().count());
    assert_eq!(bench.ndis.cache().vfs().count(), 0);
    assert_eq!(bench.ndis.cache().switch(), started.switch());
}

#[test]
fn a_vf_can_be_given_to_another_vm_after_teardown() {
    let mut bench = Bench::new();
    for round in 0..3 {
        let (vf, vport, filter) = vf_start_up(&mut bench);
        assert_eq!((vf, vport), (vf_id(0), vport_id(1)), "round {round}");
        bench.clear_filter(filter).unwrap();
        bench.delete_vport(vport).unwrap();
        bench.free_vf(vf).unwrap();
    }
}

/// Takes one step back.
type Undo = Box<dyn FnOnce(&mut Bench)>;

#[test]
fn a_step_that_the_driver_fails_leaves_everything_as_it_was() {
    let status = NdisStatus::REQUEST_ABORTED;
    for failing in 0..4 {
        let mut bench = Bench::new();
        let filter = bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(1))).unwrap();
        let synthetic = bench.ndis.cache().clone();
        bench.ndis.miniport_mut().fail = (failing < 3).then_some((failing, status));

        let mut undo: Vec<Undo> = Vec::new();
        let result = (|| -> Answer {
            let vf = bench.allocate_vf("vm1")?;
            undo.push(Box::new(move |bench| bench.free_vf(vf).unwrap()));
            let vport = bench.create_vf_vport(vf, 2)?;
            undo.push(Box::new(move |bench| bench.delete_vport(vport).unwrap()));
            bench.move_filter(filter, VPortId::DEFAULT, vport)?;
            undo.push(Box::new(move |bench| {
                bench.move_filter(filter, vport, VPortId::DEFAULT).unwrap();
            }));
            Ok(())
        })();
        assert_eq!(result, if failing < 3 { Err(status) } else { Ok(()) });
        assert_eq!(undo.len(), failing as usize, "each step so far is to be undone");
        while let Some(step) = undo.pop() {
            step(&mut bench);
        }
        assert_eq!(*bench.ndis.cache(), synthetic, "the VM is on the synthetic path as before");
    }
}

#[test]
fn a_failed_teardown_can_be_repeated_from_where_it_stopped() {
    for failing in 0..4 {
        let mut bench = Bench::new();
        let (vf, vport, filter) = vf_start_up(&mut bench);
        bench.ndis.miniport_mut().fail = Some((failing, NdisStatus::FAILURE));
        let steps: [&dyn Fn(&mut Bench) -> Answer; 4] = [
            &|b| b.move_filter(filter, vport, VPortId::DEFAULT),
            &|b| b.delete_vport(vport),
            &|b| b.reset_vf(vf),
            &|b| b.free_vf(vf),
        ];
        let mut failures = 0;
        for step in steps {
            while step(&mut bench).is_err() {
                failures += 1;
            }
        }
        assert_eq!(failures, 1);
        assert_eq!(bench.ndis.cache().vfs().count(), 0);
    }
}

#[test]
fn an_error_that_is_none_is_a_failure() {
    let mut bench = Bench::new();
    for wrong in [NdisStatus::SUCCESS, NdisStatus::PENDING] {
        bench.ndis.miniport_mut().fail = Some((0, wrong));
        assert_eq!(bench.allocate_vf("vm1"), Err(NdisStatus::FAILURE));
    }
}

#[test]
fn a_driver_that_allocates_a_wrong_vf_is_not_believed() {
    let mut bench = Bench::new();
    bench.ndis.miniport_mut().wrong_vf = Some(4);
    assert_eq!(bench.allocate_vf("vm1"), Err(NdisStatus::FAILURE));
    assert_eq!(bench.calls(), ["allocate_vf for vm1", "free_vf 4"], "it is given back");
}

#[test]
fn a_pf_vport_is_created_deactivated_and_activated_once() {
    let mut bench = Bench::new();
    let parameters = VPortParameters {
        processor_affinity: GroupAffinity { mask: 4, group: 0 },
        ..VPortParameters::new(FunctionId::Pf, 1)
    };
    let vport = bench.create_vport(&parameters).unwrap();
    let state = |bench: &Bench| bench.ndis.cache().vport(vport).unwrap().parameters.state;
    assert_eq!(state(&bench), VPortState::Deactivated);
    let activate = VPortChange { state: Some(VPortState::Activated), ..VPortChange::new(vport) };
    bench.set(Oid::NicSwitchVportParameters, &activate).unwrap();
    assert_eq!(state(&bench), VPortState::Activated);
    bench.calls();
    bench.set(Oid::NicSwitchVportParameters, &activate).unwrap();
    assert_eq!(bench.calls(), [""; 0], "nothing changes, so nobody is asked");
    let deactivate =
        VPortChange { state: Some(VPortState::Deactivated), ..VPortChange::new(vport) };
    assert_eq!(
        bench.set(Oid::NicSwitchVportParameters, &deactivate),
        Err(NdisStatus::INVALID_PARAMETER)
    );
}

#[test]
fn the_guests_configuration_space_and_blocks_go_through() {
    let mut bench = Bench::new();
    let vf_id = bench.allocate_vf("vm1").unwrap();
    let read = SriovReadVfConfigSpace { vf_id, offset: 0x10, length: 4, buffer_offset: 24 };
    let completion = bench.send(Oid::SriovReadVfConfigSpace, RequestKind::Method, &read.emit(), 28);
    assert_eq!(read.data(&completion.output), Some([0x10, 0x11, 0x12, 0x13].as_slice()));
    let write = SriovWriteVfConfigSpace { vf_id, offset: 0xFFF, data: vec![7] };
    bench.set(Oid::SriovWriteVfConfigSpace, &write).unwrap();
    assert_eq!(bench.ndis.miniport().config_space[0xFFF], 7);

    let write = SriovWriteVfConfigBlock { vf_id, block_id: 9, data: vec![0xAB; 128] };
    bench.set(Oid::SriovWriteVfConfigBlock, &write).unwrap();
    let read = SriovReadVfConfigBlock { vf_id, block_id: 9, length: 128, buffer_offset: 20 };
    let completion =
        bench.send(Oid::SriovReadVfConfigBlock, RequestKind::Method, &read.emit(), 148);
    assert_eq!(read.data(&completion.output), Some([0xAB; 128].as_slice()));

    let ids = SriovVfVendorDeviceId { vf_id, vendor_id: 0, device_id: 0 };
    let ids = bench.method(Oid::SriovVfVendorDeviceId, &ids).unwrap();
    assert_eq!((ids.vendor_id, ids.device_id), (0x8086, 0x1889));
}
