//! Debian packages without root: a private apt root, downloads checked by apt's signatures, `dpkg-deb -x`.
//!
//! Nothing of the machine's own package state is read or changed, except its choice of mirror and proxy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

/// The release packages are taken from, and its newer additions.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How old the package lists may be when something is to be fetched.
const LISTS_AGE: Duration = Duration::from_secs(900);
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// A package at the version that the tests were last seen to pass with.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Pin {
    /// The package's name.
    pub(crate) package: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
    /// The suite to prefer for it and what it depends on.
    pub(crate) suite: &'static str,
    /// A package that depends on the newest of its kind, for when the mirror no longer has the pinned one.
    pub(crate) follow: Option<&'static str>,
}

/// A private apt root.
pub(crate) struct Apt {
    root: PathBuf,
    /// For people.
    suites: String,
}

impl Apt {
    /// A root in `folder`, made if need be.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        Self::in_folder(folder.join("apt"), &SUITES)
    }

    /// A root for a pin: the common one, or, for a suite that is not in it, one with that suite alone, so that what one
    /// release no longer has does not hinder the other.
    pub(crate) fn of(folder: &Path, pin: &Pin) -> Result<Self> {
        if SUITES.contains(&pin.suite) {
            return Self::new(folder);
        }
        Self::in_folder(folder.join(format!("apt-{}", pin.suite)), &[pin.suite])
    }

    fn in_folder(root: PathBuf, suites: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: install the package debian-archive-keyring, or set CLEARWAY_QEMU and \
             CLEARWAY_KERNEL to programs of your own"
        );
        for part in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(root.join(part)).context("making a private apt root")?;
        }
        fs::write(root.join("status"), "")?;
        let mirror = mirror();
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        fs::write(root.join("etc/sources.list"), sources)?;
        Ok(Self { root, suites: suites.join(" and ") })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (key, value) in [
            ("Dir::State", "."),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::sourcelist", "etc/sources.list"),
        ] {
            command.arg("-o").arg(format!("{key}={}", self.root.join(value).display()));
        }
        for option in [
            "Dir::Etc::sourceparts=/dev/null",
            "Dir::Etc::preferences=/dev/null",
            "Dir::Etc::preferencesparts=/dev/null",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "APT::Sandbox::User=",
            "APT::Get::List-Cleanup=false",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "Debug::NoLocking=true",
        ] {
            command.arg("-o").arg(option);
        }
        // The machine may look at its sources by other means (DEP-11, Contents); this root needs Packages alone.
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, command: &mut Command, what: &str) -> Result<String> {
        let output = command
            .output()
            .with_context(|| format!("{what}: apt is not to be found; these tests need Debian"))?;
        if !output.status.success() {
            bail!("{what} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Reads the package lists, unless that was done a short while ago.
    fn update(&self) -> Result<()> {
        let stamp = self.root.join("updated");
        let age = fs::metadata(&stamp).and_then(|metadata| metadata.modified()).ok();
        if age.and_then(|at| at.elapsed().ok()).is_some_and(|age| age < LISTS_AGE) {
            return Ok(());
        }
        eprintln!("guests: reading the package lists of {}", self.suites);
        self.run(self.command("apt-get").args(["-q", "update"]), "apt-get update")?;
        fs::write(stamp, "")?;
        Ok(())
    }

    /// Downloads a package, with what it depends on if asked, and unpacks all of it into `into`. Returns the
    /// names of the package files. Takes the newest version, and says so, when the pinned one has left the mirror.
    pub(crate) fn unpack(
        &self,
        pin: &Pin,
        with_dependencies: bool,
        into: &Path,
    ) -> Result<Vec<String>> {
        self.update()?;
        let target = self.target(pin)?;
        eprintln!("guests: downloading {target}");
        let mut archives = into.as_os_str().to_owned();
        archives.push(".debs");
        let archives = PathBuf::from(archives);
        let _ = fs::remove_dir_all(&archives);
        fs::create_dir_all(archives.join("partial"))?;
        if with_dependencies {
            let mut command = self.command("apt-get");
            command.arg("-o").arg(format!("Dir::Cache::archives={}", archives.display()));
            command.args([
                "-q",
                "-y",
                "--no-install-recommends",
                "--download-only",
                "-t",
                pin.suite,
            ]);
            self.run(command.args(["install", &target]), "apt-get install --download-only")?;
        } else {
            let mut command = self.command("apt-get");
            command.current_dir(&archives).args(["-q", "download", &target]);
            self.run(&mut command, "apt-get download")?;
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let status = Command::new("dpkg-deb").arg("-x").arg(&path).arg(into).status()?;
                ensure!(status.success(), "dpkg-deb cannot unpack {}", path.display());
                names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        fs::remove_dir_all(&archives)?;
        names.sort();
        Ok(names)
    }

    /// What to ask apt for: the pinned version if the mirror has it, else the newest.
    fn target(&self, pin: &Pin) -> Result<String> {
        let show = |package: &str| {
            self.run(self.command("apt-cache").args(["show", package]), "apt-cache show")
        };
        let pinned = format!("Version: {}", pin.version);
        if show(pin.package).is_ok_and(|text| text.lines().any(|line| line == pinned)) {
            return Ok(format!("{}={}", pin.package, pin.version));
        }
        eprintln!(
            "guests: the mirror no longer has {} {}; taking its newest. If the tests pass, pin that in \
             xtask/src/guests.",
            pin.package, pin.version
        );
        let Some(follow) = pin.follow else { return Ok(format!("{}/{}", pin.package, pin.suite)) };
        let text = show(follow)?;
        let stem = series_of(pin.package);
        text.lines()
            .filter_map(|line| line.strip_prefix("Depends: "))
            .flat_map(|depends| depends.split(", "))
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(stem))
            .map(str::to_owned)
            .with_context(|| format!("{follow} depends on no {stem}*"))
    }
}

/// The part of a kernel package's name that its successors of the same series share: `linux-image-6.12.`.
fn series_of(package: &str) -> &str {
    package.match_indices('.').nth(1).map_or(package, |(at, _)| package.split_at(at + 1).0)
}

/// The machine's own mirror of Debian, or the common one.
fn mirror() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
        .unwrap_or_else(|| DEFAULT_MIRROR.to_owned())
}

/// The first mirror of Debian that a sources file names.
fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.contains("://") && word.ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_followed_within_its_series() {
        assert_eq!(series_of("linux-image-6.12.107+deb13-amd64"), "linux-image-6.12.");
        assert_eq!(series_of("linux-image-6.1.0-50-amd64"), "linux-image-6.1.");
        assert_eq!(series_of("linux-image-amd64"), "linux-image-amd64");
    }

    #[test]
    fn the_mirror_is_found_in_both_kinds_of_sources_files() {
        let one_line = "# deb http://old/debian x\ndeb [arch=amd64] https://mirror.example/debian/ trixie main\n";
        assert_eq!(mirror_in(one_line).unwrap(), "https://mirror.example/debian");
        let deb822 =
            "Types: deb\nURIs: http://security/debian-security http://deb.debian.org/debian\n";
        assert_eq!(mirror_in(deb822).unwrap(), "http://deb.debian.org/debian");
        assert_eq!(mirror_in("deb https://deb.nodesource.com/node_20.x nodistro main"), None);
    }
}
