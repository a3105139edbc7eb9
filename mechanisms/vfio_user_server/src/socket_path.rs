//! A listening Unix socket at a path: stale sockets, second instances, permissions, removal.

use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat},
    io::Errno as OsError,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::ServerError;

/// Connections that may wait; further ones are refused by the kernel.
const BACKLOG: i32 = 8;

/// A socket that listens at a path, which is removed when this drops, if it still is this socket.
#[derive(Debug)]
pub(crate) struct ListeningSocket {
    path: PathBuf,
    directory: PathBuf,
    /// The socket's inode, held open so that its number cannot come to mean another.
    inode: OwnedFd,
}

impl ListeningSocket {
    /// Binds and listens at `path`, which only its owner may connect to (mode 0600). Directories that are missing
    /// are made for their owner alone (0700). A socket there that nobody listens at any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<(Self, OwnedFd), ServerError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        make_directory(&directory)
            .map_err(|source| ServerError::Directory { path: directory.clone(), source })?;
        let address = SocketAddrUnix::new(path)
            .map_err(|_| ServerError::PathUnusable { path: path.to_path_buf() })?;
        // Two instances that start at once over one stale socket must not both win: looking, removing and
        // binding are done under a lock on the directory.
        let _lock = lock_directory(&directory)
            .map_err(|source| ServerError::Directory { path: directory.clone(), source })?;
        let os = |what| move |source| ServerError::Os { what, source };
        let socket = new_socket().map_err(os("creating a socket"))?;
        // On Linux the mode of the socket is that of the path, from the very moment it appears.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(os("setting permissions"))?;
        if let Some(found) = stat(path).map_err(os("looking at the path"))? {
            if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
                return Err(ServerError::NotASocket { path: path.to_path_buf() });
            }
            if is_served(&address).map_err(os("probing the path"))? {
                return Err(ServerError::InUse { path: path.to_path_buf() });
            }
            rustix::fs::unlink(path).map_err(os("removing a stale socket"))?;
        }
        rustix::net::bind(&socket, &address).map_err(|source| match source {
            OsError::ADDRINUSE => ServerError::InUse { path: path.to_path_buf() },
            source => ServerError::Os { what: "binding", source },
        })?;
        // From here on the path is ours: what fails (out of descriptors, say) must not leave it behind.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let listening = rustix::net::listen(&socket, BACKLOG).map_err(os("listening"));
        let inode = listening.and_then(|()| {
            rustix::fs::open(path, flags, Mode::empty()).map_err(os("opening the path"))
        });
        match inode {
            Ok(inode) => Ok((Self { path: path.to_path_buf(), directory, inode }, socket)),
            Err(error) => {
                let _ = rustix::fs::unlink(path);
                Err(error)
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        // Without a descriptor for the lock it is removed all the same: nobody replaces a path that is served, and
        // as a rule this one still is.
        let _lock = lock_directory(&self.directory);
        if let (Ok(Some(found)), Ok(ours)) = (stat(&self.path), rustix::fs::fstat(&self.inode))
            && (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
        {
            // If it cannot be removed, the next instance replaces it.
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn new_socket() -> Result<OwnedFd, OsError> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

fn stat(path: &Path) -> Result<Option<Stat>, OsError> {
    match rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(OsError::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether somebody listens at a socket.
fn is_served(address: &SocketAddrUnix) -> Result<bool, OsError> {
    match rustix::net::connect(&new_socket()?, address) {
        Ok(()) => Ok(true),
        // A full backlog.
        Err(OsError::AGAIN) => Ok(true),
        Err(OsError::CONNREFUSED) => Ok(false),
        Err(error) => Err(error),
    }
}

fn lock_directory(directory: &Path) -> Result<OwnedFd, OsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())?;
    rustix::fs::flock(&fd, FlockOperation::LockExclusive)?;
    Ok(fd)
}

fn make_directory(directory: &Path) -> Result<(), OsError> {
    match rustix::fs::mkdir(directory, Mode::RWXU) {
        Ok(()) | Err(OsError::EXIST) => Ok(()),
        Err(OsError::NOENT) => {
            let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
            make_directory(parent.ok_or(OsError::NOENT)?)?;
            match rustix::fs::mkdir(directory, Mode::RWXU) {
                Err(OsError::EXIST) => Ok(()),
                other => other,
            }
        }
        Err(error) if directory.as_os_str().as_bytes() == b"." => match error {
            OsError::ROFS | OsError::ACCESS => Ok(()),
            error => Err(error),
        },
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
    };

    use super::*;

    #[test]
    fn the_socket_and_its_directory_are_their_owners_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/vf0.sock");
        let (bound, _socket) = ListeningSocket::bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
        drop(bound);
        assert!(!path.exists());
    }

    /// A socket file that nobody listens at, as kill -9 leaves it.
    fn leave_stale(path: &Path) {
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("vf0.sock");
        leave_stale(&path);
        let (_first, _socket) = ListeningSocket::bind(&path).unwrap();
        assert!(matches!(ListeningSocket::bind(&path), Err(ServerError::InUse { .. })));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_not_ours_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("vf0.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ListeningSocket::bind(&path), Err(ServerError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        let (first, first_socket) = ListeningSocket::bind(&path).unwrap();
        drop(first_socket);
        let (_second, _second_socket) = ListeningSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the path belongs to the second instance now");
    }

    #[test]
    fn of_instances_started_at_once_over_a_stale_socket_one_wins() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("vf0.sock");
        leave_stale(&path);
        let start = std::sync::Barrier::new(4);
        let bound: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        ListeningSocket::bind(&path).ok()
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(bound.len(), 1);
    }

    #[test]
    fn a_path_that_cannot_be_a_socket_address_is_said_to_be() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x".repeat(120));
        assert!(matches!(ListeningSocket::bind(&path), Err(ServerError::PathUnusable { .. })));
    }
}
