//! Accesses to devices and ports that no driver makes, and ends that no guest should come to.

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use kvm_partition::{
    RunOutcome,
    layout::LOW_MMIO,
    ports::{RESET_PORT, SERIAL_PORT},
};
use partition::{MmioHandler, MmioPages, Partition};

use crate::{
    bus::hostile,
    guest::{DONE, Do},
    puppet::{LIMIT, MEMORY, Op, Puppet, SCRATCH},
};

/// HV_X64_MSR_ICR.
const MSR_ICR: u32 = 0x4000_0071;
/// A device of one page that counts its accesses, and knows which may not be.
#[derive(Default)]
pub(crate) struct Watched {
    count: AtomicU64,
    wrong: AtomicBool,
}

impl Watched {
    fn look(&self, offset: u64, length: usize) {
        self.count.fetch_add(1, Ordering::SeqCst);
        let inside = offset.checked_add(length as u64).is_some_and(|end| end <= 4096);
        if !inside || !matches!(length, 1 | 2 | 4 | 8) {
            self.wrong.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn accesses(&self) -> u64 {
        assert!(!self.wrong.load(Ordering::SeqCst), "it has seen what cannot be");
        self.count.load(Ordering::SeqCst)
    }
}

impl MmioHandler for Watched {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.look(offset, data.len());
        data.fill(0x5A);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.look(offset, data.len());
    }
}

/// A page of a file.
fn page(byte: u8) -> OwnedFd {
    use std::io::Write;
    let fd = rustix::fs::memfd_create("page", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(&[byte; 4096]).unwrap();
    file.into()
}

#[test]
fn accesses_of_every_size_at_every_edge_reach_devices_in_parts_that_they_know() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let partition = &puppet.partition;
        let (start, pages, fixed) = (LOW_MMIO.start, LOW_MMIO.start + 8192, LOW_MMIO.start + 12288);
        let device = Arc::new(Watched::default());
        partition.intercept_mmio(start, 4096, device.clone()).unwrap();
        let map = |gpa, writable| {
            let fd = page(0x11);
            let copy = File::from(fd.try_clone().unwrap());
            partition.map_mmio(gpa, 4096, MmioPages { fd, offset: 0, writable }).unwrap();
            copy
        };
        // A page that the guest may write and one that it may only read, behind a page that is not there.
        let (_free, kept) = (map(pages, true), map(fixed, false));
        let mut ops = vec![Op::new(Do::AllowSse)];
        for edge in [start, start + 4096, pages, fixed, fixed + 4096] {
            for offset in 0..20 {
                let at = edge - 10 + offset;
                let stores = [Do::Store8, Do::Store16, Do::Store32, Do::Store64, Do::Store128];
                let loads = [Do::Load8, Do::Load16, Do::Load32, Do::Load64, Do::CompareExchange];
                ops.extend(stores.into_iter().chain(loads).map(|what| Op::at(what, at)));
            }
        }
        for (from, to) in [
            (start - 32, SCRATCH),
            (SCRATCH, start + 4096 - 32),
            (start + 4096 - 32, start - 32),
            (SCRATCH, fixed - 32),
            (MEMORY - 32, SCRATCH),
        ] {
            ops.push(Op::at(Do::Copy, to).with_rsi(from).with_rcx(64));
        }
        let done = puppet.run(&ops);
        assert!(done.iter().all(|done| done.fault.is_none()), "{done:?}");
        assert!(device.accesses() > 100);
        let load = |at| puppet.one(Op::at(Do::Load32, at)).rax;
        assert_eq!(load(start), 0x5A5A_5A5A);
        assert_eq!(load(start + 4094), 0xFFFF_5A5A, "half of it is the device's");
        assert_eq!(load(start + 4096), 0xFFFF_FFFF, "nobody is there");
        assert_eq!(load(MEMORY), 0xFFFF_FFFF);
        assert_eq!(load(fixed + 2000), 0x1111_1111);
        let mut bytes = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&kept, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [0x11; 4096], "what may only be read is as it was");
        // Gone and come again under the guest's accesses.
        puppet.start(&[Op::at(Do::Load32, pages).times(3_000)]);
        for _ in 0..20 {
            partition.remove_mmio(pages);
            drop(map(pages, true));
        }
        puppet.finish(&[]);
        puppet.lives();
    });
}

