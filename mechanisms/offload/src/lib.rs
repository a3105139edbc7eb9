//! Frame offloads: what a NIC does to a frame between descriptor and wire. Packet types, checksums, VLAN
//! tags, TCP and UDP segmentation, and the Toeplitz hash of receive-side scaling.
//!
//! Pure functions on header bytes and running sums. It does no I/O, allocates nothing, keeps no state
//! between frames, and never touches shared memory: callers hand it the header (copied out once) and feed
//! payload bytes, in pieces of any size, to a running checksum while they copy them.
//! Any bytes at all are accepted; what makes no sense is classified as such or refused with an
//! [`OffloadError`].
//!
//! Follows SPEC-AVF §5.2–5.7. A mechanism: used by the adapter's data path and by virtual switches; depends
//! on no other crate of this workspace.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod checksum;
mod classify;
mod ether;
mod fill;
mod rss;
mod segment;
#[cfg(test)]
mod tests;
mod verify;

pub use checksum::{Sum, ipv4_header_checksum, write_ipv4_header_checksum};
pub use classify::{Cast, L3Protocol, L4Protocol, PacketInfo, PacketType, classify};
pub use ether::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_LLDP, EtherHeader, TPID_8021AD,
    TPID_8021Q, TPID_QINQ, VLAN_TAG_LEN, VlanTag, insert_vlan_tag, strip_vlan_tag,
};
pub use fill::{ChecksumPatch, L4Fill, fill_l4_checksum};
pub use rss::{
    HashEnable, LOOKUP_TABLE_LEN, RSS_KEY_LEN, RssInput, Toeplitz, lookup_queue, toeplitz_reference,
};
pub use segment::{
    HeaderLayout, MAX_HEADER_LEN, MAX_PAYLOAD_LEN, Segment, SegmentKind, SegmentPlan,
};
pub use verify::{ChecksumVerdict, ChecksumVerdicts, L4Verifier, verify, verify_ipv4_header};

/// Why an offload that a descriptor asked for cannot be done. The frame is to be dropped and counted as a
/// transmit error (SPEC-AVF §5.3, malformed chains).
#[derive(Copy, Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum OffloadError {
    /// Segmentation was asked for with MSS 0.
    #[error("segmentation with MSS 0; the driver must state at least 1 byte")]
    ZeroMss,
    /// The stated header lengths do not fit in the bytes that are there.
    #[error("headers of {stated} bytes stated, {available} bytes present")]
    HeadersBeyondData {
        /// Bytes of MAC, IP and L4 headers as the descriptor says.
        stated: usize,
        /// Bytes of the frame.
        available: usize,
    },
    /// The stated headers are longer than the device takes.
    #[error("headers of {stated} bytes stated, the device takes at most {limit}")]
    HeadersTooLong {
        /// Bytes stated.
        stated: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A stated header length contradicts the header itself or is below the protocol's minimum.
    #[error("{header} header of {stated} bytes stated, which its contents contradict")]
    WrongHeaderLength {
        /// `"MAC"`, `"IPv4"`, `"IPv6"`, `"TCP"` or `"UDP"`.
        header: &'static str,
        /// Bytes stated.
        stated: usize,
    },
    /// The IP header's version is neither 4 nor 6.
    #[error("IP version {version} where an IPv4 or IPv6 header was stated")]
    NotIp {
        /// The version nibble found.
        version: u8,
    },
    /// The IP header names another protocol than the descriptor.
    #[error("IP protocol {found} where the descriptor says {expected}")]
    WrongProtocol {
        /// Protocol number in the IP header.
        found: u8,
        /// Protocol number that the descriptor asks for.
        expected: u8,
    },
    /// More payload than a context descriptor can state.
    #[error("{length} bytes to segment, the most is {MAX_PAYLOAD_LEN}")]
    PayloadTooLong {
        /// Bytes of payload.
        length: u32,
    },
    /// One segment would be longer than an IP datagram can be.
    #[error("a segment of {length} bytes is longer than an IP datagram can be")]
    SegmentTooLong {
        /// Bytes of IP datagram.
        length: usize,
    },
    /// A checksum offload for a protocol that has none here.
    #[error("no checksum offload for {0:?}")]
    NoChecksum(L4Protocol),
}
