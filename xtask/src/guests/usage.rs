//! Processor time of processes, as proc(5) tells it.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// What the kernel says of a process.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Usage {
    /// Whether it has ended, and only waits to be waited for.
    pub(crate) ended: bool,
    /// What it has used.
    pub(crate) cpu: Duration,
    /// What its children have used that have ended and that it has waited for.
    children: Duration,
}

/// What a process has used. One that has ended keeps its times until it is waited for.
pub(crate) fn usage(process: u32) -> Result<Usage> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_usage(&text).with_context(|| format!("{path} is not as proc(5) says"))
}

/// What a process and all that it has started have used; nothing if it is not there.
pub(crate) fn with_children(process: u32) -> Duration {
    let own = usage(process).map(|usage| usage.cpu + usage.children).unwrap_or_default();
    own + children(process).into_iter().map(with_children).sum::<Duration>()
}

/// The children of a process, those of all its threads.
pub(crate) fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let ids = |list: String| -> Vec<u32> {
        list.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    };
    lists.flat_map(ids).collect()
}

fn parse_usage(stat: &str) -> Option<Usage> {
    // proc(5): the name in parentheses may have blanks; then state, and utime, stime, cutime and cstime 11 fields later,
    // in ticks, of which Linux has 100 a second on x86.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X");
    let mut times = fields.skip(10).map(str::parse::<u64>);
    let mut both = || {
        let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
        Some(Duration::from_millis(user.checked_add(system)?.checked_mul(10)?))
    };
    Some(Usage { ended, cpu: both()?, children: both()? })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn times_are_read_whatever_the_process_is_called() {
        let stat = "77 (q) R (x) Z 1 77 77 0 -1 4194560 1 2 3 4 150 25 7 3 20 0 4 0 100";
        let usage = parse_usage(stat).unwrap();
        let (cpu, children) = (Duration::from_millis(1750), Duration::from_millis(100));
        assert_eq!(usage, Usage { ended: true, cpu, children });
        assert!(!parse_usage(&stat.replace(" Z ", " S ")).unwrap().ended);
        assert_eq!(parse_usage("77 (q) R 1 2"), None);
        assert_eq!(parse_usage(""), None);
    }

    #[test]
    fn this_process_has_not_ended_and_its_children_are_found() {
        assert!(!usage(std::process::id()).unwrap().ended);
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
