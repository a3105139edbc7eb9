//! Images: raw files and block devices of the host, locked for as long as they are somebody's disk.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{fs::FlockOperation, io::Errno};

/// Bytes of a sector, whatever the image's own blocks are (VIRTIO 1.2 §5.2).
pub const SECTOR: u64 = 512;

/// What a guest may do with its disk.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Access {
    /// Read and write: nobody else has the image as a disk.
    ReadWrite,
    /// Read: others may read it too, and nobody writes.
    ReadOnly,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such file.
    #[error("the disk image {} does not exist", .0.display())]
    NotFound(PathBuf),
    /// It is a directory, a pipe or the like.
    #[error("the disk image {} is {what}: a disk is a file or a block device", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It cannot be written.
    #[error(
        "the disk image {} cannot be written: change its permissions, or give it to the guest read-only, as {},ro",
        path.display(), path.display()
    )]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It cannot be opened or read.
    #[error("the disk image {} cannot be read", path.display())]
    NotReadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A block device that the host uses.
    #[error(
        "the disk {} is in use by this host: unmount its file systems, or give it to the guest read-only, as {},ro",
        .0.display(), .0.display()
    )]
    InUseByHost(PathBuf),
    /// Another VM has it.
    #[error(
        "the disk image {} is in use: {}",
        path.display(),
        if *access == Access::ReadWrite {
            "another program, such as a VM, has it as its disk; end that, or give this VM a copy"
        } else {
            "another program, such as a VM, writes to it; end that, or give this VM a copy"
        }
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        access: Access,
    },
    /// It has another format.
    #[error("the disk image {} is {format}, and a disk is a raw image: {cure}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        format: &'static str,
        /// How to make it raw.
        cure: String,
    },
    /// It has no sectors.
    #[error("the disk image {} is empty: make it as long as the disk is to be, as in `truncate -s 8G {}`", .0.display(), .0.display())]
    Empty(PathBuf),
    /// It ends within a sector.
    #[error(
        "the disk image {} has {bytes} bytes, which is no multiple of {SECTOR}: it is cut short, or no raw image; \
         `truncate -s %{SECTOR} {}` makes the last sector whole",
        path.display(), path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

/// What images of other formats begin with.
const MAGICS: [(&[u8], &str, Cure); 9] = [
    (b"QFI\xFB", "a qcow2 image", Cure::Convert),
    (b"KDMV", "a VMDK image", Cure::Convert),
    (b"vhdxfile", "a VHDX image", Cure::Convert),
    (b"conectix", "a VHD image", Cure::Convert),
    (b"<<< Oracle VM VirtualBox", "a VDI image", Cure::Convert),
    (b"\x1F\x8B\x08", "compressed by gzip", Cure::Unpack("gunzip")),
    (b"\xFD7zXZ\0", "compressed by xz", Cure::Unpack("unxz")),
    (b"\x28\xB5\x2F\xFD", "compressed by zstd", Cure::Unpack("unzstd")),
    (b"BZh", "compressed by bzip2", Cure::Unpack("bunzip2")),
];

#[derive(Copy, Clone)]
enum Cure {
    Convert,
    Unpack(&'static str),
}

/// An open image. It is locked until the last clone of its `Arc` is gone: for others of this kind, and for whoever else
/// asks by flock(2).
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    access: Access,
    bytes: u64,
}

impl Image {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// An [`ImageError`], which says what can be done.
    pub fn open(path: impl Into<PathBuf>, access: Access) -> Result<Self, ImageError> {
        let path = path.into();
        let metadata = look(&path)?;
        let mut file = open(&path, access, &metadata)?;
        let unreadable = |source| ImageError::NotReadable { path: path.clone(), source };
        // What was looked at may be another file by now.
        let metadata = file.metadata().map_err(unreadable)?;
        if let Some(what) = no_disk(&metadata) {
            return Err(ImageError::NoFile { path, what });
        }
        lock(&path, &file, access)?;
        // A block device's metadata has no length.
        let bytes = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
        refuse_formats(&path, &file)?;
        if bytes == 0 {
            return Err(ImageError::Empty(path));
        }
        if !bytes.is_multiple_of(SECTOR) {
            return Err(ImageError::Size { path, bytes });
        }
        Ok(Self { file, access, bytes, path })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes, as it was when it was opened: a multiple of [`SECTOR`], and not 0.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the guest may do with it.
    pub fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has what was written survive a crash of the host.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn look(path: &Path) -> Result<Metadata, ImageError> {
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ImageError::NotFound(path.to_owned()),
        _ => ImageError::NotReadable { path: path.to_owned(), source },
    })?;
    match no_disk(&metadata) {
        // Opening a pipe would wait, and opening a tape drive would rewind it.
        Some(what) => Err(ImageError::NoFile { path: path.to_owned(), what }),
        None => Ok(metadata),
    }
}

