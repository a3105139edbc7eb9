//! Entering namespaces, with and without privilege.

use std::{
    fs,
    io::{self, Read, Write},
};

use rustix::{
    io::Errno,
    process::{Pid, WaitOptions},
    thread::{CapabilitySet, UnshareFlags},
};

use crate::{ForbiddenBy, NetworkError, sys};

/// Which namespaces to enter besides the user namespace.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct Namespaces {
    /// Network interfaces, addresses, routes and abstract sockets.
    pub network: bool,
    /// Mounts. They start as a copy whose changes the host does not see.
    pub mounts: bool,
    /// Host name.
    pub hostname: bool,
    /// Process ids. Takes effect on the next child, which becomes process 1; this process can start no
    /// threads from then on.
    pub processes: bool,
}

/// How the namespaces were entered.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Entered {
    /// In a new user namespace, as its root; the one id inside is the caller's own outside.
    AsCaller,
    /// In a new user namespace with the same ids as outside, since the caller was root.
    AsRoot,
    /// Without a user namespace: the caller is root, and the host has no user namespaces for it.
    WithoutUserNamespace,
}

impl Namespaces {
    fn flags(self) -> UnshareFlags {
        let mut flags = UnshareFlags::empty();
        flags.set(UnshareFlags::NEWNET, self.network);
        flags.set(UnshareFlags::NEWNS, self.mounts);
        flags.set(UnshareFlags::NEWUTS, self.hostname);
        flags.set(UnshareFlags::NEWPID, self.processes);
        flags
    }
}

/// Moves this process, which must have one thread, into new namespaces with all capabilities inside them.
///
/// What the caller may do to files does not grow: an ordinary user is mapped to root alone, root to the same
/// ids as outside. Root keeps working where user namespaces are forbidden; then the other namespaces are
/// entered without one.
pub fn enter_namespaces(namespaces: Namespaces) -> Result<Entered, NetworkError> {
    if threads()? != 1 {
        return Err(NetworkError::NotSingleThreaded);
    }
    let entered =
        if has_capability(CapabilitySet::SYS_ADMIN) && has_capability(CapabilitySet::SETUID) {
            enter_user_namespace_as_root()?
        } else {
            enter_user_namespace_as_caller()?;
            Entered::AsCaller
        };
    // AppArmor lets the user namespace be made, but gives it no capabilities.
    sys::unshare(namespaces.flags()).map_err(|errno| match entered {
        Entered::AsCaller => forbidden(errno),
        _ => failed("create the namespaces")(errno.into()),
    })?;
    Ok(entered)
}

/// Moves the calling thread alone into a new network namespace; needs CAP_SYS_ADMIN.
pub fn enter_network_namespace() -> Result<(), NetworkError> {
    sys::unshare(UnshareFlags::NEWNET)
        .map_err(|errno| failed("create a network namespace")(errno.into()))
}

fn enter_user_namespace_as_caller() -> Result<(), NetworkError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    sys::unshare(UnshareFlags::NEWUSER).map_err(forbidden)?;
    // Without this an unprivileged process could drop a group that denies it something.
    write_map("setgroups", "deny")?;
    write_map("uid_map", &format!("0 {uid} 1"))?;
    write_map("gid_map", &format!("0 {gid} 1"))
}

fn write_map(file: &'static str, text: &str) -> Result<(), NetworkError> {
    fs::write(format!("/proc/self/{file}"), text).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            NetworkError::NamespacesForbidden { by: find_forbidder(Errno::PERM), source }
        }
        _ => failed("map the user into its namespace")(source),
    })
}

/// What the parent writes to its child once it is in the new user namespace.
const UNSHARED: &[u8; 1] = b"y";

/// Root's map of every id to itself can only be written from outside, so a child stays there to do it.
fn enter_user_namespace_as_root() -> Result<Entered, NetworkError> {
    let setup = failed("prepare the user namespace");
    let identity = |file| Ok::<_, io::Error>(identity_map(&fs::read_to_string(file)?));
    let uid_map = identity("/proc/self/uid_map").map_err(setup)?;
    let gid_map = identity("/proc/self/gid_map").map_err(setup)?;
    let parent = rustix::process::getpid();
    let (mut ready, mut go) = io::pipe().map_err(setup)?;
    let child = sys::fork(move || {
        // Both ends of the pipe are open here too, so the parent's death would not end the wait.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(Errno::SRCH.into());
        }
        let mut word = [0];
        ready.read_exact(&mut word)?;
        if word != *UNSHARED {
            return Ok(());
        }
        let directory = format!("/proc/{}", parent.as_raw_nonzero());
        fs::write(format!("{directory}/uid_map"), &uid_map)?;
        fs::write(format!("{directory}/gid_map"), &gid_map)
    })
    .map_err(setup)?;
    let unshared = sys::unshare(UnshareFlags::NEWUSER);
    go.write_all(if unshared.is_ok() { UNSHARED } else { b"n" }).map_err(setup)?;
    let written = wait_for(child).map_err(setup)?;
    match (unshared, written) {
        (Ok(()), 0) => Ok(Entered::AsRoot),
        (Ok(()), errno) => {
            Err(failed("map the users into the namespace")(io::Error::from_raw_os_error(errno)))
        }
        (Err(_), _) => Ok(Entered::WithoutUserNamespace),
    }
}

