//! What the device asks of the function's host: the adapter, which owns the data path and the policy.

use avf_protocol::{
    MacAddress,
    virtchnl::{EthStats, LinkStatus, Status},
};
use shared_memory::{DmaAddress, DmaFault};

use crate::VfSettings;

/// A TX queue as its driver configured it, checked (SPEC-AVF §4.8).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct TxQueueConfig {
    /// DMA address of the ring, a multiple of 128.
    pub ring: DmaAddress,
    /// Descriptors in the ring: a multiple of 32, 32–8160.
    pub length: u16,
    /// MSI-X vector of completions; `None` raises nothing.
    pub vector: Option<u16>,
    /// ITR index, 0–3; 3 is none.
    pub itr: u8,
    /// Whether tags in descriptors are inserted ([`VfSettings::vlan_insert`]).
    pub insert_tags: bool,
}

/// Which write-back form an RX queue uses (SPEC-AVF §5.4).
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub enum RxFormat {
    /// RXDID 1.
    #[default]
    Legacy,
    /// RXDID 2; only with the RX_FLEX_DESC capability.
    FlexNic,
}

/// An RX queue as its driver configured it, checked (SPEC-AVF §4.8).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct RxQueueConfig {
    /// DMA address of the ring, a multiple of 128.
    pub ring: DmaAddress,
    /// Descriptors in the ring: a multiple of 32, 32–8160.
    pub length: u16,
    /// Bytes of each packet buffer, 128–16256.
    pub buffer_size: u16,
    /// The largest frame to receive, bytes; larger ones are discarded.
    pub max_frame_size: u16,
    /// Write-back form.
    pub format: RxFormat,
    /// MSI-X vector of received frames; `None` raises nothing.
    pub vector: Option<u16>,
    /// ITR index, 0–3; 3 is none.
    pub itr: u8,
}

/// Why the host could not start queues. None was started.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring is not in the function's DMA map.
    #[error("the ring of queue {queue} cannot be reached: {fault}")]
    Ring {
        /// Queue index.
        queue: u16,
        /// The access.
        fault: DmaFault,
    },
    /// The host has no resources left for the queues.
    #[error("no resources are left for the queues; stop other queues")]
    NoResources,
}

impl QueueError {
    /// What the driver is told.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Ring { .. } => Status::Parameter,
            Self::NoResources => Status::NoMemory,
        }
    }
}

/// The host of one function, implemented by the adapter.
///
/// All methods are called on the thread that called the device, from within [`crate::AvfDevice::write`],
/// `reset`, `set_admin` and the like, with the device borrowed: they must not call back into it. They are
/// control path only, and may wait for the data path.
pub trait VfHost {
    /// Starts the listed queues, all or none. Heads are 0; tails are in the doorbell pages: those of the
    /// TX queues were just set to 0, those of the RX queues may already tell of buffers.
    /// None of them is running; a queue was configured before.
    fn start_queues(
        &mut self,
        tx: &[(u16, TxQueueConfig)],
        rx: &[(u16, RxQueueConfig)],
    ) -> Result<(), QueueError>;

    /// Sends what the driver has posted to the TX queues whose bits are set, all of which run: they are about to be
    /// stopped in an orderly way, and what was handed over before that counts as sent (DESIGN.md, no frame is lost).
    fn finish_transmit(&mut self, tx: u32);

    /// Stops the queues whose bits are set, all of which run. Returns after the last access to guest
    /// memory on their behalf: the driver frees the rings then.
    fn stop_queues(&mut self, tx: u32, rx: u32);

    /// Takes over everything the driver may set, whole. Called after each request that changed anything,
    /// and after resets; the state that holds before the first call is [`crate::AvfDevice::settings`].
    fn apply(&mut self, settings: &VfSettings);

    /// Whether the VF may have this unicast address. An address the administrator pinned, and everything
    /// for a trusted VF, is not asked.
    fn permit_mac(&self, address: MacAddress) -> bool;

    /// Whether the VF may have `pairs` queue pairs (within its maximum) from the reset that follows.
    /// `Ok` reserves that many, or fewer if it says so, and releases those it had; `Err` says how many
    /// could be had and changes nothing.
    fn permit_queue_count(&mut self, pairs: u16) -> Result<u16, u16>;

    /// The function's statistics since whenever, monotonic: the device remembers what was there at the
    /// last reset.
    fn statistics(&mut self) -> EthStats;

    /// The function's link now.
    fn link(&self) -> LinkStatus;

    /// A tail register was written by a trapped access: the data path should look at the doorbells.
    fn doorbell(&mut self);

    /// A vector's interval holds a message back until `deadline_ns`: the data path should call
    /// [`crate::InterruptVectors::expire_due`] then.
    fn interrupt_due(&mut self, deadline_ns: u64);
}
