//! The control path of one open device: everything but frames.

mod bring_up;
mod filters;
mod requests;

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use avf_protocol::{
    MacAddress,
    registers::{ARQLEN, ATQLEN, QueueLength},
    virtchnl::{self, EthStats, LinkStatus, Opcode, QueueSelect, Reply, Request, VfResources},
};

use crate::{
    DriverConfig, DriverError, DriverMemory, Event, QueuePair, Result,
    bar::{Bar, Registers},
    gate::Generation,
    mailbox::Mailbox,
    transport::Interrupt,
};

pub use filters::Promiscuity;

/// How often [`AvfControl::poll_events`] looks whether the server lives.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(1);
/// How often it looks whether the function was reset without a word (SPEC-AVF Appendix A.8).
const RESET_INTERVAL: Duration = Duration::from_secs(1);
/// Events kept for the caller at most; of link changes only the last counts.
const MAX_EVENTS: usize = 16;

/// What the device offers, as far as this driver can use it.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct Capabilities {
    /// Queue pairs granted.
    pub queue_pairs: u16,
    /// MSI-X vectors, the mailbox's included.
    pub vectors: u16,
    /// Largest frame received, bytes without FCS.
    pub max_frame: u16,
    /// Frames are spread over queue pairs by their hash.
    pub rss: bool,
    /// TCP segmentation is there always; whether UDP's is.
    pub udp_segmentation: bool,
    /// Tags are taken out of received frames.
    pub vlan_stripping: bool,
    /// Tags can be inserted into frames to send.
    pub vlan_insertion: bool,
    /// VLAN filters can be set.
    pub vlan_filtering: bool,
    /// The capability bits as granted.
    pub granted: virtchnl::Capabilities,
}

/// Where an open device stands.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum State {
    /// Frames flow.
    Running,
    /// The function was reset, or a reset was announced: hand the queue pairs to
    /// [`AvfControl::rebuild`].
    NeedsRebuild,
    /// The server is gone. Open the device anew.
    Gone,
}

/// A rebuild that failed, with the queue pairs, so that it can be tried again.
#[derive(Debug, thiserror::Error)]
#[error("rebuilding the device's {} queue pairs", pairs.len())]
pub struct RebuildError {
    /// Why.
    #[source]
    pub error: DriverError,
    /// The pairs as they were handed in.
    pub pairs: Vec<QueuePair>,
}

/// Control of one open AVF device. One thread owns it; none of its calls is needed per frame.
///
/// Calls that exchange a message with the PF wait for its answer, [`crate::Timeouts::mailbox`] at
/// most. When the connection closes, the server takes the function back.
#[derive(Debug)]
pub struct AvfControl {
    config: DriverConfig,
    memory: Arc<DriverMemory>,
    bar: Arc<Bar>,
    /// For waits: readable when the function goes.
    gone: OwnedFd,
    generation: Generation,
    mailbox: Mailbox,
    state: State,
    resources: Option<VfResources>,
    capabilities: Capabilities,
    vlan: filters::VlanMode,
    /// The primary MAC address.
    mac: MacAddress,
    link: LinkStatus,
    multicast: Vec<MacAddress>,
    vlans: Vec<u16>,
    promiscuity: Promiscuity,
    /// Interrupts by MSI-X vector; empty without interrupts.
    events: Vec<Arc<dyn Interrupt>>,
    queue_pairs: u16,
    pending: VecDeque<Event>,
    next_liveness: Option<Instant>,
    next_reset_check: Option<Instant>,
    /// Messages that answered nothing.
    strays: u64,
}

impl AvfControl {
    pub(crate) fn new(
        config: DriverConfig,
        memory: Arc<DriverMemory>,
        bar: Arc<Bar>,
        generation: Generation,
    ) -> Result<Self> {
        Ok(Self {
            gone: bar.transport().gone_fd()?,
            mailbox: Mailbox::new(memory.clone())?,
            mac: config.mac.unwrap_or_default(),
            config,
            memory,
            bar,
            generation,
            state: State::NeedsRebuild,
            resources: None,
            capabilities: Capabilities::default(),
            vlan: filters::VlanMode::default(),
            link: LinkStatus { up: false, mbps: 0 },
            multicast: Vec::new(),
            vlans: Vec::new(),
            promiscuity: Promiscuity::default(),
            events: Vec::new(),
            queue_pairs: 0,
            pending: VecDeque::new(),
            next_liveness: None,
            next_reset_check: None,
            strays: 0,
        })
    }

    pub(crate) fn config(&self) -> &DriverConfig {
        &self.config
    }

    pub(crate) fn bar(&self) -> &Arc<Bar> {
        &self.bar
    }

