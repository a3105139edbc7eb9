//! The heartbeat service's messages.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{IntegrationProtocolError, error::prefix};

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    sequence: U64,
    state: U32,
    /// Guests know these 40 bytes, or as many of them as they look at.
    reserved: [U32; 7],
}

const _: () = assert!(size_of::<Wire>() == 40);

/// How a guest says that it is. Linux does not say it: 0.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct ApplicationState(pub u32);

impl ApplicationState {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);
    /// All is well.
    pub const HEALTHY: Self = Self(1);
    /// There was a critical error.
    pub const CRITICAL: Self = Self(2);
    /// It does not run any more.
    pub const STOPPED: Self = Self(3);
}

/// A heartbeat, or its answer.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct Heartbeat {
    /// Counts heartbeats; the answer has one more.
    pub sequence: u64,
    /// In an answer, how the guest is.
    pub state: ApplicationState,
}

impl Heartbeat {
    /// A body as it came: the sequence number, and the state if it is there.
    ///
    /// # Errors
    /// [`IntegrationProtocolError::Truncated`].
    pub fn parse(body: &[u8]) -> Result<Self, IntegrationProtocolError> {
        let (sequence, rest) = prefix::<U64>("a heartbeat", body)?;
        let state = prefix::<U32>("a heartbeat's state", rest).map_or(0, |(state, _)| state.get());
        Ok(Self { sequence: sequence.get(), state: ApplicationState(state) })
    }

    /// The body's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let (sequence, state) = (self.sequence.into(), self.state.0.into());
        Wire { sequence, state, reserved: [0.into(); 7] }.as_bytes().to_vec()
    }
}
