//! Published byte vectors (SPEC-VMBUS §8.1), and properties of every parser.

use pcivirt_protocol::{DevicePowerState, NtStatus, VpciPnpId};
use proptest::{collection::vec, option, prelude::*};

use crate::{reply::*, *};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn bytes(message: &GuestMessage<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.emit(&mut out).unwrap();
    out
}

fn host_bytes(message: &HostMessage) -> Vec<u8> {
    let mut out = Vec::new();
    message.emit(&mut out).unwrap();
    out
}

/// A message has these bytes, and these bytes are that message.
fn vector(message: &GuestMessage<'_>, expected: &str) {
    assert_eq!(bytes(message), hex(expected));
    assert_eq!(GuestMessage::parse(&hex(expected)).unwrap(), *message);
}

#[test]
fn published_requests_have_their_published_bytes() {
    vector(&GuestMessage::QueryProtocolVersion { version: 0x10003 }, "13 00 49 42 03 00 01 00");
    vector(
        &GuestMessage::FdoD0Entry { mmio_start: 0xF800_0000 },
        "07 00 49 42 00 00 00 00 00 00 00 f8 00 00 00 00",
    );
    vector(
        &GuestMessage::CurrentResourceRequirements { slot: SlotNumber::ZERO },
        "05 00 49 42 00 00 00 00",
    );
    vector(&GuestMessage::EjectComplete { slot: SlotNumber::ZERO }, "0f 00 49 42 00 00 00 00");
    vector(
        &GuestMessage::DeleteInterrupt {
            second_form: false,
            slot: SlotNumber::ZERO,
            // This client says no count: the address and the data are what counts.
            interrupt: TranslatedMsi { address: 0xFEE0_0000, data: 1, message_count: 0 },
        },
        "15 00 49 42 00 00 00 00 00 00 00 00 01 00 00 00 00 00 e0 fe 00 00 00 00",
    );
    let create = GuestMessage::CreateInterrupt {
        generation: InterruptGeneration::V2,
        slot: SlotNumber::ZERO,
        interrupt: InterruptRequest::single(0x41, 2),
    };
    let emitted = bytes(&create);
    assert_eq!(emitted.len(), 80);
    assert_eq!(emitted[..20], hex("17 00 49 42 00 00 00 00 41 00 01 00 01 00 02 00 00 00 00 00"));
    assert_eq!(emitted[20..], [0; 60]);
    assert_eq!(GuestMessage::parse(&emitted).unwrap(), create);
    // Senders may leave the reserved word away.
    assert_eq!(GuestMessage::parse(&emitted[..78]).unwrap(), create);
    assert!(GuestMessage::parse(&emitted[..77]).is_err());
}

#[test]
fn published_bus_relations_and_eject_have_their_published_bytes() {
    let function = FunctionDescription {
        ids: VpciPnpId {
            vendor_id: 0x8086,
            device_id: 0x1515,
            revision_id: 1,
            prog_if: 0,
            sub_class: 0,
            base_class: 2,
            sub_vendor_id: 0x8086,
            sub_system_id: 0,
        },
        slot: SlotNumber::ZERO,
        serial: 0x1234_5678,
        numa_node: Some(0),
    };
    let relations = HostMessage::BusRelations { with_numa: true, functions: vec![function] };
    let published = hex("19 00 49 42 01 00 00 00 86 80 15 15 01 00 00 02 86 80 00 00 00 00 00 00 \
                         78 56 34 12 01 00 00 00 00 00 00 00");
    assert_eq!(host_bytes(&relations), published);
    assert_eq!(HostMessage::parse(&published).unwrap(), relations);
    let eject = HostMessage::Eject { slot: SlotNumber::ZERO };
    assert_eq!(host_bytes(&eject), hex("0b 00 49 42 00 00 00 00"));
}

#[test]
fn published_replies_have_their_published_bytes() {
    let version = ProtocolVersionReply { status: NtStatus::SUCCESS, version: 0x10003 };
    let mut out = Vec::new();
    version.emit(&mut out);
    assert_eq!(out, hex("00 00 00 00 03 00 01 00"));
    assert_eq!(ProtocolVersionReply::parse(&out).unwrap(), version);

    let bars = [0xFFFF_000C, 0xFFFF_FFFF, 0, 0xFFFF_C00C, 0xFFFF_FFFF, 0];
    let requirements = ResourceRequirements { probed_bars: bars };
    let mut out = Vec::new();
    requirements.emit(&mut out);
    assert_eq!(out, hex("00000000 0c00ffff ffffffff 00000000 0cc0ffff ffffffff 00000000"));
    assert_eq!(ResourceRequirements::parse(&out).unwrap(), requirements);

    let created = InterruptCreated {
        interrupt: TranslatedMsi { address: 0xFEE0_0000, data: 1, message_count: 1 },
    };
    let mut out = Vec::new();
    created.emit(&mut out);
    assert_eq!(out, hex("00 00 00 00 00 00 00 00 00 00 01 00 01 00 00 00 00 00 e0 fe 00 00 00 00"));
    assert_eq!(InterruptCreated::parse(&out).unwrap(), created);
}

