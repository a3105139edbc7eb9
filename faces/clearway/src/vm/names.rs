//! Which VMs of this user run, and where each is reached.
//!
//! A user-mode VM has a control socket `NAME.sock`, a VM under KVM its worker's socket as `NAME.worker` or a link of
//! that name to where it is, and one in QEMU likewise as `NAME.qemu`.

use std::{
    env, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;

/// What a VM is.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// A process in namespaces of its own.
    UserMode,
    /// A guest under KVM.
    Kvm,
    /// A guest in QEMU.
    Qemu,
}

impl Kind {
    const ALL: [Self; 3] = [Self::UserMode, Self::Kvm, Self::Qemu];

    const fn extension(self) -> &'static str {
        match self {
            Self::UserMode => "sock",
            Self::Kvm => "worker",
            Self::Qemu => "qemu",
        }
    }

    const fn socket_type(self) -> SocketType {
        match self {
            Self::UserMode => SocketType::SEQPACKET,
            Self::Kvm | Self::Qemu => SocketType::STREAM,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::UserMode => "user-mode",
            Self::Kvm => "KVM",
            Self::Qemu => "QEMU",
        }
    }
}

/// A VM that runs.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Debug, Serialize)]
pub(super) struct RunningVm {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The process that serves its socket, if that can be told.
    pub(super) pid: Option<i32>,
    pub(super) socket: PathBuf,
}

/// A name that can be a file's.
pub(super) fn vm_name(text: &str) -> Result<String, String> {
    let printable = text.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if (1..=60).contains(&text.len()) && printable && !text.starts_with(['.', '-']) {
        Ok(text.to_owned())
    } else {
        Err("a name is 1 to 60 printable characters without spaces or slashes, and does not begin with . or -"
            .to_owned())
    }
}

/// Where the sockets of this user's VMs are.
pub(super) fn folder() -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let user = rustix::process::getuid().as_raw();
    runtime.unwrap_or_else(|| env::temp_dir().join(format!("clearway-{user}"))).join("clearway-vms")
}

/// Where a VM of this kind is reached, unless it is told otherwise.
pub(super) fn socket(folder: &Path, name: &str, kind: Kind) -> PathBuf {
    folder.join(format!("{name}.{}", kind.extension()))
}

/// The VM of that name, if it runs.
pub(super) fn find(folder: &Path, name: &str) -> Option<RunningVm> {
    Kind::ALL.into_iter().find_map(|kind| look(folder, name, kind))
}

/// All that run, by name.
pub(super) fn running(folder: &Path) -> io::Result<Vec<RunningVm>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut vms = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let extension = path.extension().unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|kind| extension == kind.extension());
        vms.extend(kind.and_then(|kind| look(folder, name, kind)));
    }
    vms.sort();
    Ok(vms)
}

/// Connects to a VM, to see whether it is there and whose it is.
fn look(folder: &Path, name: &str, kind: Kind) -> Option<RunningVm> {
    let path = socket(folder, name, kind);
    // Where a link leads to is what can be given to others.
    let path = fs::read_link(&path).unwrap_or(path);
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        kind.socket_type(),
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    );
    let (socket, address) = (socket.ok()?, SocketAddrUnix::new(&path).ok()?);
    rustix::net::connect(&socket, &address).ok()?;
    let pid = rustix::net::sockopt::socket_peercred(&socket).ok();
    let pid = pid.map(|credentials| credentials.pid.as_raw_pid());
    Some(RunningVm { name: name.to_owned(), kind, pid, socket: path })
}

/// Makes the folder, and checks that no VM of that name runs.
pub(super) fn prepare(folder: &Path, name: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("the folder {}", folder.display()))?;
    if let Some(other) = find(folder, name) {
        let (kind, socket) = (other.kind.word(), other.socket.display());
        bail!(
            "a {kind} VM {name} of this user runs already, at {socket}: end it, or take another name"
        );
    }
    // Links that a VM left behind when it was killed.
    for link in Kind::ALL.map(|kind| socket(folder, name, kind)) {
        if fs::symlink_metadata(&link).is_ok_and(|entry| entry.is_symlink()) {
            fs::remove_file(&link).with_context(|| format!("the old link {}", link.display()))?;
        }
    }
    Ok(())
}

/// The name of a VM whose worker's socket is elsewhere. It is gone when this is dropped.
pub(super) struct Link(Option<PathBuf>);

/// Has a VM found by its name.
pub(super) fn publish(folder: &Path, name: &str, kind: Kind, worker: &Path) -> Result<Link> {
    let link = socket(folder, name, kind);
    if link == worker {
        return Ok(Link(None));
    }
    // The socket of one that was killed, perhaps.
    let _ = fs::remove_file(&link);
    let linked = std::path::absolute(worker).and_then(|worker| symlink(worker, &link));
    linked.with_context(|| format!("the link {}", link.display()))?;
    Ok(Link(Some(link)))
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(link) = &self.0 {
            let _ = fs::remove_file(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_are_names_of_files_and_nothing_else() {
        for name in ["web", "web-1.example", "A", "ü"] {
            assert_eq!(vm_name(name).is_ok(), name.is_ascii(), "{name}");
        }
        for name in ["", "a/b", "..", ".a", "-a", "a b", "a\n", &"x".repeat(61)] {
            assert!(vm_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn those_that_run_are_listed_and_dead_ones_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("vms");
        assert_eq!(running(&folder).unwrap(), []);
        prepare(&folder, "web").unwrap();
        let listener = UnixListener::bind(socket(&folder, "web", Kind::Kvm)).unwrap();
        drop(UnixListener::bind(socket(&folder, "dead", Kind::Kvm)).unwrap());
        let elsewhere = directory.path().join("db.sock");
        let _other = UnixListener::bind(&elsewhere).unwrap();
        prepare(&folder, "db").unwrap();
        let link = publish(&folder, "db", Kind::Kvm, &elsewhere).unwrap();
        fs::write(folder.join("notes.txt"), "").unwrap();
        let pid = i32::try_from(std::process::id()).ok();
        let vm = |name: &str, socket: &Path| RunningVm {
            name: name.to_owned(),
            kind: Kind::Kvm,
            pid,
            socket: socket.to_owned(),
        };
        let web = vm("web", &socket(&folder, "web", Kind::Kvm));
        assert_eq!(running(&folder).unwrap(), [vm("db", &elsewhere), web]);
        let refused = prepare(&folder, "db").unwrap_err().to_string();
        assert!(refused.contains("a KVM VM db of this user runs already, at"), "{refused}");
        drop((listener, link));
        assert_eq!(running(&folder).unwrap(), []);
        assert!(!socket(&folder, "db", Kind::Kvm).exists());
    }

    #[test]
    fn a_link_that_was_left_behind_is_in_nobody_s_way() {
        let directory = tempfile::tempdir().unwrap();
        let worker = directory.path().join("gone.sock");
        std::mem::forget(publish(directory.path(), "web", Kind::Kvm, &worker).unwrap());
        prepare(directory.path(), "web").unwrap();
        drop(UnixListener::bind(socket(directory.path(), "web", Kind::Kvm)).unwrap());
        let listener = UnixListener::bind(&worker).unwrap();
        let _link = publish(directory.path(), "web", Kind::Kvm, &worker).unwrap();
        assert_eq!(find(directory.path(), "web").unwrap().socket, worker);
        drop(listener);
        assert_eq!(find(directory.path(), "web"), None);
    }
}
