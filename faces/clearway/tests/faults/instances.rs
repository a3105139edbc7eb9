//! How an adapter starts, and how it ends.

use crate::{
    common::*,
    traffic::{Vf, exchange},
};
use avf_driver::Event;
use std::time::Instant;

#[test]
fn a_second_adapter_in_the_same_directory_is_refused_and_the_first_is_left_alone() {
    for user in User::all() {
        let directory = user.directory();
        let path = directory.path().to_str().unwrap();
        let adapter = Adapter::start(user, directory.path(), 2);
        let mut vfs = [1, 2].map(|last| Vf::open(&adapter.attach(last).socket));
        let client = adapter.client();
        let (before, names) = (adapter.still_status(), names_in(directory.path()));
        for _ in 0..3 {
            let second = user.clearway(&["adapter", "--directory", path, "--vfs", "2"]);
            assert_refused(&second, &["is served by another process", path]);
        }
        assert_eq!(adapter.still_status(), before);
        assert_eq!(names_in(directory.path()), names);
        assert!(client.is_connected());
        let [a, b] = &mut vfs;
        exchange((a, 1), (b, 2), 1);
    }
}

#[test]
fn sigterm_and_sigint_end_an_adapter_in_order() {
    use rustix::process::Signal;
    for user in User::all() {
        for signal in [Signal::TERM, Signal::INT] {
            let directory = user.directory();
            let mut adapter = Adapter::start(user, directory.path(), 2);
            let mut vf = Vf::open(&adapter.attach(1).socket);
            let client = adapter.client();
            adapter.signal(signal);
            assert!(adapter.wait().success(), "{signal:?}");
            assert_eq!(names_in(directory.path()), [""; 0], "nothing is left behind");
            assert_eq!(adapter.log(), "", "there was nothing to complain about");
            let events = vf.control.poll_events(Instant::now()).unwrap();
            assert!(events.contains(&Event::DeviceGone), "{events:?}");
            wait_for("the end of device control", || (!client.is_connected()).then_some(()));
        }
    }
}

#[test]
fn the_client_that_ends_an_adapter_is_told_that_it_did() {
    for user in User::all() {
        // Often: whether the last completion is lost is a race between the adapter's end and its last words.
        for _ in 0..10 {
            let directory = user.directory();
            let mut adapter = Adapter::start(user, directory.path(), 1);
            let vf = Vf::open(&adapter.attach(1).socket);
            let shutdown = adapter.nic(&["shutdown"]);
            assert!(shutdown.status.success(), "{}", text(&shutdown.stderr));
            assert!(adapter.wait().success());
            assert_eq!(names_in(directory.path()), [""; 0], "nothing is left behind");
            drop(vf);
        }
    }
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_by_name() {
    let directory = User::Same.directory();
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/clearway".into()] {
        let output = User::Same.clearway(&["adapter", "--directory", path.to_str().unwrap()]);
        assert_refused(&output, &[path.to_str().unwrap()]);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    // Longer than the address of a Unix socket.
    let long = directory.path().join("x".repeat(120));
    let output = User::Same.clearway(&["adapter", "--directory", long.to_str().unwrap()]);
    assert_refused(&output, &["107"]);
}

#[test]
fn json_is_given_whichever_side_of_the_subcommand_it_is_asked_for() {
    let directory = User::Same.directory();
    let adapter = Adapter::start(User::Same, directory.path(), 1);
    let path = directory.path().to_str().unwrap();
    for arguments in [["--json", "show"], ["show", "--json"]] {
        let output = User::Same.clearway(&[&["nic", "--directory", path], &arguments[..]].concat());
        let status: adapter::control::AdapterStatus =
            serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status.num_vfs, 1);
    }
    drop(adapter);
}
