//! A guest's disks: what `--disk` says, and the images behind it.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use kvm_partition::{KvmPartition, VirtioDevice, layout::MAX_VIRTIO};
use virtio_block::{Access, BlockDevice, BlockDeviceConfig, Image};

/// `FILE` or `FILE,ro`.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(in crate::vm) struct DiskChoice {
    path: PathBuf,
    access: Access,
}

impl FromStr for DiskChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (path, access) = match text.strip_suffix(",ro") {
            Some(path) => (path, Access::ReadOnly),
            None => (text, Access::ReadWrite),
        };
        if path.is_empty() {
            return Err("a file is missing: FILE, or FILE,ro for a disk that is not written");
        }
        Ok(Self { path: path.into(), access })
    }
}

/// Opens and locks the images, for all lives of the guest.
pub(super) fn open(choices: &[DiskChoice]) -> Result<Vec<Arc<Image>>> {
    if choices.len() > MAX_VIRTIO {
        bail!("{} disks are too many: a guest has at most {MAX_VIRTIO}", choices.len());
    }
    let mut seen: BTreeMap<(u64, u64), &Path> = BTreeMap::new();
    for DiskChoice { path, .. } in choices {
        // Those that cannot be looked at are told of when they are opened.
        let Ok(metadata) = std::fs::metadata(path) else { continue };
        if let Some(other) = seen.insert((metadata.dev(), metadata.ino()), path) {
            let (path, other) = (path.display(), other.display());
            let file = if path.to_string() == other.to_string() {
                format!("{path} is given twice")
            } else {
                format!("{path} and {other} are the same file")
            };
            bail!("the disk image {file}: each disk of a guest needs an image of its own");
        }
    }
    let open = |choice: &DiskChoice| -> Result<_> {
        Ok(Arc::new(Image::open(&choice.path, choice.access)?))
    };
    choices.iter().map(open).collect()
}

/// Gives a guest that is not started yet its disks, in this order.
pub(super) fn attach(partition: &KvmPartition, images: &[Arc<Image>]) -> Result<()> {
    for (image, index) in images.iter().zip(0..) {
        let subject = || format!("the disk {}", image.path().display());
        let config = BlockDeviceConfig {
            image: Arc::clone(image),
            memory: partition.ram(),
            name: format!("clearway-disk{index}"),
        };
        let disk = BlockDevice::start(config).with_context(subject)?;
        let (notify, interrupt) = (disk.notify().clone(), disk.interrupt().clone());
        let device = VirtioDevice { registers: Arc::new(disk), notify, interrupt };
        partition.add_virtio(device).with_context(subject)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(text: &str) -> DiskChoice {
        text.parse().unwrap()
    }

    fn refusal(choices: &[&str]) -> String {
        let choices: Vec<_> = choices.iter().map(|text| choice(text)).collect();
        format!("{:#}", open(&choices).unwrap_err())
    }

    #[test]
    fn a_disk_is_a_file_and_whether_it_is_written() {
        let disk = |path: &str, access| DiskChoice { path: path.into(), access };
        assert_eq!(choice("a.raw"), disk("a.raw", Access::ReadWrite));
        assert_eq!(choice("a.raw,ro"), disk("a.raw", Access::ReadOnly));
        assert_eq!(choice("a,b.raw"), disk("a,b.raw", Access::ReadWrite));
        assert!("".parse::<DiskChoice>().is_err() && ",ro".parse::<DiskChoice>().is_err());
    }

    #[test]
    fn each_disk_is_another_file_and_there_are_at_most_eight() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let files: Vec<String> = (0..9).map(|index| path(&index.to_string())).collect();
        for file in &files {
            std::fs::write(file, [0; 512]).unwrap();
        }
        std::os::unix::fs::symlink(&files[0], path("link")).unwrap();
        let all: Vec<&str> = files.iter().map(String::as_str).collect();
        assert!(refusal(&all).starts_with("9 disks are too many"));
        let eight: Vec<_> = all[..8].iter().map(|file| choice(file)).collect();
        assert_eq!(open(&eight).unwrap().len(), 8);
        let twice = refusal(&[all[0], &format!("{},ro", all[0])]);
        assert!(twice.contains(&format!("{} is given twice", all[0])), "{twice}");
        assert!(refusal(&[all[0], &path("link")]).contains("are the same file"));
        assert!(refusal(&[&path("missing")]).contains("does not exist"));
    }
}
