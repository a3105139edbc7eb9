//! The function as its client sees it.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared_memory::DmaMap;
use vfio_user_client::{Client, ClientError};
use vfio_user_protocol::{DmaAccess, Errno, PciIrq, PciRegion};
use vfio_user_server::{DmaRange, EventFd, IrqChange, PciFunctionDevice, Region};

use crate::leaving::{Gate, Pme};

/// Offset of the command register in configuration space, bytes.
const COMMAND: u64 = 4;
/// Bus Master Enable, in the first byte of the command register.
const BUS_MASTER: u8 = 1 << 2;

/// What has happened to a relay since its owner looked last ([`Relay::news`](crate::Relay::news)). However often the
/// guest does something, this is all that is kept of it.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct RelayNews {
    /// A client is connected: QEMU has the device.
    pub connected: bool,
    /// A client has gone, maybe for another that has come since.
    pub disconnected: bool,
    /// The guest has written the command register with Bus Master Enable: a driver begins to use the function.
    pub master_set: bool,
    /// It has written it without, also of a dormant function: it looks at the function, leaves it, or gives it up.
    pub master_cleared: bool,
    /// The guest was to wait before it leaves the function, and has come to that: its driver still has it, and is about to
    /// be taken from it. It waits until it is let go, for half a second at most.
    pub leaving: bool,
    /// Bus Master Enable as it was written last.
    pub bus_master: bool,
    /// The server of the VF that is behind the relay, or was last, has hung up or does not answer: the function is dormant.
    pub vf_lost: bool,
}

/// Where news are kept, and the bell that is rung when there are any.
pub(crate) struct News {
    kept: Mutex<Kept>,
    ring: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Kept {
    news: RelayNews,
    /// The bell was rung, and nobody has looked since.
    rung: bool,
}

impl News {
    pub(crate) fn new(ring: impl Fn() + Send + Sync + 'static) -> Self {
        Self { kept: Mutex::default(), ring: Box::new(ring) }
    }

    /// What there is, which is no news any more then.
    pub(crate) fn take(&self) -> RelayNews {
        let mut kept = self.lock();
        kept.rung = false;
        let RelayNews { connected, bus_master, .. } = kept.news;
        let rest = RelayNews { connected, bus_master, ..RelayNews::default() };
        std::mem::replace(&mut kept.news, rest)
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.lock().news.connected
    }

    /// Rings once for all that happens until somebody looks.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut RelayNews)) {
        let mut kept = self.lock();
        change(&mut kept.news);
        if !std::mem::replace(&mut kept.rung, true) {
            (self.ring)();
        }
    }

