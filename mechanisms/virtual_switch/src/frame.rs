//! A frame inside the switch.

use arrayvec::ArrayVec;
use netvsp::{ReceiveMetadata, TransmitMetadata};
use nic_switch::{FrameKey, MacKey};
use offload::{TPID_8021Q, VLAN_TAG_LEN};
use shared_memory::SharedSlice;

use crate::staging::Staging;

/// Pieces of one frame, at most: those of a large send, and a head of our own.
pub(crate) const MAX_PIECES: usize = netvsp::MAX_PIECES + 1;
/// Bytes of two addresses, behind which a tag stands.
const ADDRESSES: usize = 12;
/// Bytes of an Ethernet header; what is shorter is no frame.
pub(crate) const ETHERNET: usize = 14;
/// Bytes that are read and checked before anything is decided.
const HEAD: usize = 16;

/// Pieces of a frame.
pub(crate) type Pieces<'f> = ArrayVec<SharedSlice<'f>, MAX_PIECES>;

/// What is asked, or known, of a frame's checksums and length.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Offloads {
    /// A VM sent it: checksums to fill in, segments to cut. The tag and hash in here count for nothing.
    Asked(TransmitMetadata),
    /// It came from a wire, complete: what was found of its checksums. The tag in here counts for nothing.
    Known(ReceiveMetadata),
}

impl Offloads {
    /// Nothing is asked.
    pub const NONE: &Self = &Self::Asked(TransmitMetadata {
        checksum: None,
        segmentation: None,
        vlan_tci: None,
        hash: None,
    });
}

/// One frame on its way. Its tag, if it has one, is beside its bytes.
#[derive(Copy, Clone, Debug)]
pub struct Frame<'f> {
    /// The first 16 bytes, in memory order, as they were when they were checked: what is decided by is what is
    /// delivered, whatever its sender does to `pieces` meanwhile.
    pub head: [u64; 2],
    /// All of its bytes, in order.
    pub pieces: &'f [SharedSlice<'f>],
    /// Sum of the pieces, bytes.
    pub length: usize,
    /// Tag control information.
    pub tci: Option<u16>,
    /// What is asked or known of it.
    pub offloads: &'f Offloads,
}

impl<'f> Frame<'f> {
    /// Addresses and tag.
    #[inline]
    #[must_use]
    pub fn key(&self) -> FrameKey {
        let [first, second] = self.head;
        FrameKey {
            destination: MacKey::from_low_bits(first),
            source: MacKey::from_low_bits(first >> 48 | second << 16),
            tci: self.tci,
        }
    }

    /// Whether an 802.1Q tag stands in its bytes.
    #[inline]
    pub(crate) fn is_tagged_inside(&self) -> bool {
        let [_, second] = self.head;
        (second >> 32) & 0xFFFF == u64::from(TPID_8021Q.swap_bytes())
    }

    /// Whether it is a frame without a tag.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.tci.is_none() && self.length >= ETHERNET && !self.is_tagged_inside()
    }

    /// Whether it is plain, and its addresses are those of another.
    #[inline]
    pub(crate) fn goes_with(&self, other: &Frame<'_>) -> bool {
        let addresses = |[first, second]: [u64; 2]| (first, second & 0xFFFF_FFFF);
        self.is_plain() && addresses(self.head) == addresses(other.head)
    }

    /// Copies its first bytes, the checked ones among them; returns how many.
    pub(crate) fn read_head(&self, out: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces {
            let Some(room) = out.get_mut(done..).filter(|room| !room.is_empty()) else { break };
            done += piece.read_into(room);
        }
        let checked: ArrayVec<u8, HEAD> = self.head.iter().flat_map(|w| w.to_le_bytes()).collect();
        let known = done.min(HEAD);
        if let (Some(to), Some(from)) = (out.get_mut(..known), checked.get(..known)) {
            to.copy_from_slice(from);
        }
        done
    }

    /// The pieces of the same frame without the tag that stands in its bytes, its new head in `staging`, and that
    /// tag. `None` if nothing but a tag follows the addresses, or the staging area is full.
    pub(crate) fn take_tag_out<'s>(&self, staging: &'s Staging) -> Option<(Pieces<'s>, u16)>
    where
        'f: 's,
    {
        let mut bytes = [0u8; HEAD + VLAN_TAG_LEN];
        let length = self.read_head(&mut bytes);
        let bytes = bytes.get(..length)?;
        let &[high, low, _, _] = bytes.get(ADDRESSES + 2..)?.first_chunk()?;
        let (addresses, rest) = (bytes.get(..ADDRESSES)?, bytes.get(ADDRESSES + VLAN_TAG_LEN..)?);
        let mut pieces = Pieces::new();
        pieces.push(staging.put(&[addresses, rest])?);
        behind(self.pieces, length, &mut pieces)?;
        Some((pieces, u16::from_be_bytes([high, low])))
    }
}

/// Adds what lies behind the first `skip` bytes; `None` if there are too many pieces.
pub(crate) fn behind<'f>(
    pieces: &[SharedSlice<'f>],
    skip: usize,
    out: &mut Pieces<'f>,
) -> Option<()> {
    range(pieces, skip, usize::MAX, out)
}

/// Adds at most `length` bytes from `skip` on; `None` if there are too many pieces.
pub(crate) fn range<'f>(
    pieces: &[SharedSlice<'f>],
    skip: usize,
    length: usize,
    out: &mut Pieces<'f>,
) -> Option<()> {
    let (mut skip, mut left) = (skip, length);
    for piece in pieces {
        let (before, rest) = piece.split(skip);
        skip -= before.len();
        let (part, _) = rest.split(left);
        left -= part.len();
        if !part.is_empty() {
            out.try_push(part).ok()?;
        }
    }
    Some(())
}
