//! Uplinks of a NIC: TAP, AF_PACKET, pcap replay and record, and a cable to another adapter.
//!
//! An uplink is the physical side of the NIC: what a cable is to a card. It moves whole Ethernet frames (no
//! frame check sequence, no offload metadata: the NIC finishes checksums and cuts segments before a frame
//! gets here) and reports the link. It refuses to look into frames, to decide where they go, and to block:
//! every call returns at once, and a burst ends where the medium has no more.
//!
//! One thread, the NIC's data path worker, owns an uplink and polls it; see [`Uplink`] for the order of
//! calls. Kinds are named by an [`UplinkSpec`] and opened with [`open`].
//!
//! Layer: mechanisms (ARCHITECTURE.md). Used by the adapter.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod burst;
mod cable;
mod error;
mod none;
mod packet;
mod pcap;
mod spec;
mod statistics;
mod tap;

use std::os::fd::BorrowedFd;

pub use burst::FrameBurst;
pub use cable::CableUplink;
pub use error::UplinkError;
pub use none::NoUplink;
pub use packet::PacketUplink;
pub use pcap::PcapUplink;
pub use spec::{ReplayTiming, SpecError, UplinkSpec};
pub use statistics::UplinkStatistics;
pub use tap::TapUplink;

/// Bytes of an Ethernet header without VLAN tags; anything shorter is no frame.
pub const ETHERNET_HEADER: usize = 14;

/// What the NIC sees of the medium.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct LinkState {
    /// Whether frames can pass.
    pub up: bool,
    /// Nominal speed in Mbit/s; 0 where the medium does not know. Meaningless while the link is down.
    pub speed_mbps: u32,
}

impl LinkState {
    /// No link.
    pub const DOWN: Self = Self { up: false, speed_mbps: 0 };

    /// A link of the given speed in Mbit/s.
    pub const fn up(speed_mbps: u32) -> Self {
        Self { up: true, speed_mbps }
    }
}

/// The physical side of a NIC.
///
/// One thread, the NIC's data path worker, makes all calls; none of them blocks. While busy the worker
/// alternates [`receive`](Self::receive) and [`transmit`](Self::transmit). Before it sleeps it calls
/// [`arm`](Self::arm), sleeps on [`wait_fd`](Self::wait_fd) only if that returned true, and then receives
/// again. [`link`](Self::link) is for control rate: a few times a second and after each wake-up.
///
/// An error is returned once per cause, by `receive` with an empty burst, by `transmit` when all of the
/// burst has been consumed. After it the uplink stays usable: its link is down (or, for a replay, its
/// replay is over) and it receives nothing until the medium comes back by itself.
pub trait Uplink: Send {
    /// Clears `burst` and fills it with frames from the medium, in order, up to its capacity.
    ///
    /// Returns how many; 0 means that there are none now. Frames longer than the burst's
    /// [`max_frame`](FrameBurst::max_frame) or shorter than an Ethernet header are counted and left out.
    fn receive(&mut self, burst: &mut FrameBurst) -> Result<usize, UplinkError>;

    /// Hands the frames of `burst` to the medium, in order, until it can take no more.
    ///
    /// Returns how many were consumed: sent, or dropped and counted because the medium will never take them
    /// (link down, too long). The rest may be offered again after [`FrameBurst::advance`], or dropped by the
    /// caller as congestion.
    fn transmit(&mut self, burst: &FrameBurst) -> Result<usize, UplinkError>;

    /// The link as it is now. May make a system call.
    fn link(&mut self) -> LinkState;

    /// Asks that [`wait_fd`](Self::wait_fd) become readable when a frame arrives or the link changes.
    ///
    /// False if there are frames already: receive instead of sleeping. Needed before each sleep.
    fn arm(&mut self) -> Result<bool, UplinkError> {
        Ok(true)
    }

    /// What an idle worker may sleep on (POLLIN); `None` if nothing will ever arrive by itself.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Counters since the uplink was opened.
    fn statistics(&self) -> UplinkStatistics;

    /// Whether a replay is over: `None` for an uplink that replays nothing.
    fn replay_finished(&self) -> Option<bool> {
        None
    }

    /// What was opened, as its spec reads.
    fn spec(&self) -> &UplinkSpec;
}

/// Opens the uplink that `spec` names, for frames of up to `max_frame` bytes (Ethernet header and VLAN tags
/// included).
///
/// # Errors
/// The interface, file or socket cannot be opened. That the other end of a cable is not there is none.
pub fn open(spec: &UplinkSpec, max_frame: usize) -> Result<Box<dyn Uplink>, UplinkError> {
    Ok(match spec {
        UplinkSpec::None => Box::new(NoUplink::default()),
        UplinkSpec::Tap { name } => Box::new(TapUplink::open(name, max_frame)?),
        UplinkSpec::Packet { interface } => Box::new(PacketUplink::open(interface, max_frame)?),
        UplinkSpec::Pcap { input, output, timing } => {
            Box::new(PcapUplink::open(input.as_deref(), output.as_deref(), *timing, max_frame)?)
        }
        UplinkSpec::Cable { socket } => Box::new(CableUplink::open(socket, max_frame)?),
    })
}
