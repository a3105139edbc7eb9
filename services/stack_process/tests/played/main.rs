//! The stack's process with a real adapter, and a switch and VMs that are played: what it tells them, and what comes of
//! it when any of them goes and comes back.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub)]

mod guests;
mod levels;
mod virtio_net;
mod world;

use adapter::control::{
    PrivateControl as NicControl, REBALANCE_CAPACITY, RebalanceOutcome, VlanMode,
};
use guests::{Manners, PATIENCE, Teller};
use stack_process::control::{
    AdapterChange, AdapterName, Connection, OUTCOME_CAPACITY, Outcome, PrivateControl,
};
use virtual_switch::control::{AdapterUplink, SocketIdentity};
use virtualization_stack::{DataPath, Health, NicState, Policy, VmState};
use world::{World, adapters};

fn weight(iov_weight: u32) -> AdapterChange {
    AdapterChange { iov_weight: Some(iov_weight), ..AdapterChange::default() }
}

#[track_caller]
fn refused(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused { why } => why,
        Outcome::Done => panic!("it is taken"),
    }
}

/// What the port of the first adapter was told of VFs. The order between two processes is nobody's.
fn told_port(told: &[String]) -> Vec<&str> {
    told.iter().filter_map(|line| line.strip_prefix("web/net0 ")).collect()
}

/// What the VM was told of VFs of its first adapter.
fn told_vm(told: &[String]) -> Vec<&str> {
    told.iter()
        .filter_map(|line| line.strip_prefix("web "))
        .filter(|l| l.contains("Vf 0"))
        .collect()
}

#[test]
fn adapters_get_vfs_and_lose_them_with_their_weight() {
    let world = World::new("");
    let status = world.until_active();
    for adapter in adapters(&status) {
        assert_eq!(adapter.health, Health::OkSriovActive, "{adapter:#?}");
        assert_eq!(adapter.description, "OK (SR-IOV active)");
        assert_eq!(adapter.data_path, DataPath::Vf);
        assert_eq!(adapter.queue_pairs_assigned, adapter.queue_pairs_requested);
        assert_eq!(adapter.reasons, []);
    }
    assert_eq!(status.vms[0].state, VmState::Running);
    let nic = world.nic_status();
    assert_eq!(nic.pnp.client.as_deref(), Some("virtualization-stack"));
    let macs: Vec<_> = nic.vfs.iter().map(|vf| vf.mac.as_str()).collect();
    assert_eq!(macs, ["00:15:5d:00:00:01", "00:15:5d:00:00:02"]);

    let state = world.guests.lock();
    // One table for both paths.
    assert_eq!(state.ports["web/net1"].config.vlan, VlanMode::Access { vlan: 7 });
    assert!(state.ports.values().all(|port| port.config.sriov && !port.config.allow_spoofing));
    let vm = &state.vms["web"];
    assert_eq!(vm.adapters[&1].port, "web/net1");
    assert_eq!(vm.adapters[&1].switch, world.path("switch/control.sock"));
    for (offer, vf) in vm.devices.values().zip(&nic.vfs) {
        assert_eq!(offer.nic, world.path("nic0/control.sock"));
        assert_eq!(offer.vf_socket.display().to_string(), vf.function.socket);
        assert!(offer.vf_socket.exists());
    }
    drop(state);

    assert_eq!(world.set("net0", weight(0)), Outcome::Done);
    let status = world.until("the VF is given back", |status| {
        status.vms[0].adapters[0].virtual_function.is_none()
    });
    let adapter = &status.vms[0].adapters[0];
    assert_eq!((adapter.health, adapter.reasons.len()), (Health::Ok, 1));
    let reason = &adapter.reasons[0];
    assert_eq!(reason.code, "WeightZero");
    assert_eq!(reason.text, "no VF is asked for: IovWeight is 0");
    assert_eq!(world.nic_status().vfs.len(), 1);
    let told = world.guests.lock().told.clone();
    assert_eq!(
        told_port(&told),
        [
            "VfAvailable",
            "CompleteSwitch VF",
            "SwitchDataPath synthetic",
            "CompleteSwitch synthetic",
            "VfLost",
        ]
    );
    assert_eq!(told_vm(&told), ["OfferVf 0", "EjectVf 0", "RemoveVf 0"]);
    let events = world.events();
    let step = |text: &str| {
        events
            .iter()
            .position(|event| event.contains(text))
            .unwrap_or_else(|| panic!("{text}: {events:#?}"))
    };
    let story = [
        "IOCTL_SRIOV_ATTACH to NIC nic0 ended with STATUS_SUCCESS (0x00000000) after ",
        "OID_NIC_SWITCH_ENUM_VFS to NIC nic0 ended with NDIS_STATUS_SUCCESS after ",
        "NIC nic0 is ready, with 4 VFs",
        "web/net0: OID_NIC_SWITCH_ALLOCATE_VF to NIC nic0 for VF 0 ended with NDIS_STATUS_SUCCESS after ",
        "web/net0: VF 0 of NIC nic0 is allocated",
        "web/net0: OID_NIC_SWITCH_CREATE_VPORT to NIC nic0 for VF 0 on VPort 1 ended with NDIS_STATUS_SUCCESS after ",
        "web/net0: VF 0 is offered to the guest",
        "web/net0: the guest moved the data path to the VF",
        "web/net0: its settings were changed",
        "web/net0: VF 0 is taken back: no VF is asked for: IovWeight is 0",
        "web/net0: the guest has given up the VF",
        "web/net0: OID_NIC_SWITCH_DELETE_VPORT to NIC nic0 on VPort 1 ended with NDIS_STATUS_SUCCESS after ",
        "web/net0: OID_NIC_SWITCH_FREE_VF to NIC nic0 for VF 0 ended with NDIS_STATUS_SUCCESS after ",
    ];
    assert!(story.map(step).is_sorted(), "{events:#?}");
}

