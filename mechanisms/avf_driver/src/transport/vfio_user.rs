//! A function on a vfio-user socket.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use avf_protocol::BAR0_SIZE;
use shared_memory::{Access, DoorbellPage, PAGE_SIZE, SharedMapping};
use vfio_user_client::{Client, ClientError, DeviceInfo, PciIrq, PciRegion, Region, SharedRegion};

use super::{Interrupt, Transport};
use crate::{DriverError, DriverMemory, Result, vector};

/// A PCI function on a vfio-user socket.
#[derive(Debug)]
pub struct VfioUser {
    client: Client,
    resettable: bool,
    /// BAR0, as the server says it is.
    registers: Region,
    /// Those that the device signals. Only control asks for them.
    events: Mutex<Vec<Arc<Event>>>,
}

impl VfioUser {
    /// Connects to the socket; no call of the transport waits longer than `limit` for the server.
    ///
    /// # Errors
    /// Nobody serves the socket; the server does not answer, refuses, or serves no PCI function with a BAR0 as
    /// large as AVF's.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let client = Client::connect(socket, limit)?;
        let flags = client.device_info()?.flags;
        if flags & DeviceInfo::FLAG_PCI == 0 {
            let problem = "it serves no PCI function".into();
            return Err(ClientError::Protocol { command: "DEVICE_GET_INFO", problem }.into());
        }
        let registers = client.region_info(PciRegion::Bar0)?;
        let resettable = flags & DeviceInfo::FLAG_RESET != 0;
        Ok(Self { client, resettable, registers, events: Mutex::default() })
    }
}

impl Transport for VfioUser {
    fn config_read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        Ok(self.client.config_read(offset, data)?)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<()> {
        Ok(self.client.config_write(offset, data)?)
    }

    fn reset(&self) -> Result<bool> {
        if self.resettable {
            self.client.reset()?;
        }
        Ok(self.resettable)
    }

    fn register_page(&self, page: usize) -> Result<Option<DoorbellPage>> {
        // Functions that are not AVF are refused as such, before their BAR is looked at.
        if self.registers.size < BAR0_SIZE {
            let problem = format!("BAR0 has {} bytes; AVF needs {BAR0_SIZE}", self.registers.size);
            return Err(ClientError::Protocol { command: "DEVICE_GET_REGION_INFO", problem }.into());
        }
        Ok(self.registers.shared.as_ref().and_then(|shared| map_page(shared, page)))
    }

    fn read(&self, offset: u32) -> Result<u32> {
        Ok(u32::from_le_bytes(self.client.region_read(PciRegion::Bar0, offset.into())?))
    }

    fn write(&self, offset: u32, value: u32) -> Result<()> {
        Ok(self.client.region_write(PciRegion::Bar0, offset.into(), &value.to_le_bytes())?)
    }

    fn post(&self, offset: u32, value: u32) -> Result<()> {
        Ok(self.client.region_post(PciRegion::Bar0, offset.into(), value)?)
    }

    fn share_memory(&self, memory: &DriverMemory) -> Result<()> {
        let size = memory.mapping().len() as u64;
        Ok(self.client.dma_map(memory.iova().0, size, memory.fd(), memory.file_offset())?)
    }

    fn interrupts(&self, count: u16) -> Result<Vec<Arc<dyn Interrupt>>> {
        if self.client.irq_info(PciIrq::Msix)?.count < u32::from(count) {
            return Err(DriverError::NotGranted("an interrupt vector for each queue pair"));
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        while events.len() < usize::from(count) {
            events.push(Arc::new(Event(vector::event_descriptor()?)));
        }
        let wanted = events.get(..usize::from(count)).unwrap_or_default();
        let descriptors: Vec<_> = wanted.iter().map(|event| event.event_fd()).collect();
        self.client.set_irq_events(PciIrq::Msix, 0, &descriptors)?;
        Ok(wanted.iter().map(|event| Arc::clone(event) as Arc<dyn Interrupt>).collect())
    }

    fn check(&self) -> Result<()> {
        Ok(self.client.check()?)
    }

    fn is_gone(&self) -> bool {
        self.client.is_gone()
    }

    fn gone_fd(&self) -> Result<OwnedFd> {
        Ok(self.client.duplicate_fd()?)
    }
}

/// An eventfd that the server signals.
#[derive(Debug)]
struct Event(OwnedFd);

impl Interrupt for Event {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn take(&self) -> bool {
        vector::take(self.0.as_fd())
    }

    fn wake(&self) {
        vector::signal(self.0.as_fd());
    }
}

/// Maps a page if it lies wholly in a shared area. A page that cannot be mapped is reached by
/// messages: a file that could shrink, for one, would let the server kill this process.
fn map_page(shared: &SharedRegion, page: usize) -> Option<DoorbellPage> {
    let first = page.checked_mul(PAGE_SIZE)? as u64;
    let last = first.checked_add(PAGE_SIZE as u64)?;
    let inside = shared.areas.iter().any(|area| {
        area.offset <= first && area.offset.checked_add(area.size).is_some_and(|end| last <= end)
    });
    if !inside {
        return None;
    }
    let offset = shared.offset.checked_add(first)?;
    let mapping = SharedMapping::map(shared.fd.as_fd(), offset, PAGE_SIZE, Access::ReadWrite);
    mapping
        .and_then(|mapping| DoorbellPage::new(&mapping, 0))
        .inspect_err(|error| tracing::debug!(page, %error, "a shared register page is not used"))
        .ok()
}
