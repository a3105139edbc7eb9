//! What a function may reach of its client's memory.

use std::{
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use avf_protocol::{
    admin_queue::{AdminQueueDescriptor, flags, opcode},
    registers,
};
use rustix::{
    fs::{MemfdFlags, SealFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};
use vfio_user_protocol::{Command, DmaMap, Header, PciRegion, RegionAccess};
use zerocopy::{FromBytes, IntoBytes};

use crate::{common::*, traffic::Vf};

/// A vfio-user client that sends what the test says.
struct RawClient {
    stream: UnixStream,
    next_id: u16,
}

impl RawClient {
    fn connect(socket: &Path) -> Self {
        wait_for("a connection", || {
            let stream = UnixStream::connect(socket).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut client = Self { stream, next_id: 0 };
            let version = [&[0, 0, 1, 0][..], b"{\"capabilities\":{}}\0"].concat();
            client.call(Command::Version, &version, None).ok()?;
            Some(client)
        })
    }

    /// The reply's payload, or its error number.
    fn call(
        &mut self,
        command: Command,
        payload: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<u8>, u32> {
        const BROKEN: u32 = u32::MAX;
        self.next_id += 1;
        let header = Header::command(self.next_id, command, payload.len()).unwrap();
        let message = [header.as_bytes(), payload].concat();
        let fds: Vec<_> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let parts = [IoSlice::new(&message)];
        rustix::net::sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL)
            .map_err(|_| BROKEN)?;
        let mut header = [0u8; 16];
        self.stream.read_exact(&mut header).map_err(|_| BROKEN)?;
        let header = Header::read_from_bytes(&header).unwrap();
        let mut reply = vec![0; header.payload_size().unwrap()];
        self.stream.read_exact(&mut reply).map_err(|_| BROKEN)?;
        if header.flags & Header::ERROR != 0 { Err(header.error) } else { Ok(reply) }
    }

    fn write(&mut self, region: PciRegion, offset: u32, data: &[u8]) {
        let count = data.len() as u32;
        let access = RegionAccess { offset: offset.into(), region: region.index(), count };
        self.call(Command::RegionWrite, &[access.as_bytes(), data].concat(), None).unwrap();
    }

    fn register(&mut self, offset: u32, value: u32) {
        self.write(PciRegion::Bar0, offset, &value.to_le_bytes());
    }

    fn read_register(&mut self, offset: u32) -> u32 {
        let access = RegionAccess { offset: offset.into(), region: 0, count: 4 };
        let reply = self.call(Command::RegionRead, access.as_bytes(), None).unwrap();
        u32::from_le_bytes(reply[reply.len() - 4..].try_into().unwrap())
    }

    fn map(&mut self, iova: u64, size: u64, fd: BorrowedFd<'_>) -> Result<Vec<u8>, u32> {
        let flags = DmaMap::FLAG_READ | DmaMap::FLAG_WRITE;
        let map = DmaMap { argsz: 32, flags, offset: 0, address: iova, size };
        self.call(Command::DmaMap, map.as_bytes(), Some(fd))
    }
}

const IOVA: u64 = 0x1_0000_0000;
const SIZE: u64 = 0x1_0000;
const ARQ_BUFFERS: u64 = 0x4000;

fn memory(flags: MemfdFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest", flags | MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, SIZE).unwrap();
    fd
}

#[test]
fn memory_that_a_function_cannot_reach_is_refused_and_shrinkable_memory_sealed() {
    let directory = User::Same.directory();
    let mut adapter = Adapter::start(User::Same, directory.path(), 1);
    let socket = adapter.attach(1).socket;
    let mut client = RawClient::connect(&socket);
    // What is not memory could make the adapter wait.
    let file = std::fs::File::open("/proc/self/status").unwrap();
    client.map(IOVA, SIZE, file.as_fd()).unwrap_err();
    let (read, _write) = rustix::pipe::pipe().unwrap();
    client.map(IOVA, SIZE, read.as_fd()).unwrap_err();
    // Nothing behind the end of the file, nothing that wraps, nothing of size zero.
    let sealed = memory(MemfdFlags::ALLOW_SEALING);
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::SHRINK).unwrap();
    client.map(IOVA, SIZE * 2, sealed.as_fd()).unwrap_err();
    client.map(u64::MAX - 0xFFF, SIZE, sealed.as_fd()).unwrap_err();
    client.map(IOVA, 0, sealed.as_fd()).unwrap_err();
    // One that merely allows seals gets the seal, and what is sealed is taken.
    let allows = memory(MemfdFlags::ALLOW_SEALING);
    client.map(IOVA, SIZE, allows.as_fd()).unwrap();
    assert!(rustix::fs::fcntl_get_seals(&allows).unwrap().contains(SealFlags::SHRINK));
    client.map(IOVA, SIZE, sealed.as_fd()).unwrap_err();
    client.map(IOVA + SIZE, SIZE, sealed.as_fd()).unwrap();
    adapter.assert_lives();
    // The function is none the worse for it.
    drop(client);
    Vf::open(&socket);
}

#[test]
fn a_client_that_takes_its_memory_away_loses_its_connection_and_the_adapter_lives() {
    let directory = User::Same.directory();
    let mut adapter = Adapter::start(User::Same, directory.path(), 1);
    let socket = adapter.attach(1).socket;
    let mut client = RawClient::connect(&socket);
    // Seals are forbidden on this one.
    let fd = memory(MemfdFlags::empty());
    client.map(IOVA, SIZE, fd.as_fd()).unwrap();
    client.write(PciRegion::Config, 4, &6u16.to_le_bytes());
    let memory = std::fs::File::from(fd);
    let changed = send_version(&mut client, &memory);
    assert_ne!(changed[0] & flags::DD as u8, 0, "the mailbox works");
    memory.set_len(0).unwrap();
    // The function looks for the next message where there is no memory any more. The answer may come before the end.
    let access = RegionAccess { offset: registers::ATQT.into(), region: 0, count: 4 };
    let tail = [access.as_bytes(), &2u32.to_le_bytes()].concat();
    let _ = client.call(Command::RegionWrite, &tail, None);
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    adapter.assert_lives();
    Vf::open(&socket);
}

/// Sets up the mailbox and sends VERSION through it; returns the guest's memory after that.
fn send_version(client: &mut RawClient, memory: &std::fs::File) -> Vec<u8> {
    use registers::*;
    use std::os::unix::fs::FileExt;
    let ask = AdminQueueDescriptor {
        flags: (flags::RD | flags::BUF).into(),
        opcode: opcode::SEND_TO_PF.into(),
        datalen: 8.into(),
        cookie_high: 1.into(),
        address_high: ((IOVA >> 32) as u32).into(),
        address_low: 0x8000.into(),
        ..AdminQueueDescriptor::default()
    };
    memory.write_all_at(&vec![0; SIZE as usize], 0).unwrap();
    memory.write_all_at(ask.as_bytes(), 0).unwrap();
    memory.write_all_at(&[1, 0, 0, 0, 1, 0, 0, 0], 0x8000).unwrap();
    for index in 0..32 {
        let buffer = AdminQueueDescriptor::receive_buffer(512, IOVA + ARQ_BUFFERS + index * 512);
        memory.write_all_at(buffer.as_bytes(), 0x1000 + index * 32).unwrap();
    }
    for (head, tail, length, low, high, ring) in [
        (ATQH, ATQT, ATQLEN, ATQBAL, ATQBAH, IOVA),
        (ARQH, ARQT, ARQLEN, ARQBAL, ARQBAH, IOVA + 0x1000),
    ] {
        client.register(length, 0);
        client.register(head, 0);
        client.register(tail, 0);
        client.register(low, ring as u32);
        client.register(high, (ring >> 32) as u32);
        client.register(length, QueueLength::enabled(32).0);
    }
    client.register(ARQT, 31);
    let mut before = vec![0; SIZE as usize];
    memory.read_exact_at(&mut before, 0).unwrap();
    client.register(ATQT, 1);
    // Messages are handled in the order they were sent: with this answer the mailbox has been served.
    client.read_register(ATQH);
    let mut after = vec![0; SIZE as usize];
    memory.read_exact_at(&mut after, 0).unwrap();
    for (byte, old) in after.iter_mut().zip(before) {
        *byte ^= old;
    }
    after
}

#[test]
fn without_bus_mastering_a_function_does_no_dma() {
    let directory = User::Same.directory();
    let adapter = Adapter::start(User::Same, directory.path(), 1);
    let mut client = RawClient::connect(&adapter.attach(1).socket);
    let fd = memory(MemfdFlags::ALLOW_SEALING);
    client.map(IOVA, SIZE, fd.as_fd()).unwrap();
    let memory = std::fs::File::from(fd);
    // PCI command register: memory space alone, then with bus mastering, then without again.
    for (command, expected) in [(2u16, false), (6, true), (2, false), (6, true)] {
        client.write(PciRegion::Config, 4, &command.to_le_bytes());
        let changed = send_version(&mut client, &memory);
        let wrote = changed.iter().any(|byte| *byte != 0);
        assert_eq!(wrote, expected, "with command register {command}");
        if expected {
            assert_ne!(changed[0] & flags::DD as u8, 0, "the message was taken");
            assert_ne!(changed[0x1000] & flags::DD as u8, 0, "and answered");
        }
        client.call(Command::DeviceReset, &[], None).unwrap();
    }
}
