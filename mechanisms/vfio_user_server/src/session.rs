//! What the messages of one client do to the device. No sockets here: a message comes in, an answer goes out.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared_memory::MemoryWatch;
use vfio_user_protocol::{
    Capabilities, Command, DEFAULT_MAX_DATA_XFER_SIZE, DeviceInfo, DmaUnmap, Errno, Header,
    IrqAction, IrqData, IrqInfo, IrqSet, MAX_VERSION_DATA, PCI_IRQ_COUNT, PCI_REGION_COUNT, PciIrq,
    PciRegion, ProtocolError, REGION_INFO_SIZE, RegionAccess, RegionInfo, RegionIoFds, Request,
    Version, emit_region_info,
};
use zerocopy::IntoBytes;

use crate::{
    DisconnectReason, DmaRange, EventFd, IrqChange, Limits, NotAnEventFd, PciFunctionDevice,
    Region,
    dma_table::{DmaTable, MapChange},
    limits::Pool,
};

/// Descriptors taken with one message; what QEMU's client sends at most.
pub(crate) const MAX_MSG_FDS: usize = MAX_MSG_FDS_SAID as usize;
const MAX_MSG_FDS_SAID: u32 = 16;

/// Bytes of data taken or given in one message. The protocol's default, since a client need not say
/// `max_data_xfer_size` and may then count on it.
const MAX_DATA_XFER_SIZE: u32 = DEFAULT_MAX_DATA_XFER_SIZE;

/// The largest payload that any message can have: a REGION_WRITE of the largest size.
pub(crate) const MAX_PAYLOAD: usize = size_of::<RegionAccess>() + MAX_DATA_XFER_SIZE as usize;

const _: () = assert!(MAX_VERSION_DATA < MAX_PAYLOAD);

/// What goes beside the answer to a message; its payload is in the caller's buffer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Descriptors to pass.
    pub(crate) fds: Vec<Arc<OwnedFd>>,
}

/// What came beside a message.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    /// As they came.
    pub(crate) fds: Vec<OwnedFd>,
    /// There were more than [`MAX_MSG_FDS`], or this process could not open more; those are closed already.
    pub(crate) lost: bool,
}

/// A request that was refused, with the line for the log if the person in charge could do something about it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) reason: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, reason: None }
    }
}

impl From<ProtocolError> for Refusal {
    fn from(error: ProtocolError) -> Self {
        Self { errno: Errno::INVAL, reason: Some(error.to_string()) }
    }
}

impl From<crate::dma_table::DmaError> for Refusal {
    fn from(error: crate::dma_table::DmaError) -> Self {
        Self { errno: error.errno(), reason: Some(error.to_string()) }
    }
}

/// How a message was taken.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It succeeded; the payload of the answer is in the caller's buffer.
    Done(Answer),
    /// It was refused.
    Refused(Refusal),
    /// It was refused and the connection ends.
    Fatal(Errno, DisconnectReason),
}

/// One client's use of a device.
///
/// The device's mutex is contended by the threads that control the device; it is held for one message at a
/// time.
pub(crate) struct Session<D: ?Sized> {
    device: Arc<Mutex<D>>,
    limits: Limits,
    watch: Arc<MemoryWatch>,
    /// Known once the version is agreed on.
    active: Option<Active>,
}

struct Active {
    /// By index.
    regions: Vec<Region>,
    dma: DmaTable,
}

impl<D: PciFunctionDevice + ?Sized> Session<D> {
    /// A session whose memory is under this watch.
    pub(crate) fn new(device: Arc<Mutex<D>>, limits: Limits, watch: Arc<MemoryWatch>) -> Self {
        Self { device, limits, watch, active: None }
    }

