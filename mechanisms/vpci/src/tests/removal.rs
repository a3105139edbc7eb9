//! Ejection, surprise removal, stops: the host's side.

use vpci_protocol::{GuestMessage, HostMessage, MessageType, STATUS_BAD_DATA};

use pcivirt_protocol::NtStatus;

use super::world::*;
use crate::{
    Incoming, Outgoing,
    vsp::{EJECT_GRACE, Presence, Removal, StopAnswer},
};

fn busy() -> Host {
    let mut host = Host::running();
    let interrupt = host.create_interrupt(0x41, 1);
    host.enable_msi_x();
    host.write_msi_x(0, interrupt);
    assert_eq!((host.partition.bars.len(), host.partition.routes.len()), (2, 1));
    host
}

impl Host {
    fn eject(&mut self) {
        let effects = self.vsp.eject(EJECT_GRACE, self.now);
        self.carry_out(effects);
    }

    fn poll(&mut self, now: u64) {
        self.now = seconds(now);
        let effects = self.vsp.poll(self.now);
        self.carry_out(effects);
    }

    fn surprise(&mut self) {
        let effects = self.vsp.surprise_remove(self.now);
        self.carry_out(effects);
    }
}

fn empty_relations() -> HostMessage {
    HostMessage::BusRelations { with_numa: true, functions: Vec::new() }
}

#[test]
fn bars_stay_mapped_until_the_guest_has_confirmed_the_ejection() {
    let mut host = busy();
    let before = host.partition.clone();
    host.eject();
    host.eject();
    assert_eq!(host.messages(), [HostMessage::Eject { slot: SLOT }]);
    assert_eq!(host.partition, before, "nothing has changed for the guest");
    // The driver that is being stopped still uses everything.
    let write = GuestMessage::WriteBlock { slot: SLOT, block_id: 1, data: &[1] };
    assert_eq!(host.status(&write), NtStatus::SUCCESS);
    assert_eq!(host.read(0), 0x1889_8086);
    assert_eq!(host.vsp.next_deadline(), Some(seconds(60)));

    host.tell(&GuestMessage::EjectComplete { slot: SLOT });
    assert_eq!(host.messages(), [empty_relations()]);
    assert_eq!(host.partition.removed, Some(Removal::Confirmed));
    assert!(host.partition.rescinded && host.partition.bars.is_empty());
    assert!(!host.vf.dma_allowed(), "and its DMA is off");
    assert_eq!(host.read(0), u32::MAX);
    host.close();
    assert_eq!(host.vsp.next_deadline(), None);
    host.poll(1000);
    assert_eq!((host.resets, host.partition.overdue), (0, 0));
}

#[test]
fn a_guest_that_closes_its_channel_instead_has_confirmed_too() {
    let mut host = busy();
    host.eject();
    host.close();
    assert_eq!(host.partition.removed, Some(Removal::ChannelClosed));
    assert!(host.partition.rescinded);
}

#[test]
fn the_function_is_taken_away_when_the_guest_never_answers_the_eject() {
    let mut host = busy();
    host.eject();
    host.sent.clear();
    host.poll(59);
    assert_eq!(host.partition.removed, None);
    host.poll(60);
    assert_eq!(host.partition.removed, Some(Removal::TimedOut));
    assert_eq!(host.messages(), [empty_relations()]);
    // Its memory is still where the guest has it, with nothing behind.
    assert!(host.partition.bars.values().all(|(_, _, reaches)| !reaches));
    assert_eq!(host.partition.bars.len(), 2);
    assert_eq!(host.partition.window, Some(WINDOW));
    assert_eq!(host.read(0), u32::MAX);
    let mut data = [0; 4];
    assert!(host.vsp.bar_read(pcie_protocol::BarIndex::BAR3, 0, &mut data));
    assert_eq!(data, [0xFF; 4]);
    host.write(0x04, &6u16.to_le_bytes());
    assert_eq!(host.partition.bars.len(), 2);
    // A late answer changes nothing.
    host.tell(&GuestMessage::EjectComplete { slot: SLOT });
    assert_eq!(host.partition.removed, Some(Removal::TimedOut));
    assert_eq!(host.vsp.counters().wrong_slot, 1);

    assert_eq!(host.vsp.next_deadline(), Some(seconds(70)));
    host.poll(70);
    host.poll(71);
    assert_eq!(host.partition.overdue, 1);
    host.close();
    assert_eq!(host.resets, 0, "the function is others' by now");
}

