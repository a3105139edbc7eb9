//! A guest to boot by hand: a stock kernel, an initramfs that ends in a shell, and QEMU.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{
    Cache,
    kernel::{Kernel, Series},
    qemu::{Lives, Qemu},
};

/// The drivers of both paths, and what interfaces can be joined with by hand.
const MODULES: [&str; 6] = ["virtio_net", "net_failover", "iavf", "bonding", "8021q", "macvlan"];
/// Ends with the shell.
const SHELL: &str = "setsid cttyhack sh";

/// Writes `vmlinuz`, `initrd.img`, and `qemu`, which runs QEMU, into a folder, which is made if it is not there.
pub(crate) fn write(folder: &Path, series: Series) -> Result<()> {
    let cache = Cache::open()?;
    let (qemu, kernel) = (Qemu::fetch(&cache)?, Kernel::fetch(&cache, series)?);
    drop(cache);
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let [image, initramfs, program] =
        ["vmlinuz", "initrd.img", "qemu"].map(|name| folder.join(name));
    fs::copy(kernel.image(), &image).with_context(|| format!("writing {}", image.display()))?;
    fs::write(&initramfs, kernel.initramfs(&MODULES, &[], SHELL)?)
        .with_context(|| format!("writing {}", initramfs.display()))?;
    qemu.script(&program, Lives::On)?;
    println!("Linux {}: {}", kernel.release(), image.display());
    println!("busybox, ethtool and {}: {}", MODULES.join(", "), initramfs.display());
    println!("QEMU {}: {}", qemu.version()?, program.display());
    Ok(())
}
