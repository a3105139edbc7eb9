//! A process that runs out of descriptors. By itself in a program of its own, since all threads share them.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{fs, os::unix::net::UnixListener};

use listening_socket::ListeningSocket;
use rustix::{
    net::SocketType,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// How often binding fails before descriptors suffice, each time leaving nothing behind.
fn attempts(path: &std::path::Path, names: &[&str]) -> u64 {
    let usual = getrlimit(Resource::Nofile);
    let limit = |current| setrlimit(Resource::Nofile, Rlimit { current, ..usual }).unwrap();
    for more in 0.. {
        let first = rustix::io::dup(std::io::stdin()).unwrap();
        let free = std::os::fd::AsRawFd::as_raw_fd(&first);
        drop(first);
        limit(Some(u64::try_from(free).unwrap() + more));
        let bound = ListeningSocket::bind(path, SocketType::STREAM, 8);
        let bound = bound.map(|listening| {
            // Nor is a descriptor needed to remove the path.
            limit(Some(0));
            drop(listening);
        });
        limit(usual.current);
        let entries = fs::read_dir(path.parent().unwrap()).unwrap();
        let found: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        match bound {
            Ok(()) => {
                assert!(found.is_empty(), "{found:?}");
                return more;
            }
            Err(_) => assert_eq!(found, names),
        }
    }
    unreachable!()
}

#[test]
fn a_process_without_descriptors_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    // The socket, and its inode.
    assert_eq!(attempts(&path, &[]), 2);
    // And the lock on the directory, and a socket that asks whether the one there is dead.
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(attempts(&path, &["nic0.sock"]), 4);
}
