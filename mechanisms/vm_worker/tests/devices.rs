//! VFs: offered as PCI devices, used by a driver, given up, and taken away.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod common;

use std::sync::Arc;

use avf_protocol::registers::{DynCtl, RSTAT, RX_DOORBELL_PAGE, TX_DOORBELL_PAGE, dyn_ctl};
use common::{
    LIMIT, Vm,
    guest::{Bus, Guest},
    moving::{Moved, Moving},
    nic::Nic,
    switch::Switch,
    wait_until,
};
use device_control::OidRequestKind;
use ndis_protocol::{NdisStructure, Oid, SriovWriteVfConfigBlock, VfId};
use partition::Retarget;
use pcivirt_protocol::NtStatus;
use vm_worker::control::{
    DeviceName, DeviceState, GuestState, MAX_DEVICES, MitigatedRange, OfferVf, PrivateControl,
    ReplaceMitigatedRanges,
};
use vmbus_protocol::VpIndex;
use vpci::vsc::VscReply;
use vpci_protocol::TranslatedMsi;

fn name(adapter: u32, serial: u32) -> DeviceName {
    DeviceName { adapter, serial }
}

/// A VM with a VF of its own that a driver has brought up.
fn up(nic: &Nic) -> (Vm, Guest, Bus, u16) {
    let (mut vm, mut guest) = Vm::start();
    guest.connect();
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 7, vf)).unwrap();
    let bus = guest.bring_up(7);
    vm.client.expect(name(0, 7), DeviceState::BusOpened);
    (vm, guest, bus, vf)
}

/// The function answers, and its registers are as after a reset.
fn answers(guest: &Guest, bus: &Bus) {
    let state = guest.read(bus.bar(0) + u64::from(RSTAT));
    assert!(matches!(state, 1 | 2), "VFGEN_RSTAT is {state:#x}");
}

#[test]
fn a_vf_is_brought_up_its_registers_are_read_and_its_interrupt_arrives() {
    let nic = Nic::start(2);
    let (mut vm, mut guest, mut bus, vf) = up(&nic);
    assert!(nic.is_connected(vf));
    let function = bus.ready.clone().unwrap();
    assert_eq!(
        (function.description.ids.vendor_id, function.description.ids.device_id),
        (0x8086, 0x1889)
    );
    answers(&guest, &bus);
    // Doorbells are mapped, and nothing else is.
    for page in [TX_DOORBELL_PAGE, RX_DOORBELL_PAGE] {
        let mapped = guest.bus.guest().mapped_mmio(bus.bar(0) + u64::from(page)).unwrap();
        assert_eq!((mapped.length, mapped.writable), (4096, true));
    }
    assert!(guest.bus.guest().mapped_mmio(bus.bar(0) + 0x1000).is_none());
    let entry = bus.enable_interrupt(&mut guest, 1, 0x41);
    vm.client.expect(name(0, 7), DeviceState::DeviceStarted);
    let interrupt = guest.bus.guest().interrupt(0x41, VpIndex(0)).unwrap();
    let fire = |guest: &Guest, bus: &Bus| {
        guest.write(bus.bar(0) + u64::from(dyn_ctl(1)), DynCtl::FORCE_WRITE_BACK.0);
    };
    wait_until("the interrupt", || {
        fire(&guest, &bus);
        interrupt.wait(std::time::Duration::from_millis(20)).unwrap()
    });
    interrupt.take();
    // Masked, it waits; unmasked, it comes by the same way.
    guest.write(bus.bar(3) + 16 + 12, 1);
    wait_until("the mask", || vm.client.status().devices[0].vectors == 0);
    fire(&guest, &bus);
    guest.write(bus.bar(3) + 16 + 12, 0);
    assert!(interrupt.wait(LIMIT).unwrap(), "what happened while it was masked");
    assert_eq!(guest.read(bus.bar(3) + 16 + 8), entry.data);
    let status = vm.client.status();
    assert_eq!(status.devices[0].state, DeviceState::DeviceStarted);
    assert_eq!(
        status.devices[0].bars.values().copied().collect::<Vec<_>>(),
        [bus.bar(0), bus.bar(3)]
    );
    // Another client is told how it is.
    let mut other = vm.another_client();
    other.expect(name(0, 7), DeviceState::DeviceStarted);
    assert_eq!(other.guest, Some(GuestState::Running));
}

