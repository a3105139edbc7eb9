//! Private controls of this adapter: what no OID covers. Codes and their JSON payloads, for both ends of
//! device control.

pub use nic_switch::VlanMode;
use serde::{Deserialize, Serialize};

use crate::{FunctionStats, UplinkStats};

/// A private control's code, its input and its output.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub enum PrivateControl {
    /// Nothing in, [`AdapterStatus`] as JSON out.
    Status = 1,
    /// An uplink spec as text in, nothing out.
    SetUplink = 2,
    /// [`SetVPortPolicy`] as JSON in, nothing out.
    SetVPortPolicy = 3,
    /// [`VfNumber`] as JSON in, nothing out: the PF resets the VF, whose driver comes back by itself.
    ResetVf = 4,
    /// Nothing in, nothing out: the adapter ends as on SIGTERM.
    Shutdown = 5,
    /// Nothing in, [`RebalanceOutcome`] as JSON out: the PF is given other resources, as a PnP manager does it
    /// (SPEC-PCIVIRT §8.6). Pends while the client that is attached is asked, and until it has taken notice;
    /// STATUS_DEVICE_BUSY while another rebalance is under way. Cancelling the request does not end the rebalance.
    Rebalance = 6,
    /// Nothing in, [`VfReport`] as JSON out. Pends until there is something that this client has not been told;
    /// STATUS_DEVICE_BUSY for a second request meanwhile. Reports are levels: of each VF what its driver does now, to
    /// a client that connects of all VFs there are. A state that is told twice in a row was another one in between.
    NextVfReport = 7,
}

impl PrivateControl {
    /// The control with this code.
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::Status,
            2 => Self::SetUplink,
            3 => Self::SetVPortPolicy,
            4 => Self::ResetVf,
            5 => Self::Shutdown,
            6 => Self::Rebalance,
            7 => Self::NextVfReport,
            _ => return None,
        })
    }

    /// Its code.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// Room that the cause of a failure in words may need, bytes ([`device_control::ClientError::Failed`]). Worth having also
/// where a control has no output.
pub const CAUSE_CAPACITY: usize = 1024;

/// Room that the answer of [`PrivateControl::Status`] may need, bytes: 256 VFs.
pub const STATUS_CAPACITY: usize = 512 << 10;

/// Room that the answer of [`PrivateControl::Rebalance`] may need, bytes.
pub const REBALANCE_CAPACITY: usize = 1024;

/// Room that the answer of [`PrivateControl::NextVfReport`] may need, bytes.
pub const VF_REPORT_CAPACITY: usize = 256;

/// How the driver of a VF is doing.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct VfReport {
    /// VF id.
    pub vf: u16,
    /// Its driver.
    pub driver: VfDriver,
}

/// What the driver of a VF does.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum VfDriver {
    /// Nobody drives it: there is no client, or the VF was reset and no driver has begun anew.
    Absent,
    /// A driver has negotiated virtchnl's version or asked for the VF's resources since the last reset (one whose VF was
    /// reset under it begins with the latter), and the VF cannot receive: its receive queues are not enabled, have
    /// no buffers yet, or lost their memory with bus mastering.
    Present,
    /// Its receive queues are enabled: frames that are for it go to it, and not to the default VPort.
    Running {
        /// The primary address that it has set, as `02:00:00:00:00:01`; the assigned one, if it has set none.
        mac: String,
    },
    /// The VF was freed.
    Gone,
}

/// How a rebalance ended.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum RebalanceOutcome {
    /// The PF was stopped and runs again with other resources. Its VFs were reset by it.
    Done {
        /// The client that was asked: it allowed the stop, or left without an answer.
        asked: Option<String>,
        /// The PF's bus number from now on.
        bus: u8,
        /// Milliseconds from the request to the last answer.
        milliseconds: u64,
    },
    /// A client did not allow it: nothing has changed.
    Vetoed {
        /// The client.
        by: String,
        /// The status that it gave: name and code.
        status: String,
        /// Milliseconds from the request to the last answer.
        milliseconds: u64,
    },
}

impl std::fmt::Display for RebalanceOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done { asked, bus, milliseconds } => {
                write!(
                    f,
                    "done in {milliseconds} ms: the PF is on bus {bus} now, its VFs were reset; "
                )?;
                match asked {
                    Some(client) => write!(f, "{client} was asked before"),
                    None => f.write_str("no client was attached"),
                }
            }
            Self::Vetoed { by, status, milliseconds } => {
                write!(
                    f,
                    "vetoed by {by} with {status} after {milliseconds} ms; nothing has changed"
                )
            }
        }
    }
}

