//! Programs of this repository, built as this one was.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A program of a crate.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Program {
    /// `clearway` itself: what `CLEARWAY` says, or built now.
    Clearway,
    /// An example of a crate.
    Example {
        /// The crate.
        package: &'static str,
        /// The example's name.
        name: &'static str,
    },
}

impl Program {
    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clearway => "clearway",
            Self::Example { name, .. } => name,
        }
    }

    /// Builds it, if need be, and tells where it is; a release build if this program is one. One that is in the folder
    /// `CLEARWAY_PROGRAMS` is taken as it is.
    pub(crate) fn build(self) -> Result<PathBuf> {
        if let (Self::Clearway, Some(program)) = (self, std::env::var_os("CLEARWAY")) {
            return Ok(program.into());
        }
        if let Some(folder) = std::env::var_os("CLEARWAY_PROGRAMS") {
            let path = PathBuf::from(folder).join(self.name());
            if path.exists() {
                return Ok(path);
            }
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--message-format=json-render-diagnostics", "--package"]);
        match self {
            Self::Clearway => build.args(["clearway", "--bin", "clearway"]),
            Self::Example { package, name } => build.args([package, "--example", name]),
        };
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let output = build
            .current_dir(super::repository())
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo")?;
        ensure!(output.status.success(), "{} cannot be built", self.name());
        executable(&String::from_utf8_lossy(&output.stdout), self.name())
            .with_context(|| format!("cargo does not say where {} is", self.name()))
    }
}

/// Where a program is, by the messages that cargo printed.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|value| {
        let this = value.pointer("/target/name").and_then(Value::as_str) == Some(name);
        let path = value.get("executable").and_then(Value::as_str).filter(|_| this)?;
        Some(PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_where_cargo_says() {
        let messages = "not json\n\
             {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"clearway\"},\"executable\":null}\n\
             {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"other\"},\"executable\":\"/t/other\"}\n\
             {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"clearway\"},\"executable\":\"/t/clearway\"}\n\
             {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "clearway"), Some(PathBuf::from("/t/clearway")));
        assert_eq!(executable(messages, "vmlinux"), None);
    }
}
