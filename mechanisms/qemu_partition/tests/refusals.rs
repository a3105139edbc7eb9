//! What cannot be done, and what is said of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use common::{MAC, Vm, adapter, name, nic::Nic, qemu::Machine, refused};
use pcivirt_protocol::NtStatus;
use vm_worker::control::{
    AdapterNumber, DeviceState, PrivateControl, RemoveVf, SHUT_DOWN_CAPACITY, ShutDownGuest,
    SyntheticNicKind,
};

/// Why a VF is not offered to the guest of this machine.
fn failure(machine: Machine) -> String {
    let nic = Nic::start(1);
    let mut vm = Vm::start(machine);
    vm.client.ask(PrivateControl::SetAdapter, &adapter(0, MAC)).unwrap();
    vm.client.offer(&nic.offer(0, 1, nic.allocate()));
    let cause = vm.client.expect_failure(1);
    let status = vm.client.status();
    assert_eq!(status.devices, []);
    assert_eq!(status.adapters.first().unwrap().last_error.as_ref(), Some(&cause));
    cause
}

#[test]
fn a_machine_that_cannot_have_vfs_is_refused_at_once_with_the_option_to_add() {
    let machine = Machine { shared: false, ..Machine::default() };
    let error = refused(machine).to_string();
    assert!(error.contains("share=on") && error.contains("memory-backend=mem"), "{error}");
    let machine = Machine { vfio_user: false, minor: 0, ..Machine::default() };
    let error = refused(machine).to_string();
    assert!(error.contains("11.0.2") && error.contains("built with vfio-user"), "{error}");
}

#[test]
fn a_vf_that_the_machine_has_no_place_for_is_refused_with_the_option_to_add() {
    let machine = Machine { nics: vec![("net1", common::OTHER_MAC, true)], ..Machine::default() };
    let cause = failure(machine);
    assert!(cause.contains("failover=on") && cause.contains("there are"), "{cause}");
    let machine = Machine { nics: vec![("net0", MAC, false)], ..Machine::default() };
    let cause = failure(machine);
    assert!(cause.contains("failover=on"), "{cause}");
    let cause = failure(Machine { acpi: true, ..Machine::default() });
    assert!(cause.contains("acpi-pci-hotplug-with-bridge-support=off"), "{cause}");
    let cause = failure(Machine { ports: Vec::new(), ..Machine::default() });
    assert!(cause.contains("pcie-root-port") && !cause.contains("cannot give"), "{cause}");
    let cause = failure(Machine { ports: vec![("rp0", true)], ..Machine::default() });
    assert!(cause.contains("power_controller_present=off cannot give a VF back"), "{cause}");
    let cause = failure(Machine { refusal: Some("no such thing"), ..Machine::default() });
    assert_eq!(cause, "QEMU refuses device_add: no such thing");
}

#[test]
fn a_nic_that_is_plugged_later_is_found_when_its_vf_is_offered_again() {
    let nic = Nic::start(1);
    let mut vm = Vm::start(Machine { nics: Vec::new(), ..Machine::default() });
    vm.client.ask(PrivateControl::SetAdapter, &adapter(0, MAC)).unwrap();
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 1, vf));
    let cause = vm.client.expect_failure(1);
    assert!(cause.contains(MAC), "{cause}");
    vm.qemu.machine().nics.push(("net0", MAC, true));
    vm.client.offer(&nic.offer(0, 2, vf));
    vm.qemu.expect("device_add");
    vm.client.expect_device(2, DeviceState::Offered);
    assert_eq!(vm.client.status().adapters.first().unwrap().last_error, None);
}

#[test]
fn a_vf_that_is_not_there_is_refused_and_another_can_be_offered() {
    let nic = Nic::start(1);
    let mut vm = Vm::with_adapter(Machine::default());
    vm.client.offer(&nic.offer(0, 1, 0));
    let cause = vm.client.expect_failure(1);
    assert!(cause.contains("vf0.sock"), "{cause}");
    let mut elsewhere = nic.offer(0, 2, nic.allocate());
    elsewhere.nic = "/nowhere".into();
    vm.client.offer(&elsewhere);
    let cause = vm.client.expect_failure(2);
    assert!(cause.contains("/nowhere"), "{cause}");
    vm.qemu.expect_nothing();
    vm.client.offer(&nic.offer(0, 3, 0));
    vm.qemu.expect("device_add");
    vm.client.expect_device(3, DeviceState::Offered);
}

