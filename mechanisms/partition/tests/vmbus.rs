//! A whole VMBus over a user-mode partition: host and guest as two processes, and as two threads.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use partition::{
    GuestMemory, Partition,
    guest::{BusEvent, GuestChannel, GuestError, VmbusGuest},
    host::{DeviceEvent, HostChannel, OpenedChannel, VmbusHost},
    user::{UserGuest, UserPartition, UserPartitionConfig},
};
use rustix::event::{PollFd, PollFlags, poll};
use vmbus::{
    Channel, EventFd, GuestBuffer, OutgoingPacket, PacketKind, SendError,
    client::ClientConfig,
    server::{OfferParams, ServerConfig},
};
use vmbus_protocol::{ChannelId, Guid, INTERFACE_NETWORK, USER_DEFINED_SIZE, Version, VpIndex};

/// Nothing here takes as long as this, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const NO_DATA: [u8; USER_DEFINED_SIZE] = [0; USER_DEFINED_SIZE];
/// Set in the process that is to be the guest: what it is to do.
const GUEST_ROLE: &str = "CLEARWAY_TEST_GUEST";
const PACKETS: u64 = 30_000;

fn params(instance: u32) -> OfferParams {
    OfferParams::new(INTERFACE_NETWORK, Guid::new(instance, 1, 2, [3; 8]))
}

fn host() -> (Arc<UserPartition>, VmbusHost, OwnedFd) {
    let config = UserPartitionConfig::with_memory(4 << 20);
    let (partition, guest) = UserPartition::new(&config).unwrap();
    let partition = Arc::new(partition);
    let host = VmbusHost::start(partition.clone(), ServerConfig::default()).unwrap();
    (partition, host, guest)
}

/// This test program once more, as an unprivileged guest process whose standard input is its end of the socket.
fn guest_process(role: &str, socket: OwnedFd) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "guest_process_main", "--nocapture"])
        .env(GUEST_ROLE, role)
        .stdin(Stdio::from(socket))
        .spawn()
        .unwrap()
}

fn start_guest(socket: OwnedFd, max_version: Version) -> VmbusGuest {
    let guest = Arc::new(UserGuest::new(socket, LIMIT).unwrap());
    let config = ClientConfig { max_version, ..ClientConfig::default() };
    VmbusGuest::start(guest, config).unwrap()
}

fn next_offer(bus: &VmbusGuest) -> ChannelId {
    match bus.next_event(LIMIT) {
        Some(BusEvent::Offered(offer)) => offer.channel,
        other => panic!("{other:?} instead of an offer"),
    }
}

