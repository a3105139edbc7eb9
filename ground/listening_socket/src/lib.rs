//! A listening Unix socket at a path, of whatever type.
//!
//! * It appears at its path when it listens, in one step and with mode 0600: who waits for the path to exist can
//!   connect. Until then it has a short name of its own beside it, beginning with a dot; that is the name which
//!   `ss` and `/proc/net/unix` go on showing.
//! * What a process that died has left at the path is replaced. A socket that is served, and a file that is no socket,
//!   stay.
//! * Of several instances that start at once, over a dead socket or none, one wins.
//! * The path goes when its owner drops it, if it still is this socket, known by device and inode.
//!
//! Taking a path that is free needs no lock: the rename that does it never replaces. Replacing a dead socket, and
//! removing one that may be dead, are done under a lock (flock) on the directory, held for just that. So no lock file
//! lies about, neither while the socket is served nor after a crash. Whether a socket is dead is asked of the kernel,
//! by connecting, so servers that know nothing of all this are respected too.
//!
//! It refuses to know what is spoken over the socket.
//!
//! Layer: ground (ARCHITECTURE.md).

mod error;

pub use error::ListenError;

use std::{
    fs::DirBuilder,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tempfile::{NamedTempFile, TempPath};

/// How long to wait for others who start in the same directory. They hold its lock for some system calls.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// The same when a path is removed, which is done without the lock in the end.
const REMOVAL_PATIENCE: Duration = Duration::from_millis(100);
/// Bytes of a path in a socket address that every program can have, with the NUL at its end not counted.
const MAX_PATH: usize = 107;
/// Random characters in the name that a socket has before it listens.
const NAME_LENGTH: usize = 5;

/// A socket that listens at a path, non-blocking and close-on-exec. Dropping it removes the path, and then closes it.
#[derive(Debug)]
pub struct ListeningSocket {
    // Dropped first: a path that is still there is served.
    path: SocketPath,
    socket: OwnedFd,
}

impl ListeningSocket {
    /// Listens at `path` with a socket of this type (stream or sequenced packets), which only its owner may connect
    /// to; `backlog` connections may wait. Directories that are missing are made for their owner alone (0700).
    ///
    /// # Errors
    /// [`ListenError`]. Nothing is left behind but, perhaps, directories.
    pub fn bind(path: &Path, kind: SocketType, backlog: i32) -> Result<Self, ListenError> {
        let os = |action| os_error(action, path);
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            return Err(ListenError::PathTooLong { path: path.into(), length });
        }
        let address = SocketAddrUnix::new(path).map_err(errno(os("using the socket path")))?;
        let directory = directory_of(path);
        prepare_directory(directory)?;
        // Whatever fails from here on, its name beside the path is removed.
        let (socket, beside) =
            bind_beside(path, kind).map_err(os("making a socket beside"))?.into_parts();
        rustix::net::listen(&socket, backlog).map_err(errno(os("listening for")))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inode =
            rustix::fs::open(&*beside, flags, Mode::empty()).map_err(errno(os("opening")))?;
        if let Some(beside) = place(beside, path)? {
            let _lock = lock(directory, START_PATIENCE)?;
            if is_dead(path, &address, kind)? {
                tracing::info!(path = %path.display(), "replacing the socket of a process that is gone");
                beside.persist(path).map_err(|failed| os("replacing")(failed.error))?;
            } else if place(beside, path)?.is_some() {
                // What was there went, and somebody else came, who listens.
                return Err(ListenError::InUse { path: path.into() });
            }
        }
        Ok(Self { path: SocketPath { path: path.into(), inode }, socket })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.path.path()
    }

    /// A connection, non-blocking and close-on-exec; `None` if there is none after all.
    ///
    /// # Errors
    /// The process is out of descriptors or memory; whoever wants to connect goes on waiting.
    pub fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.socket, flags) {
            Ok(connection) => Ok(Some(connection)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The socket by itself, for a thread or a process that serves it, and the path for whoever removes it.
    pub fn into_parts(self) -> (OwnedFd, SocketPath) {
        (self.socket, self.path)
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The path of a socket that listens, or did. Dropping it removes the path, if it still is that socket.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// The socket's inode, held open so that its number cannot come to mean another.
    inode: OwnedFd,
}

impl SocketPath {
    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // Out of descriptors, say, it is removed without the lock: nobody replaces a path that is served, and as a
        // rule this one still is.
        let _lock = lock(directory_of(&self.path), REMOVAL_PATIENCE);
        if let (Ok(Some(found)), Ok(ours)) = (stat(&self.path), rustix::fs::fstat(&self.inode))
            && (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
            && let Err(error) = rustix::fs::unlink(&self.path)
        {
            // The next instance replaces it.
            tracing::warn!(path = %self.path.display(), %error, "a socket cannot be removed");
        }
    }
}

fn os_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ListenError + use<> {
    let path = path.to_owned();
    move |source| ListenError::Os { action, path, source }
}

fn errno(error: impl FnOnce(io::Error) -> ListenError) -> impl FnOnce(Errno) -> ListenError {
    move |errno| error(errno.into())
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the socket's directory, for its owner alone, or checks that nobody else can put a socket of theirs into it.
fn prepare_directory(directory: &Path) -> Result<(), ListenError> {
    let os = |action| os_error(action, directory);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(os("making the directory"))?;
    let found = rustix::fs::stat(directory).map_err(errno(os("looking at the directory")))?;
    let mode = Mode::from_raw_mode(found.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX) {
        return Err(ListenError::UnsafeDirectory { path: directory.into() });
    }
    Ok(())
}

fn new_socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)
}

/// A socket with a name in the same directory, which is no longer than the path's, so that it is an address too.
fn bind_beside(path: &Path, kind: SocketType) -> io::Result<NamedTempFile<OwnedFd>> {
    let directory = directory_of(path);
    let length = path.file_name().map_or(0, |name| name.len().saturating_sub(1));
    tempfile::Builder::new()
        .prefix(".")
        .rand_bytes(length.clamp(1, NAME_LENGTH))
        // The name comes as an absolute path, which may be too long where a relative one is not.
        .make_in(directory, |name| {
            let address =
                SocketAddrUnix::new(directory.join(name.file_name().unwrap_or_default()))?;
            let socket = new_socket(kind)?;
            // On Linux the mode of the socket is that of its name, from the very moment that it appears.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            rustix::net::bind(&socket, &address)?;
            Ok(socket)
        })
}

/// Gives what has the name `beside` its path, or gives it back if something has the path.
fn place(beside: TempPath, path: &Path) -> Result<Option<TempPath>, ListenError> {
    match beside.persist_noclobber(path) {
        Ok(()) => Ok(None),
        Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => Ok(Some(failed.path)),
        Err(failed) => Err(os_error("putting a socket at", path)(failed.error)),
    }
}

fn stat(path: &Path) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there is a socket that nobody listens at; false if there is nothing any more. The lock is held.
fn is_dead(path: &Path, address: &SocketAddrUnix, kind: SocketType) -> Result<bool, ListenError> {
    let os = |action| os_error(action, path);
    let Some(found) = stat(path).map_err(errno(os("looking at")))? else {
        return Ok(false);
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(ListenError::NotASocket { path: path.into() });
    }
    let probe = new_socket(kind).map_err(errno(os("making a socket to probe")))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        // Accepted; the backlog of a live server is full; a live socket of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            Err(ListenError::InUse { path: path.into() })
        }
        Err(error) => Err(os("probing")(error.into())),
    }
}

/// Locks a directory against others who replace or remove sockets in it.
///
/// Anybody who may read the directory may lock it too, so nobody is waited for without limit.
fn lock(directory: &Path, patience: Duration) -> Result<OwnedFd, ListenError> {
    let os = |action| os_error(action, directory);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(errno(os("opening the directory")))?;
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(opened),
            Err(Errno::AGAIN) if Instant::now() >= deadline => {
                return Err(ListenError::Locked { path: directory.into() });
            }
            // There is no waiting for a lock with a limit.
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(os("locking the directory")(error.into())),
        }
    }
}

#[cfg(test)]
mod tests;
