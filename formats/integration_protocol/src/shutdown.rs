//! The shutdown service's messages. An answer has no body; its status says whether the guest does it.

use core::mem::offset_of;

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U32,
};

use crate::{IntegrationProtocolError, Version, error::prefix};

/// Bytes for a text that the guest may show. No published source says how it is encoded: it is sent empty here, and
/// not looked at.
pub const TEXT_SIZE: usize = 2048;

/// Reason: it was planned (SHTDN_REASON_FLAG_PLANNED), and nothing more is known.
pub const REASON_PLANNED: u32 = 0x8000_0000;

bitflags::bitflags! {
    #[derive(Copy, Clone)]
    struct Flags: u32 {
        const FORCE = 1;
        const RESTART = 2;
        const HIBERNATE = 4;
        const _ = !0;
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    reason: U32,
    limit_seconds: U32,
    flags: U32,
    text: [u8; TEXT_SIZE],
}

const _: () = {
    assert!(size_of::<Wire>() == 2060);
    assert!(offset_of!(Wire, flags) == 8);
    assert!(offset_of!(Wire, text) == 12);
};

/// How a guest is to end.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum ShutdownAction {
    /// It powers off.
    PowerOff,
    /// It starts again. From 3.1 on.
    Restart,
    /// It stores its memory and powers off. From 3.2 on.
    Hibernate,
}

impl ShutdownAction {
    /// The first version of the service in which it can be asked for.
    pub const fn since(self) -> Version {
        match self {
            Self::PowerOff => Version::new(1, 0),
            Self::Restart => Version::new(3, 1),
            Self::Hibernate => Version::new(3, 2),
        }
    }
}

/// What a host asks for.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct ShutdownRequest {
    /// How the guest is to end.
    pub action: ShutdownAction,
    /// Whether it is to wait for no program that would object.
    pub force: bool,
    /// Why: a reason code of Windows (SHTDN_REASON_…).
    pub reason: u32,
    /// How long the guest may take, in seconds; 0: as long as it needs.
    pub limit_seconds: u32,
}

impl ShutdownRequest {
    /// A body as it came, which may be longer.
    ///
    /// # Errors
    /// [`IntegrationProtocolError`]: it is too short, or its flags contradict each other or are unknown.
    pub fn parse(body: &[u8]) -> Result<Self, IntegrationProtocolError> {
        const WHAT: &str = "a shutdown request";
        let (wire, _) = prefix::<Wire>(WHAT, body)?;
        let flags = Flags::from_bits_retain(wire.flags.get());
        let action = match flags.difference(Flags::FORCE).bits() {
            0 => ShutdownAction::PowerOff,
            2 => ShutdownAction::Restart,
            4 => ShutdownAction::Hibernate,
            _ => return Err(IntegrationProtocolError::field(WHAT, "flags", flags.bits())),
        };
        Ok(Self {
            action,
            force: flags.contains(Flags::FORCE),
            reason: wire.reason.get(),
            limit_seconds: wire.limit_seconds.get(),
        })
    }

    /// The body's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut flags = match self.action {
            ShutdownAction::PowerOff => Flags::empty(),
            ShutdownAction::Restart => Flags::RESTART,
            ShutdownAction::Hibernate => Flags::HIBERNATE,
        };
        flags.set(Flags::FORCE, self.force);
        let mut wire = Wire::new_zeroed();
        wire.reason = self.reason.into();
        wire.limit_seconds = self.limit_seconds.into();
        wire.flags = flags.bits().into();
        wire.as_bytes().to_vec()
    }
}
