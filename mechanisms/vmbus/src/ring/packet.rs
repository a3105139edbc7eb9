//! Packets as they are read from and written to a ring (SPEC-VMBUS §3.2).

use shared_memory::SharedSlice;
use vmbus_protocol::{GpaRangeHeader, PacketType, RangeListHeader, TransferPageRange};

use super::ChannelDead;

/// A packet in the ring, valid until the next one is read.
///
/// The peer can still change what the slices refer to: read each byte once, into a local copy, and check the copy.
#[derive(Copy, Clone, Debug)]
pub struct Packet<'r> {
    /// What it is.
    pub kind: PacketKind<'r>,
    /// The sender's name for it; meaningful if a completion is requested or this is one.
    pub transaction_id: u64,
    /// Whether the sender wants a completion with that transaction id.
    pub completion_requested: bool,
    /// The device protocol's bytes, a multiple of 8.
    pub payload: SharedSlice<'r>,
}

/// What a packet is, and the ranges it lists.
#[derive(Copy, Clone, Debug)]
pub enum PacketKind<'r> {
    /// The payload is all there is.
    InBand,
    /// Ranges of a buffer that both ends know (host to guest).
    TransferPages {
        /// Which buffer.
        page_set_id: u16,
        /// Where in it.
        ranges: TransferPageRanges<'r>,
    },
    /// Ranges of guest pages (guest to host).
    GpaDirect {
        /// Where in guest memory.
        ranges: GpaRanges<'r>,
    },
    /// The answer to a packet of ours.
    Completion,
}

impl PacketKind<'_> {
    /// The packet's type.
    pub fn packet_type(&self) -> PacketType {
        match self {
            Self::InBand => PacketType::InBand,
            Self::TransferPages { .. } => PacketType::TransferPages,
            Self::GpaDirect { .. } => PacketType::GpaDirect,
            Self::Completion => PacketType::Completion,
        }
    }
}

impl<'r> PacketKind<'r> {
    /// The kind of a packet whose type is known, from what stands between descriptor and payload.
    #[inline]
    pub(super) fn parse(
        packet_type: PacketType,
        header: SharedSlice<'r>,
    ) -> Result<Self, ChannelDead> {
        Ok(match packet_type {
            PacketType::InBand => Self::InBand,
            PacketType::Completion => Self::Completion,
            PacketType::TransferPages => {
                let (list, bytes) = range_list(header)?;
                let length = (list.range_count as usize).checked_mul(8);
                let bytes = length.and_then(|length| bytes.get(0, length));
                let bytes = bytes.ok_or(ChannelDead::BadRanges)?;
                Self::TransferPages {
                    page_set_id: list.transfer_page_set_id,
                    ranges: TransferPageRanges(bytes),
                }
            }
            PacketType::GpaDirect => {
                let (list, bytes) = range_list(header)?;
                // The shortest range is one of one page.
                if list.range_count == 0 || list.range_count as usize > bytes.len() / 16 {
                    return Err(ChannelDead::BadRanges);
                }
                Self::GpaDirect { ranges: GpaRanges { left: list.range_count, bytes } }
            }
        })
    }
}

#[inline]
fn range_list(header: SharedSlice<'_>) -> Result<(RangeListHeader, SharedSlice<'_>), ChannelDead> {
    let word = header.load_bytes8(0).ok_or(ChannelDead::BadRanges)?;
    Ok((zerocopy::transmute!(word), header.split(8).1))
}

/// The ranges of a transfer-page packet; each is read when it is asked for.
#[derive(Copy, Clone, Debug)]
pub struct TransferPageRanges<'r>(SharedSlice<'r>);

impl TransferPageRanges<'_> {
    /// Ranges that are left.
    pub fn len(&self) -> usize {
        self.0.len() / 8
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Iterator for TransferPageRanges<'_> {
    type Item = TransferPageRange;

    #[inline]
    fn next(&mut self) -> Option<TransferPageRange> {
        let word = self.0.load_bytes8(0)?;
        self.0 = self.0.split(8).1;
        Some(zerocopy::transmute!(word))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len(), Some(self.len()))
    }
}

/// The ranges of a GPA-direct packet; each is read when it is asked for, and checked then. After an error there
/// are no more.
#[derive(Copy, Clone, Debug)]
pub struct GpaRanges<'r> {
    left: u32,
    bytes: SharedSlice<'r>,
}

impl GpaRanges<'_> {
    /// Ranges that are left, at least if the peer tells the truth.
    pub fn len(&self) -> usize {
        self.left as usize
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl<'r> Iterator for GpaRanges<'r> {
    type Item = Result<GpaRange<'r>, ChannelDead>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let range = GpaRange::parse(self.bytes);
        match range {
            Some((range, rest)) => {
                self.bytes = rest;
                Some(Ok(range))
            }
            None => {
                self.left = 0;
                Some(Err(ChannelDead::BadRanges))
            }
        }
    }
}

/// A range of guest pages.
#[derive(Copy, Clone, Debug)]
pub struct GpaRange<'r> {
    /// Bytes, not 0.
    pub byte_count: u32,
    /// Where it begins in its first page, below 4,096.
    pub byte_offset: u32,
    frames: SharedSlice<'r>,
}

impl<'r> GpaRange<'r> {
    #[inline]
    fn parse(bytes: SharedSlice<'r>) -> Option<(Self, SharedSlice<'r>)> {
        let header: GpaRangeHeader = zerocopy::transmute!(bytes.load_bytes8(0)?);
        let length = header.page_count()? as usize * 8;
        let frames = bytes.get(8, length)?;
        let range = Self { byte_count: header.byte_count, byte_offset: header.byte_offset, frames };
        Some((range, bytes.split(8 + length).1))
    }

    /// Pages the range touches.
    #[inline]
    pub fn page_count(&self) -> usize {
        self.frames.len() / 8
    }

    /// The page frame number of page `index` of the range (a guest physical address divided by 4,096).
    #[inline]
    pub fn page_frame(&self, index: usize) -> Option<u64> {
        self.frames.load_bytes8(index.checked_mul(8)?)
    }
}

/// A range of guest pages to be sent.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct OutgoingGpaRange<'a> {
    /// Bytes, not 0.
    pub byte_count: u32,
    /// Where it begins in its first page, below 4,096.
    pub byte_offset: u32,
    /// The page frame numbers of all its pages.
    pub page_frames: &'a [u64],
}

/// A packet to be sent, without its payload.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum OutgoingPacket<'a> {
    /// The payload is all there is.
    InBand {
        /// Its name, of meaning if a completion is requested.
        transaction_id: u64,
        /// Whether the receiver is to answer.
        completion_requested: bool,
    },
    /// The answer to a packet.
    Completion {
        /// The name of that packet.
        transaction_id: u64,
    },
    /// Ranges of guest pages (guest to host); a completion is always requested.
    GpaDirect {
        /// Its name.
        transaction_id: u64,
        /// At least one.
        ranges: &'a [OutgoingGpaRange<'a>],
    },
    /// Ranges of a buffer that both ends know (host to guest); a completion is always requested.
    TransferPages {
        /// Its name.
        transaction_id: u64,
        /// Which buffer.
        page_set_id: u16,
        /// Where in it.
        ranges: &'a [TransferPageRange],
    },
}
