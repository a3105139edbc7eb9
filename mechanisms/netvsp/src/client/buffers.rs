//! Reading and writing the guest's own buffers.

use arrayvec::ArrayVec;
use netvsp_protocol::{
    ParseError,
    nvsp::{ChannelType, ReceiveBufferSection, SendRndisPacket},
    packet::{MAX_PPI_BYTES, PACKET_HEADER_SIZE, PacketLayout, PerPacketInfo, RndisPacket},
};
use shared_memory::SharedSlice;
use vmbus::GuestBuffer;
use vmbus_protocol::TransferPageRange;

use crate::{
    QueueMemory, ReceiveBurst, ReceiveMetadata, incoming::MAX_CONTROL_MESSAGE, ring::rndis_message,
};

/// Bytes of a message's beginning that are copied out at once.
const START: usize = PACKET_HEADER_SIZE + MAX_PPI_BYTES + 64;

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
    buffer.write(at, header.get(..written)?)?;
    buffer.write(at + layout.data_offset as usize, frame)
}

/// The message of a range: its first bytes in a local copy, and the buffer it lies in.
pub(super) fn take_frame<'m>(
    memory: &'m QueueMemory,
    range: TransferPageRange,
    burst: &mut ReceiveBurst<'m>,
) -> Result<(), ParseError> {
    let wrong = ParseError::Range {
        message: "transfer page",
        field: "range",
        offset: range.byte_offset,
        length: range.byte_count,
        available: 0,
    };
    let receive = memory.receive.as_ref().ok_or(wrong)?;
    let (offset, length) = (range.byte_offset as usize, range.byte_count as usize);
    let mut start = [0; START];
    let copied = length.min(START);
    let start = start.get_mut(..copied).unwrap_or_default();
    receive.buffer.read(offset, start).ok_or(wrong)?;
    let packet = RndisPacket::parse(start, range.byte_count)?;
    let data = packet.data.end - packet.data.start;
    if data < 14 {
        return Err(wrong);
    }
    let at = offset + packet.data.start as usize;
    let mut head = [0; 16];
    let head_length = (data as usize).min(16);
    receive.buffer.read(at, head.get_mut(..head_length).unwrap_or_default()).ok_or(wrong)?;
    let [a, b] = [head.first_chunk::<8>(), head.last_chunk::<8>()]
        .map(|half| half.map_or(0, |half| u64::from_le_bytes(*half)));
    let metadata = ReceiveMetadata::from_wire(&packet.info);
    let slices: ArrayVec<SharedSlice<'m>, 8> =
        receive.buffer.slices(at, data as usize).ok_or(wrong)?.take(8).collect();
    if slices.iter().map(SharedSlice::len).sum::<usize>() != data as usize
        || !burst.push_pieces([a, b], slices.into_iter(), metadata)
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