fn no_disk(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_char_device() {
        Some("a character device")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else {
        Some("a socket")
    }
}

fn open(path: &Path, access: Access, metadata: &Metadata) -> Result<File, ImageError> {
    let path = path.to_owned();
    let writable = access == Access::ReadWrite;
    let mut options = OpenOptions::new();
    options.read(true).write(writable);
    if writable && metadata.file_type().is_block_device() {
        // Without O_CREAT: the kernel refuses a device of which something is mounted.
        options.custom_flags(libc::O_EXCL);
    }
    options.open(&path).map_err(|source| {
        let no = Errno::from_io_error(&source);
        match no {
            Some(Errno::BUSY) if writable => ImageError::InUseByHost(path),
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) if writable => {
                match File::open(&path) {
                    Ok(_) => ImageError::NotWritable { path, source },
                    Err(source) => ImageError::NotReadable { path, source },
                }
            }
            Some(Errno::NOENT) => ImageError::NotFound(path),
            _ => ImageError::NotReadable { path, source },
        }
    })
}

fn lock(path: &Path, file: &File, access: Access) -> Result<(), ImageError> {
    let operation = match access {
        Access::ReadWrite => FlockOperation::NonBlockingLockExclusive,
        Access::ReadOnly => FlockOperation::NonBlockingLockShared,
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(ImageError::InUse { path: path.to_owned(), access }),
        // A file system without locks: nobody can be told.
        Err(error) => {
            tracing::warn!(%error, "the disk image {} cannot be locked", path.display());
            Ok(())
        }
    }
}

fn refuse_formats(path: &Path, file: &File) -> Result<(), ImageError> {
    let mut first = [0; 64];
    let mut read = 0;
    while let Some(rest) = first.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ImageError::NotReadable { path: path.to_owned(), source }),
        }
    }
    let first = first.get(..read).unwrap_or_default();
    let Some((_, format, cure)) = MAGICS.iter().find(|(magic, ..)| first.starts_with(magic)) else {
        return Ok(());
    };
    let name = path.display();
    let cure = match cure {
        Cure::Convert => {
            let raw = path.with_extension("raw");
            format!("convert it, `qemu-img convert -O raw {name} {}`", raw.display())
        }
        Cure::Unpack(program) => format!("unpack it, `{program} {name}`"),
    };
    Err(ImageError::Format { path: path.to_owned(), format, cure })
}

#[cfg(test)]
mod tests {
    use std::{error::Error, os::unix::fs::PermissionsExt};

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn refusal(path: &Path, access: Access) -> String {
        let mut text = String::new();
        let error = Image::open(path, access).unwrap_err();
        let mut cause: Option<&dyn Error> = Some(&error);
        while let Some(error) = cause {
            text += &format!("{error}\n");
            cause = error.source();
        }
        text
    }

    #[test]
    fn a_raw_image_is_as_long_as_its_file() {
        let (_folder, path) = file("a.raw", &[7; 3 * 512]);
        let image = Image::open(&path, Access::ReadWrite).unwrap();
        assert_eq!((image.bytes(), image.access()), (1536, Access::ReadWrite));
        assert_eq!(image.path(), path);
    }

    #[test]
    fn what_is_no_disk_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.raw");
        assert!(refusal(&missing, Access::ReadOnly).contains("does not exist"));
        assert!(refusal(folder.path(), Access::ReadOnly).contains("is a directory"));
        assert!(refusal(Path::new("/dev/zero"), Access::ReadOnly).contains("a character device"));
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        assert!(refusal(&pipe, Access::ReadWrite).contains("is a pipe"));
        let (_empty, empty) = file("empty.raw", b"");
        assert!(refusal(&empty, Access::ReadOnly).contains("truncate -s 8G"));
        let (_odd, odd) = file("odd.raw", &[0; 1000]);
        let said = refusal(&odd, Access::ReadOnly);
        assert!(said.contains("1000 bytes") && said.contains("truncate -s %512"), "{said}");
    }

    #[test]
    fn images_of_other_formats_are_refused_with_how_to_convert_them() {
        for (magic, format, _) in MAGICS {
            let mut bytes = magic.to_vec();
            bytes.resize(1024, 0);
            let (_folder, path) = file("disk.img", &bytes);
            let said = refusal(&path, Access::ReadOnly);
            assert!(
                said.contains(format) && said.contains("disk.img`") || said.contains("disk.raw`")
            );
        }
        let (_folder, path) = file("disk.qcow2", b"QFI\xFB");
        let said = refusal(&path, Access::ReadWrite);
        let command = format!(
            "qemu-img convert -O raw {} {}",
            path.display(),
            path.with_extension("raw").display()
        );
        assert!(said.contains(&command), "{said}");
    }

    #[test]
    fn a_file_that_cannot_be_written_can_be_given_read_only() {
        let (_folder, path) = file("a.raw", &[0; 512]);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        Image::open(&path, Access::ReadOnly).unwrap();
        if rustix::process::geteuid().is_root() {
            println!("skipped in part: root may write any file");
            return;
        }
        assert!(refusal(&path, Access::ReadWrite).contains("a.raw,ro"));
    }

    #[test]
    fn an_image_that_is_written_is_one_vm_s_alone() {
        let (_folder, path) = file("a.raw", &[0; 512]);
        let writer = Image::open(&path, Access::ReadWrite).unwrap();
        let said = refusal(&path, Access::ReadWrite);
        assert!(said.contains("in use: another program, such as a VM, has it"), "{said}");
        assert!(refusal(&path, Access::ReadOnly).contains("writes to it"));
        drop(writer);
        let readers = [(); 2].map(|()| Image::open(&path, Access::ReadOnly).unwrap());
        refusal(&path, Access::ReadWrite);
        drop(readers);
        Image::open(&path, Access::ReadWrite).unwrap();
    }
}
