//! The client: commands as methods.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use vfio_user_protocol::{
    Capabilities, DEFAULT_MAX_DATA_XFER_SIZE, DEFAULT_MAX_MSG_FDS, DeviceInfo, DmaMap, DmaUnmap,
    IrqAction, IrqData, IrqInfo, IrqSet, MAJOR_VERSION, MINOR_VERSION, PciIrq, PciRegion,
    REGION_INFO_SIZE, RegionAccess, RegionInfo, Request, SparseMmapArea, Version,
    parse_region_info,
};
use zerocopy::FromBytes;

use crate::{
    ClientError, Result,
    connection::{Connection, MAX_FDS, MAX_REPLY, Reply},
};

/// Bytes of a region info reply that are asked for at most: some thousand sparse areas.
const MAX_REGION_INFO: u32 = 65_536;
/// Bytes that one command transfers at most, whatever the server can.
const MAX_TRANSFER: usize = MAX_REPLY / 2;

/// A connection to the server of one device. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    /// Contended by control, and by queues that arm an interrupt or have no shared doorbell: each
    /// holds it for one command.
    connection: Arc<Mutex<Connection>>,
    /// Descriptors that the server takes in one message.
    max_fds: usize,
    /// Bytes that are transferred by one command.
    max_transfer: usize,
}

/// What the server says of a region.
#[derive(Debug)]
pub struct Region {
    /// Bytes; 0 when there is no such region.
    pub size: u64,
    /// The parts that may be mapped, if there are any.
    pub shared: Option<SharedRegion>,
}

/// The parts of a region that may be mapped.
#[derive(Debug)]
pub struct SharedRegion {
    /// The file.
    pub fd: OwnedFd,
    /// Offset of the region's first byte in the file.
    pub offset: u64,
    /// What of the region may be mapped: byte ranges of the region.
    pub areas: Vec<SparseMmapArea>,
}

