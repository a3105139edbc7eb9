//! What process 1 of a VM does first: its own file systems and host name.

use std::io;

use linux_network::NetworkError;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Signal, set_parent_process_death_signal},
};

/// Makes this process the VM's: it dies with its launcher, and sees the VM's processes and interfaces in
/// `/proc` and `/sys`.
pub(super) fn set_up(name: &str) -> Result<(), NetworkError> {
    let failed = |action| {
        move |errno: rustix::io::Errno| NetworkError::Namespace {
            action,
            source: io::Error::from(errno),
        }
    };
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("bind the VM's life to its launcher's"))?;
    rustix::system::sethostname(name.as_bytes()).map_err(failed("set the host name"))?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(failed("keep the VM's mounts to itself"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys")] {
        // Container engines cover parts of these, and then the kernel refuses new ones. The VM works
        // without, but its programs see the host's processes and interfaces there.
        if let Err(error) = mount(kind, place, kind, flags, None) {
            tracing::info!(%error, "the VM keeps the host's {place}");
        }
    }
    rustix::process::chdir("/").map_err(failed("enter the root directory"))
}
