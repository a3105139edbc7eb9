//! Which of SR-IOV, VMQ and RSS an adapter uses (SPEC-NDIS-SRIOV §2.4).

use std::fmt;

use crate::{Keywords, Preference};

/// The features that are active. RSS never is together with one of the others.
#[derive(Copy, Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ActiveFeatures {
    /// VFs can be allocated, and there is a NIC switch.
    pub sriov: bool,
    /// VMs without VF can have queues of their own; with SR-IOV these are the PF's VPorts.
    pub vmq: bool,
    /// Receive side scaling of the host's own traffic.
    pub rss: bool,
}

impl ActiveFeatures {
    const NONE: Self = Self { sriov: false, vmq: false, rss: false };
    const RSS: Self = Self { rss: true, ..Self::NONE };
    const VMQ: Self = Self { vmq: true, ..Self::NONE };
    const SRIOV: Self = Self { sriov: true, ..Self::NONE };
    const SRIOV_AND_VMQ: Self = Self { sriov: true, vmq: true, ..Self::NONE };

    /// Decides by the keywords alone.
    ///
    /// The published table leaves rows out. Those with *SriovPreferred = 1 are filled in so that *SRIOV alone decides
    /// about SR-IOV and *VMQ alone about VMQ: *RssOrVmqPreference chooses between RSS and VMQ, and preferring
    /// SR-IOV has already ruled RSS out.
    #[must_use]
    pub const fn decide(keywords: &Keywords) -> Self {
        if keywords.sriov_preferred {
            return match (keywords.sriov, keywords.vmq) {
                (true, true) => Self::SRIOV_AND_VMQ,
                (true, false) => Self::SRIOV,
                (false, true) => Self::VMQ,
                (false, false) => Self::NONE,
            };
        }
        match keywords.rss_or_vmq_preference {
            Preference::Vmq if keywords.vmq => Self::VMQ,
            Preference::Rss if keywords.rss => Self::RSS,
            _ => Self::NONE,
        }
    }
}

impl fmt::Display for ActiveFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.sriov, self.vmq, self.rss) {
            (true, true, _) => "SR-IOV and VMQ",
            (true, false, _) => "SR-IOV",
            (false, true, _) => "VMQ",
            (false, false, true) => "RSS",
            (false, false, false) => "none",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the published table: SriovPreferred, RssOrVmqPreference, *SRIOV, *VMQ, *RSS; `None` is "any".
    #[test]
    fn the_published_table_holds_row_by_row() {
        type Cell = Option<bool>;
        let (on, off, any): (Cell, Cell, Cell) = (Some(true), Some(false), None);
        let table = [
            ([on, on, on, on, any], ActiveFeatures::SRIOV_AND_VMQ),
            ([on, on, off, on, any], ActiveFeatures::VMQ),
            ([on, any, off, off, any], ActiveFeatures::NONE),
            ([off, on, any, on, any], ActiveFeatures::VMQ),
            ([off, on, any, off, any], ActiveFeatures::NONE),
            ([off, off, any, any, on], ActiveFeatures::RSS),
            ([off, off, any, any, off], ActiveFeatures::NONE),
            // The rows that the table leaves out.
            ([on, any, on, off, any], ActiveFeatures::SRIOV),
            ([on, off, on, on, any], ActiveFeatures::SRIOV_AND_VMQ),
            ([on, off, off, on, any], ActiveFeatures::VMQ),
        ];
        for bits in 0_u32..32 {
            let cells: Vec<bool> = (0..5).map(|bit| bits >> bit & 1 != 0).collect();
            let rows: Vec<_> = table
                .iter()
                .filter(|(row, _)| row.iter().zip(&cells).all(|(r, c)| r.is_none_or(|r| r == *c)))
                .collect();
            assert_eq!(rows.len(), 1, "each combination is in one row: {cells:?}");
            let keywords = Keywords {
                sriov_preferred: cells[0],
                rss_or_vmq_preference: if cells[1] { Preference::Vmq } else { Preference::Rss },
                sriov: cells[2],
                vmq: cells[3],
                rss: cells[4],
                ..Keywords::default()
            };
            assert_eq!(ActiveFeatures::decide(&keywords), rows[0].1, "{cells:?}");
        }
    }

    #[test]
    fn the_defaults_of_the_keywords_give_rss() {
        assert_eq!(ActiveFeatures::decide(&Keywords::default()), ActiveFeatures::RSS);
    }
}
