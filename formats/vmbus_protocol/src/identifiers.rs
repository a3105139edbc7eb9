//! Identifiers of channels, GPADLs, processors and devices (SPEC-VMBUS §1).

use crate::Guid;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
        pub struct $name(pub u32);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

identifier! {
    /// A channel of a connection, named by the server: 1 to 2,047.
    ChannelId
}
identifier! {
    /// A GPADL of a channel, named by the client.
    GpadlId
}
identifier! {
    /// A virtual processor, by its index.
    VpIndex
}

impl VpIndex {
    /// On the wire: no processor, interrupts are off.
    pub(crate) const DISABLED: u32 = 0xFFFF_FFFF;

    pub(crate) fn parse(value: u32) -> Option<Self> {
        (value != Self::DISABLED).then_some(Self(value))
    }

    pub(crate) fn emit(value: Option<Self>) -> u32 {
        value.map_or(Self::DISABLED, |vp| vp.0)
    }
}

/// Interface id of network channels (NetVSP).
pub const INTERFACE_NETWORK: Guid =
    Guid::new(0xf861_5163, 0xdf3e, 0x46c5, [0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e]);
/// Interface id of virtual PCI buses (VPCI).
pub const INTERFACE_VPCI: Guid =
    Guid::new(0x44c4_f61d, 0x4444, 0x4400, [0x9d, 0x52, 0x80, 0x2e, 0x27, 0xed, 0xe1, 0x9f]);
/// Interface id of SCSI controllers.
pub const INTERFACE_SCSI: Guid =
    Guid::new(0xba61_63d9, 0x04a1, 0x4d29, [0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f]);
/// Interface id of the shutdown service.
pub const INTERFACE_SHUTDOWN: Guid =
    Guid::new(0x0e0b_6031, 0x5213, 0x4934, [0x81, 0x8b, 0x38, 0xd9, 0x0c, 0xed, 0x39, 0xdb]);
/// Interface id of the key-value pair service.
pub const INTERFACE_KVP: Guid =
    Guid::new(0xa9a0_f4e7, 0x5a45, 0x4d96, [0xb8, 0x27, 0x8a, 0x84, 0x1e, 0x8c, 0x03, 0xe6]);
/// Interface id of the time service.
pub const INTERFACE_TIMESYNC: Guid =
    Guid::new(0x9527_e630, 0xd0ae, 0x497b, [0xad, 0xce, 0xe8, 0x0a, 0xb0, 0x17, 0x5c, 0xaf]);
/// Interface id of the heartbeat service.
pub const INTERFACE_HEARTBEAT: Guid =
    Guid::new(0x5716_4f39, 0x9115, 0x4e78, [0xab, 0x55, 0x38, 0x2f, 0x3b, 0xd5, 0x42, 0x2d]);
