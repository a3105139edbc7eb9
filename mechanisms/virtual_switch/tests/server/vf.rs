//! NetVSP's and the virtualization stack's views of a VF, and a real NetVSC's: each sequence.

use netvsp::client::{Upcall, VfPath};
use netvsp_protocol::nvsp;
use virtual_switch::control::{
    DataPath::{Synthetic, Vf},
    GuestState, VfCommand,
};

use crate::common::{READY, SERIAL, Stack, VmWorker, World, frame, mac, wait_for};

fn address(number: u8) -> netvsp_protocol::MacAddress {
    netvsp_protocol::MacAddress::new(mac(number))
}

/// Two guests, of which the first has been told of a VF whose driver is not up.
fn told() -> (World, Stack, VmWorker, VmWorker) {
    let world = World::new();
    let mut stack = world.stack();
    stack.port(1);
    stack.port(2);
    let (mut one, two) = (world.guest("vm1"), world.guest("vm2"));
    stack.report_of("vm1", |report| report.guest == READY);
    stack.command("vm1", VfCommand::VfAvailable { serial: SERIAL });
    hear(&mut one, Some(SERIAL));
    assert_eq!(stack.report_of("vm1", |report| report.vf.is_some()).vf, Some(SERIAL));
    one.nic.vf_device(Some((SERIAL, address(1))));
    (world, stack, one, two)
}

fn hear(guest: &mut VmWorker, serial: Option<u32>) {
    guest.run_until("association", |guest| guest.told.contains(&Upcall::VfAssociation(serial)));
    guest.told.clear();
}

/// As `told`, and the first guest uses its VF.
fn on_vf() -> (World, Stack, VmWorker, VmWorker) {
    let (world, mut stack, mut one, two) = told();
    one.nic.vf_driver(true);
    grant(&mut stack, &mut one);
    (world, stack, one, two)
}

fn grant(stack: &mut Stack, guest: &mut VmWorker) {
    stack.report_of(&guest.port, |report| report.asks == Some(Vf));
    say_yes(stack, guest);
}

fn say_yes(stack: &Stack, guest: &mut VmWorker) {
    stack.complete(&guest.port, Vf);
    guest.run_until("on its VF", |guest| guest.nic.control().path() == VfPath::Vf);
}

/// Frames of the second guest that go nowhere, as there is no uplink.
fn lost(stack: &Stack) -> u64 {
    stack.port_status("vm2").statistics.no_receiver
}

/// The second guest's frames reach the first one by the switch.
fn by_the_switch(one: &mut VmWorker, two: &mut VmWorker) {
    for to in [mac(1), [0xFF; 6]] {
        let bytes = frame(to, mac(2), b"by the switch");
        two.send(&bytes);
        one.expect(&bytes);
    }
}

#[test]
fn a_vf_that_is_given_is_used_when_the_guest_asks_and_the_stack_has_answered() {
    let (_world, mut stack, mut one, mut two) = told();
    by_the_switch(&mut one, &mut two);
    one.nic.vf_driver(true);
    let report = stack.report_of("vm1", |report| report.asks.is_some());
    assert_eq!((report.asks, report.request, report.active), (Some(Vf), 1, Synthetic));
    by_the_switch(&mut one, &mut two);
    assert_eq!(one.nic.control().path(), VfPath::AskedForVf);
    stack.complete("vm1", Vf);
    let report = stack.report_of("vm1", |report| report.asks.is_none());
    assert_eq!((report.active, report.request), (Vf, 1));
    one.run_until("on its VF", |guest| guest.nic.control().path() == VfPath::Vf);
    assert_eq!(stack.port_status("vm1").data_path, Vf);
    // Neither floods nor unicast are for the port now: they are the uplink's.
    let before = lost(&stack);
    two.send(&frame(mac(1), mac(2), b"by the uplink"));
    two.send(&frame([0xFF; 6], mac(2), b"by the uplink"));
    wait_for("two frames", || lost(&stack) == before + 2);
    one.turn();
    assert_eq!(one.take(), Vec::<Vec<u8>>::new());
    // What the guest sends by the switch all the same is forwarded.
    let bytes = frame(mac(2), mac(1), b"exceptional");
    one.send(&bytes);
    two.expect(&bytes);
}

