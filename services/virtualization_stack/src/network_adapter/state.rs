//! The states of a VM network adapter.

use core::fmt;
use serde::{Deserialize, Serialize};

/// State of a VM network adapter: which part of the published sequences (SPEC-NDIS-SRIOV §11.2, §11.3) it is in, and in
/// it which step. Where a step is a request to the NIC, the adapter is in it while the request is outstanding.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No VF. Frames take the synthetic path.
    Synthetic(SyntheticStep),
    /// A VF is being allocated and prepared. The guest knows nothing of it.
    Allocating(AllocatingStep),
    /// The guest is offered the VF. Frames take the synthetic path until it uses it.
    Offered(OfferedStep),
    /// The guest's data path is on the VF.
    Active(ActiveStep),
    /// The VF is taken back.
    Revoking(RevokingStep),
}

/// Steps of [`State::Synthetic`].
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyntheticStep {
    /// Nothing is going on.
    Resting,
    /// A receive filter on the default VPort is being set or cleared.
    Upkeep,
}

/// Steps of [`State::Allocating`], in their order.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllocatingStep {
    /// OID_NIC_SWITCH_ALLOCATE_VF.
    Vf,
    /// OID_NIC_SWITCH_CREATE_VPORT.
    VPort,
    /// The NIC is told what to enforce on the VPort.
    Policy,
    /// The mitigated ranges are asked for.
    Ranges,
    /// OID_RECEIVE_FILTER_MOVE_FILTER from the default VPort to the VF's, one filter after the other.
    Filter,
}

/// Steps of [`State::Offered`].
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferedStep {
    /// The partition's host side is offering the VPCI device.
    Exposing,
    /// The guest has the device, and is to ask for its data path to be switched.
    Waiting,
    /// Something is brought up to date meanwhile.
    Upkeep,
    /// The guest has asked for the VF; filters that are not there yet move to its VPort.
    Switching,
}

/// Steps of [`State::Active`].
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActiveStep {
    /// Nothing is going on.
    Resting,
    /// Something is brought up to date.
    Upkeep,
    /// The guest leaves the VF; the filters move back to the default VPort.
    Leaving,
}

/// Steps of [`State::Revoking`], in their order.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokingStep {
    /// The guest is asked to leave the VF.
    Switch,
    /// It does; the filters move back to the default VPort.
    Leaving,
    /// The guest is asked to give the device up.
    Eject,
    /// OID_RECEIVE_FILTER_MOVE_FILTER back to the default VPort, one filter after the other.
    Filter,
    /// The partition's host side takes the device away.
    Device,
    /// OID_NIC_SWITCH_DELETE_VPORT.
    VPort,
    /// OID_SRIOV_RESET_VF.
    Reset,
    /// OID_NIC_SWITCH_FREE_VF.
    Vf,
}

impl State {
    /// Where an adapter begins.
    pub const START: Self = Self::Synthetic(SyntheticStep::Resting);

    /// Every state, in the order of an adapter's life.
    pub const ALL: [Self; 22] = {
        use {ActiveStep as A, AllocatingStep as L, OfferedStep as O, RevokingStep as R};
        [
            Self::Synthetic(SyntheticStep::Resting),
            Self::Synthetic(SyntheticStep::Upkeep),
            Self::Allocating(L::Vf),
            Self::Allocating(L::VPort),
            Self::Allocating(L::Policy),
            Self::Allocating(L::Ranges),
            Self::Allocating(L::Filter),
            Self::Offered(O::Exposing),
            Self::Offered(O::Waiting),
            Self::Offered(O::Upkeep),
            Self::Offered(O::Switching),
            Self::Active(A::Resting),
            Self::Active(A::Upkeep),
            Self::Active(A::Leaving),
            Self::Revoking(R::Switch),
            Self::Revoking(R::Leaving),
            Self::Revoking(R::Eject),
            Self::Revoking(R::Filter),
            Self::Revoking(R::Device),
            Self::Revoking(R::VPort),
            Self::Revoking(R::Reset),
            Self::Revoking(R::Vf),
        ]
    };

    /// Name of the part without the step: the five states that people are shown.
    pub const fn phase(self) -> &'static str {
        match self {
            Self::Synthetic(_) => "Synthetic",
            Self::Allocating(_) => "Allocating",
            Self::Offered(_) => "Offered",
            Self::Active(_) => "Active",
            Self::Revoking(_) => "Revoking",
        }
    }

    /// Name of the step.
    pub const fn step(self) -> &'static str {
        use {ActiveStep as A, AllocatingStep as L, OfferedStep as O, RevokingStep as R};
        match self {
            Self::Synthetic(SyntheticStep::Resting) | Self::Active(A::Resting) => "resting",
            Self::Synthetic(SyntheticStep::Upkeep)
            | Self::Offered(O::Upkeep)
            | Self::Active(A::Upkeep) => "upkeep",
            Self::Allocating(L::Vf) | Self::Revoking(R::Vf) => "VF",
            Self::Allocating(L::VPort) | Self::Revoking(R::VPort) => "VPort",
            Self::Allocating(L::Policy) => "policy",
            Self::Allocating(L::Ranges) => "ranges",
            Self::Allocating(L::Filter) | Self::Revoking(R::Filter) => "filter",
            Self::Offered(O::Exposing) => "exposing",
            Self::Offered(O::Waiting) => "waiting",
            Self::Offered(O::Switching) => "switching",
            Self::Active(A::Leaving) | Self::Revoking(R::Leaving) => "leaving",
            Self::Revoking(R::Switch) => "switch",
            Self::Revoking(R::Eject) => "eject",
            Self::Revoking(R::Device) => "device",
            Self::Revoking(R::Reset) => "reset",
        }
    }

    /// Whether the adapter has, or is about to have, a VF.
    pub const fn has_vf(self) -> bool {
        !matches!(self, Self::Synthetic(_))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.phase(), self.step())
    }
}
