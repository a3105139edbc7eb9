//! How many queue pairs a VF gets (SPEC-MANAGEMENT §5.2 R13, SPEC-NDIS-SRIOV §4 rule 9).

/// What a NIC has left for one more VPort.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct PairsLeft {
    /// Queue pairs that no VPort has.
    pub(crate) free: u32,
    /// Most of one nondefault VPort.
    pub(crate) max: u32,
    /// On hardware whose nondefault VPorts must all have the same: what those that are there have.
    pub(crate) symmetric: Option<u32>,
}

impl PairsLeft {
    /// Queue pairs for a VPort of which so many are asked for; 0 if there are none. On symmetric hardware the first VPort
    /// decides for all.
    pub(crate) fn grant(&self, requested: u32) -> u32 {
        match self.symmetric {
            Some(pairs) if pairs <= self.free => pairs,
            Some(_) => 0,
            None => requested.max(1).min(self.max).min(self.free),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_cut_down_to_what_the_card_and_the_others_leave() {
        let left = PairsLeft { free: 10, max: 4, symmetric: None };
        assert_eq!(left.grant(1), 1);
        assert_eq!(left.grant(u32::MAX), 4);
        assert_eq!(PairsLeft { free: 3, ..left }.grant(4), 3);
        assert_eq!(PairsLeft { free: 0, ..left }.grant(1), 0);
    }

    #[test]
    fn on_symmetric_hardware_the_first_vport_decides() {
        let left = PairsLeft { free: 4, max: 4, symmetric: Some(2) };
        assert_eq!(left.grant(4), 2);
        assert_eq!(PairsLeft { free: 1, ..left }.grant(1), 0);
    }
}
