//! Requests over the socket: completed at once, later, cancelled, with their buffers, descriptors and limits.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use common::*;
use device_control::*;
use device_control_protocol::{MAX_INPUT_LENGTH, MAX_OUTPUT_LENGTH, MAX_OUTSTANDING_BYTES};
use pcivirt_protocol::{IoctlCode, NtStatus};
use std::future::Future;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use zerocopy::IntoBytes;

const HOLD_TARGET: Target = Target::Private(HOLD);

fn failed<T: std::fmt::Debug>(result: Result<T, ClientError>) -> NtStatus {
    match result.unwrap_err() {
        ClientError::Failed { status, .. } => status,
        other => panic!("{other}"),
    }
}

/// Completes the request the handler holds.
fn complete_held(server: &TestServer, completion: impl Into<Completion>) {
    let (_, held) = server.handler.held.lock().unwrap().pop_first().unwrap();
    held.complete(completion).unwrap();
}

#[test]
fn both_ends_are_told_who_the_other_is() {
    let server = start();
    let client = DeviceControlClient::connect(&server.path, &name("vmswitch"), SOON).unwrap();
    assert_eq!(client.device(), &name("nic0"));
    assert_eq!(client.path(), server.path);
    let Seen::Connected(seen) = server.seen() else { panic!() };
    assert_eq!((seen.id, seen.name.as_str()), (client.id(), "vmswitch"));
    assert_eq!(u32::try_from(seen.pid).unwrap(), std::process::id());
    assert_eq!(server.server.as_ref().unwrap().clients(), std::slice::from_ref(&seen));
    drop(client);
    assert_eq!(server.seen(), Seen::Disconnected(seen.clone()));

    // The same overlying driver over another connection.
    let again = DeviceControlClient::connect(&server.path, &name("vmswitch"), SOON).unwrap();
    let Seen::Connected(seen_again) = server.seen() else { panic!() };
    assert_eq!(seen_again.name, seen.name);
    assert_ne!(again.id(), seen.id);
}

#[test]
fn each_class_reaches_its_method_with_its_buffers() {
    let server = start();
    let client = server.connect();
    assert_eq!(client.private(ECHO, b"abc", 3, SOON).unwrap(), b"abc");
    assert_eq!(client.query_oid(0x0001_0237, 6, SOON).unwrap(), [0x37, 2, 1, 0, 0, 0]);
    client.set_oid(0, b"", SOON).unwrap_err();
    assert_eq!(client.method_oid(5, b"in", 8, SOON).unwrap(), [5, 0, 0, 0, 12, 0, b'i', b'n']);
    let short = client.oid(OidRequestKind::QueryStatistics, 9, b"", 5, SOON).unwrap();
    assert_eq!(short, Completion { status: NtStatus(0xC001_0014), output: vec![], needed: 6 });
    // What a handler does not implement has an answer all the same.
    let ioctl = client.ioctl(IoctlCode(1), b"", 0, SOON);
    assert_eq!(failed(ioctl), NtStatus::INVALID_DEVICE_REQUEST);
    let callback = client.call(Target::Callback(0), b"", 0, SOON).unwrap();
    assert_eq!(callback.status, NtStatus::INVALID_DEVICE_REQUEST);
    assert_eq!(failed(client.private(99, b"", 0, SOON)), NtStatus::INVALID_DEVICE_REQUEST);
}

#[test]
fn the_longest_buffers_pass_and_longer_ones_are_not_sent() {
    let server = start();
    let client = server.connect();
    let input: Vec<u8> = (0..=255).cycle().take(MAX_INPUT_LENGTH.try_into().unwrap()).collect();
    assert_eq!(client.private(ECHO, &input, input.len(), SOON).unwrap(), input);
    let longest = usize::try_from(MAX_OUTPUT_LENGTH).unwrap();
    let filled = client.private(FILL, MAX_OUTPUT_LENGTH.as_bytes(), longest, SOON).unwrap();
    assert_eq!(filled.len(), longest);
    assert!(filled.iter().all(|byte| *byte == 0x5A));

    let long = vec![0; input.len() + 1];
    let error = client.private(ECHO, &long, 0, SOON).unwrap_err();
    assert!(matches!(error, ClientError::TooLong { .. }), "{error}");
    let error = client.private(ECHO, &[], longest + 1, SOON).unwrap_err();
    assert!(matches!(error, ClientError::TooLong { .. }), "{error}");
}

#[test]
fn output_without_room_is_replaced_by_the_bytes_it_needs() {
    let server = start();
    let client = server.connect();
    let completion = client.call(Target::Private(FILL), 100u32.as_bytes(), 99, SOON).unwrap();
    assert_eq!(completion, Completion::too_small(100));
}

