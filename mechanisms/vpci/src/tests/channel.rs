//! Both cores over rings.

use vmbus::testing;
use vpci_protocol::{GuestMessage, MessageType, ProtocolVersion, reply};

use super::world::*;
use crate::{ChannelError, Incoming, Outgoing, VpciChannel};

fn pair(pages: usize) -> (VpciChannel, VpciChannel) {
    let pair = testing::channel(pages);
    (VpciChannel::of_host(pair.host), VpciChannel::of_guest(pair.guest))
}

/// Moves packets by the rings until nobody has anything left to say.
fn settle(world: &mut World, host: &mut VpciChannel, guest: &mut VpciChannel) {
    for _ in 0..1000 {
        let mut moved = false;
        for packet in world.guest.sent.drain(..) {
            guest.send(packet).unwrap();
        }
        guest.flush().unwrap();
        let now = world.host.now;
        while let Some(effects) = host.serve(&mut world.host.vsp, now).unwrap() {
            world.host.carry_out(effects);
            for packet in world.host.sent.drain(..) {
                host.send(packet).unwrap();
            }
            moved = true;
        }
        moved |= !world.host.pf.is_empty();
        world.host.run_pf();
        for packet in world.host.sent.drain(..) {
            host.send(packet).unwrap();
        }
        host.flush().unwrap();
        while let Some(effects) =
            guest.receive(|packet| world.guest.vsc.receive(packet, now)).unwrap()
        {
            world.guest(effects);
            moved = true;
        }
        if !moved && world.guest.sent.is_empty() {
            assert!(host.prepare_to_wait().unwrap());
            assert!(guest.prepare_to_wait().unwrap());
            return;
        }
    }
    panic!("the two never stop talking");
}

#[test]
fn a_function_comes_up_and_goes_over_rings_in_every_version() {
    for version in ProtocolVersion::ALL {
        let (mut host, mut guest) = pair(4);
        let mut world = World::new(config(), version);
        world.open();
        settle(&mut world, &mut host, &mut guest);
        assert!(world.guest.ready.is_some());
        for length in [1, 4, 5, 100, 128] {
            let data: Vec<u8> = (0..length).collect();
            let (id, effects) = world.guest.vsc.write_block(1, &data, world.host.now).unwrap();
            world.guest(effects);
            settle(&mut world, &mut host, &mut guest);
            assert_eq!(world.guest.completed[&id], Ok(crate::vsc::VscReply::Done));
            assert_eq!(world.host.blocks[&1], data, "the padding of the ring is no data");
            let (id, effects) = world.guest.vsc.read_block(1, length, world.host.now).unwrap();
            world.guest(effects);
            settle(&mut world, &mut host, &mut guest);
            assert_eq!(world.guest.completed[&id], Ok(crate::vsc::VscReply::Block(data)));
        }
        let effects = world.host.vsp.eject(seconds(60), world.host.now);
        world.host.carry_out(effects);
        for packet in world.host.sent.drain(..) {
            host.send(packet).unwrap();
        }
        settle(&mut world, &mut host, &mut guest);
        let effects = world.guest.vsc.ejected();
        world.guest(effects);
        settle(&mut world, &mut host, &mut guest);
        assert!(world.host.partition.rescinded);
        world.close();
    }
}

#[test]
fn a_guest_that_reads_no_answers_gets_no_more_of_them_and_loses_none() {
    let (mut host, mut guest) = pair(2);
    let mut world = World::up(ProtocolVersion::V1_4);
    let mut asked = 0u64;
    let mut payload = Vec::new();
    GuestMessage::CurrentResourceRequirements { slot: SLOT }.emit(&mut payload).unwrap();
    let mut waiting = 0;
    // Far more questions than a ring holds answers.
    for transaction in 1..=1000 {
        let packet = Outgoing::Message { transaction: Some(transaction), payload: payload.clone() };
        if guest.is_congested() {
            break;
        }
        guest.send(packet).unwrap();
        guest.flush().unwrap();
        asked = transaction;
        while let Some(effects) = host.serve(&mut world.host.vsp, world.host.now).unwrap() {
            for effect in effects {
                let crate::Effect::Send(packet) = effect else { panic!("{effect:?}") };
                host.send(packet).unwrap();
            }
        }
        host.flush().unwrap();
        waiting = waiting.max(usize::from(host.is_congested()));
    }
    assert!(asked > 50 && guest.is_congested());
    assert_eq!(waiting, 1, "the host held back");
    assert!(host.prepare_to_wait().unwrap(), "there is nothing it could do");
    // Now the guest reads, though it waits for room itself.
    let mut answered = 0;
    for _ in 0..10 {
        let answer = |packet: Incoming<'_>| match packet {
            Incoming::Completion { transaction, .. } => transaction,
            other => panic!("{other:?}"),
        };
        while let Some(transaction) = guest.receive(answer).unwrap() {
            answered += 1;
            assert_eq!(transaction, answered, "in order");
        }
        guest.flush().unwrap();
        while let Some(effects) = host.serve(&mut world.host.vsp, world.host.now).unwrap() {
            for effect in effects {
                let crate::Effect::Send(packet) = effect else { panic!("{effect:?}") };
                host.send(packet).unwrap();
            }
        }
        host.flush().unwrap();
    }
    assert_eq!(answered, asked);
}

#[test]
fn an_answer_too_long_for_the_ring_becomes_a_failure() {
    let (mut host, mut guest) = pair(2);
    host.send(Outgoing::Completion { transaction: 5, payload: vec![0; 10_000] }).unwrap();
    host.flush().unwrap();
    let status = guest.receive(|packet| match packet {
        Incoming::Completion { transaction: 5, payload } => reply::status(payload).unwrap(),
        other => panic!("{other:?}"),
    });
    let status = status.unwrap().unwrap();
    assert_eq!(status, pcivirt_protocol::NtStatus::INSUFFICIENT_RESOURCES);
    let message = Outgoing::Message { transaction: None, payload: vec![0; 10_000] };
    assert_eq!(host.send(message), Err(ChannelError::RingTooSmall { length: 10_000 }));
    assert_eq!(MessageType::ALL.len(), 30);
}

#[test]
fn packets_with_memory_ranges_end_the_channel() {
    let (mut host, mut guest) = pair(2);
    let range = vmbus::OutgoingGpaRange { byte_count: 8, byte_offset: 0, page_frames: &[1] };
    let packet = vmbus::OutgoingPacket::GpaDirect { transaction_id: 1, ranges: &[range] };
    guest.channel_mut().send(packet, &[0; 8]).unwrap();
    guest.flush().unwrap();
    assert_eq!(host.receive(|_| ()), Err(ChannelError::NotInBand));
}
