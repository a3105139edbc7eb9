//! The register file in BAR0: through pages where the transport maps them, else by its calls.

use std::sync::Arc;

use shared_memory::{DoorbellPage, PAGE_SIZE};

use crate::{
    Result,
    doorbell::Doorbell,
    transport::{REGISTER_PAGES, Transport},
};

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
    transport: Arc<dyn Transport>,
    pages: [Option<DoorbellPage>; REGISTER_PAGES],
}

impl Bar {
    /// Maps what can be mapped of BAR0.
    pub(crate) fn open(transport: Arc<dyn Transport>) -> Result<Self> {
        let mut pages = [const { None }; REGISTER_PAGES];
        for (number, page) in pages.iter_mut().enumerate() {
            *page = transport.register_page(number)?;
        }
        Ok(Self { transport, pages })
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    fn shared(&self, offset: u32) -> Option<(&DoorbellPage, usize)> {
        let offset = usize::try_from(offset).ok()?;
        let page = self.pages.get(offset / PAGE_SIZE)?.as_ref()?;
        Some((page, offset % PAGE_SIZE / 4))
    }

    /// Writes a register without waiting for the device, if the transport can.
    pub(crate) fn post(&self, offset: u32, value: u32) -> Result<()> {
        match self.shared(offset) {
            Some((page, index)) => page.store(index, value),
            None => self.transport.post(offset, value)?,
        }
        Ok(())
    }

    /// The fastest way to ring the doorbell at `offset`.
    pub(crate) fn doorbell(self: &Arc<Self>, offset: u32) -> Doorbell {
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
            None => self.transport.read(offset),
        }
    }

    fn write(&self, offset: u32, value: u32) -> Result<()> {
        match self.shared(offset) {
            Some((page, index)) => page.store(index, value),
            None => self.transport.write(offset, value)?,
        }
        Ok(())
    }
}
