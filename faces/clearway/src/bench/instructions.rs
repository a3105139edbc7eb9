//! Instructions a frame, host's and guests' apart, where `perf` can count them.
//!
//! `perf stat` counts those of each thread of this process for a second in the middle of a longer run. What it cannot
//! do on this machine is found out first.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use super::{
    cores::{Cores, apart},
    emulated, forward,
    path::Path,
    peers::Subject,
    sample::as_f64,
    synthetic,
};

const EVENT: &str = "instructions:u";
const COUNTED: &str = "1";
/// Longer than `perf` takes to start, and counts.
const RUN: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(300);

/// Instructions in user space for one frame.
#[derive(Copy, Clone, Debug, Serialize)]
pub(crate) struct Instructions {
    /// Of all of the host's threads.
    pub(crate) host: f64,
    /// Of the thread that plays both guests.
    pub(crate) guests: f64,
}

/// Whether they can be counted here.
pub(crate) fn can_be_counted() -> anyhow::Result<()> {
    let output = Command::new("perf")
        .args(["stat", "-x,", "-e", EVENT, "true"])
        .output()
        .context("there is no perf")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && count(&said).is_some(), "perf counts none on this machine");
    Ok(())
}

/// The first count of what perf says.
fn count(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split(',').next()?.parse().ok())
}

/// Counts for one kind of adapter and size.
pub(crate) fn measure(kind: Subject, size: u16, cores: Cores) -> anyhow::Result<Instructions> {
    apart(|| match kind {
        Subject::Emulated => of(&mut emulated::Ends::open(size, cores)?),
        Subject::Synthetic => of(&mut synthetic::Ends::open(size, cores)?),
        Subject::Clearway => {
            let (mut ends, _nic) = forward::two_vfs(size, forward::ring(size), cores)?;
            of(&mut ends)
        }
        _ => bail!("{} is none of the kinds of adapter", kind.name()),
    })
    .with_context(|| format!("instructions of {} at {size} bytes", kind.name()))
}

fn of(path: &mut impl Path) -> anyhow::Result<Instructions> {
    path.run(WARM_UP);
    let perf = Command::new("perf")
        .args(["stat", "--per-thread", "-x,", "-e", EVENT, "-p", &std::process::id().to_string()])
        .args(["--", "sleep", COUNTED])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("there is no perf")?;
    let (counts, took) = path.run(RUN);
    let output = perf.wait_with_output()?;
    let rate = as_f64(counts.received) / took.as_secs_f64();
    ensure!(rate > 0.0, "no frame arrived");
    let guest = rustix::thread::gettid().as_raw_nonzero().get();
    let (guests, host) = by_thread(&String::from_utf8_lossy(&output.stderr), guest);
    Ok(Instructions { host: as_f64(host) / rate, guests: as_f64(guests) / rate })
}

/// Counts of this thread, and of all others together.
fn by_thread(said: &str, thread: i32) -> (u64, u64) {
    let (mut this, mut others) = (0, 0);
    for line in said.lines() {
        // NAME-THREAD,COUNT,UNIT,EVENT and more; a name may have dashes in it.
        let mut fields = line.split(',');
        let (Some(name), Some(count)) = (fields.next(), fields.next()) else { continue };
        let number = name.rsplit('-').next().and_then(|number| number.trim().parse::<i32>().ok());
        let (Some(number), Ok(count)) = (number, count.parse::<u64>()) else { continue };
        *(if number == thread { &mut this } else { &mut others }) += count;
    }
    (this, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_says_is_understood() {
        let said = "clearway-12,1000,,instructions:u,1000,100.00,,\n\
                    vfio-user vf0-13,50,,instructions:u,1000,100.00,,\n\
                    data-path-14,<not counted>,,instructions:u,0,100.00,,\n\
                    switch-15,7,,instructions:u,1000,100.00,,\n";
        assert_eq!(by_thread(said, 12), (1000, 57));
        assert_eq!(count("<not supported>,,instructions:u,0,100.00,,\n"), None);
        assert_eq!(count("1234,,instructions:u,100,100.00,,\n"), Some(1234));
    }
}
