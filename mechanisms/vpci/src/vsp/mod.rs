//! The VSP: a host's end of a virtual PCI bus with one function.
//!
//! # States
//!
//! Of the bus ([`BusState`]):
//!
//! | state | event | next | what happens |
//! |---|---|---|---|
//! | Closed | channel opened | Negotiating | – |
//! | Negotiating | QUERY_PROTOCOL_VERSION, spoken | Negotiated | success |
//! | Negotiating | QUERY_PROTOCOL_VERSION, not spoken | Negotiating | STATUS_REVISION_MISMATCH |
//! | Negotiating | anything else | Failed | [`Effect::Fail`] |
//! | Negotiated, D0 | QUERY_PROTOCOL_VERSION | Failed | [`Effect::Fail`] |
//! | Negotiated, D0 | QUERY_BUS_RELATIONS | – | BUS_RELATIONS |
//! | Negotiated | FDO_D0_ENTRY, window free | D0 | window mapped, BUS_RELATIONS, success |
//! | Negotiated | FDO_D0_ENTRY, window not free | – | STATUS_BAD_DATA |
//! | D0 | FDO_D0_ENTRY | – | STATUS_INVALID_DEVICE_STATE |
//! | D0 | FDO_D0_EXIT | Negotiated | all that is mapped goes, the function is reset, success |
//! | Negotiated | FDO_D0_EXIT | – | success |
//! | Negotiated | what needs D0 | – | STATUS_INVALID_DEVICE_STATE |
//! | Failed | any packet | – | ignored |
//! | any | channel closed | Closed | as FDO_D0_EXIT, without answers |
//!
//! Of the function's presence ([`Presence`]):
//!
//! | state | event | next | what happens |
//! |---|---|---|---|
//! | Present | eject, bus in use | Ejecting | EJECT; everything goes on working |
//! | Present | eject, bus not in use | Removed | NotInUse, channel rescinded |
//! | Ejecting | EJECT_COMPLETE | Removed | all unmapped, Confirmed, channel rescinded |
//! | Ejecting | channel closed | Removed | all unmapped, ChannelClosed, channel rescinded |
//! | Ejecting | its deadline | Removed | BARs isolated, TimedOut, channel rescinded |
//! | Present, Ejecting | surprise removal | Removed | BARs isolated, Surprise, channel rescinded |
//! | Removed | channel closed | Removed | what was isolated is unmapped |
//!
//! A message that names another slot, or cannot be understood, is answered with STATUS_BAD_DATA and changes nothing.

mod backchannel;
mod config;
mod effect;
mod interrupts;
mod msi_x_table;
mod removal;
mod requests;
mod resources;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use pci_function::{MediationPolicy, RawVfConfig, VfMediation, VfPnpIds};
use pcie_protocol::{BarIndex, BarKind, Bars, ClassCode, decode_probed_bars};
use pcivirt_protocol::{DevicePowerState, NtStatus};
use vpci_protocol::{HostMessage, MemoryResource, ProtocolVersion, reply};

pub use config::{EJECT_GRACE, FunctionConfig, VspError};
pub use effect::{
    ChannelFault, Effect, InterruptSource, PfRequest, PfRequestId, Removal, StopAnswer,
};
pub use interrupts::InterruptTarget;

use crate::{Incoming, Outgoing};
use backchannel::PfPending;
use interrupts::InterruptTable;
use msi_x_table::MsiXTable;

/// How far the guest has brought its bus.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum BusState {
    /// The channel is closed.
    Closed,
    /// The channel is open, and no version is agreed on.
    Negotiating,
    /// A version is agreed on.
    Negotiated(ProtocolVersion),
    /// The bus is on.
    D0 {
        /// The version.
        version: ProtocolVersion,
        /// Guest physical address of the configuration window.
        window: u64,
    },
    /// The guest has broken the protocol.
    Failed(ChannelFault),
}

impl BusState {
    /// The version that is agreed on.
    pub fn version(self) -> Option<ProtocolVersion> {
        match self {
            Self::Negotiated(version) | Self::D0 { version, .. } => Some(version),
            Self::Closed | Self::Negotiating | Self::Failed(_) => None,
        }
    }
}

/// Whether the function is the guest's.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Presence {
    /// It is.
    Present,
    /// It is, and the guest was asked to let go of it.
    Ejecting {
        /// When it will be taken away by force.
        deadline: Duration,
    },
    /// It is not any more.
    Removed(Removal),
}

/// Whether the function is stopped, while its PF is rebalanced.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Stop {
    Running,
    Asked { transaction: u64, deadline: Duration },
    Stopped,
}

