//! What a port is.

use std::{any::Any, os::fd::BorrowedFd, time::Instant};

use crate::{Frame, Staging};

/// Why a port with a socket of its own cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{port} cannot be served: {what}")]
pub struct ServeError {
    port: &'static str,
    what: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ServeError {
    /// What of which kind of port is missing, for an error.
    pub(crate) fn of<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        port: &'static str,
        what: &'static str,
    ) -> impl Fn(E) -> Self {
        move |source| Self { port, what, source: source.into() }
    }
}

/// Why a port did not take a frame.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum NotDelivered {
    /// Whoever is behind the port does not receive, or not such frames.
    NotWanted,
    /// There is no buffer, or no room in a ring.
    NoBuffer,
    /// It is longer than what is behind the port takes.
    TooLong,
    /// Its offloads ask for what cannot be done.
    Malformed,
}

/// One port: where frames come from and go to.
///
/// The thread that drives the switch calls everything here. In each round it calls `poll`, which hands over frames
/// and keeps none of them; in between, other ports' frames arrive by `deliver`; at the round's end `flush` makes
/// them visible. `prepare_to_wait` comes before the thread sleeps; if any port says that it has something to do, the
/// thread does not sleep. Otherwise it sleeps until one of the descriptors of `wait_on` is readable, or the earliest
/// `deadline` is there, and calls `woken`, then `poll`.
pub trait Port: Send + Any {
    /// Hands the frames that have arrived to `forward`, in their order and as many at once as there are, some bursts at
    /// most. True if there was anything to do.
    fn poll(&mut self, now: Instant, forward: &mut dyn FnMut(&[Frame<'_>])) -> bool;

    /// Frames of the last poll, of a port that is better looked at when there are more of them; 0 of others.
    fn gathered(&self) -> usize {
        0
    }

    /// Takes one frame, whose bytes are copied before this returns.
    ///
    /// # Errors
    /// Why it did not.
    fn deliver(&mut self, frame: &Frame<'_>, staging: &mut Staging) -> Result<(), NotDelivered>;

    /// Takes as many of the frames, from the first on, as go as they are and at once, whose bytes are copied before this
    /// returns; returns how many. The others are delivered one by one.
    fn deliver_whole(&mut self, _frames: &[Frame<'_>]) -> usize {
        0
    }

    /// Makes what was delivered visible to whoever is behind the port.
    fn flush(&mut self);

    /// Asks to be told of new frames; false if there are some already.
    fn prepare_to_wait(&mut self) -> bool;

    /// Adds the descriptors that become readable when there are new frames.
    fn wait_on<'a>(&'a self, fds: &mut Vec<BorrowedFd<'a>>);

    /// Takes the signals that came, and wants none until it is asked to be told again.
    fn woken(&mut self);

    /// When it is to be polled at the latest, though nothing may have come.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Whether frames can be delivered: a port that cannot takes none, and its VM's frames go elsewhere.
    fn is_receiving(&self) -> bool;

    /// Whether whoever is behind the port takes frames by way of the uplink instead: a VM on its VF. Frames of other
    /// ports for it go to the uplink then, and it takes no group addresses; what the uplink brings for it all the same,
    /// it takes.
    fn is_away(&self) -> bool {
        false
    }

    /// Hands over what has waited here and goes by the uplink, in its order. Asked of a port that is away, after each
    /// poll.
    fn release(&mut self, _to_uplink: &mut dyn FnMut(&Frame<'_>)) {}
}
