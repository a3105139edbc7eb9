//! Programs of Debian's that guests have beside busybox.

use std::path::{Path, PathBuf};

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
    /// Loads a kernel to be jumped into.
    Kexec,
}

impl Tool {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ethtool => "ethtool",
            Self::Kexec => "kexec",
        }
    }

    fn pin(self) -> Pin {
        let (package, version) = match self {
            Self::Ethtool => ("ethtool", "1:6.14.2-1"),
            Self::Kexec => ("kexec-tools", "1:2.0.29-2+b2"),
        };
        Pin { package, version, suite: "trixie", follow: None }
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
        self.root.join("usr/sbin").join(self.tool.name())
    }
}