#[test]
fn an_interrupt_that_the_guest_moves_keeps_its_handle_and_goes_elsewhere() {
    let nic = Nic::start(1);
    let mut moving = None;
    let (mut vm, mut guest) = Vm::start_on(|partition| {
        let partition = Arc::new(Moving::new(partition));
        moving = Some(partition.clone());
        partition
    });
    let moving = moving.unwrap();
    guest.connect();
    vm.client.offer(&nic.offer(0, 0x0123_4567, nic.allocate())).unwrap();
    let mut bus = guest.bring_up(0x0123_4567);
    // As Linux makes it of the instance: the domain, which is 0x0567, and function 0.
    let device_id = 0x0567_0000;
    let retarget = |message: TranslatedMsi, vector| Retarget {
        device_id,
        address: message.address,
        data: message.data,
        vector,
        processors: vec![VpIndex(0)],
    };
    // Before it is unmasked for the first time there is only the guest's message, and the move counts.
    let message = bus.create_interrupt(&mut guest, 0x41);
    assert!(moving.hypercall(&retarget(message, 0x51)));
    assert!(moving.made.lock().unwrap().is_empty());
    bus.route_interrupt(&mut guest, 1, message);
    vm.client.expect(name(0, 0x0123_4567), DeviceState::DeviceStarted);
    assert!(guest.bus.guest().interrupt(0x51, VpIndex(0)).is_some());
    // Later its route is changed, and it is not made anew.
    assert!(moving.hypercall(&retarget(message, 0x61)));
    let made = moving.made.lock().unwrap().clone();
    let moved = Moved { message: made[0], vector: 0x61, processors: vec![VpIndex(0)] };
    assert_eq!((made.len(), moving.moved.lock().unwrap().as_slice()), (1, &[moved][..]));
    // What there is not: another device's, another message, a processor that the guest does not have.
    let others = [
        Retarget { device_id: device_id + 0x10000, ..retarget(message, 0x71) },
        Retarget { data: message.data + 1, ..retarget(message, 0x71) },
        Retarget { address: message.address + 4, ..retarget(message, 0x71) },
        Retarget { processors: vec![VpIndex(1)], ..retarget(message, 0x71) },
        Retarget { processors: Vec::new(), ..retarget(message, 0x71) },
    ];
    for other in &others {
        assert!(!moving.hypercall(other), "{other:?}");
    }
    assert_eq!(moving.moved.lock().unwrap().len(), 1);
}

#[test]
fn a_device_is_given_up_and_only_then_unmapped_and_left() {
    let nic = Nic::start(1);
    let (mut vm, mut guest, mut bus, vf) = up(&nic);
    bus.enable_interrupt(&mut guest, 0, 0x50);
    vm.client.eject(name(0, 7)).unwrap();
    bus.pump(&mut guest, "the eject", |bus| bus.eject_requested);
    // All goes on working until the guest says so.
    answers(&guest, &bus);
    assert!(nic.is_connected(vf));
    let bar = bus.bar(0);
    bus.ejected(&guest);
    vm.client.expect(name(0, 7), DeviceState::EjectComplete);
    assert_eq!(guest.read(bar + u64::from(RSTAT)), u32::MAX);
    assert!(guest.bus.guest().mapped_mmio(bar).is_none());
    assert!(nic.is_connected(vf), "it is left when the stack says so");
    guest.leave_bus(bus);
    vm.client.remove(name(0, 7), false);
    vm.client.expect(name(0, 7), DeviceState::Removed);
    wait_until("the VF's end", || !nic.is_connected(vf));
    assert!(vm.client.status().devices.is_empty());
    nic.free(vf);
    // And anew, with another number.
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 8, vf)).unwrap();
    let bus = guest.bring_up(8);
    answers(&guest, &bus);
}

