//! Processes that are killed.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use avf_driver::{DriverConfig, DriverError, Event, State};
use rustix::event::{PollFd, PollFlags};

use crate::{
    common::*,
    traffic::{Stream, Vf, exchange},
};

const SOCKET: &str = "CLEARWAY_TEST_VF_SOCKET";

/// Not a test: the process that is killed in one. It drives a VF and sends frames to 02:…:01 without end.
#[test]
#[ignore = "a process that other tests start"]
fn process_that_drives_a_vf() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let mut vf = Vf::open(socket.as_ref());
    let mut number = 0;
    // A parent that is gone wants no more.
    while rustix::process::getppid().is_some_and(|parent| !parent.is_init()) {
        vf.receive();
        if !vf.send(3, 1, number) {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        number += 1;
        if number == 1000 {
            println!("driving");
        }
    }
}

fn process_on(socket: &std::path::Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "deaths::process_that_drives_a_vf"])
        .env(SOCKET, socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(
        lines.map_while(Result::ok).any(|line| line.contains("driving")),
        "the process ended before it drove its VF"
    );
    child
}

#[test]
fn the_vf_of_a_killed_process_is_reusable_within_a_second_and_others_lose_nothing() {
    let directory = User::Same.directory();
    let adapter = Adapter::start(User::Same, directory.path(), 3);
    let sockets = [1, 2, 3].map(|last| adapter.attach(last).socket);
    // Two VFs that nothing happens to talk all the time; the first also hears the one that is killed.
    let mut stream = Stream::new(Vf::open(&sockets[0]), Vf::open(&sockets[1]), (1, 2));
    let stop = AtomicBool::new(false);
    let (stream, reuse) = std::thread::scope(|scope| {
        let talking = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                stream.turn(true);
            }
            stream.drain();
            stream
        });
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            let mut child = process_on(&sockets[2]);
            child.kill().unwrap();
            let killed = Instant::now();
            child.wait().unwrap();
            let mut reused = Vf::open(&sockets[2]);
            fastest = fastest.min(killed.elapsed());
            // Reset: nothing of the killed process is in its queues.
            assert_eq!(reused.receive(), []);
            assert_eq!(reused.control.stats().unwrap().rx_unicast, 0);
        }
        stop.store(true, Ordering::Relaxed);
        (talking.join().unwrap(), fastest)
    });
    println!("reused after {reuse:?}; {} frames meanwhile", stream.received);
    assert!(reuse < Duration::from_secs(1), "reused after {reuse:?}");
    assert!(stream.received > 0);
    let status = adapter.status();
    let [a, b, killed] = &status.vfs[..] else { panic!("{:?}", status.vfs) };
    assert_eq!(a.function.stats.transmit.unicast, u64::from(stream.sent));
    assert_eq!(b.function.stats.receive.unicast, u64::from(stream.received));
    assert_eq!((b.function.stats.receive.discards(), a.function.stats.transmit.errors()), (0, 0));
    assert!(killed.function.stats.transmit.unicast > 0);
    // And the VF that was taken over carries frames both ways.
    let mut third = Vf::open(&sockets[2]);
    let mut second = stream.to;
    exchange((&mut second, 2), (&mut third, 3), 7);
}

#[test]
fn a_killed_adapter_is_a_device_that_is_gone_and_a_new_one_starts_over_its_sockets() {
    for user in User::all() {
        let directory = user.directory();
        let mut adapter = Adapter::start(user, directory.path(), 2);
        let attached = [adapter.attach(1), adapter.attach(2)];
        let client = adapter.client();
        let interrupts =
            DriverConfig { interrupts: true, ..DriverConfig::new(&attached[0].socket) };
        let mut sleeping = Vf::open_with(interrupts);
        let mut polling = Vf::open(&attached[1].socket);
        exchange((&mut sleeping, 1), (&mut polling, 2), 1);

        adapter.kill();
        // Whoever sleeps is woken by the socket, whoever polls asks now and then.
        let mut fds = [PollFd::from_borrowed_fd(sleeping.control.server_fd(), PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1, "nobody woke it");
        for vf in [&mut sleeping, &mut polling] {
            let events = vf.control.poll_events(Instant::now()).unwrap();
            assert!(events.contains(&Event::DeviceGone), "{events:?}");
            assert_eq!(vf.control.state(), State::Gone);
            assert!(matches!(vf.control.stats(), Err(DriverError::DeviceGone)));
        }
        wait_for("the end of device control", || (!client.is_connected()).then_some(()));
        let refused = user.nic(directory.path(), &["show"]);
        assert_refused(&refused, &["there is no adapter in"]);
        // It had no time to remove anything.
        for name in ["control.sock", "pf.sock", "vf0.sock", "vf1.sock"] {
            assert!(names_in(directory.path()).contains(&name.to_owned()), "{name}");
        }
        drop((sleeping, polling, client));

        let mut adapter = Adapter::start(user, directory.path(), 2);
        assert!(adapter.status().vfs.is_empty(), "a new adapter has nothing of the old one");
        let attached = [adapter.attach(1), adapter.attach(2)];
        let mut vfs = attached.each_ref().map(|attached| Vf::open(&attached.socket));
        let [a, b] = &mut vfs;
        exchange((a, 1), (b, 2), 1);
        adapter.signal(rustix::process::Signal::TERM);
        assert!(adapter.wait().success());
        assert_eq!(names_in(directory.path()), [""; 0]);
    }
}

#[test]
fn what_a_killed_adapter_left_is_gone_even_if_the_next_one_never_uses_it() {
    let directory = User::Same.directory();
    let mut adapter = Adapter::start(User::Same, directory.path(), 2);
    adapter.attach(1);
    adapter.attach(2);
    adapter.kill();
    // Files of others stay.
    std::fs::write(directory.path().join("vf9.sock"), "not a socket").unwrap();
    let mut adapter = Adapter::start(User::Same, directory.path(), 2);
    assert_eq!(names_in(directory.path()), ["control.sock", "pf.sock", "vf9.sock"]);
    adapter.signal(rustix::process::Signal::TERM);
    assert!(adapter.wait().success());
    assert_eq!(names_in(directory.path()), ["vf9.sock"]);
}
