//! The half of a ring that writes packets.

use std::sync::atomic::Ordering;

use shared_memory::SharedSlice;
use vmbus_protocol::{
    CONTROL_PAGE_FEATURE_BITS, CONTROL_PAGE_IN, CONTROL_PAGE_INTERRUPT_MASK, CONTROL_PAGE_OUT,
    CONTROL_PAGE_PENDING_SEND_SIZE, FEATURE_PENDING_SEND_SIZE, GpaRangeHeader, MAX_PACKET_LENGTH,
    PACKET_FLAG_COMPLETION_REQUESTED, PACKET_FOOTER_SIZE, PacketDescriptor, PacketFooter,
    PacketType, RangeListHeader,
};

use super::{ChannelDead, OutgoingPacket, RingMemory, SendError, Signal};

/// Writes packets into a ring.
#[derive(Debug)]
pub struct RingSender {
    memory: RingMemory,
    /// Up to where the receiver has been told of packets.
    published: u32,
    /// Up to where packets are written.
    written: u32,
    /// The receiver's index when it was last looked at.
    out: u32,
    /// What the receiver is told that room is waited for, or 0.
    pending: u32,
}

/// What became of a request for room.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use]
pub struct RoomRequest {
    /// The room is there now; there is nothing to wait for.
    pub has_room: bool,
    /// Whether the peer is to be signalled: packets were published.
    pub signal: Signal,
}

impl RingSender {
    /// The sender of a ring, going on where its indices are. Tells the receiver that room will be asked for.
    pub fn new(memory: RingMemory) -> Result<Self, ChannelDead> {
        let written = memory.load_index("in", CONTROL_PAGE_IN, Ordering::Relaxed)?;
        let out = memory.load_index("out", CONTROL_PAGE_OUT, Ordering::Acquire)?;
        memory.store(CONTROL_PAGE_PENDING_SEND_SIZE, 0, Ordering::Relaxed)?;
        memory.store(CONTROL_PAGE_FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, Ordering::Release)?;
        Ok(Self { memory, published: written, written, out, pending: 0 })
    }

    /// Bytes of the data area.
    pub fn size(&self) -> u32 {
        self.memory.size()
    }

    /// Bytes that a packet with so many bytes between descriptor and footer takes up in the ring: rounded up to 8.
    pub const fn packet_size(bytes: usize) -> usize {
        size_of::<PacketDescriptor>() + bytes.next_multiple_of(8) + PACKET_FOOTER_SIZE
    }

    /// Bytes that may be written now.
    pub fn room(&mut self) -> Result<u32, ChannelDead> {
        self.out = self.memory.load_index("out", CONTROL_PAGE_OUT, Ordering::Acquire)?;
        Ok(self.memory.free(self.written, self.out))
    }

    /// Writes a packet whose payload is `payload`. It is seen by the receiver after [`Self::publish`].
    #[inline]
    pub fn write(&mut self, packet: OutgoingPacket<'_>, payload: &[u8]) -> Result<(), SendError> {
        self.reserve(packet, payload.len())?.write_from(payload);
        Ok(())
    }

    /// Writes a packet whose payload is the parts one after the other.
    #[inline]
    pub fn write_parts(
        &mut self,
        packet: OutgoingPacket<'_>,
        parts: &[&[u8]],
    ) -> Result<(), SendError> {
        let mut rest = self.reserve(packet, parts.iter().map(|part| part.len()).sum())?;
        for part in parts {
            rest = rest.split(rest.write_from(part)).1;
        }
        Ok(())
    }