#[test]
fn a_surprise_removal_answers_who_waits_and_isolates_the_memory() {
    let mut host = busy();
    let mut payload = Vec::new();
    let read = GuestMessage::ReadBlock { slot: SLOT, block_id: 1, length: 4 };
    read.emit(&mut payload).unwrap();
    let transaction = host.raw(&payload);
    host.surprise();
    host.surprise();
    let Some(Outgoing::Completion { transaction: answered, payload }) = host.sent.pop_front()
    else {
        panic!("an answer")
    };
    assert_eq!(answered, transaction);
    assert_eq!(vpci_protocol::reply::status(&payload), Ok(NtStatus::DEVICE_REMOVED));
    assert_eq!(host.messages(), [empty_relations()]);
    assert_eq!(host.partition.removed, Some(Removal::Surprise));
    assert!(host.partition.bars.values().all(|(_, _, reaches)| !reaches));
    // What the PF driver says now is nobody's.
    host.run_pf();
    assert!(host.sent.is_empty());
    // The guest gives its bus back in good order.
    assert_eq!(host.ask(&GuestMessage::QueryBusRelations), []);
    assert_eq!(host.messages(), [empty_relations()]);
    assert_eq!(host.status(&GuestMessage::ReleaseResources { slot: SLOT }), STATUS_BAD_DATA);
    assert_eq!(host.status(&GuestMessage::FdoD0Exit), NtStatus::SUCCESS);
    assert!(host.partition.bars.is_empty());
    host.close();
}

#[test]
fn a_function_that_nobody_uses_is_removed_at_once() {
    let mut host = Host::new();
    host.eject();
    assert_eq!(host.partition.removed, Some(Removal::NotInUse));
    assert_eq!((host.vsp.next_deadline(), host.messages()), (None, vec![]));

    let mut host = Host::new();
    host.open();
    host.eject();
    assert_eq!(host.partition.removed, Some(Removal::NotInUse));
    assert_eq!(host.vsp.next_deadline(), Some(seconds(10)), "its channel is still to be closed");

    let mut host = Host::new();
    host.surprise();
    assert_eq!(host.partition.removed, Some(Removal::Surprise));
    assert_eq!(host.vsp.next_deadline(), None);
}

#[test]
fn an_eject_complete_that_nobody_asked_for_is_refused() {
    let mut host = busy();
    let before = host.partition.clone();
    let complete = GuestMessage::EjectComplete { slot: SLOT };
    assert_eq!(host.status(&complete), STATUS_BAD_DATA);
    assert_eq!((host.vsp.presence(), &host.partition), (Presence::Present, &before));
}

#[test]
fn a_removal_hits_in_every_state_of_the_bus() {
    let states: [fn() -> Host; 4] = [
        || Host::negotiated(vpci_protocol::ProtocolVersion::V1_1),
        Host::d0,
        busy,
        || {
            let mut host = busy();
            host.tell(&GuestMessage::QueryProtocolVersion { version: 1 });
            assert_eq!(host.ask_raw(&[0x13, 0, 0x49, 0x42, 3, 0, 1, 0]), None);
            assert!(host.partition.failed.is_some());
            host
        },
    ];
    for state in states {
        let mut host = state();
        host.surprise();
        assert_eq!(host.partition.removed, Some(Removal::Surprise));
        host.close();
        let mut host = state();
        host.eject();
        host.poll(60);
        assert!(host.partition.removed.is_some());
        host.close();
        let mut host = state();
        host.eject();
        host.surprise();
        assert!(host.partition.removed.is_some());
        host.close();
    }
}

// ---- stops