#[test]
fn a_pending_request_is_completed_later_and_others_overtake_it() {
    let server = start();
    let client = server.connect();
    let pending = client.send(HOLD_TARGET, b"", 4).unwrap();
    assert!(matches!(server.seen(), Seen::Held(..)));
    assert_eq!(client.private(ECHO, b"x", 1, SOON).unwrap(), b"x");
    assert!(!pending.is_done());
    assert!(!pending.wait_for(Duration::from_millis(1)));
    complete_held(&server, Completion::output(b"done", 4));
    assert_eq!(pending.wait_output(SOON).unwrap(), b"done");
}

struct CountWakes(AtomicUsize);

impl Wake for CountWakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_pending_request_can_be_awaited() {
    let server = start();
    let client = server.connect();
    let mut pending = pin!(client.send(HOLD_TARGET, b"", 4).unwrap());
    assert!(matches!(server.seen(), Seen::Held(..)));
    let wakes = Arc::new(CountWakes(AtomicUsize::new(0)));
    let waker = Waker::from(wakes.clone());
    let mut context = Context::from_waker(&waker);
    assert!(pending.as_mut().poll(&mut context).is_pending());
    complete_held(&server, Completion::output(b"done", 4));
    wait_until("the task was not woken", || wakes.0.load(Ordering::SeqCst) == 1);
    match pending.as_mut().poll(&mut context) {
        Poll::Ready(Ok(completion)) => assert_eq!(completion.output, b"done"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pending_request_can_be_cancelled() {
    let server = start();
    let client = server.connect();
    let pending = client.send(HOLD_TARGET, b"", 0).unwrap();
    let Seen::Held(_, id) = server.seen() else { panic!() };
    pending.cancel();
    assert_eq!(server.seen(), Seen::Cancelled(client.id(), id));
    assert_eq!(pending.wait(SOON).unwrap(), Completion::status(NtStatus::CANCELLED));
}

#[test]
fn a_request_that_is_dropped_or_times_out_is_cancelled() {
    let server = start();
    let client = server.connect();
    drop(client.send(HOLD_TARGET, b"", 0).unwrap());
    let Seen::Held(_, id) = server.seen() else { panic!() };
    assert_eq!(server.seen(), Seen::Cancelled(client.id(), id));

    let error = client.call(HOLD_TARGET, b"", 0, Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert_eq!(error.status(), NtStatus::IO_TIMEOUT);
    let Seen::Held(_, id) = server.seen() else { panic!() };
    assert_eq!(server.seen(), Seen::Cancelled(client.id(), id));
    assert_eq!(client.private(ECHO, b"x", 1, SOON).unwrap(), b"x");
}

/// Completions and cancels cross: each request ends once, with one status or the other.
#[test]
fn a_cancel_races_with_the_completion() {
    let server = start();
    let client = server.connect();
    std::thread::scope(|scope| {
        let completing = scope.spawn(|| {
            let mut held = 0;
            while held < 300 {
                if let Seen::Held(client, id) = server.seen() {
                    held += 1;
                    if let Some(held) = server.handler.held.lock().unwrap().remove(&(client, id)) {
                        held.complete(NtStatus::SUCCESS).unwrap();
                    }
                }
            }
        });
        for _ in 0..300 {
            let pending = client.send(HOLD_TARGET, b"", 0).unwrap();
            pending.cancel();
            let status = pending.wait(SOON).unwrap().status;
            assert!(matches!(status, NtStatus::SUCCESS | NtStatus::CANCELLED), "{status}");
        }
        completing.join().unwrap();
    });
    assert!(server.handler.held.lock().unwrap().is_empty());
}

#[test]
fn a_request_that_the_handler_drops_fails_instead_of_hanging() {
    let server = start();
    let client = server.connect();
    assert_eq!(failed(client.private(DROP, b"", 0, SOON)), NtStatus::UNSUCCESSFUL);
}

#[test]
fn file_descriptors_travel_both_ways() {
    let server = start();
    let client = server.connect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"through the socket and back").unwrap();
    let fds =
        [OwnedFd::from(file.try_clone().unwrap()), OwnedFd::from(tempfile::tempfile().unwrap())];
    // A payload long enough to come in several pieces.
    let sent = client.send_with_fds(Target::Private(FDS), &[7; 60_000], 0, &fds, SOON).unwrap();
    let (completion, mut back) = sent.wait_with_fds(SOON).unwrap();
    assert_eq!(completion, Completion::success());
    assert_eq!(back.len(), 2);
    let mut file = std::fs::File::from(back.remove(0));
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through the socket and back");
    // The next request has none.
    let sent = client.send(Target::Private(FDS), &[], 0).unwrap();
    assert_eq!(sent.wait_with_fds(SOON).unwrap().1.len(), 0);
}

#[test]
fn more_file_descriptors_than_allowed_are_not_sent() {
    let server = start();
    let client = server.connect();
    let fds: Vec<_> = (0..9).map(|_| OwnedFd::from(tempfile::tempfile().unwrap())).collect();
    let error = client.send_with_fds(Target::Private(FDS), &[], 0, &fds, SOON).unwrap_err();
    assert!(matches!(error, ClientError::TooLong { .. }), "{error}");
}

#[test]
fn outstanding_requests_are_limited_and_those_that_end_make_room() {
    let server = start_with(|config| config.max_outstanding_requests = 4);
    let client = server.connect();
    let held: Vec<_> = (0..4)
        .map(|_| {
            let pending = client.send(HOLD_TARGET, b"", 0).unwrap();
            assert!(matches!(server.seen(), Seen::Held(..)));
            pending
        })
        .collect();
    let error = client.private(ECHO, b"x", 1, SOON).unwrap_err();
    assert!(matches!(error, ClientError::TooManyRequests { limit: 4, .. }), "{error}");
    // Another client has its own limit.
    let other = server.connect_as("other");
    assert_eq!(other.private(ECHO, b"x", 1, SOON).unwrap(), b"x");

    complete_held(&server, NtStatus::SUCCESS);
    let [first, rest @ ..] = &held[..] else { panic!() };
    assert!(first.wait_for(SOON));
    assert!(rest.iter().all(|pending| !pending.is_done()));
    // Every time there is room for one, one is served.
    for _ in 0..100 {
        assert_eq!(client.private(ECHO, b"x", 1, SOON).unwrap(), b"x");
    }
}

#[test]
fn the_bytes_of_outstanding_requests_are_limited() {
    let server = start();
    let client = server.connect();
    let capacity = usize::try_from(MAX_OUTPUT_LENGTH).unwrap();
    let held: Vec<_> = (0..MAX_OUTSTANDING_BYTES / MAX_OUTPUT_LENGTH)
        .map(|_| {
            let pending = client.send(HOLD_TARGET, b"", capacity).unwrap();
            assert!(matches!(server.seen(), Seen::Held(..)));
            pending
        })
        .collect();
    assert_eq!(failed(client.private(ECHO, b"x", 1, SOON)), NtStatus::INSUFFICIENT_RESOURCES);
    complete_held(&server, NtStatus::SUCCESS);
    assert!(held[0].wait_for(SOON));
    assert_eq!(client.private(ECHO, b"x", 1, SOON).unwrap(), b"x");
}

#[test]
fn many_threads_share_a_client() {
    let server = start();
    let client = server.connect();
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let client = client.clone();
            scope.spawn(move || {
                for round in 0..200u32 {
                    let input = (thread << 16 | round).to_le_bytes();
                    assert_eq!(client.private(ECHO, &input, 4, SOON).unwrap(), input);
                }
            });
        }
    });
}

