//! The pages and registers of the synthetic interrupt controller, changed while they are in use, and all other
//! synthetic registers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvm_partition::{
    RunOutcome,
    hypercall::{MSR_HYPERCALL, POST_MESSAGE},
    layout::{HIGH_MMIO, LOW_MMIO},
};
use partition::{Partition, PostError};
use vmbus_protocol::{ClientMessage, Guid, TlConnectRequest, VMBUS_SINT, VpIndex};

use crate::{
    bus::{Bus, hostile},
    machine::Watched,
    puppet::{
        EVENT_PAGE, GENERAL_PROTECTION, Held, INPUT, LIMIT, MEMORY, MESSAGE_PAGE, MSR_EOM,
        MSR_SCONTROL, MSR_SIEFP, MSR_SIMP, MSR_SINT0, Op, Puppet, SCRATCH,
    },
};

const MSR_RESET: u32 = 0x4000_0003;
const MSR_TIME_REF_COUNT: u32 = 0x4000_0020;
const MSR_REFERENCE_TSC: u32 = 0x4000_0021;
const MSR_EOI: u32 = 0x4000_0070;
const MSR_SVERSION: u32 = 0x4000_0081;
const MSR_STIMER0_CONFIG: u32 = 0x4000_00B0;
const MSR_CRASH_CONTROL: u32 = 0x4000_0105;

const VP: VpIndex = VpIndex(0);

/// Waits until a message can be posted, and posts it.
fn post_at_last(puppet: &Puppet, message: &[u8]) {
    let begun = Instant::now();
    loop {
        match puppet.partition.post_message(VP, VMBUS_SINT, message) {
            Ok(()) => return,
            Err(PostError::Busy) => puppet.take_message(),
            Err(error) => panic!("{error}"),
        };
        assert!(begun.elapsed() < LIMIT, "the slot does not become free");
    }
}

#[test]
fn pages_are_moved_and_turned_off_while_messages_are_posted_and_flags_set() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let device = Arc::new(Watched::default());
        puppet.partition.intercept_mmio(LOW_MMIO.start, 4096, device.clone()).unwrap();
        let flag = puppet.partition.create_event_flag(VP, 5).unwrap();
        let places = [
            MESSAGE_PAGE | 1,
            MESSAGE_PAGE,
            EVENT_PAGE | 1,
            LOW_MMIO.start | 1,
            MEMORY | 1,
            (MEMORY - 4096) | 1,
            HIGH_MMIO.start | 1,
            SCRATCH | 0xFFF,
            u64::MAX,
            0,
        ];
        let mut ops = Vec::new();
        for (round, place) in places.iter().cycle().take(600).enumerate() {
            let other = places[round / 7 % places.len()];
            ops.push(Op::write_msr(MSR_SIMP, *place));
            ops.push(Op::write_msr(MSR_SIEFP, other));
            ops.push(Op::write_msr(MSR_EOM, round as u64));
            if round % 5 == 0 {
                ops.push(Op::write_msr(MSR_SCONTROL, round as u64 / 5));
            }
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let poster = scope.spawn(|| {
                let mut posted = 0u64;
                while !over.load(Ordering::SeqCst) {
                    let sint = (posted % 17) as u8;
                    let result = puppet.partition.post_message(VP, sint, &[sint; 240]);
                    assert!(matches!(result, Ok(()) | Err(PostError::Busy)), "{result:?}");
                    flag.signal();
                    posted += 1;
                    std::thread::sleep(Duration::from_micros(100));
                }
                posted
            });
            puppet.start(&ops);
            puppet.finish(&ops);
            over.store(true, Ordering::SeqCst);
            assert!(poster.join().unwrap() > 0);
        });
        assert_eq!(device.accesses(), 0, "the host's messages are no accesses to a device");
        // Put in order, it works as ever.
        puppet.enlighten();
        puppet.write(MESSAGE_PAGE, &[0; 4096]);
        puppet.run(&[Op::write_msr(MSR_EOM, 0)]);
        post_at_last(&puppet, b"still there");
        assert_eq!(puppet.next_message(), b"still there");
        puppet.lives();
    });
}

