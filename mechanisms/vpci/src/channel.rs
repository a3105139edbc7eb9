//! A core and its ring: packets become values, values become packets.

use std::{collections::VecDeque, time::Duration};

use pcivirt_protocol::NtStatus;
use vmbus::{Channel, ChannelDead, OutgoingPacket, PacketKind, SendError};
use vpci_protocol::{MAX_MESSAGE_SIZE, reply};

use crate::{Effect, Incoming, Outgoing, Vsp};

/// What ends a channel.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChannelError {
    /// The ring is broken.
    #[error("the ring of a VPCI channel cannot be used any more")]
    Ring(#[from] ChannelDead),
    /// A packet with memory ranges, which no message of VPCI has.
    #[error("the other side sent a packet with memory ranges, which VPCI has no use for")]
    NotInBand,
    /// A message of ours that the ring cannot hold even when it is empty.
    #[error(
        "a message of {length} bytes can never be sent through this ring; it needs to be larger"
    )]
    RingTooSmall {
        /// Bytes of the message.
        length: usize,
    },
}

/// Packets that may wait for room while a guest reads on.
const GUEST_TOLERATES: usize = 256;

/// An open VPCI channel, host's or guest's end.
///
/// What the ring has no room for waits here. While anything does, a host reads nothing more: a guest that does not
/// read its answers gets no more of them, and what waits stays bounded by what one packet, and the host's own events,
/// can cause. A guest reads on, or the two could wait for each other, until what waits shows that its host never will.
#[derive(Debug)]
pub struct VpciChannel {
    channel: Channel,
    waiting: VecDeque<Outgoing>,
    /// How much may wait while packets are read.
    tolerated: usize,
    /// Bytes that the first of `waiting` needs.
    needed: Option<u32>,
    /// Where a payload is copied to before anyone looks at it.
    payload: Vec<u8>,
}

impl VpciChannel {
    /// The host's end of a channel that has just been opened.
    pub fn of_host(channel: Channel) -> Self {
        Self::new(channel, 0)
    }

    /// The guest's end of a channel that has just been opened.
    pub fn of_guest(channel: Channel) -> Self {
        Self::new(channel, GUEST_TOLERATES)
    }

    fn new(channel: Channel, tolerated: usize) -> Self {
        let waiting = VecDeque::new();
        Self { channel, waiting, tolerated, needed: None, payload: Vec::new() }
    }

    /// The channel itself, to wait for it.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The channel itself, for its [`Channel::woken`].
    pub fn channel_mut(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// Whether something waits for room: to be told to [`Vsp::set_congested`](crate::Vsp::set_congested).
    pub fn is_congested(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes a packet, or keeps it until there is room. The other side sees it after [`Self::flush`].
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn send(&mut self, packet: Outgoing) -> Result<(), ChannelError> {
        self.waiting.push_back(packet);
        self.write_waiting()
    }

    fn holds_back(&self) -> bool {
        self.waiting.len() > self.tolerated
    }

    fn write_waiting(&mut self) -> Result<(), ChannelError> {
        while let Some(first) = self.waiting.front() {
            match write(&mut self.channel, first) {
                Ok(()) => {
                    self.waiting.pop_front();
                    self.needed = None;
                }
                Err(Refused::Full { needed }) => {
                    self.needed = Some(needed);
                    return Ok(());
                }
                Err(Refused::Never(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads the next packet and gives it to `handle`; `None` if there is none, or if too much waits for room.
    ///
    /// # Errors
    /// [`ChannelError`]: the channel is to be closed.
    pub fn receive<R>(
        &mut self,
        handle: impl FnOnce(Incoming<'_>) -> R,
    ) -> Result<Option<R>, ChannelError> {
        self.write_waiting()?;
        if self.holds_back() {
            return Ok(None);
        }
        let Some(packet) = self.channel.receive()? else { return Ok(None) };
        let is_completion = match packet.kind {
            PacketKind::InBand => false,
            PacketKind::Completion => true,
            PacketKind::TransferPages { .. } | PacketKind::GpaDirect { .. } => {
                return Err(ChannelError::NotInBand);
            }
        };
        // Nothing legal is longer; what is cut off of the rest is not missed.
        self.payload.resize(packet.payload.len().min(MAX_MESSAGE_SIZE), 0);
        packet.payload.read_into(&mut self.payload);
        let (transaction, payload) = (packet.transaction_id, self.payload.as_slice());
        let incoming = match is_completion {
            true => Incoming::Completion { transaction, payload },
            false => {
                let transaction = packet.completion_requested.then_some(transaction);
                Incoming::Message { transaction, payload }
            }
        };
        Ok(Some(handle(incoming)))
    }

    /// Gives the next packet to a VSP, if it accepts one, and tells it whether the ring is full. `None` if there is
    /// nothing to be done.
    ///
    /// # Errors
    /// [`ChannelError`]: the channel is to be closed, and [`Vsp::channel_closed`] called.
    pub fn serve(
        &mut self,
        vsp: &mut Vsp,
        now: Duration,
    ) -> Result<Option<Vec<Effect>>, ChannelError> {
        self.write_waiting()?;
        let effects = vsp.set_congested(self.is_congested());
        if !effects.is_empty() {
            return Ok(Some(effects));
        }
        if !vsp.accepts_packets() {
            return Ok(None);
        }
        self.receive(|packet| vsp.receive(packet, now))
    }

    /// Publishes what was written and read, and signals the other side if it needs to know.
    ///
    /// # Errors
    /// [`ChannelError::Ring`].
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        Ok(self.channel.flush()?)
    }

    /// Flushes, and asks for an interrupt; true if there is nothing to do until it comes.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn prepare_to_wait(&mut self) -> Result<bool, ChannelError> {
        self.write_waiting()?;
        if let Some(needed) = self.needed
            && self.channel.request_room(needed)?
        {
            return Ok(false);
        }
        let nothing_to_read = self.channel.prepare_to_wait()?;
        // While answers wait for room, what there is to read waits too.
        Ok(nothing_to_read || self.holds_back())
    }
}

enum Refused {
    Full { needed: u32 },
    Never(ChannelError),
}

fn write(channel: &mut Channel, packet: &Outgoing) -> Result<(), Refused> {
    let (header, payload) = match packet {
        Outgoing::Message { transaction, payload } => {
            let header = OutgoingPacket::InBand {
                transaction_id: transaction.unwrap_or(0),
                completion_requested: transaction.is_some(),
            };
            (header, payload)
        }
        Outgoing::Completion { transaction, payload } => {
            (OutgoingPacket::Completion { transaction_id: *transaction }, payload)
        }
    };
    match (channel.send(header, payload), packet) {
        (Ok(()), _) => Ok(()),
        (Err(SendError::Full { needed }), _) => Err(Refused::Full { needed }),
        (Err(SendError::Dead(dead)), _) => Err(Refused::Never(dead.into())),
        // The guest asks for more than its ring can hold: it learns that it failed.
        (Err(_), Outgoing::Completion { payload, .. }) if payload.len() > 4 => {
            let mut status = Vec::new();
            reply::emit_status(NtStatus::INSUFFICIENT_RESOURCES, &mut status);
            match channel.send(header, &status) {
                Ok(()) => Ok(()),
                Err(SendError::Full { needed }) => Err(Refused::Full { needed }),
                Err(_) => Err(Refused::Never(ChannelError::RingTooSmall { length: payload.len() })),
            }
        }
        (Err(_), _) => Err(Refused::Never(ChannelError::RingTooSmall { length: payload.len() })),
    }
}
