//! One guest's NIC on one thread: control core, queues and channels put together.

use std::collections::VecDeque;

use netvsp_protocol::{MacAddress, nvsp::SEND_TABLE_ENTRIES};
use vmbus::{Channel, GuestBuffer, OutgoingGpaRange, OutgoingPacket, SendError};

use super::{
    Control, Effect, LargeBuffers, NotSent, QueueStatistics, Stop, Upcall, VscConfig, VscQueue,
};
use crate::{Outgoing, ProtocolError, QueueMemory, ReceiveBuffer, ReceiveBurst, TransmitMetadata};

/// Bursts of one poll, at most.
const BURSTS: usize = 4;

#[derive(Debug)]
struct Open {
    channel: Channel,
    queue: VscQueue,
}

/// A guest's synthetic NIC with all its channels, on one thread.
///
/// Make it with the buffers whose GPADLs the configuration names, [`Self::open`] it with the primary channel, and
/// [`Self::poll`] it; [`Upcall::Up`] says when frames may pass.
#[derive(Debug)]
pub struct NetVsc {
    control: Control,
    channels: Vec<Option<Open>>,
    granted: Vec<VscQueue>,
    memory: QueueMemory,
    receive_buffer: GuestBuffer,
    send_buffer: GuestBuffer,
    large: Option<LargeBuffers>,
    send_table: [u32; SEND_TABLE_ENTRIES],
    upcalls: VecDeque<Upcall>,
    dead: bool,
}

impl NetVsc {
    /// A NIC whose channel is not open. `large` is for frames that do not fit a section of the send buffer.
    #[must_use]
    pub fn new(
        config: VscConfig,
        receive_buffer: GuestBuffer,
        send_buffer: GuestBuffer,
        large: Option<LargeBuffers>,
    ) -> Self {
        Self {
            control: Control::new(config),
            channels: Vec::new(),
            granted: Vec::new(),
            memory: QueueMemory::default(),
            receive_buffer,
            send_buffer,
            large,
            send_table: [0; SEND_TABLE_ENTRIES],
            upcalls: VecDeque::new(),
            dead: false,
        }
    }

    /// The control core, to look at.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The next thing that is to be done, or known.
    pub fn next_upcall(&mut self) -> Option<Upcall> {
        self.upcalls.pop_front()
    }

    /// The channel with this index, if it is open: to wait for its interrupt.
    #[must_use]
    pub fn channel(&self, index: u16) -> Option<&Channel> {
        self.channels.get(usize::from(index))?.as_ref().map(|open| &open.channel)
    }

    /// What passed through a channel that is open.
    #[must_use]
    pub fn statistics(&self, index: u16) -> Option<QueueStatistics> {
        self.channels.get(usize::from(index))?.as_ref().map(|open| open.queue.statistics())
    }

    /// Buffers of a channel that the server holds.
    #[must_use]
    pub fn outstanding(&self, index: u16) -> Option<u32> {
        self.channels.get(usize::from(index))?.as_ref().map(|open| open.queue.outstanding())
    }

    /// A channel is open: 0 is the primary, others after [`Upcall::OpenSubchannels`]. False if it was not granted.
    pub fn open(&mut self, index: u16, channel: Channel) -> bool {
        let queue = if index == 0 {
            let mut queue = VscQueue::new(0);
            if let Some(large) = self.large.take() {
                queue.set_large(large);
            }
            queue
        } else {
            let Some(at) = self.granted.iter().position(|queue| queue.index() == index) else {
                return false;
            };
            self.granted.swap_remove(at)
        };
        let place = usize::from(index);
        if self.channels.len() <= place {
            self.channels.resize_with(place + 1, || None);
        }
        let Some(slot @ None) = self.channels.get_mut(place) else { return false };
        *slot = Some(Open { channel, queue });
        if index == 0 {
            self.dead = false;
            self.control.opened();
        } else {
            self.control.subchannel_opened(index);
        }
        self.event();
        true
    }

    /// The channel was rescinded, or the guest closes it.
    pub fn close(&mut self) {
        self.channels.clear();
        self.granted.clear();
        self.memory = QueueMemory::default();
        self.control.closed();
        self.effects();
    }

    /// The channel for a frame with this hash, by the server's send table.
    #[must_use]
    pub fn select_channel(&self, hash: u32) -> u16 {
        let index = self.send_table.get(hash as usize % SEND_TABLE_ENTRIES).copied().unwrap_or(0);
        let index = u16::try_from(index).unwrap_or(0);
        if self.channel(index).is_some() { index } else { 0 }
    }

