//! The VSC: a guest's end of a virtual PCI bus, up to a function that is sized, mapped and enabled.
//!
//! # States
//!
//! | state | event | next | what happens |
//! |---|---|---|---|
//! | Closed | channel opened | Negotiating | QUERY_PROTOCOL_VERSION, the highest |
//! | Negotiating | success | Enumerating | QUERY_BUS_RELATIONS |
//! | Negotiating | STATUS_REVISION_MISMATCH | Negotiating | the next lower version; if there is none, Failed |
//! | Enumerating, Empty | bus relations with a function | Sizing | CURRENT_RESOURCE_REQUIREMENTS |
//! | Enumerating | bus relations without | Empty | – |
//! | Sizing | BARs that fit | EnteringD0 | FDO_D0_ENTRY (the bus may be on already: then as if it had answered) |
//! | EnteringD0 | success | Assigning | ASSIGNED_RESOURCES |
//! | EnteringD0 | failure, first | LeavingD0 | RELEASE_RESOURCES, FDO_D0_EXIT: another kernel may have left it on |
//! | LeavingD0 | success | Enumerating | QUERY_BUS_RELATIONS |
//! | Assigning | success | Running | BARs written, function enabled, [`VscEffect::Ready`] |
//! | Running | EJECT | Running, ejecting | [`VscEffect::EjectRequested`] |
//! | Running, ejecting | [`Vsc::ejected`] | Empty | function disabled, EJECT_COMPLETE |
//! | Running, ejecting | its deadline | Empty | [`VscEffect::Gone`], EJECT_COMPLETE |
//! | others with a function | EJECT | Empty | EJECT_COMPLETE |
//! | with a function | bus relations without it | Empty | [`VscEffect::Gone`] if it was ready |
//! | Running | QUERY_STOP | Running | [`VscEffect::StopRequested`] |
//! | any | [`Vsc::shut_down`] | ShuttingDown | RELEASE_RESOURCES, FDO_D0_EXIT |
//! | ShuttingDown | answer or deadline | Closed | [`VscEffect::CloseChannel`] |
//! | any before Running | failure, or a deadline | Failed | [`VscEffect::Failed`], [`VscEffect::CloseChannel`] |
//! | any | channel closed | Closed | [`VscEffect::Gone`] if a function was ready |

mod addresses;
mod bring_up;
mod requests;

use std::{collections::BTreeMap, ops::Range, time::Duration};

use pcie_protocol::Bars;
use pcivirt_protocol::NtStatus;
use vpci_protocol::{
    FunctionDescription, MessageType, ProtocolVersion, TranslatedMsi, VpciProtocolError, window,
};

use crate::{Incoming, Outgoing};
use requests::Pending;
pub use requests::{RequestId, Requested, VscReply};

/// What a VSC is made with.
#[derive(Clone, Debug)]
pub struct VscConfig {
    /// Guest physical address where the configuration window is to be: 8 KiB at a page.
    pub window: u64,
    /// Guest physical addresses where BARs can be. Not where the window is.
    pub aperture: Range<u64>,
    /// The highest version spoken.
    pub max_version: ProtocolVersion,
    /// How long the host has to answer anything.
    pub timeout: Duration,
    /// How long the function's driver has to let go of it. Less than the host waits.
    pub eject_grace: Duration,
}

impl VscConfig {
    /// All versions, 10 s for each answer, 50 s for the driver.
    pub fn new(window: u64, aperture: Range<u64>) -> Self {
        Self {
            window,
            aperture,
            max_version: ProtocolVersion::V1_5,
            timeout: Duration::from_secs(10),
            eject_grace: Duration::from_secs(50),
        }
    }
}

/// Where the bus is.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum VscState {
    /// The channel is closed.
    Closed,
    /// A version was asked for.
    Negotiating(ProtocolVersion),
    /// The bus relations were asked for.
    Enumerating,
    /// The bus has no function.
    Empty,
    /// The BARs were asked for.
    Sizing,
    /// The bus is to be on.
    EnteringD0,
    /// The bus is to be off, to be brought up from there.
    LeavingD0,
    /// The resources were assigned.
    Assigning,
    /// The function is ready.
    Running,
    /// The bus is to be off, and the channel closed.
    ShuttingDown,
    /// The bus cannot be brought up.
    Failed(VscError),
}