#[test]
fn what_linux_sends_to_advance_the_host_is_understood() {
    for (message, length) in [(0x10u8, 148), (0x16, 202), (0x16, 216)] {
        let mut payload = vec![0; length];
        payload[..4].copy_from_slice(&[message, 0, 0x49, 0x42]);
        let generation =
            if message == 0x10 { InterruptGeneration::V1 } else { InterruptGeneration::V2 };
        assert_eq!(
            GuestMessage::parse(&payload).unwrap(),
            GuestMessage::AssignedResources(AssignedResources::empty(generation, SlotNumber::ZERO))
        );
    }
}

#[test]
fn a_write_block_is_as_long_as_it_says_not_as_its_packet_is() {
    let mut payload =
        bytes(&GuestMessage::WriteBlock { slot: SlotNumber::ZERO, block_id: 7, data: &[1, 2, 3] });
    payload.extend([9; 9]);
    let GuestMessage::WriteBlock { data, .. } = GuestMessage::parse(&payload).unwrap() else {
        panic!("another message")
    };
    assert_eq!(data, [1, 2, 3]);
    for wrong in [0u32, 129, 1 << 16, u32::MAX] {
        payload[12..16].copy_from_slice(&wrong.to_le_bytes());
        assert!(GuestMessage::parse(&payload).is_err(), "{wrong}");
    }
    payload[12..16].copy_from_slice(&13u32.to_le_bytes());
    assert!(matches!(GuestMessage::parse(&payload), Err(VpciProtocolError::Truncated { .. })));
}

#[test]
fn huge_counts_are_refused_by_what_came_with_them() {
    let mut payload = vec![0; 136];
    for (message, size) in [(0x10u8, 16usize), (0x16, 72), (0x1A, 80)] {
        payload[..4].copy_from_slice(&[message, 0, 0x49, 0x42]);
        for count in [1u32, 494, 495, 0x8000_0000, u32::MAX] {
            payload[128..132].copy_from_slice(&count.to_le_bytes());
            assert!(GuestMessage::parse(&payload).is_err(), "{message:#x} {count}");
        }
        payload[128..132].copy_from_slice(&494u32.to_le_bytes());
        let mut whole = payload.clone();
        whole.resize(136 + 494 * size, 0);
        assert!(whole.len() <= MAX_MESSAGE_SIZE);
        let GuestMessage::AssignedResources(resources) = GuestMessage::parse(&whole).unwrap()
        else {
            panic!("another message")
        };
        assert_eq!(resources.interrupts, vec![None; 494]);
    }
    let mut relations = hex("19 00 49 42 ff ff ff ff");
    assert!(HostMessage::parse(&relations).is_err());
    relations.extend([0; 28 * 3]);
    for (count, good) in [(3u8, true), (4, false)] {
        relations[4..8].copy_from_slice(&[count, 0, 0, 0]);
        assert_eq!(HostMessage::parse(&relations).is_ok(), good);
    }
}

#[test]
fn interrupts_beyond_the_limits_are_refused() {
    let mut payload = bytes(&GuestMessage::CreateInterrupt {
        generation: InterruptGeneration::V3,
        slot: SlotNumber::ZERO,
        interrupt: InterruptRequest { vector_count: 32, ..InterruptRequest::single(0x41, 2) },
    });
    assert!(GuestMessage::parse(&payload).is_ok());
    for (at, value) in [(14, 0u16), (14, 33), (14, 0xFFFF), (16, 33), (16, 0xFFFF)] {
        let good = payload.clone();
        payload[at..at + 2].copy_from_slice(&value.to_le_bytes());
        assert!(GuestMessage::parse(&payload).is_err(), "{value} at {at}");
        payload = good;
    }
    payload[12] = 2;
    assert!(GuestMessage::parse(&payload).is_err(), "delivery mode");
    for (generation, vector, vp) in [
        (InterruptGeneration::V1, 0x100, 0),
        (InterruptGeneration::V1, 0x41, 64),
        (InterruptGeneration::V2, 0x100, 0),
    ] {
        let message = GuestMessage::CreateInterrupt {
            generation,
            slot: SlotNumber::ZERO,
            interrupt: InterruptRequest::single(vector, vp),
        };
        let mut out = vec![1];
        assert!(message.emit(&mut out).is_err());
        assert_eq!(out, [1], "nothing of a message that cannot be said");
    }
}

