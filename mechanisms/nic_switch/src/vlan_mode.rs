//! A VLAN mode as people and programs write it: the one table that both data paths of a VM obey.

use ndis_protocol::VlanId;
use serde::{Deserialize, Serialize};

use crate::{VlanMatch, VlanPolicy, VlanSet};

/// The VLAN mode of a VPort, or of a port of a virtual switch.
#[derive(Clone, Eq, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode", deny_unknown_fields)]
pub enum VlanMode {
    /// Tags pass as they are; receive filters alone decide.
    #[default]
    Transparent,
    /// One VLAN, never a tag.
    Access {
        /// VLAN id, 1–4094.
        vlan: u16,
    },
    /// Several VLANs by tag.
    Trunk {
        /// VLAN of untagged frames; 0 leaves them untagged.
        native: u16,
        /// VLANs that pass tagged.
        allowed: Vec<u16>,
    },
}

impl VlanMode {
    /// The policy; `None` if a VLAN id is out of range.
    #[must_use]
    pub fn policy(&self) -> Option<VlanPolicy> {
        Some(match self {
            Self::Transparent => VlanPolicy::Transparent,
            Self::Access { vlan } => VlanPolicy::Access(VlanId::new(*vlan)?.get()),
            Self::Trunk { native, allowed } => {
                if *native != 0 {
                    VlanId::new(*native)?;
                }
                let allowed = allowed.iter().map(|id| Some(VlanId::new(*id)?.get()));
                let allowed = allowed.collect::<Option<VlanSet>>()?;
                VlanPolicy::Trunk { native: *native, allowed }
            }
        })
    }

    /// The one receive filter condition that lets in whatever the mode lets in.
    #[must_use]
    pub const fn receives(&self) -> VlanMatch {
        match self {
            Self::Transparent => VlanMatch::UntaggedOrZero,
            Self::Access { vlan } => VlanMatch::Id(*vlan),
            Self::Trunk { .. } => VlanMatch::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_with_an_impossible_vlan_is_none() {
        for vlan in [0, 4095, 5000] {
            assert_eq!(VlanMode::Access { vlan }.policy(), None);
            assert_eq!(VlanMode::Trunk { native: 1, allowed: vec![vlan] }.policy(), None);
        }
        assert_eq!(VlanMode::Trunk { native: 4095, allowed: vec![] }.policy(), None);
        assert!(VlanMode::Trunk { native: 0, allowed: vec![1, 4094] }.policy().is_some());
        assert_eq!(VlanMode::Access { vlan: 7 }.policy(), Some(VlanPolicy::Access(7)));
    }
}
