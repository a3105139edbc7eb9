//! Every row of the tables of states.

use std::time::Duration;

use pcivirt_protocol::{DevicePowerState, NtStatus};
use vpci_protocol::{
    AssignedResources, FunctionDescription, GuestMessage, HostMessage, InterruptGeneration,
    InterruptRequest, MemoryResource, MessageType, ProtocolVersion, ResourceList, STATUS_BAD_DATA,
    SlotNumber, reply,
};

use super::world::*;
use crate::vsp::{BusState, ChannelFault, PfRequest, VspError};

pub(super) fn one_range(start: u64, length: u64) -> Vec<std::ops::Range<u64>> {
    std::iter::once(start..start + length).collect()
}

pub(super) fn version(version: u32) -> GuestMessage<'static> {
    GuestMessage::QueryProtocolVersion { version }
}

#[test]
fn a_version_that_is_spoken_is_agreed_on_and_others_can_be_tried_before() {
    let mut host =
        Host::with(crate::FunctionConfig { max_version: ProtocolVersion::V1_3, ..config() });
    assert_eq!(host.vsp.bus(), BusState::Closed);
    host.open();
    assert_eq!(host.vsp.bus(), BusState::Negotiating);
    for unknown in [0x10006, 0x10005, 0x10004, 0x10000, 0, u32::MAX] {
        let answer = host.ask(&version(unknown));
        let reply = reply::ProtocolVersionReply::parse(&answer).unwrap();
        assert_eq!(reply.status, NtStatus::REVISION_MISMATCH, "{unknown:#x}");
        assert_eq!(host.vsp.bus(), BusState::Negotiating);
    }
    let answer = host.ask(&version(0x10003));
    assert_eq!(answer, [0, 0, 0, 0, 3, 0, 1, 0]);
    assert_eq!(host.vsp.bus(), BusState::Negotiated(ProtocolVersion::V1_3));
}

#[test]
fn anything_but_a_version_first_fails_the_channel_and_a_new_one_can_be_opened() {
    let mut host = Host::new();
    host.open();
    host.tell(&GuestMessage::QueryBusRelations);
    let fault = ChannelFault::BeforeVersion(Some(MessageType::QueryBusRelations));
    assert_eq!(host.vsp.bus(), BusState::Failed(fault));
    assert_eq!(host.partition.failed, Some(fault));
    // Nothing is answered any more.
    assert_eq!(host.ask_raw(&[0x13, 0, 0x49, 0x42, 3, 0, 1, 0]), None);
    host.close();
    host.open();
    assert_eq!(host.status(&version(0x10003)), NtStatus::SUCCESS);
}

#[test]
fn a_second_version_fails_the_channel_and_takes_all_back() {
    let mut host = Host::running();
    let mut payload = Vec::new();
    version(0x10004).emit(&mut payload).unwrap();
    assert_eq!(host.ask_raw(&payload), None);
    assert_eq!(host.partition.failed, Some(ChannelFault::VersionAgain));
    assert!(host.partition.bars.is_empty());
    assert_eq!(host.partition.window, None);
    assert_eq!(host.resets, 1);
}

#[test]
fn bus_relations_come_whenever_they_are_asked_for_in_the_form_of_the_version() {
    for version in ProtocolVersion::ALL {
        let mut host = Host::negotiated(version);
        for _ in 0..2 {
            host.tell(&GuestMessage::QueryBusRelations);
            let messages = host.messages();
            let [HostMessage::BusRelations { with_numa, functions }] = &messages[..] else {
                panic!("{messages:?}")
            };
            assert_eq!(*with_numa, version >= ProtocolVersion::V1_3);
            let [FunctionDescription { serial, slot, ids, .. }] = functions[..] else {
                panic!("one function")
            };
            assert_eq!((serial, slot, ids.device_id), (0x1234_5678, SLOT, 0x1889));
            host.enter_d0_once();
        }
        // With a completion, it is empty.
        assert_eq!(host.ask(&GuestMessage::QueryBusRelations), []);
        assert_eq!(host.messages().len(), 1);
    }
}

impl Host {
    fn enter_d0_once(&mut self) {
        if !matches!(self.vsp.bus(), BusState::D0 { .. }) {
            self.enter_d0();
        }
    }
}

