//! Programs of this repository, built as this one was.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A program of this repository.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub(crate) enum Program {
    /// `clearway`.
    Clearway,
    /// A package's integration test.
    Test {
        /// The package.
        package: &'static str,
        /// The test.
        name: &'static str,
    },
}

impl Program {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clearway => "clearway",
            Self::Test { name, .. } => name,
        }
    }

    /// Where it is: built now, a release build if this program is one; `clearway` is what the variable `CLEARWAY` says,
    /// if there is one.
    pub(crate) fn find(self) -> Result<PathBuf> {
        let name = self.name();
        let mut build = Command::new(env!("CARGO"));
        match self {
            Self::Clearway => {
                if let Some(program) = std::env::var_os("CLEARWAY") {
                    return Ok(program.into());
                }
                build.args(["build", "--package", name, "--bin", name]);
            }
            Self::Test { package, .. } => {
                build.args(["test", "--no-run", "--package", package, "--test", name]);
            }
        }
        build.args(["--quiet", "--message-format=json-render-diagnostics"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let output = build
            .current_dir(super::repository())
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo")?;
        ensure!(output.status.success(), "{name} cannot be built");
        executable(&String::from_utf8_lossy(&output.stdout), name)
            .with_context(|| format!("cargo does not say where {name} is"))
    }
}

/// Where the program is, by the messages that cargo printed.
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
    fn the_program_is_where_cargo_says() {
        let messages = "not json\n\
             {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"clearway\"},\"executable\":null}\n\
             {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"other\"},\"executable\":\"/t/other\"}\n\
             {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"clearway\"},\"executable\":\"/t/clearway\"}\n\
             {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "clearway"), Some(PathBuf::from("/t/clearway")));
        assert_eq!(
            executable("{\"reason\":\"build-finished\",\"success\":true}\n", "clearway"),
            None
        );
    }
}
