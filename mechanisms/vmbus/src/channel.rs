//! An open channel: both of its rings, and an eventfd for each direction.

use std::os::fd::{AsFd, BorrowedFd};

use crate::{
    ChannelDead, EventFd, OutgoingPacket, Packet, RingMemory, RingReceiver, RingSender,
    RoomRequest, SendError, Signal,
};

/// One end of an open channel, host's or guest's. Owned by one thread.
///
/// Packets are exchanged in batches: [`Self::receive`] and [`Self::send`] as often as wanted, then
/// [`Self::flush`], which publishes both indices and signals the peer at most once. To sleep, call
/// [`Self::prepare_to_wait`], and if it is true wait for [`Self::interrupt`].
#[derive(Debug)]
pub struct Channel {
    receiver: RingReceiver,
    sender: RingSender,
    peer: EventFd,
    interrupt: EventFd,
    /// A signal that is due at the next flush.
    due: Signal,
}

impl Channel {
    /// The end that receives from one ring and sends to the other, signals `peer` and is signalled by `interrupt`.
    pub fn new(
        incoming: RingMemory,
        outgoing: RingMemory,
        peer: EventFd,
        interrupt: EventFd,
    ) -> Result<Self, ChannelDead> {
        Ok(Self {
            receiver: RingReceiver::new(incoming)?,
            sender: RingSender::new(outgoing)?,
            peer,
            interrupt,
            due: Signal::NotDue,
        })
    }

    /// The next packet that the peer sent, if there is one.
    #[inline]
    pub fn receive(&mut self) -> Result<Option<Packet<'_>>, ChannelDead> {
        self.receiver.receive()
    }

    /// Writes a packet; the peer sees it after [`Self::flush`].
    #[inline]
    pub fn send(&mut self, packet: OutgoingPacket<'_>, payload: &[u8]) -> Result<(), SendError> {
        self.sender.write(packet, payload)
    }

    /// Both halves, for use side by side: a packet received may be answered while it is being read.
    #[inline]
    pub fn halves(&mut self) -> (&mut RingReceiver, &mut RingSender) {
        (&mut self.receiver, &mut self.sender)
    }

    /// Publishes what was written, gives back the room of what was read, and signals the peer if it needs to know.
    #[inline]
    pub fn flush(&mut self) -> Result<(), ChannelDead> {
        let due = self.sender.publish()?.or(self.receiver.release()?).or(self.due);
        self.due = Signal::NotDue;
        if due.is_due() {
            self.peer.signal();
        }
        Ok(())
    }

    /// Asks for an interrupt once `needed` bytes ([`SendError::Full`]) may be written; true if they may be now.
    /// Flushes.
    pub fn request_room(&mut self, needed: u32) -> Result<bool, ChannelDead> {
        let RoomRequest { has_room, signal } = self.sender.request_room(needed)?;
        self.due = self.due.or(signal);
        self.flush()?;
        Ok(has_room)
    }

    /// Flushes and asks for interrupts; true if there is nothing to read, so that one may wait for
    /// [`Self::interrupt`].
    pub fn prepare_to_wait(&mut self) -> Result<bool, ChannelDead> {
        self.flush()?;
        self.receiver.prepare_to_wait()
    }

    /// Takes the interrupts that came, and asks for no more until [`Self::prepare_to_wait`].
    pub fn woken(&mut self) -> Result<(), ChannelDead> {
        self.interrupt.take();
        self.receiver.mask_signals()
    }

    /// Signals the peer whether it needs to know or not: after opening, since it may have ignored what came
    /// before.
    pub fn signal_peer(&self) {
        self.peer.signal();
    }

    /// What the peer signals.
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }
}

impl AsFd for Channel {
    /// The eventfd of [`Channel::interrupt`], to be polled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.interrupt.as_fd()
    }
}
