//! One guest's NIC on one thread: control core, queues and channels put together.

use std::collections::VecDeque;

use netvsp_protocol::{MacAddress, nvsp::SEND_TABLE_ENTRIES, oid::PacketFilter};
use vmbus::{Channel, GuestBuffer, OutgoingGpaRange};

use super::{Control, Effect, LargeBuffers, NotSent, QueueStatistics, Upcall, VscConfig, VscQueue};
use crate::{
    ProtocolError, QueueMemory, ReceiveBuffer, ReceiveBurst, Stop, TransmitMetadata,
    channels::Channels,
};

/// Bursts of one poll, at most.
const BURSTS: usize = 4;

/// A guest's synthetic NIC with all its channels, on one thread.
///
/// Make it with the buffers whose GPADLs the configuration names, [`Self::open`] it with the primary channel, and
/// [`Self::poll`] it; [`Upcall::Up`] says when frames may pass.
#[derive(Debug)]
pub struct NetVsc {
    control: Control,
    channels: Channels<VscQueue>,
    memory: QueueMemory,
    /// The memory of a burst, empty; `None` while it is in use.
    burst: Option<ReceiveBurst<'static>>,
    receive_buffer: GuestBuffer,
    send_buffer: GuestBuffer,
    /// Here while the channel is closed, else with the primary's queue.
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
            channels: Channels::new(),
            memory: QueueMemory::default(),
            burst: None,
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
        self.channels.get(index).map(|open| &open.channel)
    }

    /// What passed through a channel that is open.
    #[must_use]
    pub fn statistics(&self, index: u16) -> Option<QueueStatistics> {
        self.channels.get(index).map(|open| open.queue.statistics())
    }

    /// Buffers of a channel that the server holds.
    #[must_use]
    pub fn outstanding(&self, index: u16) -> Option<u32> {
        self.channels.get(index).map(|open| open.queue.outstanding())
    }

    /// A channel is open: 0 is the primary, others after [`Upcall::OpenSubchannels`]. False if that channel is open
    /// here already or was not granted.
    pub fn open(&mut self, index: u16, channel: Channel) -> bool {
        let large = &mut self.large;
        let opened = self.channels.open(index, channel, || {
            let mut queue = VscQueue::new(0);
            if let Some(large) = large.take() {
                queue.set_large(large);
            }
            queue
        });
        if !opened {
            return false;
        }
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
        if let Some(mut primary) = self.channels.close(0) {
            self.large = primary.take_large();
        }
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
        let open = self.channels.get_mut(index).ok_or(NotSent::NotUp)?;
        let (_, sender) = open.channel.halves();
        open.queue.send(sender, &self.memory, frame, metadata)
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
        let open = self.channels.get_mut(index).ok_or(NotSent::NotUp)?;
        let (_, sender) = open.channel.halves();
        open.queue.send_pages(sender, &self.memory, ranges, metadata)
    }

    /// Lets the server see what was sent on channel `index`, and signals it if it sleeps. False if the ring has no
    /// room for all of it.
    pub fn flush(&mut self, index: u16) -> bool {
        if self.dead {
            return true;
        }
        self.channels.tell(index).unwrap_or_else(|error| {
            self.fail(error);
            true
        })
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
        let Some(open) = self.channels.get_mut(index) else { return Ok((0, false)) };
        let (receiver, sender) = open.channel.halves();
        if !open.queue.drain(sender)? {
            return Ok((0, false));
        }
        let mut burst = self.burst.take().unwrap_or_default();
        let stop = open.queue.receive(receiver, &self.memory, &mut burst)?;
        let frames = burst.len();
        if frames > 0 {
            take(&burst);
        }
        open.queue.complete(sender, &mut burst)?;
        self.burst = Some(burst.recycle());
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
        self.channels.send_waiting(self.control.outputs(), &self.memory)
    }

    fn effects(&mut self) {
        for effect in self.control.outputs().take_effects() {
            let Some(queue) = self.channels.primary() else {
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
                Effect::SplitQueue(count) => {
                    let queues = queue.split(count);
                    self.channels.grant(queues);
                }
                Effect::Queues { up, max_packets } => {
                    for queue in self.channels.queues() {
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

    /// See [`Control::set_packet_filter`].
    pub fn set_packet_filter(&mut self, filter: PacketFilter) {
        self.control.set_packet_filter(filter);
        self.event();
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
        if self.dead {
            return true;
        }
        let outputs = self.control.outputs();
        self.channels.prepare_to_wait(index, outputs, &self.memory).unwrap_or_else(|error| {
            self.fail(error);
            true
        })
    }

    /// Takes the interrupts of channel `index`.
    pub fn woken(&mut self, index: u16) {
        if let Err(error) = self.channels.woken(index) {
            self.fail(error);
        }
    }
}
