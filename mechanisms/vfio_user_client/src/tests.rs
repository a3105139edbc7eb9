//! Tests of the client against servers that are scripted, good and bad.

use std::{
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    thread::JoinHandle,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use vfio_user_protocol::{
    Command, DmaUnmap, Header, IrqSetHeader, RegionAccess, RegionInfo, Version, emit_region_info,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{connection::Connection, *};

const LIMIT: Duration = Duration::from_secs(20);

/// The server's end of a connection.
struct Peer(UnixStream);

impl Peer {
    fn next(&mut self) -> (Header, Vec<u8>, Vec<OwnedFd>) {
        let mut header = [0u8; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut header)];
        let flags = RecvFlags::WAITALL;
        rustix::net::recvmsg(&self.0, &mut parts, &mut ancillary, flags).unwrap();
        let fds = ancillary
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        let header = Header::read_from_bytes(&header).unwrap();
        let mut payload = vec![0; header.payload_size().unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        (header, payload, fds)
    }

    fn expect(&mut self, command: Command) -> (Header, Vec<u8>, Vec<OwnedFd>) {
        let message = self.next();
        assert_eq!(message.0.command, u16::from(command));
        message
    }

    fn reply(&mut self, to: &Header, payload: &[u8]) {
        self.0.write_all(to.reply(payload.len()).unwrap().as_bytes()).unwrap();
        self.0.write_all(payload).unwrap();
    }

    fn reply_with_fd(&mut self, to: &Header, payload: &[u8], fd: &OwnedFd) {
        let header = to.reply(payload.len()).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let parts = [std::io::IoSlice::new(header.as_bytes()), std::io::IoSlice::new(payload)];
        rustix::net::sendmsg(&self.0, &parts, &mut ancillary, SendFlags::empty()).unwrap();
    }

    /// Answers VERSION with the given JSON text.
    fn version(&mut self, json: &str) {
        let (header, payload, _) = self.expect(Command::Version);
        assert_eq!(Version::parse(&payload).unwrap().minor, 0, "0.0 is what QEMU's peers know");
        let answer = [&[0u8; 4], json.as_bytes(), &[0]].concat();
        self.reply(&header, &answer);
    }
}

/// A server that runs `script` for one connection, and a socket on which it listens.
fn serve<T: Send + 'static>(
    script: impl FnOnce(&mut Peer) -> T + Send + 'static,
) -> (tempfile::TempDir, std::path::PathBuf, JoinHandle<T>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || script(&mut Peer(listener.accept().unwrap().0)));
    (directory, path, thread)
}

fn event_descriptor() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

const CAPABILITIES: &str = r#"{"capabilities": {"max_msg_fds": 2, "unknown": [1, 2]}}"#;

#[test]
fn nobody_at_the_socket_is_a_connect_error() {
    let error = Client::connect(Path::new("/nonexistent/socket"), LIMIT).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }));
    assert!(error.to_string().contains("/nonexistent/socket"));
}

#[test]
fn another_major_version_or_garbage_is_refused() {
    for answer in [b"\x01\0\0\0{}\0".as_slice(), b"\0\0\0\0{\"capabilities\"", b"\0"] {
        let (_directory, path, server) = serve(move |peer| {
            let (header, ..) = peer.next();
            peer.reply(&header, answer);
        });
        let error = Client::connect(&path, LIMIT).unwrap_err();
        assert!(matches!(error, ClientError::Protocol { command: "VERSION", .. }), "{error:?}");
        server.join().unwrap();
    }
}

#[test]
fn a_refused_command_is_an_error_with_its_number_and_the_connection_goes_on() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let (header, ..) = peer.expect(Command::DeviceReset);
        let refusal = header.error_reply(vfio_user_protocol::Errno::BUSY);
        peer.0.write_all(refusal.as_bytes()).unwrap();
        let (header, ..) = peer.expect(Command::DeviceReset);
        peer.reply(&header, &[]);
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    match client.reset().unwrap_err() {
        ClientError::Refused { command: "DEVICE_RESET", source } => {
            assert_eq!(source.raw_os_error(), Some(16));
        }
        other => panic!("{other:?}"),
    }
    client.reset().unwrap();
    server.join().unwrap();
}

