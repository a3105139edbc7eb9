//! Messages between a VM's process and those who started it or talk to it.
//!
//! One JSON value per packet of a SOCK_SEQPACKET socket, with descriptors beside it where needed. Both ends are
//! this program run by the same user; lengths are bounded all the same.

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ProgramExit, StartFailure, UserVmConfig, VmStatistics};

/// Bytes of the longest message: a command with its environment. What the kernel takes in one packet by
/// default is a little more.
const MAX_MESSAGE: usize = 192 << 10;
/// Descriptors beside one message, at most: a listener, or standard input, output and error.
const MAX_FDS: usize = 3;

/// What is asked of a VM's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// From the launcher's parent, first of all: what VM to be. Beside it are the partition's guest end, if the VM is
    /// on VMBus, then the control socket's listener, if there is one.
    Start(Box<UserVmConfig>),
    /// From the launcher's parent: another connection, which is beside the message.
    Adopt,
    /// Run a program, with its standard input, output and error beside the message.
    Run(ProgramRequest),
    /// Send a signal to this connection's program.
    Signal(i32),
    /// Tell what was counted.
    Statistics,
    /// Bring the VF's driver up or down, as `ip link set` does with a VF's interface: the adapter's data path moves.
    /// Answered once it has.
    SetVf {
        /// Which adapter, from 0; all if `None`.
        adapter: Option<u32>,
        /// Up or down.
        up: bool,
    },
    /// End the VM.
    Shutdown,
}

/// A program to run in a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProgramRequest {
    /// Program and arguments.
    pub(crate) command: Vec<std::ffi::OsString>,
    /// All of its environment.
    pub(crate) environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// Where it starts; the root if that cannot be entered.
    pub(crate) directory: std::path::PathBuf,
    /// How it is set apart from other programs.
    pub(crate) grouping: Grouping,
}

/// Which session and process group a program is in.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Grouping {
    /// Those of whoever started the VM, so that its terminal is the program's.
    Caller,
    /// A process group of its own.
    Group,
    /// A session of its own, whose terminal is the program's standard input.
    Session,
}

/// What a VM's process answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// From the launcher: the VM's process was started, and has this process id outside the VM.
    Launched(u32),
    /// The VM runs; `eth0` is there.
    Ready,
    /// The VM could not be started.
    Failed(StartFailure),
    /// The program runs, with this process id within the VM.
    Started(i32),
    /// The program could not be run: an error number of the system, or none.
    NotStarted(Option<i32>),
    /// The program ended.
    Ended(ProgramExit),
    /// What was counted.
    Statistics(Box<VmStatistics>),
    /// The data path of all adapters that were asked for is where it should be; false if some adapter has no VF that
    /// could be used.
    VfSet(bool),
    /// To the launcher's parent: the VF is gone, and the VM ends for it.
    VfLost(String),
    /// To the launcher's parent: the VM cannot go on.
    Broken(String),
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What came over a channel.
#[derive(Debug)]
pub(crate) enum Received<T> {
    /// A message, with the descriptors beside it.
    Message(T, Vec<OwnedFd>),
    /// Nothing within the time.
    Nothing,
    /// The other end is closed.
    Closed,
}

impl Channel {
    /// A connection between two ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (left, right) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(left), Self(right)))
    }

    /// An end that came from elsewhere.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends a message; waits for room if the other end is slow.
    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(message, fds, SendFlags::NOSIGNAL)
    }

    /// Sends a message; an error if there is no room for it.
    pub(crate) fn try_send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        self.send_with(message, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send_with<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            let problem = "command and environment are too long";
            return Err(io::Error::new(ErrorKind::InvalidInput, problem));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ErrorKind::InvalidInput.into());
        }
        loop {
            match rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the next message, waiting for it until `deadline` (`None`: for as long as it takes).
    pub(crate) fn receive<T: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<Received<T>> {
        loop {
            match self.try_receive()? {
                Received::Nothing => {}
                received => return Ok(received),
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(Received::Nothing);
            }
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the next message, if there is one.
    pub(crate) fn try_receive<T: DeserializeOwned>(&self) -> io::Result<Received<T>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut received = rustix::net::recvmsg(&self.0, &mut parts, &mut control, flags);
        if let Err(Errno::CONNRESET) = received {
            // The peer closed without reading all it was sent. The kernel says so once, ahead of what the peer
            // itself had sent before.
            received = rustix::net::recvmsg(&self.0, &mut parts, &mut control, flags);
        }
        let length = match received {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(error) => return Err(error.into()),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        match bytes.get(..length) {
            None | Some([]) => Ok(Received::Closed),
            Some(bytes) => Ok(Received::Message(serde_json::from_slice(bytes)?, fds)),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cross_with_their_descriptors() {
        let (left, right) = Channel::pair().unwrap();
        left.send(&Request::Signal(15), &[left.as_fd(), right.as_fd()]).unwrap();
        let Received::Message(Request::Signal(15), fds) = right.receive(None).unwrap() else {
            panic!("another message came");
        };
        assert_eq!(fds.len(), 2);
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(matches!(right.receive::<Request>(Some(soon)).unwrap(), Received::Nothing));
        drop((left, fds));
        assert!(matches!(right.receive::<Request>(None).unwrap(), Received::Closed));
    }

    #[test]
    fn what_is_no_message_is_an_error_and_what_is_too_long_is_not_sent() {
        let (left, right) = Channel::pair().unwrap();
        left.send(&"hello", &[]).unwrap();
        assert!(right.try_receive::<Request>().is_err());
        let long = "x".repeat(MAX_MESSAGE);
        assert_eq!(left.send(&long, &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(matches!(right.try_receive::<Request>().unwrap(), Received::Nothing));
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_heard() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(&Request::Statistics, &[]).unwrap();
        theirs.send(&Reply::Ready, &[]).unwrap();
        drop(theirs);
        let deadline = Some(Instant::now() + Duration::from_secs(5));
        let heard = ours.receive::<Reply>(deadline).unwrap();
        assert!(matches!(heard, Received::Message(Reply::Ready, _)));
        assert!(matches!(ours.receive::<Reply>(deadline).unwrap(), Received::Closed));
    }
}
