use std::{os::unix::net::UnixListener, path::Path};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType},
};
use shared_memory::create_memfd;

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn end(path: &Path) -> CableUplink {
    CableUplink::open(path, 1518).unwrap()
}

fn frames(frames: &[&[u8]]) -> FrameBurst {
    let mut burst = FrameBurst::new(32, 1518);
    for frame in frames {
        assert!(burst.push(frame));
    }
    burst
}

/// Sleeps as a worker does; panics if nothing happens for five seconds.
fn sleep(end: &mut CableUplink) {
    let link = end.link_now();
    if end.arm().unwrap() {
        assert_eq!(end.link_now(), link, "nobody would look at the link");
        let mut fds = [PollFd::from_borrowed_fd(end.wait_fd().unwrap(), PollFlags::IN)];
        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "nothing woke {end:?}");
    }
}

/// Lets both ends look around until `done`.
fn settle(ends: &mut [&mut CableUplink], done: impl Fn(&mut [&mut CableUplink]) -> bool) {
    let limit = Instant::now() + Duration::from_secs(5);
    while !done(ends) {
        assert!(Instant::now() < limit, "did not settle: {ends:?}");
        for end in ends.iter_mut() {
            let _ = end.receive(&mut FrameBurst::new(1, 64));
        }
        std::thread::yield_now();
    }
}

fn both_up(ends: &mut [&mut CableUplink]) -> bool {
    ends.iter_mut().all(|end| end.link().up)
}

#[test]
fn two_ends_meet_and_frames_cross_both_ways() {
    let directory = directory();
    let path = directory.path().join("cable");
    let mut first = end(&path);
    assert_eq!(first.link(), LinkState::DOWN);
    assert_eq!(first.transmit(&frames(&[&[0; 60]])).unwrap(), 1);
    assert_eq!(first.statistics().transmit_no_link, 1);
    let mut second = end(&path);
    settle(&mut [&mut first, &mut second], both_up);
    let mut seen = FrameBurst::new(32, 1518);
    let sent = frames(&[&[1; 60], &[2; 1518], &[3; 14], &[4; 13]]);
    assert_eq!(first.transmit(&sent).unwrap(), 4);
    assert_eq!(second.receive(&mut seen).unwrap(), 3);
    assert!(seen.iter().eq(sent.iter().take(3)));
    assert_eq!(second.transmit(&seen).unwrap(), 3);
    assert_eq!(first.receive(&mut seen).unwrap(), 3);
    assert!(seen.iter().eq(sent.iter().take(3)));
    let crossed = UplinkStatistics {
        received_frames: 3,
        received_bytes: 1592,
        transmitted_frames: 3,
        transmitted_bytes: 1592,
        ..Default::default()
    };
    assert_eq!(second.statistics(), crossed);
    let first_sent = UplinkStatistics { transmit_no_link: 1, transmit_bad_length: 1, ..crossed };
    assert_eq!(first.statistics(), first_sent);
}

#[test]
fn a_sleeping_end_is_woken_by_a_frame_by_a_peer_and_by_its_end() {
    let directory = directory();
    let path = directory.path().join("cable");
    let mut second = std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let mut first = end(&path);
            let mut burst = FrameBurst::new(1, 1518);
            while first.receive(&mut burst).unwrap() == 0 {
                sleep(&mut first);
            }
            assert_eq!(burst.get(0), Some(&[9u8; 60][..]));
            while first.link().up {
                sleep(&mut first);
                first.receive(&mut burst).unwrap();
            }
            first
        });
        let mut second = end(&path);
        while !second.link().up {
            sleep(&mut second);
        }
        second.transmit(&frames(&[&[9; 60]])).unwrap();
        settle(&mut [&mut second], |ends| {
            let State::Connected { producer, .. } = &ends[0].state else { return false };
            // The sleeper sleeps again: now its peer goes.
            producer.is_waited_for()
        });
        drop(second);
        sleeper.join().unwrap()
    });
    assert_eq!(second.link(), LinkState::DOWN);
}

#[test]
fn an_end_that_comes_back_is_met_again_whichever_listened() {
    let directory = directory();
    let path = directory.path().join("cable");
    let (mut first, mut second) = (end(&path), end(&path));
    for round in 0..4u8 {
        settle(&mut [&mut first, &mut second], both_up);
        first.transmit(&frames(&[&[round; 60]])).unwrap();
        let mut seen = FrameBurst::new(4, 1518);
        second.receive(&mut seen).unwrap();
        assert_eq!(seen.get(0), Some(&[round; 60][..]));
        let gone = if round % 2 == 0 { &mut first } else { &mut second };
        *gone = end(&directory.path().join("elsewhere"));
        let left = if round % 2 == 0 { &mut second } else { &mut first };
        settle(&mut [left], |ends| !ends[0].link().up);
        let gone = if round % 2 == 0 { &mut first } else { &mut second };
        *gone = end(&path);
    }
    drop((first, second));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "files are left behind");
}