#[test]
fn a_server_that_hangs_costs_a_timeout_and_its_late_reply_confuses_nobody() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let (late, ..) = peer.expect(Command::RegionRead);
        // Half of the late reply comes before the next command, half after.
        let access = RegionAccess { offset: 0, region: 7, count: 4 };
        let payload = [access.as_bytes(), &[0xBA; 4]].concat();
        let reply = [late.reply(payload.len()).unwrap().as_bytes(), &payload].concat();
        let (header, ..) = peer.expect(Command::RegionRead);
        let access = RegionAccess { offset: 4, ..access };
        peer.0.write_all(&reply[..20]).unwrap();
        std::thread::yield_now();
        peer.0.write_all(&reply[20..]).unwrap();
        peer.reply(&header, &[access.as_bytes(), &[1, 2, 3, 4]].concat());
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    client.lock().set_limit(Duration::from_millis(20));
    let error = client.region_read::<4>(PciRegion::Config, 0).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    client.lock().set_limit(LIMIT);
    assert_eq!(client.region_read::<4>(PciRegion::Config, 4).unwrap(), [1, 2, 3, 4]);
    server.join().unwrap();
}

#[test]
fn a_server_that_dies_in_the_middle_of_a_reply_is_gone() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let (header, ..) = peer.expect(Command::DeviceGetInfo);
        peer.0.write_all(&header.reply(16).unwrap().as_bytes()[..9]).unwrap();
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    assert!(matches!(client.device_info(), Err(ClientError::Gone)));
    assert!(client.is_gone());
    server.join().unwrap();
    assert!(matches!(client.reset(), Err(ClientError::Gone)));
    assert!(matches!(client.check(), Err(ClientError::Gone)));
    assert!(matches!(client.region_post(PciRegion::Bar0, 0, 0), Err(ClientError::Gone)));
}

#[test]
fn lies_about_lengths_end_the_connection_without_harm() {
    let lies: [fn(&Header) -> Header; 3] = [
        |command| Header { message_size: 15, ..command.reply(0).unwrap() },
        |command| Header { message_size: u32::MAX, ..command.reply(0).unwrap() },
        |command| Header { flags: 7, ..command.reply(0).unwrap() },
    ];
    for lie in lies {
        let (_directory, path, server) = serve(move |peer| {
            peer.version(CAPABILITIES);
            let (header, ..) = peer.next();
            peer.0.write_all(lie(&header).as_bytes()).unwrap();
        });
        let client = Client::connect(&path, LIMIT).unwrap();
        let error = client.device_info().unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
        assert!(client.is_gone());
        server.join().unwrap();
    }
}

#[test]
fn replies_that_are_too_short_or_answer_something_else_are_errors() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let (header, ..) = peer.expect(Command::DeviceGetInfo);
        peer.reply(&header, &[0; 15]);
        let (header, ..) = peer.expect(Command::RegionRead);
        peer.reply(&header, &[0; 17]);
        let (header, ..) = peer.expect(Command::DeviceReset);
        peer.reply(&Header { command: 1, ..header }, &[]);
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    let protocol = |error| matches!(error, ClientError::Protocol { .. });
    assert!(client.device_info().is_err_and(protocol));
    assert!(client.region_read::<4>(PciRegion::Config, 0).is_err_and(protocol));
    assert!(client.reset().is_err_and(protocol));
    server.join().unwrap();
}

#[test]
fn the_server_s_own_commands_are_refused_and_do_not_disturb() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let (header, ..) = peer.expect(Command::DeviceReset);
        let read = Header::command(77, Command::DmaRead, 16).unwrap();
        peer.0.write_all(read.as_bytes()).unwrap();
        peer.0.write_all(&[0; 16]).unwrap();
        let (refusal, ..) = peer.next();
        peer.reply(&header, &[]);
        refusal
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    client.reset().unwrap();
    let refusal = server.join().unwrap();
    assert_eq!((refusal.message_id, refusal.flags), (77, Header::TYPE_REPLY | Header::ERROR));
}

