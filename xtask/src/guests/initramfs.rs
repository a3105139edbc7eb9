//! What a guest boots into: busybox, modules of its kernel, programs of ours, and a script.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use super::{cpio::Cpio, elf, kernel::Kernel, tools::Fetched};

/// An initramfs that is being put together.
pub(crate) struct Initramfs<'a> {
    kernel: &'a Kernel,
    cpio: Cpio,
    /// Paths that are there.
    present: BTreeSet<String>,
    load: String,
    /// What stands before each mark, after `MARK `.
    who: &'static str,
}

impl<'a> Initramfs<'a> {
    /// With busybox. `who` tells the marks of one guest from those of another on the same console; empty, or a word and
    /// a blank.
    pub(crate) fn new(kernel: &'a Kernel, who: &'static str) -> Result<Self> {
        let (cpio, present, load) = (Cpio::default(), BTreeSet::new(), String::new());
        let mut this = Self { kernel, cpio, present, load, who };
        for directory in ["bin", "dev", "lib", "lib64", "modules", "proc", "sys", "tmp"] {
            this.directory(directory)?;
        }
        this.copy("bin/busybox", kernel.busybox())?;
        this.cpio.symlink("bin/sh", "busybox")?;
        Ok(this)
    }

    /// Adds a file and the directories it lies in.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        if self.present.insert(path.to_owned()) {
            self.cpio.file(path, mode, data)?;
        }
        Ok(())
    }

    /// Adds an executable file of this machine as it is.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(path, 0o755, &bytes)
    }

    /// Adds a program as `bin/name`, with the loader and the libraries it needs out of the system whose root is `root`.
    pub(crate) fn program(&mut self, name: &str, from: &Path, root: &Path) -> Result<()> {
        for (path, library) in elf::libraries_of(from, root)? {
            self.copy(&path, &library)?;
        }
        self.copy(&format!("bin/{name}"), from)
    }

    /// Adds a tool of Debian's.
    pub(crate) fn tool(&mut self, tool: &Fetched) -> Result<()> {
        for path in tool.tool().loads_later() {
            self.copy(&format!("lib/{path}"), &tool.library(path))?;
        }
        self.program(tool.tool().name(), &tool.program(), tool.root())
    }

    /// Adds modules of the kernel with those they depend on; `/init` loads them in order.
    pub(crate) fn modules(&mut self, names: &[&str]) -> Result<()> {
        for (name, bytes) in self.kernel.modules(names)? {
            let path = format!("modules/{name}.ko");
            if self.present.contains(&path) {
                continue;
            }
            self.file(&path, 0o644, &bytes)?;
            let who = self.who;
            self.load
                .push_str(&format!("insmod /{path} || echo 'MARK {who}failed insmod {name}'\n"));
        }
        Ok(())
    }

    /// The archive, whose `/init` mounts the usual, loads the modules, does what `script` says, and powers off. It marks
    /// that it has booted and that it has come to its end.
    pub(crate) fn finish(mut self, script: &str) -> Result<Vec<u8>> {
        let (who, load) = (self.who, &self.load);
        let init = format!(
            "#!/bin/busybox sh\n\
             export PATH=/bin\n\
             /bin/busybox --install -s /bin\n\
             mount -t proc proc /proc\n\
             mount -t sysfs sysfs /sys\n\
             mount -t devtmpfs devtmpfs /dev\n\
             echo MARK {who}booted\n\
             {load}{script}\n\
             echo MARK {who}end\n\
             poweroff -f\n"
        );
        self.file("init", 0o755, init.as_bytes())?;
        self.cpio.finish()
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let mut ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        ends.push(path.len());
        for end in ends {
            let part = path.get(..end).unwrap_or(path);
            if self.present.insert(part.to_owned()) {
                self.cpio.directory(part)?;
            }
        }
        Ok(())
    }
}
