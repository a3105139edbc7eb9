//! Nonsense to each hypercall, and to the page that makes them.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use kvm_partition::{
    hypercall::{MSR_HYPERCALL, POST_MESSAGE, RETARGET_INTERRUPT, RETARGET_PORT, SIGNAL_EVENT},
    layout::{HIGH_MMIO, LOW_MMIO},
};
use partition::{Partition, PartitionEvent, Retarget, RetargetHandler};
use vmbus_protocol::VpIndex;

use crate::{
    bus::{FAST, hostile},
    guest::Do,
    puppet::{HYPERCALL_PAGE, INPUT, MEMORY, Op, Puppet, SCRATCH},
};

const POST: u64 = POST_MESSAGE as u64;
const SIGNAL: u64 = SIGNAL_EVENT as u64;
const RETARGET: u64 = RETARGET_INTERRUPT as u64;

const SUCCESS: u16 = 0;
const INVALID_CODE: u16 = 2;
const INVALID_INPUT: u16 = 3;
const INVALID_PARAMETER: u16 = 5;
const INVALID_CONNECTION: u16 = 0x12;
const INSUFFICIENT_BUFFERS: u16 = 0x13;

/// Messages that are held of a guest that nobody listens to.
const HELD: u64 = 256;

fn status(puppet: &Puppet, control: u64, input: u64) -> u16 {
    puppet.one(Op::call(control, input)).status()
}

#[test]
fn messages_that_cannot_be_are_refused() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        for size in [241, 256, 4096, 0x8000_0000, u32::MAX] {
            puppet.message_at(INPUT, 1, 1, size, &[7; 240]);
            assert_eq!(status(&puppet, POST, INPUT), INVALID_PARAMETER, "{size} bytes");
        }
        let nowhere = [MEMORY, MEMORY - 8, MEMORY - 255, LOW_MMIO.start, HIGH_MMIO.start, u64::MAX];
        for gpa in nowhere.into_iter().chain([u64::MAX - 100, 1 << 63]) {
            assert_eq!(status(&puppet, POST, gpa), INVALID_INPUT, "{gpa:#x}");
        }
        assert_eq!(status(&puppet, POST | FAST, INPUT), INVALID_INPUT);
        assert_eq!(status(&puppet, POST | 1 << 32, INPUT), INVALID_INPUT, "repetitions");
        assert!(puppet.partition.next_event().is_none(), "none of it has arrived");
        // Whatever its type and connection are, it is a message; whether anybody is there is for others to say.
        let mut sent = Vec::new();
        for (connection, kind, size) in
            [(0, 0, 0), (u32::MAX, u32::MAX, 240), (1, 0x8000_0001, 1), (4, 2, 239), (77, 1, 3)]
        {
            // Across a page, and not aligned.
            let gpa = SCRATCH + 0x1000 - 13;
            puppet.message_at(gpa, connection, kind, size, &[9; 240]);
            assert_eq!(status(&puppet, POST, gpa), SUCCESS);
            sent.push((connection, vec![9; size as usize]));
        }
        let mut arrived = Vec::new();
        while let Some(PartitionEvent::Message(message)) = puppet.partition.next_event() {
            arrived.push((message.connection_id, message.payload));
        }
        assert_eq!(arrived, sent);
        puppet.lives();
    });
}

#[test]
fn ten_thousand_messages_that_nobody_takes_are_held_up() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        puppet.message_at(INPUT, 1, 1, 240, &[1; 240]);
        let call = Op::call(POST, INPUT);
        let taken = |done: Vec<crate::puppet::Done>| done.into_iter().map(|done| done.status());
        let statuses: Vec<u16> =
            taken(puppet.run(&[call.times(HELD), call, call.times(9_743)])).collect();
        assert_eq!(statuses, [SUCCESS, INSUFFICIENT_BUFFERS, INSUFFICIENT_BUFFERS]);
        let drain = || std::iter::from_fn(|| puppet.partition.next_event()).count() as u64;
        assert_eq!(drain(), HELD);
        assert_eq!(status(&puppet, POST, INPUT), SUCCESS, "there is room again");
        assert_eq!(drain(), 1);
        puppet.lives();
    });
}

