//! Synthetic NICs: offered when there is a switch, opened by it, and taken back with it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::time::Duration;

use common::{LIMIT, Vm, switch::Switch, wait_until};
use device_control::{DeviceControlClient, DriverName};
use partition::guest::GuestError;
use pcivirt_protocol::NtStatus;
use virtual_switch::{
    control::{self, BufferKind, ChannelUpcall, PortConfig},
    server::{SwitchConfig, SwitchServer, control_socket},
};
use vm_worker::control::{AdapterConfig, MAX_ADAPTERS, PrivateControl, SyntheticNicKind};

#[test]
fn a_nic_is_offered_once_its_switch_has_the_port_and_its_channel_is_opened_there() {
    let (vm, mut guest) = Vm::start();
    guest.connect();
    let mut switch = Switch::start(&[]);
    vm.client.set_adapter(&switch.adapter(0, "web"));
    wait_until("the reason", || {
        vm.client.status().adapters[0].last_error.as_deref() == Some("external has no port web")
    });
    assert!(!guest.has_offers());
    switch.shared.lock().ports.insert("web".to_owned());
    let offer = guest.nic(0);
    let channel = guest.open(&offer).unwrap();
    // One region of memory, and the two signals.
    assert_eq!(switch.shared.lock().open[&("web".to_owned(), 0)].1, 3);
    let status = vm.client.status();
    assert!(status.adapters[0].offered && status.adapters[0].connected);
    assert_eq!(status.adapters[0].channels, 1);
    assert_eq!(status.vmbus.as_deref(), Some("6.0"));
    guest.bus.close(channel, LIMIT).unwrap();
    assert_eq!(switch.channels(), 0);
    // And once more.
    let channel = guest.open(&offer).unwrap();
    assert_eq!(switch.channels(), 1);
    guest.bus.close(channel, LIMIT).unwrap();
    switch.kill();
    guest.expect_rescinded(offer.channel);
    guest.bus.release(offer.channel).unwrap();
}

#[test]
fn a_nic_comes_again_after_its_switch_was_killed() {
    let (vm, mut guest) = Vm::start();
    let mut switch = Switch::start(&["web"]);
    vm.client.set_adapter(&switch.adapter(0, "web"));
    guest.connect();
    let mut instances = Vec::new();
    for _ in 0..3 {
        let offer = guest.nic(0);
        instances.push(offer.instance_id);
        let channel = guest.open(&offer).unwrap();
        switch.kill();
        guest.let_go(channel);
        assert!(!vm.client.status().adapters[0].offered);
        switch.serve(&["web"]);
    }
    let offer = guest.nic(0);
    instances.push(offer.instance_id);
    instances.dedup();
    assert_eq!(instances.len(), 1, "the guest knows the NIC again");
}

#[test]
fn a_nic_goes_with_its_port_and_moves_to_another() {
    let (vm, mut guest) = Vm::start();
    guest.connect();
    let switch = Switch::start(&["web", "other"]);
    vm.client.set_adapter(&switch.adapter(0, "web"));
    let offer = guest.nic(0);
    let channel = guest.open(&offer).unwrap();
    switch.delete("web");
    guest.let_go(channel);
    switch.shared.lock().ports.insert("web".to_owned());
    let channel = guest.nic(0);
    let channel = guest.open(&channel).unwrap();
    // The same again changes nothing.
    vm.client.set_adapter(&switch.adapter(0, "web"));
    assert_eq!(vm.client.status().adapters[0].channels, 1);
    vm.client.set_adapter(&switch.adapter(0, "other"));
    guest.let_go(channel);
    let offer = guest.nic(0);
    let channel = guest.open(&offer).unwrap();
    let open: Vec<_> = switch.shared.lock().open.keys().cloned().collect();
    assert_eq!(open, [("other".to_owned(), 0)]);
    vm.client.remove_adapter(0).unwrap();
    guest.let_go(channel);
    wait_until("the end", || vm.client.status().adapters.is_empty());
    assert_eq!(switch.channels(), 0);
    assert_eq!(vm.client.remove_adapter(0), Err(NtStatus::NOT_FOUND));
}