#[test]
fn a_region_s_file_and_areas_come_with_the_second_reply() {
    let areas =
        [SparseMmapArea { offset: 0, size: 4096 }, SparseMmapArea { offset: 0x2000, size: 4096 }];
    let (_directory, path, server) = serve(move |peer| {
        peer.version(CAPABILITIES);
        let flags = RegionInfo::FLAG_READ | RegionInfo::FLAG_WRITE | RegionInfo::FLAG_MMAP;
        let info = RegionInfo { flags, size: 0x1_0000, offset: 0x5000, ..RegionInfo::default() };
        let mut full = Vec::new();
        emit_region_info(info, &areas, &mut full).unwrap();
        let (header, ..) = peer.expect(Command::DeviceGetRegionInfo);
        peer.reply(&header, &full[..32]);
        let (header, request, _) = peer.expect(Command::DeviceGetRegionInfo);
        let asked = RegionInfo::read_from_prefix(&request).unwrap().0.argsz;
        assert_eq!(asked as usize, full.len());
        let fd = shared_memory::create_memfd("bar", 0x1_0000, shared_memory::PageSize::Base);
        peer.reply_with_fd(&header, &full, &fd.unwrap());
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    let region = client.region_info(PciRegion::Bar0).unwrap();
    server.join().unwrap();
    let shared = region.shared.unwrap();
    assert_eq!((region.size, shared.offset, shared.areas), (0x1_0000, 0x5000, areas.to_vec()));
    assert_eq!(rustix::fs::fstat(&shared.fd).unwrap().st_size, 0x1_0000);
}

#[test]
fn event_descriptors_go_out_in_messages_no_larger_than_the_server_takes() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let (header, payload, fds) = peer.expect(Command::DeviceSetIrqs);
            let set = IrqSetHeader::read_from_prefix(&payload).unwrap().0;
            assert_eq!((set.index, set.flags), (2, 0x24));
            seen.push((set.start, set.count, fds.len()));
            peer.reply(&header, &[]);
        }
        seen
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    let events: Vec<_> = (0..5).map(|_| event_descriptor()).collect();
    let events: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    client.set_irq_events(PciIrq::Msix, 0, &events).unwrap();
    assert_eq!(server.join().unwrap(), [(0, 2, 2), (2, 2, 2), (4, 1, 1)]);
}

#[test]
fn event_descriptors_may_begin_at_any_interrupt_and_are_taken_away_without_any() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (header, payload, fds) = peer.expect(Command::DeviceSetIrqs);
            let set = IrqSetHeader::read_from_prefix(&payload).unwrap().0;
            assert_eq!((set.argsz as usize, payload.len()), (20, 20));
            seen.push((set.index, set.flags, set.start, set.count, fds.len()));
            peer.reply(&header, &[]);
        }
        seen
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    let event = event_descriptor();
    client.set_irq_events(PciIrq::Msix, 7, &[event.as_fd()]).unwrap();
    client.clear_irq_events(PciIrq::Msix, 3, 9).unwrap();
    client.clear_irq_events(PciIrq::Msix, 3, 0).unwrap();
    client.disable_irqs(PciIrq::Msi).unwrap();
    let (data_none, data_eventfd, trigger) = (1, 4, 0x20);
    assert_eq!(
        server.join().unwrap(),
        [
            (2, data_eventfd | trigger, 7, 1, 1),
            (2, data_eventfd | trigger, 3, 9, 0),
            (1, data_none | trigger, 0, 0, 0),
        ]
    );
}

#[test]
fn interrupts_are_asked_about_by_their_kind() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let (header, payload, _) = peer.expect(Command::DeviceGetIrqInfo);
        let asked = IrqInfo::read_from_prefix(&payload).unwrap().0;
        let flags = IrqInfo::FLAG_EVENTFD;
        peer.reply(&header, IrqInfo { flags, count: 5, ..asked }.as_bytes());
        asked
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    let info = client.irq_info(PciIrq::Msix).unwrap();
    assert_eq!((info.index, info.count, info.flags), (2, 5, IrqInfo::FLAG_EVENTFD));
    assert_eq!(server.join().unwrap(), IrqInfo { argsz: 16, flags: 0, index: 2, count: 0 });
}

#[test]
fn memory_is_taken_away_range_by_range_or_all_at_once() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (header, payload, fds) = peer.expect(Command::DmaUnmap);
            assert!(fds.is_empty());
            let unmap = DmaUnmap::read_from_bytes(&payload).unwrap();
            seen.push(unmap.target().unwrap());
            peer.reply(&header, &payload);
        }
        let (header, ..) = peer.expect(Command::DmaUnmap);
        let refusal = header.error_reply(vfio_user_protocol::Errno::INVAL);
        peer.0.write_all(refusal.as_bytes()).unwrap();
        seen
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    client.dma_unmap(0x10_0000, 0x2000).unwrap();
    client.dma_unmap_all().unwrap();
    let refused = client.dma_unmap(0x10_0000, 0x2000).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { command: "DMA_UNMAP", .. }), "{refused:?}");
    use vfio_user_protocol::DmaUnmapTarget::{All, Range};
    let expected = [Range { address: 0x10_0000, size: 0x2000 }, All];
    assert_eq!(server.join().unwrap(), expected);
}

