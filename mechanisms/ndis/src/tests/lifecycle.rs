//! Start, halt, surprise removal and capability changes (SPEC-NDIS-SRIOV §11.1, §11.6, §14).

use std::sync::{Arc, Mutex};

use ndis_protocol::*;

use crate::testing::*;
use crate::*;

fn stopped(hardware: HardwareCapabilities, keywords: Keywords) -> Ndis<FakeMiniport> {
    let configuration = AdapterConfiguration { keywords, default_vport_queue_pairs: None };
    Ndis::new(FakeMiniport::new(hardware), configuration)
}

#[test]
fn start_initializes_the_driver_and_creates_the_default_switch() {
    let keywords = Keywords { num_vfs: Some(2), ..sriov_keywords() };
    let mut ndis = stopped(sample_hardware(), keywords);
    ndis.start().unwrap();
    assert_eq!(
        ndis.miniport().calls,
        ["initialize SR-IOV and VMQ", "create_switch \"Default Switch\" 2 VFs"]
    );
    assert_eq!(ndis.state(), AdapterState::Running);
    assert_eq!(ndis.cache().switch().unwrap().num_vfs, 2);
    assert_eq!(ndis.cache().vports().count(), 1);
    assert_eq!(ndis.current_capabilities().unwrap().nic_switch.max_num_vfs, 2);
    assert_eq!(ndis.start(), Err(StartError::NotHalted));
}

#[test]
fn without_num_vfs_the_switch_has_all_that_the_card_has() {
    let bench = Bench::new();
    assert_eq!(bench.ndis.cache().switch().unwrap().num_vfs, 4);
}

#[test]
fn more_vfs_than_the_card_has_are_refused_before_the_driver_is_asked() {
    let keywords = Keywords { num_vfs: Some(5), ..sriov_keywords() };
    let mut ndis = stopped(sample_hardware(), keywords);
    assert_eq!(ndis.start(), Err(StartError::NumVfs { configured: 5, hardware: 4 }));
    assert_eq!(ndis.miniport().calls, [""; 0]);
    assert_eq!(ndis.state(), AdapterState::Halted);
}

#[test]
fn a_driver_that_does_not_initialize_is_not_halted() {
    let mut ndis = stopped(sample_hardware(), sriov_keywords());
    ndis.miniport_mut().fail = Some((0, NdisStatus::RESOURCES));
    assert_eq!(ndis.start(), Err(StartError::Initialize(NdisStatus::RESOURCES)));
    assert_eq!(ndis.miniport().calls, ["initialize SR-IOV and VMQ"]);
    ndis.start().unwrap();
}

#[test]
fn a_driver_that_creates_no_switch_is_halted() {
    let mut ndis = stopped(sample_hardware(), sriov_keywords());
    ndis.miniport_mut().fail = Some((1, NdisStatus::FAILURE));
    let error = ndis.start().unwrap_err();
    assert!(matches!(error, StartError::CreateSwitch { status: NdisStatus::FAILURE, .. }));
    assert_eq!(ndis.miniport().calls.last().unwrap(), "halt");
    assert_eq!(ndis.state(), AdapterState::Halted);
}

#[test]
fn a_driver_whose_capabilities_cannot_be_is_not_started() {
    let mut hardware = sample_hardware();
    hardware.nic_switch.max_num_switches = 0;
    let mut ndis = stopped(hardware, sriov_keywords());
    assert_eq!(ndis.start(), Err(StartError::Capabilities(CapabilityFault::Switches(0))));
}

#[test]
fn the_default_vport_gets_the_queue_pairs_that_are_configured() {
    let configuration =
        AdapterConfiguration { keywords: sriov_keywords(), default_vport_queue_pairs: Some(4) };
    let mut ndis = Ndis::new(FakeMiniport::new(sample_hardware()), configuration.clone());
    ndis.start().unwrap();
    let default = ndis.cache().vport(VPortId::DEFAULT).unwrap();
    assert_eq!(default.parameters.num_queue_pairs, 4);

    for too_many in [0, 5] {
        let configuration = AdapterConfiguration {
            default_vport_queue_pairs: Some(too_many),
            ..configuration.clone()
        };
        let mut ndis = Ndis::new(FakeMiniport::new(sample_hardware()), configuration);
        let error = ndis.start().unwrap_err();
        assert!(matches!(
            error,
            StartError::CreateSwitch { refusal: Refusal::QueuePairs { limit: 4, .. }, .. }
        ));
    }
}