#[test]
fn what_clients_ask_for_that_makes_no_sense_is_refused_and_nothing_is_done() {
    let nic = Nic::start(1);
    let mut vm = Vm::with_adapter(Machine::default());
    let client = &vm.client;
    assert_eq!(client.raw(99, &[], 0).unwrap_err(), NtStatus::INVALID_DEVICE_REQUEST);
    use PrivateControl as Control;
    for control in [
        Control::SetAdapter,
        Control::RemoveAdapter,
        Control::OfferVf,
        Control::ReplaceMitigatedRanges,
        Control::EjectVf,
        Control::RemoveVf,
        Control::ShutDownGuest,
    ] {
        for input in [&b""[..], b"{", b"[]", b"{\"adapter\": \"0\"}", b"\xFF"] {
            // A sequence without anything is all defaults.
            if control == Control::ShutDownGuest && input == b"[]" {
                continue;
            }
            let answer = client.raw(control.code(), input, SHUT_DOWN_CAPACITY);
            assert_eq!(answer.unwrap_err(), NtStatus::INVALID_PARAMETER, "{control:?}");
        }
    }
    let mut net_vsc = adapter(1, common::OTHER_MAC);
    net_vsc.kind = SyntheticNicKind::NetVsc;
    let answer = client.ask(Control::SetAdapter, &net_vsc);
    assert_eq!(answer.unwrap_err(), NtStatus::NOT_SUPPORTED);
    let answer = client.ask(Control::SetAdapter, &adapter(1, "nonsense"));
    assert_eq!(answer.unwrap_err(), NtStatus::INVALID_PARAMETER);
    let answer = client.ask(Control::RemoveAdapter, &AdapterNumber { adapter: 7 });
    assert_eq!(answer.unwrap_err(), NtStatus::NOT_FOUND);
    assert_eq!(client.ask(Control::EjectVf, &name(7)).unwrap_err(), NtStatus::NOT_FOUND);
    let reboot = ShutDownGuest { reboot: true, ..ShutDownGuest::default() };
    let answer = client.ask(Control::ShutDownGuest, &reboot);
    assert_eq!(answer.unwrap_err(), NtStatus::NOT_SUPPORTED);
    let remove = RemoveVf { adapter: 7, serial: 7, surprise: true };
    client.ask(Control::RemoveVf, &remove).unwrap();
    let offer = nic.offer(0, 1, nic.allocate());
    client.offer(&offer);
    client.offer(&offer);
    let answer = client.ask(Control::OfferVf, &nic.offer(0, 2, 0));
    assert_eq!(answer.unwrap_err(), NtStatus::SHARING_VIOLATION);
    assert_eq!(client.ask(Control::EjectVf, &name(2)).unwrap_err(), NtStatus::NOT_FOUND);
    vm.qemu.expect("device_add");
    vm.client.expect_device(1, DeviceState::Offered);
    vm.qemu.expect_nothing();
}

#[test]
fn a_guest_is_asked_to_shut_down_and_qemu_to_end() {
    let vm = Vm::with_adapter(Machine::default());
    let input = serde_json::to_vec(&ShutDownGuest::default()).unwrap();
    let code = PrivateControl::ShutDownGuest.code();
    let answer = vm.client.raw(code, &input, SHUT_DOWN_CAPACITY).unwrap();
    assert_eq!(answer, br#"{"answer":"initiated"}"#);
    vm.qemu.expect("system_powerdown");
    vm.client.raw(PrivateControl::Shutdown.code(), &[], 0).unwrap();
    vm.qemu.expect("quit");
    vm.gone.recv_timeout(common::LIMIT).unwrap();
}