#[test]
fn a_message_of_the_other_side_is_named_as_such() {
    for message in MessageType::ALL {
        let mut payload = message.to_wire().to_le_bytes().to_vec();
        payload.resize(256, 0);
        let wrong = Err(VpciProtocolError::WrongDirection(*message));
        match message.is_from_guest() {
            true => assert_eq!(HostMessage::parse(&payload), wrong),
            false => assert_eq!(GuestMessage::parse(&payload).map(|_| ()), wrong.map(|_| ())),
        }
    }
}

#[test]
fn a_power_state_is_d0_to_d3() {
    for (state, good) in [(0u32, false), (1, true), (4, true), (5, false), (u32::MAX, false)] {
        let mut payload = hex("04 00 49 42 00 00 00 00");
        payload.extend(state.to_le_bytes());
        assert_eq!(GuestMessage::parse(&payload).is_ok(), good, "{state}");
    }
}

#[test]
fn lengths_in_units_and_malformed_resources() {
    let with = |descriptor: &[u8]| {
        let mut payload = hex("10 00 49 42 00 00 00 00");
        payload.extend(descriptor);
        payload.resize(136, 0);
        GuestMessage::parse(&payload).map(|message| match message {
            GuestMessage::AssignedResources(resources) => resources.memory[0],
            _ => unreachable!(),
        })
    };
    let descriptor = |kind: u8, flags: u16, address: u64, length: u32| {
        let mut bytes = vec![kind, 0];
        bytes.extend(flags.to_le_bytes());
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    };
    let memory = |address, length| Ok(Some(MemoryResource { address, length }));
    assert_eq!(with(&descriptor(3, 0, 0x1000, 0x10)), memory(0x1000, 0x10));
    assert_eq!(with(&descriptor(7, 0x200, 0, 1)), memory(0, 1 << 8));
    assert_eq!(with(&descriptor(7, 0x400, 0, 1)), memory(0, 1 << 16));
    assert_eq!(with(&descriptor(7, 0x800, 0, 3)), memory(0, 3 << 32));
    assert_eq!(with(&descriptor(3, 0, 0x1000, 0)), Ok(None));
    assert_eq!(with(&descriptor(0, 0, 5, 5)), Ok(None));
    assert!(with(&descriptor(7, 0, 0, 1)).is_err());
    assert!(with(&descriptor(7, 0x600, 0, 1)).is_err());
    assert!(with(&descriptor(2, 0, 0, 1)).is_err());
    assert!(with(&descriptor(3, 0, u64::MAX, 2)).is_err());
}

fn slots() -> impl Strategy<Value = SlotNumber> {
    (0u32..256).prop_map(|slot| SlotNumber::from_wire(slot).unwrap())
}

fn memory() -> impl Strategy<Value = [Option<MemoryResource>; 6]> {
    let length = (1u32.., prop_oneof![Just(0u32), Just(8), Just(16), Just(32)])
        .prop_map(|(length, shift)| u64::from(length) << shift);
    let one = (0..u64::MAX >> 1, length).prop_filter_map("wraps", |(address, length)| {
        address.checked_add(length - 1)?;
        Some(MemoryResource { address, length })
    });
    [
        option::of(one.clone()),
        option::of(one.clone()),
        option::of(one.clone()),
        option::of(one.clone()),
        option::of(one.clone()),
        option::of(one),
    ]
}

fn generations() -> impl Strategy<Value = InterruptGeneration> {
    prop::sample::select(&InterruptGeneration::ALL[..])
}

fn interrupts(generation: InterruptGeneration) -> impl Strategy<Value = InterruptRequest> {
    let vectors = if generation == InterruptGeneration::V3 { u32::MAX } else { 0xFF };
    let processors = match generation {
        // A mask says neither order nor repetition.
        InterruptGeneration::V1 => any::<u64>()
            .prop_map(|mask| (0..64).filter(|vp| mask >> vp & 1 != 0).collect::<Vec<u16>>())
            .boxed(),
        _ => vec(any::<u16>(), 0..=MAX_PROCESSORS).boxed(),
    };
    (0..=vectors, any::<bool>(), 1u16..=32, processors).prop_map(
        |(vector, lowest, vector_count, processors)| InterruptRequest {
            vector,
            delivery_mode: match lowest {
                true => DeliveryMode::LowestPriority,
                false => DeliveryMode::Fixed,
            },
            vector_count,
            processors,
        },
    )
}

