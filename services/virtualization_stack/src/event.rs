//! Events: what happened, for people and programs. Each is declared once, as a variant; its log line is its
//! [`Display`](core::fmt::Display), its JSON comes from serde, its name and level are asked of it.

use core::fmt;
use serde::{Deserialize, Serialize};

use crate::{AdapterId, DataPath, NicId, Reason, State, VfSerial};

/// How much an event matters to whoever watches.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// A step of a sequence.
    Step,
    /// Something that people want to know.
    Notice,
    /// Something that should not have been.
    Warning,
}

/// What a guest was waited for.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitedFor {
    /// Its host side, to offer the device.
    Offer,
    /// To use the VF it was offered.
    Use,
    /// To leave the VF when asked to.
    Switch,
    /// To give the device up.
    Eject,
    /// Its host side, to take the device away.
    Removal,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the members are named by what the variant's comment says")]
pub enum Event {
    /// A NIC is being watched and can be used.
    NicReady { nic: NicId, vfs: u32, queue_pairs: u32 },
    /// A NIC was connected; what an earlier life of the stack had left on it was cleared away.
    NicSwept { nic: NicId, filters: u32, vports: u32, vfs: u32 },
    /// A NIC wants to stop, or to be removed in order.
    PfStopRequested { nic: NicId, removal: bool },
    /// All VFs of a NIC are given back; it may stop, or be removed.
    PfStopAllowed { nic: NicId, removal: bool },
    /// The NIC may not stop, because guests hold VFs and do not answer.
    PfStopVetoed { nic: NicId, removal: bool, held: u32 },
    /// VFs are taken from silent guests by surprise, so that a NIC can stop.
    PfStopForced { nic: NicId, held: u32 },
    /// A NIC runs again, or its stop was called off.
    PfRestarted { nic: NicId },
    /// A NIC is gone.
    PfRemoved { nic: NicId },
    /// A NIC did not complete a request.
    NicNotResponding { nic: NicId, request: String },

    /// A receive filter was set on a VPort.
    FilterSet { adapter: AdapterId, filter: u32, vport: u32 },
    /// A receive filter was moved.
    FilterMoved { adapter: AdapterId, filter: u32, from: u32, to: u32 },
    /// A receive filter was cleared.
    FilterCleared { adapter: AdapterId, filter: u32 },
    /// A VF was allocated.
    VfAllocated { adapter: AdapterId, nic: NicId, vf: u16, requestor_id: String, serial: VfSerial },
    /// A VPort was created and attached to the adapter's VF.
    VPortCreated { adapter: AdapterId, vf: u16, vport: u32, queue_pairs: u32 },
    /// The NIC enforces the adapter's policy on its VPort.
    VPortPolicySet { adapter: AdapterId, vport: u32 },
    /// Interrupt moderation of a VPort was changed.
    ModerationSet { adapter: AdapterId, vport: u32, moderation: u32 },
    /// Mitigated ranges of a VF were asked for, and apply.
    MitigatedRangesApplied { adapter: AdapterId, vf: u16, ranges: u32 },
    /// The VF is being offered to the guest.
    VfOffered { adapter: AdapterId, vf: u16, serial: VfSerial },
    /// The data path of an adapter was switched.
    DataPathSwitched { adapter: AdapterId, to: DataPath, by_guest: bool },
    /// The guest asked for a data path it cannot have.
    DataPathRefused { adapter: AdapterId, asked: DataPath },
    /// The guest is asked to leave the VF, or to give it up.
    RevocationStarted { adapter: AdapterId, vf: u16, because: Vec<Reason> },
    /// The guest has given the VF up.
    VfEjected { adapter: AdapterId, serial: VfSerial },
    /// Somebody was waited for in vain.
    NoAnswer { adapter: AdapterId, waited_for: WaitedFor, milliseconds: u64 },
    /// The VF was taken from the guest without its consent.
    VfSurpriseRemoved { adapter: AdapterId, serial: VfSerial },
    /// The VPort was deleted.
    VPortDeleted { adapter: AdapterId, vport: u32 },
    /// The VF was reset.
    VfReset { adapter: AdapterId, vf: u16 },
    /// The VF was freed.
    VfFreed { adapter: AdapterId, vf: u16 },
    /// The NIC refused a request.
    Refused { adapter: AdapterId, request: String, status: String },
    /// An adapter changed its state.
    StateChanged { adapter: AdapterId, from: State, to: State },
    /// The reasons changed why SR-IOV is not active on an adapter.
    ReasonsChanged { adapter: AdapterId, reasons: Vec<Reason> },
}