#[test]
fn a_device_that_is_not_in_use_is_given_up_at_once() {
    let nic = Nic::start(1);
    let (mut vm, guest) = Vm::start();
    guest.connect();
    let vf = nic.allocate();
    vm.client.offer(&nic.offer(0, 7, vf)).unwrap();
    vm.client.expect(name(0, 7), DeviceState::Offered);
    vm.client.eject(name(0, 7)).unwrap();
    vm.client.expect(name(0, 7), DeviceState::EjectComplete);
    vm.client.remove(name(0, 7), false);
    vm.client.expect(name(0, 7), DeviceState::Removed);
    wait_until("the VF's end", || !nic.is_connected(vf));
}

#[test]
fn a_device_is_taken_from_a_guest_that_is_not_asked() {
    let nic = Nic::start(1);
    let (mut vm, mut guest, mut bus, vf) = up(&nic);
    bus.enable_interrupt(&mut guest, 0, 0x50);
    let bar = bus.bar(0);
    vm.client.remove(name(0, 7), true);
    vm.client.expect(name(0, 7), DeviceState::Removed);
    assert_eq!(guest.read(bar + u64::from(RSTAT)), u32::MAX);
    assert!(guest.bus.guest().interrupt(0x50, VpIndex(0)).is_none());
    assert!(guest.bus.guest().mapped_mmio(bar).is_none());
    bus.pump(&mut guest, "the end", |bus| bus.gone == 1);
    guest.leave_bus(bus);
    wait_until("the VF's end", || !nic.is_connected(vf));
}

#[test]
fn an_adapter_that_dies_looks_like_a_device_that_was_pulled_out() {
    let nic = Nic::start(1);
    let (mut vm, mut guest, mut bus, _) = up(&nic);
    let switch = Switch::start(&["web"]);
    vm.client.set_adapter(&switch.adapter(0, "web"));
    let nic_channel = guest.nic(0);
    let nic_channel = guest.open(&nic_channel).unwrap();
    let bar = bus.bar(0);
    drop(nic);
    vm.client.expect(name(0, 7), DeviceState::Removed);
    bus.pump(&mut guest, "the end", |bus| bus.gone == 1);
    assert_eq!(guest.read(bar + u64::from(RSTAT)), u32::MAX);
    guest.leave_bus(bus);
    // The synthetic NIC has nothing to do with it.
    assert_eq!(switch.channels(), 1);
    guest.bus.close(nic_channel, LIMIT).unwrap();
}

#[test]
fn a_guest_that_dies_leaves_the_vf() {
    let nic = Nic::start(1);
    let (mut vm, guest, bus, vf) = up(&nic);
    drop(bus);
    drop(guest);
    vm.client.expect_guest(GuestState::Gone);
    vm.client.expect(name(0, 7), DeviceState::Removed);
    wait_until("the VF's end", || !nic.is_connected(vf));
    let late = vm.client.offer(&nic.offer(0, 8, vf));
    assert_eq!(late, Err(NtStatus::DEVICE_REMOVED));
    assert!(vm.client.status().devices.is_empty());
}

#[test]
fn a_guest_that_begins_anew_finds_its_device() {
    let nic = Nic::start(1);
    let (mut vm, guest, bus, _) = up(&nic);
    guest.bus.guest().reset().unwrap();
    vm.client.expect_guest(GuestState::Reset);
    vm.client.expect(name(0, 7), DeviceState::Offered);
    assert_eq!(guest.read(bus.bar(0) + u64::from(RSTAT)), u32::MAX);
    // Its memory is as it was; its kernel is another.
    drop(bus);
    let mut guest = guest.restart();
    guest.connect();
    let bus = guest.bring_up(7);
    answers(&guest, &bus);
    vm.client.expect(name(0, 7), DeviceState::BusOpened);
}

#[test]
fn a_worker_that_ends_leaves_its_vfs_and_its_guest() {
    let nic = Nic::start(1);
    let (vm, mut guest, mut bus, vf) = up(&nic);
    let Vm { worker, .. } = vm;
    drop(worker);
    wait_until("the VF's end", || !nic.is_connected(vf));
    bus.pump(&mut guest, "the end", |bus| bus.gone == 1);
}

