//! The register file in BAR0: through shared pages where the server offers them, else by messages.

use std::os::fd::AsFd;

use avf_protocol::BAR0_SIZE;
use shared_memory::{Access, DoorbellPage, PAGE_SIZE, SharedMapping};
use vfio_user_client::{Client, ClientError, PciRegion, SharedRegion};

use crate::{Result, doorbell::Doorbell};

/// Pages of the register file.
const PAGES: usize = 16;

/// 32-bit registers, by byte offset: the device's, or in tests a device's that is played.
pub(crate) trait Registers {
    /// Reads a register.
    fn read(&self, offset: u32) -> Result<u32>;
    /// Writes a register; the device has taken it when this returns.
    fn write(&self, offset: u32, value: u32) -> Result<()>;
}

/// The device's register file. Shared by control and queues.
#[derive(Debug)]
pub(crate) struct Bar {
    client: Client,
    pages: [Option<DoorbellPage>; PAGES],
}

impl Bar {
    /// Finds and maps BAR0.
    pub(crate) fn open(client: Client) -> Result<Self> {
        let region = client.region_info(PciRegion::Bar0)?;
        if region.size < BAR0_SIZE {
            let problem = format!("BAR0 has {} bytes; AVF needs {BAR0_SIZE}", region.size);
            return Err(ClientError::Protocol { command: "DEVICE_GET_REGION_INFO", problem }.into());
        }
        let pages = region.shared.map(|shared| map_pages(&shared)).unwrap_or_default();
        Ok(Self { client, pages })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    fn shared(&self, offset: u32) -> Option<(&DoorbellPage, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let page = self.pages.get(offset / PAGE_SIZE)?.as_ref()?;
        Some((page, offset % PAGE_SIZE / 4))
    }

    /// Writes a register without waiting for the server.
    pub(crate) fn post(&self, offset: u32, value: u32) -> Result<()> {
        match self.shared(offset) {
            Some((page, index)) => page.store(index, value),
            None => self.client.region_post(PciRegion::Bar0, offset.into(), value)?,
        }
        Ok(())
    }

    /// The fastest way to ring the doorbell at `offset`.
    pub(crate) fn doorbell(self: &std::sync::Arc<Self>, offset: u32) -> Doorbell {
        match self.shared(offset) {
            Some((page, index)) => Doorbell::Mapped { page: page.clone(), index },
            None => Doorbell::Register { bar: self.clone(), offset },
        }
    }

    /// Whether the register at `offset` is in a shared page.
    pub(crate) fn is_shared(&self, offset: u32) -> bool {
        self.shared(offset).is_some()
    }
}

impl Registers for Bar {
    fn read(&self, offset: u32) -> Result<u32> {
        match self.shared(offset) {
            Some((page, index)) => Ok(page.load(index)),
            None => {
                Ok(u32::from_le_bytes(self.client.region_read(PciRegion::Bar0, offset.into())?))
            }
        }
    }

    fn write(&self, offset: u32, value: u32) -> Result<()> {
        match self.shared(offset) {
            Some((page, index)) => page.store(index, value),
            None => {
                self.client.region_write(PciRegion::Bar0, offset.into(), &value.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

/// Maps the pages that lie wholly in a shared area. A page that cannot be mapped is reached by
/// messages: a file that could shrink, for one, would let the server kill this process.
fn map_pages(shared: &SharedRegion) -> [Option<DoorbellPage>; PAGES] {
    std::array::from_fn(|page| {
        let first = (page * PAGE_SIZE) as u64;
        let last = first + PAGE_SIZE as u64;
        let inside = shared.areas.iter().any(|area| {
            area.offset <= first
                && area.offset.checked_add(area.size).is_some_and(|end| last <= end)
        });
        if !inside {
            return None;
        }
        let offset = shared.offset.checked_add(first)?;
        let mapping = SharedMapping::map(shared.fd.as_fd(), offset, PAGE_SIZE, Access::ReadWrite);
        mapping
            .and_then(|mapping| DoorbellPage::new(&mapping, 0))
            .inspect_err(
                |error| tracing::debug!(page, %error, "a shared register page is not used"),
            )
            .ok()
    })
}
