//! NetVSP: the host's end.

mod control;
mod gather;
mod nic;
mod place;
mod queue;
mod relay;
mod rndis;
mod vf;
mod vf_events;

use std::{sync::Arc, time::Duration};

use netvsp_protocol::{
    MacAddress,
    nvsp::{DataPath, MAX_CHANNELS, MIN_MTU, NvspVersion},
    offload::OffloadCapabilities,
    oid::PacketFilter,
};

pub use self::{
    control::{Control, Effect},
    nic::{NetVsp, Poll},
    queue::{NotDelivered, VspQueue},
    relay::{VfCommand, VfReport},
    vf::VfState,
};
pub use crate::Stop;
use crate::{ProtocolError, Steering};

/// How a synthetic NIC is to be.
#[derive(Clone, Debug)]
pub struct NicConfig {
    /// Its MAC address; the VF beside it has the same.
    pub mac: MacAddress,
    /// The newest NVSP version to agree to.
    pub newest: NvspVersion,
    /// Channels, the primary included: 1 to 64.
    pub max_channels: u16,
    /// Whether a guest that can have a VF is told of one.
    pub sriov: bool,
    /// Who decides about the VF.
    pub vf: VfControl,
    /// Offloads that whoever forwards the frames can do.
    pub offloads: OffloadCapabilities,
    /// Whether the link is up.
    pub connected: bool,
    /// The link's speed, bits per second.
    pub link_speed: u64,
    /// What a guest shows as the adapter's name.
    pub friendly_name: String,
}

impl NicConfig {
    /// A NIC with everything on, one channel, and a link of 10 Gbit/s that is up.
    #[must_use]
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            newest: NvspVersion::V61,
            max_channels: 1,
            sriov: true,
            vf: VfControl::Own { offer_delay: OFFER_DELAY },
            offloads: OffloadCapabilities::ALL,
            connected: true,
            link_speed: 10_000_000_000,
            friendly_name: "Clearway synthetic adapter".into(),
        }
    }

    /// With as many channels as can be.
    fn cut(mut self) -> Self {
        let most = u16::try_from(MAX_CHANNELS).unwrap_or(u16::MAX);
        self.max_channels = self.max_channels.clamp(1, most);
        self
    }
}

/// Who decides about the VF beside a NIC.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum VfControl {
    /// The NIC: [`NetVsp::vf_available`], [`NetVsp::vf_lost`] and [`NetVsp::data_path_switched`] are its events, and it
    /// says when filters are to be moved and the VPCI device to be offered and revoked (SPEC-VMBUS §7).
    Own {
        /// How long after its association the VF's VPCI device is offered: old Linux guests name the synthetic
        /// interface first then ([`OFFER_DELAY`]).
        offer_delay: Duration,
    },
    /// Its host, by [`VfCommand`]s; what the guest asks is [`Upcall::SwitchDataPath`] and [`Control::vf_report`]. The
    /// VPCI device is the host's alone.
    Host,
}

/// How long after its association a VF's VPCI device is usually offered (SPEC-VMBUS §7).
pub const OFFER_DELAY: Duration = Duration::from_secs(1);

/// Which of the guest's buffers.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum BufferKind {
    /// For frames to the guest.
    Receive,
    /// For frames from the guest.
    Send,
}

/// What whoever holds the NIC is to do, or wants to know.
#[derive(Clone, Debug)]
pub enum Upcall {
    /// Look up a GPADL of the NIC's channel; the answer is `gpadl_mapped`. Until then the guest waits.
    MapGpadl {
        /// Its id.
        gpadl: u32,
        /// What it is for.
        kind: BufferKind,
    },
    /// The guest took a buffer back and nothing here uses it any more.
    GpadlReleased {
        /// Its id.
        gpadl: u32,
    },
    /// Offer subchannels with indexes 1 to this.
    OfferSubchannels {
        /// How many.
        count: u16,
    },
    /// The guest is up: what it can do.
    Initialized {
        /// The version agreed on.
        version: NvspVersion,
        /// The longest frame to it and, but for large sends, from it, bytes.
        mtu: u32,
    },
    /// The guest went down: RNDIS HALT, or its buffers are gone.
    Halted,
    /// Which frames the guest wants.
    PacketFilter(PacketFilter),
    /// Multicast addresses that the guest listens to.
    MulticastList(Vec<MacAddress>),
    /// How frames to the guest are spread over its channels; without one all take the primary.
    Steering(Option<Arc<Steering>>),
    /// The offloads in use.
    Offloads(OffloadCapabilities),
    /// The guest would like another MAC address; nothing is done about it here.
    MacAddressWish(MacAddress),
    /// Move the receive filters of the NIC (MAC and VLAN) to the VF's VPort or back; the answer is
    /// `data_path_switched`, or `vf_command` where the host decides about the VF.
    SwitchDataPath(
        /// To which path.
        DataPath,
    ),
    /// Offer the VPCI device of the VF with this serial number.
    OfferVpci {
        /// The serial number.
        serial: u32,
    },
    /// Eject or rescind that VPCI device; the guest was told before.
    RevokeVpci {
        /// The serial number.
        serial: u32,
    },
    /// The guest broke the protocol on a channel; it is served no more until it is closed.
    Dead {
        /// Which channel.
        channel: u16,
        /// How.
        error: ProtocolError,
    },
}

/// Where a NIC is in its life.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Default)]
pub enum QueuePhase {
    /// No frames yet: one from the guest is an error.
    #[default]
    Starting,
    /// Frames pass.
    Running,
    /// No frames any more: those that still come are refused.
    Stopped,
}

/// What a queue has to know of the control core's state. A value to be handed to the thread that owns the queue.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct QueueState {
    /// Whether frames pass.
    pub phase: QueuePhase,
    /// The version agreed on: how long messages are.
    pub version: NvspVersion,
    /// The longest frame, bytes.
    pub mtu: u32,
    /// Which frames the guest wants.
    pub filter: PacketFilter,
    /// Bytes of a suballocation of the receive buffer.
    pub sub_allocation_size: u32,
    /// The receive buffer's id.
    pub receive_buffer_id: u16,
}

impl Default for QueueState {
    fn default() -> Self {
        Self {
            phase: QueuePhase::default(),
            version: NvspVersion::V1,
            mtu: MIN_MTU,
            filter: PacketFilter::empty(),
            sub_allocation_size: 0,
            receive_buffer_id: 0,
        }
    }
}

/// What passed through a queue. "Transmitted" is by the guest, "received" is by the guest.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct QueueStatistics {
    /// Frames from the guest.
    pub transmitted: u64,
    /// Their bytes.
    pub transmitted_bytes: u64,
    /// Frames to the guest.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Ring packets from the guest whose RNDIS messages made no sense; their frames were dropped.
    pub malformed: u64,
    /// Ring packets that came after the guest had halted.
    pub refused: u64,
    /// Completions that answer nothing.
    pub unasked_completions: u64,
    /// Frames to the guest that it does not want.
    pub not_wanted: u64,
    /// Frames to the guest for which it had no suballocation.
    pub no_buffer: u64,
    /// Frames to the guest that are longer than the MTU.
    pub too_long: u64,
    /// Frames to the guest for which the ring had no room.
    pub ring_full: u64,
}

impl QueueStatistics {
    fn count(&mut self, reason: NotDelivered) {
        *match reason {
            NotDelivered::NotWanted => &mut self.not_wanted,
            NotDelivered::NoBuffer => &mut self.no_buffer,
            NotDelivered::TooLong => &mut self.too_long,
            NotDelivered::RingFull => &mut self.ring_full,
        } += 1;
    }
}