#[test]
fn a_guest_that_takes_no_messages_is_answered_no_more() {
    hostile(|stage| {
        let mut bus = Bus::new(stage);
        bus.connect();
        // Each is answered, and none of the answers is taken.
        let request = ClientMessage::TlConnectRequest(TlConnectRequest {
            endpoint_id: Guid::new(1, 1, 1, [1; 8]),
            service_id: Guid::new(2, 2, 2, [2; 8]),
            silo_id: Some(Guid::new(3, 3, 3, [3; 8])),
        });
        let before = Held::now();
        bus.post(&request);
        let first = bus.puppet.next_message();
        let post = Op::call(POST_MESSAGE.into(), INPUT).times(500);
        let begun = Instant::now();
        // Until all that holds messages is full, and stays so.
        while bus.puppet.run(&[post, post])[1].status() == 0 {
            assert!(begun.elapsed() < LIMIT, "messages are taken without bound");
        }
        Held::now().check_memory(&before, 4 << 20);
        // It is not forgotten: one after the other comes once it is taken.
        for _ in 0..40 {
            assert_eq!(bus.puppet.next_message(), first);
        }
        bus.puppet.lives();
    });
}

#[test]
fn interrupt_sources_take_no_vectors_of_exceptions() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let sint = |which: u32, value: u64| Op::write_msr(MSR_SINT0 + which, value);
        let mut ops = Vec::new();
        for which in 0..16 {
            ops.extend((0..16).map(|vector| sint(which, vector)));
        }
        let done = puppet.run(&ops);
        assert!(done.iter().all(|done| done.fault == Some(GENERAL_PROTECTION)));
        let (masked, auto, polling) = (1 << 16, 1 << 17, 1 << 18);
        for extra in [masked, auto, polling, masked | auto | polling] {
            for which in [0, 1, 2, 15] {
                puppet.run(&[sint(which, 0x30 | extra), sint(which, 0xFF | extra)]);
                let _ = puppet.partition.post_message(VP, which as u8, b"x");
            }
        }
        // Acknowledgements of nothing, and interrupts whose end never comes.
        let done = puppet.run(&[
            Op::write_msr(MSR_EOM, u64::MAX).times(2_000),
            Op::write_msr(MSR_EOI, 0).times(500),
            Op::write_msr(MSR_SVERSION, 7),
            Op::read_msr(MSR_SVERSION),
            Op::read_msr(MSR_EOM),
        ]);
        assert_eq!(done[0].fault, None);
        assert_eq!(done[2].fault, Some(GENERAL_PROTECTION));
        puppet.enlighten();
        puppet.write(MESSAGE_PAGE, &[0; 4096]);
        puppet.run(&[Op::write_msr(MSR_EOM, 0)]);
        post_at_last(&puppet, b"after all");
        while puppet.next_message() != b"after all" {}
        puppet.lives();
    });
}

#[test]
fn time_is_read_only_and_its_page_may_be_anywhere() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let read = Op::read_msr(MSR_TIME_REF_COUNT);
        let done = puppet.run(&[read, Op::write_msr(MSR_TIME_REF_COUNT, 0), read]);
        assert_eq!(done[1].fault, Some(GENERAL_PROTECTION));
        assert!(done[0].msr() < done[2].msr(), "{done:?}");
        for place in [LOW_MMIO.start, MEMORY, MEMORY - 4096, SCRATCH, !0xFFF, 0] {
            let done = puppet.run(&[Op::write_msr(MSR_REFERENCE_TSC, place | 1), read.times(20)]);
            assert_eq!(done[1].fault, None, "{place:#x}");
            assert!(puppet.partition.reference_time().is_some());
        }
        puppet.run(&[Op::write_msr(MSR_REFERENCE_TSC, 0)]);
        puppet.lives();
    });
}

