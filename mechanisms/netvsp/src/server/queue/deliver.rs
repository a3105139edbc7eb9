//! Frames to the guest: into suballocations of its receive buffer, and told of some at a time.

use arrayvec::ArrayVec;
use netvsp_protocol::{
    nvsp::{ChannelType, SendRndisPacket},
    packet::{MAX_PPI_BYTES, PACKET_HEADER_SIZE, PacketLayout},
};
use shared_memory::SharedSlice;
use vmbus::{OutgoingPacket, RingSender};
use vmbus_protocol::TransferPageRange;

use super::{
    super::{
        QueuePhase, QueueState,
        place::{Source, prefetch, wanted, write_at, write_pieces, write_whole},
    },
    BATCH, NotDelivered, VspQueue,
};
use crate::{
    ProtocolError, QueueMemory, ReceiveMetadata,
    ring::{rndis_message, write},
    slots::Slots,
};

/// Suballocations that frames leave to control messages on the primary channel (SPEC-VMBUS §5.5).
const CONTROL_RESERVE: usize = 16;
/// So many frames ahead, a suballocation is asked for from the guest's cache.
const AHEAD: usize = 4;

impl VspQueue {
    /// Puts a frame into the receive buffer: its pieces in order, of which the first begins with `head` (see
    /// [`Frame::head`](crate::Frame::head)). The guest sees it after [`Self::announce`].
    ///
    /// # Errors
    /// Why it was not; it is counted.
    #[inline]
    pub fn deliver(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        head: [u64; 2],
        pieces: &[SharedSlice<'_>],
        metadata: &ReceiveMetadata,
    ) -> Result<(), NotDelivered> {
        let length: usize = pieces.iter().map(SharedSlice::len).sum();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let result = self.place(ring, memory, head, pieces, length, metadata);
        match result {
            Ok(()) => {
                self.statistics.received += 1;
                self.statistics.received_bytes += u64::from(length);
            }
            Err(reason) => self.statistics.count(reason),
        }
        result
    }

    #[inline]
    fn place(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        head: [u64; 2],
        pieces: &[SharedSlice<'_>],
        length: u32,
        metadata: &ReceiveMetadata,
    ) -> Result<(), NotDelivered> {
        if self.state.phase != QueuePhase::Running || !wanted(self.state.filter, head) {
            return Err(NotDelivered::NotWanted);
        }
        if length > self.state.mtu {
            return Err(NotDelivered::TooLong);
        }
        if self.batch.is_full() {
            let _ = self.announce(ring);
            if self.batch.is_full() {
                return Err(NotDelivered::RingFull);
            }
        }
        let reserve = if self.index == 0 { CONTROL_RESERVE } else { 0 };
        if self.slots.free() <= reserve {
            return Err(NotDelivered::NoBuffer);
        }
        let (Some(receive), Some(slot)) = (&memory.receive, self.slots.take()) else {
            return Err(NotDelivered::NoBuffer);
        };
        if let Some(soon) = self.slots.peek(AHEAD) {
            prefetch(receive, soon);
        }
        let info = metadata.to_wire();
        let mut header = [0; PACKET_HEADER_SIZE + MAX_PPI_BYTES];
        let layout = PacketLayout::received(length, receive.section.sub_allocation_size);
        let written = layout.emit(&info, &mut header).unwrap_or(0);
        let header = header.get(..written).unwrap_or_default();
        let placed = match pieces {
            [piece] if write_whole(receive, slot, header, head, *piece) => true,
            pieces => {
                write_at(memory, slot, 0, &[Source::Bytes(header)])
                    && write_pieces(memory, slot, head, pieces)
            }
        };
        if !placed {
            self.slots.put(slot);
            return Err(NotDelivered::NoBuffer);
        }
        let _ = self.batch.try_push(slot);
        Ok(())
    }

    /// Tells the guest of the frames that were delivered since the last time. False if the ring has no room: try
    /// again when it has. The caller flushes the channel.
    ///
    /// # Errors
    /// The guest broke the ring.
    #[inline]
    pub fn announce(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        if self.batch.is_empty() {
            return Ok(true);
        }
        let sent = tell(ring, &self.state, &mut self.slots, &self.batch, ChannelType::Data)?;
        if sent {
            self.batch.clear();
        }
        Ok(sent)
    }

    /// Sends an RNDIS control message to the guest, behind all frames delivered before. False if there is no room
    /// now. On the primary channel only. The caller flushes the channel.
    ///
    /// # Errors
    /// The guest broke the ring.
    pub fn send_control(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        bytes: &[u8],
    ) -> Result<bool, ProtocolError> {
        if !self.announce(ring)? {
            return Ok(false);
        }
        let Some(slot) = self.slots.take() else { return Ok(false) };
        // Control messages are short; one that does not fit could never be sent.
        let placed = write_at(memory, slot, 0, &[Source::Bytes(bytes)]);
        if !placed || bytes.len() > self.state.sub_allocation_size as usize {
            self.slots.put(slot);
            return Ok(true);
        }
        let sent = tell(ring, &self.state, &mut self.slots, &[slot], ChannelType::Control)?;
        if !sent {
            self.slots.put(slot);
        }
        Ok(sent)
    }
}

/// Writes a packet that tells the guest of suballocations; false, with nothing changed, if the ring has no room.
#[inline]
fn tell(
    ring: &mut RingSender,
    state: &QueueState,
    slots: &mut Slots,
    told: &[u32],
    channel_type: ChannelType,
) -> Result<bool, ProtocolError> {
    let size = state.sub_allocation_size;
    let ranges: ArrayVec<TransferPageRange, BATCH> = told
        .iter()
        .take(BATCH)
        .map(|slot| TransferPageRange { byte_count: size, byte_offset: slot * size })
        .collect();
    let transaction_id = slots.send(told.iter().copied());
    let packet = OutgoingPacket::TransferPages {
        transaction_id,
        page_set_id: state.receive_buffer_id,
        ranges: &ranges,
    };
    let message = rndis_message(SendRndisPacket { channel_type, section: None });
    let payload = message.get(..state.version.message_size()).unwrap_or(&message);
    let sent = write(ring, packet, payload);
    if !matches!(sent, Ok(true)) {
        slots.recall(transaction_id);
    }
    sent
}
