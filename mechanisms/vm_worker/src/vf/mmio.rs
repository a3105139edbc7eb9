//! What answers a guest's accesses to a function: pages of registers by themselves, through the VF's server; the
//! configuration window and pages with a meaning of their own by the worker.
//!
//! A processor that waits, waits for a limited time; then it reads ones, as from a device that does not answer.

use std::sync::Arc;

use partition::MmioHandler;
use pcie_protocol::BarIndex;
use vfio_user_client::PciRegion;
use vpci_protocol::window;

use super::Registers;
use crate::{
    control::DeviceName,
    event::{Event, Events},
    reply::Reply,
};

/// An access for the worker.
pub(crate) struct Access {
    pub(crate) kind: AccessKind,
    /// Byte offset in the window or BAR.
    pub(crate) offset: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub(crate) length: usize,
    /// `None`: a read.
    pub(crate) value: Option<[u8; 8]>,
    pub(crate) reply: Reply<[u8; 8]>,
}

/// What is accessed.
pub(crate) enum AccessKind {
    /// The configuration window; with what the register of the VF has that is read.
    Window(Option<(u16, u32)>),
    /// A page of a BAR.
    Bar(BarIndex),
}

/// A function's trapped accesses, on their way to the worker.
#[derive(Clone)]
struct Door {
    events: Events,
    name: DeviceName,
    number: u64,
}

impl Door {
    fn access(
        &self,
        kind: AccessKind,
        offset: u64,
        length: usize,
        value: Option<[u8; 8]>,
    ) -> Option<[u8; 8]> {
        let (reply, answer) = Reply::new();
        let access = Access { kind, offset, length, value, reply };
        self.events.send(Event::Access(self.name, self.number, access));
        answer.wait()
    }
}

/// Puts what was read where it belongs.
fn give(value: Option<[u8; 8]>, data: &mut [u8]) {
    let value = value.unwrap_or([0xFF; 8]);
    match value.get(..data.len()) {
        Some(bytes) => data.copy_from_slice(bytes),
        None => data.fill(0xFF),
    }
}

/// What is written, as a value.
fn taken(data: &[u8]) -> Option<[u8; 8]> {
    let mut value = [0; 8];
    value.get_mut(..data.len())?.copy_from_slice(data);
    Some(value)
}

/// The configuration window.
pub(crate) struct Window {
    door: Door,
    registers: Arc<Registers>,
}

impl Window {
    pub(crate) fn new(
        events: Events,
        name: DeviceName,
        number: u64,
        registers: Arc<Registers>,
    ) -> Self {
        Self { door: Door { events, name, number }, registers }
    }
}

impl MmioHandler for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let register = offset
            .checked_sub(window::CONFIG_SPACE)
            .and_then(|register| u16::try_from(register & !3).ok());
        let raw = register.map(|register| {
            let mut bytes = [0xFF; 4];
            self.registers.read(PciRegion::Config, register.into(), &mut bytes);
            (register, u32::from_le_bytes(bytes))
        });
        let read = self.door.access(AccessKind::Window(raw), offset, data.len(), None);
        give(read, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(value) = taken(data) {
            self.door.access(AccessKind::Window(None), offset, data.len(), Some(value));
        }
    }
}

/// Pages of a BAR with the MSI-X table, or that are mitigated.
pub(crate) struct TrappedPages {
    door: Door,
    bar: BarIndex,
    /// Of the first page in the BAR.
    start: u64,
}

impl TrappedPages {
    pub(crate) fn new(
        events: Events,
        name: DeviceName,
        number: u64,
        bar: BarIndex,
        start: u64,
    ) -> Self {
        Self { door: Door { events, name, number }, bar, start }
    }
}

impl MmioHandler for TrappedPages {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let kind = AccessKind::Bar(self.bar);
        give(self.door.access(kind, self.start + offset, data.len(), None), data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(value) = taken(data) {
            let kind = AccessKind::Bar(self.bar);
            self.door.access(kind, self.start + offset, data.len(), Some(value));
        }
    }
}

/// Pages of a BAR that are the VF's alone, and cannot be mapped.
pub(crate) struct RegisterPages {
    pub(crate) registers: Arc<Registers>,
    pub(crate) region: PciRegion,
    /// Of the first page in the BAR.
    pub(crate) start: u64,
}

impl MmioHandler for RegisterPages {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.registers.read(self.region, self.start + offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.registers.write(self.region, self.start + offset, data);
    }
}
