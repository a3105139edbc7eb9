//! The boundary to the device behind the socket.

use std::{os::fd::OwnedFd, sync::Arc};

use shared_memory::DmaMap;
use vfio_user_protocol::{DmaAccess, Errno, PciIrq, PciRegion, SparseMmapArea};

use crate::EventFd;

/// A part of a function's address space: a BAR, configuration space, or one of the others.
#[derive(Clone, Debug, Default)]
pub struct Region {
    /// Bytes; 0 when the function has no such region.
    pub size: u64,
    /// Whether the client may read it.
    pub read: bool,
    /// Whether the client may write it.
    pub write: bool,
    /// What of it the client may map, if anything. Mapped or not, all of a region can be read and written
    /// by message too.
    pub memory: Option<RegionMemory>,
}

impl Region {
    /// No such region.
    pub const ABSENT: Self = Self { size: 0, read: false, write: false, memory: None };

    /// A region whose every access goes to the device.
    pub fn trapped(size: u64) -> Self {
        Self { size, read: true, write: true, memory: None }
    }
}

/// Memory behind a region, for the client to map.
#[derive(Clone, Debug)]
pub struct RegionMemory {
    /// The memory file. The client gets a duplicate of the descriptor, so it can reach all of the file; share
    /// nothing else in it.
    pub file: Arc<OwnedFd>,
    /// Byte offset in the file of byte 0 of the region, a multiple of the page size.
    pub offset: u64,
    /// The parts of the region that may be mapped, each a multiple of the page size; empty means all of it.
    pub areas: Vec<SparseMmapArea>,
}

/// A change to the wiring of one interrupt index. All vectors are below the device's
/// [`PciFunctionDevice::irq_count`].
#[derive(Debug)]
pub enum IrqChange {
    /// From now on vector `start + i` is signalled by the i-th eventfd, instead of any it had.
    Connect {
        /// First vector.
        start: u32,
        /// At least one.
        eventfds: Vec<EventFd>,
    },
    /// The vectors are no longer signalled.
    Disconnect {
        /// First vector.
        start: u32,
        /// How many, at least one.
        count: u32,
    },
    /// No vector of the index is signalled any more. QEMU sends this when the guest disables MSI-X.
    DisableAll,
    /// The client asks the device to signal these vectors.
    Trigger(Vec<u32>),
    /// INTx only: hold the interrupt back.
    Mask(Vec<u32>),
    /// INTx only: let it through again.
    Unmask(Vec<u32>),
}

/// Memory that a client has announced to the function.
#[derive(Debug)]
pub struct DmaRange {
    /// First DMA address, bytes.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// What the function may do with it.
    pub access: DmaAccess,
    /// The file that the memory is of.
    pub fd: OwnedFd,
    /// Byte offset of the range in the file.
    pub offset: u64,
}

/// A PCI function that can be served. The server calls it from its own thread, one call at a time, holding the
/// lock it is shared by for the length of one message; other threads may lock it between messages.
///
/// Order of calls: `connected`, then any of the others as the client's messages come, then, however the
/// connection ended, `dma_map_changed` with an empty map, `set_irq` with [`IrqChange::DisableAll`] for each
/// index that has vectors, and `disconnected`. Calls never overlap with those of another connection.
///
/// No call may wait for the client: it is waiting for the answer.
pub trait PciFunctionDevice: Send {
    /// What a region is. Asked once for each region when a client connects; it must not change until that
    /// client is gone ([`crate::VfioUserServer::disconnect_client`]).
    fn region(&self, region: PciRegion) -> Region;

    /// Vectors of an interrupt index; 0 when it is not there. Constant like the regions.
    fn irq_count(&self, irq: PciIrq) -> u32;

    /// Reads `data.len()` bytes (at least 1) of a readable region; all are inside of it. An error is passed to
    /// the client, for which QEMU gives the guest all ones.
    fn region_read(&mut self, region: PciRegion, offset: u64, data: &mut [u8])
    -> Result<(), Errno>;

    /// Writes `data.len()` bytes (at least 1) of a writable region; all are inside of it.
    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno>;

    /// The client has announced memory, which is in the map that [`Self::dma_map_changed`] brings next. For those who
    /// announce it to somebody else; whoever accesses it needs nothing but the map.
    fn dma_range_added(&mut self, _range: DmaRange) {}

    /// The function's DMA map is now `map`. Must return only once nothing uses the former map any more, since
    /// the client may reuse the memory after the answer (vfio-user §VFIO_USER_DMA_UNMAP). The device keeps a
    /// clone for as long as it likes to translate by it.
    ///
    /// Bus Master Enable is the device's to heed: the map stays as it is when the bit is cleared.
    fn dma_map_changed(&mut self, map: &DmaMap);

    /// Changes interrupt wiring. An error is passed to the client. Eventfds that were replaced or taken away
    /// must be dropped before returning.
    fn set_irq(&mut self, irq: PciIrq, change: IrqChange) -> Result<(), Errno>;

    /// Resets the function, as FLR does. The DMA map and the interrupt wiring belong to the client and stay.
    fn reset(&mut self);

    /// A client has agreed on a version and begins to use the function.
    fn connected(&mut self);

    /// The client is gone; the DMA map is empty and no interrupt is wired. The device's state is otherwise
    /// kept (vfio-user §Client Disconnection): resetting it is the device's decision.
    fn disconnected(&mut self);
}