fn wait_for(child: Pid) -> io::Result<i32> {
    let status = loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    Ok(status.exit_status().unwrap_or(libc::EIO))
}

/// The map of all ids inside to themselves, from the map that the process itself lives under.
fn identity_map(own: &str) -> String {
    let mut map = String::new();
    for line in own.lines() {
        let mut fields = line.split_ascii_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next())
        {
            map.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    map
}

fn threads() -> Result<usize, NetworkError> {
    let entries = fs::read_dir("/proc/self/task")
        .map_err(failed("count the threads of this process (is /proc mounted?)"))?;
    Ok(entries.count())
}

fn has_capability(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> NetworkError + Copy {
    move |source| NetworkError::Namespace { action, source }
}

fn forbidden(errno: Errno) -> NetworkError {
    match errno {
        Errno::INVAL if threads().is_ok_and(|count| count > 1) => NetworkError::NotSingleThreaded,
        Errno::PERM | Errno::NOSPC | Errno::USERS | Errno::INVAL | Errno::NOSYS | Errno::ACCESS => {
            NetworkError::NamespacesForbidden { by: find_forbidder(errno), source: errno.into() }
        }
        _ => failed("create the namespaces")(errno.into()),
    }
}

/// Looks for the switch that made the kernel answer `errno`.
fn find_forbidder(errno: Errno) -> ForbiddenBy {
    let sysctl = |path: &str| {
        fs::read_to_string(format!("/proc/sys/{path}")).ok()?.trim().parse::<u64>().ok()
    };
    classify(errno, fs::exists("/proc/self/ns/user").unwrap_or(false), sysctl)
}

fn classify(errno: Errno, in_kernel: bool, sysctl: impl Fn(&str) -> Option<u64>) -> ForbiddenBy {
    const LIMITS: [&str; 4] =
        ["max_user_namespaces", "max_net_namespaces", "max_mnt_namespaces", "max_pid_namespaces"];
    let limit = |name: &'static str| Some((name, sysctl(&format!("user/{name}"))?));
    if !in_kernel {
        return ForbiddenBy::NotInKernel;
    }
    if matches!(errno, Errno::NOSPC | Errno::USERS) {
        // The lowest limit is the one that was hit, unless it is the nesting depth of 32.
        return match LIMITS.into_iter().filter_map(limit).min_by_key(|(_, limit)| *limit) {
            Some((sysctl, limit)) => ForbiddenBy::Limit { sysctl, limit },
            None => ForbiddenBy::Unknown,
        };
    }
    if sysctl("kernel/unprivileged_userns_clone") == Some(0) {
        ForbiddenBy::UnprivilegedUsernsClone
    } else if sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        ForbiddenBy::AppArmor
    } else if let Some((sysctl, 0)) = limit("max_user_namespaces") {
        ForbiddenBy::Limit { sysctl, limit: 0 }
    } else {
        ForbiddenBy::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forbidder_is_found_by_its_switch() {
        let with = |switch: &'static str, value| {
            move |path: &str| match path {
                _ if path == switch => Some(value),
                _ if path.starts_with("user/max_") => Some(1000),
                _ => None,
            }
        };
        for (errno, switch, value, expected) in [
            (
                Errno::PERM,
                "kernel/unprivileged_userns_clone",
                0,
                ForbiddenBy::UnprivilegedUsernsClone,
            ),
            (Errno::PERM, "kernel/apparmor_restrict_unprivileged_userns", 1, ForbiddenBy::AppArmor),
            (
                Errno::NOSPC,
                "user/max_user_namespaces",
                0,
                ForbiddenBy::Limit { sysctl: "max_user_namespaces", limit: 0 },
            ),
            (
                Errno::NOSPC,
                "user/max_net_namespaces",
                7,
                ForbiddenBy::Limit { sysctl: "max_net_namespaces", limit: 7 },
            ),
            (Errno::PERM, "kernel/unprivileged_userns_clone", 1, ForbiddenBy::Unknown),
        ] {
            let found = classify(errno, true, with(switch, value));
            assert_eq!(found, expected);
        }
        assert_eq!(classify(Errno::INVAL, false, |_| None), ForbiddenBy::NotInKernel);
    }

    #[test]
    fn every_forbidder_tells_a_cure() {
        for by in [
            ForbiddenBy::UnprivilegedUsernsClone,
            ForbiddenBy::AppArmor,
            ForbiddenBy::Limit { sysctl: "max_user_namespaces", limit: 0 },
            ForbiddenBy::NotInKernel,
            ForbiddenBy::Unknown,
        ] {
            let text = by.to_string();
            assert!(text.contains("root"), "{text}");
        }
    }

    #[test]
    fn a_process_with_threads_is_refused() {
        std::thread::scope(|scope| {
            let (hold, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            let refused = enter_namespaces(Namespaces::default());
            drop(hold);
            assert!(matches!(refused, Err(NetworkError::NotSingleThreaded)));
        });
    }

    #[test]
    fn ids_are_mapped_to_themselves() {
        assert_eq!(identity_map("         0       1000          1\n"), "0 0 1\n");
        assert_eq!(identity_map("0 0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(identity_map("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
    }
}
