//! Log lines that a guest can cause, of which there is a limited number.

/// Lines for one device or NIC.
const LINES: u32 = 50;

/// What may still be said.
#[derive(Debug)]
pub(crate) struct LogBudget {
    left: u32,
}

impl Default for LogBudget {
    fn default() -> Self {
        Self { left: LINES }
    }
}

impl LogBudget {
    /// Whether another line may be written; if so, it is accounted for.
    pub(crate) fn spend(&mut self) -> bool {
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_fill_the_log() {
        let mut budget = LogBudget::default();
        assert_eq!((0..100_000).filter(|_| budget.spend()).count(), LINES as usize);
    }
}
