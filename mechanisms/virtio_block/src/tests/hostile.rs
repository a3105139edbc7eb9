//! What only a hostile guest does: each ends in an error, in DEVICE_NEEDS_RESET, or in nothing.

use super::driver::*;
use crate::Access;
use proptest::prelude::*;
use virtio_bindings::{virtio_mmio as mmio, virtio_ring::*};

/// Nothing is there.
const NOWHERE: u64 = MEMORY_END + 0x1000;

/// What is wrong with a chain, and how it is written.
type Case<'a> = (&'a str, &'a dyn Fn(&Driver));

#[test]
fn data_outside_of_memory_is_an_error_of_the_request() {
    let mut driver = Driver::ready(Access::ReadWrite);
    let ends = MEMORY_END - 512;
    let cases: [&[(u64, u32)]; 5] = [
        &[(NOWHERE, 512)],
        &[(ends, 1024)],
        &[(u64::MAX - 100, 512)],
        &[(0, 1 << 31)],
        &[(DATA, 512), (NOWHERE, 512)],
    ];
    for data in cases {
        for kind in [READ, WRITE] {
            let data: Vec<_> =
                data.iter().map(|(at, length)| (*at, *length, kind == READ)).collect();
            assert_eq!(driver.request(kind, 0, &data).status, IOERR, "{data:x?}");
        }
    }
    assert_eq!(driver.request(GET_ID, 0, &[(NOWHERE, 20, true)]).status, IOERR);
    assert_eq!(driver.send(&[(NOWHERE, 16, false)]).status, IOERR, "its header");
    assert_eq!(driver.send(&[(DATA, 15, false)]).status, IOERR, "half a header");
    assert!(!driver.needs_reset());
    assert!(driver.on_disk() == Driver::content());
    driver.assert_works_after_a_reset();
}

#[test]
fn chains_that_cannot_be_answered_break_the_queue_until_a_reset() {
    let next = VRING_DESC_F_NEXT;
    let (write, indirect) = (VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT);
    let table = 0x2_0000;
    let cases: [Case<'_>; 11] = [
        ("a loop", &|driver| {
            driver.describe(DESCRIPTORS, 0, DATA, 16, next, 1);
            driver.describe(DESCRIPTORS, 1, DATA, 16, next, 0);
        }),
        ("a loop of what is written", &|driver| {
            driver.describe(DESCRIPTORS, 0, DATA, 1, next | write, 0);
        }),
        ("a descriptor outside of the table", &|driver| {
            driver.describe(DESCRIPTORS, 0, DATA, 16, next, driver.size);
        }),
        ("no status", &|driver| driver.chain(DESCRIPTORS, 0, &[(DATA, 16, false)])),
        ("a status of no bytes", &|driver| {
            driver.chain(DESCRIPTORS, 0, &[(DATA, 16, false), (DATA, 0, true)]);
        }),
        ("a status outside of memory", &|driver| {
            driver.chain(DESCRIPTORS, 0, &[(DATA, 16, false), (NOWHERE, 1, true)]);
        }),
        ("a status at no address", &|driver| {
            driver.chain(DESCRIPTORS, 0, &[(DATA, 16, false), (u64::MAX, 2, true)]);
        }),
        ("what is read behind what is written", &|driver| {
            let parts = [(DATA, 16, false), (DATA, 512, true), (DATA, 16, false), (DATA, 1, true)];
            driver.chain(DESCRIPTORS, 0, &parts);
        }),
        ("more than 4 GiB", &|driver| {
            let parts = [(DATA, 16, false), (0, u32::MAX, true), (0, u32::MAX, true)];
            driver.chain(DESCRIPTORS, 0, &parts);
        }),
        ("an indirect table in an indirect table", &|driver| {
            driver.describe(DESCRIPTORS, 0, table, 32, indirect, 0);
            driver.describe(table, 0, DATA, 16, next, 1);
            driver.describe(table, 1, table, 32, indirect, 0);
        }),
        ("an indirect table outside of memory", &|driver| {
            driver.describe(DESCRIPTORS, 0, NOWHERE, 32, indirect, 0);
        }),
    ];
    let mut driver = Driver::new(Access::ReadWrite);
    for (what, prepare) in cases {
        driver.introduce();
        prepare(&driver);
        driver.offer(0);
        driver.notify();
        driver.until(|driver| driver.needs_reset() || driver.used_index() != 0);
        assert!(driver.needs_reset(), "{what}");
        assert_eq!(driver.used_index(), 0, "{what}");
        driver.assert_breaks_down();
        driver.assert_works_after_a_reset();
    }
    assert!(driver.on_disk() == Driver::content());
}

