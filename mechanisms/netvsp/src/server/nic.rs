//! One NIC's server on one thread: control core, queues and channels put together.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use shared_memory::{DmaMap, SharedSlice};
use vmbus::{Channel, GuestBuffer};

use super::{
    BufferKind, Control, Effect, NicConfig, NotDelivered, QueueStatistics, Upcall, VfCommand,
    VspQueue,
};
use crate::{
    ProtocolError, QueueMemory, ReceiveMetadata, Steering, Stop, TransmitBurst, channels::Channels,
};

/// Bursts of one poll, at most: so that one guest does not keep the thread from the others.
const BURSTS: usize = 4;

/// What a poll did.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Poll {
    /// Frames handed over.
    pub frames: usize,
    /// Whether there may be more to do at once.
    pub more: bool,
}

/// One synthetic NIC's server, with all its channels, on one thread.
///
/// The order: [`Self::open`] when the guest opened the primary channel; [`Self::poll`] when a channel is signalled or
/// busy; after each call, [`Self::next_upcall`] until there is none. To use a thread for each channel, take
/// [`Control`] and [`VspQueue`] instead and carry [`Effect`]s to the threads.
#[derive(Debug)]
pub struct NetVsp {
    control: Control,
    channels: Channels<VspQueue>,
    memory: QueueMemory,
    /// The memory of a burst, empty; `None` while it is in use.
    burst: Option<TransmitBurst<'static>>,
    steering: Option<Arc<Steering>>,
    upcalls: VecDeque<Upcall>,
    dead: bool,
}

