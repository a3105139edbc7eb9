//! Both ends of a user-mode partition, and guests that break its rules.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmbus_protocol::VpIndex;

use super::{GuestMessage, UserGuest, UserPartition, UserPartitionConfig, socket::Socket};
use crate::{MmioHandler, MmioPages, Partition, PartitionError, PartitionEvent, PostError};

const LIMIT: Duration = Duration::from_secs(60);

fn partition() -> (UserPartition, OwnedFd) {
    UserPartition::new(&UserPartitionConfig {
        memory: vec![(0, 64 << 12), (1 << 32, 16 << 12)],
        pages: shared_memory::PageSize::Base,
    })
    .unwrap()
}

fn both() -> (UserPartition, UserGuest) {
    let (host, guest) = partition();
    (host, UserGuest::new(guest, LIMIT).unwrap())
}

fn ready(fd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap() > 0
}

/// Takes everything the host has sent.
fn take_all(guest: &UserGuest) -> Vec<GuestMessage> {
    std::iter::from_fn(|| guest.next_message().unwrap()).collect()
}

#[test]
fn both_ends_see_the_same_memory() {
    let (host, guest) = both();
    assert_eq!(guest.memory().regions().len(), 2);
    let address = shared_memory::DmaAddress((1 << 32) + 4096);
    host.memory().map().write_bytes(address, b"clearway").unwrap();
    let mut seen = [0; 8];
    guest.memory().map().read_bytes(address, &mut seen).unwrap();
    assert_eq!(&seen, b"clearway");
}

#[test]
fn messages_cross_in_order_and_the_host_leaves_what_it_does_not_want() {
    let (host, guest) = both();
    assert!(!ready(host.events_ready()));
    for number in 0..10u8 {
        assert!(guest.try_post(4, &[number; 16]).unwrap());
        host.post_message(VpIndex(0), 2, &[number; 240]).unwrap();
    }
    assert!(ready(host.events_ready()));
    for number in 0..10u8 {
        let Some(PartitionEvent::Message(message)) = host.next_event() else { panic!() };
        assert_eq!((message.connection_id, message.payload), (4, vec![number; 16]));
        let expected = GuestMessage::Message { sint: 2, payload: vec![number; 240] };
        assert_eq!(guest.next_message().unwrap(), Some(expected));
    }
    assert_eq!(host.next_event(), None);
    assert_eq!(host.post_message(VpIndex(0), 2, &[0; 241]), Err(PostError::TooLong));
    guest.reset().unwrap();
    assert_eq!(host.next_event(), Some(PartitionEvent::Reset));
}

#[test]
fn handles_wake_the_other_end_until_they_are_removed() {
    let (host, guest) = both();
    let flag = host.create_event_flag(VpIndex(1), 5).unwrap();
    let signal = host.create_signal(0x2005).unwrap();
    let msi = host.create_msi(0x41, &[VpIndex(2)], 2).unwrap();
    assert_eq!((msi.address, msi.data, msi.events.len()), (0xFEE0_2000, 1, 2));
    assert_eq!(take_all(&guest).len(), 4);
    flag.signal();
    assert_eq!(guest.event_flag(5).unwrap().take(), 1);
    guest.signal(0x2005).unwrap().signal();
    assert_eq!(signal.take(), 1);
    msi.events[1].signal();
    assert_eq!(guest.msi(msi.address, msi.data).unwrap().take(), 0);
    assert_eq!(guest.msi(msi.address, msi.data + 1).unwrap().take(), 1);
    msi.events[1].signal();
    assert_eq!(guest.interrupt(0x42, VpIndex(2)).unwrap().take(), 1);
    assert!(
        guest.interrupt(0x42, VpIndex(0)).is_none() && guest.interrupt(0x43, VpIndex(2)).is_none()
    );

    assert!(matches!(host.create_event_flag(VpIndex(0), 5), Err(PartitionError::EventFlag(5))));
    assert!(matches!(host.create_event_flag(VpIndex(0), 0), Err(PartitionError::EventFlag(0))));
    assert!(matches!(host.create_event_flag(VpIndex(0), 2048), Err(PartitionError::EventFlag(_))));
    assert!(matches!(host.create_signal(0x2005), Err(PartitionError::Bound(0x2005))));
    assert!(matches!(host.create_msi(0, &[], 33), Err(PartitionError::Msi(33))));
    assert!(matches!(host.create_msi(0, &[], 0), Err(PartitionError::Msi(0))));
    host.move_event_flag(5, VpIndex(0)).unwrap();
    let other = host.create_msi(0x50, &[], 1).unwrap();
    assert_eq!(other.data, 3);
    host.remove_event_flag(5);
    host.remove_event_flag(5);
    host.remove_signal(0x2005);
    host.remove_msi(msi.address, msi.data);
    take_all(&guest);
    assert!(guest.event_flag(5).is_none() && guest.signal(0x2005).is_none());
    assert!(guest.msi(msi.address, msi.data + 1).is_none());
    assert!(guest.interrupt(0x42, VpIndex(2)).is_none());
    assert!(guest.msi(other.address, other.data).is_some());
    host.create_event_flag(VpIndex(1), 5).unwrap();
}

/// Remembers writes, and answers reads by the offset.
#[derive(Default)]
struct Window(Mutex<Vec<(u64, Vec<u8>)>>);

impl MmioHandler for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((offset, data.to_vec()));
    }
}