#[test]
fn a_guest_that_leaves_takes_frames_from_its_request_on_and_is_answered_when_filters_are_home() {
    let (_world, mut stack, mut one, mut two) = on_vf();
    one.nic.vf_driver(false);
    let report = stack.report_of("vm1", |report| report.asks.is_some());
    assert_eq!((report.asks, report.request, report.active), (Some(Synthetic), 2, Vf));
    // Filters are still on the VF.
    by_the_switch(&mut one, &mut two);
    assert_eq!(one.nic.control().path(), VfPath::AskedForSynthetic);
    stack.complete("vm1", Synthetic);
    one.run_until("home", |guest| guest.nic.control().path() == VfPath::Synthetic);
    by_the_switch(&mut one, &mut two);
    stack.command("vm1", VfCommand::VfLost { serial: SERIAL });
    hear(&mut one, None);
    let report = stack.report_of("vm1", |report| report.vf.is_none());
    assert_eq!((report.asks, report.active), (None, Synthetic));
}

/// Answers whatever the guest asks, as a stack does whose filters are home.
fn answer(stack: &mut Stack) {
    while let Some(report) = stack.poll_report() {
        if report.asks.is_some() {
            stack.complete(&report.port, Synthetic);
        }
    }
}

#[test]
fn a_vf_taken_back_by_the_host_goes_in_the_published_order_and_the_next_is_used() {
    let (_world, mut stack, mut one, mut two) = on_vf();
    stack.command("vm1", VfCommand::SwitchDataPath { to: Synthetic });
    // The port takes frames again before the guest has heard of it.
    by_the_switch(&mut one, &mut two);
    wait_for("the guest leaves", || {
        one.turn();
        answer(&mut stack);
        one.nic.control().path() == VfPath::Synthetic
    });
    stack.command("vm1", VfCommand::VfLost { serial: SERIAL });
    hear(&mut one, None);
    one.nic.vf_device(None);
    by_the_switch(&mut one, &mut two);
    assert_eq!(stack.port_status("vm1").vf, None);
    stack.command("vm1", VfCommand::VfAvailable { serial: 8 });
    hear(&mut one, Some(8));
    one.nic.vf_device(Some((8, address(1))));
    one.nic.vf_driver(true);
    grant(&mut stack, &mut one);
    assert_eq!(stack.port_status("vm1").data_path, Vf);
}

#[test]
fn a_silent_guest_stops_nobody_and_hears_everything_in_order_when_it_wakes() {
    let (_world, mut stack, mut one, two) = on_vf();
    stack.command("vm1", VfCommand::SwitchDataPath { to: Synthetic });
    stack.command("vm1", VfCommand::VfLost { serial: SERIAL });
    let status = stack.port_status("vm1");
    assert_eq!((status.vf, status.data_path), (None, Synthetic));
    // The next VF, too, and its loss.
    stack.command("vm1", VfCommand::VfAvailable { serial: 8 });
    stack.command("vm1", VfCommand::VfLost { serial: 8 });
    drop(two);
    one.run_until("all of it", |guest| {
        let about = |upcall: &&Upcall| matches!(upcall, Upcall::VfAssociation(_));
        guest.told.iter().filter(about).count() == 3
    });
    let told = one.told.iter().filter(|upcall| matches!(upcall, Upcall::VfAssociation(_)));
    let told: Vec<_> = told.copied().collect();
    assert_eq!(told, [None, Some(8), None].map(Upcall::VfAssociation));
    assert_eq!(one.nic.control().path().transmit(), nvsp::DataPath::Synthetic);
    answer(&mut stack);
}

#[test]
fn a_path_that_cannot_be_had_is_answered_and_taken_back() {
    let (_world, mut stack, mut one, mut two) = told();
    one.nic.vf_driver(true);
    stack.report_of("vm1", |report| report.asks == Some(Vf));
    // As the stack does it: the loss first, then the answer.
    stack.command("vm1", VfCommand::VfLost { serial: SERIAL });
    stack.complete("vm1", Synthetic);
    wait_for("the guest is home", || {
        one.turn();
        answer(&mut stack);
        one.nic.control().path() == VfPath::Synthetic
    });
    by_the_switch(&mut one, &mut two);
    assert_eq!(stack.port_status("vm1").data_path, Synthetic);
}

