//! Files that shrink under their users.

use std::{
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::Command,
    sync::{Barrier, atomic::Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::MemfdFlags,
};

use super::MemoryWatch;
use crate::{Access, MemoryError, PAGE_SIZE, PageSize, SharedMapping, create_memfd};

/// Set for the process that is to die.
const CHILD: &str = "CLEARWAY_GUARD_TEST_CHILD";

/// A file that no seal keeps from shrinking.
fn file(length: usize, flags: MemfdFlags) -> Result<std::fs::File, rustix::io::Errno> {
    let fd = rustix::fs::memfd_create("guarded", MemfdFlags::CLOEXEC | flags)?;
    rustix::fs::ftruncate(&fd, length as u64)?;
    Ok(fd.into())
}

fn map(file: &std::fs::File, length: usize, watch: &std::sync::Arc<MemoryWatch>) -> SharedMapping {
    SharedMapping::map_guarded(file.as_fd(), 0, length, Access::ReadWrite, watch).unwrap()
}

fn is_told(watch: &MemoryWatch) -> bool {
    let mut fds = [PollFd::new(watch, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).unwrap() == 1
}

#[test]
fn memory_that_is_taken_away_reads_as_zeros_and_its_owner_alone_is_told() {
    const LENGTH: usize = 16 * PAGE_SIZE;
    let (taken, kept) = (MemoryWatch::new().unwrap(), MemoryWatch::new().unwrap());
    let [first, second] = [(); 2].map(|()| file(LENGTH, MemfdFlags::empty()).unwrap());
    let (gone, there) = (map(&first, LENGTH, &taken), map(&second, LENGTH, &kept));
    let read_only =
        SharedMapping::map_guarded(first.as_fd(), 4096, 4096, Access::Read, &taken).unwrap();
    gone.as_slice().fill(7);
    there.as_slice().fill(9);
    first.set_len(PAGE_SIZE as u64).unwrap();
    let byte = |of: &SharedMapping, at| of.as_slice().read_object::<u8>(at).unwrap();
    assert_eq!(byte(&gone, 0), 7, "that page is still there");
    assert!(!taken.is_lost() && !is_told(&taken));
    assert_eq!(byte(&gone, PAGE_SIZE), 0);
    assert!(taken.is_lost() && is_told(&taken));
    assert_eq!(byte(&gone, 0), 0, "all of the mapping was replaced");
    assert_eq!(byte(&read_only, 0), 0);
    // Writes go nowhere, by copies and by atomics.
    gone.as_slice().fill(1);
    gone.as_slice().store_u16(LENGTH - 2, 5, Ordering::Release).unwrap();
    gone.as_slice().copy_to(there.slice(0, 4).unwrap());
    assert_eq!(byte(&there, 0), 1);
    assert_eq!(byte(&there, LENGTH - 1), 9);
    assert!(!kept.is_lost() && !is_told(&kept));
    assert_eq!(first.metadata().unwrap().len(), PAGE_SIZE as u64);
}

#[test]
fn a_view_of_parts_is_guarded_as_the_parts_are() {
    let watch = MemoryWatch::new().unwrap();
    let file = file(4 * PAGE_SIZE, MemfdFlags::empty()).unwrap();
    let whole = map(&file, 4 * PAGE_SIZE, &watch);
    let parts = [(&whole, 2 * PAGE_SIZE, PAGE_SIZE), (&whole, 0, PAGE_SIZE)];
    let view = SharedMapping::concatenate(&parts).unwrap();
    drop(whole);
    file.set_len(PAGE_SIZE as u64).unwrap();
    view.slice(PAGE_SIZE, 4).unwrap().fill(3);
    assert!(!watch.is_lost());
    view.slice(0, 4).unwrap().fill(3);
    assert!(watch.is_lost());
}

#[test]
fn mappings_come_and_go_while_others_are_taken_away() {
    const THREADS: u8 = 4;
    const ROUNDS: usize = 200;
    let barrier = Barrier::new(THREADS.into());
    std::thread::scope(|scope| {
        for number in 1..=THREADS {
            let barrier = &barrier;
            scope.spawn(move || {
                let kept_watch = MemoryWatch::new().unwrap();
                let kept_file = file(PAGE_SIZE, MemfdFlags::empty()).unwrap();
                let kept = map(&kept_file, PAGE_SIZE, &kept_watch);
                kept.as_slice().fill(number);
                barrier.wait();
                for _ in 0..ROUNDS {
                    let watch = MemoryWatch::new().unwrap();
                    let file = file(4 * PAGE_SIZE, MemfdFlags::empty()).unwrap();
                    // More than one chunk of the registry has room for, in all threads together.
                    let mappings: Vec<_> =
                        (0..24).map(|_| map(&file, 4 * PAGE_SIZE, &watch)).collect();
                    mappings[5].as_slice().fill(0xAA);
                    file.set_len(0).unwrap();
                    for mapping in &mappings {
                        assert_eq!(
                            mapping.as_slice().load_u32(PAGE_SIZE, Ordering::Relaxed),
                            Some(0)
                        );
                    }
                    assert!(watch.is_lost());
                    let mut bytes = [0; PAGE_SIZE];
                    kept.as_slice().read_into(&mut bytes);
                    assert!(bytes.iter().all(|byte| *byte == number));
                }
                assert!(!kept_watch.is_lost());
            });
        }
    });
}

#[test]
fn several_threads_may_touch_what_is_not_there_any_more() {
    const LENGTH: usize = 64 * PAGE_SIZE;
    for _ in 0..50 {
        let watch = MemoryWatch::new().unwrap();
        let file = file(LENGTH, MemfdFlags::empty()).unwrap();
        let mapping = map(&file, LENGTH, &watch);
        let barrier = Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    barrier.wait();
                    while !watch.is_lost() {
                        for page in (0..LENGTH).step_by(PAGE_SIZE) {
                            mapping.slice(page, 64).unwrap().fill(1);
                        }
                    }
                });
            }
            barrier.wait();
            file.set_len(0).unwrap();
        });
    }
}

