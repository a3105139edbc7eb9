//! An initramfs: a cpio archive in the "newc" form that Linux unpacks at boot.

use anyhow::{Result, ensure};

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

/// An archive that is being written. Everything belongs to root.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    /// Adds a directory; its parent must have been added before.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.entry(path, FILE | mode, data)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, SYMLINK | 0o777, target.as_bytes())
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        ensure!(!path.starts_with('/') && !path.is_empty(), "{path:?} is no path in an archive");
        self.inode += 1;
        let size = u32::try_from(data.len())?;
        let name = u32::try_from(path.len() + 1)?;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // Magic, then 13 numbers of 8 hexadecimal digits: inode, mode, uid, gid, links, mtime, size, device of the
        // file (2), device it is (2), bytes of the name with its NUL, checksum.
        let mut header = String::from("070701");
        for number in [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name, 0] {
            header.push_str(&format!("{number:08X}"));
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_kernel_reads_them() {
        let mut cpio = Cpio::default();
        cpio.directory("bin").unwrap();
        cpio.file("bin/a", 0o755, b"hello").unwrap();
        cpio.symlink("bin/b", "a").unwrap();
        let bytes = cpio.finish().unwrap();
        assert!(bytes.len().is_multiple_of(4));
        let mut at = 0;
        let mut seen = Vec::new();
        loop {
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name) = (field(1), field(6), field(11));
            let path = std::str::from_utf8(&bytes[at + 110..at + 110 + name - 1]).unwrap();
            let data = (at + 110 + name).next_multiple_of(4);
            if path == "TRAILER!!!" {
                break;
            }
            seen.push((path, mode, &bytes[data..data + size]));
            at = (data + size).next_multiple_of(4);
        }
        assert_eq!(
            seen,
            [
                ("bin", 0o040_755, &b""[..]),
                ("bin/a", 0o100_755, b"hello"),
                ("bin/b", 0o120_777, b"a")
            ]
        );
    }

    #[test]
    fn absolute_paths_are_refused() {
        assert!(Cpio::default().directory("/bin").is_err());
        assert!(Cpio::default().file("", 0, b"").is_err());
    }
}