fn translated() -> impl Strategy<Value = TranslatedMsi> {
    (any::<u64>(), any::<u32>(), any::<u16>())
        .prop_map(|(address, data, message_count)| TranslatedMsi { address, data, message_count })
}

/// Any message, with the data of those that borrow it.
fn guest_messages() -> impl Strategy<Value = (GuestMessage<'static>, Vec<u8>)> {
    use GuestMessage as G;
    let assigned = generations().prop_flat_map(|generation| {
        (slots(), memory(), vec(option::of(interrupts(generation)), 0..20)).prop_map(
            move |(slot, memory, interrupts)| {
                G::AssignedResources(AssignedResources { generation, slot, memory, interrupts })
            },
        )
    });
    let create =
        generations().prop_flat_map(|generation| {
            (slots(), interrupts(generation)).prop_map(move |(slot, interrupt)| {
                G::CreateInterrupt { generation, slot, interrupt }
            })
        });
    let message = prop_oneof![
        any::<u32>().prop_map(|version| G::QueryProtocolVersion { version }),
        Just(G::QueryBusRelations),
        any::<u64>().prop_map(|mmio_start| G::FdoD0Entry { mmio_start }),
        Just(G::FdoD0Exit),
        slots().prop_map(|slot| G::CurrentResourceRequirements { slot }),
        slots().prop_map(|slot| G::GetResources { slot }),
        assigned,
        slots().prop_map(|slot| G::ReleaseResources { slot }),
        (slots(), prop::sample::select(&DevicePowerState::ALL[..]))
            .prop_map(|(slot, state)| G::DevicePowerStateChange { slot, state }),
        create,
        (any::<bool>(), slots(), translated()).prop_map(|(second_form, slot, interrupt)| {
            G::DeleteInterrupt { second_form, slot, interrupt }
        }),
        (slots(), any::<u32>(), 1u8..=128).prop_map(|(slot, block_id, length)| G::ReadBlock {
            slot,
            block_id,
            length
        }),
        (slots(), any::<u32>()).prop_map(|(slot, block_id)| G::WriteBlock {
            slot,
            block_id,
            data: &[]
        }),
        slots().prop_map(|slot| G::EjectComplete { slot }),
        slots().prop_map(|slot| G::ResetDevice { slot }),
        slots().prop_map(|slot| G::QueryStopFailed { slot }),
        slots().prop_map(|slot| G::TdispCommand { slot, data: &[] }),
    ];
    (message, vec(any::<u8>(), 1..=MAX_BLOCK_SIZE))
}

fn with_data<'a>(message: GuestMessage<'static>, bytes: &'a [u8]) -> GuestMessage<'a> {
    match message {
        GuestMessage::WriteBlock { slot, block_id, .. } => {
            GuestMessage::WriteBlock { slot, block_id, data: bytes }
        }
        GuestMessage::TdispCommand { slot, .. } => GuestMessage::TdispCommand { slot, data: bytes },
        other => other,
    }
}

fn functions(with_numa: bool) -> impl Strategy<Value = FunctionDescription> {
    let numa = if with_numa { option::of(any::<u16>()).boxed() } else { Just(None).boxed() };
    (any::<[u16; 4]>(), any::<[u8; 4]>(), slots(), any::<u32>(), numa).prop_map(
        |(words, bytes, slot, serial, numa_node)| FunctionDescription {
            ids: VpciPnpId {
                vendor_id: words[0],
                device_id: words[1],
                revision_id: bytes[0],
                prog_if: bytes[1],
                sub_class: bytes[2],
                base_class: bytes[3],
                sub_vendor_id: words[2],
                sub_system_id: words[3],
            },
            slot,
            serial,
            numa_node,
        },
    )
}

fn host_messages() -> impl Strategy<Value = HostMessage> {
    use HostMessage as H;
    prop_oneof![
        any::<bool>().prop_flat_map(|with_numa| vec(functions(with_numa), 0..8)
            .prop_map(move |functions| H::BusRelations { with_numa, functions })),
        slots().prop_map(|slot| H::Eject { slot }),
        (slots(), any::<u64>())
            .prop_map(|(slot, block_mask)| H::InvalidateBlock { slot, block_mask }),
        slots().prop_map(|slot| H::QueryStop { slot }),
        slots().prop_map(|slot| H::ReEnable { slot }),
        slots().prop_map(|slot| H::InvalidateDevice { slot }),
        Just(H::InvalidateBus),
    ]
}

