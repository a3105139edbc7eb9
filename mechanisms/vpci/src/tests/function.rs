//! The function as its guest sees it: configuration space, BARs, interrupts, power.

use pcivirt_protocol::{DevicePowerState, NtStatus};
use vpci_protocol::{
    AssignedResources, GuestMessage, InterruptGeneration, InterruptRequest, ProtocolVersion,
    STATUS_BAD_DATA, reply,
};

use super::{
    transitions::{one_range, version},
    world::*,
};
use crate::vsp::{InterruptSource, InterruptTarget};

#[test]
fn interrupts_of_a_generation_need_its_version() {
    use InterruptGeneration::{V1, V2, V3};
    for (version, good) in [
        (ProtocolVersion::V1_1, &[V1][..]),
        (ProtocolVersion::V1_2, &[V1, V2]),
        (ProtocolVersion::V1_3, &[V1, V2]),
        (ProtocolVersion::V1_4, &[V1, V2, V3]),
    ] {
        let mut host = Host::negotiated(version);
        host.enter_d0();
        for generation in InterruptGeneration::ALL {
            let create = GuestMessage::CreateInterrupt {
                generation,
                slot: SLOT,
                interrupt: InterruptRequest::single(0x41, 0),
            };
            let expected =
                if good.contains(&generation) { NtStatus::SUCCESS } else { STATUS_BAD_DATA };
            assert_eq!(host.status(&create), expected, "{generation:?} in {version}");
            let assigned = AssignedResources::empty(generation, SLOT);
            assert_eq!(host.status(&GuestMessage::AssignedResources(assigned)), expected);
        }
    }
}

#[test]
fn a_vector_is_routed_while_everything_says_so() {
    let mut host = Host::running();
    let interrupt = host.create_interrupt(0x41, 1);
    let source = InterruptSource::MsiX(3);
    host.write_msi_x(3, interrupt);
    assert!(host.partition.routes.is_empty(), "MSI-X is off");
    host.enable_msi_x();
    let to = |vector, vp| InterruptTarget::fixed(vector, vp);
    assert_eq!(host.partition.routes.get(&source), Some(&to(0x41, 1)));
    // The function masks all, then this vector alone.
    let msi_x = host.find_capability(0x11);
    host.write(msi_x + 2, &0xC000u16.to_le_bytes());
    assert!(host.partition.routes.is_empty());
    host.write(msi_x + 2, &0x8000u16.to_le_bytes());
    assert_eq!(host.vsp.route(source), Some(&to(0x41, 1)));
    for (control, routed) in [(1u32, 0), (0, 1)] {
        let effects = host.vsp.bar_write(pcie_protocol::BarIndex::BAR3, 60, &control.to_le_bytes());
        host.carry_out(effects.unwrap());
        assert_eq!(host.partition.routes.len(), routed);
    }
    // Sent to another processor by hypercall.
    let effects = host.vsp.retarget(interrupt.address, interrupt.data, to(0x77, 3)).unwrap();
    host.carry_out(effects);
    assert_eq!(host.partition.routes.get(&source), Some(&to(0x77, 3)));
    for (address, data, target) in [
        (interrupt.address + 8, interrupt.data, to(0x77, 3)),
        (interrupt.address, interrupt.data + 1, to(0x77, 3)),
        (interrupt.address, interrupt.data, to(0x77, 4)),
        (interrupt.address, interrupt.data, to(0x0F, 3)),
    ] {
        assert_eq!(host.vsp.retarget(address, data, target), Err(STATUS_BAD_DATA));
    }
    host.tell(&GuestMessage::DeleteInterrupt { second_form: true, slot: SLOT, interrupt });
    assert!(host.partition.routes.is_empty());
    let again = GuestMessage::DeleteInterrupt { second_form: false, slot: SLOT, interrupt };
    assert_eq!(host.status(&again), STATUS_BAD_DATA);
}

#[test]
fn configuration_space_is_that_of_the_mediation() {
    let mut host = Host::d0();
    assert_eq!(host.read(0x00), 0x1889_8086);
    assert_eq!(host.read(0x08), 0x0200_0002);
    assert_eq!(host.read(0x2C), 0x0007_8086);
    assert_eq!(host.read(0x04) & 0xFFFF, 0, "memory is off at first");
    // Sizing works too, though guests need not do it.
    host.write(0x10, &[0xFF; 4]);
    host.write(0x14, &[0xFF; 4]);
    assert_eq!((host.read(0x10), host.read(0x14)), (0xFFFF_000C, 0xFFFF_FFFF));
    host.write(0x14, &[0; 4]);
    host.map_bars();
    // While memory is on, BARs do not move.
    host.write(0x10, &0xF030_0000u32.to_le_bytes());
    assert_eq!(host.read(0x10), 0xF010_000C);
    host.write(0x04, &0u16.to_le_bytes());
    assert!(host.partition.bars.is_empty() && !host.vf.dma_allowed());
}

#[test]
fn the_window_shows_the_selected_slot_to_natural_accesses() {
    let mut host = Host::d0();
    host.write_window(0, &1u32.to_le_bytes());
    assert_eq!(host.read(0), u32::MAX);
    host.write(0x10, &[1; 4]);
    host.write_window(0, &[0; 2]); // not 4 bytes
    assert_eq!(host.read(0), u32::MAX);
    host.write_window(0, &[0; 4]);
    assert_eq!((host.read(0), host.read(0x10)), (0x1889_8086, 0xC));
    let mut read = |offset, length| {
        let mut data = vec![0; length];
        host.vsp.window_read(offset, &mut data, &host.vf);
        data
    };
    assert_eq!(read(0x1000, 1), [0x86]);
    assert_eq!(read(0x1002, 2), [0x89, 0x18]);
    for (offset, length) in [
        (0, 4),
        (0x800, 4),
        (0x1001, 2),
        (0x1002, 4),
        (0x1000, 8),
        (0x1000, 3),
        (0x2000, 4),
        (0x1FFE, 4),
        (u64::MAX, 1),
    ] {
        assert_eq!(read(offset, length), vec![0xFF; length], "{length} at {offset:#x}");
    }
    host.tell(&GuestMessage::FdoD0Exit);
    assert_eq!(host.read(0), u32::MAX);
    host.write(0x04, &6u16.to_le_bytes());
    host.enter_d0();
    assert_eq!(host.read(0x04) & 6, 0);
}

