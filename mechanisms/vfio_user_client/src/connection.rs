//! Framing: commands out, replies in, descriptors beside both, each wait with a deadline.
//!
//! The stream stays in step whatever happens: a reply that comes after its command was given up is
//! recognized by its id and discarded, a reply read in part is finished later, and a command of the
//! server's is refused.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
};
use vfio_user_protocol::{Command, HEADER_SIZE, Header, MessageType};
use zerocopy::{FromBytes, IntoBytes};

use crate::{ClientError, Result};

/// Descriptors that one message carries at most.
pub(crate) const MAX_FDS: usize = 16;
/// Bytes of a reply at most; larger ones are a broken server's.
pub(crate) const MAX_REPLY: usize = 1 << 20;

/// A reply: its payload and the descriptors that came with it.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A connection to a vfio-user server.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    limit: Duration,
    next_id: u16,
    /// The message being read: header and payload so far.
    incoming: Vec<u8>,
    incoming_fds: Vec<OwnedFd>,
    /// The server is gone, or the stream cannot be trusted any more.
    gone: bool,
}

impl Connection {
    pub(crate) fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let failed =
            |errno: Errno| ClientError::Connect { socket: path.into(), source: errno.into() };
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(failed)?;
        Ok(Self::over(socket, limit))
    }

    /// A connection over a connected socket.
    pub(crate) fn over(socket: OwnedFd, limit: Duration) -> Self {
        Self {
            socket,
            limit,
            next_id: 0,
            incoming: Vec::new(),
            incoming_fds: Vec::new(),
            gone: false,
        }
    }

    /// Whether the server is known to be gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    #[cfg(test)]
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a command and waits for its reply.
    pub(crate) fn call(
        &mut self,
        command: Command,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply> {
        let deadline = Instant::now() + self.limit;
        let id = self.send(command, 0, payload, fds, deadline)?;
        loop {
            let Some((header, reply)) = self.next_message(deadline)? else {
                return Err(ClientError::TimedOut {
                    what: "the reply of the vfio-user server",
                    limit: self.limit,
                });
            };
            // An earlier command that was given up, or wanted no reply.
            if header.message_id != id {
                continue;
            }
            let name = name(command);
            if header.command != u16::from(command) {
                return Err(ClientError::Protocol {
                    command: name,
                    problem: format!("it answers command {}", header.command),
                });
            }
            if header.flags & Header::ERROR != 0 {
                let errno = i32::try_from(header.error).unwrap_or(0);
                return Err(ClientError::Refused {
                    command: name,
                    source: std::io::Error::from_raw_os_error(errno),
                });
            }
            return Ok(reply);
        }
    }

    /// Sends a command that wants no reply.
    pub(crate) fn post(&mut self, command: Command, payload: &[u8]) -> Result<()> {
        let deadline = Instant::now() + self.limit;
        self.send(command, Header::NO_REPLY, payload, &[], deadline).map(|_| ())
    }

    /// Takes what lies ready on the socket: late replies, and the news that the server is gone.
    pub(crate) fn check(&mut self) -> Result<()> {
        let now = Instant::now();
        while self.next_message(now)?.is_some() {}
        Ok(())
    }

    fn send(
        &mut self,
        command: Command,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<u16> {
        if self.gone {
            return Err(ClientError::Gone);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut header = Header::command(id, command, payload.len()).map_err(|error| {
            ClientError::Protocol { command: name(command), problem: error.to_string() }
        })?;
        header.flags |= flags;
        let header = header.as_bytes();
        let total = header.len() + payload.len();
        let mut sent = 0;
        while sent < total {
            let head = header.get(sent..).unwrap_or_default();
            let body = payload.get(sent.saturating_sub(header.len())..).unwrap_or_default();
            // Descriptors go with the first byte.
            let fds = if sent == 0 { fds } else { &[] };
            match send_some(&self.socket, head, body, fds) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::OUT, deadline)? {
                        // A command sent in part cannot be taken back.
                        self.gone |= sent > 0;
                        return Err(ClientError::TimedOut {
                            what: "the vfio-user server taking a command",
                            limit: self.limit,
                        });
                    }
                }
                Err(errno) => return Err(self.failed("sending to the vfio-user server", errno)),
            }
        }
        Ok(id)
    }

    /// The next reply; `None` when the deadline passed.
    fn next_message(&mut self, deadline: Instant) -> Result<Option<(Header, Reply)>> {
        loop {
            let Some((header, reply)) = self.read_message(deadline)? else { return Ok(None) };
            match header.message_type() {
                Ok(MessageType::Reply) => return Ok(Some((header, reply))),
                // All memory is shared by descriptor, so no server needs to ask for its bytes.
                Ok(MessageType::Command) if !header.no_reply() => self.refuse(&header, deadline)?,
                Ok(MessageType::Command) => {}
                Err(error) => return Err(self.broken("a command", error.to_string())),
            }
        }
    }

    fn refuse(&mut self, header: &Header, deadline: Instant) -> Result<()> {
        let reply = header.error_reply(vfio_user_protocol::Errno::OPNOTSUPP);
        let mut rest = reply.as_bytes();
        while !rest.is_empty() {
            match send_some(&self.socket, rest, &[], &[]) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.wait(PollFlags::OUT, deadline)? => {}
                Err(errno) => return Err(self.failed("answering the vfio-user server", errno)),
            }
        }
        Ok(())
    }

    /// Reads one whole message; what was read of it stays when the deadline passes.
    fn read_message(&mut self, deadline: Instant) -> Result<Option<(Header, Reply)>> {
        if self.gone {
            return Err(ClientError::Gone);
        }
        loop {
            // The header alone first: descriptors come with it.
            let have = self.incoming.len();
            let missing = match Header::read_from_prefix(&self.incoming) {
                Err(_) => HEADER_SIZE - have,
                Ok((header, _)) => match header.payload_size() {
                    Ok(size) if size > MAX_REPLY => {
                        return Err(self.broken("a command", format!("it has {size} bytes")));
                    }
                    Ok(size) if HEADER_SIZE + size == have => {
                        let mut payload = std::mem::take(&mut self.incoming);
                        payload.drain(..HEADER_SIZE);
                        let fds = std::mem::take(&mut self.incoming_fds);
                        return Ok(Some((header, Reply { payload, fds })));
                    }
                    Ok(size) => HEADER_SIZE + size - have,
                    Err(error) => return Err(self.broken("a command", error.to_string())),
                },
            };
            match self.receive_some(missing) {
                Ok(0) => {
                    self.gone = true;
                    return Err(ClientError::Gone);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::IN, deadline)? {
                        return Ok(None);
                    }
                }
                Err(errno) => return Err(self.failed("reading from the vfio-user server", errno)),
            }
        }
    }

    /// Appends up to `wanted` bytes to the incoming message; 0 means that the server closed the
    /// connection.
    fn receive_some(&mut self, wanted: usize) -> Result<usize, Errno> {
        let mut chunk = [0u8; 4096];
        let room = wanted.min(chunk.len());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = chunk.get_mut(..room).unwrap_or_default();
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(into)],
            &mut ancillary,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // More than any reply has are closed at once.
                let free = MAX_FDS.saturating_sub(self.incoming_fds.len());
                self.incoming_fds.extend(fds.take(free));
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            tracing::warn!("descriptors from the vfio-user server were lost");
        }
        self.incoming.extend_from_slice(chunk.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes)
    }

    /// Waits for the socket; `false` when the deadline passed.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut set = [PollFd::new(&self.socket, flags)];
            match rustix::event::poll(&mut set, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(ClientError::Io {
                        operation: "waiting for the vfio-user server",
                        source: errno.into(),
                    });
                }
            }
        }
    }

    fn failed(&mut self, operation: &'static str, errno: Errno) -> ClientError {
        if matches!(errno, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) {
            self.gone = true;
            return ClientError::Gone;
        }
        ClientError::Io { operation, source: errno.into() }
    }

    /// The stream is out of step: nothing on it means anything any more.
    fn broken(&mut self, command: &'static str, problem: String) -> ClientError {
        self.gone = true;
        ClientError::Protocol { command, problem }
    }
}

fn send_some(
    socket: &OwnedFd,
    head: &[u8],
    body: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(head), IoSlice::new(body)],
        &mut ancillary,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )
}

/// The command's name as the specification writes it.
pub(crate) fn name(command: Command) -> &'static str {
    match command {
        Command::Version => "VERSION",
        Command::DmaMap => "DMA_MAP",
        Command::DmaUnmap => "DMA_UNMAP",
        Command::DeviceGetInfo => "DEVICE_GET_INFO",
        Command::DeviceGetRegionInfo => "DEVICE_GET_REGION_INFO",
        Command::DeviceGetIrqInfo => "DEVICE_GET_IRQ_INFO",
        Command::DeviceSetIrqs => "DEVICE_SET_IRQS",
        Command::RegionRead => "REGION_READ",
        Command::RegionWrite => "REGION_WRITE",
        Command::DeviceReset => "DEVICE_RESET",
        _ => "a command",
    }
}
