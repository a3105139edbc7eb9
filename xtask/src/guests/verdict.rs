//! How a run of a story is judged.

use std::fmt;

/// A judgement.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) enum Verdict {
    /// It came to its end, and all was as it should be.
    Passed,
    /// A guest says that something is not as it should be, a kernel died, or it was found here.
    Failed(String),
    /// It came to its end without saying this.
    Missing(String),
    /// The machine ended or hung before the story did; that the emulator does once in a while, so it is worth another
    /// try.
    CutShort(String),
}

impl Verdict {
    /// The same, but that one which passed has failed for this reason, if there is one.
    pub(crate) fn unless(self, check: Result<(), String>) -> Self {
        match (self, check) {
            (Self::Passed, Err(why)) => Self::Failed(why),
            (verdict, _) => verdict,
        }
    }

    /// Of a story that is told step by step: an error is a failure, unless a [`CutShort`] is its cause.
    pub(crate) fn of(told: &anyhow::Result<()>) -> Self {
        match told {
            Ok(()) => Self::Passed,
            Err(error) if error.is::<CutShort>() => Self::CutShort(format!("{error:#}")),
            Err(error) => Self::Failed(format!("{error:#}")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(why) => write!(f, "FAILED: {why}"),
            Self::Missing(words) => write!(f, "FAILED: nothing said {words:?}"),
            Self::CutShort(how) => write!(f, "CUT SHORT: {how}"),
        }
    }
}

/// What no kernel may say, unless it is expected to.
const FATAL: [&str; 4] = ["Kernel panic", "BUG: ", "Oops: ", "general protection fault"];

/// Whether a kernel says in this line that it is broken.
pub(crate) fn is_fatal(line: &str) -> bool {
    FATAL.iter().any(|words| line.contains(words))
}

/// The error of a story whose machine ended or hung.
#[derive(Debug)]
pub(crate) struct CutShort(pub(crate) String);

impl fmt::Display for CutShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CutShort {}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_machine_that_hangs_is_no_failure_of_the_story() {
        let hung = || anyhow!(CutShort("no mark".to_owned()));
        assert_eq!(Verdict::of(&Ok(())), Verdict::Passed);
        assert_eq!(Verdict::of(&Err(hung())), Verdict::CutShort("no mark".to_owned()));
        assert_eq!(
            Verdict::of(&Err(hung()).context("while it boots")),
            Verdict::CutShort("while it boots: no mark".to_owned())
        );
        assert_eq!(Verdict::of(&Err(anyhow!("no mark"))), Verdict::Failed("no mark".to_owned()));
    }
}
