//! Whoever allocated, created or set an object is the only one to free, delete or clear it (SPEC-NDIS-SRIOV §1).

use ndis_protocol::*;
use pcivirt_protocol::DevicePowerState;

use crate::Refusal;
use crate::testing::*;

const DENIED: NdisStatus = NdisStatus::INVALID_PARAMETER;

#[test]
fn nobody_else_may_free_delete_clear_or_move() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 1).unwrap();
    let own = bench.set_filter(vport, FilterMatch::untagged(mac(1))).unwrap();
    let shared = bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(2))).unwrap();
    bench.calls();

    bench.speak_for("stranger");
    assert_eq!(bench.clear_filter(own), Err(DENIED));
    assert_eq!(bench.clear_filter(shared), Err(DENIED));
    assert_eq!(bench.move_filter(shared, VPortId::DEFAULT, vport), Err(DENIED));
    assert_eq!(bench.delete_vport(vport), Err(DENIED));
    assert_eq!(bench.free_vf(vf), Err(DENIED));
    assert_eq!(bench.set_filter(vport, FilterMatch::untagged(mac(3))), Err(DENIED));
    let rename = VPortChange { name: Some(Name::default()), ..VPortChange::new(vport) };
    assert_eq!(bench.set(Oid::NicSwitchVportParameters, &rename), Err(DENIED));
    let other_vf = {
        bench.speak_for("stack");
        let vf = bench.allocate_vf("vm2").unwrap();
        bench.speak_for("stranger");
        vf
    };
    assert_eq!(bench.create_vf_vport(other_vf, 1), Err(DENIED));
    assert_eq!(bench.calls(), ["allocate_vf for vm2"], "the driver was not bothered");
}

#[test]
fn nobody_else_may_reset_a_vf_or_change_its_power_state_but_ndis_for_the_pf_driver_contract() {
    let mut bench = Bench::new();
    let vf_id = bench.allocate_vf("vm1").unwrap();
    let power_state = DevicePowerState::D3;
    let sleep = SriovSetVfPowerState { vf_id, power_state, wake_enable: false };
    bench.calls();

    bench.speak_for("stranger");
    assert_eq!(bench.reset_vf(vf_id), Err(DENIED));
    assert_eq!(bench.set(Oid::SriovSetVfPowerState, &sleep), Err(DENIED));
    assert!(bench.calls().is_empty(), "the driver was not bothered");

    bench.speak_for("stack");
    bench.reset_vf(vf_id).unwrap();
    bench.set(Oid::SriovSetVfPowerState, &sleep).unwrap();
    assert_eq!(bench.calls().len(), 2);
    for (oid, input) in [
        (Oid::SriovResetVf, SriovResetVf { vf_id }.emit()),
        (Oid::SriovSetVfPowerState, sleep.emit()),
    ] {
        assert!(bench.ndis.ndis_request(oid, RequestKind::Set, &input, 0).is_success());
    }
    assert_eq!(bench.calls().len(), 2);
}

#[test]
fn a_refusal_names_the_owner() {
    let mut bench = Bench::new();
    let vf_id = bench.allocate_vf("vm1").unwrap();
    bench.speak_for("stranger");
    let free = NicSwitchFreeVfParameters { vf_id };
    let completion = bench.send(Oid::NicSwitchFreeVf, RequestKind::Set, &free.emit(), 0);
    let refusal: Refusal = completion.refusal.unwrap();
    assert_eq!(refusal.to_string(), "VF 0 belongs to stack, who alone may do this");
}

#[test]
fn the_default_vport_belongs_to_nobody() {
    let mut bench = Bench::new();
    for name in ["one", "two"] {
        bench.speak_for(name);
        let last = name.len() as u8 + name.as_bytes()[0];
        bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(last))).unwrap();
        let change = VPortChange {
            interrupt_moderation: Some(InterruptModeration::Low),
            ..VPortChange::new(VPortId::DEFAULT)
        };
        bench.set(Oid::NicSwitchVportParameters, &change).unwrap();
    }
    assert_eq!(bench.ndis.cache().num_filters_on(VPortId::DEFAULT), 2);
}

#[test]
fn unbinding_releases_ones_own_objects_and_nobody_elses() {
    let mut bench = Bench::new();
    bench.speak_for("other");
    let others_vf = bench.allocate_vf("vm9").unwrap();
    let others_vport = bench.create_vf_vport(others_vf, 1).unwrap();
    bench.set_filter(others_vport, FilterMatch::untagged(mac(9))).unwrap();
    let kept = bench.ndis.cache().clone();

    bench.speak_for("stack");
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 2).unwrap();
    let filter = bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(1))).unwrap();
    bench.move_filter(filter, VPortId::DEFAULT, vport).unwrap();
    bench.calls();

    let report = bench.ndis.unbind(&driver("stack"));
    assert_eq!((report.released, report.failures.len()), (4, 0));
    assert_eq!(bench.calls(), ["clear_filter 2", "delete_vport 2", "reset_vf 1", "free_vf 1"]);
    assert!(bench.ndis.cache().vfs().eq(kept.vfs()));
    assert!(bench.ndis.cache().vports().eq(kept.vports()));
    assert!(bench.ndis.cache().filters().eq(kept.filters()));
    assert_eq!(bench.ndis.unbind(&driver("stack")).released, 0);
    bench.check_invariants();
}

#[test]
fn what_the_driver_does_not_release_stays_and_is_reported() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 2).unwrap();
    bench.set_filter(vport, FilterMatch::untagged(mac(1))).unwrap();
    bench.ndis.miniport_mut().fail = Some((0, NdisStatus::NOT_ACCEPTED));
    let report = bench.ndis.unbind(&driver("stack"));
    let failed: Vec<_> = report.failures.iter().map(|(oid, _)| *oid).collect();
    assert_eq!(
        failed,
        [Oid::ReceiveFilterClearFilter, Oid::NicSwitchDeleteVport, Oid::NicSwitchFreeVf],
        "the VPort still has a filter, and the VF a VPort"
    );
    bench.check_invariants();
    assert!(bench.ndis.unbind(&driver("stack")).is_complete(), "and again, now it works");
    assert_eq!(bench.ndis.cache().vfs().count(), 0);
}
