//! VMBus over a real KVM, spoken by a guest that wants to break it.

use partition::{Partition, host::DeviceEvent};
use vmbus::client::ClientEvent;
use vmbus_protocol::{
    ChannelId, ClientMessage, Gpadl, GpadlId, GpadlRange, OpenChannel, USER_DEFINED_SIZE, VpIndex,
};

use kvm_partition::{
    hypercall::POST_MESSAGE,
    layout::{HIGH_MMIO, LOW_MMIO},
};

use crate::{
    bus::{Bus, RING_PAGES, hostile},
    guest::Do,
    puppet::{LIMIT, MEMORY, MESSAGE_PAGE, MSR_EOM, Op, SCRATCH},
};

/// Marsaglia's xorshift: the same garbage each time.
struct Garbage(u64);

impl Garbage {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn ten_thousand_garbage_messages_leave_a_server_that_can_be_connected_to() {
    hostile(|stage| {
        let mut bus = Bus::new(stage);
        let mut garbage = Garbage(0x9E37_79B9_7F4A_7C15);
        for _ in 0..10 {
            let mut ops = Vec::new();
            for number in 0..1000u64 {
                let at = SCRATCH + number % 1000 * 256;
                let mut payload: Vec<u8> =
                    (0..30).flat_map(|_| garbage.next().to_le_bytes()).collect();
                // Mostly a type that there is, and small numbers behind it.
                let random = garbage.next();
                payload[..8].copy_from_slice(&(random % 28).to_le_bytes());
                if random & 1 << 40 != 0 {
                    payload[8..].iter_mut().for_each(|byte| *byte &= 3);
                }
                // The puppet listens to source 2 alone, and is asked to pause by none.
                if matches!(random % 28, 14 | 24) && payload.len() > 24 {
                    payload[16..24].copy_from_slice(&2u64.to_le_bytes());
                }
                let size = (random >> 8) as u32 % 260;
                let connection = [1, 4, 1, 4, 0, 77][(random >> 20) as usize % 6];
                bus.puppet.message_at(at, connection, random as u32 >> 30, size, &payload);
                ops.push(Op::call(POST_MESSAGE.into(), at));
            }
            let done = bus.puppet.run(&ops);
            assert!(done.iter().all(|done| matches!(done.status(), 0 | 5 | 0x13)));
            // What is answered is taken, so that the server goes on.
            bus.puppet.write(MESSAGE_PAGE, &[0; 4096]);
            bus.puppet.run(&[Op::write_msr(MSR_EOM, 0)]);
        }
        // Answers to what was posted may still come; behind them is that to a driver's first message.
        let mut quiet = 0;
        while quiet < 20 {
            let page: [u8; 4096] = bus.puppet.read(MESSAGE_PAGE);
            quiet = if page == [0; 4096] { quiet + 1 } else { 0 };
            bus.puppet.write(MESSAGE_PAGE, &[0; 4096]);
            bus.puppet.run(&[Op::write_msr(MSR_EOM, 0)]);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        while let Some(event) = bus.device.next_event() {
            match event {
                DeviceEvent::Open(_) => drop(bus.device.opened(false)),
                DeviceEvent::Close => drop(bus.device.closed()),
                DeviceEvent::GpadlTeardown(gpadl) => drop(bus.device.gpadl_released(gpadl)),
                DeviceEvent::Withdrawn => panic!("nobody has taken the offer back"),
            }
        }
        bus.handshake();
    });
}

#[test]
fn pages_that_are_not_the_guests_are_never_shared() {
    hostile(|stage| {
        let mut bus = Bus::new(stage);
        let channel = bus.connect();
        let end = MEMORY >> 12;
        for frames in [
            vec![end],
            vec![end - 1, end],
            vec![LOW_MMIO.start >> 12],
            vec![SCRATCH >> 12, LOW_MMIO.start >> 12],
            vec![HIGH_MMIO.start >> 12],
            vec![0xFEE00],
            vec![1 << 52],
            vec![u64::MAX],
        ] {
            let said = format!("{frames:x?}");
            assert!(!bus.share(channel, frames).1, "{said}");
        }
        // One page many times is the guest's own affair.
        let (gpadl, accepted) = bus.share(channel, vec![SCRATCH >> 12; 300]);
        assert!(accepted);
        bus.client.teardown_gpadl(gpadl).unwrap();
        assert_eq!(bus.next(), ClientEvent::GpadlTorndown { channel, gpadl });
        bus.unload();
        bus.handshake();
    });
}

fn open(channel: ChannelId, ring_gpadl: GpadlId, downstream_page_offset: u32) -> ClientMessage {
    ClientMessage::OpenChannel(OpenChannel {
        channel,
        open_id: 99,
        ring_gpadl,
        target_vp: Some(VpIndex(0)),
        downstream_page_offset,
        user_data: [0; USER_DEFINED_SIZE],
        signal: None,
    })
}

#[test]
fn rings_in_use_are_neither_opened_again_nor_taken_back_nor_described_anew() {
    hostile(|stage| {
        let mut bus = Bus::new(stage);
        let channel = bus.connect();
        let gpadl = bus.share_rings(channel);
        // Before it is open: rings of nothing, of no pages, beyond their end.
        for (ring, offset) in
            [(GpadlId(1), 2), (gpadl, 0), (gpadl, 1), (gpadl, 4), (gpadl, u32::MAX)]
        {
            bus.post(&open(channel, ring, offset));
            // Refused, or answered that it is not open.
            bus.puppet.lives();
        }
        assert!(bus.device.wait_event(std::time::Duration::from_millis(50)).unwrap().is_none());
        drain(&bus);
        let opened = bus.open(channel, gpadl);
        bus.signals(channel, &opened);
        // The same name for other pages, the same channel again, its rings back, a channel that there is not.
        let other = Gpadl::new(vec![GpadlRange::pages(vec![0x10; 8]).unwrap()]).unwrap();
        for message in other.messages(channel, gpadl) {
            bus.post(&message);
        }
        for message in [
            open(channel, gpadl, 2),
            open(channel, gpadl, 2),
            ClientMessage::GpadlTeardown { channel, gpadl },
            ClientMessage::GpadlTeardown { channel, gpadl: GpadlId(0x77) },
            ClientMessage::RelIdReleased(channel),
            ClientMessage::RequestOffers,
            open(ChannelId(2047), gpadl, 2),
            ClientMessage::CloseChannel(ChannelId(9)),
        ] {
            bus.post(&message);
        }
        drain(&bus);
        bus.signals(channel, &opened);
        assert_eq!(
            opened.ring.pages.page_count() as u64,
            RING_PAGES,
            "the rings are the first ones"
        );
        // The rings' pages are still where the guest said at first.
        bus.puppet.write(SCRATCH + 4096 + 8, b"in place");
        let mut bytes = [0; 8];
        opened.ring.ranges[0].read(4096 + 8, &mut bytes).unwrap();
        assert_eq!(&bytes, b"in place");
        bus.client.close(channel).unwrap();
        bus.post_all();
        bus.expect_close();
        drop(opened);
        bus.unload();
        bus.handshake();
    });
}

/// Takes all messages that come within a moment.
fn drain(bus: &Bus) {
    let mut quiet = 0;
    while quiet < 20 {
        quiet = if bus.puppet.take_message().is_some() { 0 } else { quiet + 1 };
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn rings_that_are_rewritten_while_they_are_read_are_dead_and_nothing_else() {
    hostile(|stage| {
        let mut bus = Bus::new(stage);
        let mut garbage = Garbage(7);
        for round in 0..4u64 {
            let channel = bus.connect();
            let gpadl = bus.share_rings(channel);
            let opened = bus.open(channel, gpadl);
            let mut rings = opened.channel().unwrap();
            // The guest's processor writes indices, lengths and packets, all over both rings, while the host reads.
            let mut ops = Vec::new();
            for _ in 0..1_000 {
                let random = garbage.next();
                let page = [0, 0, 0, 1, 2, 3][(random >> 8) as usize % 6] * 4096;
                let at = SCRATCH + page + (random >> 16) % [16, 4088][(random >> 40) as usize & 1];
                let value = [random >> 32, random >> 52, 8 * (random & 0x1FF), 0][round as usize];
                ops.push(Op::at(Do::Store32, at).with(value));
            }
            bus.puppet.start(&ops);
            let begun = std::time::Instant::now();
            let mut reads = 0u64;
            // Until it is dead, or as long as it takes to look often.
            while reads < 3_000 && begun.elapsed() < LIMIT {
                reads += 1;
                match rings.receive() {
                    Ok(Some(packet)) => assert!(packet.payload.len() <= 4096 * 2),
                    Ok(None) => std::thread::yield_now(),
                    Err(_) => break,
                }
            }
            bus.puppet.finish(&ops);
            drop(rings);
            drop(opened);
            bus.client.close(channel).unwrap();
            bus.post_all();
            bus.expect_close();
            bus.unload();
        }
        bus.handshake();
    });
}

#[test]
fn a_guest_that_ends_with_its_rings_open_leaves_nothing_behind() {
    hostile(|stage| {
        let mut bus = Bus::new(stage);
        let channel = bus.connect();
        let gpadl = bus.share_rings(channel);
        let opened = bus.open(channel, gpadl);
        bus.signals(channel, &opened);
        assert_eq!(
            bus.puppet.ends_by(&[Op::at(Do::TripleFault, SCRATCH + 0x8000)]),
            kvm_partition::RunOutcome::TripleFault { processor: 0 }
        );
        bus.expect_close();
        drop(opened);
        assert!(bus.host.gone().wait(LIMIT).unwrap());
        assert!(bus.host.is_idle());
        assert!(bus.puppet.partition.create_event_flag(VpIndex(0), 99).is_ok());
    });
}
