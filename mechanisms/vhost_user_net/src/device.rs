//! The queues of one device, on the thread that moves its packets.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use arrayvec::ArrayVec;
use event_fd::EventFd;
use linux_network::PacketOffload;
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};
use shared_memory::{MemoryWatch, SharedSlice, TranslationCache};

use crate::{
    Features, WholePacket,
    burst::{Arriving, Receiver, SentBurst},
    memory::{DirtyLog, GuestMemory},
    packet::{MAX_TARGETS, emit_header, scatter, write_packet},
    ring::{Addresses, Buffer, Direction, Piece, Ring, RingError, Token},
};

/// Queue pairs of a device, at most: notifications name queues by a byte.
pub const MAX_QUEUE_PAIRS: u16 = 64;
/// Buffers of one packet for the driver, at most.
pub(crate) const MAX_BUFFERS: usize = 64;
/// Descriptors that are read of one queue in one turn, by and large.
const MAX_TURN: u32 = 4096;

/// Why a packet was not put into a queue.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum NotPut {
    /// The queue does not run.
    NotRunning,
    /// The driver has not made enough buffers available.
    NoBuffer,
    /// It is longer than the driver's buffers, or has too many pieces.
    TooLong,
}

/// A queue's eventfds. All of them are the front-end's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifiers {
    pub(crate) kick: Option<Arc<EventFd>>,
    pub(crate) call: Option<Arc<EventFd>>,
    pub(crate) error: Option<Arc<EventFd>>,
}

/// One queue that runs.
#[derive(Debug)]
struct Queue {
    ring: Ring,
    enabled: bool,
    /// The driver was asked to tell of new buffers.
    listening: bool,
    notifiers: Notifiers,
    /// Why it is served no more.
    broken: Option<RingError>,
}

impl Queue {
    /// Shows the driver what was given back, and interrupts it if it wants that.
    fn publish(&mut self, log: Option<&DirtyLog>) {
        if self.ring.publish(log)
            && let Some(call) = &self.notifiers.call
        {
            call.signal();
        }
    }

    fn fail(&mut self, error: RingError) {
        self.broken = Some(error);
        if let Some(notifier) = &self.notifiers.error {
            notifier.signal();
        }
    }
}

/// What is set up of one queue when it starts.
#[derive(Debug)]
pub(crate) struct QueueSetup {
    pub(crate) at: Addresses,
    pub(crate) size: u16,
    pub(crate) base: u32,
    pub(crate) enabled: bool,
    pub(crate) notifiers: Notifiers,
}

/// The device side of one virtio-net. Queue 2·n is the driver's receive queue of pair n, queue 2·n + 1 its transmit
/// queue.
///
/// One thread calls everything here; the front-end's wishes come to it in between, by the
/// [`Inbox`](owner_thread::Inbox) that [`crate::VhostUserServer`] sends to.
#[derive(Debug)]
pub struct Device {
    features: Features,
    memory: GuestMemory,
    /// Over the memory and the log.
    watch: Option<Arc<MemoryWatch>>,
    log: Option<DirtyLog>,
    queues: Vec<Option<Queue>>,
    /// Watches the kicks, edge-triggered: they are never read, for a read could wait for the front-end.
    kicks: OwnedFd,
    cache: TranslationCache,
    buffer: Buffer,
    /// Receive queues with packets that the driver was not told of, a bit each.
    untold: u64,
    broken: u64,
}

