//! Private controls of the virtualization stack: codes and JSON payloads, for both ends of device control.

use adapter::control::VlanMode;
use serde::{Deserialize, Serialize};
use virtualization_stack::{
    AdapterKind, DataPath, Health, NicState, Policy, Reason, Standing, State, VmState,
};

pub use crate::event::{AnyEvent, EventRecord, Peer, ProcessEvent};
pub use crate::nic_request::{NicRequest, OidKind};

/// A private control's code, its input and its output.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u32)]
pub enum PrivateControl {
    /// Nothing in, [`StackStatus`] as JSON out.
    Status = 1,
    /// [`SetAdapter`] as JSON in, [`Outcome`] as JSON out: changes desired state until the stack ends or reads its
    /// configuration again. What follows from it happens after the completion; events tell.
    SetAdapter = 2,
    /// [`AdapterName`] as JSON in, [`Outcome`] as JSON out: try again what was given up.
    Retry = 3,
    /// [`NextEvents`] as JSON in, [`Events`] as JSON out. Pends until there is an event after the one named.
    NextEvents = 4,
    /// Nothing in, nothing out: the stack ends as on SIGTERM. VFs stay where they are.
    Shutdown = 5,
    /// Nothing in, [`Outcome`] as JSON out: reads the configuration file again, and does what has changed in it.
    Reload = 6,
}

impl PrivateControl {
    /// The control with this code.
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::Status,
            2 => Self::SetAdapter,
            3 => Self::Retry,
            4 => Self::NextEvents,
            5 => Self::Shutdown,
            6 => Self::Reload,
            _ => return None,
        })
    }

    /// Its code.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

/// Room that the answer of [`PrivateControl::Status`] may need, bytes.
pub const STATUS_CAPACITY: usize = 2 << 20;
/// Room that the answer of [`PrivateControl::NextEvents`] may need, bytes; it is filled as far as events fit.
pub const EVENTS_CAPACITY: usize = 256 << 10;
/// Room that an [`Outcome`] may need, bytes.
pub const OUTCOME_CAPACITY: usize = 16 << 10;
/// Events that are kept for those who come late.
pub const EVENTS_KEPT: usize = 4096;

/// How a change of desired state ended.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It is desired state now.
    Done,
    /// Nothing has changed.
    Refused {
        /// Why, and what to do, for people.
        why: String,
    },
}

/// Names a VM network adapter.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterName {
    /// Its VM.
    pub vm: String,
    /// Its own name.
    pub adapter: String,
}

/// Changes properties of a VM network adapter.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAdapter {
    /// Its VM.
    pub vm: String,
    /// Its own name.
    pub adapter: String,
    /// What changes; the rest stays.
    #[serde(default)]
    pub change: AdapterChange,
}

/// What changes of a VM network adapter.
#[derive(Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterChange {
    /// IovWeight, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iov_weight: Option<u32>,
    /// IovQueuePairsRequested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u32>,
    /// IovInterruptModeration: the published number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupt_moderation: Option<u32>,
    /// VLANs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanMode>,
    /// The switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// MacAddressSpoofing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_spoofing: Option<bool>,
    /// All policies that need the software switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<Vec<Policy>>,
    /// AllowPolicyBypass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_policy_bypass: Option<bool>,
}

/// Where a VM network adapter is connected.
#[derive(Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// To nothing.
    Disconnected,
    /// To the switch of this name.
    Switch(String),
}

/// Asks for events.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextEvents {
    /// Number of the last event that is known already; 0 for all that are kept.
    pub after: u64,
}

/// Events, in their order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Events {
    /// How many were forgotten before the first of these.
    pub missed: u64,
    /// At least one.
    pub events: Vec<EventRecord>,
}

/// All that people want to know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StackStatus {
    /// Number of the latest event; 0 if there was none.
    pub last_event: u64,
    /// NICs, in the order of the configuration.
    pub nics: Vec<NicReport>,
    /// Switches.
    pub switches: Vec<SwitchReport>,
    /// VMs.
    pub vms: Vec<VmReport>,
}