#[test]
fn d0_entry_needs_a_window_that_is_free() {
    let mut host = Host::negotiated(ProtocolVersion::V1_4);
    let others = 0xF700_0000..0xF700_2000;
    host.vsp.set_reserved(vec![others.clone()]);
    let bad = [
        0,
        1 << 20,               // the guest's memory
        WINDOW + 1,            // no page
        APERTURE.end - 0x1000, // half outside
        APERTURE.start - 0x1000,
        others.start - 0x1000,
        others.start + 0x1000,
        u64::MAX - 0xFFF,
        !0x1FFF,
    ];
    for window in bad {
        let entry = GuestMessage::FdoD0Entry { mmio_start: window };
        assert_eq!(host.status(&entry), STATUS_BAD_DATA, "{window:#x}");
        assert_eq!(host.vsp.bus(), BusState::Negotiated(ProtocolVersion::V1_4));
    }
    assert_eq!(host.vsp.counters().refused_addresses, bad.len() as u64);
    host.enter_d0();
    assert_eq!(host.vsp.claims(), one_range(WINDOW, 0x2000));
    // The bus is on; another kernel would have to turn it off first.
    let entry = GuestMessage::FdoD0Entry { mmio_start: 0xF100_0000 };
    assert_eq!(host.status(&entry), NtStatus::INVALID_DEVICE_STATE);
    assert_eq!(host.partition.window, Some(WINDOW));
}

#[test]
fn d0_exit_takes_all_back_and_resets_the_function() {
    let mut host = Host::running();
    let interrupt = host.create_interrupt(0x41, 1);
    host.enable_msi_x();
    host.write_msi_x(3, interrupt);
    assert_eq!(host.partition.routes.len(), 1);
    assert_eq!(host.status(&GuestMessage::FdoD0Exit), NtStatus::SUCCESS);
    assert_eq!(host.partition, Partition::default());
    assert_eq!((host.resets, host.vsp.interrupt_count()), (1, 0));
    assert!(!host.vf.dma_allowed());
    assert_eq!(host.vsp.bus(), BusState::Negotiated(ProtocolVersion::V1_4));
    // Once more does no harm.
    assert_eq!(host.status(&GuestMessage::FdoD0Exit), NtStatus::SUCCESS);
    assert_eq!(host.resets, 1);
    host.enter_d0();
    host.map_bars();
}

#[test]
fn what_needs_the_bus_on_is_refused_while_it_is_off() {
    let mut host = Host::negotiated(ProtocolVersion::V1_5);
    let interrupt = InterruptRequest::single(0x41, 0);
    let needs = [
        GuestMessage::AssignedResources(AssignedResources::empty(InterruptGeneration::V2, SLOT)),
        GuestMessage::CreateInterrupt {
            generation: InterruptGeneration::V3,
            slot: SLOT,
            interrupt,
        },
        GuestMessage::DevicePowerStateChange { slot: SLOT, state: DevicePowerState::D0 },
        GuestMessage::ReadBlock { slot: SLOT, block_id: 1, length: 1 },
        GuestMessage::WriteBlock { slot: SLOT, block_id: 1, data: &[1] },
        GuestMessage::ResetDevice { slot: SLOT },
        GuestMessage::TdispCommand { slot: SLOT, data: &[] },
    ];
    for message in &needs {
        assert_eq!(host.status(message), NtStatus::INVALID_DEVICE_STATE, "{message:?}");
    }
    assert_eq!(host.vsp.counters().wrong_state, needs.len() as u64);
    assert!(host.pf.is_empty() && host.blocks.is_empty());
}

#[test]
fn a_closed_channel_gives_all_back_and_can_be_opened_again() {
    let mut host = Host::running();
    host.close();
    assert_eq!(host.resets, 1);
    assert_eq!(host.vsp.bus(), BusState::Closed);
    // Packets that were still on their way change nothing.
    host.tell(&version(0x10004));
    assert!(host.sent.is_empty());
    host.open();
    assert_eq!(host.status(&version(0x10004)), NtStatus::SUCCESS);
    host.enter_d0();
    host.map_bars();
}

