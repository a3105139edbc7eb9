//! Identifiers that the stack's owner chooses, and two that the stack itself gives out.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! identifiers {
    ($($(#[$doc:meta])* $name:ident, $text:literal;)*) => {$(
        $(#[$doc])*
        #[derive(
            Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($text, " {}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

identifiers! {
    /// A physical NIC: one PF, reached over one device control connection.
    NicId, "NIC";
    /// A virtual switch (VMSwitch), not to be confused with the NIC switch in the hardware.
    VmSwitchId, "switch";
    /// A VM: one child partition.
    VmId, "VM";
    /// A VM network adapter.
    AdapterId, "adapter";
    /// The serial number that pairs a VF with its software NIC in the guest (OID_SRIOV_VF_SERIAL_NUMBER,
    /// SPEC-VMBUS §7). The stack gives each allocation of a VF a new one, so that whatever a guest end says about an
    /// earlier one is told apart.
    VfSerial, "serial";
}

/// A request that the stack has issued to a NIC. Unique over the life of the stack.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);
