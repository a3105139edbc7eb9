//! VLAN offload, version 2 (SPEC-AVF §4.6, §4.9).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use super::wire;

/// VLAN support bits.
pub mod support {
    /// Ethertype 0x8100.
    pub const ETHERTYPE_8100: u32 = 1 << 0;
    /// Ethertype 0x88A8.
    pub const ETHERTYPE_88A8: u32 = 1 << 1;
    /// Ethertype 0x9100.
    pub const ETHERTYPE_9100: u32 = 1 << 2;
    /// The tag is in L2TAG1.
    pub const LOCATION_L2TAG1: u32 = 1 << 8;
    /// The tag is in L2TAG2.
    pub const LOCATION_L2TAG2: u32 = 1 << 9;
    /// The tag is in the second position of L2TAG2.
    pub const LOCATION_L2TAG2_2: u32 = 1 << 10;
    /// Filters on priority.
    pub const PRIORITY: u32 = 1 << 24;
    /// Filters with masks.
    pub const FILTER_MASK: u32 = 1 << 28;
    /// Several ethertypes at a time.
    pub const ETHERTYPE_AND: u32 = 1 << 29;
    /// One ethertype at a time.
    pub const ETHERTYPE_XOR: u32 = 1 << 30;
    /// The driver may turn it on and off.
    pub const TOGGLE: u32 = 1 << 31;
    /// All ethertype bits.
    pub const ETHERTYPES: u32 = ETHERTYPE_8100 | ETHERTYPE_88A8 | ETHERTYPE_9100;
}

/// Reply of GET_OFFLOAD_VLAN_V2_CAPS, 40 bytes; [`support`] bits.
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
pub struct VlanV2Capabilities {
    /// Filtering of outer tags.
    pub filtering_outer: U32,
    /// Filtering of inner (or only) tags.
    pub filtering_inner: U32,
    /// Ethertypes filtered from the start.
    pub filtering_ethertype_init: U32,
    /// The most filters.
    pub max_filters: U16,
    /// Unused.
    pub pad1: U16,
    /// Stripping of outer tags.
    pub strip_outer: U32,
    /// Stripping of inner (or only) tags.
    pub strip_inner: U32,
    /// Insertion of outer tags.
    pub insert_outer: U32,
    /// Insertion of inner (or only) tags.
    pub insert_inner: U32,
    /// Ethertypes offloaded from the start.
    pub offload_ethertype_init: U32,
    /// 0: stripping and insertion use the same ethertype; 1: they do not depend on each other.
    pub ethertype_match: u8,
    /// Unused.
    pub pad2: [u8; 3],
}
wire!(VlanV2Capabilities, 40; filtering_inner at 4, filtering_ethertype_init at 8, max_filters at 12,
    strip_outer at 16, strip_inner at 20, insert_outer at 24, insert_inner at 28,
    offload_ethertype_init at 32, ethertype_match at 36);

impl VlanV2Capabilities {
    /// One 802.1Q tag, in L2TAG1 both ways, that may be toggled, and `max_filters` filters: what all stock
    /// drivers get on with (SPEC-AVF §4.9).
    pub fn single_vlan(max_filters: u16) -> Self {
        let offload = support::ETHERTYPE_8100 | support::TOGGLE | support::LOCATION_L2TAG1;
        Self {
            filtering_inner: support::ETHERTYPE_8100.into(),
            filtering_ethertype_init: support::ETHERTYPE_8100.into(),
            max_filters: max_filters.into(),
            strip_inner: offload.into(),
            insert_inner: offload.into(),
            offload_ethertype_init: support::ETHERTYPE_8100.into(),
            ..Self::default()
        }
    }
}

/// A tag of a VLAN filter, 8 bytes.
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
pub struct VlanFilterTag {
    /// VLAN id.
    pub tci: U16,
    /// Bits of the TCI that count; only with [`support::FILTER_MASK`].
    pub tci_mask: U16,
    /// Ethertype; 0 when the tag is not given.
    pub tpid: U16,
    /// Unused.
    pub pad: U16,
}
wire!(VlanFilterTag, 8; tci_mask at 2, tpid at 4);

/// One element of ADD/DEL_VLAN_V2, 32 bytes.
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
pub struct VlanFilter {
    /// Inner (or only) tag.
    pub inner: VlanFilterTag,
    /// Outer tag.
    pub outer: VlanFilterTag,
    /// Unused.
    pub pad: [u8; 16],
}
wire!(VlanFilter, 32; outer at 8, pad at 16);

impl VlanFilter {
    /// VLAN `id` with ethertype 0x8100, as the inner (or only) tag.
    pub fn inner(id: u16) -> Self {
        let inner = VlanFilterTag { tci: id.into(), tpid: 0x8100.into(), ..Default::default() };
        Self { inner, ..Self::default() }
    }
}

/// Request of the VLAN toggles (54–59), 16 bytes; [`support`] ethertype bits.
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
pub struct VlanSetting {
    /// Outer tags.
    pub outer: U32,
    /// Inner (or only) tags.
    pub inner: U32,
    /// VSI (VPort) id.
    pub vport_id: U16,
    /// Unused.
    pub pad: [u8; 6],
}
wire!(VlanSetting, 16; inner at 4, vport_id at 8);
