//! What can go wrong on a virtual PCI bus.

use partition::guest::GuestError;
use pcivirt_protocol::NtStatus;
use vpci::{ChannelError, vsc::VscError};

/// An error of the guest's end of a virtual PCI bus.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VpciError {
    /// The channel cannot be opened or closed.
    #[error("the channel of a virtual PCI bus")]
    Bus(#[from] GuestError),
    /// The channel is broken.
    #[error("the channel of a virtual PCI bus")]
    Channel(#[from] ChannelError),
    /// The request cannot be made: no function is ready, or the protocol cannot carry it.
    #[error(transparent)]
    Vsc(#[from] VscError),
    /// The host refused a request.
    #[error("the host refused {what}: {status}")]
    Refused {
        /// The request.
        what: &'static str,
        /// Its answer.
        status: NtStatus,
    },
    /// The function is not there any more.
    #[error("the function is not there any more")]
    Gone,
    /// More buses than there are addresses for.
    #[error("no addresses are left for another virtual PCI bus; {0} are there")]
    NoAddresses(usize),
    /// More interrupts than the processor has vectors for.
    #[error("no interrupt vectors are left; a processor has {0} for devices")]
    NoVectors(usize),
    /// There is too little memory.
    #[error("{0} adjacent pages of guest memory are not to be had")]
    NoMemory(usize),
    /// The host has not begun to deliver an interrupt that was made and unmasked.
    #[error("interrupt vector {0} is not delivered by the host")]
    NotDelivered(u32),
    /// The function lacks what every function of its kind has.
    #[error("the function has no {0}")]
    Lacks(&'static str),
    /// The kernel refuses.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl VpciError {
    pub(super) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
