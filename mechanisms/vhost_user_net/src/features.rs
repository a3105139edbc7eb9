//! What the device offers, and what a driver took of it (virtio 1.2 §5.1.3, §6; vhost-user "Feature bits").

use bitflags::bitflags;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

bitflags! {
    /// Feature bits of virtio, of virtio-net, and those that vhost-user puts among them.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
    pub struct Features: u64 {
        /// The device takes packets with a partial checksum.
        const CSUM = 1 << virtio_net::VIRTIO_NET_F_CSUM;
        /// The driver takes packets with a partial checksum.
        const GUEST_CSUM = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
        /// The driver takes large TCP packets over IPv4.
        const GUEST_TSO4 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;
        /// The driver takes large TCP packets over IPv6.
        const GUEST_TSO6 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6;
        /// The driver takes large TCP packets with a congestion-window-reduced flag.
        const GUEST_ECN = 1 << virtio_net::VIRTIO_NET_F_GUEST_ECN;
        /// The device takes large TCP packets over IPv4.
        const HOST_TSO4 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4;
        /// The device takes large TCP packets over IPv6.
        const HOST_TSO6 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;
        /// The device takes large TCP packets with a congestion-window-reduced flag.
        const HOST_ECN = 1 << virtio_net::VIRTIO_NET_F_HOST_ECN;
        /// One packet for the driver may lie in several buffers.
        const MRG_RXBUF = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        /// The driver announces the guest after a migration: it does so by the front-end's control queue.
        const GUEST_ANNOUNCE = 1 << virtio_net::VIRTIO_NET_F_GUEST_ANNOUNCE;
        /// Several queue pairs.
        const MQ = 1 << virtio_net::VIRTIO_NET_F_MQ;
        /// What the device writes is noted in a log (vhost).
        const LOG_ALL = VhostUserVirtioFeatures::LOG_ALL.bits();
        /// Headers and data may share a descriptor (legacy).
        const ANY_LAYOUT = 1 << virtio_config::VIRTIO_F_ANY_LAYOUT;
        /// Descriptors may point at tables of descriptors.
        const INDIRECT_DESC = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
        /// Notifications by ring index.
        const EVENT_IDX = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
        /// Protocol features are negotiated (vhost-user).
        const PROTOCOL_FEATURES = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        /// Not a legacy driver.
        const VERSION_1 = 1 << virtio_config::VIRTIO_F_VERSION_1;
        /// Rings are packed ones.
        const RING_PACKED = 1 << virtio_config::VIRTIO_F_RING_PACKED;
        /// Buffers are used in the order in which they were made available.
        const IN_ORDER = 1 << virtio_config::VIRTIO_F_IN_ORDER;
    }
}

impl Features {
    /// What a device with so many queue pairs offers.
    #[must_use]
    pub fn offered(pairs: u16) -> Self {
        if pairs > 1 { Self::all() } else { Self::all() - Self::MQ }
    }

    /// Whether a driver's header says anything of its packets: without, it is zeros (virtio 1.2 §5.1.6.2.1).
    #[must_use]
    pub(crate) fn has_offloads(self) -> bool {
        self.intersects(Self::CSUM | Self::HOST_TSO4 | Self::HOST_TSO6)
    }

    /// Bytes of the header before each packet: 12, or 10 for a legacy driver without mergeable buffers.
    #[must_use]
    pub fn header_length(self) -> usize {
        if self.intersects(Self::VERSION_1 | Self::MRG_RXBUF) { 12 } else { 10 }
    }
}