    /// Another VF is there: what became of the one before is no news any more.
    pub(crate) fn vf_attached(&self) {
        self.lock().news.vf_lost = false;
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client learns of a function once and for all.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(crate) struct Shape {
    /// Bytes of each region, by index.
    regions: Vec<u64>,
    /// Vectors of each kind of interrupts, by index.
    irqs: Vec<u32>,
    /// Its power management, if it has any.
    pme: Option<Pme>,
}

impl Shape {
    pub(crate) fn of(vf: &Client) -> Result<Self, ClientError> {
        let regions = PciRegion::ALL.iter().map(|region| Ok(vf.region_info(*region)?.size));
        let irqs = PciIrq::ALL.iter().map(|irq| Ok(vf.irq_info(*irq)?.count));
        Ok(Self {
            regions: regions.collect::<Result<_, ClientError>>()?,
            irqs: irqs.collect::<Result<_, ClientError>>()?,
            pme: Pme::find(vf)?,
        })
    }
}

/// The function.
pub(crate) struct RelayedFunction {
    shape: Shape,
    vf: Option<Client>,
    /// Memory that the client has announced, by address.
    ranges: BTreeMap<u64, DmaRange>,
    /// Eventfds that the client has wired.
    vectors: BTreeMap<(u32, u32), EventFd>,
    news: Arc<News>,
    gate: Arc<Gate>,
}

impl RelayedFunction {
    pub(crate) fn new(shape: Shape, news: Arc<News>, gate: Arc<Gate>) -> Self {
        let (ranges, vectors) = (BTreeMap::new(), BTreeMap::new());
        Self { shape, vf: None, ranges, vectors, news, gate }
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Puts a VF behind the function, and gives it what the client has announced and wired.
    pub(crate) fn attach(&mut self, vf: Client) -> Result<(), ClientError> {
        for range in self.ranges.values() {
            announce(&vf, range)?;
        }
        for ((index, vector), eventfd) in &self.vectors {
            if let Some(irq) = PciIrq::from_index(*index) {
                vf.set_irq_events(irq, *vector, &[eventfd.as_fd()])?;
            }
        }
        self.vf = Some(vf);
        Ok(())
    }

    /// Takes the VF away: when this returns nobody here uses it any more.
    pub(crate) fn detach(&mut self) -> Option<Client> {
        self.vf.take()
    }

    /// The VF's server has hung up. Nothing if the function has another VF by now.
    pub(crate) fn hung_up(&mut self) {
        if self.vf.as_ref().is_some_and(|vf| vf.check().is_err() || vf.is_gone()) {
            self.lose("the connection has ended");
        }
    }

    fn lose(&mut self, why: impl std::fmt::Display) {
        if self.detach().is_some() {
            tracing::warn!(%why, "a VF is gone; the function that it was behind is dormant");
            self.news.tell(|news| news.vf_lost = true);
        }
    }

    /// Does something with the VF, if there is one. One that does not do it is lost, unless it only said no.
    fn with_vf<T>(&mut self, ask: impl FnOnce(&Client) -> Result<T, ClientError>) -> Option<T> {
        match ask(self.vf.as_ref()?) {
            Ok(answer) => Some(answer),
            Err(error @ ClientError::Refused { .. }) => {
                tracing::debug!(?error, "a VF refuses a request");
                None
            }
            Err(error) => {
                self.lose(error);
                None
            }
        }
    }
}

/// Tells a VF of memory.
fn announce(vf: &Client, range: &DmaRange) -> Result<(), ClientError> {
    let DmaRange { address, size, access, fd, offset } = range;
    match access {
        DmaAccess::Read => vf.dma_map_read_only(*address, *size, fd.as_fd(), *offset),
        DmaAccess::Write | DmaAccess::ReadWrite => vf.dma_map(*address, *size, fd.as_fd(), *offset),
    }
}

impl PciFunctionDevice for RelayedFunction {
    fn region(&self, region: PciRegion) -> Region {
        let index = usize::try_from(region.index()).unwrap_or(usize::MAX);
        match self.shape.regions.get(index) {
            None | Some(0) => Region::ABSENT,
            Some(size) => Region::trapped(*size),
        }
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        let index = usize::try_from(irq.index()).unwrap_or(usize::MAX);
        self.shape.irqs.get(index).copied().unwrap_or(0)
    }

    fn region_read(
        &mut self,
        region: PciRegion,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        if self.with_vf(|vf| vf.region_read_into(region, offset, data)).is_none() {
            data.fill(0xFF);
        } else if let Some(pme) = self.shape.pme.filter(|_| region == PciRegion::Config) {
            pme.add_to(offset, data);
        }
        Ok(())
    }

    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if region == PciRegion::Config {
            self.with_vf(|vf| vf.region_write(region, offset, data));
            let at = COMMAND.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            if let Some(command) = at.and_then(|at| data.get(at)) {
                let bus_master = command & BUS_MASTER != 0;
                self.news.tell(|news| {
                    news.bus_master = bus_master;
                    news.master_set |= bus_master;
                    news.master_cleared |= !bus_master;
                });
            }
            if self.vf.is_some()
                && self.shape.pme.is_some_and(|pme| pme.is_disabled_by(offset, data))
            {
                self.gate.pass(|| self.news.tell(|news| news.leaving = true));
            }
            return Ok(());
        }
        // Whatever the client reads next comes after it on the same connection.
        self.with_vf(|vf| match <[u8; 4]>::try_from(data) {
            Ok(word) => vf.region_post(region, offset, u32::from_le_bytes(word)),
            Err(_) => vf.region_write(region, offset, data),
        });
        Ok(())
    }

    fn dma_range_added(&mut self, range: DmaRange) {
        self.with_vf(|vf| announce(vf, &range));
        self.ranges.insert(range.address, range);
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        let regions = map.regions();
        let stays = |range: &DmaRange| {
            regions.binary_search_by_key(&range.address, |region| region.iova.0).is_ok_and(|at| {
                let length = regions.get(at).map(|region| region.mapping.len());
                length.and_then(|length| u64::try_from(length).ok()) == Some(range.size)
            })
        };
        let gone = self.ranges.values().filter(|range| !stays(range));
        let gone: Vec<(u64, u64)> = gone.map(|range| (range.address, range.size)).collect();
        for (address, size) in gone {
            self.with_vf(|vf| vf.dma_unmap(address, size));
            self.ranges.remove(&address);
        }
    }

    fn set_irq(&mut self, irq: PciIrq, change: IrqChange) -> Result<(), Errno> {
        let index = irq.index();
        match change {
            IrqChange::Connect { start, eventfds } => {
                let fds: Vec<BorrowedFd<'_>> = eventfds.iter().map(AsFd::as_fd).collect();
                self.with_vf(|vf| vf.set_irq_events(irq, start, &fds));
                for (vector, eventfd) in (start..).zip(eventfds) {
                    self.vectors.insert((index, vector), eventfd);
                }
            }
            IrqChange::Disconnect { start, count } => {
                self.with_vf(|vf| vf.clear_irq_events(irq, start, count));
                let end = start.saturating_add(count);
                self.vectors
                    .retain(|(of, vector), _| *of != index || !(start..end).contains(vector));
            }
            IrqChange::DisableAll => {
                self.with_vf(|vf| vf.disable_irqs(irq));
                self.vectors.retain(|(of, _), _| *of != index);
            }
            // A VF has message signalled interrupts, and QEMU has eventfds for them.
            IrqChange::Trigger(_) | IrqChange::Mask(_) | IrqChange::Unmask(_) => {
                return Err(Errno::OPNOTSUPP);
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.with_vf(Client::reset);
    }

    fn connected(&mut self) {
        self.news.tell(|news| news.connected = true);
    }

    fn disconnected(&mut self) {
        self.reset();
        self.news.tell(|news| {
            news.connected = false;
            news.disconnected = true;
        });
    }
}
