//! What the administrator allows a VPort to send and receive.

/// A set of VLAN ids 0–4095 (0 stands for untagged and priority-tagged frames).
#[derive(Clone, Eq, PartialEq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// No VLAN.
    pub fn empty() -> Self {
        Self(Box::new([0; 64]))
    }

    /// Every VLAN.
    pub fn all() -> Self {
        Self(Box::new([u64::MAX; 64]))
    }

    /// Whether `id` (0–4095; higher bits are ignored) is in the set.
    #[inline]
    pub fn contains(&self, id: u16) -> bool {
        self.0.get(usize::from(id & 0xFFF) / 64).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }

    /// Adds an id.
    pub fn insert(&mut self, id: u16) {
        if let Some(word) = self.0.get_mut(usize::from(id & 0xFFF) / 64) {
            *word |= 1 << (id % 64);
        }
    }

    /// Removes an id.
    pub fn remove(&mut self, id: u16) {
        if let Some(word) = self.0.get_mut(usize::from(id & 0xFFF) / 64) {
            *word &= !(1 << (id % 64));
        }
    }
}

impl FromIterator<u16> for VlanSet {
    fn from_iter<T: IntoIterator<Item = u16>>(ids: T) -> Self {
        let mut set = Self::empty();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..4096u16).filter(|id| self.contains(*id))).finish()
    }
}

/// The VLAN mode of a VPort.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub enum VlanPolicy {
    /// No mode is set: tags pass as they are, and the receive filters alone decide what is received.
    #[default]
    Transparent,
    /// The VPort belongs to one VLAN and never sees a tag (Hyper-V's access mode).
    Access(u16),
    /// The VPort sends and receives tagged frames of `allowed`; untagged frames belong to `native`.
    Trunk {
        /// VLAN of untagged frames; 0 leaves them untagged on the wire.
        native: u16,
        /// Tagged VLANs that pass.
        allowed: VlanSet,
    },
}

impl VlanPolicy {
    /// The tag that a frame sent by the VPort carries inside the switch; `Err` if it may not pass.
    #[inline]
    pub(crate) fn ingress(&self, tci: Option<u16>) -> Result<Option<u16>, ()> {
        match self {
            Self::Transparent => Ok(tci),
            Self::Access(vlan) => match tci {
                // A priority tag keeps its priority.
                Some(tci) if tci & 0xFFF != 0 => Err(()),
                tci => Ok(Some(tci.unwrap_or(0) & 0xF000 | vlan)),
            },
            Self::Trunk { native, allowed } => match tci {
                Some(tci) if tci & 0xFFF != 0 => {
                    allowed.contains(tci).then_some(Some(tci)).ok_or(())
                }
                tci if *native == 0 => Ok(tci),
                tci => Ok(Some(tci.unwrap_or(0) & 0xF000 | native)),
            },
        }
    }

    /// The tag that a frame inside the switch carries when it leaves to the VPort; `Err` if it may not pass.
    #[inline]
    pub(crate) fn egress(&self, tci: Option<u16>) -> Result<Option<u16>, ()> {
        let id = tci.unwrap_or(0) & 0xFFF;
        match self {
            Self::Transparent => Ok(tci),
            Self::Access(vlan) if id == *vlan => Ok(None),
            Self::Access(_) => Err(()),
            Self::Trunk { native, .. } if id == *native => Ok(None),
            Self::Trunk { allowed, .. } => allowed.contains(id).then_some(tci).ok_or(()),
        }
    }
}

/// What the administrator allows a VPort beyond its receive filters.
#[derive(Clone, Eq, PartialEq, Debug, Default)]
pub struct VPortPolicy {
    /// Frames with a foreign source address pass (Hyper-V: MacAddressSpoofing).
    pub allow_spoofing: bool,
    /// The guest may receive frames that are not for it.
    pub allow_promiscuous: bool,
    /// VLAN mode.
    pub vlan: VlanPolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_mode_hides_the_tag_and_keeps_others_out() {
        let access = VlanPolicy::Access(7);
        assert_eq!(access.ingress(None), Ok(Some(7)));
        assert_eq!(
            access.ingress(Some(0xA000)),
            Ok(Some(0xA007)),
            "a priority tag keeps its priority"
        );
        assert_eq!(access.ingress(Some(7)), Err(()), "the guest may not tag by itself");
        assert_eq!(access.egress(Some(7)), Ok(None));
        assert_eq!(access.egress(Some(8)), Err(()));
        assert_eq!(access.egress(None), Err(()));
    }

    #[test]
    fn trunk_mode_passes_its_vlans_tagged_and_the_native_one_untagged() {
        let trunk = VlanPolicy::Trunk { native: 5, allowed: VlanSet::from_iter([10, 4095]) };
        assert_eq!(trunk.ingress(None), Ok(Some(5)));
        assert_eq!(trunk.ingress(Some(10)), Ok(Some(10)));
        assert_eq!(trunk.ingress(Some(11)), Err(()));
        assert_eq!(trunk.egress(Some(5)), Ok(None));
        assert_eq!(trunk.egress(Some(4095)), Ok(Some(4095)));
        assert_eq!(trunk.egress(None), Err(()));
        let untagged = VlanPolicy::Trunk { native: 0, allowed: VlanSet::empty() };
        assert_eq!((untagged.ingress(None), untagged.egress(None)), (Ok(None), Ok(None)));
    }
}