#[test]
fn buffers_and_subchannels_are_the_switchs() {
    let (vm, mut guest) = Vm::start();
    guest.connect();
    let switch = Switch::start(&["web"]);
    vm.client.set_adapter(&switch.adapter(0, "web"));
    let offer = guest.nic(0);
    let channel = guest.open(&offer).unwrap();
    let buffer = guest.bus.share(offer.channel, 8, LIMIT).unwrap();
    let gpadl = buffer.gpadl().0;
    switch.upcall("web", &ChannelUpcall::MapGpadl { gpadl, buffer: BufferKind::Receive });
    let absent = ChannelUpcall::MapGpadl { gpadl: 999, buffer: BufferKind::Send };
    switch.upcall("web", &absent);
    wait_until("both answers", || switch.shared.lock().mapped.len() == 2);
    {
        let state = switch.shared.lock();
        let pages = state.mapped[0].pages.as_ref().unwrap();
        assert_eq!((pages.byte_count, pages.frames.len()), (8 * 4096, 1));
        assert_eq!(state.mapped[1].pages, None);
    }
    std::thread::scope(|scope| {
        // The guest gets its pages back when the switch has let go of them.
        let taken = scope.spawn(|| guest.bus.unshare(buffer, LIMIT));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!taken.is_finished());
        switch.upcall("web", &ChannelUpcall::GpadlReleased { gpadl });
        taken.join().unwrap().unwrap();
    });
    // No more than were granted.
    switch.upcall("web", &ChannelUpcall::OfferSubchannels { count: 60 });
    let subchannels: Vec<_> = (1..=3).map(|index| guest.nic(index)).collect();
    let open: Vec<_> = subchannels.iter().map(|offer| guest.open(offer).unwrap()).collect();
    assert_eq!(switch.channels(), 4);
    assert_eq!(vm.client.status().adapters[0].channels, 4);
    // With the primary channel all others go.
    let second = guest.bus.share(offer.channel, 2, LIMIT).unwrap();
    let gpadl = second.gpadl().0;
    switch.upcall("web", &ChannelUpcall::MapGpadl { gpadl, buffer: BufferKind::Send });
    wait_until("the answer", || switch.shared.lock().mapped.len() == 3);
    guest.bus.close(channel, LIMIT).unwrap();
    guest.bus.unshare(second, LIMIT).unwrap();
    for channel in open {
        guest.let_go(channel);
    }
    assert_eq!(switch.channels(), 0);
}

#[test]
fn a_switch_that_hangs_stops_neither_the_other_nics_nor_the_worker() {
    let (vm, mut guest) = Vm::start();
    guest.connect();
    let (hung, well) = (Switch::start(&["web"]), Switch::start(&["web"]));
    vm.client.set_adapter(&hung.adapter(0, "web"));
    vm.client.set_adapter(&well.adapter(1, "web"));
    let (one, other) = (guest.nic(0), guest.nic(0));
    let (of_hung, of_well) = match one.instance_id.data1 {
        0 => (one, other),
        _ => (other, one),
    };
    hung.shared.lock().hangs = true;
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| guest.open(&of_hung));
        wait_until("the request", || hung.channels() == 1);
        let channel = guest.open(&of_well).unwrap();
        assert_eq!(vm.client.status().adapters[1].channels, 1);
        guest.bus.close(channel, LIMIT).unwrap();
        assert!(!waits.is_finished());
        hung.wake();
        let channel = waits.join().unwrap().unwrap();
        guest.bus.close(channel, LIMIT).unwrap();
    });
    // One that hangs for good is left in the end.
    let channel = guest.open(&of_hung).unwrap();
    hung.shared.lock().hangs = true;
    vm.client.remove_adapter(0).unwrap();
    guest.let_go(channel);
    wait_until("the end", || vm.client.status().adapters.len() == 1);
}

#[test]
fn a_guest_that_ends_closes_its_channels_and_one_that_begins_anew_finds_its_nics() {
    let (mut vm, mut guest) = Vm::start();
    guest.connect();
    let switch = Switch::start(&["web"]);
    vm.client.set_adapter(&switch.adapter(0, "web"));
    let offer = guest.nic(0);
    guest.open(&offer).unwrap();
    vm.client.expect_guest(vm_worker::control::GuestState::Running);
    let first = vm.client.life;
    guest.bus.unload(LIMIT).unwrap();
    assert_eq!(switch.channels(), 0);
    guest.connect();
    vm.client.expect_guest(vm_worker::control::GuestState::Reset);
    let second = vm.client.life;
    let offer = guest.nic(0);
    guest.open(&offer).unwrap();
    assert_eq!(switch.channels(), 1);
    // The switch is told the same, so that whoever hears of both knows what belongs together.
    assert_eq!(switch.shared.lock().lives, [first, second]);
    assert!(first < second);
    drop(guest);
    wait_until("the close", || switch.channels() == 0);
    vm.client.expect_guest(vm_worker::control::GuestState::Gone);
    assert_eq!(vm.client.status().guest, vm_worker::control::GuestState::Gone);
}

