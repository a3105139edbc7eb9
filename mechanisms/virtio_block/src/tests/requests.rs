//! What a driver asks for.

use std::time::Duration;

use virtio_bindings::{virtio_mmio as mmio, virtio_ring::*};
use vm_memory::{Bytes, GuestAddress};

use super::driver::*;
use crate::{Access, registers::feature};

#[test]
fn what_is_written_is_on_the_disk_and_what_is_read_came_from_it() {
    let mut driver = Driver::ready(Access::ReadWrite);
    let mut content = Driver::content();
    // Over the border of two regions of memory, in parts that are no sectors.
    let parts = |write| [(DATA, 1000, write), (DATA + 1000, 0, write), (DATA + 1000, 3096, write)];
    assert_eq!(
        driver.request(READ, 60, &parts(true)),
        Answer { status: IOERR, written: 0 },
        "of 8 sectors there are 4"
    );
    assert_eq!(driver.request(READ, 56, &parts(true)), Answer { status: OK, written: 4097 });
    assert_eq!(driver.bytes(DATA, 4096), content[56 * 512..]);
    let news: Vec<u8> = (0..4096u32).map(|n| (n % 253) as u8).collect();
    driver.put(DATA, &news);
    assert_eq!(driver.request(WRITE, 8, &parts(false)), Answer { status: OK, written: 1 });
    content[8 * 512..16 * 512].copy_from_slice(&news);
    assert!(driver.on_disk() == content);
    assert_eq!(driver.request(FLUSH, 0, &[]), Answer { status: OK, written: 1 });
    assert_eq!(driver.request(READ, 64, &[]), Answer { status: OK, written: 1 });
}

#[test]
fn framing_is_the_driver_s_own_affair() {
    // VIRTIO 1.2 §2.7.4.1: the header in three parts, data with it, and the status with data.
    let mut driver = Driver::ready(Access::ReadWrite);
    let header = 0x2_0000;
    driver.write_header(header, WRITE, 5);
    driver.put(header + 16, &[0xAB; 512]);
    let split = [(header, 1, false), (header + 1, 6, false), (header + 7, 521, false)];
    assert_eq!(driver.send(&split), Answer { status: OK, written: 1 });
    assert_eq!(driver.on_disk()[5 * 512..6 * 512], [0xAB; 512]);
    driver.write_header(header, READ, 5);
    driver.chain(DESCRIPTORS, 7, &[(header, 16, false), (DATA, 513, true)]);
    driver.put(DATA, &[0xEE; 514]);
    driver.offer(7);
    driver.notify();
    assert_eq!(driver.answer(), (7, 513));
    assert_eq!(driver.bytes(DATA, 514), [&[0xAB; 512][..], &[OK, 0xEE]].concat());
}

#[test]
fn a_disk_has_a_name_and_what_it_does_not_know_is_unsupported() {
    let mut driver = Driver::ready(Access::ReadWrite);
    assert_eq!(
        driver.request(GET_ID, 0, &[(DATA, 7, true), (DATA + 7, 13, true)]),
        Answer { status: OK, written: 21 }
    );
    assert_eq!(driver.bytes(DATA, 20), b"a disk's name\0\0\0\0\0\0\0");
    assert_eq!(driver.request(GET_ID, 0, &[(DATA, 4, true)]), Answer { status: OK, written: 5 });
    assert_eq!(driver.request(GET_ID, 0, &[(DATA, 64, true)]), Answer { status: OK, written: 20 });
    // Discard, write zeroes, secure erase, and no kind at all.
    for kind in [11, 13, 14, 2, u32::MAX] {
        let answer = driver.request(kind, 0, &[(DATA, 512, false)]);
        assert_eq!(answer, Answer { status: UNSUPP, written: 1 }, "{kind}");
    }
    assert!(driver.on_disk() == Driver::content());
}

#[test]
fn a_disk_that_is_only_read_refuses_writes() {
    let mut driver = Driver::ready(Access::ReadOnly);
    let answer = driver.request(WRITE, 0, &[(DATA, 512, false)]);
    assert_eq!(answer, Answer { status: IOERR, written: 1 });
    assert_eq!(driver.request(READ, 0, &[(DATA, 512, true)]).status, OK);
    assert_eq!(driver.request(FLUSH, 0, &[]).status, OK);
    assert!(driver.on_disk() == Driver::content());
}

