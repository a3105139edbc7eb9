//! The program of this repository, built as this one was.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const NAME: &str = "clearway";

/// Where `clearway` is: what the variable `CLEARWAY` says, or built now; a release build if this program is one.
pub(crate) fn clearway() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("CLEARWAY") {
        return Ok(program.into());
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--message-format=json-render-diagnostics"]);
    build.args(["--package", NAME, "--bin", NAME]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build
        .current_dir(super::repository())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "{NAME} cannot be built");
    executable(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("cargo does not say where {NAME} is"))
}

/// Where the program is, by the messages that cargo printed.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|value| {
        let this = value.pointer("/target/name").and_then(Value::as_str) == Some(NAME);
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
        assert_eq!(executable(messages), Some(PathBuf::from("/t/clearway")));
        assert_eq!(executable("{\"reason\":\"build-finished\",\"success\":true}\n"), None);
    }
}
