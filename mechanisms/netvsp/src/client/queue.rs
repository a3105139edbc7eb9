//! The frame path of one channel, guest's side: frames into the send buffer, frames out of the receive buffer.

use netvsp_protocol::{
    nvsp::{
        ChannelType, MAX_TRANSFER_RANGES_RSC, NvspStatus, NvspVersion, ReceiveBufferSection,
        SendRndisPacket,
    },
    packet::{PacketLayout, PerPacketInfo},
};
use vmbus::{GuestBuffer, OutgoingGpaRange, OutgoingPacket, PacketKind, RingReceiver, RingSender};
use vmbus_protocol::TransferPageRange;

use super::buffers::{copy_control, data_message, prefetch_frame, put, take_frame};
use crate::{
    Incoming, ProtocolError, QueueMemory, ReceiveBurst, Stop, TransmitMetadata,
    channels::Queue,
    incoming::copy_message,
    ring::{Completions, rndis_message, write},
    slots::Slots,
};

/// Packets in one message, unless the server takes fewer.
const MAX_PACKETS: u32 = 8;
/// Marks transactions of large sends.
const LARGE: u64 = 1 << 63;
/// So many frames ahead, one is asked for from the server's cache.
const AHEAD: usize = 4;
/// Bytes of a completion.
const COMPLETION: usize = 8;

/// Why a frame was not sent.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum NotSent {
    /// The NIC is not up.
    NotUp,
    /// The server holds all buffers; it gives them back soon.
    NoBuffer,
    /// The ring to the server is full.
    RingFull,
    /// No buffer can hold the frame.
    TooLong,
}

/// What passed through a queue.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct QueueStatistics {
    /// Frames sent.
    pub transmitted: u64,
    /// Frames received.
    pub received: u64,
    /// Messages from the server that made no sense; their frames were dropped.
    pub malformed: u64,
    /// Messages of ours that the server did not take.
    pub refused: u64,
    /// Frames that could not be sent.
    pub not_sent: u64,
}

/// Guest pages for frames that do not fit a section of the send buffer: large sends are written there and sent as
/// ranges of pages.
#[derive(Debug)]
pub struct LargeBuffers {
    buffer: GuestBuffer,
    frames: Vec<u64>,
    slots: Slots,
}

impl LargeBuffers {
    /// Pages of one large send: 64 KiB, headers, and what is left over at the ends.
    pub const PAGES: usize = 17;

    /// Divides a buffer that begins at a page and whose page frame numbers these are.
    #[must_use]
    pub fn new(buffer: GuestBuffer, frames: Vec<u64>) -> Self {
        let count = frames.len().min(buffer.page_count()) / Self::PAGES;
        Self { buffer, frames, slots: Slots::new(u32::try_from(count).unwrap_or(u32::MAX)) }
    }

    /// Those of `count` subchannels, numbered from 1 on, each with its share of the slots.
    fn split(&mut self, count: u16) -> impl Iterator<Item = Self> {
        let Self { buffer, frames, slots } = self;
        let part = |(_, slots)| Self { buffer: buffer.clone(), frames: frames.clone(), slots };
        slots.split(count).map(part)
    }
}

/// A section that frames are being put into.
#[derive(Copy, Clone, Debug)]
struct Filling {
    section: u32,
    used: u32,
    packets: u32,
}

/// The frame path of one channel of a guest's NIC. One thread owns it.
#[derive(Debug)]
pub struct VscQueue {
    index: u16,
    version: NvspVersion,
    receive: ReceiveBufferSection,
    receive_id: u16,
    section_size: u32,
    max_packets: u32,
    up: bool,
    sections: Slots,
    filling: Option<Filling>,
    large: Option<LargeBuffers>,
    /// Ranges of the packet at hand, of which those before `next_range` are done, and its transaction.
    ranges: Vec<TransferPageRange>,
    next_range: usize,
    transaction: u64,
    completions: Completions,
    statistics: QueueStatistics,
}

impl VscQueue {
    /// The queue of channel `index` (0 is the primary).
    #[must_use]
    pub fn new(index: u16) -> Self {
        Self {
            index,
            version: NvspVersion::V61,
            receive: ReceiveBufferSection {
                offset: 0,
                sub_allocation_size: 0,
                sub_allocations: 0,
                end_offset: 0,
            },
            receive_id: 0,
            section_size: 0,
            max_packets: 1,
            up: false,
            sections: Slots::default(),
            filling: None,
            large: None,
            ranges: Vec::new(),
            next_range: 0,
            transaction: 0,
            completions: Completions::new(),
            statistics: QueueStatistics::default(),
        }
    }

    /// The version that was agreed on.
    pub fn set_version(&mut self, version: NvspVersion) {
        self.version = version;
    }

