//! A NIC as the stack's owner of VFs sees it: the client side of the PF driver contract (SPEC-PCIVIRT §8.5), from the
//! ATTACH of a new connection to its end.
//!
//! A PF that wants to stop or to be removed is let go once all its VFs are given back; a guest that does not answer until
//! the deadline is a reason for a veto, or loses its VF by surprise
//! ([`SilentGuest`](crate::SilentGuest)). Each event that was delivered is completed once. The published interface does not
//! tell when a removal is called off; after a deadline it is taken for called off.
//!
//! # Transitions
#![doc = include_str!("transitions.md")]

mod facts;
mod survey;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use facts::NicFacts;
pub(crate) use survey::Survey;
pub(crate) use table::{Do, On, When, find};

use core::fmt;
use serde::{Deserialize, Serialize};

use crate::{NicId, NicSurvey, RequestId, Time};

/// State of the connection to a NIC.
#[derive(
    Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum NicState {
    /// There is none.
    #[default]
    Absent,
    /// ATTACH is outstanding: for long, if the PF is stopped.
    Attaching,
    /// The NIC is asked what it can do.
    Surveying,
    /// It gives VFs.
    Ready,
    /// The PF wants to stop; the VFs are being given back.
    Stopping,
    /// The PF may stop, or has stopped.
    Stopped,
    /// The PF may not stop. It says when the stop is called off.
    Vetoed,
    /// The PF wants to be removed; VFs and filters are being given back.
    Removing,
    /// The PF may be removed.
    Released,
}

impl NicState {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Absent,
        Self::Attaching,
        Self::Surveying,
        Self::Ready,
        Self::Stopping,
        Self::Stopped,
        Self::Vetoed,
        Self::Removing,
        Self::Released,
    ];
}

impl fmt::Display for NicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A NIC.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    pub(crate) id: NicId,
    pub(crate) state: NicState,
    /// What a survey of the host found out.
    pub(crate) host_survey: NicSurvey,
    /// What the NIC says; `None` until it was asked.
    pub(crate) facts: Option<NicFacts>,
    pub(crate) survey: Option<Survey>,
    /// The survey's outstanding request.
    pub(crate) request: Option<RequestId>,
    /// What an earlier life left was cleared away on this connection.
    pub(crate) swept: bool,
    pub(crate) deadline: Option<Time>,
    /// VFs are taken without waiting for guests.
    pub(crate) forced: bool,
    /// Capabilities changed while that could not be looked at.
    pub(crate) look_again: bool,
}

impl Nic {
    pub(crate) fn new(id: NicId) -> Self {
        Self {
            id,
            state: NicState::Absent,
            host_survey: NicSurvey::default(),
            facts: None,
            survey: None,
            request: None,
            swept: false,
            deadline: None,
            forced: false,
            look_again: false,
        }
    }
}