/// What became of a guest's packets and accesses, counted.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct VspCounters {
    /// Messages that cannot be understood, of another version, or without the completion flag they need.
    pub malformed: u64,
    /// Messages that make no sense in the state of the bus.
    pub wrong_state: u64,
    /// Messages about a function that is not there.
    pub wrong_slot: u64,
    /// Interrupts that could not be made, deleted or sent elsewhere.
    pub refused_interrupts: u64,
    /// Windows and BARs at addresses where none can be. A BAR is counted each time it cannot be mapped.
    pub refused_addresses: u64,
    /// Completions that nobody waits for.
    pub unexpected_completions: u64,
    /// Accesses to the configuration window that have no meaning, or came while it was off.
    pub dropped_accesses: u64,
    /// Requests that the PF driver did not answer in time.
    pub pf_timeouts: u64,
    /// Requests beyond those that the PF driver can be asked at a time.
    pub pf_overload: u64,
}

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
struct Mapping {
    address: u64,
    size: u64,
}

/// A host's end of a virtual PCI bus with one function. See the [module](self) for its states.
///
/// Belongs to one thread. Order of calls: [`Vsp::channel_opened`] when the guest has opened the channel, then
/// [`Vsp::receive`] for each packet that is read while [`Vsp::accepts_packets`], then [`Vsp::channel_closed`] however the channel ended; any number of times.
/// [`Vsp::poll`] is due at [`Vsp::next_deadline`]. All else at any time. `now` is the time since any fixed moment and
/// never goes back.
#[derive(Debug)]
pub struct Vsp {
    config: FunctionConfig,
    bars: Bars<Option<pcie_protocol::Bar>>,
    mediation: VfMediation,
    msi_x: Option<MsiXTable>,
    interrupts: InterruptTable,
    routes: BTreeMap<InterruptSource, InterruptTarget>,
    bus: BusState,
    presence: Presence,
    stop: Stop,
    /// By message, apart from what the guest writes to PMCSR.
    power: DevicePowerState,
    /// The slot number in the window's first page.
    selected_slot: u32,
    mapped: Bars<Option<Mapping>>,
    assigned: Option<Bars<Option<MemoryResource>>>,
    reserved: Vec<Range<u64>>,
    /// Requests that the guest waits for.
    pf: BTreeMap<PfRequestId, PfPending>,
    /// Requests that the PF driver has not answered, whoever waits.
    pf_outstanding: BTreeSet<PfRequestId>,
    next_pf_request: u64,
    invalidated_blocks: u64,
    congested: bool,
    next_transaction: u64,
    close_deadline: Option<Duration>,
    counters: VspCounters,
}

impl Vsp {
    /// A VSP for the function whose raw configuration space is `raw`; its channel is closed.
    ///
    /// # Errors
    /// [`VspError`] for a function that no guest can be shown.
    pub fn new(
        config: FunctionConfig,
        raw: &(impl RawVfConfig + ?Sized),
    ) -> Result<Self, VspError> {
        let bars = decode_probed_bars(&config.probed_bars)
            .map_err(pci_function::PciFunctionError::from)?;
        for index in BarIndex::ALL {
            if index.of(&bars).is_some_and(|bar| bar.kind() == BarKind::Io) {
                return Err(VspError::IoBar(index));
            }
        }
        let ids = VfPnpIds {
            vendor_id: config.ids.vendor_id,
            device_id: config.ids.device_id,
            revision_id: Some(config.ids.revision_id),
            class: Some(ClassCode {
                base_class: config.ids.base_class,
                sub_class: config.ids.sub_class,
                programming_interface: config.ids.prog_if,
            }),
            subsystem_vendor_id: Some(config.ids.sub_vendor_id),
            subsystem_id: Some(config.ids.sub_system_id),
        };
        let policy = MediationPolicy { memory_enable_at_reset: false, ..config.mediation.clone() };
        let mediation = VfMediation::new(raw, ids, &config.probed_bars, &policy)?;
        let msi_x = MsiXTable::of(raw).filter(|_| policy.msi_x);
        let interrupts =
            InterruptTable::new(config.processors, config.vectors.clone(), config.max_interrupts);
        Ok(Self {
            config,
            bars,
            mediation,
            msi_x,
            interrupts,
            routes: BTreeMap::new(),
            bus: BusState::Closed,
            presence: Presence::Present,
            stop: Stop::Running,
            power: DevicePowerState::D0,
            selected_slot: 0,
            mapped: [None; 6],
            assigned: None,
            reserved: Vec::new(),
            pf: BTreeMap::new(),
            pf_outstanding: BTreeSet::new(),
            next_pf_request: 0,
            invalidated_blocks: 0,
            congested: false,
            // Recognisable, and never 0.
            next_transaction: 1 << 63,
            close_deadline: None,
            counters: VspCounters::default(),
        })
    }

    // ---- the channel

    /// The guest has opened the channel.
    pub fn channel_opened(&mut self) {
        self.bus = BusState::Negotiating;
        self.congested = false;
    }

    /// Whether another packet may be read. Not while the PF driver has more to do than a guest may ask of it: what
    /// the guest sends waits in its own ring then.
    pub fn accepts_packets(&self) -> bool {
        self.pf_outstanding.len() < self.config.max_pf_requests.saturating_mul(2)
    }