    /// Whether the version is agreed on.
    pub(crate) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    fn device(device: &Mutex<D>) -> MutexGuard<'_, D> {
        // A panic of another holder says nothing about this function's state that a reset by the client
        // would not mend.
        device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles one command. The answer's payload is appended to `out`.
    pub(crate) fn handle(
        &mut self,
        header: &Header,
        payload: &[u8],
        descriptors: Descriptors,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let command = Command::try_from(header.command);
        let Some(active) = self.active.as_mut() else {
            return match command {
                Ok(Command::Version) => self.agree_on_version(header, payload, descriptors, out),
                _ => Outcome::Fatal(Errno::INVAL, DisconnectReason::NoVersion(header.command)),
            };
        };
        let Ok(command) = command else { return Outcome::Refused(Errno::OPNOTSUPP.into()) };
        if descriptors.lost {
            let reason = format!(
                "descriptors beside {command:?} were lost: more than {MAX_MSG_FDS}, or the process \
                 may open no more (raise RLIMIT_NOFILE)"
            );
            return Outcome::Refused(Refusal { errno: Errno::MFILE, reason: Some(reason) });
        }
        let takes_fds = matches!(command, Command::DmaMap | Command::DeviceSetIrqs);
        if !descriptors.fds.is_empty() && !takes_fds {
            return Outcome::Refused(Errno::INVAL.into());
        }
        let request = match Request::parse(command, payload) {
            Ok(request) => request,
            Err(error) => return Outcome::Refused(error.into()),
        };
        let mut device = Self::device(&self.device);
        match active.handle(&mut *device, request, descriptors.fds, out) {
            Ok(answer) => Outcome::Done(answer),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    fn agree_on_version(
        &mut self,
        header: &Header,
        payload: &[u8],
        descriptors: Descriptors,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let fatal = |error: ProtocolError| Outcome::Fatal(Errno::INVAL, error.into());
        if header.no_reply() || !descriptors.fds.is_empty() || descriptors.lost {
            return fatal(ProtocolError::Flags { what: "VERSION", flags: header.flags });
        }
        let proposal = match Version::parse(payload) {
            Ok(proposal) => proposal,
            Err(error) => return fatal(error),
        };
        let offered = Capabilities {
            max_msg_fds: Some(MAX_MSG_FDS_SAID),
            max_data_xfer_size: Some(MAX_DATA_XFER_SIZE),
            max_dma_maps: u32::try_from(self.limits.dma_ranges).ok(),
            // Every page size from 4 KiB on.
            pgsizes: Some(!0xFFF),
            twin_socket: None,
            write_multiple: None,
        };
        let Some(answer) = proposal.negotiate(&offered) else {
            let (major, minor) = (proposal.major, proposal.minor);
            return Outcome::Fatal(
                Errno::OPNOTSUPP,
                DisconnectReason::VersionMismatch { major, minor },
            );
        };
        answer.emit(out);
        let mut device = Self::device(&self.device);
        let regions = PciRegion::ALL.iter().map(|region| device.region(*region)).collect();
        let dma = DmaTable::new(self.limits, Pool::process(), Arc::clone(&self.watch));
        self.active = Some(Active { regions, dma });
        device.connected();
        Outcome::Done(Answer::default())
    }

    /// Takes everything of the client's away from the device. To be called once, when the connection has
    /// ended.
    pub(crate) fn end(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let mut device = Self::device(&self.device);
        active.dma.clear();
        device.dma_map_changed(active.dma.map());
        for irq in PciIrq::ALL {
            if device.irq_count(*irq) > 0 {
                // The client is gone: nobody is left to hear of an error.
                let _ = device.set_irq(*irq, IrqChange::DisableAll);
            }
        }
        device.disconnected();
    }
}

impl Active {
    fn handle<D: PciFunctionDevice + ?Sized>(
        &mut self,
        device: &mut D,
        request: Request<'_>,
        fds: Vec<OwnedFd>,
        out: &mut Vec<u8>,
    ) -> Result<Answer, Refusal> {
        match request {
            // Once is enough.
            Request::Version(_) => return Err(Errno::INVAL.into()),
            Request::DmaMap(map) => {
                let mut fds = fds.into_iter();
                let memory = fds.next().map(|fd| (fd, map.offset));
                if fds.next().is_some() {
                    return Err(Errno::INVAL.into());
                }
                let access = map.access()?;
                let shared = memory.as_ref().map(|(fd, offset)| (fd, *offset));
                let change = self.dma.add(map.address, map.size, access, shared)?;
                if let Some((fd, offset)) = memory {
                    let (address, size) = (map.address, map.size);
                    device.dma_range_added(DmaRange { address, size, access, fd, offset });
                }
                self.tell_of_map(device, change);
            }
            Request::DmaUnmap(unmap) => {
                if unmap.argsz < DmaUnmap::SIZE {
                    return Err(Errno::INVAL.into());
                }
                let change = self.dma.remove(unmap.target()?)?;
                self.tell_of_map(device, change);
                out.extend_from_slice(unmap.as_bytes());
            }
            Request::DeviceGetInfo(info) => {
                if info.argsz < DeviceInfo::SIZE {
                    return Err(Errno::INVAL.into());
                }
                let info = DeviceInfo {
                    argsz: DeviceInfo::SIZE,
                    flags: DeviceInfo::FLAG_RESET | DeviceInfo::FLAG_PCI,
                    num_regions: PCI_REGION_COUNT,
                    num_irqs: PCI_IRQ_COUNT,
                };
                out.extend_from_slice(info.as_bytes());
            }
            Request::DeviceGetRegionInfo(info) => return self.region_info(info, out),
            Request::DeviceGetRegionIoFds(query) => {
                if query.argsz < RegionIoFds::SIZE
                    || query.flags != 0
                    || self.region(query.index).is_none()
                {
                    return Err(Errno::INVAL.into());
                }
                // No part of any region has a descriptor: doorbells are mapped and polled.
                let fds = RegionIoFds {
                    argsz: RegionIoFds::SIZE,
                    flags: 0,
                    index: query.index,
                    count: 0,
                };
                out.extend_from_slice(fds.as_bytes());
            }
            Request::DeviceGetIrqInfo(query) => {
                let irq = PciIrq::from_index(query.index).ok_or(Errno::INVAL)?;
                if query.argsz < IrqInfo::SIZE {
                    return Err(Errno::INVAL.into());
                }
                let flags = match irq {
                    PciIrq::Intx => {
                        IrqInfo::FLAG_EVENTFD | IrqInfo::FLAG_MASKABLE | IrqInfo::FLAG_AUTOMASKED
                    }
                    _ => IrqInfo::FLAG_EVENTFD,
                };
                let info = IrqInfo {
                    argsz: IrqInfo::SIZE,
                    flags,
                    index: query.index,
                    count: device.irq_count(irq),
                };
                out.extend_from_slice(info.as_bytes());
            }
            Request::DeviceSetIrqs(set) => {
                let irq = PciIrq::from_index(set.index).ok_or(Errno::INVAL)?;
                let change = irq_change(irq, &set, device.irq_count(irq), fds)?;
                device.set_irq(irq, change)?;
            }
            Request::RegionRead(access) => {
                let (region, length) = self.check(&access, |region| region.read)?;
                out.extend_from_slice(access.as_bytes());
                let start = out.len();
                out.resize(start + length, 0);
                if let Some(data) = out.get_mut(start..).filter(|data| !data.is_empty()) {
                    device.region_read(region, access.offset, data)?;
                }
            }
            Request::RegionWrite { access, data } => {
                let (region, _) = self.check(&access, |region| region.write)?;
                if !data.is_empty() {
                    device.region_write(region, access.offset, data)?;
                }
                out.extend_from_slice(access.as_bytes());
            }
            Request::RegionWriteMulti(writes) => {
                // Not offered (`write_multiple`), but harmless.
                for write in writes.iter() {
                    let (offset, region, count) = (write.offset, write.region, write.count);
                    let access = RegionAccess { offset, region, count };
                    let (region, _) = self.check(&access, |region| region.write)?;
                    match write.bytes() {
                        Some([]) => {}
                        Some(data) => device.region_write(region, offset, data)?,
                        None => return Err(Errno::INVAL.into()),
                    }
                }
                out.extend_from_slice(writes.len().as_bytes());
            }
            Request::DeviceReset => device.reset(),
            // These go from the server to the client.
            Request::DmaRead(_) | Request::DmaWrite { .. } => return Err(Errno::INVAL.into()),
            // The place for saved state: features of migration and DMA logging are all answered here.
            Request::DeviceFeature { feature, .. } => {
                feature.operation()?;
                return Err(Errno::OPNOTSUPP.into());
            }
            Request::MigDataRead(_) | Request::MigDataWrite { .. } => {
                return Err(Errno::OPNOTSUPP.into());
            }
        }
        Ok(Answer::default())
    }

    fn tell_of_map<D: PciFunctionDevice + ?Sized>(&self, device: &mut D, change: MapChange) {
        if change == MapChange::Changed {
            device.dma_map_changed(self.dma.map());
        }
    }

    fn region(&self, index: u32) -> Option<&Region> {
        self.regions.get(usize::try_from(index).ok()?)
    }

    /// Checks that an access is allowed and inside its region.
    fn check(
        &self,
        access: &RegionAccess,
        allows: impl Fn(&Region) -> bool,
    ) -> Result<(PciRegion, usize), Refusal> {
        let index = PciRegion::from_index(access.region).ok_or(Errno::INVAL)?;
        let region = self.region(access.region).ok_or(Errno::INVAL)?;
        let end = access.offset.checked_add(u64::from(access.count)).ok_or(Errno::INVAL)?;
        if end > region.size || access.count > MAX_DATA_XFER_SIZE {
            return Err(Errno::INVAL.into());
        }
        if !allows(region) {
            return Err(Errno::ACCES.into());
        }
        Ok((index, usize::try_from(access.count).map_err(|_| Errno::INVAL)?))
    }

    /// The full answer needs room for the capabilities, and only then comes with the descriptor: QEMU asks with
    /// room for the plain structure first, and again with as much as it was told.
    fn region_info(&self, query: RegionInfo, out: &mut Vec<u8>) -> Result<Answer, Refusal> {
        let region = self.region(query.index).ok_or(Errno::INVAL)?;
        let room = usize::try_from(query.argsz).map_err(|_| Errno::INVAL)?;
        if room < REGION_INFO_SIZE {
            return Err(Errno::INVAL.into());
        }
        let mut info =
            RegionInfo { index: query.index, size: region.size, ..RegionInfo::default() };
        for (allowed, flag) in
            [(region.read, RegionInfo::FLAG_READ), (region.write, RegionInfo::FLAG_WRITE)]
        {
            if allowed && region.size > 0 {
                info.flags |= flag;
            }
        }
        let memory = region.memory.as_ref().filter(|_| region.size > 0);
        if let Some(memory) = memory {
            info.flags |= RegionInfo::FLAG_MMAP;
            info.offset = memory.offset;
        }
        let start = out.len();
        emit_region_info(info, memory.map_or(&[], |memory| &memory.areas), out)?;
        if out.len() - start > room {
            out.truncate(start + REGION_INFO_SIZE);
            return Ok(Answer::default());
        }
        Ok(Answer { fds: memory.map(|memory| Arc::clone(&memory.file)).into_iter().collect() })
    }
}

/// What DEVICE_SET_IRQS asks for, checked against the vectors there are.
fn irq_change(
    irq: PciIrq,
    set: &IrqSet<'_>,
    vectors: u32,
    fds: Vec<OwnedFd>,
) -> Result<IrqChange, Errno> {
    let IrqSet { start, count, action, data, .. } = *set;
    let end = start.checked_add(count).filter(|end| *end <= vectors).ok_or(Errno::INVAL)?;
    match (data, action) {
        (IrqData::EventFd, IrqAction::Trigger) if count > 0 => {
            if fds.is_empty() {
                return Ok(IrqChange::Disconnect { start, count });
            }
            if fds.len() as u64 != u64::from(count) {
                return Err(Errno::INVAL);
            }
            let eventfds = fds.into_iter().map(EventFd::from_peer).collect::<Result<_, _>>();
            let eventfds = eventfds.map_err(|NotAnEventFd| Errno::INVAL)?;
            return Ok(IrqChange::Connect { start, eventfds });
        }
        // An eventfd for being masked or unmasked is of use to INTx in KVM alone.
        (IrqData::EventFd, IrqAction::Mask | IrqAction::Unmask) => return Err(Errno::OPNOTSUPP),
        (IrqData::EventFd, _) => return Err(Errno::INVAL),
        _ if !fds.is_empty() => return Err(Errno::INVAL),
        (IrqData::None, IrqAction::Trigger) if start == 0 && count == 0 => {
            return Ok(IrqChange::DisableAll);
        }
        _ if count == 0 => return Err(Errno::INVAL),
        _ => {}
    }
    let chosen: Vec<u32> = match data {
        IrqData::Bool(chosen) => (start..end)
            .zip(chosen)
            .filter_map(|(vector, chosen)| (*chosen != 0).then_some(vector))
            .collect(),
        _ => (start..end).collect(),
    };
    match action {
        IrqAction::Trigger => Ok(IrqChange::Trigger(chosen)),
        IrqAction::Mask if irq == PciIrq::Intx => Ok(IrqChange::Mask(chosen)),
        IrqAction::Unmask if irq == PciIrq::Intx => Ok(IrqChange::Unmask(chosen)),
        // MSI and MSI-X are masked in their own registers.
        IrqAction::Mask | IrqAction::Unmask => Err(Errno::OPNOTSUPP),
    }
}
