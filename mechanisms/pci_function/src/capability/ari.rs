//! The alternative routing-id interpretation capability (PCIe 6.0 §6.13, §7.8.8). Function groups are not
//! supported, so that everything in it is read-only.

use pcie_protocol::{AriCapabilities, ExtendedCapabilityId};
use serde::{Deserialize, Serialize};

use super::{Id, Registers, Trigger};
use crate::{PciFunctionError, ResetKind, access::DwordWrite};

/// The ARI capability of a function.
#[derive(Clone, Debug)]
pub struct Ari {
    next_function: u8,
}

/// The saved state of ARI: nothing in it can change.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct AriState {}

impl Ari {
    /// The ARI capability of a function after which comes `next_function` of the device, or none (0).
    /// VFs are not in this list.
    pub fn new(next_function: u8) -> Self {
        Self { next_function }
    }
}

impl Registers for Ari {
    type State = AriState;

    fn id(&self) -> Id {
        Id::Extended(ExtendedCapabilityId::ARI)
    }

    fn length(&self) -> u16 {
        8
    }

    fn read(&self, register: u16) -> u32 {
        match register {
            4 => {
                let capabilities =
                    AriCapabilities::new().with_next_function_number(self.next_function);
                u32::from(u16::from(capabilities))
            }
            _ => 0,
        }
    }

    fn write(&mut self, _: u16, _: DwordWrite) -> Option<Trigger> {
        None
    }

    fn reset(&mut self, _: ResetKind) {}

    fn save(&self) -> AriState {
        AriState {}
    }

    fn restore(&mut self, _: &AriState) -> Result<(), PciFunctionError> {
        Ok(())
    }
}
