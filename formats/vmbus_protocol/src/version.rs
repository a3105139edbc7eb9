//! Protocol versions and feature flags (SPEC-VMBUS §1.3, §1.4).

use core::fmt;

/// A protocol version that both ends may speak, in ascending order.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
#[repr(u32)]
pub enum Version {
    /// 2.4.
    Win8 = 0x0002_0004,
    /// 3.0.
    Win8_1 = 0x0003_0000,
    /// 4.0: reserved channels, hvsocket.
    Win10 = 0x0004_0000,
    /// 4.1: MODIFY_CHANNEL.
    Rs3_0 = 0x0004_0001,
    /// 5.0: the server names the connection id for the messages that follow.
    Rs3_1 = 0x0005_0000,
    /// 5.1: the target VTL.
    Rs4 = 0x0005_0001,
    /// 5.2: silo ids of hvsocket.
    Rs5 = 0x0005_0002,
    /// 5.3: MODIFY_CHANNEL is answered.
    Iron = 0x0005_0003,
    /// 6.0: feature flags.
    Copper = 0x0006_0000,
}

impl Version {
    /// All versions, the highest first: the order in which a client asks.
    pub const ALL: [Self; 9] = [
        Self::Copper,
        Self::Iron,
        Self::Rs5,
        Self::Rs4,
        Self::Rs3_1,
        Self::Rs3_0,
        Self::Win10,
        Self::Win8_1,
        Self::Win8,
    ];

    /// The version with this number: major in the upper half, minor in the lower.
    pub fn from_wire(value: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|version| *version as u32 == value)
    }

    /// Major and minor.
    pub fn numbers(self) -> (u32, u32) {
        (self as u32 >> 16, self as u32 & 0xFFFF)
    }

    /// The connection id that the client posts INITIATE_CONTACT to.
    pub fn contact_connection_id(self) -> u32 {
        if self >= Self::Rs3_1 { MULTI_CLIENT_CONNECTION_ID } else { CONNECTION_ID }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.numbers();
        write!(f, "{major}.{minor}")
    }
}

/// Connection id that a client posts to for versions before 5.0 (SPEC-VMBUS §1.1).
pub const CONNECTION_ID: u32 = 1;
/// Connection id that a client posts INITIATE_CONTACT to for versions from 5.0.
pub const MULTI_CLIENT_CONNECTION_ID: u32 = 4;
/// The synthetic interrupt source that VMBus uses.
pub const VMBUS_SINT: u8 = 2;
/// Channel ids are below this: there are so many event flags.
pub const MAX_CHANNELS: u32 = 2048;

/// The connection id by which a guest signals a channel, if nothing else is agreed.
pub fn channel_connection_id(channel: u32, sint: u8, vtl: u8) -> u32 {
    channel | u32::from(sint) << 12 | u32::from(vtl) << 16
}

bitflags::bitflags! {
    /// What both ends support, from version 6.0 on. Unknown bits are kept.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Default, Hash)]
    pub struct FeatureFlags: u32 {
        /// The client may choose event flag and connection id when opening (long OPEN_CHANNEL).
        const GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x01;
        /// The flag for interrupt redirection is honoured (long OPEN_CHANNEL).
        const CHANNEL_INTERRUPT_REDIRECTION = 0x02;
        /// MODIFY_CONNECTION exists.
        const MODIFY_CONNECTION = 0x04;
        /// INITIATE_CONTACT carries a client id.
        const CLIENT_ID = 0x08;
        /// Offer flags about confidential memory have a meaning.
        const CONFIDENTIAL_CHANNELS = 0x10;
        /// PAUSE and RESUME exist.
        const PAUSE_RESUME = 0x20;
        /// The server may supply the monitor pages.
        const SERVER_SPECIFIED_MONITOR_PAGES = 0x40;
        /// The offer flag about pinned memory has a meaning.
        const PINNED_MEMORY = 0x80;
        const _ = !0;
    }
}

/// What a connection speaks, as far as the form of messages depends on it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Negotiated {
    /// The version.
    pub version: Version,
    /// The features; none before 6.0.
    pub features: FeatureFlags,
}

impl Negotiated {
    /// A version without features.
    pub fn plain(version: Version) -> Self {
        Self { version, features: FeatureFlags::empty() }
    }

    /// Whether OPEN_CHANNEL has the long form.
    pub fn long_open(&self) -> bool {
        self.features.intersects(
            FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS
                | FeatureFlags::CHANNEL_INTERRUPT_REDIRECTION,
        )
    }
}
