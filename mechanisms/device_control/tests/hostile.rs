//! Clients that lie, flood, stall, send fragments or die: each harms only itself.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests may"
)]

mod common;

use common::*;
use device_control::*;
use device_control_protocol::*;
use pcivirt_protocol::NtStatus;
use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;
use zerocopy::IntoBytes;

#[test]
fn a_message_that_lies_about_itself_ends_its_connection_alone() {
    let server = start();
    let good = request(1, ECHO, 4, 4).header();
    let lies = [
        MessageHeader { length: 43, ..good },
        MessageHeader { length: 45, ..good },
        MessageHeader { length: 0, ..good },
        MessageHeader { length: u32::MAX, ..good },
        MessageHeader { in_length: u32::MAX, length: 39, ..good },
        MessageHeader { in_length: MAX_INPUT_LENGTH + 1, length: MAX_INPUT_LENGTH + 41, ..good },
        MessageHeader { out_length: MAX_OUTPUT_LENGTH + 1, ..good },
        MessageHeader { kind: 0, ..good },
        MessageHeader { kind: 6, ..good },
        MessageHeader { class: 5, ..good },
        MessageHeader { status: 1, ..good },
        MessageHeader { fd_count: 1, ..good },
        MessageHeader { fd_count: 9, ..good },
        // Messages that only a server sends, and an introduction that comes twice.
        Message::Completion {
            id: RequestId(1),
            status: NtStatus::SUCCESS,
            out_length: 4,
            needed: 0,
            fd_count: 0,
        }
        .header(),
        Message::Welcome { status: NtStatus::SUCCESS, out_length: 4 }.header(),
        Message::Hello { in_length: 4 }.header(),
    ];
    for lie in lies {
        let mut raw = server.raw();
        raw.send_bytes(lie.as_bytes());
        raw.send_bytes(&[0; 4]);
        raw.assert_closed();
        server.disconnected();
    }
    server.assert_alive();
}

#[test]
fn a_request_whose_name_is_taken_ends_its_connection() {
    let server = start();
    let mut raw = server.raw();
    raw.send(&request(7, HOLD, 0, 0), b"");
    let Seen::Held(client, id) = server.seen() else { panic!() };
    raw.send(&request(7, HOLD, 0, 0), b"");
    raw.assert_closed();
    assert_eq!(server.seen(), Seen::Cancelled(client, id));
    assert_eq!(server.disconnected(), client);
    server.assert_alive();
}

#[test]
fn fragments_are_put_together() {
    let server = start();
    let mut raw = server.raw();
    let bytes = [request(1, ECHO, 5, 5).header().as_bytes(), b"hello"].concat();
    for byte in &bytes {
        raw.send_bytes(&[*byte]);
    }
    assert_eq!(raw.receive().1, b"hello");
    // Several messages in one piece are taken apart.
    raw.send_bytes(&[&bytes[..], &bytes, &bytes].concat());
    for _ in 0..3 {
        assert_eq!(raw.receive().1, b"hello");
    }
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_message_holds_up_nobody() {
    let server = start();
    let header = request(1, ECHO, 100, 100).header();
    let mut in_header = server.raw();
    in_header.send_bytes(&header.as_bytes()[..13]);
    let mut in_payload = server.raw();
    in_payload.send(&request(1, ECHO, 100, 100), &[0; 50]);
    server.assert_alive();
    // And when they go, they are gone.
    drop((in_header, in_payload));
    server.disconnected();
    server.disconnected();
}

#[test]
fn a_client_that_half_closes_is_gone() {
    let server = start();
    let mut raw = server.raw();
    raw.send(&request(1, HOLD, 0, 0), b"");
    assert!(matches!(server.seen(), Seen::Held(..)));
    raw.stream.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(server.seen(), Seen::Cancelled(..)));
    server.disconnected();
    raw.assert_closed();
}

#[test]
fn who_does_not_introduce_itself_in_time_is_dropped() {
    let server = start_with(|config| config.hello_timeout = Duration::from_millis(30));
    let mut silent = server.stranger();
    let mut slow = server.stranger();
    slow.send_bytes(&Message::Hello { in_length: 10 }.header().as_bytes()[..20]);
    silent.assert_closed();
    slow.assert_closed();
    server.assert_alive();
}