#[test]
fn without_sriov_there_is_no_switch_and_its_requests_are_not_supported() {
    let mut bench = Bench::with(sample_hardware(), Keywords { sriov: false, ..sriov_keywords() });
    assert_eq!(bench.ndis.features(), ActiveFeatures { vmq: true, ..Default::default() });
    let hardware: NicSwitchCapabilities = bench.query(Oid::NicSwitchHardwareCapabilities).unwrap();
    assert_eq!(hardware, sample_hardware().nic_switch);
    for oid in [
        Oid::NicSwitchCurrentCapabilities,
        Oid::ReceiveFilterCurrentCapabilities,
        Oid::SriovCurrentCapabilities,
        Oid::ReceiveFilterGlobalParameters,
    ] {
        let completion = bench.send(oid, RequestKind::Query, &[], 4096);
        assert_eq!(completion.status, NdisStatus::NOT_SUPPORTED, "{oid}");
    }
    assert_eq!(bench.allocate_vf("vm1"), Err(NdisStatus::NOT_SUPPORTED));
    assert_eq!(
        bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(1))),
        Err(NdisStatus::NOT_SUPPORTED)
    );
    let switches: NicSwitchInfoArray = bench.query(Oid::NicSwitchEnumSwitches).unwrap();
    assert_eq!(switches.elements, []);
    assert!(bench.ndis.halt().is_complete());
}

#[test]
fn a_card_without_sriov_says_so() {
    let mut bench = Bench::with(HardwareCapabilities::default(), sriov_keywords());
    for oid in Oid::ALL.iter().filter(|oid| oid.issuer() == Issuer::Overlying) {
        let kind = oid.kinds()[0];
        let completion = bench.send(*oid, kind, &[], 4096);
        assert_eq!(completion.status, NdisStatus::NOT_SUPPORTED, "{oid}");
    }
}

#[test]
fn halt_releases_everything_in_order_and_then_deletes_the_switch() {
    let mut bench = Bench::new();
    bench.speak_for("alpha");
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 2).unwrap();
    bench.set_filter(vport, FilterMatch::untagged(mac(1))).unwrap();
    bench.speak_for("beta");
    bench.set_filter(VPortId::DEFAULT, FilterMatch::untagged(mac(2))).unwrap();
    bench.calls();
    let report = bench.ndis.halt();
    assert!(report.is_complete());
    assert_eq!(report.released, 6);
    assert_eq!(
        bench.calls(),
        [
            "clear_filter 1",
            "delete_vport 1",
            "reset_vf 0",
            "free_vf 0",
            "clear_filter 2",
            "delete_switch",
            "halt"
        ]
    );
    assert_eq!(*bench.ndis.cache(), Cache::default());
    assert_eq!(bench.ndis.halt(), ReleaseReport::default(), "halting twice is harmless");
    assert_eq!(bench.allocate_vf("vm1"), Err(NdisStatus::INVALID_STATE));
    bench.ndis.start().unwrap();
    assert_eq!(bench.allocate_vf("vm1"), Ok(vf_id(0)));
}

#[test]
fn a_driver_that_fails_on_the_way_is_halted_all_the_same() {
    let mut bench = Bench::new();
    bench.allocate_vf("vm1").unwrap();
    // RESET_VF passes, FREE_VF fails; so the switch is in use and is not deleted.
    bench.ndis.miniport_mut().fail = Some((1, NdisStatus::FAILURE));
    let report = bench.ndis.halt();
    let failed: Vec<_> = report.failures.iter().map(|(oid, _)| *oid).collect();
    assert_eq!(failed, [Oid::NicSwitchFreeVf, Oid::NicSwitchDeleteSwitch]);
    assert_eq!(bench.ndis.state(), AdapterState::Halted);
    assert_eq!(*bench.ndis.cache(), Cache::default());
}

#[test]
fn after_surprise_removal_nothing_reaches_the_driver() {
    let mut bench = Bench::new();
    let vf = bench.allocate_vf("vm1").unwrap();
    let vport = bench.create_vf_vport(vf, 1).unwrap();
    let filter = bench.set_filter(vport, FilterMatch::untagged(mac(1))).unwrap();
    bench.ndis.surprise_removed();
    bench.calls();
    assert_eq!(bench.clear_filter(filter), Err(NdisStatus::NOT_ACCEPTED));
    assert_eq!(bench.delete_vport(vport), Err(NdisStatus::ADAPTER_REMOVED));
    assert_eq!(bench.free_vf(vf), Err(NdisStatus::ADAPTER_REMOVED));
    let owner = bench.owner.clone();
    assert!(bench.ndis.unbind(&owner).is_complete());
    assert_eq!(bench.ndis.cache().vfs().count(), 0);
    assert_eq!(bench.ndis.cache().filters().count(), 0);
    assert_eq!(bench.ndis.cache().vports().count(), 1, "the default VPort stays with its switch");
    assert!(bench.ndis.halt().is_complete());
    assert_eq!(bench.calls(), ["halt"]);
}

