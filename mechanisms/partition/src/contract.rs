//! What the host's end of VMBus and of its devices needs of a guest.

use std::{
    fmt::Debug,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::SystemTime,
};

use vmbus::EventFd;
use vmbus_protocol::VpIndex;

use crate::{GuestMemory, PartitionError};

/// A message that the guest posted (HvPostMessage).
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct VmbusMessage {
    /// Where to.
    pub connection_id: u32,
    /// At most 240 bytes.
    pub payload: Vec<u8>,
}

/// What a guest did.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum PartitionEvent {
    /// It posted a message.
    Message(VmbusMessage),
    /// Its processors were reset: whatever it agreed upon is forgotten, its memory stays.
    Reset,
    /// It has ended, or was cut off. Nothing follows.
    Gone,
}

/// Why a message was not posted to the guest.
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum PostError {
    /// The guest has not taken earlier ones; wait for [`Partition::room_ready`].
    #[error("the guest has not taken earlier messages yet")]
    Busy,
    /// It is longer than 240 bytes.
    #[error("the message is too long")]
    TooLong,
    /// The guest is gone.
    #[error("the guest is gone")]
    Gone,
}

/// What answers the guest's accesses to a range of MMIO.
pub trait MmioHandler: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8, not across a page) at byte `offset` of the range.
    ///
    /// Called on the thread that calls [`Partition::next_event`], or on a processor's own. The guest's processor
    /// waits; so does, with some partitions, all else of the guest. Must not call back into the partition.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes bytes, likewise.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Pages of a file that the guest sees as MMIO without anyone in between.
#[derive(Debug)]
pub struct MmioPages {
    /// The file.
    pub fd: OwnedFd,
    /// Byte offset in it, a multiple of the page size.
    pub offset: u64,
    /// The guest may write.
    pub writable: bool,
}

/// Interrupt messages (MSIs) of a guest, in a row: message `n` has data `data + n`.
#[derive(Clone, Debug)]
pub struct MsiBlock {
    /// What the guest is to believe its device writes to.
    pub address: u64,
    /// What the device writes there for the first message.
    pub data: u32,
    /// One for each message: whoever signals it, interrupts the guest. They may be passed to other processes.
    pub events: Vec<EventFd>,
}

/// An interrupt that the guest sends elsewhere (HvRetargetDeviceInterrupt, SPEC-VMBUS §8.4).
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Retarget {
    /// The device, as the guest names it; of a VPCI function it is made of the bus's instance GUID.
    pub device_id: u64,
    /// What the guest believes the device writes to.
    pub address: u64,
    /// What the guest believes the device writes there.
    pub data: u32,
    /// The vector it raises from now on.
    pub vector: u8,
    /// The processors that may take it; at least one, all of them the guest's.
    pub processors: Vec<VpIndex>,
}

/// What moves a guest's interrupts.
pub trait RetargetHandler: Send + Sync {
    /// The guest moves an interrupt; false if there is none such. After the return none of its interrupts arrives at
    /// the old target.
    ///
    /// Called on a processor's own thread, which waits. Unlike [`MmioHandler`]s, whoever handles it may call back
    /// into the partition.
    fn retarget(&self, retarget: Retarget) -> bool;
}

/// What a partition's reference counter showed at a time of the host's.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ReferenceTime {
    /// The counter (HV_X64_MSR_TIME_REF_COUNT), which the guest reads too: 100 ns since the partition was made.
    pub count: u64,
    /// The host's time then, as nearly at once as can be had.
    pub at: SystemTime,
}

/// A guest, as the host's end of VMBus and of its devices sees it.
///
/// All methods may be called from any thread. None waits for the guest: what a guest does not take is held, up to a
/// bound, beyond which the guest counts as gone. After [`PartitionEvent::Gone`] calls fail with
/// [`PartitionError::Gone`], but for those that take something back, which always succeed.
///
/// Handles that interrupt the guest or that the guest signals are eventfds, so that rings and device queues can be
/// served by other processes without this one in between.
pub trait Partition: Send + Sync + Debug {
    /// Guest memory as it is now. The snapshot stays valid (as memory of this process) for as long as it is held;
    /// a guest's pages are looked up in one snapshot for as long as they are used.
    fn memory(&self) -> GuestMemory;