#[test]
fn a_slow_request_holds_up_its_own_client_alone() {
    let server = start();
    let slow = server.connect_as("slow");
    let other = server.connect_as("other");
    let blocked = slow.send(Target::Private(BLOCK), b"", 0).unwrap();
    assert_eq!(server.seen(), Seen::Blocked(slow.id()));
    assert_eq!(other.private(ECHO, b"x", 1, SOON).unwrap(), b"x");
    let waits = slow.send(Target::Private(ECHO), b"x", 1).unwrap();
    assert!(!waits.is_done());
    server.unblock.send(()).unwrap();
    assert_eq!(blocked.wait(SOON).unwrap().status, NtStatus::SUCCESS);
    assert_eq!(waits.wait_output(SOON).unwrap(), b"x");
}

#[test]
fn without_a_server_the_error_names_the_socket_and_the_cure() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nic0.sock");
    let error = DeviceControlClient::connect(&path, &name("cli"), SOON).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(text.contains("is `clearway adapter` running?"), "{text}");
    assert_eq!(error.status(), NtStatus::NO_SUCH_DEVICE);

    let error =
        DeviceControlClient::connect(directory.path().join("x".repeat(108)), &name("cli"), SOON);
    assert!(matches!(error, Err(ClientError::PathTooLong { .. })));
}