impl Host {
    /// Asks whether the function may be stopped; the transaction of the question.
    fn query_stop(&mut self) -> u64 {
        let effects = self.vsp.query_stop(seconds(5), self.now);
        self.carry_out(effects);
        match self.sent.pop_front() {
            Some(Outgoing::Message { transaction: Some(transaction), payload }) => {
                assert_eq!(HostMessage::parse(&payload), Ok(HostMessage::QueryStop { slot: SLOT }));
                transaction
            }
            other => panic!("{other:?}"),
        }
    }

    fn complete(&mut self, transaction: u64, payload: &[u8]) {
        self.incoming(Incoming::Completion { transaction, payload });
    }

    fn re_enable(&mut self) {
        let effects = self.vsp.re_enable();
        self.carry_out(effects);
    }
}

#[test]
fn a_stopped_function_is_unmapped_and_comes_back_where_it_was() {
    let mut host = busy();
    let bars = host.partition.bars.clone();
    let transaction = host.query_stop();
    assert_eq!(host.partition.bars, bars, "it is used until the guest says otherwise");
    host.complete(transaction, &[]);
    assert_eq!(host.partition.stop_answers, [StopAnswer::Allowed]);
    assert!(host.vsp.is_stopped() && host.partition.bars.is_empty());
    let read = GuestMessage::ReadBlock { slot: SLOT, block_id: 1, length: 4 };
    assert_eq!(host.status(&read), NtStatus::DEVICE_NOT_READY);
    host.re_enable();
    host.re_enable();
    assert_eq!(host.partition.bars, bars);
    assert_eq!(host.messages(), [HostMessage::ReEnable { slot: SLOT }]);
    assert!(!host.vsp.is_stopped());
}

#[test]
fn a_guest_can_refuse_a_stop_or_not_know_the_question() {
    let mut host = busy();
    let before = host.partition.clone();
    host.query_stop();
    host.tell(&GuestMessage::QueryStopFailed { slot: SLOT });
    assert_eq!(host.partition.stop_answers, [StopAnswer::Refused]);
    let transaction = host.query_stop();
    host.complete(transaction, &0xC000_0001u32.to_le_bytes());
    assert_eq!(host.partition.stop_answers.len(), 2);
    let transaction = host.query_stop();
    host.poll(5);
    assert_eq!(host.partition.stop_answers[2], StopAnswer::TimedOut);
    // Too late.
    host.complete(transaction, &[]);
    assert_eq!(host.status(&GuestMessage::QueryStopFailed { slot: SLOT }), STATUS_BAD_DATA);
    host.re_enable();
    assert!(host.messages().is_empty());
    host.partition.stop_answers.clear();
    assert_eq!(host.partition, before);
    assert_eq!(host.vsp.counters().unexpected_completions, 1);
}

#[test]
fn a_stop_without_a_guest_is_allowed_and_a_guest_that_comes_meanwhile_waits() {
    let mut host = Host::new();
    let effects = host.vsp.query_stop(seconds(5), host.now);
    host.carry_out(effects);
    assert_eq!(host.partition.stop_answers, [StopAnswer::NotInUse]);
    host.open();
    let version = GuestMessage::QueryProtocolVersion { version: 0x10004 };
    assert_eq!(host.status(&version), NtStatus::SUCCESS);
    host.enter_d0();
    host.write(0x10, &0xF010_0000u32.to_le_bytes());
    host.write(0x04, &6u16.to_le_bytes());
    assert!(host.partition.bars.is_empty());
    host.re_enable();
    assert_eq!(host.partition.bars.len(), 1);
    assert_eq!(host.messages(), [HostMessage::ReEnable { slot: SLOT }]);
}

#[test]
fn an_open_stop_is_answered_when_the_channel_or_the_function_goes() {
    let mut host = busy();
    host.query_stop();
    host.close();
    assert_eq!(host.partition.stop_answers, [StopAnswer::NotInUse]);
    let mut host = busy();
    host.query_stop();
    host.surprise();
    assert_eq!(host.partition.stop_answers, [StopAnswer::NotInUse]);
    let mut host = busy();
    host.query_stop();
    host.eject();
    host.tell(&GuestMessage::EjectComplete { slot: SLOT });
    assert_eq!(host.partition.stop_answers, [StopAnswer::NotInUse]);
    assert_eq!(MessageType::QueryStop.name(), "QUERY_STOP");
}