/// Why a bus cannot be brought up.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum VscError {
    /// No version is spoken by both.
    #[error("the host speaks no version of VPCI that this guest speaks, {lowest} to {highest}")]
    NoVersion {
        /// The lowest asked for.
        lowest: ProtocolVersion,
        /// The highest asked for.
        highest: ProtocolVersion,
    },
    /// The host did not answer.
    #[error("the host did not answer {0} in time")]
    TimedOut(MessageType),
    /// The host refused.
    #[error("the host refused {message}: {status}")]
    Refused {
        /// What was asked.
        message: MessageType,
        /// Its answer.
        status: NtStatus,
    },
    /// The host's answer makes no sense.
    #[error("the host's answer to {message} makes no sense")]
    Answer {
        /// What was asked.
        message: MessageType,
        /// Why.
        #[source]
        source: VpciProtocolError,
    },
    /// The BARs are malformed.
    #[error("the host describes BARs that no function has: {0}")]
    Bars(#[from] pcie_protocol::PcieError),
    /// The BARs do not fit.
    #[error("a BAR of {size} bytes finds no room in the addresses set aside for VPCI")]
    NoRoom {
        /// Bytes of the BAR.
        size: u64,
    },
    /// A request was made while no function is ready.
    #[error("no function is ready on this bus")]
    NotReady,
    /// A request that the protocol cannot carry.
    #[error("the request cannot be made")]
    Request(#[from] VpciProtocolError),
}

/// The function of the bus, ready for its driver.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ReadyFunction {
    /// Who it is.
    pub description: FunctionDescription,
    /// Guest physical address and bytes of each BAR.
    pub bars: Bars<Option<BarPlace>>,
    /// Guest physical address of its configuration space: 4096 bytes, to be read and written by aligned accesses of
    /// 1, 2 or 4 bytes. BARs are not the driver's to write.
    pub config_space: u64,
}

/// Where a BAR is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct BarPlace {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Something to be done, in the order of the list.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum VscEffect {
    /// Write this to the ring.
    Send(Outgoing),
    /// Write this to a guest physical address: 2 or 4 bytes, in one access.
    MmioWrite {
        /// Where.
        address: u64,
        /// What.
        data: Vec<u8>,
    },
    /// The function is mapped and enabled: its driver can be started.
    Ready(ReadyFunction),
    /// The host wants the function back: stop its driver, then call [`Vsc::ejected`].
    EjectRequested,
    /// The host wants to stop the function: make its driver stop using it, then call [`Vsc::stop_answer`].
    StopRequested,
    /// The function is back after a stop, mapped and enabled as before, its own state lost.
    Resumed,
    /// The function is not there any more; nothing answers behind its BARs.
    Gone,
    /// Configuration blocks have to be read again: bit n is block n.
    BlocksInvalidated(u64),
    /// A request of the driver's is done.
    Completed {
        /// Which one.
        request: RequestId,
        /// What came of it.
        result: Result<VscReply, NtStatus>,
    },
    /// The bus cannot be brought up.
    Failed(VscError),
    /// Close the channel.
    CloseChannel,
}

/// How far a stop is.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum Stop {
    Running,
    Asked { transaction: Option<u64>, deadline: Duration },
    Stopped,
}

/// A guest's end of a virtual PCI bus. See the [module](self) for its states.
///
/// Belongs to one thread. Order of calls: [`Vsc::channel_opened`] once the channel is open, [`Vsc::receive`] for each
/// packet, [`Vsc::channel_closed`] when it is closed or rescinded; any number of times. [`Vsc::poll`] is due at
/// [`Vsc::next_deadline`]. `now` is the time since any fixed moment and never goes back.
#[derive(Debug)]
pub struct Vsc {
    config: VscConfig,
    state: VscState,
    version: ProtocolVersion,
    /// The bus is on.
    in_d0: bool,
    /// D0 entry failed once.
    retried: bool,
    function: Option<FunctionDescription>,
    bars: Bars<Option<pcie_protocol::Bar>>,
    places: Bars<Option<BarPlace>>,
    ejecting: Option<Duration>,
    stop: Stop,
    relations_deadline: Option<Duration>,
    pending: BTreeMap<u64, Pending>,
    /// Never 0, never used twice.
    next_transaction: u64,
}

impl Vsc {
    /// A VSC whose channel is closed.
    pub fn new(config: VscConfig) -> Self {
        Self {
            version: config.max_version,
            config,
            state: VscState::Closed,
            in_d0: false,
            retried: false,
            function: None,
            bars: [None; 6],
            places: [None; 6],
            ejecting: None,
            stop: Stop::Running,
            relations_deadline: None,
            pending: BTreeMap::new(),
            next_transaction: 1,
        }
    }

