//! The type 0 header of a function, or of a VF as the PCIe specification has it.

use pcie_protocol::{BarIndex, ClassCode, Command, INVALID_VENDOR_ID, Status, header_offset};
use serde::{Deserialize, Serialize};

use crate::{
    PciFunctionError, ResetKind,
    access::{DwordWrite, dword},
    bar_registers::BarRegisters,
};

/// What a function says it is.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Vendor id.
    pub vendor_id: u16,
    /// Device id.
    pub device_id: u16,
    /// Revision id.
    pub revision_id: u8,
    /// Class code.
    pub class: ClassCode,
    /// Subsystem vendor id.
    pub subsystem_vendor_id: u16,
    /// Subsystem id.
    pub subsystem_id: u16,
}

/// Whether a header is that of an ordinary function or of a VF (PCIe 6.0 §9.3.4.1).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum HeaderKind {
    /// A function of its own: an endpoint, a PF, or a VF as a guest is to see it.
    Function,
    /// A VF behind its PF: vendor and device id read 0xFFFF, memory enable is not implemented, BARs read
    /// zero, INTx does not exist.
    VirtualFunction,
}

/// Registers 0x00 to 0x3F.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    kind: HeaderKind,
    identity: Identity,
    multi_function: bool,
    capabilities_pointer: u8,
    command: Command,
    /// Only the bits that events set and software clears.
    status: Status,
    bars: BarRegisters,
}

/// The saved state of a header.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HeaderState {
    /// Who it is, to be compared.
    pub identity: Identity,
    /// The Command register.
    pub command: u16,
    /// The Status bits that software clears.
    pub status: u16,
    /// The address bits of the BARs.
    pub bars: [u32; 6],
}

impl Header {
    pub(crate) fn new(
        kind: HeaderKind,
        identity: Identity,
        multi_function: bool,
        capabilities_pointer: u8,
        bars: BarRegisters,
    ) -> Self {
        let (command, status) = (Command::new(), Status::new());
        Self { kind, identity, multi_function, capabilities_pointer, command, status, bars }
    }

    pub(crate) fn kind(&self) -> HeaderKind {
        self.kind
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn command(&self) -> Command {
        self.command
    }

    pub(crate) fn bars(&self) -> &BarRegisters {
        &self.bars
    }

    /// Sets Status bits that software clears by writing ones; others are ignored.
    pub(crate) fn record_status(&mut self, status: Status) {
        let bits = u16::from(status) & u16::from(Status::WRITE_ONE_TO_CLEAR);
        self.status = Status::from(u16::from(self.status) | bits);
    }

    fn writable_command(&self) -> Command {
        let command = Command::new().with_bus_master_enable(true);
        match self.kind {
            // PCIe 6.0 §9.3.4.1.3: all that a VF implements of the Command register.
            HeaderKind::VirtualFunction => command,
            HeaderKind::Function => command
                .with_memory_space_enable(true)
                .with_parity_error_response(true)
                .with_serr_enable(true)
                .with_interrupt_disable(true),
        }
    }

    pub(crate) fn read(&self, register: u16) -> u32 {
        let Identity { vendor_id, device_id, revision_id, class, .. } = self.identity;
        match register {
            header_offset::VENDOR_ID => match self.kind {
                HeaderKind::Function => dword(vendor_id, device_id),
                HeaderKind::VirtualFunction => dword(INVALID_VENDOR_ID, INVALID_VENDOR_ID),
            },
            header_offset::COMMAND => {
                let list = Status::new().with_capabilities_list(self.capabilities_pointer != 0);
                dword(self.command.into(), u16::from(self.status) | u16::from(list))
            }
            header_offset::REVISION_ID => {
                let [interface, sub_class, base_class] = class.to_register();
                u32::from_le_bytes([revision_id, interface, sub_class, base_class])
            }
            header_offset::CACHE_LINE_SIZE => u32::from(self.multi_function) << 23,
            header_offset::SUBSYSTEM_VENDOR_ID => {
                dword(self.identity.subsystem_vendor_id, self.identity.subsystem_id)
            }
            header_offset::CAPABILITIES_POINTER => u32::from(self.capabilities_pointer),
            _ => match (self.kind, bar_at(register)) {
                (HeaderKind::Function, Some(bar)) => self.bars.read(bar),
                _ => 0,
            },
        }
    }

    pub(crate) fn write(&mut self, register: u16, write: DwordWrite) {
        match register {
            header_offset::COMMAND => {
                let writable = u16::from(self.writable_command());
                self.command = Command::from(write.low().merge(self.command.into(), writable));
                self.status = Status::from(u16::from(self.status) & !write.high().ones());
            }
            _ => {
                if let (HeaderKind::Function, Some(bar)) = (self.kind, bar_at(register)) {
                    self.bars.write(bar, write);
                }
            }
        }
    }

    pub(crate) fn reset(&mut self, _: ResetKind) {
        self.command = Command::new();
        self.status = Status::new();
        self.bars.reset();
    }

    pub(crate) fn save(&self) -> HeaderState {
        HeaderState {
            identity: self.identity,
            command: self.command.into(),
            status: self.status.into(),
            bars: self.bars.save(),
        }
    }

    pub(crate) fn restore(&mut self, state: &HeaderState) -> Result<(), PciFunctionError> {
        if state.identity != self.identity {
            return Err(PciFunctionError::SavedState("it has other ids or another class"));
        }
        self.command = Command::from(state.command & u16::from(self.writable_command()));
        self.status = Status::from(state.status & u16::from(Status::WRITE_ONE_TO_CLEAR));
        self.bars.load(&state.bars);
        Ok(())
    }
}

/// Which BAR is at offset `register` of the header.
pub(crate) fn bar_at(register: u16) -> Option<BarIndex> {
    let index = register.checked_sub(header_offset::BARS)? / 4;
    BarIndex::new(u8::try_from(index).ok()?).ok()
}
