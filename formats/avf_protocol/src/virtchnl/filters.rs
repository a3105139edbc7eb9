//! MAC filters and promiscuous modes (SPEC-AVF §4.6).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::wire;
use crate::MacAddress;

/// What an address of ADD_ETH_ADDR is to the VF.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum MacFilterKind {
    /// 0, and values unknown: a driver that tells no kinds apart.
    Legacy,
    /// 1: becomes the VF's primary address.
    Primary,
    /// 2: one more address.
    Extra,
}

/// One element of ADD/DEL_ETH_ADDR, 8 bytes.
#[derive(
    Copy,
    Clone,
    Eq,
    PartialEq,
    Default,
    Debug,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct EthAddr {
    /// The address.
    pub address: MacAddress,
    /// Kind as a number; see [`EthAddr::kind`].
    pub kind: u8,
    /// Unused.
    pub pad: u8,
}
wire!(EthAddr, 8; kind at 6);

impl EthAddr {
    /// An address of the given kind.
    pub const fn new(address: MacAddress, kind: MacFilterKind) -> Self {
        let kind = match kind {
            MacFilterKind::Legacy => 0,
            MacFilterKind::Primary => 1,
            MacFilterKind::Extra => 2,
        };
        Self { address, kind, pad: 0 }
    }

    /// What the address is to the VF.
    pub const fn kind(&self) -> MacFilterKind {
        match self.kind {
            1 => MacFilterKind::Primary,
            2 => MacFilterKind::Extra,
            _ => MacFilterKind::Legacy,
        }
    }
}

/// Flags of CONFIG_PROMISCUOUS_MODE.
pub mod promiscuous {
    /// All unicast frames.
    pub const UNICAST: u16 = 1 << 0;
    /// All multicast frames.
    pub const MULTICAST: u16 = 1 << 1;
}
