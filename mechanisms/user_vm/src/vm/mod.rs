//! The VM's own processes: the launcher, which enters the namespaces, and process 1 of the VM.

mod drain;
mod init;
mod launcher;
mod listener;
mod process;
mod programs;

use std::{ffi::OsStr, os::fd::OwnedFd, process::ExitCode};

use crate::{channel::Channel, sys};

/// First argument of the launcher. The second is the number of its channel's descriptor.
pub(crate) const LAUNCHER: &str = "__user-vm-launcher";
/// First argument of the VM's process. The second is the number of its channel's descriptor.
pub(crate) const PROCESS: &str = "__user-vm";

/// Becomes a VM's process if this process was started as one; returns otherwise.
///
/// `main` of every program that starts VMs calls this before anything else, in particular before there is
/// a second thread.
pub fn enter_if_requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next()?;
    let work: fn(Channel) -> ExitCode = match role.to_str()? {
        LAUNCHER => launcher::run,
        PROCESS => process::run,
        _ => return None,
    };
    let channel = arguments.next().as_deref().and_then(OsStr::to_str).and_then(adopt);
    Some(match channel {
        Some(channel) => work(Channel::from_fd(channel)),
        None => {
            eprintln!("clearway: {} is started by `clearway vm run` only", role.display());
            ExitCode::FAILURE
        }
    })
}

fn adopt(number: &str) -> Option<OwnedFd> {
    sys::adopt(number.parse().ok()?).ok()
}