#[test]
fn ports_take_floods_and_reads_of_what_is_not_there_are_ones() {
    hostile(|stage| {
        let puppet = Puppet::enlightened(stage);
        let serial = SERIAL_PORT..SERIAL_PORT + 8;
        let ports = || (0..=u16::MAX).step_by(13).filter(|port| !serial.contains(port));
        let mut ops: Vec<Op> = ports().map(Op::input).collect();
        ops.extend(ports().map(|port| Op::output(port, 0xA0)));
        // Sizes that ports do not have, and strings.
        for port in [0x70u16, 0x71, 0x64, 0x600, 0x601, RESET_PORT, 0x80, 0xFFFF] {
            let port = u64::from(port);
            ops.push(Op::new(Do::In32).with_rdx(port));
            ops.push(Op::new(Do::Out32).with_rdx(port));
            ops.push(Op::at(Do::InString, SCRATCH).with_rdx(port).with_rcx(3000));
            ops.push(Op::new(Do::OutString).with_rdx(port).with_rcx(3000).with_rsi(SCRATCH + 8192));
        }
        puppet.write(SCRATCH + 8192, &[0; 4096]);
        let done = puppet.run(&ops);
        assert!(done.iter().all(|done| done.fault.is_none()), "{done:?}");
        let nothing = puppet.one(Op::new(Do::In32).with_rdx(0xFFFE));
        assert_eq!(nothing.rax & 0xFFFF_FFFF, 0xFFFF_FFFF);
        // Every index of the clock.
        let clock = (0..=255).flat_map(|index| [Op::output(0x70, index), Op::input(0x71)]);
        puppet.run(&clock.collect::<Vec<_>>());
        // A serial port with more to say than anyone wants to hear, and all its registers but those that hide it.
        assert_ne!(DONE, b'x');
        puppet.write(SCRATCH, &[b'x'; 4096]);
        let before = puppet.flood.load(Ordering::SeqCst);
        let port = u64::from(SERIAL_PORT);
        let flood = Op::new(Do::OutString).with_rdx(port).with_rcx(4096).with_rsi(SCRATCH);
        puppet.run(&[
            flood.times(4),
            Op::output(SERIAL_PORT + 1, 0xFF),
            Op::output(SERIAL_PORT + 2, 0xFF),
            Op::input(SERIAL_PORT).times(200),
            Op::output(SERIAL_PORT + 1, 0),
        ]);
        assert!(puppet.flood.load(Ordering::SeqCst) >= before + 4 * 4096);
        puppet.lives();
    });
}

#[test]
fn leaves_of_cpuid_that_there_are_not_say_nothing_of_the_host() {
    hostile(|stage| {
        let puppet = Puppet::plain(stage);
        let leaf =
            |leaf: u32, index: u32| Op::new(Do::Cpuid).with(leaf.into()).with_rcx(index.into());
        let mut ops = Vec::new();
        for base in [0u32, 0x2000_0000, 0x4000_0000, 0x4000_0100, 0x8000_0000, 0x8FFF_FFFF] {
            ops.extend((0..64).map(|offset| leaf(base + offset, offset % 5)));
        }
        ops.extend([0, 1, u32::MAX].map(|index| leaf(u32::MAX, index)));
        ops.extend([4, 7, 0xB, 0xD].map(|number| leaf(number, u32::MAX)));
        assert!(puppet.run(&ops).iter().all(|done| done.fault.is_none()));
        assert_eq!(puppet.one(leaf(0x4000_0000, 0)).rax, 0x4000_0005, "Hyper-V's leaves");
        assert_eq!(puppet.one(leaf(0x4000_0100, 0)).rax, 0, "KVM's own are hidden");
    });
}

#[test]
fn a_guest_that_ends_itself_ends_alone_and_says_how() {
    hostile(|stage| {
        let mut puppet = Puppet::enlightened(stage);
        let ends: [(&[Op], RunOutcome); 4] = [
            (&[Op::at(Do::TripleFault, SCRATCH)], RunOutcome::TripleFault { processor: 0 }),
            (&[Op::output(RESET_PORT, 6)], RunOutcome::Reset),
            (&[Op::output(0x64, 0xFE)], RunOutcome::Reset),
            (&[Op::output(0x600, 0x34)], RunOutcome::Shutdown),
        ];
        for (ops, outcome) in ends {
            assert_eq!(puppet.ends_by(ops), outcome);
            puppet = Puppet::plain(stage);
        }
        // What KVM cannot do for it: code in a device, and an operand there of an instruction that it does not know.
        for op in [Op::at(Do::Jump, LOW_MMIO.start), Op::at(Do::StoreDecimal, LOW_MMIO.start)] {
            let outcome = puppet.ends_by(&[op]);
            assert!(matches!(outcome, RunOutcome::Failed { processor: 0, .. }), "{outcome:?}");
            puppet = Puppet::plain(stage);
        }
    });
}

#[test]
fn a_guest_that_never_leaves_its_processor_is_stopped_from_outside() {
    hostile(|stage| {
        for what in [Do::Halt, Do::Spin] {
            // The second processor has never been started.
            let puppet = Puppet::with_processors(stage, 2);
            puppet.start(&[Op::new(what)]);
            let ended = puppet.partition.ended().wait(Duration::from_millis(200)).unwrap();
            assert!(!ended, "nobody has ended it: {:?}", puppet.partition.outcome());
            puppet.partition.stop();
            assert!(puppet.partition.ended().wait(LIMIT).unwrap());
            assert_eq!(puppet.partition.outcome(), Some(RunOutcome::Stopped));
        }
        // A processor that sends an INIT to itself begins where no memory is: some make that a failure, some try for ever.
        let puppet = Puppet::enlightened(stage);
        puppet.start(&[Op::write_msr(MSR_ICR, 0x4500).times(u64::MAX)]);
        let _ = puppet.partition.ended().wait(Duration::from_millis(200)).unwrap();
        puppet.partition.stop();
        let outcome = puppet.partition.outcome();
        assert!(
            matches!(outcome, Some(RunOutcome::Stopped | RunOutcome::Failed { .. })),
            "{outcome:?}"
        );
    });
}
