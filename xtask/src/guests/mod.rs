//! Tests with stock QEMU and stock Debian kernels as the other end.
//!
//! What they need is fetched once, as an ordinary user, into `target/guests` and pinned here. `qtest` needs no
//! guest: QEMU's own vfio-user client is driven register by register, in about a second. `qemu` boots Debian
//! generic kernels under QEMU's emulator, which takes minutes; they are judged by what they print on their serial
//! line, never by time. `kvm` boots them as Hyper-V guests of ours, within an emulated machine that has KVM.

mod apt;
mod avf;
mod checksums;
mod copy_device;
mod cpio;
mod elf;
mod image;
mod initramfs;
mod kernel;
mod kvm;
mod machine;
mod programs;
mod qemu;
mod qemu_stories;
mod qtest;
mod qtest_tests;
mod stack;
mod telling;
mod tools;
mod usage;
mod verdict;
mod vmlinux;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};

use self::{
    kernel::{Kernel, Series},
    kvm::KvmTests,
    qemu::Qemu,
    qemu_stories::QemuTests,
};

/// Runs tests in which stock QEMU is the other end. Without a command all of them: qtest, qemu and kvm.
#[derive(Args)]
pub(crate) struct GuestTests {
    #[command(subcommand)]
    which: Option<Which>,
}

#[derive(Subcommand)]
enum Which {
    /// Fetches QEMU, the kernel and busybox into the cache, and prints their versions.
    Fetch,
    /// Writes a guest to boot by hand into a folder: a stock kernel `vmlinuz`, `initrd.img`, which ends in a shell, and `qemu`,
    /// which runs the fetched QEMU.
    Image {
        /// The folder.
        folder: PathBuf,
        /// The kernel. The default is one whose iavf net_failover can join with a virtio-net.
        #[arg(long, value_enum, default_value = "7.2")]
        kernel: Series,
    },
    /// Drives QEMU's vfio-user client without a guest: first against a small device, then against a VF.
    Qtest {
        /// Two vfio-user sockets that serve AVF functions of one NIC switch, instead of an adapter started here.
        #[arg(long = "socket", num_args = 1)]
        sockets: Vec<PathBuf>,
    },
    /// Boots stock Debian kernels with a VF, with a VF beside a virtio-net, or with an emulated adapter: minutes.
    Qemu(QemuTests),
    /// Boots stock Debian kernels under our KVM partition, within an emulated machine that has KVM: minutes.
    Kvm(KvmTests),
    /// Serves an emulated adapter, with a host behind it that answers ARP and pings as 10.0.0.1: for trying other
    /// guests by hand. QEMU's machine is to be `pc`, with its memory shared, and with a `vfio-user-pci` on the socket.
    ServeEmulatedAdapter {
        /// The vfio-user socket to make.
        socket: PathBuf,
    },
}

/// Does what the command line says.
pub(crate) fn run(tests: &GuestTests) -> Result<()> {
    match &tests.which {
        None => run_all(),
        Some(which) => run_one(which),
    }
}

/// Tests of every kind, also after one that failed.
fn run_all() -> Result<()> {
    let kinds = [
        ("qtest", Which::Qtest { sockets: Vec::new() }),
        ("qemu", Which::Qemu(QemuTests::default())),
        ("kvm", Which::Kvm(KvmTests::default())),
    ];
    let mut failed = Vec::new();
    for (name, which) in kinds {
        println!("== {name}");
        if let Err(error) = run_one(&which) {
            println!("{name} failed: {error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "not all have passed: {}", failed.join(", "));
    Ok(())
}

fn run_one(which: &Which) -> Result<()> {
    match which {
        Which::Fetch => {
            let cache = Cache::open()?;
            let qemu = Qemu::fetch(&cache)?;
            println!("QEMU {}", qemu.version()?);
            println!("Linux {}", Kernel::fetch(&cache, Series::default())?.release());
            Ok(())
        }
        Which::Image { folder, kernel } => image::write(folder, *kernel),
        Which::Qtest { sockets } => {
            let sockets: Vec<&Path> = sockets.iter().map(PathBuf::as_path).collect();
            let qemu = Qemu::fetch(&Cache::open()?)?;
            qtest_tests::run(&qemu, &sockets)
        }
        Which::Qemu(tests) => qemu_stories::run(tests),
        Which::Kvm(tests) => kvm::run(tests),
        Which::ServeEmulatedAdapter { socket } => qemu_stories::serve(socket),
    }
}

/// Shell functions of guests that ping.
const PING_FUNCTIONS: &str = include_str!("pings.sh");

/// The folder for what was fetched, held by one process at a time.
pub(crate) struct Cache {
    folder: PathBuf,
    _lock: File,
}

impl Cache {
    /// `target/guests`, or what `CLEARWAY_GUESTS` says. Waits for another process that is fetching.
    fn open() -> Result<Self> {
        let folder = match std::env::var_os("CLEARWAY_GUESTS") {
            Some(folder) => PathBuf::from(folder),
            None => repository().join("target/guests"),
        };
        fs::create_dir_all(&folder)
            .with_context(|| format!("making the cache {}", folder.display()))?;
        let lock = File::create(folder.join("lock"))?;
        lock.lock().context("waiting for another process that fetches")?;
        Ok(Self { folder, _lock: lock })
    }

    /// The folder for logs of stories.
    fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// The folder of a component, made by `fill` if it is not there at this `version`; `fill` returns the names of
    /// the packages for the record.
    fn component(
        &self,
        name: &str,
        version: &str,
        fill: impl FnOnce(&Path) -> Result<Vec<String>>,
    ) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        let record = self.folder.join(format!("{name}.packages"));
        let first_line = format!("# pinned: {version}");
        if fs::read_to_string(&record).is_ok_and(|text| text.lines().next() == Some(&first_line)) {
            return Ok(folder);
        }
        let _ = fs::remove_file(&record);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let packages = fill(&folder)?;
        fs::write(&record, format!("{first_line}\n{}\n", packages.join("\n")))?;
        Ok(folder)
    }
}

/// The repository's root.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
