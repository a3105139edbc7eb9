//! The transitions of a NIC's client state, as one table, which is the code.

use super::NicState::{self, *};

/// What makes a NIC move.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum On {
    /// There is a connection.
    Connected,
    /// ATTACH succeeded.
    Attached,
    /// ATTACH was refused.
    Refused,
    /// Its survey is done.
    Surveyed,
    /// Its capabilities have changed.
    CapabilitiesChanged,
    /// NOTIFICATION: the PF is about to stop.
    QueryStop,
    /// NOTIFICATION: the PF is about to be removed.
    QueryRemove,
    /// NOTIFICATION: the PF runs again.
    Restart,
    /// The facts are as they are.
    Settle,
    /// The state's deadline has passed.
    TimedOut,
    /// The PF was removed, or the connection has ended.
    Gone,
}

/// A condition.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum When {
    /// No adapter has a VF of this NIC, and none has a request outstanding.
    GivenBack,
    /// No adapter has a filter on this NIC.
    FiltersCleared,
    /// Silent guests are a reason for a veto.
    MayVeto,
}

/// What is done with a transition.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Do {
    /// IOCTL_SRIOV_ATTACH.
    Attach,
    /// IOCTL_SRIOV_NOTIFICATION, from now on one after the other.
    Poll,
    /// Ask the NIC what it can do; on a new connection clear away what was left on it.
    Survey,
    /// Adapters give their VFs back, until the deadline.
    GiveBack,
    /// Adapters give their VFs back without waiting for their guests.
    Force,
    /// IOCTL_SRIOV_EVENT_COMPLETE(success): the PF may go on.
    Allow,
    /// IOCTL_SRIOV_EVENT_COMPLETE(error).
    Veto,
    /// IOCTL_SRIOV_EVENT_COMPLETE(success): noticed.
    Acknowledge,
    /// End the connection.
    Disconnect,
    /// Everything on the NIC is gone.
    Forget,
}

/// One row; the first that fits counts.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) from: &'static [NicState],
    pub(crate) on: On,
    pub(crate) when: &'static [When],
    /// `None`: the same.
    pub(crate) to: Option<NicState>,
    pub(crate) does: &'static [Do],
}

const fn row(
    from: &'static [NicState],
    on: On,
    when: &'static [When],
    to: Option<NicState>,
    does: &'static [Do],
) -> Row {
    Row { from, on, when, to, does }
}

/// The table.
#[rustfmt::skip]
pub(crate) const TRANSITIONS: &[Row] = &[
    row(&[Absent], On::Connected, &[], Some(Attaching), &[Do::Attach]),
    row(&[Attaching], On::Attached, &[], Some(Surveying), &[Do::Poll, Do::Survey]),
    row(&[Attaching], On::Refused, &[], Some(Absent), &[Do::Disconnect, Do::Forget]),
    row(&[Surveying], On::Surveyed, &[], Some(Ready), &[]),
    row(&[Ready], On::CapabilitiesChanged, &[], Some(Surveying), &[Do::Survey]),
    row(&[Surveying, Ready, Stopped, Vetoed, Released], On::QueryStop, &[], Some(Stopping), &[Do::GiveBack]),
    row(&[Surveying, Ready, Stopped, Vetoed, Released], On::QueryRemove, &[], Some(Removing), &[Do::GiveBack]),
    row(&[Stopping], On::Settle, &[When::GivenBack], Some(Stopped), &[Do::Allow]),
    row(&[Stopping], On::TimedOut, &[When::MayVeto], Some(Vetoed), &[Do::Veto]),
    row(&[Stopping], On::TimedOut, &[], Some(Stopping), &[Do::Force]),
    row(&[Removing], On::Settle, &[When::GivenBack, When::FiltersCleared], Some(Released), &[Do::Allow]),
    row(&[Removing], On::TimedOut, &[When::MayVeto], Some(Surveying), &[Do::Veto, Do::Survey]),
    row(&[Removing], On::TimedOut, &[], Some(Removing), &[Do::Force]),
    row(&[Released], On::TimedOut, &[], Some(Surveying), &[Do::Survey]),
    row(&[Stopped, Vetoed, Released], On::Restart, &[], Some(Surveying), &[Do::Acknowledge, Do::Survey]),
    row(&[Surveying, Ready], On::Restart, &[], None, &[Do::Acknowledge]),
    row(&[Attaching, Surveying, Ready, Stopping, Stopped, Vetoed, Removing, Released], On::Gone, &[], Some(Absent), &[Do::Disconnect, Do::Forget]),
];

/// The transition that is due, if one is.
pub(crate) fn find(from: NicState, on: On, holds: impl Fn(When) -> bool) -> Option<&'static Row> {
    TRANSITIONS.iter().find(|row| {
        row.from.contains(&from) && row.on == on && row.when.iter().all(|when| holds(*when))
    })
}