#[test]
fn a_pf_rebalance_takes_all_vfs_and_gives_them_back() {
    let world = World::new("");
    let before = world.until_active();
    let client = world.nic_client();
    let code = NicControl::Rebalance.code();
    let answer = client.private(code, &[], REBALANCE_CAPACITY, PATIENCE).unwrap();
    let outcome: RebalanceOutcome = serde_json::from_slice(&answer).unwrap();
    let RebalanceOutcome::Done { asked, .. } = outcome else { panic!("{outcome}") };
    assert_eq!(asked.as_deref(), Some("virtualization-stack"));
    let after = world.until_active();
    for (before, after) in adapters(&before).zip(adapters(&after)) {
        let serial = |adapter: &stack_process::control::AdapterReport| {
            adapter.virtual_function.as_ref().unwrap().serial
        };
        assert_ne!(serial(before), serial(after));
    }
    let told = world.guests.lock().told.clone();
    assert!(!told.iter().any(|line| line.ends_with("by surprise")), "{told:#?}");
    let events = world.events();
    for text in ["NIC nic0 wants to stop", "NIC nic0 may stop", "NIC nic0 runs again"] {
        assert!(events.iter().any(|event| event == text), "{text}: {events:#?}");
    }
}

#[test]
fn a_silent_guest_vetoes_the_stop_of_its_pf() {
    let world = World::new("[timeouts]\nswitch = 0.1\npf-stop = 0.3");
    world.until_active();
    world.guests.manners(Manners { uses_vf: true, willing: false });
    let client = world.nic_client();
    let code = NicControl::Rebalance.code();
    let answer = client.private(code, &[], REBALANCE_CAPACITY, PATIENCE).unwrap();
    let outcome: RebalanceOutcome = serde_json::from_slice(&answer).unwrap();
    let RebalanceOutcome::Vetoed { by, .. } = outcome else { panic!("{outcome}") };
    assert_eq!(by, "virtualization-stack");
    assert_eq!(world.nic_status().vfs.len(), 2);
    let vetoed = "NIC nic0 may not stop: 2 guests hold VFs and do not answer";
    world.until("the veto is an event", |_| world.events().iter().any(|event| event == vetoed));
}

#[test]
fn a_guest_that_uses_no_vf_in_time_keeps_it_and_that_is_a_reason() {
    let world = World::new("[timeouts]\noffer = 1.0");
    world.guests.manners(Manners { uses_vf: false, willing: true });
    let status = world.until("it is said why", |status| {
        adapters(status).all(|adapter| World::has_reason(adapter, "GuestUnsupported"))
    });
    for adapter in adapters(&status) {
        assert_eq!(adapter.description, "Degraded (SR-IOV not operational)");
        assert!(adapter.reasons[0].cure.contains("driver"), "{adapter:#?}");
        assert!(adapter.virtual_function.is_some(), "{adapter:#?}");
    }
    assert_eq!(world.nic_status().vfs.len(), 2);
    for adapter in ["net0", "net1"] {
        let name = AdapterName { vm: "web".into(), adapter: adapter.into() };
        let outcome: Outcome = world.ask(PrivateControl::Retry, &name, OUTCOME_CAPACITY);
        assert_eq!(outcome, Outcome::Done);
    }
}