#[test]
fn what_was_never_offered_is_removed_and_what_cannot_be_offered_is_said() {
    let nic = Nic::start(1);
    let (mut vm, mut guest) = Vm::start();
    guest.connect();
    vm.client.remove(name(3, 99), true);
    vm.client.expect(name(3, 99), DeviceState::Removed);
    assert_eq!(vm.client.eject(name(3, 99)), Err(NtStatus::NOT_FOUND));
    let vf = nic.allocate();
    let good = nic.offer(0, 1, vf);
    let no_vf = OfferVf { serial: 2, vf_socket: "/nowhere/vf0.sock".into(), ..good.clone() };
    let no_nic = OfferVf { serial: 3, nic: "/nowhere/control.sock".into(), ..good.clone() };
    let wrong_vf = OfferVf { serial: 4, vf: 200, ..good.clone() };
    for offer in [&no_vf, &no_nic, &wrong_vf] {
        vm.client.offer(offer).unwrap();
        let of = name(0, offer.serial);
        while !matches!(vm.client.devices.get(&of), Some(DeviceState::OfferFailed { .. })) {
            assert!(vm.client.next_report(LIMIT).is_some());
        }
        wait_until("the VF's end", || !nic.is_connected(vf));
    }
    assert_eq!(
        vm.client.devices[&name(0, 2)],
        DeviceState::OfferFailed { status: NtStatus::NO_SUCH_DEVICE.0, cause: None }
    );
    assert!(!guest.has_offers());
    vm.client.offer(&good).unwrap();
    vm.client.offer(&good).unwrap();
    let other = OfferVf { vf: 0, nic: "/elsewhere".into(), ..good.clone() };
    assert_eq!(vm.client.offer(&other), Err(NtStatus::SHARING_VIOLATION));
    let bus = guest.bring_up(1);
    answers(&guest, &bus);
    let bar_six =
        [(6, vec![MitigatedRange { offset: 0, length: 4096, reads: true, writes: true }])];
    let part = [(0, vec![MitigatedRange { offset: 1, length: 4096, reads: true, writes: true }])];
    for ranges in [bar_six, part] {
        let input = ReplaceMitigatedRanges {
            adapter: 0,
            serial: 1,
            mitigated_ranges: ranges.into_iter().collect(),
        };
        let answer = vm.client.ask(PrivateControl::ReplaceMitigatedRanges, &input);
        assert_eq!(answer, Err(NtStatus::INVALID_PARAMETER));
    }
}

#[test]
fn no_more_devices_are_held_than_there_may_be() {
    let (vm, _guest) = Vm::start();
    let listener_directory = tempfile::tempdir().unwrap();
    let socket = listener_directory.path().join("vf0.sock");
    // Takes connections, and says nothing.
    let _hung = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let offer = |serial| OfferVf {
        adapter: 0,
        serial,
        vf_socket: socket.clone(),
        nic: socket.clone(),
        vf: 0,
        mitigated_ranges: Default::default(),
        mac: None,
    };
    for serial in 0..MAX_DEVICES as u32 {
        vm.client.offer(&offer(serial)).unwrap();
    }
    assert_eq!(vm.client.offer(&offer(1000)), Err(NtStatus::INSUFFICIENT_RESOURCES));
    // The worker waits for none of them.
    assert_eq!(vm.client.status().devices.len(), MAX_DEVICES);
}

