//! Guests that do not keep to the rules (SPEC-VMBUS §8.2).

use pcivirt_protocol::NtStatus;
use vpci_protocol::{
    GuestMessage, InterruptGeneration, InterruptRequest, MAX_MESSAGE_SIZE, MessageType,
    STATUS_BAD_DATA, SlotNumber, TranslatedMsi, reply,
};

use super::world::*;
use crate::{FunctionConfig, Incoming, vsp::BusState};

/// Messages of every type, as long as any needs, with nothing in them.
fn of_type(message: MessageType) -> Vec<u8> {
    let mut payload = message.to_wire().to_le_bytes().to_vec();
    payload.resize(256, 0);
    payload
}

#[test]
fn messages_that_only_a_server_sends_are_refused_and_change_nothing() {
    for message in MessageType::ALL.iter().filter(|message| !message.is_from_guest()) {
        let mut host = Host::running();
        let before = (host.partition.clone(), host.vsp.bus());
        let answer = host.ask_raw(&of_type(*message)).unwrap();
        assert_eq!(reply::status(&answer), Ok(STATUS_BAD_DATA), "{message}");
        host.incoming(Incoming::Message { transaction: None, payload: &of_type(*message) });
        assert_eq!((host.partition.clone(), host.vsp.bus()), before);
        assert!(host.sent.is_empty() && host.pf.is_empty());
        assert_eq!(host.vsp.counters().malformed, 2);
        // The channel is as good as before.
        assert_eq!(host.ask(&GuestMessage::QueryBusRelations), []);
    }
}

#[test]
fn every_first_message_but_a_version_ends_the_channel_without_harm() {
    for message in MessageType::ALL {
        if *message == MessageType::QueryProtocolVersion {
            continue;
        }
        let mut host = Host::new();
        host.open();
        assert_eq!(host.ask_raw(&of_type(*message)), None);
        assert!(matches!(host.vsp.bus(), BusState::Failed(_)), "{message}");
        assert_eq!(host.vsp.next_deadline(), None);
        host.close();
    }
    for payload in [&[][..], &[0x13, 0, 0x49], &[0x13, 0, 0x49, 0x42], &[0xFF; 100]] {
        let mut host = Host::new();
        host.open();
        assert_eq!(host.ask_raw(payload), None);
        assert!(matches!(host.vsp.bus(), BusState::Failed(_)));
    }
    // A version query that asks for no answer is no version query.
    let mut host = Host::new();
    host.open();
    host.tell(&GuestMessage::QueryProtocolVersion { version: 0x10003 });
    assert!(matches!(host.vsp.bus(), BusState::Failed(_)));
}

#[test]
fn a_completion_that_nobody_waits_for_is_ignored_in_every_state() {
    let states: [fn() -> Host; 3] = [
        || {
            let mut host = Host::new();
            host.open();
            host
        },
        || Host::negotiated(vpci_protocol::ProtocolVersion::V1_1),
        Host::running,
    ];
    for state in states {
        let mut host = state();
        let before = (host.partition.clone(), host.vsp.bus());
        for transaction in [0, 1, 1 << 63, u64::MAX] {
            host.incoming(Incoming::Completion { transaction, payload: &[0; 64] });
        }
        assert_eq!((host.partition.clone(), host.vsp.bus()), before);
        assert_eq!(host.vsp.counters().unexpected_completions, 4);
        assert!(host.sent.is_empty());
    }
}