#[test]
fn a_chain_with_more_segments_than_there_may_be_is_an_error_of_the_request() {
    let mut driver = Driver::ready(Access::ReadWrite);
    let (table, header) = (0x2_0000, 0x4_0000);
    driver.write_header(header, READ, 0);
    let mut parts = vec![(header, 16, false)];
    parts.extend([(DATA, 1, true)].repeat(512));
    parts.push((header + 32, 1, true));
    driver.chain(table, 0, &parts);
    driver.describe(DESCRIPTORS, 0, table, 16 * parts.len() as u32, VRING_DESC_F_INDIRECT, 0);
    driver.offer(0);
    driver.notify();
    driver.answer();
    assert_eq!(driver.bytes(header + 32, 1), [IOERR]);
}

#[test]
fn a_queue_that_cannot_be_is_none() {
    let mut driver = Driver::new(Access::ReadWrite);
    let cases = [
        (0, DESCRIPTORS, AVAILABLE, USED),
        (3, DESCRIPTORS, AVAILABLE, USED),
        (512, DESCRIPTORS, AVAILABLE, USED),
        (0x1_0000, DESCRIPTORS, AVAILABLE, USED),
        (0x1_0040, DESCRIPTORS, AVAILABLE, USED),
        (64, DESCRIPTORS + 8, AVAILABLE, USED),
        (64, DESCRIPTORS, AVAILABLE + 1, USED),
        (64, DESCRIPTORS, AVAILABLE, USED + 2),
        (64, NOWHERE, AVAILABLE, USED),
        (64, DESCRIPTORS, NOWHERE, USED),
        (64, DESCRIPTORS, AVAILABLE, NOWHERE),
        (64, MEMORY_END - 512, AVAILABLE, USED),
        (64, DESCRIPTORS, MEMORY_END - 132, USED),
        (64, DESCRIPTORS, AVAILABLE, MEMORY_END - 516),
        (64, DESCRIPTORS, AVAILABLE, u64::MAX - 3),
        (64, DESCRIPTORS, 0, USED),
    ];
    for (size, descriptors, available, used) in cases {
        driver.agree();
        driver.set_queue(size, descriptors, available, used);
        driver.set(mmio::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(driver.status(), 15 | 0x40, "{size} {descriptors:x} {available:x} {used:x}");
        assert_eq!(driver.get(mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        assert!(driver.device.interrupt().take() > 0);
        driver.notify();
    }
    driver.assert_works_after_a_reset();
}

#[test]
fn rings_that_lie_break_the_queue_until_a_reset() {
    let mut driver = Driver::new(Access::ReadWrite);
    // A head outside of the table, and more chains than the queue is long.
    for index in [driver.size, u16::MAX] {
        driver.introduce();
        driver.offer(index);
        driver.notify();
        driver.assert_breaks_down();
        driver.introduce();
        driver.set_available(driver.size + 1);
        driver.notify();
        driver.assert_breaks_down();
    }
    // Rings upon each other: the device writes what it then reads.
    driver.agree();
    driver.set_queue(64, DESCRIPTORS, DESCRIPTORS, DESCRIPTORS);
    driver.put(DESCRIPTORS, &[0x11; 1024]);
    driver.set(mmio::VIRTIO_MMIO_STATUS, 15);
    driver.until(Driver::needs_reset);
    driver.assert_works_after_a_reset();
}

#[test]
fn a_flood_of_notifications_changes_nothing() {
    let mut driver = Driver::new(Access::ReadWrite);
    for _ in 0..10_000 {
        driver.notify();
    }
    driver.introduce();
    for _ in 0..10_000 {
        driver.notify();
        driver.device.notify().signal();
    }
    assert_eq!((driver.used_index(), driver.status()), (0, 15));
    driver.assert_works_after_a_reset();
}

#[test]
fn after_a_reset_in_the_middle_of_requests_guest_memory_is_not_touched() {
    let mut driver = Driver::ready(Access::ReadWrite);
    let (header, data) = (0x2_0000, 0x3_0000);
    let length = SECTORS as u32 * 512;
    for round in 0..50 {
        driver.write_header(header, READ, 0);
        driver.chain(
            DESCRIPTORS,
            0,
            &[(header, 16, false), (data, length, true), (header + 32, 1, true)],
        );
        for _ in 0..driver.size {
            driver.offer(0);
        }
        driver.notify();
        if round % 2 == 0 {
            driver.until(|driver| driver.used_index() > 3);
        }
        if round % 3 == 0 {
            driver.set(mmio::VIRTIO_MMIO_QUEUE_READY, 0);
        } else {
            driver.reset();
        }
        // What is here from now on stays, while the device does other things.
        let used = driver.used_index();
        driver.put(data, &vec![0x5A; length as usize]);
        driver.put(header + 32, &[0x5A]);
        driver.notify();
        let index = driver.used_index();
        driver.assert_works_after_a_reset();
        assert_eq!(used, index);
        assert!(driver.bytes(data, length as usize).iter().all(|byte| *byte == 0x5A));
        assert_eq!(driver.bytes(header + 32, 1), [0x5A]);
    }
}

#[test]
fn a_device_ends_whatever_its_driver_has_asked_for() {
    for _ in 0..20 {
        let mut driver = Driver::ready(Access::ReadWrite);
        driver.write_header(0x2_0000, READ, 0);
        driver.chain(
            DESCRIPTORS,
            0,
            &[(0x2_0000, 16, false), (DATA, SECTORS as u32 * 512, true), (0x2_0020, 1, true)],
        );
        for _ in 0..driver.size {
            driver.offer(0);
        }
        driver.notify();
        drop(driver);
    }
}

#[test]
fn several_processors_that_reset_and_start_the_device_at_once_do_not_hang() {
    let mut driver = Driver::ready(Access::ReadWrite);
    driver.write_header(0x2_0000, READ, 0);
    driver.chain(DESCRIPTORS, 0, &[(0x2_0000, 16, false), (DATA, 4096, true), (0x2_0020, 1, true)]);
    for _ in 0..driver.size {
        driver.offer(0);
    }
    std::thread::scope(|scope| {
        for processor in 0..3u32 {
            let driver = &driver;
            scope.spawn(move || {
                for round in 0..500 {
                    match (round + processor) % 5 {
                        0 => driver.set(mmio::VIRTIO_MMIO_STATUS, 0),
                        1 => driver.set(mmio::VIRTIO_MMIO_QUEUE_READY, 0),
                        2 => driver.notify(),
                        _ => {
                            for status in [1, 3] {
                                driver.set(mmio::VIRTIO_MMIO_STATUS, status);
                            }
                            driver.set(mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
                            driver.set(mmio::VIRTIO_MMIO_DRIVER_FEATURES, 1);
                            driver.set(mmio::VIRTIO_MMIO_STATUS, 11);
                            driver.set(mmio::VIRTIO_MMIO_QUEUE_NUM, 64);
                            driver.set(mmio::VIRTIO_MMIO_QUEUE_DESC_LOW, DESCRIPTORS as u32);
                            driver.set(mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAILABLE as u32);
                            driver.set(mmio::VIRTIO_MMIO_QUEUE_USED_LOW, USED as u32);
                            driver.set(mmio::VIRTIO_MMIO_QUEUE_READY, 1);
                            driver.set(mmio::VIRTIO_MMIO_STATUS, 15);
                        }
                    }
                }
            });
        }
    });
    driver.assert_works_after_a_reset();
}

/// A descriptor that is somewhat likely to be one.
fn descriptor() -> impl Strategy<Value = (u64, u32, u32, u16)> {
    let gpa = prop_oneof![
        Just(DATA),
        Just(0x2_0000),
        Just(DESCRIPTORS),
        Just(USED),
        Just(NOWHERE),
        any::<u64>()
    ];
    let length = prop_oneof![Just(0u32), Just(1), Just(16), Just(512), Just(64), any::<u32>()];
    (gpa, length, 0u32..8, 0u16..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_the_rings_hold_the_device_goes_on_or_wants_a_reset(
        descriptors in prop::collection::vec(descriptor(), 8),
        heads in prop::collection::vec(0u16..9, 1..8),
        kind in 0u32..12,
        sector in 0u64..70,
        event_idx in any::<bool>(),
    ) {
        let mut driver = Driver::new(Access::ReadOnly);
        if event_idx {
            driver.features |= crate::registers::feature::EVENT_IDX;
        }
        driver.size = 8;
        driver.introduce();
        driver.write_header(0x2_0000, kind, sector);
        driver.write_header(DATA, kind, sector);
        for ((gpa, length, flags, next), index) in descriptors.into_iter().zip(0..) {
            driver.describe(DESCRIPTORS, index, gpa, length, flags, next);
        }
        for head in &heads {
            driver.offer(*head);
        }
        driver.notify();
        driver.assert_works_after_a_reset();
        prop_assert!(driver.on_disk() == Driver::content());
    }
}
