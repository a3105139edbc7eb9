//! The transitions of a VM network adapter, as one table. It is the code: [`find`] is all there is beside it. What
//! `transitions.md` shows is written from it, and a test compares the two.

use super::state::{ActiveStep as A, AllocatingStep as L, OfferedStep as O, RevokingStep as R};
use super::state::{State, SyntheticStep as S};

/// What makes an adapter move.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum On {
    /// The facts are as they are, and no request to the NIC is outstanding (or its NIC is gone).
    Settle,
    /// The NIC has refused the step's request.
    Refused,
    /// The state's deadline has passed.
    TimedOut,
}

/// A condition on the facts.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum When {
    /// Desired state and facts call for a VF: no reason blocks.
    Wanted,
    /// They call for the synthetic path.
    Unwanted,
    /// They call for the synthetic path, and the guest cannot or may not be waited for.
    Urgent,
    /// Filters, moderation, policy or ranges are not as they should be.
    UpkeepDue,
    /// There is no VF any more.
    VfGone,
    /// There is no VPort any more.
    VPortGone,
    /// The VPort may be tried with fewer queue pairs.
    FewerPairs,
    /// Every filter is on the VF's VPort.
    FiltersOut,
    /// No filter is on the VF's VPort.
    FiltersHome,
    /// The partition's host side has offered the device.
    DeviceOffered,
    /// The partition's host side has no device.
    DeviceGone,
    /// The guest asks for the VF.
    GuestAsksVf,
    /// The guest asks for the synthetic path while on the VF, or has started anew.
    GuestLeaves,
    /// The guest's NetVSC can be talked to: one with a virtio-net has none, and leaves its VF only by giving it up.
    GuestListens,
    /// The guest has given the device up.
    GuestEjected,
    /// The guest has not used its VF in time, and another adapter waits for one.
    Spared,
}

/// What is done with a transition.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Do {
    /// OID_NIC_SWITCH_ALLOCATE_VF.
    AllocateVf,
    /// OID_NIC_SWITCH_CREATE_VPORT, with as many queue pairs as can be had.
    CreateVPort,
    /// The NIC is told what to enforce on the VPort, if it has a control for that.
    SetPolicy,
    /// IOCTL_SRIOV_MITIGATED_RANGE_UPDATE, IOCTL_SRIOV_QUERY_MITIGATED_RANGE_COUNT and, for each BAR that has any,
    /// IOCTL_SRIOV_QUERY_MITIGATED_RANGES.
    QueryRanges,
    /// OID_RECEIVE_FILTER_MOVE_FILTER of the next filter to the VF's VPort.
    MoveOut,
    /// OID_RECEIVE_FILTER_MOVE_FILTER of the next filter to the default VPort, if one is out.
    MoveHome,
    /// OID_NIC_SWITCH_DELETE_VPORT.
    DeleteVPort,
    /// OID_SRIOV_RESET_VF.
    ResetVf,
    /// OID_NIC_SWITCH_FREE_VF.
    FreeVf,
    /// The next of what is not as it should be: SET_FILTER, CLEAR_FILTER, VPORT_PARAMETERS, policy, ranges.
    Upkeep,
    /// NetVSP: VF available.
    TellAvailable,
    /// NetVSP: VF lost, unless told already.
    TellLost,
    /// NetVSP: host asks the guest to leave the VF.
    AskToLeave,
    /// NetVSP: the guest's request for the VF is granted.
    GrantVf,
    /// NetVSP: the guest's request for the synthetic path is granted.
    GrantSynthetic,
    /// NetVSP: if the data path is on the VF, the host moves it to the synthetic path.
    ForceSynthetic,
    /// VPCI: offer the device.
    OfferDevice,
    /// VPCI: eject, unless asked for already.
    Eject,
    /// VPCI: remove the device; by surprise unless the guest has given it up.
    RemoveDevice,
    /// The device is taken for gone.
    ForgetDevice,
    /// The adapter stays without VF until what refused it may have changed.
    HoldOff,
    /// The adapter stays without VF until its guest starts anew, its configuration changes, or somebody asks.
    HoldOffGuest,
    /// The adapter stays without VF until its host side is heard of, or, if that said no, for a while.
    HoldOffHost,
    /// The refusal is noted, and the step tried again later.
    Retry,
    /// The refusal is noted.
    Note,
    /// The silence is noted.
    NoteSilence,
}