/// A device that sends each packet back as a completion, and signals `busy` once it has done so a thousand times.
/// Ends when its channel is to be closed.
fn echo(channel: &mut Channel, device: &HostChannel, busy: &EventFd) {
    let mut count = 0;
    let mut bytes = vec![0; 4096];
    loop {
        if let Some(packet) = channel.receive().unwrap() {
            assert!(matches!(packet.kind, PacketKind::InBand) && packet.completion_requested);
            let length = packet.payload.read_into(&mut bytes);
            let answer = OutgoingPacket::Completion { transaction_id: packet.transaction_id };
            count += 1;
            if count == 1000 {
                busy.signal();
            }
            loop {
                match channel.send(answer, &bytes[..length]) {
                    Ok(()) => break,
                    Err(SendError::Full { needed }) => {
                        if !channel.request_room(needed).unwrap() && sleep(channel, device) {
                            return;
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            continue;
        }
        if channel.prepare_to_wait().unwrap() && sleep(channel, device) {
            return;
        }
    }
}

/// Sleeps until the guest signals, or the device is wanted; true if so.
fn sleep(channel: &mut Channel, device: &HostChannel) -> bool {
    let mut ready = [PollFd::new(channel, PollFlags::IN), PollFd::new(device, PollFlags::IN)];
    poll(&mut ready, None).unwrap();
    let wanted = !ready[1].revents().is_empty();
    channel.woken().unwrap();
    wanted
}

fn expect_open(device: &HostChannel) -> Channel {
    match device.wait_event(LIMIT).unwrap() {
        Some(DeviceEvent::Open(opened)) => {
            let channel = opened.channel().unwrap();
            device.opened(true).unwrap();
            channel
        }
        other => panic!("{other:?} instead of an open"),
    }
}

fn expect_close(device: &HostChannel) {
    match device.wait_event(LIMIT).unwrap() {
        Some(DeviceEvent::Close) => {}
        other => panic!("{other:?} instead of a close"),
    }
}

/// Sends packets and checks that each comes back, many at a time.
fn exchange(channel: &mut Channel, count: u64) {
    let (mut sent, mut answered) = (0u64, 0u64);
    let payload = |number: u64| vec![number as u8; (number * 37 % 1500) as usize];
    let mut bytes = vec![0; 4096];
    while answered < count {
        let mut wait = true;
        if sent < count && sent - answered < 64 {
            let packet =
                OutgoingPacket::InBand { transaction_id: sent, completion_requested: true };
            match channel.send(packet, &payload(sent)) {
                Ok(()) => {
                    sent += 1;
                    wait = false;
                }
                Err(SendError::Full { needed }) => wait = !channel.request_room(needed).unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(packet) = channel.receive().unwrap() {
            assert!(matches!(packet.kind, PacketKind::Completion));
            assert_eq!(packet.transaction_id, answered);
            let length = packet.payload.read_into(&mut bytes);
            let mut expected = payload(answered);
            expected.resize(length, 0);
            assert_eq!(bytes[..length], expected);
            answered += 1;
            wait = false;
        }
        if wait && channel.prepare_to_wait().unwrap() {
            assert!(channel.interrupt().wait(LIMIT).unwrap(), "{sent} sent, {answered} answered");
            channel.woken().unwrap();
        }
    }
    channel.flush().unwrap();
}

/// The guest's process. Does nothing when it is run as a test.
#[test]
fn guest_process_main() {
    let Ok(role) = std::env::var(GUEST_ROLE) else { return };
    let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let bus = start_guest(socket, Version::Copper);
    assert_eq!(bus.connect(LIMIT).unwrap().version, Version::Copper);
    let id = next_offer(&bus);
    let mut channel = bus.open(id, (5, 9), NO_DATA, LIMIT).unwrap();
    match role.as_str() {
        "exchange" => {
            exchange(&mut channel.channel, PACKETS);
            // The host has seen all of it, and takes the channel back.
            assert_eq!(bus.next_event(LIMIT), Some(BusEvent::Rescinded(id)));
            bus.close(channel, LIMIT).unwrap();
            bus.release(id).unwrap();
            let again = next_offer(&bus);
            let channel = bus.open(again, (2, 2), NO_DATA, LIMIT).unwrap();
            bus.close(channel, LIMIT).unwrap();
            bus.unload(LIMIT).unwrap();
        }
        "run" => loop {
            exchange(&mut channel.channel, 1000);
        },
        other => panic!("{other}"),
    }
}

#[test]
fn two_processes_exchange_packets_under_load_until_the_channel_is_rescinded() {
    let (_partition, host, socket) = host();
    let device = host.offer(params(1)).unwrap();
    let mut child = guest_process("exchange", socket);
    let mut channel = expect_open(&device);
    let mut count = 0;
    let mut bytes = vec![0; 4096];
    while count < PACKETS {
        while let Some(packet) = channel.receive().unwrap() {
            let length = packet.payload.read_into(&mut bytes);
            let id = packet.transaction_id;
            let answer = OutgoingPacket::Completion { transaction_id: id };
            while let Err(error) = channel.send(answer, &bytes[..length]) {
                let SendError::Full { needed } = error else { panic!("{error}") };
                if !channel.request_room(needed).unwrap() {
                    assert!(channel.interrupt().wait(LIMIT).unwrap());
                    channel.woken().unwrap();
                }
            }
            count += 1;
        }
        if channel.prepare_to_wait().unwrap() && count < PACKETS {
            assert!(channel.interrupt().wait(LIMIT).unwrap(), "{count} packets came");
            channel.woken().unwrap();
        }
    }
    channel.flush().unwrap();
    // Until the guest has read all answers, the ring is in use; an empty one gives all room back.
    while channel.halves().1.room().unwrap() + 8 < channel.halves().1.size() {
        std::thread::yield_now();
    }
    drop(channel);
    drop(device);
    let again = host.offer(params(1)).unwrap();
    let channel = expect_open(&again);
    expect_close(&again);
    drop(channel);
    again.closed().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(host.gone().wait(LIMIT).unwrap());
    assert!(host.is_idle());
}

#[test]
fn a_guest_that_is_killed_under_load_leaves_nothing_behind() {
    let (partition, host, socket) = host();
    let device = host.offer(params(1)).unwrap();
    let mut child = guest_process("run", socket);
    let mut channel = expect_open(&device);
    std::thread::scope(|scope| {
        let device = &device;
        let busy = EventFd::new().unwrap();
        let tell = busy.clone();
        let echo = scope.spawn(move || echo(&mut channel, device, &tell));
        assert!(busy.wait(LIMIT).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        echo.join().unwrap();
    });
    assert!(host.gone().wait(LIMIT).unwrap());
    expect_close(&device);
    assert!(!host.is_idle());
    device.closed().unwrap();
    assert!(host.is_idle() && host.connection().is_none());
    assert!(partition.create_signal(5).is_err());
}

#[test]
fn every_version_connects_and_channels_are_opened_again_and_again() {
    for version in Version::ALL {
        let (_partition, host, socket) = host();
        let device = host.offer(params(1)).unwrap();
        let bus = start_guest(socket, version);
        assert_eq!(bus.connect(LIMIT).unwrap().version, version);
        let id = next_offer(&bus);
        let free = bus.pages().available();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3 {
                    let mut channel = expect_open(&device);
                    echo(&mut channel, &device, &EventFd::new().unwrap());
                    drop(channel);
                    expect_close(&device);
                    device.closed().unwrap();
                }
            });
            for _ in 0..3 {
                let mut open = bus.open(id, (2, 2), NO_DATA, LIMIT).unwrap();
                exchange(&mut open.channel, 200);
                if version >= Version::Rs3_0 {
                    bus.modify(id, VpIndex(1)).unwrap();
                    exchange(&mut open.channel, 50);
                }
                bus.close(open, LIMIT).unwrap();
            }
        });
        assert_eq!(bus.pages().available(), free);
        bus.unload(LIMIT).unwrap();
        assert!(host.is_idle());
        assert_eq!(host.restarts(), 0);
        // And once more from the beginning.
        assert_eq!(bus.connect(LIMIT).unwrap().version, version);
        assert_eq!(next_offer(&bus), id);
        assert_eq!(host.restarts(), 1);
    }
}

#[test]
fn buffers_are_shared_and_taken_back_only_when_the_device_lets_go() {
    let (_partition, host, socket) = host();
    let device = host.offer(params(1)).unwrap();
    let bus = start_guest(socket, Version::Iron);
    bus.connect(LIMIT).unwrap();
    let id = next_offer(&bus);
    let buffer = bus.share(id, 64, LIMIT).unwrap();
    buffer.buffer.write(5000, b"from the guest").unwrap();
    let memory = device.gpadl(buffer.gpadl()).unwrap();
    let mut seen = [0; 14];
    memory.ranges[0].read(5000, &mut seen).unwrap();
    assert_eq!(&seen, b"from the guest");
    let gpadl = buffer.gpadl();
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| bus.unshare(buffer, LIMIT));
        match device.wait_event(LIMIT).unwrap() {
            Some(DeviceEvent::GpadlTeardown(of)) => assert_eq!(of, gpadl),
            other => panic!("{other:?}"),
        }
        assert!(!taken.is_finished());
        drop(memory);
        device.gpadl_released(gpadl).unwrap();
        taken.join().unwrap().unwrap();
    });
    assert!(device.gpadl(gpadl).is_none());
    // One that the device never asked for is no trouble to it.
    let unused = bus.share(id, 8, LIMIT).unwrap();
    bus.unshare(unused, LIMIT).unwrap();
    assert!(device.next_event().is_none());
}

