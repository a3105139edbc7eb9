//! How stories are told: those that were asked for, some at a time, once more if one was cut short, and with a summary.

use std::{
    fmt, fs,
    num::NonZeroUsize,
    panic::resume_unwind,
    path::Path,
    sync::{Mutex, PoisonError},
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::verdict::Verdict;

/// Runs of a story, if those before were cut short.
const TRIES: u32 = 2;
/// Lines of each log that are shown of a run that failed.
const SHOWN: usize = 40;

/// What stories are asked for, and how they are told.
#[derive(Args, Clone, Debug)]
pub(crate) struct Telling {
    /// Only these stories.
    #[arg(long, value_name = "STORY", value_delimiter = ',')]
    only: Vec<String>,
    /// Lists the stories.
    #[arg(long)]
    pub(crate) list: bool,
    /// Keeps the logs of stories that passed, too.
    #[arg(long)]
    keep_logs: bool,
    /// How many stories to tell at a time: each takes a processor, or two.
    #[arg(long, value_name = "NUMBER", default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
}

impl Default for Telling {
    fn default() -> Self {
        Self { only: Vec::new(), list: false, keep_logs: false, jobs: NonZeroUsize::MIN }
    }
}

/// What all kinds of stories have.
pub(crate) trait Titled {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// What it shows, in one line.
    fn about(&self) -> &'static str;
}

/// One run of a story.
pub(crate) struct Run {
    pub(crate) verdict: Verdict,
    pub(crate) wall: Duration,
    /// Processor time of its guests.
    pub(crate) cpu: Duration,
}

/// A line of the summary: the last run of a story.
pub(crate) struct Told {
    story: String,
    kernel: String,
    tries: u32,
    run: Run,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { story, kernel, tries, run } = self;
        let verdict = run.verdict.to_string().replace('\n', " | ");
        let (wall, cpu) = (run.wall.as_secs_f64(), run.cpu.as_secs_f64());
        write!(f, "{kernel:22} {story:16} {wall:7.1} s {cpu:7.1} s CPU  try {tries}  {verdict}")
    }
}

impl Telling {
    /// Prints the stories, one a line.
    pub(crate) fn print(stories: &[impl Titled]) {
        for story in stories {
            println!("{:16} {}", story.name(), story.about());
        }
    }

    /// Those that are to be told.
    pub(crate) fn choose<'s, S: Titled>(&self, stories: &'s [S]) -> Result<Vec<&'s S>> {
        for name in &self.only {
            if !stories.iter().any(|story| story.name() == name) {
                bail!("there is no story {name:?}; --list names them");
            }
        }
        let chosen =
            |story: &&S| self.only.is_empty() || self.only.iter().any(|name| name == story.name());
        Ok(stories.iter().filter(chosen).collect())
    }

    /// Tells stories, some at a time; what was told, in their order.
    pub(crate) fn tell_all<S: Sync>(
        &self,
        stories: &[S],
        tell: impl Fn(&S) -> Result<Told> + Sync,
    ) -> Result<Vec<Told>> {
        let next = Mutex::new(stories.iter().enumerate());
        // The lock is not held while a story is told.
        let next = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
        let teller = || -> Result<Vec<(usize, Told)>> {
            std::iter::from_fn(next).map(|(at, story)| Ok((at, tell(story)?))).collect()
        };
        let told: Result<Vec<_>> = thread::scope(|scope| {
            let tellers: Vec<_> = (0..self.jobs.get()).map(|_| scope.spawn(teller)).collect();
            let told = |teller: ScopedJoinHandle<'_, Result<Vec<(usize, Told)>>>| {
                teller.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            tellers.into_iter().map(told).collect()
        });
        let mut told: Vec<_> = told?.into_iter().flatten().collect();
        told.sort_by_key(|(at, _)| *at);
        Ok(told.into_iter().map(|(_, told)| told).collect())
    }

    /// Tells one story by `once`, again if it was cut short. Each run has a folder of its own for its logs, in `logs`,
    /// which stays if the run failed.
    pub(crate) fn tell(
        &self,
        logs: &Path,
        (kind, story, kernel): (&str, &str, &str),
        mut once: impl FnMut(&Path) -> Result<Run>,
    ) -> Result<Told> {
        let mut tries = 1;
        loop {
            let folder = logs.join(format!("{kind}-{story}-{kernel}-{tries}"));
            // What an earlier run has left must not be taken for this one's.
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("making the folder {}", folder.display()))?;
            let run = once(&folder).unwrap_or_else(|error| Run {
                verdict: Verdict::Failed(format!("{error:#}")),
                wall: Duration::ZERO,
                cpu: Duration::ZERO,
            });
            let again = matches!(run.verdict, Verdict::CutShort(_)) && tries < TRIES;
            let told = Told { story: story.to_owned(), kernel: kernel.to_owned(), tries, run };
            println!("{told}");
            if told.run.verdict == Verdict::Passed {
                if !self.keep_logs {
                    fs::remove_dir_all(&folder)?;
                }
            } else {
                show(&folder)?;
            }
            if !again {
                return Ok(told);
            }
            tries += 1;
        }
    }
}