#[test]
fn resources_are_told_assigned_and_released() {
    let mut host = Host::d0();
    let answer = host.ask(&GuestMessage::CurrentResourceRequirements { slot: SLOT });
    assert_eq!(reply::ResourceRequirements::parse(&answer).unwrap().probed_bars, PROBED);
    let get = GuestMessage::GetResources { slot: SLOT };
    assert_eq!(host.ask(&get), [0; 128]);

    // As Windows does: the addresses by message, memory enable by configuration space.
    let mut memory = [None; 6];
    memory[0] = Some(MemoryResource { address: 0xF010_0000, length: 0x1_0000 });
    memory[3] = Some(MemoryResource { address: 0xF020_0000, length: 0x4000 });
    for generation in InterruptGeneration::ALL {
        let interrupts = vec![
            None,
            Some(InterruptRequest { vector_count: 3, ..InterruptRequest::single(0x50, 2) }),
        ];
        let assigned = GuestMessage::AssignedResources(AssignedResources {
            generation,
            slot: SLOT,
            memory,
            interrupts,
        });
        let answer = host.ask(&assigned);
        assert_eq!(reply::status(&answer), Ok(NtStatus::SUCCESS));
        let reply = reply::ResourcesAssigned::parse(generation, &answer).unwrap();
        assert_eq!(reply.memory, memory);
        let [None, Some(interrupt)] = reply.interrupts[..] else { panic!("{reply:?}") };
        assert_eq!(interrupt.message_count, 3);
        let target = host.vsp.resolve_message(interrupt.address, interrupt.data + 2).unwrap();
        assert_eq!((target.vector, &target.processors[..]), (0x52, &[2][..]));
        assert!(host.partition.bars.is_empty(), "memory is not enabled");
        host.write(0x04, &2u16.to_le_bytes());
        assert_eq!(host.partition.bars.len(), 2);
        let list = ResourceList::parse(&host.ask(&get)).unwrap();
        assert_eq!(list.assigned, Some(memory));

        assert_eq!(host.status(&GuestMessage::ReleaseResources { slot: SLOT }), NtStatus::SUCCESS);
        assert!(host.partition.bars.is_empty());
        assert_eq!(host.vsp.interrupt_count(), 0);
        assert_eq!((host.read(0x10), host.read(0x04) & 6), (0xC, 0));
        assert_eq!(host.ask(&get), [0; 128]);
    }
}

#[test]
fn resources_that_fit_no_bar_are_refused_and_change_nothing() {
    let mut host = Host::d0();
    let refused = |host: &mut Host, bar: usize, address, length| {
        let mut memory = [None; 6];
        memory[bar] = Some(MemoryResource { address, length });
        let interrupts = vec![Some(InterruptRequest::single(0x41, 0))];
        let resources = AssignedResources {
            generation: InterruptGeneration::V2,
            slot: SLOT,
            memory,
            interrupts,
        };
        assert_eq!(host.status(&GuestMessage::AssignedResources(resources)), STATUS_BAD_DATA);
        assert_eq!(host.vsp.interrupt_count(), 0);
    };
    refused(&mut host, 1, 0xF010_0000, 0x1000); // the upper half of BAR 0
    refused(&mut host, 2, 0xF010_0000, 0x1000); // no BAR
    refused(&mut host, 0, 0xF010_8000, 0x1_0000); // not aligned
    refused(&mut host, 0, 0xF010_0000, 0x1_0001); // larger than the BAR
    refused(&mut host, 0, 0x1000_0000, 0x1_0000); // the guest's memory
    refused(&mut host, 3, WINDOW, 0x4000); // on the window
    assert_eq!(host.vsp.counters().refused_addresses, 6);
    // Two BARs on one place.
    let mut memory = [None; 6];
    memory[0] = Some(MemoryResource { address: 0xF010_0000, length: 0x1_0000 });
    memory[3] = Some(MemoryResource { address: 0xF010_4000, length: 0x4000 });
    let resources = AssignedResources {
        generation: InterruptGeneration::V2,
        slot: SLOT,
        memory,
        interrupts: Vec::new(),
    };
    assert_eq!(host.status(&GuestMessage::AssignedResources(resources)), STATUS_BAD_DATA);
    // If one interrupt cannot be made, none is.
    let interrupts =
        vec![Some(InterruptRequest::single(0x41, 0)), Some(InterruptRequest::single(0x41, 9))];
    let resources = AssignedResources {
        generation: InterruptGeneration::V2,
        slot: SLOT,
        memory: [None; 6],
        interrupts,
    };
    assert_eq!(host.status(&GuestMessage::AssignedResources(resources)), STATUS_BAD_DATA);
    assert_eq!(host.vsp.interrupt_count(), 0);
}

#[test]
fn configuration_blocks_go_to_the_pf_driver_and_back() {
    let mut host = Host::d0();
    let write = GuestMessage::WriteBlock { slot: SLOT, block_id: 5, data: &[7; 128] };
    assert_eq!(host.status(&write), NtStatus::SUCCESS);
    let read = GuestMessage::ReadBlock { slot: SLOT, block_id: 5, length: 100 };
    let answer = host.ask(&read);
    assert_eq!(answer.len(), 104);
    assert_eq!(reply::block(&answer, 100).unwrap(), [7; 100]);
    let refused = GuestMessage::WriteBlock { slot: SLOT, block_id: 0xBAD, data: &[7] };
    assert_eq!(host.status(&refused), NtStatus::ACCESS_DENIED);
}

