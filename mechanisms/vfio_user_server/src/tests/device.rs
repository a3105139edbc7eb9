//! A PCI function that remembers what was done to it.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex},
};

use shared_memory::{DmaMap, PageSize, SharedMapping};

use crate::{
    Errno, EventFd, IrqChange, PciFunctionDevice, PciIrq, PciRegion, Region, RegionMemory,
    SparseMmapArea,
};

/// What happened, in order; reads and writes are left out.
#[derive(Clone, Eq, PartialEq, Debug)]
pub(super) enum Event {
    Connected,
    /// First address and length of each mapped range.
    Map(Vec<(u64, usize)>),
    /// Index, what, vectors.
    Irq(PciIrq, &'static str, Vec<u32>),
    Reset,
    Disconnected,
}

pub(super) struct TestDevice {
    pub(super) events: Vec<Event>,
    /// Held closed by a test that wants to see who waits for the map.
    pub(super) map_gate: Arc<(Mutex<bool>, Condvar)>,
    pub(super) map: DmaMap,
    pub(super) vectors: BTreeMap<u32, EventFd>,
    pub(super) config: Vec<u8>,
    pub(super) bar0: SharedMapping,
    file: Arc<OwnedFd>,
    /// Told of each event.
    pub(super) changed: Arc<Condvar>,
}

pub(super) const MSIX_VECTORS: u32 = 5;

impl TestDevice {
    pub(super) fn shared() -> Arc<Mutex<Self>> {
        let (bar0, file) = SharedMapping::create("bar0", 0x1_0000, PageSize::Base).unwrap();
        Arc::new(Mutex::new(Self {
            events: Vec::new(),
            map_gate: Arc::new((Mutex::new(true), Condvar::new())),
            map: DmaMap::empty(),
            vectors: BTreeMap::new(),
            config: vec![0; 4096],
            bar0,
            file: Arc::new(file),
            changed: Arc::new(Condvar::new()),
        }))
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
        self.changed.notify_all();
    }

    /// Waits until the device has seen an event, and returns all so far.
    pub(super) fn wait_for(device: &Mutex<Self>, event: &Event) -> Vec<Event> {
        let mut device = device.lock().unwrap();
        while !device.events.contains(event) {
            let changed = Arc::clone(&device.changed);
            device = changed.wait(device).unwrap();
        }
        device.events.clone()
    }
}

impl PciFunctionDevice for TestDevice {
    fn region(&self, region: PciRegion) -> Region {
        match region {
            PciRegion::Bar0 => Region {
                memory: Some(RegionMemory {
                    file: Arc::clone(&self.file),
                    offset: 0,
                    areas: vec![
                        SparseMmapArea { offset: 0, size: 0x1000 },
                        SparseMmapArea { offset: 0x2000, size: 0x1000 },
                    ],
                }),
                ..Region::trapped(0x1_0000)
            },
            PciRegion::Bar3 => Region { write: false, ..Region::trapped(0x4000) },
            PciRegion::Config => Region::trapped(4096),
            _ => Region::ABSENT,
        }
    }

    fn irq_count(&self, irq: PciIrq) -> u32 {
        match irq {
            PciIrq::Msix => MSIX_VECTORS,
            PciIrq::Intx => 1,
            _ => 0,
        }
    }

    fn region_read(
        &mut self,
        region: PciRegion,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        let offset = offset as usize;
        match region {
            PciRegion::Bar0 => {
                self.bar0.slice(offset, data.len()).unwrap().read_into(data);
            }
            PciRegion::Config => data.copy_from_slice(&self.config[offset..offset + data.len()]),
            _ => return Err(Errno::IO),
        }
        Ok(())
    }

    fn region_write(&mut self, region: PciRegion, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let offset = offset as usize;
        match region {
            PciRegion::Bar0 => {
                self.bar0.slice(offset, data.len()).unwrap().write_from(data);
            }
            PciRegion::Config => {
                self.config[offset..offset + data.len()].copy_from_slice(data);
            }
            _ => return Err(Errno::IO),
        }
        Ok(())
    }

    fn dma_map_changed(&mut self, map: &DmaMap) {
        let gate = Arc::clone(&self.map_gate);
        let (open, opened) = &*gate;
        let mut open = open.lock().unwrap();
        while !*open {
            open = opened.wait(open).unwrap();
        }
        self.map = map.clone();
        let ranges = map.regions().iter().map(|r| (r.iova.0, r.mapping.len())).collect();
        self.event(Event::Map(ranges));
    }

    fn set_irq(&mut self, irq: PciIrq, change: IrqChange) -> Result<(), Errno> {
        let (what, vectors) = match change {
            IrqChange::Connect { start, eventfds } => {
                let vectors = (start..start + eventfds.len() as u32).collect();
                self.vectors.extend((start..).zip(eventfds));
                ("connect", vectors)
            }
            IrqChange::Disconnect { start, count } => {
                self.vectors.retain(|vector, _| !(start..start + count).contains(vector));
                ("disconnect", (start..start + count).collect())
            }
            IrqChange::DisableAll => {
                self.vectors.clear();
                ("disable", Vec::new())
            }
            IrqChange::Trigger(vectors) => {
                for vector in &vectors {
                    self.vectors.get(vector).ok_or(Errno::INVAL)?.signal();
                }
                ("trigger", vectors)
            }
            IrqChange::Mask(vectors) => ("mask", vectors),
            IrqChange::Unmask(vectors) => ("unmask", vectors),
        };
        self.event(Event::Irq(irq, what, vectors));
        Ok(())
    }

    fn reset(&mut self) {
        self.event(Event::Reset);
    }

    fn connected(&mut self) {
        self.event(Event::Connected);
    }

    fn disconnected(&mut self) {
        assert!(self.map.regions().is_empty() && self.vectors.is_empty());
        self.event(Event::Disconnected);
    }
}