#[test]
fn renaming_the_switch_takes_effect_now_or_after_a_restart() {
    let mut bench = Bench::new();
    let rename = |name: &str| NicSwitchChange {
        switch_id: SwitchId::DEFAULT,
        name: Some(Name::new(name).unwrap()),
    };
    let current = |bench: &Bench| bench.ndis.cache().switch().unwrap().name.to_string();
    bench.set(Oid::NicSwitchParameters, &rename("upper")).unwrap();
    assert_eq!(current(&bench), "upper");

    bench.ndis.miniport_mut().rename_needs_restart = true;
    let completion =
        bench.send(Oid::NicSwitchParameters, RequestKind::Set, &rename("lower").emit(), 0);
    assert_eq!(completion.status, NdisStatus::REINIT_REQUIRED);
    assert_eq!(completion.refusal, None);
    assert_eq!(current(&bench), "upper");
    bench.ndis.halt();
    bench.ndis.start().unwrap();
    assert_eq!(current(&bench), "lower");

    bench.ndis.miniport_mut().fail = Some((0, NdisStatus::FAILURE));
    assert_eq!(bench.set(Oid::NicSwitchParameters, &rename("never")), Err(NdisStatus::FAILURE));
    assert_eq!(bench.ndis.configuration().keywords.switch_name.as_str(), "lower");
}

#[test]
fn changed_capabilities_are_indicated_whole() {
    let mut bench = Bench::new();
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let id = bench.ndis.subscribe(move |event| sink.lock().unwrap().push(event.clone()));
    bench.ndis.refresh_capabilities().unwrap();
    assert_eq!(*events.lock().unwrap(), [], "nothing changed");

    bench.ndis.miniport_mut().hardware.nic_switch.max_num_queue_pairs = 32;
    bench.ndis.refresh_capabilities().unwrap();
    let seen = std::mem::take(&mut *events.lock().unwrap());
    let NdisEvent::StatusIndicated(hardware) = &seen[0] else { panic!("{seen:?}") };
    assert_eq!(hardware.code(), IndicationCode::NIC_SWITCH_HARDWARE_CAPABILITIES);
    let capabilities = NicSwitchCapabilities::parse(&hardware.buffer()).unwrap();
    assert_eq!(capabilities.max_num_queue_pairs, 32);
    let NdisEvent::StatusIndicated(current) = &seen[1] else { panic!("{seen:?}") };
    assert_eq!(current.code(), IndicationCode::NIC_SWITCH_CURRENT_CAPABILITIES);
    assert_eq!(seen.len(), 2);

    bench.ndis.miniport_mut().hardware.nic_switch.max_num_switches = 9;
    assert_eq!(bench.ndis.refresh_capabilities(), Err(CapabilityFault::Switches(9)));
    assert_eq!(bench.ndis.hardware_capabilities().nic_switch.max_num_switches, 1);

    bench.ndis.indicate_status(IndicationCode::SWITCH_PORT_REMOVE_VF, Vec::new());
    assert_eq!(events.lock().unwrap().len(), 1);
    bench.ndis.unsubscribe(id);
    bench.ndis.indicate_status(IndicationCode::SWITCH_PORT_REMOVE_VF, Vec::new());
    assert_eq!(events.lock().unwrap().len(), 1);
}

#[test]
fn observers_see_every_oid_with_its_status_and_why() {
    let mut ndis = stopped(sample_hardware(), sriov_keywords());
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    ndis.subscribe(move |event| {
        let line = match event {
            NdisEvent::OidIssued { sequence, requester, code, kind } => {
                format!("{sequence} {requester} {kind} {}", oid_name(*code))
            }
            NdisEvent::OidCompleted { sequence, status, refusal, .. } => {
                let why = refusal.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("{sequence} {status}{why}")
            }
            NdisEvent::StatusIndicated(indication) => indication.code().to_string(),
            NdisEvent::ConfigBlockWritten { .. } | NdisEvent::VfFreed { .. } => return,
        };
        sink.lock().unwrap().push(line);
    });
    ndis.start().unwrap();
    ndis.oid_request(
        &driver("stack"),
        0x0001_0244,
        RequestKind::Set,
        &[0x80, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        0,
    );
    ndis.oid_request(&driver("stack"), 7, RequestKind::Query, &[], 0);
    assert_eq!(
        *lines.lock().unwrap(),
        [
            "1 NDIS method OID_NIC_SWITCH_CREATE_SWITCH",
            "1 NDIS_STATUS_SUCCESS",
            "2 stack set OID_NIC_SWITCH_DELETE_VPORT",
            "2 NDIS_STATUS_INVALID_PARAMETER: the default VPort comes and goes with its switch",
            "3 stack query OID 0x00000007",
            "3 NDIS_STATUS_INVALID_OID: there is no OID 0x00000007",
        ]
    );
}