/// Prints the end of each log in a folder.
fn show(folder: &Path) -> Result<()> {
    let mut paths: Vec<_> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "log")) {
        // A serial line carries any byte.
        let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default();
        if !tail.is_empty() {
            println!("== {}\n{}", path.display(), tail.join("\n"));
        }
    }
    println!("all of its logs: {}", folder.display());
    Ok(())
}

/// Prints what became of each story; an error if one did not pass.
pub(crate) fn summary(told: &[Told]) -> Result<()> {
    println!();
    for told in told {
        println!("{told}");
    }
    let failed = told.iter().filter(|told| told.run.verdict != Verdict::Passed).count();
    ensure!(failed == 0, "{failed} of {} did not pass", told.len());
    println!("{} passed", told.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Story(&'static str);

    impl Titled for Story {
        fn name(&self) -> &'static str {
            self.0
        }

        fn about(&self) -> &'static str {
            "something"
        }
    }

    const STORIES: [Story; 3] = [Story("short"), Story("long"), Story("other")];

    fn run(verdict: Verdict) -> Run {
        Run { verdict, wall: Duration::from_secs(2), cpu: Duration::from_secs(1) }
    }

    #[test]
    fn what_is_named_is_told_and_else_all() {
        let chosen = |only: &[&str]| -> Result<Vec<&str>> {
            let only = only.iter().map(|name| (*name).to_owned()).collect();
            let chosen = Telling { only, ..Telling::default() }.choose(&STORIES)?;
            Ok(chosen.into_iter().map(Titled::name).collect())
        };
        assert_eq!(chosen(&[]).unwrap(), ["short", "long", "other"]);
        assert_eq!(chosen(&["long", "short"]).unwrap(), ["short", "long"]);
        assert!(chosen(&["short", "none"]).unwrap_err().to_string().contains("\"none\""));
    }

    #[test]
    fn only_what_was_cut_short_is_told_again_and_logs_stay_unless_it_passed() {
        let logs = tempfile::tempdir().unwrap();
        let tell = |story: &str, verdicts: Vec<Verdict>| {
            let mut verdicts = verdicts.into_iter();
            let once = |folder: &Path| {
                fs::write(folder.join("serial.log"), "MARK\n")?;
                Ok(run(verdicts.next().context("told too often")?))
            };
            let told = Telling::default().tell(logs.path(), ("kvm", story, "6.1"), once).unwrap();
            (told.tries, told.run.verdict)
        };
        let cut = || Verdict::CutShort("it hung".to_owned());
        let failed = || Verdict::Failed("a ping".to_owned());
        assert_eq!(tell("a", vec![cut(), Verdict::Passed]), (2, Verdict::Passed));
        assert_eq!(tell("b", vec![cut(), cut()]), (2, cut()));
        assert_eq!(tell("c", vec![failed()]), (1, failed()));
        assert_eq!(tell("d", vec![Verdict::Passed]), (1, Verdict::Passed));
        let mut left: Vec<_> =
            fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["kvm-a-6.1-1", "kvm-b-6.1-1", "kvm-b-6.1-2", "kvm-c-6.1-1"]);
    }

    #[test]
    fn all_are_told_by_several_and_come_in_their_order() {
        let telling = Telling { jobs: NonZeroUsize::new(3).unwrap(), ..Telling::default() };
        let stories: Vec<u32> = (0..20).collect();
        let told = telling.tell_all(&stories, |number| {
            let (story, kernel) = (number.to_string(), "6.1".to_owned());
            let verdict =
                if *number == 7 { Verdict::Missing("x".to_owned()) } else { Verdict::Passed };
            Ok(Told { story, kernel, tries: 1, run: run(verdict) })
        });
        let told = told.unwrap();
        let names: Vec<String> = told.iter().map(|told| told.story.clone()).collect();
        assert_eq!(names, stories.iter().map(u32::to_string).collect::<Vec<_>>());
        assert_eq!(summary(&told).unwrap_err().to_string(), "1 of 20 did not pass");
        assert!(summary(told.get(..7).unwrap()).is_ok());
    }
}
