//! How the two ends of a cable find each other at a socket's path, in whatever order they start.
//!
//! Who holds the lock on `PATH.lock` listens at `PATH`; the other end connects to it. When the listener
//! dies, its lock dies with it, and whoever takes the lock next listens. So both ends run the same code,
//! a socket left behind by a dead process is replaced, and two ends can never both listen.

use std::{
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::FlockOperation,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ring::RING;

/// First bytes of a greeting: "CLWCABLE".
const MAGIC: [u8; 8] = *b"CLWCABLE";
const VERSION: u32 = 1;
/// What one end sends to wake the other.
const WAKE: [u8; 1] = [1];

/// What each end says first; the memory of the ring that it sends into goes along.
#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Greeting {
    magic: [u8; 8],
    version: u32,
    /// Bytes of records in the ring.
    ring: u32,
    /// Bytes of the longest frame that the sender of the greeting takes.
    max_frame: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Greeting>() == 24);

/// What the other end said of itself.
#[derive(Debug)]
pub(super) struct PeerGreeting {
    /// Bytes of the longest frame that it takes.
    pub(super) max_frame: u32,
    /// The ring that it sends into.
    pub(super) ring: OwnedFd,
}

/// What came over a connection.
#[derive(Debug)]
pub(super) enum Message {
    /// Nothing now.
    None,
    /// The other end asked to be looked at.
    Wake,
    /// The other end's greeting.
    Greeting(PeerGreeting),
    /// The other end is gone.
    Closed,
    /// The other end speaks another language.
    Nonsense(&'static str),
}

/// A place at which two ends meet.
#[derive(Debug)]
pub(super) struct Meeting {
    path: PathBuf,
    listener: Option<Listener>,
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    lock_path: PathBuf,
    /// Held for as long as the listener lives.
    _lock: File,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Under the lock, so that nobody else's socket is removed.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

impl Meeting {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), listener: None }
    }

    /// The listening socket, if this end listens.
    pub(super) fn listener(&self) -> Option<impl AsFd> {
        self.listener.as_ref().map(|listener| listener.socket.as_fd())
    }

    /// Tries once to get a connection to the other end; `None` if it is not there.
    pub(super) fn try_meet(&mut self) -> io::Result<Option<OwnedFd>> {
        if self.listener.is_none() {
            match lock(&self.path)? {
                Some((lock, lock_path)) => {
                    self.listener = Some(listen(&self.path, lock, lock_path)?)
                }
                None => return connect(&self.path),
            }
        }
        self.accept()
    }

    /// Accepts a waiting connection, if this end listens.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let Some(listener) = &self.listener else {
            return Ok(None);
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&listener.socket, flags) {
            Ok(connection) => Ok(Some(connection)),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes the lock beside the socket; `None` if the other end has it.
fn lock(socket: &Path) -> io::Result<Option<(File, PathBuf)>> {
    let mut path = socket.to_owned().into_os_string();
    path.push(".lock");
    let path = PathBuf::from(path);
    // An existing file need not be writable for this user to be locked.
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            File::options().create(true).truncate(false).write(true).open(&path)?
        }
        result => result?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // A listener that just ended may have removed the file that was locked.
    let (locked, named) = (file.metadata()?, fs::metadata(&path));
    let same = named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino()));
    Ok(same.then_some((file, path)))
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn listen(path: &Path, lock: File, lock_path: PathBuf) -> io::Result<Listener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = new_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(Listener { socket, path: path.to_owned(), lock_path, _lock: lock })
}

fn connect(path: &Path) -> io::Result<Option<OwnedFd>> {
    let socket = new_socket()?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(Some(socket)),
        // Not listening yet, or no longer, or busy.
        Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends this end's greeting with its ring.
pub(super) fn greet(connection: &OwnedFd, max_frame: usize, ring: &OwnedFd) -> io::Result<()> {
    let greeting = Greeting {
        magic: MAGIC,
        version: VERSION,
        ring: RING,
        max_frame: u32::try_from(max_frame).unwrap_or(u32::MAX),
        reserved: 0,
    };
    let fds = [ring.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let data = [IoSlice::new(greeting.as_bytes())];
    rustix::net::sendmsg(
        connection,
        &data,
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(())
}

/// Wakes the other end. If its queue is full it is awake; if it is gone, that shows on receiving.
pub(super) fn wake(connection: &OwnedFd) {
    let _ = rustix::net::send(connection, &WAKE, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Takes the next message off a connection.
pub(super) fn receive(connection: &OwnedFd) -> Message {
    let mut bytes = [0; size_of::<Greeting>() + 1];
    // One descriptor more than belongs to any message, so that too many show.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let length = match rustix::net::recvmsg(connection, &mut parts, &mut control, flags) {
        Ok(received) => received.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Message::None,
        Err(_) => return Message::Closed,
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    match bytes.get(..length) {
        None | Some([]) => Message::Closed,
        Some(bytes) if *bytes == WAKE => Message::Wake,
        Some(bytes) => read_greeting(bytes, fds),
    }
}

fn read_greeting(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Message {
    let Ok(greeting) = Greeting::read_from_bytes(bytes) else {
        return Message::Nonsense("sent a message that is no greeting");
    };
    if greeting.magic != MAGIC {
        return Message::Nonsense("is not an end of a cable");
    }
    if greeting.version != VERSION || greeting.ring != RING {
        return Message::Nonsense("speaks another version of the cable's protocol");
    }
    match (fds.pop(), fds.is_empty()) {
        (Some(ring), true) => {
            Message::Greeting(PeerGreeting { max_frame: greeting.max_frame, ring })
        }
        _ => Message::Nonsense("greeted without the memory of its ring"),
    }
}
