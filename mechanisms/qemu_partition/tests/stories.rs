//! A guest with a virtio-net and its VF, from when the VF is offered until it is gone.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use avf_driver::transport::Transport as _;
use common::{
    Client, IMPATIENT, MAC, OTHER_MAC, READY, Vm, adapter,
    nic::Nic,
    qemu::{Device, Machine, command, drive, pme_off},
};
use pcivirt_protocol::NtStatus;
use serde_json::json;
use vm_worker::control::{
    AdapterNumber, DeviceState, GuestState, PrivateControl, SyntheticNicState, WorkerReport,
};

const FUNCTION: &str = "clearway-vf0";

/// A guest that was offered a VF.
fn offered(nic: &Nic) -> (Vm, u16) {
    let mut vm = Vm::with_adapter(Machine::default());
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 1, vf));
    vm.qemu.expect("device_add");
    vm.client.expect_device(1, DeviceState::Offered);
    (vm, vf)
}

#[test]
fn a_vf_is_offered_used_ejected_and_another_takes_its_place_by_the_same_function() {
    let nic = Nic::start(2);
    let mut vm = Vm::with_adapter(Machine::default());
    for serial in 1..=3 {
        let vf = nic.allocate();
        vm.client.offer(&nic.offer(0, serial, vf));
        if serial == 1 {
            let socket = vm.directory.path().join("web-vf0.sock");
            let plugged = json!({
                "driver": "vfio-user-pci",
                "id": FUNCTION,
                "bus": "vfport0",
                "socket": { "type": "unix", "path": socket },
                "failover_pair_id": "net0",
            });
            assert_eq!(vm.qemu.expect("device_add"), plugged);
        } else {
            vm.qemu.expect_del(FUNCTION);
        }
        vm.client.expect_device(serial, DeviceState::Offered);
        let function = vm.qemu.function(FUNCTION);
        command(&function, true);
        vm.client.expect_device(serial, DeviceState::BusOpened);
        let driver = drive(&function, serial.into());
        vm.client.expect_device(serial, DeviceState::InUse);
        vm.client.eject(serial);
        vm.qemu.expect_del(FUNCTION);
        drop(driver);
        command(&function, false);
        vm.client.expect_device(serial, DeviceState::EjectComplete);
        vm.client.remove(serial);
        vm.client.expect_device(serial, DeviceState::Removed);
        nic.free(vf);
    }
    assert_eq!(vm.client.status().devices, []);
    vm.qemu.expect_nothing();
}

#[test]
fn a_guest_that_is_about_to_leave_its_vf_waits_until_it_is_let_go() {
    let nic = Nic::start(1);
    let (mut vm, _) = offered(&nic);
    let function = vm.qemu.function(FUNCTION);
    command(&function, true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    let driver = drive(&function, 1);
    vm.client.expect_device(1, DeviceState::InUse);
    // Whoever is not asked to give it up does not leave it by this.
    pme_off(&function);
    vm.client.eject(1);
    vm.qemu.expect_del(FUNCTION);
    std::thread::scope(|scope| {
        scope.spawn(|| pme_off(&function));
        // Its driver still runs.
        vm.client.expect_device(1, DeviceState::DeviceStarted);
        vm.client.ask(PrivateControl::LetLeave, &AdapterNumber { adapter: 0 }).unwrap();
    });
    drop(driver);
    command(&function, false);
    vm.client.expect_device(1, DeviceState::EjectComplete);
    let nobody = vm.client.ask(PrivateControl::LetLeave, &AdapterNumber { adapter: 1 });
    assert_eq!(nobody, Err(NtStatus::NOT_FOUND));
}

#[test]
fn a_vf_that_is_freed_is_removed_unasked_and_the_next_waits_for_the_guest_to_give_it_up() {
    let nic = Nic::start(2);
    let (mut vm, vf) = offered(&nic);
    let function = vm.qemu.function(FUNCTION);
    command(&function, true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    nic.free(vf);
    vm.client.expect_device(1, DeviceState::Removed);
    vm.qemu.expect_del(FUNCTION);
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 2, vf));
    // Who asks is answered after what was asked before.
    let device = vm.client.status().devices.pop().unwrap();
    assert_eq!((device.serial, device.state), (2, DeviceState::Opening));
    let waits = vm.client.status().adapters[0].last_error.clone().unwrap();
    assert!(waits.contains("given the former one up"), "{waits}");
    vm.qemu.expect_nothing();
    command(&function, false);
    vm.qemu.expect_del(FUNCTION);
    vm.client.expect_device(2, DeviceState::Offered);
    command(&function, true);
    vm.client.expect_device(2, DeviceState::BusOpened);
    assert_eq!(vm.client.status().adapters[0].last_error, None);
}

