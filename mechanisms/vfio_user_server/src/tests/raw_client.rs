//! A client that can say anything.

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use vfio_user_protocol::{Capabilities, Command, Errno, HEADER_SIZE, Header, Request, Version};
use zerocopy::{FromBytes, IntoBytes};

pub(super) struct RawClient {
    pub(super) stream: UnixStream,
}

/// An answer: payload and descriptors, or an errno.
pub(super) type Answer = Result<(Vec<u8>, Vec<OwnedFd>), Errno>;

/// A whole command as bytes.
pub(super) fn message(command: Command, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = Header::command(7, command, payload.len()).unwrap();
    header.flags |= flags;
    [header.as_bytes(), payload].concat()
}

pub(super) fn version_message() -> Vec<u8> {
    let capabilities = Capabilities { max_msg_fds: Some(8), ..Capabilities::default() };
    let version = Version { major: 0, minor: 0, capabilities: Some(capabilities) };
    let mut payload = Vec::new();
    version.emit(&mut payload);
    message(Command::Version, 0, &payload)
}

impl RawClient {
    pub(super) fn new(path: &Path) -> Self {
        Self { stream: UnixStream::connect(path).unwrap() }
    }

    /// One that has agreed on a version; `None` when it was turned away.
    pub(super) fn connected(path: &Path) -> Option<Self> {
        let mut client = Self::new(path);
        client.stream.write_all(&version_message()).ok()?;
        client.receive_or_end()?.unwrap();
        Some(client)
    }

    pub(super) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let slices = [IoSlice::new(bytes)];
        let flags = SendFlags::NOSIGNAL;
        let sent = rustix::net::sendmsg(&self.stream, &slices, &mut ancillary, flags).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// Sends a command and takes its answer.
    pub(super) fn call(&mut self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> Answer {
        let mut payload = Vec::new();
        request.emit(&mut payload);
        self.call_raw(request.command(), &payload, fds)
    }

    pub(super) fn call_raw(
        &mut self,
        command: Command,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Answer {
        self.send(&message(command, 0, payload), fds);
        self.receive_or_end().expect("the connection ended instead of an answer")
    }

    /// The next answer, or `None` at the end of the stream.
    pub(super) fn receive_or_end(&mut self) -> Option<Answer> {
        let mut header = [0; HEADER_SIZE];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut header)];
        let received = rustix::net::recvmsg(
            self.stream.as_fd(),
            &mut slices,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
        )
        .ok()?;
        if received.bytes < HEADER_SIZE {
            return None;
        }
        let fds = ancillary
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        let header = Header::read_from_bytes(&header).unwrap();
        assert_eq!((header.message_id, header.flags & !Header::ERROR), (7, Header::TYPE_REPLY));
        let mut payload = vec![0; header.payload_size().unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        if header.flags & Header::ERROR != 0 {
            assert!(payload.is_empty());
            return Some(Err(Errno(header.error)));
        }
        Some(Ok((payload, fds)))
    }

    /// Whether the server ends the connection, answering nothing more than errors.
    pub(super) fn ends(mut self) -> bool {
        while let Some(answer) = self.receive_or_end() {
            if answer.is_ok() {
                return false;
            }
        }
        true
    }
}