#[test]
fn requests_that_are_not_whole_sectors_of_the_disk_move_nothing() {
    let mut driver = Driver::ready(Access::ReadWrite);
    driver.put(DATA, &[0xEE; 1024]);
    for (sector, length) in
        [(0, 511), (0, 513), (63, 1024), (64, 512), (1 << 55, 512), (u64::MAX, 512)]
    {
        for kind in [READ, WRITE] {
            let answer = driver.request(kind, sector, &[(DATA, length, kind == READ)]);
            assert_eq!(answer.status, IOERR, "{kind} of {length} bytes at {sector}");
        }
    }
    assert_eq!(driver.bytes(DATA, 1024), [0xEE; 1024]);
    assert!(driver.on_disk() == Driver::content());
}

#[test]
fn indirect_descriptors_are_followed() {
    let mut driver = Driver::ready(Access::ReadWrite);
    let (table, header, status) = (0x2_0000, 0x2_8000, 0x2_8100);
    driver.write_header(header, READ, 1);
    let mut parts = vec![(header, 16, false)];
    parts.extend((0..128).map(|index| (DATA + 4 * index, 4, true)));
    parts.push((status, 1, true));
    driver.chain(table, 0, &parts);
    let bytes = 16 * parts.len() as u32;
    driver.describe(DESCRIPTORS, 3, table, bytes, VRING_DESC_F_INDIRECT, 0);
    driver.offer(3);
    driver.notify();
    assert_eq!(driver.answer(), (3, 513));
    assert_eq!(driver.bytes(DATA, 512), Driver::content()[512..1024]);
}

#[test]
fn many_requests_are_answered_in_order_around_the_rings() {
    let mut driver = Driver::ready(Access::ReadWrite);
    let content = Driver::content();
    for round in 0..20u64 {
        for slot in 0..16 {
            let (at, first) = (0x2_0000 + 0x1000 * u64::from(slot), 4 * slot);
            driver.write_header(at, READ, (round + u64::from(slot)) % SECTORS);
            let parts = [(at, 16, false), (at + 512, 512, true), (at + 256, 1, true)];
            driver.chain(DESCRIPTORS, first, &parts);
            driver.offer(first);
        }
        driver.notify();
        for slot in 0..16 {
            assert_eq!(driver.answer(), (4 * slot, 513));
            let sector = (round + u64::from(slot)) % SECTORS * 512;
            let read = driver.bytes(0x2_0000 + 0x1000 * u64::from(slot) + 512, 512);
            assert_eq!(read, content[sector as usize..][..512]);
        }
    }
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    let mut driver = Driver::new(Access::ReadWrite);
    driver.features |= feature::EVENT_IDX;
    driver.introduce();
    // It wants none before the third answer.
    let used_event = AVAILABLE + 4 + 2 * u64::from(driver.size);
    driver.memory.write_obj(2u16.to_le(), GuestAddress(used_event)).unwrap();
    let header = 0x2_0000;
    driver.write_header(header, READ, 0);
    driver.chain(DESCRIPTORS, 0, &[(header, 16, false), (DATA, 512, true), (header + 32, 1, true)]);
    let mut offered = 0;
    for wanted in [2, 3] {
        while offered < wanted {
            driver.offer(0);
            offered += 1;
        }
        driver.notify();
        if wanted == 2 {
            while driver.used_index() != 2 {
                std::thread::yield_now();
            }
            // What is suppressed can only be waited for.
            assert!(!driver.device.interrupt().wait(Duration::from_millis(20)).unwrap());
            assert_eq!(driver.get(mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        }
    }
    assert!(driver.device.interrupt().wait(Duration::from_secs(60)).unwrap());
    assert_eq!(driver.get(mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.set(mmio::VIRTIO_MMIO_INTERRUPT_ACK, 2);
    assert_eq!(driver.get(mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.set(mmio::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.get(mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn an_image_that_was_cut_short_meanwhile_is_an_error_of_the_disk() {
    let mut driver = Driver::ready(Access::ReadWrite);
    driver.image.as_file().set_len(1024).unwrap();
    let answer = driver.request(READ, 1, &[(DATA, 1024, true)]);
    assert_eq!(answer.status, IOERR);
    assert_eq!(driver.request(READ, 1, &[(DATA, 512, true)]).status, OK);
}

#[test]
fn a_driver_without_flushes_is_served_too() {
    let mut driver = Driver::new(Access::ReadWrite);
    driver.features = feature::VERSION_1;
    driver.introduce();
    driver.put(DATA, &[0x77; 512]);
    assert_eq!(driver.request(WRITE, 2, &[(DATA, 512, false)]).status, OK);
    assert_eq!(driver.on_disk()[1024..1536], [0x77; 512]);
}