#[test]
fn configuration_blocks_go_to_the_pf_driver_and_back() {
    let nic = Nic::start(1);
    let (vm, mut guest, mut bus, vf) = up(&nic);
    let written = bus.ask(&mut guest, |vsc, now| vsc.write_block(3, b"from the guest", now));
    assert_eq!(written, Ok(VscReply::Done));
    let read = bus.ask(&mut guest, |vsc, now| vsc.read_block(3, 14, now));
    assert_eq!(read, Ok(VscReply::Block(b"from the guest".to_vec())));
    let absent = bus.ask(&mut guest, |vsc, now| vsc.read_block(4000, 14, now));
    assert!(absent.is_err());
    // What another driver writes is news to the VF's.
    let vf_id = VfId::new(vf).unwrap();
    let write = |block_id: u32, data: &[u8]| {
        let block = SriovWriteVfConfigBlock { vf_id, block_id, data: data.to_vec() };
        let input = block.emit();
        nic.oid(Oid::SriovWriteVfConfigBlock, OidRequestKind::Set, &input, 0);
    };
    for block in [5, 9] {
        write(block, b"from the host");
        bus.pump(&mut guest, "the news", |bus| bus.invalidated & 1 << block != 0);
        let read = bus.ask(&mut guest, |vsc, now| vsc.read_block(block, 13, now));
        assert_eq!(read, Ok(VscReply::Block(b"from the host".to_vec())));
    }
    drop(vm);
}

#[test]
fn mitigated_pages_are_never_mapped() {
    let nic = Nic::start(1);
    let (mut vm, mut guest) = Vm::start();
    guest.connect();
    let vf = nic.allocate();
    let page = |offset: u32| MitigatedRange {
        offset: offset.into(),
        length: 4096,
        reads: false,
        writes: true,
    };
    let offer = OfferVf {
        mitigated_ranges: [(0, vec![page(TX_DOORBELL_PAGE)])].into(),
        ..nic.offer(0, 7, vf)
    };
    vm.client.offer(&offer).unwrap();
    let bus = guest.bring_up(7);
    vm.client.expect(name(0, 7), DeviceState::BusOpened);
    let mapped = |guest: &Guest, page: u32| {
        guest.bus.guest().mapped_mmio(bus.bar(0) + u64::from(page)).is_some()
    };
    assert!(!mapped(&guest, TX_DOORBELL_PAGE) && mapped(&guest, RX_DOORBELL_PAGE));
    // Reads are the VF's; the adapter's PF driver mitigates nothing, and refuses writes.
    assert_eq!(guest.read(bus.bar(0) + u64::from(TX_DOORBELL_PAGE)), 0);
    guest.write(bus.bar(0) + u64::from(TX_DOORBELL_PAGE), 5);
    assert_eq!(guest.read(bus.bar(0) + u64::from(TX_DOORBELL_PAGE)), 0);
    let ranges = ReplaceMitigatedRanges {
        adapter: 0,
        serial: 7,
        mitigated_ranges: [(0, vec![page(RX_DOORBELL_PAGE)])].into(),
    };
    vm.client.ask(PrivateControl::ReplaceMitigatedRanges, &ranges).unwrap();
    wait_until("the other page", || mapped(&guest, TX_DOORBELL_PAGE));
    wait_until("the page's end", || !mapped(&guest, RX_DOORBELL_PAGE));
    answers(&guest, &bus);
}

#[test]
fn devices_of_eight_adapters_live_beside_each_other() {
    let nic = Nic::start(8);
    let (mut vm, mut guest) = Vm::start();
    guest.connect();
    let vfs: Vec<u16> = (0..8).map(|_| nic.allocate()).collect();
    for (adapter, vf) in (0..).zip(&vfs) {
        vm.client.offer(&nic.offer(adapter, 100 + adapter, *vf)).unwrap();
    }
    let mut buses: Vec<Bus> = (0..8).map(|adapter| guest.bring_up(100 + adapter)).collect();
    for bus in &buses {
        answers(&guest, bus);
    }
    for (vector, bus) in (0x40..).zip(&mut buses) {
        bus.enable_interrupt(&mut guest, 0, vector);
    }
    for adapter in 0..8 {
        vm.client.expect(name(adapter, 100 + adapter), DeviceState::DeviceStarted);
    }
    // One goes, the others stay.
    vm.client.remove(name(3, 103), true);
    vm.client.expect(name(3, 103), DeviceState::Removed);
    for (number, bus) in buses.iter_mut().enumerate() {
        if number != 3 {
            answers(&guest, bus);
        }
    }
    assert_eq!(vm.client.status().devices.len(), 7);
    drop(vm);
    wait_until("the VFs' end", || vfs.iter().all(|vf| !nic.is_connected(*vf)));
}
