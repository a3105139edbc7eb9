//! Programs of Debian's beside busybox: those that guests have, and those that unpack their kernels.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    Cache,
    apt::{Apt, Pin},
};

/// One of them.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub(crate) enum Tool {
    /// Asks network drivers for what `ip` does not, and tells them.
    Ethtool,
    /// Measures what TCP and UDP carry.
    Iperf3,
    /// Loads a kernel to be jumped into.
    Kexec,
    /// Records frames, and says of each what it is and whether its checksums are right.
    Tcpdump,
    /// Unpacks what it has packed; busybox does not know all of its filters.
    Xz,
    /// Unpacks what it has packed.
    Zstd,
}

impl Tool {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ethtool => "ethtool",
            Self::Iperf3 => "iperf3",
            Self::Kexec => "kexec",
            Self::Tcpdump => "tcpdump",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    fn pin(self) -> Pin {
        let (package, version) = match self {
            Self::Ethtool => ("ethtool", "1:6.14.2-1"),
            Self::Iperf3 => ("iperf3", "3.18-2+deb13u2"),
            Self::Kexec => ("kexec-tools", "1:2.0.29-2+b2"),
            Self::Tcpdump => ("tcpdump", "4.99.5-2"),
            Self::Xz => ("xz-utils", "5.8.1-1+deb13u1"),
            Self::Zstd => ("zstd", "1.5.7+dfsg-1"),
        };
        Pin { package, version, suite: "trixie", follow: None }
    }

    /// Libraries that it does not name, and loads while it runs.
    pub(crate) fn loads_later(self) -> &'static [&'static str] {
        match self {
            // To end its threads.
            Self::Iperf3 => &["libgcc_s.so.1"],
            Self::Ethtool | Self::Kexec | Self::Tcpdump | Self::Xz | Self::Zstd => &[],
        }
    }

    /// Unpacks its package, and those that it depends on, into the cache.
    pub(crate) fn fetch(self, cache: &Cache) -> Result<Fetched> {
        let pin = self.pin();
        let root = cache.component(pin.package, pin.version, |into| {
            Apt::new(&cache.folder)?.unpack(&pin, true, into)
        })?;
        Ok(Fetched { tool: self, root })
    }
}

/// A tool in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    tool: Tool,
    root: PathBuf,
}

impl Fetched {
    /// Which it is.
    pub(crate) fn tool(&self) -> Tool {
        self.tool
    }

    /// The folder that the packages are unpacked in.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The program.
    pub(crate) fn program(&self) -> PathBuf {
        let folder = match self.tool {
            Tool::Ethtool | Tool::Kexec => "usr/sbin",
            Tool::Iperf3 | Tool::Tcpdump | Tool::Xz | Tool::Zstd => "usr/bin",
        };
        self.root.join(folder).join(self.tool.name())
    }

    /// A library of its.
    pub(crate) fn library(&self, name: &str) -> PathBuf {
        self.root.join("usr/lib/x86_64-linux-gnu").join(name)
    }

    /// A command that runs it on this machine, with its own loader and libraries.
    pub(crate) fn command(&self) -> Command {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&libraries).arg(self.program());
        command
    }
}
