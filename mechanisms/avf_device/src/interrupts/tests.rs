//! The vectors as drivers and workers use them, with real eventfds.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use shared_memory::{PAGE_SIZE, PageSize, SharedMapping};

use super::*;

struct Wired {
    vectors: InterruptVectors,
    fds: Vec<OwnedFd>,
    page: DoorbellPage,
}

fn wired() -> Wired {
    let (mapping, _fd) = SharedMapping::create("doorbells", PAGE_SIZE, PageSize::Base).unwrap();
    let page = DoorbellPage::new(&mapping, 0).unwrap();
    let vectors = InterruptVectors::new(3, &page);
    let mut fds = Vec::new();
    for vector in 0..3 {
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let copy = fd.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(vectors.set_eventfd(vector, Some(copy), 0).unwrap(), None);
        fds.push(fd);
    }
    vectors.set_enabled(true, 0);
    Wired { vectors, fds, page }
}

impl Wired {
    /// Messages on a vector since the last look.
    fn messages(&self, vector: usize) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.fds[vector], &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    fn write(&self, vector: u16, value: u32) {
        assert_eq!(self.vectors.write_dyn_ctl(vector, DynCtl(value), 1_000), None);
    }
}

#[test]
fn c51_exactly_one_message_per_arm_and_none_while_disarmed() {
    let w = wired();
    w.vectors.raise(1, 0, 0);
    assert_eq!(w.messages(1), 0);
    w.write(1, 0x19);
    assert_eq!(w.messages(1), 1);
    w.vectors.raise(1, 0, 0);
    w.vectors.raise(1, 1, 0);
    assert_eq!(w.messages(1), 0);
}

#[test]
fn c52_an_event_between_fire_and_rearm_fires_on_rearm_with_and_without_clearpba() {
    for arm in [0x19, 0x1B] {
        let w = wired();
        w.write(1, arm);
        w.vectors.raise(1, 0, 0);
        assert_eq!(w.messages(1), 1);
        w.vectors.raise(1, 0, 0);
        w.write(1, arm);
        assert_eq!(w.messages(1), 1);
        w.write(1, arm);
        assert_eq!(w.messages(1), 0, "no event, no message");
    }
}

#[test]
fn c53_a_software_trigger_fires_without_an_event_and_past_the_interval() {
    let w = wired();
    w.write(1, DynCtl::FORCE_WRITE_BACK.0);
    assert_eq!(w.messages(1), 1);
    w.vectors.set_itr(1, 0, 4095);
    w.write(1, DynCtl::FORCE_WRITE_BACK.0);
    assert_eq!(w.messages(1), 1);
    // Without INTENA the trigger waits for arming.
    w.write(1, DynCtl::SWINT_TRIG | DynCtl::DISABLE.0);
    assert_eq!(w.messages(1), 0);
    w.write(1, 0x19);
    assert_eq!(w.messages(1), 1);
}

#[test]
fn c54_write_back_on_itr_without_intena_never_fires() {
    let w = wired();
    w.write(1, DynCtl::poll_mode(0, 2).0);
    w.vectors.raise(1, 0, 0);
    w.vectors.raise(1, 0, 1_000_000);
    assert_eq!(w.messages(1), 0);
}

#[test]
fn c55_a_handler_that_never_reads_icr01_sees_no_storm_and_one_that_does_converges() {
    let w = wired();
    w.vectors.write_icr0_ena1(cause::ADMINQ, 0);
    w.write(0, 0x1B);
    w.vectors.raise_admin(0);
    assert_eq!(w.messages(0), 1);
    // D re-arms without reading ICR01, which stays latched.
    w.write(0, 0x1B);
    assert_eq!(w.messages(0), 0);
    // O re-arms, then reads ICR01; an event in between fires once more and then it is quiet.
    w.vectors.raise_admin(0);
    assert_eq!(w.messages(0), 1);
    w.vectors.raise_admin(0);
    w.write(0, 0x1B);
    assert_eq!(w.messages(0), 1);
    assert_eq!(w.vectors.read_icr01() & cause::ADMINQ, cause::ADMINQ);
    w.write(0, 0x1B);
    assert_eq!((w.messages(0), w.vectors.read_icr01()), (0, 0));
}