#[test]
fn an_adapter_that_is_killed_and_comes_back_gives_vfs_again() {
    let mut world = World::new("");
    world.until_active();
    drop(world.nic.take());
    let status = world.until("the NIC is missed", |status| {
        adapters(status).all(|adapter| {
            adapter.virtual_function.is_none() && World::has_reason(adapter, "PfRemoved")
        })
    });
    let adapter = &status.vms[0].adapters[0];
    assert_eq!(adapter.reasons[0].text, "NIC nic0 is not there");
    assert!(!status.nics[0].connection.connected);
    let error = world
        .until("it cannot be reached", |status| {
            let error = status.nics[0].connection.last_error.as_ref();
            error.is_some_and(|error| error.starts_with("nobody serves "))
        })
        .nics[0]
        .connection
        .last_error
        .clone();
    assert!(error.unwrap().ends_with("start `clearway adapter`"));
    world.guests.until("devices are taken away", |state| state.vms["web"].devices.is_empty());
    world.start_nic();
    world.until_active();
    assert_eq!(world.nic_status().vfs.len(), 2);
}

#[test]
fn an_adapter_that_comes_back_gives_vfs_only_when_the_switch_has_its_uplink_again() {
    let mut world = World::new("");
    let socket = world.path("nic0/pf.sock");
    let up = || AdapterUplink { up: SocketIdentity::at(&socket).ok(), error: None };
    world.guests.set_uplink(up());
    world.until_active();
    drop(world.nic.take());
    world.until("the NIC is missed", |status| {
        adapters(status).all(|adapter| World::has_reason(adapter, "PfRemoved"))
    });
    world.start_nic();
    // The stack is quicker than the switch, which has not even noticed that its uplink is gone.
    let waits = |world: &World, why: &str| {
        let status = world.until(why, |status| {
            adapters(status).all(|adapter| {
                let [reason] = &adapter.reasons[..] else { return false };
                reason.text.ends_with(why) && adapter.virtual_function.is_none()
            }) && status.nics[0].state == NicState::Ready
        });
        assert_eq!(world.nic_status().vfs.len(), 0);
        let reason = &status.vms[0].adapters[0].reasons[0];
        assert_eq!(reason.code, "SwitchUplinkDown");
        assert!(reason.text.starts_with("the uplink of switch external on NIC nic0 is down: "));
        assert!(reason.cure.contains("--uplink adapter:"), "{reason:#?}");
    };
    waits(&world, "or on one that has ended");
    world.guests.set_uplink(AdapterUplink::down("nobody serves it"));
    waits(&world, "nobody serves it");
    // What holds when the stack connects is no other than what it hears later.
    drop(world.switch.take());
    world.until("the switch is missed", |status| !status.switches[0].connection.connected);
    world.start_switch();
    waits(&world, "nobody serves it");
    world.guests.set_uplink(up());
    world.until_active();
    // VFs that there are stay.
    let before = world.status();
    world.guests.set_uplink(AdapterUplink::down("it resets"));
    world.guests.set_uplink(up());
    let after = world.until_active();
    for (before, after) in adapters(&before).zip(adapters(&after)) {
        assert_eq!(before.virtual_function, after.virtual_function);
    }
}

#[test]
fn vfs_outlive_their_switch_and_its_ports_are_set_again() {
    let mut world = World::new("");
    let before = world.until_active();
    drop(world.switch.take());
    world.until("the switch is missed", |status| !status.switches[0].connection.connected);
    let status = world.status();
    for (before, adapter) in adapters(&before).zip(adapters(&status)) {
        assert_eq!(adapter.virtual_function, before.virtual_function);
    }
    world.start_switch();
    world.until("the switch is back", |status| status.switches[0].connection.connected);
    // The guests' drivers come up anew, are told of the VFs that they still have, and say that they use them.
    world.guests.until("ports know their VFs", |state| {
        state.ports.len() == 2
            && state.ports.values().all(|port| port.report.vf.is_some() && port.on_vf)
    });
    let status = world.until_active();
    for (before, adapter) in adapters(&before).zip(adapters(&status)) {
        assert_eq!(adapter.virtual_function, before.virtual_function);
    }
}