    /// Writes a packet but for its payload, for which the `payload_length` bytes of the slice are to be filled
    /// before [`Self::publish`]. The padding behind them is zero already.
    #[inline]
    pub fn reserve(
        &mut self,
        packet: OutgoingPacket<'_>,
        payload_length: usize,
    ) -> Result<SharedSlice<'_>, SendError> {
        match packet {
            OutgoingPacket::InBand { transaction_id, completion_requested } => {
                let flags = u16::from(completion_requested) * PACKET_FLAG_COMPLETION_REQUESTED;
                let header = Header::new(PacketType::InBand, flags, transaction_id, 0);
                Ok(self.place(header, payload_length)?.1)
            }
            OutgoingPacket::Completion { transaction_id } => {
                let header = Header::new(PacketType::Completion, 0, transaction_id, 0);
                Ok(self.place(header, payload_length)?.1)
            }
            OutgoingPacket::TransferPages { transaction_id, page_set_id, ranges } => {
                let flags = PACKET_FLAG_COMPLETION_REQUESTED;
                let extra = 8 + ranges.len().saturating_mul(8);
                let header = Header::new(PacketType::TransferPages, flags, transaction_id, extra);
                let (mut rest, payload) = self.place(header, payload_length)?;
                let list = RangeListHeader {
                    transfer_page_set_id: page_set_id,
                    reserved: 0,
                    range_count: u32::try_from(ranges.len()).map_err(|_| SendError::BadRange)?,
                };
                rest = put(rest, zerocopy::transmute!(list))?;
                for range in ranges {
                    rest = put(rest, zerocopy::transmute!(*range))?;
                }
                Ok(payload)
            }
            OutgoingPacket::GpaDirect { transaction_id, ranges } => {
                let mut extra = 8usize;
                for range in ranges {
                    let header = GpaRangeHeader {
                        byte_count: range.byte_count,
                        byte_offset: range.byte_offset,
                    };
                    let pages = header.page_count().ok_or(SendError::BadRange)? as usize;
                    if pages != range.page_frames.len() {
                        return Err(SendError::BadRange);
                    }
                    extra = extra.saturating_add(8 + pages * 8);
                }
                if ranges.is_empty() {
                    return Err(SendError::BadRange);
                }
                let flags = PACKET_FLAG_COMPLETION_REQUESTED;
                let header = Header::new(PacketType::GpaDirect, flags, transaction_id, extra);
                let (mut rest, payload) = self.place(header, payload_length)?;
                let list = RangeListHeader {
                    transfer_page_set_id: 0,
                    reserved: 0,
                    range_count: u32::try_from(ranges.len()).map_err(|_| SendError::BadRange)?,
                };
                rest = put(rest, zerocopy::transmute!(list))?;
                for range in ranges {
                    let header = GpaRangeHeader {
                        byte_count: range.byte_count,
                        byte_offset: range.byte_offset,
                    };
                    rest = put(rest, zerocopy::transmute!(header))?;
                    for frame in range.page_frames {
                        rest = put(rest, *frame)?;
                    }
                }
                Ok(payload)
            }
        }
    }

    /// Writes descriptor, padding and footer; returns where the type's own header and the payload go.
    #[inline(always)]
    fn place(
        &mut self,
        header: Header,
        payload: usize,
    ) -> Result<(SharedSlice<'_>, SharedSlice<'_>), SendError> {
        let size = self.memory.size();
        let data_offset = size_of::<PacketDescriptor>().saturating_add(header.extra);
        let unpadded = data_offset.saturating_add(payload);
        let too_long = SendError::TooLong { length: unpadded, size };
        if unpadded > MAX_PACKET_LENGTH {
            return Err(too_long);
        }
        // All of these are small now.
        let (Ok(data_offset), Ok(payload), Ok(unpadded)) =
            (u32::try_from(data_offset), u32::try_from(payload), u32::try_from(unpadded))
        else {
            return Err(too_long);
        };
        let length = unpadded.next_multiple_of(8);
        let needed = length + 8;
        if needed >= self.memory.longest() + 8 {
            return Err(too_long);
        }
        if self.memory.free(self.written, self.out) < needed {
            self.out = self.memory.load_index("out", CONTROL_PAGE_OUT, Ordering::Acquire)?;
            if self.memory.free(self.written, self.out) < needed {
                return Err(SendError::Full { needed });
            }
        }
        let at = self.written;
        let space = self.memory.data(at, needed)?;
        // Type, data offset, length and flags as one word (PacketDescriptor).
        let word = u64::from(header.packet_type)
            | u64::from(data_offset / 8) << 16
            | u64::from(length / 8) << 32
            | u64::from(header.flags) << 48;
        put(space, word)?;
        put(space.split(8).1, header.transaction_id)?;
        if unpadded != length {
            // The last word of the payload is whole once the payload is over it.
            put(space.split(length as usize - 8).1, 0)?;
        }
        let footer = PacketFooter { reserved: 0, offset: at };
        put(space.split(length as usize).1, zerocopy::transmute!(footer))?;
        self.written = self.memory.advance(at, needed);
        if self.pending != 0 {
            self.pending = 0;
            self.memory.store(CONTROL_PAGE_PENDING_SEND_SIZE, 0, Ordering::Relaxed)?;
        }
        let extra = space.split(16).1.split(header.extra).0;
        let payload = space.split(data_offset as usize).1.split(payload as usize).0;
        Ok((extra, payload))
    }

    /// Bytes written that the receiver has not been told of.
    pub fn unpublished(&self) -> u32 {
        self.memory.used(self.written, self.published)
    }

    /// Lets the receiver see all packets written so far. The peer is to be signalled if it sleeps and had read
    /// everything there was before (SPEC-VMBUS §3.3).
    #[inline]
    pub fn publish(&mut self) -> Result<Signal, ChannelDead> {
        if self.written == self.published {
            return Ok(Signal::NotDue);
        }
        let before = self.published;
        self.memory.store(CONTROL_PAGE_IN, self.written, Ordering::SeqCst)?;
        self.published = self.written;
        let masked = self.memory.load(CONTROL_PAGE_INTERRUPT_MASK, Ordering::SeqCst)?;
        if masked != 0 {
            return Ok(Signal::NotDue);
        }
        self.out = self.memory.load_index("out", CONTROL_PAGE_OUT, Ordering::SeqCst)?;
        Ok(Signal::from(self.out == before))
    }

    /// Asks the receiver for a signal once a packet that takes up `needed` bytes ([`SendError::Full`]) fits.
    /// Publishes what is written, since room for it can come of nothing else.
    pub fn request_room(&mut self, needed: u32) -> Result<RoomRequest, ChannelDead> {
        let signal = self.publish()?;
        let needed = needed.next_multiple_of(8).min(self.memory.longest());
        self.pending = needed;
        self.memory.store(CONTROL_PAGE_PENDING_SEND_SIZE, needed, Ordering::SeqCst)?;
        self.out = self.memory.load_index("out", CONTROL_PAGE_OUT, Ordering::SeqCst)?;
        let has_room = self.memory.free(self.written, self.out) >= needed;
        if has_room {
            self.pending = 0;
            self.memory.store(CONTROL_PAGE_PENDING_SEND_SIZE, 0, Ordering::Relaxed)?;
        }
        Ok(RoomRequest { has_room, signal })
    }
}

/// What a packet begins with, before its lengths are known.
struct Header {
    packet_type: u16,
    flags: u16,
    transaction_id: u64,
    /// Bytes between descriptor and payload, a multiple of 8.
    extra: usize,
}

impl Header {
    #[inline(always)]
    fn new(packet_type: PacketType, flags: u16, transaction_id: u64, extra: usize) -> Self {
        Self { packet_type: packet_type as u16, flags, transaction_id, extra }
    }
}

/// Stores a word at the start of `space`; returns what is behind it.
#[inline(always)]
fn put(space: SharedSlice<'_>, word: u64) -> Result<SharedSlice<'_>, ChannelDead> {
    space.store_u64(0, word, Ordering::Relaxed).ok_or(ChannelDead::NoMemory)?;
    Ok(space.split(8).1)
}
