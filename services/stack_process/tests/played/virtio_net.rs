//! A guest whose synthetic NIC is a virtio-net, with a host side of its own: it gets a VF, uses it as soon as its driver
//! does, and leaves it by giving it up.

use device_control::DeviceControlServer;
use stack_process::control::{
    AdapterChange, AdapterReport, OUTCOME_CAPACITY, Outcome, PrivateControl, SetAdapter,
    StackStatus,
};
use virtualization_stack::{ActiveStep, DataPath, Health, RevokingStep, State, SyntheticStep};
use vm_worker::control::{DeviceState, SyntheticNicState};

use crate::guests::Manners;
use crate::weight;
use crate::world::World;

const READY: SyntheticNicState = SyntheticNicState::Ready { failover: true };

const QEMU: &str = r#"
[[vm]]
name = "qemu"
socket = "qemu/control.sock"
[[vm.adapter]]
name = "net0"
kind = "vhost-user"
socket = "qemu/net0.vhost"
mac = "00:15:5D:00:00:09"
switch = "external"
iov-weight = 100
"#;

fn start(world: &World) -> DeviceControlServer {
    let server = world.guests.start_vm("qemu", &world.path("qemu/control.sock"));
    world.guests.virtio_net("qemu", 0, SyntheticNicState::Closed);
    server
}

/// A world in which the guest's driver is up, with these time-outs.
fn up(timeouts: &str) -> (World, DeviceControlServer) {
    let world = World::new(&format!("{QEMU}\n[timeouts]\n{timeouts}"));
    let server = start(&world);
    world.guests.virtio_net("qemu", 0, READY);
    (world, server)
}

fn adapter(status: &StackStatus) -> &AdapterReport {
    &status.vms.iter().find(|vm| vm.name == "qemu").unwrap().adapters[0]
}

#[track_caller]
fn until(world: &World, what: &str, done: impl Fn(&AdapterReport) -> bool) -> AdapterReport {
    adapter(&world.until(what, |status| done(adapter(status)))).clone()
}

#[track_caller]
fn until_active(world: &World) -> AdapterReport {
    let active = until(world, "the VF is used", |adapter| {
        adapter.state == State::Active(ActiveStep::Resting) && adapter.reasons.is_empty()
    });
    assert_eq!((active.health, active.data_path), (Health::OkSriovActive, DataPath::Vf));
    active
}

/// The only reason, once it is this one.
#[track_caller]
fn until_reason(world: &World, code: &str) -> (String, String) {
    let adapter =
        until(world, code, |adapter| adapter.reasons.len() == 1 && adapter.reasons[0].code == code);
    (adapter.reasons[0].text.clone(), adapter.reasons[0].cure.clone())
}

fn until_given_back(world: &World) {
    until(world, "the VF is given back", |adapter| {
        adapter.state == State::Synthetic(SyntheticStep::Resting)
    });
    until_reason(world, "WeightZero");
    assert!(!has_vf(world));
}

fn set(world: &World, change: AdapterChange) {
    let asked = SetAdapter { vm: "qemu".into(), adapter: "net0".into(), change };
    let outcome: Outcome = world.ask(PrivateControl::SetAdapter, &asked, OUTCOME_CAPACITY);
    assert_eq!(outcome, Outcome::Done);
}

/// What the guest's host side, or its port, was told.
fn told(world: &World) -> Vec<String> {
    let told = world.guests.lock().told.clone();
    told.into_iter().filter(|line| line.contains("qemu")).collect()
}

/// Whether the NIC has the guest's VF.
fn has_vf(world: &World) -> bool {
    world.nic_status().vfs.iter().any(|vf| vf.mac == "00:15:5d:00:00:09")
}

