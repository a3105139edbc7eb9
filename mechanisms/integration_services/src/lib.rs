//! Hyper-V's integration services, host side: the guest is asked to shut down, watched by a heartbeat, and told the
//! time. A stock guest needs nothing of ours for it: Linux's `hv_utils` is the other end.
//!
//! The cores ([`ShutdownService`], [`HeartbeatService`], [`TimeSyncService`]) do no I/O and have no clock: a packet comes
//! in, with the time; a packet goes out when there is room for it. Each begins with a [`Session`], which agrees on
//! versions. [`ServiceChannel`] joins a core with a channel of a partition's VMBus, and [`IntegrationServices`] is the
//! set of them that one VM has.
//!
//! It decides nothing: whether a guest is to go, and what becomes of one that is silent, others say. A guest that has
//! agreed to shut down may still never do it.
//!
//! What a guest sends that nobody asked for, or that makes no sense, is counted and ignored; a ring that cannot be
//! read is left alone until the guest opens the channel anew. Of what was asked and not answered one thing is kept for
//! each service, and of what the ring has no room for one message.
//!
//! Follows `integration_protocol` for the messages and SPEC-VMBUS §1.5, §3.4 for offers and pipes.
//!
//! Layer: mechanisms (ARCHITECTURE.md), above `integration_protocol`, `vmbus` and `partition`. Used by the host side of a
//! partition (`vm_worker`).

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod channel;
mod heartbeat;
mod services;
mod session;
mod shutdown;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod time_sync;

use std::time::Duration;

pub use channel::ServiceChannel;
pub use heartbeat::{HeartbeatService, Pulse};
pub use integration_protocol::{
    Service, ShutdownAction, ShutdownRequest, Status, Version, Versions,
};
pub use services::IntegrationServices;
pub use session::{Ignored, Phase, Session};
pub use shutdown::{ShutdownOutcome, ShutdownRefused, ShutdownService};
pub use time_sync::{HostTime, TimeSyncService};

/// One service, as the owner of its channel drives it.
///
/// All times are of one clock that never goes back, and is the caller's. Called in any order by one thread; a message that
/// [`Self::next_message`] gives counts as sent.
pub trait IntegrationService {
    /// The conversation with the guest.
    fn session(&self) -> &Session;

    /// The guest has opened the channel: it begins anew.
    fn opened(&mut self, now: Duration);

    /// The guest has closed the channel, or its ring is broken.
    fn closed(&mut self);

    /// The guest sent a packet: its payload.
    ///
    /// # Errors
    /// [`Ignored`]: nothing came of it, but that it was counted.
    fn receive(&mut self, packet: &[u8], now: Duration) -> Result<(), Ignored>;

    /// Time has passed.
    fn poll(&mut self, now: Duration);

    /// What is to be sent now, if anything is; asked only when the ring has room. `time` reads the host's clock, for
    /// those who tell it.
    fn next_message(
        &mut self,
        now: Duration,
        time: &mut dyn FnMut() -> HostTime,
    ) -> Option<Vec<u8>>;

    /// When [`Self::poll`] and [`Self::next_message`] are to be called at the latest.
    fn deadline(&self) -> Option<Duration>;
}