#[test]
fn huge_pages_are_guarded_whole() {
    const HUGE: usize = 2 << 20;
    let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let Ok(file) = file(2 * HUGE, flags) else {
        return eprintln!("skipped: the kernel has no huge pages of 2 MiB");
    };
    let watch = MemoryWatch::new().unwrap();
    // From within a page to within another, as a front-end's regions may lie.
    let from = HUGE - 4 * PAGE_SIZE;
    let fd = file.as_fd();
    let length = 8 * PAGE_SIZE;
    let mapped = SharedMapping::map_guarded(fd, from as u64, length, Access::ReadWrite, &watch);
    let mapping = mapped.unwrap();
    let parts = [(&mapping, 0, PAGE_SIZE)];
    let refused = SharedMapping::concatenate(&parts);
    assert!(matches!(refused, Err(MemoryError::Misaligned { alignment: HUGE, .. })));
    let last = || mapping.as_slice().read_object::<u8>(length - 1);
    mapping.as_slice().fill(5);
    assert_eq!(last(), Some(5));
    if watch.is_lost() {
        return eprintln!("the pool of huge pages is empty, so that they were lost at once");
    }
    file.set_len(0).unwrap();
    assert_eq!(last(), Some(0));
    assert!(watch.is_lost());
}

#[test]
fn what_is_not_guarded_ends_the_process_as_before() {
    if std::env::var_os(CHILD).is_some() {
        let watch = MemoryWatch::new().unwrap();
        let guarded = file(PAGE_SIZE, MemfdFlags::empty()).unwrap();
        let other = map(&guarded, PAGE_SIZE, &watch);
        guarded.set_len(0).unwrap();
        assert_eq!(other.as_slice().read_object::<u8>(0), Some(0));
        // A mapping that was said not to be able to shrink, and is not guarded.
        let sealed = create_memfd("sealed", PAGE_SIZE, PageSize::Base).unwrap();
        let unguarded = SharedMapping::map(sealed.as_fd(), 0, PAGE_SIZE, Access::Read).unwrap();
        let missing = unguarded.as_slice().base().as_ptr();
        // SAFETY: the second mapping takes the first one's place, and is never used but to die of it.
        unsafe {
            let flags = rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::FIXED;
            let protection = rustix::mm::ProtFlags::READ;
            rustix::mm::mmap(missing.cast(), PAGE_SIZE, protection, flags, &guarded, 0).unwrap();
            println!("alive with {}", missing.read_volatile());
        }
        return;
    }
    let name = "guard::tests::what_is_not_guarded_ends_the_process_as_before";
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}