#[test]
fn bars_that_cannot_be_where_the_guest_puts_them_are_nowhere() {
    let mut host = Host::d0();
    host.vsp.set_reserved(one_range(0xF300_0000, 0x1_0000));
    let places = [0x0010_0000u64, WINDOW, 0xF300_0000, 0xFFFF_FFFF_FFFF_0000];
    for address in places {
        host.write(0x10, &(address as u32).to_le_bytes());
        host.write(0x14, &((address >> 32) as u32).to_le_bytes());
        host.write(0x04, &2u16.to_le_bytes());
        assert!(host.partition.bars.is_empty(), "{address:#x}");
        host.write(0x04, &0u16.to_le_bytes());
    }
    assert_eq!(host.vsp.counters().refused_addresses, places.len() as u64);
    // Of two on one place, the first is there.
    host.write(0x10, &0xF010_0000u32.to_le_bytes());
    host.write(0x14, &[0; 4]);
    host.write(0x1C, &0xF010_8000u32.to_le_bytes());
    host.write(0x04, &2u16.to_le_bytes());
    assert_eq!(host.partition.bars.len(), 1);
}

#[test]
fn power_and_reset_by_message_go_to_the_pf_driver() {
    let mut host = Host::running();
    let power = |state| GuestMessage::DevicePowerStateChange { slot: SLOT, state };
    let answer = host.ask(&power(DevicePowerState::D3));
    let reply = reply::PowerStateReply { slot: SLOT, state: DevicePowerState::D3 };
    assert_eq!(reply::PowerStateReply::parse(&answer), Ok(reply));
    assert!(host.partition.bars.is_empty());
    assert_eq!(host.status(&power(DevicePowerState::D0)), NtStatus::SUCCESS);
    assert_eq!(host.partition.bars.len(), 2);
    // Versions before 1.5 have no RESET_DEVICE.
    let reset = GuestMessage::ResetDevice { slot: SLOT };
    assert_eq!(host.status(&reset), NtStatus::NOT_SUPPORTED);
    assert_eq!(
        host.status(&GuestMessage::TdispCommand { slot: SLOT, data: &[1] }),
        NtStatus::NOT_SUPPORTED
    );
    assert_eq!(host.resets, 0);
    // A function level reset by configuration space is there in every version.
    let express = host.find_capability(0x10);
    host.write(express + 8, &0x8000u16.to_le_bytes());
    assert_eq!(host.resets, 1);
    assert!(host.partition.bars.is_empty());

    let mut host = Host::negotiated(ProtocolVersion::V1_5);
    host.enter_d0();
    host.map_bars();
    assert_eq!(host.status(&reset), NtStatus::SUCCESS);
    assert_eq!(host.resets, 1);
    assert!(host.partition.bars.is_empty());
    host.map_bars();
}

#[test]
fn a_wake_to_d0_by_configuration_space_maps_the_bars_again() {
    let mut host = Host::running();
    let power = host.find_capability(0x01);
    host.write(power + 4, &3u16.to_le_bytes());
    assert!(host.partition.bars.is_empty());
    host.write(power + 4, &0u16.to_le_bytes());
    assert_eq!(host.partition.bars.len(), 2);
}

#[test]
fn messages_of_the_older_kind_are_routed_too() {
    // A function with MSI alone: 64-bit address, up to eight messages.
    let mut raw = [0u8; 256];
    (raw[0x06], raw[0x34], raw[0x40], raw[0x42]) = (0x10, 0x40, 0x05, 0x86);
    let mut host = Host::d0();
    host.vsp = crate::Vsp::new(config(), &raw[..]).unwrap();
    host.partition = Partition::default();
    host.open();
    assert_eq!(host.status(&version(0x10004)), NtStatus::SUCCESS);
    host.enter_d0();
    assert!(host.vsp.msi_x_pages().is_empty());
    let answer = host.ask(&GuestMessage::CreateInterrupt {
        generation: InterruptGeneration::V2,
        slot: SLOT,
        interrupt: InterruptRequest { vector_count: 4, ..InterruptRequest::single(0x50, 2) },
    });
    let interrupt = reply::InterruptCreated::parse(&answer).unwrap().interrupt;
    host.write(0x44, &(interrupt.address as u32).to_le_bytes());
    host.write(0x48, &((interrupt.address >> 32) as u32).to_le_bytes());
    host.write(0x4C, &(interrupt.data as u16).to_le_bytes());
    assert!(host.partition.routes.is_empty());
    // Enabled, with four messages; then with two.
    host.write(0x42, &0x21u16.to_le_bytes());
    let routes: Vec<_> = host.partition.routes.clone().into_iter().collect();
    let expected = (0..4)
        .map(|at| (InterruptSource::Msi(at), InterruptTarget::fixed(0x50 + u32::from(at), 2)));
    assert_eq!(routes, expected.collect::<Vec<_>>());
    host.write(0x42, &0x11u16.to_le_bytes());
    assert_eq!(host.partition.routes.len(), 2);
    host.write(0x42, &0u16.to_le_bytes());
    assert!(host.partition.routes.is_empty());
}