impl Event {
    /// How much it matters.
    pub fn level(&self) -> Level {
        match self {
            // An adapter on its way says so at each step.
            Self::ReasonsChanged { reasons, .. }
                if matches!(reasons.as_slice(), [Reason::InProgress { .. }]) =>
            {
                Level::Step
            }
            Self::NicReady { .. }
            | Self::NicSwept { .. }
            | Self::PfStopRequested { .. }
            | Self::PfStopAllowed { .. }
            | Self::PfRestarted { .. }
            | Self::DataPathSwitched { .. }
            | Self::RevocationStarted { .. }
            | Self::ReasonsChanged { .. } => Level::Notice,
            Self::PfStopVetoed { .. }
            | Self::PfStopForced { .. }
            | Self::PfRemoved { .. }
            | Self::NicNotResponding { .. }
            | Self::NoAnswer { .. }
            | Self::VfSurpriseRemoved { .. }
            | Self::Refused { .. } => Level::Warning,
            _ => Level::Step,
        }
    }

    /// The adapter it is about.
    pub const fn adapter(&self) -> Option<AdapterId> {
        match self {
            Self::FilterSet { adapter, .. }
            | Self::FilterMoved { adapter, .. }
            | Self::FilterCleared { adapter, .. }
            | Self::VfAllocated { adapter, .. }
            | Self::VPortCreated { adapter, .. }
            | Self::VPortPolicySet { adapter, .. }
            | Self::ModerationSet { adapter, .. }
            | Self::MitigatedRangesApplied { adapter, .. }
            | Self::VfOffered { adapter, .. }
            | Self::DataPathSwitched { adapter, .. }
            | Self::DataPathRefused { adapter, .. }
            | Self::RevocationStarted { adapter, .. }
            | Self::VfEjected { adapter, .. }
            | Self::NoAnswer { adapter, .. }
            | Self::VfSurpriseRemoved { adapter, .. }
            | Self::VPortDeleted { adapter, .. }
            | Self::VfReset { adapter, .. }
            | Self::VfFreed { adapter, .. }
            | Self::Refused { adapter, .. }
            | Self::StateChanged { adapter, .. }
            | Self::ReasonsChanged { adapter, .. } => Some(*adapter),
            _ => None,
        }
    }

    /// Writes the event's log line.
    pub fn log(&self) {
        match self.level() {
            Level::Step => tracing::debug!("{self}"),
            Level::Notice => tracing::info!("{self}"),
            Level::Warning => tracing::warn!("{self}"),
        }
    }
}

const fn stop(removal: bool) -> &'static str {
    if removal { "be removed" } else { "stop" }
}