    /// Where the bus is.
    pub fn state(&self) -> &VscState {
        &self.state
    }

    /// The version that is agreed on, once it is.
    pub fn version(&self) -> Option<ProtocolVersion> {
        match self.state {
            VscState::Closed | VscState::Negotiating(_) | VscState::Failed(_) => None,
            _ => Some(self.version),
        }
    }

    /// The function, while it is ready.
    pub fn function(&self) -> Option<ReadyFunction> {
        let description = self.function.filter(|_| self.state == VscState::Running)?;
        let config_space = self.config.window.saturating_add(window::CONFIG_SPACE);
        Some(ReadyFunction { description, bars: self.places, config_space })
    }

    /// The channel is open.
    pub fn channel_opened(&mut self, now: Duration) -> Vec<VscEffect> {
        let mut effects = Vec::new();
        self.forget();
        self.retried = false;
        self.ask_version(self.config.max_version, now, &mut effects);
        effects
    }

    /// The channel is closed, or was taken back by the host.
    pub fn channel_closed(&mut self) -> Vec<VscEffect> {
        let mut effects = Vec::new();
        self.function_gone(&mut effects);
        self.forget();
        self.state = VscState::Closed;
        effects
    }

    /// A packet came. What cannot be understood is dropped.
    pub fn receive(&mut self, packet: Incoming<'_>, now: Duration) -> Vec<VscEffect> {
        let mut effects = Vec::new();
        match packet {
            Incoming::Message { transaction, payload } => {
                self.message(transaction, payload, now, &mut effects);
            }
            Incoming::Completion { transaction, payload } => {
                if let Some(pending) = self.pending.remove(&transaction) {
                    self.completed(pending, payload, now, &mut effects);
                }
            }
        }
        effects
    }

    /// When [`Vsc::poll`] is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        let stop = match self.stop {
            Stop::Asked { deadline, .. } => Some(deadline),
            Stop::Running | Stop::Stopped => None,
        };
        let pending = self.pending.values().map(|pending| pending.deadline).min();
        [self.relations_deadline, self.ejecting, stop, pending].into_iter().flatten().min()
    }

    /// Ends the waits whose deadline has come.
    pub fn poll(&mut self, now: Duration) -> Vec<VscEffect> {
        let mut effects = Vec::new();
        if self.relations_deadline.is_some_and(|deadline| deadline <= now) {
            self.relations_deadline = None;
            let error = VscError::TimedOut(MessageType::QueryBusRelations);
            self.fail(error, &mut effects);
        }
        if self.ejecting.is_some_and(|deadline| deadline <= now) {
            self.ejecting = None;
            self.function_gone(&mut effects);
            self.send_eject_complete(&mut effects);
            self.forget_function();
        }
        if let Stop::Asked { deadline, .. } = self.stop
            && deadline <= now
        {
            self.answer_stop(false, &mut effects);
        }
        let is_due = |(_, pending): &(u64, Pending)| pending.deadline <= now;
        let pending = std::mem::take(&mut self.pending);
        let (expired, others): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_due);
        self.pending = others.into_iter().collect();
        for (_, pending) in expired {
            self.expired(pending, &mut effects);
        }
        effects
    }

    /// Forgets all that belongs to a channel.
    fn forget(&mut self) {
        self.in_d0 = false;
        self.function = None;
        self.bars = [None; 6];
        self.places = [None; 6];
        self.ejecting = None;
        self.stop = Stop::Running;
        self.relations_deadline = None;
        self.pending.clear();
    }

    fn fail(&mut self, error: VscError, effects: &mut Vec<VscEffect>) {
        self.forget();
        self.state = VscState::Failed(error.clone());
        effects.push(VscEffect::Failed(error));
        effects.push(VscEffect::CloseChannel);
    }
}

/// The entry of an MSI-X table for an interrupt, unmasked: 16 bytes, to be written dword by dword, the last one last.
pub fn msi_x_entry(interrupt: TranslatedMsi) -> [u8; 16] {
    let [a0, a1, a2, a3, a4, a5, a6, a7] = interrupt.address.to_le_bytes();
    let [d0, d1, d2, d3] = interrupt.data.to_le_bytes();
    [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, 0, 0, 0, 0]
}
