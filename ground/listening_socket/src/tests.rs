use std::{
    fs,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    sync::Barrier,
};

use super::*;

const KINDS: [SocketType; 2] = [SocketType::STREAM, SocketType::SEQPACKET];

fn bind(path: &Path) -> Result<ListeningSocket, ListenError> {
    ListeningSocket::bind(path, SocketType::STREAM, 8)
}

fn connect(path: &Path, kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket(AddressFamily::UNIX, kind, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A socket that nobody listens at, as a killed process leaves it.
fn leave_dead(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    assert_eq!(connect(path, SocketType::STREAM).unwrap_err(), Errno::CONNREFUSED);
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_socket_and_its_directory_are_for_the_owner_alone_and_go_away() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run/clearway/nic0.sock");
    let directory = path.parent().unwrap();
    for kind in KINDS {
        let listening = ListeningSocket::bind(&path, kind, 8).unwrap();
        assert_eq!(listening.path(), path);
        assert_eq!((mode_of(directory), mode_of(&path)), (0o700, 0o600));
        assert_eq!(names_in(directory), ["nic0.sock"]);
        let _client = connect(&path, kind).unwrap();
        assert!(listening.accept().unwrap().is_some());
        assert!(listening.accept().unwrap().is_none());
        drop(listening);
        assert_eq!(names_in(directory), [""; 0]);
    }
}

#[test]
fn whoever_sees_the_path_can_connect() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    for round in 0..100 {
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            let connected = scope.spawn(|| {
                start.wait();
                loop {
                    match connect(&path, SocketType::SEQPACKET) {
                        Err(Errno::NOENT) => {}
                        other => return other.map(drop),
                    }
                }
            });
            start.wait();
            let _listening = ListeningSocket::bind(&path, SocketType::SEQPACKET, 8).unwrap();
            assert_eq!(connected.join().unwrap(), Ok(()), "round {round}");
        });
    }
}

#[test]
fn a_second_server_is_refused_and_the_first_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    for kind in KINDS {
        let first = ListeningSocket::bind(&path, kind, 8).unwrap();
        // Of whatever type the second would be.
        for second in KINDS {
            let second = ListeningSocket::bind(&path, second, 8);
            assert!(matches!(second, Err(ListenError::InUse { .. })), "{second:?}");
        }
        connect(&path, kind).unwrap();
        assert_eq!(names_in(root.path()), ["nic0.sock"]);
        drop(first);
    }
    bind(&path).unwrap();
}

#[test]
fn a_server_whose_backlog_is_full_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    let first = ListeningSocket::bind(&path, SocketType::STREAM, 0).unwrap();
    let _waiting = connect(&path, SocketType::STREAM).unwrap();
    for _ in 0..2 {
        let second = bind(&path);
        assert!(matches!(second, Err(ListenError::InUse { .. })), "{second:?}");
    }
    assert!(first.accept().unwrap().is_some());
}

#[test]
fn a_foreign_server_that_lives_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    let _foreign = UnixListener::bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(ListenError::InUse { .. })));
    UnixStream::connect(&path).unwrap();
}

#[test]
fn the_socket_of_a_dead_server_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    // Of whatever type it was.
    for kind in KINDS {
        leave_dead(&path);
        let _listening = ListeningSocket::bind(&path, kind, 8).unwrap();
        connect(&path, kind).unwrap();
        assert_eq!((mode_of(&path), names_in(root.path())), (0o600, vec!["nic0.sock".to_owned()]));
    }
}

#[test]
fn of_instances_that_start_at_once_one_wins() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    for round in 0..30 {
        if round % 4 > 0 {
            leave_dead(&path);
        }
        let start = Barrier::new(4);
        let results: Vec<_> = std::thread::scope(|scope| {
            let instance = || {
                start.wait();
                bind(&path)
            };
            let threads = [(); 4].map(|()| scope.spawn(instance));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        let refused = |result: &&_| matches!(result, &&Err(ListenError::InUse { .. }));
        assert_eq!(results.iter().filter(refused).count(), 3, "round {round}: {results:?}");
        UnixStream::connect(&path).unwrap();
        drop(results);
        assert_eq!(names_in(root.path()), [""; 0]);
    }
}

#[test]
fn a_file_that_is_not_a_socket_is_never_removed() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path), Err(ListenError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    assert!(matches!(bind(&path), Err(ListenError::NotASocket { .. })));
    assert_eq!(names_in(root.path()), ["nic0.sock"]);
}

#[test]
fn a_successor_s_socket_is_not_removed() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    // One that replaced this one when it was dead,
    let (socket, old) = bind(&path).unwrap().into_parts();
    drop(socket);
    let (socket, _successor) = bind(&path).unwrap().into_parts();
    drop(old);
    UnixStream::connect(&path).unwrap();
    drop(socket);
    // and one that knows nothing of all this.
    let old = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(old);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let open = root.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    let refused = bind(&open.join("nic0.sock"));
    assert!(matches!(refused, Err(ListenError::UnsafeDirectory { .. })), "{refused:?}");
    // With the sticky bit others cannot replace what they do not own.
    fs::set_permissions(&open, PermissionsExt::from_mode(0o1777)).unwrap();
    bind(&open.join("nic0.sock")).unwrap();
}

#[test]
fn somebody_who_keeps_the_directory_locked_holds_up_no_more_than_a_dead_socket() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("nic0.sock");
    let _lock = lock(root.path(), Duration::ZERO).unwrap();
    let locked = lock(root.path(), Duration::ZERO);
    assert!(matches!(locked, Err(ListenError::Locked { .. })), "{locked:?}");
    let listening = bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listening);
    assert_eq!(names_in(root.path()), [""; 0]);
}

#[test]
fn a_path_may_be_as_long_as_a_socket_address_and_no_longer() {
    let root = tempfile::tempdir().unwrap();
    let room = 107 - root.path().as_os_str().len() - 1;
    for name in ["x".repeat(room), format!("{}/ab", "x".repeat(room - 3))] {
        let path = root.path().join(name);
        assert_eq!(path.as_os_str().len(), 107);
        bind(&path).unwrap();
    }
    let error = bind(&root.path().join("x".repeat(room + 1))).unwrap_err();
    assert!(error.to_string().contains("has 108 bytes, and Linux allows 107"), "{error}");
    let error = bind(&root.path().join("nul\0")).unwrap_err();
    assert!(matches!(error, ListenError::Os { .. }), "{error}");
}
