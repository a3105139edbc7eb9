//! The end of a VM that nobody is in a hurry about: what its programs sent before they ended still goes out.

use std::{
    fs,
    time::{Duration, Instant},
};

/// At most for so long.
const LIMIT: Duration = Duration::from_secs(2);
/// Nobody tells of the last acknowledgement, so the kernel's list is looked at this often.
const LOOK: Duration = Duration::from_millis(5);
/// States of a TCP connection whose end is on its way to the peer, with all data before it: FIN_WAIT1, LAST_ACK
/// and CLOSING, as Linux lists them.
const CLOSING: [&str; 3] = ["04", "09", "0B"];

/// Waits until the peers of all TCP connections that were closed have all that was sent.
pub(super) fn drain() {
    let start = Instant::now();
    while start.elapsed() < LIMIT && tables().any(|table| is_closing(&table)) {
        std::thread::sleep(LOOK);
    }
}

/// The kernel's lists of this VM's connections.
fn tables() -> impl Iterator<Item = String> {
    // A kernel without IPv6 has no second list.
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
}

fn is_closing(table: &str) -> bool {
    // Behind a line of titles: number, local address, remote address, state.
    let states = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3));
    states.into_iter().any(|state| CLOSING.contains(&state))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TITLES: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";

    #[test]
    fn connections_that_still_send_their_end_are_found() {
        let row = |state| {
            format!("   0: 0100000A:0009 0200000A:A1B2 {state} 00000010:00000000 01:0000\n")
        };
        assert!(!is_closing(TITLES));
        // Listening, established, and waiting for the peer to close or for time to pass.
        for state in ["0A", "01", "05", "06", "08"] {
            assert!(!is_closing(&format!("{TITLES}{}", row(state))), "{state}");
        }
        for state in CLOSING {
            assert!(is_closing(&format!("{TITLES}{}{}", row("0A"), row(state))), "{state}");
        }
    }
}
