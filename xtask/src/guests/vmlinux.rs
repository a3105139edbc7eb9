//! A kernel's `vmlinux` out of its bzImage, by the Linux boot protocol.
//!
//! A guest within an emulated guest would take most of its time to do that by itself.

use anyhow::{Context, Result, bail, ensure};

/// How a kernel is compressed.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Compression {
    /// With `gzip`.
    Gzip,
    /// With `xz`.
    Xz,
    /// With `zstd`.
    Zstd,
}

/// The compressed ELF file in a bzImage.
pub(crate) fn payload(image: &[u8]) -> Result<(Compression, &[u8])> {
    // Documentation/arch/x86/boot.rst: setup_sects at 0x1f1 (0 means 4), "HdrS" at 0x202, the protocol's version at
    // 0x206 (2.08 has a payload), payload_offset at 0x248, counted from the protected-mode code, payload_length at
    // 0x24c.
    let cut = || "the image ends within its header";
    let array = |at: usize| -> Result<[u8; 4]> {
        let bytes = image.get(at..at + 4).with_context(cut)?;
        Ok(bytes.try_into()?)
    };
    ensure!(array(0x202)? == *b"HdrS", "no Linux image for x86");
    let [minor, major, ..] = array(0x206)?;
    ensure!((major, minor) >= (2, 8), "boot protocol {major}.{minor} is too old");
    let sectors = match image.get(0x1f1).copied().with_context(cut)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = usize::try_from(u32::from_le_bytes(array(0x248)?))?;
    let length = usize::try_from(u32::from_le_bytes(array(0x24c)?))?;
    let start = (sectors + 1) * 512 + offset;
    let payload = image
        .get(start..start.saturating_add(length))
        .context("the compressed kernel lies outside of the image")?;
    let compression = if payload.starts_with(b"\x1f\x8b") {
        return Ok((Compression::Gzip, payload));
    } else if payload.starts_with(b"\xfd7zXZ\0") {
        Compression::Xz
    } else if payload.starts_with(b"\x28\xb5\x2f\xfd") {
        Compression::Zstd
    } else {
        bail!("the kernel is compressed in a way not known here");
    };
    // Its size when unpacked follows, which is no part of the compressed file (gzip has it inside).
    let end = payload.len().checked_sub(4).context("the compressed kernel is empty")?;
    Ok((compression, payload.get(..end).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0_u8; 0x400];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_compressed_kernel_is_found_without_its_trailer() {
        let zstd = image(b"\x28\xb5\x2f\xfdbody\x00\x00\x10\x00");
        assert_eq!(
            payload(&zstd).unwrap(),
            (Compression::Zstd, b"\x28\xb5\x2f\xfdbody".as_slice())
        );
        let xz = image(b"\xfd7zXZ\0body\x00\x00\x10\x00");
        assert_eq!(payload(&xz).unwrap(), (Compression::Xz, b"\xfd7zXZ\0body".as_slice()));
        let gzip = image(b"\x1f\x8bbody");
        assert_eq!(payload(&gzip).unwrap(), (Compression::Gzip, b"\x1f\x8bbody".as_slice()));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let whole = image(b"\x28\xb5\x2f\xfdbody\x00\x00\x10\x00");
        for length in 0..whole.len() {
            assert!(payload(&whole[..length]).is_err());
        }
        assert!(payload(&image(b"LZ4?body")).is_err());
        assert!(payload(&image(b"")).is_err());
    }
}