#[test]
fn functions_that_are_not_there_are_refused_in_every_message() {
    let mut host = Host::running();
    let before = host.partition.clone();
    let mut refused = 0;
    for message in MessageType::ALL.iter().filter(|message| message.is_from_guest()) {
        let at = match message {
            MessageType::QueryProtocolVersion
            | MessageType::QueryBusRelations
            | MessageType::FdoD0Entry
            | MessageType::FdoD0Exit => continue,
            MessageType::ReadBlock | MessageType::WriteBlock => 8,
            _ => 4,
        };
        for slot in [1u32, 0x20, 0xFF, 0x100, 0x8000_0000, u32::MAX] {
            let mut payload = of_type(*message);
            payload[at..at + 4].copy_from_slice(&slot.to_le_bytes());
            match message {
                MessageType::ReadBlock | MessageType::WriteBlock => payload[12] = 1,
                MessageType::DevicePowerStateChange => payload[8] = 1,
                // One vector for one processor.
                MessageType::CreateInterrupt => {
                    (payload[8], payload[10], payload[16]) = (0x41, 1, 1)
                }
                MessageType::CreateInterrupt2 => {
                    (payload[8], payload[10], payload[12]) = (0x41, 1, 1)
                }
                MessageType::CreateInterrupt3 => {
                    (payload[8], payload[14], payload[16]) = (0x41, 1, 1)
                }
                _ => {}
            }
            let answer = host.ask_raw(&payload).unwrap();
            assert_eq!(reply::status(&answer), Ok(STATUS_BAD_DATA), "{message} {slot:#x}");
            refused += 1;
        }
    }
    let counters = host.vsp.counters();
    assert_eq!(counters.wrong_slot + counters.malformed, refused);
    assert_eq!(counters.wrong_slot, refused / 2, "half of them are slots, and none is there");
    assert_eq!(host.partition, before);
    assert!(host.pf.is_empty());
}

#[test]
fn a_question_without_a_completion_is_not_worked_on() {
    let mut host = Host::running();
    let interrupt = InterruptRequest::single(0x41, 0);
    for message in [
        GuestMessage::CreateInterrupt {
            generation: InterruptGeneration::V1,
            slot: SLOT,
            interrupt,
        },
        GuestMessage::ReadBlock { slot: SLOT, block_id: 1, length: 1 },
        GuestMessage::WriteBlock { slot: SLOT, block_id: 1, data: &[1] },
        GuestMessage::CurrentResourceRequirements { slot: SLOT },
        GuestMessage::FdoD0Entry { mmio_start: WINDOW },
    ] {
        host.tell(&message);
    }
    assert_eq!(host.vsp.counters().malformed, 5);
    assert_eq!((host.vsp.interrupt_count(), host.blocks.len(), host.sent.len()), (0, 0, 0));
}

#[test]
fn a_guest_that_floods_the_pf_driver_is_held_back() {
    let mut host = Host::with(FunctionConfig { max_pf_requests: 4, ..config() });
    host.open();
    let version = GuestMessage::QueryProtocolVersion { version: 0x10004 };
    assert_eq!(host.status(&version), NtStatus::SUCCESS);
    host.enter_d0();
    let mut payload = Vec::new();
    GuestMessage::ReadBlock { slot: SLOT, block_id: 1, length: 1 }.emit(&mut payload).unwrap();
    for _ in 0..100 {
        host.raw(&payload);
    }
    assert_eq!(host.pf.len(), 4);
    assert_eq!(host.sent.len(), 96);
    assert_eq!(host.vsp.counters().pf_overload, 96);
    host.run_pf();
    assert_eq!(host.sent.len(), 100);
}

#[test]
fn a_guest_that_makes_work_and_waits_for_nothing_is_held_back() {
    let mut host = Host::with(FunctionConfig { max_pf_requests: 4, ..config() });
    host.open();
    let version = GuestMessage::QueryProtocolVersion { version: 0x10004 };
    assert_eq!(host.status(&version), NtStatus::SUCCESS);
    host.enter_d0();
    let mut payload = Vec::new();
    GuestMessage::ReleaseResources { slot: SLOT }.emit(&mut payload).unwrap();
    let mut read = 0;
    while host.vsp.accepts_packets() {
        host.incoming(Incoming::Message { transaction: None, payload: &payload });
        read += 1;
        assert!(read < 100);
    }
    assert_eq!((read, host.pf.len()), (8, 8));
    host.run_pf();
    assert!(host.vsp.accepts_packets());
    // A PF driver that has hung: what timed out is still with it.
    let mut payload = Vec::new();
    GuestMessage::ReadBlock { slot: SLOT, block_id: 1, length: 1 }.emit(&mut payload).unwrap();
    let mut read = 0;
    while host.vsp.accepts_packets() {
        host.raw(&payload);
        host.now += seconds(10);
        let effects = host.vsp.poll(host.now);
        host.carry_out(effects);
        read += 1;
        assert!(read < 100);
    }
    assert_eq!((read, host.vsp.counters().pf_timeouts), (8, 8));
}

