//! The server's socket in the file system: taken over from a dead server, never from a live one, and removed at the end.
//!
//! A live server holds a lock on `<path>.lock`. The kernel drops it when the process dies, however it dies; so whoever
//! gets the lock knows that a socket it finds is stale. A foreign server that knows no lock is found by connecting.

use crate::error::ServerError;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, Stat, fchmod, flock, fstat, open, statat, unlink,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Connections the kernel holds for a server that is busy accepting.
const BACKLOG: i32 = 64;

/// A socket that listens at a path.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket at the path.
    identity: (u64, u64),
    /// Held as long as the socket is; dropped, and so released, last.
    lock: Lock,
}

impl Listener {
    pub(crate) fn bind(path: &Path) -> Result<Self, ServerError> {
        let os = |action| move |source| ServerError::Os { action, path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|error| match error {
            Errno::NAMETOOLONG => {
                ServerError::PathTooLong { path: path.to_owned(), length: path.as_os_str().len() }
            }
            source => os("using the socket path")(source),
        })?;
        prepare_directory(path)?;
        let lock = Lock::take(path)?;
        remove_stale(path, &address)?;

        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(os("making a socket for"))?;
        // Linux gives the path the mode that the socket has when it is bound, so it is never more open than this.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(os("restricting"))?;
        bind(&socket, &address).map_err(os("binding"))?;
        let identity = match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => identity_of(&stat),
            Err(error) => return Err(os("looking at")(error)),
        };
        // From here on the path is removed again if anything fails.
        let listener = Self { socket, path: path.to_owned(), identity, lock };
        listen(&listener.socket, BACKLOG).map_err(os("listening at"))?;
        Ok(listener)
    }

    pub(crate) const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// A connection, or `None` if there is none after all.
    pub(crate) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let still_ours = statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| identity_of(&stat) == self.identity);
        if still_ours && let Err(error) = unlink(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket cannot be removed");
        }
        self.lock.remove();
    }
}

fn identity_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Makes the socket's directory, for its owner alone, or checks that nobody else can put a socket of theirs into it.
fn prepare_directory(path: &Path) -> Result<(), ServerError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let os = |action| move |source| ServerError::Os { action, path: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        os("making the directory")(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    })?;
    let stat = statat(CWD, directory, AtFlags::empty()).map_err(os("looking at the directory"))?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX) {
        return Err(ServerError::UnsafeDirectory { path: directory.to_owned() });
    }
    Ok(())
}

/// Removes a socket that nobody listens at. The lock is held.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ServerError> {
    let os = |action| move |source| ServerError::Os { action, path: path.to_owned(), source };
    let stat = match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(os("looking at")(error)),
    };
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket() {
        return Err(ServerError::NotASocket { path: path.to_owned() });
    }
    let probe = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(os("making a socket for"))?;
    match connect(&probe, address) {
        // Accepted, or the backlog of a live server is full.
        Ok(()) | Err(Errno::AGAIN) => return Err(ServerError::InUse { path: path.to_owned() }),
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(os("probing")(error)),
    }
    tracing::info!(path = %path.display(), "replacing the socket of a server that is gone");
    match unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(os("removing the stale socket")(error)),
    }
}

/// The lock of a live server.
#[derive(Debug)]
struct Lock {
    _file: OwnedFd,
    path: PathBuf,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, ServerError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let os = |action| {
            let path = path.clone();
            move |source| ServerError::Os { action, path, source }
        };
        loop {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(os("opening"))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Err(ServerError::InUse { path: socket.to_owned() }),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(os("locking")(error)),
            }
            // A server that ended in between may have removed the file that was opened.
            let held = fstat(&file).map_err(os("looking at"))?;
            match statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if identity_of(&stat) == identity_of(&held) => {
                    return Ok(Self { _file: file, path });
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(os("looking at")(error)),
            }
        }
    }

    /// Removes the file, while the lock on it is held.
    fn remove(&self) {
        // One that cannot be removed does no harm: it is not locked any more.
        let _ = unlink(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn mode_of(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_socket_and_its_directory_are_for_the_owner_alone_and_go_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/clearway/nic0.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(mode_of(path.parent().unwrap()), 0o700);
        assert_eq!(mode_of(&path), 0o600);
        drop(UnixStream::connect(&path).unwrap());
        assert!(listener.accept().unwrap().is_some());
        assert!(listener.accept().unwrap().is_none());
        drop(listener);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_server_is_refused_and_the_first_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nic0.sock");
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ServerError::InUse { .. })));
        drop(UnixStream::connect(&path).unwrap());
        drop(listener);
        Listener::bind(&path).unwrap();
    }

    #[test]
    fn the_socket_of_a_dead_server_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nic0.sock");
        // Dropping std's listener leaves the path behind, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        std::fs::write(directory.path().join("nic0.sock.lock"), "").unwrap();
        assert!(UnixStream::connect(&path).is_err());
        let _listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_foreign_server_that_lives_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nic0.sock");
        let _foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ServerError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nic0.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ServerError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ServerError::NotASocket { .. })));
    }

    #[test]
    fn a_successor_s_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nic0.sock");
        let listener = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(listener);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        let error = Listener::bind(&open.join("nic0.sock")).unwrap_err();
        assert!(matches!(error, ServerError::UnsafeDirectory { .. }));
        // With the sticky bit others cannot replace what they do not own.
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o1777)).unwrap();
        Listener::bind(&open.join("nic0.sock")).unwrap();
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_with_its_length() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x".repeat(108));
        let error = Listener::bind(&path).unwrap_err();
        assert!(error.to_string().contains("Linux allows 107"), "{error}");
    }
}