/// What another process does with the descriptors and numbers of an opened channel, and nothing else of this one.
fn served_elsewhere(opened: &OpenedChannel) -> Channel {
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
    let mut memory = GuestMemory::empty();
    for region in opened.memory.regions() {
        memory =
            memory.with(region.gpa, copy(region.as_fd()), region.offset, region.length).unwrap();
    }
    let range = opened.ring.pages.single_range().unwrap();
    let ring = GuestBuffer::new(memory.map(), &range.page_frames, 0, range.byte_count).unwrap();
    let (incoming, outgoing) = ring.rings(opened.request.downstream_page_offset as usize).unwrap();
    let event = |event: &EventFd| EventFd::from_peer(copy(event.as_fd())).unwrap();
    Channel::new(incoming, outgoing, event(&opened.to_guest), event(&opened.to_host)).unwrap()
}

#[test]
fn a_channel_is_served_from_its_descriptors_alone() {
    let (_partition, host, socket) = host();
    let device = host.offer(params(1)).unwrap();
    let bus = start_guest(socket, Version::Iron);
    bus.connect(LIMIT).unwrap();
    let id = next_offer(&bus);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Some(DeviceEvent::Open(opened)) = device.wait_event(LIMIT).unwrap() else {
                panic!("no open")
            };
            let mut channel = served_elsewhere(&opened);
            drop(opened);
            device.opened(true).unwrap();
            echo(&mut channel, &device, &EventFd::new().unwrap());
            expect_close(&device);
            drop(channel);
            device.closed().unwrap();
        });
        let mut open = bus.open(id, (3, 3), NO_DATA, LIMIT).unwrap();
        exchange(&mut open.channel, 2000);
        bus.close(open, LIMIT).unwrap();
    });
    assert!(!host.is_idle(), "it is still connected");
    bus.unload(LIMIT).unwrap();
    assert!(host.is_idle());
}

