//! Counters of an uplink.

/// What passed an uplink since it was opened, seen from the NIC.
///
/// Every frame offered by either side is in exactly one counter of its direction.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug)]
pub struct UplinkStatistics {
    /// Frames given to the NIC.
    pub received_frames: u64,
    /// Bytes of those frames.
    pub received_bytes: u64,
    /// Frames from the medium that were longer than the NIC takes.
    pub received_too_long: u64,
    /// Frames from the medium that had no whole Ethernet header.
    pub received_too_short: u64,
    /// Frames of a capture that were cut by its snap length, so that they cannot be replayed.
    pub received_incomplete: u64,
    /// Packets whose offload metadata contradict them, so that no frame can be made of them.
    pub received_malformed: u64,
    /// Frames that the kernel dropped before the NIC could take them (packet sockets; as of the last
    /// [`link`](crate::Uplink::link)).
    pub received_missed: u64,
    /// Frames put on the medium.
    pub transmitted_frames: u64,
    /// Bytes of those frames.
    pub transmitted_bytes: u64,
    /// Frames that found no link.
    pub transmit_no_link: u64,
    /// Frames that were longer than the medium takes, or had no whole Ethernet header.
    pub transmit_bad_length: u64,
    /// Frames that the medium refused for another reason.
    pub transmit_errors: u64,
}
