//! A PCI function that copies guest memory: the smallest one that needs every part of the vfio-user server.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use shared_memory::{DmaAddress, DmaMap, PageSize, SharedMapping};
use vfio_user_server::{
    Errno, EventFd, IrqChange, PciFunctionDevice, PciIrq, PciRegion, Region, RegionMemory,
    SparseMmapArea,
};

/// Registers in BAR0, all of 32 bits but the addresses.
pub(crate) const REG_SOURCE: u64 = 0x1000;
pub(crate) const REG_TARGET: u64 = 0x1008;
pub(crate) const REG_LENGTH: u64 = 0x1010;
pub(crate) const REG_VECTOR: u64 = 0x1014;
/// Writing starts the copy.
pub(crate) const REG_GO: u64 = 0x1018;
/// 1 after a copy, 2 after a DMA fault.
pub(crate) const REG_STATUS: u64 = 0x101C;
/// What the first word of the doorbell page at 0x2000 holds.
pub(crate) const REG_DOORBELL: u64 = 0x1020;
/// The doorbell page, which is mapped by the client.
pub(crate) const DOORBELL: u64 = 0x2000;
pub(crate) const IDS: (u16, u16) = (0x1DEA, 0x0001);
pub(crate) const VECTORS: u16 = 4;

const BAR0_SIZE: usize = 0x1_0000;
const COMMAND: usize = 4;

/// The function.
pub(crate) struct CopyDevice {
    config: Vec<u8>,
    bar0: SharedMapping,
    file: Arc<OwnedFd>,
    map: DmaMap,
    vectors: [Option<EventFd>; VECTORS as usize],
    resets: u32,
}

impl CopyDevice {
    pub(crate) fn new() -> Result<Arc<Mutex<Self>>> {
        let (bar0, file) = SharedMapping::create("copy-device", BAR0_SIZE, PageSize::Base)?;
        Ok(Arc::new(Mutex::new(Self {
            config: config_space(),
            bar0,
            file: Arc::new(file),
            map: DmaMap::empty(),
            vectors: [const { None }; VECTORS as usize],
            resets: 0,
        })))
    }

    /// How often it was reset.
    pub(crate) fn resets(&self) -> u32 {
        self.resets
    }

    /// Vectors that are wired.
    pub(crate) fn wired(&self) -> usize {
        self.vectors.iter().flatten().count()
    }

    fn register<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, offset: u64) -> Option<T> {
        self.bar0.as_slice().read_object(usize::try_from(offset).ok()?)
    }

    fn copy(&self) -> Option<()> {
        let bus_master = self.config.get(COMMAND).is_some_and(|command| command & 4 != 0);
        let length = usize::try_from(self.register::<u32>(REG_LENGTH)?).ok()?.min(BAR0_SIZE);
        let mut data = vec![0; length];
        if !bus_master {
            return None;
        }
        self.map.read_bytes(DmaAddress(self.register(REG_SOURCE)?), &mut data).ok()?;
        self.map.write_bytes(DmaAddress(self.register(REG_TARGET)?), &data).ok()
    }
}

/// A type 0 header with BAR0 (64 KiB), BAR3 (16 KiB), a PCI Express and an MSI-X capability.
fn config_space() -> Vec<u8> {
    let mut config = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = config.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0x00, &IDS.0.to_le_bytes());
    put(0x02, &IDS.1.to_le_bytes());
    // Status: capabilities list.
    put(0x06, &[0x10, 0]);
    // Class: unassigned.
    put(0x08, &[0, 0, 0, 0xFF]);
    put(0x34, &[0x40]);
    // PCI Express, version 2, endpoint; next at 0x80.
    put(0x40, &[0x10, 0x80, 0x02, 0x00]);
    // MSI-X: table at 0 and pending bits at 0x2000 of BAR 3.
    let [size, _] = (VECTORS - 1).to_le_bytes();
    put(0x80, &[0x11, 0, size, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]);
    config
}

impl PciFunctionDevice for CopyDevice {
    fn region(&self, region: PciRegion) -> Region {
        match region {
            PciRegion::Bar0 => Region {
                memory: Some(RegionMemory {
                    file: Arc::clone(&self.file),
                    offset: 0,
                    areas: vec![SparseMmapArea { offset: DOORBELL, size: 4096 }],
                }),
                ..Region::trapped(BAR0_SIZE as u64)
            },
            PciRegion::Bar3 => Region::trapped(0x4000),
            PciRegion::Config => Region::trapped(4096),
            _ => Region::ABSENT,
        }
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        if irq == PciIrq::Msix { u32::from(VECTORS) } else { 0 }
    }

    fn region_read(
        &mut self,
        region: PciRegion,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        data.fill(0);
        match region {
            PciRegion::Config => {
                let bytes = self.config.get(offset..offset + data.len()).ok_or(Errno::INVAL)?;
                data.copy_from_slice(bytes);
            }
            PciRegion::Bar0 => {
                if offset as u64 == REG_DOORBELL {
                    let value: u32 = self.register(DOORBELL).unwrap_or(0);
                    self.bar0.as_slice().write_object(offset, &value);
                }
                self.bar0.slice(offset, data.len()).map_err(|_| Errno::INVAL)?.read_into(data);
            }
            _ => {}
        }
        Ok(())
    }

    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let at = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        match region {
            PciRegion::Config => {
                // The command register alone can be written; QEMU keeps BARs and MSI-X itself.
                for (at, byte) in
                    (at..).zip(data).filter(|(at, _)| (COMMAND..COMMAND + 2).contains(at))
                {
                    if let Some(place) = self.config.get_mut(at) {
                        *place = *byte;
                    }
                }
            }
            PciRegion::Bar0 => {
                self.bar0.slice(at, data.len()).map_err(|_| Errno::INVAL)?.write_from(data);
                if offset == REG_GO {
                    let status: u32 = if self.copy().is_some() { 1 } else { 2 };
                    let slice = self.bar0.as_slice();
                    slice
                        .write_object(usize::try_from(REG_STATUS).map_err(|_| Errno::IO)?, &status);
                    let vector: u32 = self.register(REG_VECTOR).ok_or(Errno::IO)?;
                    let vector = usize::try_from(vector).map_err(|_| Errno::INVAL)?;
                    if let Some(eventfd) = self.vectors.get(vector).and_then(Option::as_ref) {
                        eventfd.signal();
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        self.map = map.clone();
    }

    fn set_irq(&mut self, _irq: PciIrq, change: IrqChange) -> Result<(), Errno> {
        let mut set = |vector: u32, eventfd: Option<EventFd>| {
            let vector = usize::try_from(vector).map_err(|_| Errno::INVAL)?;
            *self.vectors.get_mut(vector).ok_or(Errno::INVAL)? = eventfd;
            Ok(())
        };
        match change {
            IrqChange::Connect { start, eventfds } => {
                (start..).zip(eventfds).try_for_each(|(vector, eventfd)| set(vector, Some(eventfd)))
            }
            IrqChange::Disconnect { start, count } => {
                (start..start + count).try_for_each(|vector| set(vector, None))
            }
            IrqChange::DisableAll => {
                (0..u32::from(VECTORS)).try_for_each(|vector| set(vector, None))
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn reset(&mut self) {
        self.bar0.as_slice().fill(0);
        self.config = config_space();
        self.resets += 1;
    }

    fn connected(&mut self) {}

    fn disconnected(&mut self) {}
}
