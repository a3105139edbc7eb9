//! The launcher: enters the VM's namespaces and starts process 1 in them.
//!
//! A process of its own, since namespaces are entered by processes with one thread, and since the namespace of
//! process ids holds for children only. Afterwards it only sees that the VM ends when whoever started it is gone.

use std::{
    os::fd::{AsFd, AsRawFd},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, atomic::AtomicBool},
};

use linux_network::{Namespaces, NetworkError, enter_namespaces};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::PROCESS;
use crate::{
    StartFailure, StartFailureKind,
    channel::{Channel, Reply},
    sys,
};

/// How long the VM's process may take to end when its owner is gone.
const GRACE: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };

pub(super) fn run(channel: Channel) -> ExitCode {
    match launch(&channel) {
        Ok(child) => {
            let _ = channel.try_send(&Reply::Launched(child.id()));
            watch(child, &channel);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            // If it cannot be told, there is nobody to hear it.
            let _ = channel.try_send(&Reply::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

fn launch(channel: &Channel) -> Result<Child, StartFailure> {
    let setup = |error: std::io::Error| StartFailure::new(StartFailureKind::Setup, &error);
    // Keys that interrupt a program in the VM reach all of the terminal's foreground. A handler, unlike
    // ignoring, does not outlast exec.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGQUIT] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).map_err(setup)?;
    }
    let all = Namespaces { network: true, mounts: true, hostname: true, processes: true };
    enter_namespaces(all).map_err(|error| {
        let kind = match error {
            NetworkError::NamespacesForbidden { .. } => StartFailureKind::NamespacesForbidden,
            _ => StartFailureKind::Setup,
        };
        StartFailure::new(kind, &error)
    })?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(PROCESS).arg(channel.as_fd().as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    sys::keep_open(&mut command, channel.as_fd());
    command.spawn().map_err(setup)
}

/// Waits until the VM's process has ended, and ends it if its owner is gone.
fn watch(mut child: Child, channel: &Channel) {
    let pidfd = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(pidfd) = pidfd {
        // Nothing is read from the channel here: the messages are for the VM's process.
        let owner = PollFd::new(channel, PollFlags::empty());
        wait(&mut [PollFd::new(&pidfd, PollFlags::IN), owner], None);
        // Without its owner the VM's process ends by itself, and gives its VF back.
        wait(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&GRACE));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn wait(set: &mut [PollFd<'_>], limit: Option<&Timespec>) {
    while poll(set, limit) == Err(Errno::INTR) {}
}
