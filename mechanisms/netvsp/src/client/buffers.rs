//! Reading and writing the guest's own buffers.

use arrayvec::ArrayVec;
use netvsp_protocol::{
    ParseError,
    nvsp::{ChannelType, ReceiveBufferSection, SendRndisPacket},
    packet::{
        MAX_PPI_BYTES, PACKET_HEADER_SIZE, PacketLayout, PerPacketInfo, RECEIVE_DATA_OFFSET,
        RndisPacket,
    },
};
use shared_memory::SharedSlice;
use vmbus::GuestBuffer;
use vmbus_protocol::TransferPageRange;

use crate::{
    QueueMemory, ReceiveBuffer, ReceiveBurst, ReceiveMetadata,
    burst::MAX_FRAME_PIECES,
    incoming::MAX_CONTROL_MESSAGE,
    ring::rndis_message,
    start::{START, bare, head},
};

/// Bytes of an Ethernet header; no frame is shorter.
const ETHERNET: usize = 14;

pub(super) fn data_message(section: Option<(u32, u32)>) -> [u8; 40] {
    rndis_message(SendRndisPacket { channel_type: ChannelType::Data, section })
}

/// Writes header and frame of a message at byte `at` of a buffer.
#[inline]
pub(super) fn put(
    buffer: &GuestBuffer,
    at: usize,
    layout: PacketLayout,
    info: &PerPacketInfo,
    frame: &[u8],
) -> Option<()> {
    let mut header = [0; PACKET_HEADER_SIZE + MAX_PPI_BYTES];
    let written = layout.emit(info, &mut header)?;
    let header = header.get(..written)?;
    let offset = layout.data_offset as usize;
    let length = offset + frame.len();
    match buffer.first_slice(at, length) {
        Some(place) if place.len() == length => {
            let (start, rest) = place.split(offset);
            start.write_from(header);
            rest.write_from(frame);
            Some(())
        }
        _ => {
            buffer.write(at, header)?;
            buffer.write(at + offset, frame)
        }
    }
}

const fn wrong(range: TransferPageRange) -> ParseError {
    ParseError::Range {
        message: "transfer page",
        field: "range",
        offset: range.byte_offset,
        length: range.byte_count,
        available: 0,
    }
}

/// Hints that the message of a range will be read soon: its header, and its frame where servers put it.
#[inline(always)]
pub(super) fn prefetch_frame(memory: &QueueMemory, range: TransferPageRange) {
    let (offset, length) = (range.byte_offset as usize, range.byte_count as usize);
    let receive = memory.receive.as_ref();
    if let Some(bytes) = receive.and_then(|receive| receive.buffer.first_slice(offset, length)) {
        bytes.prefetch_read();
        bytes.split(RECEIVE_DATA_OFFSET as usize).1.prefetch_read();
    }
}

/// Adds the frame of a range. What is believed of it comes from one look at the message's beginning.
#[inline(always)]
pub(super) fn take_frame<'m>(
    memory: &'m QueueMemory,
    range: TransferPageRange,
    burst: &mut ReceiveBurst<'m>,
) -> Result<(), ParseError> {
    let receive = memory.receive.as_ref().ok_or(wrong(range))?;
    let (offset, length) = (range.byte_offset as usize, range.byte_count as usize);
    let bytes = receive.buffer.first_slice(offset, length).ok_or(wrong(range))?;
    match bare(bytes) {
        Some(packet) if bytes.len() == length => {
            let packet = packet?;
            let data = (packet.data.end - packet.data.start) as usize;
            let frame = bytes
                .get(packet.data.start as usize, data)
                .filter(|frame| frame.len() >= ETHERNET)
                .ok_or(wrong(range))?;
            let metadata = ReceiveMetadata::default();
            burst.push(head(frame), frame, metadata).then_some(()).ok_or(wrong(range))
        }
        _ => take_any_frame(receive, range, burst),
    }
}

/// The same for a message with per-packet information, or in several pieces.
#[inline(never)]
fn take_any_frame<'m>(
    receive: &'m ReceiveBuffer,
    range: TransferPageRange,
    burst: &mut ReceiveBurst<'m>,
) -> Result<(), ParseError> {
    let wrong = wrong(range);
    let (offset, length) = (range.byte_offset as usize, range.byte_count as usize);
    let mut start = [0; START];
    let start = start.get_mut(..length.min(START)).unwrap_or_default();
    receive.buffer.read(offset, start).ok_or(wrong)?;
    let packet = RndisPacket::parse(start, range.byte_count)?;
    let data = (packet.data.end - packet.data.start) as usize;
    if data < ETHERNET {
        return Err(wrong);
    }
    let at = offset + packet.data.start as usize;
    let mut head = [[0; 8]; 2];
    let known = head.as_flattened_mut().get_mut(..data.min(16)).unwrap_or_default();
    receive.buffer.read(at, known).ok_or(wrong)?;
    let head = head.map(u64::from_le_bytes);
    let metadata = ReceiveMetadata::from_wire(&packet.info);
    let slices: ArrayVec<SharedSlice<'m>, MAX_FRAME_PIECES> =
        receive.buffer.slices(at, data).ok_or(wrong)?.take(MAX_FRAME_PIECES).collect();
    if slices.iter().map(SharedSlice::len).sum::<usize>() != data
        || !burst.push_pieces(head, slices.into_iter(), metadata)
    {
        return Err(wrong);
    }
    Ok(())
}

pub(super) fn copy_control(
    memory: &QueueMemory,
    section: ReceiveBufferSection,
    range: TransferPageRange,
) -> Result<Vec<u8>, ParseError> {
    let length = range.byte_count.min(section.sub_allocation_size).min(MAX_CONTROL_MESSAGE);
    let mut bytes = vec![0; length as usize];
    let read = memory
        .receive
        .as_ref()
        .and_then(|receive| receive.buffer.read(range.byte_offset as usize, &mut bytes));
    match read {
        Some(()) => Ok(bytes),
        None => Err(ParseError::Range {
            message: "transfer page",
            field: "range",
            offset: range.byte_offset,
            length,
            available: 0,
        }),
    }
}
