//! The VSP against the VSC: whole lives of a function.

use pcie_protocol::BarIndex;
use pcivirt_protocol::{DevicePowerState, NtStatus};
use vpci_protocol::{
    FunctionDescription, HostMessage, InterruptRequest, MessageType, ProtocolVersion, SlotNumber,
};

use super::world::*;
use crate::{
    Effect, FunctionConfig, Incoming, Outgoing,
    vsc::{BarPlace, Requested, VscEffect, VscError, VscReply, VscState},
    vsp::{BusState, EJECT_GRACE, InterruptSource, InterruptTarget, Removal, StopAnswer},
};

impl World {
    /// The driver asks for something, and gets its answer.
    fn driver(&mut self, requested: Requested) -> Result<VscReply, NtStatus> {
        let (id, effects) = requested.unwrap();
        self.guest(effects);
        self.settle();
        self.guest.completed.remove(&id).expect("an answer")
    }

    fn eject(&mut self) {
        let effects = self.host.vsp.eject(EJECT_GRACE, self.host.now);
        self.host.carry_out(effects);
        self.settle();
    }
}

#[test]
fn a_function_lives_and_is_given_back_in_every_version() {
    for version in ProtocolVersion::ALL {
        let mut world = World::up(version);
        let now = world.host.now;
        assert_eq!(world.guest.vsc.version(), Some(version));
        assert_eq!(world.guest.vsc.state(), &VscState::Running);
        let ready = world.guest.ready.clone().unwrap();
        assert_eq!(ready.description.serial, 0x1234_5678);
        assert_eq!(ready.description.ids.device_id, 0x1889);
        let places = [(0, 0xF000_0000, 0x1_0000), (3, 0xF001_0000, 0x4000)];
        for (bar, address, size) in places {
            assert_eq!(ready.bars[bar], Some(BarPlace { address, size }));
            let index = BarIndex::new(bar as u8).unwrap();
            assert_eq!(world.host.partition.bars.get(&index), Some(&(address, size, true)));
        }
        assert_eq!(ready.config_space, WINDOW + 0x1000);
        assert!(world.host.vf.dma_allowed());

        // The driver maps an interrupt for each of two vectors.
        world.host.enable_msi_x();
        for vector in 0..2u16 {
            let request = InterruptRequest::single(0x40 + u32::from(vector), vector);
            let requested = world.guest.vsc.create_interrupt(request, now);
            let Ok(VscReply::Interrupt(interrupt)) = world.driver(requested) else {
                panic!("no interrupt in {version}")
            };
            world.host.write_msi_x(vector, interrupt);
            assert_eq!(
                world.host.partition.routes[&InterruptSource::MsiX(vector)],
                InterruptTarget::fixed(0x40 + u32::from(vector), vector)
            );
            if vector == 0 {
                let effects = world.guest.vsc.delete_interrupt(interrupt).unwrap();
                world.guest(effects);
                world.settle();
                assert!(world.host.partition.routes.is_empty());
            }
        }

        // It talks to the PF driver, both ways.
        let requested = world.guest.vsc.write_block(3, &[1, 2, 3, 4, 5], now);
        assert_eq!(world.driver(requested), Ok(VscReply::Done));
        let requested = world.guest.vsc.read_block(3, 5, now);
        assert_eq!(world.driver(requested), Ok(VscReply::Block(vec![1, 2, 3, 4, 5])));
        let requested = world.guest.vsc.write_block(0xBAD, &[1], now);
        assert_eq!(world.driver(requested), Err(NtStatus::ACCESS_DENIED));
        let effects = world.host.vsp.invalidate_blocks(0b1000);
        world.host.carry_out(effects);
        world.settle();
        assert_eq!(world.guest.blocks_invalidated, 0b1000);

        // Sleep, and a reset where the version has it.
        for state in [DevicePowerState::D3, DevicePowerState::D0] {
            let requested = world.guest.vsc.set_power_state(state, now);
            assert_eq!(world.driver(requested), Ok(VscReply::Done));
            let mapped = world.host.partition.bars.len();
            assert_eq!(mapped, if state == DevicePowerState::D0 { 2 } else { 0 });
        }
        let requested = world.guest.vsc.reset_device(now);
        let answer = world.driver(requested);
        match version.has_reset_device() {
            true => assert_eq!((answer, world.host.resets), (Ok(VscReply::Done), 1)),
            false => assert_eq!((answer, world.host.resets), (Err(NtStatus::NOT_SUPPORTED), 0)),
        }

        // It is given back.
        world.eject();
        assert!(world.guest.eject_requested);
        let effects = world.guest.vsc.ejected();
        world.guest(effects);
        world.settle();
        assert_eq!(world.host.partition.removed, Some(Removal::Confirmed));
        assert_eq!(world.guest.vsc.state(), &VscState::Empty);
        assert_eq!((world.guest.gone, world.guest.vsc.function()), (0, None));
        assert!(!world.host.vf.dma_allowed());
        world.close();
        assert_eq!(world.guest.vsc.state(), &VscState::Closed);
        assert_eq!(world.guest.vsc.next_deadline(), None);
        assert_eq!(world.host.vsp.next_deadline(), None);
    }
}

