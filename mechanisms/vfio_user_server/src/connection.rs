//! One client's socket: messages cut out of the stream, answers written back.
//!
//! Everything is non-blocking; the caller waits. A client that does not take its answers gets no further
//! messages handled, so at most one message and one answer are held for it.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    io::Errno as OsError,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};
use vfio_user_protocol::{Errno, HEADER_SIZE, Header, MessageType};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    DisconnectReason, PciFunctionDevice,
    session::{Answer, Descriptors, MAX_MSG_FDS, MAX_PAYLOAD, Outcome, Refusal, Session},
};

/// Messages handled before the caller looks after its other descriptors.
const BURST: usize = 64;

/// Bytes by which the buffer of an arriving payload grows, so that memory is held for what has arrived, not for
/// what was announced. Buffers larger than this are given back after the message.
const GROWTH: usize = 65_536;

/// What the connection waits for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum WaitFor {
    /// Bytes to read.
    Readable,
    /// Room to write.
    Writable,
    /// Nothing: there may be more to do at once.
    Nothing,
}

/// A line for the log about a refused request.
pub(crate) struct RefusalNote {
    pub(crate) command: u16,
    pub(crate) errno: Errno,
    pub(crate) reason: String,
}

/// One client's connection.
pub(crate) struct Connection<D: ?Sized> {
    socket: OwnedFd,
    session: Session<D>,
    arriving: Arriving,
    leaving: Leaving,
}

/// A message that is being received.
#[derive(Default)]
struct Arriving {
    header: [u8; HEADER_SIZE],
    header_bytes: usize,
    payload: Vec<u8>,
    descriptors: Descriptors,
}

/// An answer that is being sent.
#[derive(Default)]
struct Leaving {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<Arc<OwnedFd>>,
}