    pub(crate) fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The memory shared with the device.
    pub fn memory(&self) -> &Arc<DriverMemory> {
        &self.memory
    }

    /// The primary MAC address of the function.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// The link, as last announced.
    pub fn link(&self) -> LinkStatus {
        self.link
    }

    /// What the device offers.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Where the device stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Mailbox entries that made no sense and messages that answered nothing: more than a few mean
    /// a broken or hostile device.
    pub fn stray_messages(&self) -> u64 {
        self.mailbox.garbage() + self.strays
    }

    /// Whether tails are rung through shared doorbell pages, without messages.
    pub fn has_doorbell_pages(&self) -> bool {
        self.bar.is_shared(avf_protocol::registers::TX_DOORBELL_PAGE)
            && self.bar.is_shared(avf_protocol::registers::RX_DOORBELL_PAGE)
    }

    /// The PF's statistics of the function.
    ///
    /// # Errors
    /// The PF does not answer or refuses; the device was reset or is gone.
    pub fn stats(&mut self) -> Result<EthStats> {
        self.running()?;
        let select = QueueSelect::new(self.vsi_id(), 0, 0);
        match self.request(&Request::GetStats(select))? {
            Reply::Stats(stats) => Ok(stats),
            _ => Err(self.unusable(Opcode::GetStats, "it is empty")),
        }
    }

    /// A descriptor that becomes readable when the PF has sent a message, for a caller that sleeps;
    /// `None` without interrupts. [`poll_events`](Self::poll_events) makes it unreadable again.
    /// Also wait on [`server_fd`](Self::server_fd).
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.events.first().map(|event| event.event_fd())
    }

    /// A descriptor that becomes readable when the function goes: when the server closes the connection or dies,
    /// for one.
    pub fn server_fd(&self) -> BorrowedFd<'_> {
        self.gone.as_fd()
    }

    /// What happened since the last call, in order. Cheap enough for every turn of a data-path
    /// loop: a load of memory, a system call each millisecond, a register read each second.
    ///
    /// # Errors
    /// The server does not answer. That it died is an event.
    pub fn poll_events(&mut self, now: Instant) -> Result<Vec<Event>> {
        if self.state != State::Gone
            && let Err(error) = self.look_for_events(now)
            && !matches!(error, DriverError::DeviceGone)
        {
            return Err(error);
        }
        Ok(self.pending.drain(..).collect())
    }

    fn look_for_events(&mut self, now: Instant) -> Result<()> {
        let due = |at: Option<Instant>| at.is_none_or(|at| now >= at);
        let liveness = due(self.next_liveness);
        if liveness {
            self.next_liveness = now.checked_add(LIVENESS_INTERVAL);
            let check = self.bar.transport().check();
            self.watch(check)?;
        }
        if liveness || self.mailbox.has_message() {
            self.rearm_mailbox_interrupt()?;
        }
        self.take_messages()?;
        if self.state == State::Running && due(self.next_reset_check) {
            self.next_reset_check = now.checked_add(RESET_INTERVAL);
            self.look_for_reset()?;
        }
        Ok(())
    }

    /// Notices a reset that nobody announced.
    fn look_for_reset(&mut self) -> Result<()> {
        let length = self.read(ARQLEN)?;
        if !QueueLength(length).is_enabled() {
            self.stop(State::NeedsRebuild, Event::ResetDetected);
        }
        Ok(())
    }

    /// Ends the generation: queues stand still, sleepers wake, the caller is told.
    fn stop(&mut self, state: State, event: Event) {
        self.state = state;
        self.link = LinkStatus { up: false, mbps: self.link.mbps };
        self.generation.end();
        for event in &self.events {
            event.wake();
        }
        self.push(event);
    }

    fn push(&mut self, event: Event) {
        if let (Event::LinkChange(_), Some(Event::LinkChange(_))) = (event, self.pending.back()) {
            self.pending.pop_back();
        }
        if self.pending.len() < MAX_EVENTS {
            self.pending.push_back(event);
        }
    }

    /// Resets the function (RESET_VF) and waits until it has happened. Queue pairs stand still from
    /// now on: hand them to [`rebuild`](Self::rebuild).
    ///
    /// # Errors
    /// The reset does not begin or end in time; the device is gone.
    pub fn reset(&mut self) -> Result<()> {
        self.alive()?;
        if self.state == State::Running {
            self.state = State::NeedsRebuild;
            self.generation.end();
            for event in &self.events {
                event.wake();
            }
        }
        if self.mailbox_is_on()? {
            self.send(&Request::ResetVf)?;
            self.wait_for_reset_begin()?;
        }
        self.wait_until_active()
    }

    /// Brings the function up again after a reset, as it was, and returns the queue pairs ready for
    /// use.
    ///
    /// All pairs that [`crate::AvfDriver::open`] gave out are needed, in any order. Waits for a
    /// reset that is still going on. On a running device, resets it first.
    ///
    /// # Errors
    /// Pairs are missing; the reset does not end; the PF does not answer, refuses, or grants fewer
    /// queue pairs than before. The error has the pairs: try again, or open the device anew.
    pub fn rebuild(
        &mut self,
        mut pairs: Vec<QueuePair>,
    ) -> std::result::Result<Vec<QueuePair>, Box<RebuildError>> {
        pairs.sort_by_key(QueuePair::index);
        let result = self.check_pairs(&pairs).and_then(|()| {
            self.alive()?;
            // A mailbox that is on means that no reset happened, or one was announced and never
            // came.
            if self.mailbox_is_on()? { self.reset() } else { self.wait_until_active() }
        });
        let result = result.and_then(|()| {
            let granted = self.negotiate()?;
            if usize::from(granted) < pairs.len() {
                return Err(self.unusable(
                    Opcode::GetVfResources,
                    &format!("{granted} queue pairs are granted, {} are in use", pairs.len()),
                ));
            }
            Ok(())
        });
        match result {
            Ok(()) => self.bring_up(pairs),
            Err(error) => Err(Box::new(RebuildError { error, pairs })),
        }
    }

    fn check_pairs(&self, pairs: &[QueuePair]) -> Result<()> {
        let whole = pairs.iter().zip(0..).all(|(pair, index)| {
            pair.tx.index() == index
                && pair.rx.index() == index
                && Arc::ptr_eq(pair.tx.memory(), &self.memory)
                && Arc::ptr_eq(pair.rx.memory(), &self.memory)
        });
        if !whole || pairs.len() != usize::from(self.queue_pairs) {
            return Err(DriverError::QueuePairsMissing {
                given: pairs.len(),
                needed: usize::from(self.queue_pairs),
            });
        }
        Ok(())
    }

    /// Stops the queues, gives back the addresses and resets the function, in the order that leaves
    /// nothing behind (SPEC-AVF Appendix A.9). Dropping control instead closes the connection, and
    /// the server does the rest.
    ///
    /// # Errors
    /// The PF does not answer. The connection is closed in any case.
    pub fn close(mut self, pairs: Vec<QueuePair>) -> Result<()> {
        self.check_pairs(&pairs)?;
        if self.state == State::Running {
            let queues = self.all_queues();
            self.generation.end();
            self.request(&Request::DisableQueues(queues))?;
            self.remove_addresses()?;
            self.send(&Request::ResetVf)?;
            self.wait_for_reset_begin()?;
        }
        self.alive()?;
        if QueueLength(self.read(ATQLEN)?).is_enabled() {
            let (mailbox, bar) = (&mut self.mailbox, &*self.bar);
            mailbox.shut_down(bar)?;
        }
        drop(pairs);
        Ok(())
    }
}