#[test]
fn a_guest_that_begins_anew_is_served_whoever_tells_of_it_first() {
    let world = World::new("");
    let before = world.until_active();
    let again = |what: &str, count: usize| {
        world.guests.until(what, |state| {
            let granted = |line: &&String| *line == "web/net0 CompleteSwitch VF";
            state.told.iter().filter(granted).count() >= count
                && state.ports.values().all(|port| port.on_vf)
        });
        let after = world.until_active();
        for (before, after) in adapters(&before).zip(adapters(&after)) {
            assert_eq!(before.virtual_function, after.virtual_function);
        }
    };
    // The switch serves the guest's new life before its host side has said a word of it.
    world.guests.reset("web", Teller::Switch);
    again("paths move to the VFs", 2);
    let told = world.guests.lock().told.clone();
    world.guests.say_reset("web");
    again("paths stay", 2);
    assert_eq!(world.guests.lock().told, told, "a reset that is over moves nothing");
    // The other way round.
    world.guests.reset("web", Teller::HostSide);
    world.guests.restart_drivers("web");
    again("paths move to the VFs", 3);
}

#[test]
fn a_vm_that_is_killed_leaves_no_vf_behind() {
    let mut world = World::new("");
    world.until_active();
    world.stop_web();
    let status = world.until("the VFs are given back", |status| {
        adapters(status).all(|adapter| {
            adapter.virtual_function.is_none() && World::has_reason(adapter, "VmNotRunning")
        })
    });
    assert_eq!(status.vms[0].state, VmState::Off);
    assert_eq!(status.vms[0].adapters[0].reasons[0].text, "VM web does not run");
    world.until_synthetic();
    assert_eq!(world.nic_status().vfs.len(), 0);
    world.guests.until("its ports forget their VFs", |state| {
        let synthetic = virtual_switch::control::DataPath::Synthetic;
        let forgot =
            |port: &guests::Port| port.report.vf.is_none() && port.report.active == synthetic;
        state.ports.values().all(forgot)
    });
    world.start_web();
    world.until_active();
}

#[test]
fn a_stack_that_is_started_anew_takes_over_from_the_one_before() {
    let mut world = World::new("");
    let before = world.until_active();
    drop(world.stack.take());
    // Nothing changes for anybody meanwhile.
    assert_eq!(world.nic_status().vfs.len(), 2);
    assert_eq!(world.guests.lock().vms["web"].devices.len(), 2);
    world.guests.lock().told.clear();
    world.start_stack();
    let after = world.until_active();
    assert_eq!(world.nic_status().vfs.len(), 2);
    let old: Vec<_> =
        adapters(&before).map(|a| a.virtual_function.as_ref().unwrap().serial).collect();
    for adapter in adapters(&after) {
        assert!(!old.contains(&adapter.virtual_function.as_ref().unwrap().serial));
    }
    let told = world.guests.lock().told.clone();
    // A report that was on its way may have it told twice that the VF is lost, which changes nothing.
    let mut of_port = told_port(&told);
    of_port.dedup_by(|a, b| a == b && *a == "VfLost");
    assert_eq!(
        of_port,
        [
            // The guest gives back what it has, and gets another.
            "SwitchDataPath synthetic",
            "CompleteSwitch synthetic",
            "VfLost",
            "VfAvailable",
            "CompleteSwitch VF",
        ]
    );
    assert_eq!(told_vm(&told), ["EjectVf 0", "RemoveVf 0", "OfferVf 0"]);
    let state = world.guests.lock();
    assert_eq!(state.vms["web"].devices.len(), 2, "the old ones are gone");
    assert!(state.ports.values().all(|port| port.report.vf.is_some_and(|vf| !old.contains(&vf))));
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let world = World::new("");
    world.until_active();
    let change = AdapterChange::default;
    let unknown = world.set("net7", change());
    assert_eq!(refused(unknown), "VM web has no adapter net7; it has net0, net1");
    let name = AdapterName { vm: "db".into(), adapter: "net0".into() };
    let unknown: Outcome = world.ask(PrivateControl::Retry, &name, OUTCOME_CAPACITY);
    assert_eq!(refused(unknown), "there is no VM db; there are web");
    let switch = Some(Connection::Switch("lab".into()));
    let unknown = world.set("net0", AdapterChange { connection: switch, ..change() });
    assert_eq!(refused(unknown), "there is no switch lab; there are external");
    let too_heavy = world.set("net0", weight(101));
    assert_eq!(refused(too_heavy), "IovWeight may not be 101: 0 is off, 1 to 100 is on");
    let vlan = Some(VlanMode::Access { vlan: 4095 });
    let no_vlan = world.set("net0", AdapterChange { vlan, ..change() });
    assert_eq!(refused(no_vlan), "a VLAN is not from 1 to 4094");
    // Nothing has changed.
    world.until_active();
}

