//! Clients that lie, flood, drip and die: their own connection suffers, the next client is served.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use proptest::prelude::*;
use vfio_user_protocol::{
    Command, DmaMap, Errno, HEADER_SIZE, Header, IrqAction, IrqData, IrqSet, RegionAccess,
    RegionInfo, Request,
};
use zerocopy::IntoBytes;

use super::{
    Served,
    device::{Event, TestDevice},
    raw_client::{RawClient, message, version_message},
};
use crate::EventFd;

#[test]
fn headers_that_lie_end_the_connection() {
    let served = Served::new();
    let header =
        |size, flags| Header { message_id: 7, command: 10, message_size: size, flags, error: 0 };
    for bad in [
        header(0, 0),
        header(15, 0),
        header(u32::MAX, 0),
        header(16 + 16 + 0x10_0001, 0),
        header(16, Header::TYPE_REPLY),
        header(16, 5),
    ] {
        let client = served.client();
        client.send(bad.as_bytes(), &[]);
        assert!(client.ends(), "{bad:?}");
    }
    served.client();
}

#[test]
fn lengths_that_do_not_fit_the_command_are_refused() {
    let served = Served::new();
    let mut client = served.client();
    for command in Command::ALL {
        if *command != Command::DeviceReset {
            let refused = client.call_raw(*command, &[0; 3], &[]).unwrap_err();
            assert_eq!(refused, Errno::INVAL, "{command:?}");
        }
    }
    assert_eq!(client.call_raw(Command::DeviceReset, &[0], &[]).unwrap_err(), Errno::INVAL);
    let huge = vec![0; 16 + 0x10_0000];
    let refused = client.call_raw(Command::RegionWrite, &huge, &[]).unwrap_err();
    assert_eq!(refused, Errno::INVAL, "the largest message there can be is still read");
    assert_eq!(served.device.lock().unwrap().events, [Event::Connected]);
}

/// Whether every copy of a pipe's writing end but `ours` is closed.
fn closed_elsewhere((reader, ours): (OwnedFd, OwnedFd)) -> bool {
    drop(ours);
    matches!(std::fs::File::from(reader).read(&mut [0]), Ok(0))
}

#[test]
fn descriptors_nobody_asked_for_are_closed() {
    let served = Served::new();
    let mut client = served.client();
    let irq =
        IrqSet { index: 2, start: 0, count: 5, action: IrqAction::Trigger, data: IrqData::EventFd };
    for (request, copies, expected) in [
        (Request::DeviceReset, 1, Errno::INVAL),
        (Request::DeviceReset, 16, Errno::INVAL),
        (Request::DeviceReset, 17, Errno::MFILE),
        (Request::DeviceReset, 253, Errno::MFILE),
        (Request::DeviceSetIrqs(irq), 5, Errno::INVAL),
        (Request::DeviceSetIrqs(irq), 6, Errno::INVAL),
        (
            Request::DmaMap(DmaMap { argsz: 32, flags: 3, size: 4096, ..DmaMap::default() }),
            1,
            Errno::PERM,
        ),
    ] {
        let pipe = rustix::pipe::pipe().unwrap();
        let fds = vec![pipe.1.as_fd(); copies];
        assert_eq!(client.call(&request, &fds).unwrap_err(), expected, "{request:?} with {copies}");
        assert!(closed_elsewhere(pipe));
    }
    client.call(&Request::DeviceReset, &[]).expect("still connected");
}

#[test]
fn descriptors_of_an_unfinished_message_are_closed() {
    let served = Served::new();
    let client = served.client();
    let pipe = rustix::pipe::pipe().unwrap();
    for byte in [0, 0, 0] {
        client.send(&[byte], &[pipe.1.as_fd(); 8]);
    }
    drop(client);
    TestDevice::wait_for(&served.device, &Event::Disconnected);
    assert!(closed_elsewhere(pipe));
}

#[test]
fn a_flood_without_reading_answers_is_held_back_and_dies_with_the_client() {
    let served = Served::new();
    let client = served.client();
    let access = RegionAccess { offset: 0, region: 0, count: 0x1_0000 };
    let mut request = Vec::new();
    Request::RegionRead(access).emit(&mut request);
    let request = message(Command::RegionRead, 0, &request);
    client.stream.set_nonblocking(true).unwrap();
    // Until the server takes no more: neither side buffers without bound.
    let mut sent = 0usize;
    let mut refused = 0;
    while refused < 1000 {
        match (&client.stream).write(&request) {
            Ok(_) => (sent, refused) = (sent + 1, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 1_000_000, "held without bound");
    }
    assert!(RawClient::new(&served.path).ends(), "others still get an answer");
    drop(client);
    served.client();
}

#[test]
fn a_client_that_dies_in_the_middle_of_a_message_is_cleaned_up_after() {
    let served = Served::new();
    for cut in 1..version_message().len() {
        let client = RawClient::new(&served.path);
        client.send(&version_message()[..cut], &[]);
    }
    assert!(served.device.lock().unwrap().events.is_empty());
    let write = message(Command::RegionWrite, 0, &[0; 40]);
    for cut in 1..write.len() {
        let client = served.client();
        client.send(&write[..cut], &[]);
    }
    served.client();
}

/// One server for all cases of a property: what one client did must not matter to the next.
fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(Served::new)
}