/// The PF driver towards the virtualization stack (SPEC-PCIVIRT §8).
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct PnpStatus {
    /// Where it is.
    pub phase: PnpPhase,
    /// The client that is attached.
    pub client: Option<String>,
}

/// Where a PF driver is in a rebalance or removal.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PnpPhase {
    /// Running.
    Running,
    /// The client is asked whether the device may stop.
    AskingToStop,
    /// Stopped, or about to be.
    Stopped,
    /// Running again; the client is told, and has not taken notice.
    AnnouncingRestart,
    /// The client is asked whether the device may be removed.
    AskingToRemove,
    /// Gone.
    Removed,
}

/// Names a VF.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct VfNumber {
    /// VF id, from 0.
    pub vf: u16,
}

/// What the adapter is doing.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct AdapterStatus {
    /// Its name.
    pub name: String,
    /// VFs that are enabled.
    pub num_vfs: u16,
    /// OIDs that NDIS itself has issued, in order: the switch at start.
    pub ndis_oids: Vec<NdisOid>,
    /// The PF driver and its client.
    pub pnp: PnpStatus,
    /// The physical port.
    pub uplink: UplinkStatus,
    /// The PF's own queue pairs.
    pub pf: FunctionStatus,
    /// Allocated VFs.
    pub vfs: Vec<VfStatus>,
    /// How frames are copied: `avx512` or `memcpy`.
    pub copy_method: String,
    /// Microseconds that the data path thread has slept since it started.
    pub data_path_slept_us: u64,
}

/// An OID that NDIS issued of its own.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct NdisOid {
    /// Its published name.
    pub name: String,
    /// Name of the status it ended with.
    pub status: String,
    /// Microseconds it took.
    pub microseconds: u64,
}

/// The physical port.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// What it is connected to, as an uplink spec.
    pub spec: String,
    /// Whether the link is up.
    pub link_up: bool,
    /// Its last error.
    pub last_error: Option<String>,
    /// For a replay: whether it is through.
    pub replay_finished: Option<bool>,
    /// Counters.
    pub stats: UplinkStats,
}

/// A function.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct FunctionStatus {
    /// Where it is served by vfio-user.
    pub socket: String,
    /// Whether a guest is connected.
    pub connected: bool,
    /// Counters since it was made.
    pub stats: FunctionStats,
}

/// An allocated VF.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
pub struct VfStatus {
    /// VF id.
    pub vf: u16,
    /// The address assigned to it; zero if its guest may choose.
    pub mac: String,
    /// Its VPort.
    pub vport: Option<u32>,
    /// Queue pairs of its VPort.
    pub queue_pairs: u16,
    /// What its driver does.
    pub driver: VfDriver,
    /// The function.
    #[serde(flatten)]
    pub function: FunctionStatus,
}

/// Changes what a VPort may do.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVPortPolicy {
    /// The VPort, not the default one.
    pub vport: u32,
    /// Whether foreign source addresses pass.
    #[serde(default)]
    pub allow_spoofing: bool,
    /// Whether its guest may see frames that are not for it.
    #[serde(default)]
    pub allow_promiscuous: bool,
    /// VLAN mode.
    #[serde(default)]
    pub vlan: VlanMode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_name_their_controls() {
        let known: Vec<_> = (0..100).filter_map(PrivateControl::from_code).collect();
        assert_eq!(known.last(), Some(&PrivateControl::NextVfReport));
        assert!(
            known.iter().all(|control| PrivateControl::from_code(control.code()) == Some(*control))
        );
        assert_eq!(known.len(), 7);
    }

    #[test]
    fn a_report_is_one_object_with_a_state_and_has_room() {
        let driver = VfDriver::Running { mac: "02:00:00:00:00:01".to_owned() };
        let report = VfReport { vf: u16::MAX, driver };
        let json = serde_json::to_string(&report).unwrap();
        let expected = r#"{"vf":65535,"driver":{"state":"running","mac":"02:00:00:00:00:01"}}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<VfReport>(&json).unwrap(), report);
        assert!(json.len() <= VF_REPORT_CAPACITY);
        let gone: VfReport = serde_json::from_str(r#"{"vf":3,"driver":{"state":"gone"}}"#).unwrap();
        assert_eq!(gone, VfReport { vf: 3, driver: VfDriver::Gone });
    }
}
