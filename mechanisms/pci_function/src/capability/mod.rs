//! Capabilities: one file each, all of one shape. A capability has registers that are read and written by
//! dwords at offsets from its own start, a reset, and a saved state; where it lies and which one follows
//! is the function's business.

use pcie_protocol::{CapabilityId, ExtendedCapabilityId};

use crate::{PciFunctionError, ResetKind, access::DwordWrite};

pub(crate) mod acs;
pub(crate) mod ari;
pub(crate) mod express;
pub(crate) mod msi_x;
pub(crate) mod power_management;
pub(crate) mod sr_iov;

use acs::Acs;
use ari::Ari;
use express::Express;
use msi_x::MsiX;
use power_management::PowerManagement;
use sr_iov::SrIov;

/// What a write to a capability sets off for the whole function.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Trigger {
    /// Initiate Function Level Reset was written.
    FunctionLevelReset,
    /// The function returned to D0 and loses its state.
    SoftReset,
}

/// In which list a capability is, and under which id.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Id {
    /// In the first 256 bytes.
    Conventional(CapabilityId),
    /// From 0x100 on; version 1 of its layout.
    Extended(ExtendedCapabilityId),
}

impl Id {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Conventional(id) => id.name(),
            Self::Extended(id) => id.name(),
        }
        .unwrap_or("unnamed")
    }
}

/// The registers of a capability. Offsets are bytes from the start of the capability, multiples of 4.
pub(crate) trait Registers {
    /// What is saved and restored.
    type State;

    /// Which capability it is.
    fn id(&self) -> Id;

    /// Bytes, with the header: a multiple of 4.
    fn length(&self) -> u16;

    /// The dword at `register`. In dword 0 the bits of the list (16 of a conventional capability, all of
    /// an extended one) are left zero.
    fn read(&self, register: u16) -> u32;

    /// Writes the dword at `register`.
    fn write(&mut self, register: u16, write: DwordWrite) -> Option<Trigger>;

    /// Goes back to the values after that reset.
    fn reset(&mut self, kind: ResetKind);

    /// What software and events have changed.
    fn save(&self) -> Self::State;

    /// Takes what was saved. Bits that cannot be set are dropped; a state that makes no sense is an error.
    fn restore(&mut self, state: &Self::State) -> Result<(), PciFunctionError>;
}

/// A capability of a function.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Capability {
    /// PCI power management.
    PowerManagement(PowerManagement),
    /// MSI-X.
    MsiX(MsiX),
    /// PCI Express.
    Express(Express),
    /// Alternative routing-id interpretation.
    Ari(Ari),
    /// Access control services.
    Acs(Acs),
    /// Single root I/O virtualization.
    SrIov(Box<SrIov>),
}

macro_rules! dispatch {
    ($capability:expr, $registers:ident => $call:expr) => {
        match $capability {
            Capability::PowerManagement($registers) => $call,
            Capability::MsiX($registers) => $call,
            Capability::Express($registers) => $call,
            Capability::Ari($registers) => $call,
            Capability::Acs($registers) => $call,
            Capability::SrIov($registers) => $call,
        }
    };
}

impl Capability {
    pub(crate) fn id(&self) -> Id {
        dispatch!(self, registers => registers.id())
    }

    pub(crate) fn length(&self) -> u16 {
        dispatch!(self, registers => registers.length())
    }

    pub(crate) fn read(&self, register: u16) -> u32 {
        dispatch!(self, registers => registers.read(register))
    }

    pub(crate) fn write(&mut self, register: u16, write: DwordWrite) -> Option<Trigger> {
        dispatch!(self, registers => registers.write(register, write))
    }

    pub(crate) fn reset(&mut self, kind: ResetKind) {
        dispatch!(self, registers => registers.reset(kind));
    }
}

impl From<PowerManagement> for Capability {
    fn from(capability: PowerManagement) -> Self {
        Self::PowerManagement(capability)
    }
}

impl From<MsiX> for Capability {
    fn from(capability: MsiX) -> Self {
        Self::MsiX(capability)
    }
}

impl From<Express> for Capability {
    fn from(capability: Express) -> Self {
        Self::Express(capability)
    }
}

impl From<Ari> for Capability {
    fn from(capability: Ari) -> Self {
        Self::Ari(capability)
    }
}

impl From<Acs> for Capability {
    fn from(capability: Acs) -> Self {
        Self::Acs(capability)
    }
}

impl From<SrIov> for Capability {
    fn from(capability: SrIov) -> Self {
        Self::SrIov(Box::new(capability))
    }
}