#[test]
fn timers_that_nobody_waits_for_fill_one_slot() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        // Each fires every millisecond, into the slot of VMBus: periodic, when a count is written.
        let (periodic, auto_enable) = (1 << 1, 1 << 3);
        let config = u64::from(VMBUS_SINT) << 16 | periodic | auto_enable;
        let timer = |timer: u32| {
            let config_register = MSR_STIMER0_CONFIG + 2 * timer;
            [Op::write_msr(config_register, config), Op::write_msr(config_register + 1, 10_000)]
        };
        let done = puppet.run(&(0..4).flat_map(timer).collect::<Vec<_>>());
        if done[0].fault.is_some() {
            // This KVM offers none.
            puppet.lives();
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
        // Timers are looked after when the processor runs.
        puppet.run(&[Op::read_msr(MSR_TIME_REF_COUNT).times(100)]);
        let slot: [u8; 4] = puppet.read(MESSAGE_PAGE + 2 * 256);
        assert_eq!(u32::from_le_bytes(slot), 0x8000_0010, "HvMessageTimerExpired");
        for _ in 0..100 {
            let posted = puppet.partition.post_message(VP, VMBUS_SINT, b"late");
            assert_eq!(posted, Err(PostError::Busy));
        }
        let stop = |timer: u32| Op::write_msr(MSR_STIMER0_CONFIG + 2 * timer, 0);
        puppet.run(&(0..4).map(stop).collect::<Vec<_>>());
        puppet.write(MESSAGE_PAGE, &[0; 4096]);
        puppet.run(&[Op::write_msr(MSR_EOM, 0)]);
        post_at_last(&puppet, b"late");
        while puppet.next_message() != b"late" {}
        puppet.lives();
    });
}

#[test]
fn registers_take_nonsense_and_those_that_there_are_not_fault() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let synthetic: Vec<u32> =
            (0x4000_0000..0x4000_0200).filter(|index| *index != MSR_RESET).collect();
        let values =
            [u64::MAX, 1, MEMORY | 1, LOW_MMIO.start | 1, HIGH_MMIO.start | 1, SCRATCH | 1, 0];
        let mut ops: Vec<Op> = synthetic.iter().map(|index| Op::read_msr(*index)).collect();
        for value in values {
            ops.extend(synthetic.iter().map(|index| Op::write_msr(*index, value)));
        }
        // The guest says that it crashes, again and again, which is no end.
        ops.push(Op::write_msr(MSR_CRASH_CONTROL, 1 << 63).times(1_000));
        ops.extend((0x1000..0x1080).chain(0xC001_FF00..0xC001_FF40).map(Op::read_msr));
        ops.extend((0x4B56_4D00..0x4B56_4D10).flat_map(|index| {
            [Op::read_msr(index), Op::write_msr(index, SCRATCH | 1), Op::write_msr(index, 0)]
        }));
        let done = puppet.run(&ops);
        assert!(done.iter().all(|done| matches!(done.fault, None | Some(GENERAL_PROTECTION))));
        let unknown = puppet.one(Op::read_msr(0x4000_01FF));
        assert_eq!(unknown.fault, Some(GENERAL_PROTECTION));
        // Begun anew, it is as it was.
        puppet.run(&[Op::write_msr(MSR_HYPERCALL, 0), Op::write_msr(0x4000_0000, 0)]);
        puppet.enlighten();
        puppet.write(MESSAGE_PAGE, &[0; 4096]);
        puppet.run(&[Op::write_msr(MSR_EOM, 0)]);
        post_at_last(&puppet, b"hello");
        while puppet.next_message() != b"hello" {}
        puppet.lives();
        assert_eq!(puppet.ends_by(&[Op::write_msr(MSR_RESET, 1)]), RunOutcome::Reset);
    });
}
