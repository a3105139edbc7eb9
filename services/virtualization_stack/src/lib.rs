//! Virtualization stack: the life of a VM network adapter, between its synthetic path and its VF, as one explicit state
//! machine, level-triggered from desired state (what an administrator has set) and facts (what NICs, switches, partitions
//! and guests report).
//!
//! It does no I/O, has no thread and reads no clock: [`Stack::step`] takes what happened and the time, and yields
//! [`Effect`]s as values: OIDs and I/O controls to NICs, words to the NetVSP and VPCI ends of an adapter, the time of the
//! next call, and [`Event`]s for whoever watches. It touches no frame, and knows no wire format of VMBus.
//!
//! Follows SPEC-NDIS-SRIOV §11 (sequences), SPEC-PCIVIRT §6 and §8 (mitigated ranges, PnP events), SPEC-MANAGEMENT §5–§7
//! (properties, reasons, policies), SPEC-VMBUS §7 (VF association). Where the published documents leave a choice, the code
//! says what was chosen.
//!
//! Layer: services (ARCHITECTURE.md); above `ndis_protocol` and `pcivirt_protocol`, below the programs that carry its
//! effects out.
//!
//! | start reading at | for |
//! | --- | --- |
//! | [`State`], `network_adapter` | an adapter's states and the table of its transitions |
//! | [`NicState`], `nic` | the connection to a PF, its PnP events, and their table |
//! | [`Reason`] | why SR-IOV is not active |
//! | [`Input`], [`Effect`] | what goes in and out |
//! | [`Stack`] | the whole |

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

mod call;
mod config;
mod effect;
mod error;
mod event;
mod ids;
mod input;
mod network_adapter;
mod nic;
mod outbox;
mod reason;
mod stack;
mod status;
mod time;

pub use call::{CallError, CallTarget, MAX_MITIGATED_RANGES, NicCall, NicReply};
pub use config::{
    AdapterConfig, AdapterKind, MAX_ADAPTERS_PER_VM, MAX_TRUNK_VLANS, Policy, SilentGuest,
    StackConfig, SwitchConfig, SwitchKind, VPortPolicy, VlanSetting, VmConfig, VmState,
};
pub use effect::{Effect, MitigatedRanges, NetVspCommand, VpciCommand, VpciOffer};
pub use error::StackError;
pub use event::{Event, Level, WaitedFor};
pub use ids::{AdapterId, NicId, RequestId, VfSerial, VmId, VmSwitchId};
pub use input::{DataPath, Input, NetVspReport, NicSurvey, Uplink, VpciReport};
pub use network_adapter::{
    ActiveStep, AllocatingStep, OfferedStep, RevokingStep, State, SyntheticStep,
};
pub use nic::NicState;
pub use reason::{Cure, GuestGap, GuestProgress, HostReason, Reason, SriovSupport, Standing};
pub use stack::Stack;
pub use status::{AdapterStatus, Health, NicStatus, VirtualFunction};
pub use time::{Time, Timeouts};