#[test]
fn who_introduces_itself_wrongly_is_refused() {
    let server = start();
    let hello = |version: u32, name: &[u8]| [version.as_bytes(), name].concat();
    let cases = [
        (hello(PROTOCOL_VERSION + 1, b"anything at all"), NtStatus::REVISION_MISMATCH),
        (hello(PROTOCOL_VERSION, b""), NtStatus::INVALID_PARAMETER),
        (hello(PROTOCOL_VERSION, b"a\nb"), NtStatus::INVALID_PARAMETER),
        (hello(PROTOCOL_VERSION, &[b'x'; 65]), NtStatus::INVALID_PARAMETER),
        (vec![1, 0], NtStatus::REVISION_MISMATCH),
    ];
    for (hello, expected) in cases {
        let mut raw = server.stranger();
        raw.send(&Message::Hello { in_length: hello.len().try_into().unwrap() }, &hello);
        let (message, _) = raw.receive();
        assert_eq!(message, Message::Welcome { status: expected, out_length: 0 });
        raw.assert_closed();
    }
    // A request is no introduction.
    let mut raw = server.stranger();
    raw.send(&request(1, ECHO, 0, 0), b"");
    raw.assert_closed();
    assert!(server.saw_nothing());
    server.assert_alive();
}

#[test]
fn unasked_file_descriptors_end_the_connection() {
    let server = start();
    let file = tempfile::tempfile().unwrap();
    let send_with_fds = |raw: &Raw, bytes: &[u8], count: usize| {
        let fds = vec![file.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&raw.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    };
    for count in [1, 8, 9, 64] {
        let mut raw = server.raw();
        send_with_fds(&raw, request(1, ECHO, 4, 4).header().as_bytes(), count);
        raw.send_bytes(&[0; 4]);
        raw.assert_closed();
        server.disconnected();
    }
    // Beside the payload instead of the header.
    let mut raw = server.raw();
    raw.send_bytes(request(1, ECHO, 4, 4).header().as_bytes());
    send_with_fds(&raw, &[0; 4], 1);
    raw.assert_closed();
    server.disconnected();
    server.assert_alive();
}

#[test]
fn a_flood_beyond_the_limits_is_refused_request_by_request() {
    let server = start_with(|config| config.max_outstanding_requests = 8);
    let mut raw = server.raw();
    for id in 0..20 {
        raw.send(&request(id, HOLD, 0, 0), b"");
    }
    for _ in 0..8 {
        assert!(matches!(server.seen(), Seen::Held(..)));
    }
    for id in 8..20 {
        let status = NtStatus::INSUFFICIENT_RESOURCES;
        let refused = Message::Completion {
            id: RequestId(id),
            status,
            out_length: 0,
            needed: 0,
            fd_count: 0,
        };
        assert_eq!(raw.receive().0, refused);
    }
    assert!(server.saw_nothing());
    // It has lost nothing by that.
    raw.send(&Message::Cancel { id: RequestId(3) }, b"");
    assert!(matches!(server.seen(), Seen::Cancelled(_, RequestId(3))));
    raw.receive();
    raw.send(&request(3, ECHO, 2, 2), b"ok");
    assert_eq!(raw.receive().1, b"ok");
}

#[test]
fn a_client_that_never_reads_is_not_listened_to_and_holds_up_nobody() {
    let server = start();
    let mut raw = server.raw();
    raw.stream.set_nonblocking(true).unwrap();
    // 64 KiB of output for each request, of which it reads nothing, until the server takes no more.
    let message = [request(0, FILL, 4, 65_536).header().as_bytes(), 65_536u32.as_bytes()].concat();
    let mut sent = 0u64;
    let mut stalled = 0;
    while stalled < 200 {
        let mut bytes = message.clone();
        bytes[8..16].copy_from_slice(&sent.to_le_bytes());
        match raw.stream.write(&bytes) {
            Ok(written) if written == bytes.len() => {
                sent += 1;
                stalled = 0;
            }
            // The server would see a broken message from here on: it does not get that far.
            Ok(_) => break,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                stalled += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(sent < 100_000, "the server listens for ever");
    }
    server.assert_alive();
    drop(raw);
    server.disconnected();
}

#[test]
fn cancels_of_nothing_are_ignored() {
    let server = start();
    let mut raw = server.raw();
    for id in 0..1000 {
        raw.send(&Message::Cancel { id: RequestId(id) }, b"");
    }
    raw.send(&request(1, ECHO, 2, 2), b"ok");
    assert_eq!(raw.receive().1, b"ok");
    assert!(server.saw_nothing());
}

#[test]
fn a_request_that_makes_the_handler_panic_ends_its_connection_alone() {
    let server = start();
    let other = server.connect_as("other");
    let mut raw = server.raw();
    raw.send(&request(1, HOLD, 0, 0), b"");
    assert!(matches!(server.seen(), Seen::Held(..)));
    raw.send(&request(2, PANIC, 0, 0), b"");
    raw.assert_closed();
    assert!(matches!(server.seen(), Seen::Cancelled(_, RequestId(1))));
    server.disconnected();
    assert_eq!(other.private(ECHO, b"x", 1, SOON).unwrap(), b"x");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random bytes, and right messages changed in one place, cut off or out of order: the server goes on serving others.
    #[test]
    fn random_messages_harm_nobody_else(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        messages in prop::collection::vec((0u8..5, any::<u64>(), 0usize..40, any::<u8>()), 0..8),
        introduced: bool,
    ) {
        let server = start();
        let mut raw = if introduced { server.raw() } else { server.stranger() };
        for (kind, id, at, change) in messages {
            let message = match kind {
                0 => Message::Cancel { id: RequestId(id) },
                1 => Message::Hello { in_length: 8 },
                _ => request(id % 4, ECHO, 8, 8),
            };
            let mut bytes = message.header().as_bytes().to_vec();
            if change > 128 {
                bytes[at] ^= change;
            }
            raw.send_bytes(&bytes);
            if message.payload_length() != 0 {
                raw.send_bytes(&id.to_le_bytes());
            }
        }
        raw.send_bytes(&noise);
        let client = DeviceControlClient::connect(&server.path, &name("witness"), SOON).unwrap();
        prop_assert_eq!(client.private(ECHO, b"hello", 5, SOON).unwrap(), b"hello");
    }
}

/// A server that does not follow the protocol cannot make a client hang, panic or grow.
#[test]
fn a_server_that_lies_is_an_error_of_the_client() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("liar.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let welcome = |max_outstanding_requests| {
        let payload = Welcome {
            version: PROTOCOL_VERSION,
            max_outstanding_requests,
            max_outstanding_bytes: 100,
            client_id: ClientId(1),
            device: name("liar"),
        }
        .emit();
        let out_length = payload.len().try_into().unwrap();
        let message = Message::Welcome { status: NtStatus::SUCCESS, out_length };
        [message.header().as_bytes(), &payload].concat()
    };
    let completion = |id, out_length| {
        let message = Message::Completion {
            id: RequestId(id),
            status: NtStatus::SUCCESS,
            out_length,
            needed: 0,
            fd_count: 0,
        };
        [message.header().as_bytes(), &vec![0; out_length.try_into().unwrap()]].concat()
    };
    let answers = [
        // To the introduction.
        (vec![0xFF; 40], false),
        (completion(1, 0), false),
        (
            Message::Welcome { status: NtStatus::SUCCESS, out_length: 0 }
                .header()
                .as_bytes()
                .to_vec(),
            false,
        ),
        (welcome(8)[..50].to_vec(), false),
        // To a request with room for four bytes.
        (completion(99, 0), true),
        (completion(1, 5), true),
        (vec![0xFF; 40], true),
        (welcome(8), true),
        (completion(1, 4)[..42].to_vec(), true),
    ];
    for (answer, welcomed) in answers {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut raw = Raw { stream: listener.accept().unwrap().0 };
                raw.receive();
                if welcomed {
                    raw.send_bytes(&welcome(8));
                    raw.receive();
                }
                raw.send_bytes(&answer);
            });
            let client = DeviceControlClient::connect(&path, &name("victim"), SOON);
            if !welcomed {
                let error = client.unwrap_err();
                assert!(
                    matches!(
                        error,
                        ClientError::Protocol { .. } | ClientError::Disconnected { .. }
                    ),
                    "{error}"
                );
                return;
            }
            let error = client.unwrap().private(ECHO, b"", 4, SOON).unwrap_err();
            assert!(
                matches!(error, ClientError::Protocol { .. } | ClientError::Disconnected { .. }),
                "{error}"
            );
        });
    }
    // One that accepts and says nothing.
    let short = Duration::from_millis(20);
    let error = DeviceControlClient::connect(&path, &name("victim"), short).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
}