#[test]
fn c56_an_interval_of_n_spaces_messages_by_2n_microseconds_and_0_does_not() {
    let w = wired();
    let arm = DynCtl::enable_with_interval(0, 25);
    assert_eq!(w.vectors.write_dyn_ctl(1, arm, 0), None);
    assert_eq!(w.page.load((0x2800 - 0x2000) / 4), 25);
    assert_eq!(w.vectors.raise(1, 0, 1_000_000), None);
    assert_eq!(w.messages(1), 1);
    assert_eq!(w.vectors.write_dyn_ctl(1, arm, 1_001_000), None);
    let due = w.vectors.raise(1, 0, 1_002_000).unwrap();
    assert!((1_050_000..1_050_128).contains(&due), "{due}");
    assert_eq!(w.vectors.expire_due(due - 1), Some(due));
    assert_eq!(w.messages(1), 0);
    assert_eq!(w.vectors.expire_due(due), None);
    assert_eq!(w.messages(1), 1);
    assert_eq!(w.vectors.expire_due(u64::MAX), None);
    assert_eq!(w.messages(1), 0, "one message per arm");
    // A driver that writes the ITRN register in the shared page is heard too.
    w.page.store((0x2800 - 0x2000) / 4, 0);
    w.vectors.write_dyn_ctl(1, DynCtl::ENABLE, due);
    assert_eq!(w.vectors.raise(1, 0, due), None);
    assert_eq!(w.messages(1), 1);
}

/// The moderation of the VPort is the administrator's: no mapping of the driver's goes around it.
#[test]
fn a_vports_moderation_holds_for_every_itr_index_and_on_vector_0() {
    for (vector, index) in [(1, 0), (1, 1), (1, 2), (1, 3), (1, 200), (0, 0), (0, 3)] {
        let w = wired();
        w.vectors.write_icr0_ena1(cause::ADMINQ, 0);
        w.vectors.set_least_interval(80_000);
        w.write(vector, 0x19);
        assert_eq!(w.vectors.raise(vector, index, 1_000_000), None);
        assert_eq!(w.messages(usize::from(vector)), 1);
        w.vectors.write_dyn_ctl(vector, DynCtl::ENABLE, 1_001_000);
        let due = w.vectors.raise(vector, index, 1_002_000).unwrap();
        assert!((1_080_000..1_080_128).contains(&due), "{vector} {index}: {due}");
        assert_eq!(w.messages(usize::from(vector)), 0);
        assert_eq!(w.vectors.expire_due(due), None);
        assert_eq!(w.messages(usize::from(vector)), 1);
    }
}

#[test]
fn without_moderation_a_queue_without_itr_is_reported_at_once() {
    let w = wired();
    for now in [1_000, 1_001, 1_002] {
        w.vectors.write_dyn_ctl(1, DynCtl::ENABLE, now);
        assert_eq!(w.vectors.raise(1, 3, now), None);
        assert_eq!(w.messages(1), 1);
    }
}

/// Moderation is about frames: a driver that waits for an answer to a message is not kept waiting.
#[test]
fn the_admin_queue_and_software_triggers_never_wait() {
    let w = wired();
    w.vectors.write_icr0_ena1(cause::ADMINQ, 0);
    w.vectors.set_least_interval(250_000);
    w.vectors.set_itr(0, 0, 4095);
    w.write(0, 0x19);
    w.vectors.raise(0, 0, 1_000_000);
    assert_eq!(w.messages(0), 1);
    w.vectors.write_dyn_ctl(0, DynCtl::ENABLE, 1_001_000);
    assert!(w.vectors.raise(0, 0, 1_002_000).is_some());
    assert_eq!(w.vectors.raise_admin(1_003_000), None);
    assert_eq!(w.messages(0), 1);
    assert_eq!(w.vectors.write_dyn_ctl(1, DynCtl::FORCE_WRITE_BACK, 1_004_000), None);
    assert_eq!(w.vectors.write_dyn_ctl(1, DynCtl::FORCE_WRITE_BACK, 1_005_000), None);
    assert_eq!(w.messages(1), 2);
}