/// The order of another client that was seen on the wire, byte by byte (SPEC-VMBUS §4.7, §8.1).
#[test]
fn a_client_that_turns_the_bus_on_before_it_asks_what_is_there_is_served() {
    let mut host = Host::new();
    host.open();
    let answer = host.ask_raw(&[0x13, 0, 0x49, 0x42, 3, 0, 1, 0]).unwrap();
    assert_eq!(answer, [0, 0, 0, 0, 3, 0, 1, 0]);
    let entry = [7, 0, 0x49, 0x42, 0, 0, 0, 0, 0, 0, 0, 0xF8, 0, 0, 0, 0];
    host.raw(&entry);
    // First what there is, then that the bus is on.
    let [Outgoing::Message { payload, .. }, Outgoing::Completion { payload: status, .. }] =
        host.sent.make_contiguous()
    else {
        panic!("{:?}", host.sent)
    };
    assert_eq!(payload[..8], [0x19, 0, 0x49, 0x42, 1, 0, 0, 0]);
    assert_eq!(*status, [0; 4]);
    host.sent.clear();
    let answer = host.ask_raw(&[5, 0, 0x49, 0x42, 0, 0, 0, 0]).unwrap();
    assert_eq!((answer.len(), &answer[4..8]), (28, &[0x0C, 0, 0xFF, 0xFF][..]));
    let mut assigned = vec![0; 136 + 80];
    assigned[..4].copy_from_slice(&[0x16, 0, 0x49, 0x42]);
    assert_eq!(host.ask_raw(&assigned).unwrap()[..8], [0; 8]);
    host.map_bars();
    let mut create = vec![0; 80];
    create[..4].copy_from_slice(&[0x17, 0, 0x49, 0x42]);
    create[8..16].copy_from_slice(&[0x41, 0, 1, 0, 1, 0, 2, 0]);
    let answer = host.ask_raw(&create).unwrap();
    assert_eq!(
        answer,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0xE0, 0xFE, 0, 0, 0, 0]
    );
    // Its deletion says no count.
    let delete =
        [0x15, 0, 0x49, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0xE0, 0xFE, 0, 0, 0, 0];
    assert_eq!(host.ask_raw(&delete).unwrap(), [0; 4]);
    // EJECT_COMPLETE with the status that Linux adds.
    let effects = host.vsp.eject(EJECT_GRACE, host.now);
    host.carry_out(effects);
    assert_eq!(host.messages(), [HostMessage::Eject { slot: SLOT }]);
    let complete = [0x0F, 0, 0x49, 0x42, 0, 0, 0, 0, 0, 0, 0, 0];
    host.incoming(Incoming::Message { transaction: None, payload: &complete });
    assert_eq!(host.partition.removed, Some(Removal::Confirmed));
}

#[test]
fn a_newer_guest_comes_down_to_the_hosts_version_and_an_older_one_is_understood() {
    let host = FunctionConfig { max_version: ProtocolVersion::V1_2, ..config() };
    let mut world = World::new(host, ProtocolVersion::V1_5);
    world.open();
    world.settle();
    assert_eq!(world.guest.vsc.version(), Some(ProtocolVersion::V1_2));
    assert!(world.guest.ready.is_some());
    let mut world = World::new(config(), ProtocolVersion::V1_1);
    world.open();
    world.settle();
    assert_eq!(world.host.vsp.bus().version(), Some(ProtocolVersion::V1_1));
}

#[test]
fn a_guest_shuts_its_bus_down_and_opens_it_again() {
    let mut world = World::up(ProtocolVersion::V1_4);
    for _ in 0..3 {
        let effects = world.guest.vsc.shut_down(world.host.now);
        world.guest(effects);
        world.settle();
        assert!(world.guest.close);
        assert_eq!(world.host.vsp.bus(), BusState::Negotiated(ProtocolVersion::V1_4));
        assert!(world.host.partition.bars.is_empty());
        world.close();
        world.guest.ready = None;
        world.open();
        world.settle();
        assert!(world.guest.ready.is_some());
    }
    assert_eq!(world.host.partition.removed, None);
}