#[test]
fn a_nic_that_ends_takes_the_vf_with_it() {
    let nic = Nic::start(1);
    let (mut vm, _) = offered(&nic);
    command(&vm.qemu.function(FUNCTION), true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    drop(nic);
    vm.client.expect_device(1, DeviceState::Removed);
    vm.qemu.expect_del(FUNCTION);
}

#[test]
fn a_guest_that_does_not_give_a_vf_up_is_asked_again() {
    let nic = Nic::start(1);
    let mut vm = Vm::start_with(Machine { too_early: 2, ..Machine::default() }, IMPATIENT);
    vm.client.ask(PrivateControl::SetAdapter, &adapter(0, MAC)).unwrap();
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 1, vf));
    vm.qemu.expect("device_add");
    vm.client.expect_device(1, DeviceState::Offered);
    vm.client.eject(1);
    // Two of them come too early, and two are not followed.
    for _ in 0..4 {
        vm.qemu.expect_del(FUNCTION);
    }
    let function = vm.qemu.function(FUNCTION);
    command(&function, false);
    vm.client.expect_device(1, DeviceState::EjectComplete);
}

#[test]
fn a_guest_that_begins_anew_has_no_nic_that_is_ready_until_it_says_so_and_keeps_its_vf() {
    let nic = Nic::start(1);
    let (mut vm, _) = offered(&nic);
    let function = vm.qemu.function(FUNCTION);
    command(&function, true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    let Some(WorkerReport::Guest { life: first, .. }) = vm.client.reports.first() else { panic!() };
    let first = *first;
    command(&function, false);
    vm.client.expect_device(1, DeviceState::Offered);
    vm.qemu.reset();
    assert!(vm.client.expect_guest(GuestState::Reset) > first);
    vm.client.expect_nic(0, SyntheticNicState::Closed);
    vm.qemu.negotiate("net1");
    vm.qemu.negotiate("net0");
    vm.client.expect_nic(0, READY);
    command(&function, true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    vm.qemu.expect_nothing();
}

#[test]
fn a_guest_that_begins_anew_is_not_disturbed_by_the_next_vf_before_its_driver_is_there() {
    let nic = Nic::start(1);
    let (mut vm, vf) = offered(&nic);
    let function = vm.qemu.function(FUNCTION);
    command(&function, true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    vm.client.remove(1);
    vm.client.expect_device(1, DeviceState::Removed);
    vm.qemu.expect_del(FUNCTION);
    vm.client.offer(&nic.offer(0, 2, vf));
    vm.qemu.reset();
    vm.client.expect_guest(GuestState::Reset);
    assert_eq!(vm.client.status().devices[0].state, DeviceState::Opening);
    vm.qemu.expect_nothing();
    vm.qemu.negotiate("net0");
    vm.qemu.expect_del(FUNCTION);
    vm.client.expect_device(2, DeviceState::Offered);
}

#[test]
fn a_guest_that_begins_anew_does_not_find_the_vf_that_it_has_given_up() {
    let nic = Nic::start(1);
    let (mut vm, _) = offered(&nic);
    let function = vm.qemu.function(FUNCTION);
    command(&function, true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    vm.client.eject(1);
    vm.qemu.expect_del(FUNCTION);
    command(&function, false);
    vm.client.expect_device(1, DeviceState::EjectComplete);
    let mut vendor = [0; 2];
    function.config_read(0, &mut vendor).unwrap();
    assert_eq!(vendor, [0xFF; 2]);
    vm.qemu.reset();
    vm.client.expect_guest(GuestState::Reset);
    command(&function, false);
    assert_eq!(vm.client.status().devices[0].state, DeviceState::EjectComplete);
    vm.client.remove(1);
    vm.client.expect_device(1, DeviceState::Removed);
    vm.qemu.expect_nothing();
}

#[test]
fn what_a_guest_has_agreed_on_before_its_adapter_came_is_known() {
    let mut vm = Vm::start(Machine { running: false, ..Machine::default() });
    vm.qemu.negotiate("net1");
    vm.client.ask(PrivateControl::SetAdapter, &adapter(0, MAC)).unwrap();
    vm.client.expect_nic(0, SyntheticNicState::Closed);
    vm.qemu.negotiate("net0");
    vm.client.expect_nic(0, READY);
    vm.client.ask(PrivateControl::SetAdapter, &adapter(1, OTHER_MAC)).unwrap();
    vm.client.expect_nic(1, READY);
}

#[test]
fn a_function_that_qemu_hides_is_offered_when_it_appears_and_ejected_without_the_guest() {
    let nic = Nic::start(1);
    let mut vm = Vm::with_adapter(Machine { hides: true, ..Machine::default() });
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 1, vf));
    vm.qemu.expect("device_add");
    vm.client.eject(1);
    vm.client.expect_device(1, DeviceState::EjectComplete);
    vm.client.remove(1);
    vm.client.expect_device(1, DeviceState::Removed);
    vm.qemu.negotiate("net0");
    assert!(vm.qemu.machine().devices.is_empty(), "there is nothing that it could plug");
    vm.qemu.machine().hides = true;
    vm.client.offer(&nic.offer(0, 2, vf));
    assert_eq!(vm.qemu.expect("device_add")["id"], FUNCTION);
    vm.qemu.negotiate("net0");
    vm.client.expect_device(2, DeviceState::Offered);
    command(&vm.qemu.function(FUNCTION), true);
    vm.client.expect_device(2, DeviceState::BusOpened);
    vm.client.eject(2);
    vm.qemu.expect_del(FUNCTION);
}

#[test]
fn a_function_outlives_its_adapter_and_serves_the_next() {
    let nic = Nic::start(1);
    let (mut vm, vf) = offered(&nic);
    let function = vm.qemu.function(FUNCTION);
    command(&function, true);
    vm.client.expect_device(1, DeviceState::BusOpened);
    vm.client.remove_adapter(0);
    vm.client.expect_device(1, DeviceState::Removed);
    vm.qemu.expect_del(FUNCTION);
    command(&function, false);
    vm.client.ask(PrivateControl::SetAdapter, &adapter(0, OTHER_MAC)).unwrap();
    vm.client.offer(&nic.offer(0, 2, vf));
    vm.qemu.expect_del(FUNCTION);
    vm.client.expect_device(2, DeviceState::Offered);
    command(&function, true);
    vm.client.expect_device(2, DeviceState::BusOpened);
    // Another address, while the guest has it.
    vm.client.ask(PrivateControl::SetAdapter, &adapter(0, MAC)).unwrap();
    vm.client.expect_device(2, DeviceState::Removed);
    vm.qemu.expect_del(FUNCTION);
    vm.client.offer(&nic.offer(0, 3, vf));
    command(&function, false);
    vm.qemu.expect_del(FUNCTION);
    vm.client.expect_device(3, DeviceState::Offered);
}

#[test]
fn a_function_that_qemu_has_left_or_removed_is_followed_by_another() {
    let nic = Nic::start(1);
    let (mut vm, vf) = offered(&nic);
    let bus = vm.qemu.machine().devices.remove(0).bus;
    vm.client.expect_device(1, DeviceState::Removed);
    vm.qemu.expect_del(FUNCTION);
    vm.client.offer(&nic.offer(0, 2, vf));
    assert_eq!(vm.qemu.expect("device_add")["bus"], bus);
    vm.client.expect_device(2, DeviceState::Offered);
}

#[test]
fn qemu_ends_and_the_guest_is_gone_and_then_its_vf() {
    let nic = Nic::start(1);
    let (mut vm, _) = offered(&nic);
    let mut other = Client::connect(vm.host.path().unwrap());
    vm.qemu.kill();
    vm.client.expect_guest(GuestState::Gone);
    vm.client.expect_device(1, DeviceState::Removed);
    other.expect_device(1, DeviceState::Removed);
    vm.gone.recv_timeout(common::LIMIT).unwrap();
    assert_eq!(vm.client.status().guest, GuestState::Gone);
    let offer = serde_json::to_vec(&nic.offer(0, 2, 0)).unwrap();
    let refused = vm.client.raw(PrivateControl::OfferVf.code(), &offer, 0).unwrap_err();
    assert_eq!(refused, pcivirt_protocol::NtStatus::DEVICE_REMOVED);
    drop(vm.host);
    assert!(vm.gone.recv().is_err(), "it is told once");
}

#[test]
fn what_a_process_before_has_left_is_given_up_and_the_next_function_has_another_id() {
    let left = |id: &str| Device {
        id: id.to_owned(),
        bus: "vfport0".to_owned(),
        pair: Some("net0".to_owned()),
        socket: "/nowhere".into(),
        function: None,
    };
    let nic = Nic::start(1);
    let devices = vec![left(FUNCTION)];
    let mut vm = Vm::start_with(Machine { devices, ..Machine::default() }, IMPATIENT);
    vm.qemu.expect_del(FUNCTION);
    vm.client.ask(PrivateControl::SetAdapter, &adapter(0, MAC)).unwrap();
    vm.client.offer(&nic.offer(0, 1, nic.allocate()));
    let added = vm.qemu.expect("device_add");
    assert_eq!((&added["id"], &added["bus"]), (&json!("clearway-vf0-1"), &json!("vfport1")));
    assert_eq!(added.get("failover_pair_id"), None);
    vm.client.expect_device(1, DeviceState::Offered);
}