impl Device {
    /// A device that no front-end has set up, with room for so many queue pairs.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(pairs: u16) -> Result<Self, Errno> {
        let queues = usize::from(2 * pairs.min(MAX_QUEUE_PAIRS));
        Ok(Self {
            features: Features::empty(),
            memory: GuestMemory::default(),
            watch: None,
            log: None,
            queues: std::iter::repeat_with(|| None).take(queues).collect(),
            kicks: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            cache: TranslationCache::default(),
            buffer: Buffer::default(),
            untold: 0,
            broken: 0,
        })
    }

    /// What the driver took of what was offered.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Queue pairs there is room for.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        u16::try_from(self.queues.len() / 2).unwrap_or(MAX_QUEUE_PAIRS)
    }

    /// Queues that were broken by what their drivers did, since the device was made.
    #[must_use]
    pub fn broken(&self) -> u64 {
        self.broken
    }

    /// Whether packets can be put into the receive queue of this pair.
    #[inline]
    #[must_use]
    pub fn is_receiving(&self, pair: u16) -> bool {
        let queue = self.queues.get(2 * usize::from(pair)).and_then(Option::as_ref);
        queue.is_some_and(|queue| queue.enabled && queue.broken.is_none())
    }

    /// Takes packets that the driver of this pair sends, some at most, and hands them to `each`, by bursts; returns how
    /// many. What a queue sends that is not enabled is taken and goes nowhere.
    pub fn transmitted(
        &mut self,
        pair: u16,
        limit: usize,
        mut each: impl FnMut(SentBurst<'_, '_>),
    ) -> usize {
        let Self { queues, memory, watch, log, cache, buffer, features, broken, .. } = self;
        let at = 2 * usize::from(pair) + 1;
        let Some(queue) = queues.get_mut(at).and_then(Option::as_mut) else { return 0 };
        if queue.broken.is_some() {
            return 0;
        }
        if is_lost(watch.as_ref()) {
            queue.fail(RingError::MemoryTaken);
            *broken += 1;
            return 0;
        }
        let (mut taken, mut descriptors) = (0, 0);
        let mut more = Ok(true);
        while more == Ok(true) && taken < limit && descriptors < MAX_TURN {
            let mut burst = Arriving::new(*features);
            while burst.has_room() && taken + burst.len() < limit && descriptors < MAX_TURN {
                if queue.enabled {
                    let most = limit - taken - burst.len();
                    burst.add_singles(memory, *cache, &mut queue.ring, most);
                    if !burst.has_room() || taken + burst.len() >= limit {
                        break;
                    }
                }
                more = queue.ring.take(memory, cache, Direction::FromDriver, buffer);
                if more != Ok(true) {
                    break;
                }
                descriptors += buffer.descriptors;
                if !queue.enabled {
                    burst.discard(buffer.token);
                } else if let Err(error) = burst.add(memory, cache, buffer) {
                    more = Err(error);
                    break;
                }
            }
            if queue.enabled && burst.len() > 0 {
                burst.hand_over(&mut each);
            }
            queue.ring.give_back_all(burst.tokens());
            taken += burst.len();
        }
        if let Err(error) = more {
            queue.fail(error);
            *broken += 1;
        }
        if taken > 0 && std::mem::take(&mut queue.listening) {
            queue.ring.ignore(log.as_ref());
        }
        queue.publish(log.as_ref());
        taken
    }

    /// Copies packets into the receive queue of this pair, from the first on, as long as each has its place in the next
    /// buffer; returns how many. What is in the way of the next one is told by [`Self::put`]. The driver sees them by
    /// [`Self::flush`].
    pub fn put_whole<'f>(
        &mut self,
        pair: u16,
        packets: impl Iterator<Item = WholePacket<'f>>,
    ) -> usize {
        let Self { queues, memory, watch, log, cache, features, untold, .. } = self;
        let queue = queues.get_mut(2 * usize::from(pair)).and_then(Option::as_mut);
        let queue = queue.filter(|queue| queue.enabled && queue.broken.is_none());
        let Some(queue) = queue.filter(|_| !is_lost(watch.as_ref())) else { return 0 };
        let (log, header) = (log.as_ref(), features.header_length());
        let receiver = Receiver { memory, cache: *cache, log, header };
        let put = receiver.put(&mut queue.ring, packets);
        if put > 0 {
            *untold |= 1 << (pair & 63);
        }
        put
    }

    /// Copies a packet into the receive queue of this pair: `head` is its first 16 bytes, or all of them, and `pieces`
    /// is all of it. The driver sees it by [`Self::flush`].
    ///
    /// # Errors
    /// Why it was not; then nothing has happened.
    pub fn put<'f>(
        &mut self,
        pair: u16,
        offload: &PacketOffload,
        length: usize,
        head: &[&[u8]],
        pieces: impl Iterator<Item = SharedSlice<'f>>,
    ) -> Result<(), NotPut> {
        let Self { queues, memory, watch, log, cache, buffer, features, broken, untold, .. } = self;
        let queue = queues.get_mut(2 * usize::from(pair)).and_then(Option::as_mut);
        let queue = queue.filter(|queue| queue.enabled && queue.broken.is_none());
        let queue = queue.ok_or(NotPut::NotRunning)?;
        if is_lost(watch.as_ref()) {
            queue.fail(RingError::MemoryTaken);
            *broken += 1;
            return Err(NotPut::NotRunning);
        }
        let header = features.header_length();
        let need = header + length;
        let position = queue.ring.position();
        let mut buffers = ArrayVec::<(Token, usize), MAX_BUFFERS>::new();
        let mut targets = ArrayVec::<(Piece, SharedSlice<'_>), MAX_TARGETS>::new();
        let mut room = 0;
        let refused = loop {
            if room >= need {
                break None;
            }
            match queue.ring.take(memory, cache, Direction::ToDriver, buffer) {
                Ok(true) => {}
                Ok(false) => break Some(Ok(NotPut::NoBuffer)),
                Err(error) => break Some(Err(error)),
            }
            if !buffers.is_empty() && !features.contains(Features::MRG_RXBUF) {
                break Some(Ok(NotPut::TooLong));
            }
            match scatter(memory, cache, buffer, &mut targets) {
                Ok(Some(bytes)) if bytes < header && buffers.is_empty() => {
                    break Some(Err(RingError::NoRoom));
                }
                Ok(Some(0)) => break Some(Err(RingError::NoRoom)),
                Ok(Some(bytes)) => {
                    if buffers.try_push((buffer.token, bytes)).is_err() {
                        break Some(Ok(NotPut::TooLong));
                    }
                    room += bytes;
                }
                Ok(None) => break Some(Ok(NotPut::TooLong)),
                Err(error) => break Some(Err(error)),
            }
        };
        if let Some(refused) = refused {
            queue.ring.rewind(position);
            return Err(refused.unwrap_or_else(|error| {
                queue.fail(error);
                *broken += 1;
                NotPut::NotRunning
            }));
        }
        let count = u16::try_from(buffers.len()).unwrap_or(u16::MAX);
        let first = emit_header(offload, count);
        write_packet(&targets, first.get(..header).unwrap_or_default(), head, pieces);
        let mut left = need;
        for (token, bytes) in &buffers {
            let written = left.min(*bytes);
            left -= written;
            queue.ring.put(*token, u32::try_from(written).unwrap_or(u32::MAX));
        }
        if let Some(log) = log {
            let mut left = need as u64;
            for (piece, _) in &targets {
                let written = left.min(piece.length.into());
                log.note(piece.guest, written);
                left -= written;
            }
        }
        *untold |= 1 << (pair & 63);
        Ok(())
    }

    /// Shows the driver what was put into its receive queues.
    #[inline]
    pub fn flush(&mut self) {
        let mut untold = std::mem::take(&mut self.untold);
        while untold != 0 {
            let pair = untold.trailing_zeros() as usize;
            untold &= untold - 1;
            if let Some(Some(queue)) = self.queues.get_mut(2 * pair) {
                queue.publish(self.log.as_ref());
            }
        }
    }

    /// Asks to be told of packets; false if there are some already.
    pub fn prepare_to_wait(&mut self) -> bool {
        let log = self.log.as_ref();
        let mut idle = true;
        for queue in self.queues.iter_mut().skip(1).step_by(2).flatten() {
            queue.listening = true;
            idle &= queue.broken.is_some() || !queue.ring.listen(log);
        }
        idle
    }

    /// Takes the signals that came, and wants none until it is asked to be told again.
    pub fn woken(&mut self) {
        let mut events = [const { std::mem::MaybeUninit::<epoll::Event>::uninit() }; 16];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Edge-triggered: what was seen is not ready any more. What is left wakes the thread once more.
        let _ = epoll::wait(&self.kicks, &mut events, Some(&at_once));
        let log = self.log.as_ref();
        for queue in self.queues.iter_mut().skip(1).step_by(2).flatten() {
            queue.listening = false;
            queue.ring.ignore(log);
        }
    }

    // ---- the front-end's wishes

    pub(crate) fn reset(&mut self) {
        for index in 0..self.queues.len() {
            self.stop(index);
        }
        self.features = Features::empty();
        self.memory = GuestMemory::default();
        self.watch = None;
        self.log = None;
    }

    pub(crate) fn set_features(&mut self, features: Features) {
        self.features = features;
        if !features.contains(Features::LOG_ALL) {
            self.log = None;
        }
    }

    pub(crate) fn set_log(&mut self, log: DirtyLog) {
        self.log = Some(log);
    }

    /// Replaces the memory; the rings go on where they are in it now.
    pub(crate) fn set_memory(
        &mut self,
        memory: GuestMemory,
        watch: Arc<MemoryWatch>,
        rings: &[(usize, Addresses)],
    ) -> Result<(), RingError> {
        self.memory = memory;
        self.watch = Some(watch);
        self.cache = TranslationCache::default();
        let mut result = Ok(());
        for (index, at) in rings {
            result = self.relocate(*index, *at).and(result);
        }
        result
    }

    /// A ring goes on elsewhere. One that cannot is served no more.
    pub(crate) fn relocate(&mut self, index: usize, at: Addresses) -> Result<(), RingError> {
        if let Some(Some(queue)) = self.queues.get_mut(index)
            && let Err(error) = queue.ring.relocate(&self.memory, at)
        {
            self.stop(index);
            return Err(error);
        }
        Ok(())
    }

    pub(crate) fn start(&mut self, index: usize, setup: QueueSetup) -> Result<(), RingError> {
        let QueueSetup { at, size, base, enabled, notifiers } = setup;
        let mut ring = Ring::new(&self.memory, at, size, base, self.features)?;
        // A receive queue's buffers are looked at when there is a packet.
        ring.ignore(self.log.as_ref());
        if let Some(place) = self.queues.get_mut(index) {
            let queue =
                place.insert(Queue { ring, enabled, listening: false, notifiers, broken: None });
            if let Some(kick) = &queue.notifiers.kick {
                watch_kicks(&self.kicks, kick);
            }
        }
        Ok(())
    }

    /// Stops a queue; returns where whoever serves it afterwards begins.
    pub(crate) fn stop(&mut self, index: usize) -> Option<u32> {
        let mut queue = self.queues.get_mut(index)?.take()?;
        queue.publish(self.log.as_ref());
        if let Some(kick) = &queue.notifiers.kick {
            // It may be watched for another queue too, or not at all.
            let _ = epoll::delete(&self.kicks, kick);
        }
        Some(queue.ring.base())
    }

    pub(crate) fn set_enabled(&mut self, index: usize, enabled: bool) {
        if let Some(Some(queue)) = self.queues.get_mut(index) {
            queue.enabled = enabled;
        }
    }

    pub(crate) fn set_notifiers(&mut self, index: usize, notifiers: Notifiers) {
        if let Some(Some(queue)) = self.queues.get_mut(index) {
            let before = std::mem::replace(&mut queue.notifiers, notifiers);
            if let Some(kick) = before.kick {
                let _ = epoll::delete(&self.kicks, &kick);
            }
            if let Some(kick) = &queue.notifiers.kick {
                watch_kicks(&self.kicks, kick);
            }
            // Nobody was interrupted by what was there before.
            if let Some(call) = &queue.notifiers.call {
                call.signal();
            }
        }
    }
}

#[inline]
fn is_lost(watch: Option<&Arc<MemoryWatch>>) -> bool {
    watch.is_some_and(|watch| watch.is_lost())
}

fn watch_kicks(kicks: &OwnedFd, kick: &EventFd) {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    if let Err(error) = epoll::add(kicks, kick, epoll::EventData::new_u64(0), flags)
        // Two queues that share one share its signals.
        && error != Errno::EXIST
    {
        tracing::warn!(%error, "the kicks of a queue cannot be watched");
    }
}

/// Readable when a driver has sent something, after [`Device::prepare_to_wait`].
impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kicks.as_fd()
    }
}
