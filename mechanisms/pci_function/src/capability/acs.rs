//! The access control services capability (PCIe 6.0 §6.12, §7.7.11) of a function that never sends requests
//! to its siblings: it implements no service, which says that it is isolated. (Without the capability,
//! software has to assume the contrary.) Everything in it is read-only.

use pcie_protocol::{AcsCapabilities, ExtendedCapabilityId};
use serde::{Deserialize, Serialize};

use super::{Id, Registers, Trigger};
use crate::{PciFunctionError, ResetKind, access::DwordWrite};

/// The ACS capability of a function without peer-to-peer requests.
#[derive(Clone, Debug, Default)]
pub struct Acs {}

/// The saved state of ACS: nothing in it can change.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct AcsState {}

impl Acs {
    /// The capability of an isolated function.
    pub fn isolated() -> Self {
        Self {}
    }
}

impl Registers for Acs {
    type State = AcsState;

    fn id(&self) -> Id {
        Id::Extended(ExtendedCapabilityId::ACS)
    }

    fn length(&self) -> u16 {
        8
    }

    fn read(&self, register: u16) -> u32 {
        match register {
            4 => u32::from(u16::from(AcsCapabilities::new())),
            _ => 0,
        }
    }

    fn write(&mut self, _: u16, _: DwordWrite) -> Option<Trigger> {
        None
    }

    fn reset(&mut self, _: ResetKind) {}

    fn save(&self) -> AcsState {
        AcsState {}
    }

    fn restore(&mut self, _: &AcsState) -> Result<(), PciFunctionError> {
        Ok(())
    }
}