#[test]
fn a_server_that_is_about_to_start_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/nic0.sock");
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || DeviceControlClient::connect_when_ready(path, &name("daemon"), SOON)
    });
    let handler = start().handler;
    let _server =
        DeviceControlServer::start(ServerConfig::new(&path, name("nic0")), handler).unwrap();
    assert!(waiting.join().unwrap().unwrap().is_connected());

    let short = Duration::from_millis(20);
    let nobody = directory.path().join("nobody.sock");
    let error = DeviceControlClient::connect_when_ready(nobody, &name("daemon"), short);
    assert!(matches!(error, Err(ClientError::NotRunning { .. })));
}

#[test]
fn a_client_that_the_device_does_not_want_is_told_why() {
    let server = start();
    let error = DeviceControlClient::connect(&server.path, &name("unwanted"), SOON).unwrap_err();
    assert!(
        matches!(error, ClientError::Refused { status: NtStatus::ACCESS_DENIED, .. }),
        "{error}"
    );
    assert!(server.saw_nothing());
}

#[test]
fn one_client_too_many_is_told_so_and_there_is_room_again_when_one_leaves() {
    let server = start_with(|config| config.max_clients = 2);
    let first = server.connect();
    let _second = server.connect();
    for _ in 0..20 {
        let error = DeviceControlClient::connect(&server.path, &name("third"), SOON).unwrap_err();
        let full = NtStatus::INSUFFICIENT_RESOURCES;
        assert!(matches!(error, ClientError::Refused { status, .. } if status == full), "{error}");
    }
    drop(first);
    server.disconnected();
    // Its place is free once its thread has ended.
    wait_until("the place is not free", || {
        DeviceControlClient::connect(&server.path, &name("third"), SOON).is_ok()
    });
}

#[test]
fn a_process_has_a_limit_of_its_own() {
    let server = start_with(|config| config.max_clients_per_process = 1);
    let _first = server.connect();
    let error = DeviceControlClient::connect(&server.path, &name("second"), SOON).unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
}

#[test]
fn when_a_connection_ends_its_requests_are_cancelled_first() {
    let server = start();
    let client = server.connect();
    let id = client.id();
    let requests: Vec<_> = (0..3).map(|_| client.send(HOLD_TARGET, b"", 0).unwrap()).collect();
    let held: Vec<_> = (0..3).map(|_| server.seen()).collect();
    assert!(held.iter().all(|seen| matches!(seen, Seen::Held(..))));
    // The connection ends although the requests are neither complete nor dropped.
    std::mem::forget(requests);
    // A request whose handler panics ends its own connection.
    let error = client.private(PANIC, b"", 0, SOON).unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Disconnected { .. }
                | ClientError::Failed { status: NtStatus::UNSUCCESSFUL, .. }
        ),
        "{error}"
    );
    for seen in held {
        let Seen::Held(_, request) = seen else { panic!() };
        assert_eq!(server.seen(), Seen::Cancelled(id, request));
    }
    assert_eq!(server.disconnected(), id);
    wait_until("the client does not know", || !client.is_connected());
}

#[test]
fn when_the_server_ends_its_clients_are_told_and_its_socket_is_gone() {
    let mut server = start();
    let client = server.connect();
    let pending = client.send(HOLD_TARGET, b"", 0).unwrap();
    assert!(matches!(server.seen(), Seen::Held(..)));
    drop(server.server.take());
    assert!(!server.path.exists());
    let error = pending.wait(SOON).unwrap_err();
    assert!(matches!(error, ClientError::Disconnected { .. }), "{error}");
    assert!(error.to_string().contains("still running?"));
    let error = client.private(ECHO, b"", 0, SOON).unwrap_err();
    assert!(matches!(error, ClientError::Disconnected { .. }), "{error}");
    // Dropping the server has waited for the handler to hear of it.
    assert!(matches!(server.seen(), Seen::Cancelled(..)));
    assert!(matches!(server.seen(), Seen::Disconnected(..)));
}

#[test]
fn a_completion_after_the_client_has_gone_comes_back() {
    let server = start();
    let client = server.connect();
    drop(client.send(HOLD_TARGET, b"", 4).unwrap());
    let Seen::Held(of, id) = server.seen() else { panic!() };
    assert_eq!(server.seen(), Seen::Cancelled(of, id));
    let pending = client.send(HOLD_TARGET, b"", 4).unwrap();
    let Seen::Held(of, id) = server.seen() else { panic!() };
    // Taken out before the cancel comes.
    let held = server.handler.held.lock().unwrap().remove(&(of, id)).unwrap();
    drop((client, pending));
    wait_until("the client has not gone", || matches!(server.seen(), Seen::Disconnected(_)));
    let completion = Completion::output(b"lost", 4);
    assert_eq!(held.complete(completion.clone()), Err(completion));
}
