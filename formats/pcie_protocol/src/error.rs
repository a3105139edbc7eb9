//! What can be wrong with a value of this crate.

use crate::{BarIndex, RoutingId, VfIndex};

/// A value that the PCI Express specification does not allow.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PcieError {
    /// A VF would lie beyond bus 255, or on the routing id of its PF.
    #[error(
        "VF {vf} of the PF at {pf} has no routing id with first VF offset {first_vf_offset} and VF stride \
         {vf_stride}: give the PF a lower bus number or enable fewer VFs"
    )]
    NoVfRoutingId {
        /// The PF.
        pf: RoutingId,
        /// The VF, from 0.
        vf: VfIndex,
        /// First VF Offset of the SR-IOV capability.
        first_vf_offset: u16,
        /// VF Stride of the SR-IOV capability.
        vf_stride: u16,
    },
    /// A function has the base address registers 0 to 5.
    #[error("there is no base address register {0}: a type 0 header has 0 to 5")]
    NoSuchBar(u64),
    /// The size of a BAR is no power of two, or out of the range of its kind.
    #[error("a base address register of {size:#x} bytes cannot be: {requirement}")]
    BarSize {
        /// Bytes asked for.
        size: u64,
        /// What its kind needs.
        requirement: &'static str,
    },
    /// A 64-bit BAR needs the register after it, which is not there or is taken.
    #[error(
        "the 64-bit {0} needs the register after it too, which does not exist or is in use: move it"
    )]
    NoUpperHalf(BarIndex),
    /// A probed value has type bits that mean nothing (PCIe 6.0 §7.5.1.2.1).
    #[error("the probed value {value:#010x} of {bar} is not that of a base address register")]
    NotAProbedBar {
        /// Which register.
        bar: BarIndex,
        /// The value.
        value: u32,
    },
    /// A text that is not `segment:bus:device.function`.
    #[error("not a PCI location: write it as segment:bus:device.function, such as 0000:3b:00.1")]
    NotALocation,
    /// A System Page Size register holds one bit, of those in Supported Page Sizes.
    #[error("the system page size {0:#x} is not one page size: set exactly one bit")]
    NotAPageSize(u32),
}
