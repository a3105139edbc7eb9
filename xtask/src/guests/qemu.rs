//! A QEMU with a vfio-user client (10.1 or newer), which Debian has in trixie-backports.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{
    Cache,
    apt::{Apt, Pin},
};

const QEMU: Pin = Pin {
    package: "qemu-system-x86",
    version: "1:11.1.3+ds-1~bpo13+1",
    suite: "trixie-backports",
    follow: None,
};

/// A QEMU to run.
pub(crate) struct Qemu {
    installed: Installed,
}

enum Installed {
    /// Unpacked packages, with a C library of their own.
    Unpacked(PathBuf),
    /// A program of the person's own.
    Program(PathBuf),
}

/// What becomes of a QEMU when whoever has started it is gone.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Lives {
    /// It ends.
    WithWhoeverStartsIt,
    /// It goes on.
    On,
}

impl Qemu {
    /// The one in the cache, or what `CLEARWAY_QEMU` says.
    pub(crate) fn fetch(cache: &Cache) -> Result<Self> {
        if let Some(program) = std::env::var_os("CLEARWAY_QEMU") {
            return Ok(Self { installed: Installed::Program(program.into()) });
        }
        let root = cache.component("qemu", QEMU.version, |into| {
            Apt::new(&cache.folder)?.unpack(&QEMU, true, into)
        })?;
        Ok(Self { installed: Installed::Unpacked(root) })
    }

    /// A command that runs `qemu-system-x86_64`, to which the machine's options are added.
    pub(crate) fn command(&self) -> Command {
        let root = match &self.installed {
            Installed::Program(program) => return Command::new(program),
            Installed::Unpacked(root) => root,
        };
        // The packages are of another release than the machine: they run on their own loader and libraries.
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        let paths = [libraries.clone(), libraries.join("systemd"), libraries.join("pulseaudio")];
        let paths: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
        command.arg("--library-path").arg(paths.join(":"));
        command.arg(root.join("usr/bin/qemu-system-x86_64"));
        command.arg("-L").arg(root.join("usr/share/qemu"));
        command.arg("-L").arg(root.join("usr/share/seabios"));
        // Accelerators and most devices are loadable modules.
        command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
        command
    }

    /// A program that runs it as [`Self::command`] does, for others to start: a script, written to `path`.
    pub(crate) fn script(&self, path: &Path, lives: Lives) -> Result<()> {
        let command = self.command();
        let quote = |word: &OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
        let mut text = "#!/bin/sh\n".to_owned();
        for (name, value) in command.get_envs() {
            let value = value.map(quote).unwrap_or_default();
            text.push_str(&format!("export {}={value}\n", name.to_string_lossy()));
        }
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(quote).collect();
        let with_starter = match lives {
            Lives::WithWhoeverStartsIt => "setpriv --pdeathsig KILL ",
            Lives::On => "",
        };
        text.push_str(&format!("exec {with_starter}{} \"$@\"\n", words.join(" ")));
        fs::write(path, text)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// The version it says it is.
    pub(crate) fn version(&self) -> Result<String> {
        let output = self.command().arg("--version").output().context("starting QEMU")?;
        ensure!(
            output.status.success(),
            "QEMU does not start:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or_default();
        Ok(line.trim_start_matches("QEMU emulator version ").to_owned())
    }
}

/// The device option that attaches a vfio-user socket, on the root port `bus`.
pub(crate) fn vfio_user_device(id: &str, bus: &str, socket: &Path) -> String {
    serde_json::json!({
        "driver": "vfio-user-pci",
        "id": id,
        "bus": bus,
        "socket": { "type": "unix", "path": socket },
    })
    .to_string()
}
