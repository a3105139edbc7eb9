//! What can go wrong between this process and the kernel's network.

use std::{fmt, io};

/// An error of an interface, a packet socket, rtnetlink or a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `/dev/net/tun` may not be opened by this user, or is not there.
    #[error(
        "cannot open /dev/net/tun: TAP devices need the kernel's tun driver and read and write access to it"
    )]
    TunDevice(#[source] io::Error),
    /// An operation on one interface failed.
    #[error("interface {interface}: cannot {action}")]
    Interface {
        /// Name of the interface.
        interface: String,
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is no such interface in this network namespace.
    #[error("there is no interface {0} in this network namespace")]
    NoInterface(String),
    /// A name that no interface can have.
    #[error("\"{0}\" cannot be the name of an interface: 1 to 15 bytes without '/', ':' or spaces")]
    BadName(String),
    /// A socket could not be made.
    #[error("cannot open a {kind} socket")]
    Socket {
        /// What kind of socket.
        kind: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// rtnetlink refused a request.
    #[error("rtnetlink: cannot {action}")]
    Route {
        /// What was being done.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// rtnetlink sent something that cannot be read.
    #[error("rtnetlink: the answer to \"{action}\" cannot be read: {problem}")]
    RouteAnswer {
        /// What was being done.
        action: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The host forbids namespaces to this user.
    #[error("user namespaces are forbidden here: {by}")]
    NamespacesForbidden {
        /// Who forbids them, and what can be done.
        by: ForbiddenBy,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Namespaces were entered from a process with several threads.
    #[error("namespaces can only be entered by a process that has one thread")]
    NotSingleThreaded,
    /// A step of entering namespaces failed.
    #[error("namespaces: cannot {action}")]
    Namespace {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Who forbids user namespaces; as text it names the cure as well.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum ForbiddenBy {
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's switch).
    UnprivilegedUsernsClone,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu's switch).
    AppArmor,
    /// A limit of `user.max_*_namespaces` is reached or 0.
    Limit {
        /// The sysctl, under `/proc/sys/user`.
        sysctl: &'static str,
        /// Its value.
        limit: u64,
    },
    /// The kernel was built without `CONFIG_USER_NS`.
    NotInKernel,
    /// None of the known switches: a seccomp filter, a security module, or a chroot.
    Unknown,
}

impl fmt::Display for ForbiddenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnprivilegedUsernsClone => write!(
                f,
                "the sysctl kernel.unprivileged_userns_clone is 0; as root run \
                 `sysctl -w kernel.unprivileged_userns_clone=1`, or run this as root"
            ),
            Self::AppArmor => write!(
                f,
                "AppArmor restricts them to confined programs; as root run \
                 `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` or give this program an AppArmor \
                 profile that allows userns, or run this as root"
            ),
            Self::Limit { sysctl, limit } => write!(
                f,
                "the limit user.{sysctl} of {limit} is reached; as root raise it with \
                 `sysctl -w user.{sysctl}={}`",
                limit.saturating_mul(2).max(1024)
            ),
            Self::NotInKernel => write!(
                f,
                "the kernel has none (CONFIG_USER_NS is not set); run this as root or on another kernel"
            ),
            Self::Unknown => write!(
                f,
                "the usual switches allow them, so it is a seccomp filter (as container engines set), a \
                 security module, or a chroot; allow the unshare system call there (for example docker run \
                 --security-opt seccomp=unconfined), or run this as root on the host"
            ),
        }
    }
}