/// Serves a region whose bytes count up, and keeps what is written, until the client hangs up.
fn region_server(peer: &mut Peer) -> Vec<(Command, u64, u32, u32, Vec<u8>)> {
    let mut seen = Vec::new();
    for _ in 0..6 {
        let (header, payload, _) = peer.next();
        let (access, data) = RegionAccess::read_from_prefix(&payload).unwrap();
        let RegionAccess { offset, region, count } = access;
        let command = Command::try_from(header.command).unwrap();
        seen.push((command, offset, region, count, data.to_vec()));
        let mut reply = access.as_bytes().to_vec();
        if command == Command::RegionRead {
            reply.extend((offset..offset + u64::from(count)).map(|byte| byte as u8));
        }
        peer.reply(&header, &reply);
    }
    seen
}

#[test]
fn configuration_space_is_accessed_as_pci_does_and_in_no_other_way() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        region_server(peer)
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    for (offset, length) in [(0, 0), (0, 3), (1, 2), (2, 4), (0, 8)] {
        let error = client.config_read(offset, &mut [0; 8][..length]).unwrap_err();
        assert!(matches!(error, ClientError::ConfigAccess { .. }), "{error:?}");
        assert!(client.config_write(offset, &[0; 8][..length]).is_err());
    }
    for (offset, length) in [(0x3D, 1), (0x06, 2), (0x100, 4)] {
        let mut data = [0xEE; 4];
        client.config_read(offset, &mut data[..length]).unwrap();
        let expected: Vec<_> = (0..length).map(|at| (usize::from(offset) + at) as u8).collect();
        assert_eq!(data[..length], expected);
        client.config_write(offset, &[9, 8, 7, 6][..length]).unwrap();
    }
    use Command::{RegionRead, RegionWrite};
    let config = PciRegion::Config.index();
    assert_eq!(
        server.join().unwrap(),
        [
            (RegionRead, 0x3D, config, 1, vec![]),
            (RegionWrite, 0x3D, config, 1, vec![9]),
            (RegionRead, 0x06, config, 2, vec![]),
            (RegionWrite, 0x06, config, 2, vec![9, 8]),
            (RegionRead, 0x100, config, 4, vec![]),
            (RegionWrite, 0x100, config, 4, vec![9, 8, 7, 6]),
        ]
    );
}

#[test]
fn long_accesses_go_in_parts_of_what_the_server_transfers() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(r#"{"capabilities": {"max_data_xfer_size": 100}}"#);
        region_server(peer)
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    let mut data = [0; 250];
    client.region_read_into(PciRegion::Bar0, 5, &mut data).unwrap();
    assert!(data.iter().zip(5..).all(|(byte, expected)| usize::from(*byte) == expected % 256));
    client.region_write(PciRegion::Bar0, 5, &data).unwrap();
    client.region_read_into(PciRegion::Bar0, 5, &mut []).unwrap();
    let seen: Vec<_> = server.join().unwrap().into_iter().map(|seen| (seen.1, seen.3)).collect();
    assert_eq!(seen, [(5, 100), (105, 100), (205, 50), (5, 100), (105, 100), (205, 50)]);
}

#[test]
fn posted_writes_wait_for_nothing_and_come_in_order() {
    let (_directory, path, server) = serve(|peer| {
        peer.version(CAPABILITIES);
        let mut values = Vec::new();
        for _ in 0..100 {
            let (header, payload, _) = peer.expect(Command::RegionWrite);
            assert!(header.no_reply());
            values.push(u32::from_le_bytes(payload[16..].try_into().unwrap()));
        }
        values
    });
    let client = Client::connect(&path, LIMIT).unwrap();
    for value in 0..100 {
        client.region_post(PciRegion::Bar0, 0x3800, value).unwrap();
    }
    assert_eq!(server.join().unwrap(), (0..100).collect::<Vec<_>>());
}

proptest::proptest! {
    /// Whatever a server sends before it hangs up, calls end and nothing panics.
    #[test]
    fn random_bytes_from_the_server_end_every_call(
        plausible: bool, bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)
    ) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        if plausible {
            // The id, command and type that the first call expects.
            let header = Header { message_id: 0, command: 4, flags: 1, ..Header::default() };
            let length = u32::try_from(bytes.len()).unwrap();
            let header = Header { message_size: 16 + length, ..header };
            theirs.write_all(header.as_bytes()).unwrap();
        }
        theirs.write_all(&bytes).unwrap();
        drop(theirs);
        let connection = Connection::over(ours.into(), LIMIT);
        let client = Client::over(connection, 16, 4096);
        let _ = client.device_info();
        proptest::prop_assert!(client.region_info(PciRegion::Bar0).is_err());
        proptest::prop_assert!(client.reset().is_err());
    }
}