#[test]
fn what_a_device_refuses_and_what_is_rescinded_is_told_to_the_driver() {
    let (_partition, host, socket) = host();
    let device = host.offer(params(1)).unwrap();
    let bus = start_guest(socket, Version::Iron);
    bus.connect(LIMIT).unwrap();
    let id = next_offer(&bus);
    let open = |bus: &VmbusGuest| -> Result<GuestChannel, GuestError> {
        bus.open(id, (4, 4), NO_DATA, LIMIT)
    };
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| open(&bus));
        assert!(matches!(device.wait_event(LIMIT).unwrap(), Some(DeviceEvent::Open(_))));
        device.opened(false).unwrap();
        assert!(matches!(refused.join().unwrap(), Err(GuestError::Refused(_))));
        let rescinded = scope.spawn(|| open(&bus));
        assert!(matches!(device.wait_event(LIMIT).unwrap(), Some(DeviceEvent::Open(_))));
        drop(device);
        let answer = rescinded.join().unwrap();
        assert!(
            matches!(answer, Err(GuestError::Rescinded(_) | GuestError::Refused(_))),
            "{answer:?}"
        );
    });
    assert_eq!(bus.next_event(LIMIT), Some(BusEvent::Rescinded(id)));
    bus.release(id).unwrap();
    bus.unload(LIMIT).unwrap();
    assert!(host.is_idle());
}

#[test]
fn memory_that_is_not_the_guests_is_refused() {
    let (_partition, host, socket) = host();
    let _device = host.offer(params(1)).unwrap();
    let guest = Arc::new(UserGuest::new(socket, LIMIT).unwrap());
    // By hand, since the client's own allocator has no such pages.
    let mut client = vmbus::client::Client::new(ClientConfig::default());
    client.connect().unwrap();
    let exchange = |client: &mut vmbus::client::Client, wanted: usize| {
        let mut events = Vec::new();
        while events.len() < wanted {
            while let Some((id, message)) = client.next_message() {
                assert!(guest.try_post(id, message.as_bytes()).unwrap());
            }
            poll(&mut [PollFd::new(&guest, PollFlags::IN)], None).unwrap();
            while let Some(message) = guest.next_message().unwrap() {
                if let partition::user::GuestMessage::Message { payload, .. } = message {
                    client.handle_message(&payload).unwrap();
                }
            }
            events.extend(std::iter::from_fn(|| client.next_event()));
        }
        events
    };
    let events = exchange(&mut client, 3);
    let channel = client.offers().next().unwrap().channel;
    assert_eq!(events.len(), 3);
    let end = (4 << 20) / 4096;
    for frames in [vec![end - 1, end], vec![u64::MAX], vec![1 << 52], vec![0, end + 5, 1]] {
        let range = vmbus_protocol::GpadlRange::pages(frames).unwrap();
        let pages = vmbus_protocol::Gpadl::new(vec![range]).unwrap();
        let gpadl = client.create_gpadl(channel, &pages).unwrap();
        let answer = exchange(&mut client, 1);
        assert_eq!(
            answer,
            [vmbus::client::ClientEvent::GpadlCreated { channel, gpadl, accepted: false }]
        );
    }
    assert!(host.connection().is_some());
}