/// Bytes that begin like a message.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    (0u8..0x20, vec(any::<u8>(), 0..400)).prop_map(|(kind, mut rest)| {
        let mut payload = vec![kind, 0, 0x49, 0x42];
        payload.append(&mut rest);
        payload
    })
}

proptest! {
    #[test]
    fn a_guests_message_survives_the_wire_and_its_padding(
        (message, data) in guest_messages(), padding in 0usize..16
    ) {
        let message = with_data(message, &data);
        let mut payload = bytes(&message);
        prop_assert!(payload.len() <= MAX_MESSAGE_SIZE);
        prop_assert_eq!(GuestMessage::message_type(&payload), Ok(message.kind()));
        payload.resize(payload.len() + padding, 0);
        prop_assert_eq!(GuestMessage::parse(&payload), Ok(message));
    }

    #[test]
    fn a_guests_message_cut_short_is_refused((message, data) in guest_messages(), cut: prop::sample::Index) {
        let message = with_data(message, &data);
        let payload = bytes(&message);
        let needed = match &message {
            // What may be left away.
            GuestMessage::DevicePowerStateChange { .. } => 12,
            GuestMessage::GetResources { .. } => 8,
            GuestMessage::CreateInterrupt { generation, .. } => 8 + generation.descriptor_size(),
            _ => payload.len(),
        };
        prop_assert!(GuestMessage::parse(&payload[..cut.index(needed)]).is_err());
    }

    #[test]
    fn a_hosts_message_survives_the_wire_and_its_padding(message in host_messages(), padding in 0usize..16) {
        let mut payload = host_bytes(&message);
        let whole = payload.len();
        for cut in 0..whole {
            prop_assert!(HostMessage::parse(&payload[..cut]).is_err());
        }
        payload.resize(whole + padding, 0);
        prop_assert_eq!(HostMessage::parse(&payload), Ok(message));
    }

    #[test]
    fn replies_survive_the_wire(
        generation in generations(),
        slot in slots(),
        memory in memory(),
        interrupts in vec(option::of(translated()), 0..20),
        block_data in vec(any::<u8>(), 1..=128),
    ) {
        let interrupts = interrupts.into_iter().map(|interrupt| interrupt.filter(|one| one.message_count != 0)).collect();
        let assigned = ResourcesAssigned { generation, slot, memory, interrupts };
        let mut payload = Vec::new();
        assigned.emit(&mut payload).unwrap();
        prop_assert_eq!(status(&payload), Ok(NtStatus::SUCCESS));
        prop_assert_eq!(ResourcesAssigned::parse(generation, &payload), Ok(assigned));

        for list in [ResourceList { assigned: Some(memory) }, ResourceList::default()] {
            let mut payload = Vec::new();
            list.emit(&mut payload).unwrap();
            prop_assert_eq!(payload.len(), 128);
            prop_assert_eq!(ResourceList::parse(&payload), Ok(list));
        }

        let mut payload = Vec::new();
        emit_block(&block_data, &mut payload).unwrap();
        payload.resize(payload.len().next_multiple_of(8), 0);
        prop_assert_eq!(block(&payload, block_data.len() as u8).unwrap(), &block_data[..]);

        let mut payload = Vec::new();
        emit_tdisp_response(slot, &block_data, &mut payload);
        prop_assert_eq!(tdisp_response(&payload), Ok((slot, &block_data[..])));

        for state in DevicePowerState::ALL {
            let reply = PowerStateReply { slot, state };
            let mut payload = Vec::new();
            reply.emit(&mut payload);
            prop_assert_eq!(PowerStateReply::parse(&payload), Ok(reply));
        }
    }

    #[test]
    fn random_bytes_never_panic(payload in prop_oneof![hostile(), vec(any::<u8>(), 0..200)], length: u8) {
        if let Ok(message) = GuestMessage::parse(&payload) {
            // What was understood can be said again, and means the same.
            let again = bytes(&message);
            prop_assert_eq!(GuestMessage::parse(&again), Ok(message));
        }
        if let Ok(message) = HostMessage::parse(&payload) {
            prop_assert_eq!(HostMessage::parse(&host_bytes(&message)), Ok(message));
        }
        let _ = status(&payload);
        let _ = ProtocolVersionReply::parse(&payload);
        let _ = ResourceRequirements::parse(&payload);
        let _ = InterruptCreated::parse(&payload);
        let _ = PowerStateReply::parse(&payload);
        let _ = ResourceList::parse(&payload);
        let _ = block(&payload, length);
        let _ = tdisp_response(&payload);
        for generation in InterruptGeneration::ALL {
            let _ = ResourcesAssigned::parse(generation, &payload);
        }
    }
}