    /// The receive buffer was taken by the server.
    pub fn set_receive(&mut self, id: u16, section: ReceiveBufferSection) {
        self.receive_id = id;
        self.receive = section;
    }

    /// The send buffer of `length` bytes was taken by the server, which wants sections of this size.
    pub fn set_send(&mut self, length: usize, section_size: u32) {
        let sections = u32::try_from(length).unwrap_or(u32::MAX).checked_div(section_size);
        self.section_size = section_size;
        self.sections = Slots::new(sections.unwrap_or(0));
    }

    /// Pages for large sends.
    pub fn set_large(&mut self, large: LargeBuffers) {
        self.large = Some(large);
    }

    /// The pages for large sends, all free: nothing uses the channel any more.
    pub fn take_large(&mut self) -> Option<LargeBuffers> {
        let mut large = self.large.take()?;
        large.slots.free_all();
        Some(large)
    }

    /// Frames may be sent, up to `max_packets` in one message; or no more.
    pub fn set_up(&mut self, up: bool, max_packets: u32) {
        self.up = up;
        self.max_packets = max_packets.clamp(1, MAX_PACKETS);
    }

    /// The queues of `count` subchannels, each with its share of the sections and of the pages for large sends.
    #[must_use]
    pub fn split(&mut self, count: u16) -> Vec<Self> {
        let mut large = self.large.as_mut().map(|large| large.split(count));
        let queue = |(index, sections)| Self {
            sections,
            large: large.as_mut().and_then(Iterator::next),
            version: self.version,
            receive: self.receive,
            receive_id: self.receive_id,
            section_size: self.section_size,
            max_packets: self.max_packets,
            up: self.up,
            ..Self::new(index)
        };
        self.sections.split(count).map(queue).collect()
    }

    /// Which channel it is.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// What passed, and what did not.
    #[must_use]
    pub fn statistics(&self) -> QueueStatistics {
        self.statistics
    }

