//! The frame path of one channel, host's side: frames out of the guest's packets. Frames to it are in `deliver`.

mod deliver;

use arrayvec::ArrayVec;
use netvsp_protocol::{
    ParseError,
    nvsp::{
        ChannelType, MAX_TRANSFER_RANGES, NvspStatus, SWITCH_DATA_PATH_TRANSACTION_ID,
        SendRndisPacket, VF_ASSOCIATION_TRANSACTION_ID,
    },
    packet::{PACKET_HEADER_SIZE, RndisPacket},
};
use shared_memory::{SharedSlice, TranslationCache};
use vmbus::{Packet, PacketKind, RingReceiver, RingSender};

use super::{
    QueuePhase, QueueState, QueueStatistics,
    gather::{
        Pieces, TOO_MANY, copy_control, gather, head_of, length_of, message_head, range, section,
        with_headers, words, wrong_length,
    },
};
use crate::{
    BURST_FRAMES, Incoming, ProtocolError, QueueMemory, Stop, TransmitBurst, TransmitMetadata,
    burst::MAX_FRAMES_PER_MESSAGE,
    channels::Queue,
    incoming::{MAX_CONTROL_MESSAGE, copy_message},
    metadata::MAX_LARGE_FRAME,
    ring::Completions,
    slots::Slots,
    start::{START, bare, head as head_of_piece},
};

/// Frames that go to the guest in one ring packet, at most.
const BATCH: usize = 64;
const _: () = assert!(BATCH <= MAX_TRANSFER_RANGES);
/// Bytes of an Ethernet header; no frame is shorter.
const ETHERNET: usize = 14;

/// Why a frame was not put into the receive buffer. It is dropped, and counted.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum NotDelivered {
    /// The guest does not receive: no RNDIS INITIALIZE yet, or no packet filter that takes the frame.
    NotWanted,
    /// The guest holds all suballocations.
    NoBuffer,
    /// The frame is longer than the MTU.
    TooLong,
    /// The ring to the guest is full.
    RingFull,
}

/// The frame path of one channel. One thread owns it, beside the channel and the [`QueueMemory`].
#[derive(Debug)]
pub struct VspQueue {
    index: u16,
    state: QueueState,
    /// Suballocations of the receive buffer that are this queue's.
    slots: Slots,
    /// Frames in the receive buffer that the guest was not told of.
    batch: ArrayVec<u32, BATCH>,
    completions: Completions,
    cache: TranslationCache,
    statistics: QueueStatistics,
}

/// One send-buffer section, seen in the ring and not looked at yet.
type Waiting<'m> = (SharedSlice<'m>, Option<u64>);

impl VspQueue {
    /// The queue of channel `index` (0 is the primary).
    #[must_use]
    pub fn new(index: u16) -> Self {
        Self {
            index,
            state: QueueState::default(),
            slots: Slots::default(),
            batch: ArrayVec::new(),
            completions: Completions::new(),
            cache: TranslationCache::default(),
            statistics: QueueStatistics::default(),
        }
    }

    /// Takes a new state of the control core, between bursts.
    pub fn update(&mut self, state: QueueState) {
        if state.phase != QueuePhase::Running {
            for slot in self.batch.drain(..) {
                self.slots.put(slot);
            }
        }
        self.state = state;
    }

    /// Makes all suballocations of a new receive buffer the queue's; for the primary channel.
    pub fn give_suballocations(&mut self, count: u32) {
        self.slots = Slots::new(count);
    }

    /// The queues of `count` new subchannels, each with its share of the suballocations.
    #[must_use]
    pub fn split(&mut self, count: u16) -> Vec<Self> {
        let queue = |(index, slots)| Self { slots, state: self.state, ..Self::new(index) };
        self.slots.split(count).map(queue).collect()
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

    /// Suballocations that the guest holds.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.slots.outstanding()
    }

