//! What every kind of `eth0` can do for the carrier.

use std::{io, os::fd::BorrowedFd};

use linux_network::{NetworkError, ReceivedPacket};

use super::frames::Frames;
use crate::Drops;

/// The far side of the guest's `eth0`: what the guest sends comes out here, what is put in here the guest
/// receives.
///
/// The carrier's thread makes all calls. None blocks.
pub(crate) trait GuestInterface: Send {
    /// Offers packets that the guest sent to `take`, in order, at most `limit`.
    ///
    /// One for which `take` returns false stays, is offered first by the next call, and ends this one.
    /// Returns how many were taken.
    fn receive(
        &mut self,
        limit: usize,
        take: &mut dyn FnMut(&ReceivedPacket<'_>) -> bool,
    ) -> io::Result<usize>;

    /// Gives frames to the guest, in order. Returns how many it got and their bytes; those that it did not
    /// get are counted in `drops`.
    fn transmit(&mut self, frames: &Frames, drops: &mut Drops) -> (u64, u64);

    /// Sets whether `eth0` has a carrier.
    fn set_carrier(&mut self, carrier: bool) -> Result<(), NetworkError>;

    /// Whether packets are waiting that [`fd`](Self::fd) does not show.
    fn is_ready(&self) -> bool;

    /// Readable when the guest sends.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Packets of the guest that were lost before they could be offered.
    fn missed(&mut self) -> u64 {
        0
    }
}
