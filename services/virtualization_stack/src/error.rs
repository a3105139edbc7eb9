//! What the stack refuses to be told.

use thiserror::Error;

use crate::{AdapterId, NicId, VmId, VmSwitchId};

/// Something the stack was told makes no sense. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum StackError {
    /// Not known.
    #[error("there is no {0}; add it first")]
    NoSuchVm(VmId),
    /// Not known.
    #[error("there is no {0}; add it first")]
    NoSuchSwitch(VmSwitchId),
    /// Not known.
    #[error("there is no {0}; add it first")]
    NoSuchAdapter(AdapterId),
    /// The VM still has adapters.
    #[error("{vm} has {adapters} network adapter(s); remove them first")]
    VmHasAdapters {
        /// The VM.
        vm: VmId,
        /// How many.
        adapters: usize,
    },
    /// The VM has as many adapters as it can have.
    #[error("{vm} has {most} network adapters, which is all it can have")]
    TooManyAdapters {
        /// The VM.
        vm: VmId,
        /// How many that is.
        most: usize,
    },
    /// Something that cannot change.
    #[error("the {what} of {object} cannot be changed; remove it and make it again")]
    Fixed {
        /// The object.
        object: String,
        /// What of it.
        what: &'static str,
    },
    /// The adapter is being removed.
    #[error("{0} is being removed; wait until it is gone")]
    BeingRemoved(AdapterId),
    /// Another switch has the NIC.
    #[error("{nic} is the uplink of {switch}; a NIC has one switch")]
    NicTaken {
        /// The NIC.
        nic: NicId,
        /// The switch that has it.
        switch: VmSwitchId,
    },
    /// Another adapter has the address.
    #[error("{other} on the same switch has the MAC address already; choose another")]
    MacTaken {
        /// Who has it.
        other: AdapterId,
    },
    /// A number out of its range.
    #[error("{property} may not be {value}: {rule}")]
    Property {
        /// The property.
        property: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        rule: &'static str,
    },
}
