//! The services there are here.

use core::fmt;

use vmbus_protocol::{
    Guid, INTERFACE_HEARTBEAT, INTERFACE_SHUTDOWN, INTERFACE_TIMESYNC, OfferFlags, PipeType,
    PipeUserDefined, UserDefined,
};

use crate::{MessageType, Version};

const SHUTDOWN_VERSIONS: &[Version] =
    &[Version::new(1, 0), Version::new(3, 0), Version::new(3, 1), Version::new(3, 2)];
const HEARTBEAT_VERSIONS: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];
const TIME_SYNC_VERSIONS: &[Version] =
    &[Version::new(1, 0), Version::new(3, 0), Version::new(4, 0)];

/// An integration service.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub enum Service {
    /// The host asks the guest to shut down.
    Shutdown,
    /// The host sees that the guest is alive.
    Heartbeat,
    /// The host tells the guest the time.
    TimeSync,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Shutdown, Self::Heartbeat, Self::TimeSync];

    /// What its channel is offered as.
    pub const fn interface_id(self) -> Guid {
        match self {
            Self::Shutdown => INTERFACE_SHUTDOWN,
            Self::Heartbeat => INTERFACE_HEARTBEAT,
            Self::TimeSync => INTERFACE_TIMESYNC,
        }
    }

    /// The instance of it that each VM has on Hyper-V.
    pub const fn instance_id(self) -> Guid {
        match self {
            Self::Shutdown => Guid::new(
                0xB665_0FF7,
                0x33BC,
                0x4840,
                [0x80, 0x48, 0xE0, 0x67, 0x67, 0x86, 0xF3, 0x93],
            ),
            Self::Heartbeat => Guid::new(
                0xFD14_9E91,
                0x82E0,
                0x4A7D,
                [0xAF, 0xA6, 0x2A, 0x41, 0x66, 0xCB, 0xD7, 0xC0],
            ),
            Self::TimeSync => Guid::new(
                0x2DD1_CE17,
                0x079E,
                0x403C,
                [0xB3, 0x52, 0xA1, 0x92, 0x1E, 0xE2, 0x07, 0xEE],
            ),
        }
    }

    /// Flags of its offer: the packets carry pipe headers.
    pub const fn offer_flags(self) -> OfferFlags {
        OfferFlags::NAMED_PIPE_MODE
    }

    /// The device's bytes of its offer: a pipe of messages.
    pub fn user_defined(self) -> UserDefined {
        let pipe_type = PipeType::Message;
        PipeUserDefined { pipe_type, provider: [0; 112], gpa_direct: false }.into()
    }

    /// The type of its messages, once versions are agreed upon.
    pub const fn message_type(self) -> MessageType {
        match self {
            Self::Shutdown => MessageType::Shutdown,
            Self::Heartbeat => MessageType::Heartbeat,
            Self::TimeSync => MessageType::TimeSync,
        }
    }

    /// All published versions of its messages, oldest first.
    pub const fn versions(self) -> &'static [Version] {
        match self {
            Self::Shutdown => SHUTDOWN_VERSIONS,
            Self::Heartbeat => HEARTBEAT_VERSIONS,
            Self::TimeSync => TIME_SYNC_VERSIONS,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutdown",
            Self::Heartbeat => "heartbeat",
            Self::TimeSync => "time synchronization",
        })
    }
}