/// The log line.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NicReady { nic, vfs, queue_pairs } => {
                write!(f, "{nic} is ready, with {vfs} VFs and {queue_pairs} queue pairs")
            }
            Self::NicSwept { nic, filters, vports, vfs } => write!(
                f,
                "{nic} held {filters} filters, {vports} VPorts and {vfs} VFs of an earlier life, cleared away"
            ),
            Self::PfStopRequested { nic, removal } => {
                write!(f, "{nic} wants to {}", stop(*removal))
            }
            Self::PfStopAllowed { nic, removal } => write!(f, "{nic} may {}", stop(*removal)),
            Self::PfStopVetoed { nic, removal, held } => write!(
                f,
                "{nic} may not {}: {held} guests hold VFs and do not answer",
                stop(*removal)
            ),
            Self::PfStopForced { nic, held } => {
                write!(f, "{held} silent guests lose their VFs, so that {nic} can go")
            }
            Self::PfRestarted { nic } => write!(f, "{nic} runs again"),
            Self::PfRemoved { nic } => write!(f, "{nic} is gone"),
            Self::NicNotResponding { nic, request } => {
                write!(f, "{nic} does not complete {request}; it is taken for gone")
            }
            Self::FilterSet { adapter, filter, vport } => {
                write!(f, "{adapter}: filter {filter} is set on VPort {vport}")
            }
            Self::FilterMoved { adapter, filter, from, to } => {
                write!(f, "{adapter}: filter {filter} moved from VPort {from} to VPort {to}")
            }
            Self::FilterCleared { adapter, filter } => {
                write!(f, "{adapter}: filter {filter} is cleared")
            }
            Self::VfAllocated { adapter, nic, vf, requestor_id, serial } => write!(
                f,
                "{adapter}: VF {vf} of {nic} is allocated at {requestor_id}, with {serial}"
            ),
            Self::VPortCreated { adapter, vf, vport, queue_pairs } => write!(
                f,
                "{adapter}: VPort {vport} is created for VF {vf}, with {queue_pairs} queue pairs"
            ),
            Self::VPortPolicySet { adapter, vport } => {
                write!(f, "{adapter}: VPort {vport} obeys the adapter's policy")
            }
            Self::ModerationSet { adapter, vport, moderation } => {
                write!(f, "{adapter}: interrupt moderation of VPort {vport} is {moderation}")
            }
            Self::MitigatedRangesApplied { adapter, vf, ranges } => {
                write!(f, "{adapter}: {ranges} register ranges of VF {vf} are mitigated")
            }
            Self::VfOffered { adapter, vf, serial } => {
                write!(f, "{adapter}: VF {vf} is offered to the guest, with {serial}")
            }
            Self::DataPathSwitched { adapter, to, by_guest } => {
                let who = if *by_guest { "the guest" } else { "the host" };
                write!(f, "{adapter}: {who} moved the data path to {to}")
            }
            Self::DataPathRefused { adapter, asked } => {
                write!(f, "{adapter}: the guest asked for {asked} and cannot have it")
            }
            Self::RevocationStarted { adapter, vf, because } => {
                write!(f, "{adapter}: VF {vf} is taken back")?;
                for (index, reason) in because.iter().enumerate() {
                    write!(f, "{} {reason}", if index == 0 { ":" } else { ";" })?;
                }
                Ok(())
            }
            Self::VfEjected { adapter, serial } => {
                write!(f, "{adapter}: the guest has given up the VF with {serial}")
            }
            Self::NoAnswer { adapter, waited_for, milliseconds } => {
                let what = match waited_for {
                    WaitedFor::Offer => "the VM's host side did not offer the VF",
                    WaitedFor::Use => "the guest did not use its VF",
                    WaitedFor::Switch => "the guest did not leave its VF",
                    WaitedFor::Eject => "the guest did not give up its VF",
                    WaitedFor::Removal => "the VM's host side did not take the VF away",
                };
                write!(f, "{adapter}: {what} within {milliseconds} ms")
            }
            Self::VfSurpriseRemoved { adapter, serial } => {
                write!(f, "{adapter}: the VF with {serial} is removed by surprise")
            }
            Self::VPortDeleted { adapter, vport } => {
                write!(f, "{adapter}: VPort {vport} is deleted")
            }
            Self::VfReset { adapter, vf } => write!(f, "{adapter}: VF {vf} is reset"),
            Self::VfFreed { adapter, vf } => write!(f, "{adapter}: VF {vf} is freed"),
            Self::Refused { adapter, request, status } => {
                write!(f, "{adapter}: the NIC refused {request} with {status}")
            }
            Self::StateChanged { adapter, from, to } => write!(f, "{adapter}: {from} → {to}"),
            Self::ReasonsChanged { adapter, reasons } if reasons.is_empty() => {
                write!(f, "{adapter}: SR-IOV is active")
            }
            Self::ReasonsChanged { adapter, reasons } => {
                write!(f, "{adapter}:")?;
                for (index, reason) in reasons.iter().enumerate() {
                    write!(f, "{} {reason}", if index == 0 { "" } else { ";" })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