#[test]
fn signals_to_nobody_are_refused_and_a_flood_of_them_is_one_number() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let signal = puppet.partition.create_signal(0x2001).unwrap();
        for connection in [0u64, 1, 0x2000, 0x2002, 0xFF_FFFF] {
            assert_eq!(status(&puppet, SIGNAL | FAST, connection), INVALID_CONNECTION);
        }
        // Bits of the connection that there are not, numbers of flags, bits behind both.
        for input in [0xFF00_2001u64, u64::MAX, 0x2001 | 1 << 32, 0x2001 | 0xFFFF << 32] {
            assert_ne!(status(&puppet, SIGNAL | FAST, input), SUCCESS, "{input:#x}");
        }
        for gpa in [MEMORY, MEMORY - 4, INPUT + 1, LOW_MMIO.start, u64::MAX] {
            assert_ne!(status(&puppet, SIGNAL, gpa), SUCCESS, "{gpa:#x}");
        }
        assert_eq!(status(&puppet, SIGNAL | FAST | 5 << 32, 0x2001), INVALID_INPUT, "repetitions");
        assert_eq!(signal.take(), 0, "nothing of it has come");
        puppet.write(INPUT, &0x2001u64.to_le_bytes());
        let done = puppet.run(&[
            Op::call(SIGNAL, INPUT).times(1_000),
            Op::call(SIGNAL | FAST, 0x2001).times(100_000),
            Op::call(SIGNAL | FAST, 0x2002).times(2_000),
        ]);
        assert_eq!(done[0].status(), SUCCESS);
        assert_eq!(done[1].status(), SUCCESS);
        assert_eq!(done[2].status(), INVALID_CONNECTION);
        assert_eq!(signal.take(), 101_000);
        puppet.partition.remove_signal(0x2001);
        assert_eq!(status(&puppet, SIGNAL | FAST, 0x2001), INVALID_CONNECTION);
        puppet.lives();
    });
}

/// Remembers what it was asked.
#[derive(Default)]
struct Asked {
    last: Mutex<Option<Retarget>>,
    count: AtomicU64,
}

impl RetargetHandler for Asked {
    fn retarget(&self, retarget: Retarget) -> bool {
        self.count.fetch_add(1, Ordering::SeqCst);
        *self.last.lock().unwrap() = Some(retarget);
        true
    }
}

/// The input of a call that moves an interrupt.
fn retarget(vector: u32, source: u32, flags: u32, rest: &[u64]) -> Vec<u8> {
    let mut bytes = [u64::MAX, 0x1234].map(u64::to_le_bytes).concat();
    let words = [source, 0, 0xFEE0_0000, 77, 0, 0, vector, flags];
    bytes.extend(words.map(u32::to_le_bytes).concat());
    rest.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes
}

#[test]
fn interrupts_are_moved_to_processors_that_there_are_and_to_no_others() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let tell = |bytes: &[u8]| {
            puppet.write(SCRATCH, bytes);
            status(&puppet, RETARGET, SCRATCH)
        };
        assert_eq!(tell(&retarget(0x41, 1, 0, &[1])), INVALID_PARAMETER, "nobody moves any");
        let asked = Arc::new(Asked::default());
        puppet.partition.set_retarget_handler(asked.clone());
        for (vector, source, flags, rest) in [
            (15, 1, 0, vec![1]),
            (0x100, 1, 0, vec![1]),
            (u32::MAX, 1, 0, vec![1]),
            (0x41, 0, 0, vec![1]),
            (0x41, 2, 0, vec![1]),
            (0x41, 1, 0, vec![0]),
            // The guest has one processor.
            (0x41, 1, 0, vec![u64::MAX - 1]),
            (0x41, 1, 2, vec![0, 0]),
            (0x41, 1, 2, vec![0, 1, 0]),
            (0x41, 1, 2, [vec![0, u64::MAX - 1], vec![u64::MAX; 63]].concat()),
            // A format that there is not.
            (0x41, 1, 2, vec![2, u64::MAX, u64::MAX]),
            (0x41, 1, u32::MAX, vec![u64::MAX, 1, 1]),
        ] {
            let said = tell(&retarget(vector, source, flags, &rest));
            assert_eq!(said, INVALID_PARAMETER, "{vector} {source} {flags} {rest:?}");
        }
        // Sets that are cut off by the end of memory, and inputs that are nowhere.
        let cut = retarget(0x41, 1, 2, &[0, u64::MAX, 1]);
        puppet.write(MEMORY - cut.len() as u64, &cut);
        for gpa in [MEMORY - cut.len() as u64, MEMORY - 55, MEMORY, LOW_MMIO.start, u64::MAX - 60] {
            assert_eq!(status(&puppet, RETARGET, gpa), INVALID_INPUT, "{gpa:#x}");
        }
        assert_eq!(asked.count.load(Ordering::SeqCst), 0, "none of it has come");
        // The largest set there is, a thousand times.
        let huge = retarget(0x41, 1, 2, &[vec![0, u64::MAX], vec![u64::MAX; 64]].concat());
        puppet.write(SCRATCH, &huge);
        let done = puppet.run(&[Op::call(RETARGET | 0xFFFF << 16, SCRATCH).times(1_000)]);
        assert_eq!(done[0].status(), SUCCESS);
        assert_eq!(asked.count.load(Ordering::SeqCst), 1_000);
        let expected = Retarget {
            device_id: 0x1234,
            address: 0xFEE0_0000,
            data: 77,
            vector: 0x41,
            processors: vec![VpIndex(0)],
        };
        assert_eq!(asked.last.lock().unwrap().take(), Some(expected));
        // The port without the page, by each way to write a port.
        let port = Op::new(Do::Out8).with_rdx(RETARGET_PORT.into());
        let done = puppet.run(&[
            port,
            Op::new(Do::Out32).with_rdx(RETARGET_PORT.into()).times(100),
            Op::new(Do::OutString).with_rdx(RETARGET_PORT.into()).with_rcx(100).with_rsi(SCRATCH),
            Op::new(Do::In32).with_rdx(RETARGET_PORT.into()),
        ]);
        assert!(done.iter().all(|done| done.fault.is_none()), "{done:?}");
        puppet.lives();
    });
}