    /// Appends frames that the guest sent to `burst` until it is full, the ring is empty, or a packet comes that is
    /// no frame. Copy the frames, then [`Self::complete`] the burst.
    ///
    /// # Errors
    /// The guest broke the protocol.
    #[inline]
    pub fn receive<'m>(
        &mut self,
        ring: &mut RingReceiver,
        memory: &'m QueueMemory,
        burst: &mut TransmitBurst<'m>,
    ) -> Result<Stop, ProtocolError> {
        if self.completions.wait() {
            return Ok(Stop::Blocked);
        }
        // Sections are seen first, so that they are on their way into the cache, and looked at then.
        let mut waiting = ArrayVec::<Waiting<'m>, { BURST_FRAMES / MAX_FRAMES_PER_MESSAGE }>::new();
        loop {
            if !burst.has_room(waiting.len() + 1) {
                self.parse_waiting(&mut waiting, burst);
                if !burst.has_room(1) {
                    return Ok(Stop::Full);
                }
            }
            let received = ring.receive()?;
            let Some(packet) = &received else {
                self.parse_waiting(&mut waiting, burst);
                return Ok(Stop::Empty);
            };
            if let Some(section) = self.plain(packet, memory) {
                section.0.prefetch_read();
                section.0.split(64).1.prefetch_read();
                let _ = waiting.try_push(section);
                continue;
            }
            self.parse_waiting(&mut waiting, burst);
            if let Some(incoming) = self.other(packet, memory, burst)? {
                return Ok(Stop::Control(incoming));
            }
        }
    }

    /// The section of a packet whose RNDIS messages are frames in one section of the send buffer, if it is one.
    #[inline(always)]
    fn plain<'m>(&self, packet: &Packet<'_>, memory: &'m QueueMemory) -> Option<Waiting<'m>> {
        if self.state.phase != QueuePhase::Running || !matches!(packet.kind, PacketKind::InBand) {
            return None;
        }
        let message = SendRndisPacket::from_qwords(message_head(packet)?).ok()?;
        let (ChannelType::Data, Some((index, size))) = (message.channel_type, message.section)
        else {
            return None;
        };
        let slice = section(memory, index, size)?;
        if slice.len() < size as usize {
            return None; // It lies in pieces.
        }
        Some((slice, packet.completion_requested.then_some(packet.transaction_id)))
    }

    #[inline]
    fn parse_waiting<'m, const N: usize>(
        &mut self,
        waiting: &mut ArrayVec<Waiting<'m>, N>,
        burst: &mut TransmitBurst<'m>,
    ) {
        for (slice, transaction) in waiting.drain(..) {
            let mark = burst.mark();
            let mut rest = slice;
            let mut result = Ok(());
            let mut count = 0;
            while result.is_ok() && !rest.is_empty() {
                count += 1;
                if count > MAX_FRAMES_PER_MESSAGE {
                    result = Err(TOO_MANY);
                    break;
                }
                match self.message(rest, burst) {
                    Ok(length) => rest = rest.split(length as usize).1,
                    Err(error) => result = Err(error),
                }
            }
            self.settle(result, mark, transaction, burst);
        }
    }

    /// One RNDIS message at the front of a piece that holds all of it; returns its length.
    #[inline(always)]
    fn message<'m>(
        &mut self,
        bytes: SharedSlice<'m>,
        burst: &mut TransmitBurst<'m>,
    ) -> Result<u32, ParseError> {
        let Some(packet) = bare(bytes) else { return self.message_with_info(bytes, burst) };
        let packet = packet?;
        let length = packet.data.end - packet.data.start;
        let frame = bytes
            .get(packet.data.start as usize, length as usize)
            .filter(|_| (length as usize) >= ETHERNET && length <= self.state.mtu)
            .ok_or(wrong_length(length))?;
        if !burst.push(head_of_piece(frame), frame, TransmitMetadata::default()) {
            return Err(TOO_MANY);
        }
        Ok(packet.message_length)
    }

    /// The same for any message.
    #[inline(never)]
    fn message_with_info<'m>(
        &mut self,
        bytes: SharedSlice<'m>,
        burst: &mut TransmitBurst<'m>,
    ) -> Result<u32, ParseError> {
        let mut start = [0; START];
        let copied = bytes.read_into(&mut start);
        let start = start.get(..copied).unwrap_or_default();
        let packet = RndisPacket::parse(start, u32::try_from(bytes.len()).unwrap_or(u32::MAX))?;
        let offset = packet.data.start as usize;
        let length = (packet.data.end - packet.data.start) as usize;
        let frame = bytes.get(offset, length).unwrap_or(SharedSlice::empty());
        let end = start.len().min(packet.data.end as usize);
        let head = start.get(offset..end).unwrap_or_default();
        let metadata = self.metadata(&packet, head, |out| frame.read_into(out))?;
        let head16 = match head.first_chunk::<16>() {
            Some(head) => words(head),
            None => head_of(|out| frame.read_into(out)),
        };
        if !burst.push(head16, frame, metadata) {
            return Err(TOO_MANY);
        }
        Ok(packet.message_length)
    }

    /// Checks a frame's length and reads what is said of it. `head` is as much of the frame as was copied.
    #[inline(always)]
    fn metadata(
        &self,
        packet: &RndisPacket,
        head: &[u8],
        read: impl Fn(&mut [u8]) -> usize,
    ) -> Result<TransmitMetadata, ParseError> {
        let length = packet.data.end - packet.data.start;
        if (length as usize) < ETHERNET {
            return Err(wrong_length(length));
        }
        let info = &packet.info;
        let metadata = if !TransmitMetadata::wants_headers(info) {
            TransmitMetadata::from_wire(info, &[], length as usize)?
        } else if head.len() >= (length as usize).min(80) {
            TransmitMetadata::from_wire(info, head, length as usize).or_else(|error| {
                // The headers may be longer than what was copied.
                if head.len() >= (length as usize).min(TransmitMetadata::HEAD) {
                    return Err(error);
                }
                with_headers(packet, &read)
            })?
        } else {
            with_headers(packet, &read)?
        };
        let limit = match metadata.segmentation {
            Some(_) => MAX_LARGE_FRAME,
            None => self.state.mtu,
        };
        if length > limit {
            return Err(wrong_length(length));
        }
        Ok(metadata)
    }

    /// What becomes of a ring packet whose messages were read.
    #[inline(always)]
    fn settle(
        &mut self,
        result: Result<(), ParseError>,
        mark: usize,
        transaction: Option<u64>,
        burst: &mut TransmitBurst<'_>,
    ) {
        let status = if result.is_ok() {
            NvspStatus::SUCCESS
        } else {
            burst.truncate(mark);
            self.statistics.malformed += 1;
            NvspStatus::INVALID_RNDIS_PACKET
        };
        if let Some(transaction) = transaction {
            burst.complete_with(transaction, status);
        }
    }

    /// Any packet that is not plain. Returns what is not for this queue.
    #[cold]
    #[inline(never)]
    fn other<'m>(
        &mut self,
        packet: &Packet<'_>,
        memory: &'m QueueMemory,
        burst: &mut TransmitBurst<'m>,
    ) -> Result<Option<Incoming>, ProtocolError> {
        let transaction = packet.completion_requested.then_some(packet.transaction_id);
        let ranges = match packet.kind {
            PacketKind::Completion => {
                self.completion(packet.transaction_id);
                return Ok(None);
            }
            PacketKind::TransferPages { .. } => return Err(ProtocolError::PacketKind),
            PacketKind::GpaDirect { ranges } => Some(ranges),
            PacketKind::InBand => None,
        };
        let message = message_head(packet).ok_or(ProtocolError::Nvsp(ParseError::TooShort {
            message: "NVSP message",
            needed: SendRndisPacket::SIZE,
            got: packet.payload.len(),
        }))?;
        let message = match SendRndisPacket::from_qwords(message) {
            Ok(message) => message,
            Err(ParseError::MessageType(_)) if ranges.is_none() => {
                if self.index != 0 {
                    return Err(ProtocolError::OnSubchannel { message: "an NVSP message" });
                }
                return Ok(Some(Incoming::Message {
                    transaction,
                    bytes: copy_message(packet.payload),
                }));
            }
            Err(error) => return Err(ProtocolError::Nvsp(error)),
        };
        let mut pieces = Pieces::new();
        let gathered = gather(memory, &mut self.cache, message.section, ranges, &mut pieces)?;
        match message.channel_type {
            ChannelType::Control if self.index != 0 => {
                Err(ProtocolError::OnSubchannel { message: "an RNDIS control message" })
            }
            ChannelType::Control => {
                let bytes = gathered.and_then(|()| copy_control(&pieces));
                if let Err(error) = &bytes
                    && let ParseError::Field { field: "control_length", value, .. } = error
                {
                    let length = u32::try_from(*value).unwrap_or(u32::MAX);
                    let limit = MAX_CONTROL_MESSAGE;
                    return Err(ProtocolError::ControlTooLong { length, limit });
                }
                Ok(Some(Incoming::Rndis { transaction, bytes }))
            }
            ChannelType::Data => {
                let mark = burst.mark();
                match self.state.phase {
                    QueuePhase::Running => {
                        let result = gathered.and_then(|()| self.messages(&pieces, burst));
                        self.settle(result, mark, transaction, burst);
                    }
                    QueuePhase::Stopped => {
                        self.statistics.refused += 1;
                        if let Some(transaction) = transaction {
                            burst.complete_with(transaction, NvspStatus::FAILURE);
                        }
                    }
                    QueuePhase::Starting => {
                        let when = "before RNDIS INITIALIZE";
                        return Err(ProtocolError::OutOfOrder { message: "a frame", when });
                    }
                }
                Ok(None)
            }
        }
    }

    /// Gives back the suballocations of a transaction. Answers that nobody asked for are counted and nothing else
    /// (SPEC-VMBUS §8.2).
    fn completion(&mut self, transaction: u64) {
        let own = [VF_ASSOCIATION_TRANSACTION_ID, SWITCH_DATA_PATH_TRANSACTION_ID];
        if self.slots.complete(transaction).is_none()
            && !(self.index == 0 && own.contains(&transaction))
        {
            self.statistics.unasked_completions += 1;
        }
    }

    /// RNDIS messages in several pieces. A header lies in one piece; a frame in as many as it likes.
    fn messages<'m>(
        &mut self,
        pieces: &Pieces<'m>,
        burst: &mut TransmitBurst<'m>,
    ) -> Result<(), ParseError> {
        let mut left: u32 = length_of(pieces);
        let mut at = 0u32;
        let mut count = 0;
        while left > 0 {
            count += 1;
            if count > MAX_FRAMES_PER_MESSAGE {
                return Err(TOO_MANY);
            }
            let piece = range(pieces, at, left).next().unwrap_or(SharedSlice::empty());
            let mut start = [0; PACKET_HEADER_SIZE + 1024];
            let copied = piece.read_into(&mut start);
            let start = start.get(..copied).unwrap_or_default();
            let packet = RndisPacket::parse(start, left)?;
            let length = packet.data.end - packet.data.start;
            let frame = || range(pieces, at + packet.data.start, length);
            let read = |out: &mut [u8]| {
                let mut done = 0;
                for piece in frame() {
                    let Some(rest) = out.get_mut(done..) else { break };
                    done += piece.read_into(rest);
                }
                done
            };
            let metadata = self.metadata(&packet, &[], read)?;
            if !burst.push_pieces(head_of(read), frame(), metadata) {
                return Err(TOO_MANY);
            }
            at += packet.message_length;
            left -= packet.message_length;
        }
        Ok(())
    }

    /// Completes the packets of a burst, whose frames have been copied, and empties it. What the ring has no room
    /// for is kept, and nothing is received until it is gone. The caller flushes the channel.
    ///
    /// # Errors
    /// The guest broke the ring.
    #[inline]
    pub fn complete(
        &mut self,
        ring: &mut RingSender,
        burst: &mut TransmitBurst<'_>,
    ) -> Result<(), ProtocolError> {
        self.statistics.transmitted += burst.len() as u64;
        for frame in burst.frames() {
            self.statistics.transmitted_bytes += u64::from(frame.length);
        }
        self.completions.write(ring, burst.done(), self.state.version.message_size())?;
        burst.clear();
        Ok(())
    }

    /// Writes completions that did not fit before; true if none is left.
    ///
    /// # Errors
    /// The guest broke the ring.
    pub fn drain(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        self.completions.drain(ring, self.state.version.message_size())
    }
}

impl Queue for VspQueue {
    fn index(&self) -> u16 {
        self.index
    }

    fn drain(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        Self::drain(self, ring)
    }

    #[inline]
    fn tell(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError> {
        self.announce(ring)
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