/// A connection to another process.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// The socket.
    pub socket: String,
    /// Whether it is there.
    pub connected: bool,
    /// Why it is not, or why the last one ended.
    pub last_error: Option<String>,
}

/// A NIC (SPEC-MANAGEMENT §4.1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NicReport {
    /// Its name.
    pub name: String,
    /// Its process.
    pub connection: ConnectionReport,
    /// What the stack does with it.
    pub state: NicState,
    /// IovSupport.
    pub iov_support: bool,
    /// IovSupportReasons.
    pub iov_support_reasons: Vec<ReasonReport>,
    /// IovVirtualFunctionCount.
    pub virtual_functions: u32,
    /// IovVirtualFunctionsInUse.
    pub virtual_functions_in_use: u32,
    /// IovQueuePairCount.
    pub queue_pairs: u32,
    /// IovQueuePairsInUse.
    pub queue_pairs_in_use: u32,
}

/// A switch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SwitchReport {
    /// Its name.
    pub name: String,
    /// Its process.
    pub connection: ConnectionReport,
    /// `external`, `internal` or `private`.
    pub kind: String,
    /// The NIC behind an external one.
    pub nic: Option<String>,
    /// IovEnabled.
    pub iov_enabled: bool,
}

/// A VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VmReport {
    /// Its name.
    pub name: String,
    /// Its host side.
    pub connection: ConnectionReport,
    /// What it does.
    pub state: VmState,
    /// Its adapters, by number.
    pub adapters: Vec<AdapterReport>,
}

/// A VM network adapter: what was set, and what is (SPEC-MANAGEMENT §5.1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AdapterReport {
    /// Its name.
    pub name: String,
    /// Its number in the VM: the guest's ethN.
    pub number: u32,
    /// Synthetic, legacy, or vhost-user.
    pub kind: AdapterKind,
    /// Its switch.
    pub switch: Option<String>,
    /// Its port there.
    pub port: String,
    /// Why its port is not as configured.
    pub port_error: Option<String>,
    /// Its address.
    pub mac: String,
    /// Its VLANs.
    pub vlan: VlanMode,
    /// MacAddressSpoofing.
    pub mac_spoofing: bool,
    /// Policies that need the software switch.
    pub policies: Vec<Policy>,
    /// AllowPolicyBypass.
    pub allow_policy_bypass: bool,
    /// IovWeight.
    pub iov_weight: u32,
    /// IovQueuePairsRequested.
    pub queue_pairs_requested: u32,
    /// IovQueuePairsAssigned.
    pub queue_pairs_assigned: u32,
    /// IovInterruptModeration as it applies to the VF: the published number.
    pub interrupt_moderation: u32,
    /// State of the state machine.
    pub state: State,
    /// Its part: `Synthetic`, `Allocating`, `Offered`, `Active`, `Revoking`.
    pub phase: String,
    /// Where the guest's data path is.
    pub data_path: DataPath,
    /// The VF it holds.
    pub virtual_function: Option<VfReport>,
    /// Status.
    pub health: Health,
    /// StatusDescription.
    pub description: String,
    /// Why SR-IOV is not active, or not as asked for.
    pub reasons: Vec<ReasonReport>,
}

/// The VF of an adapter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VfReport {
    /// Name of its NIC.
    pub nic: String,
    /// VF id.
    pub vf: u16,
    /// PCI address, as Linux writes it.
    pub requestor_id: String,
    /// Its VPort, once it is there.
    pub vport: Option<u32>,
    /// Serial number.
    pub serial: u32,
}

/// A reason, for people and programs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReasonReport {
    /// The code (SPEC-MANAGEMENT §6).
    pub code: String,
    /// Whether it blocks, passes, or is a remark.
    pub standing: Standing,
    /// The reason as a sentence, with its evidence and names.
    pub text: String,
    /// What can be done about it.
    pub cure: String,
    /// The reason with its evidence; NICs, switches and VMs by number.
    pub evidence: Reason,
}
