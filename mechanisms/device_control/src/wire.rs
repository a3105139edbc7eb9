//! Whole messages over a stream socket, with their file descriptors.

use crate::error::ProtocolError;
use device_control_protocol::{HEADER_LENGTH, MAX_FDS, Message, MessageHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) message: Message,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why no further message can be read or written.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The other end has closed, perhaps in the middle of a message.
    Closed,
    /// The deadline has passed.
    TimedOut,
    /// The socket failed.
    Os(Errno),
    /// The other end broke the protocol.
    Protocol(ProtocolError),
}

impl From<Errno> for WireError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::BADF => Self::Closed,
            other => Self::Os(other),
        }
    }
}

impl From<ProtocolError> for WireError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// Waits until the socket is ready, the other end has hung up, or the deadline has passed.
pub(crate) fn wait_ready(
    socket: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Result<(), WireError> {
    loop {
        let left = match deadline {
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(WireError::TimedOut);
                }
                Some(timespec(left))
            }
        };
        let mut fds = [PollFd::new(&socket, events)];
        match poll(&mut fds, left.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Reads one message. `Ok(None)` if the other end has closed between messages. The payload is read only after the
/// header has been checked, so that no peer decides how much is allocated.
pub(crate) fn receive(
    socket: impl AsFd,
    deadline: Option<Instant>,
) -> Result<Option<Received>, WireError> {
    let socket = socket.as_fd();
    let mut header = [0; HEADER_LENGTH];
    let mut fds = Vec::new();
    if !fill(socket, &mut header, &mut fds, deadline)? {
        return Ok(None);
    }
    let header = MessageHeader::read_from_bytes(&header).map_err(|_| WireError::Closed)?;
    let message = Message::parse(&header).map_err(ProtocolError::from)?;
    let length = usize::try_from(message.payload_length()).map_err(|_| Errno::OVERFLOW)?;
    let mut payload = vec![0; length];
    // Descriptors travel with the header; any that come later are one too many.
    if length != 0 && !fill(socket, &mut payload, &mut fds, deadline)? {
        return Err(WireError::Closed);
    }
    let expected = message.fd_count();
    if fds.len() != usize::from(expected) {
        return Err(ProtocolError::Fds { expected, found: fds.len() }.into());
    }
    Ok(Some(Received { message, payload, fds }))
}

/// Fills the whole buffer. `Ok(false)` if the other end has closed before the first byte.
fn fill(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    deadline: Option<Instant>,
) -> Result<bool, WireError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS as usize))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(socket, &mut [IoSliceMut::new(rest)], &mut control, flags) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                wait_ready(socket, PollFlags::IN, deadline)?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let came = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(came) => Some(came),
            _ => None,
        });
        fds.extend(came.flatten());
        // The kernel has closed those for which there was no room.
        if fds.len() > usize::from(MAX_FDS) || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ProtocolError::Fds { expected: MAX_FDS, found: fds.len() + 1 }.into());
        }
        if received.bytes == 0 {
            return if filled == 0 { Ok(false) } else { Err(WireError::Closed) };
        }
        filled += received.bytes;
    }
    Ok(true)
}

/// Writes one message. After an error the stream is broken in the middle, and must be closed.
pub(crate) fn send(
    socket: impl AsFd,
    message: &Message,
    payload: &[u8],
    fds: &[OwnedFd],
    deadline: Option<Instant>,
) -> Result<(), WireError> {
    let socket = socket.as_fd();
    let header = message.header();
    let header = header.as_bytes();
    let total = header.len() + payload.len();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut sent = 0;
    while sent < total {
        let head = header.get(sent..).unwrap_or_default();
        let tail = payload.get(sent.saturating_sub(header.len())..).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS as usize))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(WireError::Os(Errno::TOOBIG));
        }
        let parts = [IoSlice::new(head), IoSlice::new(tail)];
        match sendmsg(socket, &parts, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(bytes) => sent += bytes,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_ready(socket, PollFlags::OUT, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