    /// A packet came.
    pub fn receive(&mut self, packet: Incoming<'_>, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        match packet {
            Incoming::Message { transaction, payload } => {
                self.message(transaction, payload, now, &mut effects);
            }
            Incoming::Completion { transaction, payload } => {
                self.completion(transaction, payload, &mut effects);
            }
        }
        effects
    }

    /// The guest has closed the channel, or is gone.
    pub fn channel_closed(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        // Nobody is left to be answered.
        self.pf.clear();
        if let Stop::Asked { .. } = self.stop {
            self.stop = Stop::Stopped;
            effects.push(Effect::StopAnswered(StopAnswer::NotInUse));
        }
        self.power_off(&mut effects);
        self.bus = BusState::Closed;
        self.close_deadline = None;
        if let Presence::Ejecting { .. } = self.presence {
            self.removed(Removal::ChannelClosed, &mut effects);
        }
        effects
    }

    /// There is no room in the ring, or there is room again. While there is none, host-started messages that can
    /// wait are put together ([`Vsp::invalidate_blocks`]).
    pub fn set_congested(&mut self, congested: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.congested = congested;
        self.send_invalidations(&mut effects);
        effects
    }

    // ---- time

    /// When [`Vsp::poll`] is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        let ejecting = match self.presence {
            Presence::Ejecting { deadline } => Some(deadline),
            Presence::Present | Presence::Removed(_) => None,
        };
        let stopping = match self.stop {
            Stop::Asked { deadline, .. } => Some(deadline),
            Stop::Running | Stop::Stopped => None,
        };
        let pf = self.pf.values().map(|pending| pending.deadline).min();
        [ejecting, stopping, pf, self.close_deadline].into_iter().flatten().min()
    }

    /// Ends the waits whose deadline has come.
    pub fn poll(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.expire_pf_requests(now, &mut effects);
        if let Stop::Asked { deadline, .. } = self.stop
            && deadline <= now
        {
            self.stop = Stop::Running;
            effects.push(Effect::StopAnswered(StopAnswer::TimedOut));
        }
        if let Presence::Ejecting { deadline } = self.presence
            && deadline <= now
        {
            self.take_away(Removal::TimedOut, now, &mut effects);
        }
        if self.close_deadline.is_some_and(|deadline| deadline <= now) {
            self.close_deadline = None;
            effects.push(Effect::CloseOverdue);
        }
        effects
    }

    // ---- what there is to know

    /// How far the guest has brought its bus.
    pub fn bus(&self) -> BusState {
        self.bus
    }

    /// Whether the function is the guest's.
    pub fn presence(&self) -> Presence {
        self.presence
    }

    /// Whether the function is stopped ([`Vsp::query_stop`]).
    pub fn is_stopped(&self) -> bool {
        self.stop == Stop::Stopped
    }

    /// What became of packets and accesses.
    pub fn counters(&self) -> VspCounters {
        self.counters
    }

    /// Interrupt messages that exist.
    pub fn interrupt_count(&self) -> usize {
        self.interrupts.len()
    }

    /// Where an interrupt of the function goes now.
    pub fn route(&self, source: InterruptSource) -> Option<&InterruptTarget> {
        self.routes.get(&source)
    }

    /// The guest physical addresses that window and BARs occupy now.
    pub fn claims(&self) -> Vec<Range<u64>> {
        let bars = self.mapped.iter().flatten();
        let bars = bars.map(|mapping| mapping.address..mapping.address + mapping.size);
        bars.chain(self.window_range()).collect()
    }

    /// Says which guest physical addresses are others' ([`Vsp::claims`] of the partition's other buses): window and
    /// BARs cannot be there. What is mapped already stays.
    pub fn set_reserved(&mut self, reserved: Vec<Range<u64>>) {
        self.reserved = reserved;
    }

    // ---- common to the parts

    fn answer(&mut self, transaction: Option<u64>, status: NtStatus, effects: &mut Vec<Effect>) {
        let mut payload = Vec::new();
        reply::emit_status(status, &mut payload);
        self.complete(transaction, payload, effects);
    }

    fn complete(&mut self, transaction: Option<u64>, payload: Vec<u8>, effects: &mut Vec<Effect>) {
        if let Some(transaction) = transaction {
            effects.push(Effect::Send(Outgoing::Completion { transaction, payload }));
        }
    }

    fn send(&mut self, message: &HostMessage, transaction: Option<u64>, effects: &mut Vec<Effect>) {
        let mut payload = Vec::new();
        // One function cannot be too many.
        if message.emit(&mut payload).is_ok() {
            effects.push(Effect::Send(Outgoing::Message { transaction, payload }));
        }
    }

    fn send_bus_relations(&mut self, version: ProtocolVersion, effects: &mut Vec<Effect>) {
        let functions = match self.presence {
            Presence::Removed(_) => Vec::new(),
            Presence::Present | Presence::Ejecting { .. } => vec![self.config.description()],
        };
        let relations = HostMessage::BusRelations { with_numa: version.has_numa(), functions };
        self.send(&relations, None, effects);
    }
}