#[test]
fn a_socket_left_by_a_dead_process_is_replaced() {
    let directory = directory();
    let path = directory.path().join("cable");
    drop(UnixListener::bind(&path).unwrap());
    std::fs::write(directory.path().join("cable.lock"), "").unwrap();
    let (mut first, mut second) = (end(&path), end(&path));
    settle(&mut [&mut first, &mut second], both_up);
}

#[test]
fn a_third_end_stays_alone_and_disturbs_nobody() {
    let directory = directory();
    let path = directory.path().join("cable");
    let (mut first, mut second) = (end(&path), end(&path));
    settle(&mut [&mut first, &mut second], both_up);
    let mut third = end(&path);
    for _ in 0..1000 {
        third.receive(&mut FrameBurst::new(1, 64)).unwrap();
        assert!(!third.link().up && first.link().up && second.link().up);
    }
    drop(second);
    settle(&mut [&mut first, &mut third], both_up);
}

#[test]
fn a_path_that_cannot_work_is_told_at_once() {
    let directory = directory();
    let error = CableUplink::open(&directory.path().join("missing/cable"), 1518).unwrap_err();
    assert!(matches!(error, UplinkError::CableSocket { .. }), "{error:?}");
}

/// A peer that greets as it likes.
struct Impostor(OwnedFd);

impl Impostor {
    fn connect(path: &Path) -> Self {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self(socket)
    }
}

/// Whether the end says that its peer broke the rules, and is alone then.
fn expels(end: &mut CableUplink) -> &'static str {
    let limit = Instant::now() + Duration::from_secs(5);
    loop {
        assert!(Instant::now() < limit, "not expelled: {end:?}");
        if let Err(UplinkError::CablePeer { problem, .. }) =
            end.receive(&mut FrameBurst::new(1, 64))
        {
            assert!(matches!(end.state, State::Alone));
            end.next_attempt = None;
            return problem;
        }
    }
}

#[test]
fn impostors_are_expelled_and_the_true_peer_is_met_after_them() {
    let directory = directory();
    let path = directory.path().join("cable");
    let mut first = end(&path);

    let other = Impostor::connect(&path);
    rustix::net::send(&other.0, b"GET / HTTP/1.1\r\n", SendFlags::empty()).unwrap();
    assert_eq!(expels(&mut first), "sent a message that is no greeting");

    let memory_that_shrinks = tempfile::tempfile().unwrap();
    memory_that_shrinks.set_len(ring::MEMORY as u64).unwrap();
    let other = Impostor::connect(&path);
    meeting::greet(&other.0, 1518, &memory_that_shrinks.into()).unwrap();
    assert_eq!(expels(&mut first), "has a ring that is no memory file to trust");

    let short = create_memfd("short", 4096, PageSize::Base).unwrap();
    let other = Impostor::connect(&path);
    meeting::greet(&other.0, 1518, &short).unwrap();
    assert_eq!(expels(&mut first), "has a ring that is no memory file to trust");

    let other = Impostor::connect(&path);
    let (memory, file) = SharedMapping::create("liar", ring::MEMORY, PageSize::Base).unwrap();
    memory.as_slice().fill(0xFF);
    meeting::greet(&other.0, 1518, &file).unwrap();
    assert_eq!(expels(&mut first), "moved its end of the ring beyond what the ring holds");

    let other = Impostor::connect(&path);
    let ring = create_memfd("ring", ring::MEMORY, PageSize::Base).unwrap();
    meeting::greet(&other.0, 1518, &ring).unwrap();
    meeting::greet(&other.0, 1518, &ring).unwrap();
    assert_eq!(expels(&mut first), "greeted twice");

    let _mute = Impostor::connect(&path);
    assert_eq!(expels(&mut first), "connected and said nothing");

    let mut second = end(&path);
    settle(&mut [&mut first, &mut second], both_up);
}

#[test]
fn a_peer_that_takes_shorter_frames_gets_no_longer_ones() {
    let directory = directory();
    let path = directory.path().join("cable");
    let (mut first, mut second) = (end(&path), CableUplink::open(&path, 100).unwrap());
    settle(&mut [&mut first, &mut second], both_up);
    assert_eq!(first.transmit(&frames(&[&[0; 101], &[0; 100]])).unwrap(), 2);
    assert_eq!(
        (first.statistics().transmit_bad_length, first.statistics().transmitted_frames),
        (1, 1)
    );
}
