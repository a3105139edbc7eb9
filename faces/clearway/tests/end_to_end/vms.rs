//! VMs as a user runs them: `clearway vm run`.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::common::*;

/// Whether VMs can be run here; says why if not.
pub(crate) fn vms_can_run() -> bool {
    // What a VM's process asks the kernel for.
    let flags =
        ["--user", "--map-root-user", "--net", "--mount", "--uts", "--pid", "--fork", "true"];
    let possible = Command::new("unshare").args(flags).output();
    match possible {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("skipped: namespaces are forbidden here: {}", text(&output.stderr).trim());
            false
        }
        // Not installed; the test itself will tell.
        Err(_) => true,
    }
}

/// Whether a program is installed; says so if not.
pub(crate) fn is_installed(program: &str) -> bool {
    let installed = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !installed {
        println!("skipped: {program} is not installed");
    }
    installed
}

/// A VM in which a program runs. It is killed when this is dropped.
///
/// A VM ends with its program. One that is to stay until others have heard it reads its standard input, which ends
/// with [`Vm::finish`].
pub(crate) struct Vm {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Vm {
    /// `clearway vm run`, its files in `directory`.
    pub(crate) fn run(
        directory: &Path,
        name: &str,
        socket: &Path,
        address: &str,
        command: &[&str],
    ) -> Self {
        let mut child = Command::new(CLEARWAY)
            .env("XDG_RUNTIME_DIR", directory)
            .args([
                "vm",
                "run",
                name,
                "--ip",
                address,
                "--vf-socket",
                socket.to_str().unwrap(),
                "--",
            ])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let input = child.stdin.take();
        Self { child, input, output }
    }

    /// Waits for a line of its program's output that has these words.
    pub(crate) fn wait_for_line(&mut self, words: &str) {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.output.read_line(&mut line).unwrap() > 0,
                "it ended before {words}: {all}"
            );
            if line.contains(words) {
                return;
            }
            all.push_str(&line);
        }
    }

    /// Waits for its end; returns what its program wrote.
    pub(crate) fn finish(mut self) -> String {
        self.input = None;
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {rest}");
        rest
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
