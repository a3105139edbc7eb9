//! NetVSC: the guest's end.

mod buffers;
mod control;
mod nic;
mod queue;
mod vf;

use netvsp_protocol::{
    MacAddress,
    nvsp::{NvspCapabilities, NvspVersion},
    offload::OffloadCapabilities,
};

pub use self::{
    control::{Control, Effect},
    nic::NetVsc,
    queue::{LargeBuffers, NotSent, QueueStatistics, VscQueue},
    vf::VfPath,
};
use crate::ProtocolError;
pub use crate::Stop;

/// How a guest wants its synthetic NIC.
#[derive(Clone, Debug)]
pub struct VscConfig {
    /// The newest NVSP version to ask for.
    pub newest: NvspVersion,
    /// The longest frame, bytes with the Ethernet header.
    pub mtu: u32,
    /// What the guest can do.
    pub capabilities: NvspCapabilities,
    /// Channels wanted, the primary included.
    pub channels: u16,
    /// GPADL and id of the receive buffer.
    pub receive_buffer: (u32, u16),
    /// GPADL and id of the send buffer.
    pub send_buffer: (u32, u16),
    /// Key of the RSS hash.
    pub rss_key: [u8; 40],
}

impl VscConfig {
    /// As Linux asks: version 6.1, 1514 bytes, 802.1Q, SR-IOV and teaming; for buffers with these GPADLs.
    #[must_use]
    pub fn new(receive_gpadl: u32, send_gpadl: u32) -> Self {
        Self {
            newest: NvspVersion::V61,
            mtu: 1514,
            capabilities: NvspCapabilities::IEEE_8021Q
                | NvspCapabilities::SRIOV
                | NvspCapabilities::TEAMING,
            channels: 1,
            receive_buffer: (receive_gpadl, 0xCAFE),
            send_buffer: (send_gpadl, 0),
            // The bytes matter little; that they are not all alike does.
            rss_key: std::array::from_fn(|i| u8::try_from((i * 89 + 0x6d) & 0xFF).unwrap_or(0x6d)),
        }
    }
}

/// What whoever holds the NIC is to do, or wants to know.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Upcall {
    /// Open the subchannels with indexes 1 to this, once they are offered.
    OpenSubchannels {
        /// How many.
        count: u16,
    },
    /// The NIC is up.
    Up {
        /// Its address.
        mac: MacAddress,
        /// The longest frame, bytes.
        mtu: u32,
        /// Offloads that are on.
        offloads: OffloadCapabilities,
        /// Whether the link is up.
        connected: bool,
        /// Channels.
        channels: u16,
    },
    /// The link came up or went down.
    Link {
        /// Whether it is up.
        connected: bool,
    },
    /// The offloads in use changed.
    Offloads(OffloadCapabilities),
    /// A VF with this serial number will be offered, or (`None`) the one that was is going.
    VfAssociation(Option<u32>),
    /// Send no more frames through the VF.
    StopVf,
    /// Send frames through the VF from now on.
    StartVf,
    /// Frames come by the synthetic path again: the VF's driver may go down.
    VfReleased,
    /// The NIC could not be brought up, or the server broke the protocol.
    Failed(ProtocolError),
}
