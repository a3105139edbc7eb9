//! What can go wrong with a user-mode VM, and how programs in it end.

use std::{fmt, io, path::PathBuf};

use listening_socket::ListenError;
use serde::{Deserialize, Serialize};

/// An error of starting, running or talking to a VM.
#[derive(Debug, thiserror::Error)]
pub enum UserVmError {
    /// The VM's name cannot be a host name.
    #[error(
        "\"{0}\" cannot be a VM's name: 1 to 63 letters, digits and hyphens, as in a host name"
    )]
    BadName(String),
    /// A VM of this name runs already.
    #[error("a VM already answers on {}; stop it or choose another name", .0.display())]
    AlreadyRuns(PathBuf),
    /// The VM's control socket cannot be listened at.
    #[error("VM {name}: its control socket cannot be listened at")]
    ControlSocket {
        /// Name of the VM.
        name: String,
        /// Why.
        #[source]
        source: ListenError,
    },
    /// What carries the VM's adapters, and what was given to start it, do not belong together.
    #[error(
        "VM {0}: a VM on VMBus needs its partition's guest end to start, and a VM on a VF takes none"
    )]
    Partition(String),
    /// No VM answers on a control socket.
    #[error("no VM answers on {}; is it running?", socket.display())]
    NotRunning {
        /// The control socket.
        socket: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The VM's process said why it could not start.
    #[error("VM {name} could not start: {failure}")]
    Start {
        /// Name of the VM.
        name: String,
        /// Why.
        failure: StartFailure,
    },
    /// The VM's VF is gone, and the VM was told to end with it.
    #[error("VM {name} ended because its VF is gone: {reason}")]
    VfLost {
        /// Name of the VM.
        name: String,
        /// What was noticed.
        reason: String,
    },
    /// The VM's process could not go on.
    #[error("VM {name} ended: {reason}")]
    Broken {
        /// Name of the VM.
        name: String,
        /// What went wrong in it.
        reason: String,
    },
    /// The VM's process ended without a word: it was killed.
    #[error("VM {0} is gone: its process was killed")]
    Gone(String),
    /// The VM's process did not answer in time.
    #[error("VM {name} did not {what} within {seconds} s")]
    TimedOut {
        /// Name of the VM.
        name: String,
        /// What was waited for.
        what: &'static str,
        /// How long, in seconds.
        seconds: u64,
    },
    /// An adapter has no VF that could carry it.
    #[error(
        "VM {0} has no VF that could carry its adapter: has the host offered one, and associated it?"
    )]
    NoVf(String),
    /// A program could not be run in the VM.
    #[error("cannot run {program} in VM {name}")]
    Program {
        /// Name of the VM.
        name: String,
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call on this side failed.
    #[error("VM {name}: cannot {action}")]
    Io {
        /// Name of the VM.
        name: String,
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Why a VM could not be started, as its process tells.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct StartFailure {
    /// What kind of thing was missing.
    pub kind: StartFailureKind,
    /// The whole story, with the cure where there is one.
    pub message: String,
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StartFailure {
    /// A failure of this kind, with the chain of an error's causes as its message.
    pub(crate) fn new(kind: StartFailureKind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { kind, message }
    }
}

/// Kinds of start failures.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFailureKind {
    /// The host forbids namespaces to this user.
    NamespacesForbidden,
    /// Namespaces, mounts or processes could not be set up.
    Setup,
    /// The VF did not answer, or could not be brought up.
    Vf,
    /// The partition or its VMBus did not answer.
    Vmbus,
    /// `eth0` could not be created or configured.
    Interface,
}

/// How a program ended.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramExit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl ProgramExit {
    /// The status as shells report it: 128 and the number for a signal.
    pub fn code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        };
        u8::try_from(code & 0xFF).unwrap_or(u8::MAX)
    }

    /// Whether the program ended by itself with status 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for ProgramExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_reported_as_shells_do() {
        assert_eq!(ProgramExit::Code(3).code(), 3);
        assert_eq!(ProgramExit::Signal(9).code(), 137);
        assert!(ProgramExit::Code(0).success() && !ProgramExit::Signal(15).success());
    }
}
