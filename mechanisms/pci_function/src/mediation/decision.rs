//! What becomes of a guest's write to a VF's configuration space.

use pcie_protocol::{BarIndex, PowerState};

use super::MsiSetting;

/// What becomes of a write, to be carried out by the PF driver in the order of the list. Each dword that a
/// guest writes gives at least one.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Decision {
    /// Write this to the VF's own configuration space.
    Forward(ForwardedWrite),
    /// Kept here, and shown to the guest from now on.
    Shadowed(Shadow),
    /// Without effect.
    Absorbed {
        /// The dword.
        register: u16,
    },
    /// Reset the VF (OID_SRIOV_RESET_VF, SRIOV_RESET_FUNCTION). The shadows are reset already: MSI-X and
    /// MSI are off, the BARs have no address.
    ResetVf,
    /// Put the VF into a power state (OID_SRIOV_SET_VF_POWER_STATE, SRIOV_SET_POWER_STATE). If this wakes
    /// a VF without NoSoftReset, the shadows are reset already.
    SetPowerState {
        /// The state.
        state: PowerState,
        /// Whether PME is armed; never with D0.
        wake: bool,
    },
    /// The guest turned MSI-X on or off, or masked or unmasked all vectors: for the interrupt layer.
    MsiXControl {
        /// Interrupts are sent by MSI-X.
        enabled: bool,
        /// All vectors are masked.
        masked: bool,
    },
    /// The guest changed its MSI registers: for the interrupt layer.
    Msi(MsiSetting),
}

/// A write to be made to a VF's own configuration space: one or two bytes.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct ForwardedWrite {
    offset: u16,
    value: [u8; 2],
    word: bool,
}

impl ForwardedWrite {
    pub(crate) fn word(offset: u16, value: u16) -> Self {
        Self { offset, value: value.to_le_bytes(), word: true }
    }

    pub(crate) fn byte(offset: u16, value: u8) -> Self {
        Self { offset, value: [value, 0], word: false }
    }

    /// Where to write.
    pub fn offset(&self) -> u64 {
        u64::from(self.offset)
    }

    /// What to write.
    pub fn bytes(&self) -> &[u8] {
        let [first, _] = &self.value;
        if self.word { &self.value } else { std::slice::from_ref(first) }
    }
}

/// Something kept for the guest that its VF does not know.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Shadow {
    /// Memory enable: whether the guest expects the VF's memory to answer.
    MemoryEnable {
        /// Whether it does.
        enabled: bool,
    },
    /// INTx disable: without meaning, since there is no INTx.
    InterruptDisable {
        /// The bit.
        disabled: bool,
    },
    /// A virtual BAR.
    Bar {
        /// Which BAR.
        bar: BarIndex,
        /// Its address now.
        address: u64,
    },
    /// PME was armed or disarmed in D0; it goes with the next [`Decision::SetPowerState`].
    Wake {
        /// Whether it is armed.
        armed: bool,
    },
}
