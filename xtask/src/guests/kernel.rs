//! Stock Debian kernels with the modules a test needs, and what is needed to boot and to unpack them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::{
    Cache,
    apt::{Apt, Pin},
    initramfs::Initramfs,
    tools::{Fetched, Tool},
    vmlinux::{self, Compression},
};

/// A series of Debian's generic kernels; the cloud flavour has no iavf.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default, ValueEnum)]
pub(crate) enum Series {
    /// Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13.
    #[default]
    #[value(name = "6.12")]
    V6_12,
    /// Backported to Debian 13.
    #[value(name = "7.2")]
    V7_2,
}

impl Series {
    /// The folder in the cache.
    fn component(self) -> &'static str {
        match self {
            Self::V6_1 => "kernel-6.1",
            Self::V6_12 => "kernel",
            Self::V7_2 => "kernel-7.2",
        }
    }

    /// The packages that have image and modules.
    fn pins(self) -> &'static [Pin] {
        match self {
            Self::V6_1 => &[Pin {
                package: "linux-image-6.1.0-50-amd64",
                version: "6.1.176-1",
                suite: "bookworm",
                follow: Some("linux-image-amd64"),
            }],
            Self::V6_12 => &[Pin {
                package: "linux-image-6.12.107+deb13-amd64",
                version: "6.12.107-1",
                suite: "trixie",
                follow: Some("linux-image-amd64"),
            }],
            Self::V7_2 => &[
                Pin {
                    package: "linux-binary-7.2.12+deb13-amd64",
                    version: "7.2.12-1~bpo13+1",
                    suite: "trixie-backports",
                    follow: None,
                },
                Pin {
                    package: "linux-modules-7.2.12+deb13-amd64",
                    version: "7.2.12-1~bpo13+1",
                    suite: "trixie-backports",
                    follow: None,
                },
            ],
        }
    }
}

const BUSYBOX: Pin =
    Pin { package: "busybox-static", version: "1:1.37.0-6+b9", suite: "trixie", follow: None };

/// A kernel with its modules, unpacked.
pub(crate) struct Kernel {
    root: PathBuf,
    release: String,
    image: PathBuf,
    busybox: PathBuf,
    ethtool: Fetched,
}

impl Kernel {
    /// The one of a series in the cache.
    pub(crate) fn fetch(cache: &Cache, series: Series) -> Result<Self> {
        let pins = series.pins();
        let versions: Vec<&str> = pins.iter().map(|pin| pin.version).collect();
        let root =
            cache.component(series.component(), versions.first().unwrap_or(&""), |into| {
                let mut names = Vec::new();
                for pin in pins {
                    names.extend(Apt::of(&cache.folder, pin)?.unpack(pin, false, into)?);
                }
                Ok(names)
            })?;
        let busybox = cache.component("busybox", BUSYBOX.version, |into| {
            Apt::new(&cache.folder)?.unpack(&BUSYBOX, false, into)
        })?;
        let ethtool = Tool::Ethtool.fetch(cache)?;
        let (release, image) = image_in(&root)?;
        let busybox = ["usr/bin/busybox", "bin/busybox"]
            .iter()
            .map(|path| busybox.join(path))
            .find(|path| path.exists())
            .context("the busybox package has no busybox")?;
        Ok(Self { root, release, image, busybox, ethtool })
    }

    /// What `uname -r` says in it.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The kernel's image.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// The busybox for its guests.
    pub(crate) fn busybox(&self) -> &Path {
        &self.busybox
    }

    /// The kernel as an ELF file, unpacked from its image when first asked for.
    pub(crate) fn vmlinux(&self, cache: &Cache) -> Result<PathBuf> {
        let path = self.root.join("vmlinux");
        if path.exists() {
            return Ok(path);
        }
        let image = fs::read(&self.image)?;
        let (compression, payload) = vmlinux::payload(&image)
            .with_context(|| format!("unpacking {}", self.image.display()))?;
        let compressed = path.with_extension("compressed");
        fs::write(&compressed, payload)?;
        let mut command = match compression {
            Compression::Gzip => self.busybox_command("zcat"),
            Compression::Xz => unpacker(Tool::Xz, cache)?,
            Compression::Zstd => unpacker(Tool::Zstd, cache)?,
        };
        let unpacked = path.with_extension("unpacked");
        let status = command
            .stdin(File::open(&compressed)?)
            .stdout(File::create(&unpacked)?)
            .status()
            .context("starting a decompressor")?;
        ensure!(status.success(), "{} cannot be decompressed", self.image.display());
        fs::remove_file(compressed)?;
        fs::rename(&unpacked, &path)?;
        Ok(path)
    }

    fn busybox_command(&self, applet: &str) -> Command {
        let mut command = Command::new(&self.busybox);
        command.arg(applet);
        command
    }

    /// An initramfs with busybox, ethtool, the given tools, the given modules and all they depend on under `/modules`, and
    /// `/init`. Before `script`, `/init` has mounted the usual and loaded the modules, in order.
    pub(crate) fn initramfs(
        &self,
        modules: &[&str],
        tools: &[Fetched],
        script: &str,
    ) -> Result<Vec<u8>> {
        let mut initramfs = Initramfs::new(self, "")?;
        initramfs.tool(&self.ethtool)?;
        tools.iter().try_for_each(|tool| initramfs.tool(tool))?;
        initramfs.modules(modules)?;
        initramfs.finish(script)
    }