#[test]
fn the_pf_driver_has_its_time_and_no_more() {
    let mut host = Host::d0();
    let read = GuestMessage::ReadBlock { slot: SLOT, block_id: 5, length: 8 };
    let mut payload = Vec::new();
    read.emit(&mut payload).unwrap();
    let transaction = host.raw(&payload);
    assert_eq!(host.vsp.next_deadline(), Some(seconds(10)));
    let effects = host.vsp.poll(seconds(10) - Duration::from_nanos(1));
    assert_eq!(effects, []);
    let effects = host.vsp.poll(seconds(10));
    host.carry_out(effects);
    let Some(crate::Outgoing::Completion { transaction: answered, payload }) =
        host.sent.pop_front()
    else {
        panic!("an answer")
    };
    assert_eq!((answered, reply::status(&payload).unwrap()), (transaction, NtStatus::IO_TIMEOUT));
    assert_eq!(host.vsp.next_deadline(), None);
    // Its late answer is nobody's.
    host.run_pf();
    assert!(host.sent.is_empty());
    assert_eq!(host.vsp.counters().pf_timeouts, 1);
}

#[test]
fn a_pf_driver_that_gives_too_little_has_failed() {
    let mut host = Host::d0();
    let mut payload = Vec::new();
    GuestMessage::ReadBlock { slot: SLOT, block_id: 5, length: 8 }.emit(&mut payload).unwrap();
    for output in [Ok(&[1u8; 7][..]), Ok(&[1; 9]), Err(NtStatus::PENDING), Err(NtStatus::SUCCESS)] {
        host.raw(&payload);
        let (id, _) = host.pf.pop_front().unwrap();
        let effects = host.vsp.pf_completed(id, output);
        host.carry_out(effects);
        let Some(crate::Outgoing::Completion { payload, .. }) = host.sent.pop_front() else {
            panic!("an answer")
        };
        assert_eq!(reply::status(&payload), Ok(NtStatus::UNSUCCESSFUL));
    }
}

#[test]
fn invalidations_are_told_at_once_or_put_together_while_the_ring_is_full() {
    let mut host = Host::negotiated(ProtocolVersion::V1_4);
    let invalidate = |host: &mut Host, mask| {
        let effects = host.vsp.invalidate_blocks(mask);
        host.carry_out(effects);
    };
    // The driver is not there yet; it reads what it needs when it comes.
    invalidate(&mut host, 1);
    host.enter_d0();
    invalidate(&mut host, 2);
    let told = |mask| [HostMessage::InvalidateBlock { slot: SLOT, block_mask: mask }];
    assert_eq!(host.messages(), told(2));
    assert_eq!(host.vsp.set_congested(true), []);
    invalidate(&mut host, 4);
    invalidate(&mut host, 1 << 63);
    assert_eq!(host.messages(), []);
    let effects = host.vsp.set_congested(false);
    host.carry_out(effects);
    assert_eq!(host.messages(), told(1 << 63 | 4));
    invalidate(&mut host, 0);
    assert_eq!(host.messages(), []);
}

#[test]
fn pf_requests_have_the_published_form() {
    use device_control_protocol::CallbackCode;
    let vf = pcivirt_protocol::VfIndex(3);
    let read = PfRequest::ReadBlock { block_id: 7, length: 16 };
    let expected = vec![3, 0, 0, 0, 7, 0, 0, 0, 16, 0, 0, 0];
    assert_eq!(read.callback(vf), (CallbackCode::ReadVfConfigBlock, expected, 16));
    let write = PfRequest::WriteBlock { block_id: 7, data: vec![9, 8] };
    let expected = vec![3, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 9, 8];
    assert_eq!(write.callback(vf), (CallbackCode::WriteVfConfigBlock, expected, 0));
    let config = PfRequest::WriteConfig { offset: 4, data: vec![4, 0] };
    let expected = vec![3, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 4, 0];
    assert_eq!(config.callback(vf), (CallbackCode::WriteVfConfig, expected, 0));
    assert_eq!(PfRequest::Reset.callback(vf), (CallbackCode::ResetVf, vec![3, 0], 0));
    let power = PfRequest::SetPowerState { state: DevicePowerState::D3, wake: true };
    let expected = vec![3, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(power.callback(vf), (CallbackCode::SetVfPowerState, expected, 0));
}

#[test]
fn a_function_that_no_guest_can_be_shown_is_refused() {
    let vf = pci_function::avf::raw_virtual_function(17).unwrap();
    let mut io = config();
    io.probed_bars[2] = 0xFFFF_FF01;
    assert_eq!(
        crate::Vsp::new(io, &vf).unwrap_err(),
        VspError::IoBar(pcie_protocol::BarIndex::BAR2)
    );
    let mut half = config();
    half.probed_bars[5] = 0xFFFF_000C;
    assert!(matches!(crate::Vsp::new(half, &vf), Err(VspError::Function(_))));
    assert_eq!(SlotNumber::ZERO, config().slot);
}
