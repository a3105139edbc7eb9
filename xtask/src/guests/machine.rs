//! A QEMU process that ends with its test.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use super::usage::with_children;

/// A running QEMU, or whoever runs it; killed when this drops.
pub(crate) struct Machine {
    child: Child,
    errors: PathBuf,
}

impl Machine {
    /// Starts it; what it says on standard error is kept in `errors`.
    pub(crate) fn start(mut command: Command, errors: PathBuf) -> Result<Self> {
        let file = File::create(&errors)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("starting QEMU")?;
        Ok(Self { child, errors })
    }

    /// Its process id.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that it and what it has started have used.
    pub(crate) fn cpu(&self) -> Duration {
        with_children(self.child.id())
    }

    /// Its exit status, once it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its exit status, when it has ended.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// What it has said on standard error.
    pub(crate) fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
