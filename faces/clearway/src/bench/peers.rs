//! What Clearway is measured against, and the scripts that run it.
//!
//! A peer is an executable in the peers' folder (`bench/peers`), called as `NAME rate SIZE SECONDS` or
//! `NAME round-trip SIZE SECONDS`, with `FORWARDER_CPU` and `CLIENT_CPU` in its environment, and this program as
//! `CLEARWAY`, which is the peer of its own vhost-user ports. It starts the peer on the first CPU and its clients
//! on the second, prints one line of JSON (a [`Rate`] or a [`RoundTrip`]) as its last line, and leaves nothing behind.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    cores::Cores,
    sample::{Rate, RoundTrip},
};

/// Beyond the measurement itself, for starting and ending.
const PATIENCE_SECONDS: f64 = 60.0;

/// What is measured in every round.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    /// The adapter, VF to VF.
    Clearway,
    /// The virtual switch, synthetic adapter to synthetic adapter.
    Synthetic,
    /// The virtual switch, emulated adapter to emulated adapter.
    Emulated,
    /// The virtual switch, between the same clients as the peers have.
    VhostUser,
    /// `dpdk-testpmd` between two vhost ports.
    Testpmd,
    /// OVS-DPDK between two vhost ports.
    Ovs,
    /// Copying alone, one frame after the other.
    CopyLimit,
    /// Copying alone, lines of frames to come asked for ahead.
    HintedCopyLimit,
    /// Two cache lines between two cores.
    PingPong,
}

impl Subject {
    /// As it is called in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clearway => "Clearway",
            Self::Synthetic => "synthetic",
            Self::Emulated => "emulated",
            Self::VhostUser => "vhost-user",
            Self::Testpmd => "testpmd",
            Self::Ovs => "OVS-DPDK",
            Self::CopyLimit => "copy limit",
            Self::HintedCopyLimit => "copy limit with hints",
            Self::PingPong => "ping-pong",
        }
    }

    /// The peer's script.
    fn script(self) -> Option<&'static str> {
        match self {
            Self::VhostUser => Some("vhost"),
            Self::Testpmd => Some("testpmd"),
            Self::Ovs => Some("ovs"),
            Self::Clearway
            | Self::Synthetic
            | Self::Emulated
            | Self::CopyLimit
            | Self::HintedCopyLimit
            | Self::PingPong => None,
        }
    }
}

/// The peers' scripts.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    pub(crate) folder: PathBuf,
    pub(crate) cores: Cores,
}

impl Peers {
    /// Frames per second.
    pub(crate) fn rate(&self, peer: Subject, size: u16, seconds: f64) -> anyhow::Result<Rate> {
        self.run(peer, "rate", size, seconds)
    }

    /// Round trips of one frame at a time.
    pub(crate) fn round_trips(
        &self,
        peer: Subject,
        size: u16,
        seconds: f64,
    ) -> anyhow::Result<RoundTrip> {
        self.run(peer, "round-trip", size, seconds)
    }

    fn run<T: DeserializeOwned>(
        &self,
        peer: Subject,
        what: &str,
        size: u16,
        seconds: f64,
    ) -> anyhow::Result<T> {
        let script = peer.script().context("not a peer with a script")?;
        let path = self.folder.join(script);
        run_script(&path, what, size, seconds, self.cores)
            .with_context(|| format!("{} {what} of {size} bytes", peer.name()))
    }
}

fn run_script<T: DeserializeOwned>(
    path: &Path,
    what: &str,
    size: u16,
    seconds: f64,
    cores: Cores,
) -> anyhow::Result<T> {
    // A peer that hangs is ended with all it started: `timeout` makes it a process group of its own.
    let limit = seconds + PATIENCE_SECONDS;
    let program = std::env::current_exe().context("the path of this program")?;
    let output = Command::new("timeout")
        .args(["--kill-after=20", &limit.to_string()])
        .arg(path)
        .args([what, &size.to_string(), &seconds.to_string()])
        .env("FORWARDER_CPU", cores.forwarder.to_string())
        .env("CLIENT_CPU", cores.client.to_string())
        .env("CLEARWAY", program)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", path.display()))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        bail!("{} ended with {}; it said last: {last}", path.display(), output.status);
    }
    let line = printed
        .lines()
        .rev()
        .find(|line| line.starts_with('{'))
        .with_context(|| format!("{} printed no result", path.display()))?;
    serde_json::from_str(line)
        .with_context(|| format!("{} printed something else: {line}", path.display()))
}
