//! Filling transport checksums of frames on their way out (SPEC-AVF §5.3).

use crate::{OffloadError, checksum::Sum, classify::L4Protocol};

/// A checksum over the bytes `start..end` of a frame that arrives in order, in pieces.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// Offset in the frame of the next byte to come.
    position: usize,
    start: usize,
    end: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    OnesComplement(Sum),
    /// SCTP's CRC32c; the checksum field, four bytes from the eighth on, counts as zero (RFC 9260 §6.8).
    Crc32c(u32),
}

impl Running {
    #[inline(always)]
    pub(crate) fn ones_complement(start: usize, end: usize, seed: Sum) -> Self {
        Self { position: 0, start, end, kind: Kind::OnesComplement(seed) }
    }

    #[inline(always)]
    pub(crate) fn crc32c(start: usize, end: usize) -> Self {
        Self { position: 0, start, end, kind: Kind::Crc32c(0) }
    }

    /// Counts `bytes` as seen without looking at them.
    #[inline(always)]
    pub(crate) fn skip_to(mut self, position: usize) -> Self {
        self.position = position;
        self
    }

    #[inline(always)]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let at = self.position;
        self.position = at.saturating_add(bytes.len());
        let from = self.start.saturating_sub(at);
        let to = self.end.saturating_sub(at).min(bytes.len());
        let Some(covered) = bytes.get(from..to) else { return };
        let offset = at.saturating_add(from) - self.start;
        match &mut self.kind {
            Kind::OnesComplement(sum) => sum.add_bytes_at(offset, covered),
            Kind::Crc32c(crc) => *crc = crc_with_zeroed_field(*crc, offset, covered),
        }
    }

    #[inline(always)]
    pub(crate) fn is_complete(&self) -> bool {
        self.position >= self.end
    }

    #[inline(always)]
    pub(crate) fn sum(&self) -> Sum {
        match self.kind {
            Kind::OnesComplement(sum) => sum,
            Kind::Crc32c(_) => Sum::ZERO,
        }
    }

    #[inline(always)]
    pub(crate) fn crc(&self) -> u32 {
        match self.kind {
            Kind::Crc32c(crc) => crc,
            Kind::OnesComplement(_) => 0,
        }
    }
}

/// Continues a CRC over bytes that begin `offset` bytes into the SCTP packet.
fn crc_with_zeroed_field(mut crc: u32, offset: usize, bytes: &[u8]) -> u32 {
    let field = 8usize.saturating_sub(offset).min(bytes.len());
    let after = 12usize.saturating_sub(offset).min(bytes.len());
    if let Some(before) = bytes.get(..field) {
        crc = crc32c::crc32c_append(crc, before);
    }
    if let Some(zeros) = [0u8; 4].get(..after - field) {
        crc = crc32c::crc32c_append(crc, zeros);
    }
    if let Some(rest) = bytes.get(after..) {
        crc = crc32c::crc32c_append(crc, rest);
    }
    crc
}

/// A finished checksum and where in the frame it belongs.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ChecksumPatch {
    offset: usize,
    bytes: [u8; 4],
    length: u8,
}

impl ChecksumPatch {
    #[inline(always)]
    pub(crate) fn word(offset: usize, value: u16) -> Self {
        let [a, b] = value.to_be_bytes();
        Self { offset, bytes: [a, b, 0, 0], length: 2 }
    }

    /// Offset of the checksum field from the frame's start, before any VLAN tag is inserted, bytes.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The bytes to store there: two, or four for SCTP.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }

    /// Stores the checksum into a frame held in one piece. Returns whether the field was inside.
    #[inline]
    pub fn apply(&self, frame: &mut [u8]) -> bool {
        let bytes = self.bytes();
        let Some(field) =
            frame.get_mut(self.offset..).and_then(|field| field.get_mut(..bytes.len()))
        else {
            return false;
        };
        field.copy_from_slice(bytes);
        true
    }
}

/// A running transport checksum of a frame to be sent (no segmentation).
///
/// TCP and UDP: the checksum field holds the pseudo-header's sum, length included, as the guest seeded it;
/// everything from the transport header to the frame's end is summed, field and all, and the complement
/// stored; a UDP checksum of 0 becomes 0xFFFF. SCTP: CRC32c with the field taken as zero.
#[derive(Clone, Debug)]
pub struct L4Fill {
    sum: Running,
    l4: L4Protocol,
}

impl L4Fill {
    /// Begins a checksum for a transport header at `l4_offset` of a frame of `frame_len` bytes.
    #[inline]
    pub fn new(l4: L4Protocol, l4_offset: usize, frame_len: usize) -> Result<Self, OffloadError> {
        let stated = l4_offset.saturating_add(usize::from(l4.min_header_len()));
        if stated > frame_len {
            return Err(OffloadError::HeadersBeyondData { stated, available: frame_len });
        }
        let sum = match l4 {
            L4Protocol::Tcp | L4Protocol::Udp => {
                Running::ones_complement(l4_offset, frame_len, Sum::ZERO)
            }
            L4Protocol::Sctp => Running::crc32c(l4_offset, frame_len),
            L4Protocol::Icmp => return Err(OffloadError::NoChecksum(l4)),
        };
        Ok(Self { sum, l4 })
    }

    /// Takes the next bytes of the frame, from its first byte on.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
    }

    /// The checksum, once all of the frame was taken.
    #[inline]
    pub fn finish(self) -> ChecksumPatch {
        finish(&self.sum, self.l4)
    }
}

#[inline(always)]
pub(crate) fn finish(sum: &Running, l4: L4Protocol) -> ChecksumPatch {
    match l4 {
        L4Protocol::Tcp | L4Protocol::Icmp => {
            ChecksumPatch::word(sum.start + 16, sum.sum().checksum())
        }
        L4Protocol::Udp => {
            let checksum = match sum.sum().checksum() {
                0 => 0xFFFF, // RFC 768: zero means "none".
                checksum => checksum,
            };
            ChecksumPatch::word(sum.start + 6, checksum)
        }
        L4Protocol::Sctp => {
            ChecksumPatch { offset: sum.start + 8, bytes: sum.crc().to_le_bytes(), length: 4 }
        }
    }
}

/// Fills the transport checksum of a frame held in one piece.
#[inline]
pub fn fill_l4_checksum(
    frame: &mut [u8],
    l4: L4Protocol,
    l4_offset: usize,
) -> Result<(), OffloadError> {
    let mut fill = L4Fill::new(l4, l4_offset, frame.len())?;
    fill.update(frame);
    fill.finish().apply(frame);
    Ok(())
}
