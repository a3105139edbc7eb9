//! EVENT, the only message a PF sends unasked (SPEC-AVF §4.6).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I32, U32},
};

use super::wire;
use crate::link_speed;

/// Event numbers.
pub mod event_code {
    /// The link went up or down, or changed speed.
    pub const LINK_CHANGE: i32 = 1;
    /// The PF is about to reset the VF.
    pub const RESET_IMPENDING: i32 = 2;
    /// The PF driver goes away.
    pub const PF_DRIVER_CLOSE: i32 = 3;
}

/// Severities.
pub mod severity {
    /// For information.
    pub const INFO: i32 = 0;
    /// The VF is about to stop working.
    pub const CERTAIN_DOOM: i32 = 255;
}

/// The bytes of an EVENT, 16. V demands exactly this length.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct EventMessage {
    /// [`event_code`].
    pub event: I32,
    /// Mbit/s with ADV_LINK_SPEED, else a [`link_speed::legacy`] bit.
    pub link_speed: U32,
    /// 1 when the link is up.
    pub link_status: u8,
    /// Unused.
    pub pad: [u8; 3],
    /// [`severity`].
    pub severity: I32,
}
wire!(EventMessage, 16; link_speed at 4, link_status at 8, severity at 12);

/// A VF's link.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct LinkStatus {
    /// Whether it is up.
    pub up: bool,
    /// Speed, Mbit/s; 0 when not known.
    pub mbps: u32,
}

/// The meaning of an EVENT.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Event {
    /// The link is now like this.
    LinkChange(LinkStatus),
    /// The VF is about to be reset.
    ResetImpending,
    /// The PF driver goes away.
    PfDriverClose,
    /// An event this crate does not know.
    Unknown(i32),
}

impl Event {
    /// The bytes; `advanced` is whether ADV_LINK_SPEED was granted.
    pub fn to_message(self, advanced: bool) -> EventMessage {
        let certain_doom = |event: i32| EventMessage {
            event: event.into(),
            severity: severity::CERTAIN_DOOM.into(),
            ..EventMessage::default()
        };
        match self {
            Self::LinkChange(link) => {
                let speed = if advanced { link.mbps } else { link_speed::to_legacy(link.mbps) };
                EventMessage {
                    event: event_code::LINK_CHANGE.into(),
                    link_speed: speed.into(),
                    link_status: link.up.into(),
                    pad: [0; 3],
                    severity: severity::INFO.into(),
                }
            }
            Self::ResetImpending => certain_doom(event_code::RESET_IMPENDING),
            Self::PfDriverClose => certain_doom(event_code::PF_DRIVER_CLOSE),
            Self::Unknown(event) => EventMessage { event: event.into(), ..EventMessage::default() },
        }
    }

    /// The meaning; `advanced` is whether ADV_LINK_SPEED was granted.
    pub fn from_message(message: &EventMessage, advanced: bool) -> Self {
        match message.event.get() {
            event_code::LINK_CHANGE => {
                let speed = message.link_speed.get();
                let mbps = if advanced { speed } else { link_speed::from_legacy(speed) };
                Self::LinkChange(LinkStatus { up: message.link_status != 0, mbps })
            }
            event_code::RESET_IMPENDING => Self::ResetImpending,
            event_code::PF_DRIVER_CLOSE => Self::PfDriverClose,
            event => Self::Unknown(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_examples_of_events_come_out_byte_for_byte() {
        let up = Event::LinkChange(LinkStatus { up: true, mbps: 100_000 });
        assert_eq!(
            up.to_message(true).as_bytes(),
            [1, 0, 0, 0, 0xA0, 0x86, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Event::ResetImpending.to_message(true).as_bytes(),
            [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0, 0, 0]
        );
        assert_eq!(Event::from_message(&up.to_message(true), true), up);
        let forty = Event::LinkChange(LinkStatus { up: true, mbps: 40_000 });
        assert_eq!(Event::from_message(&up.to_message(false), false), forty);
    }
}
