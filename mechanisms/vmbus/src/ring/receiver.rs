//! The half of a ring that reads packets.

use std::sync::atomic::Ordering;

use vmbus_protocol::{
    CONTROL_PAGE_FEATURE_BITS, CONTROL_PAGE_IN, CONTROL_PAGE_INTERRUPT_MASK, CONTROL_PAGE_OUT,
    CONTROL_PAGE_PENDING_SEND_SIZE, FEATURE_PENDING_SEND_SIZE, PACKET_FLAG_COMPLETION_REQUESTED,
    PACKET_FOOTER_SIZE, PacketDescriptor, PacketType,
};

use super::{ChannelDead, Packet, PacketKind, RingMemory, Signal};

/// Reads packets from a ring.
#[derive(Debug)]
pub struct RingReceiver {
    memory: RingMemory,
    /// Up to where the sender has been given room back.
    released: u32,
    /// Up to where packets were read.
    read: u32,
    /// The sender's index when it was last looked at.
    incoming: u32,
    /// Whether the sender is told not to signal.
    masked: bool,
}

impl RingReceiver {
    /// The receiver of a ring, going on where its indices are. Signals are masked until
    /// [`Self::prepare_to_wait`].
    pub fn new(memory: RingMemory) -> Result<Self, ChannelDead> {
        memory.store(CONTROL_PAGE_INTERRUPT_MASK, 1, Ordering::Relaxed)?;
        let read = memory.load_index("out", CONTROL_PAGE_OUT, Ordering::Relaxed)?;
        let incoming = memory.load_index("in", CONTROL_PAGE_IN, Ordering::Acquire)?;
        Ok(Self { memory, released: read, read, incoming, masked: true })
    }

    /// Bytes of the data area.
    pub fn size(&self) -> u32 {
        self.memory.size()
    }

    /// Whether the sender says that it asks for room by pending_send_size; if not, one must never count on it to
    /// be woken by a signal for room.
    pub fn sender_asks_for_room(&self) -> Result<bool, ChannelDead> {
        let features = self.memory.load(CONTROL_PAGE_FEATURE_BITS, Ordering::Relaxed)?;
        Ok(features & FEATURE_PENDING_SEND_SIZE != 0)
    }

    /// The next packet, if there is one. The room of the ones before it, and of itself once it is done with, goes
    /// back to the sender by [`Self::release`].
    #[inline]
    pub fn receive(&mut self) -> Result<Option<Packet<'_>>, ChannelDead> {
        if self.read == self.incoming {
            self.incoming = self.memory.load_index("in", CONTROL_PAGE_IN, Ordering::Acquire)?;
            if self.read == self.incoming {
                return Ok(None);
            }
        }
        let at = self.read;
        let available = self.memory.used(self.incoming, at);
        let bytes = self.memory.data(at, available)?;
        // Indices are multiples of 8, so that less than a descriptor is half of one.
        let bad = |data_offset: u32, length: u32| ChannelDead::BadLength {
            offset: at,
            length,
            data_offset,
            available,
        };
        let (Some(first), Some(transaction_id)) = (bytes.load_bytes8(0), bytes.load_bytes8(8))
        else {
            return Err(bad(0, 0));
        };
        let descriptor: PacketDescriptor = zerocopy::transmute!([first, transaction_id]);
        let length = u32::from(descriptor.length8) * 8;
        let data_offset = u32::from(descriptor.data_offset8) * 8;
        let total = length as usize + PACKET_FOOTER_SIZE;
        if data_offset < 16 || length < data_offset || total > available as usize {
            return Err(bad(data_offset, length));
        }
        let Some(packet_type) = PacketType::from_wire(descriptor.packet_type) else {
            let packet_type = descriptor.packet_type;
            return Err(ChannelDead::BadType { offset: at, packet_type });
        };
        if descriptor.flags & !PACKET_FLAG_COMPLETION_REQUESTED != 0 {
            return Err(ChannelDead::BadFlags { offset: at, flags: descriptor.flags });
        }
        let (front, payload) = bytes.split(length as usize).0.split(data_offset as usize);
        let kind = PacketKind::parse(packet_type, front.split(16).1)?;
        self.read = self.memory.advance(at, length + 8);
        Ok(Some(Packet {
            kind,
            transaction_id,
            completion_requested: descriptor.flags & PACKET_FLAG_COMPLETION_REQUESTED != 0,
            payload,
        }))
    }

    /// Gives the room of all packets read so far back to the sender. The peer is to be signalled if it waits for
    /// room and now has it (SPEC-VMBUS §3.3).
    #[inline]
    pub fn release(&mut self) -> Result<Signal, ChannelDead> {
        if self.read == self.released {
            return Ok(Signal::NotDue);
        }
        let before = self.released;
        self.memory.store(CONTROL_PAGE_OUT, self.read, Ordering::SeqCst)?;
        self.released = self.read;
        let pending = self.memory.load(CONTROL_PAGE_PENDING_SEND_SIZE, Ordering::SeqCst)? & !7;
        if pending == 0 {
            return Ok(Signal::NotDue);
        }
        let incoming = self.memory.load_index("in", CONTROL_PAGE_IN, Ordering::Acquire)?;
        let free_before = self.memory.free(incoming, before);
        let free_after = self.memory.free(incoming, self.released);
        Ok(Signal::from(free_before < pending && pending <= free_after))
    }

    /// Asks the sender for signals; true if there is nothing to read, so that one may wait for a signal.
    pub fn prepare_to_wait(&mut self) -> Result<bool, ChannelDead> {
        if self.masked {
            self.masked = false;
            self.memory.store(CONTROL_PAGE_INTERRUPT_MASK, 0, Ordering::SeqCst)?;
        }
        self.incoming = self.memory.load_index("in", CONTROL_PAGE_IN, Ordering::SeqCst)?;
        Ok(self.read == self.incoming)
    }

    /// Asks the sender for no signals, while one looks at the ring anyway.
    pub fn mask_signals(&mut self) -> Result<(), ChannelDead> {
        if !self.masked {
            self.masked = true;
            self.memory.store(CONTROL_PAGE_INTERRUPT_MASK, 1, Ordering::Relaxed)?;
        }
        Ok(())
    }
}
