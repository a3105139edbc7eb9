//! Signals of this process as something to wait for among other things.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP},
    iterator::{backend::SignalDelivery, exfiltrator::SignalOnly},
};

/// Signals that end the VM.
const ENDS: [i32; 4] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP];

/// The signals that end this process, stop it, or let it go on.
pub(super) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    /// The next one ends the process at once.
    impatient: Arc<AtomicBool>,
}

impl Signals {
    /// Catches them, but for those that whoever started this process has it ignore, such as `nohup`.
    pub(super) fn catch() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored(&status);
        let heard = |signal: &i32| ignored >> (signal - 1) & 1 == 0;
        let impatient = Arc::new(AtomicBool::new(false));
        for signal in ENDS.into_iter().filter(heard) {
            let code = 128 + signal;
            signal_hook::flag::register_conditional_shutdown(signal, code, impatient.clone())?;
        }
        let (read, write) = UnixStream::pair()?;
        let all: Vec<i32> = ENDS.into_iter().chain([SIGTSTP, SIGCONT]).filter(heard).collect();
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, &all)?;
        Ok(Self { delivery, impatient })
    }

    /// Those that came since the last call.
    pub(super) fn take(&mut self) -> Vec<i32> {
        self.delivery.pending().collect()
    }

    /// From now on a signal ends the process at once: all that is left to do is for others' sake.
    pub(super) fn now_end_at_once(&self) {
        self.impatient.store(true, Ordering::SeqCst);
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

/// The ignored signals, a bit each, by the text of `/proc/PID/status`.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stays_ignored() {
        let status = "Name:\tclearway\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 1 << (SIGHUP - 1) | 1 << 12);
        assert_eq!(ignored("SigIgn:\tnonsense"), 0);
        assert_eq!(ignored(""), 0);
    }
}
