//! GPADLs: lists of guest pages that a client shares with a server (SPEC-VMBUS §2).

use arrayvec::ArrayVec;
use zerocopy::FromBytes;

use crate::{ChannelId, ClientMessage, GpaRangeHeader, GpadlBody, GpadlHeader, GpadlId};

/// 64-bit words of range data in GPADL_HEADER, at most.
pub const GPADL_HEADER_WORDS: usize = 27;
/// 64-bit words of range data in GPADL_BODY, at most.
pub const GPADL_BODY_WORDS: usize = 28;
/// 64-bit words of range data of one GPADL, at most: its length in bytes is a u16.
pub const MAX_GPADL_WORDS: usize = 0xFFFF / 8;

/// Range data of one message.
pub type GpadlWords = ArrayVec<u64, GPADL_BODY_WORDS>;

/// One range of guest pages.
#[derive(Clone, Eq, PartialEq, Debug, Hash)]
pub struct GpadlRange {
    /// Where the range begins in its first page, below 4,096.
    pub byte_offset: u32,
    /// Bytes, not 0.
    pub byte_count: u32,
    /// The page frame numbers of all its pages.
    pub page_frames: Vec<u64>,
}

impl GpadlRange {
    /// The range that is these whole pages; `None` if there are none, or more than 2^32 bytes.
    pub fn pages(page_frames: Vec<u64>) -> Option<Self> {
        let byte_count = u32::try_from(page_frames.len().checked_mul(4096)?).ok()?;
        (byte_count != 0).then_some(Self { byte_offset: 0, byte_count, page_frames })
    }
}

/// Why range data is not that of a GPADL.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum GpadlError {
    /// No data, or not a multiple of 8 bytes.
    #[error("a GPADL of {0} bytes of range data cannot be")]
    ByteCount(u16),
    /// No range at all.
    #[error("a GPADL without a range")]
    NoRange,
    /// A range of no bytes, beginning behind its first page, or too long.
    #[error("range {index} has {byte_count} bytes at offset {byte_offset}")]
    BadRange {
        /// Which range.
        index: u16,
        /// Its length.
        byte_count: u32,
        /// Where it begins in its first page.
        byte_offset: u32,
    },
    /// The data ends before its ranges do.
    #[error("range {index} is cut off")]
    CutOff {
        /// Which range.
        index: u16,
    },
}

/// The pages of a GPADL: at least one range.
#[derive(Clone, Eq, PartialEq, Debug, Hash)]
pub struct Gpadl {
    ranges: Vec<GpadlRange>,
}

impl Gpadl {
    /// A GPADL of these ranges; `None` if there is none, one is invalid, or they are too long for one GPADL.
    pub fn new(ranges: Vec<GpadlRange>) -> Option<Self> {
        let mut words = 0usize;
        for range in &ranges {
            let header =
                GpaRangeHeader { byte_count: range.byte_count, byte_offset: range.byte_offset };
            if header.page_count()? as usize != range.page_frames.len() {
                return None;
            }
            words += 1 + range.page_frames.len();
        }
        (words != 0 && words <= MAX_GPADL_WORDS).then_some(Self { ranges })
    }

    /// The ranges, at least one.
    pub fn ranges(&self) -> &[GpadlRange] {
        &self.ranges
    }

    /// The only range, if there is just one.
    pub fn single_range(&self) -> Option<&GpadlRange> {
        match self.ranges.as_slice() {
            [range] => Some(range),
            _ => None,
        }
    }

    /// Pages of all ranges.
    pub fn page_count(&self) -> usize {
        self.ranges.iter().map(|range| range.page_frames.len()).sum()
    }