#[test]
fn a_bus_that_another_kernel_left_on_is_turned_off_first() {
    let mut world = World::up(ProtocolVersion::V1_4);
    // The kernel has crashed; the next one has the channel, and the host does not know.
    let fresh = World::new(config(), ProtocolVersion::V1_4);
    world.guest = fresh.guest;
    let effects = world.guest.vsc.channel_opened(world.host.now);
    world.guest(effects);
    // The version was agreed on before; play the host's answer.
    world.guest.sent.clear();
    let answer = Incoming::Completion { transaction: 1, payload: &[0; 8] };
    let effects = world.guest.vsc.receive(answer, world.host.now);
    world.guest(effects);
    world.settle();
    assert_eq!(world.guest.vsc.state(), &VscState::Running);
    assert_eq!(world.host.resets, 1);
    assert!(world.guest.ready.is_some());
}

#[test]
fn a_surprise_removal_ends_the_drivers_requests() {
    let mut world = World::up(ProtocolVersion::V1_4);
    let (id, effects) = world.guest.vsc.read_block(1, 8, world.host.now).unwrap();
    world.guest(effects);
    world.one_to_host();
    let effects = world.host.vsp.surprise_remove(world.host.now);
    world.host.carry_out(effects);
    world.settle();
    assert_eq!(world.guest.completed[&id], Err(NtStatus::DEVICE_REMOVED));
    assert_eq!(world.guest.gone, 1);
    assert_eq!(world.guest.vsc.state(), &VscState::Empty);
    assert!(matches!(world.guest.vsc.read_block(1, 8, world.host.now), Err(VscError::NotReady)));
    world.close();
    assert!(world.host.partition.bars.is_empty());
}

#[test]
fn a_driver_that_never_lets_go_loses_the_function() {
    let mut world = World::up(ProtocolVersion::V1_4);
    world.eject();
    assert_eq!(world.guest.vsc.next_deadline(), Some(seconds(50)));
    world.pass(seconds(50));
    world.settle();
    assert_eq!(world.guest.gone, 1);
    assert_eq!(world.host.partition.removed, Some(Removal::Confirmed));
    // Too late.
    assert_eq!(world.guest.vsc.ejected(), []);
}

#[test]
fn a_guest_that_is_gone_without_a_word_loses_the_function() {
    let mut world = World::up(ProtocolVersion::V1_4);
    let effects = world.host.vsp.eject(EJECT_GRACE, world.host.now);
    world.host.carry_out(effects);
    world.host.sent.clear();
    world.host.now += EJECT_GRACE;
    let effects = world.host.vsp.poll(world.host.now);
    assert!(effects.contains(&Effect::IsolateBar { bar: BarIndex::BAR0 }));
    assert!(effects.contains(&Effect::Removed(Removal::TimedOut)));
    world.host.carry_out(effects);
    world.close();
}

#[test]
fn a_pf_that_is_rebalanced_finds_its_function_stopped_and_the_guest_has_it_back_after() {
    let mut world = World::up(ProtocolVersion::V1_4);
    let bars = world.host.partition.bars.clone();
    let stop = |world: &mut World| {
        let effects = world.host.vsp.query_stop(seconds(5), world.host.now);
        world.host.carry_out(effects);
        world.settle();
        assert!(std::mem::take(&mut world.guest.stop_requested));
    };
    // The driver refuses.
    stop(&mut world);
    let effects = world.guest.vsc.stop_answer(false);
    world.guest(effects);
    world.settle();
    assert_eq!(world.host.partition.stop_answers, [StopAnswer::Refused]);
    // It has stopped.
    stop(&mut world);
    let effects = world.guest.vsc.stop_answer(true);
    world.guest(effects);
    world.settle();
    assert_eq!(world.host.partition.stop_answers[1], StopAnswer::Allowed);
    assert!(world.host.partition.bars.is_empty());
    // The PF is back; its VF has forgotten everything.
    world.host.vf.reset(pci_function::ResetKind::FunctionLevel);
    let effects = world.host.vsp.re_enable();
    world.host.carry_out(effects);
    world.settle();
    assert_eq!(world.guest.resumed, 1);
    assert_eq!(world.host.partition.bars, bars);
    assert!(world.host.vf.dma_allowed());
    // It says nothing: the host hears no.
    stop(&mut world);
    world.pass(seconds(20));
    world.settle();
    assert_eq!(world.host.partition.stop_answers[2], StopAnswer::TimedOut);
    assert_eq!(world.host.partition.bars, bars);
}