    /// The modules and those they depend on, each after what it depends on.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let folder = ["usr/lib/modules", "lib/modules"]
            .iter()
            .map(|path| self.root.join(path).join(&self.release))
            .find(|path| path.exists())
            .context("the kernel package has no modules")?;
        // Newer packages do not say what is built in: there it is what is no module.
        let built_in = fs::read_to_string(folder.join("modules.builtin")).ok();
        let mut found = Vec::new();
        find_modules(&folder.join("kernel"), &mut found)?;
        let mut ordered: Vec<(String, Vec<u8>)> = Vec::new();
        // The names still to do; a name is done when it comes up again with all it needs before it.
        let mut open: Vec<(String, bool)> =
            names.iter().rev().map(|name| ((*name).to_owned(), false)).collect();
        let mut read: Vec<(String, Vec<u8>)> = Vec::new();
        while let Some((name, expanded)) = open.pop() {
            if ordered.iter().any(|(done, _)| *done == name) {
                continue;
            }
            if expanded {
                if let Some(at) = read.iter().position(|(other, _)| *other == name) {
                    ordered.push(read.swap_remove(at));
                }
                continue;
            }
            ensure!(open.len() < 1000, "the modules depend on each other in a circle");
            let Some(path) = found.iter().find(|path| module_name(path) == Some(name.clone()))
            else {
                let line = format!("/{}.ko", name.replace('-', "_"));
                let known = |list: &String| {
                    list.lines().any(|built_in| built_in.replace('-', "_").ends_with(&line))
                };
                if built_in.as_ref().is_none_or(known) {
                    continue;
                }
                bail!("Linux {} has no module {name}", self.release);
            };
            let bytes = self.decompress(path)?;
            let depends = depends_of(&bytes);
            read.push((name.clone(), bytes));
            open.push((name, true));
            open.extend(depends.into_iter().map(|name| (name, false)));
        }
        Ok(ordered)
    }

    /// The module's bytes; busybox knows xz, so that the machine need not.
    fn decompress(&self, path: &Path) -> Result<Vec<u8>> {
        if path.extension().is_none_or(|extension| extension != "xz") {
            return Ok(fs::read(path)?);
        }
        let output = self.busybox_command("xzcat").arg(path).output()?;
        ensure!(output.status.success(), "{} cannot be decompressed", path.display());
        Ok(output.stdout)
    }
}

/// The kernel's release and image in unpacked packages: `/boot/vmlinuz-…`, or beside its modules from 6.19 on.
fn image_in(root: &Path) -> Result<(String, PathBuf)> {
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let boot = names("boot").into_iter().find_map(|name| {
        let release = name.strip_prefix("vmlinuz-")?.to_owned();
        Some((release, root.join("boot").join(&name)))
    });
    let beside_modules = || {
        let folder = "usr/lib/modules";
        names(folder).into_iter().find_map(|release| {
            let image = root.join(folder).join(&release).join("vmlinuz");
            image.exists().then_some((release, image))
        })
    };
    boot.or_else(beside_modules).context("the kernel packages have no vmlinuz")
}

/// A command that decompresses from standard input to standard output.
fn unpacker(tool: Tool, cache: &Cache) -> Result<Command> {
    let mut command = tool.fetch(cache)?.command();
    command.arg("-dc");
    Ok(command)
}

fn find_modules(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// The name by which other modules call a file `a-b.ko` or `a-b.ko.xz`: `a_b`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// The modules that a module names in the `depends=` line of its `.modinfo` section.
fn depends_of(module: &[u8]) -> Vec<String> {
    // Lines of that section end with NUL, and no other part of a module has one that starts so.
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value: Vec<u8> =
        module.iter().skip(at + key.len()).take_while(|byte| **byte != 0).copied().collect();
    String::from_utf8_lossy(&value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let module = b"\x7fELF...\0license=GPL\0depends=libeth,libie\0name=iavf\0";
        assert_eq!(depends_of(module), ["libeth", "libie"]);
        assert!(depends_of(b"\x7fELF\0depends=\0name=x\0").is_empty());
        assert!(depends_of(b"no module").is_empty());
    }

    #[test]
    fn the_image_is_found_in_old_and_new_packages() {
        let root = tempfile::tempdir().unwrap();
        assert!(image_in(root.path()).is_err());
        let new = root.path().join("usr/lib/modules/7.2.12-x/vmlinuz");
        fs::create_dir_all(new.parent().unwrap()).unwrap();
        fs::write(&new, "").unwrap();
        assert_eq!(image_in(root.path()).unwrap(), ("7.2.12-x".to_owned(), new));
        let old = root.path().join("boot/vmlinuz-6.12.1-x");
        fs::create_dir_all(old.parent().unwrap()).unwrap();
        fs::write(&old, "").unwrap();
        assert_eq!(image_in(root.path()).unwrap(), ("6.12.1-x".to_owned(), old));
    }

    #[test]
    fn files_are_called_as_modules_are() {
        assert_eq!(module_name(Path::new("a/pci-hyperv.ko.xz")).unwrap(), "pci_hyperv");
        assert_eq!(module_name(Path::new("iavf.ko")).unwrap(), "iavf");
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
