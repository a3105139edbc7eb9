//! The time service's messages. An answer repeats them, and says nothing.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U64};

use crate::{IntegrationProtocolError, Version, error::prefix};

/// Units of the wire's times (100 ns) in a second.
pub const TICKS_PER_SECOND: u64 = 10_000_000;
/// Units of 100 ns from 1601, when the wire's time begins, to 1970, when Unix's does.
pub const TICKS_FROM_1601_TO_1970: u64 = 11_644_473_600 * TICKS_PER_SECOND;

/// The first version whose messages refer to the partition's reference counter.
const REFERENCED: Version = Version::new(4, 0);

bitflags::bitflags! {
    #[derive(Copy, Clone)]
    struct Flags: u8 {
        const SYNC = 1;
        const SAMPLE = 2;
        const _ = !0;
    }
}

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Plain {
    host_time: U64,
    guest_time: U64,
    round_trip: U64,
    flags: u8,
    reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<Plain>() == 28);
    assert!(offset_of!(Plain, flags) == 24);
};

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Referenced {
    host_time: U64,
    reference: U64,
    flags: u8,
    leap: u8,
    stratum: u8,
    reserved: [u8; 5],
}

const _: () = {
    assert!(size_of::<Referenced>() == 24);
    assert!(offset_of!(Referenced, flags) == 16);
};

/// What a guest is to do with a time.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum TimeSyncPurpose {
    /// Nothing: the host looks how long an answer takes.
    Probe,
    /// Set its clock: it has started, or has stood still.
    Sync,
    /// Take it as a sample, and be steered by it if it wants.
    Sample,
}

/// A time of the host.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct TimeSync {
    /// UTC without leap seconds, in 100 ns since 1601.
    pub host_time: u64,
    /// From 4.0 on: what the partition's reference counter (100 ns since its start) showed at that time. `None` in older
    /// messages: it is now.
    pub reference: Option<u64>,
    /// What to do with it.
    pub purpose: TimeSyncPurpose,
}

impl TimeSync {
    /// Whether messages of this version refer to the reference counter.
    pub fn needs_reference(version: Version) -> bool {
        version >= REFERENCED
    }

    /// A body of this version as it came, which may be longer.
    ///
    /// # Errors
    /// [`IntegrationProtocolError`]: it is too short, or its flags contradict each other or are unknown.
    pub fn parse(body: &[u8], version: Version) -> Result<Self, IntegrationProtocolError> {
        const WHAT: &str = "a time";
        let (host_time, reference, flags) = if Self::needs_reference(version) {
            let (wire, _) = prefix::<Referenced>(WHAT, body)?;
            (wire.host_time.get(), Some(wire.reference.get()), wire.flags)
        } else {
            let (wire, _) = prefix::<Plain>(WHAT, body)?;
            (wire.host_time.get(), None, wire.flags)
        };
        let purpose = match flags {
            0 => TimeSyncPurpose::Probe,
            1 => TimeSyncPurpose::Sync,
            2 => TimeSyncPurpose::Sample,
            _ => return Err(IntegrationProtocolError::field(WHAT, "flags", flags)),
        };
        Ok(Self { host_time, reference, purpose })
    }

    /// The body's bytes, in the form that has the reference if it has one. Leap indicator and stratum are said to be 0:
    /// nothing is known of the host's own source.
    pub fn emit(&self) -> Vec<u8> {
        let flags = match self.purpose {
            TimeSyncPurpose::Probe => Flags::empty(),
            TimeSyncPurpose::Sync => Flags::SYNC,
            TimeSyncPurpose::Sample => Flags::SAMPLE,
        };
        let (host_time, flags) = (self.host_time.into(), flags.bits());
        match self.reference {
            Some(reference) => {
                let reference = reference.into();
                Referenced { host_time, reference, flags, leap: 0, stratum: 0, reserved: [0; 5] }
                    .as_bytes()
                    .to_vec()
            }
            None => {
                let (guest_time, round_trip) = (0.into(), 0.into());
                Plain { host_time, guest_time, round_trip, flags, reserved: [0; 3] }
                    .as_bytes()
                    .to_vec()
            }
        }
    }
}