/// One row: in `from`, on `on`, when all of `when` hold, do `does` in order and be in `to`. The first row that fits counts.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) from: State,
    pub(crate) on: On,
    pub(crate) when: &'static [When],
    pub(crate) to: State,
    pub(crate) does: &'static [Do],
}

const fn row(from: State, on: On, when: &'static [When], to: State, does: &'static [Do]) -> Row {
    Row { from, on, when, to, does }
}

const RESTING: State = State::Synthetic(S::Resting);
const SYNTHETIC_UPKEEP: State = State::Synthetic(S::Upkeep);
const ALLOCATING_VF: State = State::Allocating(L::Vf);
const ALLOCATING_VPORT: State = State::Allocating(L::VPort);
const ALLOCATING_POLICY: State = State::Allocating(L::Policy);
const ALLOCATING_RANGES: State = State::Allocating(L::Ranges);
const ALLOCATING_FILTER: State = State::Allocating(L::Filter);
const EXPOSING: State = State::Offered(O::Exposing);
const WAITING: State = State::Offered(O::Waiting);
const OFFERED_UPKEEP: State = State::Offered(O::Upkeep);
const SWITCHING: State = State::Offered(O::Switching);
const ACTIVE: State = State::Active(A::Resting);
const ACTIVE_UPKEEP: State = State::Active(A::Upkeep);
const ACTIVE_LEAVING: State = State::Active(A::Leaving);
const REVOKING_SWITCH: State = State::Revoking(R::Switch);
const REVOKING_LEAVING: State = State::Revoking(R::Leaving);
const REVOKING_EJECT: State = State::Revoking(R::Eject);
const REVOKING_FILTER: State = State::Revoking(R::Filter);
const REVOKING_DEVICE: State = State::Revoking(R::Device);
const REVOKING_VPORT: State = State::Revoking(R::VPort);
const REVOKING_RESET: State = State::Revoking(R::Reset);
const REVOKING_VF: State = State::Revoking(R::Vf);