#[test]
fn a_message_that_a_register_write_makes_due_later_is_found_by_the_worker() {
    let w = wired();
    let arm = DynCtl::enable_with_interval(0, 50);
    w.vectors.write_dyn_ctl(1, arm, 0);
    w.vectors.raise(1, 0, 1_000_000);
    w.vectors.raise(1, 0, 1_001_000);
    assert_eq!(w.messages(1), 1);
    let due = w.vectors.write_dyn_ctl(1, arm, 1_010_000).unwrap();
    assert_eq!(w.vectors.expire_due(1_020_000), Some(due));
    assert_eq!(w.vectors.expire_due(due), None);
    assert_eq!(w.messages(1), 1);
}

#[test]
fn c57_vector_0_fires_with_either_order_of_its_two_enables() {
    for dyn_ctl_first in [true, false] {
        let w = wired();
        w.vectors.raise_admin(0);
        if dyn_ctl_first {
            w.write(0, 0x19);
            assert_eq!(w.messages(0), 0);
            w.vectors.write_icr0_ena1(cause::ADMINQ, 0);
        } else {
            w.vectors.write_icr0_ena1(cause::ADMINQ, 0);
            assert_eq!(w.messages(0), 0);
            w.write(0, 0x1B);
        }
        assert_eq!(w.messages(0), 1);
    }
}

#[test]
fn c09_icr01_latches_while_masked_and_clears_on_read() {
    let w = wired();
    w.vectors.raise_admin(0);
    w.vectors.raise(0, 0, 0);
    assert_eq!(w.vectors.read_icr01(), cause::ADMINQ | cause::QUEUE_0);
    assert_eq!(w.vectors.read_icr01(), 0);
}

#[test]
fn c03_nothing_leaves_a_disabled_function_and_nothing_is_lost() {
    let w = wired();
    w.vectors.set_enabled(false, 0);
    w.write(1, 0x19);
    w.vectors.raise(1, 0, 0);
    assert_eq!((w.messages(1), w.vectors.pending_bits()), (0, 0));
    w.vectors.set_enabled(true, 0);
    assert_eq!(w.messages(1), 1);
}

#[test]
fn masked_messages_show_in_the_pending_bits_and_leave_on_unmask() {
    let w = wired();
    w.vectors.set_vector_mask(2, true, 0);
    w.write(2, 0x19);
    w.vectors.raise(2, 0, 0);
    assert_eq!((w.messages(2), w.vectors.pending_bits()), (0, 0b100));
    w.vectors.set_vector_mask(2, false, 0);
    assert_eq!((w.messages(2), w.vectors.pending_bits()), (1, 0));
    w.vectors.set_function_mask(true, 0);
    w.write(1, 0x19);
    w.vectors.raise(1, 0, 0);
    assert_eq!((w.messages(1), w.vectors.pending_bits()), (0, 0b10));
    w.vectors.set_function_mask(false, 0);
    assert_eq!(w.messages(1), 1);
}

#[test]
fn a_vector_without_an_eventfd_keeps_its_message() {
    let w = wired();
    w.vectors.set_eventfd(1, None, 0).unwrap();
    w.write(1, 0x19);
    w.vectors.raise(1, 0, 0);
    assert_eq!(w.messages(1), 0);
    let copy = w.fds[1].as_fd().try_clone_to_owned().unwrap();
    w.vectors.set_eventfd(1, Some(copy), 0).unwrap();
    assert_eq!(w.messages(1), 1);
}