#[test]
fn policies_and_connections_decide_too() {
    let world = World::new("");
    world.until_active();
    let change = AdapterChange::default;
    let policies = Some(vec![Policy::PortAcl]);
    assert_eq!(world.set("net0", AdapterChange { policies, ..change() }), Outcome::Done);
    world.until("the policy forces software", |status| {
        let adapter = &status.vms[0].adapters[0];
        adapter.virtual_function.is_none() && World::has_reason(adapter, "PolicyForcesSoftware")
    });
    let bypass = AdapterChange { allow_policy_bypass: Some(true), ..change() };
    assert_eq!(world.set("net0", bypass), Outcome::Done);
    world.until_active();

    // The port stays until the VF is given back in order.
    let connection = Some(Connection::Disconnected);
    world.guests.lock().told.clear();
    assert_eq!(world.set("net1", AdapterChange { connection, ..change() }), Outcome::Done);
    world.guests.until("the port is deleted", |state| {
        !state.ports.contains_key("web/net1") && !state.vms["web"].adapters.contains_key(&1)
    });
    let told = world.guests.lock().told.clone();
    let at = |text: &str| told.iter().position(|line| line == text).unwrap_or(usize::MAX);
    assert!(at("web RemoveVf 1") < at("web RemoveAdapter 1"), "{told:#?}");
    assert!(at("web RemoveVf 1") < at("DeletePort web/net1"), "{told:#?}");
    let connection = Some(Connection::Switch("external".into()));
    assert_eq!(world.set("net1", AdapterChange { connection, ..change() }), Outcome::Done);
    world.until_active();
}

#[test]
fn a_configuration_that_is_read_again_adds_removes_and_changes() {
    let world = World::new("");
    world.until_active();
    let reload = || world.ask::<Outcome>(PrivateControl::Reload, &(), OUTCOME_CAPACITY);
    world.write("iov-weigth = 1");
    let why = refused(reload());
    assert!(
        why.contains("stack.toml: line 24: [[vm.adapter]] iov-weigth: there is no such"),
        "{why}"
    );
    world.write("[timeouts]\neject = 1");
    assert!(refused(reload()).ends_with("count from the start: restart the stack"));
    world.write(
        "[[vm.adapter]]\nname = \"net2\"\nmac = \"00:15:5D:00:00:03\"\nswitch = \"external\"\niov-weight = 1\n",
    );
    assert_eq!(reload(), Outcome::Done);
    let status = world.until_active();
    let numbers: Vec<_> = adapters(&status).map(|a| (a.name.clone(), a.number)).collect();
    assert_eq!(numbers, [("net0".into(), 0), ("net1".into(), 1), ("net2".into(), 2)]);
    world.write("");
    assert_eq!(reload(), Outcome::Done);
    world.until("the adapter is gone", |status| adapters(status).count() == 2);
    world.guests.until("its port is deleted", |state| {
        state.ports.len() == 2 && state.vms["web"].adapters.len() == 2
    });
    assert_eq!(world.nic_status().vfs.len(), 2);
}

#[test]
fn a_vm_that_was_there_before_the_stack_is_rid_of_what_is_not_configured() {
    let mut world = World::new("");
    world.until_active();
    drop(world.stack.take());
    let text = std::fs::read_to_string(world.path("stack.toml")).unwrap();
    let (kept, _) = text.split_once("[[vm.adapter]]\nname = \"net1\"").unwrap();
    std::fs::write(world.path("stack.toml"), kept).unwrap();
    world.start_stack();
    world.until_active();
    world.guests.until("the second adapter is gone", |state| {
        let vm = &state.vms["web"];
        state.ports.len() == 1 && vm.adapters.len() == 1 && vm.devices.len() == 1
    });
    assert_eq!(world.nic_status().vfs.len(), 1);
}

#[test]
fn a_nic_that_another_stack_has_is_said_to_be_so() {
    let mut world = World::new("[timeouts]\nretry = 0.3");
    world.until_active();
    // Another stack, of another folder, with nothing but the NIC.
    let directory = world.path("other");
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("stack.toml");
    std::fs::write(
        &file,
        "[timeouts]\nretry = 0.3\n[[nic]]\nname = \"nic0\"\ndirectory = \"../nic0\"\n",
    )
    .unwrap();
    let configuration = stack_process::Configuration::read(&file).unwrap();
    let other = stack_process::StackProcess::start(configuration, &directory).unwrap();
    let status = world.until_at(other.control_path(), "it is turned away", |status| {
        let error = status.nics[0].connection.last_error.as_ref();
        error.is_some_and(|error| error.contains("another stack"))
    });
    assert!(!status.nics[0].iov_support);
    // The first one has noticed nothing, and its end lets the other one in.
    world.until_active();
    drop(world.stack.take());
    world.until_at(other.control_path(), "it has the NIC", |status| {
        status.nics[0].connection.connected && status.nics[0].iov_support
    });
}