/// The table.
#[rustfmt::skip]
pub(crate) const TRANSITIONS: &[Row] = {
    use Do::*;
    use On::*;
    use When::*;
    &[
        row(RESTING, Settle, &[UpkeepDue], SYNTHETIC_UPKEEP, &[Upkeep]),
        row(RESTING, Settle, &[Wanted], ALLOCATING_VF, &[AllocateVf]),
        row(SYNTHETIC_UPKEEP, Refused, &[], RESTING, &[Note]),
        row(SYNTHETIC_UPKEEP, Settle, &[], RESTING, &[]),

        // Start-up (SPEC-NDIS-SRIOV §11.2). Whatever fails is undone in reverse, and the guest sees nothing of it.
        row(ALLOCATING_VF, Refused, &[], RESTING, &[HoldOff]),
        row(ALLOCATING_VF, Settle, &[VfGone], RESTING, &[]),
        row(ALLOCATING_VF, Settle, &[Wanted], ALLOCATING_VPORT, &[CreateVPort]),
        row(ALLOCATING_VF, Settle, &[], REVOKING_VF, &[FreeVf]),
        row(ALLOCATING_VPORT, Refused, &[Wanted, FewerPairs], ALLOCATING_VPORT, &[CreateVPort]),
        row(ALLOCATING_VPORT, Refused, &[], REVOKING_VF, &[HoldOff, FreeVf]),
        row(ALLOCATING_VPORT, Settle, &[VfGone], RESTING, &[]),
        row(ALLOCATING_VPORT, Settle, &[Wanted], ALLOCATING_POLICY, &[SetPolicy]),
        row(ALLOCATING_VPORT, Settle, &[], REVOKING_VPORT, &[DeleteVPort]),
        row(ALLOCATING_POLICY, Refused, &[], REVOKING_VPORT, &[HoldOff, DeleteVPort]),
        row(ALLOCATING_POLICY, Settle, &[VfGone], RESTING, &[]),
        row(ALLOCATING_POLICY, Settle, &[Wanted], ALLOCATING_RANGES, &[QueryRanges]),
        row(ALLOCATING_POLICY, Settle, &[], REVOKING_VPORT, &[DeleteVPort]),
        row(ALLOCATING_RANGES, Refused, &[], REVOKING_VPORT, &[HoldOff, DeleteVPort]),
        row(ALLOCATING_RANGES, Settle, &[VfGone], RESTING, &[]),
        row(ALLOCATING_RANGES, Settle, &[Wanted], ALLOCATING_FILTER, &[MoveOut]),
        row(ALLOCATING_RANGES, Settle, &[], REVOKING_VPORT, &[DeleteVPort]),
        row(ALLOCATING_FILTER, Refused, &[], REVOKING_FILTER, &[HoldOff, MoveHome]),
        row(ALLOCATING_FILTER, Settle, &[VfGone], RESTING, &[]),
        row(ALLOCATING_FILTER, Settle, &[Wanted, FiltersOut], EXPOSING, &[TellAvailable, OfferDevice]),
        row(ALLOCATING_FILTER, Settle, &[Wanted], ALLOCATING_FILTER, &[MoveOut]),
        row(ALLOCATING_FILTER, Settle, &[], REVOKING_FILTER, &[MoveHome]),

        row(EXPOSING, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(EXPOSING, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(EXPOSING, Settle, &[DeviceOffered], WAITING, &[]),
        row(EXPOSING, Settle, &[DeviceGone], REVOKING_FILTER, &[HoldOffHost, MoveHome]),
        row(EXPOSING, TimedOut, &[], REVOKING_FILTER, &[NoteSilence, HoldOffHost, MoveHome]),
        row(WAITING, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(WAITING, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(WAITING, Settle, &[GuestEjected], REVOKING_FILTER, &[HoldOffGuest, MoveHome]),
        row(WAITING, Settle, &[Unwanted], REVOKING_EJECT, &[TellLost, Eject]),
        row(WAITING, Settle, &[GuestAsksVf], SWITCHING, &[MoveOut]),
        row(WAITING, Settle, &[Spared], REVOKING_EJECT, &[HoldOffGuest, TellLost, Eject]),
        row(WAITING, Settle, &[UpkeepDue], OFFERED_UPKEEP, &[Upkeep]),
        row(WAITING, TimedOut, &[], WAITING, &[NoteSilence]),
        row(OFFERED_UPKEEP, Refused, &[], WAITING, &[Note]),
        row(OFFERED_UPKEEP, Settle, &[], WAITING, &[]),
        row(SWITCHING, Refused, &[], REVOKING_EJECT, &[HoldOff, TellLost, Eject]),
        row(SWITCHING, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(SWITCHING, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(SWITCHING, Settle, &[FiltersOut], ACTIVE, &[GrantVf]),
        row(SWITCHING, Settle, &[], SWITCHING, &[MoveOut]),

        row(ACTIVE, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(ACTIVE, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(ACTIVE, Settle, &[GuestEjected], REVOKING_FILTER, &[HoldOffGuest, MoveHome]),
        row(ACTIVE, Settle, &[GuestLeaves], ACTIVE_LEAVING, &[MoveHome]),
        row(ACTIVE, Settle, &[Unwanted, GuestListens], REVOKING_SWITCH, &[AskToLeave]),
        row(ACTIVE, Settle, &[Unwanted], REVOKING_EJECT, &[TellLost, Eject]),
        row(ACTIVE, Settle, &[UpkeepDue], ACTIVE_UPKEEP, &[Upkeep]),
        row(ACTIVE_UPKEEP, Refused, &[], ACTIVE, &[Note]),
        row(ACTIVE_UPKEEP, Settle, &[], ACTIVE, &[]),
        row(ACTIVE_LEAVING, Refused, &[], ACTIVE_LEAVING, &[Retry]),
        row(ACTIVE_LEAVING, TimedOut, &[], ACTIVE_LEAVING, &[MoveHome]),
        row(ACTIVE_LEAVING, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(ACTIVE_LEAVING, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(ACTIVE_LEAVING, Settle, &[FiltersHome], WAITING, &[GrantSynthetic]),
        row(ACTIVE_LEAVING, Settle, &[], ACTIVE_LEAVING, &[MoveHome]),

        // Teardown (SPEC-NDIS-SRIOV §11.3): the guest first, then what the published sequence has.
        row(REVOKING_SWITCH, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(REVOKING_SWITCH, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(REVOKING_SWITCH, Settle, &[GuestEjected], REVOKING_FILTER, &[MoveHome]),
        row(REVOKING_SWITCH, Settle, &[GuestLeaves], REVOKING_LEAVING, &[MoveHome]),
        row(REVOKING_SWITCH, TimedOut, &[], REVOKING_EJECT, &[NoteSilence, TellLost, Eject]),
        row(REVOKING_LEAVING, Refused, &[], REVOKING_LEAVING, &[Retry]),
        row(REVOKING_LEAVING, TimedOut, &[], REVOKING_LEAVING, &[MoveHome]),
        row(REVOKING_LEAVING, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(REVOKING_LEAVING, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(REVOKING_LEAVING, Settle, &[FiltersHome], REVOKING_EJECT, &[GrantSynthetic, TellLost, Eject]),
        row(REVOKING_LEAVING, Settle, &[], REVOKING_LEAVING, &[MoveHome]),
        row(REVOKING_EJECT, Settle, &[VfGone], REVOKING_DEVICE, &[ForceSynthetic, RemoveDevice]),
        row(REVOKING_EJECT, Settle, &[Urgent], REVOKING_FILTER, &[MoveHome]),
        row(REVOKING_EJECT, Settle, &[GuestLeaves], REVOKING_LEAVING, &[MoveHome]),
        row(REVOKING_EJECT, Settle, &[GuestEjected], REVOKING_FILTER, &[MoveHome]),
        row(REVOKING_EJECT, TimedOut, &[], REVOKING_FILTER, &[NoteSilence, MoveHome]),
        row(REVOKING_FILTER, Refused, &[], REVOKING_FILTER, &[Retry]),
        row(REVOKING_FILTER, TimedOut, &[], REVOKING_FILTER, &[MoveHome]),
        row(REVOKING_FILTER, Settle, &[FiltersHome], REVOKING_DEVICE, &[ForceSynthetic, TellLost, RemoveDevice]),
        row(REVOKING_FILTER, Settle, &[], REVOKING_FILTER, &[MoveHome]),
        row(REVOKING_DEVICE, TimedOut, &[], REVOKING_DEVICE, &[NoteSilence, ForgetDevice]),
        row(REVOKING_DEVICE, Settle, &[DeviceGone, VfGone], RESTING, &[]),
        row(REVOKING_DEVICE, Settle, &[DeviceGone], REVOKING_VPORT, &[DeleteVPort]),
        row(REVOKING_VPORT, Refused, &[], REVOKING_VPORT, &[Retry]),
        row(REVOKING_VPORT, TimedOut, &[], REVOKING_VPORT, &[DeleteVPort]),
        row(REVOKING_VPORT, Settle, &[VfGone], RESTING, &[]),
        row(REVOKING_VPORT, Settle, &[VPortGone], REVOKING_RESET, &[ResetVf]),
        row(REVOKING_RESET, Refused, &[], REVOKING_VF, &[Note, FreeVf]),
        row(REVOKING_RESET, Settle, &[VfGone], RESTING, &[]),
        row(REVOKING_RESET, Settle, &[], REVOKING_VF, &[FreeVf]),
        row(REVOKING_VF, Refused, &[], REVOKING_VF, &[Retry]),
        row(REVOKING_VF, TimedOut, &[], REVOKING_VF, &[FreeVf]),
        row(REVOKING_VF, Settle, &[VfGone], RESTING, &[]),
    ]
};

/// The transition that is due, if one is.
pub(crate) fn find(from: State, on: On, holds: impl Fn(When) -> bool) -> Option<&'static Row> {
    TRANSITIONS.iter().find(|row| {
        row.from == from && row.on == on && row.when.iter().all(|condition| holds(*condition))
    })
}