#[test]
fn a_vf_is_offered_used_ejected_and_offered_again() {
    let world = World::new(QEMU);
    let (text, cure) = until_reason(&world, "VmNotRunning");
    assert_eq!(
        text,
        "VM qemu does not run, or no `clearway vm qemu NAME --worker SOCKET --qmp SOCKET` drives its QEMU"
    );
    assert!(cure.contains("--qmp"), "{cure}");

    let _server = start(&world);
    until_reason(&world, "GuestNotReady");
    world.guests.virtio_net("qemu", 0, SyntheticNicState::Ready { failover: false });
    let (text, cure) = until_reason(&world, "GuestUnsupported");
    assert!(text.contains("did not agree on VIRTIO_NET_F_STANDBY"), "{text}");
    assert!(cure.contains("failover=on"), "{cure}");
    assert!(!has_vf(&world));
    // The one of another guest does not count.
    world.guests.virtio_net("qemu", 1, READY);
    world.guests.virtio_net("web", 0, SyntheticNicState::Closed);

    world.guests.virtio_net("qemu", 0, READY);
    until_active(&world);
    assert!(has_vf(&world));
    {
        let state = world.guests.lock();
        let [offer] = state.vms["qemu"].devices.values().collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!(offer.mac.as_deref(), Some("00:15:5d:00:00:09"));
        assert!(offer.vf_socket.exists());
    }

    // It is not asked to leave: it is ejected, and leaves when its driver stops.
    world.guests.manners(Manners { uses_vf: true, willing: false });
    set(&world, weight(0));
    let ejecting = State::Revoking(RevokingStep::Eject);
    world.guests.until("it is ejected", |state| state.told.iter().any(|t| t == "qemu EjectVf 0"));
    let leaving = until(&world, "it is ejected", |adapter| adapter.state == ejecting);
    assert_eq!(leaving.data_path, DataPath::Vf);
    world.guests.devices("qemu", &DeviceState::DeviceStarted);
    let left = until(&world, "its driver stops", |a| a.data_path == DataPath::Synthetic);
    assert_eq!(left.state, ejecting);
    assert!(has_vf(&world));
    world.guests.devices("qemu", &DeviceState::EjectComplete);
    until_given_back(&world);
    let (paths, others) = told_apart(&world);
    let expected = [
        "SetPort qemu/net0",
        "qemu SetAdapter qemu/net0",
        "qemu OfferVf 0",
        "qemu EjectVf 0",
        // Its filters are home.
        "qemu LetLeave 0",
        "qemu RemoveVf 0",
    ];
    assert_eq!(others, expected);
    // Its port is told, too, by which path the guest takes frames.
    let expected = ["Synthetic", "Vf", "Moving", "Synthetic"];
    assert_eq!(paths, expected.map(|path| format!("qemu/net0 GuestPath {path}")));

    world.guests.manners(Manners { uses_vf: true, willing: true });
    set(&world, weight(100));
    until_active(&world);
    // Without a step in between.
    set(&world, weight(0));
    until_given_back(&world);
    let (_, others) = told_apart(&world);
    let expected = ["qemu OfferVf 0", "qemu EjectVf 0", "qemu LetLeave 0", "qemu RemoveVf 0"];
    assert_eq!(others[6..], expected);
    let event = "qemu/net0: the guest moved the data path to the synthetic path";
    let events = world.events();
    assert_eq!(events.iter().filter(|text| *text == event).count(), 2, "{events:#?}");
}

/// What its port was told of its path, and all else that was told: on connections of their own.
fn told_apart(world: &World) -> (Vec<String>, Vec<String>) {
    told(world).into_iter().partition(|line| line.contains("GuestPath"))
}

#[test]
fn a_guest_moves_by_its_vf_s_driver_alone() {
    let (world, _server) = up("");
    let before = until_active(&world);
    world.guests.devices("qemu", &DeviceState::DeviceStarted);
    until_reason(&world, "GuestLeftVf");
    world.guests.devices("qemu", &DeviceState::InUse);
    until_active(&world);
    // A virtio-net that is closed, or was, takes the VF from nobody.
    world.guests.virtio_net("qemu", 0, SyntheticNicState::Closed);
    world.guests.devices("qemu", &DeviceState::DeviceStarted);
    until(&world, "it leaves", |adapter| adapter.data_path == DataPath::Synthetic);
    world.guests.virtio_net("qemu", 0, READY);
    world.guests.virtio_net("qemu", 0, READY);
    world.guests.devices("qemu", &DeviceState::InUse);
    let after = until_active(&world);
    assert_eq!(before.virtual_function, after.virtual_function);
}

#[test]
fn why_a_vf_could_not_be_offered_is_said_and_it_is_offered_again() {
    let world = World::new(&format!("{QEMU}\n[timeouts]\nretry = 0.3"));
    let cause =
        "the bus of the virtio-net has no free PCIe port: add -device pcie-root-port,id=rp1";
    world.guests.lock().offer_error = Some(cause.into());
    let _server = start(&world);
    world.guests.virtio_net("qemu", 0, READY);
    let (text, cure) = until_reason(&world, "OfferFailed");
    assert_eq!(text, format!("the VM's host side could not offer the VF to the guest: {cause}"));
    assert!(cure.contains("by itself"), "{cure}");
    world.guests.lock().offer_error = None;
    until_active(&world);
}

#[test]
fn a_guest_that_never_uses_its_vf_keeps_it_and_the_reason_says_why() {
    let (world, _server) = up("offer = 0.5");
    until_active(&world);
    // None of its drivers wants it in its next life; then one does, and fails.
    world.guests.reboot("qemu");
    world.guests.virtio_net("qemu", 0, READY);
    let (text, cure) = until_reason(&world, "GuestNoVfDriver");
    assert!(text.starts_with("no driver in the guest took the VF"), "{text}");
    assert_eq!(cure, "install a driver for the VF in the guest");
    world.guests.devices("qemu", &DeviceState::DeviceStarted);
    until_reason(&world, "GuestVfFailed");
    world.guests.devices("qemu", &DeviceState::InUse);
    until_active(&world);
}

