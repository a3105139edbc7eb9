//! VERSION and GET_VF_RESOURCES (SPEC-AVF §4.5).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I32, U16, U32},
};

use super::{Capabilities, wire};
use crate::MacAddress;

/// `vsi_type` of a VF's VSI.
pub const VSI_TYPE_SRIOV: i32 = 6;

/// A virtchnl version.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

impl Version {
    /// 1.0: what holds before any VERSION message.
    pub const V1_0: Self = Self { major: 1, minor: 0 };
    /// 1.1: what drivers speak.
    pub const V1_1: Self = Self { major: 1, minor: 1 };
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VersionMessage {
    major: U32,
    minor: U32,
}
wire!(VersionMessage, 8; minor at 4);

impl From<Version> for VersionMessage {
    fn from(version: Version) -> Self {
        Self { major: version.major.into(), minor: version.minor.into() }
    }
}

impl From<&VersionMessage> for Version {
    fn from(message: &VersionMessage) -> Self {
        Self { major: message.major.get(), minor: message.minor.get() }
    }
}

/// What a VF has: the meaning of the GET_VF_RESOURCES reply with its one VSI.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct VfResources {
    /// VSIs in the message; 1 from this device.
    pub num_vsis: u16,
    /// Queue pairs of the VSI.
    pub queue_pairs: u16,
    /// MSI-X vectors, vector 0 included.
    pub max_vectors: u16,
    /// The largest frame, bytes (the field is called `max_mtu`); 0 when not told.
    pub max_frame: u16,
    /// Granted capabilities.
    pub capabilities: Capabilities,
    /// Bytes of the RSS key.
    pub rss_key_size: u32,
    /// Entries of the RSS lookup table.
    pub rss_lut_size: u32,
    /// Opaque id of the VSI, echoed in all messages.
    pub vsi_id: u16,
    /// [`VSI_TYPE_SRIOV`].
    pub vsi_type: i32,
    /// RDMA queue set.
    pub qset_handle: u16,
    /// The VF's MAC address; zero when it has none.
    pub default_mac: MacAddress,
}

#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VfResourcesMessage {
    num_vsis: U16,
    num_queue_pairs: U16,
    max_vectors: U16,
    max_mtu: U16,
    vf_cap_flags: U32,
    rss_key_size: U32,
    rss_lut_size: U32,
    vsi_id: U16,
    vsi_num_queue_pairs: U16,
    vsi_type: I32,
    qset_handle: U16,
    default_mac: MacAddress,
}
wire!(VfResourcesMessage, 36; max_vectors at 4, max_mtu at 6, vf_cap_flags at 8, rss_key_size at 12,
    rss_lut_size at 16, vsi_id at 20, vsi_num_queue_pairs at 22, vsi_type at 24, qset_handle at 28,
    default_mac at 30);

impl From<&VfResources> for VfResourcesMessage {
    fn from(r: &VfResources) -> Self {
        Self {
            num_vsis: r.num_vsis.into(),
            num_queue_pairs: r.queue_pairs.into(),
            max_vectors: r.max_vectors.into(),
            max_mtu: r.max_frame.into(),
            vf_cap_flags: r.capabilities.0.into(),
            rss_key_size: r.rss_key_size.into(),
            rss_lut_size: r.rss_lut_size.into(),
            vsi_id: r.vsi_id.into(),
            vsi_num_queue_pairs: r.queue_pairs.into(),
            vsi_type: r.vsi_type.into(),
            qset_handle: r.qset_handle.into(),
            default_mac: r.default_mac,
        }
    }
}

impl From<&VfResourcesMessage> for VfResources {
    fn from(m: &VfResourcesMessage) -> Self {
        Self {
            num_vsis: m.num_vsis.get(),
            queue_pairs: m.vsi_num_queue_pairs.get(),
            max_vectors: m.max_vectors.get(),
            max_frame: m.max_mtu.get(),
            capabilities: Capabilities(m.vf_cap_flags.get()),
            rss_key_size: m.rss_key_size.get(),
            rss_lut_size: m.rss_lut_size.get(),
            vsi_id: m.vsi_id.get(),
            vsi_type: m.vsi_type.get(),
            qset_handle: m.qset_handle.get(),
            default_mac: m.default_mac,
        }
    }
}
