//! Where the bytes of a guest's RNDIS messages lie: in a section of the send buffer, in guest pages, or in both.

use arrayvec::ArrayVec;
use netvsp_protocol::{ParseError, nvsp::SEND_BUFFER_SECTION_SIZE, packet::RndisPacket};
use shared_memory::{DmaAddress, SharedSlice, TranslationCache};
use vmbus::{GpaRanges, Packet};

use crate::{
    MAX_PIECES, ProtocolError, QueueMemory, TransmitMetadata, incoming::MAX_CONTROL_MESSAGE,
};

pub(super) type Pieces<'m> = ArrayVec<SharedSlice<'m>, MAX_PIECES>;

pub(super) const TOO_MANY: ParseError =
    ParseError::Field { message: "PACKET", field: "packets_or_pieces", value: 0 };

pub(super) const fn wrong_length(length: u32) -> ParseError {
    ParseError::Field { message: "PACKET", field: "data_length", value: length as u64 }
}

/// The first 16 bytes of a packet's payload. All messages that matter are padded to more.
#[inline(always)]
pub(super) fn message_head(packet: &Packet<'_>) -> Option<[u64; 2]> {
    let first = packet.payload.load_bytes8(0)?;
    // Eight bytes are a whole message where it is short, such as REVOKE_SEND_BUFFER.
    Some([first, packet.payload.load_bytes8(8).unwrap_or(0)])
}

/// The used part of a send-buffer section, as far as it lies in one piece.
#[inline(always)]
pub(super) fn section(memory: &QueueMemory, index: u32, size: u32) -> Option<SharedSlice<'_>> {
    if size > SEND_BUFFER_SECTION_SIZE {
        return None;
    }
    let offset = index.checked_mul(SEND_BUFFER_SECTION_SIZE)?;
    memory.send.as_ref()?.first_slice(offset as usize, size as usize)
}

#[inline]
pub(super) fn words(head: &[u8; 16]) -> [u64; 2] {
    let &[a, b, c, d, e, f, g, h, rest @ ..] = head;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes(rest)]
}

pub(super) fn head_of(read: impl Fn(&mut [u8]) -> usize) -> [u64; 2] {
    let mut head = [0; 16];
    read(&mut head);
    words(&head)
}

#[cold]
pub(super) fn with_headers(
    packet: &RndisPacket,
    read: &impl Fn(&mut [u8]) -> usize,
) -> Result<TransmitMetadata, ParseError> {
    let mut head = [0; TransmitMetadata::HEAD];
    let copied = read(&mut head);
    let length = packet.data.end - packet.data.start;
    TransmitMetadata::from_wire(
        &packet.info,
        head.get(..copied).unwrap_or_default(),
        length as usize,
    )
}

pub(super) fn length_of(pieces: &Pieces<'_>) -> u32 {
    pieces
        .iter()
        .fold(0u32, |sum, piece| sum.saturating_add(u32::try_from(piece.len()).unwrap_or(u32::MAX)))
}

/// `length` bytes from `offset` of the pieces taken together.
pub(super) fn range<'a, 'm>(
    pieces: &'a Pieces<'m>,
    offset: u32,
    length: u32,
) -> impl Iterator<Item = SharedSlice<'m>> + 'a {
    let (mut skip, mut left) = (offset as usize, length as usize);
    pieces.iter().filter_map(move |piece| {
        let (_, rest) = piece.split(skip);
        skip -= skip.min(piece.len());
        let (part, _) = rest.split(left);
        left -= part.len();
        (!part.is_empty()).then_some(part)
    })
}

/// The RNDIS message of a packet: its section, then its pages (SPEC-VMBUS §5.5). What is wrong with the ring's own
/// bytes is an error of the channel; what is wrong with what they say is one of the message.
pub(super) fn gather<'m>(
    memory: &'m QueueMemory,
    cache: &mut TranslationCache,
    section: Option<(u32, u32)>,
    ranges: Option<GpaRanges<'_>>,
    pieces: &mut Pieces<'m>,
) -> Result<Result<(), ParseError>, ProtocolError> {
    let wrong = |field, value: u64| {
        Ok(Err(ParseError::Field { message: "SEND_RNDIS_PACKET", field, value }))
    };
    if let Some((index, size)) = section {
        let offset = index.checked_mul(SEND_BUFFER_SECTION_SIZE);
        let slices = offset
            .filter(|_| size <= SEND_BUFFER_SECTION_SIZE)
            .zip(memory.send.as_ref())
            .and_then(|(offset, send)| send.slices(offset as usize, size as usize));
        let Some(slices) = slices else { return wrong("send_buffer_section", u64::from(index)) };
        for slice in slices {
            let _ = pieces.try_push(slice);
        }
    }
    let mut next = None;
    for range in ranges.into_iter().flatten() {
        let range = range?;
        let (mut offset, mut left) = (range.byte_offset as usize, range.byte_count as usize);
        for page in 0..range.page_count() {
            let frame = range.page_frame(page).unwrap_or(u64::MAX);
            let length = left.min(4096 - offset);
            let address = frame.checked_mul(4096).and_then(|at| at.checked_add(offset as u64));
            let Some(address) = address else { return wrong("page_frame", frame) };
            let slice = memory.guest.read_slice(cache, DmaAddress(address), length);
            let Ok(slice) = slice else { return wrong("page_frame", frame) };
            // Pages that follow each other are one piece.
            let joined = match (next, pieces.last_mut()) {
                (Some(expected), Some(last)) if expected == address => {
                    let start = address - last.len() as u64;
                    let whole = last.len() + length;
                    memory.guest.read_slice(cache, DmaAddress(start), whole).is_ok_and(|joined| {
                        *last = joined;
                        true
                    })
                }
                _ => false,
            };
            if !joined && pieces.try_push(slice).is_err() {
                return Ok(Err(TOO_MANY));
            }
            next = address.checked_add(length as u64);
            left -= length;
            offset = 0;
        }
    }
    Ok(Ok(()))
}

pub(super) fn copy_control(pieces: &Pieces<'_>) -> Result<Vec<u8>, ParseError> {
    let length = length_of(pieces);
    if length > MAX_CONTROL_MESSAGE {
        let value = u64::from(length);
        return Err(ParseError::Field { message: "RNDIS message", field: "control_length", value });
    }
    let mut bytes = vec![0; length as usize];
    let mut done = 0;
    for piece in pieces {
        done += piece.read_into(bytes.get_mut(done..).unwrap_or_default());
    }
    Ok(bytes)
}