    fn open_mut(&mut self, index: u16) -> Option<(&mut Open, &QueueMemory)> {
        let open = self.channels.get_mut(usize::from(index)).and_then(Option::as_mut)?;
        Some((open, &self.memory))
    }

    /// Sends a frame on the synthetic path; the server sees it after [`Self::flush`].
    ///
    /// # Errors
    /// Why it was not sent.
    pub fn send(
        &mut self,
        index: u16,
        frame: &[u8],
        metadata: &TransmitMetadata,
    ) -> Result<(), NotSent> {
        let (open, memory) = self.open_mut(index).ok_or(NotSent::NotUp)?;
        let (_, sender) = open.channel.halves();
        open.queue.send(sender, memory, frame, metadata)
    }

    /// Sends a frame that lies in guest pages; see [`VscQueue::send_pages`].
    ///
    /// # Errors
    /// Why it was not sent.
    pub fn send_pages(
        &mut self,
        index: u16,
        ranges: &[OutgoingGpaRange<'_>],
        metadata: &TransmitMetadata,
    ) -> Result<(), NotSent> {
        let (open, memory) = self.open_mut(index).ok_or(NotSent::NotUp)?;
        let (_, sender) = open.channel.halves();
        open.queue.send_pages(sender, memory, ranges, metadata)
    }

    /// Lets the server see what was sent on channel `index`, and signals it if it sleeps. False if the ring has no
    /// room for all of it.
    pub fn flush(&mut self, index: u16) -> bool {
        if self.dead {
            return true;
        }
        let Some((open, _)) = self.open_mut(index) else { return true };
        let (_, sender) = open.channel.halves();
        let result = open.queue.flush(sender).and_then(|sent| {
            open.channel.flush()?;
            Ok(sent)
        });
        match result {
            Ok(sent) => sent,
            Err(error) => {
                self.fail(error);
                true
            }
        }
    }

    /// Serves one channel: hands frames to `take`, burst by burst, which copies them. Returns how many, and whether
    /// there may be more.
    pub fn poll(&mut self, index: u16, mut take: impl FnMut(&ReceiveBurst<'_>)) -> (usize, bool) {
        let mut frames = 0;
        let mut more = false;
        if self.dead {
            return (0, false);
        }
        for _ in 0..BURSTS {
            match self.burst(index, &mut take) {
                Ok((count, again)) => {
                    frames += count;
                    more = again;
                    if !again {
                        break;
                    }
                }
                Err(error) => {
                    self.fail(error);
                    return (frames, false);
                }
            }
        }
        self.flush(index);
        (frames, more)
    }

    fn burst(
        &mut self,
        index: u16,
        take: &mut impl FnMut(&ReceiveBurst<'_>),
    ) -> Result<(usize, bool), ProtocolError> {
        if index == 0 {
            self.send_waiting()?;
        }
        let Some(open) = self.channels.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok((0, false));
        };
        let (receiver, sender) = open.channel.halves();
        if !open.queue.drain(sender)? {
            return Ok((0, false));
        }
        let mut burst = ReceiveBurst::new();
        let stop = open.queue.receive(receiver, &self.memory, &mut burst)?;
        let frames = burst.len();
        if frames > 0 {
            take(&burst);
        }
        open.queue.complete(sender, &mut burst)?;
        drop(burst);
        match stop {
            Stop::Empty | Stop::Blocked => Ok((frames, false)),
            Stop::Full => Ok((frames, true)),
            Stop::Control(incoming) => {
                self.control.packet(incoming)?;
                self.effects();
                self.send_waiting()?;
                Ok((frames, true))
            }
        }
    }

    fn fail(&mut self, error: ProtocolError) {
        self.dead = true;
        self.control.fail(error);
        self.effects();
    }

    fn send_waiting(&mut self) -> Result<(), ProtocolError> {
        let Some(Open { channel, queue }) = self.channels.first_mut().and_then(Option::as_mut)
        else {
            return Ok(());
        };
        let (_, sender) = channel.halves();
        while let Some(outgoing) = self.control.waiting() {
            let (packet, payload) = match outgoing {
                Outgoing::Rndis { bytes } => {
                    if !queue.send_control(sender, &self.memory, bytes)? {
                        break;
                    }
                    self.control.sent();
                    continue;
                }
                Outgoing::Completion { transaction, message } => (
                    OutgoingPacket::Completion { transaction_id: *transaction },
                    message.as_deref().unwrap_or_default(),
                ),
                Outgoing::Message { transaction, completion_requested, message } => (
                    OutgoingPacket::InBand {
                        transaction_id: *transaction,
                        completion_requested: *completion_requested,
                    },
                    &**message,
                ),
            };
            // Frames that were sent before a change of path are seen before it.
            if !queue.flush(sender)? {
                break;
            }
            match sender.write(packet, payload) {
                Ok(()) => self.control.sent(),
                Err(SendError::Full { .. }) => break,
                Err(error) => return Err(ProtocolError::from_send(error)),
            }
        }
        Ok(())
    }

    fn effects(&mut self) {
        for effect in self.control.take_effects() {
            let Some(Open { queue, .. }) = self.channels.first_mut().and_then(Option::as_mut)
            else {
                if let Effect::Upcall(upcall) = effect {
                    self.upcalls.push_back(upcall);
                }
                continue;
            };
            match effect {
                Effect::Version(version) => queue.set_version(version),
                Effect::ReceiveBuffer { id, section } => {
                    queue.set_receive(id, section);
                    let buffer = self.receive_buffer.clone();
                    self.memory.set_receive(Some(ReceiveBuffer { buffer, id, section }));
                }
                Effect::SendBuffer { section_size } => {
                    queue.set_send(self.send_buffer.len(), section_size);
                    self.memory.set_send(Some(self.send_buffer.clone()));
                }
                Effect::SplitQueue(count) => self.granted = queue.split(count),
                Effect::Queues { up, max_packets } => {
                    let open = self.channels.iter_mut().flatten().map(|open| &mut open.queue);
                    for queue in open.chain(&mut self.granted) {
                        queue.set_up(up, max_packets);
                    }
                }
                Effect::SendTable(table) => self.send_table = table,
                Effect::Upcall(upcall) => self.upcalls.push_back(upcall),
            }
        }
    }

    fn event(&mut self) {
        self.effects();
        if self.dead {
            return;
        }
        if let Err(error) = self.send_waiting() {
            self.fail(error);
            return;
        }
        self.flush(0);
    }

    /// See [`Control::vf_device`].
    pub fn vf_device(&mut self, device: Option<(u32, MacAddress)>) {
        self.control.vf_device(device);
        self.event();
    }

    /// See [`Control::vf_driver`].
    pub fn vf_driver(&mut self, up: bool) {
        self.control.vf_driver(up);
        self.event();
    }

    /// Flushes channel `index` and asks for its interrupt; true if one may wait for it. What is still to be sent
    /// asks for room first.
    pub fn prepare_to_wait(&mut self, index: u16) -> bool {
        let result = self.try_prepare(index);
        result.unwrap_or_else(|error| {
            self.fail(error);
            true
        })
    }

    fn try_prepare(&mut self, index: u16) -> Result<bool, ProtocolError> {
        if self.dead {
            return Ok(true);
        }
        // What waits for room asks for it; what waits for a section is woken by the packet that frees one.
        for _ in 0..4 {
            if self.all_sent(index)? {
                break;
            }
            let Some((open, _)) = self.open_mut(index) else { break };
            let needed = open.channel.halves().1.size() / 2;
            if !open.channel.request_room(needed)? {
                break;
            }
        }
        match self.open_mut(index) {
            Some((open, _)) => Ok(open.channel.prepare_to_wait()?),
            None => Ok(true),
        }
    }

    /// Sends what waits on a channel; true if nothing is left.
    fn all_sent(&mut self, index: u16) -> Result<bool, ProtocolError> {
        if index == 0 {
            self.send_waiting()?;
        }
        let waits = index == 0 && self.control.waiting().is_some();
        let Some((open, _)) = self.open_mut(index) else { return Ok(true) };
        let (_, sender) = open.channel.halves();
        Ok(open.queue.drain(sender)? && open.queue.flush(sender)? && !waits)
    }

    /// Takes the interrupts of channel `index`.
    pub fn woken(&mut self, index: u16) {
        let Some((open, _)) = self.open_mut(index) else { return };
        if let Err(error) = open.channel.woken() {
            self.fail(error.into());
        }
    }
}