    /// Takes what the guest did next, `None` if there is nothing. Called by the one thread that serves the guest's
    /// messages; it leaves them where they are for as long as it wants no more, and the guest must wait.
    /// Intercepted MMIO may be answered within this call.
    fn next_event(&self) -> Option<PartitionEvent>;

    /// Readable when [`Self::next_event`] has something.
    fn events_ready(&self) -> BorrowedFd<'_>;

    /// Posts a message of at most 240 bytes to a synthetic interrupt source of a processor. Messages arrive in
    /// order. A processor that does not exist stands for processor 0.
    fn post_message(&self, vp: VpIndex, sint: u8, message: &[u8]) -> Result<(), PostError>;

    /// Readable when a message may be posted after [`PostError::Busy`]. Always readable for some partitions: only
    /// poll it after `Busy`.
    fn room_ready(&self) -> BorrowedFd<'_>;

    /// Makes an event flag of the VMBus interrupt source: signalling the handle sets the flag and interrupts the
    /// processor. The guest knows of it before any message that is posted after this call. One handle for each
    /// flag at a time.
    fn create_event_flag(&self, vp: VpIndex, flag: u16) -> Result<EventFd, PartitionError>;

    /// From now on the flag interrupts another processor; after the return none of its interrupts arrives at the
    /// old one. The handle stays the same.
    fn move_event_flag(&self, flag: u16, vp: VpIndex) -> Result<(), PartitionError>;

    /// The flag is not signalled any more; its handle has no effect from now on, if this process or the guest are
    /// who they should be. Without effect if there is none.
    fn remove_event_flag(&self, flag: u16);

    /// Makes a connection that the guest signals (HvSignalEvent): the handle becomes readable. The guest can use it
    /// before it sees any message that is posted after this call.
    fn create_signal(&self, connection_id: u32) -> Result<EventFd, PartitionError>;

    /// The connection does not exist any more. Without effect if there is none.
    fn remove_signal(&self, connection_id: u32);

    /// Makes `count` (1 to 32) interrupt messages, which raise `vector` and those after it on one of the processors
    /// (the first, unless the partition can choose). If the guest moves them later, the handles stay the same.
    fn create_msi(
        &self,
        vector: u32,
        vps: &[VpIndex],
        count: usize,
    ) -> Result<MsiBlock, PartitionError>;

    /// From now on the one message with this address and data raises another vector, of one of these processors. Its
    /// handle stays the same, and none of its interrupts is lost meanwhile.
    ///
    /// # Errors
    /// [`PartitionError::NotMovable`] if it is none, or this partition cannot.
    fn move_msi(
        &self,
        address: u64,
        data: u32,
        vector: u32,
        vps: &[VpIndex],
    ) -> Result<(), PartitionError>;

    /// Who is told when the guest moves an interrupt. Without one, or if the guest has no such call, none is moved.
    fn set_retarget_handler(&self, handler: Arc<dyn RetargetHandler>);

    /// The messages with this address and first data are not used any more. Without effect if there are none.
    fn remove_msi(&self, address: u64, data: u32);

    /// The guest's accesses to `length` bytes at `gpa` (whole pages, neither memory nor other MMIO) go to `handler`
    /// until [`Self::remove_mmio`]. Accesses to what is neither read as ones, and writes are dropped.
    fn intercept_mmio(
        &self,
        gpa: u64,
        length: u64,
        handler: Arc<dyn MmioHandler>,
    ) -> Result<(), PartitionError>;

    /// The guest sees pages of a file at `gpa`. A guest that is a process may keep them mapped after
    /// [`Self::remove_mmio`]: whoever gives pages makes them harmless when the guest may not use them any more.
    fn map_mmio(&self, gpa: u64, length: u64, pages: MmioPages) -> Result<(), PartitionError>;

    /// The range that begins at `gpa` is no MMIO any more; a handler is not called after the return, but for a call
    /// that is under way. Without effect if there is none.
    fn remove_mmio(&self, gpa: u64);

    /// What the partition's reference counter shows now, for a guest that is told the time. `None` if there is none
    /// that the guest could read, or it cannot be read now; a partition has one always or never.
    fn reference_time(&self) -> Option<ReferenceTime> {
        None
    }
}