impl Client {
    /// Connects and agrees on a version. No call will wait longer than `limit` for the server.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody serves the socket; [`ClientError`].
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let mut connection = Connection::connect(socket, limit)?;
        let proposal = Version {
            major: MAJOR_VERSION,
            minor: MINOR_VERSION,
            capabilities: Some(Capabilities {
                max_msg_fds: u32::try_from(MAX_FDS).ok(),
                max_data_xfer_size: Some(1 << 20),
                max_dma_maps: Some(u32::from(u16::MAX)),
                pgsizes: Some(4096),
                ..Capabilities::default()
            }),
        };
        let reply = call(&mut connection, &Request::Version(proposal), &[])?;
        let answer = Version::parse(&reply.payload).map_err(|error| ClientError::Protocol {
            command: "VERSION",
            problem: error.to_string(),
        })?;
        if answer.major != MAJOR_VERSION {
            return Err(ClientError::Protocol {
                command: "VERSION",
                problem: format!("it speaks version {}.{}", answer.major, answer.minor),
            });
        }
        let capabilities = answer.capabilities.unwrap_or_default();
        let max_fds = capabilities.max_msg_fds.unwrap_or(DEFAULT_MAX_MSG_FDS);
        let max_transfer = capabilities.max_data_xfer_size.unwrap_or(DEFAULT_MAX_DATA_XFER_SIZE);
        let max_fds = usize::try_from(max_fds).unwrap_or(MAX_FDS).clamp(1, MAX_FDS);
        Ok(Self::over(connection, max_fds, usize::try_from(max_transfer).unwrap_or(MAX_TRANSFER)))
    }

    pub(crate) fn over(connection: Connection, max_fds: usize, max_transfer: usize) -> Self {
        Self {
            connection: Arc::new(Mutex::new(connection)),
            max_fds,
            // A server that takes less than a register takes nothing.
            max_transfer: max_transfer.clamp(8, MAX_TRANSFER),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> Result<Reply> {
        call(&mut self.lock(), request, fds)
    }

    /// Takes late replies off the socket and finds out whether the server is gone.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn check(&self) -> Result<()> {
        self.lock().check()
    }

    /// Whether the server is known to be gone.
    pub fn is_gone(&self) -> bool {
        self.lock().is_gone()
    }

    /// A descriptor that becomes readable when the server dies.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn duplicate_fd(&self) -> Result<OwnedFd> {
        self.lock().as_fd().try_clone_to_owned().map_err(|source| ClientError::Io {
            operation: "duplicating the socket's descriptor",
            source,
        })
    }

    /// What the server says of the device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn device_info(&self) -> Result<DeviceInfo> {
        let info = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
        let reply = self.call(&Request::DeviceGetInfo(info), &[])?;
        read(&reply, "DEVICE_GET_INFO")
    }

    /// What the server says of a region, with the file to map if it offers one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_info(&self, region: PciRegion) -> Result<Region> {
        const COMMAND: &str = "DEVICE_GET_REGION_INFO";
        let ask = |argsz| {
            let info = RegionInfo { argsz, index: region.index(), ..RegionInfo::default() };
            self.call(&Request::DeviceGetRegionInfo(info), &[])
        };
        let small = u32::try_from(REGION_INFO_SIZE).unwrap_or_default();
        let mut reply = ask(small)?;
        let first: RegionInfo = read(&reply, COMMAND)?;
        // The capabilities and the descriptor come with the reply that has room for all of it.
        if first.argsz > small && first.argsz <= MAX_REGION_INFO {
            reply = ask(first.argsz)?;
        } else if first.flags & RegionInfo::FLAG_CAPS != 0 {
            return Ok(Region { size: first.size, shared: None });
        }
        let (info, areas) = parse_region_info(&reply.payload).map_err(|error| {
            ClientError::Protocol { command: COMMAND, problem: error.to_string() }
        })?;
        let whole = SparseMmapArea { offset: 0, size: info.size };
        let areas = if areas.is_empty() { vec![whole] } else { areas };
        let fd = reply.fds.into_iter().next();
        let shared = fd
            .filter(|_| info.flags & RegionInfo::FLAG_MMAP != 0)
            .map(|fd| SharedRegion { fd, offset: info.offset, areas });
        Ok(Region { size: info.size, shared })
    }

    /// Reads `N` bytes of a region.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_read<const N: usize>(&self, region: PciRegion, offset: u64) -> Result<[u8; N]> {
        let mut data = [0; N];
        self.region_read_into(region, offset, &mut data)?;
        Ok(data)
    }

    /// Reads bytes of a region, as many as `data` has. More than the server transfers at a time are read in
    /// several accesses.
    ///
    /// # Errors
    /// [`ClientError`]; `data` may then be filled in part.
    pub fn region_read_into(&self, region: PciRegion, offset: u64, data: &mut [u8]) -> Result<()> {
        let mut offset = offset;
        for part in data.chunks_mut(self.max_transfer) {
            let count = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let access = RegionAccess { offset, region: region.index(), count };
            let reply = self.call(&Request::RegionRead(access), &[])?;
            let bytes = reply.payload.get(size_of::<RegionAccess>()..).unwrap_or_default();
            if bytes.len() != part.len() {
                return Err(ClientError::Protocol {
                    command: "REGION_READ",
                    problem: format!("{} bytes of data instead of {}", bytes.len(), part.len()),
                });
            }
            part.copy_from_slice(bytes);
            offset = offset.saturating_add(u64::from(count));
        }
        Ok(())
    }

    /// Writes bytes of a region and waits until the server has done so. More than the server transfers at a
    /// time are written in several accesses.
    ///
    /// # Errors
    /// [`ClientError`]; some of the accesses may have been done.
    pub fn region_write(&self, region: PciRegion, offset: u64, data: &[u8]) -> Result<()> {
        let mut offset = offset;
        for part in data.chunks(self.max_transfer) {
            let count = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let access = RegionAccess { offset, region: region.index(), count };
            self.call(&Request::RegionWrite { access, data: part }, &[])?;
            offset = offset.saturating_add(u64::from(count));
        }
        Ok(())
    }

    /// Reads 1, 2 or 4 naturally aligned bytes of configuration space, as one access.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        check_config_access(offset, data.len())?;
        self.region_read_into(PciRegion::Config, offset.into(), data)
    }

    /// Writes 1, 2 or 4 naturally aligned bytes of configuration space, as one access, and waits until the
    /// server has done so.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        check_config_access(offset, data.len())?;
        self.region_write(PciRegion::Config, offset.into(), data)
    }

    /// Writes a register without waiting.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_post(&self, region: PciRegion, offset: u64, value: u32) -> Result<()> {
        let mut payload = [0u8; size_of::<RegionAccess>() + 4];
        let access = RegionAccess { offset, region: region.index(), count: 4 };
        let (head, data) = payload.split_at_mut(size_of::<RegionAccess>());
        head.copy_from_slice(zerocopy::IntoBytes::as_bytes(&access));
        data.copy_from_slice(&value.to_le_bytes());
        self.lock().post(vfio_user_protocol::Command::RegionWrite, &payload)
    }

    /// Announces memory to the device, for reading and writing: `size` bytes of the file from `offset`, at
    /// address `iova` of the device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn dma_map(&self, iova: u64, size: u64, fd: BorrowedFd<'_>, offset: u64) -> Result<()> {
        self.announce(iova, size, DmaMap::FLAG_READ | DmaMap::FLAG_WRITE, (fd, offset))
    }

    /// The same for reading alone.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn dma_map_read_only(
        &self,
        iova: u64,
        size: u64,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<()> {
        self.announce(iova, size, DmaMap::FLAG_READ, (fd, offset))
    }

    fn announce(
        &self,
        address: u64,
        size: u64,
        flags: u32,
        (fd, offset): (BorrowedFd<'_>, u64),
    ) -> Result<()> {
        let argsz = u32::try_from(size_of::<DmaMap>()).unwrap_or_default();
        let map = DmaMap { argsz, flags, offset, address, size };
        self.call(&Request::DmaMap(map), &[fd]).map(|_| ())
    }

    /// Takes memory away that was announced: exactly one range of [`dma_map`](Self::dma_map).
    ///
    /// # Errors
    /// [`ClientError`]; the server refuses a range that was not announced so.
    pub fn dma_unmap(&self, iova: u64, size: u64) -> Result<()> {
        let unmap = DmaUnmap { argsz: DmaUnmap::SIZE, flags: 0, address: iova, size };
        self.call(&Request::DmaUnmap(unmap), &[]).map(|_| ())
    }

    /// Takes all memory away.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn dma_unmap_all(&self) -> Result<()> {
        let unmap =
            DmaUnmap { argsz: DmaUnmap::SIZE, flags: DmaUnmap::FLAG_ALL, address: 0, size: 0 };
        self.call(&Request::DmaUnmap(unmap), &[]).map(|_| ())
    }

    /// What the server says of a kind of interrupts: how many there are, above all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn irq_info(&self, irq: PciIrq) -> Result<IrqInfo> {
        let info = IrqInfo { argsz: IrqInfo::SIZE, index: irq.index(), ..IrqInfo::default() };
        let reply = self.call(&Request::DeviceGetIrqInfo(info), &[])?;
        read(&reply, "DEVICE_GET_IRQ_INFO")
    }

    fn set_irqs(
        &self,
        irq: PciIrq,
        start: u32,
        count: u32,
        data: IrqData<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let set = IrqSet { index: irq.index(), start, count, action: IrqAction::Trigger, data };
        self.call(&Request::DeviceSetIrqs(set), fds).map(|_| ())
    }

    /// Has interrupts from `first` on signal `events`, in as many messages as the server's limit of
    /// descriptors asks for. What signalled before does no more.
    ///
    /// # Errors
    /// [`ClientError`]. The interrupts of messages that were sent before signal `events` already.
    pub fn set_irq_events(&self, irq: PciIrq, first: u32, events: &[BorrowedFd<'_>]) -> Result<()> {
        let mut start = first;
        for chunk in events.chunks(self.max_fds) {
            let count = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            self.set_irqs(irq, start, count, IrqData::EventFd, chunk)?;
            start = start.saturating_add(count);
        }
        Ok(())
    }

    /// Has `count` interrupts from `first` on signal nothing: the device remembers those that occur as pending,
    /// if it can.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn clear_irq_events(&self, irq: PciIrq, first: u32, count: u32) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.set_irqs(irq, first, count, IrqData::EventFd, &[])
    }

    /// Has no interrupt of the kind signal anything any more (DATA_NONE with a count of 0).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn disable_irqs(&self, irq: PciIrq) -> Result<()> {
        self.set_irqs(irq, 0, 0, IrqData::None, &[])
    }

    /// Resets the device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reset(&self) -> Result<()> {
        self.call(&Request::DeviceReset, &[]).map(|_| ())
    }
}

/// PCI has accesses of 1, 2 and 4 bytes, naturally aligned.
fn check_config_access(offset: u16, length: usize) -> Result<()> {
    if matches!(length, 1 | 2 | 4) && usize::from(offset).is_multiple_of(length) {
        return Ok(());
    }
    Err(ClientError::ConfigAccess { offset, length })
}

fn call(
    connection: &mut Connection,
    request: &Request<'_>,
    fds: &[BorrowedFd<'_>],
) -> Result<Reply> {
    let mut payload = Vec::new();
    request.emit(&mut payload);
    connection.call(request.command(), &payload, fds)
}

fn read<T: FromBytes>(reply: &Reply, command: &'static str) -> Result<T> {
    T::read_from_prefix(&reply.payload).map(|(value, _)| value).map_err(|_| ClientError::Protocol {
        command,
        problem: format!("{} bytes", reply.payload.len()),
    })
}
