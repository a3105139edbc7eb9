//! Keeps a client from flooding the log.

use std::time::{Duration, Instant};

/// Lines that may be written in one [`WINDOW`].
const LINES: u32 = 16;
const WINDOW: Duration = Duration::from_secs(10);

/// Allows a number of log lines in a span of time; time comes in as an argument.
#[derive(Debug)]
pub(crate) struct LogBudget {
    window_start: Instant,
    written: u32,
    suppressed: u64,
}

/// What to do with a line.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Verdict {
    /// Write it; so many before it were not.
    Write { suppressed: u64 },
    /// Do not.
    Suppress,
}

impl LogBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { window_start: now, written: 0, suppressed: 0 }
    }

    pub(crate) fn line(&mut self, now: Instant) -> Verdict {
        if now.saturating_duration_since(self.window_start) >= WINDOW {
            self.window_start = now;
            self.written = 0;
        }
        if self.written >= LINES {
            self.suppressed += 1;
            return Verdict::Suppress;
        }
        self.written += 1;
        Verdict::Write { suppressed: std::mem::take(&mut self.suppressed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut budget = LogBudget::new(start);
        for _ in 0..LINES {
            assert_eq!(budget.line(start), Verdict::Write { suppressed: 0 });
        }
        assert_eq!(budget.line(start), Verdict::Suppress);
        assert_eq!(budget.line(start), Verdict::Suppress);
        assert_eq!(budget.line(start + WINDOW), Verdict::Write { suppressed: 2 });
        assert_eq!(budget.line(start + WINDOW), Verdict::Write { suppressed: 0 });
    }
}
