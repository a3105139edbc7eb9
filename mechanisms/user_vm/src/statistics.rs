//! What passed a VM, counted at every hop.

use serde::{Deserialize, Serialize};

/// Counters of one VM since it started.
///
/// A frame that a program sends is counted by `eth0` (transmit), by the carrier (to the VF) and by the VF
/// (transmit), each time as one packet; the carrier also counts the frames that it becomes on the wire once the
/// VF has cut large segments. On the way in the same holds in reverse order.
///
/// The fields before `adapters` are those of `eth0`, whatever carries it.
#[derive(Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct VmStatistics {
    /// The VF as its driver sees it.
    pub vf: VfState,
    /// `eth0` as the guest's kernel counts it.
    pub eth0: InterfaceCounters,
    /// From `eth0` to the VF; where there is a synthetic path beside it, to both.
    pub to_vf: CarrierDirection,
    /// To `eth0` from the VF; where there is a synthetic path beside it, from both.
    pub to_guest: CarrierDirection,
    /// All adapters: `eth0` first.
    #[serde(default)]
    pub adapters: Vec<AdapterStatistics>,
}

/// One network adapter of a VM, with the paths that carry it.
///
/// `from_guest` is the sum of what both paths sent, and `to_guest` of what both received and passed on, so far as it
/// was not dropped.
#[derive(Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct AdapterStatistics {
    /// Its interface in the guest: `eth0`.
    pub interface: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Whether the interface has a carrier: some path is there, with its link up.
    pub carrier: bool,
    /// The path that it sends on; none if there is none.
    pub path: Option<DataPath>,
    /// The interface as the guest's kernel counts it.
    pub kernel: InterfaceCounters,
    /// From the interface to its paths.
    pub from_guest: CarrierDirection,
    /// From its paths to the interface.
    pub to_guest: CarrierDirection,
    /// What passed by the synthetic path.
    pub synthetic: PathStatistics,
    /// What passed by the VF path.
    pub vf: PathStatistics,
    /// The synthetic adapter as NetVSC sees it.
    pub synthetic_state: SyntheticState,
    /// The VF as its driver sees it.
    pub vf_state: VfState,
    /// How the data path moved.
    pub data_path: DataPathStatistics,
}

/// A way for frames between an adapter's interface and the network.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPath {
    /// NetVSC over VMBus, and the virtual switch.
    Synthetic,
    /// The VF.
    Vf,
}

/// What passed by one path of an adapter.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct PathStatistics {
    /// Handed to the path.
    pub transmit: Traffic,
    /// Taken from the path and given to the guest's interface, or tried to.
    pub receive: Traffic,
    /// Received, but addressed to a group while the other path is the one in use: another copy came there.
    pub other_path_groups: u64,
    /// Handed to the path and neither reported as sent nor taken back when the path ended: descriptors of a VF's
    /// transmit rings, sections of the send buffer. What was in its receive rings is not known.
    pub lost_in_rings: u64,
}

/// Traffic in one direction.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets; a large TCP segment is one.
    pub packets: u64,
    /// Ethernet frames that these are on the wire.
    pub frames: u64,
    /// Bytes of those frames.
    pub bytes: u64,
}

/// A synthetic adapter as NetVSC sees it.
#[derive(Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct SyntheticState {
    /// Whether it is there and up.
    pub present: bool,
    /// Whether its link is up.
    pub link_up: bool,
    /// Channels in use.
    pub channels: u16,
    /// The NVSP version agreed on, as on the wire: 0x60001 is 6.1.
    pub version: u32,
    /// Serial number of the VF that the host associated, if it did.
    pub associated_vf: Option<u32>,
    /// Times that it came up.
    pub starts: u64,
}

/// How an adapter's data path moved between its paths.
///
/// A move lasts from the guest's request (SWITCH_DATA_PATH) until its first frame is sent on the other path, or, if
/// the guest has none to send just then, until one could be.
#[derive(Copy, Clone, Eq, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct DataPathStatistics {
    /// Moves to the VF.
    pub to_vf: u64,
    /// Moves to the synthetic path by request.
    pub to_synthetic: u64,
    /// Moves to the synthetic path without a request, since the VF vanished or the host took the path back.
    pub surprises: u64,
    /// Moves to the VF alone, since the synthetic adapter vanished.
    pub synthetic_lost: u64,
    /// How long the last move by request took, microseconds.
    pub last_us: u64,
    /// How long the longest move by request took, microseconds.
    pub worst_us: u64,
    /// Waits for a path to be drained, or for the host's answer, that ran into their limit.
    pub timeouts: u64,
}

impl DataPathStatistics {
    /// Moves by request, to either side.
    pub fn switches(&self) -> u64 {
        self.to_vf + self.to_synthetic
    }
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