#[test]
fn a_guest_that_floods_with_interrupts_is_held_back() {
    let mut host = Host::with(FunctionConfig { max_interrupts: 40, ..config() });
    host.open();
    let version = GuestMessage::QueryProtocolVersion { version: 0x10004 };
    assert_eq!(host.status(&version), NtStatus::SUCCESS);
    host.enter_d0();
    let create = |count| GuestMessage::CreateInterrupt {
        generation: InterruptGeneration::V2,
        slot: SLOT,
        interrupt: InterruptRequest { vector_count: count, ..InterruptRequest::single(0x41, 0) },
    };
    assert_eq!(host.status(&create(32)), NtStatus::SUCCESS);
    assert_eq!(host.status(&create(32)), NtStatus::INSUFFICIENT_RESOURCES);
    assert_eq!(host.status(&create(8)), NtStatus::SUCCESS);
    assert_eq!(host.status(&create(1)), NtStatus::INSUFFICIENT_RESOURCES);
    let interrupt = TranslatedMsi { address: 0xFEE0_0000, data: 32, message_count: 1 };
    let delete = GuestMessage::DeleteInterrupt { second_form: false, slot: SLOT, interrupt };
    assert_eq!(host.status(&delete), NtStatus::SUCCESS);
    assert_eq!(host.vsp.interrupt_count(), 8);
}

#[test]
fn the_longest_message_and_longer_ones_are_answered() {
    let mut host = Host::d0();
    let mut payload = of_type(MessageType::AssignedResources3);
    payload.resize(MAX_MESSAGE_SIZE, 0);
    payload[128..132].copy_from_slice(&494u32.to_le_bytes());
    for entry in 0..494 {
        let at = 136 + entry * 80;
        (payload[at], payload[at + 6], payload[at + 8]) = (0x41, 1, 1);
    }
    let answer = host.ask_raw(&payload).unwrap();
    assert_eq!(reply::status(&answer), Ok(NtStatus::SUCCESS));
    assert_eq!(answer.len(), 136 + 494 * 72);
    assert_eq!(host.vsp.interrupt_count(), 494);
    payload[128..132].copy_from_slice(&495u32.to_le_bytes());
    payload.resize(MAX_MESSAGE_SIZE + 80, 0);
    assert_eq!(reply::status(&host.ask_raw(&payload).unwrap()), Ok(STATUS_BAD_DATA));
    assert_eq!(host.vsp.interrupt_count(), 494);
}

#[test]
fn a_table_of_vectors_that_point_anywhere_reaches_no_other_interrupt() {
    let mut host = Host::running();
    host.enable_msi_x();
    let mine = host.create_interrupt(0x41, 1);
    for wrong in [
        TranslatedMsi { data: mine.data + 1, ..mine },
        TranslatedMsi { data: 0, ..mine },
        TranslatedMsi { data: u32::MAX, ..mine },
        TranslatedMsi { address: mine.address + 0x1000, ..mine },
        TranslatedMsi { address: mine.address | 1 << 32, ..mine },
        TranslatedMsi { address: u64::MAX, ..mine },
    ] {
        host.write_msi_x(1, wrong);
        assert!(host.partition.routes.is_empty(), "{wrong:?}");
    }
    host.write_msi_x(1, mine);
    assert_eq!(host.partition.routes.len(), 1);
    // No memory beside the table is the table.
    for (offset, length) in [(17 * 16, 4), (0x1000, 4), (u64::MAX, 1), (17 * 16 - 4, 8)] {
        let data = vec![0xFF; length];
        assert_eq!(host.vsp.bar_write(pcie_protocol::BarIndex::BAR3, offset, &data), None);
        assert_eq!(host.vsp.bar_write(pcie_protocol::BarIndex::BAR0, offset, &data), None);
    }
    assert_eq!(host.partition.routes.len(), 1);
    assert_eq!(SlotNumber::ZERO, SLOT);
}