#[test]
fn a_stop_of_a_bus_that_is_not_ready_is_allowed() {
    let mut world = World::new(config(), ProtocolVersion::V1_4);
    world.open();
    for _ in 0..3 {
        world.one_to_host();
        world.one_to_guest();
    }
    let mut payload = Vec::new();
    HostMessage::QueryStop { slot: SLOT }.emit(&mut payload).unwrap();
    let packet = Incoming::Message { transaction: Some(9), payload: &payload };
    let effects = world.guest.vsc.receive(packet, world.host.now);
    let answer = Outgoing::Completion { transaction: 9, payload: vec![0; 4] };
    assert_eq!(effects, [VscEffect::Send(answer)]);
}

// ---- hosts that do not answer, or make no sense

#[test]
fn a_host_that_does_not_answer_is_given_up() {
    let mut world = World::new(config(), ProtocolVersion::V1_4);
    world.open();
    world.guest.sent.clear();
    world.pass(seconds(9));
    assert_eq!(world.guest.failed, None);
    world.pass(seconds(1));
    let error = VscError::TimedOut(MessageType::QueryProtocolVersion);
    assert_eq!(world.guest.failed, Some(error));
    assert!(world.guest.close);
    assert_eq!(world.guest.vsc.next_deadline(), None);

    // After the version, it never says what the bus has.
    let mut world = World::new(config(), ProtocolVersion::V1_4);
    world.open();
    world.one_to_host();
    world.one_to_guest();
    assert_eq!(world.guest.vsc.state(), &VscState::Enumerating);
    world.guest.sent.clear();
    world.pass(seconds(10));
    let error = VscError::TimedOut(MessageType::QueryBusRelations);
    assert_eq!(world.guest.failed, Some(error));
}

#[test]
fn a_host_without_a_common_version_is_given_up() {
    let mut world = World::new(config(), ProtocolVersion::V1_5);
    world.open();
    for transaction in 1..=5 {
        assert_eq!(world.guest.failed, None);
        let payload = &0xC000_0059u32.to_le_bytes();
        let answer = Incoming::Completion { transaction, payload };
        let effects = world.guest.vsc.receive(answer, world.host.now);
        world.guest(effects);
    }
    let (lowest, highest) = (ProtocolVersion::V1_1, ProtocolVersion::V1_5);
    assert_eq!(world.guest.failed, Some(VscError::NoVersion { lowest, highest }));
}

#[test]
fn a_drivers_request_that_is_not_answered_in_time_fails_alone() {
    let mut world = World::up(ProtocolVersion::V1_4);
    let (id, effects) = world.guest.vsc.read_block(1, 8, world.host.now).unwrap();
    world.guest(effects);
    world.one_to_host();
    world.host.pf.clear();
    world.pass(seconds(10));
    assert_eq!(world.guest.completed[&id], Err(NtStatus::IO_TIMEOUT));
    assert_eq!(world.guest.vsc.state(), &VscState::Running);
    world.settle();
}

#[test]
fn a_function_without_room_is_refused_by_the_guest() {
    let mut host = config();
    host.probed_bars = [0x0000_000C, 0xFFFF_FF00, 0, 0, 0, 0];
    let mut world = World::new(host, ProtocolVersion::V1_4);
    world.open();
    world.settle();
    assert_eq!(world.guest.failed, Some(VscError::NoRoom { size: 1 << 40 }));
}

#[test]
fn another_function_in_its_place_is_another_function() {
    let mut world = World::up(ProtocolVersion::V1_4);
    let function = world.guest.ready.clone().unwrap().description;
    let say = |world: &mut World, functions: Vec<FunctionDescription>| {
        let mut payload = Vec::new();
        HostMessage::BusRelations { with_numa: true, functions }.emit(&mut payload).unwrap();
        let packet = Incoming::Message { transaction: None, payload: &payload };
        let effects = world.guest.vsc.receive(packet, world.host.now);
        world.guest(effects);
    };
    say(&mut world, vec![function]);
    let elsewhere =
        FunctionDescription { slot: SlotNumber::new(3, 0).unwrap(), serial: 1, ..function };
    say(&mut world, vec![elsewhere, function]);
    say(&mut world, vec![FunctionDescription { numa_node: Some(1), ..function }]);
    assert_eq!(world.guest.gone, 0);
    say(&mut world, vec![FunctionDescription { serial: 7, ..function }]);
    assert_eq!(world.guest.gone, 1);
    assert_eq!(world.guest.vsc.state(), &VscState::Sizing);
    world.settle();
    // The bus is on already.
    assert_eq!(world.guest.ready.clone().unwrap().description.serial, 7);
    say(&mut world, vec![]);
    assert_eq!((world.guest.gone, world.guest.vsc.state()), (2, &VscState::Empty));
}