#[test]
fn a_guest_that_moves_to_and_fro_is_answered_each_time() {
    let (_world, mut stack, mut one, mut two) = told();
    for round in 0..50u64 {
        one.nic.vf_driver(true);
        let report = stack.report_of("vm1", |report| report.asks.is_some());
        assert_eq!((report.asks, report.request), (Some(Vf), 2 * round + 1));
        // It changes its mind before the answer.
        if round % 2 == 0 {
            one.nic.vf_driver(false);
        }
        stack.complete("vm1", Vf);
        if round % 2 == 1 {
            one.run_until("on its VF", |guest| guest.nic.control().path() == VfPath::Vf);
            one.nic.vf_driver(false);
        }
        wait_for("the way home", || {
            one.turn();
            stack.poll_report().is_some_and(|report| report.asks == Some(Synthetic))
        });
        stack.complete("vm1", Synthetic);
        one.run_until("home", |guest| guest.nic.control().path() == VfPath::Synthetic);
        by_the_switch(&mut one, &mut two);
    }
}

#[test]
fn a_channel_closed_meanwhile_forgets_the_request_and_the_next_driver_asks_anew() {
    let (_world, mut stack, mut one, mut two) = told();
    one.nic.vf_driver(true);
    stack.report_of("vm1", |report| report.asks == Some(Vf));
    one.close();
    let report = stack.report_of("vm1", |report| report.guest == GuestState::Closed);
    assert_eq!((report.asks, report.vf), (None, Some(SERIAL)));
    // The answer to a request that is gone: filters are on the VF all the same.
    stack.complete("vm1", Vf);
    assert_eq!(stack.port_status("vm1").data_path, Vf, "the guest may drive it by itself");
    one.told.clear();
    one.open().unwrap();
    one.run_until("up", |guest| guest.up);
    let report = stack.report_of("vm1", |report| report.asks.is_some());
    assert_eq!((report.guest, report.session, report.active), (READY, 2, Vf));
    assert_eq!((report.asks, report.request), (Some(Vf), 2));
    say_yes(&stack, &mut one);
    let before = lost(&stack);
    two.send(&frame(mac(1), mac(2), b"by the uplink"));
    wait_for("a frame", || lost(&stack) == before + 1);
}

/// The first guest's driver closes its channel, and one opens it again.
fn reopen(guest: &mut VmWorker) {
    guest.close();
    guest.open().unwrap();
    guest.run_until("up", |guest| guest.up);
}

#[test]
fn a_driver_that_reopens_its_channel_keeps_the_vf() {
    let (_world, mut stack, mut one, mut two) = on_vf();
    // Of whatever configuration the port is now.
    for configured in [false, true] {
        if configured {
            stack.port(1);
        }
        reopen(&mut one);
        assert_eq!(stack.port_status("vm1").data_path, Vf);
        let before = lost(&stack);
        two.send(&frame(mac(1), mac(2), b"by the uplink"));
        wait_for("a frame", || lost(&stack) == before + 1);
    }
    // This one does not remember, and is answered.
    grant(&mut stack, &mut one);
    assert_eq!(stack.port_status("vm1").data_path, Vf);
}

#[test]
fn a_driver_that_was_about_to_leave_and_a_guest_that_begins_anew_take_frames_by_the_switch() {
    for leaves in [true, false] {
        let (_world, mut stack, mut one, mut two) = on_vf();
        if leaves {
            one.nic.vf_device(None);
            // A channel that is closed takes with it what was not read of it.
            stack.report_of("vm1", |report| report.asks == Some(Synthetic));
        } else {
            one.life += 1;
        }
        reopen(&mut one);
        by_the_switch(&mut one, &mut two);
        assert_eq!(stack.port_status("vm1").data_path, Synthetic);
    }
}

#[test]
fn a_stack_that_starts_anew_knows_what_there_is_and_answers_what_was_asked() {
    let (world, mut stack, mut one, two) = told();
    one.nic.vf_driver(true);
    stack.report_of("vm1", |report| report.asks == Some(Vf));
    drop(stack);
    let mut stack = world.stack();
    let report = stack.report_of("vm1", |_| true);
    assert_eq!((report.guest, report.asks), (READY, Some(Vf)));
    assert_eq!((report.vf, report.active, report.session), (Some(SERIAL), Synthetic, 1));
    say_yes(&stack, &mut one);
    drop(stack);
    let mut stack = world.stack();
    let report = stack.report_of("vm1", |_| true);
    assert_eq!((report.asks, report.vf, report.active), (None, Some(SERIAL), Vf));
    // Another VF is announced in place of the one that nobody remembers.
    stack.command("vm1", VfCommand::VfAvailable { serial: 9 });
    hear(&mut one, Some(9));
    drop((one, two));
}