    /// Buffers that the server holds.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.sections.outstanding()
            + self.large.as_ref().map_or(0, |large| large.slots.outstanding())
    }

    /// Sends a frame. Several short ones go in one message: the server sees them after [`Self::flush`].
    ///
    /// # Errors
    /// Why it was not sent; it is counted.
    #[inline]
    pub fn send(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        frame: &[u8],
        metadata: &TransmitMetadata,
    ) -> Result<(), NotSent> {
        let result = self.try_send(ring, memory, frame, metadata);
        match result {
            Ok(()) => self.statistics.transmitted += 1,
            Err(_) => self.statistics.not_sent += 1,
        }
        result
    }

    #[inline]
    fn try_send(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        frame: &[u8],
        metadata: &TransmitMetadata,
    ) -> Result<(), NotSent> {
        let Some(send) = memory.send.as_ref().filter(|_| self.up) else {
            return Err(NotSent::NotUp);
        };
        let info = metadata.to_wire();
        let length = u32::try_from(frame.len()).map_err(|_| NotSent::TooLong)?;
        let mut layout = PacketLayout::packed(&info, length);
        layout.message_length =
            layout.message_length.checked_next_multiple_of(8).ok_or(NotSent::TooLong)?;
        if layout.message_length > self.section_size {
            if !self.flush(ring).unwrap_or(false) {
                return Err(NotSent::RingFull);
            }
            return self.send_large(ring, &info, layout, frame);
        }
        if self.filling.is_some_and(|filling| {
            filling.packets >= self.max_packets
                || filling.used + layout.message_length > self.section_size
        }) && !self.flush(ring).unwrap_or(false)
        {
            return Err(NotSent::RingFull);
        }
        let mut filling = match self.filling {
            Some(filling) => filling,
            None => {
                let section = self.sections.take().ok_or(NotSent::NoBuffer)?;
                Filling { section, used: 0, packets: 0 }
            }
        };
        let at = filling.section as usize * self.section_size as usize + filling.used as usize;
        put(send, at, layout, &info, frame).ok_or(NotSent::TooLong)?;
        filling.used += layout.message_length;
        filling.packets += 1;
        self.filling = Some(filling);
        Ok(())
    }

    fn send_large(
        &mut self,
        ring: &mut RingSender,
        info: &PerPacketInfo,
        layout: PacketLayout,
        frame: &[u8],
    ) -> Result<(), NotSent> {
        let large = self.large.as_mut().ok_or(NotSent::TooLong)?;
        if layout.message_length as usize > LargeBuffers::PAGES * 4096 {
            return Err(NotSent::TooLong);
        }
        let slot = large.slots.take().ok_or(NotSent::NoBuffer)?;
        let first = slot as usize * LargeBuffers::PAGES;
        let pages = (layout.message_length as usize).div_ceil(4096);
        let page_frames = large.frames.get(first..first + pages).unwrap_or_default();
        let range =
            OutgoingGpaRange { byte_count: layout.message_length, byte_offset: 0, page_frames };
        let written = put(&large.buffer, first * 4096, layout, info, frame);
        let transaction_id = large.slots.send(std::iter::once(slot));
        let packet =
            OutgoingPacket::GpaDirect { transaction_id: transaction_id | LARGE, ranges: &[range] };
        let message = data_message(None);
        if written.is_none() || ring.write(packet, &message).is_err() {
            let _ = large.slots.complete(transaction_id);
            return Err(NotSent::RingFull);
        }
        Ok(())
    }

    /// Sends a frame that lies in guest pages, without a copy: its headers go in a section, which the pages follow
    /// (SPEC-VMBUS §5.5). The pages must stay as they are until `outstanding` says that nothing is with the server.
    ///
    /// # Errors
    /// Why it was not sent; it is counted.
    pub fn send_pages(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        ranges: &[OutgoingGpaRange<'_>],
        metadata: &TransmitMetadata,
    ) -> Result<(), NotSent> {
        let result = self.try_send_pages(ring, memory, ranges, metadata);
        match result {
            Ok(()) => self.statistics.transmitted += 1,
            Err(_) => self.statistics.not_sent += 1,
        }
        result
    }

    fn try_send_pages(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        ranges: &[OutgoingGpaRange<'_>],
        metadata: &TransmitMetadata,
    ) -> Result<(), NotSent> {
        let Some(send) = memory.send.as_ref().filter(|_| self.up) else {
            return Err(NotSent::NotUp);
        };
        if !self.flush(ring).unwrap_or(false) {
            return Err(NotSent::RingFull);
        }
        let info = metadata.to_wire();
        let length = ranges
            .iter()
            .try_fold(0u32, |sum, range| sum.checked_add(range.byte_count))
            .ok_or(NotSent::TooLong)?;
        let layout = PacketLayout::packed(&info, length);
        let section = self.sections.take().ok_or(NotSent::NoBuffer)?;
        let at = section as usize * self.section_size as usize;
        let written = put(send, at, layout, &info, &[]);
        let transaction_id = self.sections.send(std::iter::once(section));
        let packet = OutgoingPacket::GpaDirect { transaction_id, ranges };
        let message = data_message(Some((section, layout.data_offset)));
        if written.is_none() || ring.write(packet, &message).is_err() {
            let _ = self.sections.complete(transaction_id);
            return Err(NotSent::RingFull);
        }
        Ok(())
    }

    /// Hands frames that were put into a section to the ring; false if it has no room. The caller flushes the
    /// channel.
    ///
    /// # Errors
    /// The server broke the ring.
    #[inline]
    pub fn flush(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        let Some(filling) = self.filling else { return Ok(true) };
        let message = data_message(Some((filling.section, filling.used)));
        let sent = self.send_section(ring, filling.section, &message)?;
        if sent {
            self.filling = None;
        }
        Ok(sent)
    }

    fn send_section(
        &mut self,
        ring: &mut RingSender,
        section: u32,
        message: &[u8],
    ) -> Result<bool, ProtocolError> {
        let transaction_id = self.sections.send(std::iter::once(section));
        let packet = OutgoingPacket::InBand { transaction_id, completion_requested: true };
        let sent = write(ring, packet, message);
        if !matches!(sent, Ok(true)) {
            self.sections.recall(transaction_id);
        }
        sent
    }

    /// Sends an RNDIS control message; false if there is no room or section now. On the primary channel only.
    ///
    /// # Errors
    /// The server broke the ring.
    pub fn send_control(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        bytes: &[u8],
    ) -> Result<bool, ProtocolError> {
        if !self.flush(ring)? {
            return Ok(false);
        }
        let (Some(send), Some(section)) = (&memory.send, self.sections.take()) else {
            return Ok(false);
        };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let at = section as usize * self.section_size as usize;
        if size > self.section_size || send.write(at, bytes).is_none() {
            // Control messages are short; one that does not fit could never be sent.
            self.sections.put(section);
            return Ok(true);
        }
        let message = rndis_message(SendRndisPacket {
            channel_type: ChannelType::Control,
            section: Some((section, size)),
        });
        let sent = self.send_section(ring, section, &message)?;
        if !sent {
            self.sections.put(section);
        }
        Ok(sent)
    }

    /// Appends frames that the server sent to `burst` until it is full, the ring is empty, or a packet comes that
    /// is no frame. Copy the frames, then [`Self::complete`] the burst.
    ///
    /// # Errors
    /// The server broke the protocol.
    #[inline]
    pub fn receive<'m>(
        &mut self,
        ring: &mut RingReceiver,
        memory: &'m QueueMemory,
        burst: &mut ReceiveBurst<'m>,
    ) -> Result<Stop, ProtocolError> {
        if self.completions.wait() {
            return Ok(Stop::Blocked);
        }
        loop {
            if !self.take_ranges(memory, burst) || !burst.has_room_for_frame() {
                return Ok(Stop::Full);
            }
            let Some(packet) = ring.receive()? else { return Ok(Stop::Empty) };
            match packet.kind {
                PacketKind::Completion => {
                    let mut status = [0; 8];
                    packet.payload.read_into(&mut status);
                    if !self.completed(packet.transaction_id, &status) {
                        return Ok(Stop::Control(Incoming::Completion {
                            transaction: packet.transaction_id,
                            bytes: copy_message(packet.payload),
                        }));
                    }
                }
                PacketKind::GpaDirect { .. } => return Err(ProtocolError::PacketKind),
                PacketKind::InBand => {
                    if self.index != 0 {
                        return Err(ProtocolError::OnSubchannel { message: "an NVSP message" });
                    }
                    let wanted = packet.completion_requested;
                    return Ok(Stop::Control(Incoming::Message {
                        transaction: wanted.then_some(packet.transaction_id),
                        bytes: copy_message(packet.payload),
                    }));
                }
                PacketKind::TransferPages { page_set_id, ranges } => {
                    let mut message = [0; SendRndisPacket::SIZE];
                    packet.payload.read_into(&mut message);
                    let message = SendRndisPacket::parse(&message).map_err(ProtocolError::Nvsp)?;
                    if page_set_id != self.receive_id || ranges.len() > MAX_TRANSFER_RANGES_RSC {
                        return Err(ProtocolError::PacketKind);
                    }
                    self.transaction = packet.transaction_id;
                    if message.channel_type == ChannelType::Data {
                        self.ranges.clear();
                        self.ranges.extend(ranges);
                        self.next_range = 0;
                        for soon in self.ranges.iter().take(AHEAD + 1) {
                            prefetch_frame(memory, *soon);
                        }
                        if self.ranges.is_empty() {
                            burst.complete_with(self.transaction, NvspStatus::SUCCESS);
                        }
                        continue;
                    }
                    let mut ranges = ranges;
                    let bytes = ranges
                        .next()
                        .map_or(Ok(Vec::new()), |range| copy_control(memory, self.receive, range));
                    burst.complete_with(self.transaction, NvspStatus::SUCCESS);
                    return Ok(Stop::Control(Incoming::Rndis { transaction: None, bytes }));
                }
            }
        }
    }

    /// Frames of the packet at hand; false if the burst became full before its end.
    #[inline]
    fn take_ranges<'m>(&mut self, memory: &'m QueueMemory, burst: &mut ReceiveBurst<'m>) -> bool {
        while let Some(range) = self.ranges.get(self.next_range).copied() {
            if !burst.has_room_for_frame() {
                return false;
            }
            self.next_range += 1;
            if let Some(soon) = self.ranges.get(self.next_range + AHEAD) {
                prefetch_frame(memory, *soon);
            }
            if take_frame(memory, range, burst).is_err() {
                self.statistics.malformed += 1;
            }
            if self.next_range == self.ranges.len() {
                burst.complete_with(self.transaction, NvspStatus::SUCCESS);
            }
        }
        true
    }

    /// Frees what a completion answers; false if it answers nothing of this queue.
    #[inline]
    fn completed(&mut self, transaction: u64, status: &[u8; 8]) -> bool {
        let count = if transaction & LARGE == 0 {
            self.sections.complete(transaction)
        } else {
            self.large.as_mut().and_then(|large| large.slots.complete(transaction & !LARGE))
        };
        if count.is_some() && NvspStatus::from_packet_complete(status) != Some(NvspStatus::SUCCESS)
        {
            self.statistics.refused += 1;
        }
        count.is_some()
    }

    /// Completes the packets of a burst, whose frames have been copied, and empties it. The caller flushes the channel.
    ///
    /// # Errors
    /// The server broke the ring.
    pub fn complete(
        &mut self,
        ring: &mut RingSender,
        burst: &mut ReceiveBurst<'_>,
    ) -> Result<(), ProtocolError> {
        self.statistics.received += burst.len() as u64;
        self.completions.write(ring, burst.done(), COMPLETION)?;
        burst.clear();
        Ok(())
    }

    /// Writes completions that did not fit before; true if none is left.
    ///
    /// # Errors
    /// The server broke the ring.
    pub fn drain(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        self.completions.drain(ring, COMPLETION)
    }
}

impl Queue for VscQueue {
    fn index(&self) -> u16 {
        self.index
    }

    fn drain(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        Self::drain(self, ring)
    }

    #[inline]
    fn tell(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        self.flush(ring)
    }

    fn send_control(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        bytes: &[u8],
    ) -> Result<bool, ProtocolError> {
        Self::send_control(self, ring, memory, bytes)
    }
}