#[test]
fn a_guest_that_reboots_keeps_its_vf() {
    let (world, _server) = up("");
    let before = until_active(&world);
    world.guests.reboot("qemu");
    let booting = until(&world, "it reboots", |adapter| adapter.data_path == DataPath::Synthetic);
    assert_eq!(booting.virtual_function, before.virtual_function);
    world.guests.virtio_net("qemu", 0, READY);
    world.guests.devices("qemu", &DeviceState::DeviceStarted);
    world.guests.devices("qemu", &DeviceState::InUse);
    let after = until_active(&world);
    // So quickly that only what it became is told.
    world.guests.reboot("qemu");
    world.guests.virtio_net("qemu", 0, READY);
    world.guests.devices("qemu", &DeviceState::InUse);
    world.guests.say_reset("qemu");
    let last = until_active(&world);
    assert_eq!(after.virtual_function, before.virtual_function);
    assert_eq!(last.virtual_function, before.virtual_function);
}

#[test]
fn a_host_side_that_is_killed_leaves_no_vf_behind() {
    let (world, server) = up("");
    until_active(&world);
    world.guests.stop_vm("qemu", server);
    until_reason(&world, "VmNotRunning");
    world.until("the VF is given back", |_| !has_vf(&world));
    let _server = start(&world);
    world.guests.virtio_net("qemu", 0, READY);
    until_active(&world);
}

#[test]
fn a_vf_whose_nic_is_gone_is_taken_by_surprise() {
    let (mut world, _server) = up("");
    until_active(&world);
    drop(world.nic.take());
    until_reason(&world, "PfRemoved");
    let surprised = |line: &String| line == "qemu RemoveVf 0 by surprise";
    assert!(told(&world).iter().any(surprised), "{:#?}", told(&world));
    world.start_nic();
    until_active(&world);
}

#[test]
fn a_switch_that_restarts_changes_nothing_for_the_guest() {
    let (mut world, _server) = up("");
    let before = until_active(&world);
    let restart = |world: &mut World| {
        drop(world.switch.take());
        world.until("the switch is missed", |status| !status.switches[0].connection.connected);
        world.start_switch();
        world.until("the switch is back", |status| status.switches[0].connection.connected);
    };
    restart(&mut world);
    assert_eq!(until_active(&world).virtual_function, before.virtual_function);
    set(&world, weight(0));
    until_given_back(&world);
    restart(&mut world);
    set(&world, weight(100));
    until_active(&world);
}

#[test]
fn a_stack_that_is_started_anew_has_the_guest_s_vf_given_back_first() {
    let (mut world, _server) = up("");
    until_active(&world);
    drop(world.stack.take());
    world.guests.lock().told.clear();
    world.start_stack();
    until_active(&world);
    let told = told(&world);
    // What the switch is told comes on a connection of its own.
    let told: Vec<_> = told.iter().filter(|line| line.starts_with("qemu ")).collect();
    let expected =
        ["qemu SetAdapter qemu/net0", "qemu EjectVf 0", "qemu RemoveVf 0", "qemu OfferVf 0"];
    assert_eq!(told, expected);
}

#[test]
fn a_stack_that_is_started_anew_lets_a_guest_leave_its_vf_whose_filters_it_cannot_move() {
    let (mut world, _server) = up("");
    until_active(&world);
    drop(world.stack.take());
    world.guests.lock().told.clear();
    world.guests.manners(Manners { uses_vf: true, willing: false });
    world.start_stack();
    let has_told =
        |line: &str| world.guests.until(line, |state| state.told.iter().any(|it| it == line));
    has_told("qemu EjectVf 0");
    world.guests.devices("qemu", &DeviceState::DeviceStarted);
    has_told("qemu LetLeave 0");
    for vm in ["qemu", "web"] {
        world.guests.devices(vm, &DeviceState::EjectComplete);
    }
    has_told("qemu RemoveVf 0");
    until_active(&world);
}

#[test]
fn an_adapter_that_is_added_finds_its_guest_s_driver_up() {
    let (world, _server) = up("");
    until_active(&world);
    world.guests.virtio_net("qemu", 1, READY);
    world.guests.say_reset("web");
    world.write(&format!(
        "{QEMU}[[vm.adapter]]\nname = \"net1\"\nkind = \"vhost-user\"\nsocket = \"net1.vhost\"\nmac = \"00:15:5D:00:00:0A\"\nswitch = \"external\"\niov-weight = 100\n[timeouts]\n"
    ));
    let outcome: Outcome = world.ask(PrivateControl::Reload, &(), OUTCOME_CAPACITY);
    assert_eq!(outcome, Outcome::Done);
    world.until_active();
}