impl NetVsp {
    /// A NIC whose channel is not open, for a guest with this memory.
    #[must_use]
    pub fn new(config: NicConfig, guest: DmaMap) -> Self {
        Self {
            control: Control::new(config),
            channels: Channels::new(),
            memory: QueueMemory::new(guest),
            burst: None,
            steering: None,
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

    /// How frames to the guest are spread over its channels.
    #[must_use]
    pub fn steering(&self) -> Option<&Arc<Steering>> {
        self.steering.as_ref()
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

    /// Suballocations that the guest holds of a channel that is open.
    #[must_use]
    pub fn outstanding(&self, index: u16) -> Option<u32> {
        self.channels.get(index).map(|open| open.queue.outstanding())
    }

    /// The guest opened a channel: 0 is the primary, others after they were offered. False if that channel is open
    /// or was not granted.
    pub fn open(&mut self, index: u16, channel: Channel) -> bool {
        if !self.channels.open(index, channel, || VspQueue::new(0)) {
            return false;
        }
        if index == 0 {
            self.dead = false;
            self.control.opened();
        } else {
            self.control.subchannel_opened(index);
        }
        self.effects();
        self.flush_control();
        true
    }

    /// The guest closed a channel, or the host took it away. With the primary all subchannels go.
    pub fn close(&mut self, index: u16) {
        self.channels.close(index);
        if index == 0 {
            self.control.closed();
            self.effects();
        }
    }

    /// Takes a new map of guest memory.
    pub fn set_guest_memory(&mut self, guest: DmaMap) {
        self.memory.set_guest(guest);
    }

    /// Serves one channel: hands frames that the guest sent to `forward`, burst by burst, and everything else to the
    /// control core. The frames are to be copied when `forward` returns.
    pub fn poll(
        &mut self,
        index: u16,
        now: Instant,
        mut forward: impl FnMut(&TransmitBurst<'_>),
    ) -> Poll {
        let mut poll = Poll::default();
        if self.dead {
            return poll;
        }
        for _ in 0..BURSTS {
            match self.burst(index, now, &mut forward, &mut poll) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.fail(index, error);
                    break;
                }
            }
        }
        self.flush(index);
        poll
    }

    /// One burst; true if there may be another.
    fn burst(
        &mut self,
        index: u16,
        now: Instant,
        forward: &mut impl FnMut(&TransmitBurst<'_>),
        poll: &mut Poll,
    ) -> Result<bool, ProtocolError> {
        poll.more = false;
        if index == 0 {
            self.send_waiting()?;
            if !self.control.accepts_packets() {
                return Ok(false);
            }
        }
        let Some(open) = self.channels.get_mut(index) else { return Ok(false) };
        let (receiver, sender) = open.channel.halves();
        if !open.queue.drain(sender)? {
            return Ok(false);
        }
        let mut burst = self.burst.take().unwrap_or_default();
        let stop = open.queue.receive(receiver, &self.memory, &mut burst)?;
        poll.frames += burst.len();
        if !burst.is_empty() {
            forward(&burst);
        }
        open.queue.complete(sender, &mut burst)?;
        self.burst = Some(burst.recycle());
        match stop {
            Stop::Empty | Stop::Blocked => Ok(false),
            Stop::Full => {
                poll.more = true;
                Ok(true)
            }
            Stop::Control(incoming) => {
                let result = self.control.packet(incoming, now);
                self.effects();
                if result.is_err() {
                    // The core has said so already.
                    self.dead = true;
                    return Ok(false);
                }
                self.send_waiting()?;
                poll.more = true;
                Ok(true)
            }
        }
    }

    fn fail(&mut self, index: u16, error: ProtocolError) {
        if !self.dead {
            self.dead = true;
            self.control.fail(index, error);
            self.effects();
        }
    }

    fn flush(&mut self, index: u16) {
        if let Err(error) = self.channels.flush(index) {
            self.fail(index, error);
        }
    }

    /// Writes messages of the core as long as the primary's ring has room.
    fn send_waiting(&mut self) -> Result<(), ProtocolError> {
        self.channels.send_waiting(self.control.outputs(), &self.memory)
    }

    fn flush_control(&mut self) {
        if self.dead {
            return;
        }
        if let Err(error) = self.send_waiting() {
            self.fail(0, error);
        }
        self.flush(0);
    }

    /// Does what the core says.
    fn effects(&mut self) {
        for effect in self.control.outputs().take_effects() {
            match effect {
                Effect::Queues(state) => {
                    for queue in self.channels.queues() {
                        queue.update(state);
                    }
                }
                Effect::ReceiveBuffer(buffer) => {
                    if let Some(buffer) = &buffer
                        && let Some(primary) = self.channels.primary()
                    {
                        primary.give_suballocations(buffer.section.sub_allocations);
                    }
                    self.memory.set_receive(buffer);
                }
                Effect::SendBuffer(buffer) => self.memory.set_send(buffer),
                Effect::SplitQueue(count) => {
                    if let Some(primary) = self.channels.primary() {
                        let queues = primary.split(count);
                        self.channels.grant(queues);
                    }
                }
                Effect::Upcall(upcall) => {
                    if let Upcall::Steering(steering) = &upcall {
                        self.steering.clone_from(steering);
                    }
                    self.upcalls.push_back(upcall);
                }
            }
        }
    }

    /// Puts a frame into the guest's receive buffer by way of channel `index`; the guest is told by
    /// [`Self::announce`]. See [`VspQueue::deliver`].
    ///
    /// # Errors
    /// Why it was not; it is counted.
    #[inline]
    pub fn deliver(
        &mut self,
        index: u16,
        head: [u64; 2],
        pieces: &[SharedSlice<'_>],
        metadata: &ReceiveMetadata,
    ) -> Result<(), NotDelivered> {
        let open = self.channels.get_mut(index).ok_or(NotDelivered::NotWanted)?;
        let (_, sender) = open.channel.halves();
        open.queue.deliver(sender, &self.memory, head, pieces, metadata)
    }

    /// Tells the guest of frames delivered to channel `index`, and signals it if it sleeps. False if its ring has no
    /// room.
    pub fn announce(&mut self, index: u16) -> bool {
        if self.dead {
            return true;
        }
        self.channels.tell(index).unwrap_or_else(|error| {
            self.fail(index, error);
            true
        })
    }

    /// Flushes channel `index` and asks for its interrupt; true if one may wait for it. What is still to be sent
    /// asks for room first.
    pub fn prepare_to_wait(&mut self, index: u16) -> bool {
        if self.dead {
            return true;
        }
        let outputs = self.control.outputs();
        self.channels.prepare_to_wait(index, outputs, &self.memory).unwrap_or_else(|error| {
            self.fail(index, error);
            true
        })
    }

    /// Takes the interrupts of channel `index`.
    pub fn woken(&mut self, index: u16) {
        if let Err(error) = self.channels.woken(index) {
            self.fail(index, error);
        }
    }

    fn event(&mut self, event: impl FnOnce(&mut Control)) {
        event(&mut self.control);
        self.effects();
        self.flush_control();
    }

    /// See [`Control::gpadl_mapped`].
    pub fn gpadl_mapped(&mut self, kind: BufferKind, buffer: Option<GuestBuffer>) {
        self.event(|control| control.gpadl_mapped(kind, buffer));
    }

    /// See [`Control::vf_available`].
    pub fn vf_available(&mut self, serial: u32, now: Instant) {
        self.event(|control| control.vf_available(serial, now));
    }

    /// See [`Control::vf_lost`].
    pub fn vf_lost(&mut self, now: Instant) {
        self.event(|control| control.vf_lost(now));
    }

    /// See [`Control::data_path_switched`].
    pub fn data_path_switched(&mut self, done: bool, now: Instant) {
        self.event(|control| control.data_path_switched(done, now));
    }

    /// See [`Control::vf_command`].
    pub fn vf_command(&mut self, command: VfCommand) {
        self.event(|control| control.vf_command(command));
    }

    /// See [`Control::guest_began_anew`].
    pub fn guest_began_anew(&mut self) {
        self.event(Control::guest_began_anew);
    }

    /// See [`Control::reconfigure`].
    pub fn reconfigure(&mut self, config: NicConfig) {
        self.event(|control| control.reconfigure(config));
    }

    /// See [`Control::set_link`].
    pub fn set_link(&mut self, connected: bool, link_speed: u64) {
        self.event(|control| control.set_link(connected, link_speed));
    }

    /// See [`Control::set_offload_capabilities`].
    pub fn set_offload_capabilities(
        &mut self,
        offloads: netvsp_protocol::offload::OffloadCapabilities,
    ) {
        self.event(|control| control.set_offload_capabilities(offloads));
    }

    /// See [`Control::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.control.deadline()
    }

    /// See [`Control::tick`].
    pub fn tick(&mut self, now: Instant) {
        self.event(|control| control.tick(now));
    }
}
