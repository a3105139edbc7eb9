//! What passed a VM, counted at every hop.

use serde::{Deserialize, Serialize};

/// Counters of one VM since it started.
///
/// A frame that a program sends is counted by `eth0` (transmit), by the carrier (to the VF) and by the VF
/// (transmit), each time as one packet; the carrier also counts the frames that it becomes on the wire once the
/// VF has cut large segments. On the way in the same holds in reverse order.
#[derive(Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct VmStatistics {
    /// The VF as its driver sees it.
    pub vf: VfState,
    /// `eth0` as the guest's kernel counts it.
    pub eth0: InterfaceCounters,
    /// From `eth0` to the VF.
    pub to_vf: CarrierDirection,
    /// From the VF to `eth0`.
    pub to_guest: CarrierDirection,
}

/// One direction of the carrier.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct CarrierDirection {
    /// Packets passed on; a large TCP segment is one.
    pub packets: u64,
    /// Ethernet frames that these are on the wire.
    pub frames: u64,
    /// Bytes of those frames on the wire, without frame check sequence.
    pub bytes: u64,
    /// Packets not passed on, by reason.
    pub drops: Drops,
}

/// Why packets were dropped by the carrier.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Drops {
    /// The VF had no link, was in reset, or was gone.
    pub no_link: u64,
    /// The receiving side had no room.
    pub no_room: u64,
    /// Longer than the receiving side takes.
    pub too_long: u64,
    /// The offload metadata contradicts the packet, or asks for what the VF cannot do.
    pub malformed: u64,
    /// The VF reported an error with the frame.
    pub receive_error: u64,
    /// The interface refused the packet.
    pub interface_error: u64,
}

impl Drops {
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.no_link
            + self.no_room
            + self.too_long
            + self.malformed
            + self.receive_error
            + self.interface_error
    }
}

/// What a Linux interface counts (its 64-bit link statistics).
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct InterfaceCounters {
    /// Packets that the guest received.
    pub receive_packets: u64,
    /// Bytes of those.
    pub receive_bytes: u64,
    /// Packets lost on the way in.
    pub receive_dropped: u64,
    /// Packets that the guest sent.
    pub transmit_packets: u64,
    /// Bytes of those.
    pub transmit_bytes: u64,
    /// Packets lost on the way out.
    pub transmit_dropped: u64,
}

/// The VF of a VM.
#[derive(Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct VfState {
    /// Whether a VF is there and its driver runs.
    pub present: bool,
    /// Whether its link is up.
    pub link_up: bool,
    /// Speed of the link, Mbit/s.
    pub link_speed_mbps: u32,
    /// The VF's (and `eth0`'s) MAC address.
    pub mac: [u8; 6],
    /// Queue pairs in use.
    pub queue_pairs: u16,
    /// Resets that the driver recovered from.
    pub resets: u64,
    /// Times that a lost VF was found again.
    pub reconnects: u64,
    /// Frames that the VF's driver received, and their bytes.
    pub received_frames: u64,
    /// Bytes of the frames received.
    pub received_bytes: u64,
    /// Packets that the VF's driver handed to the device.
    pub transmitted_packets: u64,
    /// Bytes of those as handed over, before the device cut large segments.
    pub transmitted_bytes: u64,
}