#[test]
fn mmio_is_answered_by_its_handler_or_by_ones() {
    let (host, guest) = both();
    let window = Arc::new(Window::default());
    let gpa = 0xF800_0000;
    host.intercept_mmio(gpa, 0x2000, window.clone()).unwrap();
    for (gpa, length) in
        [(0, 4096), (gpa + 0x1000, 4096), (gpa, 0), (gpa + 8, 4096), (!0xFFF, 8192)]
    {
        let refused = host.intercept_mmio(gpa, length, window.clone());
        assert!(matches!(refused, Err(PartitionError::Mmio { .. })), "{gpa:#x}");
    }
    let fd = shared_memory::create_memfd("bar", 8192, shared_memory::PageSize::Base).unwrap();
    let pages = MmioPages { fd, offset: 4096, writable: true };
    host.map_mmio(0xF900_0000, 4096, pages).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(guest.mmio_read(gpa + 0x1004, 4).unwrap(), 0x0404_0404);
            assert_eq!(guest.mmio_read(gpa + 8, 1).unwrap(), 8);
            guest.mmio_write(gpa + 0x1010, 2, 0xBEEF).unwrap();
            assert_eq!(guest.mmio_read(gpa + 0x2000, 4).unwrap(), 0xFFFF_FFFF);
            assert_eq!(guest.mmio_read(0xF900_0000, 8).unwrap(), u64::MAX, "it is mapped");
            guest.mmio_write(0x1234_5000, 8, 1).unwrap();
            assert!(guest.try_post(1, b"done").unwrap());
        });
        let done = scope.spawn(|| {
            loop {
                let mut wait = [PollFd::new(&guest, PollFlags::IN)];
                poll(&mut wait, None).unwrap();
                while guest.next_message().unwrap().is_some() {}
                // The host's sign that all is done.
                if guest.event_flag(1).is_some() {
                    return guest.mapped_mmio(0xF900_0000);
                }
            }
        });
        let message = loop {
            poll(&mut [PollFd::from_borrowed_fd(host.events_ready(), PollFlags::IN)], None)
                .unwrap();
            if let Some(event) = host.next_event() {
                break event;
            }
        };
        assert!(matches!(message, PartitionEvent::Message(_)));
        host.create_event_flag(VpIndex(0), 1).unwrap();
        let mapped = done.join().unwrap().unwrap();
        assert_eq!((mapped.length, mapped.offset, mapped.writable), (4096, 4096, true));
        host.remove_mmio(0xF900_0000);
        assert!(matches!(guest.next_message().unwrap(), Some(GuestMessage::Changed)));
        assert!(guest.mapped_mmio(0xF900_0000).is_none());
        host.remove_mmio(gpa);
        host.intercept_mmio(gpa, 0x2000, window.clone()).unwrap();
    });
    assert_eq!(*window.0.lock().unwrap(), [(0x1010, vec![0xEF, 0xBE])]);
}

#[test]
fn a_guest_that_ends_is_gone_and_what_is_taken_back_stays_possible() {
    let (host, guest) = both();
    let signal = host.create_signal(1).unwrap();
    drop(guest);
    assert!(ready(host.events_ready()));
    assert_eq!(host.next_event(), Some(PartitionEvent::Gone));
    assert_eq!(host.next_event(), None);
    assert!(!ready(host.events_ready()), "nothing spins");
    assert_eq!(host.post_message(VpIndex(0), 2, b"late"), Err(PostError::Gone));
    assert!(matches!(host.create_event_flag(VpIndex(0), 1), Err(PartitionError::Gone)));
    host.remove_signal(1);
    drop(signal);
}

#[test]
fn guests_that_break_the_rules_are_cut_off() {
    let header = |kind: u32, small: u32, first: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(small.to_le_bytes());
        bytes.extend(first.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes
    };
    let mut long = header(1, 4, 0);
    long.resize(24 + 241, 0);
    let bad = [
        vec![1],
        header(0, 0, 0),
        header(5, 0, 0),
        header(2, 3, 0),
        header(2, 0, 0),
        header(2, 4, 0xFFE),
        header(3, 256, 0),
        long,
        vec![7; 4096],
    ];
    for bytes in bad {
        let (host, guest) = partition();
        let guest = Socket::from_fd(guest);
        assert!(guest.send(&bytes, None).unwrap());
        assert_eq!(host.next_event(), Some(PartitionEvent::Gone), "{bytes:?}");
    }
    // A descriptor that nobody asked for.
    let (host, guest) = partition();
    let guest = Socket::from_fd(guest);
    let fd = rustix::fs::memfd_create("gift", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert!(guest.send(&header(4, 0, 0), Some(fd.as_fd())).unwrap());
    assert_eq!(host.next_event(), Some(PartitionEvent::Gone));
}

#[test]
fn a_guest_that_takes_nothing_is_held_up_and_then_cut_off() {
    let (host, guest) = partition();
    let mut posted = 0;
    let answer = loop {
        match host.post_message(VpIndex(0), 2, &[0; 240]) {
            Ok(()) => posted += 1,
            Err(answer) => break answer,
        }
        assert!(posted < 100_000);
    };
    assert_eq!(answer, PostError::Busy);
    assert!(!ready(host.room_ready()));
    // What cannot be refused is held, in order, and goes out when there is room.
    let flag = host.create_event_flag(VpIndex(0), 7).unwrap();
    let guest = UserGuest::new(guest, LIMIT).unwrap();
    while guest.next_message().unwrap().is_some() {}
    assert!(ready(host.room_ready()) && ready(host.events_ready()));
    assert_eq!(host.next_event(), None);
    assert_eq!(guest.next_message().unwrap(), Some(GuestMessage::Changed));
    flag.signal();
    assert_eq!(guest.event_flag(7).unwrap().take(), 1);
    host.post_message(VpIndex(0), 2, b"again").unwrap();

    let mut count = 0;
    while host.move_event_flag(7, VpIndex(1)).is_ok() {
        count += 1;
        assert!(count < 100_000);
    }
    assert_eq!(host.next_event(), Some(PartitionEvent::Gone));
}