/// Sends bytes in two parts, some with an eventfd beside, and reads until the server has had enough; then checks
/// that a good client is served.
fn survives(bytes: &[u8], cut: usize, with_fds: usize) {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let served = served();
    let client = served.client();
    let eventfd = EventFd::new().unwrap();
    let fds = vec![eventfd.as_fd(); with_fds];
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
    for part in [first, second] {
        if part.is_empty() {
            continue;
        }
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        }
        // The server may have hung up already.
        let _ = rustix::net::sendmsg(
            &client.stream,
            &[std::io::IoSlice::new(part)],
            &mut ancillary,
            rustix::net::SendFlags::NOSIGNAL,
        );
    }
    let _ = client.stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    let _ = (&client.stream).read_to_end(&mut answers);
    drop(client);

    let mut good = served.client();
    let mut config = Vec::new();
    Request::RegionRead(RegionAccess { offset: 0, region: 7, count: 64 }).emit(&mut config);
    assert_eq!(good.call_raw(Command::RegionRead, &config, &[]).unwrap().0.len(), 80);
    assert!(served.device.lock().unwrap().map.regions().is_empty());
}

/// A stream of valid commands, as one client would send it.
fn valid_stream() -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![
        (0u64..0x1_0000, 0u32..16).prop_map(|(offset, count)| (
            Command::RegionRead,
            RegionAccess { offset, region: 0, count }.as_bytes().to_vec()
        )),
        (0u64..4096, prop::collection::vec(any::<u8>(), 0..16)).prop_map(|(offset, data)| {
            let access = RegionAccess { offset, region: 7, count: data.len() as u32 };
            (Command::RegionWrite, [access.as_bytes(), &data].concat())
        }),
        (0u32..9, prop::sample::select(vec![32u32, 80])).prop_map(|(index, argsz)| (
            Command::DeviceGetRegionInfo,
            RegionInfo { argsz, index, ..RegionInfo::default() }.as_bytes().to_vec()
        )),
        (0u64..64, 0u64..4, 0u32..4).prop_map(|(page, pages, flags)| {
            let (address, size) = (page * 4096, pages * 4096);
            let map = DmaMap { argsz: 32, flags, offset: 0, address, size };
            (Command::DmaMap, map.as_bytes().to_vec())
        }),
        (0u32..3, 0u32..6, 0u32..6).prop_map(|(index, start, count)| {
            let (action, data) = (IrqAction::Trigger, IrqData::EventFd);
            let mut payload = Vec::new();
            IrqSet { index, start, count, action, data }.emit(&mut payload);
            (Command::DeviceSetIrqs, payload)
        }),
        Just((Command::DeviceReset, Vec::new())),
    ];
    prop::collection::vec((command, prop::sample::select(vec![0, Header::NO_REPLY])), 1..12)
        .prop_map(|commands| {
            commands
                .into_iter()
                .flat_map(|((command, payload), flags)| message(command, flags, &payload))
                .collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_harm_only_their_sender(
        bytes in prop::collection::vec(any::<u8>(), 1..400), cut in 0usize..400, fds in 0usize..3
    ) {
        survives(&bytes, cut, fds);
    }

    #[test]
    fn mutated_streams_harm_only_their_sender(
        mut bytes in valid_stream(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(), fds in 0usize..18, truncate in any::<bool>()
    ) {
        for (at, value) in mutations {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        let cut = cut.index(bytes.len());
        if truncate {
            bytes.truncate(cut.max(1));
        }
        survives(&bytes, cut, fds);
    }

    #[test]
    fn random_commands_with_a_true_length_harm_only_their_sender(
        commands in prop::collection::vec(
            (0u16..20, any::<u8>(), prop::collection::vec(any::<u8>(), 0..64)), 1..10
        ),
        fds in 0usize..3
    ) {
        let mut bytes = Vec::new();
        for (command, flags, payload) in commands {
            let header = Header {
                message_id: 1,
                command,
                message_size: (HEADER_SIZE + payload.len()) as u32,
                flags: u32::from(flags) & 0x30,
                error: 0,
            };
            bytes.extend(header.as_bytes());
            bytes.extend(payload);
        }
        survives(&bytes, bytes.len(), fds);
    }
}