impl<D: PciFunctionDevice + ?Sized> Connection<D> {
    pub(crate) fn new(socket: OwnedFd, session: Session<D>) -> Result<Self, OsError> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket, session, arriving: Arriving::default(), leaving: Leaving::default() })
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether a version is agreed on.
    pub(crate) fn is_active(&self) -> bool {
        self.session.is_active()
    }

    /// Does what can be done without waiting. `note` hears of refused requests. Returns as soon as a version is
    /// agreed on, before the client hears so: it is then connected to whoever asks it or us.
    pub(crate) fn advance(
        &mut self,
        note: &mut dyn FnMut(RefusalNote),
    ) -> Result<WaitFor, DisconnectReason> {
        for _ in 0..BURST {
            if !self.leaving.flush(&self.socket)? {
                return Ok(WaitFor::Writable);
            }
            let Some((header, payload, descriptors)) = self.arriving.receive(&self.socket)? else {
                return Ok(WaitFor::Readable);
            };
            let was_active = self.is_active();
            let result = self.respond(&header, &payload, descriptors, note);
            self.arriving.recycle(payload);
            result?;
            if !was_active && self.is_active() {
                break;
            }
        }
        Ok(WaitFor::Nothing)
    }

    fn respond(
        &mut self,
        header: &Header,
        payload: &[u8],
        descriptors: Descriptors,
        note: &mut dyn FnMut(RefusalNote),
    ) -> Result<(), DisconnectReason> {
        match header.message_type()? {
            MessageType::Command => {}
            MessageType::Reply => return Err(DisconnectReason::UnexpectedReply),
        }
        let out = self.leaving.begin();
        let outcome = self.session.handle(header, payload, descriptors, out);
        let wants_reply = !header.no_reply();
        match outcome {
            Outcome::Done(answer) if wants_reply => self.leaving.complete(header, answer)?,
            Outcome::Done(_) => self.leaving.clear(),
            Outcome::Refused(Refusal { errno, reason }) => {
                if let Some(reason) = reason {
                    note(RefusalNote { command: header.command, errno, reason });
                }
                self.leaving.clear();
                if wants_reply {
                    self.leaving.refuse(header, errno);
                }
            }
            Outcome::Fatal(errno, reason) => {
                self.leaving.refuse(header, errno);
                // As much as fits at once; the connection ends anyway.
                let _ = self.leaving.flush(&self.socket);
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Takes everything of the client's away from the device. The socket closes when `self` drops, which should
    /// be afterwards: a client that sees the end may connect again at once.
    pub(crate) fn end(&mut self) {
        self.session.end();
    }
}

type Message = (Header, Vec<u8>, Descriptors);

impl Arriving {
    /// Reads on. `None` when there is nothing more to read now.
    ///
    /// The header is read alone: descriptors come with the first byte of the message they were sent with, and
    /// a read that went on into the next message would mix them up.
    fn receive(&mut self, socket: &OwnedFd) -> Result<Option<Message>, DisconnectReason> {
        while let Some(rest) = self.header.get_mut(self.header_bytes..).filter(|r| !r.is_empty()) {
            let Some(count) = receive_some(socket, rest, &mut self.descriptors)? else {
                return Ok(None);
            };
            if count == 0 && self.header_bytes == 0 {
                return Err(DisconnectReason::ClientClosed);
            }
            if count == 0 {
                return Err(DisconnectReason::Truncated);
            }
            self.header_bytes += count;
        }
        let header = Header::read_from_bytes(&self.header).unwrap_or_default();
        let size = header.payload_size()?;
        if size > MAX_PAYLOAD {
            return Err(DisconnectReason::TooLarge {
                size: header.message_size,
                limit: HEADER_SIZE + MAX_PAYLOAD,
            });
        }
        let mut have = self.payload.len();
        while have < size {
            self.payload.resize(size.min(have + GROWTH), 0);
            let rest = self.payload.get_mut(have..).unwrap_or_default();
            let count = receive_some(socket, rest, &mut self.descriptors);
            self.payload.truncate(have + count.as_ref().map_or(0, |count| count.unwrap_or(0)));
            match count? {
                None => return Ok(None),
                Some(0) => return Err(DisconnectReason::Truncated),
                Some(count) => have += count,
            }
        }
        self.header_bytes = 0;
        Ok(Some((header, std::mem::take(&mut self.payload), std::mem::take(&mut self.descriptors))))
    }

    /// Takes the buffer of a handled message back.
    fn recycle(&mut self, mut payload: Vec<u8>) {
        payload.clear();
        payload.shrink_to(GROWTH);
        self.payload = payload;
    }
}

impl Leaving {
    /// A buffer for the payload of an answer; room for the header is left before it.
    fn begin(&mut self) -> &mut Vec<u8> {
        self.clear();
        self.bytes.resize(HEADER_SIZE, 0);
        &mut self.bytes
    }

    fn complete(&mut self, command: &Header, answer: Answer) -> Result<(), DisconnectReason> {
        let header = command.reply(self.bytes.len() - HEADER_SIZE)?;
        if let Some(place) = self.bytes.get_mut(..HEADER_SIZE) {
            place.copy_from_slice(header.as_bytes());
        }
        self.fds = answer.fds;
        Ok(())
    }

    fn refuse(&mut self, command: &Header, errno: Errno) {
        self.clear();
        self.bytes.extend_from_slice(command.error_reply(errno).as_bytes());
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(GROWTH);
        self.sent = 0;
        self.fds.clear();
    }

    /// Sends on; whether everything has gone.
    fn flush(&mut self, socket: &OwnedFd) -> Result<bool, DisconnectReason> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(|fd| fd.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(socket, &[IoSlice::new(rest)], &mut ancillary, flags) {
                Ok(count) => {
                    self.sent += count;
                    // They went with the first byte.
                    self.fds.clear();
                }
                Err(OsError::AGAIN) => return Ok(false),
                Err(OsError::INTR) => {}
                Err(OsError::PIPE | OsError::CONNRESET) => {
                    return Err(DisconnectReason::ClientClosed);
                }
                Err(error) => return Err(DisconnectReason::Socket(error)),
            }
        }
        Ok(true)
    }
}

/// Reads into `buffer`, collecting descriptors. `None` when there is nothing now, 0 at the end of the stream.
fn receive_some(
    socket: &OwnedFd,
    buffer: &mut [u8],
    descriptors: &mut Descriptors,
) -> Result<Option<usize>, DisconnectReason> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
            Ok(received) => break received,
            Err(OsError::AGAIN) => return Ok(None),
            Err(OsError::INTR) => {}
            Err(OsError::CONNRESET) => return Err(DisconnectReason::ClientClosed),
            Err(error) => return Err(DisconnectReason::Socket(error)),
        }
    };
    // The kernel has closed what did not fit or could not be opened.
    descriptors.lost |= received.flags.contains(ReturnFlags::CTRUNC);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            for fd in fds {
                if descriptors.fds.len() < MAX_MSG_FDS {
                    descriptors.fds.push(fd);
                } else {
                    descriptors.lost = true;
                }
            }
        }
    }
    Ok(Some(received.bytes))
}
