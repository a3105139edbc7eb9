//! vfio-user client: what a driver needs of a device behind a socket.
//!
//! Why not the published crate `vfio_user` (0.1.7)? Its client waits without limit (a hung server
//! would hang the VM), passes over error replies as if they were success, panics on a version or
//! region reply of unexpected size, offers minor version 1, drops all but the first descriptor of a
//! reply, keeps the socket to itself (no way to wait for the server's death), and sends no posted
//! writes. Each of these is the point of a driver that must outlive its device. This one is small:
//! no threads, no locks but one around the socket.
//!
//! Follows vfio-user 0.0 (`vfio_user_protocol`).

mod connection;

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use vfio_user_protocol::{
    Capabilities, DEFAULT_MAX_MSG_FDS, DeviceInfo, DmaMap, IrqAction, IrqData, IrqInfo, IrqSet,
    MAJOR_VERSION, MINOR_VERSION, PciIrq, PciRegion, REGION_INFO_SIZE, RegionAccess, RegionInfo,
    Request, SparseMmapArea, Version, parse_region_info,
};
use zerocopy::FromBytes;

use crate::{DriverError, Result};
use connection::{Connection, MAX_FDS, Reply};

/// Bytes of a region info reply that are asked for at most: some thousand sparse areas.
const MAX_REGION_INFO: u32 = 65_536;

/// A connection to the server of one device. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Contended by control, and by queues that arm an interrupt or have no shared doorbell: each
    /// holds it for one command.
    connection: Arc<Mutex<Connection>>,
    /// Descriptors that the server takes in one message.
    max_fds: usize,
}

/// What the server says of a region.
#[derive(Debug)]
pub(crate) struct Region {
    /// Bytes; 0 when there is no such region.
    pub(crate) size: u64,
    /// The file that may be mapped, the offset of the region's first byte in it, and the areas.
    pub(crate) shared: Option<SharedRegion>,
}

/// The parts of a region that may be mapped.
#[derive(Debug)]
pub(crate) struct SharedRegion {
    pub(crate) fd: OwnedFd,
    pub(crate) offset: u64,
    pub(crate) areas: Vec<SparseMmapArea>,
}

impl Client {
    /// Connects and agrees on a version.
    pub(crate) fn connect(socket: &Path, limit: Duration) -> Result<Self> {
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
        let answer = Version::parse(&reply.payload).map_err(|error| DriverError::Protocol {
            command: "VERSION",
            problem: error.to_string(),
        })?;
        if answer.major != MAJOR_VERSION {
            return Err(DriverError::Protocol {
                command: "VERSION",
                problem: format!("it speaks version {}.{}", answer.major, answer.minor),
            });
        }
        let fds = answer.capabilities.and_then(|capabilities| capabilities.max_msg_fds);
        let max_fds = usize::try_from(fds.unwrap_or(DEFAULT_MAX_MSG_FDS)).unwrap_or(MAX_FDS);
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            max_fds: max_fds.clamp(1, MAX_FDS),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, request: &Request<'_>, fds: &[BorrowedFd<'_>]) -> Result<Reply> {
        call(&mut self.lock(), request, fds)
    }

    /// Takes late replies off the socket and finds out whether the server is gone.
    pub(crate) fn check(&self) -> Result<()> {
        self.lock().check()
    }

    /// Whether the server is known to be gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.lock().is_gone()
    }

    /// A descriptor that becomes readable when the server dies.
    pub(crate) fn duplicate_fd(&self) -> Result<OwnedFd> {
        self.lock().as_fd().try_clone_to_owned().map_err(|source| DriverError::Io {
            operation: "duplicating the socket's descriptor",
            source,
        })
    }

    pub(crate) fn device_info(&self) -> Result<DeviceInfo> {
        let info = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
        let reply = self.call(&Request::DeviceGetInfo(info), &[])?;
        read(&reply, "DEVICE_GET_INFO")
    }

    /// What the server says of a region, with the file to map if it offers one.
    pub(crate) fn region_info(&self, region: PciRegion) -> Result<Region> {
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
            DriverError::Protocol { command: COMMAND, problem: error.to_string() }
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
    pub(crate) fn region_read<const N: usize>(
        &self,
        region: PciRegion,
        offset: u64,
    ) -> Result<[u8; N]> {
        let count = u32::try_from(N).unwrap_or(u32::MAX);
        let access = RegionAccess { offset, region: region.index(), count };
        let reply = self.call(&Request::RegionRead(access), &[])?;
        let data = reply.payload.get(size_of::<RegionAccess>()..).unwrap_or_default();
        data.try_into().map_err(|_| DriverError::Protocol {
            command: "REGION_READ",
            problem: format!("{} bytes of data instead of {N}", data.len()),
        })
    }

    /// Writes bytes of a region and waits until the server has done so.
    pub(crate) fn region_write(&self, region: PciRegion, offset: u64, data: &[u8]) -> Result<()> {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let access = RegionAccess { offset, region: region.index(), count };
        self.call(&Request::RegionWrite { access, data }, &[]).map(|_| ())
    }

    /// Writes a register without waiting.
    pub(crate) fn region_post(&self, region: PciRegion, offset: u64, value: u32) -> Result<()> {
        let mut payload = [0u8; size_of::<RegionAccess>() + 4];
        let access = RegionAccess { offset, region: region.index(), count: 4 };
        let (head, data) = payload.split_at_mut(size_of::<RegionAccess>());
        head.copy_from_slice(zerocopy::IntoBytes::as_bytes(&access));
        data.copy_from_slice(&value.to_le_bytes());
        self.lock().post(vfio_user_protocol::Command::RegionWrite, &payload)
    }

    /// Announces memory to the device, for reading and writing.
    pub(crate) fn dma_map(
        &self,
        iova: u64,
        size: u64,
        fd: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<()> {
        let map = DmaMap {
            argsz: u32::try_from(size_of::<DmaMap>()).unwrap_or_default(),
            flags: DmaMap::FLAG_READ | DmaMap::FLAG_WRITE,
            offset,
            address: iova,
            size,
        };
        self.call(&Request::DmaMap(map), &[fd]).map(|_| ())
    }

    /// How many MSI-X vectors there are.
    pub(crate) fn msix_count(&self) -> Result<u32> {
        let info = IrqInfo { argsz: 16, index: PciIrq::Msix.index(), ..IrqInfo::default() };
        let reply = self.call(&Request::DeviceGetIrqInfo(info), &[])?;
        Ok(read::<IrqInfo>(&reply, "DEVICE_GET_IRQ_INFO")?.count)
    }

    /// Has MSI-X vectors from 0 on signal `events`, in as many messages as the server's limit asks
    /// for.
    pub(crate) fn set_msix_events(&self, events: &[BorrowedFd<'_>]) -> Result<()> {
        let mut start = 0;
        for chunk in events.chunks(self.max_fds) {
            let count = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            let set = IrqSet {
                index: PciIrq::Msix.index(),
                start,
                count,
                action: IrqAction::Trigger,
                data: IrqData::EventFd,
            };
            self.call(&Request::DeviceSetIrqs(set), chunk)?;
            start += count;
        }
        Ok(())
    }

    /// Resets the device.
    pub(crate) fn reset(&self) -> Result<()> {
        self.call(&Request::DeviceReset, &[]).map(|_| ())
    }
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
    T::read_from_prefix(&reply.payload).map(|(value, _)| value).map_err(|_| DriverError::Protocol {
        command,
        problem: format!("{} bytes", reply.payload.len()),
    })
}

#[cfg(test)]
mod tests;