#[test]
fn what_is_not_an_eventfd_is_refused_and_a_full_one_blocks_nobody() {
    let w = wired();
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    assert!(matches!(
        w.vectors.set_eventfd(1, Some(pipe), 0),
        Err(InterruptError::NotAnEventfd { vector: 1, .. })
    ));
    let full = eventfd(0, EventfdFlags::empty()).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    // Its flags are its owner's: it stays blocking, and still makes nobody wait.
    let theirs = full.try_clone().unwrap();
    w.vectors.set_eventfd(1, Some(full), 0).unwrap();
    w.vectors.trigger(1);
    assert!(!rustix::fs::fcntl_getfl(&theirs).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    let spare = eventfd(0, EventfdFlags::empty()).unwrap();
    assert!(w.vectors.set_eventfd(9, Some(spare), 0).is_err());
}

#[test]
fn c63_a_reset_forgets_what_was_pending() {
    let w = wired();
    w.vectors.raise(1, 0, 0);
    w.vectors.raise_admin(0);
    w.vectors.set_vector_mask(2, true, 0);
    w.write(2, 0x19);
    w.vectors.raise(2, 0, 0);
    w.vectors.reset();
    w.vectors.set_vector_mask(2, false, 0);
    w.vectors.write_icr0_ena1(cause::ADMINQ, 0);
    for vector in 0..3 {
        w.write(vector, 0x19);
        assert_eq!(w.messages(usize::from(vector)), 0);
    }
    assert_eq!(w.vectors.read_icr01(), 0);
    w.vectors.raise(1, 0, 0);
    assert_eq!(w.messages(1), 1, "eventfds and the enable stay");
}

#[test]
fn a_driver_has_seen_all_when_it_has_armed_each_vector_that_it_uses() {
    let w = wired();
    let (told, is_told) = std::sync::mpsc::channel();
    let when_settled = |name: &'static str| {
        let told = told.clone();
        w.vectors.when_settled(move || told.send(name).unwrap());
    };
    // It polls.
    w.vectors.raise(1, 0, 0);
    when_settled("polling");
    assert_eq!(is_told.try_recv(), Ok("polling"));
    // It uses both queue vectors; what came before fires at once.
    w.write(1, 0x19);
    w.write(2, 0x19);
    assert_eq!((w.messages(1), w.vectors.is_settled()), (1, false));
    // It was written at 1,000 ns, which is kept in steps of 128.
    assert_eq!(w.vectors.settles_by(9_000, 500), Some(1_024 + 500));
    when_settled("fired");
    w.vectors.raise(2, 0, 0);
    w.write(1, 0x19);
    assert!(is_told.try_recv().is_err(), "vector 2 has fired meanwhile");
    w.write(2, 0x19);
    assert_eq!((is_told.try_recv(), w.vectors.is_settled()), (Ok("fired"), true));
    assert_eq!(w.vectors.settles_by(9_000, 500), None);
    // It takes its queues down.
    w.vectors.raise(1, 0, 0);
    when_settled("disarmed");
    assert!(is_told.try_recv().is_err());
    w.write(1, 0x18);
    assert_eq!(is_told.try_recv(), Ok("disarmed"));
    w.write(1, 0x19);
    w.vectors.raise(1, 0, 0);
    when_settled("reset");
    assert!(is_told.try_recv().is_err());
    w.vectors.reset();
    assert_eq!(is_told.try_recv(), Ok("reset"));
}

#[test]
fn those_who_wait_for_a_driver_that_arms_nothing_are_few() {
    let w = wired();
    w.write(1, 0x19);
    w.vectors.raise(1, 0, 0);
    let told = Arc::new(AtomicU32::new(0));
    for _ in 0..MAX_WATCHERS + 5 {
        let told = Arc::clone(&told);
        w.vectors.when_settled(move || {
            told.fetch_add(1, Ordering::SeqCst);
        });
    }
    assert_eq!(told.load(Ordering::SeqCst), 5);
}
