//! The channels of a NIC, each with its queue: the same at both ends.

use vmbus::{Channel, OutgoingPacket, RingSender};

use crate::{Outgoing, ProtocolError, QueueMemory, outputs::Outputs, ring::write};

/// What is the same of the two ends' queues.
pub(crate) trait Queue {
    /// Which channel it is.
    fn index(&self) -> u16;

    /// Writes completions that did not fit before; true if none is left.
    fn drain(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError>;

    /// Tells the other end of the frames that were put into its buffers, or ours; false if the ring has no room.
    fn tell(&mut self, ring: &mut RingSender) -> Result<bool, ProtocolError>;

    /// Sends an RNDIS control message; false if there is no room now. On the primary channel only.
    fn send_control(
        &mut self,
        ring: &mut RingSender,
        memory: &QueueMemory,
        bytes: &[u8],
    ) -> Result<bool, ProtocolError>;
}

/// A channel that is open.
#[derive(Debug)]
pub(crate) struct Open<Q> {
    pub(crate) channel: Channel,
    pub(crate) queue: Q,
}

/// Channels by their index, of which 0 is the primary, and the queues of those that were granted and are not open yet.
#[derive(Debug)]
pub(crate) struct Channels<Q> {
    open: Vec<Option<Open<Q>>>,
    granted: Vec<Q>,
}

impl<Q: Queue> Channels<Q> {
    /// None is open.
    pub(crate) fn new() -> Self {
        Self { open: Vec::new(), granted: Vec::new() }
    }

    /// The channel with this index, if it is open.
    #[inline]
    pub(crate) fn get(&self, index: u16) -> Option<&Open<Q>> {
        self.open.get(usize::from(index))?.as_ref()
    }

    /// The channel with this index, if it is open.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: u16) -> Option<&mut Open<Q>> {
        self.open.get_mut(usize::from(index))?.as_mut()
    }

    /// The primary's queue, if it is open.
    pub(crate) fn primary(&mut self) -> Option<&mut Q> {
        self.get_mut(0).map(|open| &mut open.queue)
    }

    /// All queues, also of channels that are not open yet.
    pub(crate) fn queues(&mut self) -> impl Iterator<Item = &mut Q> {
        let open = self.open.iter_mut().flatten().map(|open| &mut open.queue);
        open.chain(&mut self.granted)
    }

    /// Channels with these queues may be opened.
    pub(crate) fn grant(&mut self, queues: Vec<Q>) {
        self.granted = queues;
    }

    /// Opens a channel, the primary with the queue that `primary` gives. False if it is open or was not granted.
    pub(crate) fn open(
        &mut self,
        index: u16,
        channel: Channel,
        primary: impl FnOnce() -> Q,
    ) -> bool {
        if self.get(index).is_some() {
            return false;
        }
        let queue = if index == 0 {
            primary()
        } else {
            let Some(at) = self.granted.iter().position(|queue| queue.index() == index) else {
                return false;
            };
            self.granted.swap_remove(at)
        };
        let place = usize::from(index);
        if self.open.len() <= place {
            self.open.resize_with(place + 1, || None);
        }
        if let Some(slot) = self.open.get_mut(place) {
            *slot = Some(Open { channel, queue });
        }
        true
    }

    /// Closes one channel; with the primary all go, and the primary's queue is given back.
    pub(crate) fn close(&mut self, index: u16) -> Option<Q> {
        let closed = self.open.get_mut(usize::from(index)).and_then(Option::take);
        if index != 0 {
            return None;
        }
        self.open.clear();
        self.granted.clear();
        closed.map(|open| open.queue)
    }

    /// Writes messages of the core as long as the primary's ring has room. Frames before a message are seen before it.
    pub(crate) fn send_waiting<E>(
        &mut self,
        outputs: &mut Outputs<E>,
        memory: &QueueMemory,
    ) -> Result<(), ProtocolError> {
        let Some(Open { channel, queue }) = self.get_mut(0) else { return Ok(()) };
        let (_, ring) = channel.halves();
        if outputs.waiting().is_some() && !queue.drain(ring)? {
            return Ok(());
        }
        while let Some(outgoing) = outputs.waiting() {
            let sent = match outgoing {
                Outgoing::Rndis { bytes } => queue.send_control(ring, memory, bytes)?,
                Outgoing::Completion { transaction, message } => {
                    let packet = OutgoingPacket::Completion { transaction_id: *transaction };
                    let payload = message.as_deref().unwrap_or_default();
                    queue.tell(ring)? && write(ring, packet, payload)?
                }
                Outgoing::Message { transaction, completion_requested, message } => {
                    let packet = OutgoingPacket::InBand {
                        transaction_id: *transaction,
                        completion_requested: *completion_requested,
                    };
                    queue.tell(ring)? && write(ring, packet, message)?
                }
            };
            if !sent {
                break;
            }
            outputs.sent();
        }
        Ok(())
    }

    /// Makes what was written to a channel's ring seen, and signals the other end if it sleeps.
    pub(crate) fn flush(&mut self, index: u16) -> Result<(), ProtocolError> {
        match self.get_mut(index) {
            Some(open) => Ok(open.channel.flush()?),
            None => Ok(()),
        }
    }

    /// Tells the other end of frames, and signals it if it sleeps; false if the ring has no room for all of it.
    #[inline]
    pub(crate) fn tell(&mut self, index: u16) -> Result<bool, ProtocolError> {
        let Some(open) = self.get_mut(index) else { return Ok(true) };
        let (_, ring) = open.channel.halves();
        let told = open.queue.tell(ring)?;
        open.channel.flush()?;
        Ok(told)
    }

    /// Sends what waits on a channel; true if nothing is left.
    fn all_sent<E>(
        &mut self,
        index: u16,
        outputs: &mut Outputs<E>,
        memory: &QueueMemory,
    ) -> Result<bool, ProtocolError> {
        if index == 0 {
            self.send_waiting(outputs, memory)?;
        }
        let waits = index == 0 && outputs.waiting().is_some();
        let Some(open) = self.get_mut(index) else { return Ok(true) };
        let (_, ring) = open.channel.halves();
        Ok(open.queue.drain(ring)? && open.queue.tell(ring)? && !waits)
    }

    /// Flushes a channel and asks for its interrupt; true if one may wait for it. What waits for room in the ring
    /// asks for it first; what waits for a buffer is woken by the packet that frees one.
    pub(crate) fn prepare_to_wait<E>(
        &mut self,
        index: u16,
        outputs: &mut Outputs<E>,
        memory: &QueueMemory,
    ) -> Result<bool, ProtocolError> {
        for _ in 0..4 {
            if self.all_sent(index, outputs, memory)? {
                break;
            }
            let Some(open) = self.get_mut(index) else { break };
            // Half the ring is room for anything that may wait.
            let needed = open.channel.halves().1.size() / 2;
            if !open.channel.request_room(needed)? {
                break;
            }
        }
        match self.get_mut(index) {
            Some(open) => Ok(open.channel.prepare_to_wait()?),
            None => Ok(true),
        }
    }

    /// Takes the interrupts of a channel.
    pub(crate) fn woken(&mut self, index: u16) -> Result<(), ProtocolError> {
        match self.get_mut(index) {
            Some(open) => Ok(open.channel.woken()?),
            None => Ok(()),
        }
    }
}