impl AvfControl {
    fn vsi_id(&self) -> u16 {
        self.resources.as_ref().map_or(0, |resources| resources.vsi_id)
    }

    fn all_queues(&self) -> QueueSelect {
        let bits = (1u32 << self.queue_pairs) - 1;
        QueueSelect::new(self.vsi_id(), bits, bits)
    }

    fn running(&self) -> Result<()> {
        match self.state {
            State::Running => Ok(()),
            State::NeedsRebuild => Err(DriverError::NeedsRebuild),
            State::Gone => Err(DriverError::DeviceGone),
        }
    }

    fn alive(&self) -> Result<()> {
        if self.state == State::Gone { Err(DriverError::DeviceGone) } else { Ok(()) }
    }

    fn mailbox_is_on(&mut self) -> Result<bool> {
        Ok(QueueLength(self.read(ARQLEN)?).is_enabled())
    }

    /// Reads a register; notices that the server is gone.
    fn read(&mut self, offset: u32) -> Result<u32> {
        let value = self.bar.read(offset);
        self.watch(value)
    }

    /// Writes a register; notices that the server is gone.
    fn write(&mut self, offset: u32, value: u32) -> Result<()> {
        let written = self.bar.write(offset, value);
        self.watch(written)
    }

    /// Passes a result on and, if it says that the server is gone, stops the device.
    fn watch<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() && self.state != State::Gone && self.bar.transport().is_gone() {
            self.stop(State::Gone, Event::DeviceGone);
            return Err(DriverError::DeviceGone);
        }
        result
    }
}