#[test]
fn eight_nics_are_offered_and_no_ninth() {
    let (vm, mut guest) = Vm::start();
    let names: Vec<String> = (0..MAX_ADAPTERS).map(|number| format!("web{number}")).collect();
    let switch = Switch::start(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for (number, name) in (0..).zip(&names) {
        vm.client.set_adapter(&switch.adapter(number, name));
    }
    let ninth = vm.client.ask(PrivateControl::SetAdapter, &switch.adapter(8, "web8"));
    assert_eq!(ninth, Err(NtStatus::INSUFFICIENT_RESOURCES));
    guest.connect();
    let offers: Vec<_> = names.iter().map(|_| guest.nic(0)).collect();
    let open: Vec<_> = offers.iter().map(|offer| guest.open(offer).unwrap()).collect();
    assert_eq!(switch.channels(), MAX_ADAPTERS);
    let Vm { worker, partition, .. } = vm;
    drop(worker);
    for channel in &open {
        guest.expect_rescinded(channel.id());
    }
    assert_eq!(switch.channels(), 0);
    drop(partition);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (vm, _guest) = Vm::start();
    let refused = |code: u32, input: &[u8]| vm.client.raw(code, input, 0).unwrap_err();
    for code in 2..=7 {
        for input in [&b""[..], b"{}", b"[", b"\xFF\xFE", b"{\"adapter\":-1}", &[b'['; 60_000]] {
            assert_eq!(refused(code, input), NtStatus::INVALID_PARAMETER, "{code}");
        }
    }
    assert_eq!(refused(77, b""), NtStatus::INVALID_DEVICE_REQUEST);
    assert_eq!(refused(8, b""), NtStatus::BUFFER_TOO_SMALL);
    let good = Switch::start(&[]).adapter(0, "web");
    for bad in [
        AdapterConfig { max_channels: 0, ..good.clone() },
        AdapterConfig { port: String::new(), ..good.clone() },
        AdapterConfig { port: "p".repeat(1000), ..good.clone() },
        AdapterConfig { mac: "00:15:5d".to_owned(), ..good.clone() },
    ] {
        let answer = vm.client.ask(PrivateControl::SetAdapter, &bad);
        assert_eq!(answer, Err(NtStatus::INVALID_PARAMETER));
    }
    let status = vm.client.status();
    assert!(status.adapters.is_empty() && status.devices.is_empty());
}

#[test]
fn a_switch_that_is_not_there_is_said_and_the_socket_goes_with_the_worker() {
    let (vm, mut guest) = Vm::start();
    guest.connect();
    let mut switch = Switch::start(&["web"]);
    switch.kill();
    vm.client.set_adapter(&switch.adapter(0, "web"));
    wait_until("the reason", || vm.client.status().adapters[0].last_error.is_some());
    assert!(!guest.has_offers());
    switch.serve(&["web"]);
    let offer = guest.nic(0);
    switch.kill();
    guest.expect_rescinded(offer.channel);
    // A guest that opens what is gone already is told.
    let answer = guest.open(&offer);
    assert!(matches!(answer, Err(GuestError::Client(_) | GuestError::Rescinded(_))), "{answer:?}");
    let Vm { worker, directory, .. } = vm;
    let path = worker.path().unwrap().to_owned();
    assert!(path.exists());
    drop(worker);
    assert!(!path.exists());
    drop(directory);
}

#[test]
fn a_real_switch_takes_the_rings_and_gives_them_back() {
    let directory = tempfile::tempdir().unwrap();
    let config = SwitchConfig::new("external", directory.path());
    let switch = SwitchServer::start(config).unwrap();
    let path = control_socket(directory.path());
    let client =
        DeviceControlClient::connect(&path, &DriverName::new("stack").unwrap(), LIMIT).unwrap();
    let port = PortConfig { max_channels: 4, ..PortConfig::new("web", "00:15:5d:00:00:01") };
    let input = serde_json::to_vec(&port).unwrap();
    client.private(control::PrivateControl::SetPort.code(), &input, 0, LIMIT).unwrap();
    let channels = || {
        let code = control::PrivateControl::Status.code();
        let json = client.private(code, &[], control::STATUS_CAPACITY, LIMIT).unwrap();
        let status: control::SwitchStatus = serde_json::from_slice(&json).unwrap();
        status.ports[0].channels.clone()
    };
    let (vm, mut guest) = Vm::start();
    guest.connect();
    let adapter = AdapterConfig {
        adapter: 0,
        mac: "00:15:5d:00:00:01".to_owned(),
        switch: path,
        port: "web".to_owned(),
        max_channels: 4,
        kind: SyntheticNicKind::NetVsc,
    };
    vm.client.set_adapter(&adapter);
    let offer = guest.nic(0);
    for _ in 0..3 {
        let channel = guest.open(&offer).unwrap();
        assert_eq!(channels(), [0]);
        guest.bus.close(channel, LIMIT).unwrap();
        assert!(channels().is_empty());
    }
    let channel = guest.open(&offer).unwrap();
    // The same port anew: it is taken from the guest, closed, and offered again.
    vm.client.set_adapter(&AdapterConfig { max_channels: 2, ..adapter });
    guest.let_go(channel);
    let offer = guest.nic(0);
    let channel = guest.open(&offer).unwrap();
    assert_eq!(channels(), [0]);
    drop(switch);
    guest.let_go(channel);
}