#[test]
fn calls_that_there_are_not_are_refused_whatever_comes_with_them() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let decorations = [
            0,
            FAST,
            0x3FF << 17,
            1 << 31,
            0xFFF << 32,
            0xFFF << 48,
            0xF << 60,
            0xFFFF_FFFF_FFFF_0000,
        ];
        let mut ops = Vec::new();
        for code in (0u64..0x100).chain([0x8001, 0x8003, 0xFFFF]) {
            // What these do to the guest is said elsewhere.
            if [POST, SIGNAL, RETARGET].contains(&code) {
                continue;
            }
            for decoration in decorations {
                let inputs = [INPUT, MEMORY - 8, LOW_MMIO.start, u64::MAX];
                ops.extend(inputs.map(|input| Op::call(code | decoration, input)));
            }
        }
        let done = puppet.run(&ops);
        assert!(done.iter().all(|done| done.fault.is_none()));
        for code in [0x5F, 0xFE, 0xFFFF] {
            assert_eq!(status(&puppet, code, INPUT), INVALID_CODE, "{code:#x}");
        }
        // Not by the page, and by the instruction of the other vendor, which KVM may rewrite or refuse.
        for how in [Do::Vmcall, Do::Vmmcall] {
            puppet.one(Op::new(how).with_rcx(0xFFFF).with_rdx(u64::MAX).times(100));
        }
        puppet.lives();
    });
}

#[test]
fn a_hypercall_page_is_moved_about_while_it_is_in_use() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let known = Op::call(SIGNAL | FAST, 0x77);
        let moved = |gpa: u64| [Op::write_msr(MSR_HYPERCALL, gpa | 1), Op::at(Do::Jump, gpa)];
        let call = |op: Op| op.with_rcx(SIGNAL | FAST).with_rdx(0x77);
        // Outside memory, at MMIO, at no page, off, with every reserved bit: the guest has no page then, or keeps it.
        for value in [
            MEMORY | 1,
            LOW_MMIO.start | 1,
            HIGH_MMIO.start | 1,
            0xFEC0_0001,
            0xFEE0_0001,
            u64::MAX,
            u64::MAX << 12,
            0xFFF,
            0,
        ] {
            puppet.one(Op::write_msr(MSR_HYPERCALL, value));
        }
        let back = [Op::write_msr(MSR_HYPERCALL, HYPERCALL_PAGE | 1), known];
        assert_eq!(puppet.run(&back)[1].status(), INVALID_CONNECTION);
        let mut ops = Vec::new();
        for round in 0..200 {
            let [set, jump] = moved(SCRATCH + 4096 * (round % 16));
            ops.extend([set, call(jump)]);
        }
        let last = moved(MEMORY - 4096);
        ops.extend([last[0], call(last[1])]);
        let done = puppet.run(&ops);
        assert!(done.iter().skip(1).step_by(2).all(|done| done.status() == INVALID_CONNECTION));
        // The last page of memory has nothing behind it; the rewritten page still knows our call.
        let [_, jump] = last;
        let retarget = jump.with_rcx(RETARGET).with_rdx(u64::MAX);
        assert_eq!(puppet.one(retarget).status(), INVALID_INPUT);
        // Without an identity there is none.
        let off = [Op::write_msr(0x4000_0000, 0), Op::write_msr(MSR_HYPERCALL, SCRATCH | 1)];
        puppet.run(&off);
        puppet.enlighten();
        assert_eq!(puppet.one(known).status(), INVALID_CONNECTION);
        puppet.lives();
    });
}