    /// The ranges that complete range data holds. Words behind the last range are ignored.
    pub fn parse(words: &[u64], range_count: u16) -> Result<Self, GpadlError> {
        if range_count == 0 {
            return Err(GpadlError::NoRange);
        }
        let mut ranges = Vec::new();
        let mut rest = words;
        for index in 0..range_count {
            let (first, behind) = rest.split_first().ok_or(GpadlError::CutOff { index })?;
            let GpaRangeHeader { byte_count, byte_offset } = zerocopy::transmute!(*first);
            let pages = GpaRangeHeader { byte_count, byte_offset }.page_count();
            let pages = pages.ok_or(GpadlError::BadRange { index, byte_count, byte_offset })?;
            let frames = behind.split_at_checked(pages as usize);
            let (frames, behind) = frames.ok_or(GpadlError::CutOff { index })?;
            ranges.push(GpadlRange { byte_offset, byte_count, page_frames: frames.to_vec() });
            rest = behind;
        }
        Ok(Self { ranges })
    }

    /// The range data.
    pub fn emit(&self) -> Vec<u64> {
        let mut words = Vec::new();
        for range in &self.ranges {
            let header =
                GpaRangeHeader { byte_count: range.byte_count, byte_offset: range.byte_offset };
            words.push(zerocopy::transmute!(header));
            words.extend_from_slice(&range.page_frames);
        }
        words
    }

    /// The messages that make it known to the server: GPADL_HEADER, then as many GPADL_BODY as needed.
    pub fn messages(&self, channel: ChannelId, gpadl: GpadlId) -> Vec<ClientMessage> {
        let words = self.emit();
        let (first, rest) = words.split_at(words.len().min(GPADL_HEADER_WORDS));
        let header = GpadlHeader {
            channel,
            gpadl,
            byte_count: u16::try_from(words.len() * 8).unwrap_or(u16::MAX),
            range_count: u16::try_from(self.ranges.len()).unwrap_or(u16::MAX),
            words: first.iter().copied().collect(),
        };
        let mut messages = vec![ClientMessage::GpadlHeader(header)];
        for (number, chunk) in (0u32..).zip(rest.chunks(GPADL_BODY_WORDS)) {
            let words = chunk.iter().copied().collect();
            messages.push(ClientMessage::GpadlBody(GpadlBody { number, gpadl, words }));
        }
        messages
    }
}

/// Range data on its way: a header, and bodies until it is complete.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct GpadlAssembly {
    words: Vec<u64>,
    /// Words there will be.
    total: usize,
    range_count: u16,
}

impl GpadlAssembly {
    /// Begins with what GPADL_HEADER says. Of words beyond those announced, none is taken.
    pub fn new(header: &GpadlHeader) -> Result<Self, GpadlError> {
        if header.byte_count == 0 || !header.byte_count.is_multiple_of(8) {
            return Err(GpadlError::ByteCount(header.byte_count));
        }
        if header.range_count == 0 {
            return Err(GpadlError::NoRange);
        }
        let total = usize::from(header.byte_count) / 8;
        // Each range has at least one page.
        if usize::from(header.range_count) > total / 2 {
            return Err(GpadlError::CutOff { index: header.range_count });
        }
        let mut assembly = Self { words: Vec::new(), total, range_count: header.range_count };
        assembly.add(&header.words);
        Ok(assembly)
    }

    /// Adds words, as many as are missing.
    pub fn add(&mut self, words: &[u64]) {
        let missing = self.total - self.words.len();
        self.words.extend(words.iter().take(missing));
    }

    /// The GPADL, once all is there.
    pub fn finish(&self) -> Option<Result<Gpadl, GpadlError>> {
        (self.words.len() == self.total).then(|| Gpadl::parse(&self.words, self.range_count))
    }
}

/// As many whole words as the bytes hold, and as fit.
pub(crate) fn words_of(bytes: &[u8], limit: usize) -> GpadlWords {
    let chunks = bytes.chunks_exact(8).take(limit.min(GPADL_BODY_WORDS));
    chunks.filter_map(|chunk| u64::read_from_bytes(chunk).ok()).collect()
}
